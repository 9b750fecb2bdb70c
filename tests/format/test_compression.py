import hashlib
import itertools
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clipper_backup.errors import IntegrityError
from clipper_backup.format.compression import READ_BYTES, Counter, Meter, compress, compress_bytes, decompress, decompress_bytes

ROWS = b"".join(b"%d\tuser %d\t%s\n" % (n, n % 7, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in range(40))
SMALL = compress_bytes(ROWS)
MIB = 1 << 20


def pieces_of(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """*data* in pieces of those sizes, again and again; empty ones too."""
    position = 0
    for size in itertools.cycle(sizes):
        yield data[position : position + size]
        position += size
        if position >= len(data):
            return


piece_sizes = st.lists(st.integers(0, 5000), min_size=1).filter(any)


@given(st.lists(st.binary(max_size=3000)), st.sampled_from([1, 3]), st.sampled_from([1, 2]), piece_sizes)
@example([], 1, 1, [1])
@example([b"", b""], 1, 2, [1, 0])
@example([ROWS] * 9, 19, 2, [777])
def test_everything_comes_back_however_it_is_cut(chunks: list[bytes], level: int, threads: int, sizes: list[int]) -> None:
    packed = b"".join(compress(chunks, level=level, threads=threads))
    assert b"".join(decompress(pieces_of(packed, sizes), "it")) == b"".join(chunks)


def test_one_frame_with_a_checksum_that_the_zstd_program_accepts() -> None:
    zstd = shutil.which("zstd")
    assert zstd is not None, "zstd is missing: run scripts/debian-packages"
    listed = subprocess.run([zstd, "--list", "-v"], input=SMALL, capture_output=True, check=False)
    plain = subprocess.run([zstd, "-d"], input=SMALL, capture_output=True, check=True).stdout
    assert plain == ROWS
    assert SMALL[4] & 0b100, listed  # the frame header's Content_Checksum_flag, RFC 8878 section 3.1.1.1.1


def test_cut_short_anywhere_it_ends_too_early() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(IntegrityError, match="a key ends too early"):
            decompress_bytes(SMALL[:length], "a key")


def test_cut_short_it_never_seems_whole_to_who_reads_on() -> None:
    plain = decompress([SMALL[:-1]], "a key")
    assert next(plain) == ROWS  # all of it, but its checksum was not seen
    with pytest.raises(IntegrityError, match="a key ends too early"):
        next(plain)


@given(st.binary(min_size=1), piece_sizes)
@example(b"\0", [len(SMALL) + 1])
@example(b"\0", [len(SMALL)])
@example(SMALL, [len(SMALL)])
@example(SMALL, [3 * len(SMALL)])
@example(b"\x50\x2a\x4d\x18\0\0\0\0", [7])
def test_what_follows_the_end_is_refused(more: bytes, sizes: list[int]) -> None:
    with pytest.raises(IntegrityError, match="a key goes on after its end"):
        list(decompress(pieces_of(SMALL + more, sizes), "a key"))


def test_an_empty_piece_after_the_end_is_nothing() -> None:
    assert b"".join(decompress([SMALL, b""], "a key")) == ROWS


def test_a_flipped_bit_is_found_or_makes_no_difference() -> None:
    # A frame has bits that mean nothing, or only how much memory to take: such a flip changes no plain byte. What is committed
    # has its SHA-256 in the summary as well, which finds these too.
    harmless = 0
    for place in range(len(SMALL)):
        for bit in range(8):
            flipped = bytearray(SMALL)
            flipped[place] ^= 1 << bit
            try:
                assert decompress_bytes(bytes(flipped), "a key") == ROWS
                harmless += 1
            except IntegrityError:
                pass
    assert harmless < 8 * len(SMALL) // 100


@pytest.mark.parametrize("data", [b"no zstd at all", b"\0" * 100, b"\x1f\x8b" + b"\0" * 20], ids=["text", "zeros", "gzip"])
def test_something_else_does_not_decompress(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="a key does not decompress"):
        decompress_bytes(data, "a key")


def test_a_gigabyte_of_zeros_is_handed_out_in_small_pieces() -> None:
    bomb = b"".join(compress((bytes(16 * MIB) for _ in range(64)), level=1))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        total = 0
        for piece in decompress([bomb], "a key"):
            assert len(piece) <= READ_BYTES
            total += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 1024 * MIB
    assert peak < 8 * MIB


def test_an_error_of_the_source_is_not_taken_for_its_end() -> None:
    def breaking() -> Iterator[bytes]:
        yield ROWS
        raise OSError("the source broke")

    packed: list[bytes] = []
    with pytest.raises(OSError, match="the source broke"):
        packed.extend(compress(breaking(), level=1))
    with pytest.raises(IntegrityError):
        decompress_bytes(b"".join(packed), "half")


@given(st.lists(st.binary()))
def test_a_meter_changes_nothing_and_knows_all(chunks: list[bytes]) -> None:
    meter, counter = Meter(), Counter()
    assert list(counter.pass_through(meter.pass_through(chunks))) == chunks
    whole = b"".join(chunks)
    assert (meter.size_bytes, meter.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert counter.size_bytes == len(whole)


def test_a_meter_knows_only_what_passed() -> None:
    meter = Meter()
    passing = meter.pass_through([b"ab", b"c"])
    next(passing)
    assert (meter.size_bytes, meter.sha256) == (2, hashlib.sha256(b"ab").hexdigest())
