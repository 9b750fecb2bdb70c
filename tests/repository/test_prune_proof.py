"""The proof of a prune over a repository made of a few bytes: each thing that is promised, and a plan that would take it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import IntegrityError, ObjectMissingError, StoreUnavailableError, UsageError
from clipper_backup.format import names as dump_names
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import PruneRecord, SnapshotRecord, VerifyMark
from clipper_backup.format.documents import HoldMark, RetentionMark, encode
from clipper_backup.repository.proof.check import Promises, Proof, permitted, prove
from clipper_backup.repository.proof.documents import Trust
from clipper_backup.repository.proof.dumps import DumpPromise, check_dumps, read_dumps
from clipper_backup.repository.proof.numbers import END, Ranges
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.metering import MeteringStore
from clipper_backup.store.permitting import PermittingStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.without import WithoutStore
from clipper_backup.values import BackupId, DumpId, Timeline
from clipper_backup.wal_names import Segment
from fixtures.base_repository import (
    REPOSITORY_ID,
    SIZE,
    SYSTEM,
    days,
    live_for,
    make_repository,
    put_backup,
    put_history,
    put_hold,
    put_intent,
    put_packs,
    put_segments,
    put_started,
)
from fixtures.catalog import make_dump, make_unfinished
from fixtures.clocks import START

PROMISES = Promises(7, DumpPromise(30, 3), Trust(REPOSITORY_ID))
ONE = (SYSTEM, Timeline(1))


@pytest.fixture
def store(clock: VirtualClock) -> MemoryStore:
    return make_repository(clock)


@pytest.fixture
def made(store: MemoryStore, clock: VirtualClock) -> list[BackupId]:
    """Fourteen days, each a backup (of the segments 1, 5, 9 …) and three segments more; pages of the day before are adopted."""
    return live_for(store, clock, 14)


def proof(store: Store, promises: Promises = PROMISES, /, **removal: Any) -> Proof:
    return prove(store, Removal(segment_bytes={SYSTEM: SIZE}, **removal), promises, now=store.now())


def of_wal(first: int, last: int, of: tuple[str, Timeline] = ONE) -> dict[tuple[str, Timeline], Ranges]:
    return {of: Ranges([(first, last + 1)])}


def told(found: Proof) -> str:
    with pytest.raises(IntegrityError, match="the prune would take what is promised") as refused:
        found.refuse()
    assert refused.value.exit_code == 13
    return "\n".join(found.problems)


# -- what may go


def test_what_the_window_needs_no_more_may_go(store: MemoryStore, made: list[BackupId]) -> None:
    found = proof(store, backups=frozenset(made[:5]), wal=of_wal(1, 20))
    found.refuse()
    (window,) = found.windows
    assert window.before is not None
    assert window.after is not None
    assert (window.before.backup, window.after.backup) == (made[0], made[5])
    assert (window.before.since, window.after.since) == (made[0].at, made[5].at)
    assert window.before.to_lsn == window.after.to_lsn == 57 * SIZE
    assert window.after.until == made[13].at
    assert found.backups == 9


def test_nothing_is_taken_from_nothing(clock: VirtualClock) -> None:
    assert proof(make_repository(clock)) == Proof()


# -- instants


def test_the_last_instant_of_each_of_the_last_segments(store: MemoryStore, made: list[BackupId]) -> None:
    problems = told(proof(store, wal=of_wal(56, 56)))
    assert "the instants from 0/3800001 to 0/3900000" in problems
    assert f"written since {made[13].at:%Y-%m-%d %H:%M:%SZ} until" in problems


def test_a_hole_in_the_window_names_the_instants_behind_it(store: MemoryStore, made: list[BackupId]) -> None:
    problems = told(proof(store, wal=of_wal(46, 46)))
    assert "on timeline 1 of system 7711155930822877805 the instants from 0/2E00001 to 0/3" in problems
    assert "could not be restored any more" not in told(proof(store, wal=of_wal(21, 21))), "it is the anchor's own"


def test_the_window_begins_with_a_backup_before_it(store: MemoryStore, made: list[BackupId]) -> None:
    """The newest that ended before; the one that ended on the day of grace may go by this proof, not by the plan."""
    assert f"needs the base backup {made[6]}, and it would go" in told(proof(store, backups=frozenset(made[:7])))


def test_the_state_of_an_idle_server_is_an_instant_of_the_window(
    store: MemoryStore, clock: VirtualClock, made: list[BackupId]
) -> None:
    days(clock, 60)
    proof(store, backups=frozenset(made[:13]), wal=of_wal(1, 52)).refuse()
    problems = told(proof(store, wal=of_wal(56, 56)))
    assert "the instant 0/3900000, the last that was written, could not be restored any more" in problems


def test_a_line_that_was_left_counts_for_its_instants_in_the_window(store: MemoryStore, clock: VirtualClock) -> None:
    live_for(store, clock, 12)
    put_history(store, 2, [(1, 40 * SIZE + 7)])
    put_segments(store, 40, 40, timeline=2)
    new = live_for(store, clock, 5, first=41, timeline=2)
    assert "on timeline 1" in told(proof(store, wal=of_wal(46, 48)))
    days(clock, 3.5)
    proof(store, wal=of_wal(46, 48)).refuse()
    problems = told(proof(store, wal=of_wal(38, 39), backups=frozenset(new[:2])))
    assert f"the window of timeline 2 of system {SYSTEM}" in problems


def test_what_was_written_within_the_window_stays_whoever_needs_it(
    store: MemoryStore, clock: VirtualClock, made: list[BackupId]
) -> None:
    put_segments(store, 0, 0)
    assert "000000010000000000000000 would go, and was written within the window" in told(proof(store, wal=of_wal(0, 0)))
    days(clock, 7.1)
    proof(store, wal=of_wal(0, 0)).refuse()


def test_a_window_that_fell_counts_from_the_next_prune_on(store: MemoryStore, made: list[BackupId]) -> None:
    fallen = Promises(3, PROMISES.dumps, PROMISES.trust)
    going: dict[str, Any] = {"backups": frozenset(made[:9]), "wal": of_wal(1, 36)}
    proof(store, fallen, **going).refuse()
    store.put(dump_names.RETENTION, encode(RetentionMark(retention_days=30, pruned_at=store.now(), pitr_window_days=7)))
    told(proof(store, fallen, **going))
    store.put(dump_names.RETENTION, b"{")
    assert "nobody knows what the last prune announced" in told(proof(store, fallen))


# -- backups, packs, runs


def test_a_pack_that_a_remaining_backup_names(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    doom(store, clock, made[8], 0)
    problems = told(proof(store, packs={made[8]: Ranges.of([0])}))
    assert f"the base backup {made[8]}, which stays, would lack {names.pack_key(made[8], 0)}" in problems
    assert f"and the base backup {made[8]} needs them" in problems


def doom(store: Store, clock: VirtualClock, run: BackupId, *numbers: int, keys: bool = False, age: float = 1.01) -> BackupId:
    prune_id = BackupId.make(store.now())
    record = PruneRecord(
        id=str(prune_id),
        doomed_at=store.now(),
        packs={str(run): [(number, number) for number in numbers]},
        keys=[str(run)] if keys else [],
    )
    store.put(names.prune_key(prune_id), encode(record))
    days(clock, age)
    return prune_id


def test_packs_go_when_they_were_announced_a_day_ago(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    dead = BackupId.make(clock.now())
    put_packs(store, dead, [0, 1], key=True)
    assert "that no prune announced a day ago" in told(proof(store, packs={dead: Ranges.of([0, 1])}))
    record = doom(store, clock, dead, 0, 1, keys=True, age=0.9)
    going: dict[str, Any] = {"packs": {dead: Ranges.of([0, 1])}, "data_keys": frozenset({dead}), "records": frozenset({record})}
    problems = told(proof(store, **going))
    for what in ("that no prune announced a day ago", "and no prune announced it a day ago", "is younger than a day"):
        assert what in problems
    days(clock, 0.2)
    proof(store, **going).refuse()
    assert "without it packs of that run cannot be opened" in told(proof(store, data_keys=frozenset({dead})))


def test_what_a_live_run_owns_or_takes_pages_from(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    run = BackupId.make(clock.now())
    put_packs(store, run, [0])
    doom(store, clock, run, 0)
    put_intent(store, run, [made[0]])
    put_started(store, run, 3)
    assert f"the run {run}, which lives, needs them" in told(proof(store, packs={run: Ranges.of([0])}))
    assert "be announced as not needed" in told(proof(store, announced={run: Ranges.of([0])}))
    assert f"the run {run} takes pages from {made[0]}" in told(proof(store, backups=frozenset({made[0]})))
    assert f"{run} is being written" in told(proof(store, backups=frozenset({run})))
    proof(store, summaries=frozenset({made[0]})).refuse()
    assert f"the run {run} needs it" in told(proof(store, wal=of_wal(4, 4)))
    days(clock, 1.01)
    proof(store, backups=frozenset({run}), packs={run: Ranges.of([0])}).refuse()


def test_a_key_that_a_remaining_backup_needs(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    run = made[-1]
    put_packs(store, run, [], key=True)
    doom(store, clock, run, keys=True)
    assert "cannot be opened" in told(proof(store, data_keys=frozenset({run})))


@pytest.mark.rule(74)
def test_the_newest_good_backup_and_what_no_good_one_follows(store: MemoryStore, clock: VirtualClock) -> None:
    good = put_backup(store, wal=True)
    days(clock, 20)
    bad = put_backup(store, start=5, wal=True, damaged=1)
    days(clock, 20)
    problems = told(proof(store, backups=frozenset({good})))
    assert f"the newest good base backup {good} would go" in problems
    assert f"no newer good base backup than {bad} would remain" in told(proof(store, backups=frozenset({bad})))


def test_one_that_ended_within_the_window_stays_good_or_not(store: MemoryStore, clock: VirtualClock) -> None:
    put_backup(store, wal=True)
    days(clock, 10)
    bad = put_backup(store, start=5, wal=True, damaged=1)
    days(clock, 1)
    put_backup(store, start=9, wal=True)
    assert f"the base backup {bad} ended at {bad.at:%Y-%m-%d %H:%M:%SZ}, within the window" in told(
        proof(store, backups=frozenset({bad}))
    )
    days(clock, 7)
    proof(store, backups=frozenset({bad})).refuse()


@pytest.mark.rule(43)
def test_a_backup_with_damaged_pages_makes_no_good_one_go(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    mark = VerifyMark(id=str(made[5]), verified_at=clock.now(), share=1, damage=[f"{names.pack_key(made[5], 1)}: torn"])
    proof(store, backups=frozenset(made[:5])).refuse()
    store.put(names.base_key(made[5], names.VERIFY), encode(mark))
    proof(store, backups=frozenset(made[:5])).refuse()
    days(clock, -0.9)
    store.put(names.base_key(made[6], names.VERIFY), encode(mark))
    problems = told(proof(store, backups=frozenset(made[:5])))
    assert "could not be restored any more" in problems or f"needs the base backup {made[4]}" in problems


@pytest.mark.rule(77)
def test_held_ones_and_the_wal_that_a_hold_names(store: MemoryStore, made: list[BackupId]) -> None:
    put_hold(store, made[0], ("00000001", "0/380000"))
    assert f"the base backup {made[0]} is held" in told(proof(store, backups=frozenset({made[0]})))
    assert f"the hold on {made[0]} needs it" in told(proof(store, wal=of_wal(3, 3)))
    proof(store, backups=frozenset(made[1:5]), wal=of_wal(4, 20)).refuse()


def test_a_snapshots_wal(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    record = SnapshotRecord(system_id=SYSTEM, timeline=1, start_lsn="0/200000", stop_lsn="0/400000", taken_at=clock.now())
    store.put(f"{names.SNAPSHOTS_FOLDER}nightly.json", encode(record))
    assert "snapshots/nightly.json needs it" in told(proof(store, backups=frozenset(made[:5]), wal=of_wal(1, 20)))


def test_part_of_a_backup_is_no_backup(store: MemoryStore, made: list[BackupId]) -> None:
    """What names goes before what is named: who removes only what is named leaves a dangling reference."""
    lost = WithoutStore(store, lambda key: key == names.base_key(made[9], names.LABEL))
    found = prove(lost, Removal(), PROMISES, now=store.now())
    assert found.problems == (), "it was so before"
    assert found.incomplete == (f"{made[9]} lacks {names.base_key(made[9], names.LABEL)}",)
    assert found.backups == 13


# -- what nobody can read


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (lambda made: names.base_key(made[-1], names.PACKS), "nobody knows which packs"),
        (lambda made: names.base_key(made[-1], names.BASE_SUMMARY), "nobody knows which packs"),
        (lambda made: names.base_hold_key(made[3]), "nobody knows which WAL"),
        (lambda _: f"{names.SNAPSHOTS_FOLDER}nightly.json", "nobody knows which WAL"),
        (lambda _: names.system_key(1), "nobody knows which base backup"),
        (lambda _: names.history_key(SYSTEM, Timeline(2), names.CLAIM), "nobody knows which base backup"),
        (lambda made: names.prune_key(made[0]), "nobody knows which packs"),
    ],
)
def test_what_cannot_be_read_lets_nothing_go_that_it_could_name(
    store: MemoryStore, made: list[BackupId], key: Callable[[list[BackupId]], str], what: str
) -> None:
    store.put(key(made), b'{"schema": 2}')
    problems = told(proof(store, backups=frozenset({made[0]}), wal=of_wal(1, 4)))
    assert what in problems
    assert key(made) in problems


def test_another_list_of_packs_than_was_committed_is_none(store: MemoryStore, made: list[BackupId]) -> None:
    store.put(names.base_key(made[-1], names.PACKS), store.get(names.base_key(made[0], names.PACKS)))
    assert f"{names.base_key(made[-1], names.PACKS)} is not what was committed" in told(proof(store, backups=frozenset(made[:1])))


def test_a_segment_without_its_claim_does_not_count(store: MemoryStore, made: list[BackupId]) -> None:
    store.delete([names.archive_key(SYSTEM, Segment(Timeline(1), 30, SIZE).name, names.CLAIM)])
    (window,) = proof(store).windows
    assert window.before is not None
    assert window.before.backup == made[8], "the first whose WAL begins behind it"


def test_a_timeline_whose_history_nobody_claimed(store: MemoryStore, made: list[BackupId]) -> None:
    put_segments(store, 9, 9, timeline=2)
    assert "nobody has claimed the history of timeline 2" in told(proof(store, wal=of_wal(1, 4)))


def test_a_store_that_does_not_answer_is_no_answer(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    for script in ("list:2:unavailable", "get:3:unavailable", "*:5:unavailable"):
        with pytest.raises(StoreUnavailableError):
            proof(FaultyStore(store, script, clock))


# -- dumps


def test_dumps_of_the_last_days_and_the_newest_of_each_database(store: MemoryStore, clock: VirtualClock) -> None:
    old = [make_dump(store, ["gone"])]
    days(clock, 40)
    for _ in range(4):
        old.append(make_dump(store, ["clipper"]))
        days(clock, 1)
    promises = Promises(7, DumpPromise(2, 2), PROMISES.trust)
    proof(store, promises, dumps=frozenset(old[1:2])).refuse()
    assert f"{old[-1]} is the newest good dump" in told(proof(store, promises, dumps=frozenset(old[-1:])))
    assert f"{old[3]} is kept for 2 days" in told(proof(store, promises, dumps=frozenset(old[3:4])))
    assert f"{old[0]} is one of the 2 newest good dumps of 'gone'" in told(proof(store, promises, dumps=frozenset(old[:1])))
    found = proof(store, promises, dumps=frozenset(old[1:2]))
    assert (found.newest_dump, found.dumps) == (old[-1], 4)
    store.put(dump_names.RETENTION, encode(RetentionMark(retention_days=30, pruned_at=clock.now())))
    assert "is kept for 30 days" in told(proof(store, promises, dumps=frozenset(old[1:2]))), (
        "a number that fell is announced first"
    )


def test_held_damaged_and_unfinished_dumps(store: MemoryStore, clock: VirtualClock) -> None:
    held, damaged = make_dump(store), None
    days(clock, 1)
    damaged = make_dump(store)
    days(clock, 40)
    newest = [make_dump(store)]
    for _ in range(2):
        days(clock, 0.1)
        newest.append(make_dump(store))
    unfinished = make_unfinished(store)
    proof(store, dumps=frozenset({held, damaged})).refuse()
    store.put(dump_names.hold_key(held), encode(HoldMark(reason="r", held_by="h", held_at=clock.now())))
    store.delete([dump_names.dump_key(damaged, dump_names.GLOBALS)])
    problems = told(proof(store, dumps=frozenset({held, damaged, unfinished})))
    assert f"{held} is held" in problems
    assert f"{damaged} is damaged: a person must decide" in problems
    assert f"{unfinished} may still be being written" in problems
    days(clock, 1.01)
    proof(store, dumps=frozenset({unfinished})).refuse()
    assert proof(store).newest_dump == newest[-1]


def test_a_dump_goes_whole_or_not_at_all(store: MemoryStore, clock: VirtualClock) -> None:
    dump_id = make_dump(store)
    part = WithoutStore(store, {dump_names.dump_key(dump_id, dump_names.GLOBALS)}.__contains__)
    before, after = read_dumps(store, PROMISES.trust), read_dumps(part, PROMISES.trust)
    found = list(check_dumps(before, after, PROMISES.dumps, clock.now()))
    assert f"{dump_id} would go in part, and what is left of it stand for a dump" in found


def test_signed_ones_alone_count_where_that_is_asked_for(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    dumps = [make_dump(store)]
    days(clock, 40)
    asking = Promises(7, DumpPromise(30, 3), Trust(REPOSITORY_ID, ("clipper-ed25519:" + "A" * 43 + "=",)))
    found = proof(store, asking, dumps=frozenset(dumps))
    assert (found.dumps, found.backups, found.windows) == (0, 0, ())


# -- the stores


def test_nothing_but_what_was_proven_can_be_removed(store: MemoryStore, made: list[BackupId]) -> None:
    removal = Removal(
        backups=frozenset(made[:1]),
        summaries=frozenset(made[1:2]),
        packs={made[0]: Ranges.of([0])},
        wal=of_wal(1, 4),
        segment_bytes={SYSTEM: SIZE},
    )
    through = PermittingStore(store, permitted(removal))
    segment = Segment(Timeline(1), 5, SIZE).name
    for key in (
        names.base_key(made[1], names.PACKS),
        names.base_key(made[2], names.BASE_SUMMARY),
        names.pack_key(made[0], 1),
        names.archive_key(SYSTEM, segment, names.STORED),
        names.history_key(SYSTEM, Timeline(2), names.CLAIM),
        names.system_key(1),
        names.base_hold_key(made[0]),
        names.data_key_key(made[0]),
        names.prune_key(made[0]),
        dump_names.REPOSITORY,
        dump_names.dump_key(DumpId.at_time(START), dump_names.SUMMARY),
        f"{names.SNAPSHOTS_FOLDER}nightly.json",
    ):
        before = store.list("")
        with pytest.raises(IntegrityError, match="nothing showed that it may be"):
            through.delete([names.base_key(made[0], names.BASE_SUMMARY), key])
        assert list(before) == list(store.list(""))
    going = Segment(Timeline(1), 4, SIZE).name
    through.delete([names.base_key(made[0], names.LABEL), names.archive_key(SYSTEM, going, names.CLAIM)])
    through.delete(
        [names.archive_key(SYSTEM, f"{going}.00000028.backup", names.STORED), names.base_key(made[1], names.BASE_SUMMARY)]
    )
    assert list(store.list(f"{names.BASE_FOLDER}{made[1]}/"))


def test_the_view_hides_what_would_go_and_lets_nothing_be_written(store: MemoryStore, made: list[BackupId]) -> None:
    key = names.base_key(made[0], names.LABEL)
    view = WithoutStore(store, {key}.__contains__)
    folder = names.base_key(made[0], "")
    assert {info.key for info in store.list(folder)} - {info.key for info in view.list(folder)} == {key}
    assert [info.key for info in view.take_hidden()] == [key]
    assert list(view.take_hidden()) == []
    for read in (
        lambda: view.get(key),
        lambda: view.head(key),
        lambda: list(view.get_stream(key)),
        lambda: view.get_ranges(key, [(0, 1)]),
    ):
        with pytest.raises(ObjectMissingError):
            read()
    other = names.base_key(made[0], names.MANIFEST)
    assert view.get(other) == b"".join(view.get_stream(other)) == store.get(other)
    assert (view.head(other).key, view.get_ranges(other, [(0, 1)])) == (other, [store.get(other)[:1]])
    for write in (lambda: view.put("x", b""), lambda: view.put_stream("x", [b""]), lambda: view.delete(["x"])):
        with pytest.raises(UsageError, match="this only shows what would remain"):
            write()


def test_it_lists_a_folder_once_however_many_segments_lie_in_it(clock: VirtualClock) -> None:
    """Of 10 million segments of 16 MiB that is one request each for 39,000 folders; no claim of a segment is read."""
    calls = []
    for segments in (10, 1000):
        store = make_repository(clock)
        put_backup(store, start=1, wal=True)
        put_segments(store, 2, segments)
        days(clock, 1)
        metered = MeteringStore(store)
        prove(metered, Removal(), PROMISES, now=store.now())
        calls.append({method: usage.calls for method, usage in metered.usage().items()})
    assert calls[0] == calls[1]
    assert calls[0]["list"] < 20


# -- ranges


def test_ranges() -> None:
    some = Ranges([(5, 7), (1, 3), (6, 9), (4, 4)])
    assert list(some) == [(1, 3), (5, 9)]
    assert (some.first, some.last, 3 in some, 8 in some, some.end_of(2), some.range_of(6)) == (1, 8, False, True, 3, (5, 9))
    assert list(some - Ranges([(2, 6)])) == [(1, 2), (6, 9)]
    assert list(some & Ranges([(0, 2), (8, END)])) == [(1, 2), (8, 9)]
    assert list(some | Ranges.of([3, 4])) == [(1, 9)]
    assert not Ranges() & some
    assert Ranges([(0, END)]) - some == Ranges([(0, 1), (3, 5), (9, END)])
    assert timedelta(0) not in some
