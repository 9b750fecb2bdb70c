"""What a restore will do, decided before anything is written: backup, line, WAL, where recovery stops, sizes, what is lost.

Targets that cannot be reached are refused here, by the archived WAL itself: PostgreSQL would say so after hours, or not at all.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from clipper_backup.errors import IntegrityError, MissingError, UsageError, WalGapError
from clipper_backup.format.base_documents import BaseSummary, Role
from clipper_backup.format.manifest import Entry, File, Outside, Tablespace
from clipper_backup.format.time_maps import TimeMap
from clipper_backup.kinds import NONE
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.restore.choose import choose_backup, on_line
from clipper_backup.ops.restore.recovery import tablespaces_in
from clipper_backup.ops.restore.target_dir import Found, check_space, check_tablespaces, emptied, look_at, size_of, version_folder
from clipper_backup.ops.restore.targets import Target, show_moment
from clipper_backup.ops.restore.work_dir import check_work_folder
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.wal_records import Kind, Record, as_moment
from clipper_backup.repository.base_backups import (
    LOST_HINTS,
    BaseCatalog,
    BaseEntry,
    part_of,
    plain_part,
    read_entries,
    read_packs,
)
from clipper_backup.repository.data_keys import DataKeys
from clipper_backup.repository.line_records import LineRecords
from clipper_backup.repository.lines import Line
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.stops import NoStop, Stop, StopAt, StopSearch
from clipper_backup.repository.systems import list_systems
from clipper_backup.repository.times import TimeMaps
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_range import RangeCheck, WalRange
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.values import BackupId, Lsn, Timeline
from clipper_backup.wal_names import Segment

_WAL_ROOM_BYTES = 1 << 30
"""How much WAL a recovering server keeps in pg_wal: max_wal_size, by default."""
_SPOOL_BYTES = 128 << 20
_BYTES_A_SECOND = 100e6
"""What two cores restore or replay in a second, about; for the forecast alone."""
_ENDS_LOOKED_AT = 8
"""In how many of the last segments the last commit is looked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for. `account` will own the files and run the server; `tablespaces` go elsewhere, by OID.

    Without `work_dir` the restore folder lies beside the target folder. `program` is how that account runs clipper-backup.
    """

    target_dir: Path
    target: Target
    account: Account
    timeline: Timeline | None = None
    backup: BackupId | None = None
    tablespaces: Mapping[int, Path] = field(default_factory=dict)
    work_dir: Path | None = None
    standby: bool = False
    accept_gap: bool = False
    replace: bool = False
    unsigned: bool = False
    program: tuple[str, ...] = (sys.executable, "-m", "clipper_backup")

    @property
    def data(self) -> Path:
        """The target folder, by its real path."""
        return self.target_dir.expanduser().resolve()

    @property
    def folder(self) -> Path:
        """The restore folder: plan, links, log, what is saved; for its owner alone, outside PGDATA."""
        data = self.data
        return self.work_dir.expanduser().resolve() if self.work_dir else data.with_name(f"{data.name}.clipper-restore")


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done. `last` is the segment behind which nothing is needed, None: to the end of what is there.

    `passed_over` are newer timelines that hold nothing, where nobody named one. `stop` is the record at which recovery stops;
    `last_commit_at`, of a restore to the latest, when the last transaction ended that is archived, and `ends_at` is where the
    last archived record ends: None where none was found near the end. `tablespaces` is where each goes, by OID; `sizes` are
    bytes by place. `left` are files of pg_wal at the target that are archived first.
    """

    repository_id: str
    summary: BaseSummary
    problem: str | None
    target: Target
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
        self._system_id, self._segment_bytes = self._system()
        self._catalog = WalCatalog(work.store, self._system_id, self._segment_bytes)
        self._maps = TimeMaps(work.store, self._system_id, self._segment_bytes)
        recipients = work.settings.encryption_recipients
        self._reader = WalReader(
            work.store,
            repository_id=repository.id,
            system_id=self._system_id,
            segment_bytes=self._segment_bytes,
            opener=opener_of(work.settings, recipients),
            seals=recipients not in {(), (NONE,)},
            trusted=work.trusted,
        )

    def _system(self) -> tuple[str, int]:
        """The system to restore: that of the backup that was named, else the newest."""
        wanted = self._request.backup
        for entry in self._entries:
            if entry.summary is not None and entry.listed.backup_id == wanted:
                return entry.summary.system_id, entry.summary.sizes.segment_bytes
        systems = list_systems(self._work.store)
        if not systems:
            raise MissingError(
                f"{self._work.store.url} holds no base backup and no WAL",
                hints=["`clipper-backup base create` takes one", "`clipper-backup dump list`: a dump may do"],
            )
        return systems[-1].system_id, systems[-1].segment_bytes

    # -- where it goes to

    def plan(self) -> Plan:
        """Decide everything. MissingError, WalGapError or UsageError when the target cannot be reached, or not there."""
        request, target = self._request, self._request.target
        found = look_at(request.data, request.account, system_id=self._system_id, replace=request.replace)
        line, passed_over = self._find_line()
        ends = target.kind == "latest"
        candidates = on_line(self._entries, line, self._system_id)
        stop: Stop | None = None
        try:
            if ends or target.kind == "immediate":
                entry = choose_backup(candidates, target, wanted=request.backup)
            else:
                entry, stop = self._find_stop(candidates, line)
        except MissingError as error:
            raise MissingError(error.message, hints=[*self._beside(line), *error.hints, *self._unusable()]) from error
        summary = entry.summary
        assert summary is not None  # noqa: S101  `on_line` left the others out
        last = self._last(summary, stop)
        if stop is not None or target.kind == "immediate":
            line = self._line_at(line, stop.record.end if stop is not None else Lsn.parse(summary.stop_lsn))
        wal, last = self._follow(line, summary, last)
        self._refuse_unreadable(entry, summary, found)
        tablespaces, sizes = self._places(summary)
        versions = summary.versions
        version = version_folder(versions.server_major, versions.catalog)
        check_tablespaces(request.data, tablespaces, found, request.account, version=version)
        check_work_folder(request.folder, request.account, [request.data, *tablespaces.values(), *found.tablespaces])
        room = {request.folder: min(len(wal.segments) * self._segment_bytes, _WAL_ROOM_BYTES) + _SPOOL_BYTES}
        gone = size_of([request.data, *emptied(found, tablespaces.values())]) if found.state in {"unfinished", "cluster"} else {}
        check_space({**sizes, **room}, gone)
        last_commit_at, ends_at = self._ends(line, wal) if ends else (None, None)
        return Plan(
            repository_id=self._repository_id,
            summary=summary,
            problem=entry.problem,
            target=target,
            line=line,
            wal=wal,
            last=last,
            stop=stop,
            passed_over=passed_over,
            last_commit_at=last_commit_at,
            ends_at=ends_at,
            tablespaces=tablespaces,
            sizes=sizes,
            found=found,
        )

    def _find_line(self) -> tuple[Line, list[Timeline]]:
        """That of the timeline that was named, else of the newest one that holds something; and the newer ones that do not."""
        named, target = self._request.timeline, self._request.target
        if named is None:
            summaries = [entry.summary for entry in self._entries if entry.summary is not None]
            of_backups = {Timeline(each.timeline) for each in summaries if each.system_id == self._system_id}
            newest = self._catalog.newest_timeline(of_backups)
            newer = [each for each in self._catalog.timelines() if each > newest]
            return self._catalog.line(newest), [each for each in newer if self._catalog.newest(each) is None]
        line = self._catalog.line(named)
        if named > 1 and target.kind == "latest" and not self._request.standby and self._catalog.newest(named) is None:
            parent, begin = line.parts[-2].timeline, line.parts[-1].begin
            raise WalGapError(
                f"nothing of timeline {int(named)} is archived, which began at {begin}",
                hints=[
                    f"to the end of timeline {int(parent)}, which it comes from: --timeline {int(parent)}",
                    f"no further than where it began: --timeline {int(parent)} --to-lsn {begin} --exclusive",
                ],
            )
        return line, []

    def _beside(self, line: Line) -> list[str]:
        """Hints: the timelines whose WAL a restore along *line* does not see, or not all of it."""
        return [
            f"timeline {int(end.timeline)} has WAL of its own up to {end}: --timeline {int(end.timeline)}"
            for end in self._catalog.beside(line)
        ]

    def _line_at(self, line: Line, end: Lsn) -> Line:
        """The line of the timeline on which recovery is that stops at *end*: that is the one PostgreSQL is told."""
        timeline = line.at(end).timeline
        return line if timeline == line.timeline else self._catalog.line(timeline)

    # -- where it stops

    def _find_stop(self, candidates: Sequence[BaseEntry], line: Line) -> tuple[BaseEntry, Stop]:
        """The newest backup from which recovery reaches the target, and the record where it stops.

        Names may be there twice, and of an xid nobody knows where it ended: newer backups are tried first.
        """
        target, wanted = self._request.target, self._request.backup
        stop_at = StopAt(target.time, target.lsn, target.xid and target.xid % 2**32, target.name, target.exclusive)
        search = StopSearch(self._catalog, LineRecords(line, self._open), self._maps)
        left = list(candidates)
        refused: WalGapError | None = None
        nearest: NoStop | None = None
        with step(self._work, "find", f"find {target.describe()} in the WAL") as running:
            while True:
                try:
                    entry = choose_backup(left, target, stop=target.lsn, wanted=wanted)
                except MissingError as error:
                    raise refused or (error if nearest is None else self._unreachable(line, nearest)) from None
                summary = entry.summary
                assert summary is not None  # noqa: S101  `on_line` left the others out
                try:
                    found = search.find(stop_at, Lsn.parse(summary.start_lsn))
                except WalGapError as error:  # an xid or a name may lie before it
                    refused, found = refused or error, NoStop(None, None)
                if isinstance(found, Stop) and found.record.start >= Lsn.parse(summary.stop_lsn):
                    running.done = f"{target.describe()}: recovery stops at {found.record.start}, in {found.segment}"
                    return entry, found
                if isinstance(found, NoStop):
                    nearest = nearest or found
                if wanted is not None or (isinstance(found, NoStop) and target.kind in {"time", "lsn"}):
                    raise refused or self._unreachable(line, found if isinstance(found, NoStop) else NoStop(None, None))
                left = left[: left.index(entry)]

    def _unreachable(self, line: Line, found: NoStop) -> MissingError:
        """Rule 60: PostgreSQL refuses to end before a target that it did not see."""
        target = self._request.target
        known = [] if found.newest_end is None else [f"the newest instant that can be named: {show_moment(found.newest_end)}"]
        if target.kind == "lsn" and (last := self._last_record(line)) is not None:
            known.append(f"the last LSN that can be named: --to-lsn {last.start}, where the last archived record begins")
        if target.kind == "xid":
            known.append("of a subtransaction, name the transaction it was part of; one that was only prepared has not ended")
        what = "no transaction ended behind it" if target.kind == "time" else "it is not there"
        return MissingError(
            f"{target.describe()} cannot be reached in the WAL that is archived: {what}",
            hints=[*known, "to the end of what is archived: name no target"],
        )

    def _last_record(self, line: Line) -> Record | None:
        """The last record in the newest segment of the line's timeline; None where none ends in it."""
        newest, last = self._catalog.newest(line.timeline), None
        if newest is not None and line.holds(newest):
            for last in LineRecords(line, self._open).of(newest, every_from=0) or ():  # noqa: B007  its last one is what counts
                pass
        return last

    def _unusable(self) -> list[str]:
        """What to say of backups that were not looked at because their summaries cannot be read, or are not trusted."""
        found = [entry for entry in self._entries if entry.summary is None and entry.problem is not None]
        return [f"{len(found)} base backups cannot be used: {found[-1].problem}"] if found else []

    def _open(self, segment: Segment) -> Iterator[bytes] | None:
        opened = self._reader.segment(segment)
        return None if opened is None else opened.chunks

    def _last(self, summary: BaseSummary, stop: Stop | None) -> Segment | None:
        if stop is not None:
            return stop.segment
        if self._request.target.kind == "immediate":
            return Segment.parse(summary.last_segment, self._segment_bytes)
        return None

    # -- what it needs

    def _follow(self, line: Line, summary: BaseSummary, last: Segment | None) -> tuple[WalRange, Segment | None]:
        """The WAL from the backup's start on. Without a *last* one, with `--accept-gap`, it ends before a gap."""
        first = Segment.parse(summary.first_segment, self._segment_bytes)
        check = RangeCheck(
            self._work.store,
            self._catalog,
            self._work.clock,
            KnownLinks(self._maps),
            self._work.settings.archive_wait_seconds,
        )
        with step(self._work, "wal", f"look at the WAL from {first} on") as running:
            wal = check.follow(line, first, last)
            running.done = f"{len(wal.segments)} segments from {first} on" + (f", a gap at {wal.gap.segment}" if wal.gap else "")
        needed = Segment.parse(summary.last_segment, self._segment_bytes)
        reached = wal.segments[-1] if wal.segments else None
        if wal.gap is not None and (last is not None or not self._request.accept_gap):
            error = wal.gap.error()
            raise WalGapError(error.message, hints=[*self._beside(line), *error.hints])
        if reached is None or reached.number < needed.number:
            raise WalGapError(
                f"the WAL of the base backup {summary.id} itself is not all there: it needs {first} to {needed}",
                hints=["begin with another one: `clipper-backup base list`"],
            )
        return wal, reached if wal.gap is not None else last

    def _ends(self, line: Line, wal: WalRange) -> tuple[datetime | None, Lsn | None]:
        """When the last transaction ended, and where the last record ends; each None when none does in the last segments.

        A record that goes on behind the last segment is none: recovery stops before it, segments earlier when it is large.
        """
        records, ends_at = LineRecords(line, self._open), None
        for segment in reversed(wal.segments[-_ENDS_LOOKED_AT:]):
            last, newest = None, None
            for record in records.of(segment, every_from=0 if ends_at is None else None) or ():
                last = record.end
                if record.kind in {Kind.COMMIT, Kind.ABORT} and record.at is not None:
                    newest = max(newest or record.at, record.at)
            ends_at = ends_at or last
            if newest is not None:
                return as_moment(newest), ends_at
        return None, ends_at

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

    def _places(self, summary: BaseSummary) -> tuple[dict[int, Path], dict[Path, int]]:
        """Where tablespaces go, and how many bytes go where: the manifest is read to its end, so it is whole (M1)."""
        request, store = self._request, self._work.store
        opener = opener_of(self._work.settings, summary.recipients)
        tablespaces: dict[int, Path] = {}
        if summary.part("tablespace_map") is not None:
            tablespaces = tablespaces_in(b"".join(plain_part(store, part_of(summary, "tablespace_map"), opener)))
        if unknown := sorted(set(request.tablespaces) - set(tablespaces)):
            known = ", ".join(f"{oid} ({folder})" for oid, folder in sorted(tablespaces.items())) or "none"
            raise UsageError(
                f"the backup has no tablespace {unknown[0]}",
                hints=[
                    f"its tablespaces: {known}",
                    "one that was made after the backup goes where the WAL says, and only into an empty folder: nothing moves it",
                ],
            )
        tablespaces |= request.tablespaces
        sizes = {request.data: 0} | dict.fromkeys(tablespaces.values(), 0)
        for entry in read_entries(store, summary, opener):
            if isinstance(entry, File):
                place = place_of(entry, tablespaces, request.data)
                sizes[place] += entry.size_bytes
            elif isinstance(entry, Tablespace) and _oid(entry) not in tablespaces:
                tablespaces[_oid(entry)] = Path(os.fsdecode(entry.leads_to))
                sizes.setdefault(tablespaces[_oid(entry)], 0)
        return tablespaces, sizes


def place_of(entry: Entry, tablespaces: Mapping[int, Path], data: Path) -> Path:
    """In which of these folders a file comes to lie."""
    parts = entry.named.split(b"/", 2)
    if not isinstance(entry, Outside) and parts[0] == b"pg_tblspc" and len(parts) > 2 and parts[1].isdigit():
        return tablespaces.get(int(parts[1]), data)
    return data


def _oid(entry: Tablespace) -> int:
    return int(entry.named.rpartition(b"/")[2])


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
