"""PostgreSQL in another container: `obey.sh` runs there what files in a shared folder say (docs/design/kubernetes.md)."""

import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from clipper_backup.clock import Clock
from clipper_backup.errors import ServerError, ToolMissingError, UsageError
from clipper_backup.postgres.account import Account, server_account, variables_of_server
from clipper_backup.postgres.runner import SIGNALS, Stop, run_to_end

OBEY = Path(__file__).with_name("obey.sh")
_POLL_SECONDS = 0.05
_BEATS = 12
"""In the seconds after which a side that says nothing is gone; obey.sh counts with as many."""
_COMING = 10
"""How many times those seconds the other container may take to come: its image is fetched after ours."""
_KILLED = 128 + 9
"""The exit status of what ran in a container that is gone."""


class FolderRunner:
    """Programs of the image in which `obey.sh FOLDER` runs, under its user id: that of *account*, ours unless we are root.

    While this is open the other side knows that somebody is there; `close` sends it away. One program at a time.
    *patience_seconds* is what obey.sh was told: for so long a side may say nothing before it is gone.
    """

    def __init__(self, folder: Path, clock: Clock, *, account: Account | None = None, patience_seconds: float = 60.0) -> None:
        self.account: Account = account or server_account()
        self._folder = folder.absolute()
        self._clock = clock
        self._patience = patience_seconds
        self._version: tuple[str, int] | None = None
        self._closing = threading.Event()
        self._beating: threading.Thread | None = None
        self._heard = _Heard(self._folder / "alive", clock)
        self._began = clock.monotonic()

    def open(self) -> Self:
        """Let the other side know of us, and begin with nothing of an earlier one. UsageError when the folder cannot be used.

        What an earlier driver left running is killed: it writes where we are about to. ServerError when it does not end.
        """
        try:
            self._end_earlier()
            for name in ("run", "taken", "pid", "stop", "stopping", "exited", "end"):
                (self._folder / name).unlink(missing_ok=True)
            self._beat()
        except OSError as error:
            raise UsageError(
                f"cannot use {self._folder} to drive a server: {(error.strerror or str(error)).lower()}",
                hints=["it must be there, and writable for both containers, which need one user id"],
            ) from error
        self._beating = threading.Thread(target=self._keep_beating, name="server folder", daemon=True)
        self._beating.start()
        return self

    def close(self) -> None:
        """Send the other side away: it stops what runs, and its container ends with 0."""
        self._closing.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
            with suppress(OSError):  # it will see that nobody is here
                self._put("end", "")

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What is run there."""
        return f"PostgreSQL {self._version[0]}" if self._version else "PostgreSQL of the other container"

    @property
    def major(self) -> int:
        """The major version of the image's PostgreSQL; UsageError before `prepare`."""
        if self._version is None:
            raise UsageError(f"nobody has asked yet what is run by {self._folder}")
        return self._version[1]

    def prepare(self, folder: Path) -> None:
        """Wait until the other side is there, and ask which version it runs, with *folder* for its answer.

        ServerError when it does not come; ToolMissingError when it has no PostgreSQL.
        """
        if self._version is not None:
            return
        words = [self.program("postgres"), "--version"]
        code, printed = run_to_end(self, words, log=folder / f"version-{uuid.uuid4().hex}", environment={})
        found = re.search(r"\(PostgreSQL\) ((\d+)\S*)", printed)
        if code != 0 or found is None:
            said = printed or f"postgres --version exits with {code}"
            raise ToolMissingError(
                f"the container that obeys {self._folder} has no PostgreSQL: {said}",
                hints=["its image must be the database's own, and `postgres` on its PATH"],
            )
        self._version = found[1], int(found[2])

    def program(self, name: str) -> str:
        """Its name: the other container's PATH says where it is."""
        return name

    def launch(self, words: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> "FolderRunning":
        """Have *words* started there, and wait until they run.

        *environment*, but for our PATH, is added to what that container has; it lies in a file that everybody can read.
        ServerError when nobody obeys; UsageError for words that no line can hold.
        """
        run_id = uuid.uuid4().hex
        known = variables_of_server(environment)
        variables = [f"{name}={value}" for name, value in known.items() if name != "PATH"]  # theirs says where programs are
        lines = [run_id, str(log), *variables, *words]
        if any("\n" in line or "\0" in line for line in lines):
            raise UsageError("a word for a server in another container holds a line feed")
        running = FolderRunning(self, run_id)
        self._put("run", "\n".join(lines) + "\n")
        deadline = self._clock.monotonic() + _COMING * self._patience
        while (said := self.read("pid", run_id)) is None:
            if self._heard.ever and self.is_gone():
                raise ServerError(f"PostgreSQL cannot be started: {self.why_gone()}")
            if self._clock.monotonic() >= deadline:
                raise ServerError(
                    f"nobody obeys what is written into {self._folder}, for {_COMING * self._patience:g} s",
                    hints=["the other container runs `sh obey.sh` with this folder; its log says what became of it"],
                )
            self._clock.sleep(_POLL_SECONDS)
        self._heard.answered()
        running.pid = int(said)
        return running

    # -- for what runs

    def read(self, name: str, run_id: str) -> str | None:
        """What the other side says in a file, where it says it of this run."""
        try:
            said, _, what = (self._folder / name).read_text().strip().partition(" ")
        except FileNotFoundError:
            return None
        return what if said == run_id else None

    def say_stop(self, run_id: str, mode: Stop) -> None:
        """Have the run stopped."""
        self._put("stop", f"{run_id} {SIGNALS[mode].name.removeprefix('SIG')}\n")

    def is_gone(self) -> bool:
        """Whether the other side has said nothing for too long; then it counts as gone for ever, and is sent away."""
        if self._heard.silent_seconds() <= self._patience:
            return False
        self._heard.ended = True
        self._put("end", "")
        return True

    def why_gone(self) -> str:
        """The same, in words."""
        return f"its container has ended or hangs: nobody has obeyed {self._folder} for {self._patience:g} s"

    def wait(self, done: Callable[[], int | None], timeout_seconds: float) -> int:
        """Ask again and again until there is an answer; TimeoutError."""
        deadline = self._clock.monotonic() + timeout_seconds
        while (status := done()) is None:
            if self._clock.monotonic() >= deadline:
                raise TimeoutError
            self._clock.sleep(_POLL_SECONDS)
        return status

    # -- inside

    def _end_earlier(self) -> None:
        with suppress(FileNotFoundError):
            run_id, _, _ = (self._folder / "pid").read_text().partition(" ")
            self._beat()  # it would leave while we wait, having heard of nobody
            self.say_stop(run_id, "kill")
            while self.read("exited", run_id) is None and self._heard.silent_seconds() <= self._patience:
                if self._clock.monotonic() - self._began > _COMING * self._patience:
                    raise ServerError(
                        f"what an earlier restore runs by {self._folder} does not end",
                        hints=["end its container, or give both another folder"],
                    )
                self._clock.sleep(_POLL_SECONDS)

    def _put(self, name: str, content: str) -> None:
        new = self._folder / f"{name}.ours"
        new.write_text(content)
        new.chmod(0o644)  # whatever the umask: as root, another account is to read it
        new.rename(self._folder / name)

    def _beat(self) -> None:
        self._put("driver", f"{uuid.uuid4().hex}\n")

    def _keep_beating(self) -> None:
        while not self._clock.wait(self._closing, self._patience / _BEATS):
            with suppress(OSError):  # a full disk that is emptied again ends nothing
                self._beat()


class FolderRunning:
    """A program that runs in the other container."""

    pid: int

    def __init__(self, runner: FolderRunner, run_id: str) -> None:
        self._runner = runner
        self._id = run_id
        self._status: int | None = None
        self._note = ""

    def poll(self) -> int | None:
        """Its exit status; 137 when its container is gone, and with it whatever ran there."""
        if self._status is None:
            said = self._runner.read("exited", self._id)
            if said is not None:
                self._status = int(said)
            elif self._runner.is_gone():
                self._status, self._note = _KILLED, f": {self._runner.why_gone()}"
        return self._status

    def signal(self, mode: Stop) -> None:
        """Ask for it; `wait` tells when it was done."""
        if self.poll() is None:
            self._runner.say_stop(self._id, mode)

    def wait(self, timeout_seconds: float) -> int:
        """Wait for its end."""
        return self._runner.wait(self.poll, timeout_seconds)

    def leave(self) -> None:
        """It lives on for as long as the runner is open."""

    def note(self) -> str:
        """That its container is gone, where that is so."""
        return self._note


class _Heard:
    """When somebody was last seen to change a file, by our own clock: theirs may be set while we look."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._said = self._read()
        self._at = clock.monotonic()
        self.ever = self.ended = False

    def answered(self) -> None:
        """They did what they were told: what falls silent from here on was there."""
        self._at, self.ever = self._clock.monotonic(), True

    def silent_seconds(self) -> float:
        """For how long it has been as it is; for ever, once it has `ended`."""
        said = self._read()
        if said != self._said:
            self._said, self._at, self.ever = said, self._clock.monotonic(), True
        return float("inf") if self.ended else self._clock.monotonic() - self._at

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None
