"""Every order in which the requests of two creators can reach a store that creates without conditions: one creates, or none.

The real code runs. What a creator asks next follows from the answers it had: `ClaimingStore.put` is run from its beginning
with those answers, up to the first question that has none. So all orders are walked without threads, and an order that
leads to what was seen before (the same answers, objects and time) is walked once.

Between any two requests time may pass, and a creator may stop for ever. The one thing that is promised (docs/design/store.md)
is that half of CLAIM_SECONDS do not pass between a creator's last look and its write.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import ClipperError, ObjectExistsError, StoreUnavailableError
from clipper_backup.store.claiming import CLAIM_SECONDS, ClaimingStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.store.wrapper import WrapperStore
from fixtures.sweeps import SOAK

pytestmark = pytest.mark.no_cover  # measuring doubles its time, and others pass its lines

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
KEY = "k"


@dataclass(frozen=True)
class Bounds:
    """How far a walk goes.

    Time passes in steps of *step_seconds*, *steps* at most. A creator that would pause more than *pauses* times has
    stopped there. So many answers as *lost* get lost, of requests that took place and of such that did not.
    """

    creators: int = 2
    pauses: int = 0
    step_seconds: int = CLAIM_SECONDS // 2
    steps: int = 3
    lost: int = 0


@dataclass(frozen=True)
class Request:
    """A call to the store, or a look at the clock (`monotonic`)."""

    call: str
    arguments: tuple[object, ...] = ()

    @property
    def creates(self) -> bool:
        return self.call == "put" and self.arguments[0] == KEY


Answers = tuple[object, ...]
"""What came back from each request: a value, or the class of an error."""

DONE: Answers = ("done",)


_NOT_YET = object()


class _AsksNextError(BaseException):
    def __init__(self, request: Request) -> None:
        self.request = request


class _StoppedError(BaseException):
    pass


class _Answering(WrapperStore):
    """Gives the answers it was given, then raises the first request that has none."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(MemoryStore(VirtualClock(NOW)))
        self._answers = iter(answers)

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        assert not create
        self.ask("put", key, data)

    def head(self, key: str) -> ObjectInfo:
        info: ObjectInfo = self.ask("head", key)
        return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(self.ask("list", prefix))

    def delete(self, keys: Sequence[str]) -> None:
        self.ask("delete", tuple(keys))

    def now(self) -> datetime:
        now: datetime = self.ask("now")
        return now

    def ask(self, call: str, *arguments: object) -> Any:
        answer = next(self._answers, _NOT_YET)
        if answer is _NOT_YET:
            raise _AsksNextError(Request(call, arguments))
        if isinstance(answer, type):
            raise answer("as it was then")
        return answer


class _Clock(VirtualClock):
    """Its creator's look at the time is a request like others; a pause takes the time that passes meanwhile."""

    def __init__(self, answering: _Answering, pauses: int) -> None:
        super().__init__(NOW)
        self._answering, self._pauses = answering, pauses

    def monotonic(self) -> float:
        seconds: float = self._answering.ask("monotonic")
        return seconds

    def sleep(self, seconds: float) -> None:
        del seconds
        self._pauses -= 1
        if self._pauses < 0:
            raise _StoppedError


@lru_cache(maxsize=100_000)
def next_request(creator: int, answers: Answers, pauses: int) -> Request | None:
    """What *creator* asks after these answers; None when it is done. A failure is met with another attempt, as always."""
    if answers == DONE:
        return None
    answering = _Answering(answers)
    store = ClaimingStore(answering, _Clock(answering, pauses), random.Random(creator))
    try:
        for _ in range(2):
            with suppress(StoreUnavailableError):
                store.put(KEY, f"of {creator}".encode(), create=True)
                break
    except _AsksNextError as asks:
        return asks.request
    except (_StoppedError, ObjectExistsError):
        pass
    return None


@dataclass(frozen=True)
class World:
    """What creators were told, and the objects: key, bytes, and when they were written (all times are seconds)."""

    answers: tuple[Answers, ...]
    objects: frozenset[tuple[str, bytes, int]] = frozenset()
    seconds: int = 0
    lost: int = 0

    def after(self, bounds: Bounds) -> Iterator["World"]:
        """Every world that is one request, or one step of time, later."""
        requests = [next_request(creator, answers, bounds.pauses) for creator, answers in enumerate(self.answers)]
        for creator, request in enumerate(requests):
            if request is not None:
                value, objects = self._do(request)
                yield self._told(creator, value, objects, bounds)
                if self.lost < bounds.lost and request.call != "monotonic":
                    for stored in (objects, self.objects):
                        yield replace(self, lost=self.lost + 1)._told(creator, StoreUnavailableError, stored, bounds)
        later = self.seconds + bounds.step_seconds
        looked = [
            each[-1] for request, each in zip(requests, self.answers, strict=True) if request is not None and request.creates
        ]
        in_time = [isinstance(seconds, int) and later - seconds <= CLAIM_SECONDS / 2 for seconds in looked]
        if later <= bounds.steps * bounds.step_seconds and all(in_time):
            yield replace(self, seconds=later)

    def winners(self) -> set[bytes]:
        return {data for key, data, _ in self.objects if key == KEY}

    def _do(self, request: Request) -> tuple[object, frozenset[tuple[str, bytes, int]]]:
        if request.call == "monotonic":
            return self.seconds, self.objects
        assert not (request.creates and self.winners()), "a second creator wrote"
        clock = VirtualClock(NOW)
        store = MemoryStore(clock)
        for key, data, seconds in sorted(self.objects, key=lambda each: each[2]):
            clock.advance(seconds - clock.monotonic())
            store.put(key, data)
        clock.advance(self.seconds - clock.monotonic())
        try:
            value = getattr(store, request.call)(*request.arguments)
        except ClipperError as error:
            value = type(error)
        if request.call == "list":
            value = tuple(replace(info, version="") for info in value)
        elif isinstance(value, ObjectInfo):
            value = replace(value, version="")
        return value, frozenset(
            (info.key, store.get(info.key), int((info.modified_at - NOW).total_seconds())) for info in store.list("")
        )

    def _told(self, creator: int, value: object, objects: frozenset[tuple[str, bytes, int]], bounds: Bounds) -> "World":
        answers = list(self.answers)
        answers[creator] = (*answers[creator], value)
        if next_request(creator, answers[creator], bounds.pauses) is None:
            answers[creator] = DONE
        return replace(self, answers=tuple(answers), objects=objects)


def walk(bounds: Bounds) -> set[bytes]:
    """Who created the object in some order."""
    won: set[bytes] = set()
    ahead = [World(answers=((),) * bounds.creators)]
    seen = set(ahead)
    while ahead:
        world = ahead.pop()
        won |= world.winners()
        for later in world.after(bounds):
            if later not in seen:
                seen.add(later)
                ahead.append(later)
    return won


LONG = CLAIM_SECONDS + 1
WALKS = {
    "waiting": Bounds(),
    "beginning again": Bounds(pauses=1, step_seconds=LONG, steps=1),
}
LONGER_WALKS = {
    "three": Bounds(creators=3, step_seconds=LONG, steps=1),
    "twice as long": Bounds(pauses=1, step_seconds=LONG, steps=2),
    "an answer lost": Bounds(step_seconds=LONG, steps=1, lost=1),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", [*WALKS, *(LONGER_WALKS if SOAK else ())])
def test_in_no_order_do_two_create(name: str) -> None:
    bounds = (WALKS | LONGER_WALKS)[name]
    assert walk(bounds) == {f"of {creator}".encode() for creator in range(bounds.creators)}
