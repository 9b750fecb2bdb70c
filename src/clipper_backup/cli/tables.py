"""Text tables for answers: columns of equal width, never cut, so that they read well and grep well."""

import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Sequence

_GAP = "  "
_NARROWEST = 20


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = (), width: int | None = None
) -> str:
    """*rows* under *headings*, one line a row, with a line end after each.

    Columns named in *right* are aligned to the right, for numbers. With *width*, the last column is wrapped to fit a
    terminal of that width; nothing else ever is.
    """
    lines = [list(headings), *([cell.replace("\n", "; ") for cell in row] for row in rows)]
    widths = [max(_columns(line[place]) for line in lines) for place in range(len(headings))]
    to_right = [heading in right for heading in headings]
    indent = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    shown = []
    for line in lines:
        *first, last = line
        prefix = "".join(_pad(cell, widths[place], right=to_right[place]) + _GAP for place, cell in enumerate(first))
        if width is not None and width - indent >= _NARROWEST and _columns(last) > width - indent:
            head, *more = textwrap.wrap(last, width - indent)
            shown += [prefix + head, *(" " * indent + part for part in more)]
        else:
            shown.append((prefix + _pad(last, widths[-1], right=to_right[-1])).rstrip())
    return "".join(f"{line}\n" for line in shown)


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
