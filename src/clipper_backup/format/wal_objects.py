"""Files of the WAL archive as they are stored: a header in a skippable zstd frame, then the file as one zstd frame.

`zstd -d` gives the file back. The header binds the content to its place, inside the seal where there is one
(docs/design/repository-wal.md has every byte).
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import chain

from blake3 import blake3

from clipper_backup.errors import IntegrityError, UsageError
from clipper_backup.format.compression import compress, compress_at_once, decompress
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Kind, Segment, classify

SALT_BYTES = 32
LINK_BYTES = 16
NO_LINK = bytes(LINK_BYTES)
"""The `previous` of a segment before which there is no claim; it links to nothing."""

HEADER_BYTES_MAX = 240

_LEVEL = 1
AT_ONCE_BYTES = 16 << 20
"""Larger segments than those of every default server are compressed piece by piece, so that memory stays bounded."""
_FRAME_MAGIC = 0x184D2A50
_MAGIC = b"clbkwal1"
_VERSION = 1
_SIGNED = 1
_LAYOUT = struct.Struct("<II8sBBHIQQQ16s32s32s16s")
HEADER_BYTES_MIN = _LAYOUT.size
"""144. An object with fewer is none, sealed or not: what a full disk or a broken copy leaves."""
_PUBLIC_END = 176
_FRAME_BYTES = {HEADER_BYTES_MIN - 8: 0, HEADER_BYTES_MAX - 8: _SIGNED}
"""What the skippable frame says of its length, and the flags that go with it."""


class ObjectKind(IntEnum):
    """What an object holds; 4 is reserved for tails."""

    SEGMENT = 0
    PARTIAL = 1
    HISTORY = 2
    BACKUP = 3
    LINK = 5


_KINDS = {
    Kind.SEGMENT: ObjectKind.SEGMENT,
    Kind.PARTIAL: ObjectKind.PARTIAL,
    Kind.HISTORY: ObjectKind.HISTORY,
    Kind.BACKUP: ObjectKind.BACKUP,
}


@dataclass(frozen=True, slots=True)
class Signature:
    """An Ed25519 signature of a header, and the public key (32 bytes) that it names."""

    public: bytes
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an object says of itself. `system_id` as a number, `repository_id` 16 bytes; `plain_bytes` of a link is 0."""

    kind: ObjectKind
    timeline: Timeline
    system_id: int
    lsn: Lsn
    plain_bytes: int
    repository_id: bytes
    salt: bytes
    digest: bytes
    previous: bytes = NO_LINK
    signature: Signature | None = None

    @property
    def link(self) -> bytes:
        """What the segment behind it has as `previous`."""
        return link_of(self.salt, self.digest)

    def unsigned(self) -> "Header":
        """The same without signature: what two objects of one place must agree in."""
        return replace(self, signature=None)

    def signed(self, public: bytes, sign: Callable[[bytes], bytes]) -> "Header":
        """The same, signed with the key whose public half is *public*."""
        draft = replace(self, signature=Signature(public, b""))
        return replace(self, signature=Signature(public, sign(encode_header(draft)[8:])))


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the WAL a file belongs, by its name: what its header must say."""

    kind: ObjectKind
    timeline: Timeline
    lsn: Lsn


def place_of(name: str, segment_bytes: int) -> Place:
    """The place of the file that PostgreSQL calls *name*; UsageError for a name that is none of its WAL's."""
    kind = classify(name)
    if kind is None:
        raise UsageError(f"not the name of a file that PostgreSQL archives: {name!r}")
    if kind is Kind.HISTORY:
        return Place(ObjectKind.HISTORY, Timeline.parse(name[:8]), Lsn(0))
    segment = Segment.parse(name[:24], segment_bytes)
    offset = int(name[25:33], 16) if kind is Kind.BACKUP else 0
    return Place(_KINDS[kind], segment.timeline, Lsn(segment.start + offset))


def partial_name(name: str, digest: bytes) -> str:
    """What a `.partial` file (*name* is PostgreSQL's) is called in the archive: several of one name may lie there (W6)."""
    return f"{name}-{digest.hex()[:16]}"


def digest_of(chunks: Iterable[bytes], salt: bytes) -> bytes:
    """BLAKE3 of a file, keyed with *salt*: what its claim says."""
    hasher = blake3(key=salt)
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest()


def link_of(salt: bytes, digest: bytes) -> bytes:
    """The link of the segment with this salt and digest in its claim."""
    return blake3(salt + digest).digest(LINK_BYTES)


def partial_salt(repository_id: bytes) -> bytes:
    """What stands for the salt of a `.partial`, which has no claim."""
    return repository_id + repository_id


def encode_header(header: Header) -> bytes:
    """144 bytes, 240 with a signature."""
    signature = header.signature
    length = (HEADER_BYTES_MIN if signature is None else HEADER_BYTES_MAX) - 8
    fixed = _LAYOUT.pack(
        _FRAME_MAGIC, length, _MAGIC, _VERSION, header.kind, _FRAME_BYTES[length], header.timeline, header.system_id,
        header.lsn, header.plain_bytes, header.repository_id, header.salt, header.digest, header.previous,
    )  # fmt: skip
    return fixed if signature is None else fixed + signature.public + signature.value


def compress_body(chunks: Iterable[bytes], plain_bytes: int, memory: memoryview | None = None) -> Iterator[bytes]:
    """What follows the header: one zstd frame with content size and checksum. *chunks* must have *plain_bytes* together.

    *memory* is used up to AT_ONCE_BYTES, in place of new one, where it is large enough; nobody else may write to it meanwhile.
    """
    if plain_bytes > AT_ONCE_BYTES:
        return compress(chunks, level=_LEVEL, plain_bytes=plain_bytes)
    if memory is None or len(memory) < plain_bytes:
        memory = memoryview(bytearray(plain_bytes))
    return _compress_at_once(chunks, memory[:plain_bytes])


def _compress_at_once(chunks: Iterable[bytes], room: memoryview) -> Iterator[bytes]:
    """The file in one call: zstd takes a third less time for it than for the same in pieces, which it must copy and keep."""
    at = 0
    for chunk in chunks:
        room[at : at + len(chunk)] = chunk
        at += len(chunk)
    if at != len(room):
        raise ValueError(f"a file of {len(room)} bytes came with {at}")
    yield compress_at_once(room, level=_LEVEL)


def encode_object(header: Header, plain: Iterable[bytes]) -> Iterator[bytes]:
    """A whole object, as it is before it is sealed."""
    return chain([encode_header(header)], compress_body(plain, header.plain_bytes))


def decode_object(chunks: Iterable[bytes], name: str) -> tuple[Header, Iterator[bytes]]:
    """The header of an object (opened, if it was sealed), and the file in it.

    IntegrityError naming *name* for a header that is not of this form, at once; for a file that is damaged or not what the
    header says, by the iterator, at its end at the latest: nothing of it may be used before that.
    """
    source = iter(chunks)
    data = _at_least(b"", source, HEADER_BYTES_MIN, name)
    frame_magic, length, magic, version, kind, flags, timeline, system_id, lsn, plain_bytes, *rest = _LAYOUT.unpack_from(data)
    if frame_magic != _FRAME_MAGIC or magic != _MAGIC:
        raise IntegrityError(f"{name} is no file of a WAL archive")
    known = any(kind == known for known in ObjectKind)
    if version != _VERSION or not known or length not in _FRAME_BYTES or flags & ~_SIGNED:
        raise IntegrityError(f"{name} has a header that this version does not know, or that is damaged")
    if flags != _FRAME_BYTES[length]:
        raise IntegrityError(f"{name} is damaged: its header's flags and length disagree")
    signature = None
    if flags & _SIGNED:
        data = _at_least(data, source, HEADER_BYTES_MAX, name)
        signature = Signature(data[HEADER_BYTES_MIN:_PUBLIC_END], data[_PUBLIC_END:HEADER_BYTES_MAX])
    repository_id, salt, digest, previous = rest
    header = Header(
        kind=ObjectKind(kind), timeline=Timeline(timeline), system_id=system_id, lsn=Lsn(lsn), plain_bytes=plain_bytes,
        repository_id=repository_id, salt=salt, digest=digest, previous=previous, signature=signature,
    )  # fmt: skip
    return header, _checked(header, decompress(chain([data[length + 8 :]], source), name), name)


def check_header(header: Header, place: Place, *, system_id: int, repository_id: bytes, name: str) -> None:
    """IntegrityError naming *name* and what differs, unless the header belongs to that place of this cluster's archive."""
    for what, found, wanted in (
        ("kind", header.kind, place.kind),
        ("timeline", header.timeline, place.timeline),
        ("LSN", header.lsn, place.lsn),
        ("system", header.system_id, system_id),
        ("repository", header.repository_id.hex(), repository_id.hex()),
    ):
        if found != wanted:
            raise IntegrityError(f"{name} does not belong there: its {what} is {found}, not {wanted}")


def signed_by(header: Header, trusted: Sequence[str]) -> str | None:
    """Which of the *trusted* public keys signed it; None when none did."""
    if header.signature is None:
        return None
    from clipper_backup.format.signing import raw_public, signer  # noqa: PLC0415  30 ms that only signed archives need

    key = signer(encode_header(header)[8:_PUBLIC_END], header.signature.value, trusted)
    return key if key is not None and raw_public(key) == header.signature.public else None


def _at_least(data: bytes, source: Iterator[bytes], size_bytes: int, name: str) -> bytes:
    while len(data) < size_bytes:
        piece = next(source, None)
        if piece is None:
            raise IntegrityError(f"{name} ends too early: it has no whole header")
        data += piece
    return data


def _checked(header: Header, plain: Iterable[bytes], name: str) -> Iterator[bytes]:
    hasher, size_bytes = blake3(key=header.salt), 0
    for chunk in plain:
        size_bytes += len(chunk)
        if size_bytes > header.plain_bytes:
            raise IntegrityError(f"{name} holds more than the {header.plain_bytes} bytes that its header says")
        hasher.update(chunk)
        yield chunk
    if size_bytes != header.plain_bytes:
        raise IntegrityError(f"{name} holds {size_bytes} bytes, its header says {header.plain_bytes}")
    if header.kind is not ObjectKind.LINK and hasher.digest() != header.digest:
        raise IntegrityError(f"{name} does not hold the bytes that its header says (BLAKE3 differs)")
