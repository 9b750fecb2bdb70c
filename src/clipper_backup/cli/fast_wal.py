"""`wal push FILE`, without the command-line parser: PostgreSQL starts it for each segment.

Whatever else stands on the command line (`--help`, an option that is none) goes to the parser, which knows what to say.
"""

from collections.abc import Sequence
from pathlib import Path

from clipper_backup.cli.arguments import split
from clipper_backup.cli.context import Context
from clipper_backup.ops.wal.push import Pushed, push
from clipper_backup.ops.work import open_work

_SAID = {
    "archived": "archived",
    "was archived": "was in the archive already, with the same content",
    "made": "made by a restore; it is not archived",
}


def run_push(words: Sequence[str]) -> int:
    """Archive the one file that *words* name, with settings and global flags among them."""
    arguments = split(words)
    if len(arguments.words) != 1 or arguments.words[0].startswith("-"):
        from clipper_backup.cli.app import dispatch  # noqa: PLC0415  200 ms, for whoever asks for help

        return dispatch(["wal", "push", *words])
    with Context(arguments) as context:
        push_file(context, Path(arguments.words[0]))
    return 0


def push_file(context: Context, path: Path) -> None:
    """Archive the file and answer."""
    work = open_work(context.settings, context.clock, context.emit, read_only=False)
    pushed = push(work, path)
    context.answer({"schema": 1, **push_document(pushed)}, push_text(pushed))


def push_document(pushed: Pushed) -> dict[str, object]:
    """What became of a file, as JSON."""
    return {"id": pushed.name, "kind": pushed.kind.value, "state": pushed.state, "healed": pushed.healed}


def push_text(pushed: Pushed) -> str:
    """What became of a file, for PostgreSQL's log."""
    healed = f"; {pushed.healed}, which came before it, is linked to it" if pushed.healed else ""
    return f"{pushed.name} {_SAID[pushed.state]}{healed}"
