"""Removing WAL that no window, backup, hold, snapshot or run needs: object, then link, then claim, then time maps.

A claim that outlives its object stands for a refusal, never for data (docs/design/repository-format.md, "Deleting").
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from clipper_backup.errors import UsageError
from clipper_backup.format import physical_names as names
from clipper_backup.format.time_maps import parse_map_key
from clipper_backup.repository.physical_retention import PhysicalPlan, TimelineOf
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment

_KEYS_A_CALL = 500
"""The lease is looked at before each call: so many removals are all that a sleeper makes after it lost it."""


@dataclass(frozen=True, slots=True)
class GoingRange:
    """Segments that go side by side for one reason, from `first` to `last`, both included.

    `segments` of them have an object; `stored_bytes` is what they take with all that lies beside them.
    """

    system_id: str
    first: Segment
    last: Segment
    segments: int
    stored_bytes: int
    reason: str

    @property
    def timeline(self) -> Timeline:
        """The one that they are of."""
        return self.first.timeline

    def joined(self, behind: "GoingRange") -> "GoingRange | None":
        """Both as one; None when they are not side by side, or go for other reasons."""
        alike = (self.system_id, self.timeline, self.reason) == (behind.system_id, behind.timeline, behind.reason)
        if not alike or behind.first.number != self.last.number + 1:
            return None
        stored_bytes = self.stored_bytes + behind.stored_bytes
        return replace(self, last=behind.last, segments=self.segments + behind.segments, stored_bytes=stored_bytes)


def add_range(ranges: list[GoingRange], behind: GoingRange) -> None:
    """Put it behind the others, as a part of the last one where that can be."""
    joined = ranges[-1].joined(behind) if ranges else None
    if joined is None:
        ranges.append(behind)
    else:
        ranges[-1] = joined


@dataclass(slots=True)
class GoingWal:
    """What goes of one folder of segments, or of one folder of time maps; keys in their order, oldest first."""

    segments: int = 0
    stored_bytes: int = 0
    ranges: list[GoingRange] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    claims: list[str] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)

    def batches(self) -> Iterator[list[str]]:
        """The keys of each call that deletes."""
        for keys in (self.stored, self.links, self.claims, self.maps):
            for at in range(0, len(keys), _KEYS_A_CALL):
                yield keys[at : at + _KEYS_A_CALL]


def going_wal(store: Store, catalogs: Mapping[int, WalCatalog], plan: PhysicalPlan) -> Iterator[GoingWal]:
    """What goes by *plan*, oldest first on each timeline. Only folders that begin below the edge are listed.

    Histories and their claims never go.
    """
    if plan.all_wal:
        return
    for system, catalog in sorted(catalogs.items()):
        for timeline in catalog.timelines():
            of, edge = TimelineOf(system, timeline), plan.edge(TimelineOf(system, timeline))
            for folder in catalog.folders(timeline):
                if edge is not None and names.first_segment_of(folder, catalog.segment_bytes) >= edge:
                    continue
                going = _of_folder(store, catalog, of, folder, plan)
                if going.stored or going.links or going.claims:
                    yield going
            maps = _maps(store, catalog, of, plan)
            if maps.maps:
                yield maps


def why_it_goes(plan: PhysicalPlan, of: TimelineOf, segment: Segment) -> str:
    """Why nothing needs a segment any more: it lies before the window of a line that lives, or beside all of them."""
    beside = f"nothing in the window leads through timeline {int(of.timeline)}"
    for seen, anchor in plan.live:
        part = seen.line.part(of.timeline) if seen.system == of.system else None
        if part is None:
            continue
        if anchor is not None and (part.end is None or segment.end <= part.end):
            return f"older than {anchor.backup_id}, with which the window of timeline {int(seen.line.timeline)} begins"
        if part.end is not None and segment.end > part.end:
            beside = f"behind {part.end}, where timeline {int(of.timeline)} was left before the window"
    return beside


def delete_wal(store: Store, going: Iterator[GoingWal], check: Callable[[], None]) -> GoingWal:
    """Delete it; *check* raises when the lease is lost. Returned is the sum, without keys but those of time maps."""

    def deleting() -> Iterator[GoingWal]:
        for each in going:
            for keys in each.batches():
                check()
                store.delete(keys)
            yield each

    return sum_of(deleting())


def sum_of(going: Iterable[GoingWal]) -> GoingWal:
    """All of it as one, without keys but those of time maps."""
    total = GoingWal()
    for each in going:
        total.segments += each.segments
        total.stored_bytes += each.stored_bytes
        total.maps += each.maps
        for one in each.ranges:
            add_range(total.ranges, one)
    return total


def _of_folder(store: Store, catalog: WalCatalog, of: TimelineOf, folder: str, plan: PhysicalPlan) -> GoingWal:
    """Segments that go with all that lies beside them: claim, link, `.backup` and `.partial`."""
    found: dict[int, list[tuple[names.ArchiveKey, ObjectInfo]]] = {}
    for info in store.list(f"{names.timeline_folder(catalog.system_id, of.timeline)}{folder}/"):
        key = names.parse_archive_key(info.key)
        number = None if key is None else _number(key.name[:24], catalog.segment_bytes)
        if key is not None and number is not None:
            found.setdefault(number, []).append((key, info))
    going = GoingWal()
    for number, objects in sorted(found.items()):
        if plan.keeps(of, number, max(info.modified_at for _, info in objects)):
            continue
        is_stored = any(len(key.name) == 24 and key.suffix not in {names.CLAIM, names.LINK} for key, _ in objects)
        stored_bytes = sum(info.size_bytes for _, info in objects)
        segment = Segment(of.timeline, number, catalog.segment_bytes)
        why = why_it_goes(plan, of, segment)
        add_range(going.ranges, GoingRange(catalog.system_id, segment, segment, int(is_stored), stored_bytes, why))
        going.segments += is_stored
        going.stored_bytes += stored_bytes
        for key, info in objects:
            kind = {names.CLAIM: going.claims, names.LINK: going.links}.get(key.suffix, going.stored)
            kind.append(info.key)
    return going


def _maps(store: Store, catalog: WalCatalog, of: TimelineOf, plan: PhysicalPlan) -> GoingWal:
    """The time maps that speak of nothing but segments which do not stay."""
    going = GoingWal()
    for info in store.list(names.times_folder(catalog.system_id, of.timeline)):
        name = parse_map_key(info.key, catalog.segment_bytes)
        if name is None or info.modified_at >= plan.young_from:
            continue
        if not plan.keeps_any(of, name.first.number, name.last.number):
            going.maps.append(info.key)
            going.stored_bytes += info.size_bytes
    return going


def _number(name: str, segment_bytes: int) -> int | None:
    try:
        return Segment.parse(name, segment_bytes).number
    except UsageError:
        return None
