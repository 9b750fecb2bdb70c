"""`wal archive`: the process beside a database that archives its WAL ahead, and answers its archive_command.

PostgreSQL's own `.ready` files say what there is to do; a request says which file PostgreSQL is about to forget, and the answer
is about that file, in its present state, alone (rule 101).
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError, IntegrityError, NoRepositoryError, StoreError
from clipper_backup.ops.events import Warned
from clipper_backup.ops.wal.asked import Asked
from clipper_backup.ops.wal.filling import Filling
from clipper_backup.ops.wal.flights import Flight, Flights
from clipper_backup.ops.wal.handshake import Handshake, Request
from clipper_backup.ops.wal.open_archive import accept, open_archive
from clipper_backup.ops.wal.push import Pusher
from clipper_backup.ops.work import Work
from clipper_backup.postgres.data_folder import DataFolder
from clipper_backup.postgres.postmaster import is_served
from clipper_backup.postgres.wal_files import identify
from clipper_backup.repository.wal_archive import CLAIM_SECONDS
from clipper_backup.wal_names import Kind, classify

_AHEAD = 64
"""So many files are stored or under way beyond what PostgreSQL has asked for; once it has ended, so many are under way."""
_SCAN_SECONDS = 1.0
_AGAIN_SECONDS = 10.0
"""After a failure that nobody asks about, so long until the next attempt."""
_LOOK_SECONDS = 2.0
"""Between two looks for repository.json that nobody waits for."""
_READY, _HISTORY = ".ready", ".history"

Found = TypeVar("Found")
Unstored: TypeAlias = Callable[[], Sequence[str]]
"""Says which files are ready and not in the archive yet."""


def ready_files(wal: Path) -> list[str]:
    """What PostgreSQL wants to have archived of the folder *wal*, by name; OSError where it cannot be listed."""
    with os.scandir(wal / "archive_status") as entries:
        return sorted(entry.name.removesuffix(_READY) for entry in entries if entry.name.endswith(_READY))


def run_archiver(
    work: Work, pgdata: Path, handshake: Path, stop: threading.Event, *, looked: Callable[[Unstored], None] = lambda _: None
) -> None:
    """Archive for the server in *pgdata* and answer in *handshake* until *stop* is set; *looked* is called after each look.

    An error says that this cannot work: no data folder, no store, another cluster's repository. Whatever is wrong with one
    file is told, and tried again. Where there is no repository yet, or it went, everybody is told no until it is there.
    """
    folder = DataFolder(pgdata, work.clock)
    layout = folder.layout()
    desk = Handshake(handshake, work.clock, asked_by=pgdata)
    filling = Filling(folder.wal, layout.segment_bytes, work.clock, work.emit)
    try:
        waiting = _Waiting(work, folder, desk, filling, stop, looked)
        archive = waiting.until(lambda: open_archive(work, layout), absent=NoRepositoryError)
        if archive is not None:
            accept(work, layout)
        while archive is not None and not stop.is_set():
            pusher = Pusher(archive, folder, layout)
            try:
                _archive(work, pusher, folder, desk, filling, stop, looked)
            except IntegrityError as error:
                # Whatever was stored since the last good look may lie elsewhere: all of it is begun anew.
                work.emit(Warned(f"nothing is archived: {error.message}", error.hints))
                waiting.until(archive.check_place, absent=ClipperError, told=error.message)
    finally:
        desk.rest()


def _archive(
    work: Work,
    pusher: Pusher,
    folder: DataFolder,
    desk: Handshake,
    filling: Filling,
    stop: threading.Event,
    looked: Callable[[Unstored], None],
) -> None:
    """Until *stop*; IntegrityError when the store lost its id, or a history (`Pusher.check_place`). Nothing is under way then."""
    changed = threading.Event()
    flights = Flights(pusher, work.emit, changed, jobs=work.settings.archive_jobs)
    coordinator = _Coordinator(work, folder, desk, flights, _Place(pusher.check_place, work.clock, changed))
    try:
        while not stop.is_set():
            changed.clear()
            coordinator.turn()
            filling.look()
            looked(coordinator.unstored)
            work.clock.wait(changed, desk.look_seconds)
    except IntegrityError:
        flights.abandon()
        raise
    finally:
        flights.close()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """While there is no archive: everybody who asks is told no."""

    work: Work
    folder: DataFolder
    desk: Handshake
    filling: Filling
    stop: threading.Event
    looked: Callable[[Unstored], None]

    def until(self, look: Callable[[], Found], *, absent: type[ClipperError], told: str = "") -> Found | None:
        """What *look* returns once it raises *absent* no more; None after *stop*. *told* is what somebody was told already."""
        while not self.stop.is_set():
            try:
                return look()
            except absent as error:
                self.desk.beat()
                if error.message != told:
                    told = error.message
                    self.work.emit(Warned(f"nothing is archived: {told}", error.hints))
                for request in self.desk.requests():
                    self.desk.answer(request, ok=False, lines=[error.message, *error.hints])
            self.filling.look()
            self.looked(self._ready)
            self.work.clock.wait(self.stop, _SCAN_SECONDS)
        return None

    def _ready(self) -> list[str]:
        with suppress(OSError):
            return ready_files(self.folder.wal)
        return []


class _Place:
    """Whether the store is still the repository that it was, asked only when somebody waits for the answer, and in a thread."""

    def __init__(self, check: Callable[[], None], clock: Clock, changed: threading.Event) -> None:
        self._check, self._clock, self._changed = check, clock, changed
        self._seen_at = -math.inf
        self._asked: Asked[float] | None = None

    def is_seen_since(self, moment: float) -> bool:
        """Whether a look that began at *moment* or later found it; begins one where not.

        IntegrityError when the last look found something else; StoreError, once, when it found nothing out.
        """
        if self._seen_at < moment and self._asked is None:
            self._asked = Asked(self._look)
        if self._asked is not None and self._asked.is_answered:
            asked, self._asked = self._asked, None
            self._seen_at = asked.answer()
        return self._seen_at >= moment

    def _look(self) -> float:
        began = self._clock.monotonic()
        try:
            self._check()
        except (IntegrityError, StoreError):
            raise
        except ClipperError as error:
            raise StoreError(error.message, hints=error.hints) from error
        finally:
            self._changed.set()
        return began


class _Coordinator:
    """Looks what there is to do, begins it in PostgreSQL's order, and answers. It never waits for the store."""

    def __init__(self, work: Work, folder: DataFolder, handshake: Handshake, flights: Flights, place: _Place) -> None:
        self._work, self._clock, self._folder = work, work.clock, folder
        self._handshake, self._flights, self._place = handshake, flights, place
        self._known: dict[str, Flight] = {}
        self._histories: set[str] = set()
        self._let_go: set[str] = set()
        self._seen: set[str] = set()
        self._scanned_at = self._looked_at = -_LOOK_SECONDS
        self._left_over = False
        self._unlisted = ""

    def unstored(self) -> list[str]:
        """What is ready, or a history, and not known to be in the archive that is still where it was; by name."""
        stored = {name for name, flight in self._known.items() if flight.state == "stored"}
        left = (set(self._ready()) - self._let_go) | {name for name in self._known if name.endswith(_HISTORY)}
        return sorted(left - stored if self._is_place_seen() else left)

    def turn(self) -> None:
        """Look once. IntegrityError when the store is no longer the repository that it was."""
        self._handshake.beat()
        requests = self._handshake.requests()
        now = self._clock.monotonic()
        new = [request for request in requests if request.id not in self._seen]
        self._seen = {request.id for request in requests}
        for request in new:
            self._let_go.discard(request.words[0])
            self._forget_failures(request.words[0][:8])  # what failed before it was asked may work now
        asked = {request.words[0] for request in requests}
        room = self._left_over and self._count_ahead() <= _AHEAD // 2
        if room or now - self._scanned_at >= _SCAN_SECONDS or not asked <= self._known.keys():
            self._scanned_at = now
            self._scan(asked)
        for request in requests:
            self._answer(request)
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Look for what is stored and not asked for yet: a place that came and went meanwhile must not look like ours."""
        self._is_place_seen()

    def _is_place_seen(self) -> bool:
        newest = max((flight.ended_at for flight in self._known.values() if flight.state == "stored"), default=-math.inf)
        with suppress(StoreError):  # told to whoever asks
            return self._place.is_seen_since(newest)
        return False

    def _scan(self, asked: set[str]) -> None:
        """Begin what is ready and not begun: histories first, .ready or not (rule 97), then by name."""
        ready = set(self._ready())
        self._let_go &= ready
        histories = {name for name in self._listed("") if name.endswith(_HISTORY)} - self._histories
        wanted = ready | histories | asked
        now = self._clock.monotonic()
        for name, flight in list(self._known.items()):
            if flight.state == "stored" and flight.kind is Kind.HISTORY:
                self._histories.add(name)
            if flight.state == "stored" and name not in wanted:
                del self._known[name]  # PostgreSQL has forgotten it
            elif flight.state == "failed" and now - flight.ended_at >= _AGAIN_SECONDS:
                self._forget_failures(name[:8])
        blocked = {name[:8] for name, flight in self._known.items() if flight.state == "failed"}
        self._left_over = False
        room = _AHEAD - self._count_ahead()
        for name in sorted(wanted - self._let_go - self._known.keys(), key=lambda name: (not name.endswith(_HISTORY), name)):
            if room <= 0 and name not in asked:
                self._left_over = True
            elif name[:8] not in blocked and (kind := classify(name)) is not None:
                self._known[name] = self._flights.begin(name, kind)
                room -= 1

    def _count_ahead(self) -> int:
        """How many files take room. Stored ones take none once the server has ended: nobody will ask for them."""
        if is_served(self._folder.path):
            return len(self._known)
        return sum(flight.state != "stored" for flight in self._known.values())

    def _forget_failures(self, timeline: str) -> None:
        """Let the failed ones of *timeline* begin anew; only when nothing of it is under way, so that claims stay in order."""
        of_it = [flight for name, flight in self._known.items() if name[:8] == timeline]
        failed = [flight for flight in of_it if flight.state == "failed"]
        if failed and all(flight.state != "under way" for flight in of_it):
            for flight in failed:
                del self._known[flight.name]
            self._flights.resume(failed[0].timeline)

    def _answer(self, request: Request) -> None:
        """Answer when it is known: not before what comes before it on its timeline, and with that one's failure as its own."""
        name = request.words[0]
        if classify(name) is None:
            self._handshake.answer(request, ok=False, lines=[f"not the name of a file that PostgreSQL archives: {name!r}"])
            return
        line = sorted((each for each in self._known.values() if each.name[:8] == name[:8] and each.name <= name), key=_by_name)
        failed = next((each for each in line if each.error is not None and each.state == "failed"), None)
        if failed is not None and failed.error is not None:
            which = "" if failed.name == name else f"{failed.name}, which comes before it, is not archived: "
            self._handshake.answer(request, ok=False, lines=[which + failed.error.message, *failed.error.hints])
        elif name in self._known and all(each.state == "stored" for each in line):
            try:
                if not self._place.is_seen_since(self._known[name].ended_at):
                    return
            except StoreError as error:
                self._handshake.answer(request, ok=False, lines=[error.message, *error.hints])
                return
            flight = self._known.pop(name)
            # One that is another by now is begun anew by the next look, whatever was stored.
            if self._is_that_file(flight):
                self._let_go.add(name)
                if flight.kind is Kind.HISTORY:
                    self._histories.add(name)
                self._handshake.answer(request, ok=True)

    def _is_that_file(self, flight: Flight) -> bool:
        """Whether the file that PostgreSQL will forget is the one that was stored, and its claim young enough (step 4)."""
        try:
            same = identify(self._folder.wal / flight.name) == flight.identity
        except ClipperError:
            return False
        return same and self._clock.since_boot() - flight.claimed_at < CLAIM_SECONDS

    def _ready(self) -> list[str]:
        return [name.removesuffix(_READY) for name in self._listed("archive_status") if name.endswith(_READY)]

    def _listed(self, folder: str) -> list[str]:
        path = self._folder.wal / folder
        try:
            with os.scandir(path) as entries:
                return [entry.name for entry in entries]
        except OSError as error:
            said = f"cannot list {path}: {(error.strerror or str(error)).lower()}"
            if said != self._unlisted:
                self._unlisted = said
                self._work.emit(Warned(said))
            return []


def _by_name(flight: Flight) -> str:
    return flight.name
