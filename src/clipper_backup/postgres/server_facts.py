"""What a server says of itself and its databases, and how to make a database like a recorded one."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import LiteralString

import psycopg

from clipper_backup.postgres.connection import Connection, query_error, roll_back, rows, translated
from clipper_backup.values import WORKING_PREFIX, Lsn


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server behind a connection. `system_id` is None where the role may not ask for it."""

    version: str
    major: int
    system_id: str | None
    in_recovery: bool


def server_facts(connection: Connection) -> ServerFacts:
    """Ask the server for its version and identity."""
    with translated("asking the server for its version"):
        ((version, number, in_recovery),) = rows(
            connection,
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery()",
        )
        system_id = None
        with suppress(psycopg.errors.InsufficientPrivilege):
            ((system_id,),) = rows(connection, "SELECT system_identifier::text FROM pg_control_system()")
    return ServerFacts(str(version).split()[0], number // 10000, system_id, in_recovery)


def connectable_databases(connection: Connection) -> list[str]:
    """Every database that accepts connections, is no template and not what a restore is filling, by name."""
    with translated("listing the databases"):
        return [
            name
            for (name,) in rows(
                connection, "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"
            )
            if not name.startswith(WORKING_PREFIX)
        ]


def may_read_passwords(connection: Connection) -> bool:
    """Whether pg_dumpall may read the roles' password hashes as this role."""
    with translated("asking for the role's privileges"):
        ((allowed,),) = rows(connection, "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")
    return bool(allowed)


def current_lsn(connection: Connection) -> Lsn | None:
    """The server's WAL position now (on a standby: the last replayed one)."""
    with translated("asking for the WAL position"):
        ((text,),) = rows(
            connection,
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text",
        )
    return None if text is None else Lsn.parse(text)


def snapshot_text(connection: Connection) -> str:
    """pg_current_snapshot() of the open transaction: which transactions it sees."""
    with translated("asking for the snapshot"):
        ((text,),) = rows(connection, "SELECT pg_current_snapshot()::text")
    return str(text)


@dataclass(frozen=True, slots=True)
class Properties:
    """A database's properties, the fields of pg_database by their meaning. `grants` None means the default privileges.

    A grant is (grantee or None for PUBLIC, grantor, privilege, grantable); a setting is (role or None, `name=value`).
    """

    owner: str
    encoding: str
    collate: str
    ctype: str
    locale_provider: str
    locale: str | None
    icu_rules: str | None
    collation_version: str | None
    connection_limit: int
    comment: str | None
    grants: tuple[tuple[str | None, str, str, bool], ...] | None
    settings: tuple[tuple[str | None, str], ...]


def database_properties(connection: Connection, major: int) -> Properties:
    """The current database's properties; on majors where a column has another name or is missing, its equivalent."""
    locale_column: LiteralString = "d.datlocale" if major >= 17 else "d.daticulocale" if major >= 15 else "NULL"
    rules_column: LiteralString = "d.daticurules" if major >= 16 else "NULL"
    provider_column: LiteralString = "d.datlocprovider::text" if major >= 15 else "'c'"
    version_column: LiteralString = "d.datcollversion" if major >= 15 else "NULL"
    statement: LiteralString = (
        "SELECT pg_get_userbyid(d.datdba)::text, pg_encoding_to_char(d.encoding)::text, d.datcollate::text,"  # noqa: S608  literals above
        f" d.datctype::text, {provider_column}, {locale_column}::text, {rules_column}::text, {version_column}::text,"
        " d.datconnlimit, shobj_description(d.oid, 'pg_database'), d.datacl IS NOT NULL"
        " FROM pg_database d WHERE d.datname = current_database()"
    )
    with translated("reading the database's properties"):
        ((owner, encoding, collate, ctype, provider, locale, rules, version, limit, comment, has_grants),) = rows(
            connection, statement
        )
        grants = rows(
            connection,
            "SELECT CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, pg_get_userbyid(a.grantor)::text,"
            " a.privilege_type, a.is_grantable FROM pg_database d, aclexplode(d.datacl) a"
            " WHERE d.datname = current_database() ORDER BY 1 NULLS FIRST, 3",
        )
        settings = rows(
            connection,
            "SELECT CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole)::text END, unnest(s.setconfig)"
            " FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
            " WHERE d.datname = current_database() ORDER BY 1 NULLS FIRST, 2",
        )
    granted = tuple((row[0], row[1], row[2], row[3]) for row in grants) if has_grants else None
    return Properties(
        owner=owner,
        encoding=encoding,
        collate=collate,
        ctype=ctype,
        locale_provider=provider,
        locale=locale,
        icu_rules=rules,
        collation_version=version,
        connection_limit=limit,
        comment=comment,
        grants=granted,
        settings=tuple((row[0], row[1]) for row in settings),
    )


def database_size_bytes(connection: Connection) -> int:
    """pg_database_size() of the current database."""
    with translated("asking for the database's size"):
        ((size,),) = rows(connection, "SELECT pg_database_size(current_database())")
    return int(size)


def installed_extensions(connection: Connection) -> list[tuple[str, str, str]]:
    """(name, version, schema) of every extension in the current database."""
    with translated("listing the extensions"):
        return [
            (name, version, schema)
            for name, version, schema in rows(
                connection,
                "SELECT e.extname::text, e.extversion, n.nspname::text FROM pg_extension e"
                " JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1",
            )
        ]


def available_extensions(connection: Connection) -> set[str]:
    """Names of the extensions that CREATE EXTENSION would find on this server."""
    with translated("listing the extensions that are there"):
        return {name for (name,) in connection.execute("SELECT name::text FROM pg_available_extensions").fetchall()}


def used_collations(connection: Connection) -> list[str]:
    """The versioned collations that columns of this database use, as `name provider version`."""
    with translated("listing the collations"):
        return [
            text
            for (text,) in rows(
                connection,
                "SELECT DISTINCT format('%s %s %s', c.collname, c.collprovider, c.collversion) FROM pg_collation c"
                " JOIN pg_attribute a ON a.attcollation = c.oid WHERE c.collversion IS NOT NULL ORDER BY 1",
            )
        ]


@contextmanager
def reading(connection: Connection) -> Iterator[None]:
    """A REPEATABLE READ, READ ONLY transaction, rolled back at the end: everything read inside is one instant."""
    with translated("opening a transaction"):
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        roll_back(connection)


def role_names(connection: Connection) -> set[str]:
    """Every role of the cluster."""
    with translated("listing the roles"):
        return {name for (name,) in rows(connection, "SELECT rolname::text FROM pg_roles")}


def tablespace_names(connection: Connection) -> set[str]:
    """Every tablespace of the cluster."""
    with translated("listing the tablespaces"):
        return {name for (name,) in rows(connection, "SELECT spcname::text FROM pg_tablespace")}


_A_SETTING = re.compile(r"ALTER (?:ROLE|DATABASE) .* SET ", re.DOTALL)
_SETTING_REFUSED = (
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.CantChangeRuntimeParam,
)


def run_statements(connection: Connection, statements: Sequence[str]) -> list[str]:
    """Execute all statements or none, in one transaction.

    A setting of a role or database that this server does not know, or not with that value, is left out; returned is a
    sentence for each. (Settings come and go with PostgreSQL's versions, and are no reason to have no database.)
    """
    refused = []
    with translated("changing roles and databases"), connection.transaction():
        for statement in statements:
            shown = " ".join(statement.split())
            try:
                with connection.transaction():
                    connection.execute(statement.encode())
            except _SETTING_REFUSED as error:
                if not _A_SETTING.match(statement):
                    raise query_error(f"running `{shown[:60]}`", error) from error
                refused.append(f"left out `{shown}`: {error.diag.message_primary}")
            except psycopg.Error as error:
                raise query_error(f"running `{shown[:60]}`", error) from error
    return refused
