"""A primary dies under load and is replaced: what it had acknowledged comes back, archived or not (rule 54)."""

import contextlib
import threading
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from clipper_backup.cli.show_restore import plan_document, plan_text
from clipper_backup.errors import IntegrityError, MissingError
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.target_dir import MARKER
from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Timeline
from fixtures.base import Cluster
from fixtures.dead_primary import backed_up_cluster, buried, replacing, rows_of, started
from fixtures.postgres import connect, sql
from fixtures.restore import switch
from fixtures.sweeps import chosen
from fixtures.wal_archive import MadeArchive

pytestmark = pytest.mark.soak(share=0.25)

_CLIENTS = 3
_ACKNOWLEDGED = 300
"""Commits of each client, at least, behind the last segment that is archived."""


@dataclass
class Client:
    """Commits a row at a time; `acknowledged` is what the server answered for."""

    server: PrivateServer
    number: int
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with contextlib.suppress(psycopg.OperationalError), connect(self.server) as connection:
            while True:
                row = (self.number, len(self.acknowledged))
                connection.execute("INSERT INTO rows VALUES (%s, %s, repeat(md5(%s), 8))", [*row, str(row)])
                self.acknowledged.append(row)
                if len(self.acknowledged) >= _ACKNOWLEDGED:
                    self.enough.set()


def killed_under_load(cluster: Cluster) -> set[tuple[int, int]]:
    """Kill the server while clients commit; what they were answered."""
    clients = [Client(cluster.server, number) for number in range(_CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for client in clients:
        assert client.enough.wait(60)
    buried(cluster)
    for thread in threads:
        thread.join()
    return {row for client in clients for row in client.acknowledged}


@pytest.mark.rule(54)
@pytest.mark.rule(102)
@pytest.mark.soak(over=["major"])
@pytest.mark.parametrize("major", [15, 18])
def test_every_commit_that_was_acknowledged_is_there(place: Path, major: int) -> None:
    with backed_up_cluster(place, major) as (cluster, work):
        acknowledged = killed_under_load(cluster)
        request = replacing(cluster, place, Target("latest"))
        plan = make_plan(work, request)
        assert plan.kept is not None
        last = plan.kept.segments[-1]
        assert any((cluster.server.data / "pg_wal" / last.name).read_bytes()[last.used_bytes + 8192 :]), "no old pages behind it"
        shown = plan_text(request, plan)
        assert f"up to LSN {plan.kept.ends_at}; the last transaction in them ended " in shown
        assert plan_document(request, plan)["kept_wal"]
        with started(work, request, plan) as (result, connection):
            assert acknowledged <= rows_of(connection)
            assert result.started is not None
            assert result.started.stopped_at >= plan.kept.ends_at
            assert result.started.last_commit_at == plan.kept.last_commit_at
            connection.execute("SELECT pg_switch_wal()")  # so that a segment of it is whole
            connection.execute("INSERT INTO public.rows VALUES (-1, -1, 'on the new timeline')")
        assert result.plan.kept is not None
        assert result.saved_in is not None
        assert last.name in result.saved

        # That one dies too, before a segment of its timeline is archived: its history is.
        again = make_plan(work, request)
        assert (again.line.timeline, again.passed_over) == (2, [])
        with started(work, request, again) as (result, connection):
            assert acknowledged | {(-1, -1)} <= rows_of(connection)
            assert result.started is not None
            assert result.started.timeline == 3

        # What was whole of timeline 2 is archived by then, though its server archived nothing: it leads to timeline 3.
        summary = plan.summary
        catalog = WalCatalog(work.store, summary.system_id, summary.sizes.segment_bytes)
        assert catalog.newest(Timeline(2)) is not None
        assert make_plan(work, request).way.timeline == 3
        # That server has what it had also when somebody else went on beside it: that is told.
        archive = MadeArchive(work.store, summary.system_id, plan.repository_id)
        claim = catalog.claim(plan.wal.segments[-1])
        assert claim is not None
        previous = catalog.link_of(claim)
        for segment in plan.kept.names:
            archive.segment(1, segment.number, previous=previous)
            previous = archive.links[segment.name]
        beside = make_plan(work, request)
        assert beside.way.timeline == 3
        assert "timeline 1" in plan_text(request, beside).partition("beside")[2]
        assert make_plan(work, replace(request, timeline=Timeline(1))).way.timeline == 1


@dataclass(frozen=True)
class Instant:
    """Where a server was behind the row `n`, in its last segment."""

    n: int
    at: datetime
    xid: int


def instants(server: PrivateServer) -> list[Instant]:
    found = []
    with connect(server) as connection:
        for n in range(4):
            with connection.transaction():
                connection.execute("INSERT INTO rows VALUES (0, %s, '')", [n])
                (xid,) = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
            (at,) = connection.execute("SELECT clock_timestamp() FROM pg_sleep(0.005)").fetchone() or (None,)
            connection.execute("SELECT pg_create_restore_point('twice'), pg_switch_wal() WHERE %s = 1", [n])
            connection.execute("SELECT pg_create_restore_point('twice')")
            found.append(Instant(n, at, xid))
    return found


@pytest.mark.rule(60)
def test_a_target_behind_the_archives_end_is_reached(place: Path) -> None:
    """In a whole segment or in the last, unfinished one; and a restore that was killed begins anew with what it saved."""
    with backed_up_cluster(place, 18) as (cluster, work):
        found = instants(cluster.server)
        buried(cluster)
        targets = {"time": Target("time", time=found[2].at), "xid": Target("xid", xid=found[2].xid)}
        for target in targets.values():
            plan = make_plan(work, replacing(cluster, place, target))
            assert plan.kept is not None
            assert plan.stop is not None
            assert plan.stop.segment in plan.kept
            assert plan.last == plan.stop.segment
        with pytest.raises(MissingError, match="no transaction ended behind it"):
            make_plan(work, replacing(cluster, place, Target("time", time=found[3].at)))
        drawn = chosen(list(targets), 1)[0]
        request = replacing(cluster, place, targets[drawn])
        restore(work, request, make_plan(work, request))
        (cluster.server.data / MARKER).write_text("{}")  # as if it had been killed at its end
        plan = make_plan(work, request)
        assert plan.kept is not None
        assert plan.kept.folder.parent == request.folder
        with started(work, request, plan) as (_, connection):
            assert sorted(rows_of(connection)) == [(0, n) for n in range(3)]


@pytest.mark.rule(59)
def test_a_restore_point_that_is_there_twice_is_told(place: Path) -> None:
    with backed_up_cluster(place, 15) as (cluster, work):
        with cluster.archiving(work):
            instants(cluster.server)
            switch(cluster)
        request = replace(replacing(cluster, place, Target("name", name="twice")), target_dir=place / "data")
        plan = make_plan(work, request)
        assert plan.stop is not None
        assert plan.stop.record.start < min(each.start for each in plan.namesakes)
        assert len(plan.namesakes) == 4
        shown = plan_text(request, plan)
        for each in plan.namesakes:
            assert f"also at LSN {each.start}, made " in shown
            other = make_plan(work, replace(request, target=Target("lsn", lsn=each.start)))
            assert other.stop is not None
            assert other.stop.record.start == each.start
        with cluster.archiving(work):
            create_base(work)
            sql(cluster.server, "postgres", "SELECT pg_create_restore_point('twice')")
            switch(cluster)
        later = make_plan(work, request)
        assert later.summary.id != plan.summary.id
        assert [each.start for each in later.namesakes] == [plan.stop.record.start, *(each.start for each in plan.namesakes)]


@pytest.mark.rule(54)
def test_what_a_dead_primary_had_not_archived_is_archived_and_replayed(place: Path) -> None:
    """Whole segments: the newest commits. Only when they are in the archive is anything removed."""
    with backed_up_cluster(place, 15) as (cluster, work):
        data = cluster.server.data
        sql(cluster.server, "postgres", "CREATE TABLE late AS SELECT 1 AS n")
        sql(cluster.server, "postgres", "SELECT pg_switch_wal()")
        sql(cluster.server, "postgres", "INSERT INTO late VALUES (2)")
        cluster.server.kill9()
        request = replacing(cluster, place, Target("latest"))
        (data / "postmaster.pid").unlink(missing_ok=True)
        plan = make_plan(work, request)
        assert len(plan.left) == 1
        assert plan.left[0] not in {segment.name for segment in plan.wal.segments}
        path = data / "pg_wal" / plan.left[0]
        held = path.read_bytes()

        path.write_bytes(bytes(len(held)))
        with pytest.raises(IntegrityError, match=f"{plan.left[0]} was never archived, and cannot be now"):
            restore(work, request, plan, start=True)
        assert (data / "global/pg_control").exists()
        path.write_bytes(held)
        server_account().own(path)
        nowhere = replace(request, target=Target("name", name="nowhere"))
        with pytest.raises(MissingError) as caught:
            make_plan(work, nowhere)
        assert f"wal push {path}" in caught.value.hints[-1]

        with started(work, request, plan) as (result, connection):
            assert connection.execute("SELECT n FROM public.late").fetchall() == [(1,), (2,)]
        assert path.name in {segment.name for segment in result.plan.wal.segments}
        assert result.plan.left == (path.name,)
