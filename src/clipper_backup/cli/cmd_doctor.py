"""`doctor`: a line for each thing that must be right, and what to do where it is not."""

import os
from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli.context import Context
from clipper_backup.cli.show_findings import finding_items, findings_text, raise_if_red


def doctor(
    *,
    for_pitr: Annotated[
        bool,
        Parameter(help="before archiving is switched on in Kubernetes, which restarts the database: what would be in its way"),
    ] = False,
    context: Context,
) -> None:
    """Look at all that dumps and restores need: a line for each, green, yellow or red; exit 1 when one is red."""
    from clipper_backup.ops.doctor import of_pitr
    from clipper_backup.ops.doctor.examine import CHECKS, examine

    checks = of_pitr.CHECKS if for_pitr else CHECKS
    lines = examine(lambda: context.settings, context.clock, os.environ, checks=checks)
    rows = [(line.check.name, line.finding, line.todo) for line in lines]
    context.answer({"schema": 1, **finding_items(rows)}, findings_text(rows))
    raise_if_red(rows)
