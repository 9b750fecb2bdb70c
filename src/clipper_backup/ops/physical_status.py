"""What `status` and `doctor` know of base backups and WAL: the window that can be restored to, what waits, what is too old."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from msgspec import UNSET

from clipper_backup.errors import ClipperError
from clipper_backup.ops.physical_plan import has_physical
from clipper_backup.ops.status import OpenedBy, Status, opened_by
from clipper_backup.ops.wal.look import Window
from clipper_backup.ops.wal.status import WalStatus, wal_status
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import BaseEntry
from clipper_backup.repository.physical_survey import Hold, read_holds
from clipper_backup.values import BackupId, show_seconds, show_time


@dataclass(frozen=True, slots=True)
class PhysicalStatus:
    """Base backups and WAL, judged at `now`. `asked_days` is PITR_WINDOW_DAYS. `problems` are what somebody should look at.

    `keys` are those that the newest good base backup is sealed to.
    """

    now: datetime
    wal: WalStatus
    holds: Mapping[BackupId, Hold]
    asked_days: int
    problems: tuple[str, ...]
    keys: tuple[OpenedBy, ...] = ()

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
    newest = status.newest
    recipients = [] if newest is None or newest.summary is None else newest.summary.recipients
    status = replace(status, keys=opened_by(work, recipients))
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


def keys_of(status: Status, physical: PhysicalStatus | None) -> tuple[OpenedBy, ...]:
    """Every key that a newest good dump or base backup is sealed to, those of dumps first."""
    of_bases = () if physical is None else physical.keys
    return tuple({key.recipient: key for key in (*status.keys, *of_bases)}.values())


def _opened_base(key: OpenedBy) -> bool:
    return key.check is not None and key.check.base_backup is not UNSET


def _problems(status: PhysicalStatus, longest: timedelta) -> list[str]:
    old = too_old(status, longest)
    found = [] if old is None else [old]
    found += [
        f"the base backup {each.listed.backup_id} {'cannot be read' if each.unreadable else 'is not good'}: {each.problem}"
        for each in status.damaged
    ]
    newest = status.newest
    if newest is not None and status.keys and not any(key.unread or _opened_base(key) for key in status.keys):
        found.append(
            f"the base backup {newest.listed.backup_id} is sealed, and no key is recorded to have opened one:"
            " `key check --identity FILE`"
        )
    if status.window is None:
        ends = [each.backup for each in status.wal.seen.earlier]
        only = f"; what lies before a gap can be, from {show_time(ends[0].stopped_at)} on" if ends else ""
        found.append(f"nothing can be restored to the end of the WAL: {status.wal.seen.why_no_window}{only}")
    return found
