"""The server's own WAL, held by a temporary slot and streamed: to compare what was archived with what the server wrote (B4).

A slot that was made before a backup begins keeps every segment from there on, whatever checkpoints come meanwhile; it ends with
its session. Needs a role with REPLICATION, a free slot and a free WAL sender, nothing else.
"""

import secrets
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from psycopg import pq

from clipper_backup.errors import ServerError
from clipper_backup.postgres.connection import Login, translated
from clipper_backup.postgres.replication import Replication
from clipper_backup.wal_names import Segment

_DATA, _KEEPALIVE = b"wk"
_DATA_HEADER_BYTES, _KEEPALIVE_REPLY_AT = 25, 17
_REPLY = b"r" + bytes(33)
"""A standby's status without any position: an answer to the server's question whether we live, which frees no WAL."""


class HeldWal:
    """All WAL of the server from now on stays until this context is left. For one thread."""

    def __init__(self, login: Login) -> None:
        self._replication = Replication(login)
        self._slot = f"clipper_backup_{secrets.token_hex(8)}"
        try:
            with translated("making a temporary replication slot, which holds the WAL of the backup"):
                self._replication.rows(f"CREATE_REPLICATION_SLOT {self._slot} TEMPORARY PHYSICAL RESERVE_WAL")
        except BaseException:
            self._replication.connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._replication.connection.close()

    def read(self, segment: Segment) -> Iterator[bytes]:
        """A segment as the server has it, in pieces; it waits until the server has written all of it.

        ServerError when the server does not have it any more, or is on another timeline.
        """
        with translated(f"reading {segment} from the server"):
            self._replication.send(
                f"START_REPLICATION SLOT {self._slot} PHYSICAL {segment.start} TIMELINE {int(segment.timeline)}"
            )
            self._replication.result(pq.ExecStatus.COPY_BOTH)
            position = int(segment.start)
            while position < segment.end:
                message = self._replication.copy_data()
                if message is None:
                    self._replication.result(pq.ExecStatus.COPY_BOTH)
                    raise ServerError(f"the server ended its WAL before the end of {segment}")
                if message[0] == _DATA:
                    begin = int.from_bytes(message[1:9], "big")
                    if begin != position:
                        raise ServerError(f"the server sent WAL of {begin:X} where that of {position:X} was due")
                    piece = bytes(message[_DATA_HEADER_BYTES:][: segment.end - position])
                    position += len(piece)
                    yield piece
                elif message[0] == _KEEPALIVE and message[_KEEPALIVE_REPLY_AT]:
                    self._replication.send_copy_data(_REPLY)
            self._replication.end_copy()
