"""Objects of the WAL archive: the bytes that docs/design/repository-wal.md shows, and what is refused."""

import random
import re
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from clipper_backup.errors import IntegrityError, UsageError
from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.signing import SigningKey
from clipper_backup.format.wal_objects import (
    NO_LINK,
    Header,
    ObjectKind,
    Place,
    check_header,
    compress_body,
    decode_object,
    digest_of,
    encode_header,
    encode_object,
    link_of,
    partial_name,
    partial_salt,
    place_of,
    signed_by,
)
from clipper_backup.values import Lsn, Timeline
from fixtures.docs import ROOT

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PAGE = (ROOT / "docs/design/repository-wal.md").read_text(encoding="utf-8")
MIB = 1 << 20
SYSTEM = 7711155930822877805
REPOSITORY = bytes.fromhex("4f1a0c9e5d3b4b1e8c7f2a6d9e0b1c2d")


def shown(after: str) -> bytes:
    """The bytes of the page's first hex dump behind the words *after*."""
    lines = PAGE[PAGE.index(after) :].partition("\n    ")[2].partition("\n\n")[0].splitlines()
    rows = [re.match(r" *([0-9a-f]{8})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: |$)", line) for line in lines]
    assert all(rows)
    found = b"".join(bytes.fromhex(row[2]) for row in rows if row)
    assert [int(row[1], 16) - int(rows[0][1], 16) for row in rows if row][-1] < len(found)  # type: ignore[index]
    return found


def segment(lsn: int) -> bytes:
    """The first 40 bytes of a real segment of 1 MiB of PostgreSQL 15 at *lsn*, then zeros."""
    return struct.pack("<HHIQI4xQII", 0xD110, 2, 1, lsn, 0, SYSTEM, MIB, 8192).ljust(MIB, b"\0")


def header(lsn: int, salt: bytes, previous: bytes = NO_LINK) -> Header:
    return Header(
        kind=ObjectKind.SEGMENT,
        timeline=Timeline(1),
        system_id=SYSTEM,
        lsn=Lsn(lsn),
        plain_bytes=MIB,
        repository_id=REPOSITORY,
        salt=salt,
        digest=digest_of([segment(lsn)], salt),
        previous=previous,
    )


FIRST = header(0xD00000, bytes(range(0x20, 0x40)))
SECOND = header(0xE00000, bytes(range(0x40, 0x60)), FIRST.link)
STORED = b"".join(encode_object(FIRST, [segment(0xD00000)]))


def test_a_segment_is_stored_as_the_page_shows() -> None:
    page = shown("Example: the first 40 bytes")
    assert STORED[:144] == page[:144]
    assert STORED[144:153] == page[144:153], "magic, content size and checksum of the zstd frame"
    assert decode_object([STORED], "it")[0] == FIRST
    assert b"".join(decode_object([STORED[:100], STORED[100:]], "it")[1]) == segment(0xD00000)


def test_links_and_names_are_those_of_the_page() -> None:
    for found in (FIRST.link.hex(), SECOND.link.hex(), SECOND.digest.hex()):
        assert found in PAGE
    assert link_of(FIRST.salt, FIRST.digest) == FIRST.link
    digest = digest_of([segment(0xD00000)], partial_salt(REPOSITORY))
    assert partial_name("00000001000000000000000D.partial", digest) == "00000001000000000000000D.partial-e53e315fe26b7ee9"


def test_a_signed_header_is_that_of_the_page() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    stored = encode_header(SECOND.signed(public, key.sign))
    assert (stored[4], stored[18], len(stored)) == (0xE8, 1, 240)
    assert stored[144:] == shown("from 144 on")


def test_a_link_is_that_of_the_page() -> None:
    link = replace(SECOND, kind=ObjectKind.LINK, plain_bytes=0)
    stored = b"".join(encode_object(link, []))
    assert stored[144:].hex(" ") in PAGE
    assert (len(stored), stored[17], stored[40:48]) == (157, 5, bytes(8))
    decoded, plain = decode_object([stored], "it")
    assert (decoded, list(plain)) == (link, [])


def test_zstd_alone_gives_the_file() -> None:
    assert subprocess.run(["zstd", "-dc"], input=STORED, capture_output=True, check=True).stdout == segment(0xD00000)


@pytest.mark.parametrize("size_bytes", [0, 1, 16 * MIB, 17 * MIB])
def test_of_any_size_it_is_one_frame_that_says_its_size(size_bytes: int) -> None:
    plain = random.Random(size_bytes).randbytes(size_bytes // 2) + bytes(size_bytes - size_bytes // 2)
    pieces = [plain[at : at + MIB] for at in range(0, size_bytes, MIB)]
    stored = b"".join(compress_body(iter(pieces), size_bytes))
    assert zstd.get_frame_info(stored).decompressed_size == size_bytes
    assert decompress_bytes(stored, "it") == plain
    damaged = stored[:-1] + bytes([stored[-1] ^ 1])
    with pytest.raises(IntegrityError, match="it does not decompress"):
        decompress_bytes(damaged, "it")


@pytest.mark.parametrize("come", [MIB - 1, MIB + 1, 0])
def test_a_file_of_another_size_than_was_said_becomes_no_frame(come: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        list(compress_body([bytes(come)], MIB))


def test_memory_may_be_used_again() -> None:
    """What the file before left in it gets into no frame."""
    memory = memoryview(bytearray(MIB))
    plains = [random.Random(number).randbytes(MIB >> number) for number in range(4)]
    found = [b"".join(compress_body([plain], len(plain), memory)) for plain in plains]
    assert [decompress_bytes(stored, "it") for stored in found] == plains


@pytest.mark.parametrize("place", range(128))
def test_no_other_header_is_taken(place: int) -> None:
    damaged = STORED[:place] + bytes([STORED[place] ^ 1]) + STORED[place + 1 :]
    with pytest.raises(IntegrityError, match="it "):
        read_whole(damaged)


def read_whole(stored: bytes) -> None:
    found, plain = decode_object([stored], "it")
    check_header(found, place_of("00000001000000000000000D", MIB), system_id=SYSTEM, repository_id=REPOSITORY, name="it")
    assert b"".join(plain)


@pytest.mark.parametrize("size_bytes", [0, 1, 143, 144, 200, len(STORED) - 1])
def test_a_part_is_not_taken(size_bytes: int) -> None:
    with pytest.raises(IntegrityError, match="it ends too early"):
        read_whole(STORED[:size_bytes])


def test_more_than_the_header_says_is_not_taken() -> None:
    short = replace(FIRST, plain_bytes=MIB - 1)
    with pytest.raises(IntegrityError, match="more than the 1048575 bytes"):
        list(decode_object([encode_header(short), STORED[144:]], "it")[1])
    with pytest.raises(IntegrityError, match="goes on after its end"):
        list(decode_object([STORED, b"\0"], "it")[1])


def test_who_signed_is_told_of_the_whole_header() -> None:
    key, other = SigningKey.make(), SigningKey.make()
    signed = FIRST.signed(key.raw, key.sign)
    assert signed_by(signed, [other.public, key.public]) == key.public
    assert signed_by(signed, [other.public]) is None
    assert signed_by(FIRST, [key.public]) is None
    assert signed_by(replace(signed, lsn=Lsn(0xE00000)), [key.public]) is None
    assert signed.unsigned() == FIRST
    with pytest.raises(IntegrityError, match="flags and length disagree"):
        decode_object([STORED[:18], b"\1\0", STORED[20:]], "it")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("00000001000000000000000D", Place(ObjectKind.SEGMENT, Timeline(1), Lsn(0xD00000))),
        ("0000000A0000000100000FFF.partial", Place(ObjectKind.PARTIAL, Timeline(10), Lsn(0x1FFF00000))),
        ("00000001000000000000000D.000000D8.backup", Place(ObjectKind.BACKUP, Timeline(1), Lsn(0xD000D8))),
        ("00000010.history", Place(ObjectKind.HISTORY, Timeline(16), Lsn(0))),
    ],
)
@pytest.mark.rule(5)
@pytest.mark.rule(9)
def test_every_name_of_postgresql_has_its_place(name: str, place: Place) -> None:
    assert place_of(name, MIB) == place


@pytest.mark.parametrize(
    "name", ["", "archive_status", "00000001000000000000000D.gz", "000000010000000000001000", "00000000.history"]
)
def test_other_names_have_none(name: str) -> None:
    with pytest.raises(UsageError):
        place_of(name, MIB)
