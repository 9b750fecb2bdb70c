"""The time maps of what a server archives, written behind its archiving and never on its path (W7: they are a cache)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipper_backup.errors import ClipperError, IntegrityError, MissingError
from clipper_backup.format.time_maps import SHORT
from clipper_backup.ops.events import Warned
from clipper_backup.ops.work import Work
from clipper_backup.postgres.data_folder import DataFolder, WalFile
from clipper_backup.postgres.wal_files import ChangedError
from clipper_backup.repository.line_records import LineRecords
from clipper_backup.repository.lines import Line
from clipper_backup.repository.times import TimeMaps, TimesWriter
from clipper_backup.repository.wal_catalog import Listed, WalCatalog
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Kind, Segment, classify

_TURN_SECONDS = 60.0
_SHARE = 0.2
"""How much of one core's time it takes at most: the interpreter's lock is the archiver's too."""


@contextmanager
def keeping_times(work: Work, pgdata: Path) -> Iterator[None]:
    """While this is open, keep the time maps of that server's archive up to date; what fails is told, and tried again."""
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=(work, DataFolder(pgdata, work.clock), stop), name="times", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _keep(work: Work, folder: DataFolder, stop: threading.Event) -> None:
    keeper, told = None, ""
    while not stop.is_set():
        try:
            keeper = keeper or TimesKeeper(work, folder, stop)
            keeper.turn()
            told = ""
        except ClipperError as error:
            keeper, told = None, _tell(work, error.message, error.hints, told)
        except OSError as error:  # pg_wal lies on a volume that is not there for a moment
            keeper, told = None, _tell(work, str(error), (), told)
        work.clock.wait(stop, _TURN_SECONDS)


def _tell(work: Work, message: str, hints: tuple[str, ...], told: str) -> str:
    """Warn, unless that was *told* last."""
    if message != told:
        work.emit(Warned(f"time maps are not written: {message}", hints))
    return message


class TimesKeeper:
    """Maps what was archived since the last map, as long as it lies in pg_wal: it needs no key, and fetches no segment.

    What has no map is read when somebody looks for an instant in it.
    """

    def __init__(self, work: Work, folder: DataFolder, stop: threading.Event) -> None:
        self._clock, self._folder, self._stop = work.clock, folder, stop
        self._layout = folder.layout()
        system_id, size = str(self._layout.system_id), self._layout.segment_bytes
        self._catalog, self._maps = WalCatalog(work.store, system_id, size), TimeMaps(work.store, system_id, size)
        self._line: Line | None = None
        self._writer: TimesWriter | None = None

    def turn(self) -> int:
        """Map all that is archived on the server's timeline and has no map; how many segments that were."""
        timeline = self._folder.control().timeline
        if self._line is None or self._writer is None or self._line.timeline != timeline:
            self._line = self._catalog.line(timeline)
            self._writer = TimesWriter(self._maps, LineRecords(self._line, self._opened))
        covered = max((piece.last for piece in self._maps.cover(timeline)), default=-1)
        mapped: list[int] = []
        for segment in self._archived(timeline, covered):
            began = self._clock.monotonic()
            with suppress(ChangedError, IntegrityError):  # recycled meanwhile: it stays without a map
                if self._writer.add(segment, linked=self._is_linked(self._line, segment)):
                    mapped.append(segment.number)
            if self._clock.wait(self._stop, (self._clock.monotonic() - began) * (1 / _SHARE - 1)):
                break
        self._writer.flush()
        if any(number % SHORT == SHORT - 1 for number in mapped):
            self._maps.consolidate(timeline)
        return len(mapped)

    def _archived(self, timeline: Timeline, covered: int) -> Iterator[Segment]:
        """The segments in pg_wal behind the last map whose objects are in the archive, rising."""
        listed: dict[str, dict[Segment, Listed]] = {}
        for name in sorted(path.name for path in self._folder.wal.iterdir()):
            if classify(name) is Kind.SEGMENT and name.startswith(str(timeline)):
                segment = Segment.parse(name, self._layout.segment_bytes)
                if segment.number > covered:
                    if segment.folder not in listed:
                        listed[segment.folder] = self._catalog.segments(timeline, segment.folder)
                    if listed[segment.folder].get(segment, Listed()).stored is not None:
                        yield segment

    def _opened(self, segment: Segment) -> Iterator[bytes] | None:
        ancestors = [] if segment.timeline == 1 else self._catalog.ancestors(segment.timeline)
        try:
            return WalFile.find(self._folder.wal / segment.name, self._layout, ancestors).read()
        except MissingError:
            return None

    def _is_linked(self, line: Line, segment: Segment) -> bool:
        if line.is_first(segment):
            return True
        claim, before = self._catalog.claim(segment), self._catalog.claim(segment.previous())
        return claim is not None and before is not None and bytes.fromhex(claim.previous) == self._catalog.link_of(before)
