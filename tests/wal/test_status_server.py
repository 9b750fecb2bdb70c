"""`wal status` of a real server: the window to its last transaction, what waits to be archived, what dies with the host."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from clipper_backup.cli import show_physical
from clipper_backup.ops.events import Event, Progress
from clipper_backup.ops.physical_status import look_at_physical
from clipper_backup.ops.wal.status import wal_status
from clipper_backup.ops.wal.times import TimesKeeper
from clipper_backup.ops.wal.verify import verify_wal
from clipper_backup.postgres.archiver_facts import read_archiver
from clipper_backup.postgres.data_folder import DataFolder
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Timeline, show_bytes
from clipper_backup.wal_names import Segment
from fixtures.base import archived_cluster, backed_up, work_for
from fixtures.postgres import fresh_role, login_to, sql

MIB = 1 << 20
_SECONDS = 60


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.rule(12)
def test_what_a_server_could_lose() -> None:
    with archived_cluster(15) as cluster, contextlib.ExitStack() as stack:
        server = cluster.server
        stack.callback(server.stop, "immediate")  # nobody archives any more what a fast one would wait for
        work = work_for(cluster)
        during: list[Event] = []

        def commit_once(event: Event) -> None:
            if isinstance(event, Progress) and not during:
                during.append(event)
                sql(server, "postgres", "CREATE TABLE written_meanwhile ()")

        written = backed_up(cluster, replace(work, emit=commit_once)).summary
        fresh = wal_status(work, ask_server=False).seen.window
        assert fresh is not None
        assert fresh.to == fresh.backup.stopped_at, "what was committed before the backup ended is no end of a window"
        ((system_id,),) = sql(server, "postgres", "SELECT system_identifier::text FROM pg_control_system()")
        catalog = WalCatalog(work.store, system_id, MIB)
        with cluster.archiving(work):
            sql(server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
            ((committed_at,),) = sql(server, "postgres", "SELECT clock_timestamp()")
            ((switched,),) = sql(server, "postgres", "SELECT pg_walfile_name(pg_switch_wal())")
            last = Segment.parse(switched, MIB)
            _until(lambda: (newest := catalog.newest(Timeline(1))) is not None and newest >= last)

        whole = wal_status(work, ask_server=True)
        window = whole.seen.window
        assert whole.problems == ()
        assert window is not None
        assert window.backup == written
        assert window.to is not None
        assert written.stopped_at <= window.to <= committed_at
        assert whole.loss is not None
        assert (whole.loss.archived_to, whole.loss.since) == (last.end, window.to)
        assert whole.loss.bytes < 10_000

        assert TimesKeeper(work, DataFolder(server.data, work.clock), threading.Event()).turn() > 2
        assert wal_status(work, ask_server=False).seen == whole.seen, "read from maps, the same"

        # nothing is archived any more
        sql(server, "postgres", "SELECT pg_logical_emit_message(false, '', repeat('x', 3000000))")
        sql(server, "postgres", "CREATE TABLE flushed ()")
        _until(lambda: (read_archiver(login_to(server)).ready or 0) >= 2)
        held = wal_status(work, ask_server=True)
        assert held.server is not None
        assert held.loss is not None
        assert held.loss.archived_to == last.end
        assert 3_000_000 < held.loss.bytes < 3_100_000
        assert held.server.archives
        assert not held.server.failing
        assert held.server.ready_bytes == (held.server.ready or 0) * MIB
        seen = look_at_physical(work, ask_server=True)
        assert seen is not None
        shown = dict(show_physical.items(seen))
        assert f"2 files wait to be archived, {show_bytes(2 * MIB)}" in shown["archiver"]
        assert "would be lost" in shown["host died now"]

        with fresh_role(server) as role:
            assert read_archiver(login_to(server, user=role)).ready is None, "that is for pg_monitor"
        server.stop("immediate")
        gone = wal_status(work, ask_server=True)
        assert (gone.server, gone.loss, gone.problems) == (None, None, ())
        assert gone.unreached is not None
        verified = verify_wal(work, read_data=True)
        assert (verified.damage, verified.seen.problems) == ([], [])
