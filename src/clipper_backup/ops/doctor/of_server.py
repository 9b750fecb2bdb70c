"""Checks of PostgreSQL: may this role read everything, with which programs, and what would no dump hold."""

from collections.abc import Callable, Sequence

from clipper_backup.ops.doctor.declared import Declaring, Surroundings
from clipper_backup.ops.findings import Finding, green, red, yellow
from clipper_backup.ops.work import login_of
from clipper_backup.postgres import preflight, server_facts
from clipper_backup.postgres.binaries import find_binaries
from clipper_backup.postgres.connection import Connection, connect
from clipper_backup.values import show_names

_TOOLS = ("pg_dump", "pg_dumpall", "pg_restore", "psql")
_SHOWN = 3
_ROLE = "see `A role for backups` in docs/guides/first-dump.md"


check = Declaring()


@check(
    "database server",
    "whether PostgreSQL lets us in, and what it is",
    "check PGHOST, PGPORT, PGUSER and the password; `pg_isready` asks whether the server is there",
    needs=["settings"],
)
def _database_server(here: Surroundings) -> Finding:
    facts = here.facts
    return green(f"PostgreSQL {facts.version} on {login_of(here.settings).where}{', a standby' if facts.in_recovery else ''}")


@check(
    "databases",
    "whether every database of BACKUP_DATABASES is there and lets us in, and none is left out",
    "check BACKUP_DATABASES; without it every database that accepts connections is dumped",
    needs=["database server"],
)
def _databases(here: Surroundings) -> Finding:
    wanted = here.settings.backup_databases
    if absent := [name for name in wanted if name not in here.present]:
        return red(f"{show_names(absent)} is not there, or accepts no connections; there is {show_names(here.present) or 'none'}")
    if not here.databases:
        return red("there is no database to dump: every one is a template or closed")
    for name in here.databases:
        with here.session(name):
            pass
    with here.session() as connection:
        closed = preflight.closed_databases(connection)
    others = [name for name in here.present if name not in here.databases and name != "postgres"]
    if others or closed:
        return yellow(f"not dumped: {show_names([*others, *closed])}")
    return green(show_names(here.databases))


def _everywhere(here: Surroundings, ask: Callable[[Connection], Sequence[str]]) -> list[str]:
    """What *ask* finds in the databases that are dumped, each with its database."""
    found = []
    for name in here.databases:
        with here.session(name) as connection:
            found += [f"{each} in {show_names([name])}" for each in ask(connection)]
    return found


def _some(found: Sequence[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else "")


@check(
    "table privileges",
    "whether this role may read every table and sequence",
    f"as a superuser: GRANT pg_read_all_data TO the role; {_ROLE}",
    needs=["database server", "databases"],
)
def _table_privileges(here: Surroundings) -> Finding:
    if found := _everywhere(here, preflight.unreadable_tables):
        return red(f"no right to read {_some(found)}: pg_dump would fail")
    return green("every table and sequence can be read")


@check(
    "row security",
    "whether row-level security hides rows from this role",
    f"as a superuser: ALTER ROLE … BYPASSRLS; {_ROLE}",
    needs=["database server", "databases"],
)
def _row_security(here: Surroundings) -> Finding:
    if found := _everywhere(here, preflight.filtered_tables):
        return red(f"rows may be hidden in {_some(found)}: pg_dump would fail")
    return green("no row is hidden")


@check(
    "large objects",
    "whether this role may read every large object: pg_read_all_data does not reach them",
    f"as a superuser: ALTER ROLE … SET lo_compat_privileges = on; {_ROLE}",
    needs=["database server", "databases"],
)
def _large_objects(here: Surroundings) -> Finding:
    def ask(connection: Connection) -> list[str]:
        count = preflight.unreadable_large_objects(connection)
        return [str(count)] if count else []

    if found := _everywhere(here, ask):
        return red(f"no right to read {_some(found)}: pg_dump would fail")
    return green("every large object can be read")


@check(
    "passwords",
    "whether this role may read the roles' password hashes (pg_authid), so that they are restored",
    "as a superuser: GRANT pg_read_all_data TO the role, or set passwords anew after a restore",
    needs=["database server"],
)
def _passwords(here: Surroundings) -> Finding:
    with here.session() as connection:
        if server_facts.may_read_passwords(connection):
            return green("roles are dumped with their passwords")
    return yellow("roles are dumped without their passwords")


@check(
    "left out",
    "whether there are tables whose rows no dump holds: foreign ones, on a standby unlogged ones",
    "back up the server that foreign tables lie on; dump unlogged tables from the primary",
    needs=["database server", "databases"],
)
def _left_out(here: Surroundings) -> Finding:
    if found := _everywhere(here, preflight.tables_left_out):
        return yellow(f"without rows in the dump: {_some(found)}")
    return green("the rows of every table are dumped")


@check(
    "standby",
    "whether the server is a standby, which may cancel a dump to replay a conflicting change",
    "set hot_standby_feedback = on on the standby, or max_standby_streaming_delay = -1 there, or dump from the primary",
    needs=["database server"],
)
def _standby(here: Surroundings) -> Finding:
    if not here.facts.in_recovery:
        return green("a primary")
    with here.session() as connection:
        if preflight.cancels_long_queries(connection):
            return yellow("a standby that may cancel a long dump (recovery conflict)")
    return green("a standby that lets dumps finish")


@check(
    "sessions",
    "whether our session stays ours: a pooler in transaction mode gives it, its snapshot and its time-outs to others",
    "connect to the server itself, or to the pooler in session mode: PGHOST and PGPORT",
    needs=["database server"],
)
def _sessions(here: Surroundings) -> Finding:
    login = login_of(here.settings)
    with connect(login) as first, connect(login) as second:
        if preflight.shares_sessions(first, second):
            return red("a pooler in transaction mode stands between us and the server: no snapshot can be held")
    return green("a session of our own, without time-outs")


@check(
    "client programs",
    "whether pg_dump, pg_dumpall, pg_restore and psql are there, of the server's major version or a newer one",
    "install postgresql-client of the server's major version, or set PG_BINDIR",
    needs=["settings"],
)
def _client_programs(here: Surroundings) -> Finding:
    environment = login_of(here.settings).environment()
    found = find_binaries(tools=_TOOLS, bindir=here.settings.pg_bindir, environment=environment, at_least=here.major)
    if here.major is None:
        return yellow(f"{found.version} in {found.bindir}; which one the server needs is not known")
    return green(f"{found.version} in {found.bindir}")


CHECKS = check.all
