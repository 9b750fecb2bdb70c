"""`prune`, `hold` and `release`: how long things are kept."""

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli import show_prune
from clipper_backup.cli.context import Context
from clipper_backup.errors import IntegrityError, MissingError, UsageError
from clipper_backup.format.documents import HoldMark
from clipper_backup.ops.base_hold import hold_base, parse_wal_to, release_base
from clipper_backup.ops.dump import prune as pruning
from clipper_backup.ops.lease import DUMP_LEASE, PRUNE_LEASE, take_lease
from clipper_backup.ops.physical_plan import PhysicalPrune, plan_physical_prune
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.prune_proof import prove_removal
from clipper_backup.ops.work import Work, open_work, this_process
from clipper_backup.repository.dumps import find_dump, list_dumps
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.snapshots import hold_snapshot, is_snapshot
from clipper_backup.values import BackupId, DumpId

Id = Annotated[
    str,
    Parameter(
        help="a dump, like postgres-backup-20261122-020000, or latest; or a base backup or a volume snapshot, like"
        " 20261122-020000-7f3a9c2e"
    ),
]


def prune(
    *,
    dry_run: Annotated[bool, Parameter(help="show what would go and why, change nothing")] = False,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
    context: Context,
) -> None:
    """Remove what RETENTION_DAYS and PITR_WINDOW_DAYS no longer keep; a reason for all that goes, and for what stays.

    Before anything is removed, what would remain is read again by another way, and a plan that takes what is promised is refused.
    """
    work = open_work(context.settings, context.clock, context.emit, read_only=dry_run)
    plan = pruning.plan_prune(work)
    going = [decision.dump_id for decision in plan.going]
    refused = None
    try:
        physical = plan_physical_prune(work, going)
    except IntegrityError as error:  # dumps go by themselves
        refused = error
        physical = PhysicalPrune(proof=prove_removal(work, Removal(dumps=frozenset(going)), with_dumps=True))
    if not dry_run and not physical.proof.problems:
        planned = physical.proof
        if plan.going or physical.changes:
            context.confirm(show_prune.question(plan, physical), yes=yes)
        with take_lease(work, DUMP_LEASE, "prune") as lease:
            plan = pruning.execute_prune(work, pruning.plan_prune(work), lease)
        physical = prune_physical(work) if refused is None else physical
        proof = replace(physical.proof, newest_dump=planned.newest_dump, dumps=planned.dumps)
        physical = replace(physical, proof=proof)
    context.answer(
        {"schema": 1, **show_prune.document(plan, physical, dry_run=dry_run)}, show_prune.text(plan, physical, dry_run=dry_run)
    )
    if refused is not None:
        raise refused
    physical.raise_problems()


def hold(
    kept: Id,
    /,
    *,
    reason: Annotated[str, Parameter(help="why it is kept, for whoever finds it")] = "kept by hand",
    wal_to: Annotated[
        str | None, Parameter(help="of a base backup: keep the WAL from it to this end too, TIMELINE:LSN like 2:16/B374D848")
    ] = None,
    context: Context,
) -> None:
    """Keep a dump, a base backup or a volume snapshot, whatever its age, until it is released.

    Exit 3 when a base backup is held of which something is not there.
    """
    work = open_work(context.settings, context.clock, context.emit, read_only=False)
    open_repository(work.store)
    found: BackupId | DumpId
    if (backup_id := _base_id(kept)) is not None and is_snapshot(work.store, backup_id):
        if wal_to is not None:
            raise UsageError("--wal-to goes with a base backup: of a volume snapshot the WAL from its start to its stop stays")
        found = backup_id
        mark = HoldMark(reason=reason, held_by=this_process(), held_at=work.clock.now())
        hold_snapshot(work.store, backup_id, mark)
    elif backup_id is not None:
        found = backup_id
        hold_base(work, backup_id, reason, None if wal_to is None else parse_wal_to(wal_to))
    elif wal_to is not None:
        raise UsageError("--wal-to goes with a base backup: a dump needs no WAL")
    else:
        found = find_dump(work.store, kept)
        pruning.hold(work, found, reason)
    context.answer({"schema": 1, "id": str(found), "held": True}, f"{found} is held")


def release(kept: Id, /, *, context: Context) -> None:
    """Take a hold back."""
    work = open_work(context.settings, context.clock, context.emit, read_only=False)
    open_repository(work.store)
    found: BackupId | DumpId = _base_id(kept) or find_dump(work.store, kept)
    with take_lease(work, PRUNE_LEASE, "release"):  # a prune that writes holds again must not bring it back
        if isinstance(found, BackupId):
            release_base(work, found)
        else:
            _release_dump(work, found)
    context.answer({"schema": 1, "id": str(found), "held": False}, f"{found} is no longer held")


def _release_dump(work: Work, found: DumpId) -> None:
    try:
        pruning.release(work, found)
    except MissingError as error:
        if any(listed.dump_id == found for listed in list_dumps(work.store)):
            raise
        raise MissingError(f"there is no dump {found}", hints=["`clipper-backup dump list` shows them"]) from error


def _base_id(text: str) -> BackupId | None:
    """The base backup that is meant; None for a dump."""
    try:
        return BackupId.parse(text)
    except UsageError:
        return None
