"""Chunks on their way from the thread that makes them to another that takes them, never many at once."""

import io
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from typing_extensions import Buffer


class FeedAbortedError(Exception):
    """What the taker meets when the maker gave up. It never becomes a user's error: the maker's own says what happened."""


class Feed:
    """A bounded queue with three ends: the maker has no more, the maker gives up, the taker takes no more."""

    def __init__(self, room_bytes: int) -> None:
        """With fewer than *room_bytes* waiting there is room for another chunk, of any size."""
        self._room_bytes = room_bytes
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._finished = self._aborted = self._closed = False

    @property
    def waiting_bytes(self) -> int:
        """How much was sent and not taken yet."""
        with self._changed:
            return self._waiting_bytes

    def send(self, chunk: bytes) -> bool:
        """Hand over *chunk* when there is room for it; False when nobody takes it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_bytes < self._room_bytes or self._closed)
            if self._closed:
                return False
            self._waiting.append(chunk)
            self._waiting_bytes += len(chunk)
            self._changed.notify_all()
            return True

    def finish(self) -> None:
        """There are no more chunks."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Make the taker's next step raise FeedAbortedError."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody takes chunks any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._finished or self._aborted)
            if self._aborted:
                raise FeedAbortedError
            if not self._waiting:
                raise StopIteration
            chunk = self._waiting.popleft()
            self._waiting_bytes -= len(chunk)
            self._changed.notify_all()
            return chunk


_CONVERTED_AHEAD_BYTES = 1 << 20


class Source(io.BufferedIOBase):
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to *size* bytes; none at the end."""
        if not self._rest:
            self._rest = memoryview(next(filter(None, self._chunks), b""))
        taken = self._rest if size is None or size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return bytes(taken)


class Sink(io.BufferedIOBase):
    """A file to write to, whose content is taken away as it comes."""

    def __init__(self) -> None:
        self._written: deque[bytes] = deque()

    def write(self, data: "Buffer", /) -> int:
        """Keep *data* until it is taken."""
        kept = bytes(data)
        self._written.append(kept)
        return len(kept)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        """What was written since the last time."""
        return b"".join(self._written.popleft() for _ in range(len(self._written)))


def converted(chunks: Iterable[bytes], convert: Callable[[Source, Sink], object]) -> Iterator[bytes]:
    """What *convert* makes of the chunks, as they come; it reads from one file and writes to another, all in one call.

    That call runs in a thread which waits for nothing but the next chunk: whoever stops asking ends it at once. What it raises
    is raised here; what *chunks* raises passes through unchanged.
    """
    feed, sink = Feed(_CONVERTED_AHEAD_BYTES), Sink()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            convert(Source(feed), sink)
        except BaseException as error:  # noqa: BLE001  # handed on to whoever takes the chunks
            failed.append(error)
        finally:
            feed.close()

    thread = threading.Thread(target=run, name="converter", daemon=True)
    try:
        thread.start()
        for chunk in chunks:
            if not feed.send(chunk):
                break
            if ready := sink.take():
                yield ready
        feed.finish()
        thread.join()
        if failed:
            raise failed[0]
        if ready := sink.take():
            yield ready
    finally:
        feed.abort()
        if thread.ident is not None:
            thread.join()
