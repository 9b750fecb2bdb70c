"""Page maps: the bytes that the page shows, what is written is read again, and every sentence about refusing."""

import struct

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import IntegrityError
from clipper_backup.format.documents import NewerError
from clipper_backup.format.frames import PLAIN_BYTES_MAX, Reference, digest_of
from clipper_backup.format.page_maps import U16, U32, U64, ZEROS, FrameTable, PageMap, decode_map, encode_map, page_hashes
from clipper_backup.format.physical_names import PackKey
from clipper_backup.values import BackupId
from fixtures.page_examples import AFTER, PACK, PAGE_BYTES, RUN_A, RUN_B, dumps, quoted

SEED = 0x0123456789ABCDEF
MAP = dumps()[1]
CHANGED = quoted("28b52ffd60001f4d")


def read(data: bytes) -> PageMap:
    return decode_map(data, PAGE_BYTES, len(AFTER), "this map")


def example() -> PageMap:
    """The map of the page, from what it describes."""
    first = Reference(PACK, 64, 26, 16_484, 0, digest_of(dumps()[0][0x40:0x5A]))
    second = Reference(PackKey(RUN_B, 3), 4096, 19, PAGE_BYTES, 258, digest_of(CHANGED))
    return PageMap(
        PAGE_BYTES,
        100,
        SEED,
        blake3(AFTER).digest(),
        page_hashes(AFTER, PAGE_BYTES, SEED),
        np.array([ZEROS, 0, 1, 0], U32),
        np.array([0, 0, 0, 2], U16),
        FrameTable.of([first, second]),
    )


def test_the_map_of_the_page_is_written() -> None:
    assert encode_map(example()) == MAP
    assert len(MAP) == 272


def test_the_map_of_the_page_is_read() -> None:
    found = read(MAP)
    assert encode_map(found) == MAP
    assert found.size_bytes == len(AFTER)
    assert found.digest == blake3(AFTER).digest()
    assert found.table.reference(1) == example().table.reference(1)
    assert found.live_bytes().tolist() == [PAGE_BYTES + 100, PAGE_BYTES]


def run_ids(number: int) -> BackupId:
    return BackupId.parse(f"20261122-02{number:04d}-7f3a9c2e")


references = st.builds(
    Reference,
    st.builds(PackKey, st.builds(run_ids, st.integers(0, 5)), st.integers(0, 10**8 - 1)),
    st.integers(64, 2**32 - 1),
    st.integers(1, 2**32 - 1),
    st.integers(128 * PAGE_BYTES, PLAIN_BYTES_MAX),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=16, max_size=16),
)


@st.composite
def page_maps(draw: st.DrawFn) -> PageMap:
    frames = draw(st.lists(references, max_size=6))
    pages = draw(st.integers(1, 30))
    of = draw(st.lists(st.sampled_from([ZEROS, *range(len(frames))]), min_size=pages, max_size=pages))
    places = [0 if frame == ZEROS else draw(st.integers(0, 127)) for frame in of]
    return PageMap(
        PAGE_BYTES,
        draw(st.integers(1, PAGE_BYTES)),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.none() | st.binary(min_size=32, max_size=32)),
        np.array(draw(st.lists(st.integers(0, 2**64 - 1), min_size=pages, max_size=pages)), U64),
        np.array(of, U32),
        np.array(places, U16),
        FrameTable.of(frames),
    )


@given(page_maps())
def test_what_is_written_is_read_again(pages: PageMap) -> None:
    data = encode_map(pages)
    found = decode_map(data, PAGE_BYTES, pages.size_bytes, "this map")
    assert encode_map(found) == data
    assert (found.seed, found.digest, found.last_bytes) == (pages.seed, pages.digest, pages.last_bytes)
    assert [found.table.reference(row) for row in range(len(found.table))] == [
        pages.table.reference(row) for row in range(len(pages.table))
    ]


@given(st.lists(references, max_size=8), st.lists(references, max_size=8), st.data())
def test_tables_are_cut_and_joined(first: list[Reference], second: list[Reference], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(first))), unique=True)) if first else []
    joined = FrameTable.of(first).only(np.array(kept, np.intp)).followed_by(FrameTable.of(second))
    wanted = [*(first[row] for row in kept), *second]
    assert [joined.reference(row) for row in range(len(joined))] == wanted
    assert set(joined.run_ids) == {each.pack.run for each in wanted}
    assert len(joined.run_ids) == len(set(joined.run_ids))


@given(st.integers(0, 40_000), st.integers(0, 2**64 - 1), st.sampled_from([1024, 8192, 32768]))
def test_each_page_has_its_own_hash(size: int, seed: int, page_bytes: int) -> None:
    stretch = bytes(n * n % 251 for n in range(size))
    hashes = page_hashes(memoryview(stretch), page_bytes, seed)
    assert len(hashes) == -(-size // page_bytes)
    for number, found in enumerate(hashes):
        assert page_hashes(stretch[number * page_bytes : (number + 1) * page_bytes], page_bytes, seed) == found


def test_another_seed_makes_other_hashes() -> None:
    assert not (page_hashes(AFTER, PAGE_BYTES, SEED) == page_hashes(AFTER, PAGE_BYTES, SEED + 1)).any()


# -- what is refused


def changed(offset: int, form: str, value: int) -> bytes:
    data = bytearray(MAP)
    struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [changed(7, "<B", ord("2")), changed(28, "<I", 3), changed(28, "<I", 0x80000001), changed(28, "<I", 2), changed(72, "<Q", 1)],
)
def test_what_this_version_does_not_know_is_refused_and_no_damage(data: bytes) -> None:
    with pytest.raises(NewerError, match="this map was written by a newer version"):
        read(data)


@pytest.mark.parametrize(("data", "told"), [
    (changed(0, "<B", 0), "is no page map"),
    (changed(28, "<I", 0), "has a digest, and says that it has none"),
    (changed(8, "<I", 4096), "not that of 24676 bytes in pages of 8192"),
    (changed(16, "<I", 0), "not that of"),
    (changed(16, "<I", 99), "not that of"),
    (changed(16, "<I", 8193), "not that of"),
    (changed(12, "<I", 3), "another length"),
    (changed(12, "<I", 0xFFFFFFFF), "another length"),
    (changed(20, "<I", 1), "another length"),
    (changed(24, "<I", 3), "another length"),
    (MAP + b"\0", "another length"),
    (MAP[:-1], "another length"),
    (MAP[:79], "cut short"),
    (b"", "cut short"),
    (changed(0x74, "<I", 2), "a frame or a run that it does not have"),
    (changed(0x74, "<I", 0xFFFFFFFE), "a frame or a run that it does not have"),
    (changed(0xB8, "<I", 2), "a frame or a run that it does not have"),
    (changed(0x80, "<H", 1), "a place for a page of zeros"),
    (changed(0x82, "<H", 2), "a place beyond its frame"),  # a whole page where only the short one lies
    (changed(0x84, "<H", 1), "a place beyond its frame"),
    (changed(0x86, "<H", 3), "a place beyond its frame"),
    (changed(0x86, "<H", 0xFFFF), "a place beyond its frame"),
    (changed(0xB0, "<I", 16_483), "a place beyond its frame"),
    (changed(0xE0, "<B", ord("x")), "a run that is none"),
    (changed(0xE0, "<B", 0xFF), "a run that is none"),
])  # fmt: skip
def test_a_map_that_is_not_as_the_page_says(data: bytes, told: str) -> None:
    with pytest.raises(IntegrityError, match=rf"^this map.*{told}"):
        read(data)


@pytest.mark.parametrize(("page_bytes", "size_bytes"), [
    (8192, 24_675), (8192, 24_677), (8192, 32_868), (8192, 16_484), (4096, 24_676), (16_384, 24_676),
])  # fmt: skip
def test_the_map_of_another_stretch(page_bytes: int, size_bytes: int) -> None:
    with pytest.raises(IntegrityError, match="not that of"):
        decode_map(MAP, page_bytes, size_bytes, "this map")


def test_a_map_without_pages_is_that_of_no_stretch() -> None:
    head = bytearray(MAP[:80])
    struct.pack_into("<IIII", head, 12, 0, PAGE_BYTES, 0, 0)
    with pytest.raises(IntegrityError, match="not that of 0 bytes"):
        decode_map(bytes(head), PAGE_BYTES, 0, "this map")


def test_a_map_whose_stretch_was_not_read_whole_has_no_digest() -> None:
    data = bytearray(MAP)
    data[28] = 0
    data[40:72] = bytes(32)
    assert read(bytes(data)).digest is None
    assert encode_map(read(bytes(data))) == data
    assert RUN_A in read(bytes(data)).table.run_ids
