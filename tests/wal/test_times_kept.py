"""Time maps written behind the archiver: from pg_wal, of what is archived, and never twice."""

import threading
from pathlib import Path

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.format import physical_names as names
from clipper_backup.format.time_maps import SHORT, SegmentTimes
from clipper_backup.ops.events import Event, Warned
from clipper_backup.ops.wal.times import TimesKeeper, keeping_times
from clipper_backup.ops.work import Work
from clipper_backup.postgres.data_folder import DataFolder
from clipper_backup.postgres.wal_records import Kind
from clipper_backup.repository.times import TimeMaps
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment
from fixtures.clocks import START
from fixtures.wal import SYSTEM, MadeServer, Pushing
from fixtures.wal_bytes import MIB, WalWriter


class Archiving:
    """A server whose WAL has transactions in it, and its archive."""

    def __init__(self, folder: Path, first: int = 3) -> None:
        self.server = MadeServer(folder)
        self.wal = WalWriter(number=first)
        self.pushing = Pushing(MemoryStore(VirtualClock(START)))
        self.folder = DataFolder(folder, self.pushing.clock)
        self.keeper = TimesKeeper(self.pushing.work(), self.folder, threading.Event())
        self.xid = 700
        self.pushed = 0

    def write(self, segments: int) -> None:
        """Write so many more segments, each with a transaction, and archive all but the last, which is not full."""
        for _ in range(segments):
            self.wal.end(Kind.COMMIT, self.xid, 1_000_000 * self.xid)
            self.wal.other(MIB - 20_000)
            self.xid += 1
        whole = list(self.wal.segments().items())[:-1]
        for segment, data in whole[self.pushed :]:
            self.pushing(self.server.put(segment.name, data))
        self.pushed = len(whole)

    @property
    def maps(self) -> TimeMaps:
        return TimeMaps(self.pushing.store, str(SYSTEM), MIB)

    def cover(self) -> list[tuple[int, int]]:
        return [(piece.first, piece.last) for piece in self.maps.cover(Timeline(1))]


@pytest.fixture
def archiving(tmp_path: Path) -> Archiving:
    return Archiving(tmp_path / "data")


def test_what_is_archived_is_mapped_once(archiving: Archiving) -> None:
    archiving.write(6)
    assert archiving.keeper.turn() == archiving.pushed
    assert archiving.cover() == [(3, 2 + archiving.pushed)]
    assert archiving.keeper.turn() == 0
    before = archiving.pushed
    archiving.write(3)
    assert archiving.keeper.turn() == archiving.pushed - before
    (first, second) = archiving.maps.cover(Timeline(1))
    assert second.first == first.last + 1
    told = [archiving.maps.read(piece.name) for piece in (first, second)]
    times = [each for known in told if known is not None for each in known.segments]
    assert all(each.understood for each in times), "a record over the border of two turns is carried on"
    assert sum(each.ends for each in times) == 9
    assert [each.linked for each in times] == [False, *[True] * (len(times) - 1)]


def test_another_process_goes_on_where_the_last_one_ended(archiving: Archiving) -> None:
    archiving.write(4)
    archiving.keeper.turn()
    archiving.write(3)
    after = TimesKeeper(archiving.pushing.work(), archiving.folder, threading.Event())
    assert after.turn() > 0
    first, second = archiving.maps.cover(Timeline(1))
    known = archiving.maps.read(second.name)
    assert known is not None
    assert all(each.understood for each in known.segments), "the segment before still lies in pg_wal"
    assert first.last + 1 == second.first


def test_what_was_recycled_has_no_map(archiving: Archiving) -> None:
    archiving.write(6)
    (archiving.server.wal / "000000010000000000000004").unlink()
    broken = archiving.server.wal / "000000010000000000000006"
    broken.write_bytes(b"\1" * MIB)
    archiving.keeper.turn()
    covered = archiving.cover()
    assert (3, 3) in covered
    assert not any(first <= number <= last for first, last in covered for number in (4, 6))


def test_a_full_range_is_made_one_map(tmp_path: Path) -> None:
    archiving = Archiving(tmp_path / "data", first=SHORT - 3)
    archiving.write(6)
    nothing = [SegmentTimes(linked=True)]
    for begin, end in ((0, 99), (100, SHORT - 4)):
        archiving.maps.write(Segment(Timeline(1), begin, MIB), nothing * (end + 1 - begin))
    archiving.keeper.turn()
    assert archiving.cover() == [(0, SHORT - 1), (SHORT, SHORT - 4 + archiving.pushed)]


def test_a_failure_is_told_once_and_ends_with_the_archiver(tmp_path: Path) -> None:
    events: list[Event] = []
    told = threading.Event()

    def emit(event: Event) -> None:
        events.append(event)
        told.set()

    pushing = Pushing(MemoryStore(VirtualClock(START)))
    work = Work(pushing.settings, pushing.store, pushing.clock, emit)
    with keeping_times(work, tmp_path / "nothing"):
        assert told.wait(30)
    assert [event for event in events if isinstance(event, Warned)] == events
    assert len(events) == 1
    assert not any(thread.name == "times" for thread in threading.enumerate())


def test_a_pg_wal_that_is_gone_for_a_moment_does_not_end_it(archiving: Archiving) -> None:
    told: list[str] = []
    warned, mapped = threading.Event(), threading.Event()

    def emit(event: Event) -> None:
        told.append(str(event))
        warned.set()

    class Noting(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            super().put(key, data, create=create)
            if key.startswith(f"{names.times_folder(str(SYSTEM), Timeline(1))}"):
                mapped.set()

    archiving.write(6)
    away = archiving.server.wal.rename(archiving.server.wal.with_name("elsewhere"))
    pushing = archiving.pushing
    work = Work(pushing.settings, Noting(pushing.store), pushing.clock, emit)
    with keeping_times(work, archiving.server.wal.parent):
        assert warned.wait(30)
        assert not mapped.is_set()
        away.rename(archiving.server.wal)
        assert mapped.wait(30)
    assert len(told) == 1
    assert "pg_wal" in told[0]
