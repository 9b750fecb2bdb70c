"""All that decides which base backups and which WAL stay, read from a repository: the input of `physical_retention`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import msgspec

from clipper_backup.errors import ClipperError, IntegrityError, MissingError, UsageError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary, Claim, SnapshotRecord, Started, SystemEntry
from clipper_backup.format.documents import HoldMark, decode
from clipper_backup.format.names import HOLDS_FOLDER
from clipper_backup.repository.base_backups import BaseCatalog
from clipper_backup.repository.base_state import PackState, read_part, unless_unreadable
from clipper_backup.repository.lines import Line
from clipper_backup.repository.physical_retention import BackupSeen, Pin, Seen, TimelineOf, TimelineSeen
from clipper_backup.repository.verify_marks import not_handed_on
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, Lsn, Timeline
from clipper_backup.wal_names import Segment

_TAKEN_BY_NEWER = "a newer version of clipper-backup took it"


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold on a base backup. `reason` None: its mark cannot be read, and it holds all the same."""

    reason: str | None
    wal_to: tuple[Timeline, Lsn] | None


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. `unreadable` names what cannot be read and may need WAL: all of it stays then, and a person is told.

    `not_handed_on` are the base backups, finished or not, that stay because what a verify found in them would be lost, and why.
    """

    seen: Seen
    systems: Mapping[int, SystemEntry]
    unreadable: Sequence[ClipperError]
    not_handed_on: Mapping[BackupId, str]

    def catalogs(self, store: Store) -> dict[int, WalCatalog]:
        """The archive of each system, by its number."""
        return {number: WalCatalog(store, entry.system_id, entry.segment_bytes) for number, entry in self.systems.items()}


def survey(store: Store, state: PackState, *, trusted: Sequence[str], repository_id: str) -> Survey:
    """Look at systems, holds, snapshots, live runs and timelines; *state* is what was read of base backups."""
    unreadable: list[ClipperError] = []
    systems = read_systems(store, unreadable)
    holds = read_holds(store, unreadable)
    summaries = state.base.summaries
    pins = [*_pins_of_runs(store, state, systems, unreadable), *_pins_of_snapshots(store, systems, unreadable)]
    no_line: list[ClipperError] = []
    timelines = _timelines(store, systems, summaries, no_line)
    catalog = BaseCatalog(store, repository_id, trusted)
    entries = catalog.entries()
    wal = _OwnWal(store, systems)
    good = {entry.listed.backup_id for entry in entries if entry.good and entry.summary and wal.is_there(entry.summary)}
    not_kept = not_handed_on(store, catalog.marks)
    newer = {entry.listed.backup_id: _TAKEN_BY_NEWER for entry in entries if entry.unreadable} | not_kept
    return Survey(
        Seen(
            segment_bytes={summary.system_number: summary.sizes.segment_bytes for summary in summaries.values()}
            | {number: entry.segment_bytes for number, entry in systems.items()},
            timelines=timelines,
            backups=[
                _seen(backup_id, summary, good=backup_id in good, newer=newer.get(backup_id), hold=holds.get(backup_id))
                for backup_id, summary in sorted(summaries.items(), key=lambda item: item[1].finished_at)
            ],
            pins=pins,
            unknown_wal=bool(unreadable),
            unknown_lines=bool(no_line),
        ),
        systems,
        [*unreadable, *no_line],
        not_kept,
    )


class _OwnWal:
    """Whether backups have the WAL without which none of them is consistent. Each folder is listed once."""

    def __init__(self, store: Store, systems: Mapping[int, SystemEntry]) -> None:
        self._catalogs = {number: WalCatalog(store, each.system_id, each.segment_bytes) for number, each in systems.items()}
        self._folders: dict[tuple[int, Timeline, str], set[int]] = {}

    def is_there(self, summary: BaseSummary) -> bool:
        """Whether claim and object of each segment from its start to its stop are listed; true where its system is not known."""
        catalog, timeline = self._catalogs.get(summary.system_number), Timeline(summary.timeline)
        if catalog is None:
            return True
        first = Segment.holding(timeline, Lsn.parse(summary.start_lsn), catalog.segment_bytes)
        last = Segment.ending(timeline, Lsn.parse(summary.stop_lsn), catalog.segment_bytes)
        segments = (Segment(timeline, number, catalog.segment_bytes) for number in range(first.number, last.number + 1))
        return all(each.number in self._listed(summary.system_number, catalog, each) for each in segments)

    def _listed(self, system: int, catalog: WalCatalog, segment: Segment) -> set[int]:
        place = system, segment.timeline, segment.folder
        if place not in self._folders:
            found = catalog.segments(segment.timeline, segment.folder)
            self._folders[place] = {each.number for each, listed in found.items() if listed.claim and listed.stored}
        return self._folders[place]


def read_systems(store: Store, unreadable: list[ClipperError]) -> dict[int, SystemEntry]:
    """The entries of the systems by number; what cannot be read is in *unreadable*."""
    systems = {}
    for info in store.list(names.SYSTEMS_FOLDER):
        number = names.parse_system_key(info.key)
        if number is not None:
            entry = unless_unreadable(partial(_read_system, store, info.key, number), unreadable)
            if entry is not None:
                systems[number] = entry
    return systems


def read_holds(store: Store, unreadable: list[ClipperError]) -> dict[BackupId, Hold]:
    """The holds on base backups; one that cannot be read holds all the same, and is in *unreadable*."""
    holds = {}
    for info in store.list(HOLDS_FOLDER):
        backup_id = names.parse_base_hold_key(info.key)
        if backup_id is not None:
            hold = unless_unreadable(partial(_read_hold, store, info.key), unreadable)
            holds[backup_id] = hold or Hold(None, None)
    return holds


def _seen(backup_id: BackupId, summary: BaseSummary, *, good: bool, newer: str | None, hold: Hold | None) -> BackupSeen:
    return BackupSeen(
        backup_id,
        summary.system_number,
        Timeline(summary.timeline),
        Lsn.parse(summary.start_lsn),
        Lsn.parse(summary.stop_lsn),
        summary.finished_at,
        good=good,
        newer=newer,
        held=hold is not None,
        wal_to=None if hold is None else hold.wal_to,
    )


def _pins_of_runs(
    store: Store, state: PackState, systems: Mapping[int, SystemEntry], unreadable: list[ClipperError]
) -> Iterator[Pin]:
    """The WAL that live runs have begun."""
    for run in state.base.intents.live:
        if state.base.intents.folders[run].part(names.STARTED) is None:
            continue
        started = read_part(store, run, names.STARTED, Started, unreadable)
        if started is not None:
            of = _of(systems, started.system_id, started.timeline, names.base_key(run, names.STARTED), unreadable)
            if of is not None:
                yield Pin(of, Lsn.parse(started.start_lsn), None)


def _pins_of_snapshots(store: Store, systems: Mapping[int, SystemEntry], unreadable: list[ClipperError]) -> Iterator[Pin]:
    """The WAL that volume snapshots need."""
    for info in store.list(names.SNAPSHOTS_FOLDER):
        if not names.is_snapshot_key(info.key):
            continue
        record = unless_unreadable(partial(_read_snapshot, store, info.key), unreadable)
        if record is not None:
            of = _of(systems, record.system_id, record.timeline, info.key, unreadable)
            if of is not None:
                yield Pin(of, Lsn.parse(record.start_lsn), Lsn.parse(record.stop_lsn))


def _of(
    systems: Mapping[int, SystemEntry], system_id: str, timeline: int, key: str, unreadable: list[ClipperError]
) -> TimelineOf | None:
    number = next((number for number, entry in systems.items() if entry.system_id == system_id), None)
    if number is None:
        unreadable.append(
            IntegrityError(f"{key} is of the system {system_id}, which has no readable entry in {names.SYSTEMS_FOLDER}")
        )
        return None
    return TimelineOf(number, Timeline(timeline))


def _timelines(
    store: Store, systems: Mapping[int, SystemEntry], summaries: Mapping[BackupId, BaseSummary], no_line: list[ClipperError]
) -> list[TimelineSeen]:
    """Every timeline that has WAL, a history or a backup; one whose line cannot be known is in *no_line*."""
    found = []
    for number, entry in systems.items():
        catalog = WalCatalog(store, entry.system_id, entry.segment_bytes)
        of_backups = {Timeline(summary.timeline) for summary in summaries.values() if summary.system_number == number}
        for timeline in sorted({*catalog.timelines(), *of_backups}):
            line = unless_unreadable(partial(_line, catalog, timeline), no_line)
            if line is not None:
                claimed_at = None if timeline == 1 else _claimed_at(store, entry.system_id, timeline)
                found.append(TimelineSeen(number, line, _written_at(catalog, timeline), claimed_at))
    for backup_id, summary in summaries.items():
        if summary.system_number not in systems:
            no_line.append(IntegrityError(f"{names.system_key(summary.system_number)} of the backup {backup_id} cannot be read"))
    return found


def _line(catalog: WalCatalog, timeline: Timeline) -> Line:
    try:
        return catalog.line(timeline)
    except (UsageError, MissingError) as error:  # an LSN that is none; a history that nobody claimed
        raise IntegrityError(error.message, hints=error.hints) from error


def _claimed_at(store: Store, system_id: str, timeline: Timeline) -> datetime:
    key = names.history_key(system_id, timeline, names.CLAIM)
    return decode(store.get(key), Claim, key).claimed_at


def _written_at(catalog: WalCatalog, timeline: Timeline) -> datetime | None:
    """Last-Modified of the newest segment's object or claim, whichever is the later; None without any."""
    for folder in reversed(catalog.folders(timeline)):
        segments = catalog.segments(timeline, folder)
        if segments:
            listed = segments[max(segments)]
            return max(info.modified_at for info in (listed.claim, listed.stored, listed.link) if info is not None)
    return None


def _read_system(store: Store, key: str, number: int) -> SystemEntry:
    entry = decode(store.get(key), SystemEntry, key)
    if entry.number != number:
        raise IntegrityError(f"{key} is damaged: it says that its number is {entry.number}")
    return entry


def _read_hold(store: Store, key: str) -> Hold:
    mark = decode(store.get(key), HoldMark, key)
    if mark.wal_to is msgspec.UNSET:
        return Hold(mark.reason, None)
    timeline, lsn = mark.wal_to
    try:
        return Hold(mark.reason, (Timeline.parse(timeline), Lsn.parse(lsn)))
    except UsageError as error:
        raise IntegrityError(f"{key} is damaged: {error}") from error


def _read_snapshot(store: Store, key: str) -> SnapshotRecord:
    return decode(store.get(key), SnapshotRecord, key)
