"""SIGINT and SIGTERM become StoppedError in the main thread, so that every `finally` and `with` on the way out runs."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from clipper_backup.errors import StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"


def catch() -> None:
    """From now on SIGINT and SIGTERM raise StoppedError; one that our parent had us ignore (`nohup`) stays ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def ignore() -> None:
    """The work is over: only the exit code is left to report, and a late signal must not change it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def asking(ask: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGTERM calls *ask* and raises nothing; it must take no lock. A second one stops, as SIGINT does."""

    def once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is signal.signal's
        signal.signal(signal.SIGTERM, _stop)
        ask()

    before = signal.getsignal(signal.SIGTERM)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is signal.signal's
    if not _unwinding():
        raise StoppedError(number)
    if number == signal.SIGINT:  # pragma: no cover - who runs this dies of it, and saves no coverage
        # Asked twice by a person: end at once. What is half written is garbage that the next run knows to ignore.
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _unwinding() -> bool:
    """Whether the interrupted code is cleaning up after a StoppedError already."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, StoppedError):
            return True
        error = error.__context__
    return False
