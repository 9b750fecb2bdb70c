"""`prune` of base backups and WAL: decided by a pure plan, proven, and removed in the order of the format's page.

Each phase looks anew, and what it finds is proven anew (docs/design/prune.md).
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import timedelta

from clipper_backup.errors import ClipperError
from clipper_backup.format.base_documents import PruneRecord
from clipper_backup.format.documents import NewerError
from clipper_backup.ops.lease import PRUNE_LEASE, take_lease
from clipper_backup.ops.physical_plan import (
    WHY_ANNOUNCED,
    Going,
    PhysicalPrune,
    has_physical,
    look,
    plan_of,
    removal_of,
    wal_removal,
)
from clipper_backup.ops.prune_proof import permitting, prove_removal, prover
from clipper_backup.ops.prune_window import window_of
from clipper_backup.ops.work import Work, skew, step
from clipper_backup.repository import base_prune
from clipper_backup.repository.base_prune import GoingPacks
from clipper_backup.repository.base_state import PackState
from clipper_backup.repository.leases import Lease
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.repository.refresh import refresh
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.wal_prune import delete_wal, going_wal, sum_of
from clipper_backup.values import BackupId, show_bytes, show_count, show_seconds

_MOST_SKEW = timedelta(hours=1)


def prune_physical(work: Work) -> PhysicalPrune:
    """Remove what the window needs no more, under the lease `prune`.

    ClipperError when the store's clock and ours differ by more than an hour (G5), IntegrityError while something that names
    packs cannot be read (G2), or when the proof finds that something promised would be lost: nothing is removed then.
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
    store, window = work.store, window_of(work)
    with step(work, "prove", "show that nothing is removed that is promised") as running:
        looked = look(work, window)
        planned = plan_of(work, looked, window)
        removal = removal_of(work, looked, planned)
        proof = prove_removal(work, removal, with_base=True, with_wal=True)
        proof.refuse()
        running.done = f"what would remain was read again: {show_count(proof.backups, 'good base backup')}, the same window"
    with step(work, "prune base backups", "remove base backups that the window needs no more") as running:
        items = _remove_backups(work, lease, looked.state, planned, removal)
        record = base_prune.doom(store, lease.check, prover(work, with_base=True))
        doomed = (
            0
            if record is None
            else len(record.keys) + sum(last - first + 1 for ranges in record.packs.values() for first, last in ranges)
        )
        freed = base_prune.delete_doomed(store, lease.check, prover(work, with_base=True))
        gone = Counter(item.kind for item in items if not item.keep)
        runs = f", {show_count(gone['unfinished'], 'unfinished run')}" if gone["unfinished"] else ""
        running.done = (
            f"{show_count(gone['base backup'], 'base backup')}{runs} removed;"
            f" {show_count(freed.packs, 'pack')} deleted, {show_bytes(freed.stored_bytes)}"
        )
    with step(work, "prune WAL", "remove WAL that the window needs no more") as running:
        looked = look(work, window)  # anew: somebody may have held what was to go
        catalogs = looked.found.catalogs(store)
        proven = prover(work, with_wal=True)(wal_removal(sum_of(going_wal(store, catalogs, looked.plan))))
        wal = delete_wal(proven, going_wal(store, catalogs, looked.plan), lease.check)
        running.done = f"{show_count(wal.segments, 'segment')} removed, {show_bytes(wal.stored_bytes)}"
    with step(work, "refresh", "write again what must outlive a bucket's rule") as running:
        again = refresh(store, looked.state, looked.found.seen, catalogs, lease.check)
        running.done = f"{show_count(again.objects, 'object')} written again, {show_bytes(again.stored_bytes)}"
    announced = window.announced(looked.found.seen, looked.plan, store.now())
    window.remember(work, announced, known=not looked.found.unreadable)
    return replace(
        planned,
        items=tuple(items),
        doomed=doomed,
        freed=freed,
        wal=wal,
        problems=tuple(looked.found.unreadable),
        refreshed=again,
        announced=announced.backups,
        packs=(*freed.runs, *_announced(looked.state, record)),
        proof=proof,
    )


def _announced(state: PackState, record: PruneRecord | None) -> Iterator[GoingPacks]:
    """What this prune announced, of the backups too that it removed."""
    if record is not None:
        packs, keys = base_prune.going_packs(state, record), [BackupId.parse(run) for run in record.keys]
        yield from base_prune.going_by_run(packs, keys, WHY_ANNOUNCED, announced=True)


def _remove_backups(work: Work, lease: Lease, state: PackState, planned: PhysicalPrune, removal: Removal) -> list[Going]:
    """Remove what the plan lets go, and no other; returned is what became of each."""
    proven, items = permitting(work, removal), []
    for item in planned.items:
        why = None
        if not item.keep and state.base.intents.folders[item.backup_id].committed:
            rest = item.backup_id in removal.backups
            try:
                why = None if base_prune.remove_backup(proven, item.backup_id, lease.check, rest=rest) else "held"
            except NewerError as error:  # its mark says more since one that was removed before it handed on what it knew
                why = error.message
        items.append(item if why is None else replace(item, keep=True, reason=why))
    removed = set(base_prune.remove_unfinished(proven, lease.check, removal.backups))
    return [_as_it_went(item, removed) for item in items]


def _as_it_went(item: Going, removed: Collection[BackupId]) -> Going:
    """An unfinished run that was to go, and did not: it was written on since the plan was made, or became a base backup."""
    stays = item.kind == "unfinished" and not item.keep and item.backup_id not in removed
    return replace(item, keep=True, reason="its run gave a sign of life since, or finished") if stays else item
