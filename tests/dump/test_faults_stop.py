"""SIGTERM at every phase: exit 143, nothing of ours is left running or lying about, and the next run need not wait."""

import contextlib
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from clipper_backup.errors import StoppedError
from clipper_backup.postgres.server_facts import reading
from fixtures.cli import Outcome
from fixtures.dump import (
    AT_GATE,
    FAULTS,
    WORKING_PREFIX,
    Site,
    Stepped,
    begun_dumps,
    check_told,
    count_calls,
    databases_of,
    ended,
    gate_closed,
    halted,
    wait_for_session,
)
from fixtures.postgres import connect, sql
from fixtures.proxy import TcpProxy
from fixtures.sweeps import chosen

PHASES = 2
CALLS = 3
JOB = ("job", "postgres-backup")


@pytest.fixture
def scratch(tmp_path: Path) -> dict[str, str]:
    """Settings that put everything temporary into folders of this test's own."""
    for name in ("scratch", "temporary"):
        (tmp_path / name).mkdir()
    return {"SCRATCH_DIR": str(tmp_path / "scratch"), "TMPDIR": str(tmp_path / "temporary")}


def check_stopped(site: Site, outcome: Outcome, family: list[psutil.Process], scratch: dict[str, str]) -> None:
    """It said 143 and left nothing: no process, no scratch file, no draft, no part of its dump (of one it pruned perhaps)."""
    check_told(outcome, 143, "stopped by signal 15", hint=None)
    check_clean(site, family, scratch)
    assert begun_dumps(site.objects) - {site.old} == set(site.dumps) - {site.old}


def check_clean(site: Site, family: list[psutil.Process], scratch: dict[str, str]) -> None:
    # What was killed takes a moment to die; a zombie waits for whoever inherited it.
    _, alive = psutil.wait_procs([process for process in family if lives(process)], timeout=5)
    assert not [process for process in alive if lives(process)]
    for folder in (*scratch.values(), str(site.folder / ".tmp")):
        assert list(Path(folder).iterdir()) == []
    assert is_free(site.objects), "the next run must wait for the lease"


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_free(found: Mapping[str, bytes]) -> bool:
    """Whether nobody holds the lease: its highest epoch was released."""
    newest = max(Path(key).parent.name for key in found if key.startswith("locks/dump/"))
    return f"locks/dump/{newest}/released" in found


# -- a dump


@pytest.mark.soak
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_is_told_to_stop_in_any_phase_stops_and_leaves_nothing(site: Site, scratch: dict[str, str], jobs: str) -> None:
    settings = {**scratch, "DUMP_JOBS": jobs, "RETENTION_MIN_DUMPS": "1"}
    prepared = site.saved()
    whole = Stepped(site, JOB, settings).ended()
    assert whole.code == 0, whole
    lines = whole.stderr.splitlines()
    for number in chosen(range(len(lines) - 1), PHASES):
        site.put_back(prepared)
        run = Stepped(site, JOB, settings)
        run.skip(number)
        family = psutil.Process(run.process.pid).children(recursive=True)
        run.process.send_signal(signal.SIGTERM)
        outcome = run.ended()

        check_stopped(site, outcome, family, scratch)
        site.check_untouched(but=[site.old])
    assert site.run(*JOB, **settings).code == 0


@pytest.mark.soak
def test_a_run_that_is_told_to_stop_at_any_call_to_the_store_stops_and_leaves_nothing(
    site: Site, scratch: dict[str, str]
) -> None:
    settings = {**scratch, "RETENTION_MIN_DUMPS": "1"}
    prepared = site.saved()
    calls = count_calls(site, *JOB, **settings)
    for number in chosen(range(1, calls), CALLS):
        site.put_back(prepared)
        process = site.start(*JOB, **settings, **{FAULTS: f"*:{number}:stop"})
        assert halted(process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)

        check_stopped(site, ended(process), family, scratch)
        site.check_untouched(but=[site.old])


def test_a_run_that_is_told_to_stop_when_it_has_just_taken_the_lease_gives_it_back(site: Site, scratch: dict[str, str]) -> None:
    process = site.start("dump", "create", **scratch, **{FAULTS: "list:2:stop"})
    assert halted(process)
    assert not is_free(site.objects)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)

    check_stopped(site, ended(process), [], scratch)


def test_a_run_whose_pg_dump_waits_stops(site: Site, scratch: dict[str, str]) -> None:
    with gate_closed(site.server, site.database):
        process = site.start("dump", "create", **scratch)
        wait_for_session(site.server, AT_GATE)
        family = psutil.Process(process.pid).children(recursive=True)
        assert [child.name() for child in family] == ["pg_dump"]
        process.send_signal(signal.SIGTERM)
        check_stopped(site, ended(process), family, scratch)
    site.check_recovers()


def test_a_run_that_waits_for_a_table_stops(site: Site, scratch: dict[str, str]) -> None:
    with contextlib.closing(connect(site.server, site.database, autocommit=False)) as somebody:
        somebody.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        process = site.start("dump", "create", **scratch)
        wait_for_session(site.server, "wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE ONLY%'")
        process.send_signal(signal.SIGTERM)
        check_stopped(site, ended(process), [], scratch)
    site.check_recovers()


def test_a_run_that_waits_for_the_lease_stops(site: Site, scratch: dict[str, str]) -> None:
    with gate_closed(site.server, site.database):
        first = site.start("dump", "create")
        wait_for_session(site.server, AT_GATE)
        second = site.start("dump", "create", **scratch, **{FAULTS: "list:2:stop"})
        assert halted(second)
        second.send_signal(signal.SIGTERM)
        second.send_signal(signal.SIGCONT)
        check_told(ended(second), 143, "stopped by signal 15", hint=None)
    assert ended(first).code == 0
    site.check_untouched()


@pytest.fixture
def silent_pushgateway() -> Iterator[socket.socket]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_run_that_waits_for_the_pushgateway_stops_with_its_dump_committed(
    site: Site, scratch: dict[str, str], silent_pushgateway: socket.socket
) -> None:
    url = f"http://127.0.0.1:{silent_pushgateway.getsockname()[1]}"
    process = site.start(*JOB, **scratch, PROMETHEUS_PUSHGATEWAY=url)
    connection, _ = silent_pushgateway.accept()
    with connection:
        process.send_signal(signal.SIGTERM)
        check_stopped(site, ended(process), [], scratch)
    assert len(site.dumps) == 3
    site.check_untouched()


# -- a restore


@pytest.mark.soak
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_restore_that_is_told_to_stop_in_any_phase_leaves_no_database(site: Site, scratch: dict[str, str], jobs: str) -> None:
    words = ("dump", "restore", site.recent, "--into", f"{site.database}_restored", "--jobs", jobs)
    before = databases_of(site.server)
    whole = Stepped(site, words, scratch).ended()
    assert whole.code == 0, whole
    for number in chosen(range(len(whole.stderr.splitlines()) - 1), PHASES):
        drop(site, words[4])
        run = Stepped(site, words, scratch)
        run.skip(number)
        family = psutil.Process(run.process.pid).children(recursive=True)
        run.process.send_signal(signal.SIGTERM)
        outcome = run.ended()

        check_told(outcome, 143, "stopped by signal 15", hint=None)
        check_clean(site, family, scratch)
        after = databases_of(site.server)
        if words[4] in after:  # the signal came when it was renamed and only that was left to say
            after.remove(words[4])
        assert after == before
    drop(site, words[4])


def drop(site: Site, name: str) -> None:
    sql(site.server, "postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def test_a_restore_into_an_empty_database_that_is_told_to_stop_says_143(site: Site, scratch: dict[str, str]) -> None:
    name = f"{site.database}_empty"
    sql(site.server, "postgres", f'CREATE DATABASE "{name}" TEMPLATE template0')
    try:
        run = Stepped(site, ("dump", "restore", site.recent, "--into", name), scratch)
        run.read_until("begun: ANALYZE")
        run.process.send_signal(signal.SIGTERM)
        check_told(run.ended(), 143, "stopped by signal 15", hint=None)
    finally:
        drop(site, name)


def test_a_restore_that_is_told_to_stop_while_it_logs_in_does_not_wait_for_that_session(site: Site) -> None:
    words = ("dump", "restore", site.recent, "--into", f"{site.database}_restored")
    with TcpProxy(("127.0.0.1", int(site.settings["PGPORT"]))) as proxy:
        run = Stepped(site, words, {"PGPORT": str(proxy.port)})
        while not any("begun: restore" in line for line in run.lines):
            run.skip(len(run.lines) + 1)
        # pg_restore is done, "begun: ANALYZE" waits to be read: the next session in the new database is our own.
        proxy.break_at(b"database\0" + WORKING_PREFIX.encode(), how="stall", direction="answers")
        run.read_until("begun: ANALYZE")
        while proxy.struck == 0:
            assert run.process.poll() is None
            time.sleep(0.01)
        run.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        check_told(run.ended(), 143, "stopped by signal 15", hint=None)
    assert time.monotonic() - began < 30, "it waited for authentication_timeout"
    assert not {name for name in databases_of(site.server) if name.startswith((WORKING_PREFIX, words[4]))}


def test_a_stop_that_broke_off_a_query_is_not_hidden_by_the_end_of_the_transaction(site: Site) -> None:
    def break_off() -> None:
        with contextlib.closing(connect(site.server)) as connection, reading(connection):
            connection.pgconn.send_query(b"SELECT")  # its answer is not read any more
            raise StoppedError(signal.SIGTERM)

    with pytest.raises(StoppedError):
        break_off()
