"""What a look at something found, in a colour: `doctor` and `bucket check` speak the same three."""

from dataclasses import dataclass
from enum import Enum


class Colour(Enum):
    """Green: as it should be. Yellow: works, and somebody should know. Red: dumps or restores fail, or will."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, in one line, and what to do about it; without `todo` what is usually advised."""

    colour: Colour
    text: str
    todo: tuple[str, ...] = ()


def green(text: str) -> Finding:
    """As it should be."""
    return Finding(Colour.GREEN, text)


def yellow(text: str, *todo: str) -> Finding:
    """It works, and somebody should know."""
    return Finding(Colour.YELLOW, text, todo)


def red(text: str, *todo: str) -> Finding:
    """Dumps or restores fail, or will."""
    return Finding(Colour.RED, text, todo)
