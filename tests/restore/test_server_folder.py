"""`restore --start --server-folder`: the server runs in what stands for another container, which shares nothing but folders."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import ServerError
from clipper_backup.ops.events import Event, StepBegun
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.folder_runner import FolderRunner
from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import DEADLINE_SECONDS, RunCli, StartCli
from fixtures.driven import SHELLS, control_folder, obeying
from fixtures.oracle import PINNED, content_of
from fixtures.postgres import FAST, connect, server_binaries
from fixtures.restore import World, planned, restoring
from fixtures.sweeps import chosen

PATIENCE = 15
"""Seconds that the loop waits for us; we say something every five."""


@pytest.fixture
def world(restore_world: World, place: Path) -> World:
    return restore_world.copied_to(place)


def holds(world: World, data: Path) -> object:
    """What is in the data folder, by a server of the tests' own on it; it was shut down in order."""
    settings = FAST | {"archive_mode": "off"}
    server = PrivateServer(
        data.parent / "looking", server_binaries(world.major), environment=os.environ, data=data, settings=settings
    )
    with server:
        server.start()
        assert "was not properly shut down" not in server.log.read_text()
        with connect(server) as connection:
            for name, value in PINNED.items():
                connection.execute(f"SET {name} = '{value}'".encode())
            return content_of(connection)


@pytest.mark.rule(65)
@pytest.mark.rule(98)
@pytest.mark.parametrize("shell", SHELLS)
def test_the_server_recovers_elsewhere_and_is_stopped_in_order(world: World, place: Path, run_cli: RunCli, shell: str) -> None:
    control = control_folder(place)
    words = restoring(world, place, "--to-name", "moment 2", "--start", "--server-folder", str(control), "--json")
    with obeying(control, world.major, shell, patience=PATIENCE) as loop:
        done = run_cli(*words, env=world.settings, check=True).document["restored"]
        assert loop.wait(DEADLINE_SECONDS) == 0, "its container ends well, so the Job's Pod can"
    started = done["started"]
    assert (started["timeline"], done["history_archived"], started["running"]) == (2, True, False)
    assert (started["socket_dir"], started["port"], started["pid"]) == (None, None, None)
    assert holds(world, place / "data") == world.moments[2].content


@pytest.mark.soak
def test_killed_it_takes_the_server_along_and_can_be_repeated(
    world: World, place: Path, run_cli: RunCli, start_cli: StartCli
) -> None:
    for step in chosen(["wait for the server", "restore ", "recover to", "archive ", "stop the server"], 1):
        control = control_folder(place)
        words = restoring(world, place, "--start", "--server-folder", str(control), "--replace", "--yes")
        with obeying(control, world.major, patience=PATIENCE) as loop:
            died = start_cli(*words, env=world.settings)
            assert died.stderr is not None
            assert any(f"begun: {step}" in line for line in died.stderr), step
            died.send_signal(signal.SIGKILL)
            died.wait(DEADLINE_SECONDS)
            assert loop.wait(DEADLINE_SECONDS) == 1, step
        assert not (place / "data/postmaster.pid").exists(), step
        control = control_folder(place)
        words = restoring(world, place, "--start", "--server-folder", str(control), "--replace", "--yes")
        with obeying(control, world.major, patience=PATIENCE):
            run_cli(*words, env=world.settings, check=True)
        assert holds(world, place / "data") == world.moments[3].content


def test_when_its_container_dies_the_restore_fails_and_says_so(world: World, place: Path) -> None:
    control = control_folder(place)
    request, plan = planned(world, place, Target("latest"))
    with (
        obeying(control, world.major, patience=PATIENCE) as loop,
        FolderRunner(control, SystemClock(), patience_seconds=3) as runner,
    ):

        def dies(event: Event) -> None:
            if isinstance(event, StepBegun) and event.step == "recover":
                loop.kill()

        with pytest.raises(ServerError, match=r"its container has ended or hangs: nobody has obeyed .* for 3 s"):
            restore(replace(world.reading(), emit=dies), request, plan, start=True, runner=runner)
    assert (control / "end").exists()


@pytest.mark.rule(53)
def test_another_version_is_refused_before_anything_is_written(world: World, place: Path, run_cli: RunCli) -> None:
    control = control_folder(place)
    other = 15 if world.major == 18 else 18
    with obeying(control, other, patience=PATIENCE) as loop:
        refused = run_cli(*restoring(world, place, "--start", "--server-folder", str(control)), env=world.settings)
        assert loop.wait(DEADLINE_SECONDS) == 0
    assert refused.code == 2
    assert (
        f"the backup is of PostgreSQL {world.major}, and the container that is to run it has PostgreSQL {other}."
        in refused.stderr
    )
    assert not (place / "data").exists()


def test_what_does_not_go_together(place: Path, run_cli: RunCli) -> None:
    words = ("restore", "--target-dir", str(place / "data"), "--server-folder", str(place))
    assert "--server-folder needs --start" in run_cli(*words).stderr
    refused = run_cli(*words, "--start", "--port", "5433")
    assert (refused.code, "--port does not go with --server-folder" in refused.stderr) == (2, True)
