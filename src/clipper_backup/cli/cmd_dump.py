"""`dump …`: logical backups."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli import show_dump
from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.errors import UsageError
from clipper_backup.ops.dump import fetch as fetching
from clipper_backup.ops.dump import read as reading
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.work import Work, open_work
from clipper_backup.repository.dumps import find_dump
from clipper_backup.repository.root import open_repository
from clipper_backup.values import DumpId

app = group("dump", "Logical backups: pg_dump of each database and the cluster's roles, proven when they are taken.")

Id = Annotated[str, Parameter(help="the dump, like postgres-backup-20261122-020000, or latest")]


Unsigned = Annotated[bool, Parameter(help="take a dump that no trusted key has signed")]


def _work(context: Context, *, read_only: bool = True, unsigned: bool = False) -> Work:
    return open_work(context.settings, context.clock, context.emit, read_only=read_only, unsigned=unsigned)


def _find(work: Work, dump_id: str, *, unsigned: bool = False) -> DumpId:
    if unsigned and dump_id == "latest":
        raise UsageError(
            "--unsigned takes no `latest`: whoever can write into the store says which dump that is",
            hints=["name the dump: `clipper-backup dump list`"],
        )
    open_repository(work.store)
    return find_dump(work.store, dump_id)


@app.command
def create(*, context: Context) -> None:
    """Take a dump of BACKUP_DATABASES; it exists only once its stored bytes were read back.

    Settings that matter most; `clipper-backup settings` shows them all:
      --backup-url (BACKUP_URL)              where the repository is
      --backup-databases (BACKUP_DATABASES)  which databases are dumped
      --dump-jobs (DUMP_JOBS)                how many tables are read at once
      --dump-fingerprint (DUMP_FINGERPRINT)  what is recorded of each table
    """
    from clipper_backup.ops.dump import create as creating

    summary = creating.create_dump(_work(context, read_only=False)).summary
    context.answer({"schema": 1, **show_dump.summary_document(summary)}, show_dump.summary_text(summary))


@app.command(name="list")
def list_(*, context: Context) -> None:
    """Every dump in the repository, oldest first, unfinished and damaged ones too."""
    entries = reading.catalog(_work(context))
    text = show_dump.entries_text(entries) if entries else "no dumps yet; `clipper-backup dump create` takes one\n"
    context.answer({"schema": 1, "items": [show_dump.entry_document(entry) for entry in entries]}, text)


@app.command
def show(dump_id: Id, /, *, unsigned: Unsigned = False, context: Context) -> None:
    """What one dump holds, and what was recorded when it was taken."""
    work = _work(context, unsigned=unsigned)
    summary = reading.summary_of(work, _find(work, dump_id, unsigned=unsigned))
    unopened = summary.sealed and context.settings.encryption_identity_file is None
    details = None if unopened else reading.details_of(work, summary)
    document = {"schema": 1, **show_dump.summary_document(summary), "details": show_dump.details_document(details)}
    document["warnings"] += details.warnings if details is not None else []
    context.answer(document, show_dump.summary_text(summary) + show_dump.details_text(details))


@app.command
def verify(dump_id: Id, /, *, unsigned: Unsigned = False, context: Context) -> None:
    """Read everything a dump stored and compare it with what was recorded; exit 13 when it differs, 3 without its key."""
    from clipper_backup.ops.dump import verify as verifying

    work = _work(context, unsigned=unsigned)
    verified = verifying.verify_dump(work, _find(work, dump_id, unsigned=unsigned))
    context.answer({"schema": 1, **show_dump.verified_document(verified)}, show_dump.verified_text(verified))


@app.command
def fetch(
    dump_id: Id,
    /,
    *,
    to: Annotated[Path, Parameter(help="folder to write into")],
    as_stored: Annotated[bool, Parameter(help="the objects as they are stored, neither opened nor decompressed")] = False,
    unsigned: Unsigned = False,
    context: Context,
) -> None:
    """Write a dump's files into a folder, checked and ready for pg_restore."""
    work = _work(context, unsigned=unsigned)
    fetched = fetching.fetch_dump(work, _find(work, dump_id, unsigned=unsigned), to, as_stored=as_stored)
    items = [{"id": str(file.path), "size_bytes": file.size_bytes} for file in fetched]
    context.answer({"schema": 1, "items": items}, "".join(f"{file.path}\n" for file in fetched))


@app.command
def restore(
    dump_id: Id,
    /,
    *,
    into: Annotated[str, Parameter(help="the database to make; an existing one must be empty, unless --replace")],
    database: Annotated[str | None, Parameter(help="which database of the dump; needed when it holds several")] = None,
    jobs: Annotated[int, Parameter(help="parallel restore jobs; more than 1, or a trusted key, needs scratch space")] = 1,
    replace: Annotated[
        bool, Parameter(help="take the place of a database that is in use; it is kept under another name, its sessions are ended")
    ] = False,
    no_roles: Annotated[bool, Parameter(help="create no roles, leave out owners and privileges")] = False,
    unsigned: Unsigned = False,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
    context: Context,
) -> None:
    """Restore a database of a dump, and prove it equal to what was recorded; exit 13 names every difference."""
    from clipper_backup.ops.dump import restore as restoring

    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, not {jobs}", hints=["leave it out: 1 needs no scratch space"])
    work = _work(context, unsigned=unsigned)
    found = _find(work, dump_id, unsigned=unsigned)
    if replace:
        context.confirm(f"Let the restored database take the place of {into!r}, ending every session in it?", yes=yes)
    request = restoring.Request(found, into, database, jobs, replace, roles=not no_roles)
    restored = restoring.restore_dump(work, request)
    context.answer({"schema": 1, **show_dump.restored_document(restored)}, show_dump.restored_text(restored))


@app.command
def delete(
    dump_id: Id,
    /,
    *,
    last: Annotated[bool, Parameter(help="even the newest good one of some database, as of one that was dropped")] = False,
    dry_run: Annotated[bool, Parameter(help="only say whether it may be deleted")] = False,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
    context: Context,
) -> None:
    """Delete one dump; refused for held ones, the newest good one, and the newest good one of a database."""
    from clipper_backup.ops.dump import prune as pruning

    work = _work(context, read_only=dry_run)
    found = _find(work, dump_id)
    pruning.check_deletable(work, found, last=last)
    if not dry_run:
        context.confirm(f"Delete the dump {found}?", yes=yes)
        with take_lease(work, DUMP_LEASE, "dump delete") as lease:
            pruning.delete_dump(work, found, lease, last=last)
    said = f"{found} would be deleted" if dry_run else f"{found} is deleted"
    context.answer({"schema": 1, "id": str(found), "dry_run": dry_run}, said)
