"""`wal fetch` and `wal serve`: what a recovering PostgreSQL asks for."""

import threading
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli import fast_wal_fetch
from clipper_backup.cli.context import Context

_FOLDER = Parameter(help="the restore's folder, with its plan: `clipper-backup restore` makes it")


def fetch(
    name: Annotated[str, Parameter(help="%f of restore_command: the name of a segment, a .history or a .backup")],
    path: Annotated[Path, Parameter(help="%p of restore_command: where PostgreSQL wants it, in pg_wal")],
    /,
    *,
    restore_folder: Annotated[Path | None, _FOLDER] = None,
    plan: Annotated[str | None, Parameter(help="the id of the plan that must lie there: that of this server's restore")] = None,
    standby: Annotated[bool, Parameter(help="for a standby: no plan, and whatever fails is 1, so that it asks again")] = False,
    context: Context,
) -> None:
    """Fetch one file of the archive, for the restore_command that `clipper-backup restore` writes.

    It ends with 0, with 44 when the file is missing behind the end of the WAL, and with 200 + the exit code of any other error:
    PostgreSQL takes 1 to 125 for the end of the WAL, and would open with what it has.
    """
    fast_wal_fetch.fetch_file(context, fast_wal_fetch.Request(name, path, restore_folder, standby, plan))


def serve(
    *,
    handshake: Annotated[Path, Parameter(help="a folder shared with it, where it asks and is answered")],
    restore_folder: Annotated[Path, _FOLDER],
    context: Context,
) -> None:
    """Answer a recovering server whose image has no Python, until it is ended.

    The server's restore_command is the shim `restore.sh`, a few lines of shell: it asks in the handshake folder and waits for
    the answer. Its first lines show the whole setting.

    Settings that matter most; all others are those of the restore:
      --pgdata (PGDATA)  the data folder of the server that recovers, shared with it; it has to be said
    """
    from clipper_backup.ops.wal.open_restore import open_restore
    from clipper_backup.ops.wal.serve import serve as answer
    from clipper_backup.ops.work import pgdata_of

    pgdata = pgdata_of(context.settings)
    answer(open_restore(restore_folder, context.clock, context.emit), pgdata, handshake, threading.Event())
