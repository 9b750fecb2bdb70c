"""`wal …`: the WAL archive."""

import threading
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli import cmd_wal_fetch, cmd_wal_status, fast_wal
from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.ops.wal.archive import run_archiver
from clipper_backup.ops.wal.times import keeping_times
from clipper_backup.ops.work import open_work, pgdata_of

app = group("wal", "The WAL archive: every change between base backups, for recovery to any instant.")


@app.command
def push(
    file: Annotated[Path, Parameter(help="%p of archive_command: the path of a file in pg_wal, from PGDATA or in full")],
    /,
    *,
    context: Context,
) -> None:
    """Archive one file, for `archive_command = 'clipper-backup wal push %p'`; 0 means that PostgreSQL may forget it.

    A file that is in the archive already is compared: with the same content it is success, with other content it is
    refused (exit 13), and nothing is ever written over. What is no WAL of this server is refused too.
    """
    fast_wal.push_file(context, file)


@app.command
def archive(
    *,
    handshake: Annotated[Path, Parameter(help="the folder in which archive_command asks and is answered")],
    context: Context,
) -> None:
    """Archive the WAL of the server beside us, ahead and in parallel, and answer its archive_command, until it is ended.

    The server's archive_command is the shim `archive.sh`, a few lines of shell: it asks in the handshake folder and waits for
    the answer. Whatever is wrong with one file is told and tried again.

    Settings that matter most; `clipper-backup settings` shows them all:
      --pgdata (PGDATA)          the data folder of the server beside us; it has to be said
      --backup-url (BACKUP_URL)  where the repository is
    """
    pgdata = pgdata_of(context.settings)
    work = open_work(context.settings, context.clock, context.emit, read_only=False)
    with keeping_times(work, pgdata):
        run_archiver(work, pgdata, handshake, threading.Event())


app.command(cmd_wal_fetch.fetch)
app.command(cmd_wal_fetch.serve)
app.command(cmd_wal_status.status)
app.command(cmd_wal_status.verify)
