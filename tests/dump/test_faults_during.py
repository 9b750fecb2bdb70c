"""What breaks in PostgreSQL, or between us and it, while a dump is taken: no dump, a clear word, and nothing is touched."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from fixtures.dump import (
    AT_GATE,
    EXPORTER,
    SMALL,
    Site,
    connection_settings,
    end_session,
    ended,
    gate_closed,
    wait_for_session,
)
from fixtures.postgres import running_server, sql
from fixtures.proxy import How, TcpProxy

pytestmark = pytest.mark.soak(share=0.25)

COPYING = "wait_event = 'ClientWrite' AND query LIKE 'COPY public.bulk%'"


def pg_dump_of(process: "subprocess.Popen[str]") -> psutil.Process:
    (child,) = (child for child in psutil.Process(process.pid).children() if child.name() == "pg_dump")
    return child


# -- PostgreSQL


def test_a_pg_dump_whose_session_is_ended_at_its_beginning_is_no_dump(site: Site) -> None:
    with gate_closed(site.server, site.database):
        process = site.start("dump", "create")
        end_session(site.server, wait_for_session(site.server, AT_GATE))
        outcome = ended(process)

    site.check_refused(outcome, 1, "pg_dump", site.database, "administrator command")
    assert sum(1 for key in site.objects if key.endswith(".intent")) == len(site.dumps), "what was begun is left"
    site.check_recovers()


def test_a_pg_dump_whose_session_is_ended_in_the_middle_of_a_table_is_no_dump(site: Site, bulky: str) -> None:
    where = site.server.connection()
    settings = {"BACKUP_DATABASES": bulky, "PGHOST": where["host"]}  # a Unix socket's buffers are small, and do not grow
    with gate_closed(site.server, bulky):
        process = site.start("dump", "create", **settings)
        wait_for_session(site.server, AT_GATE)
        process.send_signal(signal.SIGSTOP)
    end_session(site.server, wait_for_session(site.server, COPYING))
    process.send_signal(signal.SIGCONT)

    site.check_refused(ended(process), 1, "pg_dump", bulky, "bulk")
    site.check_recovers(**settings)


def test_a_dump_whose_snapshot_was_lost_on_the_way_is_no_dump(site: Site) -> None:
    with gate_closed(site.server, site.database):
        process = site.start("dump", "create")
        wait_for_session(site.server, AT_GATE)
        end_session(site.server, wait_for_session(site.server, EXPORTER))
    outcome = ended(process)

    site.check_refused(outcome, 1, "snapshot", site.database, "connection to PostgreSQL was lost", hint="log")
    assert "error ignored" not in outcome.stderr
    site.check_recovers()


def test_a_server_that_stops_at_once_leaves_no_dump(site: Site) -> None:
    with running_server(15) as server:
        sql(server, "postgres", SMALL)
        settings = connection_settings(server) | {"BACKUP_DATABASES": "postgres"}
        with gate_closed(server, "postgres"):
            process = site.start("dump", "create", **settings)
            wait_for_session(server, AT_GATE)
            server.stop("immediate")
        site.check_refused(ended(process), 1, "postgres")

        server.start()
        site.check_recovers(**settings)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_pg_dump_that_is_killed_is_no_dump(site: Site, tmp_path: Path, jobs: str) -> None:
    (tmp_path / "scratch").mkdir()
    with gate_closed(site.server, site.database):
        process = site.start("dump", "create", DUMP_JOBS=jobs, SCRATCH_DIR=f"{tmp_path}/scratch")
        wait_for_session(site.server, AT_GATE)
        pg_dump_of(process).kill()
        outcome = ended(process)

    site.check_refused(outcome, 1, "pg_dump", site.database, "signal 9")
    assert list((tmp_path / "scratch").iterdir()) == []
    site.check_recovers()


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("after_bytes", [0, 20_000, 3_000_000])
def test_a_network_that_is_cut_leaves_no_dump(site: Site, bulky: str, how: How, after_bytes: int) -> None:
    with TcpProxy(("127.0.0.1", int(site.settings["PGPORT"]))) as proxy:
        proxy.break_after(after_bytes, how=how, direction="answers")
        settings = {"PGPORT": str(proxy.port), "BACKUP_DATABASES": bulky}
        outcome = site.run("dump", "create", **settings)
        assert proxy.struck == 1

        site.check_refused(outcome, 1)
        site.check_recovers(**settings)
