"""A base backup without its WAL from start to stop restores nothing: it makes no other one go."""

import pytest

from clipper_backup.format import physical_names as names
from clipper_backup.ops.physical_plan import plan_physical_prune
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, Timeline
from clipper_backup.wal_names import Segment
from fixtures.base_repository import SIZE, SYSTEM, days, keys_below, live_for, make_repository, work_on
from fixtures.clocks import SteppedClock


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def store(clock: SteppedClock) -> MemoryStore:
    return make_repository(clock)


def lose(store: Store, number: int, *suffixes: str) -> None:
    name = Segment(Timeline(1), number, SIZE).name
    store.delete([names.archive_key(SYSTEM, name, suffix) for suffix in suffixes])


def kept(store: Store, clock: SteppedClock) -> list[BackupId]:
    """What a prune of now keeps, which its proof agrees to."""
    plan = plan_physical_prune(work_on(store, clock))
    plan.proof.refuse()
    prune_physical(work_on(store, clock)).raise_problems()
    return [item.backup_id for item in plan.items if item.keep]


@pytest.mark.rule(74)
@pytest.mark.parametrize("suffixes", [(names.STORED,), (names.CLAIM,), (names.STORED, names.CLAIM)])
def test_the_last_that_can_be_restored_stays(store: MemoryStore, clock: SteppedClock, suffixes: tuple[str, ...]) -> None:
    made = live_for(store, clock, 3)
    lose(store, 9, *suffixes)
    days(clock, 60)
    assert kept(store, clock) == made[1:]
    archive = keys_below(store, "wal/")
    assert names.archive_key(SYSTEM, Segment(Timeline(1), 5, SIZE).name, names.STORED) in archive
    assert names.archive_key(SYSTEM, Segment(Timeline(1), 4, SIZE).name, names.STORED) not in archive


@pytest.mark.rule(73)
def test_the_window_begins_with_one_that_has_its_wal(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    lose(store, 21, names.STORED)
    assert kept(store, clock) == [made[4], *made[6:]], "made[5] would be the last before the window"
    days(clock, 60)
    assert kept(store, clock) == made[13:]
