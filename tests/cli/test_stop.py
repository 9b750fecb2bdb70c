"""Real signals to the real program, at moments that a FIFO pins down: it is open, so the program waits in it."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.cli import DEADLINE_SECONDS, PROGRAM, SAMPLE, RunCli, StartCli, until_asleep, write_when_read


@pytest.fixture
def fifo(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        os.mkfifo(tmp_path / name)
        return tmp_path / name

    return make


def ending(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_with_its_code(
    start_cli: StartCli, fifo: Callable[[str], Path], number: signal.Signals, code: int
) -> None:
    config = fifo("config.toml")
    process = start_cli("settings", "--config", str(config))
    held = write_when_read(config, process)
    process.send_signal(number)
    assert ending(process) == (code, "", f"error: stopped by signal {number.value}\n")
    os.close(held)


def test_a_signal_as_json(start_cli: StartCli, fifo: Callable[[str], Path]) -> None:
    config = fifo("config.toml")
    process = start_cli("settings", "--json", "--config", str(config))
    held = write_when_read(config, process)
    process.terminate()
    line = '{"type": "error", "exit_code": 143, "message": "stopped by signal 15", "hints": []}\n'
    assert ending(process) == (143, "", line)
    os.close(held)


class Waiting:
    """`sample wait`, waiting in its first FIFO; it cleans up by reading a second one."""

    def __init__(self, start_cli: StartCli, fifo: Callable[[str], Path], *words: str) -> None:
        self.pipe = fifo("pipe")
        self.again, self.cleanup = fifo("pipe.again"), fifo("pipe.cleanup")
        self.log = self.pipe.with_name("log")
        self.process = start_cli("sample", "wait", str(self.pipe), str(self.log), *words, program=SAMPLE)
        self.held = [write_when_read(self.pipe, self.process)]

    def signal_until(self, number: signal.Signals, then_reads: Path) -> int:
        """Send a signal and wait until the program reads *then_reads*; the open other end of that."""
        self.process.send_signal(number)
        return write_when_read(then_reads, self.process)


def test_further_sigterms_do_not_disturb_cleaning_up(start_cli: StartCli, fifo: Callable[[str], Path]) -> None:
    run = Waiting(start_cli, fifo)
    cleaning = run.signal_until(signal.SIGTERM, run.cleanup)
    for _ in range(3):
        run.process.terminate()
    os.write(cleaning, b"x")
    run.process.terminate()
    os.close(cleaning)
    assert ending(run.process) == (143, "", "begun: waiting\nerror: stopped by signal 15\n")
    assert run.log.read_text().split("\n") == ["working", "stopped 15", "cleaning", "clean", ""]


def test_an_except_clause_is_cleaning_up_too(start_cli: StartCli, fifo: Callable[[str], Path]) -> None:
    run = Waiting(start_cli, fifo, "--swallow")
    handling = run.signal_until(signal.SIGTERM, run.again)
    run.process.terminate()
    os.close(handling)
    os.close(write_when_read(run.cleanup, run.process))
    assert ending(run.process)[0] == 143
    assert run.log.read_text().split("\n") == ["working", "stopped 15", "cleaning", "clean", ""]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_person_who_insists_does_not_wait_for_cleaning_up(
    start_cli: StartCli, fifo: Callable[[str], Path], first: signal.Signals
) -> None:
    run = Waiting(start_cli, fifo)
    cleaning = run.signal_until(first, run.cleanup)
    run.process.send_signal(signal.SIGINT)
    assert ending(run.process)[0] == -signal.SIGINT
    assert run.log.read_text().split("\n") == ["working", f"stopped {first.value}", "cleaning", ""]
    os.close(cleaning)


def test_a_signal_that_the_parent_had_us_ignore_stays_ignored(start_cli: StartCli, fifo: Callable[[str], Path]) -> None:
    config = fifo("config.toml")
    deaf = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *PROGRAM]
    process = start_cli("settings", "--set-only", "--config", str(config), program=deaf)
    held = write_when_read(config, process)
    process.send_signal(signal.SIGINT)
    os.write(held, b"RETENTION_DAYS = 5\n")
    os.close(held)
    code, stdout, stderr = ending(process)
    assert (code, stderr) == (0, "")
    assert "RETENTION_DAYS  5 " in stdout


def test_a_signal_while_an_error_is_on_its_way_out_counts(run_cli: RunCli) -> None:
    outcome = run_cli("sample", "raise-signal", program=SAMPLE)
    assert (outcome.code, outcome.stderr) == (143, "error: stopped by signal 15\n")


def test_a_signal_that_comes_when_the_work_is_over_changes_nothing(start_cli: StartCli) -> None:
    process = start_cli("sample", "fail", "at length", program=SAMPLE)
    assert process.stderr is not None
    assert os.read(process.stderr.fileno(), 1) == b"e"
    until_asleep(process)  # in telling the error: the pipe is full, and nobody reads on
    process.terminate()
    process.send_signal(signal.SIGINT)
    code, _, stderr = ending(process)
    assert (code, len(stderr)) == (13, len("rror: \n") + 1_000_000)


def test_sigusr1_shows_how_far_each_step_is(start_cli: StartCli, fifo: Callable[[str], Path]) -> None:
    hold = fifo("hold")
    process = start_cli("sample", "steps", "--quiet", "--hold", str(hold), program=SAMPLE)
    held = write_when_read(hold, process)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("dumping clipper: 25 % of 1.0 GB, ")
    assert process.stderr.readline().startswith("counting rows: 1 250 000 rows, ")
    os.close(held)
    assert ending(process)[:2] == (0, "dumped\n")


def test_sigusr1_with_json_writes_progress_lines_without_being_asked_for_events(
    start_cli: StartCli, fifo: Callable[[str], Path]
) -> None:
    hold = fifo("hold")
    process = start_cli("sample", "steps", "--json", "--hold", str(hold), program=SAMPLE)
    held = write_when_read(hold, process)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    assert process.stderr.readline() == (
        '{"type": "progress", "step": "dump clipper", "done": 250000000, "total": 1000000000, "unit": "bytes"}\n'
    )
    os.close(held)
    assert ending(process)[0] == 0


def test_sigusr1_between_steps_says_that_none_runs(start_cli: StartCli, fifo: Callable[[str], Path]) -> None:
    config = fifo("config.toml")
    process = start_cli("settings", "--config", str(config))
    held = write_when_read(config, process)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    assert process.stderr.readline() == "no step is running\n"
    os.close(held)
    assert ending(process)[0] == 0
