"""What of a data folder belongs into a base backup: what the server itself would send, no more and no less.

The rules are those of sendDir in src/backend/backup/basebackup.c, PostgreSQL 15 to 18. Nothing is opened here.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from clipper_backup.errors import AccessError, ClipperError, ServerError
from clipper_backup.postgres.base_backup import Member, TablespaceInfo

CONTROL = b"global/pg_control"
_WAL, _TABLESPACES, _BASE, _GLOBAL = b"pg_wal", b"pg_tblspc", b"base", b"global"
_EMPTIED = frozenset(
    {b"pg_stat_tmp", b"pg_replslot", b"pg_dynshmem", b"pg_notify", b"pg_serial", b"pg_snapshots", b"pg_subtrans"}
)  # fmt: skip
"""Folders, wherever they are, that are stored empty: a start makes their contents anew, or throws them away."""
_LEFT_OUT = frozenset(
    {
        b"postgresql.auto.conf.tmp", b"current_logfiles.tmp", b"backup_label", b"tablespace_map", b"backup_manifest",
        b"postmaster.pid", b"postmaster.opts", b".DS_Store",
    }
)  # fmt: skip
_LEFT_OUT_BEGINNINGS = (b"pgsql_tmp", b"pg_internal.init")
_RELATION = re.compile(rb"([1-9][0-9]*)(?:_(fsm|vm|init))?(?:\.([1-9][0-9]*))?")
_TEMPORARY = re.compile(rb"t[0-9]+_[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?")
_NO_MODE_OF_A_LINK = 0o700
_SUMMARIES_SINCE = 17


@dataclass(frozen=True, slots=True)
class Found:
    """A folder, or a file to read: `member` says what a walk saw of it, `path` where it lies.

    `relation_file` counts the files of a relation's fork from 0, None for what is no relation.
    """

    member: Member
    path: bytes
    relation_file: int | None = None


class DataWalk:
    """One walk through a data folder; `tablespaces` and `skipped` are whole when it has ended.

    `skipped` are paths that no base backup holds, links that are no tablespaces above all, as the server's warnings have them:
    from PGDATA on, absolute in a tablespace.
    """

    def __init__(self, data: bytes, major: int, catalog: int, server_data: bytes) -> None:
        """*server_data* is what the server itself calls its data folder."""
        self._data, self._major, self._server_data = data, major, server_data
        self._version_folder = b"PG_%d_%d" % (major, catalog)
        self._in_pgdata: set[bytes] = set()
        self.tablespaces: list[TablespaceInfo] = []
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Found]:
        """All but pg_control, each folder before what lies in it. What goes away meanwhile is left out: WAL says that too."""
        self.tablespaces = self._listed_tablespaces()
        inside = self._server_data + b"/"
        self._in_pgdata = {each.path.removeprefix(inside) for each in self.tablespaces if each.path.startswith(inside)}
        for tablespace in self.tablespaces:
            yield from self._tablespace(tablespace)
        yield from self._folder(b"")

    # -- tablespaces

    def _listed_tablespaces(self) -> list[TablespaceInfo]:
        folder = self._data + b"/" + _TABLESPACES
        found = []
        for name in sorted(_names(folder) or ()):
            if not name.isdigit():
                continue
            path = folder + b"/" + name
            info = _lstat(path)
            if info is None:
                continue
            if stat.S_ISLNK(info.st_mode):
                target = _gone(partial(os.readlink, path), path)
                if target is not None:
                    found.append(TablespaceInfo(int(name), target))
            elif stat.S_ISDIR(info.st_mode):  # allow_in_place_tablespaces
                found.append(TablespaceInfo(int(name), _TABLESPACES + b"/" + name))
        return found

    def _tablespace(self, tablespace: TablespaceInfo) -> Iterator[Found]:
        link = _TABLESPACES + b"/%d" % tablespace.oid
        path = b"/".join((self._data, link, self._version_folder))
        info = _lstat(path)
        if info is None:
            if _lstat(self._data + b"/" + link) is not None:
                raise ServerError(
                    f"the tablespace {tablespace.oid} is not there: {os.fsdecode(path)} does not exist",
                    hints=[
                        f"its folder must be mounted here at the same place as for the server: {os.fsdecode(tablespace.path)}"
                    ],
                )
            return  # it was dropped
        shown = tablespace.path if tablespace.path.startswith(b"/") else link
        yield Found(_member(link + b"/" + self._version_folder, info), path)
        yield from self._contents(link + b"/" + self._version_folder, shown + b"/" + self._version_folder)

    # -- folders

    def _folder(self, name: bytes) -> Iterator[Found]:
        return self._contents(name, name)

    def _contents(self, name: bytes, shown: bytes) -> Iterator[Found]:
        """What lies in the folder *name*, counted from PGDATA; a message calls it *shown*."""
        folder = self._data + b"/" + name if name else self._data
        names = _names(folder)
        if names is None:
            return
        parent, _, last = name.rpartition(b"/")
        of_database = last.isdigit() and (parent == _BASE or parent.endswith(b"/" + self._version_folder))
        relations = of_database or name == _GLOBAL
        unlogged = {match[1] for each in names if (match := _RELATION.fullmatch(each)) and match[2] == b"init"}
        for each in sorted(names):
            if each in _LEFT_OUT or each.startswith(_LEFT_OUT_BEGINNINGS):
                continue
            relation = _RELATION.fullmatch(each) if relations else None
            if relation is not None and relation[2] != b"init" and relation[1] in unlogged:
                continue
            if of_database and _TEMPORARY.fullmatch(each):
                continue
            path = name + b"/" + each if name else each
            if path == CONTROL or (info := _lstat(folder + b"/" + each)) is None:
                continue
            number = None if relation is None else int(relation[3] or 0)
            yield from self._one(path, shown + b"/" + each if shown else each, info, number)

    def _one(self, path: bytes, shown: bytes, info: os.stat_result, relation_file: int | None) -> Iterator[Found]:
        where = self._data + b"/" + path
        if path.rpartition(b"/")[2] in _EMPTIED or path == _WAL:
            yield Found(_member(path, info, folder=True), where)
            if path == _WAL:
                for each in (b"archive_status", *([b"summaries"] if self._major >= _SUMMARIES_SINCE else [])):
                    yield Found(_member(path + b"/" + each, info, folder=True), where)
        elif stat.S_ISDIR(info.st_mode):
            yield Found(_member(path, info), where)
            if path != _TABLESPACES and path not in self._in_pgdata:
                yield from self._contents(path, shown)
        elif stat.S_ISREG(info.st_mode):
            yield Found(_member(path, info), where, relation_file)
        else:
            self.skipped.append(os.fsdecode(shown))


def _member(path: bytes, info: os.stat_result, *, folder: bool = False) -> Member:
    """As the server would send it; with *folder* a link is told as one."""
    is_folder = folder or stat.S_ISDIR(info.st_mode)
    mode = _NO_MODE_OF_A_LINK if stat.S_ISLNK(info.st_mode) else info.st_mode & 0o7777
    size = 0 if is_folder else info.st_size
    return Member(path, "folder" if is_folder else "file", mode, info.st_uid, info.st_gid, info.st_mtime_ns, size)


def _names(folder: bytes) -> list[bytes] | None:
    return _gone(lambda: [entry.name for entry in os.scandir(folder)], folder)


def _lstat(path: bytes) -> os.stat_result | None:
    return _gone(partial(os.lstat, path), path)


_T = TypeVar("_T")


def _gone(look: Callable[[], _T], path: bytes) -> _T | None:
    """What a look at *path* finds; None where nothing is any more. AccessError or ClipperError otherwise."""
    try:
        return look()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: bytes, error: OSError) -> ClipperError:
    """Our error for a file of the data folder that cannot be read."""
    text = f"cannot read {os.fsdecode(path)}: {(error.strerror or str(error)).lower()}"
    if isinstance(error, PermissionError):
        return AccessError(
            text,
            hints=[f"user id {os.geteuid()} must be able to read the whole data folder: run this as the account of the server"],
        )
    return ClipperError(text)
