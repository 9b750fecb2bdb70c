"""What an archive of pg_dump says of itself, asked of pg_restore: its table of contents and its SEQUENCE SET entries.

Both stand at the beginning of a custom-format archive, so its head is enough; a program that has read what it needs closes its
input. The listing's lines are `dump-id; catalog-oid object-oid KIND schema name owner`; names in it are not quoted, so tables
are told apart by their oid, and sequences by the SQL of their entries.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.errors import IntegrityError, ToolError
from clipper_backup.postgres.programs import run
from clipper_backup.values import show_count

_ENTRY = re.compile(r"(\d+); \d+ (\d+) (.*)")
_SETVAL = re.compile(r"SELECT pg_catalog\.setval\('((?:[^']|'')*)', (-?\d+), (true|false)\);")
_NAME = rb'(?:"(?:[^"]|"")+"|[^",.()\s]+)'
_COPY = re.compile(rb"COPY (%b\.%b) (?:\(%b(?:, %b)*\))? FROM stdin;\n" % (_NAME, _NAME, _NAME, _NAME))
# A statement ends with a semicolon that ends a line and is not within quotes: a name may hold line breaks, and what looks like
# a COPY. Not one pattern: Python 3.11.2, that of Debian 12, matches none where possessive quantifiers lie in each other.
_IN_STATEMENT = re.compile(rb"""[^'";]+|'[^']*'|"[^"]*"|;(?!\n)""")
_END_OF_TABLE = b"\n\\.\n"
_PART = r'("(?:[^"]|"")+"|[^".]+)'

LONGEST_STATEMENT_BYTES = 4 << 20
"""Beyond what pg_restore writes among data: 32 kB of a large object at once, or a COPY that names 1600 columns."""


@dataclass(frozen=True, slots=True)
class SequenceValue:
    """One SEQUENCE SET entry."""

    schema: str
    name: str
    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """A table of contents: `entries` of all kinds, the tables with data (oid to dump id), what sequences will be set to."""

    entries: int
    data_tables: Mapping[int, int]
    sequences: tuple[SequenceValue, ...]


def read_contents(pg_restore: Path, environment: Mapping[str, str], archive: Iterable[bytes] | Path, name: str) -> Contents:
    """Ask pg_restore for the contents of an *archive* (a stream, or the path of a directory or file).

    A stream is read as far as pg_restore wants it; a `Head` can be read on by the caller. IntegrityError naming *name* when
    pg_restore does not accept it.
    """
    head = None if isinstance(archive, Path) else archive if isinstance(archive, Head) else Head(archive)
    where = [str(archive)] if isinstance(archive, Path) else []
    try:
        listing = run(pg_restore, ["--list", *where], environment, feed=None if head is None else head.again())
        kept = [line for line in listing.decode(errors="replace").split("\n") if line and not line.startswith(";")]
        found = [match for line in kept if (match := _ENTRY.fullmatch(line)) is not None]
        # An empty database has no entries, but its listing has the heading too.
        if b"; Selected TOC Entries:" not in listing or len(found) != len(kept):
            raise IntegrityError(f"{name}: pg_restore lists nothing that can be understood in it")
        wanted = [f"{match[1]};\n" for match in found if match[3].startswith("SEQUENCE SET")]
        sequences: tuple[SequenceValue, ...] = ()
        if wanted:
            with tempfile.NamedTemporaryFile("w", suffix=".list") as chosen:
                chosen.writelines(wanted)
                chosen.flush()
                arguments = [f"--use-list={chosen.name}", "--file=-", *where]
                script = run(pg_restore, arguments, environment, feed=None if head is None else head.again())
            sequences = parse_setvals(script.decode())
            if len(sequences) != len(wanted):
                raise IntegrityError(
                    f"{name}: {show_count(len(wanted), 'sequence is', 'sequences are')} listed, {len(sequences)} are set"
                )
    except UnicodeDecodeError as error:
        raise IntegrityError(
            f"{name} names a sequence in bytes that are not UTF-8: {error.object[error.start :][:40]!r}"
        ) from error
    except ToolError as error:
        raise IntegrityError(f"{name} is no archive that pg_restore accepts: {error}") from error
    tables = {int(match[2]): int(match[1]) for match in found if match[3].startswith("TABLE DATA ")}
    return Contents(len(found), tables, sequences)


def parse_setvals(script: str) -> tuple[SequenceValue, ...]:
    """The sequence values in a script of SEQUENCE SET entries."""
    values = []
    for match in _SETVAL.finditer(script):
        parts = split_qualified(match[1].replace("''", "'"))
        if parts is None:
            raise IntegrityError(f"a sequence is named {match[1]!r} in the archive, which cannot be understood")
        values.append(SequenceValue(parts[0], parts[1], int(match[2]), match[3] == "true"))
    return tuple(values)


def split_qualified(text: str) -> tuple[str, str] | None:
    """Schema and name of a quoted, qualified name (`public."we ""ird"`); None when it is none."""
    match = re.fullmatch(rf"{_PART}\.{_PART}", text)
    if match is None:
        return None
    schema, name = (part[1:-1].replace('""', '"') if part.startswith('"') else part for part in match.groups())
    return schema, name


class CopyCounter:
    r"""Counts the rows of each table in a script of `pg_restore --data-only`, as it streams by.

    Rows end with a line feed (one inside a value is written as `\n`), a table's data ends with a line `\.`. A row may be of
    any length and is not kept; of a statement that has not ended yet, all is.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], int] = {}
        self._rest = b""
        self._table: tuple[str, str] | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the script. IntegrityError when a statement is longer than any that pg_restore writes."""
        data = self._rest + chunk
        done, place = -1, 0
        while place > done:
            done, place = place, self._outside(data, place) if self._table is None else self._inside(data, place, self._table)
        if len(data) - place > LONGEST_STATEMENT_BYTES:
            raise IntegrityError(f"a statement in the archive does not end: {data[place : place + 40]!r}")
        self._rest = data[place:]

    def _outside(self, data: bytes, place: int) -> int:
        """Where the line (empty, a comment, a command of psql) or the statement at *place* ends; *place* when it does not yet."""
        if data[place : place + 1] in {b"\n", b"-", b"\\"}:
            return max(place, data.find(b"\n", place) + 1)
        end = place
        while (part := _IN_STATEMENT.match(data, end)) is not None:
            end = part.end()
        if not data.startswith(b";\n", end):
            return place
        end += 2
        header = _COPY.fullmatch(data, place, end)
        if header is not None and (names := split_qualified(header[1].decode())) is not None:
            self._table = names
            self.rows.setdefault(names, 0)
            return end - 1
        return end

    def _inside(self, data: bytes, place: int, table: tuple[str, str]) -> int:
        """What ends the table begins with a line feed that is a row's (or its heading's), so the byte at *place* is counted."""
        end = data.find(_END_OF_TABLE, place)
        counted = end if end >= 0 else max(place, len(data) - len(_END_OF_TABLE) + 1)
        self.rows[table] += data.count(b"\n", place + 1, counted + 1)
        if end < 0:
            return counted
        self._table = None
        return end + len(_END_OF_TABLE)


class Head:
    """Chunks that can be read once more from the beginning: what was read is kept until then, the rest comes from the source."""

    def __init__(self, source: Iterable[bytes]) -> None:
        self._source = iter(source)
        self._kept: list[bytes] = []

    def __iter__(self) -> "Head":
        return self

    def __next__(self) -> bytes:
        chunk = next(self._source)
        self._kept.append(chunk)
        return chunk

    def again(self) -> Iterator[bytes]:
        """From the beginning; what is read anew from the source is kept again."""
        yield from list(self._kept)
        yield from self

    def last_time(self) -> Iterator[bytes]:
        """From the beginning to the end; nothing is kept any more."""
        kept, self._kept = self._kept, []
        yield from kept
        yield from self._source
