"""`wal fetch %f %p`, without the command-line parser: PostgreSQL starts it for each file that recovery asks for.

Whatever is not of this form (`--help`, an option that is none) goes to the parser, which knows what to say.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.cli.arguments import split
from clipper_backup.cli.context import Context
from clipper_backup.errors import UsageError, WalEndError
from clipper_backup.ops.wal.open_restore import open_restore, open_standby, start_reading_ahead
from clipper_backup.wal_names import Kind, classify

_VALUED = {"--restore-folder", "--plan", "--ahead"}


@dataclass(frozen=True, slots=True)
class Request:
    """What restore_command asks for: %f and %p, and for which restore; a standby has none. `plan` is that one's id."""

    name: str
    target: Path
    restore_folder: Path | None
    standby: bool
    plan: str | None = None


def run(words: Sequence[str]) -> int:
    """Answer; the codes of errors are made those of `wal fetch` by `main`."""
    arguments = split(words)
    found: dict[str, str] = {}
    plain: list[str] = []
    pending = list(arguments.words)
    while pending:
        word = pending.pop(0)
        option, equals, value = word.partition("=")
        if option in _VALUED and (equals or pending):
            found[option] = value if equals else pending.pop(0)
        elif word == "--standby":
            found[word] = ""
        else:
            plain.append(word)
    folder = found.get("--restore-folder")
    if any(word.startswith("-") for word in plain) or len(plain) != (0 if "--ahead" in found else 2):
        from clipper_backup.cli.app import dispatch  # noqa: PLC0415  200 ms, for whoever asks for help

        return dispatch(["wal", "fetch", *words])
    with Context(arguments) as context:
        if "--ahead" in found:
            read_ahead(context, folder, Path(found["--ahead"]))
            return 0
        request = Request(plain[0], Path(plain[1]), Path(folder) if folder else None, "--standby" in found, found.get("--plan"))
        try:
            fetch_file(context, request)
        except WalEndError as error:
            if context.json:
                raise
            return error.exit_code  # without a word: each recovery asks for files that are not there, and its log is read
    return 0


def fetch_file(context: Context, request: Request) -> None:
    """Put the file where PostgreSQL wants it; WalEndError when it is missing behind the end."""
    pg_wal = request.target.parent
    if request.standby == (request.restore_folder is not None):
        raise UsageError(
            "wal fetch needs --restore-folder or --standby, and not both",
            hints=["`clipper-backup restore` writes the restore_command that fits"],
        )
    if request.restore_folder is None:
        fetched = open_standby(pg_wal, context.settings, context.clock, context.emit).answer(request.name, request.target)
    else:
        restore = open_restore(request.restore_folder, context.clock, context.emit, request.plan)
        fetched = restore.fetch(pg_wal).answer(request.name, request.target)
        if fetched and classify(request.name) is Kind.SEGMENT:
            start_reading_ahead(restore, pg_wal)
    if not fetched:
        raise WalEndError(f"{request.name} is not in the archive, and nothing that needs it")
    if context.json:
        context.answer({"schema": 1, "id": request.name, "path": str(request.target)}, "")


def read_ahead(context: Context, folder: str | None, pg_wal: Path) -> None:
    """Be the process that `wal fetch` leaves behind."""
    if folder is None:
        raise UsageError("--ahead needs --restore-folder")
    running = pg_wal.parent / "postmaster.pid"
    open_restore(Path(folder), context.clock, context.emit).ahead(pg_wal).run(threading.Event(), needed=running.exists)
