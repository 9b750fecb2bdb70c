"""The wrappers that count, refuse and fail on purpose."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.errors import AccessError, ClipperError, ObjectMissingError, StoreError, StoreUnavailableError, UsageError
from clipper_backup.store.conformance import CHECKS, Check, in_a_room, name_of
from clipper_backup.store.faulty import EFFECTS, FaultyStore, parse_script
from clipper_backup.store.local import LocalStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.metering import MeteringStore, Usage
from clipper_backup.store.protocol import Store
from clipper_backup.store.readonly import ReadOnlyStore
from clipper_backup.store.wrapper import WrapperStore

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(NOW)


@pytest.fixture
def memory(clock: VirtualClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("wrapper", [MeteringStore, WrapperStore, lambda inner: FaultyStore(inner, "", SystemClock())])
def test_a_wrapper_is_a_store(wrapper: type[WrapperStore], check: Check, tmp_path: Path) -> None:
    store: Store = wrapper(LocalStore(tmp_path / "root"))
    assert isinstance(store, Store)
    assert store.url == f"file://{tmp_path}/root"
    assert store.capabilities.durable
    with in_a_room(store, SystemClock(), many_objects=50) as room:
        check(room)


# -- metering


def test_metering_counts_calls_failures_and_bytes(memory: MemoryStore) -> None:
    store = MeteringStore(memory)
    store.put("a", b"12345")
    store.put_stream("b", [b"12", b"", b"345"])
    assert store.get("a", start=1) == b"2345"
    assert b"".join(store.get_stream("b")) == b"12345"
    assert store.get_ranges("a", [(0, 2), (3, 1)]) == [b"12", b"4"]
    with pytest.raises(ObjectMissingError):
        store.head("absent")
    assert store.usage() == {
        "put": Usage(calls=1, written_bytes=5),
        "put_stream": Usage(calls=1, written_bytes=5),
        "get": Usage(calls=1, read_bytes=4),
        "get_stream": Usage(calls=1, read_bytes=5),
        "get_ranges": Usage(calls=1, read_bytes=3),
        "head": Usage(calls=1, failures=1),
    }
    assert store.total() == Usage(calls=6, failures=1, read_bytes=12, written_bytes=10)


def test_metering_loses_nothing_between_threads(memory: MemoryStore) -> None:
    store = MeteringStore(memory)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"k{number}", bytes(3)), range(2000)))
    assert store.total() == Usage(calls=2000, written_bytes=6000)


# -- read-only


def test_read_only_refuses_every_write_and_reads_on(clock: VirtualClock, memory: MemoryStore) -> None:
    memory.put("k", b"v")
    store = ReadOnlyStore(memory, clock)

    taken: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        taken.append(b"x")
        yield b"x"

    with pytest.raises(UsageError, match="cannot write k: this command opened memory: read-only"):
        store.put("k", b"other")
    with pytest.raises(UsageError):
        store.put("new", b"", create=True)
    with pytest.raises(UsageError):
        store.put_stream("k", chunks())
    assert taken == []
    with pytest.raises(UsageError, match="cannot delete k, l"):
        store.delete(["k", "l"])
    assert store.get("k") == b"v"
    assert [info.key for info in store.list("")] == ["k"]


def test_read_only_asks_this_machine_for_the_time(clock: VirtualClock) -> None:
    theirs = VirtualClock(NOW + timedelta(hours=1))
    assert ReadOnlyStore(MemoryStore(theirs), clock).now() == NOW


# -- scripted faults


def test_a_script_counts_by_method_and_over_all(clock: VirtualClock, memory: MemoryStore) -> None:
    store = FaultyStore(memory, "put:2:denied, *:5:broken\nhead:2+:unavailable", clock)
    store.put("a", b"")
    with pytest.raises(AccessError):
        store.put("b", b"")
    store.put("b", b"")
    store.head("a")
    with pytest.raises(StoreError, match=r"scripted fault \*:5:broken"):
        store.head("a")  # the second head too: the first fault of the script decides
    with pytest.raises(StoreUnavailableError):
        store.head("a")
    store.get("a")
    with pytest.raises(StoreUnavailableError):
        store.head("a")
    assert store.calls == 8


def test_a_range_of_calls(clock: VirtualClock, memory: MemoryStore) -> None:
    store = FaultyStore(memory, "now:2-3:broken", clock)
    outcomes = []
    for _ in range(5):
        try:
            store.now()
            outcomes.append(True)
        except StoreError:
            outcomes.append(False)
    assert outcomes == [True, False, False, True, True]


@pytest.mark.parametrize(("effect", "error", "took_place"), [
    ("unavailable", StoreUnavailableError, False), ("denied", AccessError, False), ("broken", StoreError, False),
    ("lost", StoreUnavailableError, True),
])  # fmt: skip
def test_what_an_effect_leaves_behind(
    clock: VirtualClock, memory: MemoryStore, effect: str, error: type[ClipperError], *, took_place: bool
) -> None:
    memory.put("old", b"")
    store = FaultyStore(memory, f"put:1:{effect}, put_stream:1:{effect}, delete:1:{effect}", clock)
    with pytest.raises(error):
        store.put("a", b"")
    with pytest.raises(error):
        store.put_stream("b", [b""])
    with pytest.raises(error):
        store.delete(["old"])
    assert [info.key for info in memory.list("")] == (["a", "b"] if took_place else ["old"])


def test_slow_waits_on_the_clock_and_then_works(clock: VirtualClock, memory: MemoryStore) -> None:
    store = FaultyStore(memory, "put:1:slow=2.5", clock)
    store.put("a", b"x")
    assert clock.monotonic() == 2.5
    assert memory.get("a") == b"x"


def test_a_written_stream_breaks_after_its_bytes(clock: VirtualClock, memory: MemoryStore) -> None:
    metered = MeteringStore(memory)
    store = FaultyStore(metered, "put_stream:1:after=7:unavailable", clock)
    with pytest.raises(StoreUnavailableError):
        store.put_stream("k", [b"12345", b"67890", b"abc"])
    assert metered.usage()["put_stream"].written_bytes == 7
    with pytest.raises(ObjectMissingError):
        memory.get("k")


def test_a_read_stream_breaks_or_ends_after_its_bytes(clock: VirtualClock, memory: MemoryStore) -> None:
    memory.put("k", b"1234567890")
    store = FaultyStore(memory, "get_stream:1:after=4:denied, get_stream:2:after=4:short, get_stream:3:after=0:broken", clock)
    got: list[bytes] = []
    with pytest.raises(AccessError):
        got.extend(store.get_stream("k"))
    assert got == [b"1234"]
    assert list(store.get_stream("k")) == [b"1234"]
    with pytest.raises(StoreError):
        list(store.get_stream("k"))
    assert list(store.get_stream("k")) == [b"1234567890"]


def test_a_byte_that_is_read_is_another_than_was_stored(clock: VirtualClock, memory: MemoryStore) -> None:
    memory.put("k", b"1234567890")
    script = "get:1:flip, get_stream:1:flip, get_stream:2:after=4:flip, get_stream:3:after=10:flip"
    store = FaultyStore(memory, script, clock)
    assert [store.get("k"), store.get("k")] == [b"0234567890", b"1234567890"]
    assert [b"".join(store.get_stream("k")) for _ in range(4)] == [b"0234567890", b"1234467890", b"1234567890", b"1234567890"]


@pytest.mark.parametrize("script", [
    "put", "put:1", "put:0:lost", "put:x:lost", "puts:1:lost", "put:1:gone", "put:1:slow", "put:1:lost=3", "put:3-:lost",
    "put:1:after=5:unavailable", "put_stream:1:after=5:lost", "*:1:after=5:kill", "get_stream:1:short",
    "put_stream:1:after=5:short", "put:1:unavailable;get:1:lost", "put:1:flip", "*:1:flip", "put_stream:1:after=5:flip",
])  # fmt: skip
def test_what_is_no_script(script: str) -> None:
    with pytest.raises(UsageError, match="not a fault"):
        parse_script(script)


def test_every_effect_can_be_written_down() -> None:
    how = dict.fromkeys(("short", "flip"), "get_stream:1:after=1") | {"overwrite": "put:1"}
    lines = [f"{how.get(effect, '*:1')}:{effect}" for effect in EFFECTS]
    lines[lines.index("*:1:slow")] += "=1"
    assert [fault.effect for fault in parse_script("\n".join(lines))] == list(EFFECTS)


KILLED = """
import sys
from pathlib import Path
from clipper_backup.clock import SystemClock
from clipper_backup.store.opening import open_store
import os
store = open_store(sys.argv[1], endpoint=None, timeout_seconds=5, retry_seconds=5, clock=SystemClock(), environment=os.environ)
store.put("first", b"1")
store.put_stream("second", [b"2" * 1000, b"3" * 1000])
store.delete(["first"])
print("done")
"""


@pytest.mark.parametrize(("fault", "left"), [
    ("*:1:kill", []), ("*:1:killed", ["first"]),
    ("*:2:kill", ["first"]), ("put_stream:1:after=1500:kill", ["first"]), ("*:2:killed", ["first", "second"]),
    ("*:3:kill", ["first", "second"]), ("*:3:killed", ["second"]),
])  # fmt: skip
def test_a_real_process_dies_at_the_call_that_the_environment_names(tmp_path: Path, fault: str, left: list[str]) -> None:
    child = subprocess.run(
        [sys.executable, "-c", KILLED, f"file://{tmp_path}/root"],
        env=os.environ | {"CLIPPER_BACKUP_FAULTS": fault}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stdout == ""
    assert [info.key for info in LocalStore(tmp_path / "root").list("")] == left


def test_without_the_variable_the_same_process_lives(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", KILLED, f"file://{tmp_path}/root"], capture_output=True, text=True, check=True, timeout=60
    )
    assert child.stdout == "done\n"
