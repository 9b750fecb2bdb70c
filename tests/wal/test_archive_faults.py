"""What breaks around `wal archive`, with a real PostgreSQL that writes all the while: nothing acknowledged is ever lost.

An acknowledged segment is one of which PostgreSQL keeps a `.done`: it may forget that file.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import load
from clipper_backup.format.wal_objects import decode_object
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.shims import ARCHIVE_SHIM
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.store.protocol import Store
from clipper_backup.wal_names import Kind, classify
from fixtures.base import Kept
from fixtures.cli import StartCli
from fixtures.dump import FAULTS
from fixtures.oracle import content_now, content_of
from fixtures.postgres import FAST, server_binaries, sql
from fixtures.proxy import TcpProxy
from fixtures.restore import proven, session_in
from fixtures.server_program import server_program
from fixtures.stores import S3Server, StorePlace
from fixtures.sweeps import chosen
from fixtures.wal import Pushing
from fixtures.wal_server import check_archive, owner_of, ready, until, write_wal

pytestmark = pytest.mark.soak(share=0.25)

_CALLS = 24
"""So many calls a process makes, about, to begin and to archive some six segments: whoever is to die at one of them does."""


def acknowledged(server: PrivateServer) -> list[str]:
    """The segments that PostgreSQL may forget."""
    named = (path.stem for path in (server.data / "pg_wal/archive_status").glob("*.done"))
    return sorted(name for name in named if classify(name) is Kind.SEGMENT)


def must_be_archived(server: PrivateServer, store: Store) -> list[str]:
    """Every acknowledged segment is in the archive with the server's own bytes; they are the first ones, without a hole."""
    # Looked at first: what is acknowledged meanwhile may come to lie there later.
    names = acknowledged(server)
    archived = {info.key.rpartition("/")[2]: info.key for info in store.list("wal/")}
    for name in names:
        assert f"{name}.claim" in archived, name
        _, plain = decode_object(store.get_stream(archived[f"{name}.zst"]), name)
        assert b"".join(plain) == (server.data / "pg_wal" / name).read_bytes(), name
    kept = (path.name for path in (server.data / "pg_wal").iterdir() if classify(path.name) is Kind.SEGMENT)
    assert names == sorted(kept)[: len(names)], "acknowledged in order"
    return names


@pytest.fixture
def sidecar(primary: PrivateServer, handshake: Path, start_cli: StartCli) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `wal archive`, for *primary* unless another server is named."""

    def start(
        place: StorePlace, data: Path | None = None, folder: Path | None = None, **settings: str
    ) -> "subprocess.Popen[str]":
        words = ("wal", "archive", "--pgdata", str(data or primary.data), "--handshake", str(folder or handshake))
        return start_cli(*words, env={**place.environment, **settings}, stderr=subprocess.DEVNULL)

    return start


@pytest.mark.rule(1)
@pytest.mark.rule(3)
@pytest.mark.rule(18)
def test_killed_at_any_call_to_the_store(
    primary: PrivateServer,
    handshake: Path,
    local_place: StorePlace,
    server_folder: Path,
    sidecar: Callable[..., "subprocess.Popen[str]"],
) -> None:
    """Again and again, now and then with PostgreSQL and the handshake folder; then all is there, and restores."""
    store = local_place.open()
    Pushing(store)
    well = sidecar(local_place)
    where = primary.connection()
    login = {"PGHOST": where["host"], "PGPORT": where["port"], "PGUSER": where["user"]}
    settings = load({}, {**local_place.environment, **login, "ARCHIVE_WAIT_SECONDS": "1"}).settings
    work = Work(settings, store, SystemClock(), Kept())
    create_base(work)
    well.kill()
    well.wait()
    for turn, number in enumerate(chosen(range(_CALLS), 3)):  # before the first call, and after each
        dying = sidecar(local_place, **{FAULTS: f"*:{number}:killed" if number else "*:1:kill"})
        if not primary.is_running:
            # PostgreSQL waits a minute after three failures.
            until(lambda: (handshake / "alive").exists() or dying.poll() is not None, lambda: number)  # noqa: B023  waited for here
            primary.start()
        while dying.poll() is None:
            write_wal(primary, 1)
        assert dying.returncode == -signal.SIGKILL
        must_be_archived(primary, store)
        if turn % 5 == 1:
            primary.kill9()
            shutil.rmtree(handshake)
            handshake.mkdir(mode=0o755)
    well = sidecar(local_place)
    if not primary.is_running:
        primary.start()
    last = write_wal(primary, 1)
    until(lambda: last in acknowledged(primary), lambda: ready(primary))
    must_be_archived(primary, store)
    check_archive(primary, store, last)
    with content_now(primary, "postgres") as held:
        pass
    well.kill()
    well.wait()
    place = server_folder / "restored"
    place.mkdir()
    server_account().own(place)
    request = Request(place / "data", Target("latest"), server_account(), program=server_program())
    with proven(work, request, make_plan(work, request)) as (_, started), session_in(started) as connection:
        assert content_of(connection) == held


@pytest.mark.rule(1)
def test_an_outage_of_the_store(
    primary: PrivateServer, s3_server: S3Server, s3_prefix: str, sidecar: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """It lasts until PostgreSQL was told so: the backlog grows and drains in order, nothing is acknowledged early."""
    store, url = s3_server.open(s3_prefix), f"s3://{s3_server.bucket}/{s3_prefix}"
    Pushing(store)
    with TcpProxy((s3_server.host, s3_server.port)) as proxy:
        known = {**s3_server.environment, "BACKUP_URL": url, "BACKUP_ENDPOINT": f"http://127.0.0.1:{proxy.port}"}
        sidecar(StorePlace(url, known), STORE_RETRY_SECONDS="120")
        first = write_wal(primary, 2)
        until(lambda: first in acknowledged(primary), lambda: ready(primary))
        proxy.refuse()
        before = must_be_archived(primary, store)
        last = write_wal(primary, 4)
        until(lambda: "not archived within 5 seconds" in primary.log.read_text(), lambda: ready(primary))
        assert len(ready(primary)) >= 4
        assert must_be_archived(primary, store) == before
        proxy.accept()
        until(lambda: last in must_be_archived(primary, store), lambda: ready(primary))  # at each moment
        check_archive(primary, store, last)


@pytest.mark.rule(2)
@pytest.mark.rule(10)
def test_two_primaries_with_one_history(
    primary: PrivateServer,
    local_place: StorePlace,
    server_folder: Path,
    sidecar: Callable[..., "subprocess.Popen[str]"],
) -> None:
    """A copy of the volume is started beside its original: whoever claims a segment first goes on, the other one is refused."""
    store = local_place.open()
    Pushing(store)
    primary.stop()
    common = [name.removesuffix(".ready") for name in ready(primary)]
    folder, asked = server_folder / "clone", server_folder / "asked"
    shutil.copytree(primary.data, folder / "data")
    asked.mkdir(mode=0o755)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *owner_of(primary.data))
    command = {"archive_mode": "on", "archive_command": f"sh {server_folder / ARCHIVE_SHIM.name} {asked} %p"}
    settings = {**FAST, **command, "wal_keep_size": "1GB", "autovacuum": "off"}
    known = {"ARCHIVE_WAIT_SECONDS": "5", "PATH": os.environ["PATH"]}
    with PrivateServer(folder, server_binaries(15), environment=known, settings=settings) as clone:
        both = (primary, clone)
        for server in both:
            server.start()
            sql(server, "postgres", f"CREATE TABLE of_{server.directory.name} ()")
        lasts = [write_wal(server, 4) for server in both]
        sidecar(local_place)
        sidecar(local_place, clone.data, asked)
        until(lambda: any(last in acknowledged(server) for server, last in zip(both, lasts, strict=True)), lambda: ready(clone))
        until(lambda: any("with other bytes" in server.log.read_text() for server in both), lambda: ready(clone))
        winner, loser = sorted(both, key=lambda server: len(acknowledged(server)), reverse=True)
        check_archive(winner, store, lasts[both.index(winner)])
        must_be_archived(loser, store)
        assert acknowledged(winner) > acknowledged(loser)
        assert {*acknowledged(loser)} <= {*common}, "it was refused from the first segment on that differs"
        clone.kill9()
