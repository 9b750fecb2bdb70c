"""The restore folder: made for its owner alone, held by one restore at a time, and never what somebody else uses."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipper_backup.errors import ClipperError, UsageError
from clipper_backup.linux import kind_of_filesystem
from clipper_backup.ops.restore.held import held
from clipper_backup.ops.restore.target_dir import sync_folder
from clipper_backup.postgres.account import Account

OURS = ".clipper-restore"
"""The file by which a restore folder is known: what else lies there a restore may replace."""
_FLEETING = {"overlay", "tmpfs", "ramfs", "aufs"}


def check_work_folder(folder: Path, account: Account, filled: Iterable[Path]) -> None:
    """UsageError unless a restore may work in *folder*: absent, empty and *account*'s alone, or of a restore before.

    It may not overlap with any of the folders that are *filled*, by whatever names.
    """
    hint = "name a folder that does not exist, outside of all data: --work-dir"
    for place in filled:
        if holds(place, folder) or holds(folder, place):
            raise UsageError(f"the restore folder {folder} and {place} lie one within the other", hints=[hint])
    try:
        names = {entry.name for entry in folder.iterdir()}
        status = folder.stat()
    except FileNotFoundError:
        _check_parent(folder.parent, hint)
        return
    except NotADirectoryError:
        raise UsageError(f"{folder} is no folder", hints=[hint]) from None
    except OSError as error:
        raise ClipperError(f"cannot look into {folder}: {error.strerror}", hints=[hint]) from error
    if names and OURS not in names:
        raise UsageError(f"{folder} is not empty, and no restore made it: nothing there is touched", hints=[hint])
    makers = {account.uid} if names else {account.uid, os.geteuid()}  # root may have been killed before it gave it away
    if status.st_uid not in makers or status.st_mode & 0o077:
        raise UsageError(
            f"{folder} is not for user {account.name} alone: it belongs to the user with id {status.st_uid},"
            f" mode {status.st_mode & 0o7777:04o}",
            hints=[f"name a folder within it that does not exist: --work-dir {folder / 'restore'}"],
        )


def fleeting(folder: Path, data: Path) -> str | None:
    """What is lost with *folder*, where that lies in a container's own layer or in memory, and *data* on a volume; else None.

    Until the new server has recovered, the newest commits of the one that *data* was of lie there.
    """
    near, real = _existing(folder), _existing(data)
    kind = kind_of_filesystem(near)
    if kind not in _FLEETING or near.stat().st_dev == real.stat().st_dev:
        return None
    return (
        f"the restore folder {folder} would lie in {near}, which is of a container alone or in memory ({kind}): what is saved"
        f" there of the WAL in {data} would go with it"
    )


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def _check_parent(parent: Path, hint: str) -> None:
    """UsageError unless a folder can be made there: a plan says so, not the restore."""
    if not parent.is_dir():
        raise UsageError(f"there is no folder {parent} to make the restore folder in", hints=[hint])
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        raise UsageError(f"{parent}, where the restore folder would lie, may not be written by us", hints=[hint])


def holds(outer: Path, inner: Path) -> bool:
    """Whether *inner* is *outer* or lies in it; a folder may have several paths (links, mounts)."""
    outer, inner = outer.resolve(), inner.resolve()
    if outer in (inner, *inner.parents):
        return True
    with contextlib.suppress(OSError):
        return any(place.samefile(outer) for place in (inner, *inner.parents) if place.exists())
    return False


@contextlib.contextmanager
def work_folder(folder: Path, account: Account, filled: Iterable[Path]) -> Iterator[None]:
    """Make the restore folder where it is missing, and hold it. UsageError as `check_work_folder`.

    LockedError when another restore works there.
    """
    filled = tuple(filled)
    check_work_folder(folder, account, filled)
    with contextlib.ExitStack() as stack:
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            check_work_folder(folder, account, filled)  # it may have become somebody else's
            account.own(folder)
            stack.enter_context(held(folder, "works with"))
            (folder / OURS).touch(mode=0o600)
            account.own(folder / OURS)
            sync_folder(folder)
        except OSError as error:
            raise ClipperError(
                f"cannot make the folder {folder}: {error.strerror}", hints=["name another: --work-dir"]
            ) from error
        yield
