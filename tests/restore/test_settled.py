"""The configuration of a server that recovered, as its next start finds it."""

import subprocess
from pathlib import Path

import pytest

from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.account import server_account
from clipper_backup.store.local import LocalStore
from fixtures.base import archived_cluster, work_for
from fixtures.dead_primary import started
from fixtures.postgres import connect, server_binaries, sql
from fixtures.restore import switch
from fixtures.server_program import server_program


@pytest.mark.rule(64)
def test_what_the_source_set_by_alter_system_counts_again_at_the_next_start(place: Path) -> None:
    """A transaction that is prepared needs it: without it the server would not start any more."""
    with archived_cluster(15) as cluster:
        work = work_for(cluster, LocalStore(place / "repository"), BACKUP_URL=f"file://{place}/repository")
        sql(cluster.server, "postgres", "ALTER SYSTEM SET max_prepared_transactions = 10")
        sql(cluster.server, "postgres", "ALTER SYSTEM SET max_connections = 33")
        cluster.stop()
        cluster.server.start()
        with cluster.archiving(work):
            create_base(work)
            with connect(cluster.server) as connection:
                connection.execute("BEGIN; CREATE TABLE prepared (n int); PREPARE TRANSACTION 'open'")
            switch(cluster)
        request = Request(place / "data", Target("latest"), server_account(), program=server_program())
        with started(work, request, make_plan(work, request)) as (_, connection):
            assert connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall() == [("open",)]
        for name, wanted in (("max_prepared_transactions", "10"), ("max_connections", "33"), ("archive_mode", "off")):
            asked: list[str | Path] = [server_binaries(15).program("postgres"), "-D", request.data, "-C", name]
            told = subprocess.run(asked, user=server_account().uid, capture_output=True, text=True, check=True)
            assert told.stdout.strip() == wanted
