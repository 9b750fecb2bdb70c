"""The folder that a restore fills: what it refuses, what it saves first, and what makes a killed restore repeatable.

A marker lies in the folder from before the first file until all of them are synced. A folder with a marker and without
pg_control holds nothing that anybody could miss: the next restore empties it and begins anew. With pg_control a server may have
been used there since. The folders of tablespaces have one too, which names the
restore and its target: who finds another's there, or none, may not empty them, whatever the target's own marker says.
"""

import contextlib
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clipper_backup.errors import ClipperError, IntegrityError, LockedError, UsageError
from clipper_backup.ops.restore.clear import clear, refuse_unremovable
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.control_file import ControlFile, State
from clipper_backup.postgres.data_folder import NO_CONTROL_HINT, WAL_FOLDER
from clipper_backup.values import show_bytes
from clipper_backup.wal_names import Segment

MARKER = ".clipper-backup-restoring"
_NEW_MARKER = f"{MARKER}.new"
MARKERS = (MARKER, _NEW_MARKER)
_CONTROL = "global/pg_control"
_PROGRAMS = {"postgres", "postmaster"}
RAN = {State.SHUT_DOWN, State.SHUTTING_DOWN, State.IN_CRASH_RECOVERY, State.IN_PRODUCTION}
"""The states of a server that was up, and wrote."""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at the target: nothing, an `unfinished` restore of ours, or a `cluster` that is to be replaced.

    `tablespaces` are the folders outside that belong to what lies there, by their real paths; `wal_folder` is where its pg_wal
    leads, None when that is a plain folder. `saved` are the folders into which unfinished restores saved what was there.
    `control` is the pg_control of a cluster: a server that runs there writes it.
    """

    state: Literal["absent", "empty", "unfinished", "cluster"]
    tablespaces: tuple[Path, ...] = ()
    wal_folder: Path | None = None
    saved: tuple[Path, ...] = ()
    control: bytes = field(default=b"", repr=False)


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
    if (MARKER in entries and not (data / _CONTROL).exists()) or entries == [_NEW_MARKER]:
        return Found("unfinished", tuple(_marked_tablespaces(data)), saved=_saved_before(data))
    return _look_at_cluster(data, system_id, replace=replace)


def refuse_changed(data: Path, planned: Found, found: Found) -> None:
    """UsageError when a cluster lies at *data* that nobody was asked about: it was made, or its server ran, since *planned*."""
    again = "nothing was removed: run it again, and look at its plan"
    if found.state == "cluster" and planned.state != "cluster":
        raise UsageError(f"{data} holds a cluster since the restore was planned", hints=[again])
    if found.state == "cluster" and found.control != planned.control:
        raise UsageError(
            f"the server in {data} ran since the restore was planned",
            hints=[again, "what starts it must be off until then: a service that restarts it, a pod"],
        )


def _check_parent(data: Path) -> None:
    if not data.parent.is_dir():
        raise UsageError(f"there is no folder {data.parent} to make {data.name} in")
    if not os.access(data.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{data.parent} may not be written by us", hints=["make the target folder beforehand, with us as its owner"]
        )


def _refuse_running(data: Path) -> None:
    """UsageError when postmaster.pid is there: a server runs, or died.

    Which of them cannot be told: a server in another container or on another machine has no number here, or another's.
    """
    path = data / "postmaster.pid"
    try:
        first, *_ = path.read_text(errors="replace").splitlines() or [""]
    except FileNotFoundError:
        _refuse_unlisted(data)
        return
    if _runs_here(data, first):
        raise UsageError(
            f"a PostgreSQL server runs in {data}, as process {first.lstrip('-')}",
            hints=["stop it first, or restore into another folder"],
        )
    raise UsageError(
        f"a PostgreSQL server may run in {data}: it has a postmaster.pid",
        hints=[
            "servers in other containers and on other machines cannot be seen from here: stop it, and the file goes",
            f"when it died, and none runs in any container or machine that has this folder: rm {shlex.quote(str(path))}",
        ],
    )


def _refuse_unlisted(data: Path) -> None:
    """UsageError when PostgreSQL works in *data* without a postmaster.pid: somebody removed it, or only the postmaster died."""
    parents = dict(filter(None, (_server_process(process, data) for process in Path("/proc").glob("[0-9]*"))))
    first = [str(number) for number, parent in sorted(parents.items()) if parent not in parents]
    if first:
        raise UsageError(
            f"PostgreSQL runs in {data}, as process {', '.join(first)}, though there is no postmaster.pid",
            hints=[f"end it, and look again: kill -INT {' '.join(first)}", "or restore into another folder"],
        )


def _server_process(process: Path, data: Path) -> tuple[int, int] | None:
    """Of a folder of /proc its number and its parent's, if it is of a server that has *data* as its working folder.

    A shell may have it as well, and so may we.
    """
    with contextlib.suppress(OSError, ValueError):
        if (process / "cwd").samefile(data):
            name, _, rest = (process / "stat").read_text(errors="replace").partition("(")[2].rpartition(") ")
            return (int(process.name), int(rest.split()[1])) if name in _PROGRAMS else None
    return None


def _runs_here(data: Path, number: str) -> bool:
    """Whether a process of that number, as postmaster.pid has it (negative: single-user), has *data* as its working folder."""
    with contextlib.suppress(OSError, ValueError):
        return Path(f"/proc/{abs(int(number))}/cwd").samefile(data)
    return False


def _look_at_cluster(data: Path, system_id: str, *, replace: bool) -> Found:
    try:
        content = (data / _CONTROL).read_bytes()
        control = ControlFile.parse(content)
    except (FileNotFoundError, NotADirectoryError, IntegrityError) as error:
        elsewhere = "name an empty folder, or one that does not exist"
        if (data / "PG_VERSION").is_file() and (data / WAL_FOLDER).is_dir():
            gone = error.message if isinstance(error, IntegrityError) else f"there is no {_CONTROL}"
            raise UsageError(f"{data} is a damaged data folder: {gone}", hints=[NO_CONTROL_HINT, f"or {elsewhere}"]) from None
        raise UsageError(
            f"{data} is not empty, and is no data folder of PostgreSQL: nothing there is touched", hints=[elsewhere]
        ) from None
    if str(control.system_id) != system_id:
        raise UsageError(
            f"{data} holds another cluster, system {control.system_id}: the backup is of system {system_id}",
            hints=["name an empty folder, or one that does not exist"],
        )
    if not replace:
        marker = data / MARKER
        whole = (
            f"a restore was killed before it began or at its end: this is whole; it starts after rm {shlex.quote(str(marker))}"
        )
        raise UsageError(
            f"{data} holds a data folder of this cluster",
            hints=[
                *([whole] if marker.exists() else []),
                "restore beside it: --target-dir another folder",
                "or --replace: WAL that was not archived and its configuration are saved, all else there is removed",
            ],
        )
    wal = data / WAL_FOLDER
    _refuse_lost_wal(data, control)
    refuse_unremovable(data)
    linked = tuple(_linked_tablespaces(data))
    return Found("cluster", linked, wal.resolve() if wal.is_symlink() else None, _saved_before(data), content)


def _refuse_lost_wal(data: Path, control: ControlFile) -> None:
    """UsageError when pg_wal is not there, or not the one: its volume may not be mounted, and holds the newest commits.

    A server that has run has the segment of its last checkpoint there. One that was restored and not opened has it nowhere.
    """
    wal = data / WAL_FOLDER
    gone = None
    if not wal.is_dir():
        gone = f"leads to {wal.readlink()}, where no folder is" if wal.is_symlink() else "is not there"
    elif control.state in RAN and not (data / "backup_label").exists():
        needed = Segment.holding(control.timeline, control.redo, control.segment_bytes)
        if not any(wal.glob(f"{'?' * 8}{needed.name[8:]}*")):
            gone = f"does not hold {needed}, with which its server would start"
    if gone is not None:
        raise UsageError(
            f"the {WAL_FOLDER} of {data} {gone}: what is in it may be the newest commits",
            hints=[
                "is it a volume of its own, and not mounted? Mount it, and run this again",
                f"when it is lost for good: move {data} away, and restore into an empty folder; what was not archived is lost",
            ],
        )


def _linked_tablespaces(data: Path) -> Iterator[Path]:
    folder = data / "pg_tblspc"
    for link in sorted(folder.iterdir()) if folder.is_dir() else ():
        if link.is_symlink():
            yield link.resolve()


@dataclass(frozen=True, slots=True)
class _Marker:
    """What a target's marker says: which restore is unfinished, the folders of tablespaces that it fills, and where it saved."""

    restore: str
    tablespaces: tuple[Path, ...] = ()
    saved: tuple[Path, ...] = ()

    @classmethod
    def read(cls, data: Path) -> "_Marker | None":
        """None where there is none, or one that was being written: nothing else was, then."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            said = json.loads((data / MARKER).read_text())
            saved = tuple(Path(text) for text in said.get("saved", ()))
            return cls(str(said["restore"]), tuple(Path(text) for text in said["tablespaces"]), saved)
        return None

    def in_tablespace(self, data: Path) -> str:
        """What the marker in a tablespace's folder says."""
        return json.dumps({"restore": self.restore, "target": str(data)})


def _saved_before(data: Path) -> tuple[Path, ...]:
    marker = _Marker.read(data)
    return () if marker is None else marker.saved


def _marked_tablespaces(data: Path) -> Iterator[Path]:
    """The tablespaces of an unfinished restore that are still its own: others may live there by now."""
    marker = _Marker.read(data)
    for folder in marker.tablespaces if marker is not None else ():
        with contextlib.suppress(OSError):
            if marker is not None and (folder / MARKER).read_text() == marker.in_tablespace(data):
                yield folder.resolve()


def emptied(found: Found, tablespaces: Iterable[Path]) -> tuple[Path, ...]:
    """Those of the *tablespaces* that are to be filled in which something lies that may go: no other folder is emptied."""
    return tuple(folder for folder in dict.fromkeys(tablespaces) if folder.resolve() in found.tablespaces and folder.is_dir())


def version_folder(major: int, catalog: int) -> str:
    """What PostgreSQL makes in a tablespace's folder; other versions' servers may have theirs beside it."""
    return f"PG_{major}_{catalog}"


def check_tablespaces(data: Path, folders: Mapping[int, Path], found: Found, account: Account, *, version: str) -> None:
    """UsageError when a tablespace cannot lie where *folders* says, by OID: taken, within another, or not ours (rule 35).

    *version* is the one folder that lies in those of what was *found*.
    """
    places = [(f"tablespace {oid}", folder) for oid, folder in sorted(folders.items())]
    for index, (name, folder) in enumerate(places):
        hint = f"choose another folder: --tablespace {name.removeprefix('tablespace ')}=DIR"
        if not folder.is_absolute():
            raise UsageError(f"{name} cannot go to {folder}: PostgreSQL wants an absolute path", hints=[hint])
        real = folder.resolve()  # a folder may have several names
        for other, taken in [("the target folder", data), *places[:index]]:
            if real.is_relative_to(taken.resolve()) or taken.resolve().is_relative_to(real):
                raise UsageError(f"{name} would lie in {folder}, and {other} in {taken}: one within the other", hints=[hint])
        if not folder.exists():
            near = next(parent for parent in folder.parents if parent.exists())
            if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
                raise UsageError(f"{name} would lie in {folder}, and {near} may not be written by us", hints=[hint])
            continue
        if folder.stat().st_uid != account.uid:
            raise UsageError(f"{name} would lie in {folder}, which belongs to another user", hints=[hint])
        inside = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {""}
        ours = real in found.tablespaces
        if others := sorted(inside - {_NEW_MARKER} - ({MARKER, version} if ours else set())):
            left = [f"{MARKER} is of another restore, which was killed or goes on"] if MARKER in others else []
            raise UsageError(f"{name} would lie in {folder}, which is not empty: it holds {others[0]}", hints=[*left, hint])
        if ours and (user := _server_of(folder, data)) is not None:
            raise UsageError(f"{name} would lie in {folder}, which belongs to the server that runs in {user}", hints=[hint])


def _server_of(folder: Path, data: Path) -> str | None:
    """The data folder, other than *data*, of a running server that has a tablespace in *folder*, as far as we may look."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            cwd = process / "cwd"  # a server's is its data folder; links are followed as it sees them
            if not (cwd / "postmaster.pid").exists() or cwd.samefile(data):
                continue
            for link in (cwd / "pg_tblspc").iterdir():
                if link.is_symlink() and _is_same(process / "root" / str(link.readlink()).lstrip("/"), folder):
                    return str(cwd.readlink())
    return None


def _is_same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


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


def wal_place(data: Path) -> Path:
    """Where pg_wal lies when *data* is filled: a volume that is mounted there stays, a link becomes a plain folder."""
    wal = data / WAL_FOLDER
    return wal if wal.is_mount() else data


def size_of(folders: Iterable[Path]) -> dict[Path, int]:
    """What the files in each of *folders* occupy in its filesystem, in bytes; links are not followed."""
    sizes = {}
    for folder in folders:
        files = ((Path(parent) / name).lstat() for parent, _, names in os.walk(folder) for name in names)
        device = folder.stat().st_dev
        sizes[folder] = sum(file.st_blocks * 512 for file in files if file.st_dev == device)
    return sizes


@dataclass(frozen=True, slots=True)
class Begun:
    """A restore that began in `data`: what its own marker there says."""

    data: Path
    marker: str

    def check(self) -> None:
        """LockedError when another restore began there since, wherever it runs: what lies there may be a server's by now."""
        found = None
        with contextlib.suppress(FileNotFoundError):
            found = (self.data / MARKER).read_text()
        if found != self.marker:
            raise LockedError(f"another restore fills {self.data}, or did, since this one began", hints=["leave it to that one"])


def begin(
    data: Path,
    account: Account,
    found: Found,
    tablespaces: Sequence[Path],
    *,
    version: str,
    backup: str,
    saved: Path | None = None,
) -> Begun:
    """Make *data*, or empty it, with the marker in it: from here on it holds an unfinished restore, and nothing else.

    *tablespaces* are the folders outside that this restore fills; those of them that belonged to what was *found* are emptied
    of their folder *version*. Nothing else outside *data* is removed. *saved* is where WAL of what was *found* was saved: the
    next try finds it, whatever restore folder that has.
    """
    data.mkdir(mode=0o700, exist_ok=True)
    account.own(data)
    data.chmod(0o700)
    spaces = tuple(dict.fromkeys(tablespaces))
    former = _Marker.read(data)
    # A former try's tablespaces stay its own: a later one may go there again.
    known = spaces if former is None else tuple(dict.fromkeys((*spaces, *former.tablespaces)))
    kept = tuple(dict.fromkeys([*([] if saved is None else [saved]), *found.saved]))
    marker = _Marker(secrets.token_hex(16) if former is None else former.restore, known, kept)
    used = emptied(found, spaces)
    for folder in used:  # before the target says that they may go: a kill in between leaves the cluster as it was
        _mark(folder, marker.in_tablespace(data), account)
    said = {"backup": backup, "restore": marker.restore, "run": secrets.token_hex(16), "tablespaces": list(map(str, known))}
    said |= {"saved": list(map(str, kept))} if kept else {}
    begun = Begun(data, json.dumps(said))
    _mark(data, begun.marker, account)
    sync_folder(data.parent)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # first: with it, this would be no unfinished restore
        (data / _CONTROL).unlink()
        sync_folder((data / _CONTROL).parent)
    for folder in used:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder / version)
    clear(data, but=MARKER)
    for folder in spaces:
        make_folders(folder, account)
        _mark(folder, marker.in_tablespace(data), account)
    return begun


def _mark(folder: Path, text: str, account: Account) -> None:
    """Put a marker into *folder*, whole and durably."""
    temporary = folder / _NEW_MARKER
    with account.create(temporary) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MARKER)
    sync_folder(folder)


def make_folders(folder: Path, account: Account) -> None:
    """Make *folder* and those above it that are missing, for their owner alone."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700)
        account.own(each)


def finish(data: Path, tablespaces: Iterable[Path]) -> None:
    """Everything is there and synced: take the markers away, durably, the target's first."""
    (data / MARKER).unlink()
    sync_folder(data)
    for folder in tablespaces:
        (folder / MARKER).unlink(missing_ok=True)
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
