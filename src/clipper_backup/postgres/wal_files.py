"""Files of a running server, read as what they were when reading began: an archive must not take one that changed meanwhile.

PostgreSQL renames and overwrites old segments. A name is no proof, and neither is a file that was looked at once.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clipper_backup.errors import AccessError, ClipperError, MissingError

READ_BYTES = 1 << 20
"""Largest piece handed out; every WAL page size divides it."""


class FileIdentity(NamedTuple):
    """What tells one state of one file from every other."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


class ChangedError(ClipperError):
    """A file was changed, replaced or removed while it was read."""


def identify(path: Path) -> FileIdentity:
    """What lies at *path* now; MissingError when nothing does."""
    try:
        return _identity(path.stat())
    except OSError as error:
        raise _translated(error, path) from error


def read_unchanged(path: Path, expected: FileIdentity) -> Iterator[bytes]:
    """The whole file in pieces of READ_BYTES; after the last one ChangedError unless it still is what was *expected*.

    So it is before the first piece. What was handed out may be used only when the end came without an error.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _translated(error, path) from error
    try:
        _check(path, expected, _identity(os.fstat(descriptor)))
        left = expected.size_bytes
        while left > 0:
            piece = _read(descriptor, path, min(READ_BYTES, left))
            left -= len(piece)
            yield piece
        _check(path, expected, _identity(os.fstat(descriptor)))
        _check(path, expected, identify(path))
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: Path, size_bytes: int) -> bytes:
    """Exactly *size_bytes*: pages must not be torn by the pieces they come in."""
    pieces = []
    while size_bytes > 0:
        try:
            piece = os.read(descriptor, size_bytes)
        except OSError as error:
            raise _translated(error, path) from error
        if not piece:
            raise ChangedError(f"{path} became shorter while it was read")
        pieces.append(piece)
        size_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _identity(found: os.stat_result) -> FileIdentity:
    return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _check(path: Path, expected: FileIdentity, found: FileIdentity) -> None:
    if found != expected:
        raise ChangedError(f"{path} changed while it was read", hints=["PostgreSQL asks for it again by itself"])


def _translated(error: OSError, path: Path) -> ClipperError:
    reason = (error.strerror or str(error)).lower()
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MissingError(f"there is no file {path}")
    if isinstance(error, PermissionError):
        return AccessError(f"no access to {path}: {reason}", hints=[f"user id {os.geteuid()} must be able to read it"])
    return ClipperError(f"cannot read {path}: {reason}")
