"""`prune` of base backups and WAL, over a repository made of a few bytes: what stays for the window, and what stops it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from clipper_backup.cli import show_prune
from clipper_backup.errors import ClipperError, IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import SnapshotRecord
from clipper_backup.format.documents import Repository, encode
from clipper_backup.format.names import REPOSITORY, RETENTION
from clipper_backup.ops.dump.prune import execute_prune, plan_prune
from clipper_backup.ops.events import Event, StepDone, Warned, ignore
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.physical_plan import PhysicalPrune, plan_physical_prune
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import list_base_backups, list_packs, needed_packs, read_base_summary, read_packs
from clipper_backup.repository.base_prune import Freed
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId, Timeline
from clipper_backup.wal_names import Kind, Segment, classify
from fixtures.base_repository import (
    REPOSITORY_ID,
    SECOND_SYSTEM,
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
    put_parts,
    put_segments,
    put_started,
    put_system,
    summary_of,
    work_on,
)
from fixtures.clocks import SteppedClock
from fixtures.sweeps import chosen


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def store(clock: SteppedClock) -> MemoryStore:
    return make_repository(clock)


def backups(store: Store) -> list[BackupId]:
    return [listed.backup_id for listed in list_base_backups(store) if listed.committed]


def all_but_locks(store: Store) -> set[str]:
    return {key for key in keys_below(store, "") if not key.startswith("locks/")}


def segments(store: Store, timeline: int = 1, suffix: str = names.STORED, system_id: str = SYSTEM) -> list[int]:
    found = (names.parse_archive_key(key) for key in keys_below(store, f"wal/{system_id}/{Timeline(timeline)}/"))
    return sorted(
        Segment.parse(key.name, SIZE).number
        for key in found
        if key is not None and key.suffix == suffix and classify(key.name) is Kind.SEGMENT
    )


@pytest.mark.rule(73)
def test_the_window_and_a_day_stays_and_what_is_before_it_goes(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    plan = plan_physical_prune(work_on(store, clock))
    assert [item.keep for item in plan.items] == [False] * 5 + [True] * 9
    done = prune_physical(work_on(store, clock))
    assert (done.items, done.wal, done.problems) == (plan.items, plan.wal, ())
    assert backups(store) == made[5:], "eight days, and the one before"
    assert segments(store) == segments(store, suffix=names.CLAIM) == list(range(1 + 4 * 5, 1 + 4 * 14))
    assert done.wal.segments == 20


def test_a_second_prune_finds_nothing_and_a_days_later_deletes_packs(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    first = prune_physical(work_on(store, clock))
    assert (first.doomed, first.freed.packs) == (9, 0), "pack 0 of the last one that went is needed by the next"
    assert [(each.run, each.packs, each.announced) for each in first.packs] == [
        (run, 1 if run == made[4] else 2, True) for run in made[:5]
    ]
    assert not plan_physical_prune(work_on(store, clock)).changes
    before = all_but_locks(store)
    prune_physical(work_on(store, clock))
    assert all_but_locks(store) == before
    days(clock, 1.01)
    assert plan_physical_prune(work_on(store, clock)).freed.packs == 9
    assert prune_physical(work_on(store, clock)).freed.packs == 9
    assert {pack.run for pack in list_packs(store)} == set(made[4:])


def test_a_repository_of_dumps_alone_has_nothing_physical(clock: SteppedClock) -> None:
    store = MemoryStore(clock)
    store.put(REPOSITORY, encode(Repository(id=REPOSITORY_ID, created_at=clock.now(), created_by="a test")))
    assert plan_physical_prune(work_on(store, clock)) == prune_physical(work_on(store, clock)) == PhysicalPrune()


def test_what_lies_beside_a_segment_goes_with_it_and_histories_never(store: MemoryStore, clock: SteppedClock) -> None:
    put_history(store, 2, [(1, 100 * SIZE)])
    segment = Segment(Timeline(1), 2, SIZE).name
    beside = [
        names.archive_key(SYSTEM, segment, names.LINK),
        names.archive_key(SYSTEM, f"{segment}.00000028.backup", names.CLAIM),
        names.archive_key(SYSTEM, f"{segment}.00000028.backup", names.STORED),
        names.archive_key(SYSTEM, f"{segment}.partial-0123456789abcdef", names.STORED),
        f"{names.times_folder(SYSTEM, Timeline(1))}{segment}-{segment}-000303E56199DE80.zst",
    ]
    young = f"{names.times_folder(SYSTEM, Timeline(1))}{segment}-{Segment(Timeline(1), 50, SIZE).name}-000303E56199DE80.zst"
    foreign = f"wal/{SYSTEM}/{Timeline(1)}/{segment[:16]}/notes.txt"
    for key in (*beside, young, foreign):
        store.put(key, b"x")
    live_for(store, clock, 14)
    prune_physical(work_on(store, clock))
    left = keys_below(store, "wal/")
    assert not set(beside) & left
    assert {young, foreign} <= left, "a map that tells of what stays, and what is not ours"
    assert len(keys_below(store, names.histories_folder(SYSTEM))) == 2


def test_of_wal_the_object_goes_first_then_the_link_then_the_claim(store: MemoryStore, clock: SteppedClock) -> None:
    put_segments(store, 0, 3)
    for number in range(4):
        store.put(names.archive_key(SYSTEM, Segment(Timeline(1), number, SIZE).name, names.LINK), b"link")
    days(clock, 1)
    live_for(store, clock, 14, first=10)
    calls: list[list[str]] = []

    class Noting(WrapperStore):
        def delete(self, keys: Sequence[str]) -> None:
            calls.append([key for key in keys if key.startswith("wal/")])
            super().delete(keys)

    prune_physical(work_on(Noting(store), clock))
    of_wal = [keys for keys in calls if keys]
    assert [{key.rpartition(".")[2] for key in keys} for keys in of_wal] == [{"zst"}, {"link"}, {"claim"}]
    assert of_wal[0] == sorted(of_wal[0])


def test_a_claim_without_its_object_goes_once_it_is_old(store: MemoryStore, clock: SteppedClock) -> None:
    put_segments(store, 0, 0, claims_only=True)
    days(clock, 1)
    live_for(store, clock, 14, first=10)
    put_segments(store, 1, 1, claims_only=True)
    prune_physical(work_on(store, clock))
    assert segments(store, suffix=names.CLAIM)[0] == 1


def test_an_old_claim_whose_object_came_within_the_window_stays_with_it(store: MemoryStore, clock: SteppedClock) -> None:
    put_segments(store, 0, 0, claims_only=True)
    days(clock, 1)
    live_for(store, clock, 14, first=10)
    store.put(names.archive_key(SYSTEM, Segment(Timeline(1), 0, SIZE).name, names.STORED), b"segment")
    prune_physical(work_on(store, clock))
    assert (segments(store)[0], segments(store, suffix=names.CLAIM)[0]) == (0, 0)


def test_after_pitr_the_line_that_was_left_stays_for_the_window(store: MemoryStore, clock: SteppedClock) -> None:
    left = live_for(store, clock, 12)
    put_history(store, 2, [(1, 40 * SIZE + 7)])
    put_segments(store, 40, 40, timeline=2)
    new = live_for(store, clock, 8, first=41, timeline=2)
    prune_physical(work_on(store, clock))
    assert backups(store) == [left[9], left[11], *new], "where the window begins on the new line, and on the one that was left"
    days(clock, 3)
    prune_physical(work_on(store, clock))
    assert backups(store) == new[2:]
    assert segments(store) == []


def test_after_an_upgrade_the_old_system_stays_until_the_new_one_has_an_old_backup(
    store: MemoryStore, clock: SteppedClock
) -> None:
    old = live_for(store, clock, 12)
    put_system(store, 2, SECOND_SYSTEM)
    new = [put_backup(store, system=2, wal=True)]
    days(clock, 7)
    new.append(put_backup(store, system=2, start=9, wal=True))
    prune_physical(work_on(store, clock))
    assert backups(store) == [*old[-2:], *new]
    days(clock, 2)
    prune_physical(work_on(store, clock))
    assert backups(store) == new
    assert segments(store) == []


# -- what cannot be read, and wrong clocks


def break_started(store: MemoryStore) -> str:
    run = BackupId.make(store.now())
    put_intent(store, run)
    put_started(store, run, 3)
    store.put(key := names.base_key(run, names.STARTED), b'{"schema": 2}')
    return key


def foreign_run(store: MemoryStore) -> str:
    run = BackupId.make(store.now())
    put_intent(store, run)
    put_started(store, run, 3, system_id="1")
    return names.base_key(run, names.STARTED)


def break_hold(store: MemoryStore) -> str:
    store.put(key := names.base_hold_key(backups(store)[0]), b"{")
    return key


def break_wal_to(store: MemoryStore) -> str:
    put_hold(store, backups(store)[0], ("1", "0/0"))
    return names.base_hold_key(backups(store)[0])


def break_snapshot(store: MemoryStore) -> str:
    store.put(key := f"{names.SNAPSHOTS_FOLDER}nightly.json", b'{"schema": 1}')
    return key


def break_system(store: MemoryStore) -> str:
    store.put(key := names.system_key(1), b"{")
    return key


def break_history(store: MemoryStore) -> str:
    put_history(store, 2, [(1, SIZE)])
    store.put(key := names.history_key(SYSTEM, Timeline(2), names.CLAIM), b"{")
    return key


def no_history(store: MemoryStore) -> str:
    put_segments(store, 9, 9, timeline=2)
    return names.history_key(SYSTEM, Timeline(2), names.CLAIM)


@pytest.mark.parametrize(
    "damage",
    [break_started, foreign_run, break_hold, break_wal_to, break_snapshot, break_system, break_history, no_history],
)
def test_what_cannot_be_read_keeps_all_wal(store: MemoryStore, clock: SteppedClock, damage: Callable[[MemoryStore], str]) -> None:
    live_for(store, clock, 14)
    key = damage(store)
    before = keys_below(store, "wal/")
    done = prune_physical(work_on(store, clock))
    assert keys_below(store, "wal/") == before
    with pytest.raises(IntegrityError) as told:
        done.raise_problems()
    assert key in told.value.message
    assert (len(backups(store)) == 14) == (damage in {break_system, break_history, no_history})


def test_an_unreadable_summary_lets_nothing_go(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    store.put(names.base_key(made[-1], names.BASE_SUMMARY), b"{")
    before = all_but_locks(store)
    for run in (plan_physical_prune, prune_physical):
        with pytest.raises(IntegrityError, match="prune removes nothing"):
            run(work_on(store, clock))
    assert all_but_locks(store) == before


def test_a_snapshot_and_a_live_run_keep_their_wal(store: MemoryStore, clock: SteppedClock) -> None:
    record = SnapshotRecord(system_id=SYSTEM, timeline=1, start_lsn="0/200000", stop_lsn="0/400000", taken_at=clock.now())
    store.put(f"{names.SNAPSHOTS_FOLDER}nightly.json", encode(record))
    live_for(store, clock, 14)
    put_intent(store, run := BackupId.make(store.now()))
    put_started(store, run, 17)
    prune_physical(work_on(store, clock))
    assert segments(store) == [2, 3, *range(17, 57)]


def test_a_held_backup_keeps_its_wal_and_where_the_hold_says(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    put_hold(store, made[0], ("00000001", "0/380000"))
    prune_physical(work_on(store, clock))
    assert backups(store) == [made[0], *made[5:]]
    assert segments(store) == [1, 2, 3, *range(21, 57)]


@pytest.mark.parametrize("hours", [-2, -0.9, 0.9, 2])
def test_prune_with_wrong_clock(store: MemoryStore, clock: SteppedClock, hours: float) -> None:
    made = live_for(store, clock, 14)

    class Wrong(SteppedClock):
        def now(self) -> datetime:
            return clock.now() + timedelta(hours=hours)

    before = keys_below(store, "")
    if abs(hours) > 1:
        with pytest.raises(ClipperError, match="nothing is removed"):
            prune_physical(work_on(store, Wrong()))
        assert keys_below(store, "") == before
    else:
        prune_physical(work_on(store, Wrong()))
        assert backups(store)[-1] == made[-1]
        assert set(range(53, 57)) <= set(segments(store))


def test_an_unfinished_run_that_became_a_backup_meanwhile_did_not_go(store: MemoryStore, clock: SteppedClock) -> None:
    """It slept for more than a day, and commits when its intent goes."""
    live_for(store, clock, 2)
    run = BackupId.make(clock.now())
    put_intent(store, run)
    put_packs(store, run, [0])
    objects = put_parts(store, run, {run: (0,)})
    days(clock, 1.01)

    class Waking(WrapperStore):
        def delete(self, keys: Sequence[str]) -> None:
            super().delete(keys)
            if keys == [names.base_key(run, names.BASE_INTENT)]:
                store.put(names.base_key(run, names.BASE_SUMMARY), encode(summary_of(store, run, objects)))

    planned = next(item for item in plan_physical_prune(work_on(store, clock)).items if item.backup_id == run)
    assert (planned.kind, planned.keep) == ("unfinished", False)
    told: list[Event] = []
    done = prune_physical(replace(work_on(Waking(store), clock), emit=told.append))
    assert run in backups(store)
    assert [item.keep for item in done.items if item.backup_id == run] == [True]
    assert done.going == ()
    (ended,) = [event.text for event in told if isinstance(event, StepDone) and event.step == "prune base backups"]
    assert ended.startswith("0 base backups removed;")


def test_an_unfinished_run_is_no_base_backup_where_it_is_counted(store: MemoryStore, clock: SteppedClock) -> None:
    live_for(store, clock, 2)
    put_intent(store, BackupId.make(clock.now()))
    days(clock, 1.01)
    work = work_on(store, clock)
    assert show_prune.question(plan_prune(work), plan_physical_prune(work)) == "Remove 1 of 1 unfinished run?"
    told: list[Event] = []
    prune_physical(replace(work, emit=told.append))
    (ended,) = [event.text for event in told if isinstance(event, StepDone) and event.step == "prune base backups"]
    assert ended.startswith("0 base backups, 1 unfinished run removed;")


def test_claims_alone_are_something_to_remove(store: MemoryStore, clock: SteppedClock) -> None:
    """A prune was killed between objects and claims: the next one asks before it goes on."""

    class Keeping(WrapperStore):
        def delete(self, keys: Sequence[str]) -> None:
            super().delete([key for key in keys if not key.endswith(names.CLAIM)])

    live_for(store, clock, 14)
    prune_physical(work_on(Keeping(store), clock))
    plan = plan_physical_prune(work_on(store, clock))
    assert (plan.going, plan.doomed, plan.freed, plan.wal.segments) == ((), 0, Freed(), 0)
    assert [(each.first.number, each.last.number) for each in plan.wal.ranges] == [(1, 20)]
    assert plan.changes
    assert show_prune.question(plan_prune(work_on(store, clock)), plan) == "Remove what is left of WAL that went?"


class StoppedError(Exception):
    """The process died there."""


class Dying(WrapperStore):
    """Dies before its call number *at* that changes anything below what prune removes."""

    def __init__(self, inner: Store, at: int) -> None:
        super().__init__(inner)
        self.calls, self._at = 0, at

    def _count(self, keys: Sequence[str]) -> None:
        if not all(key.startswith("locks/") for key in keys):
            self.calls += 1
            if self.calls == self._at:
                raise StoppedError

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        self._count([key])
        super().put(key, data, create=create)

    def delete(self, keys: Sequence[str]) -> None:
        self._count(keys)
        super().delete(keys)


@pytest.mark.rule(75)
@pytest.mark.no_cover
def test_killed_at_every_call_that_changes_something(store: MemoryStore, clock: SteppedClock) -> None:
    """Whenever it dies, every committed backup has its packs and WAL; a rerun comes to the same end."""

    def world() -> tuple[MemoryStore, SteppedClock]:
        clock = SteppedClock()
        store = make_repository(clock)
        live_for(store, clock, 11)
        prune_physical(work_on(store, clock))
        days(clock, 1.01)
        return store, clock

    def check_whole(store: Store) -> None:
        there = list_packs(store)
        for backup_id in backups(store):
            summary = read_base_summary(store, backup_id)
            assert {pack for pack, _ in needed_packs(read_packs(store, summary))} <= set(there)
            assert Segment.parse(summary.first_segment, SIZE).number in segments(store)

    store, clock = world()
    counting = Dying(store, 0)
    prune_physical(work_on(counting, clock))
    end = (len(backups(store)), segments(store), len(list_packs(store)))
    for at in chosen(range(1, counting.calls + 1), 12):
        store, clock = world()
        with pytest.raises(StoppedError):
            prune_physical(work_on(Dying(store, at), clock))
        check_whole(store)
        prune_physical(work_on(store, clock))
        check_whole(store)
        assert (len(backups(store)), segments(store)) == end[:2]
        days(clock, 1.01)
        prune_physical(work_on(store, clock))
        assert len(list_packs(store)) <= end[2]


# -- a window that falls


def with_window(work: Work, days_: int, told: list[str] | None = None) -> Work:
    emit = ignore if told is None else lambda event: told.append(event.text) if isinstance(event, Warned) else None
    return replace(work, settings=replace(work.settings, pitr_window_days=days_), emit=emit)


def test_a_window_that_falls_is_announced_before_anything_goes(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    work = work_on(store, clock)
    prune_physical(work)
    before = all_but_locks(store)
    told: list[str] = []
    fallen = with_window(work, 3, told)
    assert (plan_physical_prune(fallen).going, plan_physical_prune(fallen).announced) == ((), tuple(made[5:9]))
    first = prune_physical(fallen)
    assert first.announced == tuple(made[5:9])
    assert (first.going, first.window_days, all_but_locks(store)) == ((), 7, before)
    (said,) = told
    assert said.startswith("PITR_WINDOW_DAYS fell from 7 to 3: the next prune removes 4 more base backups (")
    assert said.endswith(f"{made[8]}) and WAL")
    second = prune_physical(fallen)
    assert (len(second.going), second.announced, second.window_days, len(told)) == (4, (), 3, 1)
    assert backups(store) == made[9:]


def test_a_fallen_window_that_is_set_back_takes_nothing(store: MemoryStore, clock: SteppedClock) -> None:
    live_for(store, clock, 14)
    work = work_on(store, clock)
    prune_physical(work)
    before = all_but_locks(store)
    prune_physical(with_window(work, 3))
    prune_physical(work)
    assert all_but_locks(store) == before
    assert prune_physical(with_window(work, 3)).announced, "it fell once more"


def test_what_cannot_be_read_does_not_count_as_announced(store: MemoryStore, clock: SteppedClock) -> None:
    live_for(store, clock, 14)
    work = work_on(store, clock)
    prune_physical(work)
    key = break_snapshot(store)
    prune_physical(with_window(work, 3))
    store.delete([key])
    assert prune_physical(with_window(work, 3)).going == (), "announced now, with all that is known"
    assert prune_physical(with_window(work, 3)).going


def test_a_prune_of_dumps_keeps_what_was_noted_of_the_window(store: MemoryStore, clock: SteppedClock) -> None:
    live_for(store, clock, 14)
    work = work_on(store, clock)
    prune_physical(work)
    with take_lease(work, DUMP_LEASE, "prune") as lease:
        execute_prune(work, plan_prune(work), lease)
    assert prune_physical(with_window(work, 3)).going == ()


def test_no_prune_where_what_the_last_one_left_is_damaged(store: MemoryStore, clock: SteppedClock) -> None:
    live_for(store, clock, 14)
    store.put(RETENTION, b"{")
    before = all_but_locks(store)
    with pytest.raises(IntegrityError, match="no prune runs until it is removed"):
        prune_physical(work_on(store, clock))
    assert all_but_locks(store) == before
