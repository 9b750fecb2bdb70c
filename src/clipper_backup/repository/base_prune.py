"""Removing base backups: what names goes before what is named, and between dooming a pack and deleting it lies grace (G1, G3).

The order is that of docs/design/repository-format.md, "Deleting". All of it happens under the lease `prune`; `check` raises when
that is lost, and is called before each call that deletes.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import PruneRecord
from clipper_backup.format.documents import encode
from clipper_backup.format.names import HOLDS_FOLDER
from clipper_backup.repository.base_backups import ListedBase, list_base_backups
from clipper_backup.repository.base_intents import GRACE
from clipper_backup.repository.base_state import (
    Intents,
    PackState,
    read_intents,
    read_packs,
    read_records,
    refuse_unreadable,
)
from clipper_backup.repository.proof.numbers import Ranges
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.repository.verify_marks import hand_on
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId, show_time

_KEYS_A_CALL = 500
"""The lease is looked at before each call: so many removals are all that a sleeper makes after it lost it."""

Check = Callable[[], None]
Prove = Callable[[Removal], Store]
"""Shows that a removal takes nothing that is promised, or raises; returned is the store through which it may be made."""


@dataclass(frozen=True, slots=True)
class GoingPacks:
    """Packs of one run that nothing needs: the numbers from `first` to `last`, both included, that are there.

    `announced`: they stay until a prune a day from now, or later. `with_key`: the key of the run goes too.
    """

    run: BackupId
    first: int | None
    last: int | None
    packs: int
    stored_bytes: int
    reason: str
    announced: bool
    with_key: bool = False


@dataclass(frozen=True, slots=True)
class Freed:
    """What was deleted: how many packs, of how many bytes, and keys of runs; and of `runs` which, and why."""

    packs: int = 0
    stored_bytes: int = 0
    keys: int = 0
    runs: tuple[GoingPacks, ...] = field(default=(), compare=False)


def remove_backup(store: Store, backup_id: BackupId, check: Check, *, rest: bool = True) -> bool:
    """Steps 1 and 2 for one backup: its backup.json, alone, then the *rest*. False when it is held by now, and stays.

    First of all, damage of packs that a verify found in it is written beside each other backup that needs them. While a live
    run takes pages from it, the rest stays: packs.json.zst still names its packs.
    """
    if backup_id in held_ids(store):
        return False
    hand_on(store, backup_id)
    check()
    store.delete([names.base_key(backup_id, names.BASE_SUMMARY)])
    intents = read_intents(store, store.now())
    refuse_unreadable(intents.unreadable)
    if rest and not intents.children(backup_id) and backup_id in intents.folders:
        _remove_rest(store, intents.folders[backup_id], check)
    return True


def remove_unfinished(store: Store, check: Check, only: Collection[BackupId] | None = None) -> list[BackupId]:
    """Remove what `unfinished` names, of that with *only* no other; returned is what was removed."""
    removed = []
    intents = read_intents(store, store.now())
    refuse_unreadable(intents.unreadable)
    for backup_id in unfinished(intents):
        if only is not None and backup_id not in only:
            continue
        # A run that slept past its death puts backup.json and then looks for its intent: one of the two sees the other.
        check()
        store.delete([names.base_key(backup_id, names.BASE_INTENT)])
        again = next((listed for listed in list_base_backups(store) if listed.backup_id == backup_id), None)
        if again is not None and again.committed:
            continue
        if again is not None:
            hand_on(store, backup_id)
            _remove_rest(store, again, check)
        removed.append(backup_id)
    return removed


def _remove_rest(store: Store, folder: ListedBase, check: Check) -> None:
    packs = names.base_key(folder.backup_id, names.PACKS)
    rest = [info.key for info in folder.objects if info.key not in {packs, names.base_key(folder.backup_id, names.BASE_SUMMARY)}]
    for keys in (rest, [packs]):
        if keys:
            check()
            store.delete(keys)


def doomed_now(state: PackState, records: Iterable[PruneRecord]) -> tuple[dict[BackupId, set[int]], list[BackupId]]:
    """Step 3: the packs by run, and the keys, that nothing needs, and that no record has announced yet."""
    announced: dict[BackupId, list[range]] = {}
    announced_keys: set[str] = set()
    for record in records:
        for run, numbers in _packs_of(record):
            announced.setdefault(run, []).append(numbers)
        announced_keys.update(record.keys)
    packs = {
        run: {n for n in state.unneeded_packs(run) if not any(n in numbers for numbers in announced.get(run, ()))}
        for run in state.packs
    }
    keys = [run for run in state.keys if state.is_key_unneeded(run) and str(run) not in announced_keys]
    return {run: numbers for run, numbers in packs.items() if numbers}, keys


def doom(store: Store, check: Check, prove: Prove | None = None) -> PruneRecord | None:
    """Announce what nothing needs; None when there is nothing new. IntegrityError when something cannot be read (G2)."""
    records = read_records(store)
    packs, keys = doomed_now(read_packs(store, store.now()), records.values())
    if not packs and not keys:
        return None
    if prove is not None:
        prove(Removal(announced={run: Ranges.of(numbers) for run, numbers in packs.items()}))
    now = store.now()
    record = PruneRecord(
        id=str(BackupId.make(now)),
        doomed_at=now,
        packs={str(run): _ranges(numbers) for run, numbers in sorted(packs.items())},
        keys=[str(run) for run in sorted(keys)],
    )
    check()
    store.put(names.prune_key(BackupId.parse(record.id)), encode(record), create=True)
    return record


@dataclass(frozen=True, slots=True)
class Due:
    """What a prune of now deletes of what an older one announced, with the record of that: packs first, then keys."""

    record: ObjectInfo
    announced_at: datetime
    packs: Sequence[ObjectInfo]
    keys: Sequence[BackupId]

    def removal(self) -> Removal:
        """The same, to be proven."""
        found: dict[BackupId, set[int]] = {}
        for info in self.packs:
            if (pack := names.parse_pack_key(info.key)) is not None:
                found.setdefault(pack.run, set()).add(pack.number)
        record = names.parse_prune_key(self.record.key)
        return Removal(
            packs={run: Ranges.of(numbers) for run, numbers in found.items()},
            data_keys=frozenset(self.keys),
            records=frozenset() if record is None else frozenset({record}),
        )

    def runs(self) -> Iterator[GoingPacks]:
        """What goes, by run."""
        why = f"announced at {show_time(self.announced_at)}, and nothing has needed it since"
        yield from going_by_run(self.packs, self.keys, why, announced=False)


def due_of(state: PackState, info: ObjectInfo, record: PruneRecord) -> Due:
    """What of a record that is older than grace is still there and not needed."""
    going = going_packs(state, record)
    gone = {pack.key for pack in going}
    left = PackState(
        {run: {n: i for n, i in packs.items() if i.key not in gone} for run, packs in state.packs.items()},
        state.keys,
        state.base,
        state.needed,
    )
    return Due(info, info.modified_at, going, [run for run in map(BackupId.parse, record.keys) if left.is_key_unneeded(run)])


def delete_doomed(store: Store, check: Check, prove: Prove | None = None) -> Freed:
    """Step 4: of each record older than grace, delete what is still not needed; then the record: what is left is needed again."""
    freed = Freed()
    for info, record in read_records(store).items():
        now = store.now()
        if now - info.modified_at < GRACE:
            continue
        state = read_packs(store, now)
        due = due_of(state, info, record)
        proven = store if prove is None else prove(due.removal())
        for keys in ([pack.key for pack in due.packs], [state.keys[run].key for run in due.keys], [info.key]):
            for batch in _batches(keys):
                check()
                proven.delete(batch)
        freed = Freed(
            freed.packs + len(due.packs),
            freed.stored_bytes + sum(pack.size_bytes for pack in due.packs),
            freed.keys + len(due.keys),
            (*freed.runs, *due.runs()),
        )
    return freed


def going_by_run(
    packs: Iterable[ObjectInfo], keys: Collection[BackupId], reason: str, *, announced: bool
) -> Iterator[GoingPacks]:
    """Packs and keys by run, the packs in ranges without holes."""
    found: dict[BackupId, dict[int, int]] = {run: {} for run in keys}
    for info in packs:
        if (pack := names.parse_pack_key(info.key)) is not None:
            found.setdefault(pack.run, {})[pack.number] = info.size_bytes
    for run, sizes in sorted(found.items()):
        if not sizes:
            yield GoingPacks(run, None, None, 0, 0, reason, announced, with_key=True)
        for first, last in _ranges(sizes):
            stored_bytes = sum(sizes[number] for number in range(first, last + 1))
            with_key = run in keys and last == max(sizes)
            yield GoingPacks(run, first, last, last - first + 1, stored_bytes, reason, announced, with_key)


def going_packs(state: PackState, record: PruneRecord) -> list[ObjectInfo]:
    """What is still there and not needed of the packs that a record announced, in their order."""
    unneeded = {run: state.unneeded_packs(run) for run in map(BackupId.parse, record.packs)}
    return [
        state.packs[run][number]
        for run, numbers in _packs_of(record)
        for number in sorted(number for number in unneeded[run] if number in numbers)
    ]


def held_ids(store: Store) -> set[BackupId]:
    """The base backups that are held, whatever their marks say."""
    held = set()
    for info in store.list(HOLDS_FOLDER):
        if (backup_id := names.parse_base_hold_key(info.key)) is not None:
            held.add(backup_id)
    return held


def unfinished(intents: Intents) -> list[BackupId]:
    """Folders without backup.json and without a live run of their own, that no live run takes pages from."""
    return [
        backup_id
        for backup_id, folder in intents.folders.items()
        if not folder.committed and backup_id not in intents.live and not intents.children(backup_id)
    ]


def _packs_of(record: PruneRecord) -> Iterator[tuple[BackupId, range]]:
    """The runs and ranges of pack numbers that a record names."""
    for run, ranges in record.packs.items():
        for first, last in ranges:
            yield BackupId.parse(run), range(first, last + 1)


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges, both ends included."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[at : at + _KEYS_A_CALL] for at in range(0, len(keys), _KEYS_A_CALL))
