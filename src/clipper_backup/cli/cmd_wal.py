"""`wal …`: the WAL archive."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli import fast_wal
from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context

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
