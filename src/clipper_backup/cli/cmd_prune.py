"""`prune`, `hold` and `release`: how long things are kept."""

from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli import show_dump
from clipper_backup.cli.context import Context
from clipper_backup.errors import MissingError
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
    """Remove what RETENTION_DAYS no longer keeps; a reason for every dump."""
    work = open_work(context.settings, context.clock, context.emit, read_only=dry_run)
    plan = pruning.plan_prune(work)
    if not dry_run:
        if plan.going:
            context.confirm(f"Remove {len(plan.going)} of {len(plan.decisions)} dumps?", yes=yes)
        with take_dump_lease(work, "prune", context.clock) as lease:
            plan = pruning.execute_prune(work, pruning.plan_prune(work), lease)
    document = {"schema": 1, **show_dump.plan_document(plan, dry_run=dry_run)}
    context.answer(document, show_dump.plan_text(plan, dry_run=dry_run) if plan.decisions else "there are no dumps\n")


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
