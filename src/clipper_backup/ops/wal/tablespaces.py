"""No recovery writes into the folder of a tablespace that is not its own (docs/design/repository-wal.md, "Tablespaces").

PostgreSQL that replays CREATE TABLESPACE links to the folder that the record names, and takes what lies there for its own: beside
the living server, that server's files. So a segment with such a record is handed out only where the folder is this restore's.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.tablespace_records import (
    BORDER_PAGES,
    RECORD_BYTES_MAX,
    Created,
    TablespaceSearch,
    address_of,
    page_bytes_of,
    search,
)
from clipper_backup.postgres.wal_records import SEGMENT_HEAD_BYTES, continued_bytes
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.wal_names import Segment

_BLOCK_BYTES = 1 << 20
CREATED_HINTS = (
    "beside the living server that is its own folder: restore on another machine, or in a container without it",
    "where no server uses it, {folder} must be there, empty, and PGDATA's owner's: the WAL names it, no option moves it",
    "or stop before {segment}, or begin with a base backup taken behind it, whose tablespaces --tablespace moves",
)
"""What to do about a folder that is not ours, with its `folder` and the `segment` that makes the tablespace."""


class Watched:
    """Bytes of a segment as they pass, and whether any tablespace is created by a record that is whole in them."""

    def __init__(self) -> None:
        self.creates = False

    def pass_through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, which are a segment's from its begin."""
        search, pending, page_bytes = TablespaceSearch(), b"", None
        for chunk in chunks:
            pending = pending + chunk if pending else chunk
            if page_bytes is None and len(pending) >= SEGMENT_HEAD_BYTES:
                page_bytes = page_bytes_of(pending) or 0  # 0: no segment at all, of which PostgreSQL reads nothing
            if page_bytes and not self.creates:
                whole = len(pending) // page_bytes * page_bytes
                pages, pending = (pending, b"") if whole == len(pending) else (pending[:whole], pending[whole:])
                self.creates = any(True for _ in search.found_in(pages, page_bytes))
            elif page_bytes is not None:
                pending = b""
            yield chunk


def check_tablespaces(segment: Segment, file: Path, data: Path, before: Callable[[int], bytes], *, watched: bool = False) -> None:
    """Look at *file*, which holds *segment*, before the server of PGDATA *data* gets it.

    IntegrityError when it creates a tablespace in a folder that is neither empty nor this server's already. *before* gives the
    last bytes, so many, of the segment before: what is not whole in the one is in the other. Of a *watched* one, which creates
    none by a record of its own, only that is looked at.
    """
    with file.open("rb") as opened:
        head = opened.read(SEGMENT_HEAD_BYTES)
        page_bytes = page_bytes_of(head)
        if page_bytes is None:
            return  # no segment at all: PostgreSQL reads nothing of it
        tail = before(BORDER_PAGES * page_bytes) if 0 < continued_bytes(head) <= RECORD_BYTES_MAX else b""
        opened.seek(0)
        blocks: Iterable[bytes] = iter(lambda: opened.read(_BLOCK_BYTES), b"")
        if watched:
            blocks = [opened.read(BORDER_PAGES * page_bytes)] if tail else []
        for created in search(blocks, page_bytes, tail):
            _must_be_ours(created, data, segment)


def tail_of(before: Segment | None, pg_wal: Path, reader: WalReader, size_bytes: int) -> bytes:
    """The last *size_bytes* of a segment: of pg_wal, where recovery leaves it, else of the archive; empty where it is nowhere."""
    if before is None:
        return b""
    try:
        with (pg_wal / before.name).open("rb") as opened:
            opened.seek(-size_bytes, os.SEEK_END)
            tail = opened.read()
        if address_of(tail) == before.end - size_bytes:
            return tail
    except OSError:
        pass  # or one that waits to be used again: then its pages are of another place
    found, tail = reader.segment(before), b""
    for chunk in found.chunks if found is not None else ():
        tail = (tail + chunk)[-size_bytes:]
    return tail


def _must_be_ours(created: Created, data: Path, segment: Segment) -> None:
    if not created.path:
        return  # within the data folder (allow_in_place_tablespaces)
    folder = Path(os.fsdecode(created.path))
    if folder in _linked(data) or (why := why_not_ours(folder, data.stat().st_uid)) is None:
        return
    raise IntegrityError(
        f"tablespace {created.oid} was created in {folder}, by the WAL in {segment}, and that folder {why}: recovery would write"
        " into it",
        hints=[hint.format(folder=folder, segment=segment) for hint in CREATED_HINTS],
    )


def why_not_ours(folder: Path, uid: int) -> str | None:
    """Why recovery may not make a tablespace in *folder*, for the server of the user *uid*; None: it may."""
    try:
        inside = next(folder.iterdir(), None)
        mine = folder.stat().st_uid == uid
    except OSError as error:
        return f"cannot be used here: {(error.strerror or str(error)).lower()}"
    if inside is None and mine:
        return None
    return "is not empty here" if inside is not None else "belongs to another user"


def _linked(data: Path) -> set[Path]:
    """Where the links lead that this server has: what it fills already."""
    folder = data / "pg_tblspc"
    return {link.readlink() for link in folder.iterdir() if link.is_symlink()} if folder.is_dir() else set()
