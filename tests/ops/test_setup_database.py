"""`setup database` on real servers: what it makes is enough for backups, run twice it does nothing, removed nothing is left."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from clipper_backup.config import Settings
from clipper_backup.errors import AccessError, ServerError, UsageError
from clipper_backup.ops.setup_database import Prepared, prepare_database, read_password
from clipper_backup.postgres.backup_role import Wanted, check_address
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import Secret
from fixtures.cli import RunCli
from fixtures.postgres import client_environment, fresh_database, fresh_role, sql

pytestmark = pytest.mark.soak(share=0.25)

PASSWORD = "tell nobody: ünïcode"


def prepare(
    server: PrivateServer,
    role: str,
    *,
    apply: bool = True,
    remove: bool = False,
    password: str | None = None,
    address: str = "samenet",
    large_objects: bool = False,
    config_files: bool = False,
    login_as: str | None = None,
) -> Prepared:
    where = server.connection()
    return prepare_database(
        Settings(pghost=where["host"], pgport=where["port"], pguser=login_as or where["user"]),
        Wanted(role, large_objects, config_files),
        address=address,
        password=None if password is None else Secret(password),
        apply=apply,
        remove=remove,
    )


@pytest.fixture
def role(postgres: PrivateServer) -> Iterator[str]:
    """A name that no role has before or after."""
    name = f"role_{uuid.uuid4().hex[:12]}"
    yield name
    with contextlib.suppress(psycopg.errors.UndefinedObject):
        sql(postgres, "postgres", f"DROP OWNED BY {name}")
        sql(postgres, "postgres", f"DROP ROLE {name}")


def exists(server: PrivateServer, role: str) -> bool:
    return bool(sql(server, "postgres", "SELECT FROM pg_roles WHERE rolname = %s", [role]))


def function_grants(server: PrivateServer) -> list[tuple[object, ...]]:
    """What anybody was granted on functions; none and the owner's default are the same."""
    return sql(
        server,
        "postgres",
        "SELECT p.oid::regprocedure::text, a.grantee, a.privilege_type FROM pg_proc p, aclexplode(p.proacl) a"
        " WHERE a.grantee <> p.proowner ORDER BY 1, 2, 3",
    )


@pytest.mark.soak(over=["postgres"])
def test_printing_changes_nothing_and_psql_takes_it(postgres: PrivateServer, role: str, run_cli: RunCli) -> None:
    environment = client_environment(postgres)
    script = run_cli("setup", "database", "--role", role, env=environment, check=True).stdout
    assert not exists(postgres, role)
    sql(postgres, "postgres", script)
    assert prepare(postgres, role, apply=False).statements == ()
    undoing = run_cli("setup", "database", "--role", role, "--remove", env=environment, check=True).stdout
    assert exists(postgres, role)
    sql(postgres, "postgres", undoing)
    assert not exists(postgres, role)


def test_the_role_can_do_what_backups_do(postgres: PrivateServer, role: str) -> None:
    with fresh_database(postgres) as name:
        sql(postgres, name, "CREATE TABLE secret AS SELECT 1 AS a; ALTER TABLE secret ENABLE ROW LEVEL SECURITY")
        prepare(postgres, role, password=PASSWORD)
        where = postgres.tcp_connection() | {"user": role, "password": PASSWORD}
        with psycopg.connect(make_conninfo("", **where | {"dbname": name})) as connection:
            connection.execute("SET row_security = off")
            assert connection.execute("SELECT a FROM secret").fetchall() == [(1,)]
        with psycopg.connect(make_conninfo("", **where), autocommit=True) as connection:
            connection.execute("SELECT pg_backup_start('x', true)")
            assert connection.execute("SELECT labelfile <> '' FROM pg_backup_stop(false)").fetchone() == (True,)
            connection.execute("SELECT pg_create_restore_point('x'), pg_switch_wal()")
            assert connection.execute("SHOW data_directory").fetchone() == (str(postgres.data),)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT pg_read_binary_file('/etc/hostname')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("CREATE ROLE more")
        with psycopg.connect(make_conninfo("", **where, replication="true"), autocommit=True) as connection:
            assert connection.execute(b"IDENTIFY_SYSTEM").fetchone() is not None


def test_applied_twice_the_second_does_nothing(postgres: PrivateServer, role: str) -> None:
    first = prepare(postgres, role)
    assert len(first.statements) == 7
    assert prepare(postgres, role).statements == ()


def test_what_was_taken_away_since_is_given_again(postgres: PrivateServer, role: str) -> None:
    prepare(postgres, role)
    sql(postgres, "postgres", f"ALTER ROLE {role} NOREPLICATION")
    sql(postgres, "postgres", f"REVOKE pg_monitor FROM {role}")
    sql(postgres, "postgres", f"REVOKE EXECUTE ON FUNCTION pg_switch_wal() FROM {role}")
    assert [statement.shown for statement in prepare(postgres, role).statements] == [
        f"ALTER ROLE {role} REPLICATION",
        f"GRANT pg_monitor TO {role}",
        f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO {role}",
    ]


def test_removed_nothing_is_left_and_nobody_else_lost_anything(postgres: PrivateServer, role: str) -> None:
    with fresh_role(postgres) as other:
        sql(postgres, "postgres", f"GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {other}")
        before = function_grants(postgres)
        prepare(postgres, role, large_objects=True, config_files=True)
        prepare(postgres, role, remove=True)
        assert not exists(postgres, role)
        assert function_grants(postgres) == before
        assert prepare(postgres, role, remove=True).statements == ()


def test_a_role_that_owns_something_stays_whole(postgres: PrivateServer, role: str) -> None:
    with fresh_database(postgres) as name:
        prepare(postgres, role)
        sql(postgres, name, f"CREATE TABLE precious (a int); ALTER TABLE precious OWNER TO {role}")
        with pytest.raises(ServerError, match="some objects depend on it") as refused:
            prepare(postgres, role, remove=True)
        assert name in refused.value.message
        assert prepare(postgres, role).statements == (), "it was left without some of its privileges"
        sql(postgres, name, "DROP TABLE precious")


@pytest.mark.soak(over=["postgres"])
@pytest.mark.parametrize("apply", [False, True])
def test_the_password_is_never_shown_and_never_sent(
    postgres: PrivateServer, role: str, run_cli: RunCli, tmp_path: Path, *, apply: bool
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    logging = client_environment(postgres, PGOPTIONS="-c log_statement=all -c log_min_messages=debug1")
    words = ["setup", "database", "--role", role, *(["--apply"] if apply else [])]
    first = run_cli(*words, "--password-file", str(file), env=logging)
    second = run_cli(*words, env=logging | {"BACKUP_ROLE_PASSWORD": PASSWORD})
    for said in (first, second):
        assert PASSWORD not in said.stdout + said.stderr
        assert ("PASSWORD '***'" in said.stdout) is apply, "what is printed to be run would set that password"
    log = postgres.log.read_text(errors="replace")
    assert PASSWORD not in log
    assert (f"ALTER ROLE {role} PASSWORD 'SCRAM-SHA-256$" in log) is apply
    if apply:
        with psycopg.connect(make_conninfo("", **postgres.tcp_connection() | {"user": role, "password": PASSWORD})):
            pass


def test_a_password_is_one_line_of_one_source(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\r\nsecond\n")
    assert read_password(Settings(), file) == Secret("first")
    assert read_password(Settings(backup_role_password=Secret("x")), None) == Secret("x")
    assert read_password(Settings(), None) is None
    with pytest.raises(UsageError, match="from --password-file and from BACKUP_ROLE_PASSWORD"):
        read_password(Settings(backup_role_password=Secret("x")), file)
    file.write_text("\n")
    with pytest.raises(UsageError, match="empty line"):
        read_password(Settings(), file)


def test_replication_needs_a_line_of_its_own(postgres: PrivateServer, role: str) -> None:
    """initdb writes `all` for both; without its line for replication the role is told, and `all` does not count for it."""
    rules = postgres.data / "pg_hba.conf"
    text = rules.read_text()
    assert prepare(postgres, role).hba.lines == ()
    owner = rules.stat()
    try:
        rules.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\nhost replication all all reject\n")
        told = prepare(postgres, role, address="10.0.0.0/8")
        assert told.hba.known
        assert [" ".join(line.split()) for line in told.hba.lines] == [f"host replication {role} 10.0.0.0/8 scram-sha-256"]
        assert told.left == [f"pg_hba.conf has no line like `host replication {role} 10.0.0.0/8 scram-sha-256`"]
        rules.write_text(f"local all postgres trust\nhost replication +{role} all scram-sha-256\n")
        told = prepare(postgres, role, address="local")
        assert [" ".join(line.split()) for line in told.hba.lines] == [f"local all {role} scram-sha-256"]
        rules.write_text("\n".join(["local all all trust", *told.hba.lines, f"local replication {role} scram-sha-256"]))
        assert prepare(postgres, role).hba.lines == ()
    finally:
        rules.write_text(text)
        os.chown(rules, owner.st_uid, owner.st_gid)


@pytest.mark.soak(over=["postgres"])
def test_incomplete_until_pg_hba_lets_it_in(postgres: PrivateServer, role: str, run_cli: RunCli) -> None:
    rules = postgres.data / "pg_hba.conf"
    text = rules.read_text()
    try:
        rules.write_text("local all all trust\n")
        told = run_cli("setup", "database", "--apply", "--role", role, env=client_environment(postgres))
        assert told.code == 3
        assert "backups cannot be taken yet: pg_hba.conf has no line like" in told.stderr
        assert exists(postgres, role)
    finally:
        rules.write_text(text)
    assert run_cli("setup", "database", "--apply", "--role", role, env=client_environment(postgres)).code == 0


def test_who_may_not_make_roles_is_told_whom_to_ask(postgres: PrivateServer, role: str) -> None:
    with fresh_role(postgres) as nobody:
        with pytest.raises(AccessError, match=f"running `CREATE ROLE {role} LOGIN REPLICATION BYPASSRLS`") as refused:
            prepare(postgres, role, login_as=nobody)
        assert refused.value.hints[0] == "log in as a superuser: PGUSER=postgres"
        told = prepare(postgres, role, apply=False, login_as=nobody)
        assert not told.hba.known
        assert len(told.hba.lines) == 2
        assert told.left == [], "what it may not see is not said to be missing"


def test_files_outside_are_read_where_asked_for(postgres: PrivateServer, role: str) -> None:
    prepare(postgres, role, config_files=True, large_objects=True)
    assert prepare(postgres, role, config_files=True, large_objects=True).statements == ()
    for reading in (
        "SELECT pg_read_binary_file('/etc/passwd', 0, 1000, true), s.modification FROM pg_stat_file('/etc/passwd', true) s",
        "SELECT DISTINCT sourcefile FROM pg_file_settings",
        "SELECT line_number FROM pg_hba_file_rules",
    ):
        sql(postgres, "postgres", f"SET ROLE {role}; {reading}")


@pytest.mark.parametrize("address", ["10.0.0.0/8", "fd00::/8", "samehost", "all", "local", "db.example.org", ".example.org"])
def test_addresses_of_pg_hba(postgres15: PrivateServer, address: str) -> None:
    """What we take, the server takes too."""
    check_address(address)
    line = "local all all trust" if address == "local" else f"host all all {address} trust"
    rules = postgres15.data / "pg_hba.conf"
    text = rules.read_text()
    try:
        rules.write_text(f"{line}\n")
        assert sql(postgres15, "postgres", "SELECT count(*), max(error) FROM pg_hba_file_rules") == [(1, None)]
    finally:
        rules.write_text(text)


@pytest.mark.parametrize("address", ["", "10.0.0.1/8", "all trust", "10.0.0.0/8 trust\nhost", "a b", "300.0.0.0/8", "x/y", "#"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        check_address(address)
