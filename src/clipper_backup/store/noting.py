"""The wrapper for who looks, and may note what was found at a few keys: all else of the store is as it was."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import NoReturn

from clipper_backup.clock import Clock
from clipper_backup.errors import AccessError, UsageError
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore


class NotingStore(WrapperStore):
    """`put` of a key that is no note (*is_note*) is a UsageError, and so is every other writing call.

    Whoever may only read the store must be able to look too: `now` is the store's clock, or this machine's where asking is
    refused, since that writes.
    """

    def __init__(self, inner: Store, clock: Clock, is_note: Callable[[str], bool]) -> None:
        super().__init__(inner)
        self._clock, self._is_note = clock, is_note
        self._may_ask = True

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`; refused for what is no note."""
        if not self._is_note(key):
            self._refuse(f"write {key}")
        super().put(key, data, create=create)

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """Refused, before anything of *chunks* is taken."""
        del chunks, expected_bytes
        self._refuse(f"write {key}")

    def delete(self, keys: Sequence[str]) -> None:
        """Refused."""
        self._refuse(f"delete {', '.join(keys)}")

    def now(self) -> datetime:
        """See `Store.now`; the time of this machine where the store lets nobody write."""
        if self._may_ask:
            try:
                return super().now()
            except AccessError:
                self._may_ask = False
        return self._clock.now()

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"cannot {what}: this command only reads {self.url}, and notes what it found")
