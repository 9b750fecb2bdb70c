"""Reads WAL records: when transactions ended, where restore points lie, where a segment was left by a switch.

What is read of pages and records is equal in PostgreSQL 15 to 18, but for the size of one array; pages of other versions are
not understood. A record is known by its length and by the begin of the record before, which it names. Its CRC is looked at
where that was asked for; else it is left to PostgreSQL: recovery looks at it before it stops there.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from clipper_backup.values import Lsn
from clipper_backup.wal_names import Segment

MAJORS = {0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}
"""The magic number of a page -> the major version that writes it (XLOG_PAGE_MAGIC in xlog_internal.h)."""

_PAGE = struct.Struct("<HHIQI")
"""XLogPageHeaderData: magic, flags, timeline, address, bytes of the record that began on an earlier page."""
_CONTINUES, _LONG, _OVERWRITES = 1, 2, 8
"""XLP_FIRST_IS_CONTRECORD, XLP_LONG_HEADER, and XLP_FIRST_IS_OVERWRITE_CONTRECORD: a crash cut off the record before."""
_SHORT_BYTES, _LONG_BYTES = 24, 40
_PAGE_BYTES_AT = 36

_RECORD = struct.Struct("<IIQBB")
"""XLogRecord: length, xid, where the record before begins, info, resource manager; two empty bytes and the CRC follow."""
_RECORD_BYTES = 24
_CRC_AT = 20
_RECORD_BYTES_MAX = 1020 << 20
"""XLogRecordMaxSize of PostgreSQL 16 and later."""
_XLOG, _XACT = 0, 1
"""Resource managers; those with higher numbers tell us nothing."""
_SWITCH, _RESTORE_POINT = 0x40, 0x70
_COMMIT, _ABORT, _COMMIT_PREPARED, _ABORT_PREPARED = 0x00, 0x20, 0x30, 0x40
_KIND_OF_XACT, _HAS_INFO = 0x70, 0x80
_NAME_BYTES = 64

_BLOCK_BYTES = 1 << 20
"""How much is walked at once: memory stays small, whatever the segment's size."""
_NEVER = 1 << 64
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Kind(Enum):
    """What a record tells. COMMIT and ABORT also end what was prepared."""

    COMMIT = "commit"
    ABORT = "abort"
    RESTORE_POINT = "restore point"
    SWITCH = "switch"
    OTHER = "other"


_ENDS = {_COMMIT: Kind.COMMIT, _COMMIT_PREPARED: Kind.COMMIT, _ABORT: Kind.ABORT, _ABORT_PREPARED: Kind.ABORT}


@dataclass(frozen=True, slots=True)
class Record:
    """A record, from its first byte to behind its last.

    `at`: microseconds since 2000-01-01 UTC, as PostgreSQL counts, of a commit, abort or restore point. `xid`: that which a
    commit or abort ends, also a prepared one; its subtransactions are not told. `name`: a restore point's.
    """

    kind: Kind
    start: Lsn
    end: Lsn
    xid: int = 0
    at: int | None = None
    name: bytes = b""


def as_moment(microseconds: int) -> datetime:
    """PostgreSQL's microseconds since 2000 as a time; OverflowError beyond the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=microseconds)


def as_microseconds(moment: datetime) -> int:
    """The inverse of `as_moment`."""
    return (moment - _EPOCH) // _MICROSECOND


SEGMENT_HEAD_BYTES = _LONG_BYTES
"""How much of a segment `continued_bytes` and `is_within_a_record` look at."""


def continued_bytes(head: bytes) -> int:
    """How many bytes of a record that began before it stand at the begin of a segment, or go on behind it; 0 for none."""
    if len(head) < _LONG_BYTES:
        return 0
    _, flags, _, _, rest = _PAGE.unpack_from(head)
    return int(rest) if flags & (_CONTINUES | _OVERWRITES) == _CONTINUES else 0


def is_within_a_record(head: bytes, segment_bytes: int) -> bool:
    """Whether a segment lies wholly within a record, so that what began before it goes on behind it."""
    page_bytes = int.from_bytes(head[_PAGE_BYTES_AT:_LONG_BYTES], "little")
    pages = segment_bytes // page_bytes if page_bytes else 0
    return continued_bytes(head) > pages * (page_bytes - _SHORT_BYTES) - (_LONG_BYTES - _SHORT_BYTES)


class _StrangeError(Exception):
    """These bytes are no page, or no record, that follows on what was read."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What neighbouring pages hold, without their headers. `start` is the first one's address, `header_bytes` its header's."""

    data: bytes
    start: int
    header_bytes: int
    page_bytes: int

    def lsn(self, place: int) -> int:
        """Where the byte at *place* of data lies."""
        page, offset = divmod(place + self.header_bytes - _SHORT_BYTES, self.page_bytes - _SHORT_BYTES)
        return self.start + page * self.page_bytes + _SHORT_BYTES + offset


class RecordReader:
    """Reads segments in the order of a line; a record that runs over a border comes with the segment that has its last byte.

    When the records of a segment were all taken, `complete` says whether it was followed to its end: not, when a page is none,
    or when a record does not follow on the one before. `understood`: that, and it does not begin with the rest of a record
    whose begin was not read just before. `switched`: it ends with a switch; what lies behind that was not looked at.

    With *checked* a record whose CRC is wrong is none, and neither does a segment follow that does not begin with the rest of
    the last one's record: both end it as they end a recovery.
    """

    def __init__(self, *, checked: bool = False) -> None:
        self._checked = checked
        self.complete = False
        self.understood = False
        self.switched = False
        self._next_start: int | None = None
        self._major = 0
        self._forget()

    def _forget(self) -> None:
        # Of the record that goes on into the next pages: its first bytes, or, when it tells nothing, how many are left; and
        # where it begins. LSN 0 is never a record's, and stands for one that we do not know.
        self._begun, self._skip, self._begun_at = bytearray(), 0, 0
        self._previous = 0

    def follows(self, segment: Segment) -> bool:
        """Whether the segment before *segment* was the last one read, to its end."""
        return self._next_start == segment.start

    def read(self, segment: Segment, chunks: Iterable[bytes], *, every_from: int | None = None) -> Iterator[Record]:
        """Commits, aborts, restore points and switches with their last byte in *segment*, whose bytes *chunks* are.

        With *every_from* also all other records that begin there or behind. Whatever the bytes are: no error is raised but
        those of *chunks*.
        """
        self.complete = self.understood = self.switched = False
        follows = self.follows(segment)
        if not follows:
            self._forget()
        self._next_start = None
        try:
            end, whole = int(segment.start), True
            for block, page_bytes in _blocks(chunks):
                if end == segment.start:
                    whole = self._joins(block, follows=follows)
                for stretch in self._stretches(block, end, page_bytes):
                    yield from self._walk(stretch, _NEVER if every_from is None else every_from)
                    if self.switched:
                        break
                if self.switched:
                    end = int(segment.end)
                    break
                end += len(block)
        except _StrangeError:
            return
        if end == segment.end:
            self._next_start, self.complete, self.understood = end, True, whole

    def _joins(self, block: bytes, *, follows: bool) -> bool:
        """Fit a segment's first page to what went before; False when it begins with the rest of a record that we do not have."""
        magic, flags, _, _, rest = _PAGE.unpack_from(block)
        self._major = MAJORS.get(magic, 0)
        if flags & _OVERWRITES:
            return True
        rest = _aligned(rest) if flags & _CONTINUES else 0
        if rest == (_aligned(_total(self._begun)) - len(self._begun) if self._begun else self._skip):
            return rest == 0 or self._begun_at != 0
        if follows and self._checked:
            raise _StrangeError
        self._forget()
        self._skip = rest
        return rest == 0

    def _stretches(self, block: bytes, start: int, page_bytes: int) -> Iterator[_Stretch]:
        """The pages of *block* without their headers, up to one that is none (_StrangeError), or that overwrites a record."""
        view, parts, first, first_header = memoryview(block), list[memoryview](), 0, 0
        for offset in range(0, len(block), page_bytes):
            magic, flags, _, address, _ = _PAGE.unpack_from(block, offset)
            strange = MAJORS.get(magic) != self._major or address != start + offset
            if parts and (strange or flags & _OVERWRITES):
                yield _Stretch(b"".join(parts), first, first_header, page_bytes)
                parts = []
            if strange:
                raise _StrangeError
            if flags & _OVERWRITES:
                self._begun, self._skip = bytearray(), 0
            header_bytes = _LONG_BYTES if flags & _LONG else _SHORT_BYTES
            if not parts:
                first, first_header = start + offset, header_bytes
            parts.append(view[offset + header_bytes : offset + page_bytes])
        yield _Stretch(b"".join(parts), first, first_header, page_bytes)

    def _walk(self, stretch: _Stretch, every_from: int) -> Iterator[Record]:
        """The records that are whole with *stretch*; what is left at its end goes on into the next one."""
        carried, place = len(self._begun), self._skip
        if place > len(stretch.data):
            self._skip -= len(stretch.data)
            return
        if place:
            self._previous, self._skip = self._begun_at, 0
        self._begun += stretch.data
        if carried and len(self._begun) < _total(self._begun):
            return
        data, size = bytes(self._begun), len(self._begun)
        self._begun.clear()
        while place + _RECORD_BYTES <= size:
            total, _, before, _, manager = _RECORD.unpack_from(data, place)
            start = stretch.lsn(place - carried) if place >= carried else self._begun_at
            if not _RECORD_BYTES <= total <= _RECORD_BYTES_MAX or before >= start or self._previous not in {0, before}:
                raise _StrangeError
            following = place + _aligned(total)
            if manager <= _XACT or start >= every_from or self._checked:
                if following > size:
                    break
                if self._checked and not _has_its_crc(data[place : place + total]):
                    raise _StrangeError
                end = stretch.lsn(place + total - 1 - carried) + 1
                record = _understand(data[place : place + total], self._major, Lsn(start), Lsn(end))
                if record.kind is not Kind.OTHER or start >= every_from:
                    yield record
                self.switched = record.kind is Kind.SWITCH
            elif following > size:
                self._begun_at, self._skip = start, following - size
                return
            self._previous, place = start, following
            if self.switched:
                return
        if place < size:
            self._begun_at = stretch.lsn(place - carried) if place >= carried else self._begun_at
            self._begun += data[place:]


def _blocks(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """What *chunks* are, in whole pages, and how many bytes a page has; what is less than a page at the end is left out."""
    pending, page_bytes = bytearray(), 0
    for chunk in chunks:
        pending += chunk
        while len(pending) >= _BLOCK_BYTES:
            page_bytes = page_bytes or _page_bytes(pending)
            yield bytes(pending[:_BLOCK_BYTES]), page_bytes
            del pending[:_BLOCK_BYTES]
    if len(pending) >= _LONG_BYTES:
        page_bytes = page_bytes or _page_bytes(pending)
        if whole := len(pending) // page_bytes * page_bytes:
            yield bytes(pending[:whole]), page_bytes


def _page_bytes(first_page: bytearray) -> int:
    size: int = int.from_bytes(first_page[_PAGE_BYTES_AT : _PAGE_BYTES_AT + 4], "little")
    if not 1 << 10 <= size <= 1 << 16 or size & (size - 1):
        raise _StrangeError
    return size


def _has_its_crc(record: bytes) -> bool:
    """Over all that lies behind the header, then the header up to the CRC (XLogRecordAssemble, ValidXLogRecord)."""
    import google_crc32c  # noqa: PLC0415  few read records that a crash may have cut off

    (crc,) = struct.unpack_from("<I", record, _CRC_AT)
    return bool(google_crc32c.value(record[_RECORD_BYTES:] + record[:_CRC_AT]) == crc)


def _aligned(length: int) -> int:
    return (length + 7) & ~7


def _total(begun: bytearray) -> int:
    """The length of the record whose first bytes these are: at least eight of them, since records are aligned."""
    return int.from_bytes(begun[:4], "little")


def _understand(record: bytes, major: int, start: Lsn, end: Lsn) -> Record:
    """What a whole record tells; _StrangeError when it is not built as it should be."""
    _, xid, _, info, manager = _RECORD.unpack_from(record)
    try:
        if manager == _XLOG and info & 0xF0 == _SWITCH:
            return Record(Kind.SWITCH, start, end)
        if manager == _XLOG and info & 0xF0 == _RESTORE_POINT:
            at, name = struct.unpack_from(f"<q{_NAME_BYTES}s", record, _main_data(record))
            return Record(Kind.RESTORE_POINT, start, end, at=at, name=name.partition(b"\0")[0])
        kind = _ENDS.get(info & _KIND_OF_XACT) if manager == _XACT else None
        if kind is None:
            return Record(Kind.OTHER, start, end)
        place = _main_data(record)
        (at,) = struct.unpack_from("<q", record, place)
        if info & _KIND_OF_XACT in {_COMMIT_PREPARED, _ABORT_PREPARED}:
            xid = _prepared_xid(record, place + 8, major) if info & _HAS_INFO else 0
        return Record(kind, start, end, xid, at)
    except (struct.error, IndexError) as error:
        raise _StrangeError from error


def _main_data(record: bytes) -> int:
    """Where a record's own data begin, behind the headers; of records that name no pages (XLogRecordAssemble in xloginsert.c)."""
    place = _RECORD_BYTES
    while True:
        match record[place]:
            case 255:  # XLR_BLOCK_ID_DATA_SHORT
                return place + 2
            case 254:  # XLR_BLOCK_ID_DATA_LONG
                return place + 5
            case 253:  # XLR_BLOCK_ID_ORIGIN
                place += 3
            case 252:  # XLR_BLOCK_ID_TOPLEVEL_XID
                place += 5
            case _:
                raise _StrangeError


def _prepared_xid(record: bytes, place: int, major: int) -> int:
    """The xid that a COMMIT PREPARED or ROLLBACK PREPARED ends; what stands before it is passed over (ParseCommitRecord)."""
    (has,) = struct.unpack_from("<I", record, place)
    place += 4
    if has & 1:  # XACT_XINFO_HAS_DBINFO
        place += 8
    # subtransactions, relations, dropped statistics, invalidations: a count, then so many
    for bit, item_bytes in ((2, 4), (4, 12), (256, 16 if major >= 18 else 12), (8, 16)):
        if has & bit:
            (count,) = struct.unpack_from("<I", record, place)
            place += 4 + count * item_bytes
    if not has & 16:  # XACT_XINFO_HAS_TWOPHASE
        raise _StrangeError
    (xid,) = struct.unpack_from("<I", record, place)
    return int(xid)
