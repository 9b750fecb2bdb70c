"""What an archive of pg_dump says of itself, asked of pg_restore: its table of contents and its SEQUENCE SET entries.

Both stand at the beginning of a custom-format archive, so its head is enough; a program that has read what it needs closes its
input. The listing's lines are `dump-id; catalog-oid object-oid KIND schema name owner`; names in it are not quoted, so tables
are told apart by their oid, and sequences by the SQL of their entries.
"""

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.errors import IntegrityError, ToolError
from clipper_backup.postgres.programs import run

_ENTRY = re.compile(r"\d+; \d+ (\d+) (TABLE DATA|SEQUENCE SET|MATERIALIZED VIEW DATA|.*)")
_SETVAL = re.compile(r"SELECT pg_catalog\.setval\('((?:[^']|'')*)', (-?\d+), (true|false)\);")
_NAME_PART = re.compile(r'"((?:[^"]|"")*)"|([^".]+)')


@dataclass(frozen=True, slots=True)
class SequenceValue:
    """One SEQUENCE SET entry."""

    schema: str
    name: str
    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """A table of contents: `entries` of all kinds, the oids of tables with data, and what sequences will be set to."""

    entries: int
    data_table_oids: frozenset[int]
    sequences: tuple[SequenceValue, ...]


def read_contents(pg_restore: Path, environment: Mapping[str, str], archive: Iterable[bytes] | Path, name: str) -> Contents:
    """Ask pg_restore for the contents of an *archive* (a stream, or the path of a directory or file).

    A stream is read as far as pg_restore wants it. IntegrityError naming *name* when pg_restore does not accept it.
    """
    head = _Head(archive) if not isinstance(archive, Path) else None
    where = [str(archive)] if isinstance(archive, Path) else []
    try:
        listing = run(pg_restore, ["--list", *where], environment, feed=head)
        kept = [line for line in listing.decode(errors="replace").splitlines() if line and not line.startswith(";")]
        found = [match for line in kept if (match := _ENTRY.fullmatch(line)) is not None]
        if not kept or len(found) != len(kept):
            raise IntegrityError(f"{name}: pg_restore lists nothing that can be understood in it")
        wanted = [match[0] for match in found if match[2].startswith("SEQUENCE SET")]
        sequences: tuple[SequenceValue, ...] = ()
        if wanted:
            with tempfile.NamedTemporaryFile("w", suffix=".list") as chosen:
                chosen.write("\n".join(wanted) + "\n")
                chosen.flush()
                arguments = [f"--use-list={chosen.name}", "--file=-", *where]
                script = run(pg_restore, arguments, environment, feed=None if head is None else head.again())
            sequences = parse_setvals(script.decode())
            if len(sequences) != len(wanted):
                raise IntegrityError(f"{name}: {len(wanted)} sequences are listed, {len(sequences)} are set")
    except ToolError as error:
        raise IntegrityError(f"{name} is no archive that pg_restore accepts: {error}") from error
    tables = frozenset(int(match[1]) for match in found if match[2].startswith("TABLE DATA "))
    return Contents(len(found), tables, sequences)


def parse_setvals(script: str) -> tuple[SequenceValue, ...]:
    """The sequence values in a script of SEQUENCE SET entries."""
    values = []
    for match in _SETVAL.finditer(script):
        parts = [
            quoted.replace('""', '"') if quoted or not plain else plain
            for quoted, plain in _NAME_PART.findall(match[1].replace("''", "'"))
        ]
        if len(parts) != 2:
            raise IntegrityError(f"a sequence is named {match[1]!r} in the archive, which cannot be understood")
        values.append(SequenceValue(parts[0], parts[1], int(match[2]), match[3] == "true"))
    return tuple(values)


class _Head:
    """Chunks that can be read a second time from the beginning: what was read is kept, the rest comes from the source."""

    def __init__(self, source: Iterable[bytes]) -> None:
        self._source = iter(source)
        self._kept: list[bytes] = []

    def __iter__(self) -> "_Head":
        return self

    def __next__(self) -> bytes:
        chunk = next(self._source)
        self._kept.append(chunk)
        return chunk

    def again(self) -> Iterable[bytes]:
        yield from list(self._kept)
        yield from self._source
