"""Making, renaming and dropping databases, and giving one the properties that were recorded of another."""

import re
import threading
from collections.abc import Sequence
from contextlib import closing, suppress

import psycopg
from psycopg import sql

from clipper_backup.postgres.connection import Connection, Login, connect, rows, translated
from clipper_backup.postgres.server_facts import Properties, run_statements

# Settings whose value is a list of identifiers that PostgreSQL stores already quoted (GUC_LIST_QUOTE in guc_tables.c).
_LIST_SETTINGS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
_LISTED = re.compile(r'"(?:[^"]|"")*"|[^\s",]+')


def database_exists(connection: Connection, name: str) -> bool:
    """Whether the cluster has a database of that name."""
    with translated("looking for the database"):
        return bool(rows(connection, "SELECT 1 FROM pg_database WHERE datname = %s", [name]))


def is_template(connection: Connection, name: str) -> bool:
    """Whether new databases are made from it, or nobody may connect to it."""
    with translated("looking for the database"):
        asked = "SELECT 1 FROM pg_database WHERE datname = %s AND (datistemplate OR NOT datallowconn)"
        return bool(rows(connection, asked, [name]))


def database_oid(connection: Connection, name: str) -> int | None:
    """The object id of the database of that name; it stays the same when it is renamed."""
    with translated("looking for the database"):
        found = rows(connection, "SELECT oid::bigint FROM pg_database WHERE datname = %s", [name])
    return int(found[0][0]) if found else None


def lock_name(connection: Connection, name: str) -> bool:
    """Keep others of us from making a database of that name until *connection* is closed; False when one is at it."""
    with translated("taking the lock of the name"):
        ((taken,),) = rows(connection, "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [f"clipper-backup restore {name}"])
    return bool(taken)


# Whatever people make gets an object id from 16384 on (FirstNormalObjectId in transam.h), but for large objects, whose ids they
# choose. Temporary objects go with their sessions; a `public` that was made anew is still the one every database has.
_ANYTHING_MADE = """
SELECT EXISTS (SELECT FROM pg_largeobject_metadata) OR EXISTS (
    SELECT FROM (
        SELECT oid, relnamespace FROM pg_class
        UNION ALL SELECT oid, pronamespace FROM pg_proc
        UNION ALL SELECT oid, typnamespace FROM pg_type
        UNION ALL SELECT oid, oprnamespace FROM pg_operator
        UNION ALL SELECT oid, collnamespace FROM pg_collation
        UNION ALL SELECT oid, connamespace FROM pg_conversion
        UNION ALL SELECT oid, cfgnamespace FROM pg_ts_config
        UNION ALL SELECT oid, dictnamespace FROM pg_ts_dict
        UNION ALL SELECT oid, oid FROM pg_namespace WHERE nspname <> 'public'
        UNION ALL SELECT oid, 0 FROM pg_extension
        UNION ALL SELECT oid, 0 FROM pg_language
        UNION ALL SELECT oid, 0 FROM pg_cast
        UNION ALL SELECT oid, 0 FROM pg_foreign_data_wrapper
        UNION ALL SELECT oid, 0 FROM pg_publication
        UNION ALL SELECT oid, 0 FROM pg_event_trigger
        UNION ALL SELECT oid, 0 FROM pg_default_acl
    ) AS made (id, schema)
    WHERE id >= 16384 AND schema NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_')
)
"""


def is_empty(connection: Connection) -> bool:
    """Whether the current database holds nothing a person made, of whatever kind."""
    with translated("looking into the database"):
        ((made,),) = rows(connection, _ANYTHING_MADE)
    return not made


def create_database(connection: Connection, name: str, properties: Properties, owner: str | None) -> None:
    """CREATE DATABASE from template0 with the recorded encoding and locale; *owner* None leaves it to the present role."""
    parts = [
        sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)),
        sql.SQL("ENCODING {}").format(sql.Literal(properties.encoding)),
        sql.SQL("LC_COLLATE {}").format(sql.Literal(properties.collate)),
        sql.SQL("LC_CTYPE {}").format(sql.Literal(properties.ctype)),
    ]
    if properties.locale_provider == "i":
        parts.append(sql.SQL("LOCALE_PROVIDER icu ICU_LOCALE {}").format(sql.Literal(properties.locale)))
        if properties.icu_rules:
            parts.append(sql.SQL("ICU_RULES {}").format(sql.Literal(properties.icu_rules)))
    elif properties.locale_provider == "b":
        parts.append(sql.SQL("LOCALE_PROVIDER builtin BUILTIN_LOCALE {}").format(sql.Literal(properties.locale)))
    elif connection.info.server_version >= 150000:  # unsaid, it would be the cluster's default
        parts.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.SQL("libc")))
    if owner is not None:
        parts.append(sql.SQL("OWNER {}").format(sql.Identifier(owner)))
    with translated(f"creating the database {name}"):
        connection.execute(sql.SQL(" ").join(parts))


def apply_properties(connection: Connection, name: str, properties: Properties) -> list[str]:
    """Comment, connection limit, privileges and settings; every role that is named must exist.

    Returned is a sentence for each setting that this server does not know; it is left out.
    """
    database = sql.Identifier(name)
    statements: list[sql.Composed] = []
    if properties.comment is not None:
        statements.append(sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, sql.Literal(properties.comment)))
    if properties.connection_limit != -1:
        limit = sql.Literal(properties.connection_limit)
        statements.append(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(database, limit))
    if properties.grants is not None:
        statements.append(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        if _owner(connection, name) == properties.owner:  # what an owner has without being given it
            statements.append(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(database, sql.Identifier(properties.owner)))
        statements.extend(_grant(database, *grant) for grant in properties.grants)
    statements.extend(_setting(database, role, text) for role, text in properties.settings)
    return run_statements(connection, [statement.as_string(connection) for statement in statements])


def _owner(connection: Connection, name: str) -> str:
    with translated(f"asking for the owner of database {name}"):
        ((owner,),) = rows(connection, "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = %s", [name])
    return str(owner)


def _grant(database: sql.Identifier, grantee: str | None, grantor: str, privilege: str, grantable: bool) -> sql.Composed:
    del grantor  # whoever restores grants; only a superuser could say otherwise
    to = sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
    statement = sql.SQL("GRANT {} ON DATABASE {} TO {}").format(sql.SQL(_PRIVILEGES[privilege]), database, to)
    return statement + sql.SQL(" WITH GRANT OPTION") if grantable else statement


_PRIVILEGES = {"CONNECT": "CONNECT", "CREATE": "CREATE", "TEMPORARY": "TEMPORARY"}


def _setting(database: sql.Identifier, role: str | None, text: str) -> sql.Composed:
    name, _, value = text.partition("=")
    target = sql.SQL("ALTER DATABASE {} SET").format(database)
    if role is not None:
        target = sql.SQL("ALTER ROLE {} IN DATABASE {} SET").format(sql.Identifier(role), database)
    values = [value]
    if name in _LIST_SETTINGS and value:  # as one literal it would become one name
        values = [part[1:-1].replace('""', '"') if part.startswith('"') else part for part in _LISTED.findall(value)]
    return target + sql.SQL(" {} TO {}").format(sql.Identifier(*name.split(".")), sql.SQL(", ").join(map(sql.Literal, values)))


def rename_databases(connection: Connection, login: Login, renames: Sequence[tuple[str, str]]) -> None:
    """Rename databases, all or none of them in one transaction, while every session in them is ended.

    RENAME takes the lock that a new session needs to get in, then waits five seconds for present ones to leave
    (CountOtherDBBackends in PostgreSQL's procarray.c): ended from a second connection meanwhile, none can come back.
    ServerError when that was not enough.
    """
    names = [name for name, _ in renames]
    renamed = threading.Event()

    def end_sessions(helper: Connection) -> None:
        with suppress(psycopg.Error):  # then RENAME says who was in the way
            while not renamed.is_set():
                helper.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY(%s)", [names])
                helper.execute("SELECT pg_sleep(0.05)")

    with closing(connect(login, connection.info.dbname)) as helper, translated(f"renaming the database {names[0]}"):
        thread = threading.Thread(target=end_sessions, args=[helper])
        thread.start()
        try:
            with connection.transaction():
                for name, new_name in renames:
                    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
                    connection.execute(rename.format(sql.Identifier(name), sql.Identifier(new_name)))
        finally:
            renamed.set()
            thread.join()


def drop_database(connection: Connection, name: str) -> None:
    """DROP DATABASE IF EXISTS … WITH (FORCE)."""
    with translated(f"dropping the database {name}"):
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
