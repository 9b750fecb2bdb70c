"""Which files a backup need not read, because nobody wrote them since the parent read them (rule 42).

Every write, truncation, rename or copy of a file sets its ctime, which no program can set back; so inode, size and both times
that are the parent's mean the parent's content. Three things would break that, and are looked at: a file that was written
again in the same tick of the clock in which the parent had seen it written, a clock that was set back, and another file system.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from clipper_backup.format.base_documents import BaseDetails, BaseSummary, ReadFrom
from clipper_backup.format.manifest import File
from clipper_backup.postgres.wal_files import FileIdentity
from clipper_backup.values import Timeline

TICK_NS = 2 * 10**9
"""The coarsest clock of a file system: FAT's, of two seconds; ext3 and some network file systems have one."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Judges files of one folder by what its parent saw of them: those on `device` that were older than `before_ns` then."""

    device: int
    before_ns: int

    def holds(self, now: FileIdentity, then: File) -> bool:
        """Whether the file holds what the parent has of it."""
        same = (now.inode, now.size_bytes, now.mtime_ns, now.ctime_ns) == (
            then.inode,
            then.size_bytes,
            then.mtime_ns,
            then.ctime_ns,
        )
        return same and now.device == self.device and max(now.mtime_ns, now.ctime_ns) <= self.before_ns


def read_from(path: Path, clock_ns: int) -> ReadFrom:
    """What is written down of the folder at *path*; see `ReadFrom`."""
    info = path.stat()
    return ReadFrom(
        host=os.uname().nodename, path=str(path.resolve()), device=info.st_dev, inode=info.st_ino, clock_ns=clock_ns
    )  # fmt: skip


def unchanged_since(
    parent: BaseSummary, details: BaseDetails | None, here: ReadFrom, timeline: Timeline, *, from_standby: bool
) -> Unchanged | None:
    """By what the files that *parent* has are judged; None when all must be read.

    That is so where the parent came over the connection (its times are whole seconds), of another machine or folder, of
    another timeline (a restore begins one), of a standby that is none any more, or where the clock went back since.
    """
    if details is None or details.read_from is msgspec.UNSET or parent.source != "files":
        return None
    then = details.read_from
    assert isinstance(then, ReadFrom)  # noqa: S101  looked at above
    if (then.host, then.path, then.device, then.inode) != (here.host, here.path, here.device, here.inode):
        return None
    if parent.timeline != int(timeline) or parent.from_standby != from_standby or here.clock_ns < then.clock_ns:
        return None
    return Unchanged(here.device, then.clock_ns - TICK_NS)
