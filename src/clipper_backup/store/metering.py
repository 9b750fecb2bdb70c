"""The wrapper that counts what passes through it."""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore


@dataclass(frozen=True, slots=True)
class Usage:
    """What one method was used for. `failures` are calls that raised; their bytes count as far as they passed."""

    calls: int = 0
    failures: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.calls + other.calls,
            self.failures + other.failures,
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
        )


class MeteringStore(WrapperStore):
    """Counts calls, failures and bytes by method."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self._used: dict[str, Usage] = {}

    def usage(self) -> dict[str, Usage]:
        """A copy of the counts, by method name; methods never called are absent."""
        with self._lock:
            return dict(self._used)

    def total(self) -> Usage:
        """The sum over all methods."""
        return sum(self.usage().values(), Usage())

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`."""
        with self._call("put"):
            self._inner.put(key, data, create=create)
            self._add("put", Usage(written_bytes=len(data)))

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """See `Store.put_stream`."""
        with self._call("put_stream"):
            return self._inner.put_stream(key, self._writing(chunks), expected_bytes=expected_bytes)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        with self._call("get"):
            data = self._inner.get(key, start=start, length=length)
            self._add("get", Usage(read_bytes=len(data)))
            return data

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`. It counts as called when its first piece is asked for."""
        with self._call("get_stream"):
            for piece in self._inner.get_stream(key, start=start, same_as=same_as):
                self._add("get_stream", Usage(read_bytes=len(piece)))
                yield piece

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        with self._call("get_ranges"):
            pieces = self._inner.get_ranges(key, ranges)
            self._add("get_ranges", Usage(read_bytes=sum(map(len, pieces))))
            return pieces

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        with self._call("head"):
            return self._inner.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        with self._call("list"):
            return self._inner.list(prefix)

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        with self._call("folders"):
            return self._inner.folders(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`."""
        with self._call("delete"):
            self._inner.delete(keys)

    def now(self) -> datetime:
        """See `Store.now`."""
        with self._call("now"):
            return self._inner.now()

    def _writing(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._add("put_stream", Usage(written_bytes=len(chunk)))
            yield chunk

    @contextlib.contextmanager
    def _call(self, method: str) -> Iterator[None]:
        self._add(method, Usage(calls=1))
        try:
            yield
        except Exception:
            self._add(method, Usage(failures=1))
            raise

    def _add(self, method: str, more: Usage) -> None:
        with self._lock:
            self._used[method] = self._used.get(method, Usage()) + more
