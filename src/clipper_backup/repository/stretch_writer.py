"""One stretch on its way into packs: which of its pages are stored, in which frames, and the map that says so."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from clipper_backup.format.frames import FRAME_PAGES_MAX, Reference
from clipper_backup.format.page_maps import U16, U32, ZEROS, FrameTable, PageMap, page_hashes, page_lengths
from clipper_backup.format.physical_names import PackKey
from clipper_backup.repository.adoption import Adoption, Fate


class Page(IntEnum):
    """What becomes of one page; the names are those of backup.json's `pages`."""

    ADOPTED = Fate.ADOPTED
    COMPACTED = Fate.COMPACTED
    AGED = Fate.AGED
    HEALED = Fate.HEALED
    NEW = 4
    ZERO = 5


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """What was read of a stretch, in one pass over it."""

    content: memoryview
    page_bytes: int
    seed: int
    hashes: NDArray[np.uint64]
    digest: bytes

    @classmethod
    def read(cls, content: memoryview, page_bytes: int, seed: int) -> "Stretch":
        """Hash it."""
        return cls(content, page_bytes, seed, page_hashes(content, page_bytes, seed), blake3(content).digest())

    @property
    def last_bytes(self) -> int:
        """The size of its last page."""
        return len(self.content) - (len(self.hashes) - 1) * self.page_bytes

    def lengths(self) -> NDArray[np.int64]:
        """The size of each page."""
        return page_lengths(len(self.hashes), self.page_bytes, self.last_bytes)

    def page(self, number: int) -> memoryview:
        """One page."""
        return self.content[number * self.page_bytes : (number + 1) * self.page_bytes]

    def zeros(self) -> NDArray[np.bool_]:
        """Which pages are nothing but zeros: seen in the bytes, not in the hash, which could be made to look so."""
        found = np.zeros(len(self.hashes), np.bool_)
        zero_page = bytes(self.page_bytes)
        for length, numbers in ((self.page_bytes, slice(None, -1)), (self.last_bytes, slice(-1, None))):
            found[numbers] = self.hashes[numbers] == np.uint64(xxh3_64_intdigest(zero_page[:length], seed=self.seed))
        for number in np.flatnonzero(found):
            page = self.page(int(number))
            found[number] = bytes(page) == zero_page[: len(page)]
        return found


def decide(stretch: Stretch, parent: PageMap | None, adoption: Adoption) -> NDArray[np.uint8]:
    """What becomes of each page, as values of `Page`; *parent* is the parent's map of the same stretch, of the same seed."""
    pages = np.full(len(stretch.hashes), Page.NEW, np.uint8)
    zeros = stretch.zeros()
    if parent is not None:
        common = min(len(pages), len(parent.hashes))
        alike = stretch.lengths()[:common] == parent.lengths()[:common]
        same = alike & (stretch.hashes[:common] == parent.hashes[:common]) & (parent.frames[:common] != ZEROS)
        packs, of_row = parent.table.packs_of()
        fates = np.array([adoption.fate(pack) for pack in packs], np.uint8)
        pages[:common][same] = fates[of_row[parent.frames[:common][same]]]
        if _is_forged(stretch, parent, same, zeros):
            pages[:] = Page.NEW
    pages[zeros] = Page.ZERO
    return pages


def _is_forged(stretch: Stretch, parent: PageMap, same: NDArray[np.bool_], zeros: NDArray[np.bool_]) -> bool:
    """Whether all pages look unchanged and the stretch is not: two contents of one page have one hash."""
    if len(stretch.content) != parent.size_bytes or parent.digest in {None, stretch.digest}:
        return False
    return bool((same | zeros).all() and (zeros == (parent.frames == ZEROS)).all())


def is_whole(stretch: Stretch, pages: NDArray[np.uint8], parent: PageMap) -> bool:
    """Whether *parent* describes this stretch too: its map may be shared."""
    if stretch.digest != parent.digest or len(stretch.content) != parent.size_bytes:
        return False
    zeros = pages == Page.ZERO
    return bool(((pages == Page.ADOPTED) | zeros).all() and (zeros == (parent.frames == ZEROS)).all())


Store = Callable[[bytes | memoryview], Reference]
"""Compresses, seals and appends a frame of pages."""


def write_pages(stretch: Stretch, pages: NDArray[np.uint8], parent: PageMap | None, store: Store) -> PageMap:
    """Store the pages that are not adopted, up to FRAME_PAGES_MAX in a frame, and describe the stretch."""
    frames = np.full(len(pages), ZEROS, U32)
    places = np.zeros(len(pages), U16)
    table = FrameTable.of([])
    adopted = np.flatnonzero(pages == Page.ADOPTED)
    if parent is not None and len(adopted):
        kept, renumbered = np.unique(parent.frames[adopted], return_inverse=True)
        table = parent.table.only(kept.astype(np.intp))
        frames[adopted], places[adopted] = renumbered, parent.places[adopted]
    stored = np.flatnonzero((pages != Page.ADOPTED) & (pages != Page.ZERO))
    made: list[Reference] = []
    for start in range(0, len(stored), FRAME_PAGES_MAX):
        numbers = stored[start : start + FRAME_PAGES_MAX]
        frames[numbers], places[numbers] = len(table) + len(made), np.arange(len(numbers))
        made.append(store(_joined(stretch, numbers)))
    return PageMap(
        stretch.page_bytes,
        stretch.last_bytes,
        stretch.seed,
        stretch.digest,
        stretch.hashes,
        frames,
        places,
        table.followed_by(FrameTable.of(made)),
    )


def _joined(stretch: Stretch, numbers: NDArray[np.intp]) -> bytes | memoryview:
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first == len(numbers) - 1:  # without a copy
        return stretch.content[first * stretch.page_bytes : (last + 1) * stretch.page_bytes]
    return b"".join(stretch.page(int(number)) for number in numbers)


def live_in(pages: PageMap) -> dict[PackKey, int]:
    """How many plain bytes of each pack the pages of a map name."""
    packs, of_row = pages.table.packs_of()
    summed = np.bincount(of_row, pages.live_bytes(), minlength=len(packs))
    return dict(zip(packs, summed.astype(np.int64).tolist(), strict=True))
