"""Chunks on their way from the thread that makes them to another that takes them, never many at once."""

import threading
from collections import deque
from typing import Self


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
