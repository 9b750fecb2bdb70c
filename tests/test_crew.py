"""Crews: tasks are done by a few threads, the first failure ends all, and whoever waits can be stopped."""

import os
import signal
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.crew import Crew, CrewEndedError
from clipper_backup.errors import StoppedError, ToolError


def alive(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 40))
def test_every_task_is_done_once_and_all_threads_end(threads: int, limit: int, tasks: int) -> None:
    crew, lock = Crew("each", threads, limit), threading.Lock()
    done: list[int] = []

    def task(number: int) -> Callable[[], None]:
        def run() -> None:
            with lock:
                done.append(number)

        return run

    for number in range(tasks):
        crew.submit(task(number))
    crew.finish()
    assert sorted(done) == list(range(tasks))
    assert alive("each") == []


def test_whoever_gives_more_than_the_limit_waits() -> None:
    crew, go, taken = Crew("few", 2, 3), threading.Event(), threading.Event()
    for _ in range(3):
        crew.submit(lambda: void(go.wait(30)))

    def give() -> None:
        crew.submit(lambda: None)
        taken.set()

    fourth = threading.Thread(target=give)
    fourth.start()
    assert not taken.wait(0.05)
    go.set()
    assert taken.wait(30)
    fourth.join()
    crew.finish()


def test_no_more_than_the_limit_are_taken_from_many_at_once() -> None:
    crew, go, taken = Crew("crowd", 2, 3), threading.Event(), threading.Semaphore(0)

    def give() -> None:
        crew.submit(lambda: void(go.wait(30)))
        taken.release()

    givers = [threading.Thread(target=give) for _ in range(20)]
    for giver in givers:
        giver.start()
    for _ in range(3):
        assert taken.acquire(timeout=30)
    assert not taken.acquire(timeout=0.1), "a fourth was taken"
    go.set()
    for giver in givers:
        giver.join(30)
    crew.finish()


def void(_: object) -> None:
    """A task returns nothing."""


def failing(error: BaseException) -> Callable[[], None]:
    def task() -> None:
        raise error

    return task


def submit_on_and_on(crew: Crew) -> None:
    for _ in range(100):
        crew.submit(lambda: None)


@pytest.mark.parametrize(
    "waits", [submit_on_and_on, lambda crew: crew.wait(lambda: False), Crew.finish], ids=["submit", "wait", "finish"]
)
def test_the_first_failure_is_raised_to_whoever_waits(waits: Callable[[Crew], None]) -> None:
    crew, ran = Crew("failing", 1, 10), threading.Event()
    gate = threading.Event()
    crew.submit(lambda: void(gate.wait(30)))
    crew.submit(failing(ToolError("the disk is full")))
    crew.submit(ran.set)
    crew.submit(failing(ToolError("another")))
    gate.set()
    with pytest.raises(ToolError, match="the disk is full"):
        waits(crew)
    crew.end()
    assert not ran.is_set(), "what waited was forgotten"
    assert alive("failing") == []


def test_who_ends_a_crew_waits_for_what_is_under_way_and_forgets_the_rest() -> None:
    crew, begun, go, ran = Crew("ended", 1, 5), threading.Event(), threading.Event(), threading.Event()

    def task() -> None:
        begun.set()
        go.wait(30)

    crew.submit(task)
    crew.submit(ran.set)
    assert begun.wait(30)
    crew.stop()
    with pytest.raises(CrewEndedError):
        crew.submit(lambda: None)
    assert alive("ended") != []
    go.set()
    crew.end()
    assert alive("ended") == []
    assert not ran.is_set()


@pytest.mark.parametrize("_", range(3))
def test_a_signal_reaches_the_main_thread_while_it_waits(_: int) -> None:
    def stop(number: int, frame: object) -> None:
        raise StoppedError(number)

    crew, begun, go = Crew("signalled", 1, 1), threading.Event(), threading.Event()

    def task() -> None:
        begun.set()
        os.kill(os.getpid(), signal.SIGUSR1)
        go.wait(30)

    def work() -> None:
        crew.submit(task)
        crew.wait(lambda: False)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(StoppedError):
            work()
    finally:
        signal.signal(signal.SIGUSR1, before)
    go.set()
    crew.end()
    assert alive("signalled") == []
