"""`prune`, `hold` and `release`: how long things are kept."""

from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli import show_prune
from clipper_backup.cli.context import Context
from clipper_backup.errors import IntegrityError, MissingError
from clipper_backup.ops import physical_prune
from clipper_backup.ops.dump import prune as pruning
from clipper_backup.ops.dump.create import take_dump_lease
from clipper_backup.ops.work import open_work
from clipper_backup.repository.dumps import find_dump, list_dumps
from clipper_backup.repository.root import open_repository

Id = Annotated[str, Parameter(help="the dump, like postgres-backup-20261122-020000, or latest")]


def prune(
    *,
    dry_run: Annotated[bool, Parameter(help="show what would go and why, change nothing")] = False,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
    context: Context,
) -> None:
    """Remove what RETENTION_DAYS and PITR_WINDOW_DAYS no longer keep; a reason for every dump and base backup."""
    work = open_work(context.settings, context.clock, context.emit, read_only=dry_run)
    plan = pruning.plan_prune(work)
    physical, refused = physical_prune.PhysicalPrune(), None
    try:
        physical = physical_prune.plan_physical_prune(work)
    except IntegrityError as error:  # dumps go by themselves
        refused = error
    if not dry_run:
        if plan.going or physical.changes:
            context.confirm(show_prune.question(plan, physical), yes=yes)
        with take_dump_lease(work, "prune", context.clock) as lease:
            plan = pruning.execute_prune(work, pruning.plan_prune(work), lease)
        physical = physical_prune.prune_physical(work) if refused is None else physical
    context.answer(
        {"schema": 1, **show_prune.document(plan, physical, dry_run=dry_run)}, show_prune.text(plan, physical, dry_run=dry_run)
    )
    if refused is not None:
        raise refused
    physical.raise_problems()


def hold(
    dump_id: Id,
    /,
    *,
    reason: Annotated[str, Parameter(help="why it is kept, for whoever finds it")] = "kept by hand",
    context: Context,
) -> None:
    """Keep a dump, whatever its age, until it is released."""
    work = open_work(context.settings, context.clock, context.emit, read_only=False)
    open_repository(work.store)
    found = find_dump(work.store, dump_id)
    pruning.hold(work, found, reason)
    context.answer({"schema": 1, "id": str(found), "held": True}, f"{found} is held")


def release(dump_id: Id, /, *, context: Context) -> None:
    """Take a hold back."""
    work = open_work(context.settings, context.clock, context.emit, read_only=False)
    open_repository(work.store)
    found = find_dump(work.store, dump_id)
    try:
        pruning.release(work, found)
    except MissingError as error:
        if any(listed.dump_id == found for listed in list_dumps(work.store)):
            raise
        raise MissingError(f"there is no dump {found}", hints=["`clipper-backup dump list` shows them"]) from error
    context.answer({"schema": 1, "id": str(found), "held": False}, f"{found} is no longer held")
