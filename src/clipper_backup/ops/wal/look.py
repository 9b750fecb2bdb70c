"""A look at the WAL archive: systems, timelines, lines, holes, and the window of instants that can be restored."""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clipper_backup.errors import AccessError, IntegrityError, MissingError, StoreError, UsageError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import BaseSummary, SystemEntry
from clipper_backup.format.time_maps import NEVER
from clipper_backup.ops.wal.open_restore import reader_of
from clipper_backup.ops.work import Work
from clipper_backup.postgres.history import parse_history
from clipper_backup.postgres.wal_records import as_moment
from clipper_backup.repository.base_backups import BaseCatalog, BaseEntry, recorded_line
from clipper_backup.repository.line_records import LineRecords, chunks_of
from clipper_backup.repository.lines import Line
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.systems import list_systems, physical_id
from clipper_backup.repository.times import Piece, TimeMaps, summarise
from clipper_backup.repository.wal_catalog import Listed, WalCatalog
from clipper_backup.repository.wal_range import FOREIGN, foreign_wal
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.repository.wal_survey import Hole, LineSurvey, Links, Listings, Run, survey_line
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment, history_name

_CLAIMS_LOOKED_AT = 512
"""So many links that no time map tells of are compared where nobody asked for all."""
_CLAIMS_AT_ONCE = 16
ENDS_LOOKED_AT = 8
"""In how many of the last segments, where no map tells, it is read when the last transaction ended."""

_READ_WHOLE_BYTES = 64 << 20
"""Of larger segments a person would wait for the last one to be read."""


@dataclass(frozen=True, slots=True)
class TimelineSeen:
    """One timeline: its first and last archived segment, and when that one was written, by the store's clock.

    `claimed_at`: when that one was claimed, where it was asked. `problem`: why its line is not known; with a `survey` all the
    same, that is of its own base backups alone, which have its line recorded. `waiting`: claims behind the last segment, whose
    objects have not come. `holds`: whether there is a segment or a base backup of it.
    """

    timeline: Timeline
    first: Segment | None
    last: Segment | None
    written_at: datetime | None
    waiting: int
    survey: LineSurvey | None
    holds: bool
    problem: str | None = None
    claimed_at: datetime | None = None


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
    def unfollowed(self) -> TimelineSeen | None:
        """The newest timeline, when it holds something and its line is not known: a restore that is told no other is refused."""
        newest = next((each for each in reversed(self.timelines) if each.holds), None)
        return newest if newest is not None and newest.survey is None else None

    @property
    def current(self) -> TimelineSeen | None:
        """The newest timeline that holds something and whose line is known."""
        known = [each for each in self.timelines if each.survey is not None]
        return next((each for each in reversed(known) if each.holds), known[0] if known else None)

    @property
    def written_later(self) -> list[str]:
        """What was written on other lines after the end of the one that a restore goes along to the latest."""
        current = self.current
        if current is None or current.survey is None or current.claimed_at is None:
            return []
        line = current.survey.line
        return [
            f"timeline {int(each.timeline)} was written on after timeline {int(current.timeline)}, along which a restore to the"
            f" latest goes, up to {each.last}: the one of your server must be named, --timeline {int(each.timeline)} or"
            f" --timeline {int(current.timeline)}"
            for each in self.timelines
            if each.claimed_at is not None and each.claimed_at > current.claimed_at
            if each.last is not None and not line.holds(each.last)
        ]


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

    `window` leads to the end of the newest line, None when no backup does; `earlier` ones end before it. `refused`: what a
    restore would not take of its first and last segment. `backups` is the catalog of base backups, whatever they are worth.
    """

    systems: Sequence[SystemSeen]
    foreign: Sequence[str]
    window: Window | None
    earlier: Sequence[Window]
    refused: Sequence[str]
    bad_backups: Sequence[str]
    backups: Sequence[BaseEntry] = ()

    @property
    def gaps(self) -> list[Hole]:
        """The holes that lie in the window."""
        return [hole for system in self.systems for hole in system.holes if hole.in_window]

    @property
    def why_no_window(self) -> str:
        """Why nothing can be restored to the end of the WAL."""
        unfollowed = self.systems[-1].unfollowed if self.systems else None
        if unfollowed is not None:
            return f"timeline {int(unfollowed.timeline)}, the newest, cannot be followed"
        bad = f": {self.bad_backups[0]}" if self.bad_backups else ""
        return f"no good base backup has all of its WAL in the archive{bad}"

    @property
    def problems(self) -> list[str]:
        """What somebody should look at."""
        found = [f"a gap at {hole.first}: {hole.why}" for hole in self.gaps]
        found += [*self.refused, *(problem for system in self.systems for problem in system.problems)]
        found += self.systems[-1].written_later if self.systems else []
        return found + [f"wal/{system_id}/ is of a system that has no entry in systems/" for system_id in self.foreign]


class Looker:
    """Looks at one repository. With *whole* every claim is compared, whatever the time maps say; else a few hundred at most."""

    def __init__(self, work: Work, *, whole: bool) -> None:
        self._work, self._whole = work, whole
        self._repository = open_repository(work.store)
        self._now = work.store.now()

    @property
    def now(self) -> datetime:
        """When it began to look, by the store's clock."""
        return self._now

    @property
    def repository_id(self) -> bytes:
        """What the headers of this repository's files say."""
        return physical_id(self._repository)

    def look(self) -> WalSeen:
        """NoRepositoryError where there is none; the store's errors pass through. Nothing is written."""
        entries = list_systems(self._work.store)
        bases = self._bases(entries)
        good = [each.summary for each in bases if each.good and each.summary is not None]
        bad = [f"{each.listed.backup_id}: {each.problem}" for each in bases if each.problem is not None]
        systems = [self._system(entry, [each for each in good if each.system_id == entry.system_id]) for entry in entries]
        known = {entry.system_id for entry in entries}
        foreign = [name for name in self._work.store.folders(keys.WAL_FOLDER) if name not in known]
        window, earlier = self._windows(systems[-1]) if systems else (None, [])
        refused = [] if window is None else self._refused(systems[-1].entry, window)
        if window is not None and not refused:
            window, refused = self._with_its_end(systems[-1], window)
        return WalSeen(systems, foreign, window, earlier, refused, bad, bases)

    def _bases(self, systems: Sequence[SystemEntry]) -> list[BaseEntry]:
        """The catalog of base backups. One that has another history's WAL by now is no good one."""
        found = BaseCatalog(self._work.store, self._repository.id, self._work.trusted).entries()
        catalogs = {entry.system_id: self.catalog(entry) for entry in systems}

        def judged(entry: BaseEntry) -> BaseEntry:
            summary = entry.summary
            if not entry.good or summary is None or summary.system_id not in catalogs:
                return entry
            foreign = foreign_wal(catalogs[summary.system_id], summary)
            return replace(entry, problem=f"segment {foreign[0]} of its WAL {FOREIGN}") if foreign else entry

        with ThreadPoolExecutor(_CLAIMS_AT_ONCE, thread_name_prefix="claims") as pool:
            return list(pool.map(judged, found))

    def catalog(self, entry: SystemEntry) -> WalCatalog:
        """What lists the archive of a system."""
        return WalCatalog(self._work.store, entry.system_id, entry.segment_bytes)

    def reader(self, entry: SystemEntry) -> WalReader:
        """What opens the files of a system's archive."""
        return reader_of(self._work, self._repository.id, entry.system_id, entry.segment_bytes)

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
                if timeline > 1:
                    problem = self._history_problem(entry, timeline, histories[timeline], line)
            except (IntegrityError, MissingError, StoreError, UsageError) as error:
                if error.temporary:
                    raise
                problem = error.message
            leading = backups if problem is None else led_by_own(backups, line)
            survey = None
            if line is not None and (problem is None or leading):
                survey = survey_line(line, listings, leading, links.fit, since=since)
            stored = {} if last is None else listings.objects(last)
            waiting = 0 if last is None else _waiting(listings, last)
            written_at = max((info.modified_at for info in stored.values()), default=None)
            holds = last is not None or any(each.timeline == timeline for each in backups)
            seen.append(TimelineSeen(timeline, first, last, written_at, waiting, survey, holds, problem))
        if sum(each.last is not None for each in seen) > 1:
            seen = [replace(each, claimed_at=_claimed_at(links, each.last)) for each in seen]
        problems = [f"timeline {int(each.timeline)}: {each.problem}" for each in seen if each.problem is not None]
        problems += links.damaged.values()
        return SystemSeen(entry, seen, sorted(listings.twice), links.unlooked, problems)

    def _history_problem(self, entry: SystemEntry, timeline: Timeline, listed: Listed, line: Line) -> str | None:
        """Why the archived history is not what PostgreSQL would need to follow the *line* that its claim gives."""
        if listed.stored is None:
            return f"{history_name(timeline)} was claimed, and never stored, or lost since"
        try:
            data = self.reader(entry).history(timeline)
        except AccessError:  # sealed, and no identity at hand
            return None
        except IntegrityError as error:
            return error.message
        if data is not None and Line.of(timeline, parse_history(data, history_name(timeline))) != line:
            return f"{history_name(timeline)} in the archive names other ancestors than its claim"
        return None

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
        if survey.window is None or system.unfollowed is not None:
            return None, found
        *earlier, whole = found
        return whole, earlier

    def _with_its_end(self, system: SystemSeen, window: Window) -> tuple[Window, list[str]]:
        """The window with the instant that it leads to; and what of its last WAL cannot be read."""
        current = system.current
        assert current is not None and current.survey is not None and current.survey.window is not None  # noqa: S101, PT018  it has a window
        try:
            end = self.end_of(system.entry, current.survey.line, current.survey.window)
        except IntegrityError as error:
            return window, [f"the end of the WAL cannot be read: {error.message}"]
        # What was committed before the backup ended is in it: there is no instant before.
        return replace(window, to=None if end is None else max(end, window.backup.stopped_at)), []

    def _refused(self, entry: SystemEntry, window: Window) -> list[str]:
        """Signing may have been switched on between the two, or exchanged: then all before it, or behind it, is refused.

        The last one is read to its end, whatever a map tells of it: nothing behind it says that it was whole.
        """
        reader, refused = self.reader(entry), []
        first = Segment.parse(window.backup.first_segment, entry.segment_bytes)
        for segment in dict.fromkeys((first, window.last)):
            try:
                found = reader.segment(segment)
                if found is not None and segment == window.last and entry.segment_bytes <= _READ_WHOLE_BYTES:
                    deque(found.chunks, maxlen=0)
            except AccessError:  # sealed, and no identity at hand
                continue
            except IntegrityError as error:
                refused.append(error.message)
        return refused

    def end_of(self, entry: SystemEntry, line: Line, run: Run) -> datetime | None:
        """When the last transaction ended that the run holds; None where no map tells and no key opens the WAL.

        IntegrityError where it cannot be read.
        """
        maps = TimeMaps(self._work.store, entry.system_id, entry.segment_bytes)
        records = LineRecords(line, chunks_of(self.reader(entry)))
        pieces: dict[Timeline, list[Piece]] = {}
        left, number = ENDS_LOOKED_AT, run.last
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
                except AccessError:  # sealed, and no identity at hand
                    return None
            if latest != NEVER:
                return as_moment(latest)
        return None


def led_by_own(backups: Iterable[BaseSummary], line: Line | None) -> list[BaseSummary]:
    """Those with which a restore does without the history of a timeline: they have its *line* recorded."""
    return [backup for backup in backups if line is not None and recorded_line(backup) == line]


def _claimed_at(links: Links, last: Segment | None) -> datetime | None:
    """By the claim, which nothing writes again; None where there is none that can be read."""
    claim = None if last is None else links.claim(last)
    return None if claim is None else claim.claimed_at


def _waiting(listings: Listings, last: Segment) -> int:
    """How many segments behind the last one that is there were claimed."""
    later = [folder for folder in listings.folders(last.timeline) if folder >= last.folder]
    return sum(segment > last for folder in later for segment in listings.segments(last.timeline, folder))
