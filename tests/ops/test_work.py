import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import Settings
from clipper_backup.errors import StoppedError, ToolError, UsageError
from clipper_backup.ops.events import Event, Progress, StepBegun, StepDone, ignore
from clipper_backup.ops.findings import Colour, judge_skew
from clipper_backup.ops.work import Step, Work, login_of, open_work, skew, step, this_process, together
from clipper_backup.postgres.connection import Login
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Secret
from fixtures.clocks import START

MIB = 1 << 20


class Surroundings:
    """A work whose clock stands still, and all that it told."""

    def __init__(self) -> None:
        self.clock = VirtualClock(datetime(2026, 11, 22, 2, tzinfo=UTC))
        self.told: list[Event] = []
        self.work = Work(Settings(), MemoryStore(self.clock), self.clock, self.told.append)


@pytest.fixture
def surroundings() -> Surroundings:
    return Surroundings()


# -- steps


def test_a_step_tells_that_it_begins_and_how_it_ended(surroundings: Surroundings) -> None:
    with step(surroundings.work, "count", "count the rows") as running:
        surroundings.clock.advance(2.5)
        running.progress(3, None, "rows")
        running.done = "7 rows"
    assert surroundings.told == [
        StepBegun("count", "count the rows"),
        Progress("count", 3, None, "rows"),
        StepDone("count", "7 rows", 2.5),
    ]


def test_a_step_without_a_result_ends_with_its_own_words(surroundings: Surroundings) -> None:
    with step(surroundings.work, "count", "count the rows"):
        pass
    assert surroundings.told[-1] == StepDone("count", "count the rows", 0)


def test_a_failing_step_tells_no_end(surroundings: Surroundings) -> None:
    with pytest.raises(ToolError, match="no"), step(surroundings.work, "count", "count the rows"):
        raise ToolError("no")
    assert surroundings.told == [StepBegun("count", "count the rows")]


@given(st.lists(st.integers(0, 20 * MIB), max_size=8))
def test_metered_chunks_are_the_same_and_told_every_eight_mebibytes(sizes: list[int]) -> None:
    surroundings = Surroundings()
    whole = memoryview(bytes(20 * MIB))
    passed = list(Step(surroundings.work, "read").metered((whole[:size] for size in sizes), sum(sizes)))  # type: ignore[misc]  # bytes-like
    assert [len(chunk) for chunk in passed] == sizes
    told = [event.done for event in surroundings.told if isinstance(event, Progress)]
    assert all(event == Progress("read", done, sum(sizes)) for event, done in zip(surroundings.told, told, strict=True))
    assert all(later - earlier >= 8 * MIB for earlier, later in zip([0, *told], told, strict=False))
    assert sum(sizes) - (told[-1] if told else 0) < 8 * MIB


def test_what_is_metered_is_read_only_as_it_is_wanted(surroundings: Surroundings) -> None:
    read = []

    def chunks() -> Iterator[bytes]:
        for number in range(3):
            read.append(number)
            yield b"x"

    metered = Step(surroundings.work, "read").metered(chunks())
    next(metered)
    assert read == [0]


# -- tasks together


def test_all_of_them_run_at_the_same_time() -> None:
    barrier = threading.Barrier(12)
    together([lambda: void(barrier.wait(30))] * 12, cancel=lambda: pytest.fail("nothing was to be cancelled"))
    assert not barrier.broken


def void(_: object) -> None:
    """A task returns nothing."""


class Endless:
    """A task that ends only when it is cancelled, and then by an error, as a killed program's reader does."""

    def __init__(self) -> None:
        self.begun, self.cancelled, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.cancels = 0

    def __call__(self) -> None:
        self.begun.set()
        assert self.cancelled.wait(30), "it was never cancelled"
        self.ended.set()
        raise ToolError("pg_dump was ended by signal 9")

    def cancel(self) -> None:
        self.cancels += 1
        self.cancelled.set()


def failing(after: threading.Event, error: BaseException) -> Callable[[], None]:
    def task() -> None:
        assert after.wait(30)
        raise error

    return task


@pytest.mark.parametrize("place", [0, 1])
def test_the_first_failure_is_told_after_the_others_were_ended(place: int) -> None:
    endless = Endless()
    tasks: list[Callable[[], None]] = [endless, endless]
    tasks.insert(place, failing(endless.begun, ToolError("the disk is full")))
    with pytest.raises(ToolError, match="the disk is full"):
        together(tasks, cancel=endless.cancel)
    assert endless.ended.is_set()
    assert endless.cancels == 1


def test_a_task_that_missed_a_cancel_is_cancelled_again() -> None:
    endless = Endless()
    misses = 2

    def cancel() -> None:  # at first it comes between two queries
        nonlocal misses
        misses -= 1
        if misses < 0:
            endless.cancel()

    with pytest.raises(ToolError, match="the disk is full"):
        together([endless, failing(endless.begun, ToolError("the disk is full"))], cancel=cancel)
    assert endless.ended.is_set()


def test_when_all_have_ended_nothing_is_cancelled() -> None:
    ready = threading.Event()
    ready.set()
    with pytest.raises(ToolError, match="the disk is full"):
        together([failing(ready, ToolError("the disk is full"))], cancel=lambda: pytest.fail("nothing was to be cancelled"))


@contextmanager
def stopped_by(signal_number: signal.Signals) -> Iterator[None]:
    """The signal raises StoppedError in the main thread, as the command line does it."""

    def stop(number: int, frame: object) -> None:
        raise StoppedError(number)

    before = signal.signal(signal_number, stop)
    try:
        yield
    finally:
        signal.signal(signal_number, before)


@pytest.mark.parametrize("_", range(5))
def test_a_signal_ends_all_of_them(_: int) -> None:
    endless = Endless()

    def send() -> None:
        assert endless.begun.wait(30)
        os.kill(os.getpid(), signal.SIGUSR1)

    sending = threading.Thread(target=send)
    sending.start()
    with stopped_by(signal.SIGUSR1), pytest.raises(StoppedError):
        together([endless], cancel=endless.cancel)
    sending.join()
    assert endless.ended.wait(30)  # the signal may have come while its thread was being started, of which nobody knew yet


# -- who and where


def test_the_process_is_named_by_host_and_id() -> None:
    assert this_process() == f"{socket.gethostname()} pid {os.getpid()}"


def test_only_what_was_set_becomes_a_login() -> None:
    assert login_of(Settings()) == Login({}, None, None)
    given = Settings(pghost="h", pgport="7", pguser="u", pgpassword=Secret("p"), pgdatabase="d", pgsslmode="require")
    login = login_of(given)
    assert {name: str(value) for name, value in login.keywords.items()} == {
        "host": "h",
        "port": "7",
        "user": "u",
        "sslmode": "require",
    }
    assert (login.password, login.dbname) == (Secret("p"), "d")


def test_a_reading_command_cannot_write(tmp_path: Path) -> None:
    settings = Settings(backup_url=f"file://{tmp_path}/r")
    writing = open_work(settings, SystemClock(), ignore, read_only=False)
    writing.store.put("a", b"x")
    reading = open_work(settings, SystemClock(), ignore, read_only=True)
    assert reading.store.get("a") == b"x"
    with pytest.raises(UsageError, match="read-only"):
        reading.store.put("b", b"")
    with pytest.raises(UsageError, match="read-only"):
        reading.store.delete(["a"])
    assert [info.key for info in writing.store.list("")] == ["a"]


@pytest.mark.parametrize(("ahead", "told", "colour"), [
    (0, 0, Colour.GREEN),
    (60, 60, Colour.GREEN),
    (61, 61, Colour.YELLOW),
    (601, 601, Colour.RED),
    (-1, 0, Colour.GREEN),  # a bucket tells whole seconds: it may be as far ahead of us
    (-62, -61, Colour.YELLOW),
    (-602, -601, Colour.RED),
])  # fmt: skip
def test_two_clocks_differ_by_what_is_sure(ahead: int, told: int, colour: Colour) -> None:
    store = MemoryStore(VirtualClock(START + timedelta(seconds=ahead)))
    found = skew(store, VirtualClock(START))
    assert (found, judge_skew(found).colour) == (timedelta(seconds=told), colour)
    assert judge_skew(found).text.startswith("the store's clock and ours differ by ")
