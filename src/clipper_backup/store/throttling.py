"""The wrapper that limits how many bytes a second pass, both ways together, so that a backup leaves room on the line."""

import threading
from collections.abc import Iterable, Iterator, Sequence

from clipper_backup.clock import Clock
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore

_SMALL_BYTES = 64 * 1024


class ThrottledStore(WrapperStore):
    """At most *bytes_per_second* over time, all threads together.

    Each piece passes at the line's own speed, and the next one waits until it is paid for: what is limited is the average
    over a few pieces (of up to 8 MiB), not each instant. Parts that obstore sends again are not counted.
    """

    def __init__(self, inner: Store, bytes_per_second: int, clock: Clock) -> None:
        super().__init__(inner)
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_until = clock.monotonic()

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`."""
        self._pay(len(data))
        self._inner.put(key, data, create=create)

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """See `Store.put_stream`."""
        return self._inner.put_stream(key, self._paid(chunks), expected_bytes=expected_bytes)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        data = self._inner.get(key, start=start, length=length)
        self._pay(len(data))
        return data

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`."""
        return self._paid(self._inner.get_stream(key, start=start, same_as=same_as))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        pieces = self._inner.get_ranges(key, ranges)
        self._pay(sum(map(len, pieces)))
        return pieces

    def _paid(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._pay(len(chunk), waits=True)
            yield chunk

    def _pay(self, size_bytes: int, *, waits: bool = False) -> None:
        """Wait until everything before is paid for, then owe for *size_bytes*.

        A small object is owed for and, unless it *waits*, passes at once: a lease that is renewed behind a dump's parts would
        count as abandoned.
        """
        with self._lock:
            now = self._clock.monotonic()
            begin = max(self._paid_until, now)
            self._paid_until = begin + size_bytes / self._bytes_per_second
        if waits or size_bytes >= _SMALL_BYTES:
            self._clock.sleep(begin - now)
