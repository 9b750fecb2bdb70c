"""Lines: which timeline's segment stands for each stretch of WAL on the way to a timeline.

The rules are those of docs/design/repository-wal.md, "Timelines and lines". Nothing here reads anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipper_backup.postgres.history import Ancestor
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment


@dataclass(frozen=True, slots=True)
class Part:
    """What a line takes of one timeline: the bytes from `begin` to before `end`; None: without end. It may be empty."""

    timeline: Timeline
    begin: Lsn
    end: Lsn | None

    def holds_end(self, lsn: Lsn) -> bool:
        """Whether the byte before *lsn* is one of them: *lsn* is the end of something."""
        return self.begin < lsn and (self.end is None or lsn <= self.end)


@dataclass(frozen=True, slots=True)
class Line:
    """A timeline with its ancestors, oldest first, each up to the LSN where it was left. The last part has no end."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, timeline: Timeline, ancestors: Sequence[Ancestor]) -> "Line":
        """By its history, or by the claim of that, oldest ancestor first. Timeline 1 has none.

        Those LSNs may fall: a part ends at the lowest that stands at its line or below.
        """
        parts: list[Part] = []
        begin = Lsn(0)
        for number, ancestor in enumerate(ancestors):
            end = min(later.left_at for later in ancestors[number:])
            parts.append(Part(ancestor.timeline, begin, end))
            begin = end
        return cls((*parts, Part(timeline, begin, None)))

    @property
    def timeline(self) -> Timeline:
        """The one whose line it is."""
        return self.parts[-1].timeline

    def part(self, timeline: Timeline) -> Part | None:
        """What it takes of *timeline*; None when that is no ancestor."""
        return next((part for part in self.parts if part.timeline == timeline), None)

    def segment(self, number: int, size_bytes: int) -> Segment:
        """The segment of that number that lies on it: there is exactly one, of the part that holds its last byte.

        So where an ancestor was left amid a segment, the descendant's segment of that number stands for it.
        """
        end = Lsn((number + 1) * size_bytes)
        return next(Segment(part.timeline, number, size_bytes) for part in self.parts if part.holds_end(end))

    def holds(self, segment: Segment) -> bool:
        """Whether *segment* is the one of its number."""
        return self.segment(segment.number, segment.size_bytes) == segment

    def holds_backup(self, timeline: Timeline, stop_lsn: Lsn) -> bool:
        """Whether what began on *timeline* and ended at *stop_lsn* is a copy of a server on this line."""
        part = self.part(timeline)
        return part is not None and (part.end is None or stop_lsn <= part.end)

    def at(self, end_lsn: Lsn) -> Part:
        """The part on which a recovery is that stops at *end_lsn*, the end of a record."""
        return next(part for part in self.parts if part.holds_end(end_lsn))

    def is_first(self, segment: Segment) -> bool:
        """Whether *segment* is the first one of its timeline's part, so that none of that timeline lies before it."""
        part = self.part(segment.timeline)
        return part is not None and segment.number == part.begin // segment.size_bytes

    def segments(self, first: int, last: int, size_bytes: int) -> Iterator[Segment]:
        """Those numbered from *first* to *last*, both included, in order."""
        return (self.segment(number, size_bytes) for number in range(first, last + 1))
