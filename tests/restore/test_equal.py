"""What is restored equals its source, whatever the cluster is made of and whichever way its history went.

`recovered` asks PostgreSQL's own programs as well: pg_verifybackup before each start, pg_amcheck behind it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from msgspec import UnsetType

from clipper_backup.errors import MissingError, ServerError, UsageError
from clipper_backup.format import physical_names as keys
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.base_backups import read_base_summary
from clipper_backup.values import BackupId, Timeline
from fixtures.base import Cluster, Kept, handing_over, work_for
from fixtures.oracle import Writer, content_now, content_of
from fixtures.postgres import FAST, server_binaries, sql
from fixtures.restore import Content, World, made_world, pg_amcheck, planned, proven, recovered, session_in, switch, until
from fixtures.standby import Failover, Site, ended_segment, followed

pytestmark = pytest.mark.soak(share=0.25)


def folder_in(place: Path, name: str) -> Path:
    """A folder of the server's account."""
    folder = place / name
    folder.mkdir()
    server_account().own(folder)
    return folder


# -- what the cluster is made of


@pytest.mark.rule(9)
@pytest.mark.soak(over=["major", "segment_mib", "checksums"])
@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "no checksums"])
@pytest.mark.parametrize("segment_mib", [1, 64])
@pytest.mark.parametrize("major", [15, 18])
def test_of_every_kind_of_cluster(major: int, segment_mib: int, checksums: bool, place: Path) -> None:
    """A moment before the second backup, which takes pages from the first, and one behind it."""
    with made_world(major, wal_segment_mib=segment_mib, data_checksums=checksums) as world:
        first, second = (read_base_summary(world.work.store, BackupId.parse(backup)) for backup in world.backups)
        assert (second.parent, second.checksums, second.sizes.segment_bytes) == (first.id, checksums, segment_mib << 20)
        assert second.pages.adopted > 300
        for number, target in ((1, Target("time", time=world.moments[1].at)), (3, Target("latest"))):
            with recovered(world, folder_in(place, target.kind), target, timeline=Timeline(1)) as (result, started, content):
                assert content == world.moments[number].content
                assert result.plan.summary.id == world.backups[number // 2]
                with session_in(started) as connection:
                    settings: dict[str, str] = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
                said = ("on" if checksums else "off", str(segment_mib << 20))
                assert (settings["data_checksums"], settings["wal_segment_size"]) == said


# -- which way its history went


@contextlib.contextmanager
def live(world: World, data: Path) -> Iterator[Cluster]:
    """A restored server with archiving switched on again, as a person would."""
    folder = data.with_name("live")
    released = folder / "released"
    released.mkdir(parents=True, exist_ok=True)
    settings = FAST | handing_over(released) | {"autovacuum": "off"}
    with PrivateServer(folder, server_binaries(world.major), environment=os.environ, data=data, settings=settings) as server:
        server.start()
        cluster = Cluster(server, released)
        try:
            yield cluster
        finally:
            cluster.stop()


def written(cluster: Cluster, note: str) -> Content:
    """Rows of a transaction, and the restore point *note*; what the server holds then, archived."""
    sql(cluster.server, "postgres", "INSERT INTO ledger SELECT n, %s FROM generate_series(1, 500) n", [note])
    sql(cluster.server, "postgres", "UPDATE moved SET note = %s WHERE id %% 3 = 0", [note])
    sql(cluster.server, "postgres", "SELECT pg_create_restore_point(%s)", [note])
    switch(cluster)
    with content_now(cluster.server, "postgres") as content:
        return content


@pytest.mark.rule(62)
@pytest.mark.rule(98)
def test_two_in_a_row_and_a_stray_timeline(restore_world: World, place: Path) -> None:
    """Each goes live, and archives; then the first one's server goes on by mistake, and is backed up, on the timeline it had.

    1 … moment 2 … moment 3
           └─ 2 … two … two more … stray
                   └─ 3 … three
    """
    world = restore_world.copied_to(place)
    first = folder_in(place, "first")
    stop_at = Target("name", name="moment 2")
    with recovered(world, first, stop_at) as (result, started, content):
        assert (content, started.timeline) == (world.moments[2].content, 2)
    with live(world, result.data) as cluster, cluster.archiving(world.work):
        two = written(cluster, "two")
        two_more = written(cluster, "two more")
    with recovered(world, folder_in(place, "second"), Target("name", name="two")) as (second, started, content):
        assert (content, started.timeline, second.plan.line.timeline) == (two, 3, 2)
    with live(world, second.data) as cluster, cluster.archiving(world.work):
        three = written(cluster, "three")
    with live(world, result.data) as cluster, cluster.archiving(world.work):
        astray = create_base(work_for(cluster, world.work.store, BACKUP_URL=f"file://{world.repository}")).summary
        stray = written(cluster, "stray")
    assert len({str(content) for content in (two, two_more, three, stray)}) == 4

    with pytest.raises(
        UsageError, match="timeline 3 is the newest, and timeline 2 has WAL of its own that was archived later"
    ) as asks:
        planned(world, place, Target("latest"))
    assert [hint.rpartition(": ")[2] for hint in asks.value.hints] == ["--timeline 2", "--timeline 3"]
    left = world.backups[1]
    ways = ((3, three, left), (2, stray, astray.id), (1, world.moments[3].content, left), (3, three, left))
    for number, (along, held, backup) in enumerate(ways, 4):
        folder = folder_in(place, str(number))
        with recovered(world, folder, Target("latest"), timeline=Timeline(along)) as (result, started, content):
            assert content == held
            assert (result.plan.line.timeline, started.timeline, result.plan.summary.id) == (along, number, backup)
    for name, owner in (("two more", 2), ("stray", 2), ("moment 3", 1)):
        with pytest.raises(MissingError) as refused:
            planned(world, place, Target("name", name=name))
        assert [hint for hint in refused.value.hints if hint.endswith(f": --timeline {owner}")], refused.value.hints
        _, plan = planned(world, place, Target("name", name=name), timeline=Timeline(owner))
        assert plan.line.timeline == owner
    assert not (place / "data").exists()


ENDED = {"primary": "the connection to PostgreSQL was lost", "standby": "the standby was promoted during online backup"}
"""Why a base backup is none, by whose it was."""


@pytest.mark.rule(32)
@pytest.mark.rule(55)
@pytest.mark.rule(62)
@pytest.mark.soak(over=["major", "whose", "source"])
@pytest.mark.parametrize("source", ["protocol", "files"])
@pytest.mark.parametrize("whose", ["primary", "standby"])
@pytest.mark.parametrize("major", [15, 18])
def test_a_standby_follows_and_takes_over(standby_site: Site, whose: Literal["primary", "standby"], source: str) -> None:
    """Fed by the archive of a living primary; a second one follows through the promotion.

    The failover ends the base backup that is on its way, of *whose* server.
    """
    with standby_site.primary() as primary:
        ended_segment(primary)
        until(primary, "(SELECT archived_count > 0 FROM pg_stat_archiver)")  # so the archive's folders are PostgreSQL's account's
        work = standby_site.work(primary)
        create_base(work)
        with standby_site.standby("first", work) as first, standby_site.standby("second", work) as second:
            with Writer(primary, "postgres", seed=11) as writer:
                for _ in range(2):
                    commits, lsn = writer.commits, ended_segment(primary)
                    until(first, f"pg_last_wal_replay_lsn() >= '{lsn}'")
                    until(second, f"pg_last_wal_replay_lsn() >= '{lsn}'")
                    assert writer.commits > commits
            sql(primary, "postgres", "INSERT INTO ledger SELECT n, md5(n::text) FROM generate_series(1, 1000) n")
            sql(primary, "postgres", "CHECKPOINT")
            held = followed(primary, first, second)

            committed = standby_site.committed()
            failover = Failover(primary, first)
            of_whom = replace(standby_site.work(primary if whose == "primary" else first, BASE_SOURCE=source), emit=failover)
            with pytest.raises(ServerError, match=ENDED[whose]):
                create_base(of_whom)
            assert failover.done
            assert standby_site.committed() == committed

            with content_now(first, "postgres") as content:
                assert content == held
            sql(first, "postgres", "UPDATE ledger SET text = 'on timeline 2' WHERE n % 2 = 0")
            held = followed(first, second)
            taken = create_base(standby_site.work(first, BASE_SOURCE=source)).summary
            assert (taken.timeline, taken.parent) == (2, committed[0])
            assert not isinstance(taken.ancestors, UnsetType)
            assert [timeline for timeline, _ in taken.ancestors] == [1]
            sql(first, "postgres", "DELETE FROM ledger WHERE n % 3 = 0")
            held = followed(first, second)
            for server in (first, second):
                where = server.connection()
                pg_amcheck(standby_site.major, where["host"], where["port"], install=False)
        request = standby_site.request("restored", standby=False)
        reading = Work(work.settings, work.store, work.clock, Kept())
        plan = make_plan(reading, request)
        assert (plan.line.timeline, plan.summary.id) == (2, taken.id)
        work.store.delete([keys.history_key(taken.system_id, Timeline(2), keys.STORED)])  # the base backup has what it says
        with proven(reading, request, plan) as (_, started), session_in(started) as connection:
            assert content_of(connection) == held
            assert started.timeline == 3
