"""What a restore will do, decided before anything is written: backup, line, WAL, where recovery stops, sizes, what is lost.

Targets that cannot be reached are refused here, by the archived WAL itself: PostgreSQL would say so after hours, or not at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from clipper_backup.errors import IntegrityError, MissingError, UsageError, WalGapError
from clipper_backup.format.base_documents import BaseSummary, Role
from clipper_backup.format.time_maps import TimeMap
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.restore.choose import choose_backup, on_line
from clipper_backup.ops.restore.former import Former, former_server, refuse_short, say_short
from clipper_backup.ops.restore.later_tablespaces import Watch, later_of, refuse_later, refuse_taken
from clipper_backup.ops.restore.needed import refuse_needed
from clipper_backup.ops.restore.places import find_places
from clipper_backup.ops.restore.reach import Reach, Reached
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.saved_wal import left_folders, repair_hint
from clipper_backup.ops.restore.systems import Systems
from clipper_backup.ops.restore.target_dir import (
    Found,
    check_space,
    check_tablespaces,
    emptied,
    look_at,
    size_of,
    version_folder,
    wal_place,
)
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.restore.way import Way, WayChoice
from clipper_backup.ops.restore.work_dir import check_work_folder, fleeting
from clipper_backup.ops.wal.open_restore import reader_of
from clipper_backup.ops.wal.tablespaces import why_not_ours
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.data_folder import WAL_FOLDER
from clipper_backup.postgres.history import parse_history
from clipper_backup.postgres.wal_pages import WalLayout
from clipper_backup.postgres.wal_records import Kind, Record, as_moment
from clipper_backup.repository.base_backups import (
    LOST_HINTS,
    BaseCatalog,
    BaseEntry,
    part_of,
    plain_part,
    read_packs,
    recorded_line,
)
from clipper_backup.repository.data_keys import DataKeys
from clipper_backup.repository.kept_wal import Kept
from clipper_backup.repository.line_records import LineRecords
from clipper_backup.repository.lines import Line
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.stops import Stop
from clipper_backup.repository.times import TimeMaps
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_range import Gap, RangeCheck, WalRange, refuse_foreign
from clipper_backup.values import BackupId, Lsn, Timeline, show_count
from clipper_backup.wal_names import Segment, history_name

_WAL_ROOM_BYTES = 1 << 30
"""How much WAL a recovering server keeps in pg_wal: max_wal_size, by default."""
_SPOOL_BYTES = 128 << 20
"""And what is read ahead, in a folder there."""
_BYTES_A_SECOND = 100e6
"""What two cores restore or replay in a second, about; for the forecast alone."""
_ENDS_LOOKED_AT = 8
"""In how many of the last segments the last commit is looked for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done. `last` is the segment behind which nothing is needed, None: to the end of what is there.

    `way` is the line of the timeline that was named, or of the newest; `line` that of the timeline where recovery stops on it.
    `passed_over` are newer timelines that hold nothing, where nobody named one. `stop` is the record at which recovery stops;
    `last_commit_at`, of a restore to the latest, when the last transaction ended that is archived, and `ends_at` is where the
    last record ends: None where none was found near the end. `namesakes` are other restore points of the target's name.
    `tablespaces` is where each goes, by OID, `later_tablespaces` those that the WAL makes, as far as it was read; `sizes` are
    bytes by place, and `space` is what is needed where, and what of it is freed before. `left` are files of pg_wal at the target
    that are archived first, `stray` those of timelines that `way` does not go along: they are not. `kept` is what no archive
    takes of it and recovery replays. `beside` is where other timelines end: of a time those that may have been the one in use
    then, of the latest all. `former` is the timeline that the server there was on, None without one, `left_out` whether it
    wrote something that `way` does not go along. `notes` are for people.
    `followed_by` is the newest system, where this is an older one: of before an upgrade.
    """

    repository_id: str
    summary: BaseSummary
    problem: str | None
    target: Target
    way: Line
    line: Line
    wal: WalRange
    last: Segment | None
    stop: Stop | None
    passed_over: Sequence[Timeline]
    last_commit_at: datetime | None
    ends_at: Lsn | None
    tablespaces: Mapping[int, Path]
    sizes: Mapping[Path, int]
    found: Found
    left: Sequence[str] = ()
    stray: Sequence[str] = ()
    beside: Sequence[Segment] = ()
    former: Timeline | None = None
    left_out: bool = False
    notes: Sequence[str] = ()
    followed_by: str | None = None
    namesakes: Sequence[Record] = ()
    later_tablespaces: Mapping[int, Path] = field(default_factory=dict)
    kept: Kept | None = None
    space: tuple[Mapping[Path, int], Mapping[Path, int]] = ({}, {})

    @property
    def first(self) -> Segment:
        """The segment where recovery begins."""
        return Segment.parse(self.summary.first_segment, self.summary.sizes.segment_bytes)

    @property
    def version_folder(self) -> str:
        """Of its tablespaces."""
        return version_folder(self.summary.versions.server_major, self.summary.versions.catalog)

    @property
    def emptied(self) -> tuple[Path, ...]:
        """The folders of tablespaces that are emptied first."""
        return emptied(self.found, self.tablespaces.values())

    @property
    def plain_bytes(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())

    @property
    def wal_bytes(self) -> int:
        """Of the WAL to replay."""
        return len(self.wal.segments) * self.summary.sizes.segment_bytes

    @property
    def forecast_seconds(self) -> float:
        """How long it takes on a machine of two cores near its store, about."""
        return (self.plain_bytes + self.wal_bytes) / _BYTES_A_SECOND


class Planner:
    """Makes plans from one repository."""

    def __init__(self, work: Work, request: Request) -> None:
        self._work, self._request = work, request
        repository = open_repository(work.store)
        self._repository_id = repository.id
        self._entries = BaseCatalog(work.store, repository.id, work.trusted).entries()
        self._systems = Systems(work.store, self._entries, request.backup)
        self._system_id, self._segment_bytes = self._systems.choose(request.target.time)
        self._catalog = WalCatalog(work.store, self._system_id, self._segment_bytes)
        self._maps = TimeMaps(work.store, self._system_id, self._segment_bytes)
        self._reader = reader_of(work, repository.id, self._system_id, self._segment_bytes)
        self._layout = self._layout_of_wal()
        self._way: Way | None = None
        self._former: Former | None = None
        self._folders: list[Path] = []
        self._watch = Watch(self._read, self._layout.page_bytes if self._layout is not None else 0)

    def _layout_of_wal(self) -> WalLayout | None:
        """By its backups; None where no summary can be read, so that nothing is restored."""
        for summary in (entry.summary for entry in self._entries):
            if summary is not None and summary.system_id == self._system_id:
                major, page_bytes = summary.versions.server_major, summary.sizes.wal_page_bytes
                return WalLayout(major, int(self._system_id), self._segment_bytes, page_bytes)
        return None

    # -- where it goes to

    def plan(self) -> Plan:
        """Decide everything. MissingError, WalGapError or UsageError when the target cannot be reached, or not there."""
        request, target = self._request, self._request.target
        found = look_at(request.data, request.account, system_id=self._system_id, replace=request.replace)
        chosen = self._choose_way(found)
        self._way, line = chosen, chosen.line
        ends = target.kind == "latest"
        candidates = on_line(self._entries, line, self._system_id)
        reached: Reached | None = None
        try:
            if ends or target.kind == "immediate":
                entry = choose_backup(candidates, target, wanted=request.backup)
            else:
                reach = Reach(self._work, self._catalog, self._maps, line, self._watch, chosen.kept)
                reached = reach.find(candidates, target, request.backup)
                entry = reached.entry
        except MissingError as error:
            hints = [*self._beside(line), *error.hints, *self._systems.hints_beside(self._system_id), *self._unusable()]
            raise MissingError(error.message, hints=hints) from error
        except WalGapError as error:
            raise WalGapError(error.message, hints=[*self._beside(line), *error.hints]) from error
        summary, stop = entry.summary, None if reached is None else reached.stop
        assert summary is not None  # noqa: S101  `on_line` left the others out
        last = self._last(summary, stop)
        kept = chosen.kept if ends or (stop is not None and chosen.kept is not None and stop.segment in chosen.kept) else None
        if stop is not None or target.kind == "immediate":
            line = self._line_at(line, stop.record.end if stop is not None else Lsn.parse(summary.stop_lsn), last)
        self._check_history(line, summary)
        wal, last = self._follow(line, summary, last, kept)
        kept = None if wal.gap is not None else kept
        self._refuse_unreadable(entry, summary, found)
        tablespaces, sizes = find_places(self._work, summary, request.data, request.tablespaces)
        versions = summary.versions
        version = version_folder(versions.server_major, versions.catalog)
        check_tablespaces(request.data, tablespaces, found, request.account, version=version)
        check_work_folder(request.folder, request.account, [request.data, *tablespaces.values(), *found.tablespaces])
        notes = list(chosen.notes) if found.state != "cluster" else [*chosen.notes, *self._fleeting()]
        room, pg_wal = min(len(wal.segments) * self._segment_bytes, _WAL_ROOM_BYTES) + _SPOOL_BYTES, wal_place(request.data)
        removed = [request.data, *emptied(found, tablespaces.values())] if found.state in {"unfinished", "cluster"} else []
        refuse_needed(self._work, removed)
        gone = size_of(dict.fromkeys([*removed, pg_wal]) if removed else [])
        space = {**sizes, pg_wal: sizes.get(pg_wal, 0) + room}, gone
        check_space(*space)
        replayed = [*wal.segments, *(() if kept is None else kept.names)]
        try:
            last_commit_at, ends_at = self._ends(line, replayed) if ends else (None, None)
        except IntegrityError as error:
            raise IntegrityError(error.message, hints=[*error.hints, "to end before it: --accept-gap"]) from error
        notes += self._short(chosen.line, kept, replayed[-1].end) if ends else ()
        first = Segment.parse(summary.first_segment, self._segment_bytes)
        notes += self._later_there(found, tablespaces, summary, version, ends=ends)
        later = refuse_taken(self._watch.between(first, last), tablespaces.values(), request.account.uid)
        return Plan(
            repository_id=self._repository_id,
            summary=summary,
            problem=entry.problem,
            target=target,
            way=chosen.line,
            line=line,
            wal=wal,
            last=last,
            stop=stop,
            namesakes=() if reached is None else reached.namesakes,
            passed_over=chosen.passed_over,
            last_commit_at=last_commit_at,
            ends_at=ends_at,
            tablespaces=tablespaces,
            later_tablespaces=later,
            sizes=sizes,
            found=found,
            kept=kept,
            space=space,
            beside=chosen.beside if ends or (reached is not None and reached.at_a_branch) else (),
            notes=notes,
            former=None if self._former is None else self._former.timeline,
            left_out=self._former is not None and not self._former.is_along(chosen.line),
            followed_by=self._systems.newer_than(self._system_id),
        )

    def _choose_way(self, found: Found) -> Way:
        request = self._request
        self._former = former_server(request.data, self._work.clock) if found.state == "cluster" else None
        self._folders = left_folders(request.data, request.folder, found) if not request.standby else []
        summaries = [entry.summary for entry in self._entries if entry.summary is not None]
        choice = WayChoice(
            request,
            self._catalog,
            self._open,
            self._layout,
            of_backups={Timeline(each.timeline) for each in summaries if each.system_id == self._system_id},
            former=self._former,
            folders=self._folders,
        )
        if self._former is None:
            return choice.choose()
        with step(self._work, "former", f"look at the timeline of the server there, and what it left in {WAL_FOLDER}") as running:
            way = choice.choose()
            running.done = f"the server there was on timeline {int(self._former.timeline)}" + (
                "" if way.kept is None else f", with WAL up to {way.kept.ends_at} that is not archived"
            )
        return way

    def _beside(self, line: Line) -> list[str]:
        """Hints: the timelines whose WAL a restore along *line* does not see, or not all of it."""
        return [
            f"timeline {int(end.timeline)} has WAL of its own up to {end}: --timeline {int(end.timeline)}"
            for end in self._catalog.beside(line)
        ]

    def _line_at(self, line: Line, end: Lsn, last: Segment | None) -> Line:
        """The line of the timeline on which recovery is that stops at *end*: that is the one PostgreSQL is told.

        Where its server died amid the segment *last*, only the descendant's is archived: then it is that one's line.
        """
        timeline = line.at(end).timeline
        if last is not None and last.timeline != timeline:
            own = Segment(timeline, last.number, last.size_bytes)
            listed = self._catalog.segments(timeline, own.folder).get(own)
            timeline = timeline if listed is not None and listed.stored is not None else last.timeline
        return line if timeline == line.timeline else self._catalog.line(timeline)

    def _unusable(self) -> list[str]:
        """What to say of backups that were not looked at because their summaries cannot be read, or are not trusted."""
        found = [entry for entry in self._entries if entry.summary is None and entry.problem is not None]
        return (
            [f"{show_count(len(found), 'base backup cannot', 'base backups cannot')} be used: {found[-1].problem}"]
            if found
            else []
        )

    def _open(self, segment: Segment) -> Iterator[bytes] | None:
        opened = self._reader.segment(segment)
        return None if opened is None else opened.chunks

    def _read(self, segment: Segment) -> Iterator[bytes] | None:
        """Of the archive; where that ends, of what was left."""
        archived = self._open(segment)
        kept = None if self._way is None else self._way.kept
        return kept.open(segment) if archived is None and kept is not None else archived

    def _last(self, summary: BaseSummary, stop: Stop | None) -> Segment | None:
        if stop is not None:
            return stop.segment
        if self._request.target.kind == "immediate":
            return Segment.parse(summary.last_segment, self._segment_bytes)
        return None

    # -- what it needs

    def _check_history(self, line: Line, summary: BaseSummary) -> None:
        """WalGapError or IntegrityError where `wal fetch` could not hand out the history of the timeline to recover to.

        One that the server there has is archived before anything is removed.
        """
        timeline = line.timeline
        if timeline == 1 or recorded_line(summary) == line:
            return
        name = history_name(timeline)
        repair = [repair_hint(path) for folder in self._folders if (path := folder / name).is_file()][:1]
        try:
            data = self._reader.history(timeline)
        except IntegrityError as error:
            raise IntegrityError(error.message, hints=[*error.hints, *repair]) from error
        if data is None and (self._former is None or self._former.line(timeline) != line):
            raise WalGapError(
                f"{name}, the history of the timeline to recover to, is missing from the archive",
                hints=[
                    f"where a server of that timeline has it in its {WAL_FOLDER}: `clipper-backup wal push {WAL_FOLDER}/{name}`"
                ],
            )
        if data is not None and Line.of(timeline, parse_history(data, name)) != line:
            raise IntegrityError(f"{name} in the archive is not the one that its claim speaks of", hints=repair)

    def _follow(
        self, line: Line, summary: BaseSummary, last: Segment | None, kept: Kept | None
    ) -> tuple[WalRange, Segment | None]:
        """The archived WAL from the backup's start on. Without a *last* one, with `--accept-gap`, it ends before a gap."""
        refuse_foreign(self._catalog, summary)
        first = Segment.parse(summary.first_segment, self._segment_bytes)
        check = RangeCheck(
            self._work.store,
            self._catalog,
            self._work.clock,
            KnownLinks(self._maps),
            self._work.settings.archive_wait_seconds,
        )
        with step(self._work, "wal", f"look at the WAL from {first} on") as running:
            wal = check.follow(line, first, last if kept is None else kept.names[0].previous())
            running.done = f"{show_count(len(wal.segments), 'segment')} from {first} on" + (
                f", a gap at {wal.gap.segment}" if wal.gap else ""
            )
        if self._request.accept_gap:
            wal = self._before_damage(wal)
        needed = Segment.parse(summary.last_segment, self._segment_bytes)
        reached = wal.segments[-1] if wal.segments else None
        if wal.gap is not None and (last is not None or not self._request.accept_gap):
            error = wal.gap.error()
            paths = [path for folder in self._folders if (path := folder / wal.gap.segment.name).is_file()]
            there = [f"{path} may be it: `clipper-backup wal push {path}`" for path in paths[:1]]
            raise WalGapError(error.message, hints=[*there, *self._beside(line), *error.hints])
        if reached is None or reached.number < needed.number:
            raise WalGapError(
                f"the WAL of the base backup {summary.id} itself is not all there: it needs {first} to {needed}",
                hints=["begin with another one: `clipper-backup base list`"],
            )
        return wal, reached if wal.gap is not None else last

    def _before_damage(self, wal: WalRange) -> WalRange:
        """What lies before the first segment that is damaged: all of it is read."""
        with step(self._work, "read", f"read {show_count(len(wal.segments), 'segment')}") as running:
            for done, segment in enumerate(wal.segments):
                running.progress(done, len(wal.segments), "segments")
                try:
                    for _ in self._open(segment) or ():
                        pass
                except IntegrityError as error:
                    running.done = f"{segment} is damaged"
                    return WalRange(wal.segments[:done], wal.stored_bytes, Gap(segment, f"it is damaged: {error.message}"))
            running.done = f"{show_count(len(wal.segments), 'segment')}, none of them damaged"
        return wal

    def _ends(self, line: Line, segments: Sequence[Segment]) -> tuple[datetime | None, Lsn | None]:
        """When the last transaction ended, and where the last record ends; each None when none does in the last segments.

        A record that goes on behind the last segment is none: recovery stops before it, segments earlier when it is large.
        """
        records, ends_at = LineRecords(line, self._watch), None
        for segment in reversed(segments[-_ENDS_LOOKED_AT:]):
            last, newest = None, None
            for record in records.of(segment, every_from=0 if ends_at is None else None) or ():
                last = record.end
                if record.kind in {Kind.COMMIT, Kind.ABORT} and record.at is not None:
                    newest = max(newest or record.at, record.at)
            ends_at = ends_at or last
            if newest is not None:
                return as_moment(newest), ends_at
        return None, ends_at

    def _fleeting(self) -> list[str]:
        """Notes. UsageError where nobody named the folder: a restore in a container would take the newest commits with it."""
        lost = fleeting(self._request.folder, self._request.data)
        if lost is not None and self._request.work_dir is None:
            raise UsageError(lost, hints=["name a folder on a volume that stays: --work-dir"])
        return [] if lost is None else [lost]

    def _short(self, line: Line, kept: Kept | None, end: Lsn) -> list[str]:
        """Notes: what the server there had that lies in no WAL any more. WalGapError unless somebody said how far to go.

        A standby follows another server, and gets it from there.
        """
        former, request = self._former, self._request
        if former is None or request.standby or not former.is_along(line):
            return []
        # Of an archived segment all is there; a standby's pg_control may name the end of one that was left by a switch.
        ends_at = kept.ends_at if kept is not None and former.wrote else end
        if request.timeline is None and not request.accept_gap:
            refuse_short(former, request.data, ends_at)
        lost = say_short(former, ends_at)
        return [] if lost is None else [lost]

    def _later_there(
        self, found: Found, tablespaces: Mapping[int, Path], summary: BaseSummary, version: str, *, ends: bool
    ) -> list[str]:
        """Notes of tablespaces that the cluster there has and the backup has not. UsageError where the WAL surely makes them."""
        if found.state != "cluster":
            return []
        uid, former = self._request.account.uid, self._former
        later = later_of(self._request.data, tablespaces)
        if ends and former is not None and self._way is not None and former.is_along(self._way.line):
            refuse_later(later, summary.id, version, uid)
        return [
            f"tablespace {oid} of the server there, in {folder}, is not in the base backup: where the restore goes behind the"
            " making of it, recovery is ended there, unless that folder is empty by then"
            for oid, folder in later.items()
            if why_not_ours(folder, uid) is not None
        ]

    def _refuse_unreadable(self, entry: BaseEntry, summary: BaseSummary, found: Found) -> None:
        """AccessError or IntegrityError where not all of it can be read, as far as that shows without reading its packs.

        A cluster is replaced by a good backup alone: what it holds may be worth more than half a restore.
        """
        if entry.problem is not None and found.state == "cluster":
            raise IntegrityError(
                f"what lies in {self._request.data} is not replaced by the base backup {summary.id}: {entry.problem}",
                hints=["restore beside it: --target-dir another folder", *LOST_HINTS],
            )
        store, opener = self._work.store, opener_of(self._work.settings, summary.recipients)
        keys = DataKeys(store, self._repository_id, opener)
        for of_run in read_packs(store, summary).runs:
            if of_run.sealed:
                keys.cipher(BackupId.parse(of_run.run))
        roles: tuple[Role, ...] = ("label", "server_manifest")  # the others are read for their content
        for role in roles:
            for _ in plain_part(store, part_of(summary, role), opener):
                pass


class KnownLinks:
    """Which segments the time maps know to link."""

    def __init__(self, maps: TimeMaps) -> None:
        self._maps = maps
        self._of_timeline: dict[Timeline, list[TimeMap]] = {}

    def linked(self, segment: Segment) -> bool:
        """Whether somebody compared its claim with that of the segment before, and it fits."""
        if segment.timeline not in self._of_timeline:
            read = (self._maps.read(piece.name) for piece in self._maps.cover(segment.timeline))
            self._of_timeline[segment.timeline] = [times for times in read if times is not None]
        for times in self._of_timeline[segment.timeline]:
            place = segment.number - times.first.number
            if 0 <= place < len(times.segments):
                return times.segments[place].linked
        return False
