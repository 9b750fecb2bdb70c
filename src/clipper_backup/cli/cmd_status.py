"""`status`: one screen that says what could be restored now."""

from clipper_backup.cli.context import Context
from clipper_backup.cli.show_status import status_document, status_text
from clipper_backup.errors import IncompleteError, IntegrityError, MissingError
from clipper_backup.ops.status import look_at_repository
from clipper_backup.ops.work import open_work
from clipper_backup.values import show_names


def status(*, context: Context) -> None:
    """What could be restored now, from the repository alone; exit 3 when somebody should look, 13 or 15 when nothing could."""
    work = open_work(context.settings, context.clock, context.emit, read_only=True)
    found = look_at_repository(work)
    context.answer(status_document(found, work.store.url), status_text(found, work.store.url, work.settings))
    if not found.recoverable:
        what = f"no good dump holds {show_names(found.missing)}" if found.missing else "no good dump is there"
        if found.damaged or found.untrusted:
            raise IntegrityError(
                f"{what}: {len(found.damaged)} are damaged, {len(found.untrusted)} not trusted",
                hints=["`clipper-backup dump list` says what is wrong with each", "`clipper-backup dump create` takes another"],
            )
        raise MissingError(
            what, hints=["`clipper-backup dump create` takes one", "`clipper-backup doctor` says what is in its way"]
        )
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise IncompleteError(
            found.problems[0] + more,
            hints=["`clipper-backup dump list` shows what is wrong with each dump, `clipper-backup doctor` what to do"],
        )
