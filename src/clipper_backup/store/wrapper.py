"""The base of all wrappers: a store that hands every call to another one. A wrapper overrides what it changes."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from clipper_backup.store.protocol import Capabilities, ObjectInfo, Store


class WrapperStore:
    """Hands every call to *inner*."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def url(self) -> str:
        """The inner store's."""
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        """The inner store's."""
        return self._inner.capabilities

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`."""
        self._inner.put(key, data, create=create)

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """See `Store.put_stream`."""
        return self._inner.put_stream(key, chunks, expected_bytes=expected_bytes)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        return self._inner.get(key, start=start, length=length)

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`."""
        return self._inner.get_stream(key, start=start, same_as=same_as)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        return self._inner.get_ranges(key, ranges)

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        return self._inner.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        return self._inner.list(prefix)

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        return self._inner.folders(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`."""
        self._inner.delete(keys)

    def now(self) -> datetime:
        """See `Store.now`."""
        return self._inner.now()
