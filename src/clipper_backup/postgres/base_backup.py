"""BASE_BACKUP: everything a server has, as files, over a replication connection (PostgreSQL 15 and later).

Its messages are those of "Streaming Replication Protocol" in PostgreSQL's manual, its archives those of src/port/tar.c: ustar
headers, without extensions (a path of 100 bytes or more is an error of the server's), sizes beyond 8 GiB in base 256.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGresult

from clipper_backup.errors import ServerError
from clipper_backup.postgres.connection import translated
from clipper_backup.postgres.replication import Replication, first_row
from clipper_backup.values import Lsn, Timeline

Piece = bytes | memoryview

_BLOCK = 512
_ARCHIVE, _DATA, _MANIFEST, _PROGRESS = b"ndmp"
"""What the first byte of a CopyData message says."""
_DOING = "taking the base backup"
_DATA_CORRUPTED = "XX001"
_BAD_PAGE = re.compile(r"checksum verification failed in file .*, block ([0-9]+): calculated")
_BAD_PAGES = re.compile(r"file .* has a total of ([0-9]+) checksum verification failure")
"""basebackup.c, five pages of a file at most, then how many it has. In another language only that some page is bad is known."""
_QUOTES = "\"'\u00ab\u00bb\u201c\u201d\u201e"
_SKIPPED = re.compile(rf"[{_QUOTES}]\s?(.+?)\s?[{_QUOTES}]")
_SKIPS_IN = "sendDir"
"""What that function of basebackup.c warns of is what it leaves out, in whatever language: links that are no tablespaces."""
_NEEDED = frozenset(
    {"PG_VERSION", "base", "global", "pg_commit_ts", "pg_logical", "pg_multixact", "pg_tblspc", "pg_twophase", "pg_xact"}
)
"""What of PGDATA no cluster starts without. Temporary files, and what is made anew at a start, are skipped without a warning."""
_KINDS: dict[bytes, Literal["file", "folder", "link"]] = {b"0": "file", b"\0": "file", b"5": "folder", b"2": "link"}


@dataclass(frozen=True, slots=True)
class Position:
    """Where in which history."""

    lsn: Lsn
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class TablespaceInfo:
    """A tablespace other than the two of every cluster: `path` is where its files are on the server."""

    oid: int
    path: bytes


@dataclass(frozen=True, slots=True)
class Member:
    """One thing of the cluster; `path` is relative to PGDATA, that of a tablespace's file begins with `pg_tblspc/<oid>/`.

    `mode` is the low 12 bits; `target` is where a link leads.
    """

    path: bytes
    kind: Literal["file", "folder", "link"]
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int
    target: bytes = b""


@dataclass(slots=True)
class Damage:
    """Pages of one file whose checksum was wrong twice: how many, and the numbers in the file of those the server named."""

    count: int = 0
    pages: list[int] = field(default_factory=list)


class BaseBackup:
    """A running BASE_BACKUP: first `members`, then `manifest`, then `finish`; each to its end.

    Made when the checkpoint is done and the server has said where it begins. Leaving the context ends the session, and with it
    a backup that is not finished. `done_bytes` is how much the server says it sent, of about `total_bytes`.
    """

    def __init__(self, replication: Replication, label: str, checkpoint: Literal["fast", "spread"]) -> None:
        self._replication = replication
        self._stream = _Stream(replication)
        self._current = b""
        self.damaged: dict[bytes, Damage] = {}
        self.warnings: list[str] = []
        self._lost: list[str] = []
        quoted = label.replace("'", "''")
        replication.connection.add_notice_handler(self._noticed)
        with translated(_DOING):
            replication.send(
                f"BASE_BACKUP (LABEL '{quoted}', CHECKPOINT '{checkpoint}', WAIT 0, TABLESPACE_MAP, PROGRESS,"
                " MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
            )
            lsn, timeline = first_row(replication.result(pq.ExecStatus.TUPLES_OK))
            listed = replication.result(pq.ExecStatus.TUPLES_OK)
            replication.result(pq.ExecStatus.COPY_OUT)
        self.start = Position(Lsn.parse(lsn.decode()), Timeline(int(timeline)))
        self.tablespaces, self.total_bytes = _tablespaces(listed)

    @property
    def done_bytes(self) -> int:
        """What the server has sent by its own count."""
        return self._stream.done_bytes

    def members(self) -> Iterator[tuple[Member, Iterator[Piece]]]:
        """Everything in the server's order, tablespaces first; a file's content in pieces, at once and to its end.

        `backup_label` and `tablespace_map` are among them, `global/pg_control` comes last. ServerError when the session breaks,
        or when the server ends the backup: it was promoted, shut down, or the file is gone that it was reading; and when it
        leaves out what the cluster needs.
        """
        with translated(_DOING):
            while (folder := self._stream.next_archive()) is not None:
                while (header := self._stream.take(_BLOCK)) != bytes(_BLOCK):
                    check_nothing_lost(self._lost)
                    member = _member(header, folder)
                    self._current = member.path
                    content = self._content(member.size_bytes)
                    yield member, content
                    for _ in content:
                        raise ServerError(f"{_shown(member.path)} was not read to its end")
                    self._stream.take(-member.size_bytes % _BLOCK)
                if self._stream.take(_BLOCK) != bytes(_BLOCK):
                    raise ServerError(f"the server's archive {_shown(folder)} goes on behind its end")

    def _content(self, size_bytes: int) -> Iterator[Piece]:
        with translated(_DOING):
            yield from self._stream.pieces(size_bytes)

    def manifest(self) -> Iterator[bytes]:
        """The server's backup_manifest, with CRC-32C of each file.

        SHA-256 costs the server a fifth more, and what is stored has digests of ours.
        """
        with translated(_DOING):
            yield from self._stream.manifest()

    def finish(self) -> Position:
        """Where the backup ended. ServerError when the server says that it is none, or is on another timeline by now (B3)."""
        stop = None
        with translated(_DOING):
            while (result := self._replication.next_result()) is not None:
                if result.status == pq.ExecStatus.TUPLES_OK and stop is None:
                    lsn, timeline = first_row(result)
                    stop = Position(Lsn.parse(lsn.decode()), Timeline(int(timeline)))
                elif result.status == pq.ExecStatus.FATAL_ERROR:
                    # The last of all, when the backup is whole: what was sent has pages with wrong checksums.
                    if result.error_field(pq.DiagnosticField.SQLSTATE) != _DATA_CORRUPTED.encode() or stop is None:
                        raise error_from_result(result)
                    if not self.damaged:
                        self.damaged[b""] = Damage(1)
        check_nothing_lost(self._lost)
        if stop is None:
            raise ServerError(f"{_DOING}: the server did not say where it ends")
        if stop.timeline != self.start.timeline:
            raise ServerError(
                f"the server went from timeline {self.start.timeline} to {stop.timeline} during the backup",
                hints=["it was promoted, or follows a server that was: the backup cannot be used, take another"],
            )
        return stop

    def _noticed(self, said: psycopg.errors.Diagnostic) -> None:
        # It comes between the messages with the content of the file that it is about.
        text = said.message_primary or ""
        if said.severity_nonlocalized == "WARNING":
            self.warnings.append(text)
            if said.source_function == _SKIPS_IN and (path := skipped_path(text)) is not None and is_needed(path):
                self._lost.append(path)
        if (page := _BAD_PAGE.match(text)) is not None:
            damage = self.damaged.setdefault(self._current, Damage())
            damage.pages.append(int(page[1]))
            damage.count += 1
        elif (total := _BAD_PAGES.match(text)) is not None:
            self.damaged.setdefault(self._current, Damage()).count = int(total[1])


def check_nothing_lost(paths: Sequence[str]) -> None:
    """ServerError when any of *paths*, which no base backup holds, is what a cluster needs (B6)."""
    if paths:
        raise ServerError(
            f"the server leaves out {', '.join(paths)}: a link, or no file at all, which no base backup holds",
            hints=[
                "stop the server, put in place of the link what it leads to, and start it again",
                "to keep data elsewhere, make a tablespace there: those are backed up",
            ],
        )


def skipped_path(text: str) -> str | None:
    """The path in the server's warning that it skips something: from PGDATA on, absolute in a tablespace."""
    found = _SKIPPED.search(text)
    return None if found is None else found[1].removeprefix("./")


def is_needed(path: str) -> bool:
    """Whether a cluster without it is none."""
    return path.startswith("/") or path.split("/", 1)[0] in _NEEDED


def _tablespaces(result: PGresult) -> tuple[Sequence[TablespaceInfo], int]:
    found, total_kb = [], 0
    for row in range(result.ntuples):
        oid, path, kilobytes = (result.get_value(row, column) for column in range(3))
        total_kb += int(kilobytes or 0)
        if oid is not None and path is not None:
            found.append(TablespaceInfo(int(oid), path))
    return tuple(found), total_kb << 10


class _Stream:
    """The CopyData messages as archives, and the manifest behind them."""

    def __init__(self, replication: Replication) -> None:
        self._replication = replication
        self._rest = memoryview(b"")
        self.done_bytes = 0

    def _message(self) -> memoryview | None:
        """The next one that is no progress; its first byte says what it is."""
        while (message := self._replication.copy_data()) is not None and message[0] == _PROGRESS:
            self.done_bytes = int.from_bytes(message[1:9], "big")
        return message

    def next_archive(self) -> bytes | None:
        """The folder below which the next archive's members belong, empty for PGDATA; None when the manifest comes."""
        message = self._message()
        if self._rest or message is None or message[0] not in {_ARCHIVE, _MANIFEST}:
            raise self._unexpected(message, "the server sent something else than the next archive")
        if message[0] == _MANIFEST:
            return None
        name = bytes(message[1:]).split(b"\0", 1)[0]
        return b"" if name == b"base.tar" else b"pg_tblspc/" + name.removesuffix(b".tar") + b"/"

    def pieces(self, size_bytes: int) -> Iterator[Piece]:
        """The next *size_bytes* of the archive, as they lie in the messages."""
        while size_bytes:
            if not self._rest:
                self._fill()
            piece = self._rest[:size_bytes]
            self._rest = self._rest[len(piece) :]
            size_bytes -= len(piece)
            yield piece

    def take(self, size_bytes: int) -> bytes:
        """The same, at once."""
        return b"".join(self.pieces(size_bytes))

    def manifest(self) -> Iterator[bytes]:
        """What follows the last archive."""
        while (message := self._message()) is not None:
            if message[0] != _DATA:
                raise ServerError(f"{_DOING}: the server sent something else than its manifest")
            yield bytes(message[1:])

    def _fill(self) -> None:
        while not self._rest:
            message = self._message()
            if message is None or message[0] != _DATA:
                raise self._unexpected(message, "the server's archive ends too early")
            self._rest = message[1:]

    def _unexpected(self, message: memoryview | None, what: str) -> ServerError:
        """The server's own error, raised, when that is why there is no message."""
        if message is None:
            self._replication.result(pq.ExecStatus.TUPLES_OK)
        return ServerError(f"{_DOING}: {what}")


def _member(header: bytes, folder: bytes) -> Member:
    """Read a header; ServerError when it is none that PostgreSQL writes."""
    kind = _KINDS.get(header[156:157])
    name = header[:100].rstrip(b"\0")
    if kind is None or sum(header) - sum(header[148:156]) + 8 * 0x20 != _number(header[148:156]) or header[257:262] != b"ustar":
        raise ServerError(f"{_DOING}: the server sent a header of its archive that cannot be read, near {_shown(name)}")
    if prefix := header[345:500].rstrip(b"\0"):
        name = prefix + b"/" + name
    return Member(
        path=folder + name.removeprefix(b"./").rstrip(b"/"),
        kind=kind,
        mode=_number(header[100:108]) & 0o7777,
        uid=_number(header[108:116]),
        gid=_number(header[116:124]),
        mtime_ns=_number(header[136:148]) * 10**9,
        size_bytes=_number(header[124:136]) if kind == "file" else 0,
        target=header[157:257].rstrip(b"\0") if kind == "link" else b"",
    )


def _number(digits: bytes) -> int:
    """Octal digits, or base 256 with the first bit set."""
    if digits[0] & 0x80:
        return int.from_bytes(digits, "big") & ((1 << 8 * len(digits) - 1) - 1)
    return int(digits.rstrip(b" \0") or b"0", 8)


def _shown(path: bytes) -> str:
    return repr(path.decode(errors="backslashreplace"))
