"""For how long pg_wal has room when its WAL is not archived: a server whose pg_wal is full ends itself (rule 14)."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.ops.events import Event, Warned
from clipper_backup.values import show_bytes, show_seconds

LOOK_SECONDS = 60.0
_AGAIN_SECONDS = 600.0
_MANY = 64
"""Fewer than that wait for a moment on any busy server."""
_READY = ".ready"


def free_bytes(folder: Path) -> int:
    """What the server may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Filling:
    """Warns while WAL piles up in *wal*, the folder pg_wal: after a minute, then every ten, or when half of the time is gone."""

    def __init__(
        self, wal: Path, segment_bytes: int, clock: Clock, emit: Callable[[Event], None], room: Callable[[Path], int] = free_bytes
    ) -> None:
        self._wal, self._segment_bytes, self._clock, self._emit, self._room = wal, segment_bytes, clock, emit, room
        self._looked_at: float | None = None
        self._seen_at: float | None = None
        self._waiting: list[str] = []
        self._told_at: float | None = None
        self._told_seconds = 0.0

    def look(self) -> None:
        """Look, when a minute has passed since the last time. What pg_wal refuses to tell is not told."""
        now = self._clock.monotonic()
        if self._looked_at is not None and now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        with suppress(OSError):
            waiting = sorted(path.name for path in (self._wal / "archive_status").iterdir() if path.suffix == _READY)
            before, self._waiting = self._waiting, waiting
            elapsed = now - self._seen_at if self._seen_at is not None else 0.0
            self._seen_at = now
            grown = len(waiting) - len(before)
            stuck = bool(waiting and before) and waiting[0] == before[0]
            if not stuck and not (before and grown > 0 and len(waiting) > _MANY):
                self._told_at = None
                return
            left = self._room(self._wal)
            seconds = left * elapsed / (grown * self._segment_bytes) if grown > 0 else float("inf")
            if self._told_at is None or now - self._told_at >= _AGAIN_SECONDS or seconds < self._told_seconds / 2:
                self._told_at, self._told_seconds = now, seconds
                self._emit(self._warning(len(waiting), left, seconds))

    def _warning(self, count: int, left: int, seconds: float) -> Warned:
        much = f"{count} files ({show_bytes(count * self._segment_bytes)})" if count > 1 else "1 file"
        last = "no more came in the last minute" if seconds == float("inf") else f"full in {show_seconds(seconds)} at this rate"
        return Warned(
            f"WAL is not archived as fast as it comes: {much} wait in {self._wal}, which has {show_bytes(left)} of room: {last}",
            (
                "the warnings before this one say what keeps it back; when that is cured, what waits is archived in order",
                "when pg_wal is full, PostgreSQL ends itself: make room, and remove nothing there: that would end recovery",
            ),
        )
