"""A look at the WAL archive: systems, timelines, lines, holes, and the window of instants that can be restored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clipper_backup.errors import AccessError, IntegrityError, MissingError, StoreError, UsageError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import BaseSummary, SystemEntry
from clipper_backup.format.time_maps import NEVER
from clipper_backup.kinds import NONE
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.work import Work
from clipper_backup.postgres.wal_records import as_moment
from clipper_backup.repository.base_backups import BaseCatalog
from clipper_backup.repository.line_records import LineRecords, chunks_of
from clipper_backup.repository.lines import Line
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.systems import list_systems, physical_id
from clipper_backup.repository.times import Piece, TimeMaps, summarise
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.repository.wal_survey import Hole, LineSurvey, Links, Listings, Run, survey_line
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment, history_name

_CLAIMS_LOOKED_AT = 512
"""So many links that no time map tells of are compared where nobody asked for all."""
_ENDS_LOOKED_AT = 8
"""In how many of the last segments, where no map tells, it is read when the last transaction ended."""


@dataclass(frozen=True, slots=True)
class TimelineSeen:
    """One timeline: its first and last archived segment, and when that one was written, by the store's clock.

    `problem`: why its line is not known. `waiting`: claims behind the last segment, whose objects have not come. `holds`:
    whether there is a segment or a base backup of it.
    """

    timeline: Timeline
    first: Segment | None
    last: Segment | None
    written_at: datetime | None
    waiting: int
    survey: LineSurvey | None
    holds: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class SystemSeen:
    """One system of the repository. `twice`: segments that lie there plain and sealed, both; no harm, but room."""

    entry: SystemEntry
    timelines: Sequence[TimelineSeen]
    twice: Sequence[str]
    unlooked: int
    problems: Sequence[str]

    @property
    def holes(self) -> list[Hole]:
        """All of its lines, each once."""
        found: dict[Segment, Hole] = {}
        for each in self.timelines:
            for hole in each.survey.holes if each.survey else ():
                if hole.first not in found or hole.in_window:
                    found[hole.first] = hole
        return sorted(found.values(), key=lambda hole: (hole.first.number, hole.first))

    @property
    def current(self) -> TimelineSeen | None:
        """The newest timeline that holds something and whose line is known: where a restore to the latest goes."""
        known = [each for each in self.timelines if each.survey is not None]
        return next((each for each in reversed(known) if each.holds), known[0] if known else None)


@dataclass(frozen=True, slots=True)
class Window:
    """Every instant from the stop of the first *backup* on can be restored, to the end of *last*.

    `to`: when the last transaction ended in it; each instant before can be named. None where that was not read.
    """

    backup: BaseSummary
    timeline: Timeline
    last: Segment
    to: datetime | None = None


@dataclass(frozen=True, slots=True)
class WalSeen:
    """The whole archive. `foreign`: system ids that have WAL here and no entry.

    `window` leads to the end of the newest line, None when no backup does; `earlier` ones end at a gap. `refused`: what a restore
    would not take of its first and last segment.
    """

    systems: Sequence[SystemSeen]
    foreign: Sequence[str]
    window: Window | None
    earlier: Sequence[Window]
    refused: Sequence[str]
    bad_backups: Sequence[str]

    @property
    def gaps(self) -> list[Hole]:
        """The holes that lie in the window."""
        return [hole for system in self.systems for hole in system.holes if hole.in_window]

    @property
    def problems(self) -> list[str]:
        """What somebody should look at."""
        found = [f"a gap at {hole.first}: {hole.why}" for hole in self.gaps]
        found += [*self.refused, *(problem for system in self.systems for problem in system.problems)]
        return found + [f"wal/{system_id}/ is of a system that has no entry in systems/" for system_id in self.foreign]


class Looker:
    """Looks at one repository. With *whole* every claim is compared, whatever the time maps say; else a few hundred at most."""

    def __init__(self, work: Work, *, whole: bool) -> None:
        self._work, self._whole = work, whole
        self._repository = open_repository(work.store)
        self._now = work.store.now()

    @property
    def repository_id(self) -> bytes:
        """What the headers of this repository's files say."""
        return physical_id(self._repository)

    def look(self) -> WalSeen:
        """NoRepositoryError where there is none; the store's errors pass through. Nothing is written."""
        entries = list_systems(self._work.store)
        bases = BaseCatalog(self._work.store, self._repository.id, self._work.trusted).entries()
        good = [each.summary for each in bases if each.good and each.summary is not None]
        bad = [f"{each.listed.backup_id}: {each.problem}" for each in bases if each.problem is not None]
        systems = [self._system(entry, [each for each in good if each.system_id == entry.system_id]) for entry in entries]
        known = {entry.system_id for entry in entries}
        foreign = [name for name in self._work.store.folders(keys.WAL_FOLDER) if name not in known]
        window, earlier = self._windows(systems[-1]) if systems else (None, [])
        refused = [] if window is None else self._refused(systems[-1].entry, window)
        return WalSeen(systems, foreign, window, earlier, refused, bad)

    def catalog(self, entry: SystemEntry) -> WalCatalog:
        """What lists the archive of a system."""
        return WalCatalog(self._work.store, entry.system_id, entry.segment_bytes)

    def reader(self, entry: SystemEntry) -> WalReader:
        """What opens the files of a system's archive."""
        settings = self._work.settings
        return WalReader(
            self._work.store,
            repository_id=self._repository.id,
            system_id=entry.system_id,
            segment_bytes=entry.segment_bytes,
            opener=opener_of(settings, settings.encryption_recipients),
            seals=settings.encryption_recipients not in {(), (NONE,)},
            trusted=self._work.trusted,
        )

    # -- one system

    def _system(self, entry: SystemEntry, backups: Sequence[BaseSummary]) -> SystemSeen:
        store, catalog = self._work.store, self.catalog(entry)
        listings = Listings(store, entry.system_id, entry.segment_bytes)
        maps = None if self._whole else TimeMaps(store, entry.system_id, entry.segment_bytes)
        links = Links(store, catalog, listings, maps=maps, budget=None if self._whole else _CLAIMS_LOOKED_AT)
        histories = catalog.histories()
        since = self._now - timedelta(days=self._work.settings.pitr_window_days)
        seen = []
        for timeline in catalog.timelines():
            first, last = listings.oldest(timeline), listings.newest(timeline)
            problem, line = None, None
            try:
                line = catalog.line(timeline)
                if timeline > 1 and histories[timeline].stored is None:
                    problem = f"{history_name(timeline)} was claimed, and never stored, or lost since"
            except (IntegrityError, MissingError, StoreError, UsageError) as error:
                if error.temporary:
                    raise
                problem = error.message
            survey = None if line is None else survey_line(line, listings, backups, links.fit, since=since)
            stored = {} if last is None else listings.objects(last)
            waiting = 0 if last is None else _waiting(listings, last)
            written_at = max((info.modified_at for info in stored.values()), default=None)
            holds = last is not None or any(each.timeline == timeline for each in backups)
            seen.append(TimelineSeen(timeline, first, last, written_at, waiting, survey, holds, problem))
        problems = [f"timeline {int(each.timeline)}: {each.problem}" for each in seen if each.problem is not None]
        problems += links.damaged.values()
        return SystemSeen(entry, seen, sorted(listings.twice), links.unlooked, problems)

    def _windows(self, system: SystemSeen) -> tuple[Window | None, list[Window]]:
        current = system.current
        if current is None or current.survey is None:
            return None, []
        survey, size = current.survey, system.entry.segment_bytes
        found = [
            Window(min(run.backups, key=lambda each: each.stopped_at), current.timeline, survey.line.segment(run.last, size))
            for run in survey.runs
            if run.backups
        ]
        if survey.window is None:
            return None, found
        *earlier, whole = found
        return replace(whole, to=self._newest_end(system.entry, survey.line, survey.window)), earlier

    def _refused(self, entry: SystemEntry, window: Window) -> list[str]:
        """Signing may have been switched on between the two, or exchanged: then all before it, or behind it, is refused."""
        reader, refused = self.reader(entry), []
        first = Segment.parse(window.backup.first_segment, entry.segment_bytes)
        for segment in (first, window.last):
            try:
                reader.segment(segment)
            except AccessError:  # sealed, and no identity at hand
                continue
            except IntegrityError as error:
                refused.append(error.message)
        return refused

    def _newest_end(self, entry: SystemEntry, line: Line, run: Run) -> datetime | None:
        """When the last transaction ended that the run holds; None where no map tells and the WAL cannot be read."""
        maps = TimeMaps(self._work.store, entry.system_id, entry.segment_bytes)
        records = LineRecords(line, chunks_of(self.reader(entry)))
        pieces: dict[Timeline, list[Piece]] = {}
        left, number = _ENDS_LOOKED_AT, run.last
        while number >= run.first:
            segment = line.segment(number, entry.segment_bytes)
            if segment.timeline not in pieces:
                pieces[segment.timeline] = maps.cover(segment.timeline)
            piece = next((piece for piece in pieces[segment.timeline] if piece.first <= number <= piece.last), None)
            known = None if piece is None else maps.read(piece.name)
            if piece is not None and known is not None:
                told = [known.segments[each - piece.name.first.number] for each in range(piece.first, number + 1)]
                latest = max((each.latest for each in told if each.understood), default=NEVER)
                number = piece.first - 1
            elif left == 0:
                return None
            else:
                left -= 1
                number -= 1
                try:
                    latest = summarise(records.of(segment) or ())[0].latest
                except (AccessError, IntegrityError):
                    return None
            if latest != NEVER:
                return as_moment(latest)
        return None


def _waiting(listings: Listings, last: Segment) -> int:
    """How many segments behind the last one that is there were claimed."""
    later = [folder for folder in listings.folders(last.timeline) if folder >= last.folder]
    return sum(segment > last for folder in later for segment in listings.segments(last.timeline, folder))
