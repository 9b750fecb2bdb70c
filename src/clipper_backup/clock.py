"""The only clock: nothing else in the package reads the time or sleeps (ruff's banned-api list enforces it).

Ages of stored things are judged by the *store's* clock (`Store.now`); this one serves durations, waiting and the
times we print about ourselves.
"""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the code may ask of time."""

    def now(self) -> datetime:
        """Wall-clock time, always with zone UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes backwards."""
        ...

    def since_boot(self) -> float:
        """The same, but it goes on while the machine sleeps: for what others may have done meanwhile."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set or *seconds* passed; True when the event is set."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Wall-clock time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def since_boot(self) -> float:
        """Seconds since the machine was started, its sleep included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for *event*, at most *seconds*."""
        return event.wait(seconds)

    def sleep(self, seconds: float) -> None:
        """Sleep for *seconds*; nothing for zero or less."""
        if seconds > 0:
            time.sleep(seconds)


class VirtualClock:
    """A clock that moves only when it is told to, or when somebody waits on it.

    Waiting advances it at once, so that code under test which backs off or polls runs at full speed.
    """

    def __init__(self, start: datetime) -> None:
        self._now = start.astimezone(UTC)
        self._elapsed = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The time it was last moved to."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Seconds it has been moved since it was made."""
        with self._lock:
            return self._elapsed

    def since_boot(self) -> float:
        """The same: this one never sleeps."""
        return self.monotonic()

    def advance(self, seconds: float) -> None:
        """Move forward by *seconds*."""
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._elapsed += seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Advance by *seconds* unless *event* is set already."""
        if not event.is_set():
            self.advance(seconds)
        return event.is_set()

    def sleep(self, seconds: float) -> None:
        """Advance by *seconds*."""
        self.advance(max(0.0, seconds))
