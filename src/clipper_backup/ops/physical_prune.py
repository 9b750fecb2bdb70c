"""`prune` of base backups and WAL: decided by a pure plan for PITR_WINDOW_DAYS, removed in the order of the format's page."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

from clipper_backup.errors import ClipperError, IncompleteError, IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.ops.lease import KEYS_LEASE, PRUNE_LEASE, take_lease
from clipper_backup.ops.work import Work, skew, step
from clipper_backup.repository import base_prune
from clipper_backup.repository.base_intents import GRACE
from clipper_backup.repository.base_prune import Freed
from clipper_backup.repository.base_state import PackState, read_packs, read_records
from clipper_backup.repository.leases import Lease
from clipper_backup.repository.physical_retention import BackupDecision, PhysicalPlan, plan_physical
from clipper_backup.repository.physical_survey import Survey, survey
from clipper_backup.repository.refresh import Refreshed, refresh
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.wal_prune import GoingWal, delete_wal, going_wal
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, show_bytes, show_seconds

_MOST_SKEW = timedelta(hours=1)
_FOLDERS = {folder.rstrip("/") for folder in (names.BASE_FOLDER, names.PACKS_FOLDER, names.WAL_FOLDER, names.PRUNE_FOLDER)}


@dataclass(frozen=True, slots=True)
class Going:
    """One base backup or unfinished run, what happens to it, and what only it takes in the store."""

    backup_id: BackupId
    keep: bool
    reason: str
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class PhysicalPrune:
    """What a prune did, or would do. `doomed` packs are deleted by a prune a day later; `wal` is without its keys.

    `problems` are what could not be read and may need WAL: none of it went then.
    """

    items: tuple[Going, ...] = ()
    doomed: int = 0
    freed: Freed = field(default_factory=Freed)
    wal: GoingWal = field(default_factory=GoingWal)
    problems: tuple[ClipperError, ...] = ()
    refreshed: Refreshed = field(default_factory=Refreshed)

    @property
    def going(self) -> tuple[Going, ...]:
        """The base backups and runs that are removed."""
        return tuple(item for item in self.items if not item.keep)

    @property
    def changes(self) -> bool:
        """Whether there is anything to remove."""
        return bool(self.going or self.doomed or self.freed.packs or self.freed.keys or self.wal.segments)

    def raise_problems(self) -> None:
        """IntegrityError when something could not be read: what could be decided without it was done.

        IncompleteError when only refreshing left something out.
        """
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


def has_physical(store: Store) -> bool:
    """Whether there is anything of base backups or WAL."""
    return not _FOLDERS.isdisjoint(store.folders(""))


def plan_physical_prune(work: Work) -> PhysicalPrune:
    """What a prune would do now; changes nothing. IntegrityError while something that names packs cannot be read (G2)."""
    if not has_physical(work.store):
        return PhysicalPrune()
    state, found, plan = _look(work)
    packs, keys = base_prune.doomed_now(state, read_records(work.store).values())
    wal = GoingWal()
    for each in going_wal(work.store, found.catalogs(work.store), plan):
        wal.segments += each.segments
        wal.stored_bytes += each.stored_bytes
    doomed = sum(map(len, packs.values())) + len(keys)
    return PhysicalPrune((*_items(state, plan),), doomed, _due(work.store, state), wal, tuple(found.unreadable))


def prune_physical(work: Work) -> PhysicalPrune:
    """Remove what the window needs no more, under the lease `prune`.

    ClipperError when the store's clock and ours differ by more than an hour (G5), IntegrityError while something that names
    packs cannot be read (G2): nothing is removed then.
    """
    open_repository(work.store, writing=True)
    if not has_physical(work.store):
        return PhysicalPrune()
    check_clocks(work)
    with take_lease(work, PRUNE_LEASE, "prune") as lease:
        return _execute(work, lease)


def check_clocks(work: Work) -> None:
    """ClipperError when the store's clock and ours differ by more than an hour: one of them would let go of too much (G5)."""
    ahead = skew(work.store, work.clock)
    if abs(ahead) > _MOST_SKEW:
        side = "ahead of" if ahead > timedelta() else "behind"
        raise ClipperError(
            f"the store's clock is {show_seconds(abs(ahead).total_seconds())} {side} this machine's: nothing is removed",
            hints=["correct the one that is wrong; the check `clock` of `clipper-backup doctor` compares them"],
        )


def _execute(work: Work, lease: Lease) -> PhysicalPrune:
    store = work.store
    state, found, plan = _look(work)
    with step(work, "prune base backups", "remove base backups that the window needs no more") as running:
        items = []
        for item in _items(state, plan):
            committed = state.base.intents.folders[item.backup_id].committed
            held = not item.keep and committed and not base_prune.remove_backup(store, item.backup_id, lease.check)
            items.append(replace(item, keep=True, reason="held") if held else item)
        base_prune.remove_unfinished(store, lease.check)
        record = base_prune.doom(store, lease.check)
        doomed = (
            0
            if record is None
            else len(record.keys) + sum(last - first + 1 for ranges in record.packs.values() for first, last in ranges)
        )
        freed = base_prune.delete_doomed(store, lease.check)
        gone = sum(not item.keep for item in items)
        running.done = f"{gone} base backups removed; {freed.packs} packs deleted, {show_bytes(freed.stored_bytes)}"
    with step(work, "prune WAL", "remove WAL that the window needs no more") as running:
        state, found, plan = _look(work)  # anew: somebody may have held what was to go
        wal = delete_wal(store, going_wal(store, found.catalogs(store), plan), lease.check)
        running.done = f"{wal.segments} segments removed, {show_bytes(wal.stored_bytes)}"
    with step(work, "refresh", "write again what must outlive a bucket's rule") as running:
        again = refresh(store, state, found.seen, found.catalogs(store), lease.check, partial(_key_lease, work))
        running.done = f"{again.objects} objects written again, {show_bytes(again.stored_bytes)}"
    return PhysicalPrune(tuple(items), doomed, freed, wal, tuple(found.unreadable), again)


@contextmanager
def _key_lease(work: Work) -> Iterator[Callable[[], None]]:
    with take_lease(work, KEYS_LEASE, "prune") as lease:
        yield lease.check


def _look(work: Work) -> tuple[PackState, Survey, PhysicalPlan]:
    now = work.store.now()
    state = read_packs(work.store, now)
    repository = open_repository(work.store)
    found = survey(work.store, state, trusted=work.trusted, repository_id=repository.id)
    return state, found, plan_physical(found.seen, now=now, window=timedelta(days=work.settings.pitr_window_days))


def _items(state: PackState, plan: PhysicalPlan) -> Iterator[Going]:
    """The backups by the plan, and the unfinished, by id."""
    decisions = {decision.backup_id: decision for decision in plan.backups}
    removed = set(base_prune.unfinished(state.base.intents))
    named = Counter(pack for needed in state.base.packs.values() for pack, _ in needed)
    for backup_id, folder in state.base.intents.folders.items():
        own_bytes = sum(size_bytes for pack, size_bytes in state.base.packs.get(backup_id, ()) if named[pack] == 1)
        decision = decisions.get(backup_id) or _of_unfinished(backup_id, removed)
        yield Going(backup_id, decision.keep, decision.reason, folder.own_bytes + own_bytes)


def _of_unfinished(backup_id: BackupId, removed: set[BackupId]) -> BackupDecision:
    if backup_id in removed:
        return BackupDecision(backup_id, keep=False, reason="never finished, and its run gave no sign of life for a day")
    return BackupDecision(
        backup_id, keep=True, reason="not finished: being written, or needed by a run, or left less than a day ago"
    )


def _due(store: Store, state: PackState) -> Freed:
    """What a prune of now would delete of what was doomed a day ago."""
    packs = stored_bytes = keys = 0
    for info, record in read_records(store).items():
        if store.now() - info.modified_at >= GRACE:
            going = base_prune.going_packs(state, record)
            packs, stored_bytes = packs + len(going), stored_bytes + sum(pack.size_bytes for pack in going)
            keys += sum(state.is_key_unneeded(BackupId.parse(run)) for run in record.keys)
    return Freed(packs, stored_bytes, keys)
