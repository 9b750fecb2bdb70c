"""The checksums of data pages, of many pages at a time (storage/checksum.h and bufpage.h of PostgreSQL 15 to 18).

A page is 32 lanes of 32-bit words, word n in lane n modulo 32. Each lane is hashed on its own, so all pages and lanes take a
step together: that is what makes it fast in C, and here too.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Bytes = bytes | bytearray | memoryview
Numbers = NDArray[np.int64]

_LANES = 32
_PRIME = np.uint32(16_777_619)
"""Of the 32-bit FNV hash."""
_SHIFT = np.uint32(17)
_ROUNDS_OF_ZEROS = 2
_SEEDS = np.array(
    [
        0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
        0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
        0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
        0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
    ],
    np.uint32,
)  # fmt: skip
"""With what each lane begins: part of the definition."""
_AT_ONCE_BYTES = 4 << 20
"""Pages that are hashed together: fewer cost more calls, more do not fit into a core's cache."""
_CHECKSUM_WORD = 2
_UPPER = 7
"""The checksum is the lower half of word 2 of a page, pd_upper the half word 7 (offsets 8 and 14 of PageHeaderData)."""


def page_lsns(content: Bytes, page_bytes: int) -> NDArray[np.uint64]:
    """The LSN of each page of *content*, which is whole pages."""
    words = _words(content, page_bytes)
    return words[:, 0].astype(np.uint64) << np.uint64(32) | words[:, 1]


def is_new(content: Bytes, page_bytes: int) -> NDArray[np.bool_]:
    """Which pages were never initialised (pd_upper is 0): they have no checksum."""
    found: NDArray[np.bool_] = _halves(content, page_bytes)[:, _UPPER] == 0
    return found


def wrong_pages(content: Bytes, page_bytes: int, first_block: int, wanted: Numbers) -> Numbers:
    """Those of the pages *wanted* (rising, counted within *content*) whose checksum is not that of what they hold.

    *first_block* is the number of the first page of *content* in its relation, over all of its files.
    """
    words, halves = _words(content, page_bytes), _halves(content, page_bytes)
    wrong = [np.empty(0, np.int64)]
    for numbers in _batches(wanted, _AT_ONCE_BYTES // page_bytes):
        run = slice(int(numbers[0]), int(numbers[-1]) + 1)
        pages = words[run] if run.stop - run.start == len(numbers) else words[numbers]  # without a copy where they are neighbours
        stored = halves[numbers, 2 * _CHECKSUM_WORD]
        wrong.append(numbers[_checksums(pages, numbers + first_block) != stored])
    return np.concatenate(wrong)


def _batches(numbers: Numbers, most: int) -> Iterator[Numbers]:
    for start in range(0, len(numbers), most):
        yield numbers[start : start + most]


def _checksums(pages: NDArray[np.uint32], blocks: Numbers) -> NDArray[np.uint16]:
    """The checksum of each row of words, which is a page; *blocks* are the pages' numbers in their relation."""
    sums = np.repeat(_SEEDS[np.newaxis], len(pages), axis=0)
    mixed = np.empty_like(sums)
    for row in range(0, pages.shape[1], _LANES):
        words = pages[:, row : row + _LANES]
        np.bitwise_xor(sums, words, out=sums)
        if row == 0:  # the field of the checksum itself counts as zero
            sums[:, _CHECKSUM_WORD] ^= words[:, _CHECKSUM_WORD] & np.uint32(0xFFFF)
        _mix(sums, mixed)
    for _ in range(_ROUNDS_OF_ZEROS):
        _mix(sums, mixed)
    folded = np.bitwise_xor.reduce(sums, axis=1) ^ blocks.astype(np.uint32)
    found: NDArray[np.uint16] = (folded % np.uint32(65535) + np.uint32(1)).astype(np.uint16)
    return found


def _mix(sums: NDArray[np.uint32], mixed: NDArray[np.uint32]) -> None:
    """One step of each lane; *mixed* is room for it."""
    np.right_shift(sums, _SHIFT, out=mixed)
    np.multiply(sums, _PRIME, out=sums)
    np.bitwise_xor(sums, mixed, out=sums)


def _words(content: Bytes, page_bytes: int) -> NDArray[np.uint32]:
    return np.frombuffer(content, "<u4").reshape(-1, page_bytes // 4)


def _halves(content: Bytes, page_bytes: int) -> NDArray[np.uint16]:
    return np.frombuffer(content, "<u2").reshape(-1, page_bytes // 2)
