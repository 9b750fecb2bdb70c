"""The real program with commands that exist only here: what a command may do, done on purpose and on demand.

Run as a script; `tests/cli` starts it as a process of its own.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from clipper_backup.cli import app as command_line
from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.cli.main import main
from clipper_backup.errors import ClipperError, IncompleteError, IntegrityError, StoppedError
from clipper_backup.ops.events import Progress, StepBegun, StepDone, Warned

app = group("sample", "Commands that show what commands may do.")


@app.command
def steps(*, hold: Annotated[Path | None, Parameter(help="a FIFO to read in the middle")] = None, context: Context) -> None:
    """Two steps at once, a warning, and an answer."""
    context.emit(StepBegun("dump clipper", "dumping clipper"))
    context.emit(StepBegun("rows", "counting rows"))
    context.emit(Progress("dump clipper", 250_000_000, 1_000_000_000))
    context.emit(Progress("rows", 1_250_000, None, "rows"))
    if hold is not None:
        hold.read_text()
    context.emit(Warned("the role may not read passwords", ("grant pg_read_all_data",)))
    context.emit(StepDone("rows", "1 250 000 rows counted", 3.0))
    context.emit(StepDone("dump clipper", "clipper dumped, 1.0 GB", 41.2))
    context.answer({"schema": 1, "id": "x"}, "dumped")


@app.command
def threads(*, context: Context) -> None:
    """Events from eight threads at once."""

    def work(number: int) -> None:
        step = f"step {number}"
        context.emit(StepBegun(step, step))
        for done in range(200):
            context.emit(Progress(step, done, 200, "objects"))
        context.emit(StepDone(step, f"{step} {'x' * 200}", 0.5))

    running = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    context.answer({"schema": 1}, "all done")


@app.command
def ask(*, yes: Annotated[bool, Parameter(help="do not ask")] = False, context: Context) -> None:
    """Ask before doing."""
    context.confirm("delete everything?", yes=yes)
    context.answer({"schema": 1, "deleted": True}, "deleted")


@app.command
def fail(kind: str, /, *, context: Context) -> None:
    """Fail in one of the ways a command may fail."""
    match kind:
        case "incomplete":
            context.answer({"schema": 1}, "most of it")
            raise IncompleteError("one of two databases was left out: shop", hints=["see the warning above"])
        case "integrity":
            raise IntegrityError("dump x: 3 rows of clips, recorded 4")
        case "at length":
            raise IntegrityError("x" * 1_000_000)
        case "controls":
            raise ClipperError("no database \x1b[2J\x07 here")
        case "bug":
            raise KeyError("unforeseen")


@app.command
def wait(pipe: Path, log: Path, /, *, swallow: bool = False, context: Context) -> None:
    """Read a FIFO that nobody writes, and say in *log* how cleaning up went; cleaning up reads another FIFO."""
    with log.open("a", buffering=1) as notes:
        try:
            context.emit(StepBegun("wait", "waiting"))
            notes.write("working\n")
            pipe.read_text()
        except StoppedError as error:
            notes.write(f"stopped {error.signal_number}\n")
            if swallow:
                pipe.with_suffix(".again").read_text()
            raise
        finally:
            notes.write("cleaning\n")
            pipe.with_suffix(".cleanup").read_text()
            notes.write("clean\n")


@app.command
def long_answer(*, context: Context) -> None:
    """An answer larger than any pipe, with a name that is not UTF-8."""
    name = os.fsdecode(b"caf\xe9")
    context.answer({"schema": 1, "items": [{"id": name}] * 20_000}, "\n".join([name] * 200_000))


@app.command
def options(
    *,
    how: Annotated[Literal["counts", "hash"], Parameter(help="how to look")] = "counts",
    an_option_with_a_very_long_name: Annotated[int, Parameter(help="its meaning begins on a line of its own")] = 7,
    plain: str = "",
    context: Context,
) -> None:
    """Options of several kinds."""
    context.answer({"schema": 1, "how": how, "number": an_option_with_a_very_long_name, "plain": plain}, f"{how} {plain}")


@app.command
def raise_signal(*, context: Context) -> None:
    """Stop ourselves while an error is on its way out."""
    try:
        raise IntegrityError("the first error")
    finally:
        signal.raise_signal(signal.SIGTERM)


command_line.COMMANDS["sample"] = "sample_commands:app"

if __name__ == "__main__":
    sys.modules["sample_commands"] = sys.modules["__main__"]
    main()
