"""Frames and references: the bytes that the page shows, everything comes back, nothing else is opened."""

import json
import re
import threading
from typing import Any

import pytest
from backports import zstd
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import IntegrityError
from clipper_backup.format.frames import (
    PLAIN_BYTES_MAX,
    STRETCH_BYTES,
    Compressor,
    FrameCipher,
    FrameKind,
    Reference,
    Small,
    digest_of,
    is_stretch,
    open_frame,
    stretches,
)
from clipper_backup.format.physical_names import PackKey
from fixtures.page_examples import AFTER, BEFORE, KEY, PACK, PAGE, PAGE_BYTES, REPOSITORY, RUN_A, RUN_B, dumps, quoted

CIPHER = FrameCipher(KEY, REPOSITORY, RUN_B)
CHANGED = quoted("28b52ffd60001f4d")
"""The frame of the page of 04."""


def reference(stored: bytes, plain_bytes: int, number: int = 258) -> Reference:
    return Reference(PackKey(RUN_B, 3), 4096, len(stored), plain_bytes, number, digest_of(stored))


# -- the bytes of the page


def test_the_frames_of_the_page_open() -> None:
    pack = dumps()[0]
    pages, version = pack[0x40:0x5A], pack[0x5A:0x66]
    first = Reference(PACK, 64, 26, 16_484, 0, bytes.fromhex("44059f55a2f2c887f4728a91d6f59b3a"))
    assert open_frame(pages, first, FrameKind.PAGES, None) == BEFORE[PAGE_BYTES:]
    assert open_frame(version, reference(version, 3), FrameKind.SMALL, None) == b"15\n"
    assert open_frame(CHANGED, reference(CHANGED, PAGE_BYTES), FrameKind.PAGES, None) == AFTER[2 * PAGE_BYTES : 3 * PAGE_BYTES]


def test_sealing_makes_the_bytes_of_the_page() -> None:
    sealed = CIPHER.seal(CHANGED, FrameKind.PAGES, 258)
    assert sealed == quoted("259d3f6b049c")
    assert digest_of(sealed).hex() == "82c58eba879d326947e87786b87d514b"
    assert open_frame(sealed, reference(sealed, PAGE_BYTES), FrameKind.PAGES, CIPHER) == b"\4" * PAGE_BYTES
    first = FrameCipher(KEY, REPOSITORY, RUN_A).seal(dumps()[0][0x40:0x5A], FrameKind.PAGES, 0)
    assert first == quoted("26099a23d548")
    assert digest_of(first).hex() == "7787b2d02b52740d724cbd6b2e83210d"


def test_the_references_of_the_page_are_read_and_written() -> None:
    told = json.loads(re.search(r'^    (\["20261123.*\])$', PAGE, re.MULTILINE)[1])  # type: ignore[index]
    found = Reference.from_json(told)
    assert found.to_json() == told
    assert (str(found.pack.run), found.pack.number, found.offset, found.number) == (str(RUN_B), 4, 64, 259)
    small = json.loads(re.search(r'"small":(\[\[.*?\]\s*,\d+,"[0-9a-f]+"\])', PAGE)[1])  # type: ignore[index]
    assert Small.from_json(small).to_json() == small
    assert Small.from_json(small).frame.pack == PACK


# -- there and back


@given(st.binary(max_size=3000), st.sampled_from(FrameKind), st.integers(0, 2**64 - 1), st.booleans())
def test_what_was_stored_comes_back(plain: bytes, kind: FrameKind, number: int, sealed: bool) -> None:
    packed = Compressor().compress(plain)
    cipher = CIPHER if sealed else None
    stored = CIPHER.seal(packed, kind, number) if sealed else packed
    assert open_frame(stored, reference(stored, len(plain), number), kind, cipher) == plain


def test_a_compressor_used_again_tells_each_content_s_size_and_no_checksum() -> None:
    compressor = Compressor()
    for size in (0, 1, 255, 256, 65_791, 1 << 20, 4 << 20):
        packed = compressor.compress(memoryview(bytes(size)))
        assert zstd.get_frame_info(packed).decompressed_size == size
        assert packed[4] & 4 == 0, "RFC 8878, 3.1.1.1.1: bit 2 says that a checksum follows"


def test_a_cipher_may_be_used_by_many_threads() -> None:
    opened: list[bytes] = []

    def work(number: int) -> None:
        sealed = [CIPHER.seal(bytes([number]) * 10_000, FrameKind.PAGES, number) for _ in range(20)]
        opened.extend(CIPHER.open(each, FrameKind.PAGES, number)[:1] for each in sealed)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(opened) == [bytes([number]) for number in range(4) for _ in range(20)]


# -- what is refused


@pytest.mark.rule(85)
def test_a_frame_opens_only_as_what_it_was_sealed_as() -> None:
    sealed = CIPHER.seal(CHANGED, FrameKind.PAGES, 258)
    for kind, number, cipher in (
        (FrameKind.SMALL, 258, CIPHER),
        (FrameKind.PAGES, 259, CIPHER),
        (FrameKind.PAGES, 258, FrameCipher(KEY, REPOSITORY, RUN_A)),
        (FrameKind.PAGES, 258, FrameCipher(KEY, bytes(16), RUN_B)),
        (FrameKind.PAGES, 258, FrameCipher(bytes(32), REPOSITORY, RUN_B)),
    ):
        with pytest.raises(InvalidTag):
            cipher.open(sealed, kind, number)
        with pytest.raises(IntegrityError, match="cannot be decrypted"):
            open_frame(sealed, reference(sealed, PAGE_BYTES, number), kind, cipher)


@pytest.mark.parametrize("cipher", [None, CIPHER], ids=["plain", "sealed"])
def test_each_flipped_bit_and_each_cut_is_found_before_anything_is_opened(cipher: FrameCipher | None) -> None:
    stored = CHANGED if cipher is None else cipher.seal(CHANGED, FrameKind.PAGES, 258)
    named = reference(stored, PAGE_BYTES)
    for position in range(len(stored) * 8):
        flipped = bytearray(stored)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(IntegrityError, match="BLAKE3 differs"):
            open_frame(bytes(flipped), named, FrameKind.PAGES, cipher)
    for wrong in (stored[:-1], stored + b"\0", b""):
        with pytest.raises(IntegrityError, match="BLAKE3 differs"):
            open_frame(wrong, named, FrameKind.PAGES, cipher)


def without_size(plain: bytes) -> bytes:
    return zstd.compress(plain, options={zstd.CompressionParameter.content_size_flag: 0})


@pytest.mark.parametrize(("stored", "plain_bytes"), [
    (b"no zstd at all", 5),
    (b"", 0),
    (CHANGED[:-1], PAGE_BYTES),
    (CHANGED, PAGE_BYTES - 1),
    (CHANGED, PAGE_BYTES + 1),
    (CHANGED + CHANGED, PAGE_BYTES),
    (CHANGED + zstd.compress(bytes(1 << 28)), PAGE_BYTES),
    (CHANGED + b"\0", PAGE_BYTES),
    (without_size(b"\4" * PAGE_BYTES), PAGE_BYTES),
    (zstd.compress(bytes(1 << 28)), PAGE_BYTES),
])  # fmt: skip
def test_a_forged_frame_of_an_honest_digest_is_refused(stored: bytes, plain_bytes: int) -> None:
    with pytest.raises(IntegrityError, match="packs/20261123-020000-0c4d9b61/00000003, frame 258"):
        open_frame(stored, reference(stored, plain_bytes), FrameKind.PAGES, None)


def test_no_frame_has_more_than_eight_mebibytes() -> None:
    stored = zstd.compress(bytes(PLAIN_BYTES_MAX + 1))
    with pytest.raises(IntegrityError, match="8388609: no frame has"):
        open_frame(stored, reference(stored, PLAIN_BYTES_MAX + 1), FrameKind.PAGES, None)


GOOD: list[Any] = ["20261123-020000-0c4d9b61/00000004", 64, 237, 272, 259, "03eb699fcd8742f1f4de90e9fcb04b6c"]


@pytest.mark.parametrize(("place", "wrong"), [
    (0, 4), (0, "20261123-020000-0c4d9b61"), (0, "20261123-020000-0c4d9b61/4"), (0, "20261399-020000-0c4d9b61/00000004"),
    (0, "../00000004"), (0, None),
    (1, 63), (1, 64.0), (1, "64"), (1, True), (1, 1 << 30),
    (2, 0), (2, -1), (2, (1 << 30) - 63), (2, True), (2, 272 + 2 + 256 + 1),
    (3, -1), (3, (8 << 20) + 1), (3, None),
    (4, -1), (4, 1 << 64), (4, False),
    (5, "03EB699FCD8742F1F4DE90E9FCB04B6C"), (5, "03eb"), (5, 3), (5, "03eb699fcd8742f1f4de90e9fcb04b6c00"),
])  # fmt: skip
def test_what_is_no_reference(place: int, wrong: object) -> None:
    assert Reference.from_json(GOOD).to_json() == GOOD
    with pytest.raises(IntegrityError, match="not a reference"):
        Reference.from_json([*GOOD[:place], wrong, *GOOD[place + 1 :]])


@pytest.mark.parametrize("wrong", [None, {}, "x", [], GOOD[:5], [*GOOD, 1]])
def test_what_is_no_array_of_a_reference(wrong: object) -> None:
    with pytest.raises(IntegrityError, match="not a reference"):
        Reference.from_json(wrong)


@pytest.mark.parametrize("wrong", [
    None, [], [GOOD], [GOOD, 0], [GOOD, -1, "0" * 64], [GOOD, True, "0" * 64], [GOOD, 0.0, "0" * 64], [GOOD, 0, "0" * 32],
    [GOOD, 0, "F" * 64], [GOOD, 0, "0" * 64, 0], [GOOD[0], 0, "0" * 64],
])  # fmt: skip
def test_what_is_no_place_of_a_small_file(wrong: object) -> None:
    with pytest.raises(IntegrityError, match="not the place of a small file"):
        Small.from_json(wrong)


def test_a_file_is_cut_into_stretches() -> None:
    assert stretches(0, STRETCH_BYTES) == []
    assert stretches(1, STRETCH_BYTES) == [1]
    assert stretches(STRETCH_BYTES, STRETCH_BYTES) == [STRETCH_BYTES]
    assert stretches(2 * STRETCH_BYTES + 7, STRETCH_BYTES) == [STRETCH_BYTES, STRETCH_BYTES, 7]
    assert stretches((2 << 20) + 7, 1 << 20) == [1 << 20, 1 << 20, 7]


@pytest.mark.parametrize("page_bytes", [1024, 8192, 32768])
def test_sizes_that_a_stretch_may_have(page_bytes: int) -> None:
    """Powers of two of 1 MiB to 1 GiB, of no more pages than a map in one frame has room for."""
    possible = [1 << n for n in range(40) if is_stretch(1 << n, page_bytes)]
    assert possible == [1 << n for n in range(20, 28 if page_bytes == 1024 else 31)]
    pages = max(possible) // page_bytes
    assert 80 + pages * (14 + 44) + 24 * 1000 <= PLAIN_BYTES_MAX, "each page in a frame of its own, of a thousand runs"
    for impossible in (0, -1, -(64 << 20), 1, 3 << 20, (64 << 20) + 1, (64 << 20) - 8192):
        assert not is_stretch(impossible, page_bytes)
    assert not is_stretch(64 << 20, 0)
    assert not is_stretch(64 << 20, 3000)
