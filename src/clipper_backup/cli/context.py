"""What a command is given: settings, the clock, a way to tell what happens, and a way to answer."""

import os
import signal
import sys
from collections.abc import Mapping
from functools import cached_property
from types import FrameType, TracebackType
from typing import Any, Self

from clipper_backup.cli import output
from clipper_backup.cli.arguments import Arguments
from clipper_backup.cli.render import JSON_INTERVAL_SECONDS, TEXT_INTERVAL_SECONDS, JsonLines, Renderer, TextLines
from clipper_backup.clock import Clock, SystemClock
from clipper_backup.config import Loaded, Settings, load
from clipper_backup.errors import ClipperError, StoppedError, UsageError
from clipper_backup.ops.events import Event

PROGRESS_VARIABLE = "CLIPPER_BACKUP_PROGRESS_SECONDS"


class Context:
    """One run of one command. As a context manager it gives the terminal and SIGUSR1 back at the end."""

    def __init__(self, arguments: Arguments, environment: Mapping[str, str] = os.environ) -> None:
        self._arguments = arguments
        self._environment = environment
        self.clock: Clock = SystemClock()
        self.json = arguments.has("--json")
        self.quiet = arguments.has("--quiet")
        self._renderer = _renderer(arguments, environment, self.clock)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGUSR1, self._show_state)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._renderer.close()

    def _show_state(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal.signal's signature
        self._renderer.show_state()

    @cached_property
    def loaded(self) -> Loaded:
        """All settings and where each came from; UsageError or MissingError when one is wrong."""
        return self._load()

    def read_settings(self) -> Settings:
        """All settings, read anew: a mounted ConfigMap changes."""
        return self._load().settings

    def _load(self) -> Loaded:
        return load(self._arguments.flags, self._environment, self._arguments.config)

    @property
    def settings(self) -> Settings:
        """All settings. Ask for them before any work: this is where bad values are found."""
        return self.loaded.settings

    def emit(self, event: Event) -> None:
        """Show *event* to whoever watches; from any thread."""
        self._renderer.emit(event)

    def answer(self, document: Any, text: str) -> None:
        """Write the answer to stdout: with `--json` *document* on one line, else *text*.

        A document says `"schema": 1`; a list is `{"schema": 1, "items": [{"id": …}]}`.
        """
        if self.json:
            output.answer_json(document)
        else:
            output.answer(output.printable(text.removesuffix("\n")) + "\n")

    def confirm(self, question: str, *, yes: bool) -> None:
        """Return when a person said yes to *question*, or *yes* was given on the command line.

        UsageError where nobody can be asked; ClipperError when the answer is no.
        """
        if yes:
            return
        if self.json or not (os.isatty(0) and os.isatty(2)):
            raise UsageError(f"nobody to ask: {question}", hints=["--yes says yes beforehand"])
        self._renderer.close()
        try:
            os.write(2, f"{output.printable(question)} [y/N] ".encode(errors="backslashreplace"))
            reply = sys.stdin.readline()
        except StoppedError:
            output.tell("")  # the error begins on a line of its own
            raise
        if reply.strip().lower() not in {"y", "yes"}:
            raise ClipperError("not confirmed, nothing was changed")


def _renderer(arguments: Arguments, environment: Mapping[str, str], clock: Clock) -> Renderer:
    interval = _interval(environment)
    quiet = arguments.has("--quiet")
    if arguments.has("--json") or arguments.has("--events"):
        steps = arguments.has("--events") and not quiet
        return JsonLines(output.tell_json, clock, steps=steps, interval=JSON_INTERVAL_SECONDS if interval is None else interval)
    plain = quiet or arguments.has("--no-color") or environment.get("NO_COLOR") or environment.get("TERM", "dumb") == "dumb"
    if not plain and os.isatty(2):
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it

        from clipper_backup.cli.bars import Bars  # noqa: PLC0415 - only a terminal needs it

        return Bars(Console(stderr=True), clock)
    return TextLines(output.tell, clock, quiet=quiet, interval=TEXT_INTERVAL_SECONDS if interval is None else interval)


def _interval(environment: Mapping[str, str]) -> float | None:
    """The seconds between progress lines, where the variable is set."""
    text = environment.get(PROGRESS_VARIABLE)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(
            f"bad value for {PROGRESS_VARIABLE}: {text!r}", hints=["seconds between two progress lines, like 10; 0 for all"]
        )
    return seconds
