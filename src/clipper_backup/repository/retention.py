"""Which dumps go and which stay, with a reason for each: a pure function of what is there and what time it is."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clipper_backup.repository.dumps import Listed
from clipper_backup.values import DumpId

GARBAGE_AGE = timedelta(days=1)
"""How old the newest object of an unfinished dump must be before it counts as garbage: longer than any dump runs."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one dump id, and why."""

    dump_id: DumpId
    keep: bool
    reason: str
    stored_bytes: int


def plan_retention(
    dumps: Sequence[Listed],
    *,
    now: datetime,
    retention_days: int,
    minimum: int,
    held: Collection[DumpId],
    damaged: Collection[DumpId],
) -> list[Decision]:
    """Decide for every dump id, oldest first.

    *now* is the store's clock. Ages of dumps count from the time in their id. *damaged* are committed dumps that lack
    something, or whose summary could not be read: they are kept, and do not count towards the *minimum* of good ones.
    """
    good = [d.dump_id for d in dumps if d.committed and d.dump_id not in damaged]
    newest = set(good[-minimum:]) if minimum else set()
    return [
        _decide(d, now=now, retention_days=retention_days, minimum=minimum, newest=newest, held=held, damaged=damaged)
        for d in dumps
    ]


def _decide(
    listed: Listed,
    *,
    now: datetime,
    retention_days: int,
    minimum: int,
    newest: Collection[DumpId],
    held: Collection[DumpId],
    damaged: Collection[DumpId],
) -> Decision:
    def decision(reason: str, *, keep: bool) -> Decision:
        return Decision(listed.dump_id, keep, reason, listed.stored_bytes)

    age = now - listed.dump_id.at
    days = "1 day old" if age.days == 1 else f"{max(0, age.days)} days old"
    # Held first: one that lost its summary later may still hold archives that somebody wants.
    if listed.dump_id in held:
        return decision("held", keep=True)
    if not listed.committed:
        if now - listed.last_written_at > GARBAGE_AGE:
            return decision("never finished, and nothing was written for more than a day", keep=False)
        return decision("not finished: being written, or left by a killed run less than a day ago", keep=True)
    if listed.dump_id in damaged:
        return decision("damaged: a person must decide", keep=True)
    if age <= timedelta(days=retention_days):
        return decision(f"{days}, kept for {retention_days} days", keep=True)
    if listed.dump_id in newest:
        return decision(f"{days}, but one of the {minimum} newest", keep=True)
    return decision(f"{days}, kept for {retention_days} days only", keep=False)
