"""The only way out of the program: the answer to stdout, everything else to stderr.

Both write to the file descriptors themselves: Python's buffered streams cannot be entered from a signal handler
(SIGUSR1 prints the state of a running command), and would try to flush once more at exit into a closed pipe.
"""

import contextlib
import os
import select
import signal
import sys
from typing import Any

from clipper_backup.errors import ClipperError, StoppedError

_STDOUT, _STDERR = 1, 2
_CONTROLS = {number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0xA0)) if chr(number) not in "\t\n"}


def printable(text: str) -> str:
    """*text* with its control characters spelled out: a database's name must not move the reader's cursor."""
    return text.translate(_CONTROLS)


def hold_standard_streams() -> None:
    """Open /dev/null in place of a closed stdin, stdout or stderr.

    Otherwise the first file we open would get that number, and error lines would be written into a backup.
    """
    for descriptor in (0, _STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def tell(line: str) -> None:
    """Write one line to stderr; a reader who has gone away never stops the work."""
    with contextlib.suppress(OSError):
        _write_all(_STDERR, _encode(f"{line}\n", sys.stderr))


def tell_json(document: Any) -> None:
    """Write *document* to stderr as one line of JSON, in UTF-8 whatever the locale."""
    with contextlib.suppress(OSError):
        _write_all(_STDERR, _json_line(document))


def answer(text: str) -> None:
    """Write the answer to stdout.

    StoppedError(SIGPIPE) when the reader has gone away, as `… | head` does; ClipperError when the answer cannot be
    written for another reason, such as a full disk.
    """
    _answer(_encode(text, sys.stdout))


def answer_json(document: Any) -> None:
    """Write *document* to stdout as one line of JSON, in UTF-8 whatever the locale."""
    _answer(_json_line(document))


def _json_line(document: Any) -> bytes:
    """Dataclasses become objects, times RFC 3339, value types what `str` makes of them.

    A file name that is not UTF-8 keeps its lone surrogates, which "backslashreplace" turns into valid JSON escapes.
    """
    import json  # noqa: PLC0415 - not needed by most commands

    import msgspec  # noqa: PLC0415 - not needed by most commands

    plain = msgspec.to_builtins(document, enc_hook=str, str_keys=True)
    return f"{json.dumps(plain, ensure_ascii=False, allow_nan=False)}\n".encode("utf-8", "backslashreplace")


def terminal_width() -> int | None:
    """The width of the terminal that stdout is; None when it is none, and nothing should be wrapped."""
    try:
        return os.get_terminal_size(_STDOUT).columns or None
    except OSError:
        return None


def _answer(data: bytes) -> None:
    try:
        _write_all(_STDOUT, data)
    except BrokenPipeError as error:
        raise StoppedError(signal.SIGPIPE) from error
    except OSError as error:
        raise ClipperError(f"cannot write the answer to stdout: {error.strerror}") from error


def _encode(text: str, stream: Any) -> bytes:
    return text.encode(getattr(stream, "encoding", None) or "utf-8", "backslashreplace")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # whoever shares this pipe with us has made it non-blocking
            select.select([], [descriptor], [])
