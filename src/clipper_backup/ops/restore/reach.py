"""Which base backup a target is reached from, and the record of the WAL where recovery stops: found in the WAL itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from clipper_backup.errors import ClipperError, MissingError, WalGapError
from clipper_backup.ops.restore.choose import choose_backup
from clipper_backup.ops.restore.targets import Target, show_moment
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.wal_records import Record
from clipper_backup.repository.base_backups import BaseEntry
from clipper_backup.repository.kept_wal import Kept
from clipper_backup.repository.line_records import LineRecords, OpenSegment
from clipper_backup.repository.lines import Line
from clipper_backup.repository.stops import NoStop, Stop, StopAt, StopSearch
from clipper_backup.repository.times import TimeMaps
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import BackupId, Lsn


@dataclass(frozen=True, slots=True)
class Reached:
    """The backup and the record. `namesakes` are the other restore points of the name that was asked for, oldest first.

    `at_a_branch`: of a time, that nothing ended up to then on the timeline where recovery stops. It began later, or was idle;
    what was done then may be on another one.
    """

    entry: BaseEntry
    stop: Stop
    namesakes: tuple[Record, ...] = ()
    at_a_branch: bool = False


class Reach:
    """Looks for targets along *line*, whose segments *open_segment* gives; with *kept* also those behind the archive's end."""

    def __init__(
        self, work: Work, catalog: WalCatalog, maps: TimeMaps, line: Line, open_segment: OpenSegment, kept: Kept | None
    ) -> None:
        self._work, self._catalog, self._maps, self._line = work, catalog, maps, line
        self._open, self._kept = open_segment, kept

    def find(self, candidates: Sequence[BaseEntry], target: Target, wanted: BackupId | None) -> Reached:
        """The newest backup of *candidates* from which recovery reaches the target, and the record where it stops.

        Names may be there twice, and of an xid nobody knows where it ended: newer backups are tried first.
        """
        stop_at = StopAt(target.time, target.lsn, target.xid and target.xid % 2**32, target.name, target.exclusive)
        search = self._search()
        left = list(candidates)
        refused: WalGapError | None = None
        nearest: NoStop | None = None
        with step(self._work, "find", f"find {target.describe()} in the WAL") as running:
            while True:
                try:
                    entry = choose_backup(left, target, stop=target.lsn, wanted=wanted)
                except MissingError as error:
                    raise refused or (error if nearest is None else self._unreachable(target, nearest)) from None
                try:
                    found = search.find(stop_at, _start(entry))
                except WalGapError as error:  # an xid or a name may lie before it
                    refused, found = refused or error, NoStop(None, None)
                if isinstance(found, Stop) and found.record.start >= _stop(entry):
                    running.done = f"{target.describe()}: recovery stops at {found.record.start}, in {found.segment}"
                    branches = target.kind == "time" and self._is_first(found.record)
                    return Reached(entry, found, self._namesakes(candidates, stop_at, found), branches)
                if isinstance(found, NoStop):
                    nearest = nearest or found
                if wanted is not None or (isinstance(found, NoStop) and target.kind in {"time", "lsn"}):
                    missing = found if isinstance(found, NoStop) else NoStop(None, None)
                    raise refused or self._unreachable(target, missing)
                left = left[: left.index(entry)]

    def _search(self) -> StopSearch:
        ends_at = None if self._kept is None else self._kept.ends_at
        return StopSearch(self._catalog, LineRecords(self._line, self._open), self._maps, ends_at)

    def _is_first(self, record: Record) -> bool:
        """Whether it is the first end of a transaction behind where its timeline left another one."""
        part = self._line.at(record.end)
        first = self._search().find(StopAt(time=datetime.min.replace(tzinfo=UTC)), part.begin) if part.begin else None
        return isinstance(first, Stop) and first.record.start == record.start

    def _namesakes(self, candidates: Sequence[BaseEntry], stop_at: StopAt, taken: Stop) -> tuple[Record, ...]:
        """The other restore points of that name, from the oldest backup's end on; beyond what cannot be read, none is known."""
        if stop_at.name is None:
            return ()
        found: dict[Lsn, Record] = {}
        for begin in (min(map(_start, candidates)), taken.record.end):
            try:
                self._follow_name(stop_at, begin, found)
            except ClipperError:
                continue  # behind what is taken, the other begin finds what is there
        oldest = min(map(_stop, candidates))
        return tuple(found[at] for at in sorted(found) if at != taken.record.start and at >= oldest)

    def _follow_name(self, stop_at: StopAt, begin: Lsn, found: dict[Lsn, Record]) -> None:
        search = self._search()
        while isinstance(stop := search.find(stop_at, begin), Stop) and stop.record.start not in found:
            found[stop.record.start] = stop.record
            begin = stop.record.end

    def _unreachable(self, target: Target, found: NoStop) -> MissingError:
        """Rule 60: PostgreSQL refuses to end before a target that it did not see."""
        known = [] if found.newest_end is None else [f"the newest instant that can be named: {show_moment(found.newest_end)}"]
        if target.kind == "lsn" and (last := self._last_record()) is not None:
            known.append(f"the last LSN that can be named: --to-lsn {last.start}, where the last archived record begins")
        if target.kind == "xid":
            known.append("of a subtransaction, name the transaction it was part of; one that was only prepared has not ended")
        what = "no transaction ended behind it" if target.kind == "time" else "it is not there"
        return MissingError(
            f"{target.describe()} cannot be reached in the WAL that is archived: {what}",
            hints=[*known, "to the end of what is archived: name no target"],
        )

    def _last_record(self) -> Record | None:
        """The last record in the newest segment of the line's timeline; None where none ends in it."""
        newest, last = self._catalog.newest(self._line.timeline) if self._kept is None else self._kept.names[-1], None
        if newest is not None and self._line.holds(newest):
            for last in LineRecords(self._line, self._open).of(newest, every_from=0) or ():  # noqa: B007  its last one is what counts
                pass
        return last


def _start(entry: BaseEntry) -> Lsn:
    assert entry.summary is not None  # noqa: S101  `on_line` left the others out
    return Lsn.parse(entry.summary.start_lsn)


def _stop(entry: BaseEntry) -> Lsn:
    assert entry.summary is not None  # noqa: S101  `on_line` left the others out
    return Lsn.parse(entry.summary.stop_lsn)
