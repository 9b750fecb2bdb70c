"""The wrappers that refuse to write: for commands that only look, and the base of others that let nothing be written."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NoReturn

from clipper_backup.clock import Clock
from clipper_backup.errors import UsageError
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore


class RefusingStore(WrapperStore):
    """Every writing call is a UsageError, which ends with *why*."""

    def __init__(self, inner: Store, why: str) -> None:
        super().__init__(inner)
        self._why = why

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """Refused."""
        del data, create
        self._refuse(f"write {key}")

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """Refused, before anything of *chunks* is taken."""
        del chunks, expected_bytes
        self._refuse(f"write {key}")

    def delete(self, keys: Sequence[str]) -> None:
        """Refused."""
        self._refuse(f"delete {', '.join(keys)}")

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"cannot {what}: {self._why}")


class ReadOnlyStore(RefusingStore):
    """Nothing is written. `now` is this machine's clock, because asking the store's would write."""

    def __init__(self, inner: Store, clock: Clock) -> None:
        super().__init__(inner, f"this command opened {inner.url} read-only")
        self._clock = clock

    def now(self) -> datetime:
        """The time of this machine; it may differ from the store's."""
        return self._clock.now()
