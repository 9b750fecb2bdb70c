"""`wal serve` and its shim, `restore.sh`, in two shells; and the `case` behind it, which speaks PostgreSQL's language."""

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.errors import ClipperError, UsageError, WalGapError
from clipper_backup.ops.events import Event, Warned, ignore
from clipper_backup.ops.wal.handshake import ANSWERED_SECONDS, LEFT_SECONDS, Handshake
from clipper_backup.ops.wal.open_restore import Restore, open_restore
from clipper_backup.ops.wal.restore_command import restore_command
from clipper_backup.ops.wal.serve import Desk, serve
from clipper_backup.ops.wal.shims import RESTORE_SHIM
from fixtures.postgres import private_folder
from fixtures.wal_restore import Restoring, make_plan
from fixtures.wal_world import ROWS, World, hastening, recovering

SHIM = RESTORE_SHIM
SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}
_SECONDS = 30
SEGMENT = "000000010000000000000003"


@pytest.fixture(params=list(SHELLS.values()), ids=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> Sequence[str]:
    words: Sequence[str] = request.param
    return words


class Answering:
    """A desk at work in a thread of its own; `say` is its answer to whatever is asked: True, False, or an error."""

    def __init__(self, folder: Path, say: bool | BaseException) -> None:
        self.pgdata, self.folder, self.say = folder / "data", folder / "handshake", say
        (self.pgdata / "pg_wal").mkdir(parents=True)
        self.asked: list[tuple[str, Path]] = []
        self.events: list[Event] = []
        self.handshake = Handshake(self.folder, SystemClock(), asked_by=self.pgdata)
        self.desk = Desk(self.handshake, self.pgdata, self._fetch, self.events.append)

    def _fetch(self, name: str, target: Path) -> bool:
        self.asked.append((name, target))
        if isinstance(self.say, BaseException):
            raise self.say
        if self.say:
            target.write_bytes(b"fetched")
        return self.say

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        stop = threading.Event()
        self.handshake.beat()

        def run() -> None:
            while not stop.wait(0.001):
                self.desk.answer_all()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def ask(
    shell: Sequence[str], handshake: Path, name: str = SEGMENT, target: str = "pg_wal/RECOVERYXLOG", path: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
    return subprocess.run(
        [*shell, SHIM, handshake, name, target], capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment
    )


def test_it_is_put_in_place(shell: Sequence[str], tmp_path: Path) -> None:
    answering = Answering(tmp_path, say=True)
    with answering.at_work():
        done = ask(shell, answering.folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    target = answering.pgdata / "pg_wal/RECOVERYXLOG"
    assert answering.asked == [(SEGMENT, target)]
    assert target.read_bytes() == b"fetched"
    assert list((answering.folder / "requests").iterdir()) == []


def test_an_answer_goes_a_minute_later(tmp_path: Path) -> None:
    """No process is started to remove it, which would keep replay waiting."""
    clock = VirtualClock(datetime(2026, 11, 22, tzinfo=UTC))
    handshake = Handshake(tmp_path, clock, asked_by=tmp_path)
    for name in ("0000000a-x", "0000000b-x"):
        handshake.beat()
        (tmp_path / "requests" / name).write_text(f"{SEGMENT}\npg_wal/RECOVERYXLOG\nend\n")
        (request,) = handshake.requests()
        handshake.answer(request, ok=True)
        clock.advance(ANSWERED_SECONDS - 1)
        handshake.beat()
        assert (tmp_path / "answers" / name).exists()
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["0000000b-x"]
    clock.advance(1)
    handshake.beat()
    assert list((tmp_path / "answers").iterdir()) == []


def test_who_reads_its_answer_too_late_is_told(shell: Sequence[str], tmp_path: Path) -> None:
    """As after a stop of the machine: the answer was there, and is gone."""
    answering = Answering(tmp_path, say=True)
    answering.handshake.beat()
    asking = subprocess.Popen([*shell, SHIM, answering.folder, SEGMENT, "pg_wal/RECOVERYXLOG"], stderr=subprocess.PIPE, text=True)
    while not (requests := list((answering.folder / "requests").iterdir())):
        assert asking.poll() is None
    requests[0].unlink()
    _, stderr = asking.communicate(timeout=_SECONDS)
    assert (asking.returncode, "the request is gone, and no answer came" in stderr) == (201, True)


def test_what_is_being_answered_is_not_swept(tmp_path: Path) -> None:
    """A store may take longer than what is left behind is kept."""
    clock = VirtualClock(datetime(2026, 11, 22, tzinfo=UTC))
    handshake = Handshake(tmp_path, clock, asked_by=tmp_path)
    handshake.beat()
    path = tmp_path / "requests/0000000a-x"
    path.write_text(f"{SEGMENT}\npg_wal/RECOVERYXLOG\nend\n")
    os.utime(path, (0, 0))
    (request,) = handshake.requests()
    clock.advance(LEFT_SECONDS)
    with handshake.held(request):
        handshake.beat()
        assert path.exists()
    clock.advance(LEFT_SECONDS)
    handshake.beat()
    assert not path.exists()


@pytest.mark.rule(55)
def test_missing_behind_the_end(shell: Sequence[str], tmp_path: Path) -> None:
    answering = Answering(tmp_path, say=False)
    with answering.at_work():
        done = ask(shell, answering.folder)
    assert (done.returncode, done.stderr) == (44, "")


@pytest.mark.rule(56)
@pytest.mark.parametrize(
    ("error", "code"),
    [(WalGapError("it is gone", hints=["look for it"]), 214), (UsageError("what?"), 202), (RuntimeError("a bug"), 201)],
    ids=["gap", "usage", "bug"],
)
def test_an_error_and_its_reason(shell: Sequence[str], tmp_path: Path, error: Exception, code: int) -> None:
    answering = Answering(tmp_path, say=error)
    with answering.at_work():
        done = ask(shell, answering.folder)
    assert done.returncode == code
    assert f"restore: {SEGMENT}: " in done.stderr
    assert (str(error) if isinstance(error, ClipperError) else repr(error)) in done.stderr
    assert isinstance(answering.events[0], Warned)
    if code == 214:
        assert f"restore: {SEGMENT}: HINT: look for it\n" in done.stderr


@pytest.mark.parametrize("target", ["/etc/passwd", "pg_wal/../x", "base/1/1", "pg_wal", "pg_wal/.x", "pg_wal/a/b", ""])
def test_only_files_of_pg_wal_are_written(shell: Sequence[str], tmp_path: Path, target: str) -> None:
    answering = Answering(tmp_path, say=True)
    with answering.at_work():
        done = ask(shell, answering.folder, target=target)
    assert done.returncode == 202
    assert answering.asked == []


@pytest.mark.rule(56)
@pytest.mark.parametrize("there", ["nothing", "folders", "an old sign of life", "a broken sign of life"])
def test_nobody_answers(shell: Sequence[str], tmp_path: Path, there: str) -> None:
    """Half a minute, of a clock that hastens."""
    handshake = tmp_path / "handshake"
    if there != "nothing":
        (handshake / "requests").mkdir(parents=True)
        (handshake / "answers").mkdir()
    if there == "an old sign of life":
        (handshake / "alive").write_text("1700000000\n")
    if there == "a broken sign of life":
        (handshake / "alive").write_text("x")
    done = ask(shell, handshake, path=str(hastening(tmp_path)))
    assert done.returncode == 201
    assert "wal serve" in done.stderr
    assert int((tmp_path / "now").read_text()) > 1_800_000_030
    assert not [path for path in tmp_path.rglob("*-*") if path.is_file()]


def test_requests_of_two_lives_are_both_refused(tmp_path: Path) -> None:
    """PostgreSQL asks for one file at a time: it was restarted, and the other file would be put over the one it reads."""
    answering = Answering(tmp_path, say=True)
    answering.handshake.beat()
    for number in range(2):
        (answering.folder / f"requests/0000000{number}-x").write_text(f"{SEGMENT}\npg_wal/RECOVERYXLOG\nend\n")
    answering.desk.answer_all()
    assert answering.asked == []
    answers = [path.read_text().splitlines() for path in (answering.folder / "answers").iterdir()]
    assert [lines[:2] for lines in answers] == [[f"no {SEGMENT}", "201"]] * 2


def test_a_folder_that_is_no_data_folder(restoring: Restoring) -> None:
    restoring.planned(make_plan())
    restore = Restore(restoring.restore_folder, restoring.plan, restoring.work(), restoring.reader())
    with pytest.raises(UsageError, match="is not a data folder"):
        serve(restore, restoring.restore_folder, restoring.folder / "handshake", threading.Event())


# -- the `case`


@pytest.mark.rule(4)
@pytest.mark.rule(56)
@pytest.mark.parametrize("standby", [False, True])
@pytest.mark.parametrize("code", [0, 1, 2, 44, 120, 126, 127, 137, 143, 201, 214, 255])
def test_what_postgresql_is_told(shell: Sequence[str], code: int, standby: bool) -> None:
    command = restore_command(["sh", "-c", f"exit {code}"], standby=standby).replace("%f", "f").replace("%p", "p")
    told = subprocess.run([*shell, "-c", command], check=False).returncode
    assert told == (0 if code == 0 else 1 if standby or code == 44 else 255)


@pytest.mark.rule(56)
def test_a_script_that_is_not_there_is_no_end_of_the_wal(shell: Sequence[str]) -> None:
    """dash ends with 2 then."""
    command = restore_command([*shell, "/nonexistent/restore.sh", "/nonexistent"])
    assert subprocess.run([*shell, "-c", command], check=False, capture_output=True).returncode == 255


def test_words_are_quoted_for_shell_and_postgresql() -> None:
    assert restore_command(["a b", "100%'x"]).startswith("""'a b' '100%%'"'"'x' "%f" "%p"; """)


def test_the_script_shows_the_setting_as_it_is() -> None:
    """Its first lines, against what we write ourselves."""
    shown = re.search(r"^# restore_command = '(.*)'$", SHIM.read_text(), re.MULTILINE)
    assert shown is not None
    assert shown[1] == restore_command(["sh", "/clipper-backup/restore.sh", "/clipper-backup/handshake"])


# -- with PostgreSQL


@pytest.mark.soak(over=["shell"])
def test_a_server_recovers_through_it(wal_world: World, shell: Sequence[str]) -> None:
    with private_folder() as folder:
        world = wal_world.copied_to(folder)
        handshake, stop = folder / "handshake", threading.Event()

        def asking(restore_folder: Path) -> str:
            del restore_folder
            return restore_command([*shell, SHIM, handshake])

        with recovering(world, folder, world.plan(), command=asking) as recovery:
            restore = open_restore(recovery.restore_folder, SystemClock(), ignore)
            thread = threading.Thread(target=serve, args=(restore, recovery.server.data, handshake, stop))
            thread.start()
            try:
                recovery.server.start()
                assert recovery.rows() == [*ROWS]
            finally:
                stop.set()
                thread.join()
            assert not list((recovery.server.data / "pg_wal").glob("clipper-backup-*"))
