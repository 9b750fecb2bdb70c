"""`base …`: physical backups."""

from dataclasses import replace
from typing import Annotated, Literal

from cyclopts import Parameter

from clipper_backup.cli import show_base
from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.errors import UsageError
from clipper_backup.ops.base import read as reading
from clipper_backup.ops.work import Work, noting, open_work
from clipper_backup.values import BackupId

app = group("base", "Base backups: the whole cluster page by page, each a full one that costs what changed.")

Id = Annotated[str, Parameter(help="the base backup, like 20261122-020000-7f3a9c2e, or latest")]
Unsigned = Annotated[bool, Parameter(help="take a base backup that no trusted key has signed")]


def _work(context: Context, *, read_only: bool = True, unsigned: bool = False) -> Work:
    return open_work(context.settings, context.clock, context.emit, read_only=read_only, unsigned=unsigned)


def _find(work: Work, wanted: str, *, unsigned: bool = False) -> BackupId:
    if unsigned and wanted == "latest":
        raise UsageError(
            "--unsigned takes no `latest`: whoever can write into the store says which base backup that is",
            hints=["name it: `clipper-backup base list`"],
        )
    return reading.find_base(work, wanted)


@app.command
def create(
    *,
    source: Annotated[
        Literal["protocol", "files"] | None, Parameter(help="how to get the server's files; unset: as BASE_SOURCE says")
    ] = None,
    new_system: Annotated[bool, Parameter(help="the server is a new one of this cluster, as after pg_upgrade")] = False,
    context: Context,
) -> None:
    """Take a base backup; it exists only once all of its WAL is in the archive. Exit 3 when the server found damaged pages.

    Settings that matter most; `clipper-backup settings` shows them all:
      --backup-url (BACKUP_URL)                        where the repository is
      --base-source (BASE_SOURCE)                      over a connection, or files beside us
      --pgdata (PGDATA)                                where those files are
      --base-checkpoint (BASE_CHECKPOINT)              begin at once, or with less load
      --base-wal-wait-seconds (BASE_WAL_WAIT_SECONDS)  how long to wait for the WAL
      --encryption-recipients (ENCRYPTION_RECIPIENTS)  whom it is sealed to
    """
    from clipper_backup.ops.base import create as creating

    work = _work(context, read_only=False)
    if source is not None:
        work = replace(work, settings=replace(work.settings, base_source=source))
    written = creating.create_base(work, new_system=new_system)
    document = {"schema": 1, **show_base.summary_document(written.summary)}
    context.answer(document, show_base.summary_text(written.summary))
    creating.refuse_damaged(written.summary)


@app.command(name="list")
def list_(*, context: Context) -> None:
    """Every base backup in the repository, oldest first, unfinished and damaged ones too."""
    catalog = reading.base_catalog(_work(context))
    text = show_base.catalog_text(catalog) if catalog else "no base backups yet; `clipper-backup base create` takes one\n"
    context.answer({"schema": 1, "items": [show_base.shown_document(shown) for shown in catalog]}, text)


@app.command
def show(backup_id: Id, /, *, unsigned: Unsigned = False, context: Context) -> None:
    """What one base backup holds, and what is known of the cluster it is of."""
    work = _work(context, unsigned=unsigned)
    summary = reading.base_summary(work, _find(work, backup_id, unsigned=unsigned))
    details = reading.base_details(work, summary)
    use = reading.pack_use(work, summary)
    described = {"packs": show_base.packs_document(use), "details": show_base.details_document(details)}
    document = {"schema": 1, **show_base.summary_document(summary), **described}
    context.answer(document, show_base.summary_text(summary) + show_base.packs_text(use) + show_base.details_text(details))


@app.command
def verify(
    backup_id: Id = "latest",
    /,
    *,
    read_data: Annotated[bool, Parameter(help="read every pack, and put every file together")] = False,
    sample: Annotated[str | None, Parameter(help="read that much of its packs, drawn at random, like 5%")] = None,
    unsigned: Unsigned = False,
    context: Context,
) -> None:
    """Look that all a base backup needs is there and unchanged; exit 13 when it is not, 3 without its key.

    The hints say which instants damage costs. `clipper-backup verify` looks at all base backups, dumps and WAL.
    """
    from clipper_backup.ops.base import verify as verifying

    share = 1.0 if read_data else parse_share(sample)
    if read_data and sample is not None:
        raise UsageError("--read-data reads everything: --sample with it makes no sense")
    work = noting(_work(context, read_only=False, unsigned=unsigned))
    verified = verifying.verify_base(work, _find(work, backup_id, unsigned=unsigned), share=share)
    context.answer({"schema": 1, **show_base.verified_document(verified)}, show_base.verified_text(verified))
    verifying.refuse_unopened(verified)


def parse_share(sample: str | None) -> float:
    """What `--sample` asks for, 0 to 1; without it 0."""
    if sample is None:
        return 0.0
    try:
        percent = float(sample.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 100:
        raise UsageError(f"bad value for --sample: {sample!r}", hints=["a share of all bytes, like 5%"])
    return percent / 100


@app.command
def delete(
    backup_id: Id,
    /,
    *,
    last: Annotated[bool, Parameter(help="even one that no newer good one follows")] = False,
    dry_run: Annotated[bool, Parameter(help="only say whether it may be deleted")] = False,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
    context: Context,
) -> None:
    """Delete one base backup; refused for held ones, and where no newer good one follows. Others keep all they need."""
    from clipper_backup.ops.base import delete as deleting

    work = _work(context, read_only=dry_run)
    found = _find(work, backup_id)
    deleting.check_base_deletable(work, found, last=last)
    if not dry_run:
        context.confirm(f"Delete the base backup {found}?", yes=yes)
        deleting.delete_base(work, found, last=last)
    said = f"{found} would be deleted" if dry_run else f"{found} is deleted; the next prunes remove its packs"
    context.answer({"schema": 1, "id": str(found), "dry_run": dry_run}, said)
