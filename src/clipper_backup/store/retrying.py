"""The wrapper that tries again: the only place where calls to a store are repeated.

(One exception, in the adapter: the parts of a streamed write, which nobody else could send again. See
docs/design/store.md.)
"""

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError, ObjectExistsError, ObjectMissingError, StoreUnavailableError
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import show_count, show_seconds

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0
SILENT_SECONDS = 5.0
"""How long a call may fail before whoever waits is told of it."""

Result = TypeVar("Result")


def nobody(_: str) -> None:
    """Nobody waits, or nobody wants to know."""


class RetryingStore(WrapperStore):
    """Repeats calls that failed with a `temporary` error until *retry_seconds* have passed since the first failure began.

    Pauses grow exponentially with full jitter, so that many clients do not come back at once. A read that breaks off
    goes on after the last byte received; each byte received starts the patience anew. A streamed write is tried once:
    its source cannot be asked again. *tell* is given a line about each call that is still tried after SILENT_SECONDS.
    """

    def __init__(
        self, inner: Store, *, retry_seconds: float, clock: Clock, rng: random.Random, tell: Callable[[str], None] = nobody
    ) -> None:
        super().__init__(inner)
        self._tell = tell
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._rng = rng

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`. A create whose answer got lost succeeds when the object holds exactly *data*."""
        if create:
            self._create(key, data)
        else:
            self._persist(lambda: self._inner.put(key, data))

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        return self._persist(lambda: self._inner.get(key, start=start, length=length))

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`."""
        described = same_as or self.head(key)
        position = start
        patience = self._patience()
        while True:
            try:
                for piece in self._inner.get_stream(key, start=position, same_as=described):
                    position += len(piece)
                    yield piece
                    patience = self._patience()
                if position < described.size_bytes:
                    raise StoreUnavailableError(f"{key} ended after {position} of {described.size_bytes} bytes")
            except ClipperError as error:
                patience.wait_after(error)
            else:
                return

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        return self._persist(lambda: self._inner.get_ranges(key, ranges))

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        return self._persist(lambda: self._inner.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        return self._persist(lambda: self._inner.list(prefix))

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        return self._persist(lambda: self._inner.folders(prefix))

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`."""
        self._persist(lambda: self._inner.delete(keys))

    def now(self) -> datetime:
        """See `Store.now`."""
        return self._persist(self._inner.now)

    def _create(self, key: str, data: bytes) -> None:
        # Once an attempt ended without an answer, "exists" may speak of our own object: its bytes tell. That is why
        # exclusive creators write bytes unique to them.
        unanswered = False

        def attempt() -> None:
            nonlocal unanswered
            try:
                self._inner.put(key, data, create=True)
            except ObjectExistsError:
                if not unanswered or not self._holds(key, data):
                    raise
            except ClipperError as error:
                unanswered = unanswered or error.temporary
                raise

        self._persist(attempt)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self._inner.get(key, length=len(data) + 1) == data
        except ObjectMissingError as error:
            # Deleted since: whoever asks again may create it.
            raise StoreUnavailableError(f"{key} came and went while it was created") from error

    def _persist(self, call: Callable[[], Result]) -> Result:
        patience = self._patience()
        while True:
            try:
                return call()
            except ClipperError as error:
                patience.wait_after(error)

    def _patience(self) -> "_Patience":
        return _Patience(self._clock, self._rng, self._retry_seconds, self._tell)


class _Patience:
    """How often one call has failed, and since when."""

    def __init__(self, clock: Clock, rng: random.Random, seconds: float, tell: Callable[[str], None]) -> None:
        self._tell: Callable[[str], None] | None = tell
        self._clock = clock
        self._rng = rng
        self._begun = clock.monotonic()
        self._seconds = seconds
        self._failures = 0

    def wait_after(self, error: ClipperError) -> None:
        """Pause, or raise *error* when it is permanent or patience is at its end."""
        if not error.temporary:
            raise error
        self._failures += 1
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1))
        pause = self._rng.uniform(0, longest)
        elapsed = self._clock.monotonic() - self._begun
        if elapsed + pause >= self._seconds:
            if self._failures == 1:
                raise error
            tried = f"tried {show_count(self._failures, 'time')} in {show_seconds(elapsed)}"
            raise StoreUnavailableError(f"{error.message}; {tried}", hints=error.hints) from error
        if self._tell is not None and elapsed + pause >= SILENT_SECONDS:
            self._tell(f"{error.message}; tried again for up to {show_seconds(self._seconds)} (STORE_RETRY_SECONDS)")
            self._tell = None
        self._clock.sleep(pause)
