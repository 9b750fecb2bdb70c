"""`doctor` on PostgreSQL: each check is made to fail, on real servers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from clipper_backup.ops.doctor import of_server
from clipper_backup.ops.findings import Finding
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from fixtures.doctor import GREEN, RED, YELLOW, Breaks, Broken, Case, names_in
from fixtures.pooler import running_pooler
from fixtures.postgres import FAST, private_folder, server_binaries, sql

pytestmark = pytest.mark.soak(share=0.25)

breaks = Breaks()


@breaks("database server", RED, "Connection refused")
def the_server_is_away(case: Case) -> Mapping[str, str]:
    return {"PGPORT": case.deaf_port()}


@breaks("database server", RED, "refused the login")
def the_password_is_wrong(case: Case) -> Mapping[str, str]:
    return {"PGPASSWORD": "wrong"}


@breaks("databases", RED, "shop is not there")
def a_database_is_not_there(case: Case) -> Mapping[str, str]:
    return {"BACKUP_DATABASES": f"{case.site.database},shop"}


@breaks("databases", RED, "permission denied for database")
def a_database_lets_nobody_in(case: Case) -> Mapping[str, str]:
    name = case.database()
    sql(case.site.server, "postgres", f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    return {**case.role(reads_all=True), "BACKUP_DATABASES": name}


@breaks("databases", YELLOW, "not dumped: ")
def another_database_is_not_dumped(case: Case) -> Mapping[str, str]:
    case.database()
    return {}


@breaks("databases", YELLOW, "not dumped: ")
def a_database_is_closed(case: Case) -> Mapping[str, str]:
    sql(case.site.server, "postgres", f"ALTER DATABASE {case.database()} ALLOW_CONNECTIONS false")
    return {}


@breaks("table privileges", RED, "no right to read public.clips in ")
def a_role_without_privileges(case: Case) -> Mapping[str, str]:
    name = case.database()
    sql(case.site.server, name, "CREATE TABLE clips (id bigserial); GRANT SELECT ON SEQUENCE clips_id_seq TO PUBLIC")
    return {**case.role(reads_all=False), "BACKUP_DATABASES": name}


@breaks("table privileges", RED, "no right to read public.clips_id_seq in ")
def a_role_that_may_not_read_a_sequence(case: Case) -> Mapping[str, str]:
    name = case.database()
    sql(case.site.server, name, "CREATE TABLE clips (id bigserial); GRANT SELECT ON clips TO PUBLIC")
    return {**case.role(reads_all=False), "BACKUP_DATABASES": name}


@breaks("row security", RED, "rows may be hidden in public.clips in ")
def a_table_with_row_security(case: Case) -> Mapping[str, str]:
    name = case.database()
    sql(case.site.server, name, "CREATE TABLE clips (id int); ALTER TABLE clips ENABLE ROW LEVEL SECURITY")
    return {**case.role(reads_all=True), "BACKUP_DATABASES": name}


@breaks("large objects", RED, "no right to read 2 in ")
def large_objects_of_others(case: Case) -> Mapping[str, str]:
    name = case.database()
    sql(case.site.server, name, "SELECT lo_create(0), lo_create(0), lo_create(7)")
    sql(case.site.server, name, "GRANT SELECT ON LARGE OBJECT 7 TO PUBLIC")
    return {**case.role(reads_all=True), "BACKUP_DATABASES": name}


@breaks("passwords", YELLOW, "roles are dumped without their passwords")
def a_role_that_may_not_read_passwords(case: Case) -> Mapping[str, str]:
    return case.role(reads_all=False)


@breaks("left out", YELLOW, "public.elsewhere (foreign) in ")
def a_foreign_table(case: Case) -> Mapping[str, str]:
    name = case.database()
    wrapped = "CREATE FOREIGN DATA WRAPPER none; CREATE SERVER elsewhere FOREIGN DATA WRAPPER none;"
    sql(case.site.server, name, f"{wrapped} CREATE FOREIGN TABLE elsewhere (id int) SERVER elsewhere")
    return {"BACKUP_DATABASES": name}


@contextmanager
def standby(**settings: str) -> Iterator[dict[str, str]]:
    """How to reach a standby of its own, with an unlogged table."""
    with (
        private_folder() as folder,
        PrivateServer(folder / "server", server_binaries(15), environment=os.environ, settings=FAST | settings) as server,
    ):
        server.initdb(sync=False)
        server.start()
        sql(server, "postgres", "CREATE UNLOGGED TABLE passing (id int)")
        server.stop()
        (server.data / "standby.signal").touch()
        server_account().own(server.data / "standby.signal")
        server.start()
        where = server.connection()
        yield {"PGHOST": where["host"], "PGPORT": where["port"], "PGUSER": where["user"], "BACKUP_DATABASES": "postgres"}


@breaks("standby", YELLOW, "may cancel a long dump")
def a_standby_that_cancels(case: Case) -> Mapping[str, str]:
    return case.stack.enter_context(standby())


@breaks("left out", YELLOW, "public.passing (unlogged) in postgres")
def a_standby_without_the_unlogged(case: Case) -> Mapping[str, str]:
    return case.stack.enter_context(standby())


@breaks("sessions", RED, "a pooler in transaction mode")
def a_pooler_stands_between(case: Case) -> Mapping[str, str]:
    port = case.stack.enter_context(running_pooler(case.site.server, "transaction"))
    return {"PGHOST": "127.0.0.1", "PGPORT": port}


@breaks("client programs", RED, "PG_BINDIR does not hold")
def the_programs_are_not_there(case: Case) -> Mapping[str, str]:
    return {"PG_BINDIR": "/nonexistent"}


@breaks("client programs", RED, "is older than 18")
def the_programs_are_older_than_the_server(case: Case) -> Mapping[str, str]:
    where = case.request.getfixturevalue("postgres18").connection()
    older = server_binaries(15).program("pg_dump").parent
    return {"PGHOST": where["host"], "PGPORT": where["port"], "BACKUP_DATABASES": "", "PG_BINDIR": str(older)}


@breaks("client programs", YELLOW, "which one the server needs is not known")
def nobody_says_which_programs_are_needed(case: Case) -> Mapping[str, str]:
    return {"PGPORT": case.deaf_port()}


@pytest.mark.parametrize("broken", breaks.all, ids=str)
def test_a_check_sees_what_is_wrong(broken: Broken, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.check(case, monkeypatch)


def test_every_check_is_made_to_fail_here() -> None:
    assert {broken.name for broken in breaks.all} == names_in(of_server)


def test_a_pooler_that_keeps_sessions_apart_is_none_of_our_business(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    port = case.stack.enter_context(running_pooler(case.site.server, "session"))
    assert case.look(monkeypatch, {"PGHOST": "127.0.0.1", "PGPORT": port})["sessions"].finding.colour is GREEN


def test_a_standby_that_waits_for_dumps_is_green(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = case.stack.enter_context(standby(hot_standby_feedback="on"))
    assert case.look(monkeypatch, settings)["standby"].finding == Finding(GREEN, "a standby that lets dumps finish")
