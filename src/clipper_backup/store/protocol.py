"""What a store is: objects at keys. Everything above speaks to this protocol, every wrapper implements it.

A key is a relative path; `check_key` says which. No key is the folder of another (a directory store could not hold
both). Objects are whole or absent: a reader never sees a part of one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from clipper_backup.errors import UsageError

STREAM_CHUNK_BYTES = 8 * 1024 * 1024
"""Size of a part of a streamed write, and the largest piece a streamed read hands out. S3 wants parts of at least
5 MiB; memory held by one stream is at most four times this (more where `expected_bytes` asks for larger parts)."""

KEY_BYTES_MAX = 800
"""S3 allows 1024 bytes; the rest is left to the prefix."""

CLOCK_KEY = "clock"
"""The object that stores write to read their own clock. No caller may use the key; no listing shows it."""

_PART_BYTES_MAX = 255
_KEY_PART = re.compile(r"[A-Za-z0-9_\-%+=@][A-Za-z0-9._\-%+=@]*")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says about one object.

    `modified_at` is the store's own Last-Modified (UTC, may be whole seconds). `version` differs when the object was
    replaced by other bytes; it is good only for comparing, and empty where the store has none.
    """

    key: str
    size_bytes: int
    modified_at: datetime
    version: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What differs between stores, declared instead of guessed by type.

    `conditional_create`: `put(create=True)` is atomic between machines. `durable`: an acknowledged object survives
    a power loss of the machine that acknowledged it. `writes_late`: a write that was given up may still take place, when
    the request that was sent arrives.
    """

    conditional_create: bool
    durable: bool
    writes_late: bool = False


@runtime_checkable
class Store(Protocol):
    """A place for objects. All methods are safe to call from several threads.

    Raises only errors of `clipper_backup.errors`: ObjectMissingError, ObjectExistsError, AccessError,
    StoreUnavailableError (worth trying again), StoreError (not), UsageError (no key), MissingError (no such bucket).
    After any other error than ObjectExistsError and UsageError, nobody knows whether a write or a removal took place.
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
        """Write a whole object. With *create*, ObjectExistsError when the key is taken (atomic).

        Who needs to know that it was *they* who created it writes bytes unique to them: a create whose answer got lost
        is recognised by its bytes.
        """
        ...

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """Write an object of unknown length; return its size in bytes.

        The object appears only after *chunks* ended normally. When *chunks* raises, nothing appears and the
        exception passes through unchanged. *expected_bytes* is an upper estimate; without one a bucket takes
        10,000 parts of STREAM_CHUNK_BYTES (84 GB), and StoreError says so when they are used up.
        """
        ...

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object, or *length* bytes from *start*; fewer only where the object ends. Empty beyond its end."""
        ...

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """The object from *start*, in order, in pieces of at most STREAM_CHUNK_BYTES; never a part of it as the whole.

        Errors are raised by the iterator. StoreError when the object is replaced meanwhile, or when it is not the one
        *same_as* describes; StoreUnavailableError when it breaks off.
        """
        ...

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several (start, length) ranges, read in parallel; all inside the object, else StoreError."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Size and time of one object; ObjectMissingError when absent."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below the folder *prefix* (ends with `/`, or empty for all), sorted by key.

        It is read completely before the first is handed out, and raises before that.
        """
        ...

    def folders(self, prefix: str) -> Sequence[str]:
        """The names of the folders directly below the folder *prefix* (as in `list`), sorted, without their `/`.

        Those in which an object lies, at any depth; some servers name those too out of which all was removed. It costs one
        request per thousand, however much lies in them.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; absent ones are no error. Each single removal is atomic, the set is not.

        When it returns, all of them are gone for good: a power loss brings none back.
        """
        ...

    def now(self) -> datetime:
        """The store's own clock, UTC, by writing a small object where that is the only way to ask."""
        ...


def check_key(key: str) -> None:
    """UsageError unless *key* is one: parts joined by `/`, each 1 to 255 of `A-Z a-z 0-9 . _ - % + = @`, no dot first."""
    parts = key.split("/")
    if len(key) > KEY_BYTES_MAX:
        raise UsageError(f"not an object key, longer than {KEY_BYTES_MAX} bytes: {key[:80]}…")
    if parts[0] == CLOCK_KEY or not all(_KEY_PART.fullmatch(part) and len(part) <= _PART_BYTES_MAX for part in parts):
        raise UsageError(f"not an object key: {key!r}")


def is_key(name: str) -> bool:
    """Whether *name* is one: listings leave out what others put into a store."""
    try:
        check_key(name)
    except UsageError:
        return False
    return True


def check_prefix(prefix: str) -> None:
    """UsageError unless *prefix* is empty or a folder of keys, with its `/` at the end."""
    if prefix and not prefix.endswith("/"):
        raise UsageError(f"not a folder of objects: {prefix!r}")
    if prefix:
        check_key(prefix[:-1] + "/x")
