"""Plans that go by what a good prune must not go by: the proof refuses each, over a repository made of a few bytes."""

from datetime import timedelta
from typing import Any

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import VerifyMark
from clipper_backup.format.documents import encode
from clipper_backup.repository.proof.check import Promises, Proof, permitted, prove
from clipper_backup.repository.proof.documents import Trust
from clipper_backup.repository.proof.dumps import DumpPromise
from clipper_backup.repository.proof.numbers import Ranges
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, Timeline
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
    put_parts,
    put_segments,
)
from fixtures.catalog import make_dump, put_report
from fixtures.clocks import START
from fixtures.newer import change_summary

PROMISES = Promises(7, DumpPromise(30, 2), Trust(REPOSITORY_ID))
NEWER = b'{"schema": 99}'


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START)


@pytest.fixture
def store(clock: VirtualClock) -> MemoryStore:
    return make_repository(clock)


@pytest.fixture
def made(store: MemoryStore, clock: VirtualClock) -> list[BackupId]:
    """Fourteen days, each a backup (of the segments 1, 5, 9 …) and three segments more."""
    return live_for(store, clock, 14)


def proof(store: Store, **removal: Any) -> Proof:
    return prove(store, Removal(segment_bytes={SYSTEM: SIZE}, **removal), PROMISES, now=store.now())


def told(store: Store, **removal: Any) -> str:
    return "\n".join(proof(store, **removal).problems)


def of_wal(first: int, last: int) -> dict[tuple[str, Timeline], Ranges]:
    return {(SYSTEM, Timeline(1)): Ranges([(first, last + 1)])}


def mark_of(store: Store, backup_id: BackupId, *damaged: str, begun_hours_ago: float, ended_hours_ago: float) -> None:
    mark = VerifyMark(
        id=str(backup_id),
        begun_at=store.now() - timedelta(hours=begun_hours_ago),
        verified_at=store.now() - timedelta(hours=ended_hours_ago),
        share=0.1,
        damage=[f"{pack}: torn" for pack in damaged],
    )
    store.put(names.base_key(backup_id, names.VERIFY), encode(mark))


def lose_segment(store: Store, number: int) -> None:
    name = Segment(Timeline(1), number, SIZE).name
    store.delete([names.archive_key(SYSTEM, name, suffix) for suffix in (names.STORED, names.CLAIM)])


def test_as_a_time_map_nothing_else_goes(store: MemoryStore, made: list[BackupId]) -> None:
    put_history(store, 2, [(1, 40 * SIZE + 7)])
    put_segments(store, 40, 44, timeline=2)
    keys = (
        names.history_key(SYSTEM, Timeline(2), names.CLAIM),
        names.archive_key(SYSTEM, Segment(Timeline(1), 50, SIZE).name, names.STORED),
    )
    for key in keys:
        assert f"{key} would go as a time map, and is none" in told(store, maps=frozenset({key}))
        assert not permitted(Removal(maps=frozenset({key})))(key)
    segments = "-".join(Segment(Timeline(1), number, SIZE).name for number in (0, 3))
    key = f"{names.times_folder(SYSTEM, Timeline(1))}{segments}-{7:016X}.zst"
    proof(store, maps=frozenset({key})).refuse()
    assert permitted(Removal(maps=frozenset({key})))(key)


def test_where_the_entry_of_a_system_is_lost_nothing_of_it_goes(store: MemoryStore, made: list[BackupId]) -> None:
    store.delete([names.system_key(1)])
    assert f"{names.system_key(1)} of the base backup {made[0]}" in told(store, backups=frozenset(made[:1]))
    assert f"the system {SYSTEM} has no entry in systems/: nobody knows which WAL is needed" in told(store, wal=of_wal(1, 4))


@pytest.mark.rule(9)
def test_segments_of_another_size_are_no_segments(store: MemoryStore, made: list[BackupId]) -> None:
    wrong = Removal(segment_bytes={SYSTEM: 16 * SIZE}, wal=of_wal(1 << 20, 1 << 20))
    found = prove(store, wrong, PROMISES, now=store.now())
    assert any("in segments of another size: nobody knows which WAL is needed" in each for each in found.problems)


@pytest.mark.rule(74)
def test_what_a_newer_version_took_stays_and_makes_no_good_one_go(
    store: MemoryStore, clock: VirtualClock, made: list[BackupId]
) -> None:
    change_summary(store, made[2], source="snapshot")
    assert f"a newer version of clipper-backup took {made[2]}" in told(store, backups=frozenset(made[2:3]))
    days(clock, 10)
    newest = put_backup(store, start=57, wal=True)
    change_summary(store, newest, source="snapshot")
    days(clock, 20)
    problems = told(store, backups=frozenset([*made[:2], *made[3:]]))
    assert f"the newest good base backup {made[-1]} would go" in problems
    assert proof(store).backups == 13


def test_what_a_newer_version_looked_at_stays_finished_or_not(store: MemoryStore, made: list[BackupId]) -> None:
    left = BackupId.make(made[2].at)
    put_parts(store, left, {made[2]: (0,)})
    for backup_id in (left, made[2]):
        proof(store, backups=frozenset({backup_id})).refuse()
        store.put(names.base_key(backup_id, names.VERIFY), NEWER)
        assert f"took {backup_id}, or looked at it last" in told(store, backups=frozenset({backup_id}))
    assert proof(store).backups == 13


@pytest.mark.rule(43)
def test_damage_that_stands_beside_an_unfinished_one_counts(
    store: MemoryStore, clock: VirtualClock, made: list[BackupId]
) -> None:
    days(clock, 20)
    proof(store, backups=frozenset(made[:13])).refuse()
    left = BackupId.make(clock.now())
    put_parts(store, left, {made[13]: (0,)})
    mark_of(store, left, names.pack_key(made[13], 0), begun_hours_ago=2, ended_hours_ago=1)
    assert f"the newest good base backup {made[12]} would go" in told(store, backups=frozenset(made[:13]))


@pytest.mark.rule(43)
def test_what_another_verify_found_while_the_own_one_ran_counts(
    store: MemoryStore, clock: VirtualClock, made: list[BackupId]
) -> None:
    days(clock, 20)
    mark_of(store, made[13], begun_hours_ago=3, ended_hours_ago=0)
    mark_of(store, made[11], names.pack_key(made[13], 0), begun_hours_ago=3, ended_hours_ago=1)
    assert f"the newest good base backup {made[12]} would go" in told(store, backups=frozenset(made[:13]))
    mark_of(store, made[13], begun_hours_ago=0.5, ended_hours_ago=0)
    proof(store, backups=frozenset(made[:13])).refuse()


def test_a_summary_that_cannot_be_read_may_need_any_wal(store: MemoryStore, made: list[BackupId]) -> None:
    proof(store, wal=of_wal(2, 4)).refuse()
    put_hold(store, made[0])
    store.put(names.base_key(made[0], names.BASE_SUMMARY), NEWER)
    problems = told(store, wal=of_wal(1, 4))
    assert f"{names.base_key(made[0], names.BASE_SUMMARY)} was written by a newer version" in problems
    assert "nobody knows which WAL is needed" in problems


@pytest.mark.rule(74)
def test_the_newest_backup_that_has_its_wal_stays(store: MemoryStore, clock: VirtualClock, made: list[BackupId]) -> None:
    days(clock, 60)
    going: dict[str, Any] = {"backups": frozenset(made[:13]), "wal": of_wal(1, 52)}
    proof(store, **going).refuse()
    lose_segment(store, 53)
    problems = told(store, **going)
    assert f"{made[12]}, the newest good base backup that has its WAL, would go" in problems
    assert "needs it" in problems
    proof(store, backups=frozenset(made[:12]), wal=of_wal(1, 48)).refuse()


@pytest.mark.rule(74)
def test_a_dump_in_which_verify_found_damage_makes_no_good_one_go(store: MemoryStore, clock: VirtualClock) -> None:
    dumps = []
    for _ in range(4):
        dumps.append(make_dump(store))
        days(clock, 1)
    days(clock, 60)
    proof(store, dumps=frozenset(dumps[:2])).refuse()
    put_report(store, dumps[3])
    problems = told(store, dumps=frozenset(dumps[:2]))
    assert f"{dumps[1]} is one of the 2 newest good dumps" in problems
    assert f"{dumps[3]} is damaged: a person must decide" in told(store, dumps=frozenset(dumps[3:]))
    proof(store, dumps=frozenset(dumps[:1])).refuse()
    for unknown in (b"{", NEWER):
        store.put(names.VERIFY_REPORT, unknown)
        proof(store, dumps=frozenset(dumps[:2])).refuse()
