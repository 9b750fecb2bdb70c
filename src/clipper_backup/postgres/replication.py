"""Replication connections: walsender commands and CopyData through psycopg.pq, without ever waiting where a signal is not heard.

PostgreSQL matches them with hba lines for `replication`, which `all` does not. The session has no SQL; time-outs are set as it
begins (rule 33).
"""

import select
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from psycopg import pq
from psycopg.errors import UndefinedFile, error_from_result
from psycopg.pq.abc import PGresult

from clipper_backup.errors import ServerError
from clipper_backup.postgres.connection import Connection, Login, connect_replication, translated
from clipper_backup.postgres.history import Ancestor, parse_history
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import history_name

_LOOK_SECONDS = 1.0


class Replication:
    """One session; not safe to use from several threads at once. Leaving the context ends it.

    Raises psycopg's errors: callers wrap what they do in `translated`.
    """

    def __init__(self, login: Login) -> None:
        self.connection: Connection = connect_replication(login)
        self._pg = self.connection.pgconn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.connection.close()

    def send(self, command: str) -> None:
        """Begin a command; its results follow."""
        self._pg.send_query(command.encode())
        self._flush()

    def next_result(self) -> PGresult | None:
        """The next result of the command, of whatever status; None behind the last."""
        while self._pg.is_busy():
            self._wait()
        return self._pg.get_result()

    def result(self, wanted: pq.ExecStatus) -> PGresult:
        """The next result; psycopg's error for one that says so."""
        result = self.next_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result)
        if result is None or result.status != wanted:
            raise ServerError(f"the server answered {result and pq.ExecStatus(result.status).name} instead of {wanted.name}")
        return result

    def copy_data(self) -> memoryview | None:
        """The next CopyData message; None when the server has sent its last."""
        while True:
            size, data = self._pg.get_copy_data(1)
            if size > 0:
                return data
            if size < 0:
                return None
            self._wait()

    def send_copy_data(self, message: bytes) -> None:
        """Send a CopyData message of ours."""
        self._pg.put_copy_data(message)
        self._flush()

    def end_copy(self) -> None:
        """End a copy in both directions: our half, then what the server still sends. The session takes commands again."""
        self._pg.put_copy_end()
        self._flush()
        while self.copy_data() is not None:
            pass
        while (result := self.next_result()) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise error_from_result(result)

    def rows(self, command: str) -> list[Sequence[bytes | None]]:
        """All rows of a command that answers with one table."""
        self.send(command)
        result = self.result(pq.ExecStatus.TUPLES_OK)
        while self.next_result() is not None:
            pass
        return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]

    def _flush(self) -> None:
        while self._pg.flush():
            select.select([], [self._pg.socket], [], _LOOK_SECONDS)

    def _wait(self) -> None:
        # In slices: libpq's own waiting would go on after a signal until the server says something.
        while not select.select([self._pg.socket], [], [], _LOOK_SECONDS)[0]:
            pass
        self._pg.consume_input()


def ancestors_of(replication: Replication, timeline: Timeline) -> list[Ancestor] | None:
    """TIMELINE_HISTORY: which timelines came before one of the server's; None where the server has that file no more."""
    if timeline == 1:
        return []
    with translated("asking the server for its history"):
        try:
            ((_, content),) = replication.rows(f"TIMELINE_HISTORY {int(timeline)}")
        except UndefinedFile:
            return None
    return parse_history(content or b"", history_name(timeline))


def first_row(result: PGresult) -> tuple[bytes, bytes]:
    """The first two values of a result's only row."""
    first, second = result.get_value(0, 0), result.get_value(0, 1)
    if first is None or second is None:
        raise ServerError("the server answered with an empty row")
    return first, second


def identify(replication: Replication) -> tuple[str, Timeline, Lsn]:
    """IDENTIFY_SYSTEM: the system id, the timeline the server is on, and how far its WAL is written (a standby's: replayed)."""
    with translated("asking the server who it is"):
        ((system_id, timeline, lsn, *_),) = replication.rows("IDENTIFY_SYSTEM")
    if system_id is None or timeline is None or lsn is None:
        raise ServerError("the server does not say who it is")
    return system_id.decode(), Timeline(int(timeline)), Lsn.parse(lsn.decode())
