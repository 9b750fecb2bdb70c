"""The SQL session of a low-level base backup: pg_backup_start, and pg_backup_stop in the same session (rules 26, 33).

The backup lives and dies with the session: one that breaks is never continued in another, and never stopped twice.
"""

import re
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from clipper_backup.errors import ServerError
from clipper_backup.postgres.base_backup import Position
from clipper_backup.postgres.connection import Connection, Login, connect, rows, translated
from clipper_backup.values import Lsn, Timeline

_DOING = "taking the base backup"
_START = re.compile(rb"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) \(file [0-9A-F]{24}\)$", re.MULTILINE)
_TIMELINE = re.compile(rb"^START TIMELINE: ([0-9]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Stopped:
    """What pg_backup_stop said: where the backup ends, and its two files, byte for byte (rule 27)."""

    end: Position
    label: bytes
    tablespace_map: bytes


def lacks_functions(connection: Connection) -> list[str]:
    """The functions of such a backup that this role may not call in this database."""
    with translated("asking for the role's privileges"):
        return [
            name
            for name in ("pg_backup_start(text,boolean)", "pg_backup_stop(boolean)")
            if rows(connection, "SELECT has_function_privilege(%s, 'EXECUTE')", [f"pg_catalog.{name}"]) != [(True,)]
        ]


class BackupSession:
    """A backup that has begun. Leaving the context ends the session, and with it a backup that was not stopped.

    No time-out of the server ends the session, and keepalives go through it (`connect`). For one thread.
    """

    def __init__(self, login: Login, label: str, checkpoint: Literal["fast", "spread"]) -> None:
        self._connection: Connection = connect(login)
        try:
            with translated(_DOING):
                # As bytes: a label is ours, but server_encoding may be anything, and text of the backup's files is bytes.
                ((lsn, in_recovery),) = rows(
                    self._connection,
                    "SELECT pg_backup_start(label => %s, fast => %s)::text, pg_is_in_recovery()",
                    [label, checkpoint == "fast"],
                )
        except BaseException:
            self._connection.close()
            raise
        self.lsn = Lsn.parse(lsn)
        self.in_recovery: bool = in_recovery

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def check(self) -> None:
        """ServerError when the session broke, or the server was promoted: what is copied then is no backup (B3)."""
        with translated(_DOING):
            ((in_recovery,),) = rows(self._connection, "SELECT pg_is_in_recovery()")
        if in_recovery != self.in_recovery:
            raise promoted()

    def stop(self, timeline: Timeline) -> Stopped:
        """End the backup that began on *timeline*.

        ServerError when the session broke, when the server says that it is none, and when it is on another timeline by now.
        """
        with translated(_DOING):
            ((lsn, label, tablespaces),) = rows(
                self._connection,
                "SELECT lsn::text, convert_to(labelfile, getdatabaseencoding()), convert_to(spcmapfile, getdatabaseencoding())"
                " FROM pg_backup_stop(wait_for_archive => false)",
            )
            stopped_on = timeline
            if self.in_recovery:
                ((number, still),) = rows(
                    self._connection, "SELECT min_recovery_end_timeline, pg_is_in_recovery() FROM pg_control_recovery()"
                )
                if not still:
                    raise promoted()
                stopped_on = Timeline(int(number))
        started = (_START.search(label), _TIMELINE.search(label))
        if not all(started) or [each[1].decode() for each in started if each] != [str(self.lsn), str(int(timeline))]:
            raise ServerError(
                f"the server's backup_label speaks of another start than {self.lsn} on timeline {int(timeline)}",
                hints=["it was promoted, or follows a server that was: the backup cannot be used, take another"],
            )
        if stopped_on != timeline:
            raise ServerError(
                f"the server went from timeline {int(timeline)} to {int(stopped_on)} during the backup",
                hints=["it was promoted, or follows a server that was: the backup cannot be used, take another"],
            )
        return Stopped(Position(Lsn.parse(lsn), timeline), bytes(label), bytes(tablespaces))


def promoted() -> ServerError:
    """A standby that is none any more."""
    return ServerError(
        f"{_DOING}: the standby was promoted during online backup",
        hints=["what was copied cannot be used: take another backup, of the new primary"],
    )
