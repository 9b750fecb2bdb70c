"""zstd as generators over chunks: what is read in is counted and hashed on the way, memory stays bounded."""

import sys
from collections.abc import Iterable, Iterator

from clipper_backup.errors import IntegrityError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

READ_BYTES = 1 << 20
"""Largest piece that decompression hands out."""


class Meter:
    """Counts and hashes the chunks that pass through it."""

    def __init__(self) -> None:
        import hashlib  # noqa: PLC0415  4 ms, which `wal push` must not pay

        self.size_bytes = 0
        self._sha256 = hashlib.sha256()

    def pass_through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks."""
        for chunk in chunks:
            self.size_bytes += len(chunk)
            self._sha256.update(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        """SHA-256 of what passed so far, as hex."""
        return self._sha256.hexdigest()


class Counter:
    """Counts bytes without hashing them."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def pass_through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks."""
        for chunk in chunks:
            self.size_bytes += len(chunk)
            yield chunk


def compress(chunks: Iterable[bytes], *, level: int, threads: int = 1, plain_bytes: int | None = None) -> Iterator[bytes]:
    """One zstd frame with a content checksum. *threads* > 1 compresses in threads of zstd's own.

    With *plain_bytes*, which *chunks* must have together, the frame says its content's size.
    """
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: level, zstd.CompressionParameter.checksum_flag: 1}
    if threads > 1:
        options[zstd.CompressionParameter.nb_workers] = threads
    compressor = zstd.ZstdCompressor(options=options)
    if plain_bytes is not None:
        compressor.set_pledged_input_size(plain_bytes)
    for chunk in chunks:
        if out := compressor.compress(chunk):
            yield out
    yield compressor.flush()


def compress_at_once(data: bytes | bytearray | memoryview, *, level: int) -> bytes:
    """One zstd frame with its content's size and a checksum, as `compress` makes it of pieces."""
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: level, zstd.CompressionParameter.checksum_flag: 1}
    return zstd.ZstdCompressor(options=options).compress(data, zstd.ZstdCompressor.FLUSH_FRAME)


def decompress(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The plain bytes of one zstd frame, in pieces of at most READ_BYTES.

    IntegrityError naming *name* when it is damaged, cut short or followed by more.
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        for chunk in filter(None, chunks):  # nothing may follow the end but nothing
            if decompressor.eof:
                raise IntegrityError(f"{name} goes on after its end: it is not what was written")
            # 32 kB of zstd may stand for a gigabyte of zeros: max_length keeps the output bounded.
            plain = decompressor.decompress(chunk, max_length=READ_BYTES)
            while True:
                if plain:
                    yield plain
                if decompressor.eof or decompressor.needs_input:
                    break
                plain = decompressor.decompress(b"", max_length=READ_BYTES)
            if decompressor.unused_data:
                raise IntegrityError(f"{name} goes on after its end: it is not what was written")
    except zstd.ZstdError as error:
        raise IntegrityError(f"{name} does not decompress: {error}") from error
    if not decompressor.eof:
        raise IntegrityError(f"{name} ends too early")


def compress_bytes(data: bytes, *, level: int = 3) -> bytes:
    """*data* as one zstd frame."""
    return b"".join(compress([data], level=level))


def decompress_bytes(data: bytes, name: str) -> bytes:
    """The inverse of `compress_bytes`."""
    return b"".join(decompress([data], name))
