"""The folder that a restore fills: what it refuses, what it saves first, and what makes a killed restore repeatable.

A marker lies in the folder from before the first file until all of them are synced. A folder with a marker holds nothing
that anybody could miss: the next restore empties it and begins anew.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipper_backup.errors import ClipperError, IntegrityError, LockedError, UsageError
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.control_file import ControlFile
from clipper_backup.values import show_bytes
from clipper_backup.wal_names import classify

MARKER = ".clipper-backup-restoring"
_NEW_MARKER = f"{MARKER}.new"
_VERSION_FOLDER = re.compile(r"PG_\d+_\d+")
"""What PostgreSQL makes in a tablespace's folder: its major version and catalog version."""
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at the target: nothing, an `unfinished` restore of ours, or a `cluster` that is to be replaced.

    `tablespaces` are the folders outside that belong to what lies there.
    """

    state: Literal["absent", "empty", "unfinished", "cluster"]
    tablespaces: tuple[Path, ...] = ()


def check_account(uid: int) -> None:
    """UsageError for root: PostgreSQL does not run as root, and would not own what root restores."""
    if uid == 0:
        raise UsageError(
            "root restores nothing: PostgreSQL does not run as root, and must own its files",
            hints=["run this as the user who is to run the server: `sudo -u postgres clipper-backup restore …`"],
        )


def look_at(data: Path, account: Account, *, system_id: str, replace: bool) -> Found:
    """What lies at *data*. UsageError unless it may be filled: see the module, and `--replace` in the command's help.

    With *replace*, a data folder of the system *system_id* whose server does not run may be there.
    """
    try:
        entries = sorted(entry.name for entry in data.iterdir())
        owner = data.stat().st_uid
    except FileNotFoundError:
        _check_parent(data)
        return Found("absent")
    except NotADirectoryError:
        raise UsageError(f"{data} is no folder", hints=["name a folder that does not exist, or an empty one"]) from None
    except OSError as error:
        raise ClipperError(f"cannot look into {data}: {error.strerror}") from error
    if owner != account.uid:
        raise UsageError(
            f"{data} belongs to the user with id {owner}, and PostgreSQL would run as {account.uid}",
            hints=["run this as that user, or name another folder"],
        )
    _refuse_running(data)
    if not entries:
        return Found("empty")
    if MARKER in entries or entries == [_NEW_MARKER]:
        return Found("unfinished", _marked_tablespaces(data))
    return _look_at_cluster(data, system_id, replace=replace)


def _check_parent(data: Path) -> None:
    if not data.parent.is_dir():
        raise UsageError(f"there is no folder {data.parent} to make {data.name} in")
    if not os.access(data.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{data.parent} may not be written by us", hints=["make the target folder beforehand, with us as its owner"]
        )


def _refuse_running(data: Path) -> None:
    """UsageError when the server that wrote postmaster.pid still lives.

    Its working folder is its data folder; where that cannot be seen (another user's process) a living process is enough.
    """
    try:
        first, *_ = (data / "postmaster.pid").read_text(errors="replace").splitlines() or [""]
    except FileNotFoundError:
        return
    try:
        pid = abs(int(first))  # negative: a single-user session
        if pid == 0:
            return
        os.kill(pid, 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return
    except PermissionError:
        pass
    try:
        if not Path(f"/proc/{pid}/cwd").samefile(data):
            return  # the number was given to another program since
    except FileNotFoundError:
        return
    except OSError:
        pass
    raise UsageError(
        f"a PostgreSQL server runs in {data}, as process {pid}",
        hints=["stop it first, or restore into another folder", "if that process is none: remove postmaster.pid there"],
    )


def _look_at_cluster(data: Path, system_id: str, *, replace: bool) -> Found:
    try:
        control = ControlFile.parse((data / "global/pg_control").read_bytes())
    except (FileNotFoundError, NotADirectoryError, IntegrityError):
        raise UsageError(
            f"{data} is not empty, and is no data folder of PostgreSQL: nothing there is touched",
            hints=["name an empty folder, or one that does not exist"],
        ) from None
    if str(control.system_id) != system_id:
        raise UsageError(
            f"{data} holds another cluster, system {control.system_id}: the backup is of system {system_id}",
            hints=["name an empty folder, or one that does not exist"],
        )
    if not replace:
        raise UsageError(
            f"{data} holds a data folder of this cluster",
            hints=[
                "restore beside it: --target-dir another folder",
                "or --replace: WAL that was not archived is saved, all else there is removed",
            ],
        )
    return Found("cluster", tuple(_linked_tablespaces(data)))


def _linked_tablespaces(data: Path) -> Iterator[Path]:
    folder = data / "pg_tblspc"
    for link in sorted(folder.iterdir()) if folder.is_dir() else ():
        if link.is_symlink():
            yield link.resolve()


def _marked_tablespaces(data: Path) -> tuple[Path, ...]:
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        return tuple(Path(text) for text in json.loads((data / MARKER).read_text())["tablespaces"])
    return ()  # killed while it was written: nothing else was


def check_tablespaces(data: Path, folders: Mapping[int, Path], found: Found, account: Account) -> None:
    """UsageError when a tablespace cannot lie where *folders* says, by OID: taken, within another, or not ours (rule 35)."""
    places = [(f"tablespace {oid}", folder) for oid, folder in sorted(folders.items())]
    for index, (name, folder) in enumerate(places):
        hint = f"choose another folder: --tablespace {name.removeprefix('tablespace ')}=DIR"
        if not folder.is_absolute():
            raise UsageError(f"{name} cannot go to {folder}: PostgreSQL wants an absolute path", hints=[hint])
        for other, taken in [("the target folder", data), *places[:index]]:
            if folder == taken or folder in taken.parents or taken in folder.parents:
                raise UsageError(f"{name} would lie in {folder}, and {other} in {taken}: one within the other", hints=[hint])
        if not folder.exists():
            near = next(parent for parent in folder.parents if parent.exists())
            if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
                raise UsageError(f"{name} would lie in {folder}, and {near} may not be written by us", hints=[hint])
            continue
        inside = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {""}
        ours = folder.resolve() in {place.resolve() for place in found.tablespaces}
        if not (ours and all(_VERSION_FOLDER.fullmatch(entry) for entry in inside)) and inside:
            raise UsageError(f"{name} would lie in {folder}, which is not empty", hints=[hint])
        if folder.stat().st_uid != account.uid:
            raise UsageError(f"{name} would lie in {folder}, which belongs to another user", hints=[hint])


def check_space(needed: Mapping[Path, int], gained: Mapping[Path, int]) -> None:
    """ClipperError when a filesystem lacks room for what is to lie at the paths of *needed*; *gained* is freed before."""
    total: dict[int, tuple[Path, int]] = {}
    for sign, amounts in ((1, needed), (-1, gained)):
        for path, size in amounts.items():
            near = _existing(path)
            device = near.stat().st_dev
            total[device] = (total.get(device, (near, 0))[0], total.get(device, (near, 0))[1] + sign * size)
    for near, size in total.values():
        if (free := shutil.disk_usage(near).free) < size:
            raise ClipperError(
                f"the restore needs {show_bytes(size)} in the filesystem of {near}, which has {show_bytes(free)}",
                hints=["make room, restore elsewhere, or spread it over filesystems with --tablespace OID=DIR"],
            )


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def size_of(folders: Iterable[Path]) -> dict[Path, int]:
    """What the files in each of *folders* occupy, in bytes; links are not followed."""
    sizes = {}
    for folder in folders:
        sizes[folder] = sum(
            (Path(parent) / name).lstat().st_blocks * 512 for parent, _, names in os.walk(folder) for name in names
        )
    return sizes


@contextlib.contextmanager
def work_folder(folder: Path, account: Account) -> Iterator[None]:
    """Make the restore folder, for its owner alone, and hold it. LockedError when another restore works there."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        account.own(folder)
        folder.chmod(0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ClipperError(f"cannot make the folder {folder}: {error.strerror}", hints=["name another: --work-dir"]) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"another restore works with {folder}", hints=["wait for it, or end it"]) from None
        yield
    finally:
        os.close(descriptor)


def save_wal(data: Path, into: Path) -> list[str]:
    """Copy what *data*'s pg_wal holds and no archive is known to have, synced; the names, in order (rule 54).

    A file is archived when the server noted it as `.done`. Recycled files that wait for their turn look like unarchived ones,
    and are copied too.
    """
    source = data / "pg_wal"
    status = source / "archive_status"
    names = [
        entry.name
        for entry in (sorted(source.iterdir()) if source.is_dir() else ())
        if entry.is_file() and classify(entry.name) is not None and not (status / f"{entry.name}.done").exists()
    ]
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in names:
        _copy_synced(source / name, into / name)
    sync_folder(into)
    sync_folder(into.parent)
    return names


def _copy_synced(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, _COPY_BYTES)
        written.flush()
        os.fsync(written.fileno())


def begin(data: Path, account: Account, tablespaces: Sequence[Path], *, backup: str) -> None:
    """Make *data*, or empty it, with the marker in it: from here on it holds an unfinished restore, and nothing else.

    *tablespaces* are the folders outside that this restore fills; theirs are emptied too where they belonged to it.
    """
    data.mkdir(mode=0o700, exist_ok=True)
    account.own(data)
    data.chmod(0o700)
    former = _marked_tablespaces(data) or tuple(_linked_tablespaces(data))
    marker = data / MARKER
    temporary = data / _NEW_MARKER
    folders = [str(folder) for folder in dict.fromkeys((*former, *tablespaces))]
    temporary.write_text(json.dumps({"backup": backup, "tablespaces": folders}))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(marker)
    sync_folder(data)
    sync_folder(data.parent)
    for folder in former:
        for entry in folder.iterdir() if folder.is_dir() else ():
            if _VERSION_FOLDER.fullmatch(entry.name):
                shutil.rmtree(entry)
    for entry in data.iterdir():
        if entry.name == MARKER:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def finish(data: Path) -> None:
    """Everything is there and synced: take the marker away, durably."""
    (data / MARKER).unlink()
    sync_folder(data)


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
