"""Which instants can be restored, and which are promised: positions on the line of each timeline (docs/design/prune.md, W).

Positions are bytes of WAL; a range of them ends before its `end`. Nothing here reads anything.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from clipper_backup.repository.proof.archive import Archived, At
from clipper_backup.repository.proof.base import Base
from clipper_backup.repository.proof.numbers import END, Ranges
from clipper_backup.values import BackupId


@dataclass(frozen=True, slots=True)
class Line:
    """A timeline, and the committed backups of the system that lie on its line, in order of their start."""

    archived: Archived
    timelines: Mapping[At, Archived]
    bases: Sequence[Base]

    @classmethod
    def of(cls, archived: Archived, timelines: Mapping[At, Archived], bases: Iterable[Base]) -> "Line":
        """Of *bases*, those that are a copy of a server on it."""
        ends = {timeline: end for timeline, _, end in archived.parts}
        on = [base for base in bases if _system_of(base) == archived.system and base.stop <= ends.get(base.timeline, -1)]
        return cls(archived, timelines, sorted(on, key=lambda base: (base.start, _finished_at(base))))

    @property
    def good(self) -> list[Base]:
        """Those of its backups that a restore may begin with."""
        return [base for base in self.bases if base.good and has_wal(base, self.timelines)]

    @property
    def own_begin(self) -> int:
        """Where the first segment of its own timeline begins."""
        size = self.archived.segment_bytes
        return self.archived.parts[-1][1] // size * size

    def reach(self, bases: Iterable[Base], *, after: bool) -> Ranges:
        """The positions to which these backups and the WAL behind each lead, before or *after* the plan."""
        return Ranges(self._reach_of(base, after=after) for base in bases)

    def _reach_of(self, base: Base, *, after: bool) -> tuple[int, int]:
        size, number = self.archived.segment_bytes, base.start // self.archived.segment_bytes
        for timeline, begin, end in self.archived.parts:
            behind = END if end == END else end // size
            if number >= behind or number < begin // size:
                continue
            found = self.timelines.get((self.archived.system, timeline))
            there = Ranges() if found is None else (found.stored - found.removed if after else found.stored)
            number = min(there.end_of(number) or number, behind)
            if number < behind:
                break
        return int(base.stop), number * size + 1

    def promised_from(self, edge: datetime) -> int:
        """The highest position of which it is known that it was written before *edge*: from it on instants are of the window."""
        size = self.archived.segment_bytes
        known = [self.own_begin]
        known += [int(base.stop) for base in self.bases if _finished_at(base) < edge]
        for timeline, begin, end in self.archived.parts:
            found = self.timelines.get((self.archived.system, timeline))
            last = None if found is None else (found.old & self.archived.numbers(begin, end)).last
            if last is not None:
                known.append((last + 1) * size)
        return max(known)

    def is_live(self, all_bases: Collection[Base], edge: datetime) -> bool:
        """Whether nothing else stood in its place before *edge*: then its last position is an instant of the window too."""
        own = [_finished_at(base) for base in all_bases if (_system_of(base), base.timeline) == self.at]
        own += [] if self.archived.ends is None else [self.archived.ends[1]]
        own += [] if self.archived.claimed_at is None else [self.archived.claimed_at]
        sign = max(own, default=None)
        return sign is None or not any(
            base.good
            and (_system_of(base), base.timeline) != self.at
            and _system_of(base) >= self.archived.system
            and sign < _finished_at(base) < edge
            for base in all_bases
        )

    @property
    def at(self) -> At:
        """Which timeline it is of."""
        return self.archived.system, self.archived.timeline

    def promised(self, all_bases: Collection[Base], edge: datetime) -> Ranges:
        """The positions of its own timeline that instants since *edge* may need; a live line's last known old one among them."""
        begin = self.promised_from(edge)
        return Ranges([(begin if self.is_live(all_bases, edge) else begin + 1, END)])

    def anchor(self, edge: datetime) -> Base | None:
        """The backup that the window of the line begins with: the newest good one that stopped before it; else the oldest."""
        begin = self.promised_from(edge)
        old = [base for base in self.good if base.stop <= begin]
        return old[-1] if old else next(iter(self.good), None)

    def needed(self, start: int, stop: int) -> Iterator[tuple[At, Ranges]]:
        """The numbers of the segments on it from that of *start* to that of the byte before *stop*, by timeline."""
        size = self.archived.segment_bytes
        wanted = Ranges([(start // size, END if stop >= END else (stop - 1) // size + 1)])
        for timeline, begin, end in self.archived.parts:
            numbers = self.archived.numbers(begin, end) & wanted
            if numbers:
                yield (self.archived.system, timeline), numbers


def own_numbers(base: Base, segment_bytes: int) -> Ranges:
    """The segments of its own timeline without which a backup is not consistent."""
    return Ranges([(base.start // segment_bytes, (base.stop - 1) // segment_bytes + 1)])


def has_wal(base: Base, timelines: Mapping[At, Archived]) -> bool:
    """Whether all of these are in the archive, before the plan."""
    archived = timelines.get((_system_of(base), base.timeline))
    return archived is not None and not own_numbers(base, archived.segment_bytes) - archived.stored


@dataclass(frozen=True, slots=True)
class Window:
    """Instants that can be restored without a gap: from the stop of *backup*, at `since` by the server's clock, to `to_lsn`.

    `until`: when the last segment of it was archived, by the store's clock; None where that is not the last one of its timeline.
    """

    backup: BackupId
    since: datetime
    from_lsn: int
    to_lsn: int
    until: datetime | None


def window_of(line: Line, bases: Sequence[Base], *, after: bool) -> Window | None:
    """The last stretch without a gap that reaches the line's own timeline; None when nothing does."""
    reach = line.reach(bases, after=after)
    if reach.last is None or reach.last < line.own_begin:
        return None
    begin, end = reach.range_of(reach.last) or (0, 0)
    first = min((base for base in bases if begin <= base.stop < end), key=lambda base: base.stop)
    assert first.summary is not None  # noqa: S101  or it would not be on the line
    ends = line.archived.ends
    is_end = ends is not None and (ends[0] + 1) * line.archived.segment_bytes == end - 1
    return Window(first.backup_id, first.summary.stopped_at, begin, end - 1, ends[1] if ends is not None and is_end else None)


def _system_of(base: Base) -> int:
    assert base.summary is not None  # noqa: S101  asked of read ones only
    return base.summary.system_number


def _finished_at(base: Base) -> datetime:
    assert base.summary is not None  # noqa: S101  asked of read ones only
    return base.summary.finished_at
