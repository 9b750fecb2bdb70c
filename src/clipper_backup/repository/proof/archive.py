"""The archive as the proof reads it: by listings alone, one of each folder that matters, and the claims of histories.

A segment counts as there with its object and its claim. What it takes is bounded by the number of folders, each of 4 GiB of WAL,
not by that of segments: those are held as ranges.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from clipper_backup.errors import IntegrityError, UsageError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import Claim, SnapshotRecord, SystemEntry
from clipper_backup.format.documents import decode
from clipper_backup.format.names import SEALED
from clipper_backup.repository.proof.documents import Unread, unless_unread
from clipper_backup.repository.proof.numbers import END, Ranges
from clipper_backup.repository.proof.removal import Removal, number_of
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.store.without import WithoutStore
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import history_name

_FOLDER_BYTES = 1 << 32
"""Of WAL in one folder."""
At = tuple[int, Timeline]
"""A timeline of a system, by the number of the system's entry."""


@dataclass(slots=True)
class Archived:
    """One timeline, with numbers of segments.

    `stored` are those with object and claim, `removed` of these by the plan, `old` those of which nothing was written since the
    window's edge, `young` those of which anything was, `touched` those of which the plan removes anything.
    `ends`: the last number of which anything is there, and when that was written. `ancestors` as its history has them, None where
    nobody knows.
    """

    system: int
    system_id: str
    timeline: Timeline
    segment_bytes: int
    ancestors: list[tuple[Timeline, int]] | None
    claimed_at: datetime | None = None
    has_history: bool = True
    stored: Ranges = field(default_factory=Ranges)
    removed: Ranges = field(default_factory=Ranges)
    old: Ranges = field(default_factory=Ranges)
    young: Ranges = field(default_factory=Ranges)
    touched: Ranges = field(default_factory=Ranges)
    ends: tuple[int, datetime] | None = None

    @property
    def parts(self) -> list[tuple[Timeline, int, int]]:
        """Its line: each timeline with the positions between which it counts, oldest first; END: without end."""
        found: list[tuple[Timeline, int, int]] = []
        end = END
        later: Timeline = self.timeline
        for ancestor, left_at in reversed(self.ancestors or []):
            begin = min(left_at, end)
            found.append((later, begin, end))
            later, end = ancestor, begin
        found.append((later, 0, end))
        return found[::-1]

    def numbers(self, begin: int, end: int) -> Ranges:
        """The numbers of the segments that a line takes between two positions of a part of it; END: without end."""
        return Ranges([(begin // self.segment_bytes, END if end == END else end // self.segment_bytes)])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a volume snapshot needs."""

    key: str
    at: At
    start: Lsn
    stop: Lsn


@dataclass(frozen=True, slots=True)
class ArchiveFacts:
    """All timelines of all systems."""

    timelines: Mapping[At, Archived]
    systems: Mapping[str, int]
    snapshots: list[Snapshot]


def read_archive(view: WithoutStore, removal: Removal, begins: Mapping[str, int], edge: datetime, unread: Unread) -> ArchiveFacts:
    """Look at every timeline through *view*, which hides what *removal* names.

    *begins* says for each system id from which position on folders are listed, besides those out of which anything goes.
    """
    entries = _read_systems(view, unread)
    systems = {entry.system_id: number for number, entry in entries.items()}
    found: dict[At, Archived] = {}
    for number, entry in entries.items():
        for archived in _timelines(view, number, entry, unread):
            found[number, archived.timeline] = archived
            goes = removal.wal.get((entry.system_id, archived.timeline), Ranges())
            _list_segments(view, archived, begins.get(entry.system_id, END), edge, goes)
    sizes = {entry.system_id: entry.segment_bytes for entry in entries.values()}
    for system_id in sorted({system_id for system_id, _ in removal.wal}):
        if system_id not in sizes:
            unread.wal.append(f"the system {system_id} has no entry in {names.SYSTEMS_FOLDER}")
        elif removal.segment_bytes.get(system_id) != sizes[system_id]:
            unread.wal.append(f"the plan counts the WAL of the system {system_id} in segments of another size")
    return ArchiveFacts(found, systems, list(_snapshots(view, systems, unread)))


def _read_systems(view: WithoutStore, unread: Unread) -> dict[int, SystemEntry]:
    found: dict[int, SystemEntry] = {}
    for info in view.list(names.SYSTEMS_FOLDER):
        number = names.parse_system_key(info.key)
        if number is not None:
            entry = unless_unread(partial(_system, view, info.key, number), unread.backups)
            if entry is not None:
                found[number] = entry
    return found


def _system(view: WithoutStore, key: str, number: int) -> SystemEntry:
    entry = decode(view.get(key), SystemEntry, key)
    if entry.number != number:
        raise IntegrityError(f"{key} is damaged: it is of number {entry.number}")
    return entry


def _timelines(view: WithoutStore, number: int, entry: SystemEntry, unread: Unread) -> Iterator[Archived]:
    """Every timeline that has WAL, or a history; those whose line nobody knows are in *unread* alone."""
    histories: dict[Timeline, set[str]] = {}
    for info in view.list(names.histories_folder(entry.system_id)):
        key = names.parse_archive_key(info.key)
        if key is not None:
            histories.setdefault(Timeline.parse(key.name[:8]), set()).add(key.suffix)
    folders = {timeline for name in view.folders(f"{names.WAL_FOLDER}{entry.system_id}/") if (timeline := _timeline(name))}
    for timeline in sorted({*folders, *histories, Timeline(1)}):
        archived = Archived(number, entry.system_id, timeline, entry.segment_bytes, [])
        if timeline > 1:
            suffixes = histories.get(timeline, set())
            archived.has_history = names.CLAIM in suffixes and bool(suffixes & {names.STORED, names.STORED + SEALED})
            if names.CLAIM not in suffixes:
                unread.backups.append(f"nobody has claimed the history of timeline {int(timeline)} of system {entry.system_id}")
                continue
            claim = unless_unread(partial(_history, view, entry.system_id, timeline), unread.backups)
            if claim is None:
                continue
            archived.ancestors = [(Timeline(of), Lsn.parse(left_at)) for of, left_at in claim.ancestors or []]
            archived.claimed_at = claim.claimed_at
        yield archived


def _timeline(name: str) -> Timeline | None:
    try:
        return Timeline.parse(name)
    except UsageError:
        return None


def _history(view: WithoutStore, system_id: str, timeline: Timeline) -> Claim:
    key = names.history_key(system_id, timeline, names.CLAIM)
    claim = decode(view.get(key), Claim, key)
    numbers = [of for of, _ in claim.ancestors or []]
    rising = all(one < other for one, other in zip(numbers, [*numbers[1:], int(timeline)], strict=True))
    if (claim.name, claim.system_id) != (history_name(timeline), system_id) or not numbers or not rising:
        raise IntegrityError(f"{key} is damaged: it cannot be the claim of the history of timeline {int(timeline)}")
    return claim


def _list_segments(view: WithoutStore, archived: Archived, begin: int, edge: datetime, goes: Ranges) -> None:
    """List the folders from the one that holds *begin* on, the last one, and those out of which anything goes."""
    folder_of_timeline = names.timeline_folder(archived.system_id, archived.timeline)
    folders = sorted(
        name for name in view.folders(folder_of_timeline) if len(name) == 16 and name.startswith(str(archived.timeline))
    )
    stored: list[Ranges] = []
    removed: list[Ranges] = []
    young: list[Ranges] = []
    old: list[Ranges] = []
    touched: list[Ranges] = []
    wanted = {name for name in folders if (int(name[8:], 16) + 1) * _FOLDER_BYTES > begin}
    for name in reversed(folders):
        if name not in wanted and archived.ends is not None and not _goes_from(goes, archived, name):
            continue
        left = _by_number(view.list(f"{folder_of_timeline}{name}/"), archived.segment_bytes)
        hidden = _by_number(view.take_hidden(), archived.segment_bytes)
        all_of = {number: [*left.get(number, ()), *hidden.get(number, ())] for number in {*left, *hidden}}
        before = Ranges.of(number for number, infos in all_of.items() if _is_stored(infos))
        after = Ranges.of(number for number, infos in left.items() if _is_stored(infos))
        stored.append(before)
        removed.append(before - after)
        young.append(Ranges.of(n for n, infos in all_of.items() if max(info.modified_at for info in infos) >= edge))
        written = {n: max(own) for n, infos in all_of.items() if (own := [i.modified_at for i in infos if _is_of_segment(i)])}
        old.append(Ranges.of(number for number, at in written.items() if at < edge))
        touched.append(Ranges.of(hidden))
        if archived.ends is None and written:
            archived.ends = max(written.items())
    archived.stored, archived.removed = _joined(stored), _joined(removed)
    archived.old, archived.young, archived.touched = _joined(old) & archived.stored, _joined(young), _joined(touched)


def _goes_from(goes: Ranges, archived: Archived, folder: str) -> bool:
    """Whether anything of a folder is among the numbers that go."""
    first = names.first_segment_of(folder, archived.segment_bytes)
    return bool(goes & Ranges([(first, first + _FOLDER_BYTES // archived.segment_bytes)]))


def _by_number(infos: Iterable[ObjectInfo], segment_bytes: int) -> dict[int, list[ObjectInfo]]:
    found: dict[int, list[ObjectInfo]] = {}
    for info in infos:
        key = names.parse_archive_key(info.key)
        number = None if key is None else number_of(key.name, segment_bytes)
        if number is not None:
            found.setdefault(number, []).append(info)
    return found


def _is_stored(infos: list[ObjectInfo]) -> bool:
    """Whether the segment's object and its claim are among what lies at its number."""
    suffixes = {key.suffix for info in infos if (key := names.parse_archive_key(info.key)) is not None and len(key.name) == 24}
    return names.CLAIM in suffixes and bool(suffixes & {names.STORED, names.STORED + SEALED})


def _is_of_segment(info: ObjectInfo) -> bool:
    """Whether it is a segment's own: object, claim or link."""
    key = names.parse_archive_key(info.key)
    return key is not None and len(key.name) == 24


def _joined(all_of: list[Ranges]) -> Ranges:
    return Ranges(each for ranges in all_of for each in ranges)


def _snapshots(view: WithoutStore, systems: Mapping[str, int], unread: Unread) -> Iterator[Snapshot]:
    for info in view.list(names.SNAPSHOTS_FOLDER):
        if not names.is_snapshot_key(info.key):
            continue
        record = unless_unread(partial(_snapshot, view, info.key), unread.wal)
        if record is not None and record.system_id not in systems:
            unread.wal.append(f"{info.key} is of a system that cannot be read")
        elif record is not None:
            at = systems[record.system_id], Timeline(record.timeline)
            yield Snapshot(info.key, at, Lsn.parse(record.start_lsn), Lsn.parse(record.stop_lsn))


def _snapshot(view: WithoutStore, key: str) -> SnapshotRecord:
    return decode(view.get(key), SnapshotRecord, key)
