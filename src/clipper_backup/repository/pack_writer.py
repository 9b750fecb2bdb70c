"""A run: the contents of files into packs, in one pass, taking over what the parent's packs hold already.

Whoever calls hands over file by file, in any order. A file that comes as a stream fills one buffer while threads work on those
that are full; of one that can be read anywhere, the threads read the stretches themselves, side by side. What they do with
them, XXH3 of each page, BLAKE3 of the stretch, zstd, AES-GCM, BLAKE3 of what is stored, lets go of the interpreter's lock.
Other threads put full packs into the store. Memory is bounded by the buffers and the packs under way, however large the files
are.
"""

import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from clipper_backup.crew import Crew
from clipper_backup.errors import AccessError, IntegrityError
from clipper_backup.format.base_documents import PacksOfRun, PageCounts
from clipper_backup.format.documents import NewerError
from clipper_backup.format.frames import (
    SMALL_BYTES_MAX,
    SMALL_FRAME_BYTES_MAX,
    STRETCH_BYTES,
    Bytes,
    Compressor,
    FilePart,
    FrameKind,
    Reference,
    Small,
    stretches,
)
from clipper_backup.format.packs import PackBuilder
from clipper_backup.format.page_maps import ZEROS, PageMap, encode_map
from clipper_backup.repository.adoption import Adoption, Fate
from clipper_backup.repository.data_keys import RunFrames
from clipper_backup.repository.pack_reader import PackReader
from clipper_backup.repository.pack_uploads import LiveBytes, PackUploads
from clipper_backup.repository.stretch_writer import Page, Stretch, decide, is_whole, live_in, write_pages
from clipper_backup.store.protocol import Store

PACK_BYTES = 32 << 20
"""A pack with so much is stored; the last frame may carry it beyond by up to 4 MiB."""
MAP_PACK_BYTES = 16 << 20
THREADS = 2
"""More than the stream of one server can feed is of no use, and each holds a stretch and a pack in memory."""
SMALL_FILES_MAX = 1024
"""Files in one frame: so few parts are ever open."""


READS_TOGETHER, READS_TOGETHER_BYTES = 32, 4 << 20
"""Small files that one thread reads in a row: each of them alone would be less work than handing it over."""


class Readable(Protocol):
    """A file that can be read anywhere, from any thread."""

    def read(self, target: memoryview, start: int) -> None:
        """Fill *target* with what the file holds from *start* on."""
        ...

    def check(self, content: memoryview, start: int, same: NDArray[np.bool_]) -> bool:
        """Look at what was read to *content*; *same* are the pages that the parent holds just so. True: it was read anew."""
        ...

    def close(self) -> None:
        """Nothing more is read of it. Called once."""
        ...


class PendingPart:
    """The part of one file: `part` is None until all of its content lies in a pack that may be under way still."""

    def __init__(self, size_bytes: int, parts: int) -> None:
        self.part: FilePart | None = None
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._maps: list[Reference | None] = [None] * parts

    def place_map(self, number: int, reference: Reference) -> None:
        """The map of one stretch lies there."""
        with self._lock:
            self._maps[number] = reference
            maps = tuple(each for each in self._maps if each is not None)
            if len(maps) == len(self._maps):
                self.part = FilePart(self._size_bytes, maps=maps)

    def place_small(self, small: Small) -> None:
        """The whole content lies there."""
        self.part = FilePart(self._size_bytes, small=small)

    def place_nothing(self) -> None:
        """A file without bytes lies nowhere."""
        self.part = FilePart(self._size_bytes)


@dataclass(frozen=True, slots=True)
class WrittenPacks:
    """What `finish` tells: the rows of packs.json.zst, what became of the pages, and the bytes that this run stored."""

    runs: list[PacksOfRun]
    pages: PageCounts
    stored_bytes: int


@dataclass(slots=True)
class _Bench:
    """What one thread works with at a time: so the frames of a stretch lie side by side in one pack."""

    compressor: Compressor
    pack: PackBuilder | None = None


@dataclass(frozen=True, slots=True)
class _Gathered:
    pending: PendingPart
    content: bytes
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class _SmallRead:
    pending: PendingPart
    file: Readable
    size_bytes: int
    before: Small | None


class _Reading:
    """A file that is open until the last of its *parts* was taken."""

    def __init__(self, file: Readable, parts: int, *, unchanged: bool) -> None:
        self.file, self.unchanged = file, unchanged
        self._parts = parts
        self._lock = threading.Lock()

    def taken(self) -> bool:
        """One more was; True when it was the last."""
        with self._lock:
            self._parts -= 1
            return self._parts == 0


class RunWriter:
    """Writes the packs of one run. One thread hands over files; within `with`, an error ends all others.

    *reader* and *adoption* are for the parent's packs, *seed* is that of the parent's maps: without them all is stored anew.
    Files of up to *small_bytes* (at most SMALL_BYTES_MAX) lie among others in one frame and have no map; the others are cut into
    stretches of *stretch_bytes*, as the parent's are.
    """

    def __init__(
        self,
        store: Store,
        frames: RunFrames,
        page_bytes: int,
        *,
        reader: PackReader | None = None,
        adoption: Adoption | None = None,
        seed: int | None = None,
        pack_bytes: int = PACK_BYTES,
        small_bytes: int = SMALL_BYTES_MAX,
        stretch_bytes: int = STRETCH_BYTES,
        threads: int = THREADS,
    ) -> None:
        self._frames, self._page_bytes = frames, page_bytes
        self._pack_bytes, self._small_bytes, self._stretch_bytes = pack_bytes, small_bytes, stretch_bytes
        self._reader, self._adoption = reader, adoption or Adoption()
        self._seed = secrets.randbits(64) if seed is None else seed
        self._uploads = PackUploads(store, frames)
        self._live = LiveBytes()
        self._crew = Crew("pages", threads, 2 * threads)
        self._free = [np.empty(stretch_bytes, np.uint8).data for _ in range(threads + 1)]  # not touched before it is needed
        self._lock = threading.Lock()
        self._benches: list[_Bench] = []
        self._maps = _Bench(Compressor())
        self._maps_lock = threading.Lock()
        self._counts = np.zeros(len(Page), np.int64)
        self._gathered: list[_Gathered] = []
        self._gathered_bytes = 0
        self._reads: list[_SmallRead] = []
        self._reads_bytes = 0
        self._open: set[Readable] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abandon()

    def file(self, name: str, size_bytes: int, chunks: Iterable[Bytes], parent: FilePart | None = None) -> PendingPart:
        """Take over the content of a file; *parent* is where it lay in the parent backup.

        Returns when the last chunk was taken; the part is known later, that of the last files at `finish`. Raises what a thread
        met before, what *chunks* raises, and IntegrityError when they are not *size_bytes* together.
        """
        source = _Source(name, size_bytes, chunks)
        sizes = stretches(size_bytes, self._stretch_bytes)
        pending = PendingPart(size_bytes, len(sizes))
        if size_bytes == 0:
            pending.place_nothing()
        elif size_bytes <= self._small_bytes:
            full = self._gather(pending, source.take(size_bytes), _small_of(parent, size_bytes))
            if full:
                self._crew.submit(partial(self._store_small, full))
        else:
            for number, (length, known) in enumerate(zip(sizes, self._maps_of(parent, len(sizes)), strict=True)):
                buffer = self._buffer()
                source.fill(buffer[:length])
                self._crew.submit(partial(self._stretch, pending, number, buffer, length, known))
        source.check_end()
        return pending

    def read(self, file: Readable, size_bytes: int, parent: FilePart | None = None, *, unchanged: bool = False) -> PendingPart:
        """Take over the first *size_bytes* of a file, which the threads read; it is closed when they have, or at the end.

        With *unchanged* it is known to hold what *parent* says, and is read only where that may not be adopted whole.
        """
        sizes = stretches(size_bytes, self._stretch_bytes)
        pending = PendingPart(size_bytes, len(sizes))
        with self._lock:
            self._open.add(file)
        if size_bytes == 0:
            pending.place_nothing()
            self._close(file)
        elif size_bytes <= self._small_bytes:
            self._read_small(pending, file, size_bytes, _small_of(parent, size_bytes), unchanged=unchanged)
        else:
            reading = _Reading(file, len(sizes), unchanged=unchanged)
            for number, (length, known) in enumerate(zip(sizes, self._maps_of(parent, len(sizes)), strict=True)):
                self._crew.submit(partial(self._stretch, pending, number, self._buffer(), length, known, reading))
        return pending

    def wait_until_read(self) -> None:
        """Wait until the threads have read all files."""
        self._begin_reads()
        self._crew.wait_idle()

    def finish(self) -> WrittenPacks:
        """Wait until all lies in the store; after it every part is known."""
        self.wait_until_read()
        self._store_small(self._take_gathered())
        self._crew.finish()
        for bench in (*self._benches, self._maps):
            if bench.pack is not None:
                self._uploads.send(bench.pack)
        written = self._uploads.finish()
        counts = PageCounts(**{page.name.lower(): int(self._counts[page]) for page in Page})
        runs = self._live.rows({**self._adoption.facts, **written}, sealed=self._frames.sealed)
        return WrittenPacks(runs, counts, sum(facts.size_bytes for facts in written.values()))

    def abandon(self) -> None:
        """End all threads. Packs that were stored stay: nobody names them, and prune removes them."""
        self._uploads.stop()  # first: a thread may wait for room there
        self._crew.end()
        self._uploads.end()
        self._free.clear()  # who keeps us keeps no buffers
        for file in list(self._open):
            self._close(file)

    # -- small files

    def _read_small(
        self, pending: PendingPart, file: Readable, size_bytes: int, before: Small | None, *, unchanged: bool
    ) -> None:
        if unchanged and before is not None and self._adoption.fate(before.frame.pack) is Fate.ADOPTED:
            self._live.add({before.frame.pack: size_bytes})
            pending.place_small(before)
            self._close(file)
            return
        self._reads.append(_SmallRead(pending, file, size_bytes, before))
        self._reads_bytes += size_bytes
        if len(self._reads) == READS_TOGETHER or self._reads_bytes >= READS_TOGETHER_BYTES:
            self._begin_reads()

    def _begin_reads(self) -> None:
        reads, self._reads, self._reads_bytes = self._reads, [], 0
        if reads:
            self._crew.submit(partial(self._take_small, reads))

    def _take_small(self, reads: list[_SmallRead]) -> None:
        for each in reads:
            content = memoryview(bytearray(each.size_bytes))
            each.file.read(content, 0)
            same = each.before is not None and each.before.digest == blake3(content).digest()
            each.file.check(content, 0, np.full(-(-len(content) // self._page_bytes), same))
            self._close(each.file)
            full = self._gather(each.pending, bytes(content), each.before)
            if full:
                self._store_small(full)

    def _gather(self, pending: PendingPart, content: bytes, before: Small | None) -> list[_Gathered]:
        """Take a small file; what is to be stored now, since there is enough for a frame."""
        digest = blake3(content).digest()
        if before is not None and before.digest == digest and self._adoption.fate(before.frame.pack) is Fate.ADOPTED:
            self._live.add({before.frame.pack: len(content)})
            pending.place_small(before)
            return []
        with self._lock:
            fits = self._gathered_bytes + len(content) <= SMALL_FRAME_BYTES_MAX and len(self._gathered) < SMALL_FILES_MAX
            full = [] if fits else self._take_gathered()
            self._gathered.append(_Gathered(pending, content, digest))
            self._gathered_bytes += len(content)
        return full

    def _take_gathered(self) -> list[_Gathered]:
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        return gathered

    def _store_small(self, gathered: list[_Gathered]) -> None:
        if not gathered:
            return
        plain = b"".join(each.content for each in gathered)
        with self._bench() as bench:
            frame = self._store(bench, plain, FrameKind.SMALL, self._pack_bytes)
        self._live.add({frame.pack: len(plain)})
        start = 0
        for each in gathered:
            each.pending.place_small(Small(frame, start, each.digest))
            start += len(each.content)

    # -- stretches

    def _maps_of(self, parent: FilePart | None, count: int) -> list[tuple[Reference, int] | None]:
        """For each of *count* stretches, where the parent's map of it lies, and the size of the parent's stretch."""
        found: list[tuple[Reference, int] | None] = []
        if parent is not None and parent.maps:
            found += list(zip(parent.maps, stretches(parent.size_bytes, self._stretch_bytes), strict=True))[:count]
        return found + [None] * (count - len(found))

    def _buffer(self) -> memoryview:
        self._crew.wait(lambda: bool(self._free))
        return self._free.pop()

    def _stretch(
        self,
        pending: PendingPart,
        number: int,
        buffer: memoryview,
        length: int,
        before: tuple[Reference, int] | None,
        reading: _Reading | None = None,
    ) -> None:
        """One stretch, in a thread of the crew: that is in *buffer* already, or read there, where it has to be read at all."""
        try:
            shared = self._unread(before) if reading is not None and reading.unchanged else None
            if shared is not None and before is not None:
                found, pages, reference = shared, _as_adopted(shared), before[0]
            else:
                found, pages, reference = self._written(buffer[:length], number, before, reading)
        finally:
            self._free.append(buffer)
        if reading is not None and reading.taken():
            self._close(reading.file)
        self._live.add(live_in(found))
        self._live.add({reference.pack: reference.plain_bytes})
        with self._lock:
            self._counts += np.bincount(pages, minlength=len(Page))
        pending.place_map(number, reference)

    def _written(
        self, content: memoryview, number: int, before: tuple[Reference, int] | None, reading: _Reading | None
    ) -> tuple[PageMap, NDArray[np.uint8], Reference]:
        """The map of a stretch, what became of each page, and where the map lies: the parent's, or one that was stored now."""
        start = number * self._stretch_bytes
        if reading is not None:
            reading.file.read(content, start)
        stretch = Stretch.read(content, self._page_bytes, self._seed)
        parent, lost = self._map_before(before)
        pages = decide(stretch, parent, self._adoption)
        if reading is not None and reading.file.check(content, start, (pages != Page.NEW) & (pages != Page.ZERO)):
            stretch = Stretch.read(content, self._page_bytes, self._seed)
            pages = decide(stretch, parent, self._adoption)
        if lost:
            pages[pages == Page.NEW] = Page.HEALED
        shared = before is not None and self._adoption.fate(before[0].pack) is Fate.ADOPTED
        if before is not None and parent is not None and shared and is_whole(stretch, pages, parent):
            return parent, pages, before[0]
        with self._bench() as bench:
            found = write_pages(
                stretch, pages, parent, lambda plain: self._store(bench, plain, FrameKind.PAGES, self._pack_bytes)
            )
        return found, pages, self._store_map(found)

    def _unread(self, before: tuple[Reference, int] | None) -> PageMap | None:
        """The parent's map of an unchanged stretch, where it and all that it names may be adopted: then nothing need be read."""
        if before is None or self._adoption.fate(before[0].pack) is not Fate.ADOPTED:
            return None
        parent, _ = self._map_before(before)
        if parent is None or any(self._adoption.fate(pack) is not Fate.ADOPTED for pack in parent.table.packs_of()[0]):
            return None
        return parent

    def _close(self, file: Readable) -> None:
        with self._lock:
            self._open.discard(file)
        file.close()

    def _map_before(self, before: tuple[Reference, int] | None) -> tuple[PageMap | None, bool]:
        """The parent's map of a stretch, and whether there was one that cannot be read: then all of it is stored anew."""
        if before is None or self._reader is None:
            return None, False
        try:
            found = self._reader.map_of(*before)
        except (IntegrityError, AccessError, NewerError):  # `verify` of the parent says what is wrong with it
            return None, True
        return found if found.seed == self._seed else None, False

    def _store_map(self, pages: PageMap) -> Reference:
        with self._maps_lock:
            return self._store(self._maps, encode_map(pages), FrameKind.MAP, MAP_PACK_BYTES)

    # -- frames and packs

    @contextmanager
    def _bench(self) -> Iterator[_Bench]:
        with self._lock:
            bench = self._benches.pop() if self._benches else _Bench(Compressor())
        yield bench
        with self._lock:
            self._benches.append(bench)

    def _store(self, bench: _Bench, plain: bytes | memoryview, kind: FrameKind, pack_bytes: int) -> Reference:
        stored, number = self._frames.make(bench.compressor.compress(plain), kind)
        if bench.pack is None:
            bench.pack = self._uploads.begin()
        reference = bench.pack.add(stored, kind, number, len(plain))
        if bench.pack.size_bytes >= pack_bytes:
            full, bench.pack = bench.pack, None
            self._uploads.send(full)
        return reference


def _small_of(parent: FilePart | None, size_bytes: int) -> Small | None:
    """Where the content lay in the parent; None for one of another size."""
    return parent.small if parent is not None and parent.size_bytes == size_bytes else None


def _as_adopted(pages: PageMap) -> NDArray[np.uint8]:
    """What becomes of the pages of a map that is shared."""
    return np.where(pages.frames == ZEROS, np.uint8(Page.ZERO), np.uint8(Page.ADOPTED))


class _Source:
    """The chunks of a file, taken in other pieces than they come."""

    def __init__(self, name: str, size_bytes: int, chunks: Iterable[Bytes]) -> None:
        self._name, self._size_bytes = name, size_bytes
        self._chunks: Iterator[Bytes] = (chunk for chunk in chunks if chunk)
        self._rest = memoryview(b"")

    def fill(self, target: memoryview) -> None:
        """Fill *target*; IntegrityError when there are fewer bytes."""
        filled = 0
        while filled < len(target):
            if not self._rest and not self._more():
                raise IntegrityError(f"{self._name} ended before its {self._size_bytes} bytes")
            taken = self._rest[: len(target) - filled]
            target[filled : filled + len(taken)] = taken
            filled += len(taken)
            self._rest = self._rest[len(taken) :]

    def take(self, length: int) -> bytes:
        """So many bytes."""
        content = bytearray(length)
        self.fill(memoryview(content))
        return bytes(content)

    def check_end(self) -> None:
        """IntegrityError when there is more."""
        if self._rest or self._more():
            raise IntegrityError(f"{self._name} goes on behind its {self._size_bytes} bytes")

    def _more(self) -> bool:
        self._rest = memoryview(next(self._chunks, b""))
        return bool(self._rest)
