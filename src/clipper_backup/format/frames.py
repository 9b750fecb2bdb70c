"""Frames, in which packs store pages, small files and page maps, and the references to them (repository-format.md, Frames).

A frame is one zstd frame, sealed with the data key of its run where the run seals. Whoever reads compares the digest that the
reference has before anything else is done with the bytes.
"""

import re
import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Self

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from clipper_backup.errors import IntegrityError
from clipper_backup.format.physical_names import PackKey, parse_pack_key
from clipper_backup.values import BackupId

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Bytes = bytes | bytearray | memoryview

STRETCH_BYTES = 64 << 20
"""How much of a file one page map describes, as we write it. A manifest says how much it is in its backup."""
STRETCH_BYTES_MIN, STRETCH_BYTES_MAX = 1 << 20, 1 << 30
"""What a reader takes: powers of two between these. More than the second no file of a relation has."""
STRETCH_PAGES_MAX = 1 << 17
"""So the map fits a frame, also where each page lies in a frame of its own."""
FRAME_PAGES_MAX = 128
SMALL_BYTES_MAX = 1 << 20
"""The largest file that may lie among others in one frame."""
SMALL_FRAME_BYTES_MAX = 4 << 20
PLAIN_BYTES_MAX = 8 << 20
"""Of any frame: a reader refuses more before it allocates memory for it."""
PACK_BYTES_MAX = 1 << 30
PACK_HEADER_BYTES = 64
KEY_BYTES = 32
DIGEST_BYTES = 16

_OVERHEAD_BYTES_MAX = 256
"""Of a frame without content: zstd's header and the tag, with room to spare."""
_LEVEL = 1
"""Of zstd. Above it a core compresses slower than a disk or a network of today writes."""
_WINDOW_LOG = 18
"""256 KiB, of 512 at this level: from 19 on zstd looks for matches with another loop, which took 3 to 6 % longer over pages of
two databases and found 0.1 % more. Its other parameters gain on one database what they lose on the next."""
_ASSOCIATED = struct.Struct("<8sIQ16s24s")
_HEX_128, _HEX_256 = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{64}")


class FrameKind(IntEnum):
    """What a frame holds."""

    PAGES = 1
    SMALL = 2
    MAP = 3


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a frame lies: in which pack, from which offset on; its sizes in bytes, its frame number, BLAKE3-128 as stored."""

    pack: PackKey
    offset: int
    stored_bytes: int
    plain_bytes: int
    number: int
    digest: bytes

    @property
    def possible(self) -> bool:
        """Whether a frame can lie there: more bytes than zstd makes of what it cannot compress are not even read."""
        stored_max = self.plain_bytes + self.plain_bytes // 128 + _OVERHEAD_BYTES_MAX
        inside = PACK_HEADER_BYTES <= self.offset <= PACK_BYTES_MAX - self.stored_bytes
        return inside and self.plain_bytes <= PLAIN_BYTES_MAX and 0 < self.stored_bytes <= stored_max

    def to_json(self) -> list[str | int]:
        """As it stands in a manifest."""
        name = f"{self.pack.run}/{self.pack.number:08d}"
        return [name, self.offset, self.stored_bytes, self.plain_bytes, self.number, self.digest.hex()]

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read it from a manifest; IntegrityError when it is none, or leads to where no frame can lie."""
        match value:
            case [str(name), int(offset), int(stored_bytes), int(plain_bytes), int(number), str(digest)] if (
                (pack := _pack(name)) is not None
                and not any(isinstance(each, bool) for each in value)
                and plain_bytes >= 0
                and 0 <= number < 2**64
                and _HEX_128.fullmatch(digest)
                and (found := cls(pack, offset, stored_bytes, plain_bytes, number, bytes.fromhex(digest))).possible
            ):
                return found
        raise IntegrityError(f"not a reference: {str(value)[:200]}")

    def __str__(self) -> str:
        return f"{self.pack}, frame {self.number} at offset {self.offset}"


@dataclass(frozen=True, slots=True)
class Small:
    """The content of a small file: in which frame, from which byte of its plaintext on, and its BLAKE3."""

    frame: Reference
    start: int
    digest: bytes

    def to_json(self) -> list[object]:
        """As it stands in a manifest."""
        return [self.frame.to_json(), self.start, self.digest.hex()]

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read it from a manifest; IntegrityError when it is none."""
        match value:
            case [list() as frame, int(start), str(digest)] if (
                not isinstance(start, bool) and start >= 0 and _HEX_256.fullmatch(digest)
            ):
                return cls(Reference.from_json(frame), start, bytes.fromhex(digest))
        raise IntegrityError(f"not the place of a small file: {str(value)[:200]}")


@dataclass(frozen=True, slots=True)
class FilePart:
    """Where the content of a file lies: one map a stretch, in order, or `small`; a file without bytes has neither."""

    size_bytes: int
    maps: tuple[Reference, ...] = ()
    small: Small | None = None


@lru_cache(maxsize=4096)  # neighbours in a manifest lie in the same packs
def _pack(name: str) -> PackKey | None:
    return parse_pack_key(f"packs/{name}")


def stretches(size_bytes: int, stretch_bytes: int) -> list[int]:
    """The size of each stretch of a file that is cut into stretches of *stretch_bytes*."""
    return [min(stretch_bytes, size_bytes - start) for start in range(0, size_bytes, stretch_bytes)]


def is_stretch(stretch_bytes: int, page_bytes: int) -> bool:
    """Whether files of pages of *page_bytes* may be cut into stretches of *stretch_bytes*."""
    power = stretch_bytes & (stretch_bytes - 1) == 0
    whole = page_bytes > 0 and stretch_bytes % page_bytes == 0 and stretch_bytes <= page_bytes * STRETCH_PAGES_MAX
    return power and whole and STRETCH_BYTES_MIN <= stretch_bytes <= STRETCH_BYTES_MAX


def digest_of(stored: Bytes) -> bytes:
    """BLAKE3-128 of what is stored."""
    return blake3(stored).digest(length=DIGEST_BYTES)


class Compressor:
    """Makes zstd frames with their content size and without a checksum. For one thread at a time."""

    def __init__(self) -> None:
        wanted = zstd.CompressionParameter
        self._zstd = zstd.ZstdCompressor(options={wanted.compression_level: _LEVEL, wanted.window_log: _WINDOW_LOG})

    def compress(self, plain: Bytes) -> bytes:
        """One zstd frame; in a single call, which is why it begins with the size of its content."""
        return self._zstd.compress(plain, zstd.ZstdCompressor.FLUSH_FRAME)


class FrameCipher:
    """AES-256-GCM with the data key of one run. Safe for many threads; `seal` only with numbers that were never used before."""

    def __init__(self, key: bytes, repository_id: bytes, run: BackupId) -> None:
        """*repository_id* is the 16 bytes that the key's own object names."""
        self._aes = AESGCM(key)
        self._repository_id, self._run = repository_id, str(run).encode()

    def seal(self, packed: Bytes, kind: FrameKind, number: int) -> bytes:
        """A compressed frame, sealed: 16 bytes longer."""
        return self._aes.encrypt(_nonce(number), packed, self._associated(kind, number))

    def open(self, stored: Bytes, kind: FrameKind, number: int) -> bytes:
        """The compressed frame; InvalidTag when these are not the bytes of this kind and number of this run."""
        return self._aes.decrypt(_nonce(number), stored, self._associated(kind, number))

    def _associated(self, kind: FrameKind, number: int) -> bytes:
        return _ASSOCIATED.pack(b"clbkfrm1", kind, number, self._repository_id, self._run)


def _nonce(number: int) -> bytes:
    return bytes(4) + number.to_bytes(8, "big")


def check_possible(reference: Reference) -> None:
    """IntegrityError unless a frame can lie where *reference* leads."""
    if not reference.possible:
        sizes = f"{reference.stored_bytes} bytes that open to {reference.plain_bytes}"
        raise IntegrityError(f"{reference} is said to have {sizes}: no frame has")


def open_frame(stored: Bytes, reference: Reference, kind: FrameKind, cipher: FrameCipher | None) -> bytes:
    """The plaintext of the frame that *reference* names, opened by its run's *cipher* where the run seals.

    IntegrityError when the bytes are others than were stored, before they are decrypted or decompressed (P1); also when they
    open to anything but a frame of this kind, of the size that the reference says.
    """
    if memoryview(stored).nbytes != reference.stored_bytes or digest_of(stored) != reference.digest:
        raise IntegrityError(f"{reference} does not hold the bytes that were stored (BLAKE3 differs)")
    check_possible(reference)
    try:
        packed = stored if cipher is None else cipher.open(stored, kind, reference.number)
    except InvalidTag:
        raise IntegrityError(f"{reference} cannot be decrypted: it was not sealed as this run's frame of that number") from None
    return _decompress(packed, reference)


def _decompress(packed: Bytes, reference: Reference) -> bytes:
    wanted = reference.plain_bytes
    try:
        if zstd.get_frame_info(packed).decompressed_size != wanted:
            raise IntegrityError(f"{reference} does not hold the {wanted} bytes that its reference says")
        decompressor = zstd.ZstdDecompressor()
        plain = decompressor.decompress(packed, max_length=wanted)
        if not decompressor.eof:  # what is full may not have noticed its end yet
            plain += decompressor.decompress(b"", max_length=1)
    except zstd.ZstdError as error:
        raise IntegrityError(f"{reference} does not decompress: {error}") from error
    if len(plain) != wanted or not decompressor.eof or decompressor.unused_data:
        raise IntegrityError(f"{reference} does not hold the {wanted} bytes that its reference says")
    return plain
