"""What is there of the archive: histories, timelines, segments, and where each timeline ends.

It only looks, and never at more than it must: histories lie in one folder, segments in one for each 4 GiB of WAL.
"""

from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from clipper_backup.errors import ClipperError, IntegrityError, MissingError, ObjectMissingError, UsageError, WalGapError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import BaseSummary, Claim
from clipper_backup.format.documents import decode
from clipper_backup.format.wal_objects import link_of
from clipper_backup.postgres.history import Ancestor
from clipper_backup.repository.lines import Line
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Kind, Segment, classify, history_name


@dataclass(frozen=True, slots=True)
class Listed:
    """What a listing shows of one file of the archive. `stored` is its object, sealed or not (of two, either)."""

    claim: ObjectInfo | None = None
    stored: ObjectInfo | None = None
    link: ObjectInfo | None = None

    def with_object(self, suffix: str, info: ObjectInfo) -> "Listed":
        """The same, with one object more."""
        if suffix == keys.CLAIM:
            return replace(self, claim=info)
        return replace(self, link=info) if suffix == keys.LINK else replace(self, stored=info)


class WalCatalog:
    """The archive of one system. Every call asks the store anew; its errors pass through."""

    def __init__(self, store: Store, system_id: str, segment_bytes: int) -> None:
        self._store = store
        self.system_id = system_id
        self.segment_bytes = segment_bytes

    # -- timelines

    def histories(self) -> dict[Timeline, Listed]:
        """The histories that are there, or claimed."""
        found = self._listed(keys.histories_folder(self.system_id))
        return {Timeline.parse(name[:8]): listed for name, listed in found.items() if classify(name) is Kind.HISTORY}

    def timelines(self) -> list[Timeline]:
        """Every timeline that has a history, the claim of one, or a folder; rising."""
        folders = set[Timeline]()
        for name in self._store.folders(f"{keys.WAL_FOLDER}{self.system_id}/"):
            try:
                folders.add(Timeline.parse(name))
            except UsageError:
                continue  # `histories`, and what is not ours
        return sorted(folders | self.histories().keys())

    def ancestors(self, timeline: Timeline) -> list[Ancestor]:
        """By the claim of its history, oldest first; timeline 1 has none.

        MissingError where nobody claimed that history, IntegrityError where the claim is damaged.
        """
        if timeline == 1:
            return []
        key = keys.history_key(self.system_id, timeline, keys.CLAIM)
        try:
            claim = self._claim(key, history_name(timeline))
        except ObjectMissingError as error:
            raise MissingError(
                f"nobody has archived the history of timeline {int(timeline)}: there is no {key}",
                hints=["`clipper-backup wal status` shows the timelines that can be restored: name one, --timeline N"],
            ) from error
        named = claim.ancestors or []
        numbers = [number for number, _ in named]
        if not named or sorted({*numbers, timeline}) != [*numbers, timeline]:
            raise IntegrityError(f"{key} is damaged: its ancestors cannot be those of timeline {int(timeline)}")
        return [Ancestor(Timeline(number), Lsn.parse(left_at)) for number, left_at in named]

    def line(self, timeline: Timeline) -> Line:
        """The line of a timeline. MissingError and IntegrityError as for `ancestors`."""
        return Line.of(timeline, self.ancestors(timeline))

    def newest_timeline(self, of_backups: Container[Timeline] = frozenset()) -> Timeline:
        """The highest one whose history was claimed and that holds something: a segment, or a base backup; 1 without any.

        A history alone is what a restore leaves that was opened and did not archive. *of_backups* are those of base backups.
        """
        claimed = [timeline for timeline, listed in self.histories().items() if listed.claim is not None]
        holding = (each for each in sorted(claimed, reverse=True) if each in of_backups or self.newest(each) is not None)
        return next(holding, Timeline(1))

    def followed_timeline(self, of_backups: Container[Timeline] = frozenset()) -> Timeline:
        """`newest_timeline`, to be gone along where nobody named one.

        WalGapError when a newer one holds something and nobody claimed its history: what lies there would be passed over in
        silence, and that is the end of the WAL.
        """
        timelines = [each for each in self.timelines() if each > 1]  # before: one that begins meanwhile is not of these
        newest = self.newest_timeline(of_backups)
        lost = [each for each in timelines if each > newest and (each in of_backups or self.newest(each) is not None)]
        if lost:
            number = int(lost[-1])
            raise WalGapError(
                f"timeline {number} has WAL or a base backup here, and nobody has archived its history: timeline {int(newest)},"
                " without them, would be taken for the newest",
                hints=[
                    f"on its server, or a copy of it: `clipper-backup wal push pg_wal/{history_name(lost[-1])}`",
                    f"to go along another all the same: --timeline {int(newest)}",
                ],
            )
        return newest

    def beside(self, line: Line) -> list[Segment]:
        """Where each timeline ends that has WAL beside *line*: behind where the line leaves it, or none of it lies there."""
        ends = [self.newest(timeline) for timeline in self.timelines()]
        return [end for end in ends if end is not None and not line.holds(end)]

    def is_taken(self, timeline: Timeline) -> bool:
        """Whether a server ever had this number: it left a history, the claim of one, WAL, or a base backup."""
        return timeline in self.timelines() or timeline in self._timelines_of_backups()

    # -- segments

    def folders(self, timeline: Timeline) -> list[str]:
        """The first sixteen digits of the segments that are there, rising."""
        named = self._store.folders(keys.timeline_folder(self.system_id, timeline))
        return sorted(name for name in named if len(name) == 16 and classify(f"{name}00000000") is Kind.SEGMENT)

    def segments(self, timeline: Timeline, folder: str) -> dict[Segment, Listed]:
        """What is there in one of `folders`, in order."""
        found = self._listed(f"{keys.timeline_folder(self.system_id, timeline)}{folder}/")
        return {
            Segment.parse(name, self.segment_bytes): listed
            for name, listed in sorted(found.items())
            if classify(name) is Kind.SEGMENT and self._is_segment(name)
        }

    def newest(self, timeline: Timeline) -> Segment | None:
        """The last segment of a timeline whose object is there, whatever is missing before it."""
        return next(self._stored_from_the_end(timeline, ""), None)

    def stored_behind(self, segment: Segment) -> Segment | None:
        """A later segment of the same timeline whose object is there; None when there is none."""
        later = (each for each in self._stored_in(segment.timeline, segment.folder) if each > segment)
        return next(later, None) or next(self._stored_from_the_end(segment.timeline, segment.folder), None)

    def claim(self, segment: Segment) -> Claim | None:
        """The claim of a segment; None when there is none, IntegrityError when it is damaged."""
        try:
            return self._claim(keys.archive_key(self.system_id, segment.name, keys.CLAIM), segment.name)
        except ObjectMissingError:
            return None

    def history_claim(self, timeline: Timeline) -> Claim | None:
        """The claim of a timeline's history; None when there is none, IntegrityError when it is damaged."""
        try:
            return self._claim(keys.history_key(self.system_id, timeline, keys.CLAIM), history_name(timeline))
        except ObjectMissingError:
            return None

    def link_of(self, claim: Claim) -> bytes:
        """What the segment behind the one of this claim has as `previous`."""
        return link_of(bytes.fromhex(claim.salt), bytes.fromhex(claim.digest))

    # -- inside

    def _timelines_of_backups(self) -> set[Timeline]:
        """Those of base backups that can be read: one that cannot is no reason not to end a recovery that is done."""
        found = set[Timeline]()
        for backup_id in self._store.folders(keys.BASE_FOLDER):
            key = f"{keys.BASE_FOLDER}{backup_id}/{keys.BASE_SUMMARY}"
            try:
                data = self._store.get(key)
            except ObjectMissingError:
                continue
            with suppress(ClipperError):
                summary = decode(data, BaseSummary, key)
                if summary.system_id == self.system_id:
                    found.add(Timeline(summary.timeline))
        return found

    def _stored_from_the_end(self, timeline: Timeline, behind: str) -> Iterator[Segment]:
        for folder in reversed(self.folders(timeline)):
            if folder > behind:
                yield from reversed(self._stored_in(timeline, folder))

    def _stored_in(self, timeline: Timeline, folder: str) -> list[Segment]:
        return [segment for segment, listed in self.segments(timeline, folder).items() if listed.stored is not None]

    def _listed(self, folder: str) -> dict[str, Listed]:
        found: dict[str, Listed] = {}
        for info in self._store.list(folder):
            key = keys.parse_archive_key(info.key)
            if key is not None:
                found[key.name] = found.get(key.name, Listed()).with_object(key.suffix, info)
        return found

    def _is_segment(self, name: str) -> bool:
        try:
            Segment.parse(name, self.segment_bytes)
        except UsageError:  # of a system with larger segments
            return False
        return True

    def _claim(self, key: str, name: str) -> Claim:
        claim = decode(self._store.get(key), Claim, key)
        if (claim.name, claim.system_id) != (name, self.system_id):
            raise IntegrityError(f"{key} is damaged: it is the claim of {claim.name} of system {claim.system_id}")
        return claim
