"""The spool: segments on their way into pg_wal, on its own file system, so that each is handed over by one rename.

It is a folder in pg_wal, where PostgreSQL looks at names of WAL files only. What lies in it:

    asked                          the name of the segment that was asked for last
    <segment>.part                 being written, and locked by who writes it
    <segment>.<link>.<previous>    whole, checked and on disk: it waits to be asked for
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.errors import ClipperError
from clipper_backup.repository.restore_plan import Linked
from clipper_backup.wal_names import Segment

PREFIX = "clipper-backup-"
"""How the name of every spool begins."""
_ASKED = "asked"
_AHEAD = "ahead"
_READY = re.compile(r"([0-9A-F]{24})\.([0-9a-f]{32})\.([0-9a-f]{32})")
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Ready:
    """A checked file in the spool, and what the list of links must know of it."""

    path: Path
    linked: Linked


class Spool:
    """One restore's spool, of the restore with this *name*; segments that another one left are never looked at.

    It belongs to who owns pg_wal, also where we are root. ClipperError for what the file system refuses.
    """

    def __init__(self, pg_wal: Path, name: str) -> None:
        self._pg_wal = pg_wal
        self.folder = pg_wal / f"{PREFIX}{name}"

    def open(self) -> None:
        """Make it, unless it is there."""
        with _told(f"cannot make {self.folder}"):
            owner = self._pg_wal.stat()
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(mode=_FOLDER_MODE)
                _own(self.folder, owner)

    def remove(self) -> None:
        """Remove it with all that lies in it; no matter when it is gone."""
        with contextlib.suppress(FileNotFoundError), _told(f"cannot remove {self.folder}"):
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    # -- what is asked for

    def ask(self, segment: Segment) -> None:
        """Note what PostgreSQL asked for, for who reads ahead."""
        draft = self.folder / f"{_ASKED}.{os.getpid()}"
        with _told(f"cannot write {draft}"):
            draft.write_bytes(segment.name.encode())
            draft.rename(self.folder / _ASKED)

    def asked(self, size_bytes: int) -> Segment | None:
        """What was asked for last; None when nothing was, or the spool is gone."""
        try:
            return Segment.parse((self.folder / _ASKED).read_text(encoding="ascii"), size_bytes)
        except OSError:
            return None

    @contextlib.contextmanager
    def reading_ahead(self) -> Iterator[bool]:
        """Whether we are the one who reads ahead from now on: there is at most one."""
        try:
            descriptor = os.open(self.folder / _AHEAD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def ahead_is_running(self) -> bool:
        """Whether somebody reads ahead."""
        with self.reading_ahead() as free:
            return not free

    # -- segments

    def ready(self, segment: Segment) -> Ready | None:
        """The checked file of *segment*, when it lies there; waits for who is writing it."""
        self._wait_for_writer(segment)
        for name in self._names():
            match = _READY.fullmatch(name)
            if match is not None and match[1] == segment.name:
                path = self.folder / name
                with contextlib.suppress(OSError):
                    if path.stat().st_size == segment.size_bytes:
                        return Ready(path, Linked(segment, bytes.fromhex(match[2]), bytes.fromhex(match[3])))
        return None

    def names(self, size_bytes: int) -> dict[Path, Segment]:
        """All checked files, with their segments."""
        matches = [match for name in self._names() if (match := _READY.fullmatch(name))]
        return {self.folder / match[0]: Segment.parse(match[1], size_bytes) for match in matches}

    def write(self, segment: Segment, chunks: Iterable[bytes]) -> "Draft":
        """Write a file that nobody may use yet. What *chunks* raises passes through, and nothing is left."""
        part = self.folder / f"{segment.name}.part"
        with _told(f"cannot write {part}"):
            owner = self._pg_wal.stat()
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        draft = Draft(part, descriptor)
        try:
            with _told(f"cannot write {part}"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.ftruncate(descriptor, 0)
                _own(part, owner)
            for chunk in chunks:
                with _told(f"cannot write {part}"):
                    _write_all(descriptor, chunk)
        except BaseException:
            draft.drop()
            raise
        return draft

    def _wait_for_writer(self, segment: Segment) -> None:
        with contextlib.suppress(FileNotFoundError), _told(f"cannot open {self.folder}"):
            descriptor = os.open(self.folder / f"{segment.name}.part", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []


class Draft:
    """A file that was written and is not in place yet."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def drop(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def keep(self, linked: Linked) -> None:
        """Let it wait in the spool, on disk: PostgreSQL would sync it later, while it should replay."""
        try:
            with _told(f"cannot write {self._path}"):
                os.fsync(self._descriptor)
                name = f"{linked.segment.name}.{linked.link.hex()}.{linked.previous.hex()}"
                self._path.rename(self._path.with_name(name))
        finally:
            os.close(self._descriptor)

    def hand_over(self, target: Path) -> None:
        """Move it to where PostgreSQL wants it."""
        try:
            hand_over(self._path, target)
        finally:
            os.close(self._descriptor)


def hand_over(path: Path, target: Path) -> None:
    """Move a checked file to where PostgreSQL wants it, by one rename. PostgreSQL itself syncs what it was given."""
    with _told(f"cannot hand over {target}"):
        path.replace(target)


def remove_spools(pg_wal: Path) -> None:
    """Remove every spool that restores left in *pg_wal*."""
    for folder in pg_wal.glob(f"{PREFIX}*"):
        if folder.is_dir():
            Spool(pg_wal, folder.name.removeprefix(PREFIX)).remove()


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ClipperError(f"{what}: {error.strerror}") from error


def _own(path: Path, owner: os.stat_result) -> None:
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
