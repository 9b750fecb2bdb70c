"""Tablespaces that were made after the base backup, as far as the plan reads the WAL that makes them.

Recovery would be ended half-way where such a folder is taken (docs/design/repository-wal.md, "Tablespaces"): what can be seen
of that before anything is written is refused then.
"""

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from clipper_backup.errors import UsageError
from clipper_backup.ops.wal.tablespaces import CREATED_HINTS, why_not_ours
from clipper_backup.postgres.tablespace_records import Created, TablespaceSearch
from clipper_backup.repository.line_records import OpenSegment
from clipper_backup.wal_names import Segment

_BLOCK_BYTES = 1 << 20
"""Whole pages, whatever their size; segments are multiples of it."""


class Watch:
    """An `OpenSegment` that notes where tablespaces are created in what is read; `created` by segment."""

    def __init__(self, open_segment: OpenSegment, page_bytes: int) -> None:
        self._open, self._page_bytes = open_segment, page_bytes
        self._whole: tuple[Segment, TablespaceSearch] | None = None
        self.created: dict[Segment, dict[int, Created]] = {}

    def __call__(self, segment: Segment) -> Iterator[bytes] | None:
        """The segment's bytes, searched as they are taken."""
        chunks = self._open(segment)
        return None if chunks is None else self._searched(segment, chunks)

    def _searched(self, segment: Segment, chunks: Iterable[bytes]) -> Iterator[bytes]:
        # Segments are read in any order, and some at the same time: only behind its own end a record goes on.
        search, pending, known = TablespaceSearch(), bytearray(), dict[int, Created]()
        if self._whole is not None and self._whole[0].number + 1 == segment.number:
            before, search = self._whole
            known = self.created.get(before, known)  # of its last pages, which are searched once more
        for chunk in chunks:
            pending += chunk
            whole = len(pending) // _BLOCK_BYTES * _BLOCK_BYTES
            for at in range(0, whole, _BLOCK_BYTES):
                for created in search.found_in(bytes(pending[at : at + _BLOCK_BYTES]), self._page_bytes):
                    if known.get(created.oid) != created:
                        self.created.setdefault(segment, {})[created.oid] = created
            del pending[:whole]
            yield chunk
        self._whole = segment, search

    def between(self, first: Segment, last: Segment | None) -> dict[Segment, list[tuple[int, Path]]]:
        """Tablespaces with folders of their own that recovery from *first* to *last* makes, by the segment that makes them."""
        return {
            segment: [(each.oid, Path(os.fsdecode(each.path))) for each in created.values() if each.path]
            for segment, created in sorted(self.created.items())
            if first.number <= segment.number and (last is None or segment.number <= last.number)
        }


def later_of(data: Path, tablespaces: Mapping[int, Path]) -> dict[int, Path]:
    """The tablespaces of the cluster in *data* that a backup, which has *tablespaces*, has not: by OID, with their folders."""
    folder = data / "pg_tblspc"
    links = [link for link in folder.iterdir() if link.is_symlink() and link.name.isdigit()] if folder.is_dir() else []
    return {int(link.name): link.readlink() for link in sorted(links) if int(link.name) not in tablespaces}


def refuse_later(later: Mapping[int, Path], backup: str, version: str, uid: int) -> None:
    """UsageError where recovery would be ended at a tablespace of the server there, when nothing of that is left any more.

    Of *later* the WAL behind *backup* makes each anew. What lies in the folder *version* of each is in that WAL too, but it may
    be another server's: a copy of a data folder has the same links.
    """
    for oid, folder in later.items():
        why = why_not_ours(folder, uid)
        if why is not None:
            raise UsageError(
                f"tablespace {oid} of the server there, in {folder}, was made after the base backup {backup}: the WAL makes it"
                f" anew, there and into an empty folder only, and that folder {why}",
                hints=[
                    f"when no other server uses it: mv {shlex.quote(str(folder / version))} elsewhere, and run it again",
                    "or begin with a base backup that has it: `clipper-backup base list`, then --backup ID",
                    "or restore on another machine, where that folder is empty",
                ],
            )


def refuse_taken(made: Mapping[Segment, Iterable[tuple[int, Path]]], ours: Iterable[Path], uid: int) -> dict[int, Path]:
    """Where those tablespaces will lie, by OID. UsageError when a folder can be neither filled by us nor is among *ours*."""
    known, places = set(ours), dict[int, Path]()
    for segment, created in made.items():
        for oid, folder in created:
            why = None if folder in known else why_not_ours(folder, uid)
            if why is not None:
                raise UsageError(
                    f"tablespace {oid} was created in {folder}, by the WAL in {segment}, and that folder {why}: recovery would"
                    " be ended there",
                    hints=[hint.format(folder=folder, segment=segment) for hint in CREATED_HINTS],
                )
            if folder not in known:
                places[oid] = folder
    return places
