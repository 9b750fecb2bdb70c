"""What `wal fetch` and `wal serve` work with: the restore's plan, its settings, the archive they name, the spool."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.config import DECLARED, Settings, load
from clipper_backup.errors import ClipperError, UsageError
from clipper_backup.kinds import NONE
from clipper_backup.ops.events import Emit
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.wal.ahead import Ahead
from clipper_backup.ops.wal.fetch import PlannedFetch, StandbyFetch
from clipper_backup.ops.wal.spool import Spool
from clipper_backup.ops.work import Work, open_work
from clipper_backup.repository.restore_plan import RestorePlan, read_plan
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_reader import WalReader


@dataclass(frozen=True, slots=True)
class Restore:
    """One restore, as PostgreSQL asks for its WAL."""

    folder: Path
    plan: RestorePlan
    work: Work
    reader: WalReader

    def fetch(self, pg_wal: Path) -> PlannedFetch:
        """What answers for the server with that pg_wal."""
        catalog = WalCatalog(self.work.store, self.plan.system_id, self.plan.segment_bytes)
        wait_seconds = self.work.settings.archive_wait_seconds
        return PlannedFetch(self.plan, self.folder, self.reader, catalog, self.spool(pg_wal), self.work.clock, wait_seconds)

    def ahead(self, pg_wal: Path) -> Ahead:
        """What reads ahead for it."""
        return Ahead(self.plan, self.reader, self.spool(pg_wal), self.work.clock)

    def spool(self, pg_wal: Path) -> Spool:
        """Its spool."""
        return Spool(pg_wal, self.plan.id)


def open_restore(folder: Path, clock: Clock, emit: Emit, plan_id: str | None = None) -> Restore:
    """The restore whose plan lies in *folder*. Its settings are the plan's, whatever the environment says of them.

    What the plan says of the environment becomes this process's. UsageError where it is not the plan of that id: another
    restore may have ended sooner, and its end of the WAL would be taken for this one's.
    """
    plan = read_plan(folder)
    if plan_id not in {None, plan.id}:
        raise UsageError(
            f"the plan in {folder} is that of another restore ({plan.id}) than the one that made this server ({plan_id})",
            hints=["restore this one again: each restore that is not recovered yet needs a folder of its own, --work-dir"],
        )
    if unknown := sorted(set(plan.settings) - {declared.name for declared in DECLARED}):
        raise UsageError(
            f"the restore in {folder} was planned with {', '.join(unknown)}, which this version does not know",
            hints=["use the version of clipper-backup that planned it"],
        )
    os.environ.update(plan.environment)
    settings = load(plan.settings, os.environ).settings
    work = open_work(settings, clock, emit, read_only=True, unsigned=plan.unsigned)
    return Restore(folder, plan, work, reader_of(work, plan.repository_id, plan.system_id, plan.segment_bytes))


def open_standby(pg_wal: Path, settings: Settings, clock: Clock, emit: Emit) -> StandbyFetch:
    """What answers for a standby, by the settings of this process; its own pg_control says which system it is."""
    from clipper_backup.postgres.control_file import ControlFile  # noqa: PLC0415  a planned restore asks its plan
    from clipper_backup.repository.root import open_repository  # noqa: PLC0415  the same

    path = pg_wal.parent / "global" / "pg_control"
    try:
        control = ControlFile.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ClipperError(f"cannot read {path}: {error.strerror}") from error
    work = open_work(settings, clock, emit, read_only=True)
    reader = reader_of(work, open_repository(work.store).id, control.system_id, control.segment_bytes)
    catalog = WalCatalog(work.store, control.system_id, control.segment_bytes)
    return StandbyFetch(reader, catalog, Spool(pg_wal, "standby"), clock, settings.archive_wait_seconds)


def start_reading_ahead(restore: Restore, pg_wal: Path) -> None:
    """Leave a process behind that reads ahead, unless one does; it ends by itself when nobody asks any more."""
    import subprocess  # noqa: PLC0415  once in a recovery

    spool = restore.spool(pg_wal)
    if not spool.ahead_is_running():
        command = [sys.executable, "-m", "clipper_backup", "wal", "fetch"]
        command += ["--restore-folder", str(restore.folder.absolute()), "--ahead", str(pg_wal.absolute())]
        nothing = subprocess.DEVNULL
        # Not a child that PostgreSQL would wait for, nor one that keeps its log open.
        subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, cwd="/", start_new_session=True)


def reader_of(work: Work, repository_id: str, system_id: str, segment_bytes: int) -> WalReader:
    """What reads the archive of that system, by the settings of *work*."""
    return WalReader(
        work.store,
        repository_id=repository_id,
        system_id=system_id,
        segment_bytes=segment_bytes,
        opener=opener_of(work.settings, work.settings.encryption_recipients),
        seals=work.settings.encryption_recipients not in {(), (NONE,)},
        trusted=work.trusted,
    )
