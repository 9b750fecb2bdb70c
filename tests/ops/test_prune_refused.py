"""Plans that are wrong by the time they are carried out: the proof refuses each before anything is removed (rules 74-78)."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from clipper_backup.cli import show_prune
from clipper_backup.errors import IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import SnapshotRecord
from clipper_backup.format.documents import encode
from clipper_backup.format.names import RETENTION
from clipper_backup.ops.dump.prune import execute_prune, plan_prune
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.physical_plan import Look, look, plan_of, plan_physical_prune, removal_of
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.prune_proof import prove_removal
from clipper_backup.ops.prune_window import window_of
from clipper_backup.repository.proof.check import Proof
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures import histories
from fixtures.base_repository import (
    SIZE,
    SYSTEM,
    days,
    keys_below,
    live_for,
    make_repository,
    put_backup,
    put_history,
    put_hold,
    put_intent,
    put_packs,
    work_on,
)
from fixtures.catalog import make_dump
from fixtures.clocks import SteppedClock


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def store(clock: SteppedClock) -> MemoryStore:
    return make_repository(clock)


class Meanwhile(WrapperStore):
    """Somebody else does something just before RETENTION is read for the time *number*.

    A plan reads it when it begins, and so does each proof: the first is that of all of a plan.
    """

    def __init__(self, inner: Store, number: int, change: Callable[[], object]) -> None:
        super().__init__(inner)
        self.left, self._change = number, change

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        if key == RETENTION:
            self.left -= 1
            if self.left == 0:
                self._change()
        return super().get(key, start=start, length=length)


BEFORE_THE_PROOF, BEFORE_THE_PROOF_OF_WAL = 2, 4


def all_but_locks(store: Store) -> set[str]:
    return {key for key in keys_below(store, "") if not key.startswith("locks/")}


def refused(store: MemoryStore, clock: SteppedClock, change: Callable[[], object]) -> str:
    """What the proof said of a plan that was right when it was made, and before which *change* came; nothing went."""
    planned_without_it = plan_physical_prune(work_on(store, clock))
    planned_without_it.proof.refuse()
    before = all_but_locks(store)
    changing = Meanwhile(store, BEFORE_THE_PROOF, change)
    with pytest.raises(IntegrityError, match="the prune would take what is promised, and is refused") as told:
        prune_physical(work_on(changing, clock))
    assert changing.left <= 0
    assert all_but_locks(store) >= before
    return told.value.message


@pytest.mark.rule(76)
def test_a_run_that_gave_a_sign_of_life_since_the_plan(store: MemoryStore, clock: SteppedClock) -> None:
    live_for(store, clock, 3)
    run = BackupId.make(clock.now())
    put_intent(store, run)
    put_packs(store, run, [0, 1])
    days(clock, 1.01)
    said = refused(store, clock, lambda: put_intent(store, run))
    assert f"{run} is being written: its run gave a sign of life less than a day ago" in said


@pytest.mark.rule(76)
@pytest.mark.rule(99)
def test_a_doomed_pack_that_was_named_since_the_plan(store: MemoryStore, clock: SteppedClock) -> None:
    """It was announced, and a backup that was committed meanwhile names it."""
    made = live_for(store, clock, 3)
    put_packs(store, made[0], [7])
    prune_physical(work_on(store, clock))
    days(clock, 1.01)
    said = refused(store, clock, lambda: put_backup(store, start=13, own=(0,), adopted={made[0]: (7,)}, wal=True))
    assert f"would lack {names.pack_key(made[0], 7)}" in said


@pytest.mark.rule(76)
def test_a_pack_whose_announcement_is_younger_than_it_was(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 3)
    put_packs(store, made[0], [7])
    prune_physical(work_on(store, clock))
    days(clock, 1.01)
    (record,) = keys_below(store, names.PRUNE_FOLDER)
    said = refused(store, clock, lambda: store.put(record, store.get(record)))
    assert "packs of the run" in said
    assert "that no prune announced a day ago" in said
    assert f"{record} is younger than a day, and would go" in said


@pytest.mark.rule(78)
def test_a_plan_that_deletes_wal_by_name_order(store: MemoryStore, clock: SteppedClock) -> None:
    """A copy of the server archived for a day, on timeline 2, whose names are the higher ones; the server went on."""
    live_for(store, clock, 3)
    put_history(store, 2, [(1, 12 * SIZE + 7)])
    put_backup(store, start=12, timeline=2, wal=True)
    live_for(store, clock, 12, first=13)
    work = work_on(store, clock)
    window = window_of(work)
    right = look(work, window)
    wrong = replace(right, plan=histories.by_names(right.found.seen, clock.now()))

    def proof_of(looked: Look) -> Proof:
        return prove_removal(work, removal_of(work, looked, plan_of(work, looked, window)), with_base=True, with_wal=True)

    proof_of(right).refuse()
    said = "; ".join(proof_of(wrong).problems)
    assert "on timeline 1 of system" in said
    assert "could not be restored any more" in said


@pytest.mark.rule(75)
def test_what_is_found_anew_between_two_phases_is_proven_anew(store: MemoryStore, clock: SteppedClock) -> None:
    """A snapshot comes when the WAL was looked at, and not proven yet: base backups went, and WAL did not."""
    made = live_for(store, clock, 14)
    record = SnapshotRecord(system_id=SYSTEM, timeline=1, start_lsn="0/200000", stop_lsn="0/400000", taken_at=clock.now())
    key = f"{names.SNAPSHOTS_FOLDER}nightly.json"
    changing = Meanwhile(store, BEFORE_THE_PROOF_OF_WAL, lambda: store.put(key, encode(record)))
    wal = keys_below(store, "wal/")
    with pytest.raises(IntegrityError, match=rf"WAL from 0{{7}}10{{15}}2 to 0{{7}}10{{15}}3 would go, and {key} needs it"):
        prune_physical(work_on(changing, clock))
    assert keys_below(store, "wal/") == wal
    assert names.base_key(made[0], names.BASE_SUMMARY) not in keys_below(store, "base/")


def test_a_plan_that_was_refused_does_not_say_that_anything_went(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    changing = Meanwhile(store, BEFORE_THE_PROOF, lambda: put_hold(store, made[0]))
    work = work_on(changing, clock)
    refused, dumps = plan_physical_prune(work), plan_prune(work_on(store, clock))
    assert any(f"{made[0]} is held" in problem for problem in refused.proof.problems)
    shown = show_prune.text(dumps, refused, dry_run=False)
    assert "would go" in shown
    assert "REFUSED: " in shown
    assert "removed" not in shown
    assert show_prune.document(dumps, refused, dry_run=False)["dry_run"] is True


@pytest.mark.rule(74)
def test_a_prune_of_dumps_that_goes_by_age_alone(store: MemoryStore, clock: SteppedClock) -> None:
    for _ in range(3):
        make_dump(store)
        days(clock, 1)
    days(clock, 60)
    work = work_on(store, clock, retention_days=30, retention_min_dumps=2)
    right = plan_prune(work)
    wrong = replace(right, decisions=tuple(replace(decision, keep=False) for decision in right.decisions))
    before = keys_below(store, "database/")
    with take_lease(work, DUMP_LEASE, "prune") as lease, pytest.raises(IntegrityError, match="is the newest good dump"):
        execute_prune(work, wrong, lease)
    assert keys_below(store, "database/") == before
