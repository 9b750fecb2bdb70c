"""Text tables for answers: columns of equal width, never cut, so that they read well and grep well."""

import itertools
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Sequence

_GAP = "  "
_NARROWEST = 12


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = (), width: int | None = None
) -> str:
    """*rows* under *headings*; a cell of several lines makes its row as tall.

    Columns named in *right* are aligned to the right, for numbers. With *width*, the last column is wrapped to fit a
    terminal of that width; nothing else ever is.
    """
    cells = [[cell.split("\n") for cell in row] for row in (headings, *rows)]
    widths = [max(_columns(line) for row in cells for line in row[place]) for place in range(len(headings))]
    room = None if width is None else width - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1)
    if room is not None and room >= _NARROWEST:
        for row in cells:
            row[-1] = [part for line in row[-1] for part in textwrap.wrap(line, room) or [""]]
    lines = []
    for row in cells:
        for parts in itertools.zip_longest(*row, fillvalue=""):
            padded = [_pad(part, widths[at], right=headings[at] in right) for at, part in enumerate(parts)]
            lines.append(_GAP.join(padded).rstrip())
    return "".join(f"{line}\n" for line in lines)


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """One `name: value` a line, values under each other; further lines of a value are indented like its first."""
    listed = [(name, value.splitlines() or [""]) for name, value in items]
    width = max((_columns(name) for name, _ in listed), default=0) + 1
    lines = []
    for name, (first, *more) in listed:
        lines.append(f"{_pad(name + ':', width)}{_GAP}{first}".rstrip())
        lines += [" " * (width + len(_GAP)) + line for line in more]
    return "".join(f"{line}\n" for line in lines)


def _pad(text: str, width: int, *, right: bool = False) -> str:
    blank = " " * (width - _columns(text))
    return blank + text if right else text + blank


def _columns(text: str) -> int:
    """How many terminal columns *text* takes: two for a wide East Asian character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
