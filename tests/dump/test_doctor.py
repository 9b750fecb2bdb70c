"""`doctor`: each of its checks is made to fail, on real servers, real stores and a real repository."""

import dataclasses
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipper_backup.clock import Clock, SystemClock, VirtualClock
from clipper_backup.config import load
from clipper_backup.format.documents import KeyCheck, encode
from clipper_backup.format.sealing import Identity
from clipper_backup.format.signing import SigningKey
from clipper_backup.ops.doctor import examine as examining
from clipper_backup.ops.doctor.declared import Check, Surroundings
from clipper_backup.ops.doctor.examine import CHECKS, Line, examine
from clipper_backup.ops.doctor.of_store import PROBE
from clipper_backup.ops.findings import Colour, Finding
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import environment
from fixtures.dump import FAULTS, SUMMARY_SUFFIX, Site, check_told, copy_dump, let_time_pass
from fixtures.monitoring import RunningPushgateway
from fixtures.pooler import running_pooler
from fixtures.postgres import FAST, fresh_database, fresh_role, private_folder, server_binaries, sql
from fixtures.stores import S3Server

GREEN, YELLOW, RED = Colour.GREEN, Colour.YELLOW, Colour.RED
NAMES = [check.name for check in CHECKS]


@dataclasses.dataclass
class Case:
    """One run of all checks: what it may break is closed with `stack`; `env` is what the program finds there."""

    site: Site
    request: pytest.FixtureRequest
    tmp_path: Path
    stack: ExitStack
    clock: Clock = dataclasses.field(default_factory=SystemClock)

    @property
    def folder(self) -> Path:
        return self.site.folder

    def object(self, dump_id: str, part: str) -> Path:
        return self.folder / f"database/{dump_id}.{part}"

    def database(self) -> str:
        """A fresh one on the server, empty."""
        return self.stack.enter_context(fresh_database(self.site.server))

    def role(self, *, reads_all: bool) -> dict[str, str]:
        """The settings with which a new role logs in over the socket."""
        where = self.site.server.connection()
        name = self.stack.enter_context(fresh_role(self.site.server, "LOGIN"))
        if reads_all:
            sql(self.site.server, "postgres", f"GRANT pg_read_all_data TO {name}")
        return {"PGHOST": where["host"], "PGPORT": where["port"], "PGUSER": name}

    def deaf_port(self) -> str:
        port: str = self.request.getfixturevalue("deaf_port")
        return port

    def bucket(self) -> tuple[S3Server, dict[str, str]]:
        server: S3Server = self.request.getfixturevalue("s3_server")
        url = f"s3://{server.bucket}/{self.request.getfixturevalue('s3_prefix')}"
        return server, {"BACKUP_URL": url, "BACKUP_ENDPOINT": server.endpoint} | server.environment

    def look(self, monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, str]) -> dict[str, Line]:
        """What every check finds."""
        variables = environment({**self.site.settings, **settings})
        for name in os.environ:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        lines = list(examine(lambda: load({}, variables).settings, self.clock, variables))
        assert [line.check.name for line in lines] == NAMES, "every check has its line, whatever happens"
        return {line.check.name: line for line in lines}


Breaks = Callable[[Case], Mapping[str, str]]
"""Breaks something, and returns what the settings are then beside the usual ones."""
BROKEN: list[tuple[str, Colour, str, Breaks]] = []


def breaks(name: str, colour: Colour, words: str) -> Callable[[Breaks], Breaks]:
    """The function below it breaks what the check *name* looks at, which then says *words*."""

    def declare(function: Breaks) -> Breaks:
        BROKEN.append((name, colour, words, function))
        return function

    return declare


# -- settings and store


@breaks("settings", RED, "bad value for RETENTION_DAYS")
def a_setting_is_no_number(case: Case) -> Mapping[str, str]:
    return {"RETENTION_DAYS": "often"}


@breaks("settings", RED, "no repository is configured")
def no_store_is_named(case: Case) -> Mapping[str, str]:
    return {"BACKUP_URL": ""}


@breaks("store", RED, "127.0.0.1")
def the_store_is_away(case: Case) -> Mapping[str, str]:
    return {**case.bucket()[1], "BACKUP_ENDPOINT": f"http://127.0.0.1:{case.deaf_port()}", "STORE_RETRY_SECONDS": "0"}


@breaks("store", RED, "")
def this_key_may_not_list(case: Case) -> Mapping[str, str]:
    server, settings = case.bucket()
    return {**settings, "AWS_ACCESS_KEY_ID": server.getter_access_key, "AWS_SECRET_ACCESS_KEY": server.getter_secret_key}


@breaks("write", RED, PROBE)
def this_key_may_only_read(case: Case) -> Mapping[str, str]:
    server, settings = case.bucket()
    return {**settings, "AWS_ACCESS_KEY_ID": server.reader_access_key, "AWS_SECRET_ACCESS_KEY": server.reader_secret_key}


@breaks("write", RED, "other bytes")
def the_store_gives_back_other_bytes(case: Case) -> Mapping[str, str]:
    return {FAULTS: "get:1:flip"}


@breaks("conditional create", RED, "created an object where one was")
def the_store_does_not_know_conditional_create(case: Case) -> Mapping[str, str]:
    return {FAULTS: "put:1+:overwrite"}


@breaks("durable", RED, "lies in memory (tmpfs)")
def the_repository_lies_in_memory(case: Case) -> Mapping[str, str]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="clipper-test-"))
    case.stack.callback(shutil.rmtree, folder)
    return {"BACKUP_URL": f"file://{folder}"}


@breaks("clock", YELLOW, "the store's clock and ours differ by ")
def our_clock_is_five_minutes_slow(case: Case) -> Mapping[str, str]:
    case.clock = VirtualClock(datetime.now(UTC) - timedelta(minutes=5))
    return {}


@breaks("clock", RED, "the store's clock and ours differ by ")
def our_clock_is_an_hour_fast(case: Case) -> Mapping[str, str]:
    case.clock = VirtualClock(datetime.now(UTC) + timedelta(hours=1))
    return {}


@breaks("clock", RED, "lies ahead of the store's clock: no dump can be taken")
def a_dump_was_taken_by_a_clock_that_ran_ahead(case: Case) -> Mapping[str, str]:
    copy_dump(case.folder, case.site.recent, -2)
    return {}


# -- what is in the repository


@breaks("repository", RED, "no repository at")
def there_is_no_repository(case: Case) -> Mapping[str, str]:
    (case.folder / "repository.json").unlink()
    return {}


@breaks("repository", RED, "repository.json is damaged")
def the_repository_is_damaged(case: Case) -> Mapping[str, str]:
    (case.folder / "repository.json").write_text("{")
    return {}


@breaks("newest dump", RED, "40 d 0 h old, and is the newest good dump of")
def the_newest_dump_is_gone(case: Case) -> Mapping[str, str]:
    for path in (case.folder / "database").glob(f"{case.site.recent}.*"):
        path.unlink()
    return {}


@breaks("newest dump", RED, "no good dump holds shop")
def a_database_was_never_dumped(case: Case) -> Mapping[str, str]:
    return {"BACKUP_DATABASES": f"{case.site.database},shop"}


@breaks("newest dump", RED, "there is no good dump")
def there_is_no_dump(case: Case) -> Mapping[str, str]:
    shutil.rmtree(case.folder / "database")
    return {"BACKUP_DATABASES": ""}


@breaks("damaged dumps", RED, "the newest dump is damaged")
def the_newest_dump_lost_its_globals(case: Case) -> Mapping[str, str]:
    case.object(case.site.recent, "globals.sql.zst").unlink()
    return {}


@breaks("damaged dumps", YELLOW, "1, the newest of them")
def an_older_dump_lost_its_summary(case: Case) -> Mapping[str, str]:
    case.object(case.site.old, SUMMARY_SUFFIX[1:]).write_text("{")
    return {}


@breaks("unfinished dumps", YELLOW, "1, the newest of them postgres-backup-20200101-000000")
def a_run_was_killed_two_days_ago(case: Case) -> Mapping[str, str]:
    left = case.object("postgres-backup-20200101-000000", "intent")
    left.write_text("{}")
    let_time_pass(case.folder, hours=48)
    return {}


def take_lease(case: Case, *, hours_ago: float) -> Path:
    epoch = case.folder / "locks/dump/0000000099"
    epoch.mkdir(parents=True)
    (epoch / "holder").write_text("somebody")
    let_time_pass(case.folder, hours=hours_ago, below="locks")
    return epoch


@breaks("lease", YELLOW, "left by somebody, silent for 1 h 0 min: the next run takes it over")
def a_job_died_with_the_lease(case: Case) -> Mapping[str, str]:
    take_lease(case, hours_ago=1)
    return {}


@breaks("lease", RED, "and it lives: no other run gets it")
def a_job_holds_the_lease_for_days(case: Case) -> Mapping[str, str]:
    (take_lease(case, hours_ago=30) / "renewal-7").write_text("renewed\n")
    return {}


@breaks("holds", YELLOW, "1 keep a dump that is not there: postgres-backup-20200101-000000")
def a_hold_keeps_what_is_gone(case: Case) -> Mapping[str, str]:
    (case.folder / "holds").mkdir()
    (case.folder / "holds/postgres-backup-20200101-000000").write_text("{}")
    return {}


# -- keys


def seal_newest(case: Case, *recipients: str) -> dict[str, str]:
    settings = {"ENCRYPTION_RECIPIENTS": ",".join(recipients)}
    outcome = case.site.run("dump", "create", **settings)
    assert outcome.code == 0, outcome
    return settings


@breaks("encryption", YELLOW, "dumps are plain")
def nothing_is_sealed(case: Case) -> Mapping[str, str]:
    return {}


@breaks("encryption", RED, "no ENCRYPTION_RECIPIENTS to seal to: nothing is dumped plain")
def an_identity_and_no_recipients(case: Case) -> Mapping[str, str]:
    return {"ENCRYPTION_IDENTITY_FILE": "/etc/clipper-backup/identity"}


@breaks("encryption", RED, "the newest dump is sealed, and no ENCRYPTION_RECIPIENTS are set")
def the_recipients_got_lost(case: Case) -> Mapping[str, str]:
    seal_newest(case, Identity.make().recipient)
    return {}


@breaks("encryption", YELLOW, "the newest one is plain")
def sealing_was_switched_on_just_now(case: Case) -> Mapping[str, str]:
    return {"ENCRYPTION_RECIPIENTS": Identity.make().recipient}


@breaks("recipients", YELLOW, "one key opens dumps")
def one_key_alone(case: Case) -> Mapping[str, str]:
    return {"ENCRYPTION_RECIPIENTS": Identity.make().recipient}


@breaks("key check", RED, "no key was ever shown to open a dump")
def no_key_was_ever_tried(case: Case) -> Mapping[str, str]:
    return seal_newest(case, Identity.make().recipient, Identity.make().recipient)


def note_check(case: Case, recipient: str, *, days_ago: int) -> None:
    at = datetime.now(UTC) - timedelta(days=days_ago)
    mark = KeyCheck(recipient=recipient, dump_id=case.site.dumps[-1], checked_at=at, checked_by="somebody")
    (case.folder / "key-checks").mkdir(exist_ok=True)
    (case.folder / "key-checks" / recipient).write_bytes(encode(mark))


@breaks("key check", YELLOW, "opened a dump 31 d")
def the_key_was_tried_a_month_ago(case: Case) -> Mapping[str, str]:
    ours = Identity.make().recipient
    settings = seal_newest(case, ours)
    note_check(case, ours, days_ago=31)
    return settings


@breaks("key check", YELLOW, "was never shown to open a dump")
def the_recovery_key_was_never_tried(case: Case) -> Mapping[str, str]:
    ours = Identity.make().recipient
    settings = seal_newest(case, ours, Identity.make().recipient)
    note_check(case, ours, days_ago=0)
    return settings


@breaks("signing", YELLOW, "dumps are not signed")
def nothing_is_signed(case: Case) -> Mapping[str, str]:
    return {}


@breaks("signing", RED, "the newest dump is not trusted")
def the_newest_dump_is_not_signed(case: Case) -> Mapping[str, str]:
    path = case.tmp_path / "signing.key"
    path.write_bytes(SigningKey.make().reveal())
    return {"SIGNING_KEY_FILE": str(path)}


@breaks("signing", RED, "there is no SIGNING_KEY_FILE")
def the_signing_key_is_not_mounted(case: Case) -> Mapping[str, str]:
    return {"SIGNATURE_KEYS": SigningKey.make().public}


# -- PostgreSQL


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


# -- this machine, and who is told


@breaks("scratch", RED, "cannot use /nonexistent as scratch space")
def scratch_is_no_folder(case: Case) -> Mapping[str, str]:
    return {"SCRATCH_DIR": "/nonexistent"}


@breaks("scratch", YELLOW, "restore with --jobs 1")
def the_archive_is_larger_than_scratch(case: Case) -> Mapping[str, str]:
    enlarge(case)
    return {}


@breaks("scratch", RED, "with DUMP_JOBS > 1 every dump needs that room")
def the_next_dump_needs_more_than_scratch(case: Case) -> Mapping[str, str]:
    enlarge(case)
    return {"DUMP_JOBS": "2"}


def enlarge(case: Case) -> None:
    """Let the newest dump be of a database that no disk here has room for."""
    path = case.object(case.site.recent, SUMMARY_SUFFIX[1:])
    summary = json.loads(path.read_bytes())
    summary["objects"][0]["plain_bytes"] = 10**17
    path.write_text(json.dumps(summary))


@breaks("pushgateway", YELLOW, "PROMETHEUS_PUSHGATEWAY is not set")
def nobody_is_told(case: Case) -> Mapping[str, str]:
    return {}


@breaks("pushgateway", RED, "cannot reach the Pushgateway")
def the_pushgateway_is_away(case: Case) -> Mapping[str, str]:
    return {"PROMETHEUS_PUSHGATEWAY": f"http://127.0.0.1:{case.deaf_port()}"}


@breaks("pushgateway", RED, "answered 4")
def something_else_answers(case: Case) -> Mapping[str, str]:
    return {"PROMETHEUS_PUSHGATEWAY": case.bucket()[0].endpoint}


@pytest.fixture
def case(site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    with ExitStack() as stack:
        yield Case(site, request, tmp_path, stack)


def test_every_check_is_made_to_fail_here() -> None:
    assert {name for name, *_ in BROKEN} == set(NAMES)
    assert len(set(NAMES)) == len(NAMES)


def test_what_is_needed_is_looked_at_before() -> None:
    for number, check in enumerate(CHECKS):
        assert set(check.needs) <= set(NAMES[:number]), check.name


@pytest.mark.parametrize(("name", "colour", "words", "function"), BROKEN, ids=[each[3].__name__ for each in BROKEN])
def test_a_check_sees_what_is_wrong(
    name: str, colour: Colour, words: str, function: Breaks, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = case.look(monkeypatch, function(case))[name]
    assert line.finding.colour is colour, line
    assert words in line.finding.text
    assert "internal error" not in line.finding.text
    assert line.todo, "whatever is not green says what to do"


def test_all_is_green_where_all_is_right(case: Case, monkeypatch: pytest.MonkeyPatch, pushgateway: RunningPushgateway) -> None:
    """But for what only more machines could make green."""
    ours, offline = Identity.make(), Identity.make()
    for name, secret in (("signing.key", SigningKey.make().reveal()), ("ours", ours.reveal().encode())):
        (case.tmp_path / name).write_bytes(secret)
    settings = {
        **case.bucket()[1],
        "ENCRYPTION_RECIPIENTS": f"{ours.recipient},{offline.recipient}",
        "SIGNING_KEY_FILE": str(case.tmp_path / "signing.key"),
        "PROMETHEUS_PUSHGATEWAY": pushgateway.url,
    }
    assert case.site.run("dump", "create", **settings).code == 0
    assert case.site.run("key", "check", "--identity", str(case.tmp_path / "ours"), **settings).code == 0
    lines = case.look(monkeypatch, settings)
    notes = {name: line.finding.text for name, line in lines.items() if line.finding.colour is not GREEN}
    assert notes == {"key check": f"{offline.recipient} was never shown to open a dump"}
    assert all(line.todo == () for line in lines.values() if line.finding.colour is GREEN)
    assert pushgateway.metrics() == {}, "nothing is reported"


def test_a_pooler_that_keeps_sessions_apart_is_none_of_our_business(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    port = case.stack.enter_context(running_pooler(case.site.server, "session"))
    assert case.look(monkeypatch, {"PGHOST": "127.0.0.1", "PGPORT": port})["sessions"].finding.colour is GREEN


def test_a_standby_that_waits_for_dumps_is_green(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = case.stack.enter_context(standby(hot_standby_feedback="on"))
    assert case.look(monkeypatch, settings)["standby"].finding == Finding(GREEN, "a standby that lets dumps finish")


def test_nothing_is_left_in_the_store(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.look(monkeypatch, {})
    assert case.site.objects.keys() - {"clock"} == case.site.before.keys() - {"clock"}
    case.site.check_untouched()


# -- whatever happens


def test_what_raises_is_a_red_line_and_the_others_go_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(here: Surroundings) -> Finding:
        raise ZeroDivisionError(f"with {here.settings.retention_days}")

    other = Check("other", "nothing", "nothing", (), lambda _: Finding(GREEN, "as it should be"))
    after = Check("after", "nothing", "nothing", ("broken", "other"), other.look)
    monkeypatch.setattr(examining, "CHECKS", (Check("broken", "a bug", "report it", (), fails), other, after))
    broken, fine, skipped = examine(lambda: load({}, {}).settings, SystemClock(), {})
    assert (broken.finding.colour, broken.finding.text) == (RED, "internal error: ZeroDivisionError: with 30")
    assert fine.finding.colour is GREEN
    assert (skipped.finding, skipped.todo) == (Finding(YELLOW, "not looked at before this is right: broken"), ())


def test_what_hangs_is_a_red_line_and_the_others_go_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "CHECK_SECONDS", 2.0)
    lines = case.look(monkeypatch, {FAULTS: "list:1:slow=3600"})
    assert lines["store"].finding == Finding(RED, "no answer within 2.0 s")
    assert lines["database server"].finding.colour is GREEN


def test_when_time_is_up_the_rest_is_red(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "ALL_SECONDS", 0.0)
    lines = case.look(monkeypatch, {})
    assert lines["settings"].finding.text == "not looked at: the others took 0.0 s"
    assert {line.finding.colour for line in lines.values()} == {RED, YELLOW}


def test_servers_that_take_connections_and_never_answer_do_not_hold_it_up(case: Case) -> None:
    """The real program: it ends by itself, though nobody it asks ever says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        outcome = case.site.run(
            "doctor",
            "--json",
            **{
                **case.bucket()[1],
                "BACKUP_ENDPOINT": f"http://127.0.0.1:{port}",
                "STORE_TIMEOUT_SECONDS": "2",
                "STORE_RETRY_SECONDS": "0",
                "PGPORT": port,
                "PROMETHEUS_PUSHGATEWAY": f"http://127.0.0.1:{port}",
            },
        )
    assert outcome.code == 1
    red = {item["id"] for item in outcome.document["items"] if item["colour"] == "red"}
    assert red == {"store", "database server", "pushgateway"}


def test_no_secret_is_shown(case: Case) -> None:
    """Not where all is well, and not in what is said of logins that are refused."""
    secrets = {"PGPASSWORD": "pg-hunter2", "AWS_SECRET_ACCESS_KEY": "s3-hunter2"}
    gateway = {"PROMETHEUS_PUSHGATEWAY": f"http://somebody:gw-hunter2@127.0.0.1:{case.deaf_port()}"}
    in_url = {"BACKUP_URL": f"s3://key:url-hunter2@{case.bucket()[0].bucket}"}
    for settings in ({**case.bucket()[1], **secrets, **gateway}, {**in_url, **secrets}):
        for words in (["doctor"], ["doctor", "--json"], ["status"], ["bucket", "check", "--objects", "1", "--size", "1MiB"]):
            outcome = case.site.run(*words, **settings)
            assert outcome.code != 0
            assert "hunter2" not in outcome.stdout + outcome.stderr


# -- as people run it


def test_exit_codes_and_text(site: Site, deaf_port: str) -> None:
    fine = site.run("doctor")
    assert (fine.code, fine.stderr) == (0, ""), fine
    assert fine.stdout.splitlines()[-1].endswith(" yellow, 0 red")
    away = site.run("doctor", PGPORT=deaf_port)
    check_told(away, 1, "red, 1 of ", "database server", hint="what to do")
    assert "RED" in away.stdout
    assert "-> check PGHOST and PGPORT" in away.stdout
