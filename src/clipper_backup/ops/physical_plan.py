"""What a prune of base backups, packs and WAL would remove, with a reason for each, and the proof of that; changes nothing."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

from clipper_backup.errors import ClipperError, IncompleteError, IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.ops.prune_proof import prove_removal
from clipper_backup.ops.prune_window import PitrWindow, window_of
from clipper_backup.ops.work import Work
from clipper_backup.repository import base_prune
from clipper_backup.repository.base_intents import GRACE
from clipper_backup.repository.base_prune import Due, Freed, GoingPacks
from clipper_backup.repository.base_state import PackState, read_packs, read_records
from clipper_backup.repository.physical_retention import BackupDecision, PhysicalPlan, plan_physical
from clipper_backup.repository.physical_survey import Survey, survey
from clipper_backup.repository.proof.check import Proof
from clipper_backup.repository.proof.numbers import Ranges
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.repository.refresh import Refreshed
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.wal_prune import GoingWal, going_wal, sum_of
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId, DumpId, Timeline
from clipper_backup.wal_names import Segment

_FOLDERS = {folder.rstrip("/") for folder in (names.BASE_FOLDER, names.PACKS_FOLDER, names.WAL_FOLDER, names.PRUNE_FOLDER)}
WHY_ANNOUNCED = "no base backup needs it, and no run that lives: deleted by a prune a day from now or later"


@dataclass(frozen=True, slots=True)
class Going:
    """One base backup or unfinished run, what happens to it, and what only it takes in the store."""

    backup_id: BackupId
    keep: bool
    reason: str
    stored_bytes: int
    kind: Literal["base backup", "unfinished"] = "base backup"


@dataclass(frozen=True, slots=True)
class KeptWal:
    """Segments that stay whatever their age, and why; `last` None: to the end of their timeline, and what comes."""

    system_id: str
    timeline: Timeline
    first: Segment
    last: Segment | None
    reason: str


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """An object of a kind that `prune` does not remove: the record of a volume snapshot, or the report of a restore test."""

    key: str
    kind: Literal["snapshot", "restore test"]
    stored_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class PhysicalPrune:
    """What a prune did, or would do. `doomed` packs are deleted by a prune a day later; `wal` is without its keys.

    `problems` are what could not be read and may need WAL: none of it went then. `announced` are base backups that go next time
    because PITR_WINDOW_DAYS fell since the last prune; `window_days` decided, None where there is nothing to decide of. `packs`
    are those that are announced or deleted. `proof` is what the independent check said of all of it, before anything went.
    """

    items: tuple[Going, ...] = ()
    doomed: int = 0
    freed: Freed = field(default_factory=Freed)
    wal: GoingWal = field(default_factory=GoingWal)
    problems: tuple[ClipperError, ...] = ()
    refreshed: Refreshed = field(default_factory=Refreshed)
    announced: tuple[BackupId, ...] = ()
    window_days: int | None = None
    packs: tuple[GoingPacks, ...] = ()
    kept_wal: tuple[KeptWal, ...] = ()
    kept_records: tuple[KeptRecord, ...] = ()
    proof: Proof = field(default_factory=Proof)

    @property
    def going(self) -> tuple[Going, ...]:
        """The base backups and runs that are removed."""
        return tuple(item for item in self.items if not item.keep)

    @property
    def changes(self) -> bool:
        """Whether there is anything to remove."""
        return bool(self.going or self.doomed or self.freed.packs or self.freed.keys or self.wal.ranges or self.wal.maps)

    def raise_problems(self) -> None:
        """IntegrityError when something promised would be lost, or could not be read: what could be decided without it was done.

        IncompleteError when only refreshing left something out.
        """
        self.proof.refuse()
        if self.problems:
            raise IntegrityError(
                f"no WAL was removed, since nobody knows which is needed: {'; '.join(map(str, self.problems))}",
                hints=list(dict.fromkeys(hint for problem in self.problems for hint in problem.hints)),
            )
        if self.refreshed.problems:
            raise IncompleteError(
                f"not all could be written again that a bucket's rule may delete: {'; '.join(map(str, self.refreshed.problems))}",
                hints=["what is held, keys and histories must stay younger than the rule: see what hinders it"],
            )


@dataclass(frozen=True, slots=True)
class Look:
    """All that a prune looked at, and what it decided of it."""

    state: PackState
    found: Survey
    plan: PhysicalPlan


def has_physical(store: Store) -> bool:
    """Whether there is anything of base backups or WAL."""
    return not _FOLDERS.isdisjoint(store.folders(""))


def look(work: Work, window: PitrWindow) -> Look:
    """Read all that decides. IntegrityError while something that names packs cannot be read (G2)."""
    now = work.store.now()
    state = read_packs(work.store, now)
    repository = open_repository(work.store)
    found = survey(work.store, state, trusted=work.trusted, repository_id=repository.id)
    return Look(state, found, plan_physical(found.seen, now=now, window=timedelta(days=window.days)))


def plan_physical_prune(work: Work, dumps: Sequence[DumpId] = ()) -> PhysicalPrune:
    """What a prune would do now; changes nothing. IntegrityError while something that names packs cannot be read (G2).

    The proof is of all of it, and of *dumps*, which the same prune would remove.
    """
    if not has_physical(work.store):
        proof = prove_removal(work, Removal(dumps=frozenset(dumps)), with_dumps=True)
        return PhysicalPrune(proof=proof)
    window = window_of(work)
    looked = look(work, window)
    planned = plan_of(work, looked, window)
    removal = removal_of(work, looked, planned, dumps)
    proof = prove_removal(work, removal, with_dumps=True, with_base=True, with_wal=True)
    return replace(planned, proof=proof)


def plan_of(work: Work, looked: Look, window: PitrWindow) -> PhysicalPrune:
    """What would be done after that look, not proven yet."""
    store, state, plan = work.store, looked.state, looked.plan
    packs, keys = base_prune.doomed_now(state, read_records(store).values())
    announced = base_prune.going_by_run(_infos(state, packs), keys, WHY_ANNOUNCED, announced=True)
    due = list(due_now(store, state))
    freed = Freed(
        sum(len(each.packs) for each in due),
        sum(pack.size_bytes for each in due for pack in each.packs),
        sum(len(each.keys) for each in due),
        tuple(run for each in due for run in each.runs()),
    )
    next_time = window.announced(looked.found.seen, plan, store.now())
    return PhysicalPrune(
        (*_items(looked),),
        sum(map(len, packs.values())) + len(keys),
        freed,
        sum_of(going_wal(store, looked.found.catalogs(store), plan)),
        tuple(looked.found.unreadable),
        announced=next_time.backups,
        window_days=window.days,
        packs=(*freed.runs, *announced),
        kept_wal=tuple(_kept_wal(looked)),
        kept_records=tuple(_kept_records(store)),
    )


def removal_of(work: Work, looked: Look, planned: PhysicalPrune, dumps: Sequence[DumpId] = ()) -> Removal:
    """What it removes, to be proven: packs too that it only announces."""
    intents = looked.state.base.intents
    going = {item.backup_id for item in planned.going}
    parents = {backup_id for backup_id in going if intents.children(backup_id)}
    due = [each.removal() for each in due_now(work.store, looked.state)]
    packs, _ = base_prune.doomed_now(looked.state, read_records(work.store).values())
    of_due: dict[BackupId, Ranges] = {}
    for each in due:
        for run, numbers in each.packs.items():
            of_due[run] = of_due.get(run, Ranges()) | numbers
    wal = wal_removal(planned.wal)
    return Removal(
        dumps=frozenset(dumps),
        backups=frozenset(going - parents),
        summaries=frozenset(parents),
        packs=of_due,
        data_keys=frozenset(run for each in due for run in each.data_keys),
        records=frozenset(record for each in due for record in each.records),
        wal=wal.wal,
        segment_bytes=wal.segment_bytes,
        maps=wal.maps,
        announced={run: Ranges.of(numbers) for run, numbers in packs.items()},
    )


def wal_removal(wal: GoingWal) -> Removal:
    """The WAL of it alone."""
    numbers: dict[tuple[str, Timeline], list[tuple[int, int]]] = {}
    for each in wal.ranges:
        numbers.setdefault((each.system_id, each.timeline), []).append((each.first.number, each.last.number + 1))
    return Removal(
        wal={of: Ranges(ranges) for of, ranges in numbers.items()},
        segment_bytes={each.system_id: each.first.size_bytes for each in wal.ranges},
        maps=frozenset(wal.maps),
    )


def due_now(store: Store, state: PackState) -> Iterator[Due]:
    """What a prune of now would delete of what was announced a day ago."""
    for info, record in read_records(store).items():
        if store.now() - info.modified_at >= GRACE:
            yield base_prune.due_of(state, info, record)


def _infos(state: PackState, packs: "dict[BackupId, set[int]]") -> Iterator[ObjectInfo]:
    return (state.packs[run][number] for run, numbers in packs.items() for number in sorted(numbers))


def _items(looked: Look) -> Iterator[Going]:
    """The backups by the plan, and the unfinished, by id."""
    state = looked.state
    decisions = {decision.backup_id: decision for decision in looked.plan.backups}
    removed = set(base_prune.unfinished(state.base.intents))
    named = Counter(pack for needed in state.base.packs.values() for pack, _ in needed)
    for backup_id, folder in state.base.intents.folders.items():
        own_bytes = sum(size_bytes for pack, size_bytes in state.base.packs.get(backup_id, ()) if named[pack] == 1)
        decided = decisions.get(backup_id)
        decision = decided or _of_unfinished(backup_id, removed, looked.found.not_handed_on)
        kind: Literal["base backup", "unfinished"] = "unfinished" if decided is None else "base backup"
        yield Going(backup_id, decision.keep, decision.reason, folder.own_bytes + own_bytes, kind)


def _of_unfinished(backup_id: BackupId, removed: set[BackupId], not_handed_on: Mapping[BackupId, str]) -> BackupDecision:
    if backup_id in removed and backup_id in not_handed_on:
        return BackupDecision(backup_id, keep=True, reason=not_handed_on[backup_id])
    if backup_id in removed:
        return BackupDecision(backup_id, keep=False, reason="never finished, and its run gave no sign of life for a day")
    return BackupDecision(
        backup_id, keep=True, reason="not finished: being written, or needed by a run, or left less than a day ago"
    )


def _kept_wal(looked: Look) -> Iterator[KeptWal]:
    """The ranges that stay; none where all of it does, since something could not be read."""
    if looked.plan.all_wal:
        return
    for each in looked.plan.kept:
        entry = looked.found.systems.get(each.of.system)
        if entry is not None:
            first, last = (
                None if number is None else Segment(each.of.timeline, number, entry.segment_bytes)
                for number in (each.span.first, each.span.last)
            )
            assert first is not None  # noqa: S101  a span begins somewhere
            yield KeptWal(entry.system_id, each.of.timeline, first, last, each.reason)


def _kept_records(store: Store) -> Iterator[KeptRecord]:
    for info in store.list(names.SNAPSHOTS_FOLDER):
        if names.is_snapshot_key(info.key):
            why = "`clipper-backup snapshot prune` removes volume snapshots: the WAL that it needs stays with it"
            yield KeptRecord(info.key, "snapshot", info.size_bytes, why)
    for info in store.list(names.RESTORE_TESTS_FOLDER):
        yield KeptRecord(info.key, "restore test", info.size_bytes, "this version removes no report")
