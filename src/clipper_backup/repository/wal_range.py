"""Whether every segment that a restore needs is there and links, before it begins (docs/design/repository-wal.md, The plan).

`wal fetch` compares all of it again, with the segments themselves: this is so that a restore that cannot end well does not begin.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from clipper_backup.clock import Clock
from clipper_backup.errors import IntegrityError, StoreError, WalGapError
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.wal_objects import HEADER_BYTES_MIN, NO_LINK
from clipper_backup.repository.lines import Line
from clipper_backup.repository.wal_catalog import Listed, WalCatalog
from clipper_backup.store.protocol import Store
from clipper_backup.values import Timeline, show_count, show_time
from clipper_backup.wal_names import Segment

GAP_HINTS = (
    "choose a target before it, or begin with a backup behind it: `clipper-backup base list`",
    "to end there: without a target, and --accept-gap",
)
"""What a restore can do about a gap."""
FOREIGN = "is not the one that was there when the base backup was taken: it is of another history, or was archived anew"
_LOOK_AGAIN_SECONDS = 1.0
_READERS = 8
"""Claims that are read at once: a bucket answers each in some 30 ms."""


def own_links(summary: BaseSummary) -> dict[str, str]:
    """The links of a backup's first and last segment, by their names: those of the server's own WAL. As far as it has them."""
    known = ((summary.first_segment, summary.first_link), (summary.last_segment, summary.last_link))
    return {name: link for name, link in known if isinstance(link, str)}


def foreign_wal(catalog: WalCatalog, summary: BaseSummary) -> list[Segment]:
    """Those two that the archive has other WAL of by now. A claim that is gone or cannot be read says nothing here."""
    found = []
    for name, link in own_links(summary).items():
        segment = Segment.parse(name, summary.sizes.segment_bytes)
        try:
            claim = catalog.claim(segment)
        except (IntegrityError, StoreError) as error:
            if error.temporary:
                raise
            continue
        if claim is not None and catalog.link_of(claim).hex() != link:
            found.append(segment)
    return found


def refuse_foreign(catalog: WalCatalog, summary: BaseSummary) -> None:
    """IntegrityError where the archive has other WAL than the backup was taken with: it would be replayed onto its pages."""
    for segment in foreign_wal(catalog, summary):
        raise IntegrityError(
            f"{segment} of the base backup {summary.id} {FOREIGN}",
            hints=["another base backup may do: `clipper-backup base list`", "`clipper-backup base verify` says it of each"],
        )


class Linked(Protocol):
    """Which segments are known to link, without looking at their claims."""

    def linked(self, segment: Segment) -> bool:
        """Whether somebody compared its claim with that of the segment before, and it fits."""
        ...


@dataclass(frozen=True, slots=True)
class Gap:
    """Where the WAL of a line cannot be followed: the segment that is missing or does not link, and what is known of it."""

    segment: Segment
    why: str

    def error(self) -> WalGapError:
        """The refusal of a restore that needs it."""
        return WalGapError(
            f"the WAL has a gap at {self.segment}: {self.why}",
            hints=GAP_HINTS,
        )


@dataclass(frozen=True, slots=True)
class WalRange:
    """The segments of a line from the first on that are there and link; `gap` is what lies behind them, None: nothing does."""

    segments: Sequence[Segment]
    stored_bytes: int
    gap: Gap | None


class RangeCheck:
    """Looks at the archive of which *catalog* tells. A claim younger than *wait_seconds* is waited for: its object may follow."""

    def __init__(self, store: Store, catalog: WalCatalog, clock: Clock, known: Linked, wait_seconds: float) -> None:
        self._store, self._catalog, self._clock = store, catalog, clock
        self._known, self._wait_seconds = known, wait_seconds
        self._folders: dict[tuple[int, str], dict[Segment, Listed]] = {}

    def follow(self, line: Line, first: Segment, last: Segment | None) -> WalRange:
        """From *first* to *last*, without it to the end of what is there. *first* has no segment before it to fit to."""
        segments: list[Segment] = []
        stored, gap = 0, None
        for segment in self._numbered(line, first, last):
            size = self._stored_bytes(segment)
            if size is None:
                gap = self._what_is_missing(line, segment, needed=last is not None)
                break
            segments.append(segment)
            stored += size
        unlinked = self._first_unlinked(line, segments)
        if unlinked is not None:
            why = "it does not follow the one before it: they come from different histories"
            kept = [segment for segment in segments if segment.number < unlinked.number]
            return WalRange(kept, stored, Gap(unlinked, why))
        return WalRange(segments, stored, gap)

    def _numbered(self, line: Line, first: Segment, last: Segment | None) -> Iterator[Segment]:
        number = first.number
        while last is None or number <= last.number:
            yield line.segment(number, first.size_bytes)
            number += 1

    def _stored_bytes(self, segment: Segment) -> int | None:
        """The size of its object; None when there is none, and none can be expected any more."""
        began = self._clock.monotonic()
        while True:
            listed = self._listed(segment)
            if listed.stored is not None:
                return None if listed.stored.size_bytes < HEADER_BYTES_MIN else listed.stored.size_bytes
            if listed.claim is None:
                return None
            # Two limits, because the store's clock and ours may differ.
            young = (self._store.now() - listed.claim.modified_at).total_seconds() < self._wait_seconds
            if not young or self._clock.monotonic() - began >= self._wait_seconds:
                return None
            self._clock.sleep(_LOOK_AGAIN_SECONDS)
            self._folders.pop((segment.timeline, segment.folder))

    def _listed(self, segment: Segment) -> Listed:
        place = (segment.timeline, segment.folder)
        if place not in self._folders:
            self._folders[place] = self._catalog.segments(segment.timeline, segment.folder)
        return self._folders[place].get(segment, Listed())

    def _what_is_missing(self, line: Line, segment: Segment, *, needed: bool) -> Gap | None:
        """The gap at a segment that is not there; None when the archive simply ends before it."""
        claim, stored = self._listed(segment).claim, self._listed(segment).stored
        if stored is not None:
            return Gap(segment, f"{stored.key} has {show_count(stored.size_bytes, 'byte')}, less than a header: it is cut short")
        known = (
            "nothing of it is there"
            if claim is None
            else f"claimed at {show_time(claim.modified_at)}, never stored, or lost since"
        )
        if needed:
            return Gap(segment, known)
        if segment.timeline != line.timeline:
            return Gap(segment, f"{known}, and timeline {int(line.timeline)} begins behind it")
        if (behind := self._catalog.stored_behind(segment)) is not None:
            return Gap(segment, f"{known}, and {behind} is there")
        if (timeline := self._descendant_behind(segment)) is not None:
            return Gap(segment, f"{known}, and timeline {int(timeline)} began behind it")
        return None

    def _descendant_behind(self, segment: Segment) -> Timeline | None:
        """A timeline that left that of *segment* at its end or later, so that somebody saw it whole."""
        for timeline, listed in self._catalog.histories().items():
            ancestors = self._catalog.ancestors(timeline) if listed.claim is not None else []
            if any(each.timeline == segment.timeline and each.left_at >= segment.end for each in ancestors):
                return timeline
        return None

    def _first_unlinked(self, line: Line, segments: Sequence[Segment]) -> Segment | None:
        """The first that does not link to the one before it on its timeline."""
        pairs = [
            (before, segment)
            for before, segment in pairwise(segments)
            if before.timeline == segment.timeline and not line.is_first(segment) and not self._known.linked(segment)
        ]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="claims") as pool:
            for (_, segment), fits in zip(pairs, pool.map(lambda pair: self._fits(*pair), pairs), strict=True):
                if not fits:
                    return segment
        return None

    def _fits(self, before: Segment, segment: Segment) -> bool:
        claim, previous = self._catalog.claim(segment), self._catalog.claim(before)
        if claim is None or previous is None:
            return False
        named = bytes.fromhex(claim.previous)
        if named == NO_LINK:
            return self._listed(segment).link is not None  # what it says is for `wal fetch`, which can open it, to compare
        return named == self._catalog.link_of(previous)
