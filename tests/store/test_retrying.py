"""What is tried again, how often, and what a lost answer may not turn into."""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import (
    AccessError,
    ClipperError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.metering import MeteringStore
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.store.retrying import LONGEST_PAUSE_SECONDS, RetryingStore
from clipper_backup.store.wrapper import WrapperStore

MIB = 1 << 20


@dataclass
class Stack:
    """A retrying store over a faulty one over memory; `reading` meters what the faulty one lets through."""

    clock: VirtualClock
    memory: MemoryStore
    reading: MeteringStore
    faulty: FaultyStore
    store: RetryingStore


def stack(script: str, *, retry_seconds: float = 180, seed: int = 1) -> Stack:
    clock = VirtualClock(datetime(2026, 11, 22, 2, 0, tzinfo=UTC))
    memory = MemoryStore(clock)
    faulty = FaultyStore(memory, script, clock)
    reading = MeteringStore(faulty)
    store = RetryingStore(reading, retry_seconds=retry_seconds, clock=clock, rng=random.Random(seed))
    return Stack(clock, memory, reading, faulty, store)


@pytest.mark.parametrize("method", ["put", "get", "get_ranges", "head", "list", "delete", "now"])
def test_every_simple_call_outlives_temporary_errors(method: str) -> None:
    at = stack(f"{method}:1-3:unavailable")
    at.memory.put("k", b"v")
    calls = {
        "put": lambda: at.store.put("k", b"w"),
        "get": lambda: at.store.get("k"),
        "get_ranges": lambda: at.store.get_ranges("k", [(0, 1)]),
        "head": lambda: at.store.head("k"),
        "list": lambda: list(at.store.list("")),
        "delete": lambda: at.store.delete(["k"]),
        "now": at.store.now,
    }
    calls[method]()
    assert at.faulty.calls == 4
    assert at.clock.monotonic() > 0


@pytest.mark.parametrize(("effect", "error"), [("denied", AccessError), ("broken", StoreError)])
def test_permanent_errors_are_not_tried_again(effect: str, error: type[ClipperError]) -> None:
    at = stack(f"head:1:{effect}")
    with pytest.raises(error):
        at.store.head("k")
    assert at.faulty.calls == 1
    with pytest.raises(ObjectMissingError):
        at.store.get("absent")
    assert at.faulty.calls == 2


@given(seed=st.integers(0, 10_000), retry_seconds=st.floats(0, 600))
def test_patience_ends_in_time_and_says_how_often_it_tried(seed: int, retry_seconds: float) -> None:
    at = stack("get:1+:unavailable", retry_seconds=retry_seconds, seed=seed)
    with pytest.raises(StoreUnavailableError) as caught:
        at.store.get("k")
    assert at.clock.monotonic() <= retry_seconds
    assert at.clock.monotonic() > retry_seconds - LONGEST_PAUSE_SECONDS
    if at.faulty.calls > 1:
        assert f"tried {at.faulty.calls} times" in caught.value.message


def test_who_waits_is_told_once_why_and_for_how_long() -> None:
    told: list[str] = []
    at = stack("get:1+:unavailable")
    store = RetryingStore(at.reading, retry_seconds=180, clock=at.clock, rng=random.Random(1), tell=told.append)
    with pytest.raises(StoreUnavailableError):
        store.get("k")
    (line,) = told
    assert re.fullmatch(r"scripted fault .*; tried again for up to 3 min.* \(STORE_RETRY_SECONDS\)", line), line


def test_what_is_over_soon_is_not_told() -> None:
    told: list[str] = []
    at = stack("get:1-2:unavailable")
    at.memory.put("k", b"v")
    store = RetryingStore(at.reading, retry_seconds=180, clock=at.clock, rng=random.Random(1), tell=told.append)
    assert store.get("k") == b"v"
    assert told == []


def test_no_patience_means_one_try() -> None:
    at = stack("get:1+:unavailable", retry_seconds=0)
    with pytest.raises(StoreUnavailableError):
        at.store.get("k")
    assert at.faulty.calls == 1


def test_pauses_grow_and_differ_between_clients() -> None:
    def pauses(seed: int) -> list[float]:
        clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
        moments: list[float] = []

        class Noting(WrapperStore):
            def now(self) -> datetime:
                moments.append(clock.monotonic())
                raise StoreUnavailableError("down")

        store = RetryingStore(Noting(MemoryStore(clock)), retry_seconds=3600, clock=clock, rng=random.Random(seed))
        with pytest.raises(StoreUnavailableError):
            store.now()
        return [later - earlier for earlier, later in itertools.pairwise(moments)]

    one, other = pauses(1), pauses(2)
    assert one[:5] != other[:5]
    assert max(one[:3]) <= 0.8
    assert 10 < max(one) <= LONGEST_PAUSE_SECONDS
    # Full jitter: on average half of the longest pause, so an hour of it is some 480 tries.
    assert 350 < len(one) < 700


# -- conditional create


def test_a_create_whose_answer_got_lost_succeeds() -> None:
    at = stack("put:1:lost")
    at.store.put("holder", b"mine", create=True)
    assert at.memory.get("holder") == b"mine"
    assert at.faulty.calls == 3  # put, put (exists), get


def test_a_create_that_a_rival_won_meanwhile_is_refused() -> None:
    at = stack("put:1:unavailable")
    at.memory.put("holder", b"theirs")
    with pytest.raises(ObjectExistsError):
        at.store.put("holder", b"mine", create=True)
    assert at.memory.get("holder") == b"theirs"


def test_a_first_clear_answer_is_believed_whatever_the_bytes() -> None:
    at = stack("")
    at.memory.put("holder", b"same")
    with pytest.raises(ObjectExistsError):
        at.store.put("holder", b"same", create=True)


def test_a_longer_object_that_begins_like_ours_is_not_ours() -> None:
    at = stack("put:1:unavailable")
    at.memory.put("holder", b"mine and more")
    with pytest.raises(ObjectExistsError):
        at.store.put("holder", b"mine", create=True)


def test_lost_answers_to_the_question_whose_object_it_is_are_asked_again() -> None:
    at = stack("put:1:lost, get:1-2:unavailable")
    at.store.put("holder", b"mine", create=True)
    assert at.memory.get("holder") == b"mine"


def test_an_object_that_went_before_it_could_be_compared_is_created_anew() -> None:
    class Deleting(WrapperStore):
        """Somebody deletes the object just before it is read for the first time."""

        deleted = False

        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            if not self.deleted:
                self.deleted = True
                self._inner.delete([key])
            return super().get(key, start=start, length=length)

    at = stack("put:1:unavailable")
    at.memory.put("holder", b"theirs")
    store = RetryingStore(Deleting(at.faulty), retry_seconds=60, clock=at.clock, rng=random.Random(1))
    store.put("holder", b"mine", create=True)
    assert at.memory.get("holder") == b"mine"


# -- streams


@given(data=st.data())
def test_a_broken_stream_goes_on_after_the_last_byte(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 2000))
    breaks = data.draw(st.lists(st.integers(0, 700), max_size=6))
    script = ",".join(f"get_stream:{number}:after={after}:unavailable" for number, after in enumerate(breaks, 1))
    at = stack(script)
    content = random.Random(size).randbytes(size)
    at.memory.put("k", content)
    start = data.draw(st.integers(0, size + 3))
    assert b"".join(at.store.get_stream("k", start=start)) == content[start:]
    # No byte was fetched twice.
    assert at.reading.usage()["get_stream"].read_bytes == max(0, size - start)


def test_a_short_body_is_never_the_whole() -> None:
    at = stack("get_stream:1:after=100:short")
    at.memory.put("k", bytes(300))
    assert b"".join(at.store.get_stream("k")) == bytes(300)
    at = stack("get_stream:1+:after=0:short")
    at.memory.put("k", bytes(300))
    with pytest.raises(StoreUnavailableError, match="k ended after 0 of 300 bytes"):
        list(at.store.get_stream("k"))


def test_patience_begins_anew_with_every_piece() -> None:
    # Each of these breaks costs some of the 2 seconds; all together they would use them up many times.
    at = stack("get_stream:1-200:after=10:unavailable", retry_seconds=2)
    at.memory.put("k", bytes(2005))
    assert b"".join(at.store.get_stream("k")) == bytes(2005)
    assert at.clock.monotonic() > 10


@pytest.mark.parametrize("other", [b"B" * 300, b"longer" * 100, b"short"])
def test_an_object_replaced_between_two_pieces_is_an_error(other: bytes) -> None:
    at = stack("get_stream:1:after=100:unavailable")
    at.memory.put("k", b"A" * 300)

    def read() -> Iterator[bytes]:
        for number, piece in enumerate(at.store.get_stream("k")):
            yield piece
            if number == 0:
                at.memory.put("k", other)

    with pytest.raises(StoreError, match="k was replaced while it was read"):
        list(read())


def test_a_known_object_needs_no_question_first() -> None:
    at = stack("")
    at.memory.put("k", b"x")
    [info] = at.memory.list("")
    assert b"".join(at.store.get_stream("k", same_as=info)) == b"x"
    assert "head" not in at.reading.usage()
    with pytest.raises(StoreError):
        list(at.store.get_stream("k", same_as=ObjectInfo("k", 1, info.modified_at, "another")))


def test_a_streamed_write_is_tried_once() -> None:
    at = stack("put_stream:1:unavailable")
    with pytest.raises(StoreUnavailableError):
        at.store.put_stream("k", [b"x"])
    assert at.faulty.calls == 1
    assert at.store.put_stream("k", [b"x", b"y"], expected_bytes=2) == 2
