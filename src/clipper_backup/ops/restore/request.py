"""What a person asks a restore for."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.account import Account
from clipper_backup.values import BackupId, Timeline


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for. `account` will own the files and run the server; `tablespaces` go elsewhere, by OID.

    Without `work_dir` the restore folder lies beside the target folder. `program` is how that account runs clipper-backup.
    """

    target_dir: Path
    target: Target
    account: Account
    timeline: Timeline | None = None
    backup: BackupId | None = None
    tablespaces: Mapping[int, Path] = field(default_factory=dict)
    work_dir: Path | None = None
    standby: bool = False
    accept_gap: bool = False
    replace: bool = False
    unsigned: bool = False
    program: tuple[str, ...] = (sys.executable, "-m", "clipper_backup")

    @property
    def data(self) -> Path:
        """The target folder, by its real path."""
        return self.target_dir.expanduser().resolve()

    @property
    def folder(self) -> Path:
        """The restore folder: plan, links, log, what is saved; for its owner alone, outside PGDATA; by its real path."""
        data = self.data
        return (self.work_dir.expanduser() if self.work_dir else data.with_name(f"{data.name}.clipper-restore")).resolve()
