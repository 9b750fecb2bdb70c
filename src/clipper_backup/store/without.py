"""The wrapper that shows a store as it would be without some objects, and lets nothing be written."""

from collections.abc import Callable, Iterator, Sequence

from clipper_backup.errors import ObjectMissingError
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.readonly import RefusingStore


class WithoutStore(RefusingStore):
    """Objects of which *gone* says so are not there; every call that writes or removes is a UsageError.

    `folders` may still name folders out of which all is gone, as a store may. What listings left out since `take_hidden` was
    asked last is remembered: whoever compares before and after lists once.
    """

    def __init__(self, inner: Store, gone: Callable[[str], bool]) -> None:
        super().__init__(inner, f"this only shows what would remain in {inner.url}")
        self._gone = gone
        self._hidden: list[ObjectInfo] = []

    def take_hidden(self) -> Sequence[ObjectInfo]:
        """What listings left out since this was asked last."""
        hidden, self._hidden = self._hidden, []
        return hidden

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        self._must_stay(key)
        return super().get(key, start=start, length=length)

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`."""
        self._must_stay(key)
        return super().get_stream(key, start=start, same_as=same_as)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        self._must_stay(key)
        return super().get_ranges(key, ranges)

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        self._must_stay(key)
        return super().head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        for info in super().list(prefix):
            if self._gone(info.key):
                self._hidden.append(info)
            else:
                yield info

    def _must_stay(self, key: str) -> None:
        if self._gone(key):
            raise ObjectMissingError(f"no object at {key}")
