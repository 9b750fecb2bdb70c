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
        # A value that is a name (of type regclass and its like) is written in full where no schema is searched.
        connection.execute("SET search_path = ''")
        ((count, total),) = rows(connection, statement + source)
        connection.execute("RESET search_path")
        return Figures(count, str(total))


def _common_encoding(connection: Connection) -> str:
    """UTF-8, in which databases of different encodings agree; the text of SQL_ASCII ones is bytes that mean nothing."""
    return "SQL_ASCII" if connection.info.parameter_status("server_encoding") == "SQL_ASCII" else "UTF8"


def measure_large_objects(connection: Connection) -> int:
    """How many large objects there are."""
    with translated("counting the large objects"):
        ((count,),) = rows(connection, "SELECT count(*) FROM pg_largeobject_metadata")
        return int(count)


def read_sequence(connection: Connection, schema: str, name: str) -> tuple[int, bool]:
    """`last_value` and `is_called` of a sequence."""
    with translated(f"reading the sequence {schema}.{name}"):
        ((value, called),) = rows(
            connection, sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(schema, name))
        )
        return int(value), bool(called)


def answer(connection: Connection, name: str, statement: str) -> list[str | None] | None:
    """The first row of a validation query as text; None where what it asks about does not exist in this database.

    Other failures raise. Inside a transaction it works on a savepoint, so that a failing query does not end it.
    """
    try:
        with connection.transaction():
            found = connection.execute(statement.encode()).fetchone()
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
