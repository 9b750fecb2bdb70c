"""What an operation tells becomes lines, at a pace a person or a log can bear; time is a clock that the test moves."""

import json
import re
import threading
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from clipper_backup.cli.render import JsonLines, TextLines, measure
from clipper_backup.clock import VirtualClock
from clipper_backup.ops.events import Progress, StepBegun, StepDone, Warned
from fixtures.cli import SAMPLE, RunCli


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(datetime(2026, 11, 22, 2, tzinfo=UTC))


class Text:
    """A TextLines and what it has written."""

    def __init__(self, clock: VirtualClock, *, quiet: bool = False) -> None:
        self.lines: list[str] = []
        self.renderer = TextLines(self.lines.append, clock, quiet=quiet, interval=30)

    def take(self) -> list[str]:
        taken, self.lines[:] = list(self.lines), []
        return taken


def test_a_step_is_a_line_when_it_begins_and_one_when_it_is_done(clock: VirtualClock) -> None:
    text = Text(clock)
    text.renderer.emit(StepBegun("dump", "dumping clipper"))
    text.renderer.emit(Progress("dump", 5, 10))
    text.renderer.emit(StepDone("dump", "clipper dumped, 10 B", 200.4))
    assert text.take() == ["begun: dumping clipper", "done: clipper dumped, 10 B (3 min 20 s)"]


def test_a_long_step_says_how_far_it_is_every_thirty_seconds(clock: VirtualClock) -> None:
    text = Text(clock)
    text.renderer.emit(StepBegun("dump", "dumping clipper"))
    text.take()
    for second in range(1, 91):
        clock.advance(1)
        text.renderer.emit(Progress("dump", second * 1_000_000, 100_000_000))
    assert text.take() == [
        "dumping clipper: 30 % of 100.0 MB, 1.0 MB/s, about 1 min 10 s left",
        "dumping clipper: 60 % of 100.0 MB, 1.0 MB/s, about 40 s left",
        "dumping clipper: 90 % of 100.0 MB, 1.0 MB/s, about 10 s left",
    ]


def test_steps_that_run_at_once_are_measured_each_for_itself(clock: VirtualClock) -> None:
    text = Text(clock)
    text.renderer.emit(StepBegun("a", "dumping a"))
    clock.advance(29)
    text.renderer.emit(StepBegun("b", "dumping b"))
    text.take()
    clock.advance(1)
    text.renderer.emit(Progress("b", 5, None, "rows"))
    text.renderer.emit(Progress("a", 60, None, "rows"))
    assert text.take() == ["dumping a: 60 rows, 2 rows/s"]
    text.renderer.emit(StepDone("a", "a dumped", 30))
    text.renderer.show_state()
    assert text.take() == ["done: a dumped (30 s)", "dumping b: 5 rows, 5 rows/s"]


def test_the_state_of_a_step_without_progress_is_how_long_it_runs(clock: VirtualClock) -> None:
    text = Text(clock)
    text.renderer.show_state()
    assert text.take() == ["no step is running"]
    text.renderer.emit(StepBegun("lock", "waiting for locks"))
    clock.advance(61)
    text.take()
    text.renderer.show_state()
    assert text.take() == ["waiting for locks: running for 1 min 1 s"]


def test_progress_that_nobody_announced_is_shown_by_its_step(clock: VirtualClock) -> None:
    text = Text(clock)
    text.renderer.emit(Progress("verify", 1, None, "objects"))
    clock.advance(30)
    text.renderer.emit(Progress("verify", 60, 120, "objects"))
    assert text.take() == ["verify: 50 % of 120 objects, 2 objects/s, about 30 s left"]


def test_quiet_silences_steps_and_never_warnings(clock: VirtualClock) -> None:
    text = Text(clock, quiet=True)
    text.renderer.emit(StepBegun("dump", "dumping clipper"))
    clock.advance(100)
    text.renderer.emit(Progress("dump", 5, 10))
    text.renderer.emit(Warned("passwords were left out", ("grant pg_read_all_data", "or leave it so")))
    text.renderer.emit(StepDone("dump", "dumped", 1))
    assert text.take() == ["warning: passwords were left out", "HINT: grant pg_read_all_data", "HINT: or leave it so"]


def test_a_name_cannot_move_the_cursor(clock: VirtualClock) -> None:
    text = Text(clock)
    text.renderer.emit(StepBegun("dump", "dumping \x1b[2J"))
    text.renderer.show_state()
    assert text.take() == ["begun: dumping \\x1b[2J", "dumping \\x1b[2J: running for 0.0 s"]


@pytest.mark.parametrize(
    ("progress", "elapsed", "shown"),
    [
        (Progress("s", 0, 1000), 5.0, "0 % of 1.0 kB"),
        (Progress("s", 500, 1000), 0.0, "50 % of 1.0 kB"),
        (Progress("s", 1000, 1000), 10.0, "100 % of 1.0 kB, 100 B/s"),
        (Progress("s", 1200, 1000), 10.0, "120 % of 1.0 kB, 120 B/s"),
        (Progress("s", 999, 1000), 10.0, "99 % of 1.0 kB, 100 B/s, about 0.0 s left"),
        (Progress("s", 0, 0), 10.0, "0 B"),
        (Progress("s", 1234567, None, "rows"), 1.0, "1 234 567 rows, 1 234 567 rows/s"),
    ],
)
def test_what_cannot_be_known_is_left_out(progress: Progress, elapsed: float, shown: str) -> None:
    assert measure(progress, elapsed) == shown


class Json:
    """A JsonLines and what it has written."""

    def __init__(self, clock: VirtualClock, *, steps: bool) -> None:
        self.lines: list[Mapping[str, object]] = []
        self.renderer = JsonLines(self.lines.append, clock, steps=steps, interval=1)


def test_json_tells_every_event_but_no_more_than_one_progress_a_second(clock: VirtualClock) -> None:
    told = Json(clock, steps=True)
    told.renderer.emit(StepBegun("dump", "dumping clipper"))
    for quarter in range(1, 13):
        clock.advance(0.25)
        told.renderer.emit(Progress("dump", quarter, 12, "rows"))
    told.renderer.emit(Warned("odd", ("look",)))
    told.renderer.emit(StepDone("dump", "dumped", 3.00049))
    progress = [line for line in told.lines if line["type"] == "progress"]
    assert progress[0] == {"type": "progress", "step": "dump", "done": 4, "total": 12, "unit": "rows"}
    assert [line["done"] for line in progress] == [4, 8, 12]
    assert [line for line in told.lines if line["type"] != "progress"] == [
        {"type": "step_begun", "step": "dump", "text": "dumping clipper"},
        {"type": "warning", "message": "odd", "hints": ("look",)},
        {"type": "step_done", "step": "dump", "text": "dumped", "seconds": 3.0},
    ]


def test_json_without_events_tells_warnings_only_and_the_state_when_asked(clock: VirtualClock) -> None:
    told = Json(clock, steps=False)
    told.renderer.emit(StepBegun("dump", "dumping clipper"))
    told.renderer.emit(StepBegun("lock", "waiting"))
    clock.advance(5)
    told.renderer.emit(Progress("dump", 1, None))
    told.renderer.emit(Warned("odd"))
    assert told.lines == [{"type": "warning", "message": "odd", "hints": ()}]
    told.renderer.show_state()
    assert told.lines[1:] == [{"type": "progress", "step": "dump", "done": 1, "total": None, "unit": "bytes"}]
    told.renderer.emit(StepDone("dump", "dumped", 5))
    told.renderer.show_state()
    assert len(told.lines) == 2


@pytest.mark.timeout(20)
def test_a_signal_that_interrupts_a_line_may_show_the_state(clock: VirtualClock) -> None:
    """Its handler runs in the main thread, inside the `emit` that it interrupted."""
    lines: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        if line.startswith("begun"):
            renderer.show_state()

    renderer = TextLines(write, clock)
    renderer.emit(StepBegun("dump", "dumping clipper"))
    assert lines == ["begun: dumping clipper", "dumping clipper: running for 0.0 s"]


def test_many_threads_may_tell_at_once(clock: VirtualClock) -> None:
    text = Text(clock)

    def work(number: int) -> None:
        for turn in range(200):
            step = f"{number}/{turn}"
            text.renderer.emit(StepBegun(step, step))
            text.renderer.emit(Progress(step, 1, 2))
            text.renderer.emit(StepDone(step, step, 0.1))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(text.take()) == 8 * 200 * 2
    text.renderer.show_state()
    assert text.take() == ["no step is running"]


@pytest.mark.parametrize("words", [[], ["--events"]])
def test_lines_of_many_threads_arrive_whole(run_cli: RunCli, words: list[str]) -> None:
    env = {"CLIPPER_BACKUP_PROGRESS_SECONDS": "0"}
    outcome = run_cli("sample", "threads", *words, program=SAMPLE, env=env, check=True)
    assert outcome.stdout == "all done\n"
    lines = outcome.stderr.splitlines()
    assert len(lines) == 8 * (1 + 200 + 1)
    if words:
        assert {json.loads(line)["type"] for line in lines} == {"step_begun", "progress", "step_done"}
    else:
        shape = re.compile(r"begun: step \d|step \d: \d+ % of 200 objects.*|done: step \d x{200} \(0\.5 s\)")
        assert [line for line in lines if not shape.fullmatch(line)] == []


def test_the_program_tells_events_only_when_asked(run_cli: RunCli) -> None:
    plain = run_cli("sample", "steps", "--json", program=SAMPLE, check=True)
    assert plain.document == {"schema": 1, "id": "x"}
    assert [line["type"] for line in plain.lines] == ["warning"]
    asked = run_cli("sample", "steps", "--events", program=SAMPLE, check=True)
    assert asked.stdout == "dumped\n"
    kinds = ["step_begun", "step_begun", "warning", "step_done", "step_done"]
    assert [line["type"] for line in asked.lines] == kinds
    quiet = run_cli("sample", "steps", "--events", "--quiet", program=SAMPLE, check=True)
    assert [line["type"] for line in quiet.lines] == ["warning"]


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_bad_interval_is_refused(run_cli: RunCli, value: str) -> None:
    outcome = run_cli("version", env={"CLIPPER_BACKUP_PROGRESS_SECONDS": value})
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(f"error: bad value for CLIPPER_BACKUP_PROGRESS_SECONDS: '{value}'\n")
