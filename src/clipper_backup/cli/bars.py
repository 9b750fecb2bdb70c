"""Progress bars for a terminal: one for each running step, with rate and time left; what is finished scrolls away above."""

import contextlib
import threading

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from clipper_backup.cli.output import printable
from clipper_backup.cli.render import done_line, measure, warning_lines
from clipper_backup.clock import Clock
from clipper_backup.ops.events import Event, Progress, StepBegun, StepDone, Warned
from clipper_backup.values import show_seconds

_BAR_COLUMNS = 20


class _Description(ProgressColumn):
    """What is being done; where the terminal is narrow, this is what gives way."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Measured(ProgressColumn):
    """How far, how fast, how long still; until that is known, for how long already."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["measured"] or show_seconds(task.elapsed or 0.0))


class Bars:
    """Draws on *console*, which must be a terminal."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._lock = threading.RLock()
        self._tasks: dict[str, tuple[TaskID, float]] = {}
        self._bars = RichProgress(
            _Description(),
            BarColumn(bar_width=_BAR_COLUMNS),
            _Measured(Column(no_wrap=True)),
            console=console,
            get_time=clock.monotonic,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def emit(self, event: Event) -> None:
        """Show *event*; a terminal that has gone away never stops the work."""
        with self._lock, contextlib.suppress(OSError):
            if isinstance(event, Warned):
                for line in warning_lines(event):
                    self._print(line)
            elif isinstance(event, StepBegun):
                self._begin(event.step, event.text)
            elif isinstance(event, Progress):
                self._advance(event)
            else:
                self._end(event)

    def _begin(self, step: str, text: str) -> tuple[TaskID, float]:
        if (former := self._tasks.pop(step, None)) is not None:
            self._bars.remove_task(former[0])
        if not self._tasks:
            self._bars.start()
        task = self._bars.add_task(printable(text), total=None, measured="")
        self._tasks[step] = (task, self._clock.monotonic())
        return self._tasks[step]

    def _advance(self, event: Progress) -> None:
        task, begun_at = self._tasks.get(event.step) or self._begin(event.step, event.step)
        measured = measure(event, self._clock.monotonic() - begun_at)
        self._bars.update(task, completed=event.done, total=event.total, measured=measured)

    def _end(self, event: StepDone) -> None:
        if (known := self._tasks.pop(event.step, None)) is not None:
            self._bars.remove_task(known[0])
            self._bars.refresh()
        self._print(done_line(event))
        if not self._tasks:
            self._bars.stop()

    def _print(self, line: str) -> None:
        self._console.print(Text(printable(line)), soft_wrap=True, highlight=False)

    def show_state(self) -> None:
        """Nothing: the bars are the state."""

    def close(self) -> None:
        """Take the bars away and give the cursor back."""
        with self._lock, contextlib.suppress(OSError):
            for task, _ in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()
            self._bars.stop()
