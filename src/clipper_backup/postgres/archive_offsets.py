"""Where each table's data lies in a custom-format archive, written into its table of contents.

pg_dump that writes into a pipe cannot go back to note it. Each process of a parallel pg_restore then reads through the whole
file to find its table. Looking once for all of them and noting the places makes such a file like one that pg_dump wrote itself.

Layout, from PostgreSQL's pg_backup_archiver.c and pg_backup_custom.c: `PGDMP`, three bytes of version, sizes of integers and
offsets, the format; compression; seven integers of time; three strings; the entries; then a block for each entry with data, in
their order. An integer is a byte of sign and its bytes, lowest first; a string its length (-1: none) and its bytes; an offset a
byte of state and its bytes. A block is its type, its entry's id, and chunks (length, bytes), the last of length 0; a block of
large objects has such chunks for each (its oid before them), the last of oid 0.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"PGDMP"
_CUSTOM = 1
_INT_BYTES, _OFFSET_BYTES = 4, 8
_RELKIND_SINCE, _ALGORITHM_SINCE, _OLDEST, _NEWEST = (1, 16), (1, 15), (1, 14), (1, 16)
_NOT_SET, _SET = 1, 2
_DATA, _LARGE_OBJECTS = 1, 3
_TIME_INTS = 7
_WINDOW_BYTES = 8 << 20
"""Searched at once."""


class _UnknownError(Exception):
    """Not as we know it: nothing is written then, and pg_restore finds its way as slowly as it always did."""


@dataclass(frozen=True, slots=True)
class _Wanting:
    """An entry whose data has no known place: its id, what its block is, and where in the file its offset stands."""

    dump_id: int
    block: int
    offset_at: int


class _Reader:
    def __init__(self, file: BinaryIO, window_bytes: int) -> None:
        self.file, self.size_bytes, self.window_bytes = file, os.fstat(file.fileno()).st_size, window_bytes

    @property
    def at(self) -> int:
        """Where it stands; setting it beyond the end is noticed by what is read next."""
        return self.file.tell()

    @at.setter
    def at(self, place: int) -> None:
        self.file.seek(place)

    def take(self, length: int) -> bytes:
        data = self.file.read(length)
        if len(data) != length:
            raise _UnknownError
        return data

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self) -> int:
        sign, *value = self.take(1 + _INT_BYTES)
        if sign > 1:
            raise _UnknownError
        return int.from_bytes(value, "little") * (-1 if sign else 1)

    def string(self) -> bytes | None:
        length = self.integer()
        return None if length < 0 else self.take(length)


def note_offsets(path: Path, *, window_bytes: int = _WINDOW_BYTES) -> int:
    """Write into an uncompressed custom-format archive where the data of its entries lies; how many were written.

    Searches *window_bytes* at once. 0, and the file as it was, when it is of a version not known here, or not as described above.
    """
    with path.open("r+b") as file:
        try:
            reader = _Reader(file, window_bytes)
            places = list(_places(reader, _read_contents(reader)))
        except _UnknownError:
            return 0
        for wanting, place in places:
            file.seek(wanting.offset_at)
            file.write(bytes([_SET]) + place.to_bytes(_OFFSET_BYTES, "little"))
    return len(places)


def _read_contents(reader: _Reader) -> list[_Wanting]:
    """The entries that want a place; the reader then stands at the first block."""
    start = reader.take(len(_MAGIC))
    version = (reader.byte(), reader.byte())
    reader.byte()
    known = start == _MAGIC and _OLDEST <= version <= _NEWEST
    if not known or (reader.byte(), reader.byte(), reader.byte()) != (_INT_BYTES, _OFFSET_BYTES, _CUSTOM):
        raise _UnknownError
    if (reader.byte() if version >= _ALGORITHM_SINCE else reader.integer()) != 0:
        raise _UnknownError
    for _ in range(_TIME_INTS):
        reader.integer()
    for _ in range(3):
        reader.string()
    wanting = []
    for _ in range(reader.integer()):
        dump_id = reader.integer()
        reader.integer()
        for _ in range(3):  # the oid of its catalog, its own, its name
            reader.string()
        kind = reader.string()
        reader.integer()
        for _ in range(6):  # how to make it, drop it, copy it; its schema, tablespace, access method
            reader.string()
        if version >= _RELKIND_SINCE:
            reader.integer()
        for _ in range(2):  # the owner, and a word without meaning
            reader.string()
        while reader.string() is not None:  # what it depends on
            pass
        if reader.byte() == _NOT_SET:
            wanting.append(_Wanting(dump_id, _DATA if kind == b"TABLE DATA" else _LARGE_OBJECTS, reader.at - 1))
        reader.at += _OFFSET_BYTES
    return wanting


def _places(reader: _Reader, entries: list[_Wanting]) -> Iterator[tuple[_Wanting, int]]:
    """Each entry with the place of its block. Raises unless the blocks follow each other in this order up to the file's end."""
    for wanting, following in zip_longest(entries, entries[1:]):
        place = reader.at
        if (reader.byte(), reader.integer()) != (wanting.block, wanting.dump_id):
            raise _UnknownError
        if wanting.block == _LARGE_OBJECTS:
            while reader.integer() != 0:
                while (length := reader.integer()) > 0:
                    reader.at += length
                if length < 0:
                    raise _UnknownError
        else:
            _pass_data(reader, following)
        yield wanting, place
    if reader.at != reader.size_bytes:
        raise _UnknownError


def _pass_data(reader: _Reader, following: _Wanting | None) -> None:
    """To the end of a block of COPY text, which may have a chunk for each row: too many to pass one by one.

    In the text is no zero byte, and a length within it has no five in a row. Where there are, with the head of the *following*
    block behind them, this block ends.
    """
    end = bytes(1 + _INT_BYTES)
    if reader.integer() == 0:
        return
    if following is None:
        reader.at = max(reader.at, reader.size_bytes - len(end))
        if reader.take(len(end)) != end:
            raise _UnknownError
        return
    head = end + bytes([following.block, 0]) + following.dump_id.to_bytes(_INT_BYTES, "little")
    for start in range(reader.at, reader.size_bytes, reader.window_bytes):
        reader.at = start
        found = reader.file.read(reader.window_bytes + len(head) - 1).find(head)
        if found >= 0:
            reader.at = start + found + len(end)
            return
    raise _UnknownError
