"""Page maps: for one stretch of a file, what each page's hash is and in which frame it lies (repository-format.md, Page maps).

Columns are numpy arrays, so that a map of 8192 pages is compared with the next backup's pages in microseconds. XXH3 only says
whether a page changed; what a page holds is shown by the digest of the whole stretch.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from clipper_backup.errors import IntegrityError, UsageError
from clipper_backup.format.documents import written_by_newer
from clipper_backup.format.frames import DIGEST_BYTES, Bytes, Reference
from clipper_backup.format.physical_names import PackKey
from clipper_backup.values import BackupId

ZEROS = 0xFFFFFFFF
"""The frame of a page of zeros, which lies nowhere."""

U8, U16, U32, U64 = (np.dtype(kind) for kind in ("u1", "<u2", "<u4", "<u8"))

_HEAD = struct.Struct("<8sIIIIIIQ32sQ")
_MAGIC, _ANY_MAGIC = b"clbkmap1", b"clbkmap"
_HAS_DIGEST = 1
_COLUMNS = (U64, U32, U16, U64, U32, U32, U32, U32, U32, U8)
_RUN_BYTES = 24
_FRAME_BYTES = 44
"""Of all columns together."""
_PAGE_BYTES = 14
"""The same of a page."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameTable:
    """Frames of pages, column by column; `runs` counts into `run_ids`, sizes and offsets are bytes."""

    numbers: NDArray[np.uint64]
    packs: NDArray[np.uint32]
    offsets: NDArray[np.uint32]
    stored_bytes: NDArray[np.uint32]
    plain_bytes: NDArray[np.uint32]
    runs: NDArray[np.uint32]
    digests: NDArray[np.uint8]
    run_ids: tuple[BackupId, ...]

    @classmethod
    def of(cls, references: Sequence[Reference]) -> Self:
        """The table of these frames, in their order."""
        run_ids = tuple(dict.fromkeys(reference.pack.run for reference in references))
        place = {run: number for number, run in enumerate(run_ids)}
        return cls(
            np.array([reference.number for reference in references], U64),
            np.array([reference.pack.number for reference in references], U32),
            np.array([reference.offset for reference in references], U32),
            np.array([reference.stored_bytes for reference in references], U32),
            np.array([reference.plain_bytes for reference in references], U32),
            np.array([place[reference.pack.run] for reference in references], U32),
            np.frombuffer(b"".join(reference.digest for reference in references), U8).reshape(-1, DIGEST_BYTES),
            run_ids,
        )

    def __len__(self) -> int:
        return len(self.numbers)

    def packs_of(self) -> tuple[list[PackKey], NDArray[np.intp]]:
        """The packs that its frames lie in, and for each frame, which of them."""
        distinct, of_row = np.unique(self.runs.astype(U64) << np.uint64(32) | self.packs, return_inverse=True)
        return [PackKey(self.run_ids[each >> 32], each & 0xFFFFFFFF) for each in distinct.tolist()], of_row

    def reference(self, row: int) -> Reference:
        """One frame."""
        return Reference(
            PackKey(self.run_ids[self.runs[row]], int(self.packs[row])),
            int(self.offsets[row]),
            int(self.stored_bytes[row]),
            int(self.plain_bytes[row]),
            int(self.numbers[row]),
            self.digests[row].tobytes(),
        )

    def only(self, rows: NDArray[np.intp]) -> Self:
        """The table of some of its frames, without runs that none of them is of."""
        runs, renumbered = np.unique(self.runs[rows], return_inverse=True)
        return replace(
            self,
            numbers=self.numbers[rows],
            packs=self.packs[rows],
            offsets=self.offsets[rows],
            stored_bytes=self.stored_bytes[rows],
            plain_bytes=self.plain_bytes[rows],
            runs=renumbered.astype(U32),
            digests=self.digests[rows],
            run_ids=tuple(self.run_ids[run] for run in runs),
        )

    def followed_by(self, other: "FrameTable") -> Self:
        """The same table with the frames of *other* behind its own."""
        run_ids = tuple(dict.fromkeys(chain(self.run_ids, other.run_ids)))
        place = np.array([run_ids.index(run) for run in other.run_ids], U32)
        return replace(
            self,
            numbers=np.concatenate((self.numbers, other.numbers)),
            packs=np.concatenate((self.packs, other.packs)),
            offsets=np.concatenate((self.offsets, other.offsets)),
            stored_bytes=np.concatenate((self.stored_bytes, other.stored_bytes)),
            plain_bytes=np.concatenate((self.plain_bytes, other.plain_bytes)),
            runs=np.concatenate((self.runs, place[other.runs])),
            digests=np.concatenate((self.digests, other.digests)),
            run_ids=run_ids,
        )

    def columns(self) -> tuple[NDArray[Any], ...]:
        """In the order in which a map stores them."""
        return self.numbers, self.packs, self.offsets, self.stored_bytes, self.plain_bytes, self.runs, self.digests


@dataclass(frozen=True, slots=True, eq=False)
class PageMap:
    """The pages of one stretch. `frames` counts into `table`, ZEROS for a page of zeros; `places` are places in the frame.

    All pages have `page_bytes` but the last, which has `last_bytes`. `digest` is BLAKE3 of the stretch, None when it was not
    read whole.
    """

    page_bytes: int
    last_bytes: int
    seed: int
    digest: bytes | None
    hashes: NDArray[np.uint64]
    frames: NDArray[np.uint32]
    places: NDArray[np.uint16]
    table: FrameTable

    @property
    def size_bytes(self) -> int:
        """Of the stretch."""
        return (len(self.hashes) - 1) * self.page_bytes + self.last_bytes

    def lengths(self) -> NDArray[np.int64]:
        """The size of each page in bytes."""
        return page_lengths(len(self.hashes), self.page_bytes, self.last_bytes)

    def live_bytes(self) -> NDArray[np.int64]:
        """How many bytes of each frame of the table these pages name."""
        stored = self.frames != ZEROS
        summed = np.bincount(self.frames[stored], self.lengths()[stored], minlength=len(self.table))
        return summed.astype(np.int64)


def page_lengths(pages: int, page_bytes: int, last_bytes: int) -> NDArray[np.int64]:
    """The sizes of so many pages, of which only the last may be short."""
    lengths = np.full(pages, page_bytes, np.int64)
    lengths[-1] = last_bytes
    return lengths


def page_hashes(stretch: Bytes, page_bytes: int, seed: int) -> NDArray[np.uint64]:
    """XXH3-64 of each page of a stretch."""
    view = memoryview(stretch)
    pages = (view[start : start + page_bytes] for start in range(0, len(view), page_bytes))
    return np.fromiter(map(partial(xxh3_64_intdigest, seed=seed), pages), U64, -(-len(view) // page_bytes))


def encode_map(pages: PageMap) -> bytes:
    """The plaintext of a frame of kind 3."""
    head = _HEAD.pack(
        _MAGIC,
        pages.page_bytes,
        len(pages.hashes),
        pages.last_bytes,
        len(pages.table),
        len(pages.table.run_ids),
        0 if pages.digest is None else _HAS_DIGEST,
        pages.seed,
        pages.digest or b"",
        0,
    )
    columns: tuple[NDArray[Any], ...] = (pages.hashes, pages.frames, pages.places, *pages.table.columns())
    stored = (column.astype(kind, copy=False).tobytes() for column, kind in zip(columns, _COLUMNS, strict=True))
    return b"".join((head, *stored, *(str(run).encode() for run in pages.table.run_ids)))


def decode_map(data: bytes, page_bytes: int, size_bytes: int, name: str) -> PageMap:
    """Read the map of a stretch of *size_bytes* in a cluster with pages of *page_bytes*; *name* is for the error.

    IntegrityError when it is damaged or is that of another stretch, NewerError when it has what this version does not know:
    its bytes are those that were stored.
    """
    if len(data) < _HEAD.size:
        raise IntegrityError(f"{name}: the page map is cut short")
    magic, theirs, pages, last_bytes, frames, runs, flags, seed, digest, reserved = _HEAD.unpack_from(data)
    if magic != _MAGIC or flags & ~_HAS_DIGEST or reserved != 0:
        if not magic.startswith(_ANY_MAGIC):
            raise IntegrityError(f"{name} is no page map")
        raise written_by_newer(name, f"its page map is {magic!r}, with flags {flags} and {reserved} behind its digest")
    if len(data) != _HEAD.size + _PAGE_BYTES * pages + _FRAME_BYTES * frames + _RUN_BYTES * runs:
        raise IntegrityError(f"{name}: the page map has another length than it says")
    if not flags and any(digest):
        raise IntegrityError(f"{name}: the page map has a digest, and says that it has none")
    pages_fit = pages > 0 and 0 < last_bytes <= page_bytes and (pages - 1) * page_bytes + last_bytes == size_bytes
    if theirs != page_bytes or not pages_fit:
        raise IntegrityError(f"{name}: the page map is not that of {size_bytes} bytes in pages of {page_bytes}")
    columns = _Columns(data, _HEAD.size)
    found = PageMap(
        page_bytes,
        last_bytes,
        seed,
        digest if flags else None,
        columns.take(U64, pages),
        columns.take(U32, pages),
        columns.take(U16, pages),
        FrameTable(
            columns.take(U64, frames),
            columns.take(U32, frames),
            columns.take(U32, frames),
            columns.take(U32, frames),
            columns.take(U32, frames),
            columns.take(U32, frames),
            columns.take(U8, frames * DIGEST_BYTES).reshape(-1, DIGEST_BYTES),
            _runs(data[columns.position :], name),
        ),
    )
    _check_places(found, name)
    return found


def _runs(data: bytes, name: str) -> tuple[BackupId, ...]:
    texts = [data[start : start + _RUN_BYTES] for start in range(0, len(data), _RUN_BYTES)]
    try:
        return tuple(BackupId.parse(text.decode("ascii")) for text in texts)
    except (UsageError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{name}: the page map names a run that is none") from error


def _check_places(pages: PageMap, name: str) -> None:
    table, stored = pages.table, pages.frames != ZEROS
    if (table.runs >= len(table.run_ids)).any() or (pages.frames[stored] >= len(table)).any():
        raise IntegrityError(f"{name}: the page map names a frame or a run that it does not have")
    if pages.places[~stored].any():
        raise IntegrityError(f"{name}: the page map has a place for a page of zeros")
    ends = pages.places[stored].astype(np.int64) * pages.page_bytes + pages.lengths()[stored]
    if (ends > table.plain_bytes[pages.frames[stored]]).any():
        raise IntegrityError(f"{name}: the page map names a place beyond its frame")


class _Columns:
    def __init__(self, data: bytes, position: int) -> None:
        self._data, self.position = data, position

    def take(self, kind: np.dtype[Any], count: int) -> NDArray[Any]:
        column = np.frombuffer(self._data, kind, count, self.position)
        self.position += column.nbytes
        return column
