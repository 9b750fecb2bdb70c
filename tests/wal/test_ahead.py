"""Reading ahead, and what is handed over from the spool."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipper_backup.errors import ClipperError, IntegrityError, WalGapError
from clipper_backup.format.wal_objects import NO_LINK
from clipper_backup.ops.wal import ahead as reading
from clipper_backup.ops.wal.ahead import AHEAD_SEGMENTS
from clipper_backup.ops.wal.spool import Spool, remove_spools
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment
from fixtures.wal_archive import MIB, plain_of, segment_name
from fixtures.wal_restore import Restoring, archive_tablespace, make_plan

WAIT_SECONDS = 30


def plain(timeline: int, number: int) -> bytes:
    return plain_of(Segment(Timeline(timeline), number, MIB))


def waiting(restoring: Restoring) -> list[str]:
    return sorted(str(linked.segment) for linked in restoring.spool().names(MIB).values())


class LookingClock:
    """A clock whose every wait hands the turn to the test, until that has seen what it waits for."""

    def __init__(self) -> None:
        self.looked = threading.Event()
        self.elapsed = 0.0

    def monotonic(self) -> float:
        return self.elapsed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        del seconds
        self.looked.set()
        return event.wait(0.001)


@contextmanager
def reading_ahead(
    restoring: Restoring, needed: Callable[[], bool] | None = None
) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Reads ahead beside the test; yields what waits until something is so."""
    clock, stop = LookingClock(), threading.Event()
    ahead = reading.Ahead(restoring.plan, restoring.reader(), restoring.spool(), clock)  # type: ignore[arg-type]  # what it asks for
    restoring.spool().open()
    thread = threading.Thread(target=ahead.run, args=(stop,))
    thread.start()

    def until(reached: Callable[[], bool]) -> None:
        for _ in range(WAIT_SECONDS * 1000):
            clock.looked.clear()
            if reached():
                return
            clock.looked.wait(0.01)
        raise AssertionError(waiting(restoring))

    try:
        yield until
    finally:
        stop.set()
        thread.join()


@pytest.mark.rule(58)
def test_what_lies_behind_is_read_ahead_and_handed_over_by_rename(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 8)
    restoring.planned(make_plan(last=(1, 7)))
    with reading_ahead(restoring) as until:
        assert restoring.ask((1, 3)) == plain(1, 3)
        until(lambda: waiting(restoring) == [segment_name(1, number) for number in range(4, 8)])  # not behind last
        inodes = {linked.segment.number: path.stat().st_ino for path, linked in restoring.spool().names(MIB).items()}
        restoring.store = FaultyStore(restoring.memory, "*:1+:unavailable", restoring.clock)
        for number in range(4, 8):
            assert restoring.ask((1, number)) == plain(1, number)
            assert restoring.target.stat().st_ino == inodes[number]
    assert restoring.links == [segment_name(1, number) for number in range(3, 8)]
    assert not restoring.spool().folder.exists(), "nothing is left behind"


def test_it_follows_the_line_and_what_is_behind_goes(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 6)
    restoring.archive.segments(2, 5, 8)
    restoring.planned(make_plan(timeline=2, ancestors=[(1, 5 * MIB + 100)]))
    with reading_ahead(restoring) as until:
        restoring.ask((1, 3))
        until(lambda: waiting(restoring) == [segment_name(1, 4), *(segment_name(2, number) for number in range(5, 9))])
        restoring.ask((2, 7))  # after a restart, say
        until(lambda: waiting(restoring) == [segment_name(2, 8)])


def test_it_wants_nothing_behind_last(restoring: Restoring) -> None:
    restoring.planned(make_plan(last=(1, 7)))
    wanted = restoring.ahead()._wanted(Segment(Timeline(1), 5, MIB))
    assert [segment.number for segment in wanted] == [6, 7]


def test_it_reads_no_more_than_may_wait(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4 + AHEAD_SEGMENTS + 5)
    restoring.planned(make_plan())
    with reading_ahead(restoring) as until:
        restoring.ask((1, 3))
        until(lambda: len(waiting(restoring)) == AHEAD_SEGMENTS)


@pytest.mark.rule(70)
def test_what_creates_a_tablespace_is_left_to_who_asks_for_it(restoring: Restoring, tmp_path: Path) -> None:
    """It may lie over the living server's: whether it does is looked at when PostgreSQL is about to replay it."""
    (tmp_path / "space/PG_15_202209061").mkdir(parents=True)
    archive_tablespace(restoring, tmp_path / "space", first=2)
    restoring.archive.segments(1, 2, 2)
    with reading_ahead(restoring) as until:
        restoring.ask((1, 2))
        until(lambda: waiting(restoring) == [segment_name(1, 4), segment_name(1, 5)])
        with pytest.raises(IntegrityError, match=r"tablespace .* not empty here"):
            restoring.ask((1, 3))
        assert not restoring.target.exists()


@pytest.mark.rule(70)
@pytest.mark.parametrize("behind", [8, 40])
def test_a_tablespace_over_the_border_of_what_was_read_ahead_is_seen_at_the_handing_over(
    restoring: Restoring, tmp_path: Path, behind: int
) -> None:
    (tmp_path / "space/PG_15_202209061").mkdir(parents=True)
    archive_tablespace(restoring, tmp_path / "space", behind=behind)
    with reading_ahead(restoring) as until:
        before = restoring.ask((1, 3))
        assert before is not None
        (restoring.pg_wal / segment_name(1, 3)).write_bytes(before)
        until(lambda: waiting(restoring) == [segment_name(1, 4), segment_name(1, 5)])
        with pytest.raises(IntegrityError, match=r"tablespace .* not empty here"):
            restoring.ask((1, 4))
        assert not restoring.target.exists()


@pytest.mark.rule(57)
@pytest.mark.rule(58)
def test_what_fails_ahead_leaves_nothing_and_is_found_again(restoring: Restoring) -> None:
    """A failed prefetch must not leave an empty file, and what it met is told by who asks for that segment."""
    restoring.archive.segments(1, 3, 6)
    key = restoring.archive.key(segment_name(1, 5))
    restoring.memory.put(key, restoring.memory.get(key)[:-10])
    restoring.planned(make_plan(last=(1, 6)))
    with reading_ahead(restoring) as until:
        restoring.ask((1, 3))
        until(lambda: waiting(restoring) == [segment_name(1, 4), segment_name(1, 6)])
        restoring.ask((1, 4))
        with pytest.raises(ClipperError, match=key):
            restoring.ask((1, 5))
        assert not list(restoring.spool().folder.glob("*.direct"))


@pytest.mark.rule(10)
def test_links_are_compared_when_it_is_handed_over(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.archive.segment(1, 5, previous=NO_LINK)
    restoring.archive.segment(1, 6)
    restoring.planned(make_plan(last=(1, 6)))
    with reading_ahead(restoring) as until:
        restoring.ask((1, 3))
        until(lambda: len(waiting(restoring)) == 3)
        restoring.ask((1, 4))
        with pytest.raises(WalGapError, match="does not follow"):
            restoring.ask((1, 5))


def test_what_another_restore_read_ahead_is_not_looked_at(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    other = Spool(restoring.pg_wal, "20260101-000000-00000000")
    other.open()
    (other.folder / f"{segment_name(1, 3)}.{'0' * 32}.{'0' * 32}").write_bytes(bytes(MIB))
    restoring.planned(make_plan())
    assert restoring.ask((1, 3)) == plain(1, 3)
    remove_spools(restoring.pg_wal)
    assert [path.name for path in restoring.pg_wal.iterdir()] == ["RECOVERYXLOG"]


@pytest.mark.rule(57)
def test_a_file_of_the_wrong_size_is_not_handed_over(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.planned(make_plan())
    restoring.spool().open()
    (restoring.spool().folder / f"{segment_name(1, 3)}.{'0' * 32}.{'0' * 32}").write_bytes(b"short")
    assert restoring.ask((1, 3)) == plain(1, 3)


def test_there_is_one_who_reads_ahead(restoring: Restoring) -> None:
    restoring.planned(make_plan())
    assert not restoring.spool().ahead_is_running()
    with reading_ahead(restoring) as until:
        until(restoring.spool().ahead_is_running)
        restoring.ahead().run(threading.Event())  # returns at once
        assert restoring.spool().ahead_is_running()
    assert not restoring.spool().ahead_is_running()


def test_who_looks_keeps_nobody_from_reading_ahead(restoring: Restoring) -> None:
    restoring.planned(make_plan())
    restoring.spool().open()
    spool, stop = restoring.spool(), threading.Event()

    def look() -> None:
        while not stop.is_set():
            spool.ahead_is_running()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(500):
            with restoring.spool().reading_ahead() as alone:
                assert alone
    finally:
        stop.set()
        thread.join()


def test_it_ends_when_its_server_has_ended(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 6)
    restoring.planned(make_plan())
    restoring.ask((1, 3))
    restoring.ahead().run(threading.Event(), needed=lambda: False)
    assert not restoring.spool().folder.exists()


def test_it_ends_when_nobody_asks(restoring: Restoring) -> None:
    """Time passes by its own waiting here: the clock moves when it is waited on."""
    restoring.archive.segments(1, 3, 3)
    restoring.planned(make_plan())
    restoring.ask((1, 3))
    restoring.ahead().run(threading.Event(), needed=lambda: True)
    assert reading.IDLE_SECONDS < restoring.clock.monotonic() < reading.IDLE_SECONDS + 1
    assert restoring.ask((1, 3)) == plain(1, 3), "the spool is made again"


def test_who_asks_waits_for_who_reads(restoring: Restoring) -> None:
    """Over a slow line the segment that is asked for next is on its way already: it must not be read twice."""
    restoring.archive.segments(1, 3, 4)
    restoring.planned(make_plan(last=(1, 4)))
    began, go_on = threading.Event(), threading.Event()

    class Slow(FaultyStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            if segment_name(1, 4) in key:
                began.set()
                go_on.wait(WAIT_SECONDS)
            return super().get(key, start=start, length=length)

    restoring.store = Slow(restoring.memory, "", restoring.clock)
    with reading_ahead(restoring):
        restoring.ask((1, 3))
        assert began.wait(WAIT_SECONDS)
        restoring.store = FaultyStore(restoring.memory, "*:1+:unavailable", restoring.clock)
        threading.Timer(0.05, go_on.set).start()
        assert restoring.ask((1, 4)) == plain(1, 4)


@pytest.mark.rule(57)
def test_a_request_of_an_earlier_life_hands_nothing_over(restoring: Restoring) -> None:
    """PostgreSQL was restarted while a fetch waited for the store, and has another file at %p by now."""
    restoring.archive.segments(1, 3, 5)
    restoring.planned(make_plan())

    class Restarting(WrapperStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            data = super().get(key, start=start, length=length)
            restoring.store = restoring.memory
            assert restoring.ask((1, 5)) == plain(1, 5)
            return data

    restoring.store = Restarting(restoring.memory)
    with pytest.raises(ClipperError, match="another file since"):
        restoring.ask((1, 3))
    assert restoring.target.read_bytes() == plain(1, 5)
    assert restoring.links == [segment_name(1, 5)]
