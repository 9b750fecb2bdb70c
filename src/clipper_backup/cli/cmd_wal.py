"""`wal …`: the WAL archive."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from clipper_backup.cli import cmd_wal_fetch, cmd_wal_status, fast_wal, stop
from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.ops.wal.linger import Lingering, keep_archiving

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
    linger_seconds: Annotated[
        int,
        Parameter(
            help="told to end (SIGTERM), go on until the server has ended too and all of its WAL is stored, at most for so long;"
            " 0 ends at once",
            validator=validators.Number(gte=0),
        ),
    ] = 0,
    context: Context,
) -> None:
    """Archive the WAL of the server beside us, ahead and in parallel, and answer its archive_command, until it is ended.

    The server's archive_command is the shim `archive.sh`, a few lines of shell: it asks in the handshake folder and waits for
    the answer. Whatever is wrong, with one file, the settings or the store, is told and tried again. Without --pgdata the
    handshake folder's file `pgdata` says where the data folder is; in a Pod, start.sh writes it.

    Settings that matter most; `clipper-backup settings` shows them all:
      --pgdata (PGDATA)          the data folder of the server beside us
      --backup-url (BACKUP_URL)  where the repository is
    """
    lingering = Lingering(context.clock, linger_seconds)
    with stop.asking(lingering.ask) if linger_seconds else nullcontext():
        keep_archiving(context.read_settings, context.clock, context.emit, handshake, lingering)


app.command(cmd_wal_fetch.fetch)
app.command(cmd_wal_fetch.serve)
app.command(cmd_wal_status.status)
app.command(cmd_wal_status.verify)
