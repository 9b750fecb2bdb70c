"""How findings look: the same document, text and exit code for `doctor` and `bucket check`."""

import textwrap
from collections.abc import Sequence
from typing import Any, TypeAlias

from clipper_backup.cli.tables import table
from clipper_backup.errors import ClipperError
from clipper_backup.ops.findings import Colour, Finding

Row: TypeAlias = tuple[str, Finding, Sequence[str]]
"""The name of a check, what it found, and what to do about it."""

_ONE_BY_ONE = 3
"""So many checks that could not be made have a line each; more of them would hide what is red."""
_WIDTH = 80


def finding_items(rows: Sequence[Row]) -> dict[str, Any]:
    """How many there are of each colour, and all of them."""
    items = [
        {"id": name, "colour": finding.colour.value, "text": finding.text, "todo": list(todo)} for name, finding, todo in rows
    ]
    return {**_counts(rows), "items": items}


def findings_text(rows: Sequence[Row]) -> str:
    """A line for each, below it what to do; those that could not be made together, where they are many; the counts last."""
    waiting = [name for name, finding, _ in rows if finding.waits_for]
    folded = waiting if len(waiting) > _ONE_BY_ONE else []
    cells = []
    for name, finding, todo in rows:
        if name in folded:
            continue
        word = finding.colour.value
        said = [finding.text, *(f"-> {each}" for each in todo)]
        cells.append((word.upper() if finding.colour is Colour.RED else word, name, "\n".join(said)))
    if folded:
        named = textwrap.wrap(", ".join(folded), _WIDTH, break_on_hyphens=False)
        said = [f"{len(folded)} checks are made when what is red is right:", *named]
        cells.append((Colour.YELLOW.value, "not looked at", "\n".join(said)))
    counts = ", ".join(f"{count} {colour}" for colour, count in _counts(rows).items())
    return f"{table(('', 'CHECK', 'FOUND'), cells)}{counts}\n"


def raise_if_red(rows: Sequence[Row]) -> None:
    """ClipperError (exit code 1) that names all that is red."""
    names = [name for name, finding, _ in rows if finding.colour is Colour.RED]
    if names:
        named = ", ".join(dict.fromkeys(names))
        raise ClipperError(f"red, {len(names)} of {len(rows)}: {named}", hints=["below each red line stands what to do"])


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    return {colour.value: sum(finding.colour is colour for _, finding, _ in rows) for colour in Colour}
