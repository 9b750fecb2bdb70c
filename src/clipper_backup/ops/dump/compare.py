"""Is a restored database what was recorded when it was dumped? Every difference, by name, with both numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import clipper_backup.postgres.fingerprint as fp
from clipper_backup.errors import ClipperError
from clipper_backup.format.documents import DatabaseRecord, TableRecord
from clipper_backup.ops.work import Step, Work, step
from clipper_backup.postgres import server_facts
from clipper_backup.postgres.connection import Connection
from clipper_backup.values import show_count


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as recorded."""

    what: str
    recorded: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: {self.recorded} recorded, {self.found} found"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, and what differed. `rows` is None when no counts were recorded (DUMP_FINGERPRINT=off)."""

    tables: int
    rows: int | None
    hashed: bool
    sequences: int
    queries: int
    differences: tuple[Difference, ...]


def compare(work: Work, connection: Connection, record: DatabaseRecord) -> Comparison:
    """Compare the database behind *connection* with its record, at one instant."""
    with step(work, "compare", f"compare with what was recorded of {record.name}") as running, server_facts.reading(connection):
        fp.fix_text_form(connection)
        missing = fp.missing_relations(connection, [(t.schema, t.name) for t in record.tables])
        differences = [Difference(f"table {schema}.{name}", "it", "no such table") for schema, name in sorted(missing)]
        present = [table for table in record.tables if (table.schema, table.name) not in missing]
        rows = _compare_tables(connection, present, differences, running)
        _compare_sequences(connection, record, differences)
        _compare_large_objects(connection, record, differences)
        _compare_queries(connection, record, differences)
        _compare_extensions(connection, record, differences)
        hashed = any(table.hash is not None for table in record.tables)
        what = "hashes" if hashed else "counts"
        verdict = show_count(len(differences), "difference") if differences else "equal"
        running.done = (
            f"{record.name}: {show_count(len(present), 'table')}"
            f" ({'nothing counted' if rows is None else what + ' of ' + show_count(rows, 'row')}),"
            f" {show_count(len(record.sequences), 'sequence')}, {show_count(len(record.queries), 'query', 'queries')}: {verdict}"
        )
    return Comparison(len(present), rows, hashed, len(record.sequences), len(record.queries), tuple(differences))


def _compare_tables(
    connection: Connection, tables: list[TableRecord], differences: list[Difference], running: Step
) -> int | None:
    if any(table.rows is None for table in tables):
        return None
    found: list[fp.Figures] = []
    for done, table in enumerate(tables, 1):
        found.append(fp.measure_table(connection, table.schema, table.name, table.condition, hashed=table.hash is not None))
        running.progress(done, len(tables), "tables")
    trees: dict[tuple[str, str], list[tuple[TableRecord, fp.Figures]]] = {}
    for table, figures in zip(tables, found, strict=True):
        if table.moves_below is not None:
            trees.setdefault(table.moves_below, []).append((table, figures))
        else:
            recorded = fp.Figures(table.rows or 0, table.hash)
            differences.extend(_differ(f"table {table.schema}.{table.name}", recorded, figures))
    # Rows of these may come back in other partitions, and only in those. Hashes are sums over rows, so a tree's is that of its
    # leaves.
    for (schema, name), leaves in trees.items():
        recorded = _sum([fp.Figures(table.rows or 0, table.hash) for table, _ in leaves])
        differences.extend(
            _differ(f"table {schema}.{name}, partitions by hash", recorded, _sum([figures for _, figures in leaves]))
        )
    return sum(figures.rows for figures in found)


def _differ(title: str, recorded: fp.Figures, found: fp.Figures) -> list[Difference]:
    if found.rows != recorded.rows:
        return [Difference(title, show_count(recorded.rows, "row"), show_count(found.rows, "row"))]
    if found.hash != recorded.hash:
        return [Difference(title, f"hash {recorded.hash}", f"hash {found.hash} over the same {show_count(found.rows, 'row')}")]
    return []


def _sum(figures: Sequence[fp.Figures]) -> fp.Figures:
    hashes = [int(each.hash) for each in figures if each.hash is not None]
    return fp.Figures(sum(each.rows for each in figures), str(sum(hashes)) if hashes else None)


def _compare_sequences(connection: Connection, record: DatabaseRecord, differences: list[Difference]) -> None:
    missing = fp.missing_relations(connection, [(s.schema, s.name) for s in record.sequences])
    for sequence in record.sequences:
        title = f"sequence {sequence.schema}.{sequence.name}"
        if (sequence.schema, sequence.name) in missing:
            differences.append(Difference(title, str(sequence.last_value), "no such sequence"))
            continue
        value, called = fp.read_sequence(connection, sequence.schema, sequence.name)
        if (value, called) != (sequence.last_value, sequence.is_called):
            recorded = f"{sequence.last_value} (called: {sequence.is_called})"
            differences.append(Difference(title, recorded, f"{value} (called: {called})"))


def _compare_large_objects(connection: Connection, record: DatabaseRecord, differences: list[Difference]) -> None:
    if record.large_objects is None:
        return
    found = fp.measure_large_objects(connection, hashed=record.large_objects_hash is not None)
    if found.rows != record.large_objects:
        differences.append(Difference("large objects", str(record.large_objects), str(found.rows)))
    elif found.hash != record.large_objects_hash:
        shown = f"hash {found.hash} over the same {found.rows}"
        differences.append(Difference("large objects", f"hash {record.large_objects_hash}", shown))


def _compare_queries(connection: Connection, record: DatabaseRecord, differences: list[Difference]) -> None:
    for query in record.queries:
        recorded = ", ".join(map(str, query.answer))
        try:
            found = fp.answer(connection, query.name, query.sql, query.search_path)
        except ClipperError as error:
            differences.append(Difference(f"validation query {query.name!r}", recorded, str(error)))
            continue
        if found != query.answer:
            shown = "no answer" if found is None else ", ".join(map(str, found))
            differences.append(Difference(f"validation query {query.name!r}", recorded, shown))


def _compare_extensions(connection: Connection, record: DatabaseRecord, differences: list[Difference]) -> None:
    # Another version is what CREATE EXTENSION gives on another server; a missing extension is a lost one.
    found = {name for name, _, _ in server_facts.installed_extensions(connection)}
    differences.extend(
        Difference(f"extension {extension.name}", extension.version, "not installed")
        for extension in record.extensions
        if extension.name not in found
    )
