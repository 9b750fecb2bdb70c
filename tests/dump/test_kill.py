"""SIGKILL at every call to the store: every committed dump stays whole, and the same command run again does its work."""

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil
import pytest

from clipper_backup.ops.dump.read import catalog
from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import DEADLINE_SECONDS
from fixtures.dump import (
    FAULTS,
    WORKING_PREFIX,
    Site,
    Stepped,
    check_told,
    check_whole,
    committed_dumps,
    content_of_small,
    copy_dump,
    databases_of,
    drop_databases,
    ended,
    halted,
    kill,
    let_time_pass,
    parts_of,
    wait_for_session,
    wait_for_silence,
)
from fixtures.postgres import connect, fresh_database, sql
from fixtures.sweeps import chosen

pytestmark = pytest.mark.soak(share=0.25)

KILLS_OF_EACH = 2


@dataclass(frozen=True)
class Command:
    """A command that writes: what it `removes` and how many dumps it `adds` when nothing stops it."""

    words: tuple[str, ...]
    removes: tuple[str, ...]
    adds: int
    settings: Mapping[str, str]


def create(site: Site) -> Command:
    return Command(("dump", "create"), (), 1, {})


def job(site: Site) -> Command:
    return Command(("job", "postgres-backup"), (site.old, leave_garbage(site)), 1, {"RETENTION_MIN_DUMPS": "1"})


def delete(site: Site) -> Command:
    return Command(("dump", "delete", site.old, "--yes"), (site.old,), 0, {})


def prune(site: Site) -> Command:
    return Command(("prune", "--yes"), (site.old, leave_garbage(site)), 0, {"RETENTION_MIN_DUMPS": "1"})


EVERY_COMMAND = pytest.mark.parametrize("command_of", [create, job, delete, prune])


def leave_garbage(site: Site) -> str:
    """What a run left that died two days ago; its id."""
    garbage = copy_dump(site.folder, site.recent, 2)
    (site.folder / "database" / f"{garbage}.backup.json").unlink()
    let_time_pass(site.folder, hours=48, below="database")
    return garbage


@EVERY_COMMAND
def test_at_no_moment_of_a_run_does_a_committed_dump_lack_a_part_or_change(
    site: Site, command_of: Callable[[Site], Command]
) -> None:
    command = command_of(site)
    moments = list(each_moment(site, command))

    assert len(moments) > 10
    for now, then in itertools.pairwise(moments):
        check_whole(then)
        for dump_id in committed_dumps(now):
            if dump_id in committed_dumps(then):
                assert parts_of(then, dump_id) == parts_of(now, dump_id)
            else:
                assert dump_id in command.removes
    check_done(site, command)


@EVERY_COMMAND
@pytest.mark.soak
def test_after_a_kill_at_any_call_to_the_store_all_dumps_are_good_and_the_next_run_does_the_work(
    site: Site, command_of: Callable[[Site], Command]
) -> None:
    command = command_of(site)
    prepared = site.saved()
    calls = sum(1 for _ in each_moment(site, command)) - 1
    for number, effect in chosen([(n, e) for n in range(1, calls + 1) for e in ("kill", "killed")], KILLS_OF_EACH):
        site.put_back(prepared)
        died = site.run(*command.words, **command.settings, **{FAULTS: f"*:{number}:{effect}"})
        assert died.code == -signal.SIGKILL, died

        site.check_untouched(but=command.removes)
        listed = catalog(site.work())
        assert [str(entry.listed.dump_id) for entry in listed if entry.summary is not None] == site.dumps
        assert not [entry.problem for entry in listed if entry.problem is not None]
        for dump_id in site.dumps:
            site.verify(dump_id)

        let_time_pass(site.folder, hours=25)  # until the dead run's lease is stale and what it left is garbage
        again = site.run(*command.words, **command.settings)
        nothing_left = "delete" in command.words and "there is no dump" in again.stderr
        assert again.code == (15 if nothing_left else 0), again
        if "create" in command.words:
            assert site.run("prune", "--yes", RETENTION_MIN_DUMPS="9").code == 0
        check_done(site, command)


def each_moment(site: Site, command: Command) -> Iterator[dict[str, bytes]]:
    """All objects before each call that a run makes to the store, and at its end: what a run that dies there leaves."""
    process = site.start(*command.words, **command.settings, **{FAULTS: "*:1+:stop"})
    while halted(process):
        yield site.objects
        process.send_signal(signal.SIGCONT)
    outcome = ended(process)
    assert outcome.code == 0, outcome
    yield site.objects


def check_done(site: Site, command: Command) -> None:
    """What the command was to remove is gone with all its parts, and it added what it adds; nothing else lies there."""
    site.check_untouched(but=command.removes)
    for dump_id in command.removes:
        assert parts_of(site.objects, dump_id) == {}
    added = set(site.dumps) - set(committed_dumps(site.before))
    assert len(added) >= command.adds
    of_dumps = [key for dump_id in site.dumps for key in parts_of(site.objects, dump_id)]
    assert [key for key in site.objects if key.startswith("database/")] == sorted(of_dumps)


# -- a restore


@pytest.fixture
def target(site: Site) -> Iterator[str]:
    """The name of a database to restore into; it, and all that restores make on the way, is dropped."""
    name = f"{site.database}_restored"
    yield name
    drop_databases(site.server, name, WORKING_PREFIX)


@pytest.mark.soak
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_after_a_kill_in_any_phase_of_a_restore_there_is_no_half_database_and_the_next_one_succeeds(
    site: Site, target: str, jobs: str
) -> None:
    words = ("dump", "restore", site.recent, "--into", target, "--jobs", jobs)
    for number in chosen(range(count_lines(site, words) - 1), KILLS_OF_EACH):
        drop_databases(site.server, target)
        kill_in_phase(site, words, number)
        renamed = target in databases_of(site.server)
        if renamed:
            assert content_of_small(site.server, target) == content_of_small(site.server, site.database)

        again = site.run(*words)
        assert again.code == (2 if renamed else 0), again
        assert content_of_small(site.server, target) == content_of_small(site.server, site.database)
        if not renamed:
            assert not working_databases(site)


@pytest.mark.soak
def test_after_a_kill_in_any_phase_of_a_replacing_restore_nothing_of_what_was_there_is_lost(site: Site, target: str) -> None:
    words = ("dump", "restore", site.recent, "--into", target, "--replace", "--yes")
    make_used(site, target)
    for number in chosen(range(count_lines(site, words) - 1), KILLS_OF_EACH):
        drop_databases(site.server, target, WORKING_PREFIX)
        make_used(site, target)
        kill_in_phase(site, words, number)
        assert len(used_databases(site, target)) == 1
        if target in databases_of(site.server) - used_databases(site, target):
            assert content_of_small(site.server, target) == content_of_small(site.server, site.database)

        assert site.run(*words).code == 0
        assert content_of_small(site.server, target) == content_of_small(site.server, site.database)
        assert len(used_databases(site, target)) == 1
        assert not working_databases(site)


def test_a_replacing_restore_that_is_told_to_stop_while_it_exchanges_the_names_changes_none(site: Site, target: str) -> None:
    make_used(site, target)
    run = Stepped(site, ("dump", "restore", site.recent, "--into", target, "--replace", "--yes"), {})
    run.read_until("begun: ANALYZE")
    (working,) = working_databases(site)
    with contextlib.closing(connect(site.server, autocommit=False)) as somebody:
        somebody.execute(f"COMMENT ON DATABASE \"{working}\" IS 'looked at'".encode())  # holds up its renaming
        run.read_until("begun: rename")
        wait_for_session(site.server, f"wait_event_type = 'Lock' AND query LIKE 'ALTER DATABASE \"{working}\" RENAME%'")
        run.process.send_signal(signal.SIGTERM)
        wait_for_session(site.server, f"wait_event_type = 'Lock' AND query LIKE 'DROP DATABASE%\"{working}\"%'")
        somebody.rollback()
        check_told(run.ended(), 143, "stopped by signal 15", hint=None)
    assert used_databases(site, target) == {target}
    assert not working_databases(site)


def count_lines(site: Site, words: Sequence[str]) -> int:
    """How many lines a whole run writes to stderr."""
    whole = site.run(*words)
    assert whole.code == 0, whole
    return len(whole.stderr.splitlines())


def kill_in_phase(site: Site, words: Sequence[str], number: int) -> None:
    """Kill a run that has written *number* + 1 lines and not more than one beyond."""
    run = Stepped(site, words, {})
    run.skip(number)
    kill(run.process)
    wait_for_silence(site.server)
    assert run.ended().code == -signal.SIGKILL


def make_used(site: Site, name: str) -> None:
    """A database that somebody uses."""
    sql(site.server, "postgres", f'CREATE DATABASE "{name}" TEMPLATE template0')
    sql(site.server, name, "CREATE TABLE in_use (since int)")


def used_databases(site: Site, target: str) -> set[str]:
    """Where what was made by `make_used` is now."""
    names = {name for name in databases_of(site.server) if name.startswith(target)}
    return {name for name in names if sql(site.server, name, "SELECT to_regclass('in_use') IS NOT NULL") == [(True,)]}


def working_databases(site: Site) -> set[str]:
    return {name for name in databases_of(site.server) if name.startswith(WORKING_PREFIX)}


# -- what it had started


@pytest.fixture
def unreadable(postgres15: PrivateServer) -> Iterator[str]:
    """The name of a database of two tables that hold up who reads their long values: somebody makes the index on them anew."""
    with fresh_database(postgres15) as name, contextlib.closing(connect(postgres15, name, autocommit=False)) as somebody:
        for table in ("one", "two"):
            somebody.execute(f"CREATE TABLE {table} (value text)".encode())
            somebody.execute(f"ALTER TABLE {table} ALTER value SET STORAGE EXTERNAL".encode())
            somebody.execute(f"INSERT INTO {table} VALUES (repeat('x', 10000))".encode())
        somebody.commit()
        for table in ("one", "two"):
            found = somebody.execute(f"SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = '{table}'".encode())
            ((values,),) = found.fetchall()
            somebody.execute(f"REINDEX TABLE {values}".encode())
        yield name


def test_a_killed_run_takes_the_programs_that_it_started_along(site: Site, unreadable: str) -> None:
    process = site.start("dump", "create", BACKUP_DATABASES=unreadable, DUMP_JOBS="2", DUMP_FINGERPRINT="off")
    for table in ("one", "two"):
        wait_for_session(site.server, f"wait_event_type = 'Lock' AND query LIKE 'COPY public.{table} %'")
    family = psutil.Process(process.pid).children(recursive=True)
    assert [child.name() for child in family] == ["pg_dump"] * 3  # one leads two
    kill(process)
    deadline = time.monotonic() + DEADLINE_SECONDS / 2
    while any(map(runs, family)):
        assert time.monotonic() < deadline, family
        time.sleep(0.01)


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
