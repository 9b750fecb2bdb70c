"""The configuration of a former server: the restored one is the backup's, and what was set since lies nowhere else."""

import os
from collections.abc import Iterator
from pathlib import Path

from clipper_backup.ops.restore.saved_wal import all_or_nothing, copy_synced
from clipper_backup.ops.restore.target_dir import MARKERS, make_folders, sync_folder
from clipper_backup.postgres.account import Account

SAVED = "saved-settings"
"""How the folders in a restore folder begin that hold it; behind it stands when."""
_BYTES_MAX = 1 << 20
_OWN_FILES = {
    *MARKERS,
    "PG_VERSION",
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "tablespace_map",
    "tablespace_map.old",
    "current_logfiles",
    "recovery.signal",
    "standby.signal",
}
_OWN_FOLDERS = {"base", "global", "log"}


def save_settings(data: Path, into: Path, account: Account) -> list[str]:
    """Copy the configuration that lies in the data folder *data*, synced; the names, in order. All of it is for *account* alone.

    ClipperError when it cannot be copied: then nothing of it is left behind.
    """
    paths = sorted(_settings(data))
    with all_or_nothing(into):
        for path in paths:
            copy = into / path.relative_to(data)
            make_folders(copy.parent, account)
            copy_synced(path, copy, account)
            sync_folder(copy.parent)
        if paths:
            sync_folder(into.parent)
    return [str(path.relative_to(data)) for path in paths]


def _settings(data: Path) -> Iterator[Path]:
    """Small files at the top, which may be certificates and keys; and what ends in .conf in folders that PostgreSQL did not make.

    A link is followed: what is kept stands for itself.
    """
    for entry in data.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if entry.name not in _OWN_FOLDERS and not entry.name.startswith("pg_"):
                yield from (path for path in entry.rglob("*.conf") if _is_small(path))
        elif entry.name not in _OWN_FILES and _is_small(entry):
            yield entry


def _is_small(path: Path) -> bool:
    """And readable: what the server's user cannot read says nothing to a server."""
    readable = path.is_file() and os.access(path, os.R_OK, effective_ids=True)
    return readable and path.stat().st_size <= _BYTES_MAX
