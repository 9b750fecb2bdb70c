"""Reading ahead: the segments behind the one that PostgreSQL asked for last are fetched while it replays that one."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError
from clipper_backup.ops.wal.spool import Spool
from clipper_backup.ops.wal.tablespaces import Watched
from clipper_backup.repository.restore_plan import Linked, RestorePlan
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.wal_names import Segment

AHEAD_BYTES, AHEAD_SEGMENTS = 128 << 20, 16
"""How much may wait in the spool, and how many; but always one."""
IDLE_SECONDS = 30.0
"""After how long without a request a process that reads ahead ends and leaves nothing behind; sooner when its server has."""
_THREADS = 2
"""A segment is as fast read as checked; one thread does either while the other does the other."""
_LOOK_SECONDS = 0.02


class Ahead:
    """Fills the *spool* of one restore. What goes wrong here is found again, and told, by who asks for that segment."""

    def __init__(self, plan: RestorePlan, reader: WalReader, spool: Spool, clock: Clock) -> None:
        self._line, self._last, self._size = plan.line, plan.last_segment, plan.segment_bytes
        self._reader, self._spool, self._clock = reader, spool, clock
        self._running: dict[Segment, Future[None]] = {}
        self._end: Segment | None = None
        self._left: set[Segment] = set()

    def run(self, stop: threading.Event, *, needed: Callable[[], bool] | None = None) -> None:
        """Read ahead until *stop*. With *needed*, also until that is false, the spool is gone, or nobody asks in IDLE_SECONDS.

        Where somebody does so already, return at once.
        """
        with self._spool.reading_ahead() as alone:
            if not alone:
                return
            asked, since = None, self._clock.monotonic()
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="ahead") as pool:
                while not stop.is_set():
                    now = self._spool.asked(self._size)
                    if now is not None and now != asked:
                        asked, since = now, self._clock.monotonic()
                        self._read_behind(asked, pool)
                    elif needed is not None and (now is None or not needed() or self._idle(since)):
                        break
                    self._clock.wait(stop, _LOOK_SECONDS)
                for future in self._running.values():
                    future.cancel()
            self._spool.leave()

    def _idle(self, since: float) -> bool:
        return self._clock.monotonic() - since > IDLE_SECONDS

    def _read_behind(self, asked: Segment, pool: ThreadPoolExecutor) -> None:
        wanted = list(self._wanted(asked))
        there = self._spool.names(self._size)
        for path, linked in there.items():
            # Not the one that is asked for: whoever asked may be about to take it.
            if linked.segment not in {asked, *wanted}:
                path.unlink(missing_ok=True)
        ready = {linked.segment for linked in there.values()}
        self._end = None
        for segment, future in list(self._running.items()):
            if future.done():
                future.result()  # an error that is not ours to hide
                del self._running[segment]
        for segment in wanted:
            if segment not in ready and segment not in self._running and segment not in self._left:
                self._running[segment] = pool.submit(self._read, segment)

    def _wanted(self, asked: Segment) -> Iterator[Segment]:
        last = asked.number + max(1, min(AHEAD_SEGMENTS, AHEAD_BYTES // self._size))
        if self._last is not None:
            last = min(last, self._last.number)
        return self._line.segments(asked.number + 1, last, self._size)

    def _read(self, segment: Segment) -> None:
        if self._end is not None and segment > self._end:
            return
        with contextlib.suppress(ClipperError), self._spool.writing_ahead(segment) as draft:
            opened = self._reader.segment(segment)
            if opened is None:
                self._end = segment
                return
            watched = Watched()
            draft.write(watched.pass_through(opened.chunks))
            if watched.creates:  # who asks for it reads it, and looks where its tablespace is to lie
                self._left.add(segment)
                return
            draft.keep(Linked(segment, opened.header.link, self._reader.previous(segment, opened.header)))
