"""Both clocks keep the same promises; the virtual one keeps them without waiting."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from clipper_backup.clock import Clock, SystemClock, VirtualClock

START = datetime(2026, 11, 22, 2, tzinfo=UTC)


@pytest.fixture(params=[SystemClock, lambda: VirtualClock(START)], ids=["system", "virtual"])
def clock(request: pytest.FixtureRequest) -> Clock:
    make: Callable[[], Clock] = request.param
    return make()


def test_now_is_in_utc(clock: Clock) -> None:
    assert clock.now().tzinfo is UTC


def test_sleeping_moves_both_readings(clock: Clock) -> None:
    before, now = clock.monotonic(), clock.now()
    clock.sleep(0.02)
    assert clock.monotonic() - before >= 0.02
    assert clock.now() > now


@pytest.mark.parametrize("seconds", [0, -5])
def test_sleeping_for_nothing_returns_and_moves_nothing_back(clock: Clock, seconds: float) -> None:
    before = clock.monotonic()
    clock.sleep(seconds)
    assert before <= clock.monotonic() < before + 5


def test_waiting_for_an_event_that_is_set_returns_at_once(clock: Clock) -> None:
    event = threading.Event()
    event.set()
    before = clock.monotonic()
    assert clock.wait(event, 60)
    assert clock.monotonic() - before < 60


def test_waiting_for_an_event_that_nobody_sets_takes_its_time(clock: Clock) -> None:
    before = clock.monotonic()
    assert not clock.wait(threading.Event(), 0.02)
    assert clock.monotonic() - before >= 0.02


def test_the_system_clock_is_the_machine_s() -> None:
    clock = SystemClock()
    assert abs(clock.now().timestamp() - time.time()) < 60
    before = time.monotonic()
    assert before <= clock.monotonic() <= time.monotonic()


def test_the_system_clock_wakes_when_the_event_is_set() -> None:
    event = threading.Event()
    waiting = threading.Timer(0, event.set)
    waiting.start()
    assert SystemClock().wait(event, 60)
    waiting.join()


def test_the_virtual_clock_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock(START.astimezone(timezone(timedelta(hours=5))))
    assert clock.now() == clock.now() == START
    assert clock.monotonic() == 0.0
    clock.advance(90)
    assert clock.now() == START + timedelta(seconds=90)
    assert clock.monotonic() == 90.0


def test_the_virtual_clock_loses_no_step_of_many_threads() -> None:
    clock = VirtualClock(START)

    def work() -> None:
        for _ in range(500):
            clock.sleep(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.monotonic() == 4000.0
