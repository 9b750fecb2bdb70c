"""`wal archive` beside a server that comes and goes: what is wrong is told and tried again, and it ends after its server.

A container that ends by itself is started again and again, and makes its Pod unready meanwhile: the database would be away
because its archive is. And in a Pod all containers are told to end at once: PostgreSQL, ending, hands over its last
segment, and somebody must still be there to take it.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.config import Settings
from clipper_backup.errors import AccessError, ClipperError, IncompleteError, MissingError
from clipper_backup.ops.events import Emit, Warned
from clipper_backup.ops.wal.archive import Unstored, ready_files, run_archiver
from clipper_backup.ops.wal.times import keeping_times
from clipper_backup.ops.work import open_work
from clipper_backup.postgres.data_folder import WAL_FOLDER, DataFolder
from clipper_backup.postgres.postmaster import is_served
from clipper_backup.values import show_count, show_names

SAID_FILE = "pgdata"
"""In the handshake folder: where the server's data folder is, one line, written by start.sh before the server starts."""
_AGAIN_SECONDS, _SOON_SECONDS = 10, 1
"""Until the next try; soon where the server's container is only starting: PostgreSQL waits a minute after three refusals."""
_SLICE_SECONDS = 1.0
_NAMED = 3


class Lingering:
    """When to end: at once, or once the server is gone and all of its WAL is stored, *seconds* after the asking at the latest."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self._asked = False
        self._since: float | None = None
        self.over = threading.Event()
        self.left: tuple[str, ...] = ()
        """What was ready and not stored at the last look."""
        self.server_runs = False

    def ask(self) -> None:
        """Ask for the end. For a signal's handler: it takes no lock that the interrupted thread may hold."""
        self._asked = True

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked

    def look(self, pgdata: Path | None, unstored: Callable[[], Sequence[str]]) -> None:
        """Set `over` when it is time. *unstored* is asked after the server was seen to be gone: it makes nothing ready then."""
        if not self._asked or self.over.is_set():
            return
        now = self._clock.monotonic()
        self._since = now if self._since is None else self._since
        self.server_runs = pgdata is not None and is_served(pgdata)
        self.left = tuple(unstored())
        if now - self._since >= self._seconds or not (self.server_runs or self.left):
            self.over.set()


def keep_archiving(
    read_settings: Callable[[], Settings], clock: Clock, emit: Emit, handshake: Path, lingering: Lingering
) -> None:
    """Archive for the server beside us, whatever is wrong meanwhile, until *lingering* is over.

    Settings are read anew before each try: a mounted ConfigMap changes. The data folder is PGDATA's, or the one that is said in
    the handshake folder. IncompleteError when files are left that nobody archives any more, or the server still runs.
    """
    archiver = _Archiver(read_settings, clock, emit, handshake, lingering)
    told, seconds = "", _AGAIN_SECONDS
    while not lingering.over.is_set():
        archiver.works = False
        try:
            archiver.run()
        except Exception as error:  # noqa: BLE001  whatever it is: ending would make the Pod unready, and archive no more
            known = error if isinstance(error, ClipperError) else ClipperError(f"internal error: {type(error).__name__}: {error}")
            if archiver.works or known.message != told:  # what was mended and came back is told again
                told = known.message
                emit(Warned(f"nothing is archived, it is tried again: {told}", known.hints))
            seconds = _SOON_SECONDS if isinstance(known, MissingError) else _AGAIN_SECONDS
        archiver.wait(seconds)
    archiver.check_left()


class _Archiver:
    """One try after the other; `pgdata` is where the last one found the server."""

    def __init__(
        self, read_settings: Callable[[], Settings], clock: Clock, emit: Emit, handshake: Path, lingering: Lingering
    ) -> None:
        self._read_settings, self._clock, self._emit = read_settings, clock, emit
        self._handshake, self._lingering = handshake, lingering
        self._pgdata: Path | None = None
        self.works = False
        """Whether it came so far as to look at what there is to archive."""

    def run(self) -> None:
        """Until it is over, or cannot work."""
        self._pgdata = _said(self._handshake)
        settings = self._read_settings()
        self._pgdata = pgdata = settings.pgdata or self._pgdata
        if pgdata is None:
            said = self._handshake / SAID_FILE
            raise MissingError(
                "it is not said where the server's data folder is",
                hints=[f"--pgdata PATH names it, or PGDATA in the environment; in a Pod start.sh writes it into {said}"],
            )
        check_owner(pgdata)
        DataFolder(pgdata, self._clock).layout()  # told once, and not by who keeps the times too
        work = open_work(settings, self._clock, self._emit, read_only=False)
        with keeping_times(work, pgdata):
            run_archiver(
                work,
                pgdata,
                self._handshake,
                self._lingering.over,
                looked=self._looked,
            )

    def _looked(self, unstored: Unstored) -> None:
        self.works = True
        self._lingering.look(self._pgdata, unstored)

    def wait(self, seconds: int) -> None:
        """Before the next try."""
        for _ in range(seconds):
            self._lingering.look(self._pgdata, self._ready)
            if self._clock.wait(self._lingering.over, _SLICE_SECONDS) or self._lingering.is_asked:
                break

    def check_left(self) -> None:
        """IncompleteError unless all that the server wrote and made ready is stored, and it is gone."""
        left, problems = self._lingering.left, []
        if left:
            named = f"{show_names(left[:_NAMED])}{' …' if len(left) > _NAMED else ''}"
            problems.append(f"{show_count(len(left), 'file is', 'files are')} not archived: {named}")
        if self._lingering.server_runs:
            problems.append(f"the server in {self._pgdata} still runs")
        if problems:
            raise IncompleteError(
                "; ".join(problems),
                hints=["they stay in pg_wal and are archived after the next start; do not remove the volume before that"],
            )

    def _ready(self) -> list[str]:
        with suppress(OSError):
            return [] if self._pgdata is None else ready_files(self._pgdata / WAL_FOLDER)
        return []


def _said(handshake: Path) -> Path | None:
    """The data folder that the server's container said, None where it has not (or is just writing it)."""
    try:
        text = (handshake / SAID_FILE).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClipperError(f"cannot read {handshake / SAID_FILE}: {(error.strerror or str(error)).lower()}") from error
    return Path(text.removesuffix("\n")) if text.endswith("\n") else None


def check_owner(pgdata: Path) -> None:
    """AccessError unless we are the user whose folder it is, or root; MissingError where no server has made it yet."""
    ours = os.geteuid()
    try:
        owner = pgdata.stat().st_uid
    except PermissionError as error:
        raise AccessError(f"user {ours}, as which this process runs, may not look at {pgdata}", hints=_USER_HINTS) from error
    except OSError as error:
        raise MissingError(
            f"there is no {pgdata} here: {(error.strerror or str(error)).lower()}",
            hints=["in a Pod this container mounts the server's volume at the same path, with the same subPath"],
        ) from error
    if ours in {0, owner}:
        return
    if owner == 0:  # no server runs as root: the volume is new, and its entry point has not taken it over
        raise MissingError(f"{pgdata} is no data folder of PostgreSQL yet: it belongs to root")
    raise AccessError(f"{pgdata} belongs to user {owner}, and this process runs as user {ours}", hints=_USER_HINTS)


_USER_HINTS = (
    "in Kubernetes the sidecar runs as user 70, as PostgreSQL does in its Alpine images; the component debian-image makes it 999",
    "elsewhere: run it as the server's user",
)
