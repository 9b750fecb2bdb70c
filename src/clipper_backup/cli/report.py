"""How an error is told, and the exit code it becomes."""

import os
import signal
import sys
from collections.abc import Sequence

from clipper_backup.cli.output import printable, tell, tell_json
from clipper_backup.errors import ClipperError, StoppedError, exit_code_of

DEBUG_VARIABLE = "CLIPPER_BACKUP_DEBUG"


def report(error: BaseException, words: Sequence[str]) -> int:
    """Tell *error* on stderr, as text or as a typed JSON line, and return the exit code.

    *words* is the command line: it is asked for `--json`, `--events` and `--debug` itself, because the error may be
    that it could not be read.
    """
    code = exit_code_of(error)
    if isinstance(error, StoppedError) and error.signal_number == signal.SIGPIPE:
        return code
    given = set(words[: words.index("--")] if "--" in words else words)
    debug = "--debug" in given or os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}
    trace = _traceback(error) if debug else None
    if isinstance(error, (ClipperError, StoppedError)):
        message, hints = error.message, error.hints
    else:
        message = f"internal error: {type(error).__name__}: {error}"
        hints = ("this is a bug, please report it with the traceback",)
        if trace is None and (path := _keep_traceback(error)):
            hints = (f"this is a bug, please report it with the traceback in {path}",)
        elif trace is None:
            trace = _traceback(error)
    if given & {"--json", "--events"}:
        line: dict[str, object] = {"type": "error", "exit_code": code, "message": message, "hints": hints}
        tell_json(line | {"traceback": trace} if trace else line)
    else:
        if trace:
            tell(trace.rstrip())
        tell(f"{_mark('error:', given)} {printable(message)}")
        for hint in hints:
            tell(f"HINT: {printable(hint)}")
    return code


def _mark(word: str, given: set[str]) -> str:
    """*word* in red where colour is wanted."""
    plain = not sys.stderr or not sys.stderr.isatty() or os.environ.get("NO_COLOR") or "--no-color" in given
    return word if plain else f"\x1b[1;31m{word}\x1b[0m"


def _traceback(error: BaseException) -> str:
    import traceback  # noqa: PLC0415 - only a bug needs it

    return "".join(traceback.format_exception(error))


def _keep_traceback(error: BaseException) -> str | None:
    """Write the traceback to a file that only we may read; None where no file can be written."""
    import tempfile  # noqa: PLC0415 - only a bug needs it

    try:
        descriptor, path = tempfile.mkstemp(prefix="clipper-backup-", suffix=".traceback")
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.write(_traceback(error))
    except OSError:
        return None
    return path
