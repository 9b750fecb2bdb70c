"""Where each table's data lies in a custom-format archive, written into its table of contents.

pg_dump that writes into a pipe cannot go back to note it. Each process of a parallel pg_restore then reads through the whole
file to find its table. Looking once for all of them and noting the places makes such a file like one that pg_dump wrote itself.

Layout, from PostgreSQL's pg_backup_archiver.c and pg_backup_custom.c: `PGDMP`, three bytes of version, sizes of integers and
offsets, the format; compression; seven integers of time; three strings; the entries; then a block for each entry with data, in
their order. An integer is a byte of sign and its bytes, lowest first; a string its length (-1: none) and its bytes; an offset a
byte of state and its bytes. A block is its type, its entry's id, and chunks (length, bytes), the last of length 0; a block of
large objects has such chunks for each (its oid before them), the last of oid 0.
"""

from collections.abc import Iterable, Iterator
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
_TAKEN_BYTES_MAX = 64 << 20
"""More than any statement of a table of contents; damage may claim to be longer."""


class _UnknownError(Exception):
    """Not as we know it: nothing is noted then, and pg_restore finds its way as slowly as it always did."""


@dataclass(frozen=True, slots=True)
class _Wanting:
    """An entry whose data has no known place: its id, what its block is, and where in the file its offset stands."""

    dump_id: int
    block: int
    offset_at: int


class _Passing:
    """Chunks on their way into a file, looked at as they pass. Whatever asks for more than comes raises _UnknownError."""

    def __init__(self, chunks: Iterator[bytes], file: BinaryIO) -> None:
        self._chunks, self._file = chunks, file
        self._seen, self._taken, self._before_bytes = b"", 0, 0

    @property
    def at(self) -> int:
        """The place in the file of what is taken next."""
        return self._before_bytes + self._taken

    def _come(self) -> bool:
        """Let another chunk pass, and keep what is not taken before it; False when there is none."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._file.write(chunk)
        self._before_bytes += self._taken
        self._seen, self._taken = self._seen[self._taken :] + chunk, 0
        return True

    def take(self, length: int) -> bytes:
        if length > _TAKEN_BYTES_MAX:
            raise _UnknownError
        while len(self._seen) - self._taken < length:
            if not self._come():
                raise _UnknownError
        self._taken += length
        return self._seen[self._taken - length : self._taken]

    def skip(self, length: int) -> None:
        while (here := len(self._seen) - self._taken) < length:
            self._taken += here
            length -= here
            if not self._come():
                raise _UnknownError
        self._taken += length

    def skip_to(self, wanted: bytes) -> None:
        """To the first *wanted*."""
        while (found := self._seen.find(wanted, self._taken)) < 0:
            self._taken = max(self._taken, len(self._seen) - len(wanted) + 1)
            rest, self._taken = self._seen[self._taken :], len(self._seen)
            if not self._come():
                raise _UnknownError
            # Only where it may lie across both are they put together: that copies them.
            if wanted in rest + self._seen[: len(wanted)] or len(self._seen) < len(wanted):
                self._before_bytes -= len(rest)
                self._seen = rest + self._seen
        self._taken = found

    def skip_to_last(self, length: int) -> None:
        """To the last *length* bytes of all, or fewer."""
        while True:
            self._taken = max(self._taken, len(self._seen) - length)
            if not self._come():
                return

    def is_over(self) -> bool:
        return self._taken == len(self._seen) and not self._come()

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


def write_archive(path: Path, chunks: Iterable[bytes]) -> int:
    """Write an uncompressed custom-format archive into a file, noting where the data of its entries lies; how many were noted.

    0, and just the bytes that came, when it is of a version not known here, or not as described above.
    """
    passing = iter(chunks)
    with path.open("wb") as file:
        try:
            archive = _Passing(passing, file)
            places = list(_places(archive, _read_contents(archive)))
        except _UnknownError:
            places = []
        file.writelines(passing)
        for wanting, place in places:
            file.seek(wanting.offset_at)
            file.write(bytes([_SET]) + place.to_bytes(_OFFSET_BYTES, "little"))
    return len(places)


def _read_contents(archive: _Passing) -> list[_Wanting]:
    """The entries that want a place; the archive then stands at the first block."""
    start = archive.take(len(_MAGIC))
    version = (archive.byte(), archive.byte())
    archive.byte()
    known = start == _MAGIC and _OLDEST <= version <= _NEWEST
    if not known or (archive.byte(), archive.byte(), archive.byte()) != (_INT_BYTES, _OFFSET_BYTES, _CUSTOM):
        raise _UnknownError
    if (archive.byte() if version >= _ALGORITHM_SINCE else archive.integer()) != 0:
        raise _UnknownError
    for _ in range(_TIME_INTS):
        archive.integer()
    for _ in range(3):
        archive.string()
    wanting = []
    for _ in range(archive.integer()):
        dump_id = archive.integer()
        archive.integer()
        for _ in range(3):  # the oid of its catalog, its own, its name
            archive.string()
        kind = archive.string()
        archive.integer()
        for _ in range(6):  # how to make it, drop it, copy it; its schema, tablespace, access method
            archive.string()
        if version >= _RELKIND_SINCE:
            archive.integer()
        for _ in range(2):  # the owner, and a word without meaning
            archive.string()
        while archive.string() is not None:  # what it depends on
            pass
        if archive.byte() == _NOT_SET:
            wanting.append(_Wanting(dump_id, _DATA if kind == b"TABLE DATA" else _LARGE_OBJECTS, archive.at - 1))
        archive.skip(_OFFSET_BYTES)
    return wanting


def _places(archive: _Passing, entries: list[_Wanting]) -> Iterator[tuple[_Wanting, int]]:
    """Each entry with the place of its block. Raises unless the blocks follow each other in this order up to the file's end."""
    for wanting, following in zip_longest(entries, entries[1:]):
        place = archive.at
        if (archive.byte(), archive.integer()) != (wanting.block, wanting.dump_id):
            raise _UnknownError
        if wanting.block == _LARGE_OBJECTS:
            while archive.integer() != 0:
                while (length := archive.integer()) > 0:
                    archive.skip(length)
                if length < 0:
                    raise _UnknownError
        else:
            _pass_data(archive, following)
        yield wanting, place
    if not archive.is_over():
        raise _UnknownError


def _pass_data(archive: _Passing, following: _Wanting | None) -> None:
    """To the end of a block of COPY text, which may have a chunk for each row: too many to pass one by one.

    In the text is no zero byte, and a length within it has no five in a row. Where there are, with the head of the *following*
    block behind them, this block ends.
    """
    end = bytes(1 + _INT_BYTES)
    if archive.integer() == 0:
        return
    if following is None:
        archive.skip_to_last(len(end))
        if archive.take(len(end)) != end:
            raise _UnknownError
        return
    archive.skip_to(end + bytes([following.block, 0]) + following.dump_id.to_bytes(_INT_BYTES, "little"))
    archive.skip(len(end))
