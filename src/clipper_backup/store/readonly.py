"""The wrapper that refuses to write, for commands that only look."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NoReturn

from clipper_backup.clock import Clock
from clipper_backup.errors import UsageError
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore


class ReadOnlyStore(WrapperStore):
    """Every writing call is a UsageError. `now` is this machine's clock, because asking the store's would write."""

    def __init__(self, inner: Store, clock: Clock) -> None:
        super().__init__(inner)
        self._clock = clock

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

    def now(self) -> datetime:
        """The time of this machine; it may differ from the store's."""
        return self._clock.now()

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"cannot {what}: this command opened {self.url} read-only")
