"""What of a database a role could not dump, and what no dump of it holds: asked of the catalog, before anybody dumps."""

from typing import LiteralString

from clipper_backup.postgres.connection import Connection, rows, translated

# Whatever pg_dump locks or reads: tables with their partition parents, and sequences; of an extension's members only its
# configuration tables (pg_dump.c, selectDumpableTable and getTables).
_DUMPED: LiteralString = """
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND (NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
       OR EXISTS (SELECT FROM pg_extension e WHERE c.oid = ANY (e.extconfig)))
"""


def unreadable_tables(connection: Connection) -> list[str]:
    """The tables and sequences of the current database that this role may not read, as `schema.name`."""
    return _names(
        connection,
        "SELECT n.nspname || '.' || c.relname " + _DUMPED + " AND NOT (has_schema_privilege(n.oid, 'USAGE')"
        " AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') ELSE has_table_privilege(c.oid, 'SELECT') END)"
        " ORDER BY 1",
    )


def filtered_tables(connection: Connection) -> list[str]:
    """The tables of which row-level security hides rows from this role: pg_dump then fails (rule 83)."""
    return _names(
        connection,
        "SELECT n.nspname || '.' || c.relname " + _DUMPED + " AND c.relkind <> 'S' AND row_security_active(c.oid) ORDER BY 1",
    )


def unreadable_large_objects(connection: Connection) -> int:
    """How many large objects of the current database this role may not read."""
    with translated("asking for the large objects"):
        ((count,),) = rows(
            connection,
            "SELECT count(*) FROM pg_largeobject_metadata WHERE current_setting('lo_compat_privileges') = 'off'"
            " AND NOT pg_has_role(lomowner, 'USAGE') AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
            " AND NOT EXISTS (SELECT FROM aclexplode(lomacl) a"
            " WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))",
        )
    return int(count)


def tables_left_out(connection: Connection) -> list[str]:
    """The tables whose rows no dump from this server holds: foreign ones, and on a standby unlogged ones."""
    return _names(
        connection,
        "SELECT n.nspname || '.' || c.relname || CASE c.relkind WHEN 'f' THEN ' (foreign)' ELSE ' (unlogged)' END"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'f' OR (c.relkind = 'r' AND c.relpersistence = 'u' AND pg_is_in_recovery()) ORDER BY 1",
    )


def closed_databases(connection: Connection) -> list[str]:
    """The databases that accept no connections, templates left out: nothing can dump them."""
    return _names(
        connection, "SELECT datname::text FROM pg_database WHERE NOT datallowconn AND NOT datistemplate ORDER BY datname"
    )


def cancels_long_queries(connection: Connection) -> bool:
    """Whether this standby may cancel a dump to replay what conflicts with it, such as a VACUUM of the primary (rule 82)."""
    with translated("asking for the standby's settings"):
        ((delay, feedback),) = rows(
            connection, "SELECT current_setting('max_standby_streaming_delay'), current_setting('hot_standby_feedback')"
        )
    return bool(delay != "-1" and feedback != "on")


_PROBE = "clipper_backup.probe"


def shares_sessions(first: Connection, second: Connection) -> bool:
    """Whether what one session sets is seen by another: a pooler hands out server sessions by the transaction.

    Then a snapshot, a lock or a time-out that is switched off is anybody's (rule 26).
    """
    with translated("asking whether sessions are kept apart"):
        for attempt in range(3):
            rows(first, "SELECT pg_catalog.set_config(%s, %s, false)", [_PROBE, str(attempt)])
            for asked, expected in ((second, None), (first, str(attempt))):
                ((seen,),) = rows(asked, "SELECT pg_catalog.current_setting(%s, true)", [_PROBE])
                if (seen or None) != expected:
                    return True
    return False


def _names(connection: Connection, statement: LiteralString) -> list[str]:
    with translated("looking through the catalog"):
        return [str(name) for (name,) in rows(connection, statement)]
