"""`status`: one screen that says what could be restored now."""

from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli.cmd_wal_status import raise_gaps
from clipper_backup.cli.context import Context
from clipper_backup.errors import IncompleteError, IntegrityError, MissingError
from clipper_backup.ops.work import open_work
from clipper_backup.values import show_first, show_names


def status(
    *,
    no_server: Annotated[bool, Parameter(help="do not ask PostgreSQL what waits to be archived")] = False,
    context: Context,
) -> None:
    """What could be restored now, by the repository; exit 3 when somebody should look, 14 for a gap, 13 or 15 when nothing could.

    A server that does not answer is no error: it is asked for its archiver only, where there are base backups or WAL.
    """
    from clipper_backup.cli.show_status import all_problems, status_document, status_text
    from clipper_backup.ops.physical_status import look_at_physical
    from clipper_backup.ops.status import look_at_repository

    work = open_work(context.settings, context.clock, context.emit, read_only=True)
    found = look_at_repository(work)
    physical = look_at_physical(work, ask_server=not no_server)
    url = work.store.url
    context.answer(status_document(found, url, physical), status_text(found, url, work.settings, physical))
    if not found.recoverable and (physical is None or physical.window is None):
        what = f"no good dump holds {show_names(found.missing)}" if found.missing else "no good dump is there"
        nor, also = "", []
        if physical is not None:
            nor = f"; and nothing can be restored to the end of the WAL: {physical.wal.seen.why_no_window}"
            also = ["`clipper-backup base create` takes a base backup; `clipper-backup wal status` shows the archive"]
        if found.damaged or found.untrusted:
            raise IntegrityError(
                f"{what}: {len(found.damaged)} are damaged, {len(found.untrusted)} not trusted{nor}",
                hints=[
                    "`clipper-backup dump list` says what is wrong with each",
                    "`clipper-backup dump create` takes another",
                    *also,
                ],
            )
        raise MissingError(
            what + nor, hints=["`clipper-backup dump create` takes one", *also, "`clipper-backup doctor` says what is in its way"]
        )
    if physical is not None:
        raise_gaps(physical.wal.seen.gaps)
    problems = all_problems(found, physical)
    if problems:
        raise IncompleteError(
            show_first(problems),
            hints=[
                "`clipper-backup dump list` shows what is wrong with each dump, `clipper-backup doctor` what to do",
                *(["of base backups and WAL: `clipper-backup base list`, `clipper-backup wal status`"] if physical else []),
            ],
        )
