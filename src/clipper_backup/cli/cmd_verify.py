"""`verify`: everything that is stored, looked at, and read in turn."""

from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli.cmd_base import parse_share
from clipper_backup.cli.context import Context
from clipper_backup.errors import UsageError
from clipper_backup.ops.verify.units import Mode
from clipper_backup.ops.work import noting, open_work


def verify(
    *,
    read_data: Annotated[bool, Parameter(help="read all of it, and put the newest base backup's files together")] = False,
    sample: Annotated[str | None, Parameter(help="read that much of each kind, drawn at random, like 5%")] = None,
    context: Context,
) -> None:
    """Look at all dumps, base backups and WAL; each day's run reads its share, so that all is read in VERIFY_CYCLE_DAYS.

    Says what is damaged, which instants that costs, what still can be restored, and what to type next. Exit 14 for a gap in the
    window of PITR_WINDOW_DAYS, 13 for damage, 3 when something is sealed and was not opened, or somebody should look. Nothing is
    changed but notes of what was found; where the store lets nobody write them, it says so.
    """
    from clipper_backup.cli.show_verify import verified_document, verified_text
    from clipper_backup.ops.verify.run import verify_all

    if read_data and sample is not None:
        raise UsageError("--read-data reads everything: --sample with it makes no sense")
    mode = Mode.ALL if read_data else Mode.ROTATION if sample is None else Mode.SAMPLE
    share = parse_share(sample)
    work = noting(open_work(context.settings, context.clock, context.emit, read_only=False))
    found = verify_all(work, mode, share=share)
    context.answer(verified_document(found, work.store.url), verified_text(found, work.store.url))
    found.raise_worst()
