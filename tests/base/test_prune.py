"""The role of `setup database` takes base backups of a real server; a fortnight later prune leaves what the window needs."""

from collections.abc import Iterator

import pytest

from clipper_backup.format.manifest import File
from clipper_backup.ops.job_backup import run_postgres_backup
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.setup_database import prepare_database
from clipper_backup.postgres.backup_role import Wanted
from clipper_backup.repository.base_backups import list_base_backups
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Timeline
from fixtures.base import Cluster, archived_cluster, backed_up, contents_of, work_for
from fixtures.clocks import LaterClock
from fixtures.postgres import sql


@pytest.fixture(scope="module", params=[15, 18])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with archived_cluster(request.param) as cluster:
        yield cluster


@pytest.mark.soak(over=["cluster"])
def test_a_fortnight_of_the_backup_role(cluster: Cluster) -> None:
    clock = LaterClock()
    store = MemoryStore(clock)
    superuser = work_for(cluster, store, clock)
    made = prepare_database(superuser.settings, Wanted("clipper_backup"), address="samenet", apply=True, remove=False)
    assert made.left == []
    work = work_for(cluster, store, clock, PGUSER="clipper_backup")
    sql(cluster.server, "postgres", "CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n")
    taken = []
    for days in (0, 3, 6, 14):
        clock.days = days
        sql(cluster.server, "postgres", f"UPDATE t SET md5 = md5 || '{days}' WHERE n % 100 = 0")
        if days < 14:
            taken.append(backed_up(cluster, work).summary)
    with cluster.archiving(work):
        done = run_postgres_backup(work)
    first = done.pruned
    assert done.base is not None
    assert first is not None
    taken.append(done.base.summary)
    before = {summary.id: {path: content for path, (_, content) in contents_of(work, summary).items()} for summary in taken[2:]}
    assert [item.backup_id.text for item in first.going] == [summary.id for summary in taken[:2]]
    assert [listed.backup_id.text for listed in list_base_backups(store) if listed.committed] == [s.id for s in taken[2:]]
    assert first.wal.segments > 0
    assert first.doomed > 0
    clock.days += 1.01
    assert prune_physical(work).freed.packs == first.doomed
    for summary in taken[2:]:
        found = contents_of(work, summary)
        assert {path: content for path, (_, content) in found.items()} == before[summary.id]
        assert sum(isinstance(entry, File) for entry, _ in found.values()) == summary.files
    catalog = WalCatalog(store, taken[0].system_id, taken[0].sizes.segment_bytes)
    segments = [s for folder in catalog.folders(Timeline(1)) for s in catalog.segments(Timeline(1), folder)]
    assert segments[0].name == taken[2].first_segment
    assert [segment.number for segment in segments] == list(range(segments[0].number, segments[-1].number + 1))
