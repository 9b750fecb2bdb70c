"""`hold` and `release` of base backups: a mark is written first, and then looked whether all it names is there (G7)."""

from collections.abc import Iterator

import msgspec

from clipper_backup.errors import ClipperError, IncompleteError, MissingError, ObjectMissingError, UsageError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.documents import HoldMark, encode
from clipper_backup.ops.events import Warned
from clipper_backup.ops.lease import PRUNE_LEASE, take_lease
from clipper_backup.ops.work import Work, this_process
from clipper_backup.repository.base_backups import BaseCatalog, listed_base, read_base_summary
from clipper_backup.repository.dumps import UntrustedError
from clipper_backup.repository.lines import Line
from clipper_backup.repository.physical_survey import read_holds
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.wal_catalog import Listed, WalCatalog
from clipper_backup.values import BackupId, Lsn, Timeline, show_first
from clipper_backup.wal_names import Segment

WalTo = tuple[Timeline, Lsn]
"""A timeline, and the end of the WAL on its line that is to stay with a backup."""


def hold_base(work: Work, backup_id: BackupId, reason: str, wal_to: WalTo | None) -> None:
    """Keep a base backup with its WAL, and with *wal_to* the WAL from it to there, whatever its age, until it is released.

    MissingError when there is no such backup, UsageError when it does not lie on that line before that end, IncompleteError
    when something of it is not there: it is held all the same.
    """
    repository = open_repository(work.store, writing=True)
    summary = _summary(work, backup_id, repository.id)
    unreadable: list[ClipperError] = []
    there = read_holds(work.store, unreadable).get(backup_id)
    if there is not None:
        told = f"{backup_id} is held already: {there.reason or 'its mark cannot be read'}"
        work.emit(Warned(told, ("that hold stays as it is; `clipper-backup release` takes it back, for another one",)))
        return
    catalog = WalCatalog(work.store, summary.system_id, summary.sizes.segment_bytes)
    line = Line.of(Timeline(summary.timeline), ()) if wal_to is None else _line(catalog, summary, wal_to)
    mark = HoldMark(
        reason=reason,
        held_by=this_process(),
        held_at=work.clock.now(),
        wal_to=msgspec.UNSET if wal_to is None else (str(wal_to[0]), str(wal_to[1])),
    )
    if wal_to is None:
        _put(work, backup_id, mark)
    else:
        with take_lease(work, PRUNE_LEASE, "hold"):
            _put(work, backup_id, mark)
    lost = [*_lost(work, backup_id, repository.id), *_lost_wal(catalog, line, summary, wal_to)]
    if lost:
        raise IncompleteError(
            f"{backup_id} is held, and not whole: {show_first(lost)}",
            hints=["`clipper-backup release` takes the hold back", "hold another one: `clipper-backup base list`"],
        )


def release_base(work: Work, backup_id: BackupId) -> None:
    """Take a hold back; MissingError when there is none. Under the lease `prune`: refreshing must not bring it back."""
    open_repository(work.store, writing=True)
    key = names.base_hold_key(backup_id)
    try:
        work.store.head(key)
    except ObjectMissingError as error:
        raise MissingError(f"the base backup {backup_id} is not held") from error
    work.store.delete([key])


def _summary(work: Work, backup_id: BackupId, repository_id: str) -> BaseSummary:
    try:
        return read_base_summary(work.store, backup_id, work.trusted, repository_id)
    except UntrustedError as error:
        work.emit(Warned(str(error), error.hints[:1]))
        return read_base_summary(work.store, backup_id)


def _line(catalog: WalCatalog, summary: BaseSummary, wal_to: WalTo) -> Line:
    timeline, end = wal_to
    line = catalog.line(timeline)
    stop = Lsn.parse(summary.stop_lsn)
    if not line.holds_backup(Timeline(summary.timeline), stop):
        raise UsageError(f"the base backup {summary.id} does not lie on the line of timeline {int(timeline)}")
    if end < stop:
        raise UsageError(f"{end} lies before the end of the base backup {summary.id}, {stop}")
    return line


def _put(work: Work, backup_id: BackupId, mark: HoldMark) -> None:
    """Write the mark, unless the backup was removed meanwhile."""
    key = names.base_hold_key(backup_id)
    work.store.put(key, encode(mark))
    if not listed_base(work.store, backup_id).committed:
        work.store.delete([key])
        raise MissingError(
            f"the base backup {backup_id} was removed while it was being held",
            hints=["`clipper-backup base list` shows what is there"],
        )


def _lost(work: Work, backup_id: BackupId, repository_id: str) -> list[str]:
    """What is not there of the backup itself."""
    problem = BaseCatalog(work.store, repository_id).entry(listed_base(work.store, backup_id)).problem
    return [] if problem is None else [problem]


def _lost_wal(catalog: WalCatalog, line: Line, summary: BaseSummary, wal_to: WalTo | None) -> Iterator[str]:
    """The segments from the backup's start to the end of what is held that are not there, or were never claimed."""
    size = summary.sizes.segment_bytes
    end = Lsn.parse(summary.stop_lsn) if wal_to is None else wal_to[1]
    folder: tuple[Timeline, str] | None = None
    listed: dict[Segment, Listed] = {}
    for segment in line.segments(Lsn.parse(summary.start_lsn) // size, (end - 1) // size, size):
        if folder != (segment.timeline, segment.folder):
            folder = segment.timeline, segment.folder
            listed = catalog.segments(*folder)
        found = listed.get(segment)
        if found is None or found.stored is None or found.claim is None:
            yield f"the WAL segment {segment.name} is not in the archive"


def parse_wal_to(text: str) -> WalTo:
    """`TIMELINE:LSN`, like `00000002:16/B374D848` or `2:16/B374D848`; UsageError for anything else."""
    timeline, _, lsn = text.partition(":")
    try:
        short = timeline.isascii() and timeline.isdecimal() and 0 < len(timeline) < 8 and int(timeline) > 0
        return Timeline(int(timeline)) if short else Timeline.parse(timeline), Lsn.parse(lsn)
    except UsageError as error:
        raise UsageError(
            f"bad value for --wal-to: {text!r}", hints=["a timeline and the end of its WAL: 2:16/B374D848"]
        ) from error
