"""A private PostgreSQL server: made, started, stopped and killed by us, for tests, the demo and proofs of a restore.

It lives in one folder, is reached through a Unix socket that only its account may use (and 127.0.0.1 where asked
for), takes its settings from its command line alone. Who runs it is a `Runner`: this machine, or another container.
"""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from clipper_backup.clock import Clock, SystemClock
from clipper_backup.errors import ServerError, ToolError, UsageError
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.binaries import Binaries
from clipper_backup.postgres.runner import LocalRunner, Runner, Running, run_to_end
from clipper_backup.values import Secret

_POLL_SECONDS = 0.02
_KILL_SECONDS = 60.0
_LOG_TAIL_LINES = 20
_DEFAULT_PORT = 5432
_SOCKET_PATH_BYTES = 100
"""Linux allows 107 for a socket's path, other systems 103."""
_ACCEPTING = "ready"
"""What the postmaster writes into postmaster.pid once it lets clients in (PM_STATUS_READY in PostgreSQL's
src/include/utils/pidfile.h). `standby` stands there when it recovers with hot_standby off, and lets nobody in."""


class PrivateServer:
    """One server in *directory*; not safe to use from several threads at once.

    `Binaries` as *runner* are run on this machine, and the server dies with this process.

    *data* is its data folder (`directory/data`); its log is `directory/server.log`. *port* None listens on the socket
    only, 0 on a free port of 127.0.0.1 as well, which stays the same until `close`. *settings* go on the command line
    of every start; the data folder's own files are never written. *environment* is what the server's own commands
    (archive_command, restore_command) will see. As root everything runs as another user (the runner's account), who
    becomes the owner of *directory* and must be able to enter the folders above it. Without *listens* the port only names
    the socket.
    """

    def __init__(
        self,
        directory: Path,
        runner: Binaries | Runner,
        *,
        environment: Mapping[str, str],
        data: Path | None = None,
        port: int | None = None,
        superuser: str = "postgres",
        settings: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        listens: bool = True,
    ) -> None:
        self.directory = directory.absolute()
        self.data = (data or directory / "data").absolute()
        self.log = self.directory / "server.log"
        self.superuser = superuser
        self.settings = dict(settings or {})
        self._runner: Runner = LocalRunner(runner) if isinstance(runner, Binaries) else runner
        self._environment = environment
        self._account = self._runner.account
        self._clock = clock or SystemClock()
        self._wanted_port = port
        self._listens = listens and port is not None
        self._reserved: socket.socket | None = None
        self._socket_folder: Path | None = None
        self._process: Running | None = None
        self._log_start = 0

    # -- making the data folder

    def initdb(
        self,
        *,
        locale: str = "C.UTF-8",
        encoding: str = "UTF8",
        data_checksums: bool = True,
        wal_segment_mib: int = 16,
        password: Secret | None = None,
        sync: bool = True,
    ) -> None:
        """Make the data folder. Connections over the socket are trusted; over TCP *password* is asked for (SCRAM).

        Without *password* nobody gets in over TCP. *sync* off saves a second and may lose everything on a power loss.
        ToolError with initdb's own words.
        """
        options = ["--username", self.superuser, "--encoding", encoding, "--locale", locale]
        options += ["--wal-segsize", str(wal_segment_mib), "--no-instructions"]
        options += ["--auth-local", "trust", "--auth-host", "scram-sha-256" if password else "reject"]
        runner = self._prepare()
        if data_checksums:
            options.append("--data-checksums")
        elif runner.major >= 18:  # where they are the default
            options.append("--no-data-checksums")
        if not sync:
            options.append("--no-sync")
        with _password_file(self.directory, self._account, password) as password_options:
            words = [runner.program("initdb"), *options, *password_options, "--pgdata", str(self.data)]
            log = self.directory / "initdb.log"
            code, printed = run_to_end(runner, words, log=log, environment=self._environment)
        if code != 0:
            raise ToolError(f"initdb could not make {self.data}: {printed}", hints=[self._account_hint()])

    # -- its life

    def start(self, *, timeout_seconds: float = 60.0) -> None:
        """Start it and wait until it accepts connections, for a recovering server until it serves reads.

        ServerError with the tail of its log when it ends instead, or has not come so far within *timeout_seconds*;
        it is not running then.
        """
        process = self._launched()
        deadline = self._clock.monotonic() + timeout_seconds
        while not self.is_ready:
            status = process.poll()
            if status is not None:
                raise self.failure(f"ended with code {status} while starting")
            if self._clock.monotonic() >= deadline:
                said = f"its status: {self.status() or 'none yet'}"
                self.kill9()
                raise self.failure(f"did not accept connections within {timeout_seconds:g} s ({said}), and was killed")
            self._clock.sleep(_POLL_SECONDS)

    def launch(self) -> None:
        """Start it and wait for nothing: `status` and its log say how far it is."""
        self._launched()

    def _launched(self) -> Running:
        if self.is_running:
            raise UsageError(f"the server in {self.directory} runs already")
        runner = self._prepare()
        words = [runner.program("postgres"), "-D", str(self.data)]
        for name, value in (self.settings | self._private_settings()).items():
            words += ["-c", f"{name}={value}"]
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._process = runner.launch(words, log=self.log, environment=self._environment)
        return self._process

    def leave(self) -> None:
        """Let it run without us: nothing here stops it or removes its socket folder any more."""
        self._running().leave()
        self._process = self._socket_folder = None
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def stop(self, mode: Literal["fast", "immediate"] = "fast", *, timeout_seconds: float = 60.0) -> None:
        """Stop it and wait for its end; nothing to do when it does not run.

        `fast` leaves a clean data folder, `immediate` one that recovers at its next start. ServerError when it does
        not end within *timeout_seconds*; it is killed then.
        """
        process = self._process
        if process is None:
            return
        process.signal(mode)
        try:
            process.wait(timeout_seconds)
        except TimeoutError:
            self.kill9()
            raise self.failure(f"did not stop within {timeout_seconds:g} s, and was killed") from None

    def kill9(self) -> None:
        """Kill all its processes at once, as a power loss would, and wait until the last is gone.

        What the processes wrote stays in the machine's cache; this does not show what fsync is for.
        """
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.signal("kill")
        process.wait(_KILL_SECONDS)

    def restart(self, mode: Literal["fast", "immediate"] = "fast", *, timeout_seconds: float = 60.0) -> None:
        """Stop it, then start it."""
        self.stop(mode, timeout_seconds=timeout_seconds)
        self.start(timeout_seconds=timeout_seconds)

    def close(self) -> None:
        """Stop it and give back its socket folder and port. The data folder stays."""
        try:
            self.stop()
        finally:
            if self._reserved is not None:
                self._reserved.close()
                self._reserved = None
            if self._socket_folder is not None:
                shutil.rmtree(self._socket_folder, ignore_errors=True)
                self._socket_folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # -- what is known of it

    @property
    def is_running(self) -> bool:
        """Whether its postmaster runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether it lets clients in, after any recovery; of a standby, to read."""
        return self.status() == _ACCEPTING

    @property
    def pid(self) -> int:
        """The postmaster's process id, while it runs."""
        return self._running().pid

    def status(self) -> str | None:
        """What the postmaster says of itself: starting, ready, standby or stopping; None when it has said nothing yet."""
        process = self._process  # it may end while we look: that is an answer, no error
        if process is None or process.poll() is not None:
            return None
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        # A file of an earlier life names another process; the status is the eighth line, and the last to be written.
        if len(lines) < 8 or lines[0] != str(process.pid):
            return None
        return lines[7].strip()

    def connection(self, dbname: str = "postgres") -> dict[str, str]:
        """The libpq keywords for the socket, while it runs; no password is needed."""
        self._running()
        return {"host": str(self._socket_folder), "port": str(self._port), "user": self.superuser, "dbname": dbname}

    def tcp_connection(self, dbname: str = "postgres") -> dict[str, str]:
        """The libpq keywords for 127.0.0.1, while it runs; without the password. UsageError when it does not listen there."""
        if not self._listens:
            raise UsageError(f"the server in {self.directory} listens on its socket only")
        return self.connection(dbname) | {"host": "127.0.0.1"}

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last *lines* of what it logged since its last start."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    # -- inside

    def _running(self) -> Running:
        if self._process is None or self._process.poll() is not None:
            raise self.failure("is not running")
        return self._process

    @property
    def _port(self) -> int:
        return self._reserved.getsockname()[1] if self._reserved is not None else _DEFAULT_PORT

    def _prepare(self) -> Runner:
        """Make what has to be there before any of its programs runs; return who runs them."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._account.own(self.directory.resolve())  # whoever named it may have named a link
        if self._socket_folder is None:
            self._socket_folder = _make_socket_folder(self.directory)
            self._account.own(self._socket_folder)
        if self._reserved is None and self._wanted_port is not None:
            self._reserved = _reserve_port(self._wanted_port)
        self._runner.prepare(self.directory)
        return self._runner

    def _private_settings(self) -> dict[str, str]:
        """What makes it private; stronger than anything the data folder's files or the caller's settings say."""
        return {
            "listen_addresses": "127.0.0.1" if self._listens else "",
            "port": str(self._port),
            "unix_socket_directories": f'"{self._socket_folder}"',
            "unix_socket_group": "",  # of the machine the data came from
            "external_pid_file": f"{self._socket_folder}/server.pid",  # empty, it is an error in the log
            "logging_collector": "off",
            "log_destination": "stderr",
            "lc_messages": "C",
        }

    def failure(self, what: str) -> ServerError:
        """An error that says *what* happened to it, with the end of its log."""
        tail = self.log_tail()
        note = "" if self._process is None else self._process.note()
        return ServerError(
            f"{self._runner.name} in {self.directory} {what}{note}" + (f"; its log ends:\n{tail}" if tail else ""),
            hints=[f"its whole log: {self.log}", self._account_hint()],
        )

    def _account_hint(self) -> str:
        return f"it runs as user {self._account.name}, who must be able to enter the folders above {self.directory}"


@contextlib.contextmanager
def _password_file(folder: Path, account: Account, password: Secret | None) -> Iterator[list[str]]:
    """The initdb options for *password*, which is in a file readable by *account* alone for as long as this is open."""
    if password is None:
        yield []
        return
    handle, name = tempfile.mkstemp(dir=folder, prefix="password-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(password.reveal())
            account.own(file.fileno())
        yield ["--pwfile", name]
    finally:
        Path(name).unlink()


def _make_socket_folder(directory: Path) -> Path:
    """A folder for the socket: in *directory* where a socket can have such a path, else a temporary one.

    PostgreSQL and libpq both read a comma as the end of a name.
    """
    own = directory / "socket"
    if len(os.fsencode(own / ".s.PGSQL.65535")) <= _SOCKET_PATH_BYTES and not set(',"') & set(str(own)):
        own.mkdir(mode=0o700, exist_ok=True)
        return own
    # Short wherever TMPDIR points to.
    return Path(tempfile.mkdtemp(prefix="clipper-socket-", dir="/tmp"))


def _reserve_port(wanted: int) -> socket.socket:
    """A socket bound to *wanted* (0: a free port) on 127.0.0.1 that never listens.

    It keeps the port ours between starts: Linux lets PostgreSQL bind and listen beside it because both set
    SO_REUSEADDR, and gives the port to nobody who asks for a free one.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", wanted))
    except OSError as error:
        reserved.close()
        problem = f"cannot listen on 127.0.0.1:{wanted}: {error.strerror}"
        raise ServerError(problem, hints=["choose another port, or 0"]) from error
    return reserved
