"""`restore` of what `base create` and `wal push` stored: each target gives what the server held there, by the test's own SQL."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.restore.plan import Plan, Request, make_plan
from clipper_backup.ops.restore.restore import Restored, restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.store.local import LocalStore
from clipper_backup.values import Lsn
from fixtures.base import Cluster, Kept, archived_cluster, work_for
from fixtures.oracle import PINNED, Writer, content_now, content_of
from fixtures.postgres import connect, private_folder, sql

Content = Mapping[str, tuple[int, str | None]]


@dataclass(frozen=True)
class Moment:
    """What the server held at an instant at which nobody wrote. `xid` is of the transaction that made it so."""

    name: str
    lsn: Lsn
    at: datetime
    xid: int
    content: Content


@dataclass(frozen=True)
class World:
    """A repository that outlived its server: two backups, and what the server held before, between and behind them."""

    folder: Path
    work: Work
    backups: tuple[str, ...]
    at_stop: tuple[Content, ...]
    moments: tuple[Moment, ...]
    latest: Content

    def reading(self) -> Work:
        return Work(self.work.settings, self.work.store, self.work.clock, Kept())


def moment(cluster: Cluster, number: int) -> Moment:
    with connect(cluster.server) as connection:
        with connection.transaction():
            connection.execute("INSERT INTO ledger SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 3000) n")
            connection.execute("UPDATE moved SET note = %s WHERE id %% 5 = %s", [f"at {number}", number % 5])
            connection.execute("DELETE FROM ledger WHERE n %% 7 = %s", [number % 7])
            (xid,) = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
        connection.execute("SELECT pg_sleep(0.005)")
        (at,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
        connection.execute("SELECT pg_create_restore_point(%s)", [f"moment {number}"])
        (lsn,) = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ("",)
    with content_now(cluster.server, "postgres") as content:
        return Moment(f"moment {number}", Lsn.parse(lsn), at, xid, content)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with private_folder() as folder, archived_cluster(15) as cluster, ended(cluster):
        store = LocalStore(folder / "repository")
        work = work_for(cluster, store, BACKUP_URL=f"file://{folder}/repository")
        space = cluster.server.directory / "space"
        space.mkdir()
        server_account().own(space)
        sql(cluster.server, "postgres", f"CREATE TABLESPACE space LOCATION '{space}'")
        sql(cluster.server, "postgres", "CREATE TABLE ledger (n int, text text)")
        sql(cluster.server, "postgres", "CREATE TABLE moved (id int PRIMARY KEY, note text) TABLESPACE space")
        sql(cluster.server, "postgres", "INSERT INTO moved SELECT n, '' FROM generate_series(1, 5000) n")
        backups, moments, at_stop = [], [], []
        with cluster.archiving(work):
            with Writer(cluster.server, "postgres", seed=7):
                backups.append(create_base(work).summary.id)
            with content_now(cluster.server, "postgres") as content:
                at_stop.append(content)
            moments += [moment(cluster, number) for number in range(2)]
            backups.append(create_base(work).summary.id)
            moments += [moment(cluster, number) for number in range(2, 4)]
            with content_now(cluster.server, "postgres") as latest:
                pass
            switch(cluster)
        yield World(folder, work, tuple(backups), tuple(at_stop), tuple(moments), latest)


@contextlib.contextmanager
def ended(cluster: Cluster) -> Iterator[None]:
    """Its end without a last word to an archiver that is gone."""
    try:
        yield
    finally:
        cluster.server.stop("immediate")


def switch(cluster: Cluster) -> None:
    """Return when all WAL that was written is archived."""
    ((name,),) = sql(cluster.server, "postgres", "SELECT pg_walfile_name(pg_switch_wal())")
    done = cluster.server.data / f"pg_wal/archive_status/{name}.done"
    with connect(cluster.server) as connection:
        while not done.exists():
            connection.execute("SELECT pg_sleep(0.02)")


@pytest.fixture
def place() -> Iterator[Path]:
    with private_folder() as folder:
        server_account().own(folder)
        yield folder


def planned(world: World, place: Path, target: Target, **options: object) -> tuple[Request, Plan]:
    tablespaces = options.pop("tablespaces", None)
    request = Request(place / "data", target, server_account(), **options)  # type: ignore[arg-type] # of a Request
    if tablespaces is None:
        plan_of = {oid: place / f"space-{oid}" for oid in tablespaces_of(world, request)}
        request = Request(place / "data", target, server_account(), tablespaces=plan_of, **options)  # type: ignore[arg-type]
    return request, make_plan(world.reading(), request)


def tablespaces_of(world: World, request: Request) -> list[int]:
    from clipper_backup.ops.restore.recovery import tablespaces_in  # noqa: PLC0415
    from clipper_backup.repository.base_backups import part_of, plain_part, read_base_summary  # noqa: PLC0415
    from clipper_backup.values import BackupId  # noqa: PLC0415

    summary = read_base_summary(world.work.store, BackupId.parse(world.backups[0]))
    part = part_of(summary, "tablespace_map")
    return list(tablespaces_in(b"".join(plain_part(world.work.store, part, lambda chunks, _: iter(chunks)))))


@contextlib.contextmanager
def recovered(world: World, place: Path, target: Target, **options: object) -> Iterator[tuple[Restored, Content]]:
    request, plan = planned(world, place, target, **options)
    result = restore(world.reading(), request, plan, start=True)
    assert result.started is not None
    try:
        with psycopg.connect(
            host=str(result.started.socket_folder), port=result.started.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            for name, value in PINNED.items():
                connection.execute(f"SET {name} = '{value}'".encode())
            yield result, content_of(connection)
    finally:
        os.kill(result.started.pid, signal.SIGQUIT)
        os.waitpid(result.started.pid, 0)


def test_latest(world: World, place: Path) -> None:
    with recovered(world, place, Target("latest")) as (result, content):
        assert content == world.latest
