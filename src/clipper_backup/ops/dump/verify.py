"""`dump verify`: every byte is there, it is an archive, and it holds the rows that were counted when it was made."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.config import Settings
from clipper_backup.errors import AccessError, IncompleteError, IntegrityError, ToolError, ToolMissingError
from clipper_backup.format.documents import DatabaseRecord, DumpDetails, DumpSummary, StoredObject
from clipper_backup.ops.dump.read import details_of, plain_stream, summary_of, tar_members
from clipper_backup.ops.keys import IDENTITY_HINTS
from clipper_backup.ops.work import Step, Work, login_of, step, together
from clipper_backup.postgres import globals_script
from clipper_backup.postgres.archive import Contents, CopyCounter, Head, read_contents
from clipper_backup.postgres.binaries import Binaries, find_binaries
from clipper_backup.postgres.programs import Program
from clipper_backup.repository.dumps import LOST_HINTS, read_checked
from clipper_backup.values import DumpId, show_bytes, show_count


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification looked at. `rows` were counted in the archives; None when none were recorded to compare with."""

    summary: DumpSummary
    objects: int
    stored_bytes: int
    tables: int
    rows: int | None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with an object of a dump. `text` may name tables and rows, which is not for what lies open in a store."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class DumpSeen:
    """What reading all that a dump commits found.

    `closed`: its bytes were compared and not what they hold, since no key at hand opens it or no pg_restore reads it.
    """

    problems: Sequence[Problem]
    tables: int = 0
    rows: int = 0
    closed: AccessError | ToolMissingError | None = None


def verify_dump(work: Work, dump_id: DumpId) -> Verified:
    """Read everything the dump commits and compare. IntegrityError lists all that is wrong, not only the first thing."""
    summary = summary_of(work, dump_id)
    if not (summary.sealed and work.settings.encryption_identity_file is None):
        _pg_restore(work.settings, summary)
    seen = look_at_dump(work, summary)
    if seen.problems:
        told = "; ".join(problem.text for problem in seen.problems)
        raise IntegrityError(f"{dump_id} is damaged: {told}", hints=LOST_HINTS)
    if seen.closed is not None:
        if summary.sealed and work.settings.encryption_identity_file is not None:
            raise seen.closed
        raise IncompleteError(
            f"every stored byte of {summary.id} is as committed, but it is sealed and was not opened",
            hints=["set ENCRYPTION_IDENTITY_FILE to have its rows counted too"],
        )
    known = summary.fingerprint != "off"
    return Verified(summary, len(summary.objects), summary.stored_bytes, seen.tables, seen.rows if known else None)


def look_at_dump(work: Work, summary: DumpSummary) -> DumpSeen:
    """Read everything that a dump commits, with what opens it where that is at hand."""
    if summary.sealed and work.settings.encryption_identity_file is None:
        why = AccessError(f"{summary.id} is sealed, and there is no identity to open it", hints=IDENTITY_HINTS)
        return DumpSeen(_compare_bytes(work, summary), closed=why)
    try:
        binaries = _pg_restore(work.settings, summary)
        return _look_inside(work, summary, binaries)
    except (ToolMissingError, AccessError) as error:
        if isinstance(error, AccessError) and not summary.sealed:
            raise
        return DumpSeen(_compare_bytes(work, summary), closed=error)


def _look_inside(work: Work, summary: DumpSummary, binaries: Binaries) -> DumpSeen:
    problems: list[Problem] = []
    details: DumpDetails | None = None
    try:
        details = details_of(work, summary)
    except IntegrityError as error:
        part = summary.part("details")
        problems.append(Problem("" if part is None else part.key, str(error)))
    rows = tables = 0
    for stored in summary.objects:
        if stored.role == "details":
            continue
        try:
            if stored.role == "globals":
                _verify_globals(work, summary, stored)
            else:
                record = details.database(stored.database or "") if details is not None else None
                if details is not None and record is None:
                    problems.append(Problem(stored.key, f"the details do not know database {stored.database}"))
                tables_here, rows_here = _verify_archive(work, summary, stored, record, binaries)
                tables, rows = tables + tables_here, rows + rows_here
        except IntegrityError as error:
            problems.append(Problem(stored.key, str(error)))
    return DumpSeen(problems, tables, rows)


def _compare_bytes(work: Work, summary: DumpSummary) -> list[Problem]:
    """Without an identity only the stored bytes can be compared: what they hold stays unknown."""
    problems = []
    for stored in summary.objects:
        with step(work, f"verify {stored.key}", f"{stored.key}: read it, compare its SHA-256") as running:
            try:
                for _ in running.metered(read_checked(work.store, summary, stored.key), stored.size_bytes):
                    pass
            except IntegrityError as error:
                problems.append(Problem(stored.key, str(error)))
            running.done = f"{stored.key}: {show_bytes(stored.size_bytes)} read"
    return problems


def _pg_restore(settings: Settings, summary: DumpSummary) -> Binaries:
    environment = login_of(settings).environment()
    return find_binaries(
        tools=("pg_restore",), at_least=summary.versions.needed_major, bindir=settings.pg_bindir, environment=environment
    )


def _verify_globals(work: Work, summary: DumpSummary, stored: StoredObject) -> None:
    with step(work, "verify globals", "globals: read and parse") as running:
        script = b"".join(plain_stream(work, summary, stored, running))
        found = globals_script.parse(script.decode())
        running.done = f"globals: {show_count(len(found.roles), 'role')}"


def _verify_archive(
    work: Work, summary: DumpSummary, stored: StoredObject, record: DatabaseRecord | None, binaries: Binaries
) -> tuple[int, int]:
    name = stored.database or ""
    with step(work, f"verify {name}", f"{name}: read the archive, count its rows") as running:
        read = _read_directory if stored.archive == "directory" else _read_custom
        contents, rows = read(work, summary, stored, record, binaries, running)
        if record is not None:
            _compare(name, record, contents, rows)
        total = sum(rows.values())
        running.done = (
            f"{name}: {show_count(len(rows), 'table')}, {show_count(total, 'row')}, {show_bytes(stored.size_bytes)} as committed"
        )
    return len(rows), total


def _read_custom(
    work: Work, summary: DumpSummary, stored: StoredObject, record: DatabaseRecord | None, binaries: Binaries, running: Step
) -> tuple[Contents, Mapping[tuple[str, str], int]]:
    """One pass over the object: its head to pg_restore for the contents, all of it to pg_restore for the rows."""
    del record  # a custom archive names its tables itself
    environment = login_of(work.settings).environment()
    pg_restore = binaries.program("pg_restore")
    counter = CopyCounter()
    stream = plain_stream(work, summary, stored, running)
    head = Head(stream)
    contents = read_contents(pg_restore, environment, head, stored.key)
    with Program(pg_restore, ["--data-only", "--file=-"], environment, feed=True) as program:

        def feed() -> None:
            rest = head.last_time()
            program.feed(rest)
            for _ in rest:  # the hash is compared after the last byte, read or not by pg_restore
                pass

        def count() -> None:
            try:
                for chunk in program.chunks():
                    counter.feed(chunk)
            except ToolError as error:
                raise IntegrityError(f"{stored.key} is no archive that pg_restore can read to its end: {error}") from error

        together([feed, count], cancel=program.kill)
    return contents, counter.rows


def _read_directory(
    work: Work, summary: DumpSummary, stored: StoredObject, record: DatabaseRecord | None, binaries: Binaries, running: Step
) -> tuple[Contents, Mapping[tuple[str, str], int]]:
    """Each table is a file of COPY data named after its dump id; only the table of contents is written to scratch."""
    lines: dict[int, int] = {}
    environment = login_of(work.settings).environment()
    with tempfile.TemporaryDirectory(dir=work.settings.scratch_dir) as folder:
        for member, content in tar_members(plain_stream(work, summary, stored, running)):
            if member == "toc.dat":
                (Path(folder) / member).write_bytes(b"".join(content))
            elif member.removesuffix(".dat").isdigit():
                # The data is followed by a line `\.` and two empty ones.
                lines[int(member.removesuffix(".dat"))] = sum(chunk.count(b"\n") for chunk in content) - 3
            else:
                for _ in content:
                    pass
        contents = read_contents(binaries.program("pg_restore"), environment, Path(folder), stored.key)
    titles = {table.oid: (table.schema, table.name) for table in record.tables} if record is not None else {}
    rows = {titles.get(oid, ("", str(oid))): lines.get(number, 0) for oid, number in contents.data_tables.items()}
    return contents, rows


def _compare(name: str, record: DatabaseRecord, contents: Contents, rows: Mapping[tuple[str, str], int]) -> None:
    wrong = [
        f"{t.schema}.{t.name} has {rows.get((t.schema, t.name), 'no')} rows in the archive, {t.rows} were counted"
        for t in record.tables
        if t.rows is not None and t.loaded_through is None and rows.get((t.schema, t.name)) != t.rows
    ]
    for root in sorted({t.loaded_through for t in record.tables if t.rows is not None and t.loaded_through is not None}):
        leaves = [t for t in record.tables if t.loaded_through == root]
        counted = sum(t.rows or 0 for t in leaves)
        held = sum(rows.get(key, 0) for key in (root, *((t.schema, t.name) for t in leaves)))  # the archive may name either
        if held != counted:
            wrong.append(
                f"{'.'.join(root)}, partitions by hash, has {show_count(held, 'row')} in the archive, {counted} were counted"
            )
    wrong += [f"table {t.schema}.{t.name} is missing" for t in record.tables if t.oid not in contents.data_tables]
    recorded = {(s.schema, s.name): (s.last_value, s.is_called) for s in record.sequences}
    found = {(s.schema, s.name): (s.last_value, s.is_called) for s in contents.sequences}
    wrong += [
        f"sequence {'.'.join(key)} is {found.get(key)} in the archive, {recorded.get(key)} was recorded"
        for key in sorted(recorded.keys() | found.keys())
        if recorded.get(key) != found.get(key)
    ]
    if wrong:
        raise IntegrityError(f"database {name}: {'; '.join(wrong[:20])}")
