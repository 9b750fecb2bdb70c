"""Time maps: for each segment of a range, when its transactions ended (docs/design/repository-wal.md, Time maps).

They are a cache, never sealed: who finds one that is not what it says it is does without it.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from clipper_backup.errors import IntegrityError, UsageError
from clipper_backup.format.compression import compress_bytes, decompress
from clipper_backup.format.physical_names import times_folder
from clipper_backup.values import Lsn
from clipper_backup.wal_names import Segment

MAGIC = b"clbktim1"
SHORT, LONG = 256, 65_536
"""Segments of a full range, aligned to as many; LONG ones take the place of SHORT ones."""
NEVER, ALWAYS = -(1 << 63), (1 << 63) - 1
"""`latest` of a segment in which nothing ended; of one that was not understood, where it may have been at any time."""

PLAIN_BYTES_MAX = 64 << 20
"""A map of 65,536 segments has 2.25 MiB, and as much again for 20,000 restore points."""

_HEAD = struct.Struct("<8sIIIIQQQ")
_COLUMNS = "qqIIII"
_POINT = struct.Struct("<QqB")
_SWITCHED, _STRANGE, _LINKED = 1, 2, 4
_SEGMENT_NAME = "[0-9A-F]{24}"
_KEY = re.compile(rf"wal/([1-9][0-9]{{0,19}})/([0-9A-F]{{8}})/times/({_SEGMENT_NAME})-({_SEGMENT_NAME})-([0-9A-F]{{16}})\.zst")


@dataclass(frozen=True, slots=True)
class SegmentTimes:
    """What is known of one segment. Times are PostgreSQL's microseconds since 2000.

    `earliest` and `latest`: of its commits and aborts, of which there are `ends`, with xids from `lowest_xid` to `highest_xid`
    (modulo 2^32). A segment that was not `understood` tells nothing. `linked`: the claim of it was compared with the one
    before and fits, or it is its timeline's first.
    """

    earliest: int = ALWAYS
    latest: int = NEVER
    ends: int = 0
    lowest_xid: int = 0
    highest_xid: int = 0
    switched: bool = False
    understood: bool = True
    linked: bool = False

    @classmethod
    def strange(cls, *, linked: bool) -> Self:
        """Of a segment that was not understood."""
        return cls(latest=ALWAYS, understood=False, linked=linked)

    def may_end(self, xid: int) -> bool:
        """Whether the transaction *xid* may have ended in it."""
        within = (xid - self.lowest_xid) % 2**32 <= (self.highest_xid - self.lowest_xid) % 2**32
        return not self.understood or (self.ends > 0 and within)


@dataclass(frozen=True, slots=True, order=True)
class RestorePoint:
    """Where a restore point's record begins, when it was made (PostgreSQL's microseconds since 2000), and its name."""

    lsn: Lsn
    at: int
    name: bytes


@dataclass(frozen=True, slots=True, order=True)
class MapName:
    """What the name of a time map says: both ends of its range, included, and the latest end of a transaction in it."""

    first: Segment
    last: Segment
    latest: int

    @property
    def segments(self) -> int:
        """How many segments its range has."""
        return self.last.number - self.first.number + 1

    def key(self, system_id: str) -> str:
        """Where it lies."""
        return f"{times_folder(system_id, self.first.timeline)}{self.first}-{self.last}-{self.latest % 2**64:016X}.zst"


def is_map_key(key: str) -> bool:
    """Whether it is formed as the key of a time map is, whatever the size of its segments."""
    return _KEY.fullmatch(key) is not None


def parse_map_key(key: str, segment_bytes: int) -> MapName | None:
    """The inverse of `MapName.key`; None when it is the key of no map of segments of this size."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    try:
        first, last = Segment.parse(match[3], segment_bytes), Segment.parse(match[4], segment_bytes)
    except UsageError:
        return None
    unsigned = int(match[5], 16)
    name = MapName(first, last, unsigned - (unsigned >> 63 << 64))
    return name if name.key(match[1]) == key and 0 < name.segments <= LONG else None


@dataclass(frozen=True, slots=True)
class TimeMap:
    """A range of segments of one timeline, and the restore points in it, rising."""

    system_id: str
    first: Segment
    segments: Sequence[SegmentTimes]
    points: Sequence[RestorePoint] = ()

    @property
    def name(self) -> MapName:
        """What it is called."""
        last = Segment(self.first.timeline, self.first.number + len(self.segments) - 1, self.first.size_bytes)
        return MapName(self.first, last, max(each.latest for each in self.segments))


def encode_map(times: TimeMap) -> bytes:
    """The object of a time map."""
    first, segments, points = times.first, times.segments, times.points
    head = _HEAD.pack(MAGIC, first.size_bytes, first.timeline, len(segments), len(points), int(times.system_id), first.number, 0)
    columns = zip(*(_row(each) for each in segments), strict=True)
    parts = [struct.pack(f"<{len(segments)}{form}", *column) for form, column in zip(_COLUMNS, columns, strict=True)]
    named = [_POINT.pack(point.lsn, point.at, len(point.name)) + point.name for point in points]
    return compress_bytes(b"".join([head, *parts, *named]))


def decode_map(data: bytes, name: MapName, system_id: str) -> TimeMap:
    """Read the map that has this *name*; IntegrityError when it is not what the name says, or is built in another way."""
    key = name.key(system_id)
    plain = _bounded(data, key)
    try:
        magic, size_bytes, timeline, count, points, system, first, reserved = _HEAD.unpack_from(plain)
        said = (name.first.size_bytes, name.first.timeline, name.segments, system_id, name.first.number)
        if magic != MAGIC or reserved or (size_bytes, timeline, count, str(system), first) != said:
            raise IntegrityError(f"{key} is not the time map that its name says")
        place, columns = _HEAD.size, []
        for form in _COLUMNS:
            columns.append(struct.unpack_from(f"<{count}{form}", plain, place))
            place += struct.calcsize(f"<{count}{form}")
        named = []
        for _ in range(points):
            lsn, at, length = _POINT.unpack_from(plain, place)
            place += _POINT.size + length
            named.append(RestorePoint(Lsn(lsn), at, plain[place - length : place]))
    except struct.error as error:
        raise IntegrityError(f"{key} is cut short") from error
    if place != len(plain):
        raise IntegrityError(f"{key} has another length than its head says")
    times = TimeMap(system_id, name.first, [_segment_times(*row) for row in zip(*columns, strict=True)], named)
    if times.name != name or max(columns[-1]) >= 2 * _LINKED:
        raise IntegrityError(f"{key} has another latest time than its name, or a flag that is not known")
    return times


def _row(times: SegmentTimes) -> tuple[int, ...]:
    flags = _SWITCHED * times.switched + _STRANGE * (not times.understood) + _LINKED * times.linked
    return times.earliest, times.latest, times.ends, times.lowest_xid, times.highest_xid, flags


def _segment_times(earliest: int, latest: int, ends: int, lowest: int, highest: int, flags: int) -> SegmentTimes:
    seen = {"switched": bool(flags & _SWITCHED), "understood": not flags & _STRANGE, "linked": bool(flags & _LINKED)}
    return SegmentTimes(earliest, latest, ends, lowest, highest, **seen)


def _bounded(data: bytes, key: str) -> bytes:
    plain = bytearray()
    for piece in decompress([data], key):
        plain += piece
        if len(plain) > PLAIN_BYTES_MAX:
            raise IntegrityError(f"{key} is larger than any time map that is written")
    return bytes(plain)
