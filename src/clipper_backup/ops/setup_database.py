"""`setup database`: the role that backups log in as, printed as SQL or made; and what the server's own files must say for it."""

from dataclasses import dataclass
from pathlib import Path

from clipper_backup.config import Settings
from clipper_backup.errors import AccessError, ClipperError, ServerError, UsageError
from clipper_backup.ops.work import login_of
from clipper_backup.postgres import backup_role
from clipper_backup.postgres.backup_role import Hba, Statement, Wanted
from clipper_backup.postgres.connection import Connection, connect
from clipper_backup.postgres.server_facts import server_facts
from clipper_backup.values import Secret

OLDEST_MAJOR = 15
"""Its backup functions have other names before that."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What there is to do, and what was done: `statements` were run when `applied`.

    `hba` and `obstacles` are left to a person: PostgreSQL's own files and settings are not changed. `unread_files` is
    configuration outside the data folder, which no base backup holds unless the role may read such files.
    """

    role: str
    database: str
    server_version: str
    removing: bool
    applied: bool
    statements: tuple[Statement, ...]
    hba: Hba
    obstacles: tuple[str, ...]
    unread_files: tuple[str, ...]

    @property
    def left(self) -> list[str]:
        """What stands in the way of backups still, for people."""
        if self.removing:
            return []
        lines = [f"pg_hba.conf has no line like `{' '.join(line.split())}`" for line in self.hba.lines if self.hba.known]
        return [*lines, *self.obstacles]


def read_password(settings: Settings, file: Path | None) -> Secret | None:
    """The new role's password: the first line of *file*, or BACKUP_ROLE_PASSWORD; UsageError for both, or an empty one."""
    if file is None:
        return settings.backup_role_password
    if settings.backup_role_password is not None:
        raise UsageError(
            "the role's password comes from --password-file and from BACKUP_ROLE_PASSWORD", hints=["give one of them"]
        )
    try:
        text = file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ClipperError(f"cannot read the password file {file}: {said}") from error
    if not text or "\0" in text:
        raise UsageError(f"the password file {file} begins with an empty line, or with what is no password")
    return Secret(text)


def prepare_database(
    settings: Settings, wanted: Wanted, *, address: str, password: Secret | None = None, apply: bool, remove: bool
) -> Prepared:
    """Look at the server that the settings name; with *apply* run what is missing, or with *remove* what takes it away.

    All statements are run or none. AccessError where this login may not, ServerError for a server that is too old, or in
    recovery.
    """
    backup_role.check_address(address)
    with connect(login_of(settings)) as connection:
        facts = server_facts(connection)
        if facts.major < OLDEST_MAJOR:
            raise ServerError(f"the server is PostgreSQL {facts.version}; base backups need {OLDEST_MAJOR} or newer")
        if apply and facts.in_recovery:
            raise ServerError("the server is a standby: roles are made on its primary", hints=["set PGHOST to the primary"])
        if remove:
            statements = backup_role.removing_statements(connection, wanted.role)
        else:
            statements = backup_role.missing_statements(connection, wanted, password)
        if apply:
            _run(connection, statements, wanted.role)
        outside = [] if remove or wanted.config_files else backup_role.configuration_outside(connection)
        return Prepared(
            role=wanted.role,
            database=connection.info.dbname,
            server_version=facts.version,
            removing=remove,
            applied=apply,
            statements=tuple(statements),
            hba=Hba((), known=True) if remove else backup_role.missing_hba_lines(connection, wanted.role, address),
            obstacles=() if remove else tuple(backup_role.obstacles(connection)),
            unread_files=tuple(outside),
        )


def _run(connection: Connection, statements: list[Statement], role: str) -> None:
    try:
        backup_role.run(connection, statements)
    except AccessError as error:
        hints = ["log in as a superuser: PGUSER=postgres", "or hand what is printed without --apply to somebody who is one"]
        raise AccessError(error.message, hints=hints) from error
    except ServerError as error:
        if "cannot be dropped because some objects depend on it" not in error.message:
            raise
        hints = [
            "functions granted in another database: `clipper-backup setup database --remove --pgdatabase NAME` shows them",
            f"what {role} owns, or was granted by others, is theirs to move or revoke: REASSIGN OWNED, DROP OWNED",
        ]
        raise ServerError(error.message, hints=hints) from error
