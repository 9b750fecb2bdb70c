"""What of WAL must stay, and which instants with it, compared with what would (docs/design/prune.md, W)."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from clipper_backup.errors import UsageError
from clipper_backup.format import physical_names as names
from clipper_backup.format.documents import HoldMark
from clipper_backup.repository.proof.archive import Archived, ArchiveFacts, At
from clipper_backup.repository.proof.base import Base, BaseFacts, order_of
from clipper_backup.repository.proof.documents import Unread, read_base_holds
from clipper_backup.repository.proof.lines import Line, Window, has_wal, own_numbers, window_of
from clipper_backup.repository.proof.numbers import END, Ranges
from clipper_backup.repository.proof.removal import number_of
from clipper_backup.store.protocol import Store
from clipper_backup.values import Lsn, Timeline, show_time
from clipper_backup.wal_names import Segment


@dataclass(frozen=True, slots=True)
class LineWindow:
    """What can be restored on one timeline, before and after; None: no instant."""

    system_id: str
    timeline: Timeline
    before: Window | None
    after: Window | None


def check_wal(
    store: Store, archive: ArchiveFacts, before: BaseFacts, after: BaseFacts, edge: datetime, unread: Unread
) -> Iterator[str]:
    """What is promised and would be lost, in words. *edge*: since when instants are of the window."""
    entries = set(archive.systems.values())
    for base in before.summarized:
        if base.summary is not None and base.summary.system_number not in entries:
            unread.backups.append(f"{names.system_key(base.summary.system_number)} of the base backup {base.backup_id}")
    yield from _check_newest(archive, before, after)
    for line in _lines(archive, before):
        yield from _check_instants(store, line, before.summarized, _staying(line, after), edge)
        yield from _check_history(line)
    needed = list(_needed(store, archive, before, after, edge, unread))
    for at, archived in archive.timelines.items():
        if young := archived.touched & archived.young:
            yield f"{_segments(archived, young)} would go, and was written within the window"
        for of, numbers, why in needed:
            if of == at and (lost := archived.touched & numbers):
                yield f"{_segments(archived, lost)} would go, and {why} needs it"


def windows_of(archive: ArchiveFacts, before: BaseFacts, after: BaseFacts, edge: datetime) -> Iterator[LineWindow]:
    """The lines on which any instant can be restored, or could be that is promised."""
    for line in _lines(archive, before):
        had, has = window_of(line, line.good, after=False), window_of(line, _staying(line, after), after=True)
        if had is not None and (has is not None or line.promised(before.summarized, edge) & Ranges([(0, had.to_lsn + 1)])):
            yield LineWindow(line.archived.system_id, line.archived.timeline, had, has)


def _lines(archive: ArchiveFacts, facts: BaseFacts) -> Iterator[Line]:
    """The line of each timeline, with the backups of *facts*."""
    for _, archived in sorted(archive.timelines.items()):
        yield Line.of(archived, archive.timelines, facts.summarized)


def _staying(line: Line, after: BaseFacts) -> list[Base]:
    """The good backups on the line that would still be there and good."""
    return [base for base in line.good if (left := after.bases.get(base.backup_id)) is not None and left.good]


def _check_newest(archive: ArchiveFacts, before: BaseFacts, after: BaseFacts) -> Iterator[str]:
    """Of the good backups that have their WAL the newest stays: without any promised instant it is all that can be restored."""
    had = [base for base in before.summarized if base.good and has_wal(base, archive.timelines)]
    newest = max(had, key=order_of, default=None)
    left = None if newest is None else after.bases.get(newest.backup_id)
    if newest is not None and (left is None or not left.good):
        yield f"{newest.backup_id}, the newest good base backup that has its WAL, would go"


def _check_instants(store: Store, line: Line, all_bases: list[Base], staying: list[Base], edge: datetime) -> Iterator[str]:
    promised = line.promised(all_bases, edge)
    had = line.reach(line.good, after=False) & promised
    lost = had - line.reach(staying, after=True)
    for begin, end in lost:
        yield f"on {_name(line.archived)} {_instants(store, line, begin, end - 1)} could not be restored any more"
    if not had:
        return
    stay = {base.backup_id for base in staying}
    anchor = line.anchor(edge)
    for base in line.good:
        needed = anchor is not None and (base is anchor or base.start >= anchor.start)
        if needed and base.backup_id not in stay:
            yield f"the window of {_name(line.archived)} needs the base backup {base.backup_id}, and it would go"


def _check_history(line: Line) -> Iterator[str]:
    """Histories never go: this says so where one of a line is hidden, whatever the reason."""
    if line.archived.touched and not line.archived.has_history and any(base.timeline == line.at[1] for base in line.good):
        yield f"{names.history_key(line.archived.system_id, line.archived.timeline, names.STORED)} is not there"


def _needed(
    store: Store, archive: ArchiveFacts, before: BaseFacts, after: BaseFacts, edge: datetime, unread: Unread
) -> Iterator[tuple[At, Ranges, str]]:
    """Which segments what needs, by number."""
    for line in _lines(archive, before):
        live = line.is_live(before.summarized, edge)
        if live or line.reach(line.good, after=False) & line.promised(before.summarized, edge):
            anchor = line.anchor(edge)
            why = f"the window of {_name(line.archived)}" + ("" if anchor is None else f", which begins with {anchor.backup_id},")
            yield from ((at, numbers, why) for at, numbers in line.needed(0 if anchor is None else anchor.start, END))
    for base in after.summarized:
        if base.summary is not None:
            at = base.summary.system_number, base.timeline
            yield at, own_numbers(base, base.summary.sizes.segment_bytes), f"the base backup {base.backup_id}"
    yield from _needed_by_holds(store, archive, after, unread)
    for base in after.bases.values():
        if base.live and base.started is not None:
            number = archive.systems.get(base.started.system_id)
            if number is None:
                unread.wal.append(f"{names.base_key(base.backup_id, names.STARTED)} is of a system that cannot be read")
                continue
            at = number, Timeline(base.started.timeline)
            size = archive.timelines[at].segment_bytes if at in archive.timelines else 1
            yield at, Ranges([(Lsn.parse(base.started.start_lsn) // size, END)]), f"the run {base.backup_id}"
    for snapshot in archive.snapshots:
        if snapshot.at in archive.timelines:
            size = archive.timelines[snapshot.at].segment_bytes
            yield snapshot.at, Ranges([(snapshot.start // size, (snapshot.stop - 1) // size + 1)]), snapshot.key


def _needed_by_holds(store: Store, archive: ArchiveFacts, after: BaseFacts, unread: Unread) -> Iterator[tuple[At, Ranges, str]]:
    lines = {line.at: line for line in _lines(archive, after)}
    for backup_id, mark in read_base_holds(store).items():
        base = after.bases.get(backup_id)
        end = None if mark is None else _end_of(mark)
        if mark is None or (end is None and isinstance(mark.wal_to, tuple)):
            unread.wal.append(f"{names.base_hold_key(backup_id)} cannot be read")
        elif end is not None and base is not None and base.summary is not None:
            line = lines.get((base.summary.system_number, end[0]))
            if line is None:
                unread.wal.append(f"{names.base_hold_key(backup_id)} is of a timeline that nobody knows")
                continue
            yield from ((at, numbers, f"the hold on {backup_id}") for at, numbers in line.needed(base.start, end[1]))


def _end_of(mark: HoldMark) -> tuple[Timeline, Lsn] | None:
    """To where a hold keeps WAL; None for one without, or one that is damaged."""
    if not isinstance(mark.wal_to, tuple):
        return None
    try:
        return Timeline.parse(mark.wal_to[0]), Lsn.parse(mark.wal_to[1])
    except UsageError:
        return None


# -- words


def _name(archived: Archived) -> str:
    return f"timeline {int(archived.timeline)} of system {archived.system_id}"


def _segments(archived: Archived, numbers: Ranges) -> str:
    first, last = numbers.first or 0, numbers.last or 0
    named = [Segment(archived.timeline, number, archived.segment_bytes).name for number in (first, last)]
    return f"the segment {named[0]}" if first == last else f"WAL from {named[0]} to {named[1]}"


def _instants(store: Store, line: Line, begin: int, last: int) -> str:
    """Positions as instants, with the times that listings tell."""
    if begin == last:
        return f"the instant {Lsn(begin)}, the last that was written,"
    since, until = (_written_at(store, line, position) for position in (begin, last))
    times = f", written {'' if since is None else f'since {show_time(since)} '}until {show_time(until)}," if until else ""
    return f"the instants from {Lsn(begin)} to {Lsn(last)}{times}"


def _written_at(store: Store, line: Line, position: int) -> datetime | None:
    """When a backup stopped there, or else when the segment of the byte before *position* was archived."""
    for base in line.bases:
        if base.stop == position and base.summary is not None:
            return base.summary.stopped_at
    size = line.archived.segment_bytes
    number = max(0, position - 1) // size
    part = next((of for of, begin, end in line.archived.parts if number in line.archived.numbers(begin, end)), None)
    if part is None:
        return None
    folder = names.segment_folder(line.archived.system_id, Segment(part, number, size))
    found = [
        info.modified_at
        for info in store.list(folder)
        if (key := names.parse_archive_key(info.key)) is not None
        and len(key.name) == 24
        and number_of(key.name, size) == number
        and key.suffix.startswith(names.STORED)
    ]
    return max(found, default=None)
