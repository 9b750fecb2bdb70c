"""A real PostgreSQL 15 that archives under load: by `wal push` itself, and through the shim and `wal archive`."""

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.format.wal_objects import decode_object
from clipper_backup.ops.wal.handshake import Handshake
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.systems import list_systems
from clipper_backup.store.memory import MemoryStore
from fixtures.cli import DEADLINE_SECONDS, PROGRAM, StartCli, environment
from fixtures.postgres import FAST, major_of, server_binaries, sql
from fixtures.stores import StorePlace
from fixtures.wal import Pushing
from fixtures.wal_server import check_archive, owner_of, ready, until, write_wal

pytestmark = pytest.mark.soak(share=0.25)


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
def test_wal_push_under_load_and_a_copy_set_back(primary: PrivateServer, handshake: Path, local_place: StorePlace) -> None:
    """The server archives; then its volume is set back to an older copy, which writes other WAL under archived names."""
    primary.stop()
    older = primary.directory / "older"
    shutil.copytree(primary.data, older)
    with pushing_processes(primary, handshake, local_place) as said:
        primary.start()
        last = write_wal(primary, 5)
        until((primary.data / f"pg_wal/archive_status/{last}.done").exists, lambda: (ready(primary), said))
    # The second, where the shim waited no longer and PostgreSQL asked again.
    assert {text.partition(" ")[2] for text in said} <= {"archived\n", "was in the archive already, with the same content\n"}
    check_archive(primary, local_place.open(), last)
    primary.stop()
    primary.data.rename(primary.directory / "newer")
    older.rename(primary.data)
    for path in (primary.data, *primary.data.rglob("*")):
        os.chown(path, *owner_of(primary.directory / "newer"))
    before = {info.key: info.version for info in local_place.open().list("wal/")}
    primary.start()
    with pushing_processes(primary, handshake, local_place) as said:
        write_wal(primary, 3)
        until(lambda: any("is in the archive with other bytes" in text for text in said), lambda: (ready(primary), said))
    assert {info.key: info.version for info in local_place.open().list("wal/")} == before, "nothing was written over"


@pytest.mark.rule(1)
@pytest.mark.rule(18)
@pytest.mark.rule(19)
def test_the_sidecar_under_load_killed_and_started_again(
    primary: PrivateServer, handshake: Path, local_place: StorePlace, start_cli: StartCli
) -> None:
    """The process, the server and the handshake folder are lost in turn; what was acknowledged is always there."""
    words = ("wal", "archive", "--pgdata", str(primary.data), "--handshake", str(handshake))

    def start() -> "subprocess.Popen[str]":
        return start_cli(*words, env=local_place.environment, stderr=subprocess.DEVNULL)

    Pushing(local_place.open())
    sidecar = start()
    last = write_wal(primary, 6)
    until(lambda: any((primary.data / "pg_wal/archive_status").glob("*.done")), lambda: ready(primary))
    sidecar.kill()
    sidecar.wait()
    write_wal(primary, 3)
    primary.kill9()
    primary.start()
    sidecar = start()
    last = write_wal(primary, 3)
    shutil.rmtree(handshake / "requests", ignore_errors=True)
    last = write_wal(primary, 3)
    until((primary.data / f"pg_wal/archive_status/{last}.done").exists, lambda: ready(primary))
    check_archive(primary, local_place.open(), last)
    sidecar.terminate()
    assert sidecar.wait(DEADLINE_SECONDS) == 143
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
    """Its history, and a segment whose first pages are its ancestor's: as PostgreSQL writes them.

    With archive_mode = always also what its primary wrote: the same where that archived it, and the rest where it died before.
    """
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
        copying = settings | {"archive_mode": "always", "restore_command": f"cp {one.data}/pg_wal/%f %p", "hot_standby": "on"}
        with PrivateServer(folder, binaries, environment={"PATH": os.environ["PATH"]}, settings=copying) as two:
            two.start()
            until(lambda: sql(two, "postgres", "SELECT to_regclass('seen')") != [(None,)], two.log_tail)
            sql(two, "postgres", "SELECT pg_promote()")
            last = write_wal(two, 2)
            wal = two.data / "pg_wal"
            pushing = Pushing(MemoryStore(SystemClock()))
            held = [name.removesuffix(".ready") for name in ready(two) if name.startswith(f"{1:08X}")]
            of_primary = held[:-1]  # the last one was copied while it was being written, as no archive would give it
            assert pushing(one.data / "pg_wal" / of_primary[0]).state == "archived"
            states = [pushing(wal / name).state for name in of_primary]
            assert (states[:2], set(states[1:])) == (["was archived", "archived"], {"archived"})
            names = sorted(path.name for path in wal.glob(f"{2:08X}*") if path.name <= last or path.name.endswith(".history"))
            assert [pushing(wal / name).name for name in names] == names
            first = next(info.key for info in pushing.store.list("wal/") if info.key.endswith(f"{names[1]}.zst"))
            head = b"".join(decode_object(pushing.store.get_stream(first), first)[1])
            assert (names[0], head[4]) == (f"{2:08X}.history", 1), "its first pages are its ancestor's"
            two.kill9()
        one.kill9()
