"""Which base backup a restore begins with: the newest that ended before its target, on the target's line (rule 59)."""

from collections.abc import Sequence
from datetime import datetime

from clipper_backup.errors import MissingError, UsageError
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.ops.restore.targets import Target, show_moment
from clipper_backup.repository.base_backups import BaseEntry, is_on
from clipper_backup.repository.lines import Line
from clipper_backup.values import BackupId, Lsn


def on_line(entries: Sequence[BaseEntry], line: Line, system_id: str) -> list[BaseEntry]:
    """The committed backups on a line whose summaries can be read, by where they end."""
    fit = [entry for entry in entries if entry.summary is not None and entry.summary.system_id == system_id]
    fit = [entry for entry in fit if entry.summary is not None and is_on(line, entry.summary)]
    return sorted(fit, key=lambda entry: (_stop(entry), str(entry.listed.backup_id)))


def choose_backup(
    candidates: Sequence[BaseEntry], target: Target, *, stop: Lsn | None = None, wanted: BackupId | None = None
) -> BaseEntry:
    """The newest of *candidates* (as `on_line` gives them) that ended at or before the *target*; good ones before others.

    *stop* is the target's LSN, where one is known; a time is compared with the server's clock when it said the backup ended.
    *wanted* is one that a person named. MissingError when there is none; UsageError when the one that was named will not do.
    """
    if wanted is not None:
        named = next((entry for entry in candidates if entry.listed.backup_id == wanted), None)
        if named is None:
            raise MissingError(
                f"there is no base backup {wanted} that leads to this target", hints=["`clipper-backup base list` shows them all"]
            )
        if not _ended_before(named, target, stop):
            raise UsageError(
                f"the base backup {wanted} ended at {_when(named)}, behind {target.describe()}",
                hints=["without --backup the one that fits is taken"],
            )
        return named
    fit = [entry for entry in candidates if _ended_before(entry, target, stop)]
    if not fit:
        raise _none_fits(candidates, target)
    good = [entry for entry in fit if entry.good]
    return (good or fit)[-1]


def _ended_before(entry: BaseEntry, target: Target, stop: Lsn | None) -> bool:
    summary = _summary(entry)
    if target.time is not None and summary.stopped_at > target.time:
        return False
    return stop is None or _stop(entry) <= stop


def _none_fits(candidates: Sequence[BaseEntry], target: Target) -> MissingError:
    if not candidates:
        return MissingError(
            "there is no base backup on the way to this target",
            hints=[
                "`clipper-backup base list` shows which there are, and of which timeline",
                "`clipper-backup dump list`: a dump may do",
            ],
        )
    oldest = candidates[0]
    return MissingError(
        f"{target.describe()} lies before the end of the oldest base backup on its line, {oldest.listed.backup_id}",
        hints=[f"the earliest instant that can be restored: {_when(oldest)}", "`clipper-backup dump list`: a dump may be older"],
    )


def _when(entry: BaseEntry) -> str:
    return f"{show_moment(_moment(entry))}, LSN {_stop(entry)}"


def _moment(entry: BaseEntry) -> datetime:
    return _summary(entry).stopped_at


def _stop(entry: BaseEntry) -> Lsn:
    return Lsn.parse(_summary(entry).stop_lsn)


def _summary(entry: BaseEntry) -> BaseSummary:
    assert entry.summary is not None  # noqa: S101  `on_line` left the others out
    return entry.summary
