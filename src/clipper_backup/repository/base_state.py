"""What is there of base backups: folders below `base/`, their documents, packs and keys; and what of it cannot be read.

Prune reads it, again before each thing that it removes (docs/design/repository-format.md, "Deleting").
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TypeVar

from clipper_backup.errors import ClipperError, IntegrityError, ObjectMissingError, StoreError, UsageError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseIntent, BaseSummary, PacksDocument, PruneRecord
from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.documents import D, decode
from clipper_backup.format.physical_names import PackKey
from clipper_backup.repository.base_backups import ListedBase, list_base_backups
from clipper_backup.repository.base_intents import GRACE
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NeededPacks:
    """What a packs.json.zst names, held small: of each run the numbers and sizes of its packs, 16 bytes a pack.

    Prune holds those of all backups at once; of 20 TB each names some 200,000.
    """

    runs: Mapping[BackupId, tuple["array[int]", "array[int]"]]

    @classmethod
    def of(cls, document: PacksDocument, key: str) -> "NeededPacks":
        """IntegrityError when the document at *key* names what can be no pack."""
        runs = {}
        try:
            for of_run in document.runs:
                numbers = array("I", (number for number, *_ in of_run.packs))
                runs[BackupId.parse(of_run.run)] = numbers, array("Q", (size for _, size, *_ in of_run.packs))
        except (OverflowError, UsageError) as error:
            raise IntegrityError(f"{key} is damaged: it names what can be no pack") from error
        return cls(runs)

    def __iter__(self) -> Iterator[tuple[PackKey, int]]:
        """Each pack with its size in bytes."""
        for run, (numbers, sizes) in self.runs.items():
            yield from ((PackKey(run, number), size) for number, size in zip(numbers, sizes, strict=True))


def is_live(listed: ListedBase, now: datetime) -> bool:
    """Whether a run lives that writes it: its intent is younger than grace by the store's clock, and there is no backup.json."""
    intent = listed.part(names.BASE_INTENT)
    return not listed.committed and intent is not None and now - intent.modified_at < GRACE


@dataclass(frozen=True, slots=True)
class Intents:
    """The folders below `base/`, and what the intents of live runs say. `unreadable` as in `BaseState`."""

    folders: Mapping[BackupId, ListedBase]
    live: Mapping[BackupId, BaseIntent]
    unreadable: Sequence[ClipperError]

    def children(self, backup_id: BackupId) -> list[BackupId]:
        """The live runs that take pages from a backup."""
        return [run for run, intent in self.live.items() if str(backup_id) in intent.parents]


@dataclass(frozen=True, slots=True)
class BaseState:
    """What the documents below `base/` say, by id.

    `unreadable` names what cannot be read and could name a pack: while there is such a thing nothing is doomed or deleted (G2).
    """

    intents: Intents
    summaries: Mapping[BackupId, BaseSummary]
    packs: Mapping[BackupId, NeededPacks]
    unreadable: Sequence[ClipperError]

    def named_packs(self) -> dict[BackupId, set[int]]:
        """Every pack that a packs.json.zst names, by run."""
        named: dict[BackupId, set[int]] = {}
        for needed in self.packs.values():
            for run, (numbers, _) in needed.runs.items():
                named.setdefault(run, set()).update(numbers)
        return named


def refuse_unreadable(unreadable: Sequence[ClipperError]) -> None:
    """IntegrityError when there is something that could not be read: nothing is doomed or deleted then (G2)."""
    if unreadable:
        raise IntegrityError(
            f"prune removes nothing that base backups may need: {'; '.join(map(str, unreadable))}",
            hints=[
                *dict.fromkeys(hint for error in unreadable for hint in error.hints),
                "`clipper-backup base delete ID` removes a backup that cannot be read, when nobody needs it",
            ],
        )


def read_intents(store: Store, now: datetime) -> Intents:
    """Every folder below `base/`, from one listing, and the intents of live runs; *now* is the store's clock."""
    unreadable: list[ClipperError] = []
    folders = {listed.backup_id: listed for listed in list_base_backups(store)}
    live: dict[BackupId, BaseIntent] = {}
    for backup_id, folder in folders.items():
        if is_live(folder, now):
            intent = read_part(store, backup_id, names.BASE_INTENT, BaseIntent, unreadable)
            if intent is not None:
                live[backup_id] = intent
    return Intents(folders, live, unreadable)


def read_base(store: Store, now: datetime) -> BaseState:
    """All documents that name packs: the intents, then packs.json.zst of every folder that has one."""
    intents = read_intents(store, now)
    unreadable = list(intents.unreadable)
    summaries: dict[BackupId, BaseSummary] = {}
    packs: dict[BackupId, NeededPacks] = {}
    for backup_id, folder in intents.folders.items():
        summary = read_part(store, backup_id, names.BASE_SUMMARY, BaseSummary, unreadable) if folder.committed else None
        if summary is not None:
            summaries[backup_id] = summary
        if folder.part(names.PACKS) is not None:
            document = unless_unreadable(partial(_read_packs, store, backup_id, summary), unreadable)
            if document is not None:
                packs[backup_id] = document
        elif folder.committed:
            key = names.base_key(backup_id, names.PACKS)
            unreadable.append(IntegrityError(f"{key} is missing: nobody knows which packs the backup {backup_id} needs"))
    return BaseState(intents, summaries, packs, unreadable)


def read_part(store: Store, backup_id: BackupId, part: str, kind: type[D], unreadable: list[ClipperError]) -> D | None:
    """A JSON document of a base backup; None for one that is gone, or that cannot be read, which is then in *unreadable*."""
    key = names.base_key(backup_id, part)

    def read() -> D:
        document = decode(store.get(key), kind, key)
        if getattr(document, "id", str(backup_id)) != str(backup_id):
            raise IntegrityError(f"{key} is damaged: it belongs to another backup")
        if getattr(document, "kind", "base") != "base":
            raise IntegrityError(f"{key} is damaged: it is no base backup's")
        return document

    return unless_unreadable(read, unreadable)


def unless_unreadable(read: Callable[[], T], unreadable: list[ClipperError]) -> T | None:
    """What *read* returns; None for what is gone, and for what is damaged or newer than we are, which is then in *unreadable*.

    Whatever may be otherwise the next time passes through: a store that does not answer, a login that is refused.
    """
    try:
        return read()
    except ObjectMissingError:
        return None
    except (IntegrityError, StoreError) as error:
        if error.temporary:
            raise
        unreadable.append(error)
        return None


def _read_packs(store: Store, backup_id: BackupId, summary: BaseSummary | None) -> NeededPacks:
    key = names.base_key(backup_id, names.PACKS)
    data = store.get(key)
    committed = None if summary is None else summary.part("packs")
    if summary is not None and (committed is None or hashlib.sha256(data).hexdigest() != committed.sha256):
        raise IntegrityError(f"{key} does not hold the bytes that were committed (SHA-256 differs)")
    document = decode(decompress_bytes(data, key), PacksDocument, key)
    if document.id != str(backup_id):
        raise IntegrityError(f"{key} is damaged: it belongs to the backup {document.id}")
    return NeededPacks.of(document, key)


@dataclass(frozen=True, slots=True)
class PackState:
    """Packs and keys that are listed, then what names or owns them: in this order, so that whoever put a listed pack is seen."""

    packs: Mapping[BackupId, Mapping[int, ObjectInfo]]
    keys: Mapping[BackupId, ObjectInfo]
    base: BaseState
    needed: Mapping[BackupId, set[int]] = field(default_factory=dict)

    def unneeded_packs(self, run: BackupId) -> set[int]:
        """The listed packs of a run that no backup names and no live run owns."""
        if run in self.base.intents.live:
            return set()
        return set(self.packs.get(run, ())) - self.needed.get(run, set())

    def is_key_unneeded(self, run: BackupId) -> bool:
        """Whether the key of a run is listed, and neither a pack of that run nor a live run nor a backup needs it."""
        return run in self.keys and not self.packs.get(run) and run not in self.needed and run not in self.base.intents.live


def read_packs(store: Store, now: datetime) -> PackState:
    """List packs/ and keys/, then read what names them. IntegrityError when something cannot be read that could (G2)."""
    packs: dict[BackupId, dict[int, ObjectInfo]] = {}
    for info in store.list(names.PACKS_FOLDER):
        if (pack := names.parse_pack_key(info.key)) is not None:
            packs.setdefault(pack.run, {})[pack.number] = info
    keys = {run: info for info in store.list(names.KEYS_FOLDER) if (run := names.parse_data_key_key(info.key)) is not None}
    base = read_base(store, now)
    refuse_unreadable(base.unreadable)
    return PackState(packs, keys, base, base.named_packs())


def read_records(store: Store) -> dict[ObjectInfo, PruneRecord]:
    """Every record of what a prune doomed, oldest first. IntegrityError when one cannot be read (G2)."""
    unreadable: list[ClipperError] = []
    records = {}
    for info in store.list(names.PRUNE_FOLDER):
        if names.parse_prune_key(info.key) is not None:
            record = unless_unreadable(partial(_read_record, store, info.key), unreadable)
            if record is not None:
                records[info] = record
    refuse_unreadable(unreadable)
    return dict(sorted(records.items(), key=lambda item: (item[0].modified_at, item[0].key)))


def _read_record(store: Store, key: str) -> PruneRecord:
    return decode(store.get(key), PruneRecord, key)
