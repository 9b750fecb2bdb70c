"""WAL that a dead primary left unarchived: it goes into the archive before anything there is removed, and is replayed."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from clipper_backup.errors import ClipperError, MissingError, UsageError, WalGapError
from clipper_backup.ops.events import Warned
from clipper_backup.ops.keys import check_may_sign
from clipper_backup.ops.restore.former import former_server, unarchived_histories
from clipper_backup.ops.restore.plan import Plan, Planner
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.saved_wal import Archived, UnreadableError, bytes_of, held_wal, listed_files, wal_files
from clipper_backup.ops.restore.target_dir import check_space, refuse_changed
from clipper_backup.ops.wal.push import push
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.data_folder import WAL_FOLDER, DataFolder, is_saved_wal
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Timeline, show_count
from clipper_backup.wal_names import Kind, classify, history_name

_READY = ".ready"


def unarchived(data: Path) -> tuple[str, ...]:
    """The files of *data*'s pg_wal that its server holds ready to be archived, in the order for it: histories, then by name.

    What it had not finished, the last segment, is not among them.
    """
    wal = data / WAL_FOLDER
    noted = (path.name.removesuffix(_READY) for path in (wal / "archive_status").glob(f"*{_READY}"))
    names = [name for name in noted if classify(name) is not None and (wal / name).is_file()]
    return tuple(sorted(names, key=lambda name: (classify(name) is not Kind.HISTORY, name)))


def held_of(work: Work, data: Path, plan: Plan) -> set[str]:
    """The files of *data*'s pg_wal that the archive was read to hold, but for those that are replayed."""
    summary = plan.summary
    archived = Archived.of(work, plan.repository_id, summary.system_id, summary.sizes.segment_bytes)
    replayed = () if plan.kept is None else (segment.name for segment in plan.kept.names)
    return held_wal(archived, data, plan.wal.segments).difference(replayed)


def make_plan(work: Work, request: Request) -> Plan:
    """Decide what a restore will do, and what of the WAL that lies at the target is archived first. Nothing is written."""
    try:
        plan = _planned(work, request)
        return _with_left(work, request, plan) if plan.found.state == "cluster" else plan
    except OSError as error:  # of the folder there: what a store refuses is none
        raise UnreadableError.of(request.data, error) from error


def _planned(work: Work, request: Request) -> Plan:
    try:
        return Planner(work, request).plan()
    except (MissingError, WalGapError) as error:
        left = unarchived(request.data) if request.replace else ()
        if not left:
            raise
        path = request.data / WAL_FOLDER / left[0]
        hint = (
            f"{show_count(len(left), 'file there was', 'files there were')} never"
            f" archived and may lead there; one by one: `clipper-backup wal push {path}`"
        )
        raise type(error)(error.message, hints=[*error.hints, hint]) from error


def _with_left(work: Work, request: Request, plan: Plan) -> Plan:
    """With what is left there. Of a timeline that the plan does not go along nothing is archived: it would become the newest.

    UsageError where that may be what is wanted: nobody named a timeline, nor an instant. And to the latest, where what is left
    cannot be signed as the backup is.
    """
    catalog = WalCatalog(work.store, plan.summary.system_id, plan.summary.sizes.segment_bytes)
    former = former_server(request.data, work.clock)
    # Of every timeline: a history alone makes none the newest, and without it the number would be given away once more.
    numbers = [] if former is None else [history_name(each) for each in unarchived_histories(former, catalog)]
    left = tuple(dict.fromkeys([*numbers, *unarchived(request.data)]))
    stray = tuple(name for name in left if plan.way.part(_timeline_of(name)) is None and name not in numbers)
    if stray and plan.target.kind == "latest" and request.timeline is None:
        ours = int(plan.way.timeline)
        path = request.data / WAL_FOLDER / stray[0]
        raise UsageError(
            f"in the {WAL_FOLDER} of {request.data} {show_count(len(stray), 'file is', 'files are')} of"
            f" {timelines_of(stray)}, and never archived: the restore would go along timeline {ours}, without them",
            hints=[
                f"as far as the archive goes: --timeline {ours}; those files are kept, and not archived",
                f"when the server there was the one in use: archive them, histories first: `clipper-backup wal push {path}`",
            ],
        )
    going = tuple(name for name in left if name not in stray)
    names = wal_files(request.data)
    whole = [] if plan.kept is None else [path.name for path in plan.kept.whole]
    copied = set(names).difference(listed_files(catalog, names), going, whole)
    (needed, gained), size = plan.space, bytes_of(request.data / WAL_FOLDER, copied)
    check_space({request.folder: size}, {})  # before anything there is removed
    check_space({**needed, request.folder: needed.get(request.folder, 0) + size}, gained)  # and it stays beside the rest
    if going and plan.target.kind == "latest":
        check_may_sign(work.settings, plan.summary.signed_by)
    return replace(plan, left=going, stray=stray)


def timelines_of(names: Iterable[str]) -> str:
    """What timelines files of pg_wal are of, for people: `timeline 2`, or `timelines 2 and 3`."""
    *others, last = sorted({int(_timeline_of(name)) for name in names})
    return f"timelines {', '.join(map(str, others))} and {last}" if others else f"timeline {last}"


def _timeline_of(name: str) -> Timeline:
    return Timeline.parse(name[:8])


def archive_left(work: Work, request: Request, plan: Plan) -> Plan:
    """Archive what *plan* says is left, and plan anew where that leads further, along the same timeline.

    What cannot be archived ends a restore to the latest, which would lose it; else it is told. In the plan that is returned
    `left` is what is archived now.
    """
    latest = plan.target.kind == "latest"
    if plan.found.state != "cluster":
        return _with_kept(work, request, plan) if request.replace else plan
    if plan.stray:
        theirs = f"{show_count(len(plan.stray), 'file')} of {timelines_of(plan.stray)}"
        work.emit(
            Warned(f"{theirs} in the former server's {WAL_FOLDER}, which the restore does not go along: kept, not archived")
        )
    if plan.left:
        archived: list[str] = []
        try:
            check_may_sign(work.settings, plan.summary.signed_by)
            with step(
                work, "left", f"archive {show_count(len(plan.left), 'file')} of the former server's {WAL_FOLDER}"
            ) as running:
                for done, name in enumerate(plan.left):
                    running.progress(done, len(plan.left), "segments")
                    try:
                        _archive(work, request.data / WAL_FOLDER / name)
                        archived.append(name)
                    except ClipperError as error:
                        if not _is_beside(plan, name):
                            raise
                        work.emit(Warned(error.message, error.hints))
                running.done = f"{show_count(len(archived), 'file')} of the former server's {WAL_FOLDER} archived"
        except ClipperError as error:
            if latest or history_name(plan.way.timeline) in plan.left:  # without it nothing leads there
                raise
            work.emit(Warned(error.message, error.hints))
            return replace(plan, left=tuple(archived))
        plan = replace(plan, left=tuple(archived))
        plan = _anew(work, request, plan) if latest else plan
    plan = _with_kept(work, request, plan)
    if latest and plan.kept is None and not plan.left and DataFolder(request.data, work.clock).wrote_its_wal():
        why = "a standby follows the archive alone" if request.standby else f"on timeline {int(plan.line.timeline)}"
        work.emit(Warned(f"nothing of the former server's {WAL_FOLDER} is replayed behind the archive's end ({why}); it is kept"))
    return plan


def _with_kept(work: Work, request: Request, plan: Plan) -> Plan:
    """Archive what of the kept segments is whole, so that not this restore alone knows what leads to its timeline.

    Without an archiver nobody noted them as ready. What cannot be archived is told: it is replayed from where it lies.
    """
    paths = [] if plan.kept is None else plan.kept.whole
    whole = [path for path in paths if path.parent.name == WAL_FOLDER or is_saved_wal(path.parent)]
    if not whole:
        return plan
    try:
        check_may_sign(work.settings, plan.summary.signed_by)
        with step(work, "kept", f"archive {show_count(len(whole), 'whole segment')} that no archive has") as running:
            for done, path in enumerate(whole):
                running.progress(done, len(whole), "segments")
                push(work, path)
            running.done = f"{show_count(len(whole), 'whole segment')} archived"
    except ClipperError as error:
        work.emit(Warned(f"what is whole behind the archive's end is replayed, and not archived: {error.message}", error.hints))
        return plan
    return _anew(work, request, plan) if plan.target.kind == "latest" else plan


def _is_beside(plan: Plan, name: str) -> bool:
    """Whether it is of a timeline that *plan* does not go along: only its number is worth something."""
    return plan.way.part(_timeline_of(name)) is None


def _anew(work: Work, request: Request, plan: Plan) -> Plan:
    """With what was archived since. UsageError when it is another one than *plan*, which is the one that was shown."""
    anew = make_plan(work, request)
    refuse_changed(request.data, plan.found, anew.found)
    if anew.way.timeline != plan.way.timeline:
        raise UsageError(
            f"the archive goes along timeline {int(anew.way.timeline)} since the restore was planned along"
            f" timeline {int(plan.way.timeline)}",
            hints=["run it again, and look at its plan", f"as it was planned: --timeline {int(plan.way.timeline)}"],
        )
    return replace(anew, left=plan.left)


def _archive(work: Work, path: Path) -> None:
    try:
        push(work, path)
    except ClipperError as error:
        raise type(error)(
            f"{path} was never archived, and cannot be now: {error.message}",
            hints=[*error.hints, f"to restore without it: move {path.parent.parent} away, and restore into an empty folder"],
        ) from error
