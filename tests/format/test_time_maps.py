"""Time maps: the page's own bytes; every map comes back; what is not as the page says is refused."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import IntegrityError
from clipper_backup.format.compression import compress_bytes, decompress_bytes
from clipper_backup.format.time_maps import (
    ALWAYS,
    NEVER,
    MapName,
    RestorePoint,
    SegmentTimes,
    TimeMap,
    decode_map,
    encode_map,
    parse_map_key,
)
from clipper_backup.postgres.wal_records import as_microseconds
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment

SYSTEM = "7711155930822877805"
PAGE = bytes.fromhex(
    """63 6c 62 6b 74 69 6d 31 00 00 10 00 01 00 00 00 02 00 00 00 01 00 00 00
       6d 22 58 b0 76 87 03 6b 0d 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
       40 78 96 60 e5 03 03 00 ff ff ff ff ff ff ff 7f
       80 de 99 61 e5 03 03 00 00 00 00 00 00 00 00 80
       11 00 00 00 00 00 00 00 da 02 00 00 00 00 00 00
       ea 02 00 00 00 00 00 00 04 00 00 00 05 00 00 00
       40 01 d0 00 00 00 00 00 80 de 99 61 e5 03 03 00 06 62 65 66 6f 72 65"""
)
KEY = f"wal/{SYSTEM}/00000001/times/00000001000000000000000D-00000001000000000000000E-000303E56199DE80.zst"
"""The example of docs/design/repository-wal.md."""


LATEST = as_microseconds(datetime(2026, 11, 23, 0, 24, 10, tzinfo=UTC))
NAME = MapName(Segment(Timeline(1), 13, 1 << 20), Segment(Timeline(1), 14, 1 << 20), LATEST)


def test_the_bytes_of_the_page() -> None:
    name = parse_map_key(KEY, 1 << 20)
    assert name == NAME
    times = decode_map(compress_bytes(PAGE), NAME, SYSTEM)
    assert times.segments == [
        SegmentTimes(LATEST - 17_000_000, LATEST, 17, 730, 746, linked=True),
        SegmentTimes(switched=True, linked=True),
    ]
    assert times.points == [RestorePoint(Lsn.parse("0/D00140"), LATEST, b"before")]
    assert decompress_bytes(encode_map(times), "it") == PAGE
    assert times.name.key(SYSTEM) == KEY


MOMENTS = st.integers(NEVER + 1, ALWAYS - 1)
XIDS = st.integers(0, 2**32 - 1)
KNOWN = st.builds(
    SegmentTimes, MOMENTS, MOMENTS, st.integers(0, 2**32 - 1), XIDS, XIDS, switched=st.booleans(), linked=st.booleans()
)
SEGMENTS = st.lists(
    st.one_of(KNOWN, st.builds(SegmentTimes, switched=st.booleans()), st.builds(SegmentTimes.strange, linked=st.booleans())),
    min_size=1,
    max_size=40,
)
POINTS = st.lists(st.builds(RestorePoint, st.integers(0, 2**64 - 1).map(Lsn), MOMENTS, st.binary(max_size=63)), max_size=5)
SIZES = st.sampled_from([1 << 20, 1 << 24, 1 << 30])


@given(st.integers(1, 2**64 - 1), st.integers(1, 2**32 - 1), SIZES, st.integers(0, 2**30), SEGMENTS, POINTS)
def test_every_map_comes_back(
    system: int, timeline: int, size: int, number: int, segments: Sequence[SegmentTimes], points: Sequence[RestorePoint]
) -> None:
    times = TimeMap(str(system), Segment(Timeline(timeline), number, size), segments, points)
    name = parse_map_key(times.name.key(str(system)), size)
    assert name == times.name
    assert decode_map(encode_map(times), times.name, str(system)) == times


@pytest.mark.parametrize(
    "key",
    [
        KEY.replace("wal/", "wal/0"),
        KEY.replace("/00000001/", "/00000002/"),
        KEY.replace("0E-", "0C-"),
        KEY.replace("0000000000000E-", "0000000000100E-"),
        KEY.replace("99DE80", "99de80"),
        KEY + ".age",
        KEY.replace("times/", "times/x/"),
    ],
    ids=["system", "timeline", "backwards", "no segment", "lower case", "sealed", "folder"],
)
def test_other_keys_name_no_map(key: str) -> None:
    assert parse_map_key(key, 1 << 20) is None
    assert parse_map_key(KEY, 1 << 30) is None


def _changed(place: int, value: int) -> bytes:
    return PAGE[:place] + bytes([value]) + PAGE[place + 1 :]


@pytest.mark.parametrize(
    "plain",
    [
        _changed(0, 1), _changed(8, 1), _changed(12, 2), _changed(16, 3), _changed(16, 1), _changed(20, 2), _changed(24, 0),
        _changed(32, 14), _changed(40, 1), _changed(0x40, 0), _changed(0x68, 0x0C), PAGE[:-1], PAGE[:40], PAGE + b"x", b"",
        struct.pack("<8sIIIIQQQ", b"clbktim1", 1 << 20, 1, 2, 2**32 - 1, int(SYSTEM), 13, 0) + PAGE[48:],
        PAGE + bytes(80 << 20),
    ],
    ids=[
        "magic", "segment size", "timeline", "more segments", "fewer segments", "more points", "system",
        "first", "reserved", "latest", "flag", "short by one", "half a head", "longer", "empty",
        "4 billion points", "80 MiB",
    ],
)  # fmt: skip
def test_what_is_not_as_the_page_says_is_refused(plain: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_map(compress_bytes(plain), NAME, SYSTEM)


def test_what_does_not_decompress_is_refused() -> None:
    with pytest.raises(IntegrityError):
        decode_map(PAGE, NAME, SYSTEM)
    with pytest.raises(IntegrityError):
        decode_map(compress_bytes(PAGE), replace(NAME, latest=LATEST + 1), SYSTEM)


def test_xids_are_compared_across_the_end_of_their_numbers() -> None:
    wrapped = SegmentTimes(0, 0, 3, lowest_xid=2**32 - 2, highest_xid=5)
    assert [xid for xid in (2**32 - 3, 2**32 - 2, 2**32 - 1, 3, 5, 6) if wrapped.may_end(xid)] == [2**32 - 2, 2**32 - 1, 3, 5]
    assert SegmentTimes.strange(linked=False).may_end(7)
    assert not SegmentTimes().may_end(0)
