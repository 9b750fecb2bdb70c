"""`wal status` and `wal verify`: what of the archive could be restored, and whether it is what it must be."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from clipper_backup.cli.context import Context
from clipper_backup.errors import AccessError, IncompleteError, IntegrityError, MissingError, WalGapError
from clipper_backup.values import show_first

if TYPE_CHECKING:
    from clipper_backup.repository.wal_survey import Hole


def status(
    *,
    no_server: Annotated[bool, Parameter(help="do not ask PostgreSQL what waits to be archived")] = False,
    context: Context,
) -> None:
    """What of the WAL archive could be restored now, what waits, and what would be lost with the server's host.

    Exit 14 when a gap lies in the window of PITR_WINDOW_DAYS, 15 when no base backup leads to its end, 3 when somebody should
    look. A server that does not answer is no error. Links are taken from time maps, and compared where none tells; `wal verify`
    compares all.
    """
    from clipper_backup.cli.show_wal import status_document, status_text
    from clipper_backup.ops.wal.status import wal_status
    from clipper_backup.ops.work import open_work

    work = open_work(context.settings, context.clock, context.emit, read_only=True)
    found = wal_status(work, ask_server=not no_server)
    context.answer(status_document(found, work.store.url), status_text(found, work.store.url))
    raise_gaps(found.seen.gaps)
    if found.seen.window is None:
        raise MissingError(
            f"nothing can be restored to the end of the WAL: {found.seen.why_no_window}",
            hints=[
                "`clipper-backup base create` takes one; `clipper-backup base list` says what is wrong with each",
                "a history that nobody has archived: `clipper-backup wal push pg_wal/<history>` on the server that has it",
            ],
        )
    if found.problems:
        raise IncompleteError(show_first(found.problems))


def verify(
    *,
    read_data: Annotated[bool, Parameter(help="read every file too, open it, and compare it with its claim")] = False,
    context: Context,
) -> None:
    """Compare each claim, link and header of the archive; exit 14 for a gap in the window of PITR_WINDOW_DAYS, 13 for damage.

    A few requests for each segment, or with --read-data all of it. Nothing is written.
    """
    from clipper_backup.cli.show_wal import verify_document, verify_text
    from clipper_backup.ops.wal.verify import verify_wal
    from clipper_backup.ops.work import open_work

    work = open_work(context.settings, context.clock, context.emit, read_only=True)
    found = verify_wal(work, read_data=read_data)
    context.answer(verify_document(found, work.store.url), verify_text(found))
    raise_gaps(found.seen.gaps)
    if found.damage:
        raise IntegrityError(
            show_first(found.damage), hints=["with versioning on, the bucket may still hold what was there before"]
        )
    if found.unopened:
        raise AccessError(
            f"ENCRYPTION_IDENTITY_FILE does not open all of the WAL: {len(found.unopened)} of its files are sealed to other keys,"
            f" the last is {found.unopened[-1]}",
            hints=["the key that their archiver had is needed until these are behind the window, and pruned"],
        )
    if found.newer:
        from clipper_backup.format.documents import NewerError

        raise NewerError(show_first(found.newer), hints=["install the version of clipper-backup that wrote it, or a newer one"])
    if problems := found.seen.problems:
        raise IncompleteError(show_first(problems))


def raise_gaps(gaps: "list[Hole]") -> None:
    """WalGapError when there is one."""
    if gaps:
        more = f" (and {len(gaps) - 1} more gaps)" if len(gaps) > 1 else ""
        raise WalGapError(
            f"the WAL has a gap at {gaps[0].first}: {gaps[0].why}{more}",
            hints=[
                "instants behind it, up to the stop of the next base backup, cannot be restored: take one at once",
                "a segment that still lies in the server's pg_wal closes it: `clipper-backup wal push`",
                "after a failover, the dead server's pg_wal may have it; standbys with archive_mode = always leave no such gap",
            ],
        )
