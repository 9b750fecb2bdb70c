"""Files of pg_wal on their way into the archive, many at once: read and stored in parallel, claimed in order (W3)."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from clipper_backup.errors import ClipperError
from clipper_backup.format.base_documents import Claim
from clipper_backup.ops.events import Emit, StepDone, Warned
from clipper_backup.ops.wal.push import Pusher
from clipper_backup.postgres.wal_files import FileIdentity
from clipper_backup.repository.wal_archive import Claimed, Prepared
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Kind, Segment

_READ_PER_JOB = 2
"""So many files may be read and not stored yet for each job: a compressed one takes up to 8 MiB."""


class BehindError(ClipperError):
    """A file whose predecessor failed: it is not claimed, so that nobody gets ahead of where it was refused."""


@dataclass(slots=True)
class Flight:
    """One file on its way, changed by one task after the other; `state` is set last, and never again.

    When stored, `identity` is that of the file that was read, and `claimed_at` counts for step 4.
    """

    name: str
    kind: Kind
    begun_at: float
    state: Literal["under way", "stored", "failed"] = "under way"
    identity: FileIdentity | None = None
    claimed_at: float = 0.0
    ended_at: float = 0.0
    error: ClipperError | None = None
    prepared: Prepared | None = field(default=None, repr=False)
    read: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def timeline(self) -> Timeline:
        """Its name begins with it."""
        return Timeline.parse(self.name[:8])


class Flights:
    """Begins flights and ends them, in threads of its own. Its methods are for one thread."""

    def __init__(self, pusher: Pusher, emit: Emit, changed: threading.Event, *, jobs: int) -> None:
        """*changed* is set whenever a flight has ended."""
        self._pusher, self._emit, self._changed = pusher, emit, changed
        self._clock = pusher.clock
        self._reads: queue.SimpleQueue[Flight | None] = queue.SimpleQueue()
        self._claims: queue.SimpleQueue[Flight | None] = queue.SimpleQueue()
        self._stores: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs = jobs
        self._room = threading.Semaphore(jobs * _READ_PER_JOB)
        self._failed: set[Timeline] = set()
        self._sure: set[Timeline] = set()
        self._last: dict[Timeline, Claimed] = {}
        self._told: dict[str, str] = {}
        self._abandoned = False
        self._writing: list[threading.Thread] = []
        for target, count in ((self._read_all, jobs), (self._claim_all, 1), (self._store_all, jobs)):
            for _ in range(count):
                thread = threading.Thread(target=target, name="archive", daemon=True)
                thread.start()
                if target != self._read_all:
                    self._writing.append(thread)

    def begin(self, name: str, kind: Kind) -> Flight:
        """A new one. Those of one timeline are claimed in the order in which they are begun."""
        flight = Flight(name, kind, self._clock.monotonic())
        if kind is Kind.SEGMENT:
            self._reads.put(flight)
        self._claims.put(flight)
        return flight

    def resume(self, timeline: Timeline) -> None:
        """Claim again on *timeline*, where one failed; nothing of it may be under way."""
        self._failed.discard(timeline)

    def close(self) -> None:
        """Begin no more: its threads end when they are through with what they do."""
        self._room.release(self._jobs)
        for _ in range(self._jobs):
            self._reads.put(None)
            self._stores.put(None)
        self._claims.put(None)

    def abandon(self) -> None:
        """The same, and whatever was begun ends without success; nothing is written any more when this returns."""
        self._abandoned = True
        self.close()
        for thread in self._writing:
            thread.join()

    # -- the tasks, each in its threads

    def _read_all(self) -> None:
        while True:
            # Before it is known for which: the first one in line must never wait for those behind it to end.
            self._room.acquire()
            flight = self._reads.get()
            if flight is None:
                return
            try:
                source = self._pusher.source(flight.name)
                flight.identity = source.identity
                flight.prepared = self._pusher.archive.prepare(source)
            except BaseException as error:  # noqa: BLE001  told when it is its turn to be claimed
                flight.error = _known(error)
            flight.read.set()

    def _claim_all(self) -> None:
        while True:
            flight = self._claims.get()
            if flight is None:
                return
            try:
                if flight.kind is Kind.SEGMENT:
                    self._claim(flight)
                else:
                    self._push(flight)
            except BaseException as error:  # noqa: BLE001  handed on to whoever asks for the file
                self._end(flight, error)

    def _store_all(self) -> None:
        while (task := self._stores.get()) is not None:
            task()

    def _push(self, flight: Flight) -> None:
        """What is no segment is small, or rare."""
        self._check_not_behind(flight)
        source = self._pusher.source(flight.name)
        flight.identity = source.identity
        flight.claimed_at = self._clock.since_boot()
        self._pusher.push_other(source)
        self._end(flight)

    def _claim(self, flight: Flight) -> None:
        flight.read.wait()
        if flight.error is not None:
            raise flight.error
        self._check_not_behind(flight)
        assert flight.prepared is not None  # noqa: S101  it was read without an error
        segment, archive = self._pusher.segment(flight.name), self._pusher.archive
        if segment.timeline not in self._sure:
            self._pusher.check_history(segment.timeline, first=True)
            self._sure.add(segment.timeline)
        last, behind = self._last.get(segment.timeline), None
        if last is not None and last.name == _name_before(segment):
            previous = last.header.link
        else:
            previous, behind = self._pusher.link_before(segment), archive.read_claim(segment.next().name)
        claimed = archive.claim(flight.prepared, previous)
        self._last[segment.timeline] = claimed
        self._stores.put(lambda: self._store(flight, claimed, behind))

    def _check_not_behind(self, flight: Flight) -> None:
        if self._abandoned or flight.timeline in self._failed:
            raise BehindError(f"what comes before {flight.name} was not archived")

    def _store(self, flight: Flight, claimed: Claimed, behind: Claim | None) -> None:
        if self._abandoned:
            self._end(flight, BehindError(f"{flight.name} was claimed, and not stored"))
            return
        try:
            self._pusher.archive.store(claimed)
            self._pusher.heal(claimed, behind)
            flight.claimed_at = claimed.at
            self._end(flight)
        except BaseException as error:  # noqa: BLE001  handed on to whoever asks for the file
            self._end(flight, error)

    def _end(self, flight: Flight, error: BaseException | None = None) -> None:
        flight.ended_at = self._clock.monotonic()
        flight.prepared = None
        if flight.kind is Kind.SEGMENT:
            self._room.release()
        if error is None:
            self._told.pop(flight.name, None)
            self._emit(StepDone("archive", f"{flight.name} is in the archive", flight.ended_at - flight.begun_at))
            flight.state = "stored"
        else:
            flight.error = known = _known(error)
            self._failed.add(flight.timeline)
            # Once, until it is something else: PostgreSQL asks again and again.
            if not isinstance(known, BehindError) and self._told.get(flight.name) != known.message:
                self._told[flight.name] = known.message
                self._emit(Warned(f"{flight.name} is not archived: {known.message}", known.hints))
            flight.state = "failed"
        self._changed.set()


def _name_before(segment: Segment) -> str | None:
    return segment.previous().name if segment.number > 0 else None


def _known(error: BaseException) -> ClipperError:
    return error if isinstance(error, ClipperError) else ClipperError(f"internal error: {type(error).__name__}: {error}")
