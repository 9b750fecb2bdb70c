"""A real PostgreSQL 15 that archives under load: by `wal push` itself, and through the shim and `wal archive`."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.format.wal_objects import NO_LINK, decode_object
from clipper_backup.ops.wal.handshake import Handshake
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.systems import list_systems
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.values import Secret
from clipper_backup.wal_names import Kind, classify
from fixtures.cli import PROGRAM, StartCli, environment
from fixtures.docs import ROOT
from fixtures.postgres import FAST, PASSWORD, connect, major_of, server_binaries, sql
from fixtures.stores import StorePlace
from fixtures.wal import MIB, Pushing

pytestmark = pytest.mark.soak(share=0.5)

SHIM = ROOT / "infrastructure/k8s/components/wal-archive/archive.sh"
_SECONDS = 150
"""PostgreSQL waits a minute after three failures in a row."""


@pytest.fixture
def handshake(server_folder: Path) -> Path:
    folder = server_folder / "handshake"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def server(server_folder: Path, handshake: Path) -> Iterator[PrivateServer]:
    """It has segments of 1 MiB, keeps them all, and archives through the shim."""
    shim = shutil.copy(SHIM, server_folder)
    settings = {
        **FAST,
        "archive_mode": "on",
        "archive_command": f"sh {shim} {handshake} %p",
        "wal_keep_size": "1GB",
        "autovacuum": "off",
    }
    known = {"ARCHIVE_WAIT_SECONDS": "5", "PATH": os.environ["PATH"]}
    with PrivateServer(server_folder / "server", server_binaries(15), environment=known, settings=settings) as made:
        made.initdb(password=Secret(PASSWORD), sync=False, wal_segment_mib=1)
        made.start()
        yield made
        made.kill9()  # its archiver would try for a while


def until(reached: Callable[[], bool], say: Callable[[], object]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not reached():
        assert time.monotonic() < deadline, say()
        time.sleep(0.01)


def ready(server: PrivateServer) -> list[str]:
    return sorted(path.name for path in (server.data / "pg_wal/archive_status").glob("*.ready"))


def write_wal(server: PrivateServer, mib: int) -> str:
    """Fill about *mib* segments, switch to another one, and say which is the last full one."""
    with connect(server) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS load (number int, filler text)")
        connection.execute("INSERT INTO load SELECT i, repeat(md5(i::text), 24) FROM generate_series(1, %s) i", [mib * 1200])
        (row,) = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchall()
        return str(row[0])


def check_archive(server: PrivateServer, store: Store, last: str) -> None:
    """Every segment from the first one to *last* is there, has the server's own bytes, and links to the one before."""
    link = NO_LINK
    kept = [path.name for path in (server.data / "pg_wal").iterdir() if classify(path.name) is Kind.SEGMENT]
    names = sorted(name for name in kept if name <= last)
    assert len(names) > 3
    folder = f"wal/{sql(server, 'postgres', 'SELECT system_identifier FROM pg_control_system()')[0][0]}"
    for name in names:
        header, plain = decode_object(store.get_stream(f"{folder}/{name[:8]}/{name[:16]}/{name}.zst"), name)
        assert b"".join(plain) == (server.data / "pg_wal" / name).read_bytes()
        assert (header.plain_bytes, header.previous) == (MIB, link), name
        link = header.link


@contextlib.contextmanager
def pushing_processes(server: PrivateServer, handshake: Path, place: StorePlace) -> Iterator[list[str]]:
    """Answers the shim with what `clipper-backup wal push %p` ends with, as a process in PGDATA; what each one said.

    PostgreSQL's account may not be able to run our Python; this process is.
    """
    Pushing(place.open())
    asked, stop, said = Handshake(handshake, SystemClock(), asked_by=server.data), threading.Event(), []

    def run() -> None:
        while not stop.is_set():
            asked.beat()
            for request in asked.requests():
                words = [*PROGRAM, "wal", "push", f"pg_wal/{request.words[0]}"]
                done = subprocess.run(
                    words, cwd=server.data, env=environment(place.environment), capture_output=True, text=True, check=False
                )
                said.append(done.stdout or done.stderr)
                asked.answer(request, ok=done.returncode == 0, lines=done.stderr.splitlines())
            stop.wait(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join()
        asked.rest()


@pytest.mark.rule(1)
@pytest.mark.rule(2)
@pytest.mark.rule(9)
@pytest.mark.rule(10)
def test_wal_push_under_load_and_a_copy_set_back(server: PrivateServer, handshake: Path, local_place: StorePlace) -> None:
    """The server archives; then its volume is set back to an older copy, which writes other WAL under archived names."""
    server.stop()
    older = server.directory / "older"
    shutil.copytree(server.data, older)
    with pushing_processes(server, handshake, local_place) as said:
        server.start()
        last = write_wal(server, 5)
        until((server.data / f"pg_wal/archive_status/{last}.done").exists, lambda: (ready(server), said))
    # The second, where the shim waited no longer and PostgreSQL asked again.
    assert {text.partition(" ")[2] for text in said} <= {"archived\n", "was in the archive already, with the same content\n"}
    check_archive(server, local_place.open(), last)
    server.stop()
    server.data.rename(server.directory / "newer")
    older.rename(server.data)
    for path in (server.data, *server.data.rglob("*")):
        os.chown(path, *owner_of(server.directory / "newer"))
    before = {info.key: info.version for info in local_place.open().list("wal/")}
    server.start()
    with pushing_processes(server, handshake, local_place) as said:
        write_wal(server, 3)
        until(lambda: any("is in the archive with other bytes" in text for text in said), lambda: (ready(server), said))
    assert {info.key: info.version for info in local_place.open().list("wal/")} == before, "nothing was written over"


def owner_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


@pytest.mark.rule(1)
@pytest.mark.rule(18)
@pytest.mark.rule(19)
def test_the_sidecar_under_load_killed_and_started_again(
    server: PrivateServer, handshake: Path, local_place: StorePlace, start_cli: StartCli
) -> None:
    """The process, the server and the handshake folder are lost in turn; what was acknowledged is always there."""
    words = ("wal", "archive", "--pgdata", str(server.data), "--handshake", str(handshake))

    def start() -> "subprocess.Popen[str]":
        return start_cli(*words, env=local_place.environment, stderr=subprocess.DEVNULL)

    Pushing(local_place.open())
    sidecar = start()
    last = write_wal(server, 6)
    until(lambda: any((server.data / "pg_wal/archive_status").glob("*.done")), lambda: ready(server))
    sidecar.kill()
    sidecar.wait()
    write_wal(server, 3)
    server.kill9()
    server.start()
    sidecar = start()
    last = write_wal(server, 3)
    shutil.rmtree(handshake / "requests", ignore_errors=True)
    last = write_wal(server, 3)
    until((server.data / f"pg_wal/archive_status/{last}.done").exists, lambda: ready(server))
    check_archive(server, local_place.open(), last)
    sidecar.terminate()
    assert sidecar.wait(_SECONDS) == 143
    assert not (handshake / "alive").exists()


@pytest.mark.rule(8)
def test_wal_of_each_major_version_is_taken(postgres: PrivateServer) -> None:
    pushing = Pushing(MemoryStore(SystemClock()))
    sql(postgres, "postgres", "SELECT txid_current()")  # so that there is something to switch from
    ((name,),) = sql(postgres, "postgres", "SELECT pg_walfile_name(pg_switch_wal())")
    pushed = pushing(postgres.data / "pg_wal" / name)
    assert (pushed.name, pushed.state) == (name, "archived")
    (system,) = list_systems(pushing.store)
    assert system.server_major == major_of(postgres)


@pytest.mark.rule(6)
@pytest.mark.rule(8)
def test_a_promoted_standby_archives_its_timeline(server_folder: Path) -> None:
    """Its history, and a segment whose first pages are its ancestor's: as PostgreSQL writes them."""
    settings = {**FAST, "archive_mode": "on", "archive_command": "false", "wal_keep_size": "1GB", "autovacuum": "off"}
    binaries = server_binaries(15)
    with PrivateServer(server_folder / "one", binaries, environment={"PATH": os.environ["PATH"]}, settings=settings) as one:
        one.initdb(sync=False, wal_segment_mib=1)
        folder = server_folder / "two"
        shutil.copytree(one.data, folder / "data")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, *owner_of(one.data))
        one.start()
        write_wal(one, 2)
        sql(one, "postgres", "CREATE TABLE seen ()")
        sql(one, "postgres", "CHECKPOINT")
        (folder / "data/standby.signal").touch()
        copying = settings | {"restore_command": f"cp {one.data}/pg_wal/%f %p", "hot_standby": "on"}
        with PrivateServer(folder, binaries, environment={"PATH": os.environ["PATH"]}, settings=copying) as two:
            two.start()
            until(lambda: sql(two, "postgres", "SELECT to_regclass('seen')") != [(None,)], two.log_tail)
            sql(two, "postgres", "SELECT pg_promote()")
            last = write_wal(two, 2)
            wal = two.data / "pg_wal"
            pushing = Pushing(MemoryStore(SystemClock()))
            names = sorted(path.name for path in wal.glob(f"{2:08X}*") if path.name <= last or path.name.endswith(".history"))
            assert [pushing(wal / name).name for name in names] == names
            first = next(info.key for info in pushing.store.list("wal/") if info.key.endswith(f"{names[1]}.zst"))
            head = b"".join(decode_object(pushing.store.get_stream(first), first)[1])
            assert (names[0], head[4]) == (f"{2:08X}.history", 1), "its first pages are its ancestor's"
            two.kill9()
        one.kill9()
