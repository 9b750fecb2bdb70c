"""What a look at something found, in a colour: `doctor` and `bucket check` speak the same three."""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from clipper_backup.values import show_seconds

SKEW = timedelta(seconds=60)
"""So far two clocks may differ: `dump create` waits for no longer, and leases are renewed more often."""
_LARGE_SKEW = timedelta(minutes=10)


class Colour(Enum):
    """Green: as it should be. Yellow: works, and somebody should know. Red: dumps or restores fail, or will."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, in one line, and what to do about it; without `todo` what is usually advised.

    `waits_for` names the check that must be right before this one can be made: it was not.
    """

    colour: Colour
    text: str
    todo: tuple[str, ...] = ()
    waits_for: str = ""


def green(text: str) -> Finding:
    """As it should be."""
    return Finding(Colour.GREEN, text)


def yellow(text: str, *todo: str) -> Finding:
    """It works, and somebody should know."""
    return Finding(Colour.YELLOW, text, todo)


def red(text: str, *todo: str) -> Finding:
    """Dumps or restores fail, or will."""
    return Finding(Colour.RED, text, todo)


def judge_skew(ahead: timedelta) -> Finding:
    """What it means that the store's clock is so far *ahead* of ours, or behind it when that is negative."""
    text = f"the store's clock and ours differ by {show_seconds(abs(ahead.total_seconds()))}"
    if abs(ahead) <= SKEW:
        return green(text)
    todo = "correct this machine's clock (`timedatectl`), or the store's: ages, leases and ids go by the store's"
    return red(text, todo) if abs(ahead) > _LARGE_SKEW else yellow(text, todo)
