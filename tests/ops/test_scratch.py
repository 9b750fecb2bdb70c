import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from clipper_backup.errors import ClipperError
from clipper_backup.ops.scratch import scratch_folder
from clipper_backup.postgres import tied

HOLDER = """
import pathlib, sys
from clipper_backup.ops.scratch import scratch_folder
with scratch_folder(pathlib.Path(sys.argv[1]) if sys.argv[1] else None, 0, "a test") as folder:
    (folder / "data").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def hold(parent: Path | None, **environment: str) -> "tuple[subprocess.Popen[str], Path]":
    """Another process with a scratch folder of its own; it ends when its input does, or with us."""
    launcher = [sys.executable, "-I", "-S", tied.__file__, str(os.getpid()), "9", str(os.geteuid()), str(os.getegid())]
    process = subprocess.Popen(
        [*launcher, sys.executable, "-c", HOLDER, "" if parent is None else str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: "subprocess.Popen[str]", how: signal.Signals | None = None) -> None:
    if how is not None:
        process.send_signal(how)
    process.communicate(timeout=30)


# -- its life


def test_it_is_private_empty_and_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, 0, "a test") as folder, scratch_folder(tmp_path, 0, "a test") as another:
        assert folder.parent == another.parent == tmp_path
        assert folder != another
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "below").mkdir()
        (folder / "below" / "file").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_leaves_nothing_and_passes_through(tmp_path: Path) -> None:
    def failing() -> None:
        with scratch_folder(tmp_path, 0, "a test") as folder:
            (folder / "file").touch()
            raise ValueError("the dump failed")

    with pytest.raises(ValueError, match="the dump failed"):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_whoever_empties_it_meanwhile_is_no_error(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, 0, "a test") as folder:
        folder.rmdir()
    assert list(tmp_path.iterdir()) == []


def test_without_a_parent_it_is_where_temporary_files_are(tmp_path: Path) -> None:
    process, folder = hold(None, TMPDIR=str(tmp_path))
    end(process)
    assert (process.returncode, folder.parent) == (0, tmp_path)


def test_many_of_them_leave_no_open_files(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, 0, "a test"):
        pass
    before = psutil.Process().num_fds()
    for _ in range(10):
        with scratch_folder(tmp_path, 0, "a test"):
            pass
    assert psutil.Process().num_fds() == before


# -- room


def test_too_little_room_is_said_before_anything_is_done(tmp_path: Path) -> None:
    words = re.escape(f"a copy of the moon needs 1000.0 TB of scratch space, {tmp_path} has ")
    with pytest.raises(ClipperError, match=words) as raised, scratch_folder(tmp_path, 10**15, "a copy of the moon"):
        raise AssertionError("it was let in")
    assert "SCRATCH_DIR" in raised.value.hints[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing", "file", "file/below"])
def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ClipperError, match=f"cannot use {tmp_path / name} as scratch space: ") as raised,
        scratch_folder(tmp_path / name, 0, "a test"),
    ):
        raise AssertionError("it was let in")
    assert raised.value.hints == ("set SCRATCH_DIR",)


# -- others


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process, left = hold(tmp_path)
    end(process, signal.SIGKILL)
    assert (left / "data").exists()
    with scratch_folder(tmp_path, 0, "a test"):
        assert not left.exists()


def test_what_a_running_one_uses_stays(tmp_path: Path) -> None:
    process, used = hold(tmp_path)
    try:
        with scratch_folder(tmp_path, 0, "a test"):
            assert (used / "data").read_text() == "x"
    finally:
        end(process)
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_scratch_folder_stays(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("precious")
    (tmp_path / "clipper-backup-scratch-link").symlink_to(mine)
    (tmp_path / "clipper-backup-scratch-file").write_text("precious")
    (tmp_path / "clipper-backup").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with scratch_folder(tmp_path, 0, "a test"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (mine / "file").read_text() == "precious"


def test_many_at_once_never_take_each_other_for_leftovers(tmp_path: Path) -> None:
    barrier = threading.Barrier(6)
    lost: list[BaseException] = []

    def work(number: int) -> None:
        try:
            barrier.wait(30)
            for turn in range(40):
                with scratch_folder(tmp_path, 0, "a test") as folder:
                    (folder / "file").write_text(f"{number} {turn}")
                    assert (folder / "file").read_text() == f"{number} {turn}"
        except BaseException as error:  # noqa: BLE001  a thread's error is the test's
            lost.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert list(tmp_path.iterdir()) == []
