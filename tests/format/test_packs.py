"""Packs: the bytes that the page shows, what is built is read again, and each byte of a pack is covered."""

import subprocess
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import IntegrityError
from clipper_backup.format.frames import PACK_BYTES_MAX, Compressor, FrameKind, digest_of
from clipper_backup.format.packs import (
    END_BYTES,
    PackBuilder,
    PackRow,
    check_header,
    encode_header,
    encode_trailer,
    read_trailer,
    trailer_bytes,
)
from clipper_backup.format.physical_names import PackKey
from fixtures.page_examples import BEFORE, PACK, PAGE_BYTES, REPOSITORY, RUN_A, RUN_B, VERSION, dumps

DIGEST = bytes.fromhex("3605ff67dfc7694bd9a954cf27d45070dd1b4a429688ee9040dbd719d53afecc")
PAGES, SMALL = dumps()[0][0x40:0x5A], dumps()[0][0x5A:0x66]


def built() -> PackBuilder:
    builder = PackBuilder(PACK, REPOSITORY, sealed=False)
    builder.add(PAGES, FrameKind.PAGES, 0, 16_484)
    builder.add(SMALL, FrameKind.SMALL, 1, 3)
    return builder


def read(data: bytes, pack: PackKey = PACK, repository: bytes = REPOSITORY) -> tuple[list[PackRow], bytes]:
    """All that a reader looks at but the frames."""
    check_header(data[:64], pack, repository)
    length = trailer_bytes(data[-END_BYTES:], pack)
    return read_trailer(data[:64], data[-length:], pack, len(data))


def test_the_pack_of_the_page_is_built() -> None:
    data, facts = built().close()
    assert data == dumps()[0]
    assert (facts.size_bytes, facts.plain_bytes, facts.digest) == (234, 16_487, DIGEST)


def test_the_pack_of_the_page_is_read() -> None:
    data = dumps()[0]
    rows, digest = read(data)
    assert check_header(data[:64], PACK, REPOSITORY) is False
    assert digest == DIGEST
    assert rows == [
        PackRow(26, 16_484, 0, FrameKind.PAGES, digest_of(PAGES)),
        PackRow(12, 3, 1, FrameKind.SMALL, digest_of(SMALL)),
    ]


def test_zstd_alone_decompresses_an_unsealed_pack() -> None:
    said = subprocess.run(["zstd", "-d"], input=dumps()[0], capture_output=True, check=True)
    assert said.stdout == BEFORE[PAGE_BYTES:] + VERSION


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.sampled_from(FrameKind)), max_size=20),
    st.booleans(),
    st.integers(0, 10**8 - 1),
)
def test_what_is_built_is_read_again(frames: list[tuple[bytes, FrameKind]], sealed: bool, number: int) -> None:
    pack, compressor = PackKey(RUN_B, number), Compressor()
    builder = PackBuilder(pack, REPOSITORY, sealed=sealed)
    assert builder.empty
    packed = [compressor.compress(plain) for plain, _ in frames]
    references = [
        builder.add(stored, kind, n, len(plain)) for n, ((plain, kind), stored) in enumerate(zip(frames, packed, strict=True))
    ]
    data, facts = builder.close()
    rows, digest = read(data, pack)
    assert (len(data), digest, check_header(data[:64], pack, REPOSITORY)) == (facts.size_bytes, facts.digest, sealed)
    assert [data[each.offset : each.offset + each.stored_bytes] for each in references] == packed
    assert [(row.number, row.kind, row.digest) for row in rows] == [
        (each.number, kind, each.digest) for each, (_, kind) in zip(references, frames, strict=True)
    ]
    assert all(first.offset + first.stored_bytes == second.offset for first, second in pairwise(references))


def test_a_frame_of_a_kind_that_nobody_knows_is_read_like_the_others() -> None:
    header = encode_header(PACK, REPOSITORY, sealed=False)
    row = PackRow(len(PAGES), 16_484, 0, 4, digest_of(PAGES))
    trailer, _ = encode_trailer(header, [row])
    assert read(header + PAGES + trailer)[0] == [row]


# -- what is refused


def test_each_flipped_bit_of_header_and_trailer_is_found() -> None:
    data = dumps()[0]
    for position in [*range(64 * 8), *range(0x66 * 8, len(data) * 8)]:
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(IntegrityError, match="packs/20261122-020000-7f3a9c2e/00000000"):
            read(bytes(flipped))


@pytest.mark.parametrize("length", [0, 1, 43, 63, 64, 65, 0x66, 233])
def test_a_pack_that_was_cut_is_refused(length: int) -> None:
    with pytest.raises(IntegrityError):
        read(dumps()[0][:length])


def test_a_pack_that_goes_on_is_refused() -> None:
    with pytest.raises(IntegrityError):
        read(dumps()[0] + b"\0")


@pytest.mark.parametrize(("pack", "repository"), [
    (PackKey(RUN_A, 1), REPOSITORY), (PackKey(RUN_B, 0), REPOSITORY), (PACK, bytes(16)),
])  # fmt: skip
def test_a_pack_is_taken_only_at_its_own_key(pack: PackKey, repository: bytes) -> None:
    with pytest.raises(IntegrityError, match="does not begin as this pack"):
        read(dumps()[0], pack, repository)


def test_frames_that_do_not_fill_the_pack_are_refused() -> None:
    header = encode_header(PACK, REPOSITORY, sealed=False)
    trailer, _ = encode_trailer(header, [PackRow(len(PAGES) - 1, 16_484, 0, 1, digest_of(PAGES))])
    with pytest.raises(IntegrityError, match="do not fill"):
        read(header + PAGES + trailer)


def test_a_reserved_field_is_refused_though_the_digest_covers_it() -> None:
    data = bytearray(built().close()[0])
    data[0x66 + 8 + 20] = 1
    with pytest.raises(IntegrityError, match="does not know"):
        read(bytes(data))


def test_no_pack_has_more_than_a_gibibyte() -> None:
    data = dumps()[0]
    with pytest.raises(IntegrityError, match="no pack has so many"):
        read_trailer(data[:64], data[0x66:], PACK, PACK_BYTES_MAX + 1)
