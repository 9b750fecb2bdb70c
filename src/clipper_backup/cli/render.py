"""Renders what an operation tells while it runs: as lines of text, or as JSON lines. `bars` draws for terminals.

Events come from several threads and several steps may run at once; a step is known by its name, so two that run at
the same time need two names. A renderer never fails because of whoever reads it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from clipper_backup.cli.output import printable
from clipper_backup.clock import Clock
from clipper_backup.ops.events import Event, Progress, StepBegun, StepDone, Warned
from clipper_backup.values import show_bytes, show_seconds

TEXT_INTERVAL_SECONDS = 30.0
JSON_INTERVAL_SECONDS = 1.0


class Renderer(Protocol):
    """Shows events; `emit` may be called from any thread."""

    def emit(self, event: Event) -> None:
        """Show *event*, or take note of it."""
        ...

    def show_state(self) -> None:
        """Show how far each running step is, now; called from a signal handler in the main thread."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


@dataclass(slots=True)
class RunningStep:
    """A step that has begun and not ended; times are of the monotonic clock."""

    text: str
    begun_at: float
    shown_at: float
    last: Progress | None = None

    def describe(self, now: float) -> str:
        """One line: `dumping clipper: 48 % of 2.5 GB, 41.0 MB/s, about 31 s left`."""
        elapsed = now - self.begun_at
        if self.last is None:
            return f"{self.text}: running for {show_seconds(elapsed)}"
        return f"{self.text}: {measure(self.last, elapsed)}"


def measure(progress: Progress, elapsed: float) -> str:
    """How far, how fast and how long still, after *elapsed* seconds; what cannot be known is left out."""
    done, total, unit = progress.done, progress.total, progress.unit
    rate = done / elapsed if elapsed > 0 else 0.0
    parts = [_amount(done, unit)]
    if total:
        parts[0] = f"{100 * done // total} % of {_amount(total, unit)}"
    if rate > 0:
        parts.append(f"{_amount(rate, unit)}/s")
        if total is not None and total > done:
            parts.append(f"about {show_seconds((total - done) / rate)} left")
    return ", ".join(parts)


def _amount(count: float, unit: str) -> str:
    if unit == "bytes":
        return show_bytes(count)
    shown = f"{count:,.0f}".replace(",", " ")
    return f"{shown} {unit.removesuffix('s') if shown == '1' else unit}"


class Steps:
    """The steps that are running. Its owner holds a lock around every call."""

    def __init__(self) -> None:
        self._running: dict[str, RunningStep] = {}

    def begin(self, event: StepBegun, now: float) -> None:
        """Take note of a step that begins."""
        self._running[event.step] = RunningStep(event.text, now, now)

    def advance(self, event: Progress, now: float) -> RunningStep:
        """Take note of progress; a step that nobody announced begins with it."""
        step = self._running.setdefault(event.step, RunningStep(event.step, now, now))
        step.last = event
        return step

    def end(self, event: StepDone) -> None:
        """Forget a step."""
        self._running.pop(event.step, None)

    def __iter__(self) -> Iterator[RunningStep]:
        return iter(list(self._running.values()))


class TextLines:
    """One line when a step begins and one when it is done; for long steps one every *interval* seconds between them."""

    def __init__(
        self, write: Callable[[str], None], clock: Clock, *, quiet: bool = False, interval: float = TEXT_INTERVAL_SECONDS
    ) -> None:
        self._write = write
        self._clock = clock
        self._quiet = quiet
        self._interval = interval
        self._steps = Steps()
        self._lock = threading.RLock()  # re-entrant: the signal handler may interrupt its own thread inside `emit`

    def emit(self, event: Event) -> None:
        """Show *event* on a line of its own, or nothing yet."""
        with self._lock:
            for line in self._lines(event, self._clock.monotonic()):
                self._write(printable(line))

    def _lines(self, event: Event, now: float) -> Iterator[str]:
        if isinstance(event, Warned):
            yield from warning_lines(event)
        elif isinstance(event, StepBegun):
            self._steps.begin(event, now)
            if not self._quiet:
                yield f"begun: {event.text}"
        elif isinstance(event, Progress):
            step = self._steps.advance(event, now)
            if not self._quiet and now - step.shown_at >= self._interval:
                step.shown_at = now
                yield step.describe(now)
        else:
            self._steps.end(event)
            if not self._quiet:
                yield done_line(event)

    def show_state(self) -> None:
        """Write a line for each running step."""
        with self._lock:
            now = self._clock.monotonic()
            for line in [step.describe(now) for step in self._steps] or ["no step is running"]:
                self._write(printable(line))

    def close(self) -> None:
        """Nothing to undo."""


def warning_lines(event: Warned) -> list[str]:
    """A warning as text."""
    return [f"warning: {event.text}", *(f"HINT: {hint}" for hint in event.hints)]


def done_line(event: StepDone) -> str:
    """The end of a step as text."""
    return f"done: {event.text} ({show_seconds(event.seconds)})"


class JsonLines:
    """Every event as one typed JSON line; progress at most once every *interval* seconds for each step.

    Without *steps*, only warnings.
    """

    def __init__(
        self, write: Callable[[Mapping[str, object]], None], clock: Clock, *, steps: bool, interval: float = JSON_INTERVAL_SECONDS
    ) -> None:
        self._write = write
        self._clock = clock
        self._show_steps = steps
        self._interval = interval
        self._steps = Steps()
        self._lock = threading.RLock()

    def emit(self, event: Event) -> None:
        """Write *event*, unless its step showed progress a moment ago."""
        with self._lock:
            if isinstance(event, Warned):
                self._tell("warning", message=event.text, hints=event.hints)
                return
            due = self._note(event, self._clock.monotonic())
            if due and self._show_steps:
                self._tell_step(event)

    def _note(self, event: StepBegun | Progress | StepDone, now: float) -> bool:
        """Keep the running steps; whether *event* is to be shown."""
        if isinstance(event, StepBegun):
            self._steps.begin(event, now)
        elif isinstance(event, StepDone):
            self._steps.end(event)
        else:
            step = self._steps.advance(event, now)
            if now - step.shown_at < self._interval:
                return False
            step.shown_at = now
        return True

    def _tell_step(self, event: StepBegun | Progress | StepDone) -> None:
        if isinstance(event, StepBegun):
            self._tell("step_begun", step=event.step, text=event.text)
        elif isinstance(event, StepDone):
            self._tell("step_done", step=event.step, text=event.text, seconds=round(event.seconds, 3))
        else:
            self._tell("progress", step=event.step, done=event.done, total=event.total, unit=event.unit)

    def show_state(self) -> None:
        """Write the latest progress of each running step."""
        with self._lock:
            for step in self._steps:
                if step.last is not None:
                    self._tell_step(step.last)

    def _tell(self, kind: str, **fields: object) -> None:
        self._write({"type": kind, **fields})

    def close(self) -> None:
        """Nothing to undo."""
