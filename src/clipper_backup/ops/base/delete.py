"""`base delete`: one base backup by name, never the one that everything else rests on."""

from clipper_backup.errors import UsageError
from clipper_backup.ops.base.read import base_catalog, base_entry, order_of
from clipper_backup.ops.lease import PRUNE_LEASE, take_lease
from clipper_backup.ops.work import Work, step
from clipper_backup.repository.base_prune import held_ids, remove_backup
from clipper_backup.repository.root import open_repository
from clipper_backup.values import BackupId


def check_base_deletable(work: Work, backup_id: BackupId, *, last: bool = False) -> None:
    """UsageError when it is held, or, unless *last*, when no newer good one follows it. MissingError when it is not there."""
    open_repository(work.store, writing=True)
    entry = base_entry(work, backup_id)
    if backup_id in held_ids(work.store):
        raise UsageError(f"the base backup {backup_id} is held", hints=[f"`clipper-backup release {backup_id}` first"])
    if not last and not any(each.entry.good and order_of(each.entry) > order_of(entry) for each in base_catalog(work)):
        raise UsageError(
            f"no newer good base backup follows {backup_id}: without it, what came after cannot be restored",
            hints=["take another first", "--last removes it all the same"],
        )


def delete_base(work: Work, backup_id: BackupId, *, last: bool = False) -> None:
    """Remove one base backup under the lease; refused like `check_base_deletable`. The next prune removes its packs."""
    with take_lease(work, PRUNE_LEASE, "base delete") as lease, step(work, "delete", f"delete {backup_id}") as running:
        check_base_deletable(work, backup_id, last=last)
        if not remove_backup(work.store, backup_id, lease.check):
            raise UsageError(f"the base backup {backup_id} is held", hints=[f"`clipper-backup release {backup_id}` first"])
        running.done = f"deleted {backup_id}"
