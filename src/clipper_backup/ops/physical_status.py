"""What `status` and `doctor` know of base backups and WAL: the window that can be restored to, what waits, what is too old."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clipper_backup.errors import ClipperError
from clipper_backup.ops.physical_plan import has_physical
from clipper_backup.ops.wal.look import Window
from clipper_backup.ops.wal.status import WalStatus, wal_status
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import BaseEntry
from clipper_backup.repository.physical_survey import Hold, read_holds
from clipper_backup.values import BackupId, show_seconds, show_time


@dataclass(frozen=True, slots=True)
class PhysicalStatus:
    """Base backups and WAL, judged at `now`. `asked_days` is PITR_WINDOW_DAYS. `problems` are what somebody should look at."""

    now: datetime
    wal: WalStatus
    holds: Mapping[BackupId, Hold]
    asked_days: int
    problems: tuple[str, ...]

    @property
    def window(self) -> Window | None:
        """Every instant in it can be restored; None where no base backup leads to the end of the WAL."""
        return self.wal.seen.window

    @property
    def good(self) -> tuple[BaseEntry, ...]:
        """The base backups that a restore may begin with, oldest first."""
        return tuple(each for each in self.wal.seen.backups if each.good)

    @property
    def damaged(self) -> tuple[BaseEntry, ...]:
        """Committed ones that it may not, whatever the reason."""
        return tuple(each for each in self.wal.seen.backups if each.problem is not None)

    @property
    def unfinished(self) -> tuple[BaseEntry, ...]:
        """Ids that are being written, or were left by a killed run."""
        return tuple(each for each in self.wal.seen.backups if not each.listed.committed)

    @property
    def newest(self) -> BaseEntry | None:
        """The newest good one."""
        return max(self.good, key=finished_at, default=None)

    @property
    def reaches_back(self) -> bool:
        """Whether the window is as long as PITR_WINDOW_DAYS asks."""
        window = self.window
        return window is not None and window.backup.stopped_at <= self.now - timedelta(days=self.asked_days)


def look_at_physical(work: Work, *, ask_server: bool) -> PhysicalStatus | None:
    """Look at base backups and WAL, and where *ask_server* says so at the server's archiver; nothing is written.

    None where the repository holds nothing of the kind: point-in-time recovery is off then.
    """
    if not has_physical(work.store):
        return None
    wal = wal_status(work, ask_server=ask_server)
    unreadable: list[ClipperError] = []
    holds = read_holds(work.store, unreadable)
    status = PhysicalStatus(work.store.now(), wal, holds, work.settings.pitr_window_days, ())
    found = _problems(status, timedelta(hours=work.settings.base_max_age_hours))
    problems = (*found, *wal.problems, *(error.message for error in unreadable))
    return replace(status, problems=problems)


def finished_at(entry: BaseEntry) -> datetime:
    """When a good base backup was committed, by the store's clock."""
    assert entry.summary is not None  # noqa: S101  it is good
    return entry.summary.finished_at


def too_old(status: PhysicalStatus, longest: timedelta) -> str | None:
    """Why the newest good base backup is not new enough; None where it is."""
    newest = status.newest
    if newest is None:
        return "there is no good base backup"
    age = status.now - finished_at(newest)
    if age <= longest:
        return None
    shown = f"{show_seconds(age.total_seconds())} old, more than BASE_MAX_AGE_HOURS ({longest.total_seconds() / 3600:.0f})"
    return f"the newest good base backup, {newest.listed.backup_id}, is {shown}"


def _problems(status: PhysicalStatus, longest: timedelta) -> list[str]:
    old = too_old(status, longest)
    found = [] if old is None else [old]
    found += [
        f"the base backup {each.listed.backup_id} {'cannot be read' if each.unreadable else 'is not good'}: {each.problem}"
        for each in status.damaged
    ]
    if status.window is None:
        ends = [each.backup for each in status.wal.seen.earlier]
        only = f"; up to a gap, from {show_time(ends[0].stopped_at)} on" if ends else ""
        found.append(f"no good base backup has all of its WAL to the end of the archive{only}")
    return found
