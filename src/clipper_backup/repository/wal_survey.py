"""What the archive of a system holds along its lines: where it can be followed, where it has holes, and what those cost.

An object counts with its claim alone, and a segment with the one before it only when they link (W1, W8).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from clipper_backup.errors import IntegrityError, ObjectMissingError, StoreError, UsageError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import BaseSummary, Claim
from clipper_backup.format.names import SEALED
from clipper_backup.format.time_maps import MapName, TimeMap
from clipper_backup.format.wal_objects import HEADER_BYTES_MIN, NO_LINK, ObjectKind, decode_object
from clipper_backup.repository.base_backups import is_on
from clipper_backup.repository.lines import Line
from clipper_backup.repository.times import Piece, TimeMaps
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import Lsn, Timeline, show_time
from clipper_backup.wal_names import Kind, Segment, classify

_FOLDERS_KEPT = 64
_CLAIMS_AT_ONCE = 16
"""A bucket answers each in some 30 ms."""

Objects = Mapping[str, ObjectInfo]
"""The objects of one file of the archive, by the suffix of their keys."""


def is_stored(objects: Objects) -> bool:
    """Whether the file's object is there, sealed or not, and may be one by its size."""
    return any(suffix.startswith(keys.STORED) and info.size_bytes >= HEADER_BYTES_MIN for suffix, info in objects.items())


@dataclass(frozen=True, slots=True)
class Hole:
    """Where a line cannot be followed: so many segments are missing from *first* on; 0: *first* is there and does not fit.

    `in_window`: because of it, an instant cannot be restored that is younger than the window.
    """

    first: Segment
    missing: int
    why: str
    in_window: bool = False

    @property
    def last(self) -> int:
        """The number of the last one that is missing, or of the one that does not fit."""
        return self.first.number + max(1, self.missing) - 1


@dataclass(frozen=True, slots=True)
class Run:
    """Segments of a line that are there and link, by number, both included; and the backups whose WAL lies within."""

    first: int
    last: int
    backups: Sequence[BaseSummary] = ()


@dataclass(frozen=True, slots=True)
class LineSurvey:
    """One line, from the first segment of its oldest backup on (without backups: from its first segment) to its end."""

    line: Line
    runs: Sequence[Run] = ()
    holes: Sequence[Hole] = ()

    @property
    def window(self) -> Run | None:
        """The last run, when a restore can begin in it: from the stop of its first backup to its end every instant is there."""
        return self.runs[-1] if self.runs and self.runs[-1].backups else None


class Listings:
    """Listings of the archive of one system, folder by folder; the last ones are remembered.

    `twice`: the files, of those that were listed, that lie there plain and sealed, both.
    """

    def __init__(self, store: Store, system_id: str, segment_bytes: int) -> None:
        self._store, self._system_id, self.segment_bytes = store, system_id, segment_bytes
        self._folders: dict[Timeline, list[str]] = {}
        self._files: dict[tuple[Timeline, str], dict[str, dict[str, ObjectInfo]]] = {}
        self.twice: set[str] = set()

    def folders(self, timeline: Timeline) -> list[str]:
        """The folders of a timeline that hold files, rising."""
        if timeline not in self._folders:
            named = self._store.folders(keys.timeline_folder(self._system_id, timeline))
            self._folders[timeline] = [name for name in named if len(name) == 16 and name.startswith(str(timeline))]
        return self._folders[timeline]

    def files(self, timeline: Timeline, folder: str) -> dict[str, dict[str, ObjectInfo]]:
        """The files in one of them, in order of their names."""
        place = (timeline, folder)
        if place not in self._files:
            found: dict[str, dict[str, ObjectInfo]] = {}
            if folder in self.folders(timeline):
                for info in self._store.list(f"{keys.timeline_folder(self._system_id, timeline)}{folder}/"):
                    if (key := keys.parse_archive_key(info.key)) is not None:
                        found.setdefault(key.name, {})[key.suffix] = info
            both = {keys.STORED, keys.STORED + SEALED}
            self.twice |= {name for name, objects in found.items() if both <= objects.keys()}
            if len(self._files) == _FOLDERS_KEPT:
                del self._files[next(iter(self._files))]
            self._files[place] = found
        return self._files[place]

    def objects(self, segment: Segment) -> Objects:
        """Those of one segment."""
        return self.files(segment.timeline, segment.folder).get(segment.name, {})

    def newest(self, timeline: Timeline) -> Segment | None:
        """The last segment of a timeline whose object is there."""
        return self._outermost(timeline, last=True)

    def oldest(self, timeline: Timeline) -> Segment | None:
        """The first one."""
        return self._outermost(timeline, last=False)

    def _outermost(self, timeline: Timeline, *, last: bool) -> Segment | None:
        for folder in sorted(self.folders(timeline), reverse=last):
            stored = [segment for segment, objects in self.segments(timeline, folder).items() if is_stored(objects)]
            if stored:
                return max(stored) if last else min(stored)
        return None

    def segments(self, timeline: Timeline, folder: str) -> dict[Segment, Objects]:
        """The segments in a folder, rising: what is there of each."""
        found: dict[Segment, Objects] = {}
        for name, objects in self.files(timeline, folder).items():
            if classify(name) is Kind.SEGMENT:
                with suppress(UsageError):  # of a system with larger segments
                    found[Segment.parse(name, self.segment_bytes)] = objects
        return found


class Links:
    """Whether neighbours link, by time maps where they say so, else by claims, of which at most *budget* are compared.

    `unlooked` counts those that were not compared for that; `damaged` says of claims and links what is wrong with them.
    """

    def __init__(
        self, store: Store, catalog: WalCatalog, listings: Listings, *, maps: TimeMaps | None, budget: int | None
    ) -> None:
        self._store, self._catalog, self._listings, self._maps, self._budget = store, catalog, listings, maps, budget
        self._claims: dict[Segment, Claim | None] = {}
        self._pieces: dict[Timeline, list[Piece]] = {}
        self._map: tuple[MapName, TimeMap | None] | None = None
        self.damaged: dict[Segment, str] = {}
        self.unlooked = 0

    def fit(self, segment: Segment) -> bool | None:
        """Whether *segment* links to the one before it on its timeline; None when that was not compared, or cannot be."""
        if self._maps is not None and self._is_mapped(segment, self._maps):
            return True
        if self._budget is not None and self._budget <= 0:
            self.unlooked += 1
            return None
        self._budget = None if self._budget is None else self._budget - 1
        claim, before = self.claim(segment), self.claim(segment.previous())
        if claim is None or before is None:
            return None
        named = bytes.fromhex(claim.previous)
        return (self._healed(segment, claim) if named == NO_LINK else named) == self._catalog.link_of(before)

    def claim(self, segment: Segment) -> Claim | None:
        """The claim of a segment; None when there is none, or a damaged one. Those behind it are read with it: they are next."""
        if segment not in self._claims:
            near = [each for each in self._listings.segments(segment.timeline, segment.folder) if segment <= each]
            wanted = near[:_CLAIMS_AT_ONCE] if segment in near else [segment]
            with ThreadPoolExecutor(_CLAIMS_AT_ONCE, thread_name_prefix="claims") as pool:
                found = dict(zip(wanted, pool.map(self._read, wanted), strict=True))
            before = None if segment.number == 0 else self._claims.get(segment.previous())
            self._claims = found if before is None else {segment.previous(): before, **found}
        return self._claims[segment]

    def _read(self, segment: Segment) -> Claim | None:
        try:
            return self._catalog.claim(segment)
        except (IntegrityError, StoreError) as error:
            if error.temporary:
                raise
            self.damaged[segment] = error.message
            return None

    def _healed(self, segment: Segment, claim: Claim) -> bytes | None:
        """What its `.link` says; None without one, or with one that is not its own."""
        key = keys.archive_key(self._catalog.system_id, segment.name, keys.LINK)
        try:
            header, _ = decode_object([self._store.get(key)], key)
        except ObjectMissingError:
            return None
        except IntegrityError as error:
            self.damaged[segment] = error.message
            return None
        own = header.kind is ObjectKind.LINK and (header.salt.hex(), header.digest.hex()) == (claim.salt, claim.digest)
        return header.previous if own else None

    def _is_mapped(self, segment: Segment, maps: TimeMaps) -> bool:
        """Whether a map says that it links."""
        if segment.timeline not in self._pieces:
            self._pieces[segment.timeline] = maps.cover(segment.timeline)
        pieces = self._pieces[segment.timeline]
        place = bisect_right(pieces, segment.number, key=lambda piece: piece.first) - 1
        if place < 0 or pieces[place].last < segment.number:
            return False
        name = pieces[place].name
        if self._map is None or self._map[0] != name:
            self._map = (name, maps.read(name))
        known = self._map[1]
        return known is not None and known.segments[segment.number - name.first.number].linked


def survey_line(
    line: Line,
    listings: Listings,
    backups: Sequence[BaseSummary],
    fit: Callable[[Segment], bool | None],
    *,
    since: datetime,
) -> LineSurvey:
    """Follow *line* from the first of the *backups* that lie on it to its end; *since* is where the window begins."""
    size = listings.segment_bytes
    on_line = sorted((each for each in backups if is_on(line, each)), key=lambda each: Lsn.parse(each.start_lsn))
    spans = [(Segment.parse(each.first_segment, size).number, Segment.parse(each.last_segment, size).number) for each in on_line]
    oldest = next((found for part in line.parts if (found := listings.oldest(part.timeline)) is not None), None)
    newest = listings.newest(line.timeline)
    first = spans[0][0] if spans else 0 if oldest is None else oldest.number
    last = newest.number if newest is not None else line.parts[-1].begin // size - 1
    runs, holes = _follow(line, listings, fit, first, last)
    whole = [Run(run.first, run.last, _within(run, on_line, spans)) for run in runs]
    written_at = max((info.modified_at for info in (listings.objects(newest) if newest else {}).values()), default=since)
    return LineSurvey(line, whole, [_judged(hole, whole, spans, written_at, since) for hole in holes])


def _follow(
    line: Line, listings: Listings, fit: Callable[[Segment], bool | None], first: int, last: int
) -> tuple[list[Run], list[Hole]]:
    runs: list[Run] = []
    holes: list[Hole] = []
    begun: int | None = None
    for number in range(first, last + 1):
        segment = line.segment(number, listings.segment_bytes)
        objects = listings.objects(segment)
        if not is_stored(objects):
            if begun is not None:
                runs.append(Run(begun, number - 1))
                begun = None
            before = holes[-1] if holes else None
            if before is not None and before.missing and before.first.timeline == segment.timeline and before.last == number - 1:
                holes[-1] = replace(before, missing=before.missing + 1)
            else:
                holes.append(Hole(segment, 1, _why(objects)))
        elif begun is None:
            begun = number
        elif segment.timeline == line.segment(number - 1, segment.size_bytes).timeline and fit(segment) is False:
            runs.append(Run(begun, number - 1))
            holes.append(Hole(segment, 0, "it does not follow the one before it: they come from different histories"))
            begun = number
    if begun is not None:
        runs.append(Run(begun, last))
    return runs, holes


def _why(objects: Objects) -> str:
    claim = objects.get(keys.CLAIM)
    if rest := [info.size_bytes for suffix, info in objects.items() if suffix.startswith(keys.STORED)]:
        return f"its object has {max(rest)} bytes and is none"
    return (
        "nothing of it is there" if claim is None else f"claimed at {show_time(claim.modified_at)}, never stored, or lost since"
    )


def _within(run: Run, backups: Iterable[BaseSummary], spans: Iterable[tuple[int, int]]) -> list[BaseSummary]:
    return [backup for backup, (first, last) in zip(backups, spans, strict=True) if run.first <= first and last <= run.last]


def _judged(hole: Hole, runs: Sequence[Run], spans: Iterable[tuple[int, int]], written_at: datetime, since: datetime) -> Hole:
    """Whether it costs instants of the window: until the next backup whose WAL is there stopped, or to the end of the line."""
    behind = [run.backups[0].stopped_at for run in runs if run.first >= hole.first.number and run.backups]
    until = behind[0] if behind else written_at
    needed = any(first <= hole.last for first, _ in spans)
    return replace(hole, in_window=needed and until > since)
