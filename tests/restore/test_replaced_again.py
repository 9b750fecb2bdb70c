"""A restored server takes the place of the old one, and dies before it archived anything: the next restore is of that one."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from clipper_backup.cli.show_restore import plan_document, plan_text
from clipper_backup.errors import UsageError
from clipper_backup.format.physical_names import history_key
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.work import Work
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Timeline
from fixtures.base import Cluster
from fixtures.dead_primary import backed_up_cluster, buried, replacing, started
from fixtures.postgres import connect, sql
from fixtures.restore import switch
from fixtures.wal_archive import MIB, MadeArchive

pytestmark = pytest.mark.soak(share=0.3)


def numbers_of(connection: psycopg.Connection) -> list[int]:
    return [int(n) for (n,) in connection.execute("SELECT n FROM public.rows ORDER BY n").fetchall()]


def add(cluster: Cluster, n: int) -> datetime:
    """And when it was committed, on its clock."""
    with connect(cluster.server) as connection:
        connection.execute("INSERT INTO rows VALUES (0, %s, '')", [n])
        (at,) = connection.execute("SELECT clock_timestamp() FROM pg_sleep(0.005)").fetchone() or (None,)
    assert isinstance(at, datetime)
    return at


@contextlib.contextmanager
def after_a_disaster(place: Path, major: int) -> Iterator[tuple[Cluster, Work, datetime]]:
    """Row 1, an instant, and the disaster, all archived but row 3 at the end; then it died."""
    with backed_up_cluster(place, major) as (cluster, work):
        with cluster.archiving(work):
            before = add(cluster, 1)
            add(cluster, 2)
            sql(cluster.server, "postgres", "UPDATE rows SET n = -1")
            switch(cluster)
        add(cluster, 3)
        buried(cluster)
        yield cluster, work, before


@pytest.mark.rule(54)
@pytest.mark.rule(97)
@pytest.mark.parametrize("archived", [True, False], ids=["history archived", "store not writable then"])
def test_a_disaster_does_not_come_back(place: Path, archived: bool) -> None:
    """The restored server's rows are nowhere but in its pg_wal; the first restore's folder has more WAL of the old timeline."""
    with after_a_disaster(place, 18 if archived else 15) as (cluster, work, before):
        request = replacing(cluster, place, Target("time", time=before))
        with started(work, request, make_plan(work, request)) as (_, connection):
            assert numbers_of(connection) == [1]
            connection.execute("INSERT INTO public.rows VALUES (0, 100, '')")
        if not archived:
            system = make_plan(work, replace(request, timeline=Timeline(1))).summary.system_id
            work.store.delete([history_key(system, Timeline(2), suffix) for suffix in (".claim", ".zst")])

        latest = replace(request, target=Target("latest"))
        with pytest.raises(UsageError, match="was on timeline 2, and the restore would go along timeline 1") as caught:
            make_plan(work, latest)
        assert [hint.partition(": ")[2][:12] for hint in caught.value.hints] == ["--timeline 2", "--timeline 1"]

        # To the end of the old one, when asked: told what is not in it, and its number stays taken.
        old = replace(latest, timeline=Timeline(1))
        plan = make_plan(work, old)
        assert "what the server there wrote on one of its own" in plan_text(old, plan)
        assert plan_document(old, plan)["former_timeline"] == 2
        assert any("along that one: --timeline 2" in note for note in plan.notes)
        assert plan.left == (() if archived else ("00000002.history",))

        # Another instant: told, not refused.
        assert any("--timeline 2" in note for note in make_plan(work, request).notes)

        own = replace(latest, timeline=Timeline(2))
        plan = make_plan(work, own)
        assert plan.kept is not None
        assert "nothing that was committed" in plan_text(own, plan)
        with started(work, own, plan) as (result, connection):
            assert numbers_of(connection) == [1, 100]
            assert result.started is not None
            assert result.started.timeline == 3


@pytest.mark.rule(97)
@pytest.mark.rule(98)
def test_a_number_that_was_taken_is_not_taken_again(place: Path) -> None:
    """Nobody archived the history of timeline 2; whoever goes back to timeline 1 gets 3, and 2 says who it was."""
    with after_a_disaster(place, 15) as (cluster, work, before):
        request = replacing(cluster, place, Target("time", time=before))
        with started(work, request, make_plan(work, request)) as (_, connection):
            connection.execute("INSERT INTO public.rows VALUES (0, 100, '')")
        system = make_plan(work, replace(request, timeline=Timeline(1))).summary.system_id
        keys = [history_key(system, Timeline(2), suffix) for suffix in (".claim", ".zst")]
        work.store.delete(keys)
        old = replace(request, target=Target("latest"), timeline=Timeline(1))
        with started(work, old, make_plan(work, old)) as (result, connection):
            assert numbers_of(connection) == [-1, -1, 3]
            assert result.started is not None
            assert result.started.timeline == 3
        assert [work.store.head(key).key for key in keys] == keys


def test_another_servers_timeline_of_the_same_number_is_not_its_own(place: Path) -> None:
    with after_a_disaster(place, 15) as (cluster, work, before):
        request = replacing(cluster, place, Target("time", time=before))
        with started(work, request, make_plan(work, request)):
            pass
        plan = make_plan(work, replace(request, timeline=Timeline(1)))
        archive = MadeArchive(work.store, plan.summary.system_id, plan.repository_id, made_at=work.clock.now())
        archive.segment(2, WalCatalog(work.store, plan.summary.system_id, MIB).line(Timeline(2)).parts[-1].begin // MIB)
        latest = replace(request, target=Target("latest"))
        (cluster.server.data / "pg_wal/00000002.history").write_text("1\t0/2000000\tno recovery target specified\n")
        with pytest.raises(
            UsageError, match="was on a timeline 2 of its own, and timeline 2 of the archive is another"
        ) as caught:
            make_plan(work, latest)
        assert "--timeline 2; what the server there wrote is kept" in caught.value.hints[0]
        assert any("was on timeline 2" in note for note in make_plan(work, replace(latest, timeline=Timeline(1))).notes)
        named = replace(latest, timeline=Timeline(2))
        plan = make_plan(work, named)
        assert "and what the server there wrote on one of its own" in plan_text(named, plan)
        standby = replace(plan, former=Timeline(1), left_out=False)  # it followed timeline 1 when the other one left that
        assert "wrote" not in dict(line.split(":", 1) for line in plan_text(named, standby).splitlines() if ":" in line)["loss"]
