"""Counting and asking on the dump's own snapshot, beside pg_dump."""

from dataclasses import dataclass, field

import clipper_backup.postgres.fingerprint as fp
from clipper_backup.errors import ClipperError
from clipper_backup.format.documents import QueryRecord, TableRecord
from clipper_backup.kinds import ValidationQuery
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.snapshot import DataTable, Snapshot
from clipper_backup.values import show_count


@dataclass(slots=True)
class Measured:
    """What is found; `warnings` of queries that could not be answered."""

    tables: list[TableRecord] = field(default_factory=list)
    queries: list[QueryRecord] = field(default_factory=list)
    large_objects: int | None = None
    large_objects_hash: str | None = None
    warnings: list[str] = field(default_factory=list)


def measure(work: Work, snapshot: Snapshot, name: str, measured: Measured) -> None:
    """Fill *measured* by DUMP_FINGERPRINT and VALIDATION_QUERIES; it is complete only when this returns."""
    mode = work.settings.dump_fingerprint
    if mode == "off":
        measured.tables.extend(_record(table, None) for table in snapshot.tables)
    else:
        verb = "hash" if mode == "hash" else "count"
        with step(work, f"{verb} {name}", f"{name}: {verb} the rows of {show_count(len(snapshot.tables), 'table')}") as running:
            for done, table in enumerate(snapshot.tables, 1):
                figures = fp.measure_table(snapshot.connection, table.schema, table.name, table.condition, hashed=mode == "hash")
                measured.tables.append(_record(table, figures))
                running.progress(done, len(snapshot.tables), "tables")
            large = fp.measure_large_objects(snapshot.connection, hashed=mode == "hash")
            measured.large_objects, measured.large_objects_hash = large.rows, large.hash
            if mode == "hash" and large.hash is None:
                measured.warnings.append(f"database {name}: large objects were counted, not hashed: one is too large")
            running.done = (
                f"{name}: {show_count(sum(t.rows or 0 for t in measured.tables), 'row')}"
                f" in {show_count(len(measured.tables), 'table')}"
            )
    search_path = fp.own_search_path(snapshot.connection)
    for query in work.settings.validation_queries:
        _ask(snapshot, name, query, search_path, measured)


def _record(table: DataTable, figures: fp.Figures | None) -> TableRecord:
    return TableRecord(
        oid=table.oid,
        schema=table.schema,
        name=table.name,
        rows=None if figures is None else figures.rows,
        hash=None if figures is None else figures.hash,
        condition=table.condition,
        moves_below=table.moves_below,
        loaded_through=table.loaded_through,
    )


def _ask(snapshot: Snapshot, name: str, query: ValidationQuery, search_path: str, measured: Measured) -> None:
    if query.database not in {None, name}:
        return
    if query.table is not None and not fp.is_table(snapshot.connection, *query.table):
        return
    try:
        answer = fp.answer(snapshot.connection, query.name, query.sql, search_path)
    except ClipperError as error:
        # The operator's own query must not keep his data from being saved.
        measured.warnings.append(f"database {name}: {error}")
        return
    if answer is not None:
        measured.queries.append(QueryRecord(name=query.name, sql=query.sql, search_path=search_path, answer=answer))
    elif query.database == name:
        measured.warnings.append(f"database {name}: validation query {query.name!r} asks about what does not exist")
