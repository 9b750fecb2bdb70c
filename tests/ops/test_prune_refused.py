"""Plans that are broken on purpose, carried out by `prune`: the proof refuses each before anything is removed (rules 74-78)."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from clipper_backup.errors import IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import PruneRecord
from clipper_backup.ops import physical_plan
from clipper_backup.ops.dump.create import take_dump_lease
from clipper_backup.ops.dump.prune import execute_prune, plan_prune
from clipper_backup.ops.events import ignore
from clipper_backup.ops.physical_plan import plan_physical_prune
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.work import Work
from clipper_backup.repository import base_prune, base_state
from clipper_backup.repository.base_state import PackState
from clipper_backup.repository.physical_retention import PhysicalPlan, Seen, plan_physical
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId
from fixtures import histories
from fixtures.base_repository import (
    SIZE,
    days,
    keys_below,
    make_repository,
    put_backup,
    put_history,
    put_intent,
    put_packs,
    put_segments,
    settings_of_a_week,
)
from fixtures.catalog import make_dump
from fixtures.clocks import SteppedClock


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def store(clock: SteppedClock) -> MemoryStore:
    return make_repository(clock)


def work_on(store: Store, clock: SteppedClock) -> Work:
    return Work(replace(settings_of_a_week(), retention_days=30, retention_min_dumps=2), store, clock, ignore)


def live_for(store: Store, clock: SteppedClock, number: int, *, first: int = 1, timeline: int = 1) -> list[BackupId]:
    made: list[BackupId] = []
    for day in range(number):
        adopted = {made[-1]: (0,)} if made else {}
        made.append(put_backup(store, start=first + 4 * day, own=(0, 1), adopted=adopted, wal=True, timeline=timeline))
        put_segments(store, first + 4 * day + 1, first + 4 * day + 3, timeline=timeline)
        days(clock, 1)
    return made


def refused(store: MemoryStore, clock: SteppedClock) -> str:
    """What the proof said, of the plan and when it was to be carried out; nothing went."""
    before = {key for key in keys_below(store, "") if not key.startswith("locks/")}
    planned = plan_physical_prune(work_on(store, clock)).proof.problems
    with pytest.raises(IntegrityError, match="the prune would take what is promised, and is refused") as told:
        prune_physical(work_on(store, clock))
    assert {key for key in keys_below(store, "") if not key.startswith("locks/")} >= before
    return f"{planned} {told.value}"


@pytest.mark.rule(76)
def test_a_prune_that_ignores_intents(store: MemoryStore, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    live_for(store, clock, 3)
    run = BackupId.make(clock.now())
    put_intent(store, run)
    put_packs(store, run, [0, 1])
    monkeypatch.setattr(base_state, "is_live", lambda *_: False)
    assert f"{run} is being written: its run gave a sign of life less than a day ago" in refused(store, clock)


@pytest.mark.rule(76)
@pytest.mark.rule(99)
def test_a_prune_that_does_not_look_again_at_what_was_doomed(
    store: MemoryStore, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack was announced, and a backup that was committed meanwhile names it."""
    made = live_for(store, clock, 3)
    put_packs(store, made[0], [7])
    prune_physical(work_on(store, clock))
    put_backup(store, start=13, own=(0,), adopted={made[0]: (7,)}, wal=True)
    days(clock, 1.01)

    def all_of_it(state: PackState, record: PruneRecord) -> list[ObjectInfo]:
        return [info for run in record.packs for info in state.packs[BackupId.parse(run)].values() if info.key.endswith("7")]

    monkeypatch.setattr(base_prune, "going_packs", all_of_it)
    said = refused(store, clock)
    assert f"would lack {names.pack_key(made[0], 7)}" in said


@pytest.mark.rule(76)
def test_a_prune_that_does_not_wait_for_a_day(store: MemoryStore, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    made = live_for(store, clock, 3)
    put_packs(store, made[0], [7])
    prune_physical(work_on(store, clock))
    for module in (base_prune, physical_plan):
        monkeypatch.setattr(module, "GRACE", timedelta())
    assert "packs of the run" in (said := refused(store, clock))
    assert "that no prune announced a day ago" in said


@pytest.mark.rule(78)
def test_a_prune_that_deletes_wal_by_name_order(store: MemoryStore, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the server archived for a day, on timeline 2, whose names are the higher ones; the server went on."""
    live_for(store, clock, 3)
    put_history(store, 2, [(1, 12 * SIZE + 7)])
    put_backup(store, start=12, timeline=2, wal=True)
    live_for(store, clock, 12, first=13)

    def by_names(seen: Seen, **_: Any) -> PhysicalPlan:
        return histories.by_names(seen, clock.now())

    plan_physical_prune(work_on(store, clock)).proof.refuse()
    monkeypatch.setattr(physical_plan, "plan_physical", by_names)
    said = refused(store, clock)
    assert "on timeline 1 of system" in said
    assert "could not be restored any more" in said


@pytest.mark.rule(75)
def test_what_is_found_anew_between_two_phases_is_proven_anew(
    store: MemoryStore, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of the first look is right, that of the second one takes all WAL: then base backups went, and WAL did not."""
    made = live_for(store, clock, 14)
    looks = []

    def second_is_wrong(seen: Seen, **how: Any) -> PhysicalPlan:
        looks.append(plan_physical(seen, **how))
        return looks[0] if len(looks) == 1 else replace(looks[-1], spans={})

    monkeypatch.setattr(physical_plan, "plan_physical", second_is_wrong)
    wal = keys_below(store, "wal/")
    with pytest.raises(IntegrityError, match=rf"000000010000000000000015 would go, and the base backup {made[5]} needs it"):
        prune_physical(work_on(store, clock))
    assert len(looks) == 2
    assert keys_below(store, "wal/") == wal
    assert names.base_key(made[0], names.BASE_SUMMARY) not in keys_below(store, "base/")


@pytest.mark.rule(74)
def test_a_prune_of_dumps_that_goes_by_age_alone(store: MemoryStore, clock: SteppedClock) -> None:
    for _ in range(3):
        make_dump(store)
        days(clock, 1)
    days(clock, 60)
    work = work_on(store, clock)
    right = plan_prune(work)
    wrong = replace(right, decisions=tuple(replace(decision, keep=False) for decision in right.decisions))
    before = keys_below(store, "database/")
    with take_dump_lease(work, "prune", clock) as lease, pytest.raises(IntegrityError, match="is the newest good dump"):
        execute_prune(work, wrong, lease)
    assert keys_below(store, "database/") == before
