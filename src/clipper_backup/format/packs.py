"""Packs: objects made of frames, between a header and a trailer (docs/design/repository-format.md, Packs).

The pack digest covers header and trailer, and so, by the digest of each frame, the whole pack: it is checked without a key.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from clipper_backup.errors import IntegrityError
from clipper_backup.format.frames import (
    PACK_BYTES_MAX,
    PACK_HEADER_BYTES,
    FrameKind,
    Reference,
    digest_of,
)
from clipper_backup.format.physical_names import PackKey

END_BYTES = 44
"""What ends each trailer: the number of its frames, the pack digest, its mark."""

_HEADER = struct.Struct("<II8sBBHI16s24s")
_HEADER_MAGIC, _TRAILER_MAGIC = 0x184D2A50, 0x184D2A51
_BEGIN, _END = b"clbkpack", b"clbkpend"
_VERSION = 1
_SKIPPABLE = struct.Struct("<II")
_ROW = struct.Struct("<IIQII16s")
_TAIL = struct.Struct("<I32s8s")


@dataclass(frozen=True, slots=True)
class PackRow:
    """What a trailer says of one frame; `kind` may be one that this version does not know."""

    stored_bytes: int
    plain_bytes: int
    number: int
    kind: int
    digest: bytes


def encode_header(pack: PackKey, repository_id: bytes, *, sealed: bool) -> bytes:
    """The 64 bytes that begin a pack."""
    run = str(pack.run).encode()
    follow = PACK_HEADER_BYTES - _SKIPPABLE.size
    return _HEADER.pack(_HEADER_MAGIC, follow, _BEGIN, _VERSION, sealed, 0, pack.number, repository_id, run)


def check_header(data: bytes, pack: PackKey, repository_id: bytes) -> bool:
    """Whether the frames of a pack are sealed; IntegrityError when *data* is not the header of the pack at this key."""
    sealed = len(data) == PACK_HEADER_BYTES and data[17] == 1
    if data != encode_header(pack, repository_id, sealed=sealed):
        raise IntegrityError(f"{pack} does not begin as this pack of this repository")
    return sealed


def encode_trailer(header: bytes, rows: Sequence[PackRow]) -> tuple[bytes, bytes]:
    """The trailer of a pack, and the pack digest."""
    packed = (_ROW.pack(row.stored_bytes, row.plain_bytes, row.number, row.kind, 0, row.digest) for row in rows)
    body = b"".join(packed)
    digest = blake3(header + body + len(rows).to_bytes(4, "little")).digest()
    return _SKIPPABLE.pack(_TRAILER_MAGIC, len(body) + END_BYTES) + body + _TAIL.pack(len(rows), digest, _END), digest


def trailer_bytes(end: bytes, pack: PackKey) -> int:
    """How long the trailer is that ends with these END_BYTES; IntegrityError when no trailer ends so."""
    frames, _, mark = _TAIL.unpack(end) if len(end) == END_BYTES else (0, b"", b"")
    if mark != _END:
        raise IntegrityError(f"{pack} does not end as a pack: it was cut, or is none")
    return int(_SKIPPABLE.size + frames * _ROW.size + END_BYTES)


def read_trailer(header: bytes, trailer: bytes, pack: PackKey, size_bytes: int) -> tuple[list[PackRow], bytes]:
    """The frames of a pack of *size_bytes*, in their order, and the pack digest.

    IntegrityError unless the trailer is whole, its digest covers it and the header, and the frames fill the pack.
    """
    if size_bytes > PACK_BYTES_MAX:
        raise IntegrityError(f"{pack} has {size_bytes} bytes: no pack has so many")
    if len(trailer) != trailer_bytes(trailer[-END_BYTES:], pack):
        raise IntegrityError(f"{pack}: its trailer is damaged")
    rows = []
    for stored, plain, number, kind, reserved, digest in _ROW.iter_unpack(trailer[_SKIPPABLE.size : -END_BYTES]):
        if reserved != 0:
            raise IntegrityError(f"{pack}: its trailer has a field that this version does not know")
        rows.append(PackRow(stored, plain, number, kind, digest))
    expected, digest = encode_trailer(header, rows)
    if trailer != expected:
        raise IntegrityError(f"{pack}: its trailer is damaged")
    if PACK_HEADER_BYTES + sum(row.stored_bytes for row in rows) + len(trailer) != size_bytes:
        raise IntegrityError(f"{pack} has {size_bytes} bytes, which its frames do not fill")
    return rows, digest


@dataclass(frozen=True, slots=True)
class PackFacts:
    """What packs.json.zst records of a pack, but for what of it is live."""

    size_bytes: int
    plain_bytes: int
    digest: bytes


class PackBuilder:
    """A pack that is being filled. For one thread at a time."""

    def __init__(self, key: PackKey, repository_id: bytes, *, sealed: bool) -> None:
        self.key = key
        self._header = encode_header(key, repository_id, sealed=sealed)
        # Grows in place, and is handed over as it is: a list of frames would be copied together, and the pieces of memory that
        # they leave fit no pack.
        self._bytes = io.BytesIO()
        self._bytes.write(self._header)
        self._rows: list[PackRow] = []
        self.size_bytes = len(self._header)
        """Without the trailer."""

    @property
    def empty(self) -> bool:
        """Whether it has no frame yet."""
        return not self._rows

    def add(self, stored: bytes, kind: FrameKind, number: int, plain_bytes: int) -> Reference:
        """Append a frame; where it lies."""
        row = PackRow(len(stored), plain_bytes, number, kind, digest_of(stored))
        reference = Reference(self.key, self.size_bytes, row.stored_bytes, plain_bytes, number, row.digest)
        self._rows.append(row)
        self._bytes.write(stored)
        self.size_bytes += len(stored)
        return reference

    def close(self) -> tuple[bytes, PackFacts]:
        """The whole pack and what is recorded of it; the builder forgets its bytes, nothing can be added any more."""
        trailer, digest = encode_trailer(self._header, self._rows)
        self._bytes.write(trailer)
        data = self._bytes.getvalue()
        self._bytes.close()
        return data, PackFacts(len(data), sum(row.plain_bytes for row in self._rows), digest)
