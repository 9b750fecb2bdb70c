"""Which files need not be read: whatever happens to a file, under any clock of its file system, no change is passed over."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.format.base_documents import BaseDetails, BaseSummary, Fingerprint, ReadFrom
from clipper_backup.format.documents import decode
from clipper_backup.format.manifest import File
from clipper_backup.ops.base.unchanged import TICK_NS, Unchanged, unchanged_since
from clipper_backup.postgres.wal_files import FileIdentity
from clipper_backup.values import Timeline
from fixtures.docs import ROOT

SECOND = 10**9
PARENT = (ROOT / "tests/format/golden_base/backup.json").read_bytes()


def line(identity: FileIdentity) -> File:
    """As a backup wrote it down."""
    return File(
        path="base/5/1", mode=0o600, uid=0, gid=0, mtime_ns=identity.mtime_ns, ctime_ns=identity.ctime_ns, inode=identity.inode,
        size_bytes=identity.size_bytes,
    )  # fmt: skip


@pytest.mark.rule(42)
@given(
    tick=st.sampled_from([1, 4_000_000, SECOND, TICK_NS]),
    written=st.lists(st.integers(0, 8 * SECOND), min_size=1, max_size=4),
    begun=st.integers(0, 8 * SECOND),
    looked=st.integers(0, SECOND),
    again=st.integers(1, 12 * SECOND),
    set_back=st.booleans(),
)
def test_no_write_is_passed_over(
    tick: int, written: list[int], begun: int, looked: int, again: int, *, set_back: bool
) -> None:  # fmt: skip
    """A file is written, a backup begins, looks at it and reads it, and the file is written again, by a clock with such ticks.

    With *set_back* somebody gives it its former time of writing, which sets the time of its inode.
    """

    def stamp(at: int) -> int:
        return at // tick * tick

    before = max([at for at in written if at <= begun + looked], default=0)
    then = FileIdentity(1, 7, 8192, stamp(before), stamp(before))
    clock = stamp(begun)  # pg_control was written a moment before the first look
    later = begun + looked + again
    now = FileIdentity(1, 7, 8192, then.mtime_ns if set_back else stamp(later), stamp(later))
    judge = Unchanged(1, clock - TICK_NS)
    assert not judge.holds(now, line(then))
    if before + 2 * TICK_NS < begun:
        assert judge.holds(then, line(then))


@pytest.mark.rule(42)
def test_another_file_of_the_same_name_is_read() -> None:
    judge = Unchanged(1, 10 * SECOND)
    was = FileIdentity(1, 7, 8192, 3 * SECOND, 4 * SECOND)
    assert judge.holds(was, line(was))
    for name, value in (
        ("device", 2),
        ("inode", 8),
        ("size_bytes", 16384),
        ("mtime_ns", 3 * SECOND + 1),
        ("ctime_ns", 3 * SECOND),
    ):
        assert not judge.holds(was._replace(**{name: value}), line(was)), name
    for late in (was._replace(mtime_ns=11 * SECOND), was._replace(ctime_ns=11 * SECOND)):
        assert not judge.holds(late, line(late))


HERE = ReadFrom(host="db-0", path="/data", device=1, inode=2, clock_ns=100 * SECOND)


def judged(
    then: ReadFrom | None = HERE, here: ReadFrom = HERE, timeline: int = 3, *, standby: bool = False, **changed: Any
) -> object:
    summary = msgspec.structs.replace(
        decode(PARENT, BaseSummary, "the parent"), **({"source": "files", "timeline": 3, "from_standby": False} | changed)
    )
    known = msgspec.UNSET if then is None else then
    nothing = Fingerprint(server="", settings={}, libraries={}, tablespaces=[], databases=[], left_out=[])
    details = BaseDetails(id=summary.id, warnings=[], fingerprint=nothing, read_from=known)
    return unchanged_since(summary, details, here, Timeline(timeline), from_standby=standby)


@pytest.mark.rule(42)
def test_everything_is_read_where_the_parent_says_nothing_of_this_folder() -> None:
    assert judged() == Unchanged(1, 98 * SECOND)
    later = msgspec.structs.replace(HERE, clock_ns=200 * SECOND)
    assert judged(here=later) == Unchanged(1, 98 * SECOND)
    assert judged(source="protocol") is None
    assert judged(then=None) is None
    assert judged(timeline=4) is None
    assert judged(standby=True) is None
    assert judged(here=msgspec.structs.replace(HERE, clock_ns=99 * SECOND)) is None
    for name, value in (("host", "db-1"), ("path", "/other"), ("device", 9), ("inode", 9)):
        assert judged(here=msgspec.structs.replace(later, **{name: value})) is None, name
