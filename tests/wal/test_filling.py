"""WAL that piles up: whoever runs the archiver is told for how long pg_wal has room."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.config import Settings
from clipper_backup.ops.events import Event, Warned
from clipper_backup.ops.wal.archive import run_archiver
from clipper_backup.ops.wal.filling import Filling
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from fixtures.clocks import SteppedClock
from fixtures.wal import MadeServer, Pushing

MIB = 1 << 20


class Volume:
    """A pg_wal, its room, and a watcher; `minute` is one in which so many segments come and so many go, the oldest first."""

    def __init__(self, folder: Path) -> None:
        self.status = folder / "archive_status"
        self.status.mkdir(parents=True)
        self.clock, self.room = SteppedClock(), 1000 * MIB
        self.told: list[str] = []
        self.count = 0
        self.filling = Filling(folder, MIB, self.clock, self._note, lambda _: self.room)

    def _note(self, event: Event) -> None:
        assert isinstance(event, Warned)
        self.told.append(event.text)

    def minute(self, *, come: int, go: int = 0) -> int:
        """How many warnings came in it."""
        for _ in range(come):
            self.count += 1
            self.room -= MIB
            (self.status / f"{self.count:024X}.ready").touch()
        for path in sorted(self.status.iterdir())[:go]:
            path.unlink()
        return self.look_for()

    def look_for(self, seconds: int = 60) -> int:
        """The same, while nobody touches anything."""
        before = len(self.told)
        for _ in range(seconds):
            self.clock.advance(1)
            self.filling.look()
        return len(self.told) - before


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "pg_wal")
    volume.filling.look()
    return volume


@pytest.mark.rule(14)
def test_a_first_file_that_stays_is_told_with_the_time_that_is_left(volume: Volume) -> None:
    assert volume.minute(come=4) == 0, "they came a moment ago"
    assert volume.minute(come=6) == 1
    assert "as it comes: 10 files (10.5 MB) wait in " in volume.told[0]
    assert volume.told[0].endswith("which has 1.0 GB of room: full in 2 h 45 min at this rate")
    assert sum(volume.minute(come=6) for _ in range(9)) == 0, "every ten minutes"
    assert volume.minute(come=6) == 1
    assert volume.minute(come=300) == 1, "unless half of the time that was told is gone"
    assert volume.minute(come=0) == 0
    assert sum(volume.minute(come=0) for _ in range(9)) == 1
    assert volume.told[-1].endswith("no more came in the last minute")


def test_a_backlog_that_only_grows_is_told_though_something_goes(volume: Volume) -> None:
    assert [volume.minute(come=100, go=50) for _ in range(3)] == [0, 1, 0]


def test_a_busy_server_is_no_backlog(volume: Volume) -> None:
    assert [volume.minute(come=30, go=30 if number else 20) for number in range(4)] == [0, 0, 0, 0]
    assert volume.minute(come=0, go=10) == 0


def test_when_it_went_and_comes_again_it_is_told_again(volume: Volume) -> None:
    assert [volume.minute(come=1), volume.minute(come=0), volume.minute(come=0, go=1)] == [0, 1, 0]
    assert [volume.minute(come=1), volume.minute(come=0)] == [0, 1]


@pytest.mark.parametrize("there", [True, False], ids=["the store fails", "no repository"])
def test_the_archiver_tells_it(tmp_path: Path, there: bool) -> None:
    server, clock, stop = MadeServer(tmp_path / "data"), SteppedClock(), threading.Event()
    server.write(1)
    store = MemoryStore(clock)
    if there:
        open_or_create_repository(store, clock, "a test")
    told: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Warned) and "of room" in event.text:
            told.append(event.text)
            stop.set()

    failing = FaultyStore(store, "put:2+:unavailable", clock) if there else store
    run_archiver(
        replace(Pushing(failing).work(), clock=clock, emit=note, settings=Settings(archive_jobs=1)),
        server.path,
        tmp_path / "h",
        stop,
    )
    assert len(told) == 1


def test_what_cannot_be_looked_at_is_looked_at_again_a_minute_later(volume: Volume) -> None:
    """Not at each turn of the archiver: the file that comes a second after the failure is first seen with the next look."""
    hidden = volume.status.rename(volume.status.with_name("hidden"))
    assert volume.look_for() == 0
    hidden.rename(volume.status)
    assert volume.minute(come=1) == 0, "seen at its end for the first time"
    assert (volume.look_for(59), volume.look_for(1)) == (0, 1)
