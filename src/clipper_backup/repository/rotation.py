"""Whose turn it is to be read: an arc of a circle that is a cycle long, on which each unit has a place of its own.

The state is an instant for each kind of unit, however many there are (docs/design/verify.md). Nothing here reads anything.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from blake3 import blake3
from msgspec import UNSET, UnsetType

from clipper_backup.format.documents import Rotation

FIRST = timedelta(hours=25)
"""What a run reads that knows of none before: daily ones that may write nothing down cover everything with it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEP = timedelta(microseconds=1)
_PHASE_BYTES = 8


def phase(key: str) -> int:
    """The place of a unit on the circle: 0 to 2^64 - 1."""
    return int.from_bytes(blake3(key.encode()).digest(length=_PHASE_BYTES), "big")


def last_turn(key: str, at: datetime, cycle: timedelta) -> datetime:
    """The last instant, *at* included, at which the turn of the unit *key* came."""
    length = cycle // _STEP
    place = phase(key) * length >> 8 * _PHASE_BYTES
    now = (at - _EPOCH) // _STEP
    return _EPOCH + (now - (now - place) % length) * _STEP


@dataclass(frozen=True, slots=True)
class Arc:
    """The turns behind `since`, up to `until` included; unbroken since `covered_since`."""

    since: datetime
    until: datetime
    cycle: timedelta
    covered_since: datetime

    def holds(self, key: str) -> bool:
        """Whether the unit's turn is among them."""
        return last_turn(key, self.until, self.cycle) > self.since

    def rotation(self, former: Rotation | None, *, all_read: bool = False) -> Rotation:
        """What is to be written down once all of it was read; with *all_read*, all units were, whatever their turn."""
        if all_read:
            return Rotation(covered_since=self.until - self.cycle, covered_until=self.until, all_read_at=self.until)
        all_read_at = UNSET if former is None else former.all_read_at
        return Rotation(covered_since=self.covered_since, covered_until=self.until, all_read_at=all_read_at)


def next_arc(former: Rotation | None, cycle_before: timedelta, now: datetime, cycle: timedelta) -> Arc:
    """The turns of a run of *now*, behind the *former* rotation, which had a cycle of *cycle_before*.

    One that ends ahead of *now* is none: a clock ran wrong.
    """
    if former is None or former.covered_until > now:
        begin = now - min(FIRST, cycle)
        return Arc(begin, now, cycle, begin)
    if cycle != cycle_before:  # each unit has another turn now
        return Arc(former.covered_until, now, cycle, former.covered_until)
    return Arc(former.covered_until, now, cycle, former.covered_since)


def is_covered(key: str, modified_at: datetime, rotation: Rotation, cycle: timedelta) -> bool:
    """Whether a unit that was last written at *modified_at* was read in the cycle up to the rotation's end, for sure."""
    read_at = rotation.all_read_at
    if not isinstance(read_at, UnsetType) and read_at > rotation.covered_until - cycle and modified_at < read_at:
        return True
    return last_turn(key, rotation.covered_until, cycle) > max(rotation.covered_since, modified_at)


def share_at(rotation: Rotation, share: float, at: datetime, cycle: timedelta) -> float:
    """Of a *share* that was covered at the rotation's end, about how much still is *at* a later time."""
    read_at = rotation.all_read_at
    if not isinstance(read_at, UnsetType) and read_at > at - cycle:
        return share
    then = rotation.covered_until - max(rotation.covered_since, rotation.covered_until - cycle)
    still = rotation.covered_until - max(rotation.covered_since, at - cycle)
    return 0.0 if still <= timedelta() or then <= timedelta() else share * min(1.0, still / then)
