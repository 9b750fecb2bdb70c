"""What `doctor`'s checks make of repositories whose dumps are made of a few bytes, and of key files."""

from pathlib import Path
from typing import Any

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.config import Settings
from clipper_backup.format import names
from clipper_backup.kinds import NONE
from clipper_backup.ops.doctor.declared import Surroundings
from clipper_backup.ops.doctor.examine import CHECKS
from clipper_backup.ops.events import ignore
from clipper_backup.ops.findings import Colour, Finding
from clipper_backup.ops.work import Work
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.store.memory import MemoryStore
from fixtures.catalog import make_dump
from fixtures.clocks import START


@pytest.fixture
def clock() -> VirtualClock:
    """The store's and ours."""
    return VirtualClock(START)


@pytest.fixture
def store(clock: VirtualClock) -> MemoryStore:
    """An empty repository."""
    store = MemoryStore(clock)
    open_or_create_repository(store, clock, "a test")
    return store


def look(name: str, store: MemoryStore, clock: VirtualClock, **settings: Any) -> Finding:
    """What the check *name* finds."""
    (check,) = (each for each in CHECKS if each.name == name)
    here = Surroundings(lambda: Settings(**settings), clock, {})
    here.work = Work(here.settings, store, clock, ignore)
    return check.look(here)


def test_a_signed_newest_dump_and_no_key_to_sign_the_next_is_red(store: MemoryStore, clock: VirtualClock) -> None:
    assert look("signing", store, clock).colour is Colour.YELLOW, "nothing is signed"
    store.put(names.dump_key(make_dump(store), names.SIGNATURE), b"a signature")
    found = look("signing", store, clock)
    assert (found.colour, "the next run refuses to dump" in found.text) == (Colour.RED, True)
    assert look("signing", store, clock, signing_key_file=Path(NONE)).colour is Colour.YELLOW, "that is meant"
