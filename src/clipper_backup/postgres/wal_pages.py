"""What a segment must look like before an archive takes it: every page says which WAL it belongs to (xlog_internal.h).

A recycled segment keeps its old pages until they are written over, so the name alone proves nothing.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.history import Ancestor
from clipper_backup.values import Lsn
from clipper_backup.wal_names import Segment

PAGE_MAGIC = {15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}
"""XLOG_PAGE_MAGIC of each major version."""

_HEADER = struct.Struct("<HHIQ")
_LONG_HEADER = struct.Struct("<QII")
_LONG_AT = 24
_LONG_FLAG = 0x0002
_CONTINUED_AT, _FIRST_RECORD_AT = 16, 40
_RECORD, _RECORD_BYTES = struct.Struct("<IIQBB"), 24
"""XLogRecord: length, xid, where the record before begins, info, resource manager; both are 0 for a shutdown checkpoint."""


@dataclass(frozen=True, slots=True)
class WalLayout:
    """What all segments of a server have in common; sizes in bytes."""

    server_major: int
    system_id: int
    segment_bytes: int
    page_bytes: int


def begins_anew(head: bytes) -> bool:
    """Whether no WAL leads to the segment that begins with *head*: its first record is a checkpoint that says so.

    pg_resetwal writes such a one, and initdb in a cluster's first segment (xl_prev is 0). Replay ends before it.
    """
    if len(head) < _FIRST_RECORD_AT + _RECORD.size:
        return False
    (continued,) = struct.unpack_from("<I", head, _CONTINUED_AT)
    length, _, before, info, manager = _RECORD.unpack_from(head, _FIRST_RECORD_AT)
    return continued == 0 and length >= _RECORD_BYTES and (before, info, manager) == (0, 0, 0)


class PageCheck:
    """Looks at a segment's pages as they are read, in order."""

    def __init__(self, segment: Segment, layout: WalLayout, ancestors: Sequence[Ancestor] | None, name: str) -> None:
        """*ancestors* are those of the segment's timeline, oldest first: up to where it began, pages may be of one of them.

        None where they are not known: then pages may be of any older timeline.
        """
        self._layout, self._name = layout, name
        self._timeline = int(segment.timeline)
        self._begin = int(segment.end) if ancestors is None else int(ancestors[-1].left_at) if ancestors else 0
        self._older = (
            range(1, self._timeline) if ancestors is None else frozenset(int(ancestor.timeline) for ancestor in ancestors)
        )
        self._address = int(segment.start)
        self._end = int(segment.end)
        self._newest = 0
        self._zeros = bytes(layout.page_bytes)
        self._ended = False
        magic = PAGE_MAGIC.get(layout.server_major)
        if magic is None:
            raise IntegrityError(
                f"{name} is of PostgreSQL {layout.server_major}, whose WAL this version does not know",
                hints=["install a version of clipper-backup that does"],
            )
        self._magic = magic

    def feed(self, piece: bytes) -> None:
        """The next bytes, whole pages; IntegrityError for a page that is not what it must be there."""
        page_bytes = self._layout.page_bytes
        for at in range(0, len(piece), page_bytes):
            if self._ended or piece.startswith(self._zeros, at):
                self._feed_zeros(piece, at)
            else:
                self._feed_page(piece, at)
            self._address += page_bytes

    def finish(self) -> None:
        """IntegrityError unless the whole segment was seen."""
        if self._address != self._end:
            start = self._end - self._layout.segment_bytes
            size = self._address - start
            raise IntegrityError(f"{self._name} has {size} bytes, a segment of this server has {self._layout.segment_bytes}")

    def _feed_zeros(self, piece: bytes, at: int) -> None:
        """After a switch zeros follow to the end, and nothing else."""
        if self._newest == 0:
            raise self._bad("is all zeros")
        if not piece.startswith(self._zeros, at):
            raise self._bad("is written, and one before it is not")
        self._ended = True

    def _feed_page(self, piece: bytes, at: int) -> None:
        magic, info, timeline, address = _HEADER.unpack_from(piece, at)
        if magic != self._magic:
            raise self._bad(f"has the magic number {magic:04X}, not {self._magic:04X} of PostgreSQL {self._layout.server_major}")
        if address != self._address:
            raise self._bad(f"says that it lies at {Lsn(address)}")
        if timeline != self._timeline and (timeline not in self._older or address >= self._begin):
            raise self._bad(f"is of timeline {timeline}")
        if timeline < self._newest:
            raise self._bad(f"is of timeline {timeline}, one before it of {self._newest}")
        if self._newest == 0:
            self._check_long(info, *_LONG_HEADER.unpack_from(piece, at + _LONG_AT))
        self._newest = timeline

    def _check_long(self, info: int, system_id: int, segment_bytes: int, page_bytes: int) -> None:
        layout = self._layout
        if not info & _LONG_FLAG:
            raise self._bad("is the first one, and has no long header")
        if system_id != layout.system_id:
            raise self._bad(f"is of the system {system_id}, this server is {layout.system_id}")
        if (segment_bytes, page_bytes) != (layout.segment_bytes, layout.page_bytes):
            raise self._bad(
                f"has segments of {segment_bytes} and pages of {page_bytes} bytes, this server has {layout.segment_bytes} "
                f"and {layout.page_bytes}"
            )

    def _bad(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"{self._name} is not the WAL that its name says: the page at {Lsn(self._address)} {what}",
            hints=["it was recycled, belongs to another server, or is damaged; nothing of it was archived"],
        )
