"""A base backup whose files are read where the server has them, between pg_backup_start and pg_backup_stop.

It offers what `BaseBackup` offers, so that whoever stores files need not know which of the two it is.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from clipper_backup.clock import Clock
from clipper_backup.errors import IntegrityError, ServerError
from clipper_backup.postgres.backup_session import BackupSession, Stopped
from clipper_backup.postgres.base_backup import Damage, Member, Position, TablespaceInfo, check_nothing_lost, is_needed
from clipper_backup.postgres.connection import Login, connect, rows, translated
from clipper_backup.postgres.control_file import ControlFile
from clipper_backup.postgres.data_file import DataFile, PageChecks, read_whole
from clipper_backup.postgres.data_folder import DataFolder
from clipper_backup.postgres.data_proof import check_is_servers
from clipper_backup.postgres.data_walk import CONTROL, DataWalk, Found
from clipper_backup.values import Lsn

_LOOK_SECONDS = 5.0
"""Between two looks whether the session lives and the server is what it was: who copies for hours learns it soon."""
_CONTROL_TRIES, _CONTROL_AGAIN_SECONDS = 20, 0.02


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """A server's data folder as this process sees it, and what the server calls it."""

    path: Path
    server_path: str
    major: int


class FilesBackup:
    """A running backup: first `members`, and when all of them were read `control`, then `finish`.

    Leaving the context ends it in any case.

    Made when the checkpoint is done, and the folder was found to be the server's. `clock_ns` is a time of the folder's file
    system before which nothing was read. `done_bytes` is how much was read, of about `total_bytes`.
    """

    def __init__(
        self,
        login: Login,
        folder: ServerFolder,
        clock: Clock,
        label: str,
        checkpoint: Literal["fast", "spread"],
        *,
        known_below: Lsn | None = None,
        total_bytes: int = 0,
    ) -> None:
        """*known_below*: pages that are the parent's and have an older LSN were looked at by the parent."""
        self._folder, self._clock = folder, clock
        self._data = DataFolder(folder.path, clock)
        check_is_servers(self._data, login)
        self._session = BackupSession(login, label, checkpoint)
        try:
            control = check_is_servers(self._data, login)
            self.clock_ns = self._control_path.stat().st_mtime_ns
        except BaseException:
            self._session.__exit__(None, None, None)
            raise
        self.start = Position(self._session.lsn, control.timeline)
        self.total_bytes = total_bytes
        self.warnings: list[str] = []
        self._checks = PageChecks(
            control.page_bytes,
            control.relation_segment_pages,
            self.start.lsn,
            partial(_wal_end, login),
            clock,
            known_below if control.checksums else None,
        )
        self._checksums = control.checksums
        self._walk = DataWalk(os.fsencode(folder.path), folder.major, control.catalog, os.fsencode(folder.server_path))
        self._done_bytes = 0

    @property
    def _control_path(self) -> Path:
        return self._folder.path / os.fsdecode(CONTROL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._session.__exit__(kind, error, trace)

    @property
    def damaged(self) -> dict[bytes, Damage]:
        """The pages whose checksum stayed wrong, by path."""
        return self._checks.damaged

    @property
    def tablespaces(self) -> Sequence[TablespaceInfo]:
        """The tablespaces that were there when `members` began."""
        return self._walk.tablespaces

    @property
    def done_bytes(self) -> int:
        """How much of the files was handed out."""
        return self._done_bytes

    def members(self) -> "Iterator[tuple[Member, DataFile | Iterator[bytes]]]":
        """Everything that the server would send but pg_control. Whoever takes a DataFile closes it.

        ServerError when the session breaks, when the server is promoted, and when something is left out that the cluster needs.
        """
        look_at = self._clock.monotonic() + _LOOK_SECONDS
        skipped = 0
        for found in self._walk:
            if self._clock.monotonic() >= look_at:
                self._session.check()
                look_at = self._clock.monotonic() + _LOOK_SECONDS
            if len(self._walk.skipped) > skipped:
                self._tell_skipped(self._walk.skipped[skipped:])
                skipped = len(self._walk.skipped)
            if found.member.kind == "folder":
                yield found.member, iter(())
            elif (file := DataFile.open(found, self._checks if self._checksums else None)) is not None:
                at = file.identity
                self._done_bytes += at.size_bytes
                yield replace(found.member, mtime_ns=at.mtime_ns, size_bytes=at.size_bytes), file
        self._tell_skipped(self._walk.skipped[skipped:])
        self._session.check()

    def finish(self) -> Stopped:
        """End the backup, when all of its files were read. Errors as of `BackupSession.stop`."""
        return self._session.stop(self.start.timeline)

    def _tell_skipped(self, paths: Sequence[str]) -> None:
        self.warnings += [f'skipping special file "{path}"' for path in paths]
        check_nothing_lost([path for path in paths if is_needed(path)])

    def control(self) -> tuple[Member, bytes]:
        """The control file, whole. It is read behind all others: recovery of a standby's backup ends where it says.

        The server writes it in one go, and whoever reads it amid that sees a wrong checksum.
        """
        path = self._control_path
        for tries_left in reversed(range(_CONTROL_TRIES)):
            info = path.stat()
            member = Member(CONTROL, "file", info.st_mode & 0o7777, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_size)
            content = read_whole(Found(member, os.fsencode(path)))
            try:
                ControlFile.parse(content, str(path))
            except IntegrityError:
                if not tries_left:
                    raise
                self._clock.sleep(_CONTROL_AGAIN_SECONDS)
            else:
                break
        self._done_bytes += len(content)
        return member, content


def _wal_end(login: Login) -> Lsn:
    """How far the server's WAL goes that is on disk, or was replayed: no page that it wrote is newer."""
    with closing(connect(login)) as connection, translated("asking the server how far its WAL goes"):
        ((lsn,),) = rows(
            connection,
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text",
        )
    if lsn is None:
        raise ServerError("the server does not say how far its WAL goes")
    return Lsn.parse(lsn)
