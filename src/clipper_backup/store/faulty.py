"""The wrapper that fails on purpose, by a script: for tests, and for proving a set-up against its own store's faults.

A script is a list of faults, separated by commas or line breaks:

    METHOD : WHICH : [after=BYTES :] EFFECT

    put:3:unavailable                       the third put is refused
    get:1:slow=0.5                          the first get takes half a second longer
    put_stream:2:after=1048576:unavailable  the second streamed write breaks after its first MiB
    *:7:kill                                the process dies (SIGKILL) instead of making its seventh call
    *:1+:stop                               the process halts (SIGSTOP) before each call, until it is sent SIGCONT
    list:2-4:denied, head:5+:broken         the second to fourth; the fifth and all later ones
    get_stream:1:after=70:flip              the byte after the first 70 is another than was stored

METHOD is a method of the store, or `*` for all of them counted together. EFFECT is one of EFFECTS. `after` is for the
two streams: so many bytes pass first. Where several faults name one call, the first decides.
"""

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NoReturn, TypeVar

from clipper_backup.clock import Clock
from clipper_backup.errors import AccessError, StoreError, StoreUnavailableError, UsageError
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore

EFFECTS = {
    "unavailable": "a temporary error; nothing took place",
    "lost": "a temporary error, but it did take place: the answer got lost",
    "denied": "no access",
    "broken": "a permanent error",
    "slow": "takes so many seconds longer: slow=0.5",
    "stop": "SIGSTOP to this process before it takes place: whoever started it looks around, then sends SIGCONT",
    "kill": "SIGKILL to this process before it takes place",
    "killed": "SIGKILL to this process after it took place",
    "short": "only with get_stream and after: ends as if this were all",
    "overwrite": "only with put: what is there is written over, as by a server that does not know conditional create",
    "flip": "only with get and get_stream: a bit of the first byte (the one after `after`) is wrong, and nothing tells",
}
_METHODS = frozenset({"*", "put", "put_stream", "get", "get_stream", "get_ranges", "head", "list", "delete", "now"})
_STREAMS = frozenset({"put_stream", "get_stream"})
_AFTERWARDS = frozenset({"lost", "killed"})
_MIDSTREAM = frozenset({"unavailable", "denied", "broken", "kill", "short", "flip"})
_FLIPPED = frozenset({"get", "get_stream"})
_SILENT = frozenset({"flip", "overwrite"})
"""The call takes place, only not as asked."""
_FAULT = re.compile(
    r"(?P<method>\*|\w+):(?P<first>\d+)(?P<last>\+|-\d+)?(?::after=(?P<after>\d+))?:(?P<effect>\w+)(?:=(?P<seconds>\d+(?:\.\d+)?))?"
)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of a script. `last` None means no end; `after_bytes` None means at once."""

    method: str
    first: int
    last: int | None
    after_bytes: int | None
    effect: str
    seconds: float

    def covers(self, method: str, number: int, number_of_all: int) -> bool:
        """Whether it strikes the call that is the *number*-th of *method* and the *number_of_all*-th at all."""
        counted = number_of_all if self.method == "*" else number
        return self.method in {"*", method} and self.first <= counted and (self.last is None or counted <= self.last)


def parse_script(script: str) -> tuple[Fault, ...]:
    """Read a script; UsageError names the fault that is none."""
    return tuple(_parse_fault(text) for line in script.replace("\n", ",").split(",") if (text := line.strip()))


def _parse_fault(text: str) -> Fault:
    match = _FAULT.fullmatch(text)
    if match is None or match["method"] not in _METHODS or match["effect"] not in EFFECTS or match["first"] == "0":
        raise UsageError(
            f"not a fault: {text!r}", hints=["a fault looks like put:3:unavailable", f"effects: {', '.join(EFFECTS)}"]
        )
    method, effect = match["method"], match["effect"]
    if (effect == "slow") != (match["seconds"] is not None):
        raise UsageError(f"not a fault: {text!r}", hints=["slow, and only slow, takes seconds: get:1:slow=0.5"])
    if match["after"] is not None and (method not in _STREAMS or effect not in _MIDSTREAM):
        raise UsageError(
            f"not a fault: {text!r}",
            hints=[f"`after` goes with put_stream or get_stream and one of {', '.join(sorted(_MIDSTREAM))}"],
        )
    if effect == "short" and (method != "get_stream" or match["after"] is None):
        raise UsageError(f"not a fault: {text!r}", hints=["like get_stream:1:after=100:short"])
    if effect == "flip" and method not in _FLIPPED:
        raise UsageError(f"not a fault: {text!r}", hints=["like get:1:flip, or get_stream:1:after=100:flip"])
    if effect == "overwrite" and method != "put":
        raise UsageError(f"not a fault: {text!r}", hints=["like put:1:overwrite"])
    first, last = int(match["first"]), match["last"]
    return Fault(
        method=method,
        first=first,
        last=first if last is None else None if last == "+" else int(last[1:]),
        after_bytes=None if match["after"] is None else int(match["after"]),
        effect=effect,
        seconds=float(match["seconds"] or 0),
    )


class FaultyStore(WrapperStore):
    """Fails the calls that *script* names. `calls` is how many there were so far."""

    def __init__(self, inner: Store, script: str, clock: Clock) -> None:
        super().__init__(inner)
        self._faults = parse_script(script)
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def calls(self) -> int:
        """All calls so far, of all methods: what a sweep counts to."""
        with self._lock:
            return self._counts.total()

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`."""
        fault = self._next("put")
        kept = create and (fault is None or fault.effect != "overwrite")
        self._suffer(fault, lambda: self._inner.put(key, data, create=kept))

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """See `Store.put_stream`."""
        fault = self._next("put_stream")
        if fault is not None and fault.after_bytes is not None:
            return self._inner.put_stream(key, _break_off(chunks, fault, fault.after_bytes), expected_bytes=expected_bytes)
        return self._suffer(fault, lambda: self._inner.put_stream(key, chunks, expected_bytes=expected_bytes))

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        fault = self._next("get")
        data = self._suffer(fault, lambda: self._inner.get(key, start=start, length=length))
        return _flipped(data, 0) if fault is not None and fault.effect == "flip" else data

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`. It counts as called when its first piece is asked for."""
        fault = self._next("get_stream")
        if fault is not None and fault.effect == "flip":
            yield from _flip_one(self._inner.get_stream(key, start=start, same_as=same_as), fault.after_bytes or 0)
        elif fault is not None and fault.after_bytes is not None:
            yield from _break_off(self._inner.get_stream(key, start=start, same_as=same_as), fault, fault.after_bytes)
        else:
            yield from self._suffer(fault, lambda: self._inner.get_stream(key, start=start, same_as=same_as))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        return self._call("get_ranges", lambda: self._inner.get_ranges(key, ranges))

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        return self._call("head", lambda: self._inner.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        return self._call("list", lambda: self._inner.list(prefix))

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        return self._call("folders", lambda: self._inner.folders(prefix))

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`. Each key is a call of its own, the last one first: no set of removals has an order."""
        for key in reversed(keys):
            self._call("delete", partial(self._inner.delete, [key]))

    def now(self) -> datetime:
        """See `Store.now`."""
        return self._call("now", self._inner.now)

    def _call(self, method: str, call: Callable[[], Result]) -> Result:
        return self._suffer(self._next(method), call)

    def _next(self, method: str) -> Fault | None:
        """Count a call; the fault that strikes it."""
        with self._lock:
            self._counts[method] += 1
            number, number_of_all = self._counts[method], self._counts.total()
        return next((fault for fault in self._faults if fault.covers(method, number, number_of_all)), None)

    def _suffer(self, fault: Fault | None, call: Callable[[], Result]) -> Result:
        if fault is None:
            return call()
        if fault.effect == "slow":
            self._clock.sleep(fault.seconds)
        elif fault.effect == "stop":
            # To this thread: it gets no further before all of them have halted.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        elif fault.effect not in _AFTERWARDS | _SILENT:
            _strike(fault)
        try:
            return call()
        finally:  # an error is an answer too
            if fault.effect in _AFTERWARDS:
                _strike(fault)


def _break_off(chunks: Iterable[bytes], fault: Fault, after_bytes: int) -> Iterator[bytes]:
    """The first *after_bytes* of *chunks*; then *fault*, also when there are no more."""
    left = after_bytes
    for chunk in chunks:
        if len(chunk) >= left:
            if left:
                yield chunk[:left]
            break
        left -= len(chunk)
        yield chunk
    if fault.effect != "short":
        _strike(fault)


def _flip_one(chunks: Iterable[bytes], position: int) -> Iterator[bytes]:
    """*chunks* with one bit wrong in the byte at *position*; the same when they end before it."""
    passed = 0
    for chunk in chunks:
        yield _flipped(chunk, position - passed) if passed <= position < passed + len(chunk) else chunk
        passed += len(chunk)


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes(byte ^ 1 for byte in data[position : position + 1]) + data[position + 1 :]


def _strike(fault: Fault) -> NoReturn:
    said = f"scripted fault {fault.method}:{fault.first}:{fault.effect}"
    if fault.effect == "denied":
        raise AccessError(said)
    if fault.effect == "broken":
        raise StoreError(said)
    if fault.effect in {"kill", "killed"}:
        os.kill(os.getpid(), signal.SIGKILL)
        # The signal may reach another thread of ours first; this one must not get any further.
        threading.Event().wait()
    raise StoreUnavailableError(said)
