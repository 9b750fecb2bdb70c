"""Finds in WAL where tablespaces were created: replaying such a record links to that very folder of this machine.

Segments are searched, not followed record by record, which would take longer than fetching them. What is found has the form of
such a record and its CRC; none is missed, for records and pages lie at multiples of 8. PostgreSQL 15 to 18 write it alike.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clipper_backup.postgres.control_file import crc32c

_PAGE_HEAD = struct.Struct("<HHIQI")
_LONG_FLAG = 0x0002
_SHORT_BYTES, _LONG_BYTES = 24, 40
_PAGE_BYTES_AT = 36
_PAGE_BYTES_MIN, _PAGE_BYTES_MAX = 1 << 10, 1 << 16

_RECORD = struct.Struct("<IIQBBHI")
"""XLogRecord: length, xid, where the record before begins, info, resource manager, nothing, CRC."""
_INFO_AT, _MANAGER_AT, _CRC_AT = 16, 17, 20
_TABLESPACE = 5
"""RM_TBLSPC_ID; the info of XLOG_TBLSPC_CREATE is 0, and none of its flags is ever set for this record."""
_BODY_LEAST = 0xFC
_BODY = re.compile(rb"(?:\xfd.{2}|\xfc.{4})*(?:\xff.|\xfe.{4})(?P<oid>.{4})(?P<path>[^\0]*)\0", re.DOTALL)
"""What may stand before a record's own data (XLogRecordAssemble), and xl_tblspc_create_rec."""

RECORD_BYTES_MAX = 1104
"""More than the longest one has: a path is shorter than 1,024 (MAXPGPATH)."""
BORDER_PAGES = 2
"""They hold as much as the longest record has, however small pages are."""


@dataclass(frozen=True, slots=True)
class Created:
    """A tablespace was created: its OID and its folder, as the server named it; empty for one within the data folder."""

    oid: int
    path: bytes


class TablespaceSearch:
    """Searches pages in their order; a record over their border is found with its last byte."""

    def __init__(self) -> None:
        self._before = b""

    def found_in(self, pages: bytes, page_bytes: int) -> Iterator[Created]:
        """The records with their last byte in *pages*, whole ones; one may come again, also from earlier pages."""
        border = BORDER_PAGES * page_bytes
        if self._before:
            yield from _records(_content(self._before + pages[:border], page_bytes))
        self._before = pages[-border:] if len(pages) >= border else (self._before + pages)[-border:]
        for page in _suspects(pages, page_bytes):
            yield from _records(_content(pages[max(0, page - 1) * page_bytes : (page + 1) * page_bytes + border], page_bytes))


def page_bytes_of(head: bytes) -> int | None:
    """How many bytes a page has of the segment that begins with *head*; None when that is no begin of a segment."""
    size = int.from_bytes(head[_PAGE_BYTES_AT:_LONG_BYTES], "little")
    return size if _PAGE_BYTES_MIN <= size <= _PAGE_BYTES_MAX and not size & (size - 1) else None


def address_of(page: bytes) -> int:
    """Where a page says that it lies."""
    return int(_PAGE_HEAD.unpack_from(page)[3])


def _suspects(pages: bytes, page_bytes: int) -> Iterator[int]:
    """The numbers of the pages that hold info and resource manager of what may be such a record.

    Nearly all bytes that only look like those two are told apart by their neighbours, where these lie on the same page.
    """
    managers, last = pages[_MANAGER_AT % 8 :: 8], -1
    found = managers.find(_TABLESPACE)
    while found >= 0:
        info_at = found * 8  # as info lies 16 bytes into a record, and pages and records begin at multiples of 8
        if pages[info_at] == 0 and (page := _page_of(pages, info_at, page_bytes)) is not None and page != last:
            last = page
            yield page
        found = managers.find(_TABLESPACE, found + 1)


def _page_of(pages: bytes, info_at: int, page_bytes: int) -> int | None:
    begin = info_at - _INFO_AT
    if _SHORT_BYTES <= begin % page_bytes < page_bytes - _RECORD.size and (
        pages[begin + 2] or pages[begin + 3] or pages[begin + _RECORD.size] < _BODY_LEAST
    ):
        return None  # longer than any, or no body
    return info_at // page_bytes


def _content(pages: bytes, page_bytes: int) -> bytes:
    """What *pages* hold without their heads."""
    view, parts = memoryview(pages), []
    for at in range(0, len(pages), page_bytes):
        _, flags, *_ = _PAGE_HEAD.unpack_from(pages, at)
        parts.append(view[at + (_LONG_BYTES if flags & _LONG_FLAG else _SHORT_BYTES) : at + page_bytes])
    return b"".join(parts)


def _records(data: bytes) -> Iterator[Created]:
    managers = data[_MANAGER_AT::8]
    found = managers.find(_TABLESPACE)
    while found >= 0:
        at = found * 8
        if data[at + _INFO_AT] == 0 and at + _RECORD.size < len(data) and data[at + _RECORD.size] >= _BODY_LEAST:
            created = _read(data, at)
            if created is not None:
                yield created
        found = managers.find(_TABLESPACE, found + 1)


def _read(data: bytes, at: int) -> Created | None:
    total, _, _, _, _, _, crc = _RECORD.unpack_from(data, at)
    body = data[at + _RECORD.size : at + total]
    if not _RECORD.size < total <= min(RECORD_BYTES_MAX, len(data) - at):
        return None
    match = _BODY.fullmatch(body)
    if match is None or crc32c(body + data[at : at + _CRC_AT]) != crc:
        return None
    return Created(int.from_bytes(match["oid"], "little"), match["path"])


def search(chunks: Iterable[bytes], page_bytes: int, before: bytes = b"") -> Iterator[Created]:
    """What *chunks*, of whole pages, hold; *before* are the pages before them, empty where nothing goes on from there."""
    searching = TablespaceSearch()
    yield from searching.found_in(before, page_bytes)
    for chunk in chunks:
        yield from searching.found_in(chunk, page_bytes)
