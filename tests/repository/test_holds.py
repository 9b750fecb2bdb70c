"""Holds: what is held stays, and a hold that cannot be read holds."""

from datetime import timedelta

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import (
    ClipperError,
    MissingError,
)
from clipper_backup.format import names
from clipper_backup.repository.dumps import (
    delete_objects,
    held_dumps,
    hold_dump,
    release_dump,
)
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import DumpId
from fixtures.catalog import HOLD, keys, make_dump, make_unfinished
from fixtures.clocks import START

FIRST = DumpId.at_time(START)


def test_a_hold_is_kept_until_it_is_released(memory: MemoryStore) -> None:
    make_dump(memory)
    hold_dump(memory, FIRST, HOLD)
    assert held_dumps(memory) == {FIRST: HOLD}
    release_dump(memory, FIRST)
    assert held_dumps(memory) == {}


def test_only_a_committed_dump_can_be_held(memory: MemoryStore) -> None:
    make_unfinished(memory)
    with pytest.raises(MissingError, match=f"there is no dump {FIRST}"):
        hold_dump(memory, FIRST, HOLD)
    assert held_dumps(memory) == {}


class Pruned(WrapperStore):
    """Somebody's prune, which has listed the holds before, removes the dump just before or after the mark is written."""

    def __init__(self, inner: Store, *, before: bool) -> None:
        super().__init__(inner)
        self._before = before

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        if self._before:
            delete_objects(self._inner, FIRST)
        super().put(key, data, create=create)
        if not self._before:
            delete_objects(self._inner, FIRST)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.rule(77)
def test_a_dump_that_is_removed_while_it_is_being_held_is_not_said_to_be_held(memory: MemoryStore, before: bool) -> None:
    make_dump(memory)
    with pytest.raises(MissingError, match=f"{FIRST} was removed while it was being held"):
        hold_dump(Pruned(memory, before=before), FIRST, HOLD)
    assert keys(memory) == []


def test_what_is_not_held_cannot_be_released(memory: MemoryStore) -> None:
    make_dump(memory)
    with pytest.raises(MissingError, match=f"the dump {FIRST} is not held"):
        release_dump(memory, FIRST)


def test_what_others_put_into_the_folder_holds_nothing(memory: MemoryStore) -> None:
    memory.put("holds/README", b"not ours")
    assert held_dumps(memory) == {}


@pytest.mark.parametrize("mark", [b"", b"\xff", b'{"schema": 2}'], ids=["empty", "damaged", "newer"])
def test_a_hold_that_cannot_be_read_still_holds(memory: MemoryStore, clock: VirtualClock, mark: bytes) -> None:
    make_dump(memory)
    clock.advance(60)
    memory.put(names.hold_key(FIRST), mark)
    held = held_dumps(memory)
    assert list(held) == [FIRST]
    assert held[FIRST].held_at == START + timedelta(seconds=60)
    assert "cannot be read" in held[FIRST].reason


def test_a_store_that_does_not_answer_is_not_an_empty_folder_of_holds(memory: MemoryStore, clock: VirtualClock) -> None:
    make_dump(memory)
    hold_dump(memory, FIRST, HOLD)
    for fault in ("get:1:unavailable", "list:1:unavailable", "get:1:denied"):
        with pytest.raises(ClipperError):
            held_dumps(FaultyStore(memory, fault, clock))


def test_a_hold_released_while_it_is_read_is_none(memory: MemoryStore) -> None:
    make_dump(memory)
    hold_dump(memory, FIRST, HOLD)

    class Releasing(WrapperStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            release_dump(memory, FIRST)
            return super().get(key, start=start, length=length)

    assert held_dumps(Releasing(memory)) == {}
