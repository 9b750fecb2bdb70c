"""The spool: segments on their way into pg_wal, on its own file system, so that each is handed over by one rename.

It is a folder in pg_wal, where PostgreSQL looks at names of WAL files only. What lies in it:

    asked                          the name of the segment that was asked for last
    ahead                          locked by the one process that reads ahead; only who wants to be that one tries
    running                        locked by it too; others share the lock for a moment, to see whether it is
    <segment>.part                 being read ahead, and locked by who writes it
    <name>.direct                  being written for a request that waits
    <segment>.<link>.<previous>.w  whole, checked, watched for tablespaces and on disk: it waits to be asked for
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.errors import ClipperError
from clipper_backup.repository.restore_plan import Linked
from clipper_backup.wal_names import Segment

PREFIX = "clipper-backup-"
"""How the name of every spool begins."""
_ASKED = "asked"
_AHEAD = "ahead"
_RUNNING = "running"
_PART = ".part"
_DIRECT = ".direct"
_READY = re.compile(r"([0-9A-F]{24})\.([0-9a-f]{32})\.([0-9a-f]{32})\.w")
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

    def leave(self) -> None:
        """Remove what was read ahead, and the folder with it unless somebody writes there."""
        self._remove(lambda name: not name.endswith(_DIRECT))

    def remove(self) -> None:
        """Remove it with all that lies in it."""
        self._remove(lambda _: True)

    def _remove(self, wanted: Callable[[str], bool]) -> None:
        with contextlib.suppress(OSError):  # it is gone already, or pg_wal is, or in use again
            for path in self.folder.iterdir():
                if wanted(path.name):
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
        """Whether we are the one who reads ahead from now on: there is at most one, and none where the spool is gone."""
        with self._locked(_AHEAD, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            if not alone:
                yield False
                return
            with self._locked(_RUNNING, fcntl.LOCK_EX) as running:
                yield running

    def ahead_is_running(self) -> bool:
        """Whether somebody reads ahead. Being asked keeps nobody from beginning to."""
        with self._locked(_RUNNING, fcntl.LOCK_SH | fcntl.LOCK_NB) as free:
            return not free and self.folder.exists()

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[bool]:
        """Whether the file of this name is locked by us now; False too where the spool is gone."""
        try:
            descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError:
            yield False
            return
        try:
            try:
                fcntl.flock(descriptor, how)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    # -- segments

    def ready(self, segment: Segment) -> Ready | None:
        """The checked file of *segment*, when it lies there; waits for who is writing it."""
        self._wait_for_writer(segment)
        for path, there in self.names(segment.size_bytes).items():
            if there.segment == segment:
                with contextlib.suppress(OSError):
                    if path.stat().st_size == segment.size_bytes:
                        return Ready(path, there)
        return None

    def names(self, size_bytes: int) -> dict[Path, Linked]:
        """All checked files."""
        found: dict[Path, Linked] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if (match := _READY.fullmatch(path.name)) is not None:
                    segment, link, previous = match.groups()
                    linked = Linked(Segment.parse(segment, size_bytes), bytes.fromhex(link), bytes.fromhex(previous))
                    found[path] = linked
        return found

    @contextlib.contextmanager
    def writing_ahead(self, segment: Segment) -> Iterator["Draft"]:
        """A file for *segment*, which whoever asks for that waits for. It is gone afterwards, unless it was kept."""
        with self._draft(f"{segment.name}{_PART}") as draft:
            yield draft

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator["Draft"]:
        """A file to be handed over at once. It is gone afterwards, unless it was."""
        with self._draft(f"{name}{_DIRECT}") as draft:
            yield draft

    @contextlib.contextmanager
    def _draft(self, name: str) -> Iterator["Draft"]:
        path = self.folder / name
        with _told(f"cannot write {path}"):
            owner = self._pg_wal.stat()
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            except FileNotFoundError:  # who read ahead found nobody asking any more, and took the spool away
                self.open()
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            draft = Draft(path, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.ftruncate(descriptor, 0)
                _own(path, owner)
                yield draft
            finally:
                draft.close()

    def _wait_for_writer(self, segment: Segment) -> None:
        path = self.folder / f"{segment.name}{_PART}"
        with _told(f"cannot read {path}"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)


class Draft:
    """A file in the spool that nobody may use yet, and that its writer holds a lock on. `Spool` translates its errors."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self._moved = False

    def write(self, chunks: Iterable[bytes]) -> None:
        """Append *chunks*; what they raise passes through."""
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def keep(self, linked: Linked) -> None:
        """Let it wait to be asked for. It is synced: PostgreSQL would do that later, while it should replay."""
        os.fsync(self._descriptor)
        self._move(self.path.with_name(f"{linked.segment.name}.{linked.link.hex()}.{linked.previous.hex()}.w"))

    def hand_over(self, target: Path) -> None:
        """Move it to where PostgreSQL wants it."""
        self._move(target)

    def close(self) -> None:
        """Let go of it; remove it unless it was moved."""
        if not self._moved:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _move(self, target: Path) -> None:
        self.path.replace(target)
        self._moved = True


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
    except OSError as error:
        raise ClipperError(f"{what}: {error.strerror}") from error


def _own(path: Path, owner: os.stat_result) -> None:
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid)
