"""Where the program begins and ends: the one place that turns errors into exit codes.

Nothing heavy is imported here. `wal push` runs once per segment and must start in under 60 ms, so the commands in FAST
are looked at before the command-line parser, the settings and everything behind them are imported.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NoReturn, cast

from clipper_backup.cli import output, stop
from clipper_backup.cli.report import report
from clipper_backup.errors import fetch_code_of

FAST: Mapping[tuple[str, ...], str] = {
    ("--version",): "clipper_backup.cli.fast_version:run",
    ("wal", "push"): "clipper_backup.cli.fast_wal:run_push",
    ("wal", "fetch"): "clipper_backup.cli.fast_wal_fetch:run",
}
"""First words of a command line -> `module:function`, called with the words after them, returning the exit code.

The function parses its words itself and may raise like any command.
"""
_FETCH, _PUSH = ("wal", "fetch"), ("wal", "push")
_GARBAGE = 50_000
"""New objects between two looks for garbage. With Python's 700, looking took 2 % of the CPU of a base backup, and a twentieth of
the start of `wal push`; modules that are being imported are none."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with *argv* (default: the process's own arguments) and exit."""
    gc.set_threshold(_GARBAGE, 20, 20)
    words = list(sys.argv[1:] if argv is None else argv)
    if _FETCH in pairwise(words):
        _fetch(words)
    if tuple(words[:2]) == _PUSH:
        # Nobody looks for garbage, nor takes the interpreter apart at the end: a tenth of what a push costs. All that it said is
        # written (`output` keeps nothing back), and its threads hold nothing that outlives them.
        gc.disable()
        os._exit(_code(words))
    else:
        sys.exit(_code(words))


def _fetch(words: Sequence[str]) -> NoReturn:
    """End with a code of `wal fetch`, whatever happens: PostgreSQL takes 1 and 2 for "no such file", and opens what it has."""
    code = 1
    try:
        code = _code(words)
    finally:
        # At once: an interpreter that fails while it ends exits with 120 or 1.
        os._exit(fetch_code_of(code, standby="--standby" in words))


def _code(words: Sequence[str]) -> int:
    """The exit code that the words end with; errors are told."""
    output.hold_standard_streams()
    try:
        stop.catch()
        code = _run(words)
        stop.ignore()
    except BaseException as error:  # noqa: BLE001 - the last one who can: everything becomes an exit code here
        stop.ignore()
        code = report(error, words)
    return code


def _run(words: Sequence[str]) -> int:
    for first, entry in FAST.items():
        if tuple(words[: len(first)]) == first:
            return _load(entry)(words[len(first) :])
    dispatch = _load("clipper_backup.cli.app:dispatch")
    return dispatch(words)


def _load(entry: str) -> Callable[[Sequence[str]], int]:
    module, _, name = entry.partition(":")
    return cast("Callable[[Sequence[str]], int]", getattr(importlib.import_module(module), name))
