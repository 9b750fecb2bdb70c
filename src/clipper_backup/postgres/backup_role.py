"""The role that backups log in as: the statements that give it what it lacks or take it away, and its lines of pg_hba.conf."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import psycopg
from psycopg import sql

from clipper_backup.errors import UsageError
from clipper_backup.postgres.connection import Connection, query_error, rows, translated
from clipper_backup.values import Secret

_ATTRIBUTES = {
    "LOGIN": "rolcanlogin",
    "REPLICATION": "rolreplication",  # to stream a base backup
    "BYPASSRLS": "rolbypassrls",  # pg_dump refuses a table whose rows may be hidden (rule 83)
}
_MEMBERSHIPS = ("pg_read_all_data", "pg_monitor")
"""pg_monitor shows where the configuration lies and how much WAL waits to be archived."""
_FUNCTIONS = (
    "pg_catalog.pg_backup_start(text,boolean)",
    "pg_catalog.pg_backup_stop(boolean)",
    "pg_catalog.pg_switch_wal()",
    "pg_catalog.pg_create_restore_point(text)",
)
_FILE_MEMBERSHIP = "pg_read_server_files"
_FILE_FUNCTIONS = (
    "pg_catalog.pg_read_binary_file(text,bigint,bigint,boolean)",
    "pg_catalog.pg_stat_file(text,boolean)",
    "pg_catalog.pg_show_all_file_settings()",  # which files the configuration includes
    "pg_catalog.pg_hba_file_rules()",
)
"""What reads configuration outside the data folder, and every other file that the server's account can read."""
_ALL_MEMBERSHIPS = (*_MEMBERSHIPS, _FILE_MEMBERSHIP)
_ALL_FUNCTIONS = (*_FUNCTIONS, *_FILE_FUNCTIONS)

_PASSWORD_METHOD = "scram-sha-256"  # noqa: S105  the name of a method
_ADDRESS_WORDS = frozenset({"local", "samehost", "samenet", "all"})
_HOST_NAME = re.compile(r"\.?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")
_PLAIN_HBA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$-]*")


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL to run; `shown` is what people see of it, where it holds a secret."""

    text: str = field(repr=False)
    shown: str

    @classmethod
    def open(cls, text: str) -> "Statement":
        """One without secrets."""
        return cls(text, text)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the role is to be able to do beside backups: read large objects, and configuration outside the data folder."""

    role: str
    large_objects: bool = False
    config_files: bool = False


def missing_statements(connection: Connection, wanted: Wanted, password: Secret | None = None) -> list[Statement]:
    """What gives the role what it lacks; with *password*, always that too. Privileges on functions are this database's alone."""
    with translated("looking at the role"):
        found = rows(
            connection,
            sql.SQL("SELECT rolsuper, {} FROM pg_roles WHERE rolname = %s").format(
                sql.SQL(", ").join(map(sql.Identifier, _ATTRIBUTES.values()))
            ),
            [wanted.role],
        )
        has = dict(zip(("superuser", *_ATTRIBUTES), found[0], strict=True)) if found else {}
        statements = []
        lacking = [name for name in _ATTRIBUTES if not has.get(name) and not (has.get("superuser") and name != "LOGIN")]
        if lacking:
            verb = "ALTER" if found else "CREATE"
            statements.append(_composed(connection, f"{verb} ROLE {{role}} {' '.join(lacking)}", wanted.role))
        memberships = (*_MEMBERSHIPS, *([_FILE_MEMBERSHIP] if wanted.config_files else []))
        statements += [
            _composed(connection, f"GRANT {name} TO {{role}}", wanted.role)
            for name in memberships
            if not found or not _is_true(connection, "SELECT pg_has_role(%s, %s, 'USAGE')", wanted.role, name)
        ]
        functions = (*_FUNCTIONS, *(_FILE_FUNCTIONS if wanted.config_files else []))
        statements += [
            _composed(connection, f"GRANT EXECUTE ON FUNCTION {function} TO {{role}}", wanted.role)
            for function in functions
            if not found or not _is_true(connection, "SELECT has_function_privilege(%s, %s, 'EXECUTE')", wanted.role, function)
        ]
        if wanted.large_objects and not _reads_large_objects(connection, wanted.role):
            statements.append(_composed(connection, "ALTER ROLE {role} SET lo_compat_privileges = on", wanted.role))
        if password is not None:
            statements.append(_password_statement(connection, wanted.role, password))
    return statements


def removing_statements(connection: Connection, role: str) -> list[Statement]:
    """What takes the role away, with what was granted to it in this database; nothing when there is no such role."""
    with translated("looking at the role"):
        if not rows(connection, "SELECT FROM pg_roles WHERE rolname = %s", [role]):
            return []
        granted = [
            function
            for function in _ALL_FUNCTIONS
            if _is_true(
                connection,
                "SELECT EXISTS (SELECT FROM pg_proc p, aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee"
                " WHERE r.rolname = %s AND p.oid = %s::regprocedure)",
                role,
                function,
            )
        ]
        member = [
            name
            for (name,) in rows(
                connection,
                "SELECT DISTINCT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid"
                " JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = %s AND g.rolname = ANY(%s) ORDER BY 1",
                [role, list(_ALL_MEMBERSHIPS)],
            )
        ]
        return [
            *(_composed(connection, f"REVOKE EXECUTE ON FUNCTION {function} FROM {{role}}", role) for function in granted),
            *(_composed(connection, f"REVOKE {name} FROM {{role}}", role) for name in member),
            _composed(connection, "DROP ROLE {role}", role),
        ]


def run(connection: Connection, statements: Sequence[Statement]) -> None:
    """Execute all or none. AccessError or ServerError with the statement, without its secrets."""
    with translated("changing the role"), connection.transaction():
        for statement in statements:
            try:
                connection.execute(statement.text.encode())
            except psycopg.Error as error:
                detail = " ".join((error.diag.message_detail or "").split())
                raise query_error(f"running `{statement.shown}`" + (f" ({detail})" if detail else ""), error) from error


def check_address(address: str) -> None:
    """UsageError unless pg_hba.conf takes *address*: a network, a host's name, `samehost`, `samenet`, `all`; or it is `local`."""
    if address in _ADDRESS_WORDS or _HOST_NAME.fullmatch(address):
        return
    try:
        if "/" in address:
            ipaddress.ip_network(address)
            return
    except ValueError:
        pass
    raise UsageError(
        f"not an address of pg_hba.conf: {address!r}",
        hints=["a network like 10.0.0.0/8, a host's name, samehost, samenet, all; local for connections over the socket"],
    )


@dataclass(frozen=True, slots=True)
class Hba:
    """The lines that pg_hba.conf lacks; `known` is False where this login may not read it, and then all are named."""

    lines: tuple[str, ...]
    known: bool


def missing_hba_lines(connection: Connection, role: str, address: str) -> Hba:
    """The lines for *role*: one for databases and one for replication, which `all` does not match.

    A line counts, whatever its address, when it lets the role in: which addresses it means only a login shows.
    """
    with translated("looking at pg_hba.conf"):
        ((tls,),) = rows(connection, "SELECT current_setting('ssl') = 'on'")
        member_of = {
            name for (name,) in rows(connection, "SELECT r.rolname::text FROM pg_roles r, pg_roles m WHERE m.rolname = %s"
                                     " AND pg_has_role(m.oid, r.oid, 'MEMBER')", [role])
        }  # fmt: skip
        try:
            rules = rows(connection, "SELECT database, user_name, auth_method FROM pg_hba_file_rules WHERE error IS NULL")
        except psycopg.errors.InsufficientPrivilege:
            rules = None
    databases = {"all": {"all", connection.info.dbname}, "replication": {"replication"}}
    covered = {
        database
        for database, names in databases.items()
        if rules is not None
        and any(
            names & set(of) and method != "reject" and ({"all", role} | {f"+{name}" for name in member_of}) & set(users)
            for of, users, method in rules
        )
    }
    kind = "local" if address == "local" else "hostssl" if tls else "host"
    user = role if _PLAIN_HBA_NAME.fullmatch(role) else '"' + role + '"'
    where = "" if address == "local" else f"{address}  "
    lines = tuple(
        f"{kind:<7}  {database:<11}  {user}  {where}{_PASSWORD_METHOD}" for database in databases if database not in covered
    )
    return Hba(lines, rules is not None)


def configuration_outside(connection: Connection) -> list[str]:
    """The configuration files outside the data folder; empty where this login may not know them."""
    with translated("asking where the configuration lies"):
        found: dict[str, str] = dict(
            rows(
                connection,
                "SELECT name, setting FROM pg_settings"
                " WHERE name IN ('data_directory', 'config_file', 'hba_file', 'ident_file') AND setting IS NOT NULL",
            )
        )
    data = found.pop("data_directory", None)
    return [] if data is None else sorted(path for path in found.values() if not PurePosixPath(path).is_relative_to(data))


def obstacles(connection: Connection) -> list[str]:
    """The settings of the server with which nobody takes a base backup; each needs a restart."""
    with translated("asking for the server's settings"):
        ((level, senders),) = rows(connection, "SELECT current_setting('wal_level'), current_setting('max_wal_senders')::int")
    found = []
    if level == "minimal":
        found.append("wal_level is minimal: set it to replica and restart the server")
    if senders < 2:
        found.append(f"max_wal_senders is {senders}, a base backup may need 2: set it to 10 and restart the server")
    return found


def _reads_large_objects(connection: Connection, role: str) -> bool:
    return _is_true(
        connection,
        "SELECT EXISTS (SELECT FROM pg_roles r LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid AND s.setdatabase = 0"
        " WHERE r.rolname = %s AND (r.rolsuper OR %s = ANY(s.setconfig)))",
        role,
        "lo_compat_privileges=on",
    )


def _password_statement(connection: Connection, role: str, password: Secret) -> Statement:
    # The server is given the verifier, as psql's \password does: with the password in it, the statement could stand in its log.
    verifier = connection.pgconn.encrypt_password(password.reveal().encode(), role.encode(), _PASSWORD_METHOD.encode()).decode()
    before = _composed(connection, "ALTER ROLE {role} PASSWORD", role).shown
    return Statement(f"{before} {sql.Literal(verifier).as_string(connection)}", f"{before} '***'")


def _composed(connection: Connection, template: str, role: str) -> Statement:
    ((quoted,),) = rows(connection, "SELECT quote_ident(%s)", [role])
    return Statement.open(template.format(role=quoted))


def _is_true(connection: Connection, statement: str, *parameters: str) -> bool:
    ((answer,),) = connection.execute(statement.encode(), parameters).fetchall()
    return bool(answer)
