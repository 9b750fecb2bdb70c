"""WAL that a dead primary left unarchived: it goes into the archive before anything there is removed, and is replayed."""

from dataclasses import replace
from pathlib import Path

from clipper_backup.errors import ClipperError, MissingError, WalGapError
from clipper_backup.ops.events import Warned
from clipper_backup.ops.restore.plan import Plan, Planner, Request
from clipper_backup.ops.wal.push import push
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.data_folder import WAL_FOLDER, DataFolder
from clipper_backup.wal_names import Kind, classify

_READY = ".ready"


def unarchived(data: Path) -> tuple[str, ...]:
    """The files of *data*'s pg_wal that its server holds ready to be archived, in the order for it: histories, then by name.

    What it had not finished, the last segment, is not among them.
    """
    wal = data / WAL_FOLDER
    noted = (path.name.removesuffix(_READY) for path in (wal / "archive_status").glob(f"*{_READY}"))
    names = [name for name in noted if classify(name) is not None and (wal / name).is_file()]
    return tuple(sorted(names, key=lambda name: (classify(name) is not Kind.HISTORY, name)))


def make_plan(work: Work, request: Request) -> Plan:
    """Decide what a restore will do, and what of the WAL that lies at the target is archived first. Nothing is written."""
    try:
        plan = Planner(work, request).plan()
    except (MissingError, WalGapError) as error:
        left = unarchived(request.data) if request.replace else ()
        if not left:
            raise
        path = request.data / WAL_FOLDER / left[0]
        hint = f"{len(left)} files there were never archived and may lead there; one by one: `clipper-backup wal push {path}`"
        raise type(error)(error.message, hints=[*error.hints, hint]) from error
    return replace(plan, left=unarchived(request.data)) if plan.found.state == "cluster" else plan


def archive_left(work: Work, request: Request, plan: Plan) -> Plan:
    """Archive what *plan* says is left, and plan anew where that leads further.

    What cannot be archived ends a restore to the latest, which would lose it; else it is told.
    """
    if plan.found.state != "cluster":
        return plan
    latest = plan.target.kind == "latest"
    if latest and DataFolder(request.data, work.clock).wrote_its_wal():
        work.emit(Warned("what the former server committed in its last, unfinished segment is not replayed; the segment is kept"))
    if not plan.left:
        return plan
    try:
        with step(work, "left", f"archive {len(plan.left)} files of the former server's {WAL_FOLDER}") as running:
            for done, name in enumerate(plan.left):
                running.progress(done, len(plan.left), "segments")
                _archive(work, request.data / WAL_FOLDER / name)
            running.done = f"{len(plan.left)} files of the former server's {WAL_FOLDER} are in the archive"
    except ClipperError as error:
        if latest:
            raise
        work.emit(Warned(error.message, error.hints))
        return plan
    return replace(make_plan(work, request), left=plan.left) if latest else plan


def _archive(work: Work, path: Path) -> None:
    try:
        push(work, path)
    except ClipperError as error:
        raise type(error)(
            f"{path} was never archived, and cannot be now: {error.message}",
            hints=[*error.hints, f"to restore without it: move {path.parent.parent} away, and restore into an empty folder"],
        ) from error
