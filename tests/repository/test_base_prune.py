"""What prune removes of base backups, in which order, and what it leaves; made of a few bytes."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import IntegrityError, LeaseLostError, StoreUnavailableError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import PruneRecord
from clipper_backup.format.compression import compress_bytes
from clipper_backup.format.documents import decode, encode
from clipper_backup.repository.base_prune import Freed, delete_doomed, doom, remove_backup, remove_unfinished
from clipper_backup.repository.base_state import read_packs
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures.base_repository import (
    days,
    keys_below,
    packs_document,
    put_backup,
    put_hold,
    put_intent,
    put_packs,
    put_parts,
    summary_of,
)


@pytest.fixture
def store(memory: MemoryStore) -> MemoryStore:
    return memory


def ours() -> None:
    """The lease is."""


def prune(store: Store, going: Iterable[BackupId] = ()) -> Freed:
    for backup_id in going:
        remove_backup(store, backup_id, ours)
    remove_unfinished(store, ours)
    doom(store, ours)
    return delete_doomed(store, ours)


def packs_of(store: Store, run: BackupId) -> set[int]:
    return {pack.number for key in keys_below(store, "packs/") if (pack := names.parse_pack_key(key)) and pack.run == run}


class Deletions(WrapperStore):
    """Notes each call that deletes."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.calls: list[list[str]] = []

    def delete(self, keys: Sequence[str]) -> None:
        self.calls.append(list(keys))
        super().delete(keys)


@pytest.mark.rule(75)
def test_what_names_goes_before_what_is_named(store: MemoryStore, clock: VirtualClock) -> None:
    old = put_backup(store, own=(0, 1))
    days(clock, 1)
    put_backup(store, adopted={old: (1,)})
    noting = Deletions(store)
    assert remove_backup(noting, old, ours)
    assert noting.calls[0] == [names.base_key(old, names.BASE_SUMMARY)]
    assert noting.calls[-1] == [names.base_key(old, names.PACKS)]
    assert keys_below(store, f"base/{old}/") == set()
    assert packs_of(store, old) == {0, 1}, "packs are not removed with their backup"


def test_between_dooming_and_deleting_lies_grace(store: MemoryStore, clock: VirtualClock) -> None:
    old = put_backup(store, own=(0, 1, 2, 5))
    put_packs(store, old, (), key=True)
    days(clock, 1)
    put_backup(store, adopted={old: (1,)})
    assert prune(store, [old]) == Freed(0, 0, 0)
    (key,) = keys_below(store, "prune/")
    record = decode(store.get(key), PruneRecord, key)
    assert record.packs == {str(old): [(0, 0), (2, 2), (5, 5)]}
    assert record.keys == [], "a key is needed for as long as there is a pack of its run"
    days(clock, 0.99)
    assert prune(store) == Freed(0, 0, 0)
    assert keys_below(store, "prune/") == {key}, "what is doomed is not announced again"
    days(clock, 0.02)
    assert prune(store) == Freed(3, 18, 0)
    assert packs_of(store, old) == {1}
    assert keys_below(store, "prune/") == set()


def test_a_key_goes_after_the_last_pack_of_its_run(store: MemoryStore, clock: VirtualClock) -> None:
    old = put_backup(store)
    put_packs(store, old, (), key=True)
    days(clock, 1)
    put_backup(store)
    prune(store, [old])
    days(clock, 1.1)
    assert prune(store) == Freed(1, 6, 0)
    assert keys_below(store, "keys/") == {names.data_key_key(old)}
    prune(store)
    days(clock, 1.1)
    assert prune(store) == Freed(0, 0, 1)


def test_a_doomed_pack_that_is_named_again_stays(store: MemoryStore, clock: VirtualClock) -> None:
    old = put_backup(store, own=(0, 1))
    days(clock, 1)
    prune(store, [old])
    days(clock, 1)
    put_backup(store, adopted={old: (1,)})  # no run does that: it looks at prune/ first
    days(clock, 1)
    assert prune(store).packs == 1
    assert packs_of(store, old) == {1}
    assert keys_below(store, "prune/") == set()


def test_a_held_backup_stays(store: MemoryStore) -> None:
    held = put_backup(store)
    put_hold(store, held)
    before = keys_below(store, "base/")
    assert not remove_backup(store, held, ours)
    assert keys_below(store, "base/") == before


# -- live runs (G3)


def begin_run(store: MemoryStore, parent: BackupId | None = None, packs: Sequence[int] = (0,)) -> BackupId:
    run = BackupId.make(store.now())
    put_intent(store, run, [] if parent is None else [parent])
    put_packs(store, run, packs, key=True)
    return run


def test_a_live_runs_packs_and_its_parents_stay(store: MemoryStore, clock: VirtualClock) -> None:
    parent = put_backup(store)
    days(clock, 1)
    run = begin_run(store, parent)
    prune(store, [parent])
    assert keys_below(store, f"base/{parent}/") == {
        names.base_key(parent, part)
        for part in ("intent.json", "manifest.zst", "details.zst", "backup_label.zst", "backup_manifest.zst", "packs.json.zst")
    }
    assert keys_below(store, "prune/") == set()
    days(clock, 0.9)
    put_intent(store, run, [parent])  # its sign of life
    days(clock, 0.9)
    prune(store)
    assert (packs_of(store, parent), packs_of(store, run)) == ({0}, {0})
    assert keys_below(store, "keys/") == {names.data_key_key(run)}


def test_a_dead_run_is_garbage_intent_first_packs_last(store: MemoryStore, clock: VirtualClock) -> None:
    put_backup(store)
    run = begin_run(store)
    put_parts(store, run, {run: (0,)})
    days(clock, 0.99)
    assert remove_unfinished(store, ours) == []
    days(clock, 0.02)
    noting = Deletions(store)
    assert remove_unfinished(noting, ours) == [run]
    assert noting.calls[0] == [names.base_key(run, names.BASE_INTENT)]
    assert noting.calls[-1] == [names.base_key(run, names.PACKS)]
    prune(store)
    days(clock, 1.1)
    assert prune(store).packs == 1


def test_a_run_that_wakes_after_its_death_and_commits_keeps_what_it_names(store: MemoryStore, clock: VirtualClock) -> None:
    run = begin_run(store)
    objects = put_parts(store, run, {run: (0,)})
    days(clock, 1.1)

    class Waking(WrapperStore):
        """The run puts its backup.json right after its intent went."""

        def delete(self, keys: Sequence[str]) -> None:
            super().delete(keys)
            if keys == [names.base_key(run, names.BASE_INTENT)]:
                store.put(names.base_key(run, names.BASE_SUMMARY), encode(summary_of(store, run, objects)))

    assert remove_unfinished(Waking(store), ours) == []
    assert {part.rpartition("/")[2] for part in keys_below(store, f"base/{run}/")} >= {"backup.json", "packs.json.zst"}


# -- what cannot be read (G2)


def damage_summary(store: MemoryStore, backup_id: BackupId) -> str:
    key = names.base_key(backup_id, names.BASE_SUMMARY)
    store.put(key, b"{")
    return key


def newer_summary(store: MemoryStore, backup_id: BackupId) -> str:
    key = names.base_key(backup_id, names.BASE_SUMMARY)
    store.put(key, store.get(key).replace(b'"schema": 1', b'"schema": 2'))
    return key


def other_packs(store: MemoryStore, backup_id: BackupId) -> str:
    key = names.base_key(backup_id, names.PACKS)

    store.put(key, compress_bytes(encode(packs_document(backup_id, {}))))
    return key


def no_packs(store: MemoryStore, backup_id: BackupId) -> str:
    key = names.base_key(backup_id, names.PACKS)
    store.delete([key])
    return key


def newer_intent(store: MemoryStore, backup_id: BackupId) -> str:
    run = begin_run(store)
    key = names.base_key(run, names.BASE_INTENT)
    store.put(key, store.get(key).replace(b'"schema": 1', b'"schema": 2'))
    return key


def newer_record(store: MemoryStore, backup_id: BackupId) -> str:
    key = names.prune_key(BackupId.make(store.now()))
    store.put(key, b'{"schema": 2}')
    return key


@pytest.mark.parametrize("damage", [damage_summary, newer_summary, other_packs, no_packs, newer_intent, newer_record])
def test_prune_meets_newer_schema(
    store: MemoryStore, clock: VirtualClock, damage: Callable[[MemoryStore, BackupId], str]
) -> None:
    old = put_backup(store, own=(0, 1))
    days(clock, 1)
    other = put_backup(store)
    prune(store, [old])
    days(clock, 1.1)
    put_packs(store, BackupId.make(store.now()), (7,))  # garbage that nobody has announced
    key = damage(store, other)
    before = keys_below(store, "")
    for step in (doom, delete_doomed):
        with pytest.raises(IntegrityError, match="prune removes nothing") as refused:
            step(store, ours)
        assert key in refused.value.message
    assert keys_below(store, "") == before


def test_a_store_that_does_not_answer_is_no_damage(store: MemoryStore) -> None:
    put_backup(store)

    class Silent(WrapperStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:  # noqa: ARG002  the protocol's
            raise StoreUnavailableError("it does not answer")

    with pytest.raises(StoreUnavailableError):
        read_packs(Silent(store), store.now())


def test_a_lost_lease_ends_it_before_the_next_removal(store: MemoryStore, clock: VirtualClock) -> None:
    going = put_backup(store)
    days(clock, 1)
    put_backup(store)

    def lose_after(calls: int) -> Callable[[], None]:
        left: Iterator[None] = iter([None] * calls)

        def check() -> None:
            if next(left, "none") == "none":
                raise LeaseLostError("it went to somebody else")

        return check

    for calls in range(3):
        noting = Deletions(store)
        with pytest.raises(LeaseLostError):
            remove_backup(noting, going, lose_after(calls))
        assert len(noting.calls) == calls
