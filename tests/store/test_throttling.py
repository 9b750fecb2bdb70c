"""The wrapper that limits bytes a second: by a clock that moves only when somebody waits on it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.store.conformance import CHECKS, Check, in_a_room, name_of
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.opening import Options, open_store
from clipper_backup.store.protocol import Store
from clipper_backup.store.throttling import ThrottledStore

RATE = 1_000_000
LARGE = bytes(100_000)
"""Not so small that it never waits."""


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(datetime(2026, 11, 22, 2, 0, tzinfo=UTC))


@pytest.fixture
def store(clock: VirtualClock) -> ThrottledStore:
    return ThrottledStore(MemoryStore(clock), RATE, clock)


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_it_is_a_store(check: Check) -> None:
    with in_a_room(ThrottledStore(MemoryStore(SystemClock()), 10**12, SystemClock()), SystemClock(), many_objects=50) as room:
        check(room)


WAYS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("k", bytes(500_000)),
    "create": lambda store: store.put("new", bytes(500_000), create=True),
    "put_stream": lambda store: store.put_stream("k", [bytes(200_000), bytes(300_000)]),
    "get": lambda store: store.get("there", length=500_000),
    "get_stream": lambda store: list(store.get_stream("there")),
    "get_ranges": lambda store: store.get_ranges("there", [(0, 200_000), (100_000, 300_000)]),
}


@pytest.mark.parametrize("name", WAYS)
def test_what_follows_waits_until_all_before_is_paid_for(clock: VirtualClock, store: ThrottledStore, name: str) -> None:
    store._inner.put("there", bytes(500_000))
    WAYS[name](store)
    store.get("there", length=len(LARGE))
    assert clock.monotonic() == pytest.approx(500_000 / RATE)


def test_both_ways_share_one_limit(clock: VirtualClock, store: ThrottledStore) -> None:
    store.put("k", bytes(1500_000))
    assert store.get("k") == bytes(1500_000)
    assert store.put_stream("l", [bytes(700_000)] * 3) == 2_100_000
    store.put("m", LARGE)
    assert clock.monotonic() == pytest.approx((1_500_000 + 1_500_000 + 2_100_000) / RATE)


def test_a_stream_of_small_chunks_is_limited_too(clock: VirtualClock, store: ThrottledStore) -> None:
    store.put_stream("k", [bytes(20_000)] * 101)
    assert clock.monotonic() == pytest.approx(2)


def test_time_that_was_not_used_is_not_saved_up(clock: VirtualClock, store: ThrottledStore) -> None:
    clock.advance(100)
    store.put("k", bytes(2000_000))
    store.put("k", LARGE)
    assert clock.monotonic() == pytest.approx(102)


def test_what_carries_no_content_costs_nothing(clock: VirtualClock, store: ThrottledStore) -> None:
    store.put("k", bytes(5000_000))
    store.head("k")
    assert [info.key for info in store.list("")] == ["k"]
    store.now()
    store.delete(["k"])
    assert clock.monotonic() == 0


def test_a_lease_is_renewed_while_a_dump_is_paid_for(clock: VirtualClock, store: ThrottledStore) -> None:
    for number in range(10):
        store.put("dump", bytes(60_000_000))
        store.put(f"lease/{number}", b"still here")
        assert store.get(f"lease/{number}") == b"still here"
        assert clock.monotonic() == pytest.approx(number * 60, abs=0.01)  # what waited was the next part of the dump
    store.put("dump", LARGE)
    assert clock.monotonic() == pytest.approx(600, abs=0.01)  # and the small ones were paid for too


def test_threads_share_one_limit(clock: VirtualClock, store: ThrottledStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"k{number}", bytes(100_000)), range(80)))
    store.put("last", LARGE)
    assert clock.monotonic() >= 8.0 - 1e-6


def test_the_option_is_for_every_kind_of_store(clock: VirtualClock, tmp_path: object) -> None:
    store = open_store(
        f"file://{tmp_path}/root", endpoint=None, timeout_seconds=1, retry_seconds=0, clock=clock, environment={},
        options=Options(max_bytes_per_second=RATE),
    )  # fmt: skip
    store.put("k", bytes(3000_000))
    store.get("k")
    assert clock.monotonic() == pytest.approx(3)
