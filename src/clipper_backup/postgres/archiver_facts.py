"""What a running server says of its archiver: how far it has written, and what waits to be archived."""

from dataclasses import dataclass
from datetime import datetime

import psycopg

from clipper_backup.postgres.connection import Connection, Login, connect, rows, translated
from clipper_backup.postgres.data_proof import data_directory
from clipper_backup.values import Lsn, Timeline

_ASKED = """
SELECT (SELECT system_identifier::text FROM pg_control_system()),
       pg_is_in_recovery(),
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn()::text END,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END,
       current_setting('archive_mode'),
       archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal, last_failed_time, now()
FROM pg_stat_archiver
"""
_READY = """
SELECT count(*), min(waits.modification), coalesce(sum(files.size), 0)::bigint
FROM pg_ls_archive_statusdir() waits LEFT JOIN pg_ls_waldir() files ON waits.name = files.name || '.ready'
WHERE waits.name LIKE '%.ready'
"""
_QUERY_SECONDS = 10
"""A person waits for the answer."""


@dataclass(frozen=True, slots=True)
class ArchiverFacts:
    """A server's archiver at `now`, by the server's clock.

    `lsn` is where it writes, on `timeline`; None while it is in recovery. `ready` files wait, the oldest since `ready_since`,
    with `ready_bytes` together; None where the role may not look. `failing`: the last try failed.
    """

    system_id: str
    archives: bool
    lsn: Lsn | None
    timeline: Timeline | None
    ready: int | None
    ready_since: datetime | None
    ready_bytes: int | None
    archived: int
    last_archived: str | None
    last_archived_at: datetime | None
    failed: int
    last_failed: str | None
    last_failed_at: datetime | None
    now: datetime

    @property
    def failing(self) -> bool:
        """Whether the last try to archive a file failed."""
        failed, archived = self.last_failed_at, self.last_archived_at
        return failed is not None and (archived is None or failed > archived)


def read_archiver(login: Login) -> ArchiverFacts:
    """Ask the server. AccessError when the login is refused, ServerError when it does not answer."""
    with connect(login) as connection, translated("asking for the state of the archiver"):
        connection.execute(f"SET statement_timeout = '{_QUERY_SECONDS}s'".encode())
        row = connection.execute(_ASKED).fetchone()
        assert row is not None  # noqa: S101  pg_stat_archiver has one row
        system_id, _, lsn, segment, mode, archived, last, last_at, failed, last_failed, last_failed_at, now = row
        try:
            ready = connection.execute(_READY).fetchone()
        except psycopg.errors.InsufficientPrivilege:  # it is for pg_monitor
            ready = None
    return ArchiverFacts(
        system_id=system_id,
        archives=mode != "off",
        lsn=None if lsn is None else Lsn.parse(lsn),
        timeline=None if segment is None else Timeline.parse(segment[:8]),
        ready=None if ready is None else ready[0],
        ready_since=None if ready is None else ready[1],
        ready_bytes=None if ready is None else ready[2],
        archived=archived,
        last_archived=last,
        last_archived_at=last_at,
        failed=failed,
        last_failed=last_failed,
        last_failed_at=last_failed_at,
        now=now,
    )


@dataclass(frozen=True, slots=True)
class Archiving:
    """How a server is set up to archive. `off_because` says why it archives nothing, None where it does.

    `wal_bytes` is the size of pg_wal, None where the role may not look; `limit_bytes` is what it may grow to between two
    checkpoints, or keeps anyway. `data_directory` is None where the role may not know it.
    """

    off_because: str | None
    wal_bytes: int | None
    limit_bytes: int
    data_directory: str | None


def read_archiving(connection: Connection) -> Archiving:
    """Ask the server for what decides whether, and where to, its WAL goes."""
    with translated("asking how the server archives"):
        ((mode, command, library, level, limit),) = rows(
            connection,
            "SELECT current_setting('archive_mode'), current_setting('archive_command'), current_setting('archive_library'),"
            " current_setting('wal_level'), greatest(pg_size_bytes(current_setting('max_wal_size')),"
            " pg_size_bytes(current_setting('wal_keep_size')))",
        )
        try:
            ((wal_bytes,),) = rows(connection, "SELECT sum(size)::bigint FROM pg_ls_waldir()")
        except psycopg.errors.InsufficientPrivilege:  # it is for pg_monitor
            wal_bytes = None
    off_because = None
    if level == "minimal":
        off_because = "wal_level is minimal"
    elif mode == "off":
        off_because = "archive_mode is off"
    elif not command and not library:
        off_because = "archive_command is empty"
    return Archiving(off_because, wal_bytes, limit, data_directory(connection))
