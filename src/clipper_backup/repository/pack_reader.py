"""Packs as they are read: stretches put together from the ranges of many packs, small files, maps; and whole packs, verified.

Each frame's digest is compared before anything else is done with it (P1), a stretch is handed out only when its own agrees (P6).
All of it is safe for many threads.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from clipper_backup.errors import AccessError, IntegrityError, ObjectMissingError, StoreError
from clipper_backup.format.documents import NewerError
from clipper_backup.format.frames import (
    PACK_HEADER_BYTES,
    STRETCH_BYTES,
    FilePart,
    FrameCipher,
    FrameKind,
    Reference,
    Small,
    check_possible,
    digest_of,
    open_frame,
    stretches,
)
from clipper_backup.format.packs import END_BYTES, PackFacts, check_header, read_trailer, trailer_bytes
from clipper_backup.format.page_maps import ZEROS, PageMap, decode_map
from clipper_backup.format.physical_names import PackKey
from clipper_backup.repository.data_keys import DataKeys
from clipper_backup.store.protocol import Store

_GAP_BYTES = 128 << 10
"""Frames that lie closer share a range: reading what lies between costs less than asking once more."""
BATCH_BYTES = 80 << 20
"""Of a pack's frames held at once, as stored: all those of a stretch of 64 MiB that was stored at once and does not compress."""
_SMALL_FRAMES_KEPT = 8
"""Of up to 4 MiB: neighbours in a folder were often gathered together, though not in the order of their names."""


class PackReader:
    """Reads the frames that a backup names; *keys* where it is sealed, None where it is not (never as a frame claims: P5).

    Its files are cut into stretches of *stretch_bytes*, as its manifest says. Of one pack *batch_bytes* are read at once, or a
    single frame.
    """

    def __init__(
        self, store: Store, keys: DataKeys | None, page_bytes: int, stretch_bytes: int, *, batch_bytes: int = BATCH_BYTES
    ) -> None:
        self._store, self._keys, self._page_bytes, self._stretch_bytes = store, keys, page_bytes, stretch_bytes
        self._batch_bytes = batch_bytes
        self._lock = threading.Lock()
        self._small_frames: OrderedDict[Reference, bytes] = OrderedDict()

    def map_of(self, reference: Reference, size_bytes: int) -> PageMap:
        """The map of a stretch of *size_bytes*. IntegrityError when it is lost or damaged, AccessError when no key opens it."""
        plain = self._frame(reference, FrameKind.MAP)
        return decode_map(plain, self._page_bytes, size_bytes, str(reference))

    def stretch(self, reference: Reference, size_bytes: int, room: memoryview | None = None) -> memoryview:
        """The content of a stretch, compared with its digest, where its map has one. Errors as of `map_of`.

        It lies in *room*, where that is given: whoever reads many stretches spares the kernel 64 MiB of new pages for each. In
        memory are the stretch, and of what is stored *batch_bytes* at most.
        """
        pages = self.map_of(reference, size_bytes)
        content = np.empty(size_bytes, np.uint8).data if room is None else room[:size_bytes]
        order = np.argsort(pages.frames, kind="stable")
        rows, starts = np.unique(pages.frames[order], return_index=True)
        of_row = dict(zip(rows.tolist(), np.split(order, starts[1:]), strict=True))
        if (zeros := of_row.pop(ZEROS, None)) is not None:
            _clear(content, zeros, pages.page_bytes)
        packs, pack_of_row = pages.table.packs_of()
        by_pack: dict[PackKey, list[int]] = defaultdict(list)
        for row in of_row:
            by_pack[packs[pack_of_row[row]]].append(row)
        for pack, named in by_pack.items():
            named.sort(key=lambda row: int(pages.table.offsets[row]))
            for rows_read, references in _batches(named, [pages.table.reference(row) for row in named], self._batch_bytes):
                for row, each, stored in zip(rows_read, references, self._ranges(pack, references), strict=True):
                    plain = open_frame(stored, each, FrameKind.PAGES, self._cipher(pack))
                    _place(content, plain, of_row[row], pages)
        if pages.digest is not None and blake3(content).digest() != pages.digest:
            raise IntegrityError(f"{reference}: the pages put together are not the stretch that was read (BLAKE3 differs)")
        return content

    def small(self, small: Small, size_bytes: int) -> bytes:
        """The content of a small file of *size_bytes*, compared with its digest. Errors as of `map_of`."""
        with self._lock:
            plain = self._small_frames.get(small.frame)
        if plain is None:
            plain = self._frame(small.frame, FrameKind.SMALL)
        with self._lock:
            self._small_frames[small.frame] = plain
            self._small_frames.move_to_end(small.frame)
            while len(self._small_frames) > _SMALL_FRAMES_KEPT:
                self._small_frames.popitem(last=False)
        content = plain[small.start : small.start + size_bytes]
        if len(content) != size_bytes or blake3(content).digest() != small.digest:
            raise IntegrityError(f"{small.frame} does not hold the small file that was stored there (BLAKE3 differs)")
        return content

    def content(self, part: FilePart) -> Iterator[bytes | memoryview]:
        """The content of a file, stretch by stretch."""
        if part.small is not None:
            yield self.small(part.small, part.size_bytes)
        for reference, size_bytes in self.stretches_of(part):
            yield self.stretch(reference, size_bytes)

    def stretches_of(self, part: FilePart) -> Iterator[tuple[Reference, int]]:
        """Where the page map of each stretch of a file lies, and the stretch's size in bytes."""
        return zip(part.maps, stretches(part.size_bytes, self._stretch_bytes) if part.maps else (), strict=True)

    def seed(self, parts: Iterable[FilePart]) -> int | None:
        """The seed of the first map that can be read: what adopts from these parts hashes with it."""
        for part in parts:
            for reference, size_bytes in self.stretches_of(part):
                try:
                    return self.map_of(reference, size_bytes).seed
                except (IntegrityError, AccessError, NewerError):
                    continue
        return None

    def _cipher(self, pack: PackKey) -> FrameCipher | None:
        return None if self._keys is None else self._keys.cipher(pack.run)

    def _frame(self, reference: Reference, kind: FrameKind) -> bytes:
        cipher = self._cipher(reference.pack)
        (stored,) = self._ranges(reference.pack, [reference])
        return open_frame(stored, reference, kind, cipher)

    def _ranges(self, pack: PackKey, references: Sequence[Reference]) -> Iterator[memoryview]:
        """What is stored of frames of one pack, which rise by offset."""
        for each in references:
            check_possible(each)
        ranges = coalesced([(each.offset, each.stored_bytes) for each in references])
        try:
            found = self._store.get_ranges(str(pack), ranges)
        except ObjectMissingError as error:
            raise IntegrityError(f"{pack} is missing from the store") from error
        except StoreError as error:
            if not error.temporary and self._store.head(str(pack)).size_bytes < sum(ranges[-1]):
                raise IntegrityError(f"{pack} was cut: it ends before the frames that lie in it") from error
            raise
        number = 0
        for each in references:
            while each.offset >= sum(ranges[number]):
                number += 1
            start = each.offset - ranges[number][0]
            yield memoryview(found[number])[start : start + each.stored_bytes]


def readers_for(stretch_bytes: int, most: int) -> int:
    """How many threads put stretches together, so that they hold no more together than *most* of them do with 64 MiB each.

    One at least: a stretch is put together in memory, however large it is.
    """
    return max(1, min(most, most * STRETCH_BYTES // stretch_bytes))


def _batches(
    rows: Sequence[int], references: Sequence[Reference], most_bytes: int
) -> Iterator[tuple[Sequence[int], Sequence[Reference]]]:
    """The frames of one pack, which rise by offset, in batches of which no more than *most_bytes* are read, gaps included."""
    start = held = end = 0
    for number, each in enumerate(references):
        gap = each.offset - end
        held += each.stored_bytes + (gap if gap <= _GAP_BYTES else 0)
        end = each.offset + each.stored_bytes
        if held > most_bytes and number > start:
            yield rows[start:number], references[start:number]
            start, held = number, each.stored_bytes
    yield rows[start:], references[start:]


def coalesced(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (start, length) that cover the given ones, which rise by start; those that lie close together are one."""
    covering: list[tuple[int, int]] = []
    for start, length in ranges:
        if covering and start - sum(covering[-1]) <= _GAP_BYTES:
            first, covered = covering[-1]
            covering[-1] = (first, max(covered, start + length - first))
        else:
            covering.append((start, length))
    return covering


def _place(content: memoryview, plain: bytes, numbers: NDArray[np.intp], pages: PageMap) -> None:
    """Copy the pages of one frame to where they belong, neighbours together."""
    view, size = memoryview(plain), pages.page_bytes
    places = pages.places[numbers].astype(np.intp)
    breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(places) != 1)) + 1
    for run, at in zip(np.split(numbers, breaks), np.split(places, breaks), strict=True):
        start = int(run[0]) * size
        length = min(len(run) * size, len(content) - start)
        content[start : start + length] = view[int(at[0]) * size : int(at[0]) * size + length]


def _clear(content: memoryview, numbers: NDArray[np.intp], page_bytes: int) -> None:
    """Make pages of zeros, neighbours together."""
    target = np.frombuffer(content, np.uint8)
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        target[int(run[0]) * page_bytes : (int(run[-1]) + 1) * page_bytes] = 0


def verify_pack(store: Store, pack: PackKey, facts: PackFacts, repository_id: str) -> None:
    """Read a whole pack and compare it with what packs.json.zst records; no key is needed.

    IntegrityError when it is lost, or when any byte of it is not what was stored.
    """
    key, size_bytes = str(pack), facts.size_bytes
    try:
        end = store.get(key, start=max(0, size_bytes - END_BYTES))
        length = min(trailer_bytes(end, pack), size_bytes)
        header, trailer = store.get_ranges(key, [(0, PACK_HEADER_BYTES), (size_bytes - length, length)])
        check_header(header, pack, bytes.fromhex(repository_id))
        rows, digest = read_trailer(header, trailer, pack, size_bytes)
        if digest != facts.digest:
            raise IntegrityError(f"{pack} is whole, and not the pack that the backup names (its digest differs)")
        source = _Pieces(store.get_stream(key, start=PACK_HEADER_BYTES))
        for row in rows:
            if digest_of(source.take(row.stored_bytes)) != row.digest:
                raise IntegrityError(f"{pack}: frame {row.number} does not hold the bytes that were stored (BLAKE3 differs)")
    except ObjectMissingError as error:
        raise IntegrityError(f"{pack} is missing from the store") from error


class _Pieces:
    """A stream, taken in pieces of a given length; the last may be shorter."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def take(self, length: int) -> bytes:
        pieces, have = [self._rest], len(self._rest)
        while have < length and (chunk := next(self._chunks, b"")):
            pieces.append(chunk)
            have += len(chunk)
        whole = b"".join(pieces)
        self._rest = whole[length:]
        return whole[:length]
