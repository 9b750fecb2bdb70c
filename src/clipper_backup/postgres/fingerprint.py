"""What a database holds, in numbers that can be compared before and after: counts, hashes, sequences, query answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from clipper_backup.postgres.connection import Connection, query_error, rows, translated

# The text of a value depends on these; both sides of a comparison must write it alike.
_TEXT_FORM = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "client_encoding": "UTF8",
}

_ABSENT = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedObject,
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one table. `hash` is None unless it was asked for."""

    rows: int
    hash: str | None = None


def fix_text_form(connection: Connection) -> None:
    """Make this session write every value in one fixed form, and refuse rows hidden by row-level security."""
    for name, value in _TEXT_FORM.items():
        connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    connection.execute("SET row_security = off")


def measure_table(connection: Connection, schema: str, name: str, condition: str | None, *, hashed: bool) -> Figures:
    """Exact row count of one table (not of tables inheriting from it), and the order-independent hash of its rows.

    `fix_text_form` must have been called for hashes. Raises the translated error of the query.
    """
    # *condition* is the WHERE clause that an extension declared for its configuration table; it may name the table.
    where = sql.SQL(condition or "")
    source = sql.SQL("FROM ONLY {} ").format(sql.Identifier(schema, name)) + where
    with translated(f"counting the rows of {schema}.{name}"):
        if not hashed:
            ((count,),) = rows(connection, sql.SQL("SELECT count(*) ") + source)
            return Figures(count)
        columns = [
            column
            for (column,) in rows(
                connection,
                "SELECT attname FROM pg_attribute WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass"
                ' AND attnum > 0 AND NOT attisdropped ORDER BY attname COLLATE "C"',
                [schema, name],
            )
        ]
        row = sql.SQL("ROW({})").format(sql.SQL(", ").join(map(sql.Identifier, columns)))
        # Sum of the first eight bytes of each row's SHA-256: the order of rows does not matter, every value does.
        statement = sql.SQL(
            "SELECT count(*), coalesce(sum(("
            "'x' || encode(substr(sha256(convert_to({}::text, {})), 1, 8), 'hex'))::bit(64)::bigint), 0)::text "
        ).format(row, sql.Literal(_common_encoding(connection)))
        # A value that is a name (of type regclass and its like) is written in full, since no schema is searched (`connect`).
        ((count, total),) = rows(connection, statement + source)
        return Figures(count, str(total))


def _common_encoding(connection: Connection) -> str:
    """UTF-8, in which databases of different encodings agree; the text of SQL_ASCII ones is bytes that mean nothing."""
    return "SQL_ASCII" if connection.info.parameter_status("server_encoding") == "SQL_ASCII" else "UTF8"


def measure_large_objects(connection: Connection, *, hashed: bool) -> Figures:
    """How many large objects there are, and the hash of their ids and contents.

    By content, not by pages: a restore fills the holes of a sparse one. `hash` is None where one is too large to be read at
    once (1 GB) although it was asked for.
    """
    with translated("counting the large objects"):
        ((count,),) = rows(connection, "SELECT count(*) FROM pg_largeobject_metadata")
        if not hashed:
            return Figures(count)
        try:
            with connection.transaction():
                ((total,),) = rows(
                    connection,
                    "SELECT coalesce(sum(('x' || encode(substr(sha256(int8send(oid::bigint) || lo_get(oid)), 1, 8), 'hex'))"
                    "::bit(64)::bigint), 0)::text FROM pg_largeobject_metadata",
                )
        except (psycopg.errors.InvalidParameterValue, psycopg.errors.ProgramLimitExceeded):
            return Figures(count)
        return Figures(count, str(total))


def read_sequence(connection: Connection, schema: str, name: str) -> tuple[int, bool]:
    """`last_value` and `is_called` of a sequence."""
    with translated(f"reading the sequence {schema}.{name}"):
        ((value, called),) = rows(
            connection, sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(schema, name))
        )
        return int(value), bool(called)


def own_search_path(connection: Connection) -> str:
    """The search_path that sessions of this role in this database have by themselves; ours search nothing (`connect`)."""
    with translated("asking for the search path"):
        ((path,),) = rows(connection, "SELECT reset_val FROM pg_settings WHERE name = 'search_path'")
        return str(path)


def is_table(connection: Connection, schema: str, name: str) -> bool:
    """Whether that is an ordinary or partitioned table: reading one runs nobody's code, reading a view may."""
    with translated(f"looking for {schema}.{name}"):
        return bool(
            rows(
                connection,
                "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')",
                [schema, name],
            )
        )


def answer(connection: Connection, name: str, statement: str, search_path: str) -> list[str | None] | None:
    """The first row of a validation query as text; None where what it asks about does not exist in this database.

    Other failures raise. Asked in a transaction, or on a savepoint of the one that is open, which is rolled back.
    """
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SELECT set_config('search_path', %s, true)", [search_path])
            # A cursor of the server: a query that answers with a million rows costs us one.
            with connection.cursor(name="clipper_backup_validation") as cursor:
                cursor.execute(statement.encode())
                found = cursor.fetchone()
    except _ABSENT:
        return None
    except psycopg.Error as error:
        raise query_error(f"validation query {name!r}", error) from error
    return [None if value is None else str(value) for value in found or ()]


def missing_relations(connection: Connection, wanted: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the *wanted* (schema, name) pairs that do not exist as relations."""
    with translated("looking for tables"):
        present = set(
            rows(
                connection,
                "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace",
            )
        )
    return {pair for pair in wanted if pair not in present}
