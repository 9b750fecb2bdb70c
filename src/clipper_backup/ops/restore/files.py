"""The files of a base backup, written in parallel from its manifest; synced, and pg_control last (rule 71).

A server that finds pg_control finds everything else, synced: without it PostgreSQL does not start on what a killed restore left.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from clipper_backup.crew import Crew
from clipper_backup.errors import ClipperError, IntegrityError
from clipper_backup.format.frames import Bytes, FilePart, Reference, Small, stretches
from clipper_backup.format.manifest import Entry, File, Outside, Tablespace
from clipper_backup.linux import DIRECT_BYTES, aligned_room, begin_write_back, keep_freed_memory, sync_filesystem, write_direct
from clipper_backup.ops.restore.recovery import write_synced
from clipper_backup.ops.restore.target_dir import MARKERS, make_folders, sync_folder
from clipper_backup.postgres.account import Account
from clipper_backup.repository.pack_reader import readers_for

THREADS = 3
"""With stretches of 64 MiB. Each holds one, as stored and as it was: with more, memory would pass 512 MiB."""
_BATCH_FILES, _BATCH_BYTES = 64, 4 << 20
"""Small files that one task writes: neighbours lie in one frame."""
CONTROL = b"global/pg_control"
_MARKERS = frozenset(map(os.fsencode, MARKERS))


class Pages(Protocol):
    """What is read of packs, checked against its digests; IntegrityError names what differs. From any thread."""

    def stretch(self, reference: Reference, size_bytes: int, room: memoryview) -> Bytes:
        """The stretch whose page map lies there, in *room*, which has that size or more."""
        ...

    def small(self, small: Small, size_bytes: int) -> Bytes:
        """A small file."""
        ...


@dataclass(frozen=True, slots=True)
class Places:
    """Where things go: `data` is PGDATA, `tablespaces` by OID, `outside` the folder for what lay outside PGDATA."""

    data: Path
    outside: Path
    tablespaces: Mapping[int, Path]
    account: Account

    def of(self, entry: Entry) -> Path:
        """Where an entry of the manifest goes."""
        name = os.fsdecode(entry.named)
        return self.outside / name.lstrip("/") if isinstance(entry, Outside) else self.data / name


class FileWriter:
    """Writes what a manifest names; `finish` makes a data folder of it. `wrote` hears of bytes written, from any thread.

    Files are cut into stretches of *stretch_bytes*, of which each thread holds one. `has_outside` says whether any of it lay
    outside PGDATA.
    """

    def __init__(self, places: Places, pages: Pages, wrote: Callable[[int], None], stretch_bytes: int) -> None:
        self._places, self._pages, self._wrote = places, pages, wrote
        self._stretch_bytes, self._threads = stretch_bytes, readers_for(stretch_bytes, THREADS)
        self._folders: set[Path] = set()
        self._mounted: set[Path] = set()
        self._batch: list[File] = []
        self._batch_bytes = 0
        self._of_thread = threading.local()
        self._control: File | None = None
        self.has_outside = False

    def write(self, entries: Iterable[Entry]) -> None:
        """Write all of them but pg_control. What any of them raises ends it."""
        keep_freed_memory()
        crew = Crew("restore", self._threads, self._threads * 2)
        try:
            for entry in entries:
                if entry.named in _MARKERS:
                    continue  # of a restore that was killed behind pg_control, and used: the folder has one of this restore
                if isinstance(entry, File) and entry.named == CONTROL:
                    self._control = entry
                elif isinstance(entry, File):
                    self._begin_file(crew, entry)
                else:
                    self._make(entry)
            self._give_batch(crew)
            crew.finish()
        finally:
            crew.end()
        if self._control is None:
            raise IntegrityError("the backup's manifest has no global/pg_control")

    def finish(self, check: Callable[[], None]) -> None:
        """Sync everything that was written here or beside it, and only then write pg_control, synced too.

        Before that it asks *check*, which raises where the folder is not this restore's any more.
        """
        flush({self._places.data, self._places.outside, *self._places.tablespaces.values(), *self._mounted})
        assert self._control is not None  # noqa: S101  `write` has seen to it
        path = self._places.of(self._control)
        content = self._content(self._control)
        check()
        with _explained(path):
            temporary = path.with_name("pg_control.new")
            write_synced(temporary, bytes(content), self._places.account, mode=_mode(self._control))
            temporary.replace(path)
            sync_folder(path.parent)
        self._wrote(len(content))

    def _make(self, entry: Entry) -> None:
        path = self._places.of(entry)
        with _explained(path):
            if isinstance(entry, Tablespace):
                folder = self._places.tablespaces[int(entry.named.rpartition(b"/")[2])]
                make_folders(folder, self._places.account)
                path.symlink_to(folder)
            else:
                try:
                    path.mkdir()
                except FileExistsError:  # PGDATA itself, or a volume that `clear` let stay: a file system of its own
                    self._mounted.add(path)
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.fchmod(descriptor, _mode(entry) | 0o100)
                    self._places.account.own(descriptor)
                finally:
                    os.close(descriptor)

    def _begin_file(self, crew: Crew, entry: File) -> None:
        """Create it with its size, and give its content to the crew."""
        path = self._places.of(entry)
        with _explained(path):
            self.has_outside = self.has_outside or isinstance(entry, Outside)
            if isinstance(entry, Outside) and path.parent not in self._folders:
                make_folders(path.parent, self._places.account)
                self._folders.add(path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.truncate(descriptor, entry.size_bytes)
                os.fchmod(descriptor, _mode(entry))
                self._places.account.own(descriptor)
            finally:
                os.close(descriptor)
        if entry.small is not None:
            self._batch.append(entry)
            self._batch_bytes += entry.size_bytes
            if len(self._batch) >= _BATCH_FILES or self._batch_bytes >= _BATCH_BYTES:
                self._give_batch(crew)
        for number, (reference, size_bytes) in enumerate(self._stretches(entry.part)):
            crew.submit(partial(self._write_stretch, entry, number * self._stretch_bytes, reference, size_bytes))

    def _give_batch(self, crew: Crew) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch:
            crew.submit(partial(self._write_batch, batch))

    def _write_batch(self, batch: list[File]) -> None:
        for entry in batch:
            self._write_at(entry, 0, self._content(entry))

    def _write_stretch(self, entry: File, start: int, reference: Reference, size_bytes: int) -> None:
        self._write_at(entry, start, self._pages.stretch(reference, size_bytes, self._room()))

    def _room(self) -> memoryview:
        """Of this thread, for one stretch."""
        if not hasattr(self._of_thread, "room"):
            self._of_thread.room = aligned_room(self._stretch_bytes)
        room: memoryview = self._of_thread.room
        return room

    def _write_at(self, entry: File, start: int, content: Bytes) -> None:
        path = self._places.of(entry)
        with _explained(path):
            view = memoryview(content)
            with _opened(path) as descriptor:
                done = write_direct(descriptor, view, start) if len(view) >= DIRECT_BYTES else 0
                cached = len(view) - done
                while done < len(view):
                    done += os.pwrite(descriptor, view[done:], start + done)
                if cached >= DIRECT_BYTES:
                    begin_write_back(descriptor, start, len(view))
        self._wrote(len(content))

    def _stretches(self, part: FilePart) -> Iterator[tuple[Reference, int]]:
        """Where the page map of each stretch lies, and the stretch's size in bytes."""
        return zip(part.maps, stretches(part.size_bytes, self._stretch_bytes) if part.maps else (), strict=True)

    def _content(self, entry: File) -> Bytes:
        """The whole content of a file that has a stretch at most."""
        part = entry.part
        if part.small is not None:
            return self._pages.small(part.small, part.size_bytes)
        room = self._room()
        return b"".join(
            bytes(self._pages.stretch(reference, size_bytes, room)) for reference, size_bytes in self._stretches(part)
        )


def _mode(entry: Entry) -> int:
    """What of its mode is kept: what it lets its owner read and write, and others no more than it did."""
    return entry.mode & 0o777 | 0o600


def flush(folders: Iterable[Path]) -> None:
    """Make everything that was written in the filesystems of *folders* durable, names and data alike (syncfs(2)).

    One call each, where a million files would take a million. Since Linux 5.8 it tells of writes that failed.
    """
    devices: set[int] = set()
    for folder in folders:
        if not folder.exists() or (device := folder.stat().st_dev) in devices:
            continue
        devices.add(device)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync_filesystem(descriptor)
        except OSError as error:
            raise ClipperError(f"cannot sync the filesystem of {folder}: {error.strerror}") from error
        finally:
            os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClipperError(
            f"cannot write {path}: {error.strerror}", hints=["run the restore again when that is mended"]
        ) from error
