"""A tar archive as a generator: what GNU tar and Python's tarfile read, made without holding any file in memory."""

import tarfile
from collections.abc import Iterable, Iterator

_BLOCK = tarfile.BLOCKSIZE


def tar_of_folder(files: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """The tar of (name, size in bytes, content) triples, in their order. ValueError when a content is not of its size."""
    for name, size, content in files:
        info = tarfile.TarInfo(name)
        info.size = size
        info.mode = 0o600
        yield info.tobuf(tarfile.PAX_FORMAT)
        passed = 0
        for chunk in content:
            passed += len(chunk)
            yield chunk
        if passed != size:
            raise ValueError(f"{name} has {passed} bytes, not {size}")
        if size % _BLOCK:
            yield bytes(_BLOCK - size % _BLOCK)
    yield bytes(2 * _BLOCK)
