"""What the kernel and the C library can do and Python has no name for. What only saves time does nothing where it is missing."""

import contextlib
import errno
import fcntl
import functools
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD, _MALLOC_ARENA_MAX = -1, -3, -8
"""Of mallopt(3) of glibc; other C libraries have no such function."""
_KEPT_BYTES, _OWN_PAGES_BYTES = 1 << 30, 8 << 20
"""Below the second are frames; packs and stretches lie above."""
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE."""
DIRECT_BYTES, _BLOCK_BYTES = 4 << 20, 4096
"""So much at once is worth writing past the page cache, which takes whole blocks from whole pages of memory."""


def keep_freed_memory() -> None:
    """From now on memory that is freed is used again, and not given back to the kernel; pieces of 8 MiB and more still are.

    For what allocates frames all day: each piece above 128 kB would else be new pages, zeroed by the kernel. Of a base backup
    that is 60 % of the page faults and 0.4 s of CPU a gigabyte, a sixteenth of all. Packs are not among it: what is left between
    them fits none, and the peak would grow with the backup.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_MALLOC_ARENA_MAX, 1)  # else each thread keeps its own
        mallopt(_MALLOC_MMAP_THRESHOLD, _OWN_PAGES_BYTES)
        mallopt(_MALLOC_TRIM_THRESHOLD, _KEPT_BYTES)


def begin_write_back(descriptor: int, start: int, length: int) -> None:
    """Have the kernel write what it was given, now: else the disk is idle until fsync, which then waits for all of it."""
    if (sync_file_range := _sync_file_range()) is not None:
        sync_file_range(descriptor, start, length, _WRITE)  # what fails here fails in fsync too


def aligned_room(size_bytes: int) -> memoryview:
    """Memory to write from past the page cache: it begins with a page, and is zero."""
    mapped = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapped)


def write_direct(descriptor: int, room: memoryview, start: int) -> int:
    """Write what *room* holds, of `aligned_room`, to *start* in an open file, past the page cache; how many bytes were written.

    Filling the page cache takes a quarter of a restore's CPU and a tenth of a backup's, and drives out of it what the database
    uses. Only whole blocks are written; 0 where *start* is none's beginning, or the file system knows no such way: the caller
    writes the rest as usual. OSError for what is wrong otherwise. fsync is needed as ever.
    """
    if start % _BLOCK_BYTES:
        return 0
    whole = room[: len(room) // _BLOCK_BYTES * _BLOCK_BYTES]
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    done = 0
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        while done < len(whole) and done % _BLOCK_BYTES == 0:
            done += os.pwrite(descriptor, whole[done:], start + done)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return done


def sync_filesystem(descriptor: int) -> None:
    """Make durable all that was written in the file system of an open file or folder. OSError, also for writes that failed."""
    import ctypes  # noqa: PLC0415  as below

    if _function("syncfs")(descriptor) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def kind_of_filesystem(path: Path) -> str:
    """The kind of the file system that *path* lies on, of its nearest folder that exists (proc(5), mountinfo)."""
    folder = next(each for each in (path, *path.parents) if each.exists()).resolve()
    found = b""
    with contextlib.suppress(OSError):
        found = Path("/proc/self/mountinfo").read_bytes()
    return kind_in(found, folder)


def kind_in(mounts: bytes, folder: Path) -> str:
    """The kind of the file system that holds *folder*, a real path, by *mounts*: a mountinfo, whose names are bytes."""
    best, kind = 0, "an unknown file system"
    for line in mounts.split(b"\n"):
        left, dash, right = line.partition(b" - ")
        if not dash:
            continue
        # Space, tab, line feed and backslash stand there as \040 and so on; all other bytes as they are.
        name = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), left.split(b" ")[4])
        mounted = Path(os.fsdecode(name))
        if folder.is_relative_to(mounted) and len(mounted.parts) >= best:
            best, kind = len(mounted.parts), right.split(b" ")[0].decode("ascii", "replace")
    return kind


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    import ctypes  # noqa: PLC0415  as below

    function: Any = _function("sync_file_range")
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], int] | None = function
    return found


@functools.cache
def _function(name: str) -> Any:
    import ctypes  # noqa: PLC0415  6 ms that `wal push` must not pay

    return getattr(ctypes.CDLL(None, use_errno=True), name, None)
