"""Where the program begins and ends: the one place that turns errors into exit codes.

Nothing heavy is imported here. `wal push` runs once per segment and must start in under 60 ms, so the commands in FAST
are looked at before the command-line parser, the settings and everything behind them are imported.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, cast

from clipper_backup.cli import output, stop
from clipper_backup.cli.report import report

FAST: Mapping[tuple[str, ...], str] = {
    ("--version",): "clipper_backup.cli.fast_version:run",
    ("wal", "push"): "clipper_backup.cli.fast_wal:run_push",
}
"""First words of a command line -> `module:function`, called with the words after them, returning the exit code.

The function parses its words itself and may raise like any command.
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with *argv* (default: the process's own arguments) and exit."""
    words = list(sys.argv[1:] if argv is None else argv)
    output.hold_standard_streams()
    try:
        stop.catch()
        code = _run(words)
        stop.ignore()
    except BaseException as error:  # noqa: BLE001 - the last one who can: everything becomes an exit code here
        stop.ignore()
        code = report(error, words)
    sys.exit(code)


def _run(words: Sequence[str]) -> int:
    for first, entry in FAST.items():
        if tuple(words[: len(first)]) == first:
            return _load(entry)(words[len(first) :])
    dispatch = _load("clipper_backup.cli.app:dispatch")
    return dispatch(words)


def _load(entry: str) -> Callable[[Sequence[str]], int]:
    module, _, name = entry.partition(":")
    return cast("Callable[[Sequence[str]], int]", getattr(importlib.import_module(module), name))
