"""Which dumps go and which stay, with a reason for each: a pure function of what is there and what time it is."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clipper_backup.repository.dumps import Listed
from clipper_backup.values import DumpId, show_count

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
    databases: Mapping[DumpId, Collection[str]],
    held: Collection[DumpId],
    damaged: Collection[DumpId],
    untrusted: Collection[DumpId] = (),
) -> list[Decision]:
    """Decide for every dump id, oldest first.

    *now* is the store's clock. Ages of dumps count from the time in their id. *databases* says what each good dump holds: the
    newest *minimum* good dumps of each database are kept. *damaged* are committed dumps that lack something, whose summary could
    not be read, or in which a verify found damage: they are kept, and do not count towards the *minimum*. Nor do *untrusted*
    ones, which go by age once there are enough others of each database that they hold.
    """
    good = [d.dump_id for d in dumps if d.committed and d.dump_id not in damaged and d.dump_id not in untrusted]
    newest = _newest(good, minimum, databases)
    enough = Counter(name for dump_id in good for name in databases.get(dump_id, ()))
    for dump_id in untrusted:
        if dump_id not in databases or any(enough[name] < minimum for name in databases[dump_id]):
            newest[dump_id] = f"signed by no key that is trusted: kept until {minimum} are that hold the same"
    return [
        _decide(d, now=now, retention_days=retention_days, newest=newest.get(d.dump_id), held=held, damaged=damaged)
        for d in dumps
    ]


def _newest(good: Sequence[DumpId], minimum: int, databases: Mapping[DumpId, Collection[str]]) -> dict[DumpId, str]:
    """The dumps that are kept for their number, with the words for it; *good* is in order, the oldest first.

    Databases are named only where a dump is not among the newest of all: they are no longer dumped, or less often.
    """
    newest: dict[DumpId, str] = {}
    seen: Counter[str] = Counter()
    for number, dump_id in enumerate(reversed(good)):
        held = databases.get(dump_id, ())
        needed_for = sorted(name for name in held if seen[name] < minimum)
        seen.update(held)
        if number < minimum:
            newest[dump_id] = f"one of the {minimum} newest"
        elif needed_for:
            more = f" (and {len(needed_for) - 1} more)" if len(needed_for) > 1 else ""
            newest[dump_id] = f"one of the {minimum} newest of {needed_for[0]}{more}; `dump delete` lets go of it"
    return newest


def _decide(
    listed: Listed,
    *,
    now: datetime,
    retention_days: int,
    newest: str | None,
    held: Collection[DumpId],
    damaged: Collection[DumpId],
) -> Decision:
    def decision(reason: str, *, keep: bool) -> Decision:
        return Decision(listed.dump_id, keep, reason, listed.stored_bytes)

    age = now - listed.dump_id.at
    days = f"{show_count(max(0, age.days), 'day')} old"
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
        return decision(f"{days}, kept for {show_count(retention_days, 'day')}", keep=True)
    if newest is not None:
        return decision(f"{days}, but {newest}", keep=True)
    return decision(f"{days}, kept for {show_count(retention_days, 'day')} only", keep=False)
