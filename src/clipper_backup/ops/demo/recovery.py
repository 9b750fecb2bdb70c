"""`demo`, its second half: an UPDATE without WHERE while others write, and the way back to the instant before it.

The oracle is the demo's own: what every clip was before, and which of the rows that were written meanwhile had been committed
by that instant.
"""

import os
import shlex
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clipper_backup.errors import IntegrityError, ServerError
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import Restored, restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.archive import run_archiver
from clipper_backup.ops.wal.shims import ARCHIVE_SHIM
from clipper_backup.ops.work import Work, login_of
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.connection import Connection, Login, connect
from clipper_backup.postgres.server import PrivateServer

_HANDSHAKE, _TARGET = "handshake", "before"
_TICKS_BEFORE, _TICKS_AFTER = 200, 100
_PAUSE_SECONDS = 0.002
_ARCHIVED_SECONDS = 120.0
_CLIPS = b"SELECT count(*), coalesce(sum(hashtextextended(c::text, 0)), 0)::text FROM public.clips c"


@dataclass(frozen=True, slots=True)
class Disaster:
    """What happened. `clips` is their count and hash as they were; `instant` is the server's clock just before.

    By then the rows up to `ticks_before` had been committed; `ticks` were at the end.
    """

    instant: datetime
    clips: tuple[int, str]
    ticks_before: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Proof:
    """What the restored server was compared in: `clips` equal by hash, and the last of the rows written meanwhile."""

    clips: int
    last_tick: int


def archive_settings(folder: Path) -> dict[str, str]:
    """Settings of a server whose WAL `archiving` in *folder* archives. Makes the folder that they name."""
    (folder / _HANDSHAKE).mkdir()
    shim = Path(shutil.copy(ARCHIVE_SHIM, folder))
    return {"archive_mode": "on", "archive_command": f"sh {shlex.quote(str(shim))} {shlex.quote(str(folder / _HANDSHAKE))} %p"}


@contextmanager
def archiving(work: Work, server: PrivateServer, folder: Path) -> Iterator[None]:
    """`wal archive` beside *server*, in a thread; at the end the server is stopped first, whose last WAL it still archives.

    Whatever ended it is raised then.
    """
    stop, failed = threading.Event(), []

    def run() -> None:
        try:
            run_archiver(work, server.data, folder / _HANDSHAKE, stop)
        except Exception as error:  # noqa: BLE001  raised below, by whoever waits for it
            failed.append(error)

    thread = threading.Thread(target=run, name="wal archive")
    thread.start()
    try:
        yield
        server.stop()
    finally:
        server.stop("immediate")
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


class Writers:
    """A session that commits a row every few milliseconds, from `begin` to `end`."""

    def __init__(self, login: Login, database: str) -> None:
        self._login, self._database = login, database
        self._stop, self._written = threading.Event(), threading.Condition()
        self._count = 0
        self._failed: list[Exception] = []
        self._thread = threading.Thread(target=self._run, name="writers")

    def begin(self) -> None:
        """Make the table and begin."""
        with closing(connect(self._login, self._database)) as connection:
            connection.execute(b"CREATE TABLE public.written_meanwhile (seq bigint PRIMARY KEY, written_at timestamptz NOT NULL)")
        self._thread.start()

    def wait_for(self, more: int) -> int:
        """Until so many rows more are committed; how many there are."""
        with self._written:
            wanted = self._count + more
            self._written.wait_for(lambda: self._count >= wanted or bool(self._failed))
            if self._failed:
                raise self._failed[0]
            return self._count

    def end(self) -> int:
        """Stop; how many rows were committed."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._failed:
            raise self._failed[0]
        return self._count

    def _run(self) -> None:
        try:
            with closing(connect(self._login, self._database)) as connection:
                while not self._stop.wait(_PAUSE_SECONDS):
                    connection.execute("INSERT INTO public.written_meanwhile VALUES (%s, clock_timestamp())", [self._count + 1])
                    with self._written:
                        self._count += 1
                        self._written.notify_all()
        except Exception as error:  # noqa: BLE001  raised by whoever waits for rows
            with self._written:
                self._failed.append(error)
                self._written.notify_all()


def make_disaster(work: Work, database: str, writers: Writers) -> Disaster:
    """Overwrite every title while the writers go on, and note what there was just before."""
    writers.wait_for(_TICKS_BEFORE)
    with closing(connect(login_of(work.settings), database)) as connection:
        clips = _clips(connection)
        # One statement: what its snapshot shows had been committed by the clock that it reads.
        ((microseconds, last),) = connection.execute(
            b"SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, max(seq) FROM public.written_meanwhile"
        )
        connection.execute(b"UPDATE public.clips SET title = 'untitled'")
        if _clips(connection) == clips:
            raise IntegrityError("the demo's UPDATE changed nothing: there is nothing to recover from")
        writers.wait_for(_TICKS_AFTER)
        ticks = writers.end()
        _wait_until_archived(work, connection)
    return Disaster(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds), clips, last, ticks)


def go_back(work: Work, database: str, disaster: Disaster, folder: Path) -> tuple[Restored, Proof]:
    """Restore to the instant before the disaster, beside the server, and compare; IntegrityError when anything differs."""
    request = Request(target_dir=folder / _TARGET, target=Target("time", time=disaster.instant), account=server_account())
    restored = restore(work, request, make_plan(work, request), start=True)
    assert restored.started is not None  # noqa: S101  it was asked for
    try:
        keywords = {"host": str(restored.started.socket_folder), "port": str(restored.started.port), "user": "postgres"}
        with closing(connect(Login(keywords), database)) as connection:
            return restored, _prove(connection, disaster)
    finally:
        os.kill(restored.started.pid, signal.SIGQUIT)
        os.waitpid(restored.started.pid, 0)


def _prove(connection: Connection, disaster: Disaster) -> Proof:
    clips = _clips(connection)
    if clips != disaster.clips:
        raise IntegrityError(f"the clips are not those of {disaster.instant}: {clips}, {disaster.clips} then")
    ((last, later),) = connection.execute(
        "SELECT max(seq), count(*) FILTER (WHERE written_at > %s) FROM public.written_meanwhile", [disaster.instant]
    )
    if later or last < disaster.ticks_before:
        raise IntegrityError(f"{later} rows are later than {disaster.instant}; the last is {last} of {disaster.ticks_before}")
    return Proof(clips[0], last)


def _clips(connection: Connection) -> tuple[int, str]:
    ((count, digest),) = connection.execute(_CLIPS)
    return count, digest


def _wait_until_archived(work: Work, connection: Connection) -> None:
    ((name,),) = connection.execute("SELECT pg_walfile_name(pg_switch_wal())")
    patience = work.clock.monotonic() + _ARCHIVED_SECONDS
    while True:
        ((archived,),) = connection.execute("SELECT coalesce(last_archived_wal >= %s, false) FROM pg_stat_archiver", [name])
        if archived:
            return
        if work.clock.monotonic() > patience:
            raise ServerError(f"{name} was not archived within {_ARCHIVED_SECONDS:g} s", hints=["run the demo again, and say so"])
        work.clock.sleep(_PAUSE_SECONDS)
