"""PITR_WINDOW_DAYS in a prune: a window that fell is announced by one prune, and acted on by the next."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from msgspec import UNSET
from msgspec.structs import replace as replace_fields

from clipper_backup.format.documents import RetentionMark, encode
from clipper_backup.format.names import RETENTION
from clipper_backup.ops.dump.prune import last_prune
from clipper_backup.ops.events import Warned
from clipper_backup.ops.work import Work
from clipper_backup.repository.physical_retention import PhysicalPlan, Seen, plan_physical
from clipper_backup.values import BackupId, show_count


@dataclass(frozen=True, slots=True)
class Announced:
    """What the next prune removes because PITR_WINDOW_DAYS fell: base backups, and whether WAL too."""

    backups: tuple[BackupId, ...] = ()
    wal: bool = False


@dataclass(frozen=True, slots=True)
class PitrWindow:
    """PITR_WINDOW_DAYS as it is `wanted`, and the `days` that decide: in the first prune after it fell, those of the last one."""

    wanted: int
    days: int

    def announced(self, seen: Seen, plan: PhysicalPlan, now: datetime) -> Announced:
        """What goes next time and stays by *plan*."""
        if self.days == self.wanted:
            return Announced()
        later = plan_physical(seen, now=now, window=timedelta(days=self.wanted))
        stay = {decision.backup_id for decision in later.backups if decision.keep}
        backups = tuple(each.backup_id for each in plan.backups if each.keep and each.backup_id not in stay)
        return Announced(backups, (later.all_wal, later.spans) != (plan.all_wal, plan.spans))

    def remember(self, work: Work, announced: Announced, *, known: bool) -> None:
        """Tell what was announced, and leave the window for the next prune: the wanted one only where all is *known*."""
        if announced.backups or announced.wal:
            shown = f" ({', '.join(map(str, announced.backups[:5]))}{' …' if len(announced.backups) > 5 else ''})"
            backups = [show_count(len(announced.backups), "more base backup") + shown] if announced.backups else []
            what = " and ".join([*backups, *(["WAL"] if announced.wal else [])])
            hint = "set PITR_WINDOW_DAYS back, or `clipper-backup hold ID`, to keep them"
            work.emit(Warned(f"PITR_WINDOW_DAYS fell from {self.days} to {self.wanted}: the next prune removes {what}", (hint,)))
        before, now = last_prune(work.store), work.clock.now()
        mark = before or RetentionMark(retention_days=work.settings.retention_days, pruned_at=now)
        mark = replace_fields(mark, pruned_at=now, pitr_window_days=self.wanted if known else self.days)
        work.store.put(RETENTION, encode(mark))


def window_of(work: Work) -> PitrWindow:
    """IntegrityError when what the last prune left cannot be read: then nobody knows whether the window fell."""
    mark, wanted = last_prune(work.store), work.settings.pitr_window_days
    last = wanted if mark is None or mark.pitr_window_days is UNSET else mark.pitr_window_days
    return PitrWindow(wanted, max(wanted, last))
