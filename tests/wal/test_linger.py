"""`wal archive` in a Pod: it never ends by itself, whatever is wrong, and told to end it outlives its server."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import Settings, load
from clipper_backup.errors import AccessError, IncompleteError, MissingError
from clipper_backup.ops.events import Event, Warned
from clipper_backup.ops.wal.linger import Lingering, check_owner, keep_archiving
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.store.local import LocalStore
from fixtures.cli import DEADLINE_SECONDS, StartCli
from fixtures.clocks import START
from fixtures.postgres import as_server_account, private_folder
from fixtures.wal import MadeServer, Pushing

_SECONDS = 30


class HastyClock(SystemClock):
    """It waits a hundredth of what it is asked to: ten seconds between two tries are a tenth."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds / 100)


@dataclass
class Pod:
    """A data folder, a repository, a handshake folder, and what can be wrong with them."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    broken: Exception | None = None
    events: list[Event] = field(default_factory=list)
    tries: int = 0

    def __post_init__(self) -> None:
        self.server = MadeServer(self.folder / "data")
        self.handshake = self.folder / "handshake"
        self.handshake.mkdir()
        self.store = LocalStore(self.folder / "repository")
        open_or_create_repository(self.store, SystemClock(), "a test")
        self.settings["BACKUP_URL"] = self.store.url
        self.say(self.server.path)

    def say(self, pgdata: Path, end: str = "\n") -> None:
        """What start.sh does."""
        (self.handshake / "pgdata").write_text(f"{pgdata}{end}")

    def read_settings(self) -> Settings:
        self.tries += 1
        if self.broken is not None:
            raise self.broken
        return load({}, self.settings).settings

    def told(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Warned)]

    def segments(self) -> list[str]:
        return [name.removesuffix(".zst") for name in Pushing(self.store).names(".zst")]

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _SECONDS
        while not reached():
            assert time.monotonic() < deadline, self.events
            time.sleep(0.005)

    @contextlib.contextmanager
    def archiving(self) -> Iterator[None]:
        clock = HastyClock()
        lingering = Lingering(clock, 0)
        words = (self.read_settings, clock, self.events.append, self.handshake, lingering)

        def run() -> None:
            with contextlib.suppress(IncompleteError):
                keep_archiving(*words)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
            assert thread.is_alive(), "it never ends by itself"
        finally:
            lingering.ask()
            thread.join()


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def nothing_said(pod: Pod) -> Callable[[], None]:
    (pod.handshake / "pgdata").unlink()
    return lambda: pod.say(pod.server.path)


def half_said(pod: Pod) -> Callable[[], None]:
    pod.say(Path("/"), end="")
    return lambda: pod.say(pod.server.path)


def no_store_set(pod: Pod) -> Callable[[], None]:
    url = pod.settings.pop("BACKUP_URL")
    return lambda: pod.settings.update(BACKUP_URL=url)


def a_misspelt_setting(pod: Pod) -> Callable[[], None]:
    pod.settings["ARCHIVE_JOBS"] = "many"
    return lambda: pod.settings.update(ARCHIVE_JOBS="2")


def no_recipient(pod: Pod) -> Callable[[], None]:
    pod.settings["ENCRYPTION_RECIPIENTS"] = "nobody"
    return lambda: pod.settings.update(ENCRYPTION_RECIPIENTS="none")


def no_data_folder(pod: Pod) -> Callable[[], None]:
    away = pod.server.path.rename(pod.folder / "away")
    return lambda: (away.rename(pod.server.path), None)[1]


def no_initdb_yet(pod: Pod) -> Callable[[], None]:
    away = (pod.server.path / "global").rename(pod.folder / "global")
    return lambda: (away.rename(pod.server.path / "global"), None)[1]


def a_bug(pod: Pod) -> Callable[[], None]:
    pod.broken = ZeroDivisionError("of ours")
    return lambda: setattr(pod, "broken", None)


WRONG = {
    nothing_said: "it is not said where the server's data folder is",
    half_said: "it is not said where the server's data folder is",
    no_store_set: "no repository is configured",
    a_misspelt_setting: "bad value for ARCHIVE_JOBS",
    no_recipient: "ENCRYPTION_RECIPIENTS",
    no_data_folder: "there is no ",
    no_initdb_yet: "is no data folder of PostgreSQL",
    a_bug: "internal error: ZeroDivisionError: of ours",
}


@pytest.mark.parametrize(("wrong", "said"), WRONG.items(), ids=[each.__name__ for each in WRONG])
def test_what_is_wrong_is_told_once_and_cured_without_a_restart(
    pod: Pod, wrong: Callable[[Pod], Callable[[], None]], said: str
) -> None:
    cure = wrong(pod)
    with pod.archiving():
        pod.until(lambda: bool(pod.told()))
        first = pod.told()[0]
        assert first.startswith("nothing is archived, it is tried again: ")
        assert said in first
        assert not (pod.handshake / "alive").exists(), "the shim is to say 1 at once"
        tries = pod.tries
        pod.until(lambda: pod.tries > tries + 2)
        assert pod.told() == [first], "told once"
        cure()
        path = pod.server.write(1)
        pod.until(lambda: pod.segments() == [path.name])
        assert (pod.handshake / "alive").exists()


def test_what_was_mended_and_comes_back_is_told_again(pod: Pod) -> None:
    """Days may lie between: who reads the log of today must find it."""
    requests = pod.handshake / "requests"

    def spoil() -> None:
        if requests.is_dir():
            requests.rename(pod.folder / "away")
        requests.touch()  # a file, where the handshake needs a folder

    spoil()
    with pod.archiving():
        for times in (1, 2):
            pod.until(lambda times=times: len(pod.told()) == times)  # type: ignore[misc]
            requests.unlink()
            path = pod.server.write(times)
            pod.until(lambda path=path: path.name in pod.segments())  # type: ignore[misc]
            if times == 1:
                spoil()
    first, second = pod.told()
    assert first == second


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to another user")
def test_another_users_data_folder_is_told_with_both_numbers() -> None:
    with private_folder() as folder:
        data = folder / "data"
        data.mkdir(mode=0o700)
        with as_server_account():
            ours = os.geteuid()
            with pytest.raises(MissingError, match="it belongs to root"):
                check_owner(data)
        os.chown(data, 999_999, 999_999)
        check_owner(data)  # root may
        with as_server_account(), pytest.raises(AccessError) as told:
            check_owner(data)
        assert told.value.message == f"{data} belongs to user 999999, and this process runs as user {ours}"
        assert "debian-image" in told.value.hints[0]
        folder.chmod(0o700)
        with as_server_account(), pytest.raises(AccessError, match=f"user {ours}, as which this process runs, may not look at"):
            check_owner(data)


class TestLingering:
    """Server up, server gone with files left, server gone with none; and time."""

    @pytest.fixture
    def clock(self) -> VirtualClock:
        return VirtualClock(START)

    @pytest.fixture
    def running(self, tmp_path: Path) -> Path:
        (tmp_path / "postmaster.pid").touch()
        return tmp_path

    def test_nothing_ends_before_it_is_asked_to(self, clock: VirtualClock, tmp_path: Path) -> None:
        lingering = Lingering(clock, 10)
        clock.advance(1000)
        lingering.look(tmp_path, list)
        assert not lingering.over.is_set()

    def test_it_goes_on_for_the_server_then_for_what_is_left(self, clock: VirtualClock, running: Path) -> None:
        lingering = Lingering(clock, 10)
        lingering.ask()
        for left in ([], ["a"]):
            lingering.look(running, lambda left=left: left)  # type: ignore[misc]
            assert (lingering.over.is_set(), lingering.server_runs) == (False, True)
        (running / "postmaster.pid").unlink()
        lingering.look(running, lambda: ["a"])
        assert (lingering.over.is_set(), lingering.left) == (False, ("a",))
        lingering.look(running, list)
        assert (lingering.over.is_set(), lingering.left, lingering.server_runs) == (True, (), False)

    def test_not_for_ever(self, clock: VirtualClock, running: Path) -> None:
        lingering = Lingering(clock, 10)
        lingering.ask()
        lingering.look(running, list)
        clock.advance(9.9)
        lingering.look(running, list)
        assert not lingering.over.is_set()
        clock.advance(0.1)
        lingering.look(running, list)
        assert (lingering.over.is_set(), lingering.server_runs) == (True, True)

    def test_nobody_said_where_a_server_is(self, clock: VirtualClock) -> None:
        lingering = Lingering(clock, 10)
        lingering.ask()
        lingering.look(None, list)
        assert lingering.over.is_set()


def started(pod: Pod, start_cli: StartCli, seconds: int) -> "subprocess.Popen[str]":
    words = ("wal", "archive", "--handshake", str(pod.handshake), "--linger-seconds", str(seconds))
    return start_cli(*words, env=pod.settings, stdout=subprocess.DEVNULL)


def test_told_to_end_it_takes_what_the_ending_server_hands_over(pod: Pod, start_cli: StartCli) -> None:
    (pod.server.path / "postmaster.pid").touch()
    process = started(pod, start_cli, 60)
    pod.until((pod.handshake / "alive").exists)
    process.send_signal(signal.SIGTERM)
    last = pod.server.write(1)
    pod.until(lambda: pod.segments() == [last.name])
    assert process.poll() is None
    (pod.server.path / "postmaster.pid").unlink()
    _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, "not archived" in said) == (0, False), said
    assert not (pod.handshake / "alive").exists()


def test_once_its_server_has_ended_a_backlog_of_any_length_is_stored(pod: Pod, start_cli: StartCli) -> None:
    """While it runs it is asked to take each file, and only so many are stored before that."""
    (pod.server.path / "postmaster.pid").touch()
    names = [pod.server.write(number).name for number in range(1, 151)]
    process = started(pod, start_cli, 60)
    pod.until(lambda: len(pod.segments()) == 64)
    (pod.server.path / "postmaster.pid").unlink()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, pod.segments()) == (0, names), said


def test_what_is_left_behind_is_named(pod: Pod, start_cli: StartCli) -> None:
    names = [pod.server.write(number).name for number in range(1, 6)]
    pod.store.delete(["repository.json"])
    process = started(pod, start_cli, 1)
    pod.until((pod.handshake / "alive").exists)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 3
    assert f"5 files are not archived: {', '.join(names[:3])} …" in said


def test_a_server_that_does_not_end_is_left(pod: Pod, start_cli: StartCli) -> None:
    (pod.server.path / "postmaster.pid").touch()
    process = started(pod, start_cli, 1)
    pod.until((pod.handshake / "alive").exists)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, f"the server in {pod.server.path} still runs" in said) == (3, True)


def test_told_twice_it_ends_at_once(pod: Pod, start_cli: StartCli) -> None:
    (pod.server.path / "postmaster.pid").touch()
    process = started(pod, start_cli, 60)
    pod.until((pod.handshake / "alive").exists)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    assert process.returncode == 143
