"""What a newer version may have put beside a base backup: it is no damage, nothing of it is lost, and prune does its work."""

import json
from typing import Any

import pytest

from clipper_backup.errors import IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import VerifyMark
from clipper_backup.format.documents import NewerError, encode
from clipper_backup.ops.base.delete import delete_base
from clipper_backup.ops.base.read import base_catalog, base_summary
from clipper_backup.ops.physical_plan import plan_physical_prune
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import BaseEntry
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId
from fixtures.base_repository import (
    days,
    keys_below,
    live_for,
    make_repository,
    put_backup,
    put_intent,
    put_parts,
    put_segments,
    work_on,
)
from fixtures.clocks import SteppedClock
from fixtures.newer import change_summary, object_of

VALIDATION = "validation-1.json.zst.age"


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def store(clock: SteppedClock) -> MemoryStore:
    return make_repository(clock)


def entry_of(work: Work, backup_id: BackupId) -> BaseEntry:
    return next(shown.entry for shown in base_catalog(work) if shown.entry.listed.backup_id == backup_id)


def put_validated(store: Store) -> BackupId:
    """A backup with two objects of a role that this version does not know."""
    backup_id = put_backup(store, wal=True)
    for part in (VALIDATION, "validation-2"):
        store.put(names.base_key(backup_id, part), b"answers")
    more = [object_of(backup_id, VALIDATION), object_of(backup_id, "validation-2")]
    change_summary(store, backup_id, more_objects=more)
    return backup_id


def test_an_object_of_an_unknown_role_is_needed_and_otherwise_ignored(store: MemoryStore, clock: SteppedClock) -> None:
    backup_id = put_validated(store)
    work = work_on(store, clock)
    assert entry_of(work, backup_id).good
    store.put(names.base_key(backup_id, VALIDATION), b"cut")
    problem = entry_of(work, backup_id).problem
    assert problem == f"base/{backup_id}/{VALIDATION} has 3 bytes, 7 were committed"
    store.delete([names.base_key(backup_id, VALIDATION)])
    assert f"{VALIDATION} is missing" in str(entry_of(work, backup_id).problem)


def test_it_is_removed_with_its_backup(store: MemoryStore, clock: SteppedClock) -> None:
    backup_id = put_validated(store)
    store.put(f"base/{backup_id}/Notours.txt", b"x")
    days(clock, 1)
    put_backup(store, start=3, wal=True)
    delete_base(work_on(store, clock), backup_id)
    assert keys_below(store, f"base/{backup_id}/") == {f"base/{backup_id}/Notours.txt"}


@pytest.mark.parametrize(
    "other",
    [
        {"part": names.VERIFY},
        {"part": names.BASE_INTENT},
        {"part": names.TABLESPACE_MAP},
        {"part": "another", "role": "tablespace_map"},
        {"part": "another", "role": "packs"},
        {"part": names.MANIFEST},
        {"part": "Another"},
        {"part": "a/nother"},
        {"part": "another", "role": "Validation"},
        {"part": "another", "role": "validation\n"},
        {"part": "another", "role": ""},
    ],
    ids=str,
)
def test_what_can_be_no_object_of_a_backup_is_damage(store: MemoryStore, clock: SteppedClock, other: dict[str, Any]) -> None:
    backup_id = put_backup(store, wal=True)
    change_summary(store, backup_id, more_objects=[object_of(backup_id, **other)])
    with pytest.raises(IntegrityError, match="is damaged"):
        base_summary(work_on(store, clock), backup_id)


def test_an_object_of_another_backup_or_one_that_stands_there_twice_is_damage(store: MemoryStore, clock: SteppedClock) -> None:
    first, second = put_backup(store, wal=True), put_backup(store, wal=True)
    change_summary(store, first, more_objects=[object_of(second, VALIDATION)])
    change_summary(store, second, more_objects=[object_of(second, VALIDATION)] * 2)
    for backup_id in (first, second):
        with pytest.raises(IntegrityError, match="is damaged"):
            base_summary(work_on(store, clock), backup_id)


@pytest.mark.parametrize("part", [names.MANIFEST, names.BASE_DETAILS, names.PACKS, names.LABEL, names.SERVER_MANIFEST])
def test_a_part_that_is_needed_is_needed(store: MemoryStore, clock: SteppedClock, part: str) -> None:
    backup_id = put_backup(store, wal=True)
    key = names.base_key(backup_id, part)
    document = json.loads(store.get(names.base_key(backup_id, names.BASE_SUMMARY)))
    change_summary(store, backup_id, objects=[each for each in document["objects"] if each["key"] != key])
    with pytest.raises(IntegrityError, match="one object of each role"):
        base_summary(work_on(store, clock), backup_id)


def test_an_unknown_source_is_no_damage_and_stays_with_its_packs_and_wal(store: MemoryStore, clock: SteppedClock) -> None:
    """The others are pruned as ever: what such a backup needs is known without knowing how it was taken."""
    made = []
    for day in range(14):
        made.append(put_backup(store, start=1 + 4 * day, wal=True))
        put_segments(store, 2 + 4 * day, 4 + 4 * day)
        days(clock, 1)
    change_summary(store, made[2], source="snapshot")
    work = work_on(store, clock)
    with pytest.raises(
        NewerError, match=rf"base/{made[2]}/backup\.json was written by a newer version \(the source 'snapshot'\)"
    ):
        base_summary(work, made[2])
    entry = entry_of(work, made[2])
    assert (entry.good, entry.unreadable) == (False, True)
    done = prune_physical(work)
    assert [going.backup_id for going in done.going] == [made[0], made[1], made[3], made[4]]
    assert {item.backup_id: item.reason for item in done.items}[made[2]] == "a newer version of clipper-backup took it"
    kept = sorted(int(key.rpartition("/")[2][16:24], 16) for key in keys_below(store, "wal/") if key.endswith(names.CLAIM))
    assert kept == [9, *range(21, 57)]
    days(clock, 1.1)
    prune_physical(work)
    assert keys_below(store, f"packs/{made[2]}/")
    assert not keys_below(store, f"packs/{made[3]}/")


def left_by_a_dead_run(store: MemoryStore, clock: SteppedClock, packs: dict[BackupId, tuple[int, ...]]) -> BackupId:
    run = BackupId.make(clock.now())
    put_intent(store, run)
    put_parts(store, run, packs)
    return run


def test_what_a_newer_version_found_in_a_dead_run_stays_and_prune_goes_on(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    left, other = left_by_a_dead_run(store, clock, {made[0]: (0,)}), left_by_a_dead_run(store, clock, {})
    key = names.base_key(left, names.VERIFY)
    store.put(key, b'{"schema": 99}')
    days(clock, 1.1)
    of_left = keys_below(store, f"base/{left}/")
    planned, done = plan_physical_prune(work_on(store, clock)), prune_physical(work_on(store, clock))
    assert planned.items == done.items
    reason = {item.backup_id: item.reason for item in done.items}[left]
    assert (
        reason
        == f"what was found in {left} is not known here: {key} was written by a newer version (schema 99, this one reads up to 1)"
    )
    assert [going.backup_id for going in done.going] == [*made[:7], other]
    assert (keys_below(store, f"base/{left}/"), keys_below(store, f"base/{other}/")) == (of_left, set())
    days(clock, 1.1)
    prune_physical(work_on(store, clock))
    assert keys_below(store, f"packs/{made[0]}/") == {names.pack_key(made[0], 0)}, "what is left of it names that one"


def test_what_lost_a_part_and_was_looked_at_by_a_newer_version_stays(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    store.put(names.base_key(made[1], names.VERIFY), b'{"schema": 99}')
    store.delete([names.base_key(made[1], names.LABEL)])
    done = prune_physical(work_on(store, clock))
    assert [going.backup_id for going in done.going] == [made[0], *made[2:5]]


def test_what_cannot_be_written_beside_a_newer_mark_stays_with_who_found_it(store: MemoryStore, clock: SteppedClock) -> None:
    made = live_for(store, clock, 14)
    store.put(names.base_key(made[6], names.VERIFY), b'{"schema": 99}')
    pack = names.pack_key(made[5], 0)
    mark = VerifyMark(id=str(made[1]), verified_at=clock.now(), share=1, damage=[f"{pack}: torn"])
    store.put(names.base_key(made[1], names.VERIFY), encode(mark))
    done = prune_physical(work_on(store, clock))
    kept = {item.backup_id: item.reason for item in done.items if item.keep}
    assert kept[made[1]].startswith(f"what was found in {made[6]} is not known here")
    assert [going.backup_id for going in done.going] == [made[0], *made[2:4], made[5]], "the window begins with a good one"


def test_it_never_makes_a_good_one_go(store: MemoryStore, clock: SteppedClock) -> None:
    good = put_backup(store, wal=True)
    days(clock, 10)
    newer = put_backup(store, start=5, wal=True)
    change_summary(store, newer, source="snapshot")
    days(clock, 20)
    assert not prune_physical(work_on(store, clock)).going
    assert {good, newer} == {shown.entry.listed.backup_id for shown in base_catalog(work_on(store, clock))}
