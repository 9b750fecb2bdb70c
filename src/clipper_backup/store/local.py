"""A directory as a store. What it acknowledged is on disk; what is seen at a key is whole.

Each object is written to `.tmp/` under the root, synced, renamed to its place, and the folder synced. See
docs/design/store.md.
"""

import contextlib
import errno
import itertools
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from clipper_backup.errors import (
    AccessError,
    ClipperError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
)
from clipper_backup.linux import DIRECT_BYTES, aligned_room, begin_write_back, write_direct
from clipper_backup.store.protocol import Capabilities, ObjectInfo, check_key, check_prefix, is_key

_DRAFTS = ".tmp"
_LOST_AND_FOUND = "lost+found"
_LEFTOVER_SECONDS = 86_400
_PLACE_TRIES = 100
# Small enough to be still in the processor's cache when the reader hashes it: with 8 MiB that is a quarter slower.
_PIECE_BYTES = 1024 * 1024
_WRITE_BACK_BYTES = 8 * 1024 * 1024
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700


@dataclass(slots=True)
class _Draft:
    """A file in `.tmp` that no reader sees yet; open for writing once it has a descriptor."""

    path: Path
    descriptor: int = -1


class LocalStore:
    """Objects as files below *root*, which is made (with its parents) by the first write.

    Any number of processes may use one root at once.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._drafts = self._root / _DRAFTS
        self._numbers = itertools.count(1)
        self._folders = threading.Lock()
        # Folders whose own entry in their parent is known to be on disk; guarded by `_folders`.
        self._linked: set[Path] = set()
        self._swept = False

    @property
    def url(self) -> str:
        """The root as a file URL."""
        return f"file://{quote(str(self._root))}"

    @property
    def capabilities(self) -> Capabilities:
        """Both, as far as the file system keeps its word about link and fsync."""
        return Capabilities(conditional_create=True, durable=True)

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`."""
        self._write(key, (data,), create=create)

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """See `Store.put_stream`; *expected_bytes* changes nothing here."""
        del expected_bytes
        return self._write(key, chunks, create=False)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        with self._opened(key) as (descriptor, info):
            left = max(0, info.size_bytes - start)
            return self._read(descriptor, key, start, left if length is None else min(length, left))

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`: the open file stays what it was, whatever is renamed over it."""
        with self._opened(key) as (descriptor, info):
            if same_as is not None and same_as.version != info.version:
                raise StoreError(f"{self._path(key)} was replaced while it was read")
            for position in range(start, info.size_bytes, _PIECE_BYTES):
                yield self._read(descriptor, key, position, min(_PIECE_BYTES, info.size_bytes - position))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`: the kernel reads ahead for all of them at once."""
        with self._opened(key) as (descriptor, _):
            if len(ranges) > 1:
                for start, length in ranges:
                    os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
            return [self._read(descriptor, key, start, length) for start, length in ranges]

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        with self._found(key) as path:
            return _info(key, path.stat())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        check_prefix(prefix)
        folder = str(self._root / prefix)
        try:
            return iter(sorted(_walk(folder, prefix), key=lambda info: info.key))
        except OSError as error:
            raise _translated(error, Path(error.filename or folder), reading=True) from error

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        check_prefix(prefix)
        folder = self._root / prefix
        try:
            return sorted(path.name for path in folder.iterdir() if _is_ours(prefix + path.name) and path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _translated(error, Path(error.filename or folder), reading=True) from error

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`. Folders that became empty go too."""
        for key in keys:
            check_key(key)
        for key in keys:
            path = self._path(key)
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                raise _translated(error, path) from error
        # Also for what was absent: whoever removed it may not have made that durable.
        for folder in {self._path(key).parent for key in keys}:
            self._settle(folder)

    def now(self) -> datetime:
        """The file system's clock: the time it gives to a new file."""
        draft = self._draft()
        try:
            self._open_draft(draft)
            return _time(os.fstat(draft.descriptor))
        finally:
            _discard(draft)

    # -- reading

    def _path(self, key: str) -> Path:
        return self._root / key

    @contextlib.contextmanager
    def _found(self, key: str) -> Iterator[Path]:
        """The path of *key*; what goes wrong with it inside becomes our error."""
        check_key(key)
        path = self._path(key)
        try:
            yield path
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissingError(f"no object at {path}") from error
        except OSError as error:
            raise _translated(error, path, reading=True) from error

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, ObjectInfo]]:
        with self._found(key) as path:
            descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor, _info(key, os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, key: str, start: int, length: int) -> bytes:
        """Exactly *length* bytes."""
        pieces = []
        try:
            while length > 0 and (piece := os.pread(descriptor, length, start)):
                pieces.append(piece)
                start += len(piece)
                length -= len(piece)
        except OSError as error:
            raise _translated(error, self._path(key), reading=True) from error
        if length > 0:
            raise StoreError(f"{self._path(key)} is {length} bytes shorter than what was asked of it")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- writing

    def _write(self, key: str, chunks: Iterable[bytes], *, create: bool) -> int:
        check_key(key)
        target = self._path(key)
        size_bytes = begun_bytes = 0
        draft = self._draft()
        try:
            self._open_draft(draft)
            for chunk in chunks:
                _write_all(draft, chunk, size_bytes, target)
                size_bytes += len(chunk)
                if size_bytes - begun_bytes >= _WRITE_BACK_BYTES:
                    begin_write_back(draft.descriptor, begun_bytes, size_bytes - begun_bytes)
                    begun_bytes = size_bytes
            try:
                os.fsync(draft.descriptor)
                self._place(draft, target, create=create)
            except OSError as error:
                raise _translated(error, target) from error
        finally:
            _discard(draft)
        return size_bytes

    def _draft(self) -> _Draft:
        # Not named after the key: names of 255 bytes have no room for a suffix.
        return _Draft(self._drafts / f"{os.getpid()}-{next(self._numbers)}-{os.urandom(4).hex()}")

    def _open_draft(self, draft: _Draft) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            try:
                draft.descriptor = os.open(draft.path, flags, _FILE_MODE)
            except FileNotFoundError:
                _make_durably(self._root)
                self._drafts.mkdir(_FOLDER_MODE, exist_ok=True)
                draft.descriptor = os.open(draft.path, flags, _FILE_MODE)
        except OSError as error:
            raise _translated(error, self._drafts) from error
        if not self._swept:
            self._swept = True
            self._sweep(os.fstat(draft.descriptor).st_mtime)

    def _place(self, draft: _Draft, target: Path, *, create: bool) -> None:
        """Give the synced draft its name, and make the name durable."""
        for _ in range(_PLACE_TRIES):
            try:
                self._make_folder(target.parent)
                _give_name(draft.path, target, create=create)
            except FileNotFoundError:
                # Somebody's delete found the folder empty between these two steps, and removed it.
                with self._folders:
                    self._linked.clear()
                continue
            # Somebody's delete may have come to the folder by now, and to the object.
            with contextlib.suppress(FileNotFoundError):
                self._sync_entries(target.parent)
            return
        raise StoreError(f"cannot write {target}: its folder or its draft is removed again and again")

    def _make_folder(self, folder: Path) -> None:
        """Make *folder* and what is missing above it; their entries are on disk when it returns."""
        if folder == self._root:
            return
        with self._folders:
            if folder in self._linked:
                return
        self._make_folder(folder.parent)
        with self._folders:
            # Not exist_ok, which takes a folder that is removed at this moment for a file in the way.
            with contextlib.suppress(FileExistsError):
                folder.mkdir(_FOLDER_MODE)
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            # Also when it was there: whoever made it may not have come this far yet.
            _sync_folder(folder.parent)
            self._linked.add(folder)

    def _sync_entries(self, folder: Path) -> None:
        """Make what *folder* holds durable, and the folder itself should it have been removed and made again meanwhile."""
        _sync_folder(folder)
        with self._folders:
            linked = folder == self._root or folder in self._linked
        while not linked and folder != self._root:
            folder = folder.parent
            _sync_folder(folder)

    def _settle(self, folder: Path) -> None:
        """Make removals from *folder* durable; remove it and its parents as far as they are empty."""
        while folder != self._root and self._remove_empty(folder):
            folder = folder.parent
        try:
            _sync_folder(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _translated(error, folder) from error

    def _remove_empty(self, folder: Path) -> bool:
        """Whether *folder* is gone. One that cannot be removed (not empty, not ours) just stays."""
        with self._folders:
            try:
                folder.rmdir()
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError:
                return False
            self._linked.discard(folder)
            return True

    def _sweep(self, now_seconds: float) -> None:
        """Remove drafts of processes that died a day ago or more. A living one touches its draft with every write."""
        with contextlib.suppress(OSError):
            for leftover in self._drafts.iterdir():
                with contextlib.suppress(OSError):
                    if now_seconds - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                        leftover.unlink()


def _walk(folder: str, prefix: str) -> Iterator[ObjectInfo]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if not _is_ours(prefix + entry.name):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                # Removed since the folder was read: it is simply not there.
                with contextlib.suppress(FileNotFoundError):
                    yield _info(prefix + entry.name, entry.stat())


def _is_ours(key: str) -> bool:
    """Others put there what is no key: editors, Kubernetes, and mkfs, whose folder only root may enter."""
    return is_key(key) and key.rpartition("/")[2] != _LOST_AND_FOUND


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    if not stat.S_ISREG(found.st_mode):
        raise ObjectMissingError(f"no object at {key}", hints=["there is something of that name which is no file"])
    return ObjectInfo(key, found.st_size, _time(found), f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")


def _time(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime_ns // 1000 / 1_000_000, UTC)


def _write_all(draft: _Draft, chunk: bytes, start: int, target: Path) -> None:
    """Append a chunk to a draft of *start* bytes; most of a large one past the page cache."""
    written = 0
    try:
        if len(chunk) >= DIRECT_BYTES:
            room = aligned_room(DIRECT_BYTES)
            while len(chunk) - written >= DIRECT_BYTES:
                room[:] = memoryview(chunk)[written : written + DIRECT_BYTES]
                if (done := write_direct(draft.descriptor, room, start + written)) == 0:
                    break
                written += done
        while written < len(chunk):
            written += os.pwrite(draft.descriptor, memoryview(chunk)[written:], start + written)
    except OSError as error:
        raise _translated(error, target) from error


def _give_name(draft: Path, target: Path, *, create: bool) -> None:
    if not create:
        draft.rename(target)
        return
    try:
        target.hardlink_to(draft)
    except FileExistsError as error:
        raise ObjectExistsError(f"there is an object at {target} already") from error


def _discard(draft: _Draft) -> None:
    """Close it, and remove its name in `.tmp` unless it was renamed."""
    try:
        if draft.descriptor >= 0:
            os.close(draft.descriptor)
        _remove(draft.path)
    finally:
        _remove(draft.path)  # a signal that came meanwhile leaves no draft either


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it was renamed; or it could never be made, which is told already
        path.unlink()


def _make_durably(folder: Path) -> None:
    """Make *folder* and its parents, each one's entry on disk."""
    if folder.is_dir():
        return
    _make_durably(folder.parent)
    folder.mkdir(_FOLDER_MODE, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "too large for this file system"}


class _MountedReadOnlyError(StoreError, AccessError):
    """For who writes a store that fails; for who would only note what was read, a refusal like any other."""


def _translated(error: OSError, path: Path, *, reading: bool = False) -> ClipperError:
    """The only place where the operating system's errors become ours."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return StoreError(
            f"cannot write {path}: {_FULL[error.errno]}",
            hints=["free space on that file system, or move the repository to a larger one"],
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        needed = "read" if reading else "read and write"
        links = "" if reading else ", and the file system must allow hard links"
        return AccessError(
            f"no access to {path}: {reason}", hints=[f"user id {os.geteuid()} must be able to {needed} there{links}"]
        )
    if error.errno == errno.EROFS:
        return _MountedReadOnlyError(f"cannot write {path}: {reason}", hints=["the file system is mounted read-only"])
    if error.errno in {errno.EEXIST, errno.EISDIR, errno.ENOTDIR}:
        return StoreError(
            f"cannot write {path}: {reason}",
            hints=["a file stands where a folder is needed, or a folder where a file is"],
        )
    return StoreError(
        f"cannot use {path}: {reason}",
        hints=["the repository must lie on a file system that is mounted and works: look into the kernel's log"],
    )
