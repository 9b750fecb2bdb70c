"""ANALYZE, table by table: what may run side by side, and whose failure is no reason to have no database."""

import psycopg
from psycopg import sql

from clipper_backup.postgres.connection import Connection, query_error, rows, translated

# ANALYZE of a partitioned table does its partitions too (expand_vacuum_rel in vacuum.c); of a table that others inherit from,
# only since PostgreSQL 18, so those stand for themselves. A plain ANALYZE visits the same, catalogs too.
_TREES = """
WITH RECURSIVE member (root, oid) AS (
    SELECT oid, oid FROM pg_class WHERE relkind IN ('r', 'm', 'p') AND relpersistence <> 't' AND NOT relispartition
    UNION
    SELECT root, inhrelid FROM member JOIN pg_inherits ON inhparent = member.oid JOIN pg_class AS c ON c.oid = inhrelid
    WHERE c.relispartition
)
SELECT nspname::text, relname::text
FROM (
    SELECT root, sum(pg_relation_size(c.oid)) AS size FROM member JOIN pg_class AS c USING (oid) GROUP BY root
) AS tree
JOIN pg_class ON pg_class.oid = root
JOIN pg_namespace ON pg_namespace.oid = relnamespace
ORDER BY size DESC NULLS LAST, 1, 2
"""


def tables(connection: Connection) -> list[tuple[str, str]]:
    """Schema and name of every table in the database that is no partition, the largest first, with what its partitions hold."""
    with translated("listing the tables to analyze"):
        return [(schema, name) for schema, name in rows(connection, _TREES)]


def analyze(connection: Connection, schema: str, name: str) -> str | None:
    """Gather the statistics of a table, and of its partitions; None, or why there are none.

    An index's own function, or a foreign server, may fail. ServerError when the session is lost.
    """
    try:
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, name)))
    except psycopg.Error as error:
        failed = query_error(f"ANALYZE of {schema}.{name}", error)
        if connection.broken:
            raise failed from error
        return failed.message
    return None
