"""Recoveries of a real PostgreSQL from an archive that is whole, or is not (W5, W9, W10).

What is not must never be opened: with "no such file" in its place, PostgreSQL would open short of what was committed.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from clipper_backup.format.wal_objects import decode_object, encode_object
from clipper_backup.ops.wal.restore_command import restore_command
from clipper_backup.ops.wal.shims import RESTORE_SHIM
from clipper_backup.postgres.account import server_account
from clipper_backup.repository.restore_plan import LINKS, PLAN, RestorePlan
from clipper_backup.wal_names import Segment
from fixtures.cli import DEADLINE_SECONDS, StartCli
from fixtures.dump import FAULTS
from fixtures.postgres import private_folder
from fixtures.server_program import server_program
from fixtures.wal_server import until
from fixtures.wal_world import CHILD_ROWS, ROWS, Recovery, World, fetching, hastening, recovering

pytestmark = pytest.mark.soak(share=0.25)


@pytest.fixture
def place() -> Iterator[Path]:
    with private_folder() as folder:
        yield folder


@pytest.fixture
def world(wal_world: World, place: Path) -> World:
    return wal_world.copied_to(place)


@pytest.mark.rule(55)
@pytest.mark.rule(98)
def test_to_the_end(world: World, place: Path) -> None:
    """Of a timeline that another one left: the next free number is taken, and each segment was noted once."""
    with recovering(world, place, world.plan()) as recovery:
        recovery.server.start()
        assert recovery.rows() == [*ROWS]
        assert (recovery.server.data / "pg_wal" / "00000003.history").exists()
        names = [line.split()[0] for line in (recovery.restore_folder / LINKS).read_text().splitlines()]
        first, last = (Segment.parse(name, 1 << 20).number for name in (names[0], world.segment_with(ROWS[-1])))
        assert [Segment.parse(name, 1 << 20).number for name in names] == [*range(first, last + 1)]


@pytest.mark.rule(58)
def test_read_ahead_behind_a_held_backup(world: World, place: Path) -> None:
    """To row 3, with everything behind it pruned: PostgreSQL reads ahead, and is told that there is no more."""
    world.lose(*(world.segment_with(row) for row in ROWS[3:]))
    stop = world.after[3]
    with recovering(world, place, world.plan(last=stop), settings={"recovery_target_lsn": str(stop)}) as recovery:
        recovery.server.start()
        assert recovery.rows() == [1, 2, 3]


@pytest.mark.rule(62)
def test_through_the_switch_to_another_timeline(world: World, place: Path) -> None:
    with recovering(world, place, world.plan(timeline=2)) as recovery:
        recovery.server.start()
        assert recovery.rows() == [1, 2, *CHILD_ROWS]


@pytest.mark.rule(96)
def test_child_segment_gone_never_follows_the_parent(world: World, place: Path) -> None:
    """W9: PostgreSQL asks for the parent's segment then, reads past where the child left it, and opens the wrong branch."""
    world.lose(*(world.segment_with(row, timeline=2) for row in CHILD_ROWS))
    with recovering(world, place, world.plan(timeline=2)) as recovery:
        assert "does not lead to timeline 2" in recovery.must_fail()


@pytest.mark.rule(96)
def test_without_row_2_it_does_follow_the_parent(world: World, place: Path) -> None:
    """The same with a restore_command that knows no lines: why row 2 is there."""
    world.lose(*(world.segment_with(row, timeline=2) for row in CHILD_ROWS))
    wal = world.repository / "wal" / world.system_id
    simple = f"zstd -qdc {wal}/*/*/%f.zst >%p 2>/dev/null || zstd -qdc {wal}/histories/%f.zst >%p 2>/dev/null || exit 1"
    with recovering(world, place, world.plan(timeline=2), command=lambda _: simple) as recovery:
        recovery.server.start()
        assert recovery.rows() == [*ROWS], "timeline 2 never had the rows 3 to 6"


@pytest.mark.rule(6)
def test_final_probe_meets_a_lost_history(world: World, place: Path) -> None:
    """W10: it ends no recovery that is done, and its number is not taken again."""
    world.store.delete([world.key("00000002.history")])
    with recovering(world, place, world.plan()) as recovery:
        recovery.server.start()
        assert recovery.rows() == [*ROWS]
        wal = recovery.server.data / "pg_wal"
        assert (wal / "00000003.history").read_text().split()[0] == "1"
        assert not (wal / "00000002.history").exists()


# -- never promoted, and the log says why


@dataclass
class Harm:
    """What is done to a restore, and what must then stand in the log of the server."""

    said: str
    world: Callable[[World], None] = lambda _: None
    plan: Callable[[RestorePlan], RestorePlan] = lambda plan: plan
    command: Callable[[Path], str] = fetching
    folder: Callable[[Path], None] = lambda _: None


def middle(world: World) -> str:
    return world.segment_with(ROWS[1])


def of_another_cluster(world: World) -> None:
    key = world.key(middle(world))
    header, plain = decode_object([world.store.get(key)], key)
    world.put(key, b"".join(encode_object(replace(header, system_id=7), plain)))


def truncated(world: World) -> None:
    key = world.key(middle(world))
    world.put(key, world.store.get(key)[:-5])


def store_down(plan: RestorePlan) -> RestorePlan:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    settings = {"BACKUP_URL": "s3://nobody", "BACKUP_ENDPOINT": f"http://127.0.0.1:{port}", "STORE_RETRY_SECONDS": "0"}
    return replace_plan(plan, settings, environment)


def replace_plan(plan: RestorePlan, settings: dict[str, str], environment: dict[str, str]) -> RestorePlan:

    return msgspec.structs.replace(plan, settings=settings, environment=environment)


def with_broken_library(folder: Path) -> str:
    """A module that is imported late, when the program runs already, does not import."""
    broken = folder.parent / "broken"
    broken.mkdir()
    broken.chmod(0o755)
    (broken / "msgspec.py").write_text("raise RuntimeError('half installed')\n")
    return f"PYTHONPATH={broken}:$PYTHONPATH; {fetching(folder)}"


def without_python(folder: Path) -> str:
    return restore_command(["/nonexistent/python", "-m", "clipper_backup", "wal", "fetch", "--restore-folder", folder])


def without_package(folder: Path) -> str:
    python, *words = server_program()
    fetch = restore_command([python, "-S", *words, "wal", "fetch", "--restore-folder", folder])  # no site-packages either
    return f"PYTHONPATH=; {fetch}"


def killed(folder: Path) -> str:
    return restore_command(["sh", "-c", "kill -KILL $$"])


def unreadable(folder: Path) -> None:
    (folder / PLAN).chmod(0)
    if (folder / PLAN).owner() != "root":
        shutil.chown(folder / PLAN, 0, 0)


ARCHIVES = {
    "middle segment gone": Harm("is missing from the archive, and", world=lambda world: world.lose(middle(world))),
    "of another cluster": Harm("its system is 7", world=of_another_cluster),
    "truncated": Harm("ends too early", world=truncated),
    "repository gone": Harm("no repository at", world=lambda world: shutil.rmtree(world.repository)),
    "store down": Harm("127.0.0.1", plan=store_down),
}
PROGRAMS = {
    "broken library": Harm("half installed", command=with_broken_library),
    "no Python": Harm("/nonexistent/python", command=without_python),
    "no package": Harm("No module named", command=without_package),
    "killed": Harm("Killed", command=killed),
    "plan unreadable": Harm("cannot read the restore's plan", folder=unreadable),
}


@pytest.mark.rule(56)
@pytest.mark.rule(57)
@pytest.mark.rule(96)
@pytest.mark.soak(over=["harm"])
@pytest.mark.parametrize("harm", ARCHIVES)
def test_never_promoted(world: World, place: Path, harm: str) -> None:
    """Without a target: nothing but our answer keeps PostgreSQL from taking the harm for the end of the WAL."""
    must_end(world, place, ARCHIVES[harm])


@pytest.mark.rule(56)
@pytest.mark.soak(over=["harm"])
@pytest.mark.parametrize("harm", PROGRAMS)
def test_never_promoted_where_the_program_is_broken(world: World, place: Path, harm: str) -> None:
    must_end(world, place, PROGRAMS[harm])


def must_end(world: World, place: Path, harm: Harm) -> None:
    harm.world(world)
    with recovering(world, place, harm.plan(world.plan()), command=harm.command) as recovery:
        harm.folder(recovery.restore_folder)
        assert harm.said in recovery.must_fail()


# -- the same through `wal serve` and its shim


def asking(folder: Path) -> str:
    return restore_command(["sh", RESTORE_SHIM, folder.parent / "handshake"])


@pytest.fixture
def serve(place: Path, start_cli: StartCli) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `wal serve` for the server that recovers."""

    def start(recovery: Recovery, **settings: str) -> "subprocess.Popen[str]":
        folders = {"pgdata": recovery.server.data, "handshake": place / "handshake", "restore-folder": recovery.restore_folder}
        words = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
        return start_cli("wal", "serve", *words, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return start


@pytest.mark.rule(56)
@pytest.mark.rule(57)
@pytest.mark.rule(96)
@pytest.mark.soak(over=["harm"])
@pytest.mark.parametrize("harm", ARCHIVES)
def test_never_promoted_by_who_serves(
    world: World, place: Path, serve: Callable[..., "subprocess.Popen[str]"], harm: str
) -> None:
    broken = ARCHIVES[harm]
    broken.world(world)
    with recovering(world, place, broken.plan(world.plan()), command=asking) as recovery:
        serving = serve(recovery)
        try:
            assert broken.said in recovery.must_fail()
            assert serving.poll() is None, "whoever starts PostgreSQL again is answered"
        finally:  # it reads ahead
            serving.kill()
            serving.wait()


@pytest.mark.rule(56)
@pytest.mark.soak(over=["why"])
@pytest.mark.parametrize("why", ["never begun", "plan unreadable", "killed"])
def test_never_promoted_where_nobody_serves(
    world: World, place: Path, serve: Callable[..., "subprocess.Popen[str]"], why: str
) -> None:
    """Half a minute, of a clock that hastens."""
    path = {"PATH": f"{hastening(place)}:{os.environ['PATH']}"}
    for file in (place / "now", place / "bin"):
        server_account().own(file)
    with recovering(world, place, world.plan(), command=asking, environment=path) as recovery:
        if why == "plan unreadable":
            (recovery.restore_folder / PLAN).write_bytes(b"{")
            assert serve(recovery).wait(DEADLINE_SECONDS) == 13
        elif why == "killed":
            serving = serve(recovery, **{FAULTS: "*:4+:kill"})
            until((place / "handshake/alive").exists, serving.poll)
        log = recovery.must_fail()
        assert (
            "gave no sign of life for more than 30 seconds" in log
            if why == "killed"
            else "no `clipper-backup wal serve` answers" in log
        )
