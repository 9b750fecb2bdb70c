"""`setup …`: what must be there before the first backup."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    from clipper_backup.ops.setup_database import Prepared

app = group("setup", "What must be there before the first backup.")


@app.command
def database(
    *,
    apply: Annotated[bool, Parameter(help="run it, as PGUSER; without, it is only printed")] = False,
    remove: Annotated[bool, Parameter(help="the opposite: take the role away")] = False,
    role: Annotated[str, Parameter(help="its name")] = "clipper_backup",
    password_file: Annotated[
        Path | None, Parameter(help="a file whose first line becomes the role's password; or set BACKUP_ROLE_PASSWORD")
    ] = None,
    address: Annotated[
        str, Parameter(help="where backups come from, for pg_hba.conf: 10.0.0.0/8, a host, samehost, samenet, all, local")
    ] = "samenet",
    large_objects: Annotated[bool, Parameter(help="let it read large objects; it can then change them, too")] = False,
    config_files: Annotated[
        bool, Parameter(help="let it read configuration outside the data folder, and every other file of the server's account")
    ] = False,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
    context: Context,
) -> None:
    """The role that backups log in as: print the SQL it lacks, as psql takes it, and its lines of pg_hba.conf; or run it.

    Exit 3 when it was run and the server's own files still keep the role out.
    """
    from clipper_backup.ops.setup_database import prepare_database, read_password
    from clipper_backup.postgres.backup_role import Wanted

    password = read_password(context.settings, password_file)
    if remove and (password_file is not None or large_objects or config_files):
        raise UsageError("--remove takes everything away: it goes with none of --password-file, --large-objects, --config-files")
    if remove and apply:
        context.confirm(f"Remove the role {role} from the server?", yes=yes)
    wanted = Wanted(role, large_objects, config_files)
    given = password if apply and not remove else None  # what is printed holds no password, and would set a wrong one
    done = prepare_database(context.settings, wanted, address=address, password=given, apply=apply, remove=remove)
    context.answer(_document(done), _text(done))
    if apply and done.left:
        raise IncompleteError(
            f"the role {role} is made, but backups cannot be taken yet: {'; '.join(done.left)}",
            hints=["edit pg_hba.conf as printed, then: SELECT pg_reload_conf()"] if done.hba.lines else [],
        )


def _document(done: "Prepared") -> dict[str, Any]:
    return {
        "schema": 1,
        "id": done.role,
        "database": done.database,
        "server_version": done.server_version,
        "removing": done.removing,
        "applied": done.applied,
        "statements": [statement.shown for statement in done.statements],
        "hba_lines": list(done.hba.lines),
        "hba_known": done.hba.known,
        "obstacles": list(done.obstacles),
        "unread_files": list(done.unread_files),
    }


def _text(done: "Prepared") -> str:
    """A script that psql runs: all that is no SQL is a comment."""
    lines = [f"-- PostgreSQL {done.server_version}, database {done.database}, role {done.role}"]
    lines += [f"{statement.shown};" for statement in done.statements]
    if not done.statements:
        lines.append("-- there is no such role" if done.removing else "-- the role lacks nothing")
    elif done.applied:
        lines.append("-- done")
    else:
        lines.append("-- nothing was changed: --apply runs it, or hand it to psql as a superuser")
        if not done.removing:
            lines.append(f"-- its password: --apply with --password-file, or psql's \\password {done.role}")
    if done.hba.lines:
        known = "" if done.hba.known else " (this login may not see which are there)"
        lines.append(f"-- pg_hba.conf lacks{known}, before lines that match more; `all` does not match replication:")
        lines += [f"--   {line}" for line in done.hba.lines]
        lines.append("-- then: SELECT pg_reload_conf();")
    lines += [f"-- {obstacle}" for obstacle in done.obstacles]
    if done.unread_files:
        lines.append(f"-- not in base backups without --config-files: {', '.join(done.unread_files)}")
    return "".join(f"{line}\n" for line in lines)
