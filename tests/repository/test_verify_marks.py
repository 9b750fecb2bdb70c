"""What a verify found in a pack outlives the backup beside which it was written, and no run commits what is known to be bad."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec
import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import IntegrityError, StoreUnavailableError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseIntent, VerifyMark
from clipper_backup.format.documents import NewerError, decode, encode
from clipper_backup.repository.base_backups import BaseCatalog, BaseEntry
from clipper_backup.repository.base_prune import remove_backup, remove_unfinished
from clipper_backup.repository.base_run import BaseRun, begin_intent
from clipper_backup.repository.leases import acquire_lease
from clipper_backup.repository.verify_marks import add_damage
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures.base_repository import (
    PARTS,
    REPOSITORY_ID,
    days,
    packs_document,
    put_backup,
    put_packs,
    put_repository,
    summary_of,
)
from fixtures.clocks import SteppedClock


@pytest.fixture
def store(memory: MemoryStore) -> MemoryStore:
    put_repository(memory)
    return memory


def ours() -> None:
    """The lease is."""


def pack_of(run: BackupId, number: int = 0) -> str:
    return names.pack_key(run, number)


def found(
    store: Store, beside: BackupId, *damage: str, share: float = 1, begun_at: datetime | None = None, by_others: bool = False
) -> None:
    """What a verify of now wrote down."""
    now = store.now()
    begun = msgspec.UNSET if by_others else begun_at or now
    mark = VerifyMark(id=str(beside), begun_at=begun, verified_at=now, share=share, damage=[f"{text}: bad" for text in damage])
    store.put(names.base_key(beside, names.VERIFY), encode(mark))


def mark_of(store: Store, backup_id: BackupId) -> VerifyMark:
    return decode(store.get(names.base_key(backup_id, names.VERIFY)), VerifyMark, "x")


def entries(store: Store) -> dict[BackupId, BaseEntry]:
    return {entry.listed.backup_id: entry for entry in BaseCatalog(store, REPOSITORY_ID).entries()}


def good(store: Store) -> set[BackupId]:
    return {backup_id for backup_id, entry in entries(store).items() if entry.good}


def two(store: Store, clock: VirtualClock) -> tuple[BackupId, BackupId]:
    """Two backups, a day apart; the second needs a pack of the first."""
    first = put_backup(store)
    days(clock, 1)
    second = put_backup(store, adopted={first: [0]})
    days(clock, 1)
    return first, second


def test_what_was_found_beside_a_backup_that_is_deleted_stays_known(store: MemoryStore, clock: VirtualClock) -> None:
    first, second = two(store, clock)
    third = put_backup(store)
    found(store, first, pack_of(first), "base/…/manifest.zst")
    assert good(store) == {third}
    assert remove_backup(store, first, ours)
    assert good(store) == {third}
    handed = mark_of(store, second)
    assert (handed.damage, handed.share, handed.begun_at) == ([f"{pack_of(first)}: bad"], 0, msgspec.UNSET)


def test_a_mark_of_a_newer_version_is_left_alone(store: MemoryStore, clock: VirtualClock) -> None:
    """P9: its backup is not good, and not called damaged; the mark is neither replaced nor removed."""
    first, second = two(store, clock)
    key = names.base_key(first, names.VERIFY)
    mark = json.dumps({"schema": 2, "id": str(first), "found": [pack_of(first)]}).encode()
    store.put(key, mark)
    entry = entries(store)[first]
    assert (entry.good, entry.unreadable, entry.verified) == (False, True, None)
    assert entry.problem == f"{key} was written by a newer version (schema 2, this one reads up to 1)"
    found(store, second, pack_of(first))
    changes: list[Callable[[], object]] = [
        lambda: remove_backup(store, first, ours),
        lambda: add_damage(store, first, [f"{pack_of(first)}: bad"]),
        lambda: remove_backup(store, second, ours),
    ]
    for change in changes:
        with pytest.raises(NewerError, match="written by a newer version"):
            change()
        assert store.get(key) == mark
        assert entries(store).keys() == {first, second}
    store.delete([names.base_key(first, names.LABEL)])
    assert not entries(store)[first].unreadable, "what is lost is lost"


def test_a_backup_is_not_deleted_while_what_it_knows_cannot_be_handed_on(store: MemoryStore, clock: VirtualClock) -> None:
    first, second = two(store, clock)
    found(store, first, pack_of(first))

    class Down(WrapperStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            if key == names.base_key(second, names.PACKS):
                raise StoreUnavailableError("the store is down")
            return super().get(key, start=start, length=length)

    with pytest.raises(StoreUnavailableError):
        remove_backup(Down(store), first, ours)
    assert entries(store)[first].listed.committed


def test_what_a_verify_of_its_own_took_back_is_not_handed_on(store: MemoryStore, clock: VirtualClock) -> None:
    first, second = two(store, clock)
    found(store, first, pack_of(first))
    days(clock, 1)
    found(store, second)
    assert good(store) == {second}
    assert remove_backup(store, first, ours)
    assert good(store) == {second}
    assert mark_of(store, second).damage == []


def test_a_verify_that_began_before_does_not_take_back_what_another_found(store: MemoryStore, clock: VirtualClock) -> None:
    first, second = two(store, clock)
    begun_at = store.now()
    days(clock, 0.1)
    found(store, first, pack_of(first))
    days(clock, 0.1)
    found(store, second, begun_at=begun_at)
    assert good(store) == set()
    found(store, second, by_others=True)  # nobody looked: it takes nothing back
    assert good(store) == set()
    found(store, second)
    assert good(store) == {second}


def test_a_mark_counts_while_its_backup_is_not_committed_any_more(store: MemoryStore, clock: VirtualClock) -> None:
    """The rest of a deleted one stays while a live run takes pages from it, and goes with the run."""
    first, second = two(store, clock)
    intent = BaseIntent(id="x", parents=[str(first)], holder="a test", software="a test", begun_at=store.now())
    child = BackupId.make(store.now())
    store.put(names.base_key(child, names.BASE_INTENT), encode(msgspec.structs.replace(intent, id=str(child))))
    assert remove_backup(store, first, ours)
    days(clock, 0.1)
    found(store, first, pack_of(first))  # by a verify that was under way
    assert (entries(store)[first].listed.committed, good(store)) == (False, set())
    store.delete([names.base_key(child, names.BASE_INTENT)])
    assert first in remove_unfinished(store, ours)
    assert good(store) == set()
    assert mark_of(store, second).damage == [f"{pack_of(first)}: bad"]


# -- the commit


@contextmanager
def run_with_parent(store: Store, parent: BackupId, taken: BackupId) -> Iterator[Callable[[], BackupId]]:
    """A run that has taken over pack 0 of *taken*, which its parent needs; what commits it."""
    with (
        acquire_lease(
            store, SteppedClock(), "base", lease_seconds=60, wait_seconds=0, holder="a test", run_id="a test", purpose="a test"
        ) as lease,
        begin_intent(
            store, SteppedClock(), [], parent,
            lambda run: BaseIntent(id=str(run), parents=[str(parent)], holder="a test", software="a test", begun_at=run.at),
        ) as intent,
    ):  # fmt: skip
        run = BaseRun(store, intent, lease, None)
        put_packs(store, intent.backup_id, [0])
        packs = packs_document(intent.backup_id, {intent.backup_id: [0], taken: [0]})
        objects = [run.keep(part, [b"of a run"]) for part in PARTS]
        objects.append(run.keep(names.PACKS, [encode(packs)]))

        def commit() -> BackupId:
            run.commit(summary_of(store, intent.backup_id, objects, parent=parent), packs)
            return intent.backup_id

        yield commit


def test_what_is_known_to_be_bad_is_not_committed(store: MemoryStore, clock: VirtualClock) -> None:
    """A verify of the first backup of all finds it while a run takes it over from the second, and does not know of the run."""
    first, second = two(store, clock)
    with run_with_parent(store, second, first) as commit:
        days(clock, 0.1)
        found(store, first, pack_of(first))
        with pytest.raises(IntegrityError, match=f"cannot be committed: {pack_of(first)}: bad") as refused:
            commit()
    assert "take another" in refused.value.hints[0]
    assert sum(entry.listed.committed for entry in entries(store).values()) == 2


def test_what_is_found_as_it_is_committed_takes_it_back(store: MemoryStore, clock: VirtualClock) -> None:
    first, second = two(store, clock)

    class Meanwhile(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            super().put(key, data, create=create)
            if key.endswith(f"/{names.BASE_SUMMARY}"):
                days(clock, 0.1)
                found(store, second, pack_of(first))

    with run_with_parent(Meanwhile(store), second, first) as commit, pytest.raises(IntegrityError, match="cannot be committed"):
        commit()
    assert sum(entry.listed.committed for entry in entries(store).values()) == 2


def test_damage_of_what_a_run_did_not_take_or_that_was_taken_back_hinders_no_commit(
    store: MemoryStore, clock: VirtualClock
) -> None:
    first, second = two(store, clock)
    found(store, first, pack_of(first), pack_of(second))
    days(clock, 0.1)
    found(store, second)
    days(clock, 0.1)
    with run_with_parent(store, second, first) as commit:
        days(clock, 0.1)
        found(store, second, pack_of(second))
        third = commit()
    assert good(store) == {third}


def test_marks_are_read_once_for_a_whole_catalog(store: MemoryStore, clock: VirtualClock) -> None:
    first, second = two(store, clock)
    found(store, first)
    found(store, second)
    read: list[str] = []

    class Noting(WrapperStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            read.append(key)
            return super().get(key, start=start, length=length)

    assert good(Noting(store)) == {first, second}
    marks: Sequence[str] = [key for key in read if key.endswith(names.VERIFY)]
    assert sorted(marks) == sorted({*marks})
    assert len(marks) == 2
