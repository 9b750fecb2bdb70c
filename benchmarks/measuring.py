"""What a program costs: its wall time, the CPU of all that works for it, its peak memory, the syncs that it asks for.

CPU is counted over every process below this one, ended or alive: the program, its threads and children, the server's backends
that serve it, the commands that its archiver runs, and daemons that left their parents (this process adopts those). It is read
from /proc before and after, so whatever else runs below us must be at rest.
"""

import contextlib
import ctypes
import os
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipper_backup.postgres.account import Account

_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
SYNCS = ("fsync", "fdatasync", "syncfs", "sync_file_range")
_PEAK = re.compile(r"VmHWM:\s*([0-9]+) kB")
_CALL = re.compile(rf"\b({'|'.join(SYNCS)})\(")


@dataclass(frozen=True)
class Command:
    """A program with its arguments, what its environment has beside ours, and under whose account it runs; None: ours."""

    arguments: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    account: Account | None = None


@dataclass
class Measured:
    """One contestant's rounds. `cpu_seconds` is of all that worked, `own_cpu_seconds` of the program alone.

    `peak_bytes` is the largest single process of the program, `faults` its page faults that needed no disk.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    own_cpu_seconds: list[float] = field(default_factory=list)
    own_system_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    stored_bytes: list[int] = field(default_factory=list)

    def row(self) -> dict[str, float | None]:
        """Medians, the peak's maximum; None for what was not measured."""

        def median(values: Sequence[float]) -> float | None:
            return statistics.median(values) if values else None

        return {
            "seconds": median(self.seconds),
            "seconds_min": min(self.seconds),
            "seconds_max": max(self.seconds),
            "cpu_seconds": median(self.cpu_seconds),
            "own_cpu_seconds": median(self.own_cpu_seconds),
            "peak_mib": max(self.peak_bytes) / 2**20 if self.peak_bytes else None,
            "stored_mb": None if not self.stored_bytes else statistics.median(self.stored_bytes) / 1e6,
        }


class Machine:
    """Runs programs and measures them. `environment` is what they all get, *folder* is scratch."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment, self._folder = dict(environment), folder
        if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise SystemExit("this machine cannot tell what a daemon costs (prctl)")

    def begin(self, command: Command, output: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a program; what it prints goes to *output*, in the end."""
        account = command.account
        user: dict[str, Any] = {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
        with (output or self._output).open("wb") as printed:
            return subprocess.Popen(
                list(map(str, command.arguments)),
                env=self._environment | dict(command.environment),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                **user,
            )

    def run(self, command: Command) -> str:
        """Run a program that is not measured, to its end; what it printed."""
        process = self.begin(command)
        if process.wait() != 0:
            self._failed(command, process.returncode)
        return self._output.read_text()

    def can_run(self, program: Path, account: Account) -> bool:
        """Whether that account may run one of our programs: the interpreter may lie where only its owner gets."""
        process = self.begin(Command(["sh", "-c", '"$0" --help', program], account=None if account.is_ours else account))
        return process.wait() == 0

    def measure(self, command: Command, into: Measured) -> None:
        """Run a program to its end, and note what it cost."""
        cpu_before = family_cpu_seconds()
        began = time.monotonic()
        process = self.begin(command)
        _, status, usage = os.wait4(process.pid, 0)
        into.seconds.append(time.monotonic() - began)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            self._failed(command, process.returncode)
        into.cpu_seconds.append(family_cpu_seconds() - cpu_before)
        into.own_cpu_seconds.append(usage.ru_utime + usage.ru_stime)
        into.own_system_seconds.append(usage.ru_stime)
        into.peak_bytes.append(usage.ru_maxrss * 1024)
        into.faults.append(usage.ru_minflt)

    def syncs(self, command: Command) -> dict[str, int]:
        """How often a run of the program, and what it starts, asks for its data to be on disk."""
        trace = self._folder / "trace"
        trace.touch()
        if command.account is not None:
            command.account.own(trace)
        traced: list[str | Path] = ["strace", "-f", "-qq", "-e", f"trace={','.join(SYNCS)}", "-e", "signal=none", "-o", trace]
        self.run(Command([*traced, *command.arguments], command.environment, command.account))
        found = Counter(match[1] for line in trace.read_text().splitlines() if (match := _CALL.search(line)))
        trace.unlink()
        return {name: found[name] for name in SYNCS}

    @property
    def _output(self) -> Path:
        return self._folder / "output"

    def _failed(self, command: Command, code: int) -> None:
        printed = self._output.read_text(errors="replace")[-4000:]
        raise SystemExit(f"failed ({code}): {' '.join(map(str, command.arguments))}\n{printed}")


def family_cpu_seconds() -> float:
    """User and system time of all processes below this one, those that ended included.

    Looked at twice, until nobody came or went in between: who is reaped while we look would count twice, or not at all. Daemons
    that we adopted and that ended stay as zombies, which still tell.
    """
    before: dict[int, int] | None = None
    while True:
        parents, ticks = _processes()
        family = {pid: ticks[pid] for pid in parents if _is_below(pid, os.getpid(), parents)}
        if before is not None and family.keys() == before.keys():
            ended = os.times()
            return sum(family.values()) / _TICKS + ended.children_user + ended.children_system
        before = family


def peak_bytes_below(pid: int) -> int:
    """The peak memory so far of the largest process that is *pid* or lives below it."""
    parents, _ = _processes()
    peaks = [0]
    for each in parents:
        if each == pid or _is_below(each, pid, parents):
            with contextlib.suppress(OSError):
                found = _PEAK.search(Path(f"/proc/{each}/status").read_text())
                peaks.append(int(found[1]) * 1024 if found else 0)
    return max(peaks)


def _processes() -> tuple[dict[int, int], dict[int, int]]:
    """The parent of each process, and its ticks with those of children that it has waited for."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            # `pid (name) state parent …`; the name may hold anything, parentheses included
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
            ticks[int(stat.parent.name)] = sum(map(int, fields[11:15]))
    return parents, ticks


def _is_below(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    while (parent := parents.get(pid, 0)) > 1:
        if parent == root:
            return True
        pid = parent
    return False


def size_of(path: Path) -> int:
    """The bytes of all files below a folder, 0 without one."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def read_through(path: Path) -> None:
    """Bring all files below a folder into the kernel's memory."""
    for each in path.rglob("*"):
        if each.is_file():
            with contextlib.suppress(FileNotFoundError), each.open("rb") as file:
                while file.read(1 << 20):
                    pass
