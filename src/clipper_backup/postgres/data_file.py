"""Files of a running server, read by many threads while it writes them, and the checksums of their pages.

Every change since the start of the backup is in the WAL that it needs, so what is read half old and half new is mended by a
restore. That is no reason to call such a page damaged, nor to pass over one that is.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clipper_backup.clock import Clock
from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.base_backup import Damage
from clipper_backup.postgres.data_walk import Found, unreadable
from clipper_backup.postgres.page_checksums import is_new, page_lsns, wrong_pages
from clipper_backup.postgres.wal_files import FileIdentity
from clipper_backup.values import Lsn

_PIECE_BYTES = 1 << 20
_AGAIN_SECONDS = (0.02, 0.2)
"""A page that looks torn is read again: the server's write(2) of 8 kB takes microseconds, on a disk that stalls it may wait."""


@dataclass
class PageChecks:
    """What tells a damaged page from a torn one, in all files of a backup; `damaged` is by path. Safe for many threads.

    A page that was written since `start` is in the WAL of the backup, whatever a reader saw of it; but no page is newer than
    the end of the WAL, for which `wal_end` asks the server. What lies below `known_below` was looked at by the parent backup,
    as far as it is unchanged.
    """

    page_bytes: int
    relation_file_pages: int
    start: Lsn
    wal_end: Callable[[], Lsn]
    clock: Clock
    known_below: Lsn | None = None
    damaged: dict[bytes, Damage] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def suspects(self, content: memoryview, first_block: int, same: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The pages of *content* whose checksum is wrong; *same* are those that the parent has just so."""
        wanted = ~is_new(content, self.page_bytes)
        if self.known_below is not None:
            wanted &= ~(same & (page_lsns(content, self.page_bytes) < np.uint64(int(self.known_below))))
        return wrong_pages(content, self.page_bytes, first_block, np.flatnonzero(wanted))

    def damaged_of(self, content: memoryview, suspects: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the *suspects* that no WAL mends."""
        lsns = page_lsns(content, self.page_bytes)[suspects]
        damaged = lsns < np.uint64(int(self.start))
        if not damaged.all():
            damaged |= lsns > np.uint64(int(self.wal_end()))
        return suspects[damaged]

    def note(self, path: bytes, pages: list[int]) -> None:
        """These pages of a file are damaged."""
        with self._lock:
            damage = self.damaged.setdefault(path, Damage())
            damage.pages = sorted({*damage.pages, *pages})
            damage.count = len(damage.pages)


class DataFile:
    """One file of the data folder, open: the bytes that it had then, whatever becomes of it. Safe for many threads."""

    def __init__(self, descriptor: int, found: Found, info: os.stat_result, checks: PageChecks | None) -> None:
        self._descriptor, self._found = descriptor, found
        self._checks = checks if found.relation_file is not None else None
        self._cached = hasattr(os, "RWF_NOWAIT")
        self.identity = FileIdentity(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    @classmethod
    def open(cls, found: Found, checks: PageChecks | None) -> "DataFile | None":
        """The file that a walk found; None when it is gone. With *checks* its pages are looked at."""
        try:
            descriptor = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(found.path, error) from error
        try:
            info = os.fstat(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, found, info, checks)

    def read(self, target: memoryview, start: int) -> None:
        """Fill *target* with the bytes from *start* on; what the file lost meanwhile is zeros, as the server sends it."""
        filled = 0
        try:
            while filled < len(target):
                piece = target[filled : filled + _PIECE_BYTES]
                got = self._read_piece(piece, start + filled)
                if got == 0:
                    break
                filled += got
        except OSError as error:
            raise unreadable(self._found.path, error) from error
        np.frombuffer(target, np.uint8)[filled:] = 0

    def check(self, content: memoryview, start: int, same: NDArray[np.bool_]) -> bool:
        """Look at the checksums of the pages that were read to *content*, from *start* on, and read those anew that are wrong.

        *same* says which pages the parent backup has just so. Returns whether *content* changed; what stays wrong, and is not
        mended by WAL, is noted as damaged.
        """
        checks = self._checks
        if checks is None:
            return False
        size = checks.page_bytes
        whole = content[: len(content) // size * size]  # what follows is a part of a page, and has no checksum
        first_in_file = start // size
        first_block = (self._found.relation_file or 0) * checks.relation_file_pages + first_in_file
        wrong = checks.suspects(whole, first_block, same[: len(whole) // size])
        if not len(wrong):
            return False
        for seconds in _AGAIN_SECONDS:
            checks.clock.sleep(seconds)
            for number in wrong.tolist():
                self.read(whole[number * size : (number + 1) * size], start + number * size)
            unsure = np.zeros(len(whole) // size, np.bool_)
            unsure[wrong] = True
            wrong = wrong_pages(whole, size, first_block, np.flatnonzero(unsure & ~is_new(whole, size)))
        if len(wrong) and len(damaged := checks.damaged_of(whole, wrong)):
            checks.note(self._found.member.path, (damaged + first_in_file).tolist())
        return True

    def close(self) -> None:
        """Nothing of it is read any more."""
        os.close(self._descriptor)

    def _read_piece(self, piece: memoryview, start: int) -> int:
        """One piece, or its beginning. What was not in memory is not left there: that memory is the server's."""
        got = 0
        if self._cached:
            try:
                got = os.preadv(self._descriptor, [piece], start, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError:  # a file system that does not know the flag
                self._cached = False
            else:
                if got == len(piece) or got == 0:
                    return got
        rest = os.preadv(self._descriptor, [piece[got:]], start + got)
        if self._cached and rest:
            os.posix_fadvise(self._descriptor, start + got, rest, os.POSIX_FADV_DONTNEED)
        return got + rest


def read_whole(found: Found) -> bytes:
    """A small file; IntegrityError when it is gone."""
    file = DataFile.open(found, None)
    if file is None:
        raise IntegrityError(f"{os.fsdecode(found.path)} is gone")
    try:
        content = bytearray(file.identity.size_bytes)
        file.read(memoryview(content), 0)
        return bytes(content)
    finally:
        file.close()
