"""Base backups as the proof reads them: what each needs, which are good, which runs live (docs/design/prune.md, B and P)."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from clipper_backup.errors import IntegrityError, ObjectMissingError, StoreError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import (
    SOURCES,
    BaseIntent,
    BaseSummary,
    PacksDocument,
    PruneRecord,
    Role,
    Started,
    VerifyMark,
)
from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.documents import NewerError, decode
from clipper_backup.repository.proof.documents import Trust, Unread, unless_unread
from clipper_backup.repository.proof.numbers import Ranges
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId, Lsn, Timeline

GRACE = timedelta(hours=24)
"""Of the format: the age at which an intent is dead, and what lies between announcing a pack and deleting it."""
_ROLES: set[Role] = {"manifest", "details", "packs", "label", "server_manifest"}
Needed = Mapping[BackupId, tuple["array[int]", "array[int]"]]
"""Of each run, the numbers and the sizes of packs: 20 TB have 200,000."""
D = TypeVar("D", BaseIntent, Started)


@dataclass(slots=True)
class Base:
    """What is there of one id. `missing` is what its documents name and a listing does not show, or not with its size.

    `newer`: a newer version took it, or looked at it last. What that found, and what it needs, is not all known here.
    """

    backup_id: BackupId
    objects: dict[str, ObjectInfo] = field(default_factory=dict)
    intent: BaseIntent | None = None
    started: Started | None = None
    summary: BaseSummary | None = None
    mark: VerifyMark | None = None
    newer: bool = False
    needed: Needed | None = None
    sealed_runs: frozenset[BackupId] = frozenset()
    trusted: bool = False
    live: bool = False
    missing: frozenset[str] = frozenset()
    good: bool = False

    @property
    def committed(self) -> bool:
        """Whether its backup.json is listed."""
        return names.BASE_SUMMARY in self.objects

    @property
    def start(self) -> Lsn:
        """Where its WAL begins."""
        assert self.summary is not None  # noqa: S101  asked of read ones only
        return Lsn.parse(self.summary.start_lsn)

    @property
    def stop(self) -> Lsn:
        """From where on it is consistent."""
        assert self.summary is not None  # noqa: S101  asked of read ones only
        return Lsn.parse(self.summary.stop_lsn)

    @property
    def timeline(self) -> Timeline:
        """The one that it was taken on."""
        assert self.summary is not None  # noqa: S101  asked of read ones only
        return Timeline(self.summary.timeline)


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """All below `base/`, and what is listed of packs and keys. `records`: by the id of a prune, its age and what it announced.

    `marks` are those with damage, also of folders that are hidden.
    """

    bases: Mapping[BackupId, Base]
    packs: Mapping[BackupId, Mapping[int, int]]
    data_keys: frozenset[BackupId]
    records: Mapping[BackupId, tuple[datetime, PruneRecord]]
    marks: Mapping[BackupId, VerifyMark] = field(default_factory=dict)

    @property
    def summarized(self) -> list[Base]:
        """The committed ones whose summary can be read, by id."""
        return [base for _, base in sorted(self.bases.items()) if base.summary is not None]


def read_base(store: Store, trust: Trust, now: datetime, unread: Unread, known: Mapping[BackupId, VerifyMark]) -> BaseFacts:
    """List packs and keys first, so that whoever put a listed pack is seen; then read all that names them.

    What the *known* marks say of packs counts too, where their own folders are not there: damage does not go with who found it.
    """
    packs: dict[BackupId, dict[int, int]] = {}
    for info in store.list(names.PACKS_FOLDER):
        if (pack := names.parse_pack_key(info.key)) is not None:
            packs.setdefault(pack.run, {})[pack.number] = info.size_bytes
    runs = (names.parse_data_key_key(info.key) for info in store.list(names.KEYS_FOLDER))
    data_keys = frozenset(run for run in runs if run is not None)
    bases: dict[BackupId, Base] = {}
    for info in store.list(names.BASE_FOLDER):
        if (key := names.parse_base_key(info.key)) is not None:
            bases.setdefault(key.backup_id, Base(key.backup_id)).objects[key.part] = info
    for base in bases.values():
        _read_one(store, base, trust, now, unread)
        base.missing = frozenset(_missing(base, packs, data_keys))
    marks = {backup_id: mark for backup_id, mark in known.items() if backup_id not in bases}
    marks |= {base.backup_id: base.mark for base in bases.values() if base.mark is not None and base.mark.damage}
    for base in bases.values():
        base.good = _is_good(base, marks)
    return BaseFacts(bases, packs, data_keys, _read_records(store, unread), marks)


def _read_one(store: Store, base: Base, trust: Trust, now: datetime, unread: Unread) -> None:
    intent = base.objects.get(names.BASE_INTENT)
    base.live = not base.committed and intent is not None and now - intent.modified_at < GRACE
    if base.live:
        base.intent = unless_unread(partial(_decoded, store, base, names.BASE_INTENT, BaseIntent), unread.packs)
        if names.STARTED in base.objects:
            base.started = unless_unread(partial(_decoded, store, base, names.STARTED, Started), unread.wal)
    if base.committed:
        of_summary: list[str] = []
        unless_unread(partial(_read_summary, store, base, trust), of_summary)
        unread.packs += of_summary
        unread.wal += of_summary
    if names.VERIFY in base.objects:
        _read_mark(store, base)
    if names.PACKS in base.objects:
        unless_unread(partial(_read_packs, store, base), unread.packs)
    elif base.committed:
        unread.packs.append(f"{names.base_key(base.backup_id, names.PACKS)} is missing")


def _decoded(store: Store, base: Base, part: str, kind: type[D]) -> D:
    key = names.base_key(base.backup_id, part)
    document = decode(store.get(key), kind, key)
    if document.id != str(base.backup_id):
        raise IntegrityError(f"{key} is damaged: it is of {document.id}")
    return document


def _read_mark(store: Store, base: Base) -> None:
    """What a verify found in it, whether it is committed or not; a mark that cannot be read is damage, if no newer version's."""
    info = base.objects[names.VERIFY]
    try:
        base.mark = decode(store.get(info.key), VerifyMark, info.key)
    except ObjectMissingError:
        return
    except NewerError:
        base.newer = True
    except (IntegrityError, StoreError) as error:
        if error.temporary:
            raise
        base.mark = VerifyMark(id=str(base.backup_id), verified_at=info.modified_at, share=0, damage=[str(error)])


def _read_summary(store: Store, base: Base, trust: Trust) -> None:
    key = names.base_key(base.backup_id, names.BASE_SUMMARY)
    data = store.get(key)
    summary = decode(data, BaseSummary, key)
    if summary.id != str(base.backup_id):
        raise IntegrityError(f"{key} is damaged: it is of {summary.id}")
    base.summary = summary
    base.newer = summary.source not in SOURCES
    base.trusted = trust.holds(store, names.base_key(base.backup_id, names.BASE_SIGNATURE), data, summary.repository_id)


def _read_packs(store: Store, base: Base) -> None:
    key = names.base_key(base.backup_id, names.PACKS)
    data = store.get(key)
    if base.summary is not None:
        committed = [stored.sha256 for stored in base.summary.objects if stored.role == "packs"]
        if committed != [hashlib.sha256(data).hexdigest()]:
            raise IntegrityError(f"{key} is not what was committed")
    document = decode(decompress_bytes(data, key), PacksDocument, key)
    if document.id != str(base.backup_id):
        raise IntegrityError(f"{key} is damaged: it is of {document.id}")
    try:
        base.needed = {
            BackupId.parse(run.run): (array("I", (pack[0] for pack in run.packs)), array("Q", (pack[1] for pack in run.packs)))
            for run in document.runs
        }
    except OverflowError as error:
        raise IntegrityError(f"{key} is damaged: it names what can be no pack") from error
    base.sealed_runs = frozenset(BackupId.parse(run.run) for run in document.runs if run.sealed)


def _read_records(store: Store, unread: Unread) -> dict[BackupId, tuple[datetime, PruneRecord]]:
    records: dict[BackupId, tuple[datetime, PruneRecord]] = {}
    for info in store.list(names.PRUNE_FOLDER):
        prune_id = names.parse_prune_key(info.key)
        if prune_id is not None:
            record = unless_unread(partial(_record, store, info.key), unread.packs)
            if record is not None:
                records[prune_id] = (info.modified_at, record)
    return records


def _record(store: Store, key: str) -> PruneRecord:
    return decode(store.get(key), PruneRecord, key)


def _missing(base: Base, packs: Mapping[BackupId, Mapping[int, int]], data_keys: frozenset[BackupId]) -> Iterator[str]:
    if base.summary is not None:
        there = {names.base_key(base.backup_id, part): info.size_bytes for part, info in base.objects.items()}
        yield from (stored.key for stored in base.summary.objects if there.get(stored.key) != stored.size_bytes)
    for run, (numbers, sizes) in (base.needed or {}).items():
        listed = packs.get(run, {})
        for number, size_bytes in zip(numbers, sizes, strict=True):
            if listed.get(number) != size_bytes:
                yield names.pack_key(run, number)
    yield from (names.data_key_key(run) for run in base.sealed_runs - data_keys)


def _is_good(base: Base, marks: Mapping[BackupId, VerifyMark]) -> bool:
    """As the format has it: committed and whole, not known to be damaged, and signed where that is asked for.

    *marks* are those with damage. What another verify found counts when it ended after its own began, or after the backup did.
    """
    summary = base.summary
    if summary is None or base.newer or base.needed is None or base.missing or not base.trusted or summary.pages.damaged:
        return False
    roles = Counter(stored.role for stored in summary.objects)
    theirs = [names.parse_base_key(stored.key) for stored in summary.objects]
    if any(roles[role] != 1 for role in _ROLES) or any(count > 1 for count in roles.values()):
        return False
    if any(key is None or key.backup_id != base.backup_id for key in theirs):
        return False
    if base.backup_id in marks:
        return False
    own = None if base.mark is None else base.mark.begun_at
    looked_at = own if isinstance(own, datetime) else base.backup_id.at
    damaged = names.packs_named(text for mark in marks.values() if mark.verified_at > looked_at for text in mark.damage)
    return not any(pack.run in base.needed and pack.number in base.needed[pack.run][0] for pack in damaged)


def order_of(base: Base) -> tuple[int, datetime, BackupId]:
    """Backups of all lines in their order, by which one is the newest."""
    assert base.summary is not None  # noqa: S101  asked of summarized ones only
    return base.summary.system_number, base.summary.finished_at, base.backup_id


def packs_in_use(facts: BaseFacts) -> dict[BackupId, Ranges]:
    """Of each run the packs that some document names; all of a run that lives."""
    used: dict[BackupId, list[Ranges]] = {}
    for base in facts.bases.values():
        for run, (numbers, _) in (base.needed or {}).items():
            used.setdefault(run, []).append(Ranges.of(numbers))
        if base.live:
            used.setdefault(base.backup_id, []).append(Ranges([(0, 1 << 32)]))
    return {run: Ranges(each for ranges in found for each in ranges) for run, found in used.items()}
