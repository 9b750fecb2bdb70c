"""`doctor`: a line for each thing that must be right, and what to do where it is not."""

import os

from clipper_backup.cli.context import Context
from clipper_backup.cli.tables import table
from clipper_backup.errors import ClipperError
from clipper_backup.ops.doctor.declared import Colour
from clipper_backup.ops.doctor.examine import Line, examine


def doctor(*, context: Context) -> None:
    """Look at all that dumps and restores need: a line for each, green, yellow or red; exit 1 when one is red."""
    lines = list(examine(lambda: context.settings, context.clock, os.environ))
    counts = {colour.value: sum(line.finding.colour is colour for line in lines) for colour in Colour}
    items = [
        {"id": line.check.name, "colour": line.finding.colour.value, "text": line.finding.text, "todo": list(line.todo)}
        for line in lines
    ]
    summary = ", ".join(f"{count} {colour}" for colour, count in counts.items())
    context.answer({"schema": 1, **counts, "items": items}, f"{_text(lines)}{summary}\n")
    if counts["red"]:
        names = ", ".join(line.check.name for line in lines if line.finding.colour is Colour.RED)
        raise ClipperError(f"red, {counts['red']} of {len(lines)}: {names}", hints=["below each red line stands what to do"])


def _text(lines: list[Line]) -> str:
    rows = []
    for line in lines:
        word = line.finding.colour.value
        said = [line.finding.text, *(f"-> {todo}" for todo in line.todo)]
        rows.append((word.upper() if line.finding.colour is Colour.RED else word, line.check.name, "\n".join(said)))
    return table(("", "CHECK", "FOUND"), rows)
