"""One exported snapshot with every table that will be dumped locked before it was taken (docs/design/dumps.md, rule 103)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from clipper_backup.errors import ServerError
from clipper_backup.postgres.connection import Connection, Login, connect, roll_back, rows, translated

ATTEMPTS = 5
"""How often the lock-then-snapshot step is begun again because tables came or went meanwhile."""

_LOCK_BATCH = 250

# What pg_dump writes TABLE DATA for: ordinary and unlogged tables, partition leaves too (a standby has no unlogged rows); of
# an extension's members only its configuration tables, with their condition. Partition parents, views, materialized views and
# foreign tables have none. Source: pg_dump.c, makeTableDataInfo and processExtensionTables; checked against the archive's own
# table of contents later. Which rows move between partitions: getPartitioningInfo and forcePartitionRootLoad there.
_DATA_TABLES = """
SELECT c.oid::bigint, n.nspname, c.relname, config.condition, moving.schema, moving.name, moving.root_schema, moving.root_name
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT e.extcondition[place.position] AS condition
    FROM pg_extension e, unnest(e.extconfig) WITH ORDINALITY AS place(table_oid, position)
    WHERE place.table_oid = c.oid LIMIT 1
) AS config ON true
LEFT JOIN LATERAL (
    SELECT an.nspname AS schema, a.relname AS name, rn.nspname AS root_schema, r.relname AS root_name
    FROM pg_partition_ancestors(c.oid) WITH ORDINALITY AS ancestor(id, height)
    JOIN pg_partitioned_table p ON p.partrelid = ancestor.id AND (
        SELECT o.oid FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
        WHERE o.opcname = 'enum_ops' AND o.opcnamespace = 'pg_catalog'::regnamespace AND m.amname = 'hash') = ANY (p.partclass)
    JOIN pg_class a ON a.oid = ancestor.id JOIN pg_namespace an ON an.oid = a.relnamespace
    JOIN pg_class r ON r.oid = pg_partition_root(c.oid) JOIN pg_namespace rn ON rn.oid = r.relnamespace
    ORDER BY height DESC LIMIT 1
) AS moving ON c.relispartition
WHERE c.relkind = 'r' AND (c.relpersistence = 'p' OR (c.relpersistence = 'u' AND NOT pg_is_in_recovery()))
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND (config.condition IS NOT NULL OR NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
ORDER BY n.nspname, c.relname
"""


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table whose rows the dump will hold. `condition` is the WHERE clause of an extension's configuration table.

    `moves_below` and `loaded_through`: see `TableRecord`.
    """

    oid: int
    schema: str
    name: str
    condition: str | None = None
    moves_below: tuple[str, str] | None = None
    loaded_through: tuple[str, str] | None = None

    @property
    def title(self) -> str:
        """Schema and name for messages."""
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """Schema and name for SQL."""
        return sql.Identifier(self.schema, self.name)


class _Moved(Exception):  # noqa: N818  not an error: the tables moved, the step begins again
    pass


class Snapshot:
    """An open session that holds locks and snapshot; close it when pg_dump and the counting have ended."""

    def __init__(self, connection: Connection, tables: Sequence[DataTable], exported: str) -> None:
        self.connection = connection
        self.tables = tuple(tables)
        self.exported = exported

    @classmethod
    def take(cls, login: Login, database: str, *, lock_timeout_seconds: int) -> "Snapshot":
        """Lock, then take and export the snapshot; ServerError names the table and who holds it when a lock is not to be had."""
        connection = connect(login, database)
        try:
            with translated(f"preparing the snapshot of database {database}"):
                # A role without BYPASSRLS must get an error, never a part of the rows (rule 83).
                connection.execute("SET row_security = off")
                for _ in range(ATTEMPTS):
                    with suppress(_Moved):
                        tables, exported = _lock_then_export(connection, database, lock_timeout_seconds)
                        return cls(connection, tables, exported)
        except BaseException:
            connection.close()
            raise
        connection.close()
        raise ServerError(
            f"the tables of database {database} changed {ATTEMPTS} times while they were being locked",
            hints=["something creates and drops tables all the time: pause it during the dump, or try again"],
        )

    def close(self) -> None:
        """Release snapshot and locks."""
        self.connection.close()

    def check_alive(self, database: str) -> None:
        """ServerError when the session was ended under us: then counts and dump may not belong together."""
        with translated(f"holding the snapshot of database {database}"):
            self.connection.execute("SELECT")


def _lock_then_export(connection: Connection, database: str, lock_timeout_seconds: int) -> tuple[list[DataTable], str]:
    listed = [_table(row) for row in rows(connection, _DATA_TABLES)]
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        # LOCK takes no snapshot: this transaction's is taken by the first query after the last lock.
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{lock_timeout_seconds}s")))
        for start in range(0, len(listed), _LOCK_BATCH):
            _lock(connection, database, listed[start : start + _LOCK_BATCH])
        connection.execute("SET LOCAL lock_timeout = 0")
        ((exported,),) = rows(connection, "SELECT pg_export_snapshot()")
        seen = [_table(row) for row in rows(connection, _DATA_TABLES)]
        held = {
            oid
            for (oid,) in rows(
                connection,
                "SELECT relation::bigint FROM pg_locks WHERE locktype = 'relation' AND pid = pg_backend_pid() AND granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
        }
        _check_locked(seen, held)
    except BaseException:
        roll_back(connection)
        raise
    return seen, exported


def _check_locked(tables: Sequence[DataTable], held: set[int]) -> None:
    if any(table.oid not in held for table in tables):
        raise _Moved


def _lock(connection: Connection, database: str, tables: Sequence[DataTable]) -> None:
    names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(table.identifier) for table in tables)
    try:
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.DeadlockDetected) as error:
        raise _Moved from error
    except psycopg.errors.LockNotAvailable as error:
        raise ServerError(
            f"a table of database {database} stayed locked for longer than DUMP_LOCK_TIMEOUT_SECONDS:"
            f" {_who_locks(connection, tables)}",
            hints=["wait for that session to end, or end it: SELECT pg_terminate_backend(pid)"],
        ) from error


def _who_locks(connection: Connection, tables: Sequence[DataTable]) -> str:
    connection.execute("ROLLBACK")
    # The holder first; without one it was somebody who waits himself, and behind whom we queued.
    found = rows(
        connection,
        "SELECT l.relation::bigint, l.pid, a.query FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND l.relation = ANY(%s) AND l.mode = 'AccessExclusiveLock' ORDER BY l.granted DESC LIMIT 1",
        [[table.oid for table in tables]],
    )
    if not found:
        return f"one of {tables[0].title} … {tables[-1].title}"
    ((oid, pid, query),) = found
    title = next(table.title for table in tables if table.oid == oid)
    return f"{title}, by the session with pid {pid} ({' '.join(str(query).split())[:100]})"


def _table(row: tuple[object, ...]) -> DataTable:
    oid, schema, name, condition, *moving = row
    assert isinstance(oid, int)  # noqa: S101  the query casts it
    above, above_name, root, root_name = map(str, moving)
    known = moving[0] is not None
    return DataTable(
        oid,
        str(schema),
        str(name),
        str(condition) if condition else None,
        (above, above_name) if known else None,
        (root, root_name) if known else None,
    )
