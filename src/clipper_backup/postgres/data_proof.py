"""Whether a folder is the data folder of the server that answers: a clone, another mount or a standby's looks much the same."""

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.errors import ClipperError, IntegrityError, MissingError
from clipper_backup.postgres.connection import Connection, Login, connect, rows, translated
from clipper_backup.postgres.control_file import ControlFile
from clipper_backup.postgres.data_folder import DataFolder
from clipper_backup.values import Lsn

_DATA, _STARTED, _PORT = 1, 2, 3
"""Lines of postmaster.pid, from 0 (pidfile.h)."""
_START_SECONDS = 300
"""Between the lock file's time and what pg_postmaster_start_time() says lies the set-up of shared memory."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What only the running server knows: its pg_control, as it reads it itself, moves with it."""

    system_id: str
    positions: tuple[Lsn, Lsn, Lsn]
    timeline: int


def data_directory(connection: Connection) -> str | None:
    """Where the server says that its data folder is; None where this role may not know it."""
    with translated("asking the server for its data folder"):
        found = rows(connection, "SELECT setting FROM pg_settings WHERE name = 'data_directory'")
    return str(found[0][0]) if found else None


def find_data_folder(login: Login, named: Path | None, told: str | None) -> Path:
    """The folder that is *named*, or else the one that the server *told*; MissingError when that is none."""
    if named is None and told is None:
        raise MissingError(
            "the server does not say where its data folder is, and PGDATA is not set",
            hints=["set PGDATA to the server's data folder as this process sees it"],
        )
    path = named or Path(told or "")
    if not (path / "PG_VERSION").is_file() or not (path / "global/pg_control").is_file():
        raise MissingError(
            f"{path} is no data folder of PostgreSQL" + ("" if os.access(path, os.R_OK | os.X_OK) else ", or cannot be read"),
            hints=[
                f"BASE_SOURCE=files reads the files of the server at {login.where}: PGDATA must say where they are mounted here",
                "elsewhere than beside the server: BASE_SOURCE=protocol",
            ],
        )
    return path


def check_is_servers(folder: DataFolder, login: Login) -> ControlFile:
    """The control file of the data folder that the server runs on. IntegrityError when it is another's."""
    with closing(connect(login)) as connection:
        _check_postmaster(folder.path, connection, login)
        before = _told(connection)
        control = folder.control()
        after = _told(connection)
    found = (control.checkpoint, control.redo, control.minimum_recovery_end)
    if control.system_id != before.system_id:
        raise _other(folder.path, login, f"its pg_control is of the system {control.system_id}, the server is {before.system_id}")
    fits = all(low <= at <= high for low, at, high in zip(before.positions, found, after.positions, strict=True))
    if not (fits and int(control.timeline) in {before.timeline, after.timeline}):
        raise _other(
            folder.path,
            login,
            f"its pg_control has the checkpoint {control.checkpoint} of timeline {int(control.timeline)}, the server's own"
            f" {after.positions[0]} of timeline {after.timeline}",
        )
    return control


def _told(connection: Connection) -> _Told:
    with translated("asking the server for its pg_control"):
        ((system_id, checkpoint, redo, timeline, end),) = rows(
            connection,
            "SELECT s.system_identifier::text, c.checkpoint_lsn::text, c.redo_lsn::text, c.timeline_id,"
            " r.min_recovery_end_lsn::text"
            " FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r",
        )
    return _Told(str(system_id), (Lsn.parse(checkpoint), Lsn.parse(redo), Lsn.parse(end)), int(timeline))


def _check_postmaster(path: Path, connection: Connection, login: Login) -> None:
    """The lock file, as far as the server says the same of itself: path and port are its own words in both."""
    try:
        lines = (path / "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        raise _other(path, login, "no server runs on it (it has no postmaster.pid)") from None
    except OSError as error:
        raise ClipperError(f"cannot read {path / 'postmaster.pid'}: {(error.strerror or str(error)).lower()}") from error
    if len(lines) <= _PORT:
        raise _other(path, login, "its postmaster.pid is cut short")
    with translated("asking the server for its data folder"):
        ((seconds, port),) = rows(
            connection, "SELECT extract(epoch FROM pg_postmaster_start_time())::bigint, current_setting('port')"
        )  # fmt: skip
    directory = data_directory(connection)
    if directory is not None and lines[_DATA] != directory:
        raise _other(path, login, f"its postmaster.pid says {lines[_DATA]}, the server's data_directory is {directory}")
    if lines[_PORT] != port:
        raise _other(path, login, f"the server on it listens on port {lines[_PORT]}, this one on {port}")
    if not lines[_STARTED].isdigit() or abs(int(seconds) - int(lines[_STARTED])) > _START_SECONDS:
        raise _other(path, login, "its server was started at another time than this one")


def _other(path: Path, login: Login, why: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is not the data folder of the server at {login.where}: {why}",
        hints=[
            "PGDATA must be the folder of the very server that PGHOST and PGPORT lead to, not a standby's, a clone's or a copy",
            "to take the files over the connection instead: BASE_SOURCE=protocol",
        ],
    )
