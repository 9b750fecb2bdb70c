"""`doctor` on point-in-time recovery: each check is made to fail, and is green on a server that archives."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import load
from clipper_backup.format import physical_names as names
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.doctor import of_recovery
from clipper_backup.ops.events import ignore
from clipper_backup.ops.work import open_work
from clipper_backup.postgres.archiver_facts import ArchiverFacts, read_archiver
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.store.local import LocalStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster
from fixtures.doctor import GREEN, RED, YELLOW, Breaks, Broken, Case, names_in
from fixtures.postgres import FAST, fresh_role, login_to, private_folder, server_binaries, sql
from fixtures.wal_archive import MIB, segment_name
from fixtures.wal_look import MadeRepository

pytestmark = pytest.mark.soak(share=0.25)
DAY_SECONDS = 86_400
_SECONDS = 60

breaks = Breaks()


@contextmanager
def server_that_archives(
    command: str, count: int, reached: Callable[[ArchiverFacts], bool], **settings: str
) -> Iterator[PrivateServer]:
    """With that archive_command, when *count* segments were ended, and its archiver *reached* what is waited for."""
    settings = FAST | {"archive_mode": "on", "archive_command": command} | settings
    with (
        private_folder() as folder,
        PrivateServer(folder / "server", server_binaries(15), environment=os.environ, settings=settings) as server,
    ):
        server.initdb(sync=False, wal_segment_mib=1)
        server.start()
        for _ in range(count):
            sql(server, "postgres", "SELECT pg_logical_emit_message(false, '', repeat('x', 900000)), pg_switch_wal()")
        deadline = time.monotonic() + _SECONDS
        while not reached(read_archiver(login_to(server))):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server
        server.stop("immediate")


@pytest.fixture(scope="module")
def failing_server() -> Iterator[PrivateServer]:
    """Its archive_command fails, and its pg_wal grows."""
    small = {"max_wal_size": "2MB", "min_wal_size": "2MB"}
    with server_that_archives("false", 6, lambda facts: facts.failing, **small) as server:
        yield server


@pytest.fixture(scope="module")
def forgetful_server() -> Iterator[PrivateServer]:
    """Its archive_command says yes to everything, and keeps nothing."""
    with server_that_archives("/bin/true", 8, lambda facts: (facts.last_archived or "") >= segment_name(1, 8)) as server:
        yield server


def of_failing_server(case: Case, which: str = "failing_server") -> dict[str, str]:
    where = case.request.getfixturevalue(which).connection()
    return {"PGHOST": where["host"], "PGPORT": where["port"], "PGUSER": where["user"], "BACKUP_DATABASES": "postgres"}


def system_of(server: PrivateServer) -> str:
    ((system_id,),) = sql(server, "postgres", "SELECT system_identifier::text FROM pg_control_system()")
    return str(system_id)


def made(case: Case, *, days_ago: float = 0, system_id: str | None = None) -> tuple[MadeRepository, dict[str, str]]:
    """A repository with a base backup of the site's server, and what names it."""
    clock = VirtualClock(SystemClock().now())
    clock.advance(-days_ago * DAY_SECONDS)
    folder = case.tmp_path / "physical"
    made = MadeRepository(clock, system_id or system_of(case.site.server), LocalStore(folder))
    made.archive.segments(1, 3, 7)
    made.backup(1, 3, 4)
    return made, {"BACKUP_URL": f"file://{folder}"}


@breaks("archiving", YELLOW, "point-in-time recovery is off: archive_mode is off")
def the_server_does_not_archive(case: Case) -> Mapping[str, str]:
    return {}


@breaks("archiving", RED, "archive_mode is off, and there are base backups and WAL")
def the_server_archives_no_more(case: Case) -> Mapping[str, str]:
    return made(case)[1]


@breaks("base backup access", RED, "refused the login")
def a_role_that_may_not_replicate(case: Case) -> Mapping[str, str]:
    settings = of_failing_server(case)
    role = case.stack.enter_context(fresh_role(case.request.getfixturevalue("failing_server"), "LOGIN"))
    return settings | {"PGUSER": role}


@breaks("base backup access", RED, "/nowhere is no data folder of PostgreSQL")
def the_data_folder_is_not_mounted_there(case: Case) -> Mapping[str, str]:
    return of_failing_server(case) | {"BASE_SOURCE": "files", "PGDATA": "/nowhere"}


@breaks("base backup access", RED, "may not call pg_backup_start(text,boolean), pg_backup_stop(boolean)")
def a_role_that_may_replicate_and_not_begin_a_backup(case: Case) -> Mapping[str, str]:
    settings = of_failing_server(case)
    role = case.stack.enter_context(fresh_role(case.request.getfixturevalue("failing_server"), "LOGIN REPLICATION"))
    return settings | {"PGUSER": role, "BASE_SOURCE": "files"}


@breaks("base backup access", RED, "the repository is of 42")
def the_repository_is_another_clusters(case: Case) -> Mapping[str, str]:
    return made(case, system_id="42")[1] | of_failing_server(case)


@breaks("newest base backup", RED, "there is no base backup and no WAL here")
def archiving_was_just_switched_on(case: Case) -> Mapping[str, str]:
    return of_failing_server(case)


@breaks("newest base backup", RED, "2 d 0 h old, more than BASE_MAX_AGE_HOURS (25)")
def the_last_base_backup_is_two_days_old(case: Case) -> Mapping[str, str]:
    return made(case, days_ago=2)[1]


@breaks("newest base backup", YELLOW, "1 other is not good, the newest of them")
def an_older_base_backup_lost_its_manifest(case: Case) -> Mapping[str, str]:
    repository, settings = made(case)
    (first,) = repository.look().backups
    repository.clock.advance(1)
    repository.backup(1, 6, 6)
    repository.store.delete([names.base_key(BackupId.parse(str(first.listed.backup_id)), names.MANIFEST)])
    return settings


@breaks("WAL archive", RED, "1 gap, the first at 000000010000000000000006: ")
def a_segment_is_missing(case: Case) -> Mapping[str, str]:
    repository, settings = made(case)
    repository.archive.lose(segment_name(1, 6))
    return settings


@breaks("WAL archive", RED, "the server writes on timeline 1, and a restore to the latest leaves that out")
def a_copy_archives_into_the_same_repository(case: Case) -> Mapping[str, str]:
    repository, settings = made(case)
    repository.archive.history(2, (1, 6 * MIB))
    repository.archive.segment(2, 6)
    return settings


@breaks("recovery window", YELLOW, "less than PITR_WINDOW_DAYS (7) ago")
def the_first_base_backup_is_of_today(case: Case) -> Mapping[str, str]:
    return made(case)[1]


@breaks("outage", YELLOW, "a bucket's rule that deletes all at 30 days takes what the window needs")
def a_window_that_is_longer_than_what_is_kept_young(case: Case) -> Mapping[str, str]:
    return {"PITR_WINDOW_DAYS": "20", "MAX_PACK_AGE_DAYS": "14"}


@breaks("archiver", RED, "times so far; it never worked")
def the_archive_command_fails(case: Case) -> Mapping[str, str]:
    return of_failing_server(case)


@breaks("archiver", RED, "is archived, and it is not here, its timeline ends with 000000010000000000000007")
def the_archive_command_archives_elsewhere(case: Case) -> Mapping[str, str]:
    server = case.request.getfixturevalue("forgetful_server")
    return made(case, system_id=system_of(server))[1] | of_failing_server(case, "forgetful_server")


@breaks("archiver", YELLOW, "archive_mode is off: see the check `archiving`")
def nothing_is_archived_any_more(case: Case) -> Mapping[str, str]:
    return made(case)[1]


@breaks("pg_wal", YELLOW, ", of 2.1 MB that max_wal_size and wal_keep_size allow")
def what_is_not_archived_piles_up(case: Case) -> Mapping[str, str]:
    return of_failing_server(case)


@breaks("pg_wal", YELLOW, "this role may not see how large pg_wal is")
def a_role_without_pg_monitor(case: Case) -> Mapping[str, str]:
    return a_role_that_may_not_replicate(case)


@pytest.mark.parametrize("broken", breaks.all, ids=str)
def test_a_check_sees_what_is_wrong(broken: Broken, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.check(case, monkeypatch)


def test_every_check_is_made_to_fail_here() -> None:
    assert {broken.name for broken in breaks.all} == names_in(of_recovery)


def test_where_nobody_wants_it_one_line_says_so_and_none_is_red(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = case.look(monkeypatch, {})
    found = {name: line.finding for name, line in lines.items() if name in names_in(of_recovery)}
    assert found.pop("archiving").colour is YELLOW
    assert found.pop("outage").colour is GREEN  # it is of settings alone
    assert {(finding.colour, finding.text) for finding in found.values()} == {(GREEN, "point-in-time recovery is off")}


def test_of_a_server_that_archives_all_is_green_but_the_young_window(
    case: Case, archived15: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = archived15.settings(BACKUP_URL=f"file://{case.tmp_path}/repository", BACKUP_DATABASES="postgres")
    work = open_work(load({}, settings).settings, SystemClock(), ignore, read_only=False)
    with archived15.archiving(work):
        create_base(work)
        lines = case.look(monkeypatch, settings)
    found = {name: lines[name].finding for name in names_in(of_recovery)}
    assert found.pop("recovery window").colour is YELLOW
    assert {name: finding.text for name, finding in found.items() if finding.colour is not GREEN} == {}
