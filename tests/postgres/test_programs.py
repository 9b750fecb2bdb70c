"""Client programs that misbehave. They are shell scripts, run as the real ones are."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil
import pytest

from clipper_backup.errors import AccessError, StoppedError, ToolError
from clipper_backup.postgres.programs import Program, run
from fixtures.moments import just_before

ENVIRONMENT = {"PATH": os.environ["PATH"]}
MIB = 1 << 20

Script = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Make a program `pg_fake` of a few lines of shell."""

    def write(body: str) -> Path:
        path = tmp_path / "pg_fake"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return write


def output_of(path: Path, *arguments: str) -> bytes:
    with Program(path, arguments, ENVIRONMENT) as program:
        return b"".join(program.chunks())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.005)


# -- whole or not


def test_the_output_of_a_program_that_ends_well_is_whole(script: Script) -> None:
    path = script("head -c 5000000 /dev/zero; printf 'the end'")
    assert output_of(path) == bytes(5_000_000) + b"the end"
    assert run(path, [], ENVIRONMENT) == bytes(5_000_000) + b"the end"


def test_what_a_failing_program_printed_is_never_taken_for_its_output(script: Script) -> None:
    path = script("head -c 3000000 /dev/zero; echo 'pg_fake: error: the disk is full' >&2; exit 3")
    received = 0
    with Program(path, [], ENVIRONMENT) as program, pytest.raises(ToolError) as raised:  # noqa: PT012  how much came matters
        for chunk in program.chunks():
            received += len(chunk)
    assert received == 3_000_000
    assert str(raised.value) == "pg_fake failed (exit 3): the disk is full"
    with pytest.raises(ToolError, match=r"pg_fake failed \(exit 3\): the disk is full"):
        run(path, [], ENVIRONMENT)


@pytest.mark.parametrize("body", ["printf whole; kill -KILL $$", "printf whole; kill -TERM $$", "printf whole; kill -PIPE $$"])
def test_a_program_ended_by_a_signal_has_no_output(script: Script, body: str) -> None:
    with pytest.raises(ToolError, match=r"pg_fake was ended by signal (9|15|13): it said nothing"):
        output_of(script(body))


def test_silence_is_no_success(script: Script) -> None:
    with pytest.raises(ToolError, match=r"pg_fake failed \(exit 1\): it said nothing"):
        output_of(script("exit 1"))


@pytest.mark.parametrize("name", ["missing", "folder", "no-program"])
def test_what_cannot_be_started(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "no-program").touch(mode=0o644)
    with pytest.raises(ToolError, match=f"cannot start .*/{name}: "):
        Program(tmp_path / name, [], ENVIRONMENT)


# -- what it says


def test_its_words_become_the_message_without_its_name_and_its_advice(script: Script) -> None:
    path = script(
        """
        echo 'pg_fake: warning: something is odd' >&2
        echo 'pg_fake: error: query failed: ERROR:  relation "a" does not exist' >&2
        echo 'pg_fake: hint: try --something-of-its-own' >&2
        echo 'pg_fake: detail: Query was: SELECT secret FROM a' >&2
        exit 1
        """
    )
    with pytest.raises(ToolError) as raised:
        output_of(path)
    assert str(raised.value).endswith('query failed: ERROR:  relation "a" does not exist')
    assert "secret" not in str(raised.value)
    assert "hint" not in str(raised.value)


def test_errors_name_what_the_program_worked_on(script: Script) -> None:
    with (
        Program(script("exit 1"), [], ENVIRONMENT, of="clipper") as program,
        pytest.raises(ToolError, match="pg_fake of clipper"),
    ):
        program.finish()


def test_warnings_of_a_program_that_ended_well_are_kept(script: Script) -> None:
    with Program(script("echo 'pg_fake: warning: odd' >&2; printf '  \\n\\377 \\n' >&2"), [], ENVIRONMENT) as program:
        assert b"".join(program.chunks()) == b""
        assert program.warnings == ["pg_fake: warning: odd", "\ufffd"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ('query would be affected by row-level security policy for table "a"', "BYPASSRLS"),
        ("permission denied for table a", "pg_read_all_data"),
    ],
)
def test_refused_privileges_are_told_apart(script: Script, words: str, hint: str) -> None:
    with pytest.raises(AccessError, match=words) as raised:
        output_of(script(f"echo 'pg_fake: error: {words}' >&2; exit 1"))
    assert hint in " ".join(raised.value.hints)


def test_a_flood_of_words_stops_nothing_and_its_end_is_kept(script: Script) -> None:
    lines = "awk 'BEGIN { for (n = 0; n < 200000; n++) print \"pg_fake: error: line \" n }' >&2"
    path = script(f"{lines}; head -c 3000000 /dev/zero; {lines}; exit 1")
    with pytest.raises(ToolError) as raised:
        output_of(path)
    assert str(raised.value).endswith("line 199998; line 199999")
    assert len(str(raised.value)) < 10_000


def test_a_flood_in_one_line_takes_no_memory(script: Script) -> None:
    with Program(script(f"head -c {64 * MIB} /dev/zero | tr '\\0' x >&2; exit 1"), [], ENVIRONMENT) as program:
        with pytest.raises(ToolError) as raised:
            program.finish()
        assert sum(map(len, program.warnings)) < MIB
    assert len(str(raised.value)) < 10_000
    assert "xxx" in str(raised.value)


# -- what it is given


def test_it_gets_its_arguments_its_environment_and_no_input(script: Script) -> None:
    path = script('cat; printf \'%s|\' "$@" "$GIVEN" "$HOME"')
    with Program(path, ["a b", "$(x)"], ENVIRONMENT | {"GIVEN": "é"}) as program:
        assert b"".join(program.chunks()).decode() == "a b|$(x)|é||"


def test_it_is_fed(script: Script) -> None:
    with Program(script("cat"), [], ENVIRONMENT, feed=True) as program:
        feeding = threading.Thread(target=program.feed, args=([b"x" * MIB, b"", b"y" * 3 * MIB],))
        feeding.start()
        assert b"".join(program.chunks()) == b"x" * MIB + b"y" * 3 * MIB
        feeding.join()
    assert run(script("cat"), [], ENVIRONMENT, feed=[b"z" * MIB] * 5) == b"z" * 5 * MIB


def test_a_program_that_has_read_enough_is_no_failure(script: Script) -> None:
    path = script("head -c 10; exec 0<&-; printf ' enough'")
    with Program(path, [], ENVIRONMENT, feed=True) as program:
        assert not program.feed(b"x" * MIB for _ in range(100))
        assert b"".join(program.chunks()) == b"x" * 10 + b" enough"
    assert run(path, [], ENVIRONMENT, feed=(b"x" * MIB for _ in range(100))) == b"x" * 10 + b" enough"


def test_a_program_that_closes_its_input_and_fails_has_failed(script: Script) -> None:
    with pytest.raises(ToolError, match="did not like it"):
        run(script("exec 0<&-; echo 'did not like it' >&2; exit 1"), [], ENVIRONMENT, feed=(b"x" * MIB for _ in range(100)))


def test_an_error_of_what_it_is_fed_is_not_hidden_and_ends_it(script: Script) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"x" * MIB
        raise ValueError("the object is damaged")

    with pytest.raises(ValueError, match="the object is damaged"):
        run(script("cat > /dev/null; exec sleep 600"), [], ENVIRONMENT, feed=breaking())


# -- its end


def test_a_signal_while_its_reader_starts_pulls_no_pipe_from_under_it(script: Script) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError(signal.SIGTERM)

    before = {*threading.enumerate()}
    handler = signal.signal(signal.SIGTERM, stop)
    try:
        with (
            pytest.raises(StoppedError),
            # `Thread.start` waits until the thread runs: the first one reads its words, the second its output.
            just_before(threading.Event.wait, lambda _: signal.raise_signal(signal.SIGTERM), call=2),
        ):
            run(script("echo words; exec sleep 60"), [], ENVIRONMENT)
    finally:
        signal.signal(signal.SIGTERM, handler)
    # A reader that fails is a warning, and that is an error here.
    wait_until(lambda: {*threading.enumerate()} <= before)


def test_leaving_ends_it_whatever_it_does(script: Script) -> None:
    began = time.monotonic()
    with Program(script("trap '' TERM INT HUP PIPE; while :; do echo on; done"), [], ENVIRONMENT) as program:
        chunks = program.chunks()
        next(chunks)
        pid = program._process.pid
        assert not gone(pid)
    assert gone(pid)
    assert time.monotonic() - began < 30


def test_leaving_ends_its_own_processes_too(script: Script, tmp_path: Path) -> None:
    # As pg_dump --jobs does, it leaves the work to others, who hold its streams open.
    child = tmp_path / "child"
    path = script(f"sleep 600 & echo $! > {child}.part; mv {child}.part {child}; wait")
    with Program(path, [], ENVIRONMENT):
        wait_until(child.exists)
        pid = int(child.read_text())
        assert not gone(pid)
    wait_until(lambda: gone(pid))


def test_a_program_that_died_takes_its_own_processes_along(script: Script) -> None:
    with Program(script("sleep 600 & kill -KILL $$"), [], ENVIRONMENT) as program, pytest.raises(ToolError, match="signal 9"):
        program.finish()


def test_killed_from_another_thread_it_has_failed(script: Script) -> None:
    with Program(script("printf some; exec sleep 600"), [], ENVIRONMENT) as program:
        killing = threading.Thread(target=program.kill)
        killing.start()
        with pytest.raises(ToolError, match="was ended by signal 9"):
            list(program.chunks())
        killing.join()
        program.kill()  # once more does nothing


def test_many_programs_leave_no_open_files(script: Script) -> None:
    path = script("echo out; echo err >&2; exit $1")

    def one(code: int) -> None:
        with Program(path, [str(code)], ENVIRONMENT, feed=True) as program:
            program.feed([b"x"])
            if code:
                with pytest.raises(ToolError):
                    list(program.chunks())

    one(0)
    before = psutil.Process().num_fds()
    for number in range(20):
        one(number % 2)
    assert psutil.Process().num_fds() == before
    assert [child for child in psutil.Process().children() if child.name() == "pg_fake"] == []
