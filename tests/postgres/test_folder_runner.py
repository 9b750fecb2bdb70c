"""obey.sh and who drives it: one run by its id, both sides end when either does, and what is said when nobody is there."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import ServerError, ToolMissingError, UsageError
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.folder_runner import FolderRunner
from clipper_backup.postgres.runner import Running, run_to_end
from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import DEADLINE_SECONDS
from fixtures.driven import SHELLS, control_folder, driven, obeying
from fixtures.postgres import FAST, server_binaries, sql

QUICK = 5
"""Seconds of silence after which a side is gone, here."""


@pytest.fixture(params=SHELLS)
def either_shell(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def place(server_folder: Path) -> Path:
    """A folder that both sides may write to, for logs."""
    folder = server_folder / "place"
    folder.mkdir()
    server_account().own(folder)
    return folder


@pytest.fixture
def control(server_folder: Path) -> Path:
    return control_folder(server_folder)


def runner_in(control: Path, patience: float = QUICK) -> FolderRunner:
    return FolderRunner(control, SystemClock(), patience_seconds=patience)


@contextlib.contextmanager
def running_in(runner: FolderRunner, folder: Path) -> Iterator[PrivateServer]:
    with PrivateServer(folder, runner, environment={}, settings=FAST) as server:
        server.initdb(sync=False)
        server.start()
        yield server


def until_gone(pid: int) -> None:
    """Wait until no process has that number, or one that has ended."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} lives on"
            time.sleep(0.01)


def launch(runner: FolderRunner, place: Path, *words: str) -> Running:
    return runner.launch(words, log=place / "log", environment={})


# -- K11


def test_each_run_has_its_own_end_and_log(place: Path, server_folder: Path, either_shell: str) -> None:
    with driven(server_folder, 15, either_shell) as runner:
        script = 'echo "$1" "$0" "$GIVEN"; exit "$1"'
        for status in (0, 3, 126):
            log = place / f"log {status}"
            words = ["sh", "-c", script, "a  b", str(status)]
            found = run_to_end(runner, words, log=log, environment={"GIVEN": "*; $(x) '", "PGPORT": "1"})
            assert found == (status, f"{status} a  b *; $(x) '")
        running = launch(runner, place, "sleep", "9000")
        running.signal("kill")
        assert running.wait(DEADLINE_SECONDS) == 128 + 9
        assert run_to_end(runner, ["nonsense"], log=place / "log", environment={})[0] == 127


def test_a_stop_hits_only_its_own_run(place: Path, control: Path, either_shell: str) -> None:
    with obeying(control, 15, either_shell, patience=QUICK), runner_in(control) as runner:
        first = launch(runner, place, "sleep", "9000")
        first.signal("kill")
        first.wait(DEADLINE_SECONDS)
        second = launch(runner, place, "sleep", "9000")
        (control / "stop.new").write_text(f"{first._id} KILL\n")  # type: ignore[attr-defined] # of a FolderRunning
        (control / "stop.new").rename(control / "stop")
        while (control / "stop").exists():
            time.sleep(0.01)
        for _ in range(2):  # rounds of the loop, each of which writes it anew: it has done what it was told by then
            round_ = (control / "alive").stat().st_ino
            while (control / "alive").stat().st_ino == round_:
                time.sleep(0.01)
        assert run_of(second) == "sleep"
        assert second.poll() is None
        second.signal("kill")
        second.wait(DEADLINE_SECONDS)


def run_of(running: Running) -> str:
    return psutil.Process(running.pid).name()


def test_what_was_taken_is_never_taken_again(place: Path, control: Path, either_shell: str) -> None:
    """Not by a container that is started again, after the first was killed at any point."""
    with runner_in(control) as runner:
        with obeying(control, 15, either_shell, patience=QUICK) as loop:
            running = launch(runner, place, "sh", "-c", "echo begun; exec sleep 9000")
            while (place / "log").read_text() != "begun\n":
                time.sleep(0.01)
            loop.kill()
            loop.wait()
            psutil.Process(running.pid).kill()
        with obeying(control, 15, either_shell, patience=QUICK):
            again = launch(runner, place, "sh", "-c", "echo again")
            assert again.wait(DEADLINE_SECONDS) == 0
        assert (place / "log").read_text() == "begun\nagain\n"


def test_a_container_that_was_started_again_says_what_ended_with_it(place: Path, control: Path, either_shell: str) -> None:
    """To the driver of then, and to one that begins anew."""
    with runner_in(control) as runner:
        with obeying(control, 15, either_shell, patience=QUICK) as loop:
            running = launch(runner, place, "sleep", "9000")
            loop.kill()
            loop.wait()
            psutil.Process(running.pid).kill()
        with obeying(control, 15, either_shell, patience=QUICK), runner_in(control) as other:
            assert launch(other, place, "true").wait(DEADLINE_SECONDS) == 0
        (control / "exited").unlink()
        (control / "pid").write_text(f"{running._id} 1\n")  # type: ignore[attr-defined] # of a FolderRunning
        with obeying(control, 15, either_shell, patience=QUICK):
            assert running.wait(DEADLINE_SECONDS) == 128 + 9


# -- K12


def test_at_the_end_the_server_is_shut_down_and_both_leave(place: Path, control: Path, either_shell: str) -> None:
    with obeying(control, 15, either_shell, patience=QUICK) as loop:
        with runner_in(control) as runner:
            server = PrivateServer(place / "it", runner, environment={}, settings=FAST)
            server.initdb(sync=False)
            server.start()
            sql(server, "postgres", "CREATE TABLE kept AS SELECT 42 AS answer")
            server.leave()
        assert loop.wait(DEADLINE_SECONDS) == 0
    assert state_of(server) == "shut down"


def test_told_to_terminate_it_shuts_the_server_down(place: Path, control: Path, either_shell: str) -> None:
    with (
        obeying(control, 15, either_shell, patience=QUICK) as loop,
        runner_in(control) as runner,
        running_in(runner, place / "it") as it,
    ):
        loop.terminate()
        assert loop.wait(DEADLINE_SECONDS) == 0
        assert state_of(it) == "shut down"
        assert not it.is_running


def test_without_its_driver_it_stops_the_server_and_fails(place: Path, control: Path, either_shell: str) -> None:
    """So the Job does not wait for its deadline."""
    with obeying(control, 15, either_shell, patience=QUICK) as loop:
        runner = runner_in(control).open()
        with running_in(runner, place / "it") as server:
            pid = server.pid
            runner._closing.set()  # as a driver that was killed: it says nothing more, and no `end` either
            assert loop.wait(DEADLINE_SECONDS) == 1
            until_gone(pid)
            assert state_of(server) == "shut down"
        runner.close()


@pytest.mark.soak(over=["how"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_without_its_container_a_server_has_ended(place: Path, control: Path, either_shell: str, how: str) -> None:
    with (
        obeying(control, 15, either_shell, patience=QUICK) as loop,
        runner_in(control) as runner,
        running_in(runner, place / "it") as server,
    ):
        pid = server.pid
        if how == "killed":
            loop.kill()
        else:
            psutil.Process(loop.pid).suspend()
        while server.is_running:
            time.sleep(0.05)
        assert "its container has ended or hangs" in server.failure("ended").message
        with pytest.raises(ServerError, match="its container has ended or hangs"):
            runner.launch(["true"], log=place / "log", environment={})
        if how == "frozen":  # what wakes up again finds that it is to leave
            psutil.Process(loop.pid).resume()
            assert loop.wait(DEADLINE_SECONDS) == 0
        else:
            psutil.Process(pid).kill()  # as the kernel does with all of a container
        until_gone(pid)


def test_who_answered_once_and_fell_silent_is_gone(control: Path, place: Path) -> None:
    """And is not waited for as one whose image is still fetched."""

    def answer_once() -> None:
        while not (control / "run").exists():
            time.sleep(0.01)
        (control / "pid").write_text((control / "run").read_text().splitlines()[0] + " 1\n")

    with runner_in(control, 0.5) as runner:
        other = threading.Thread(target=answer_once)
        other.start()
        launch(runner, place, "true")
        other.join()
        with pytest.raises(ServerError, match="its container has ended or hangs"):
            launch(runner, place, "true")


def state_of(server: PrivateServer) -> str:
    program = server_binaries(15).program("pg_controldata")
    printed = subprocess.run([program, server.data], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
    return next(line.partition(":")[2].strip() for line in printed.splitlines() if line.startswith("Database cluster state"))


# -- what is not there


def test_nobody_obeys(control: Path, place: Path) -> None:
    with runner_in(control, 0.05) as runner, pytest.raises(ServerError, match="nobody obeys what is written into") as told:
        runner.prepare(place)
    assert "obey.sh" in told.value.hints[0]
    assert (control / "end").exists(), "one that comes later leaves at once"


def test_what_an_earlier_one_left_is_no_order(control: Path, place: Path, either_shell: str) -> None:
    for name, content in (("end", ""), ("run", f"x\n{place / 'log'}\ntouch\n{place / 'touched'}\n"), ("driver", "x\n")):
        (control / name).write_text(content)
    with runner_in(control) as runner, obeying(control, 15, either_shell, patience=QUICK):
        runner.prepare(place)
        assert runner.name.startswith("PostgreSQL 15.")
        assert runner.major == 15
    assert not (place / "touched").exists()


def test_what_an_earlier_driver_left_running_is_ended_first(control: Path, place: Path, either_shell: str) -> None:
    """It was killed, and is started again before the loop has missed it: that server writes into the folder to be restored."""
    with obeying(control, 15, either_shell, patience=60):
        earlier = runner_in(control, 60).open()
        left = launch(earlier, place, "sleep", "9000").pid
        earlier._closing.set()  # as one that was killed: no `end`
        with runner_in(control, 60) as runner:
            until_gone(left)
            assert run_to_end(runner, ["echo", "on"], log=place / "log", environment={}) == (0, "on")


def test_an_image_without_postgresql_is_told(control: Path, place: Path, either_shell: str) -> None:
    with obeying(control, 15, either_shell, patience=QUICK, environment={"PATH": "/usr/bin:/bin"}), runner_in(control) as runner:
        with pytest.raises(ToolMissingError, match=r"has no PostgreSQL: .*postgres.*(No such file|not found)"):
            runner.prepare(place)
        with pytest.raises(UsageError, match="nobody has asked yet"):
            _ = runner.major


def test_a_log_that_the_other_container_cannot_write_is_told_and_ends_nothing(
    control: Path, place: Path, either_shell: str
) -> None:
    with obeying(control, 15, either_shell, patience=QUICK, stderr=subprocess.PIPE) as loop:
        with runner_in(control) as runner:
            nowhere = place / "not there" / "log"
            status, printed = run_to_end(runner, ["true"], log=nowhere, environment={})
            assert (status, str(nowhere) in printed, "needs our user id" in printed) == (0, True, True)
            assert run_to_end(runner, ["echo", "on"], log=place / "log", environment={}) == (0, "on")
        assert loop.wait(DEADLINE_SECONDS) == 0
        assert loop.stderr is not None
        assert f"obey.sh: cannot write to {nowhere} as user {server_account().uid}" in loop.stderr.read().decode()


def test_variables_of_libpq_in_the_image_do_not_reach_the_server(control: Path, place: Path, either_shell: str) -> None:
    """The official image sets PGDATA."""
    theirs = {"PGDATA": "/nowhere", "PGPORT": "1", "PG_MAJOR": "15", "PGTWO": "a\nb=c"}
    with (
        obeying(control, 15, either_shell, patience=QUICK, environment=theirs),
        runner_in(control) as runner,
        running_in(runner, place / "it") as server,
    ):
        found = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
        assert not [each for each in found if each.startswith(b"PG")]
        assert b"LC_ALL=C" in found


def test_a_line_feed_is_refused(control: Path, place: Path) -> None:
    with runner_in(control) as runner, pytest.raises(UsageError, match="holds a line feed"):
        launch(runner, place, "echo", "a\nb")


def test_a_folder_that_is_not_there(server_folder: Path) -> None:
    with pytest.raises(UsageError, match="to drive a server: no such file or directory") as told:
        runner_in(server_folder / "none").open()
    assert "one user id" in told.value.hints[0]


def test_the_loop_of_another_user_says_so(server_folder: Path, either_shell: str) -> None:
    folder = server_folder / "control-theirs"
    folder.mkdir(mode=0o755 if os.geteuid() == 0 else 0o555)
    with obeying(folder, 15, either_shell, patience=QUICK, stderr=subprocess.PIPE) as loop:
        assert loop.wait(DEADLINE_SECONDS) == 1
        assert loop.stderr is not None
        assert f"cannot write to {folder} as user {server_account().uid}" in loop.stderr.read().decode()
