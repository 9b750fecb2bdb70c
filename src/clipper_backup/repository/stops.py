"""Where recovery stops: the record that PostgreSQL would stop at, found in the archived WAL itself.

What stops recovery is as recoveryStopsBefore and recoveryStopsAfter have it (xlogrecovery.c). Time maps only say where
not to look: without them, or with wrong ones, the search reads more or finds nothing, and never ends the restore elsewhere (W7).
"""

from dataclasses import dataclass
from datetime import datetime

from clipper_backup.errors import IntegrityError, WalGapError
from clipper_backup.format.time_maps import NEVER, MapName, SegmentTimes, TimeMap
from clipper_backup.postgres.wal_records import Kind, Record, as_microseconds, as_moment
from clipper_backup.repository.line_records import LineRecords, chunks_of
from clipper_backup.repository.lines import Line
from clipper_backup.repository.times import Piece, TimeMaps
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_range import GAP_HINTS
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment

_ENDS = frozenset({Kind.COMMIT, Kind.ABORT})


@dataclass(frozen=True, slots=True)
class StopAt:
    """A target of recovery: of `time`, `lsn`, `xid` and `name` one is given. *exclusive* is recovery_target_inclusive = off."""

    time: datetime | None = None
    lsn: Lsn | None = None
    xid: int | None = None
    name: str | None = None
    exclusive: bool = False

    def stops(self, record: Record) -> bool:
        """Whether recovery stops at *record*, before or behind it; of several the first one counts."""
        if self.lsn is not None:
            return record.start >= self.lsn
        if self.name is not None:
            return record.kind is Kind.RESTORE_POINT and record.name == self.name.encode()
        if record.kind not in _ENDS:
            return False
        return record.xid == self.xid if self.xid is not None else self._is_past(record.at or 0)

    def is_applied(self) -> bool:
        """Whether the record at which it stops takes effect. That of a time never does: it is the first one behind it."""
        return self.time is None and not self.exclusive

    def may_stop_in(self, times: SegmentTimes, number: int, known: TimeMap) -> bool:
        """Whether a record in segment *number* may stop it, by what a map tells."""
        if not times.understood or self.lsn is not None:
            return True
        if self.name is not None:
            size, name = known.first.size_bytes, self.name.encode()
            return any(point.name == name and number - 1 <= point.lsn // size <= number for point in known.points)
        return times.may_end(self.xid) if self.xid is not None else self.may_stop_by(times.latest)

    def may_stop_by(self, latest: int) -> bool:
        """Whether something that ended at *latest*, in PostgreSQL's microseconds, or before, may stop it."""
        return self.time is None or self._is_past(latest)

    def _is_past(self, at: int) -> bool:
        assert self.time is not None  # noqa: S101  one of the four is given
        wanted = as_microseconds(self.time)
        return at >= wanted if self.exclusive else at > wanted


@dataclass(frozen=True, slots=True)
class Stop:
    """The record at which recovery stops, and the segment of the line that holds its last byte: `last` of a restore's plan."""

    record: Record
    segment: Segment


@dataclass(frozen=True, slots=True)
class NoStop:
    """Nothing in the archive stops recovery there. PostgreSQL would end with an error (13 and later).

    `last` is the last segment that is there, None without any. `newest_end`, of a search for a time: when the last of all
    transactions on the line ended; every instant before it can be reached. None: none ended, or another target was sought.
    """

    last: Segment | None
    newest_end: datetime | None


class StopSearch:
    """Looks for the record at which recovery along one line stops. *records* reads the archive of which *catalog* tells.

    Where *ends_at* is given nothing lies behind it, and the segment that holds it cannot be followed to its end.
    """

    def __init__(self, catalog: WalCatalog, records: LineRecords, maps: TimeMaps, ends_at: Lsn | None = None) -> None:
        self._catalog, self._records, self._maps, self._ends_at = catalog, records, maps, ends_at
        self._pieces: dict[Timeline, list[Piece]] = {}
        self._known: dict[MapName, TimeMap | None] = {}

    def find(self, wanted: StopAt, start: Lsn) -> Stop | NoStop:
        """The first record at or behind *start*, the backup's start LSN, at which recovery to *wanted* stops.

        WalGapError when a segment that must be read is missing and the archive goes on behind it; IntegrityError when one
        cannot be understood. That all segments up to the stop are there is for the plan to see.
        """
        line, size = self._records.line, self._catalog.segment_bytes
        number = first = max(start, wanted.lsn or start) // size
        newest = NEVER
        while True:
            segment = line.segment(number, size)
            passed = self._passed_over(segment, wanted, first) if number > first else None
            if passed is not None:
                newest, number = max(newest, passed[1]), passed[0]
                continue
            records = self._records.of(segment, every_from=None if wanted.lsn is None else max(start, wanted.lsn))
            if records is None:
                self._refuse_gap(segment)
                last = line.segment(number - 1, size) if number > first else None
                return NoStop(last, _moment(newest) if wanted.time is not None else None)
            if self._records.lacking is not None and number > first:
                self._refuse_gap(self._records.lacking)
            for record in records:
                if record.start >= start:
                    if wanted.stops(record):
                        return Stop(record, segment)
                    newest = max(newest, record.at or NEVER) if record.kind in _ENDS else newest
            if self._ends_at is not None and segment.end >= self._ends_at:
                return NoStop(segment, _moment(newest) if wanted.time is not None else None)
            if not self._records.reader.complete:
                raise IntegrityError(
                    f"the records in {segment} cannot be followed to its end: recovery could not pass it either, or its"
                    " PostgreSQL is of a major version that this program does not know",
                    hints=["choose a target before it, or a backup behind it"],
                )
            number += 1

    def _passed_over(self, segment: Segment, wanted: StopAt, first: int) -> tuple[int, int] | None:
        """The number of the next segment that recovery may stop in, and the latest end before it; None when *segment* may be."""
        if wanted.lsn is not None:
            return None
        timeline, number = segment.timeline, segment.number
        if timeline not in self._pieces:
            self._pieces[timeline] = self._maps.cover(timeline)
        piece = next((piece for piece in self._pieces[timeline] if piece.first <= number <= piece.last), None)
        if piece is None:
            return None
        # Its latest may be of a segment that is not on the line, or before the backup: then segment by segment.
        whole = piece.name.first.number > first and self._records.line.holds(piece.name.last)
        if whole and not wanted.may_stop_by(piece.name.latest):
            return piece.last + 1, piece.name.latest
        if piece.name not in self._known:
            self._known = {piece.name: self._maps.read(piece.name)}
        known = self._known[piece.name]
        if known is None:
            return None
        times = known.segments[number - known.first.number]
        return None if wanted.may_stop_in(times, number, known) else (number + 1, times.latest)

    def _refuse_gap(self, missing: Segment) -> None:
        """WalGapError when the archive goes on behind *missing*, as `wal fetch` sees it."""
        behind = self._catalog.stored_behind(missing)
        timeline = None if behind is not None else self._descendant_behind(missing)
        if behind is None and timeline is None:
            return
        goes_on = f"{behind} is there" if behind is not None else f"timeline {int(timeline or 0)} began behind it"
        raise WalGapError(
            f"{missing} is missing from the archive, which goes on: {goes_on}",
            hints=[*GAP_HINTS, "`clipper-backup wal verify` names what is missing"],
        )

    def _descendant_behind(self, missing: Segment) -> Timeline | None:
        for timeline, listed in self._catalog.histories().items():
            if listed.claim is not None:
                for ancestor in self._catalog.ancestors(timeline):
                    if ancestor.timeline == missing.timeline and ancestor.left_at >= missing.end:
                        return timeline
        return None


def find_stop(reader: WalReader, line: Line, wanted: StopAt, start: Lsn) -> Stop | NoStop:
    """As `StopSearch.find`, in the archive that *reader* reads."""
    catalog = WalCatalog(reader.store, reader.system_id, reader.segment_bytes)
    maps = TimeMaps(reader.store, reader.system_id, reader.segment_bytes)
    return StopSearch(catalog, LineRecords(line, chunks_of(reader)), maps).find(wanted, start)


def _moment(at: int) -> datetime | None:
    try:
        return None if at == NEVER else as_moment(at)
    except OverflowError:  # of a map that is wrong
        return None
