"""`wal serve`: the answers of `wal fetch` for a server whose own image has no Python.

It runs beside that server and shares its data folder. The *handshake* folder is shared too; the script that it puts there is
what PostgreSQL runs. In that folder lie:

    restore_shim.sh
    alive           a number that rises every BEAT_SECONDS: whoever waits sees that somebody is there
    <id>.request    two lines, %f and %p; renamed into place, so it is whole
    <id>.answer     the exit code of `wal fetch`, then what it said; renamed into place
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError, UsageError, WalEndError, exit_code_of, fetch_code_of
from clipper_backup.ops.events import Emit, Warned
from clipper_backup.ops.wal.open_restore import Restore
from clipper_backup.ops.wal.restore_command import SHIM, restore_shim

ALIVE, REQUEST, ANSWER = "alive", ".request", ".answer"
BEAT_SECONDS = 5.0
"""The shim gives up after 30 seconds without a beat."""
_LOOK_SECONDS = 0.01
_PG_WAL = "pg_wal"


def serve(
    restore: Restore, pgdata: Path, handshake: Path, stop: threading.Event, refused: Callable[[Exception], None] | None = None
) -> None:
    """Answer the requests in *handshake* for the server with the data folder *pgdata*, one after the other, until *stop*.

    *refused* hears why a request was, which is all that ends a recovery. ClipperError when a folder is not there, or may not
    be written by us.
    """
    pg_wal = pgdata / _PG_WAL
    if not pg_wal.is_dir():
        raise UsageError(f"{pgdata} is not a data folder: it has no {_PG_WAL}", hints=["--pgdata names PGDATA"])
    desk = Desk(handshake, pgdata, restore.fetch(pg_wal).answer, restore.work.emit, refused)
    spool, ahead = restore.spool(pg_wal), restore.ahead(pg_wal)
    desk.open()
    spool.open()
    ended = threading.Event()
    beside = [
        threading.Thread(target=lambda: _beat(desk, restore.work.clock, ended), name="beat"),
        threading.Thread(target=lambda: ahead.run(ended), name="ahead"),
    ]
    for thread in beside:
        thread.start()
    try:
        while not restore.work.clock.wait(stop, _LOOK_SECONDS):
            desk.answer_all()
    finally:
        ended.set()
        for thread in beside:
            thread.join()
        spool.remove()


def _beat(desk: "Desk", clock: Clock, ended: threading.Event) -> None:
    number = 0
    while not ended.is_set():
        number += 1
        desk.beat(number)
        clock.wait(ended, BEAT_SECONDS)


class Desk:
    """The handshake folder, as who answers sees it. *fetch* is what answers: False is "missing behind the end"."""

    def __init__(
        self,
        folder: Path,
        pgdata: Path,
        fetch: Callable[[str, Path], bool],
        emit: Emit,
        refused: Callable[[Exception], None] | None = None,
    ) -> None:
        self._folder, self._pgdata, self._fetch, self._emit = folder, pgdata, fetch, emit
        self._refused = refused or (lambda _: None)

    def open(self) -> None:
        """Put the script there; remove what nobody waits for any more. A request may have somebody who waits."""
        try:
            for path in self._folder.iterdir():
                if path.suffix == ANSWER or path.name.startswith("."):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise ClipperError(f"cannot use {self._folder}: {error.strerror}", hints=["--handshake names it"]) from error
        self._write(self._folder / SHIM, restore_shim())

    def beat(self, number: int) -> None:
        """Show that somebody is there."""
        self._write(self._folder / ALIVE, f"{number}\n")

    def answer_all(self) -> None:
        """Answer each request that is there, the oldest first: what was handed over last is what PostgreSQL reads."""
        for request in self._requests():
            code, said = self._answer(request)
            self._write(request.with_suffix(ANSWER), f"{code}\n{said}")
            request.unlink(missing_ok=True)

    def _requests(self) -> list[Path]:
        found: list[tuple[int, Path]] = []
        for path in self._folder.glob(f"*{REQUEST}"):
            with contextlib.suppress(FileNotFoundError):  # who asked has given up
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]

    def _answer(self, request: Path) -> tuple[int, str]:
        try:
            name, target = request.read_text(encoding="utf-8").splitlines()
            if not self._fetch(name, self._place(target)):
                return WalEndError.exit_code, f"{name} is not in the archive, and nothing that needs it\n"
        except Exception as error:  # noqa: BLE001  it ends that recovery, not the one who answers the next
            code = fetch_code_of(exit_code_of(error), standby=False)
            message, hints = (error.message, error.hints) if isinstance(error, ClipperError) else (repr(error), ())
            self._emit(Warned(message, hints))
            self._refused(error)
            return code, "".join(f"{line}\n" for line in (message, *(f"HINT: {hint}" for hint in hints)))
        return 0, ""

    def _place(self, target: str) -> Path:
        path = PurePosixPath(target)
        if len(path.parts) != 2 or path.parts[0] != _PG_WAL or path.name.startswith("."):
            raise UsageError(f"{target!r} is not %p of a restore_command: a file in {_PG_WAL}, seen from PGDATA")
        return self._pgdata / path

    def _write(self, path: Path, text: str) -> None:
        draft = path.with_name(f".{path.name}")
        try:
            draft.write_text(text, encoding="utf-8")
            draft.chmod(0o644)  # PostgreSQL may have another account than we
            draft.replace(path)
        except OSError as error:
            raise ClipperError(f"cannot write {path}: {error.strerror}") from error
