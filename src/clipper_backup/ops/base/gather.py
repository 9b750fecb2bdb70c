"""The server's files on their way into packs and into the table, where each line waits until its content lies somewhere."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clipper_backup.errors import ServerError
from clipper_backup.format.manifest import File, Folder, Outside, Tablespace, as_part, as_path, as_target
from clipper_backup.ops.base.table import EntrySorter, KnownFiles
from clipper_backup.ops.base.unchanged import Unchanged
from clipper_backup.ops.work import Step
from clipper_backup.postgres.base_backup import Damage, Member, Piece, TablespaceInfo
from clipper_backup.postgres.cluster_facts import OutsideFile
from clipper_backup.postgres.data_file import DataFile
from clipper_backup.postgres.wal_files import FileIdentity
from clipper_backup.repository.pack_writer import PendingPart, RunWriter

CONTROL, LABEL, TABLESPACE_MAP = b"global/pg_control", b"backup_label", b"tablespace_map"
_OWN = frozenset({LABEL, TABLESPACE_MAP})
"""What the server wrote for this backup alone; each is an object of its own, and no file of the table (rule 27)."""
_WAITING_MAX = 4096
"""Files whose place was not known when they were read, before those are looked for that have one by now."""
_TABLESPACES = b"pg_tblspc"
_DEFAULT_TABLESPACE = 1663
_OF_DATABASE = re.compile(rb"(?:base|pg_tblspc/(?P<tablespace>[0-9]+)/[^/]+)/(?P<database>[0-9]+)/PG_VERSION")
"""A database has this file in the tablespace that is its own."""
_OUTSIDE_MODE = 0o600
"""The server tells no more of a file outside PGDATA than its size and time."""


class Sending(Protocol):
    """A running base backup, whatever its source; `done_bytes` of about `total_bytes` were handed out."""

    @property
    def damaged(self) -> dict[bytes, Damage]:
        """Pages with wrong checksums, by path."""
        ...

    @property
    def tablespaces(self) -> Sequence[TablespaceInfo]:
        """Known when the last member has come."""
        ...

    @property
    def done_bytes(self) -> int:
        """So far."""
        ...

    @property
    def total_bytes(self) -> int:
        """About."""
        ...

    def members(self) -> Iterator[tuple[Member, DataFile | Iterator[Piece]]]:
        """Each folder and file, the content as a stream or as a file that is open."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    member: Member
    pending: PendingPart
    identity: FileIdentity | None = None
    outside: bool = False


class Gathering:
    """Takes the members of a base backup, in the server's order, from one thread.

    `own` is what the server wrote for this backup alone, `control` the content of pg_control. `databases` are tablespace and
    OID of each database whose folder was there, `inside` the files of PGDATA that are of no database.
    """

    def __init__(self, writer: RunWriter, known: KnownFiles | None, sorter: EntrySorter) -> None:
        self._writer, self._known, self._sorter = writer, known, sorter
        self._unchanged: Unchanged | None = None
        self._waiting: list[_Waiting] = []
        self._folders: dict[bytes, Member] = {}
        self._damaged: dict[bytes, Damage] = {}
        self.own: dict[bytes, bytes] = {}
        self.control = b""
        self.databases: set[tuple[int, int]] = set()
        self.inside: set[str] = set()

    @property
    def damaged_pages(self) -> int:
        """How many pages had wrong checksums."""
        return sum(damage.count for damage in self._damaged.values())

    def take_members(self, backup: Sending, running: Step, unchanged: Unchanged | None = None) -> None:
        """Everything that the server sends. *unchanged* says which of the known files need not be read; None: all are."""
        self._damaged, self._unchanged = backup.damaged, unchanged
        for member, content in backup.members():
            self._take(member, content)
            running.progress(backup.done_bytes, max(backup.total_bytes, backup.done_bytes))
        for tablespace in backup.tablespaces:
            self._take_tablespace(tablespace)

    def take_control(self, member: Member, content: bytes) -> None:
        """The control file, which comes last and is always stored anew."""
        self.control = content
        self._store(member, [content], adopt=False)

    def wait_until_read(self) -> None:
        """Return when the threads have read all of what was taken: the backup may end, its files may be gone."""
        self._writer.wait_until_read()

    def take_outside(self, file: OutsideFile) -> None:
        """A configuration file outside PGDATA: it belongs to whom PGDATA belongs to."""
        pgdata = self._folders[_TABLESPACES]
        path, size_bytes = file.path.encode(errors="surrogateescape"), len(file.content)
        mtime_ns = int(file.modified_at.timestamp()) * 10**9
        member = Member(path, "file", _OUTSIDE_MODE, pgdata.uid, pgdata.gid, mtime_ns, size_bytes)
        self._store(member, [file.content], outside=True)

    def settle(self) -> None:
        """Make the lines of all files; the writer has finished."""
        self._settle(len(self._waiting))
        if self._waiting:
            raise AssertionError(f"{len(self._waiting)} files lie nowhere")

    def _take(self, member: Member, content: DataFile | Iterator[Piece]) -> None:
        if member.kind == "folder":
            self._sorter.add(Folder(**as_path(member.path), **_owned(member)))
            if member.path == _TABLESPACES:
                self._folders[member.path] = member
        elif member.kind == "link":
            raise ServerError(f"the server sent a link, {member.path!r}, that is no tablespace")
        elif isinstance(content, DataFile):
            self._read(member, content)
        elif member.path in _OWN:
            self.own[member.path] = b"".join(content)
        elif member.path == CONTROL:
            self.take_control(member, b"".join(content))
        else:
            self._store(member, content)

    def _read(self, member: Member, file: DataFile) -> None:
        """A file of the data folder, which the writer's threads read."""
        self._note(member.path)
        before = None if self._known is None else self._known.find(member.path)
        unchanged = before is not None and self._unchanged is not None and self._unchanged.holds(file.identity, before)
        pending = self._writer.read(file, member.size_bytes, None if before is None else before.part, unchanged=unchanged)
        self._wait_for(_Waiting(member, pending, file.identity))

    def _store(self, member: Member, content: Iterable[Piece], *, adopt: bool = True, outside: bool = False) -> None:
        if not outside:
            self._note(member.path)
        before = self._known.find(member.path, outside=outside) if adopt and self._known is not None else None
        name = member.path.decode(errors="backslashreplace")
        pending = self._writer.file(name, member.size_bytes, content, None if before is None else before.part)
        self._wait_for(_Waiting(member, pending, outside=outside))

    def _wait_for(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        if len(self._waiting) >= _WAITING_MAX:
            self._settle(len(self._waiting) - 1)  # of the last one not all damage may be known: that is told behind it

    def _note(self, path: bytes) -> None:
        if (found := _OF_DATABASE.fullmatch(path)) is not None:
            self.databases.add((int(found["tablespace"] or _DEFAULT_TABLESPACE), int(found["database"])))
        elif not path.startswith((b"base/", b"pg_tblspc/")):
            self.inside.add(path.decode(errors="surrogateescape"))

    def check_databases(self, before: Mapping[int, int], after: Mapping[int, int]) -> None:
        """ServerError when the folder of a database did not come: *before* and *after* the copy it was there, in one place."""
        lost = sorted(oid for oid, place in before.items() if after.get(oid) == place and (place, oid) not in self.databases)
        if lost:
            raise ServerError(
                f"the server sent no folder of the databases with the OIDs {', '.join(map(str, lost))}: is it a link?",
                hints=["base/OID must be a folder in PGDATA; to keep a database elsewhere, make a tablespace there"],
            )

    def _settle(self, count: int) -> None:
        still = []
        for each in self._waiting[:count]:
            part = each.pending.part
            if part is None:
                still.append(each)
                continue
            kind = Outside if each.outside else File
            pages = self._damaged[each.member.path].pages if each.member.path in self._damaged else ()
            self._sorter.add(
                kind(
                    **as_path(each.member.path),
                    **_owned(each.member),
                    **as_part(part),
                    damaged_pages=tuple(pages),
                    ctime_ns=each.identity.ctime_ns if each.identity else 0,
                    inode=each.identity.inode if each.identity else 0,
                )
            )
        self._waiting = still + self._waiting[count:]

    def _take_tablespace(self, tablespace: TablespaceInfo) -> None:
        owned = _owned(self._folders[_TABLESPACES])
        path = as_path(_TABLESPACES + b"/%d" % tablespace.oid)
        if tablespace.path.startswith(b"/"):
            self._sorter.add(Tablespace(**path, **owned, **as_target(tablespace.path)))
        else:  # allow_in_place_tablespaces
            self._sorter.add(Folder(**path, **owned))


def _owned(member: Member) -> dict[str, Any]:
    return {"mode": member.mode, "uid": member.uid, "gid": member.gid, "mtime_ns": member.mtime_ns}
