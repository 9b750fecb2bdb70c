"""What is read in turn: units of a kind, which of them a run reads, and what it counts of them."""

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from clipper_backup.errors import ClipperError
from clipper_backup.format.documents import Rotation, VerifiedKind
from clipper_backup.repository.rotation import Arc, is_covered

TRUST_HINTS = (
    "one from before signing was switched on goes with its age; if the signing key was changed, SIGNATURE_KEYS takes both",
)
"""What to do about a dump or base backup that no trusted key has signed."""


class Mode(Enum):
    """Which units a run reads: those whose turn it is, some that are drawn, or all."""

    ROTATION = "rotation"
    SAMPLE = "sample"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Unit:
    """A dump, a pack or a file of the archive. `modified_at`: when it was last written, by the store's clock."""

    key: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one thing. `text` is for the person who asked; `noted`, without tables or rows, for the report."""

    key: str
    text: str
    noted: str


@dataclass
class Kind:
    """One kind of unit in one run: which are read, and what came of it.

    `covered_bytes` were read within the cycle, `owed_bytes` are older than that and were not: the rest waits for its first turn.
    `known` are the keys of what is known to be damaged: it is read each time. `unopened` says of what was not opened why not;
    `owed`: some of that was not read either, since nothing but what it holds could be compared. `unlooked` is what kept the run
    from looking at something; `cut`: it ended the look before all units were counted.
    """

    name: str
    mode: Mode
    arc: Arc
    former: Rotation | None
    share: float = 0.0
    known: Collection[str] = ()
    units: int = 0
    size_bytes: int = 0
    read_units: int = 0
    read_bytes: int = 0
    covered_bytes: int = 0
    owed_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    unopened: list[ClipperError] = field(default_factory=list)
    owed: bool = False
    unlooked: list[ClipperError] = field(default_factory=list)
    cut: bool = False

    def choose(self, units: Sequence[Unit]) -> set[str]:
        """The keys of those that are read now."""
        if self.mode is Mode.ALL:
            return {unit.key for unit in units}
        if self.mode is Mode.ROTATION:
            return {unit.key for unit in units if unit.key in self.known or self.arc.holds(unit.key)}
        return {unit.key for unit in units if unit.key in self.known} | self._drawn(units)

    def _drawn(self, units: Sequence[Unit]) -> set[str]:
        """Units of about the share of all bytes; one at least, where there is one."""
        drawn, left = set(), self.share * sum(unit.size_bytes for unit in units)
        for unit in random.SystemRandom().sample(units, len(units)):
            if left <= 0:
                break
            left -= unit.size_bytes
            drawn.add(unit.key)
        return drawn

    def count(self, units: Iterable[Unit], read: Collection[str], *, lost: Collection[str] = ()) -> None:
        """Count units of the repository, of which those with the keys *read* were read now, whatever they held.

        Those of *lost* nobody can read, so that no turn of theirs was.
        """
        rotation = self._counted_from
        for unit in units:
            self.units += 1
            self.size_bytes += unit.size_bytes
            if unit.key in read:
                self.read_units += 1
                self.read_bytes += unit.size_bytes
                self.covered_bytes += unit.size_bytes
            elif (
                unit.key not in lost and rotation is not None and is_covered(unit.key, unit.modified_at, rotation, self.arc.cycle)
            ):
                self.covered_bytes += unit.size_bytes
            elif unit.modified_at <= self.arc.until - self.arc.cycle:
                self.owed_bytes += unit.size_bytes

    @property
    def _counted_from(self) -> Rotation | None:
        """What was covered before this run, as far as that counts for its cycle."""
        if self.former is None or self.arc.since != self.former.covered_until or self.arc.covered_since == self.arc.since:
            return None
        return self.former

    @property
    def rotation(self) -> Rotation | None:
        """What is to be written down: moved on only where all that it was the turn of was read."""
        if self.mode is Mode.SAMPLE or self.owed or self.unlooked:
            return self.former
        return self.arc.rotation(self.former, all_read=self.mode is Mode.ALL)

    def document(self) -> VerifiedKind:
        """For the report."""
        return VerifiedKind(
            units=self.units,
            size_bytes=self.size_bytes,
            read_units=self.read_units,
            read_bytes=self.read_bytes,
            covered_bytes=self.covered_bytes,
            owed_bytes=self.owed_bytes,
            damaged=len(self.damaged),
            rotation=self.rotation,
        )
