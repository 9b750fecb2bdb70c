"""`restore`: a data folder, or a running server, as the cluster was at an instant."""

import os
import pwd
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli.context import Context
from clipper_backup.errors import IncompleteError, MissingError, UsageError
from clipper_backup.ops.restore.plan import Plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.start import check_port
from clipper_backup.ops.restore.target_dir import check_account
from clipper_backup.ops.restore.targets import choose_target
from clipper_backup.ops.work import open_work
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.folder_runner import FolderRunner
from clipper_backup.values import BackupId, Timeline


def restore(
    *,
    target_dir: Annotated[Path, Parameter(help="the data folder to make: absent or empty, or see --replace")],
    to_time: Annotated[
        str | None, Parameter(help="stop behind the last transaction up to then: `2026-11-22 14:05+01`, `14:05Z`, `10 min ago`")
    ] = None,
    to_lsn: Annotated[str | None, Parameter(help="stop at this position in the WAL, like 16/B374D848")] = None,
    to_xid: Annotated[str | None, Parameter(help="stop at the end of this transaction")] = None,
    to_name: Annotated[str | None, Parameter(help="stop at this restore point, made by pg_create_restore_point")] = None,
    immediate: Annotated[bool, Parameter(help="stop where the base backup ended")] = False,
    exclusive: Annotated[bool, Parameter(help="stop before what is named, not behind it")] = False,
    timeline: Annotated[str | None, Parameter(help="along this timeline, a number; else along the newest")] = None,
    backup: Annotated[str | None, Parameter(help="begin with this base backup; else with the newest that ended before")] = None,
    tablespace: Annotated[
        list[str] | None, Parameter(help="OID=FOLDER: put a tablespace there, not where it was; may be given several times")
    ] = None,
    standby: Annotated[bool, Parameter(help="a standby, that goes on following the archive")] = False,
    accept_gap: Annotated[
        bool,
        Parameter(help="end before the first gap or damaged segment of the WAL, which is read, and lose what lies behind"),
    ] = False,
    replace: Annotated[
        bool,
        Parameter(
            help="take the place of this cluster's data there, whose server is stopped; its unarchived WAL is archived or saved"
        ),
    ] = False,
    work_dir: Annotated[
        Path | None,
        Parameter(help="folder for plan, log and what is saved; else beside the target, .clipper-restore behind its name"),
    ] = None,
    owner: Annotated[str | None, Parameter(help="for root: the user who is to own the files and run PostgreSQL")] = None,
    dry_run: Annotated[bool, Parameter(help="only say what would be done: backup, WAL, loss, sizes")] = False,
    start: Annotated[bool, Parameter(help="start a private server, recover to the end, and leave it running")] = False,
    port: Annotated[int | None, Parameter(help="with --start: the port in its socket's name; else a free one")] = None,
    server_folder: Annotated[
        Path | None,
        Parameter(
            help="with --start: the server runs in another container, where obey.sh obeys this folder, and is stopped at the end"
        ),
    ] = None,
    unsigned: Annotated[bool, Parameter(help="take a backup and WAL that no trusted key has signed")] = False,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
    context: Context,
) -> None:
    """Restore the cluster to an instant: the newest base backup before it, and WAL up to it. Without a target: to the latest.

    The server it makes does not archive and, with --start, has no network. Every restore but a standby ends on a new timeline.
    """
    from clipper_backup.cli import show_restore
    from clipper_backup.ops.restore.left_wal import make_plan
    from clipper_backup.ops.restore.restore import restore as carry_out

    target = choose_target(
        context.clock.now(), time=to_time, lsn=to_lsn, xid=to_xid, name=to_name, immediate=immediate, exclusive=exclusive
    )
    check_port(port)
    for flag, given in (("--port", port), ("--server-folder", server_folder)):
        if given is not None and not start:
            raise UsageError(f"{flag} needs --start")
    if port is not None and server_folder is not None:
        raise UsageError("--port does not go with --server-folder", hints=["that server is stopped at the end: nobody connects"])
    if standby and start:
        raise UsageError("--standby does not go with --start", hints=["it recovers for ever: whoever runs it starts it"])
    if accept_gap and target.kind != "latest":
        raise UsageError("--accept-gap goes with no target", hints=["it ends before the first gap, wherever that is"])
    if standby and target.kind != "latest":
        raise UsageError("--standby goes with no target", hints=["it follows the archive to its end, and goes on"])
    request = Request(
        target_dir=target_dir,
        target=target,
        account=_account(owner, dry_run=dry_run),
        timeline=None if timeline is None else _timeline(timeline),
        backup=None if backup is None else BackupId.parse(backup),
        tablespaces=dict(map(_tablespace, tablespace or ())),
        work_dir=work_dir,
        standby=standby,
        accept_gap=accept_gap,
        replace=replace,
        unsigned=unsigned,
    )
    work = open_work(
        context.settings, context.clock, context.emit, read_only=dry_run or not (start or replace), unsigned=unsigned
    )
    if dry_run:
        plan = make_plan(work, request)
        context.answer(
            {"schema": 1, **show_restore.plan_document(request, plan), "dry_run": True, "restored": None},
            show_restore.plan_text(request, plan),
        )
        return
    with ExitStack() as stack:
        runner = None
        if server_folder is not None:
            runner = stack.enter_context(FolderRunner(server_folder, context.clock, account=request.account))
        plan = make_plan(work, request)
        _confirm(context, request, plan, yes=yes)
        restored = carry_out(work, request, plan, start=start, port=port, runner=runner)
    document = {"dry_run": False, "restored": show_restore.restored_document(restored)}
    context.answer(
        {"schema": 1, **show_restore.plan_document(request, restored.plan), **document},
        show_restore.restored_text(request, restored),
    )
    if restored.started is not None and not restored.archived:
        raise IncompleteError(
            f"the server recovered, and {restored.started.history.name} is not archived: another one may take its number",
            hints=[f"before archiving is switched on: `clipper-backup wal push {restored.started.history}`"],
        )


def _confirm(context: Context, request: Request, plan: Plan, *, yes: bool) -> None:
    """Ask before a cluster's data is removed."""
    if plan.found.state == "cluster":
        also = "".join(f", and the tablespace in {folder}" for folder in plan.emptied)
        context.confirm(
            f"Remove all that lies in {request.data}, but for WAL that was not archived and its configuration{also}?", yes=yes
        )


def _account(owner: str | None, *, dry_run: bool) -> Account:
    """Who will own the files: who runs this, or for root the one who was named."""
    uid = os.geteuid()
    if owner is None:
        if not dry_run:
            check_account(uid)
        return Account(str(uid), uid, os.getegid())
    try:
        entry = pwd.getpwuid(int(owner)) if owner.isdigit() else pwd.getpwnam(owner)
    except KeyError:
        raise MissingError(f"there is no user {owner}", hints=["name one that PostgreSQL can run as: --owner postgres"]) from None
    check_account(entry.pw_uid)
    if uid not in {0, entry.pw_uid}:
        raise UsageError(f"only root can restore for user {entry.pw_name}", hints=["leave --owner out, or run this as that user"])
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _timeline(text: str) -> Timeline:
    if not text.isdigit() or not 1 <= int(text) < 2**32:
        raise UsageError(f"not a timeline: {text!r}", hints=["a number from 1 on; `clipper-backup wal status` shows them"])
    return Timeline(int(text))


def _tablespace(text: str) -> tuple[int, Path]:
    oid, equals, folder = text.partition("=")
    if not oid.isdigit() or not equals or not folder:
        raise UsageError(f"not OID=FOLDER: {text!r}", hints=["--dry-run shows the tablespaces and their OIDs"])
    return int(oid), Path(folder).expanduser()
