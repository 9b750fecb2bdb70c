"""How a data folder is emptied, and what is refused beforehand: found half-way, it would end every try there."""

import os
from pathlib import Path

from clipper_backup.errors import UsageError


def clear(folder: Path, *, but: str = "") -> None:
    """Remove what lies in *folder*. A volume that is mounted within stays, and is emptied: a pg_wal of its own, for one."""
    for entry in sorted(folder.iterdir()):
        if entry.name == but or _is_of_volume(entry):
            continue
        if not entry.is_dir() or entry.is_symlink():
            entry.unlink()
            continue
        clear(entry)
        if not entry.is_mount():
            entry.rmdir()


def refuse_unremovable(data: Path) -> None:
    """UsageError when something in *data* could not be removed by us."""

    def refuse(error: OSError) -> None:
        raise _unremovable(data, Path(error.filename), (error.strerror or str(error)).lower())

    for parent, folders, names in os.walk(data, onerror=refuse):
        folders[:] = [name for name in folders if not _is_of_volume(Path(parent, name))]
        if (folders or names) and not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
            raise _unremovable(data, Path(parent), "it may not be written by us")


def _is_of_volume(entry: Path) -> bool:
    """Whether it is what a filesystem has at its top for itself."""
    return entry.name == "lost+found" and entry.parent.is_mount()


def _unremovable(data: Path, folder: Path, why: str) -> UsageError:
    return UsageError(
        f"{data} cannot be replaced: what lies in {folder} cannot be removed, {why}",
        hints=["give that folder to the user who runs PostgreSQL, or move it away", "or restore into another folder"],
    )
