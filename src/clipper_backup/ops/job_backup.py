"""`job postgres-backup`: what the CronJob runs: a dump, and a base backup where the server archives its WAL, or once did."""

from dataclasses import dataclass

from clipper_backup.errors import ClipperError, IncompleteError
from clipper_backup.ops.base.create import BaseWritten, create_base, refuse_damaged
from clipper_backup.ops.events import Warned
from clipper_backup.ops.job_dump import Done, run_postgres_dump
from clipper_backup.ops.physical_plan import PhysicalPrune, has_physical
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.work import Work, login_of
from clipper_backup.postgres.cluster_facts import is_archiving


@dataclass(frozen=True, slots=True)
class BothDone:
    """What one run did; `base` and `pruned` are None where point-in-time recovery is off."""

    dump: Done
    base: BaseWritten | None
    pruned: PhysicalPrune | None = None


def run_postgres_backup(work: Work) -> BothDone:
    """Dump, prune and report as `run_postgres_dump` does; then a base backup. Each is attempted whatever became of the other.

    ClipperError when one of them failed, or both; the dump's own error where nobody wants a base backup: the server does not
    archive, and the repository holds nothing of the kind. Where it does, that the server archives no more is a failure.
    IncompleteError when only something beside them failed: pruning, or pages that the server found damaged. Nothing is pruned by
    a run whose backup of that kind failed.
    """
    dumped, dump_error = None, None
    try:
        dumped = run_postgres_dump(work)
    except ClipperError as error:
        dump_error = error
    if not _wants_base(work, dump_error):
        if dump_error is not None:
            raise dump_error
        work.emit(
            Warned(
                "point-in-time recovery is off: the server does not archive its WAL, so no base backup was taken",
                ("archive_mode and archive_command switch it on",),
            )
        )
        assert dumped is not None  # noqa: S101  or there is an error
        return BothDone(dumped, None)
    base, pruned, base_error = None, None, None
    try:
        base = create_base(work)
        refuse_damaged(base.summary)
        pruned = _prune(work, base)
    except ClipperError as error:
        base_error = error
    _raise(dump_error, base_error)
    assert dumped is not None  # noqa: S101  or there is an error
    return BothDone(dumped, base, pruned)


def _prune(work: Work, base: BaseWritten) -> PhysicalPrune:
    """Remove what the window needs no more, now that there is a good base backup; IncompleteError says what is left to do."""
    try:
        pruned = prune_physical(work)
        pruned.raise_problems()
    except ClipperError as error:
        raise IncompleteError(
            f"the base backup {base.summary.id} is good, but not all that is old was removed, or kept young: {error}",
            hints=[*error.hints, "when nothing is in its way, `clipper-backup prune` does it, or the next run"],
        ) from error
    return pruned


def _wants_base(work: Work, dump_error: ClipperError | None) -> bool:
    try:
        return is_archiving(login_of(work.settings)) or has_physical(work.store)
    except ClipperError:
        if dump_error is not None:  # it says what is wrong with the server
            return False
        raise


def _raise(dump_error: ClipperError | None, base_error: ClipperError | None) -> None:
    errors = [(what, error) for what, error in (("dump", dump_error), ("base backup", base_error)) if error is not None]
    failed = [(what, error) for what, error in errors if not isinstance(error, IncompleteError)]
    hints = [hint for _, error in errors for hint in error.hints]
    if failed:
        well = {"dump", "base backup"} - {what for what, _ in errors}
        told = "; ".join(f"the {what} failed: {error}" for what, error in failed)
        raise ClipperError(told + "".join(f"; the {what} is good" for what in well), hints=hints) from failed[0][1]
    if errors:
        raise IncompleteError("; ".join(str(error) for _, error in errors), hints=hints)
