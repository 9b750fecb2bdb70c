"""A store in memory, for tests. It forgets everything with the process."""

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from clipper_backup.clock import Clock
from clipper_backup.errors import ObjectExistsError, ObjectMissingError, StoreError
from clipper_backup.store.protocol import STREAM_CHUNK_BYTES, Capabilities, ObjectInfo, check_key, check_prefix


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    info: ObjectInfo


class MemoryStore:
    """Objects in a dict; *clock* is the store's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._objects: dict[str, _Object] = {}
        self._lock = threading.Lock()
        self._versions = itertools.count(1)

    @property
    def url(self) -> str:
        """It has no address."""
        return "memory:"

    @property
    def capabilities(self) -> Capabilities:
        """Creates atomically, keeps nothing."""
        return Capabilities(conditional_create=True, durable=False)

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`."""
        check_key(key)
        with self._lock:
            if create and key in self._objects:
                raise ObjectExistsError(f"there is an object at {key} already")
            info = ObjectInfo(key, len(data), self._clock.now(), str(next(self._versions)))
            self._objects[key] = _Object(bytes(data), info)

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """See `Store.put_stream`; *expected_bytes* changes nothing here."""
        del expected_bytes
        check_key(key)
        data = b"".join(chunks)
        self.put(key, data)
        return len(data)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        return self._find(key).data[start : None if length is None else start + length]

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`."""
        found = self._find(key)
        if same_as is not None and same_as.version != found.info.version:
            raise StoreError(f"{key} was replaced while it was read")
        for position in range(start, len(found.data), STREAM_CHUNK_BYTES):
            yield found.data[position : position + STREAM_CHUNK_BYTES]

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        data = self._find(key).data
        if any(start + length > len(data) for start, length in ranges):
            raise StoreError(f"{key} is shorter than what was asked of it")
        return [data[start : start + length] for start, length in ranges]

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        return self._find(key).info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        check_prefix(prefix)
        with self._lock:
            found = [each.info for key, each in self._objects.items() if key.startswith(prefix)]
        return iter(sorted(found, key=lambda info: info.key))

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        below = (info.key.removeprefix(prefix).partition("/") for info in self.list(prefix))
        return sorted({name for name, slash, _ in below if slash})

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`."""
        for key in keys:
            check_key(key)
            with self._lock:
                self._objects.pop(key, None)

    def now(self) -> datetime:
        """The clock's time."""
        return self._clock.now()

    def _find(self, key: str) -> _Object:
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise ObjectMissingError(f"no object at {key}")
        return found
