"""Makes every check, one after the other, each in its time: one that raises or hangs is a red line, never the end."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from clipper_backup.clock import Clock
from clipper_backup.config import Settings
from clipper_backup.errors import ClipperError
from clipper_backup.ops.doctor import of_dumps, of_machine, of_recovery, of_server, of_store
from clipper_backup.ops.doctor.declared import Check, Surroundings
from clipper_backup.ops.findings import Colour, Finding
from clipper_backup.values import show_seconds

CHECK_SECONDS = 30.0
"""How long one check may take: more than any two things in it that have limits of their own."""
ALL_SECONDS = 180.0
"""How long all together may take; what is then left is red."""

CHECKS: tuple[Check, ...] = (*of_store.CHECKS, *of_dumps.CHECKS, *of_server.CHECKS, *of_recovery.CHECKS, *of_machine.CHECKS)
"""Every check, in the order in which they are made: what one needs stands before it."""


@dataclass(frozen=True, slots=True)
class Line:
    """A check with what it found, and what to do about it: nothing when it is green, or was not looked at."""

    check: Check
    finding: Finding
    todo: tuple[str, ...]


def examine(
    load: Callable[[], Settings],
    clock: Clock,
    environment: Mapping[str, str],
    *,
    checks: Sequence[Check] = CHECKS,
    check_seconds: float = CHECK_SECONDS,
    all_seconds: float = ALL_SECONDS,
) -> Iterator[Line]:
    """The line of each of *checks*, in their order. *load* gives the settings, or raises what is wrong with them."""
    here = Surroundings(load, clock, environment)
    unknown: set[str] = set()
    until = clock.monotonic() + all_seconds
    for check in checks:
        left = until - clock.monotonic()
        if missing := [name for name in check.needs if name in unknown]:
            unknown.add(check.name)
            text = f"not looked at before this is right: {missing[0]}"
            yield Line(check, Finding(Colour.YELLOW, text, waits_for=missing[0]), ())
            continue
        if left <= 0:
            finding = Finding(Colour.RED, f"not looked at: the others took {show_seconds(all_seconds)}")
        else:
            finding = _within(min(check_seconds, left), partial(check.look, here))
        if finding.colour is Colour.RED:
            unknown.add(check.name)
        yield Line(check, finding, () if finding.colour is Colour.GREEN else finding.todo or (check.todo,))


def _within(seconds: float, look: Callable[[], Finding]) -> Finding:
    """What *look* finds, in a thread of its own; a finding for whatever it raises, and when it has not ended in time."""
    found: list[Finding] = []

    def run() -> None:
        try:
            found.append(look())
        except Exception as error:  # noqa: BLE001  whatever it is, the other lines are still wanted
            found.append(_failed(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else Finding(Colour.RED, f"no answer within {show_seconds(seconds)}")


def _failed(error: Exception) -> Finding:
    if isinstance(error, ClipperError):
        return Finding(Colour.RED, error.message, error.hints)
    text = f"internal error: {type(error).__name__}: {error}"
    return Finding(Colour.RED, text, ("this is a bug, please report it",))
