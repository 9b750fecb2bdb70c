"""Time maps in a store: which ones count, how they are written and made into larger ones. They are a cache (W7).

Whatever is wrong with one, it is left aside; what no map covers is read from segments.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from clipper_backup.errors import AccessError, IntegrityError, ObjectMissingError
from clipper_backup.format.physical_names import times_folder
from clipper_backup.format.time_maps import (
    LONG,
    SHORT,
    MapName,
    RestorePoint,
    SegmentTimes,
    TimeMap,
    decode_map,
    encode_map,
    parse_map_key,
)
from clipper_backup.postgres.wal_records import Kind, Record
from clipper_backup.repository.line_records import LineRecords
from clipper_backup.store.protocol import Store
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Of which segments, by number, both included, a map counts."""

    first: int
    last: int
    name: MapName


class TimeMaps:
    """The time maps of one system. The store's errors pass through."""

    def __init__(self, store: Store, system_id: str, segment_bytes: int) -> None:
        self._store, self._system_id, self._segment_bytes = store, system_id, segment_bytes

    def cover(self, timeline: Timeline) -> list[Piece]:
        """The maps of a timeline, each where it counts, rising: where ranges overlap the longer one, of equals the younger."""
        return _cover(self._listed(timeline))

    def read(self, name: MapName) -> TimeMap | None:
        """A map; None when it is gone, or cannot be used."""
        try:
            return decode_map(self._store.get(name.key(self._system_id)), name, self._system_id)
        except (ObjectMissingError, IntegrityError):
            return None

    def write(self, first: Segment, segments: Sequence[SegmentTimes], points: Iterable[RestorePoint] = ()) -> None:
        """Write the map of these *segments*, from *first* on; at most LONG of them."""
        times = TimeMap(self._system_id, first, segments, sorted(points))
        self._store.put(times.name.key(self._system_id), encode_map(times))

    def consolidate(self, timeline: Timeline) -> None:
        """Make full ranges of what covers them, first short ones, then long ones; remove what counts nowhere any more.

        A crash in it, or an account that may not delete, leaves maps that say the same twice.
        """
        for size in (SHORT, LONG):
            pieces = self.cover(timeline)
            for first in _full_ranges(pieces, size):
                self._join(
                    timeline, [piece for piece in pieces if first <= piece.last and piece.first < first + size], first, size
                )
        listed = self._listed(timeline)
        counting = {piece.name for piece in _cover(listed)}
        with suppress(AccessError):
            self._store.delete([name.key(self._system_id) for name, _ in listed if name not in counting])

    def _join(self, timeline: Timeline, pieces: Sequence[Piece], first: int, size: int) -> None:
        segments: list[SegmentTimes] = []
        points: set[RestorePoint] = set()
        for piece in pieces:
            times = self.read(piece.name)
            if times is None:
                return
            begin, end = max(piece.first, first), min(piece.last, first + size - 1)
            segments += times.segments[begin - times.first.number : end + 1 - times.first.number]
            # One that began in the segment before may count in ours: where it ends is not told.
            points |= {point for point in times.points if begin - 1 <= point.lsn // self._segment_bytes <= end}
        self.write(Segment(timeline, first, self._segment_bytes), segments, points)

    def _listed(self, timeline: Timeline) -> list[tuple[MapName, datetime]]:
        infos = self._store.list(times_folder(self._system_id, timeline))
        named = [(parse_map_key(info.key, self._segment_bytes), info.modified_at) for info in infos]
        return [(name, modified_at) for name, modified_at in named if name is not None]


def _cover(listed: Iterable[tuple[MapName, datetime]]) -> list[Piece]:
    pieces: list[Piece] = []
    for name, _ in sorted(listed, key=lambda each: (each[0].segments, each[1], each[0]), reverse=True):
        begin, last = name.first.number, name.last.number
        found = []
        for taken in pieces:  # rising
            if taken.first > last:
                break
            if taken.last >= begin:
                if begin < taken.first:
                    found.append(Piece(begin, taken.first - 1, name))
                begin = taken.last + 1
        if begin <= last:
            found.append(Piece(begin, last, name))
        pieces = sorted(pieces + found)
    return pieces


def _full_ranges(pieces: Sequence[Piece], size: int) -> list[int]:
    """Where the aligned ranges of *size* segments begin that are covered whole, and by a shorter map at least in part."""
    covered: Counter[int] = Counter()
    shorter: set[int] = set()
    for piece in pieces:
        for number in range(piece.first // size, piece.last // size + 1):
            covered[number] += min(piece.last + 1, (number + 1) * size) - max(piece.first, number * size)
            if piece.name.segments < size:
                shorter.add(number)
    return [number * size for number in sorted(shorter) if covered[number] == size]


def summarise(records: Iterable[Record]) -> tuple[SegmentTimes, list[RestorePoint]]:
    """What the records of a segment tell, for a map."""
    ends: list[Record] = []
    points: list[RestorePoint] = []
    switched = False
    for record in records:
        if record.kind in {Kind.COMMIT, Kind.ABORT}:
            ends.append(record)
        elif record.kind is Kind.RESTORE_POINT and record.at is not None:
            points.append(RestorePoint(record.start, record.at, record.name))
        switched = switched or record.kind is Kind.SWITCH
    if not ends:
        return SegmentTimes(switched=switched), points
    moments = [record.at for record in ends if record.at is not None]
    near = ends[0].xid
    # Counted from one of them, as PostgreSQL compares xids: their numbers begin anew after 2^32.
    distances = sorted((record.xid - near + 2**31) % 2**32 for record in ends)
    lowest, highest = ((near + distance - 2**31) % 2**32 for distance in (distances[0], distances[-1]))
    return SegmentTimes(min(moments), max(moments), len(ends), lowest, highest, switched=switched), points


class TimesWriter:
    """Writes the maps of one timeline from its segments, which come in their order; a gap among them begins another map.

    What was not written by `flush` is lost with the process: a cache.
    """

    def __init__(self, maps: TimeMaps, records: LineRecords) -> None:
        self._maps, self._records = maps, records
        self._segments: list[SegmentTimes] = []
        self._points: list[RestorePoint] = []
        self._next: Segment | None = None

    def add(self, segment: Segment, *, linked: bool) -> bool:
        """Read *segment*; False when it is not there. A full range is written at once."""
        records = self._records.of(segment)
        if records is None:
            return False
        times, points = summarise(records)
        if not self._records.reader.understood:
            times = SegmentTimes.strange(linked=linked)
        if segment != self._next:
            self.flush()
        self._segments.append(replace(times, linked=linked))
        self._points += points
        self._next = segment.next()
        if self._next.number % SHORT == 0:
            self.flush()
        return True

    def flush(self) -> None:
        """Write what was collected."""
        if self._next is not None and self._segments:
            first = Segment(self._next.timeline, self._next.number - len(self._segments), self._next.size_bytes)
            self._maps.write(first, self._segments, self._points)
        self._segments, self._points, self._next = [], [], None
