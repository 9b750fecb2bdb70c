"""What a store is: objects at keys. Everything above speaks to this protocol, every wrapper implements it.

A key is a relative path of ASCII letters, digits and `. _ - / % + = @`, without empty, `.` or `..` parts; no key is
the folder of another (a directory store could not hold both). Objects are whole or absent: a reader never sees a
part of one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

STREAM_CHUNK_BYTES = 8 * 1024 * 1024
"""Size of a part of a streamed write, and the largest piece a streamed read hands out. S3 wants parts of at least
5 MiB; memory held by one stream is about three times this."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says about one object. `modified_at` is the store's own Last-Modified (UTC, may be whole seconds)."""

    key: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What differs between stores, declared instead of guessed by type.

    `conditional_create`: `put(create=True)` is atomic between machines. `durable`: an acknowledged object survives
    a power loss of the machine that acknowledged it.
    """

    conditional_create: bool
    durable: bool


@runtime_checkable
class Store(Protocol):
    """A place for objects. All methods are safe to call from several threads.

    Raises only errors of `clipper_backup.errors`: ObjectMissingError, ObjectExistsError, AccessError,
    StoreUnavailableError (worth trying again) and StoreError (not).
    """

    @property
    def url(self) -> str:
        """Where this store is, without credentials, for people to read."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this store can promise."""
        ...

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """Write a whole object. With *create*, ObjectExistsError when the key is taken (atomic)."""
        ...

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> int:
        """Write an object of unknown length; return its size in bytes.

        The object appears only after *chunks* ended normally. When *chunks* raises, nothing appears and the
        exception passes through unchanged.
        """
        ...

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object, or *length* bytes from *start*; fewer only where the object ends. Empty beyond its end."""
        ...

    def get_stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """The object from *start*, in order, in pieces of at most a few times STREAM_CHUNK_BYTES."""
        ...

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several (start, length) ranges, read in parallel; all inside the object, else StoreError."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Size and time of one object; ObjectMissingError when absent."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below the folder *prefix* (ends with `/`, or empty for all), sorted by key."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; absent ones are no error. Each single removal is atomic, the set is not."""
        ...

    def now(self) -> datetime:
        """The store's own clock, UTC, by writing a small object where that is the only way to ask."""
        ...
