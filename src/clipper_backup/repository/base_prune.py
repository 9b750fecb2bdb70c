"""Removing base backups: what names goes before what is named, and between dooming a pack and deleting it lies grace (G1, G3).

The order is that of docs/design/repository-format.md, "Deleting". All of it happens under the lease `prune`; `check` raises when
that is lost, and is called before each call that deletes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

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
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId

_KEYS_A_CALL = 500
"""The lease is looked at before each call: so many removals are all that a sleeper makes after it lost it."""

Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Freed:
    """What was deleted: how many packs, of how many bytes, and keys of runs."""

    packs: int = 0
    stored_bytes: int = 0
    keys: int = 0


def remove_backup(store: Store, backup_id: BackupId, check: Check) -> bool:
    """Steps 1 and 2 for one backup: its backup.json, alone, then the rest. False when it is held by now, and stays.

    While a live run takes pages from it, the rest stays: packs.json.zst still names its packs.
    """
    if backup_id in held_ids(store):
        return False
    check()
    store.delete([names.base_key(backup_id, names.BASE_SUMMARY)])
    intents = read_intents(store, store.now())
    refuse_unreadable(intents.unreadable)
    if not intents.children(backup_id) and backup_id in intents.folders:
        _remove_rest(store, intents.folders[backup_id], check)
    return True


def remove_unfinished(store: Store, check: Check) -> list[BackupId]:
    """Remove what `unfinished` names; returned is what was removed."""
    removed = []
    intents = read_intents(store, store.now())
    refuse_unreadable(intents.unreadable)
    for backup_id in unfinished(intents):
        # A run that slept past its death puts backup.json and then looks for its intent: one of the two sees the other.
        check()
        store.delete([names.base_key(backup_id, names.BASE_INTENT)])
        again = next((listed for listed in list_base_backups(store) if listed.backup_id == backup_id), None)
        if again is not None and again.committed:
            continue
        if again is not None:
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


def doom(store: Store, check: Check) -> PruneRecord | None:
    """Announce what nothing needs; None when there is nothing new. IntegrityError when something cannot be read (G2)."""
    records = read_records(store)
    packs, keys = doomed_now(read_packs(store, store.now()), records.values())
    if not packs and not keys:
        return None
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


def delete_doomed(store: Store, check: Check) -> Freed:
    """Step 4: of each record older than grace, delete what is still not needed; then the record, when nothing of it is left."""
    freed_packs = freed_bytes = freed_keys = 0
    for info, record in read_records(store).items():
        now = store.now()
        if now - info.modified_at < GRACE:
            continue
        state = read_packs(store, now)
        going = going_packs(state, record)
        for batch in _batches([pack.key for pack in going]):
            check()
            store.delete(batch)
        gone = {pack.key for pack in going}
        left = PackState(
            {run: {n: i for n, i in packs.items() if i.key not in gone} for run, packs in state.packs.items()},
            state.keys,
            state.base,
            state.needed,
        )
        keys = [state.keys[run].key for run in map(BackupId.parse, record.keys) if left.is_key_unneeded(run)]
        for batch in _batches(keys):
            check()
            store.delete(batch)
        check()
        store.delete([info.key])  # what is left of it is needed again
        freed_packs, freed_bytes = freed_packs + len(going), freed_bytes + sum(pack.size_bytes for pack in going)
        freed_keys += len(keys)
    return Freed(freed_packs, freed_bytes, freed_keys)


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
