"""PostgreSQL's client programs as streams: an output is whole only when the program said so by exiting with 0.

The kernel tells a program to end when this process does, however that ends, SIGKILL included; pg_dump and pg_restore
then end their workers and cancel what the server does for them.
"""

import fcntl
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from clipper_backup.errors import AccessError, ClipperError, ToolError
from clipper_backup.postgres import tied
from clipper_backup.postgres.privileges import privilege_hints

READ_BYTES = 1 << 20
"""What one read of a program's output takes; the pipe is widened to it, the most an unprivileged process may ask for."""

_STDERR_LINES = 200
_STDERR_LINE_BYTES = 4096
"""What is kept of its words: its last lines, and of each the beginning."""
_SESSION_ENDED = re.compile("terminating connection|closed the connection|could not receive data|PQgetCopyData")


class Program:
    """A running client program. Leaving the context ends it, whatever state it is in.

    So does the end of the thread that made it (`tied.py`): that must not be before the program's own end.
    """

    def __init__(
        self, path: Path, arguments: Sequence[str], environment: Mapping[str, str], *, feed: bool = False, of: str = ""
    ) -> None:
        """Start it. With *feed* it reads its standard input from `feed()`; else that is empty. Errors name what it is *of*."""
        self.name = path.name
        self._title = f"{path.name} of {of}" if of else path.name
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        if not path.is_file() or not os.access(path, os.X_OK):  # else it is the launcher that fails, later
            raise ToolError(f"cannot start {path}: no program is there that we may run")
        try:
            self._process = subprocess.Popen(
                [*tied.launcher(signal.SIGTERM, os.geteuid(), os.getegid()), str(path), *arguments],
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                bufsize=READ_BYTES,
                process_group=0,  # of its own, so that its workers can be ended with it
            )
        except OSError as error:
            raise ToolError(f"cannot start {path}: {error.strerror}") from error
        assert self._process.stdout is not None  # noqa: S101  asked for two lines above
        self._stdout = self._process.stdout
        for pipe in (self._process.stdout, self._process.stdin):
            if pipe is not None:
                with suppress(OSError):  # beyond the user's pipe quota: slower, not wrong
                    fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, READ_BYTES)
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        self._drain.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        for pipe in (self._process.stdout, self._process.stdin):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def kill(self) -> None:
        """End it at once with all that it started, if it still runs. Safe from any thread."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _wait(self) -> int:
        """Its exit status, once it and all that it started have ended.

        pg_dump's workers finish their table before they miss it, and hold its standard error open until then.
        """
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so its group is still its own
        self.kill()
        status = self._process.wait()
        self._drain.join()
        return status

    def chunks(self) -> Iterator[bytes]:
        """Its whole output. Raises ToolError at the end unless it exited with 0: a half output is never taken for a whole one."""
        # Buffered: pg_dump writes 8 kB at a time, and a round through Python for each would cost as much as compressing it.
        while chunk := self._stdout.read(READ_BYTES):
            yield chunk
        self.finish()

    def feed(self, chunks: Iterable[bytes]) -> bool:
        """Write *chunks* to its input, then close it. False when it closed its input before the end."""
        assert self._process.stdin is not None  # noqa: S101  the caller started it with feed=True
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(self._process.stdin.fileno(), rest) :]
        except BrokenPipeError:
            return False
        finally:
            with suppress(OSError):
                self._process.stdin.close()
        return True

    def finish(self) -> None:
        """Wait for its end; raise what its exit status and last words mean."""
        status = self._wait()
        if status != 0:
            raise self.failure(status)

    @property
    def warnings(self) -> list[str]:
        """What it said on standard error, line by line."""
        return list(self._stderr)

    def failure(self, status: int) -> ClipperError:
        """The error for an exit *status* other than 0."""
        how = f"was ended by signal {-status}" if status < 0 else f"failed (exit {status})"
        words = "; ".join(self._messages()) or "it said nothing"
        message = f"{self._title} {how}: {words}"
        if "permission denied" in words or "row-level security" in words:
            return AccessError(message, hints=privilege_hints(words))
        hints = []
        if status == -signal.SIGKILL:
            hints = ["the kernel kills what takes too much memory: its log (`dmesg`) or the pod's last state (OOMKilled) says so"]
        elif _SESSION_ENDED.search(words):
            hints = ["the server's log says who or what ended the session"]
        error = ToolError(message, hints=hints)
        error.output = tuple(self._stderr)
        return error

    def _messages(self) -> list[str]:
        """What it said, a message each, without the SQL that it was running."""
        said: list[str] = []
        for line in self._stderr:
            if line.startswith(f"{self.name}: ") or not said:
                said.append(line.removeprefix(f"{self.name}: ").removeprefix("error: ").removeprefix("detail: "))
            else:
                said[-1] += f" {line}"
        return [message for message in said if not message.startswith(("hint: ", "Query was: ", "Command was: "))]

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None  # noqa: S101  asked for in the constructor
        rest = b""
        while chunk := os.read(self._process.stderr.fileno(), 65536):
            *lines, rest = (rest + chunk).split(b"\n")
            self._stderr.extend(text for line in lines if (text := _text(line)))
            rest = rest[:_STDERR_LINE_BYTES]
        if text := _text(rest):
            self._stderr.append(text)


def _text(line: bytes) -> str:
    return line[:_STDERR_LINE_BYTES].decode(errors="replace").strip()


def run(path: Path, arguments: Sequence[str], environment: Mapping[str, str], *, feed: Iterable[bytes] | None = None) -> bytes:
    """Run a program to its end and return its output (small ones only). ToolError unless it exits with 0.

    With *feed* its input is fed until it has read enough: a program that closes its input early is no failure by itself.
    """
    with Program(path, arguments, environment, feed=feed is not None) as program:
        collected: list[bytes] = []
        # The reader's own descriptor: a signal may end `start` when the reader runs already and nobody can join it yet.
        output = os.dup(program._stdout.fileno())  # noqa: SLF001  our own class
        reader = threading.Thread(target=_collect, args=(output, collected))
        try:
            reader.start()
            if feed is not None:
                program.feed(feed)
            reader.join()
        except BaseException:
            program.kill()  # so that the reader meets the end
            if reader.ident is not None:
                reader.join()
            raise
        program.finish()
    return b"".join(collected)


def _collect(output: int, into: list[bytes]) -> None:
    try:
        while chunk := os.read(output, READ_BYTES):
            into.append(chunk)
    finally:
        os.close(output)
