"""What a restore will do, decided before anything is written: backup, line, WAL, where recovery stops, sizes, what is lost.

Targets that cannot be reached are refused here, by the archived WAL itself: PostgreSQL would say so after hours, or not at all.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from clipper_backup.errors import MissingError, UsageError, WalGapError
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.manifest import Entry, File, Outside, Tablespace
from clipper_backup.format.time_maps import TimeMap
from clipper_backup.kinds import NONE
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.restore.choose import choose_backup, on_line
from clipper_backup.ops.restore.recovery import tablespaces_in
from clipper_backup.ops.restore.target_dir import Found, check_space, check_tablespaces, look_at, size_of
from clipper_backup.ops.restore.targets import Target, show_moment
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.wal_records import Kind, as_moment
from clipper_backup.repository.base_backups import BaseCatalog, BaseEntry, part_of, plain_part, read_entries
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

    `stop` is the record at which recovery stops; `last_commit_at`, of a restore to the latest, when the last transaction ended
    that is archived, None where none was found near the end. `tablespaces` is where each goes, by OID; `sizes` are bytes by
    place. `left` are files of pg_wal at the target that are archived first.
    """

    repository_id: str
    summary: BaseSummary
    problem: str | None
    target: Target
    line: Line
    wal: WalRange
    last: Segment | None
    stop: Stop | None
    last_commit_at: datetime | None
    tablespaces: Mapping[int, Path]
    sizes: Mapping[Path, int]
    found: Found
    left: Sequence[str] = ()

    @property
    def first(self) -> Segment:
        """The segment where recovery begins."""
        return Segment.parse(self.summary.first_segment, self.summary.sizes.segment_bytes)

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
        line = self._catalog.line(request.timeline or self._catalog.newest_timeline())
        ends = target.kind == "latest"
        if ends and not request.standby:
            line = self._settled(line)
        candidates = on_line(self._entries, line, self._system_id)
        stop: Stop | None = None
        try:
            if ends or target.kind == "immediate":
                entry = choose_backup(candidates, target, wanted=request.backup)
            else:
                entry, stop = self._find_stop(candidates, line)
        except MissingError as error:
            raise MissingError(error.message, hints=[*error.hints, *self._unusable()]) from error
        summary = entry.summary
        assert summary is not None  # noqa: S101  `on_line` left the others out
        last = self._last(summary, stop)
        if stop is not None or target.kind == "immediate":
            line = self._line_at(line, stop.record.end if stop is not None else Lsn.parse(summary.stop_lsn))
        wal, last = self._follow(line, summary, last)
        tablespaces, sizes = self._places(summary)
        check_tablespaces(request.data, tablespaces, found, request.account)
        room = {request.folder: min(len(wal.segments) * self._segment_bytes, _WAL_ROOM_BYTES) + _SPOOL_BYTES}
        gone = size_of([request.data, *found.tablespaces]) if found.state in {"unfinished", "cluster"} else {}
        check_space({**sizes, **room}, gone)
        return Plan(
            repository_id=self._repository_id,
            summary=summary,
            problem=entry.problem,
            target=target,
            line=line,
            wal=wal,
            last=last,
            stop=stop,
            last_commit_at=self._last_commit(line, wal) if ends else None,
            tablespaces=tablespaces,
            sizes=sizes,
            found=found,
        )

    def _settled(self, line: Line) -> Line:
        """The line whose timeline holds something: a timeline without a segment goes back to its parent's part."""
        while line.timeline > 1 and self._catalog.newest(line.timeline) is None:
            begin = line.parts[-1].begin
            parent = self._catalog.line(line.parts[-2].timeline)
            amid = parent.segment(begin // self._segment_bytes, self._segment_bytes)
            if begin % self._segment_bytes and self._catalog.segments(amid.timeline, amid.folder).get(amid) is not None:
                raise WalGapError(
                    f"timeline {int(line.timeline)} began at {begin}, and nothing of it is archived: {amid} is of timeline"
                    f" {int(parent.timeline)} and may go on otherwise behind that",
                    hints=[f"exactly to where it began: --timeline {int(parent.timeline)} --to-lsn {begin} --exclusive"],
                )
            line = parent
        return line

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
                    raise refused or (error if nearest is None else self._unreachable(nearest)) from None
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
                    raise refused or self._unreachable(found if isinstance(found, NoStop) else NoStop(None, None))
                left = left[: left.index(entry)]

    def _unreachable(self, found: NoStop) -> MissingError:
        """Rule 60: PostgreSQL refuses to end before a target that it did not see."""
        target = self._request.target
        known = [] if found.newest_end is None else [f"the newest instant that can be named: {show_moment(found.newest_end)}"]
        what = "no transaction ended behind it" if target.kind == "time" else "it is not there"
        return MissingError(
            f"{target.describe()} cannot be reached in the WAL that is archived: {what}",
            hints=[*known, "to the end of what is archived: name no target"],
        )

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
            raise wal.gap.error()
        if reached is None or reached.number < needed.number:
            raise WalGapError(
                f"the WAL of the base backup {summary.id} itself is not all there: it needs {first} to {needed}",
                hints=["begin with another one: `clipper-backup base list`"],
            )
        return wal, reached if wal.gap is not None else last

    def _last_commit(self, line: Line, wal: WalRange) -> datetime | None:
        records = LineRecords(line, self._open)
        for segment in reversed(wal.segments[-_ENDS_LOOKED_AT:]):
            ends = [record.at for record in records.of(segment) or () if record.kind in {Kind.COMMIT, Kind.ABORT}]
            if (newest := max((at for at in ends if at is not None), default=None)) is not None:
                return as_moment(newest)
        return None

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
