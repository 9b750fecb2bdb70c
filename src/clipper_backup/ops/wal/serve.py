"""`wal serve`: the answers of `wal fetch` for a recovering server whose own image has no Python.

It runs beside that server and shares its data folder and a handshake folder. What PostgreSQL runs is a few lines of shell
(`restore.sh`), which ask there: %f and %p. The answer is `ok`; or `no`, the exit code of `wal fetch`, and what it said.
"""

import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from clipper_backup.errors import ClipperError, UsageError, WalEndError, exit_code_of, fetch_code_of
from clipper_backup.ops.events import Emit, Warned
from clipper_backup.ops.wal.handshake import BEAT_SECONDS, Handshake, Request
from clipper_backup.ops.wal.open_restore import Restore

_PG_WAL = "pg_wal"


def serve(
    restore: Restore, pgdata: Path, handshake: Path, stop: threading.Event, refused: Callable[[Exception], None] | None = None
) -> None:
    """Answer the requests in *handshake* for the server with the data folder *pgdata*, until *stop* is set.

    *refused* hears why a request was, which ends a recovery. ClipperError when a folder is not there, or may not be written by
    us.
    """
    pg_wal = pgdata / _PG_WAL
    if not pg_wal.is_dir():
        raise UsageError(f"{pgdata} is not a data folder: it has no {_PG_WAL}", hints=["--pgdata names PGDATA"])
    clock, ended = restore.work.clock, threading.Event()
    spool, ahead = restore.spool(pg_wal), restore.ahead(pg_wal)
    asked = Handshake(handshake, clock, asked_by=pgdata)
    desk = Desk(asked, pgdata, restore.fetch(pg_wal).answer, restore.work.emit, refused)
    asked.beat()
    spool.open()

    failed: list[ClipperError] = []

    def beat() -> None:
        # Beside the answers, which may take as long as the store is tried again.
        try:
            while not clock.wait(ended, BEAT_SECONDS / 2):
                asked.beat()
        except ClipperError as error:
            failed.append(error)

    beside = [threading.Thread(target=beat, name="beat"), threading.Thread(target=lambda: ahead.run(ended), name="ahead")]
    for thread in beside:
        thread.start()
    try:
        while not clock.wait(stop, asked.look_seconds) and not failed:
            desk.answer_all()
    finally:
        ended.set()
        for thread in beside:
            thread.join()
        asked.rest()
        spool.remove()
    if failed:
        raise failed[0]


class Desk:
    """Answers what is asked in a handshake folder. *fetch* puts a file in place; False is "missing behind the end"."""

    def __init__(
        self,
        handshake: Handshake,
        pgdata: Path,
        fetch: Callable[[str, Path], bool],
        emit: Emit,
        refused: Callable[[Exception], None] | None = None,
    ) -> None:
        self._handshake, self._pgdata, self._fetch, self._emit = handshake, pgdata, fetch, emit
        self._refused = refused or (lambda _: None)

    def answer_all(self) -> None:
        """Answer each request that is there.

        PostgreSQL asks for one file at a time. Of several, all but one are of an earlier life of it, and nobody can tell which:
        it may read any of them by now, so none is put in place, and it begins again.
        """
        requests = self._handshake.requests()
        for request in requests:
            with self._handshake.held(request):
                lines = self._answer(request) if len(requests) == 1 else ["201", "there was more than one request at once"]
                self._handshake.answer(request, ok=not lines, lines=lines)

    def _answer(self, request: Request) -> list[str]:
        """Nothing when the file is in place; else the exit code, and what is to stand in the server's log."""
        try:
            name, target = request.words
            if self._fetch(name, self._place(target)):
                return []
        except Exception as error:  # noqa: BLE001  it ends that recovery, not the one who answers the next
            message, hints = (error.message, error.hints) if isinstance(error, ClipperError) else (repr(error), ())
            self._emit(Warned(message, tuple(hints)))
            self._refused(error)
            code = fetch_code_of(exit_code_of(error), standby=False)
            return [str(code), message, *(f"HINT: {hint}" for hint in hints)]
        return [str(WalEndError.exit_code)]

    def _place(self, target: str) -> Path:
        path = PurePosixPath(target)
        if len(path.parts) != 2 or path.parts[0] != _PG_WAL or path.name.startswith("."):
            raise UsageError(f"{target!r} is not %p of a restore_command: a file in {_PG_WAL}, seen from PGDATA")
        return self._pgdata / path
