"""Objects in a bucket, over obstore. None of it is one cloud's alone: `clouds.py` has what differs, `remote_open.py` the clients.

Every call runs in a thread of its own while the caller waits for it: obstore lets no signal handler run before its call
returns (seen: SIGTERM after 60 s, against a stalled server). These threads are daemons, since an executor's would be
joined at exit. What is retried here and what is not: docs/design/store.md.
"""

import concurrent.futures
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from clipper_backup.errors import (
    AccessError,
    ClipperError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from clipper_backup.feed import Feed
from clipper_backup.store.protocol import (
    CLOCK_KEY,
    STREAM_CHUNK_BYTES,
    Capabilities,
    ObjectInfo,
    check_key,
    check_prefix,
    is_key,
)
from clipper_backup.store.remote_errors import BUSY_HINTS, Place, is_beyond_end, no_store, translated
from clipper_backup.values import show_bytes

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import RetryConfig

_PARTS_AT_ONCE = 3
_PARTS_AT_ONCE_BYTES = 96 * 1024 * 1024
_READ_AHEAD = 4
# What is handed out is copied out of obstore's buffer: so little stays in the processor's cache, 8 MiB are new memory each time.
_HANDED_OUT_BYTES = 256 * 1024
_DELETES_AT_ONCE = 16
_WAITING_BYTES = 1024 * 1024
_TAKE_BACK_SECONDS = 10.0
# A repeated request keeps its first signature, which S3 takes for 15 minutes.
_PART_RETRY_SECONDS_MAX = 600

_FOREIGN = (BaseError, FileNotFoundError)

Result = TypeVar("Result")


class ObstoreStore:
    """Objects below *prefix* in a bucket. *client* makes an obstore client with the given way to retry."""

    def __init__(
        self,
        client: "Callable[[RetryConfig], ObjectStore]",
        prefix: str,
        place: Place,
        *,
        retry_seconds: int,
        conditional_create: bool = True,
    ) -> None:
        self._single = client({"max_retries": 0})
        self._patient = client(_patience(retry_seconds))
        self._prefix = prefix
        self._place = place
        self._conditional_create = conditional_create
        self._bucket_seen = False

    @property
    def url(self) -> str:
        """Bucket and prefix."""
        return self._place.url

    @property
    def capabilities(self) -> Capabilities:
        """Buckets create by a condition, unless it was said that this one's server does not; they answer after they stored."""
        return Capabilities(conditional_create=self._conditional_create, durable=True, writes_late=True)

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`. A large object goes up in parts."""
        check_key(key)
        if not create and len(data) > STREAM_CHUNK_BYTES:
            parts = (data[at : at + STREAM_CHUNK_BYTES] for at in range(0, len(data), STREAM_CHUNK_BYTES))
            self._put_parts(key, parts, len(data))
            return
        self._ask(key, lambda: self._put_whole(self._single, key, data, create=create))

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        """See `Store.put_stream`. What fits into one part goes up in one request."""
        check_key(key)
        source = iter(chunks)
        begun: list[bytes] = []
        size_bytes = 0
        for chunk in source:
            begun.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > STREAM_CHUNK_BYTES:
                return self._put_parts(key, itertools.chain(begun, source), expected_bytes)
        data = b"".join(begun)
        self._ask(key, lambda: self._put_whole(self._patient, key, data))
        return size_bytes

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        if length == 0:
            self.head(key)
            return b""
        pieces = list(self._pieces(key, start, length, None))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        """See `Store.get_stream`."""
        return self._pieces(key, start, None, same_as)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> "list[bytes]":
        """See `Store.get_ranges`. Neighbouring ranges share a request."""
        check_key(key)
        wanted = [(start, length) for start, length in ranges if length > 0]
        if not wanted:
            self.head(key)
            return [b"" for _ in ranges]
        starts, lengths = [start for start, _ in wanted], [length for _, length in wanted]
        path = self._path(key)
        try:
            found = self._ask(key, lambda: obstore.get_ranges(self._single, path, starts=starts, lengths=lengths))
        except _BeyondEndError as error:
            raise StoreError(f"{self._name(key)} is shorter than what was asked of it") from error
        if [len(piece) for piece in found] != lengths:
            raise StoreError(f"{self._name(key)} is shorter than what was asked of it")
        pieces = iter(found)
        return [bytes(next(pieces)) if length > 0 else b"" for _, length in ranges]

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        check_key(key)
        return self._head(self._single, key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        check_prefix(prefix)
        found = self._listed(prefix, self._path(prefix))
        infos = (_info(meta["path"].removeprefix(self._prefix), meta) for meta in found)
        # Not every S3 server lists in the order of whole keys, and the clock and others' objects are no keys.
        return iter(sorted((info for info in infos if is_key(info.key)), key=lambda info: info.key))

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        check_prefix(prefix)
        path = self._path(prefix)
        with self._no_store_when_missing():
            found = self._ask(prefix, lambda: obstore.list_with_delimiter(self._single, path or None))
        names = (common.rstrip("/").removeprefix(path) for common in found["common_prefixes"])
        return sorted(name for name in names if is_key(f"{prefix}{name}/x"))

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`."""
        for key in keys:
            check_key(key)
        if not keys:
            return
        try:
            self._ask(keys[0], lambda: obstore.delete(self._single, [self._path(key) for key in keys]))
        except ObjectMissingError:
            self._check_bucket()
            self._delete_each(keys)

    def now(self) -> datetime:
        """Last-Modified of the clock object, written for this."""
        self._ask(CLOCK_KEY, lambda: self._put_whole(self._single, CLOCK_KEY, b"written to read the store's clock\n"))
        return self._head(self._single, CLOCK_KEY).modified_at

    def _delete_each(self, keys: Sequence[str]) -> None:
        """One by one: for GCS and Azure an absent object is an error, after which the others of its request may be left."""
        pending = iter(keys)

        def begin(key: str) -> "tuple[str, concurrent.futures.Future[None]]":
            return key, _begin(lambda: obstore.delete(self._single, [self._path(key)]))

        under_way = deque(begin(key) for key in itertools.islice(pending, _DELETES_AT_ONCE))
        while under_way:
            key, answer = under_way.popleft()
            with contextlib.suppress(ObjectMissingError):
                self._await(key, answer)
            under_way.extend(begin(key) for key in itertools.islice(pending, 1))

    # -- asking

    def _path(self, key: str) -> str:
        return self._prefix + key

    def _name(self, key: str) -> str:
        return f"{self._place.url}/{key}"

    def _ask(self, key: str, call: Callable[[], Result]) -> Result:
        return self._await(key, _begin(call))

    def _await(self, key: str, answer: "concurrent.futures.Future[Result]") -> Result:
        """The answer; foreign errors become ours here and nowhere else."""
        try:
            return answer.result()
        except _FOREIGN as error:
            if is_beyond_end(str(error)):
                raise _BeyondEndError(f"{self._name(key)} ends before what was asked of it") from error
            raise translated(str(error), self._name(key), self._place) from error
        finally:
            # It has the error, whose traceback has this frame: such a ring would keep all that the callers hold, a pack of 32 MiB
            # for each object that was not there yet, until garbage is collected.
            del answer

    def _head(self, client: ObjectStore, key: str) -> ObjectInfo:
        path = self._path(key)
        try:
            return _info(key, self._ask(key, lambda: obstore.head(client, path)))
        except ObjectMissingError:
            # HEAD has no body that could say whether it is the bucket that is missing.
            self._check_bucket()
            raise

    def _listed(self, name: str, path: str) -> "Sequence[ObjectMeta]":
        with self._no_store_when_missing():
            return self._ask(name, lambda: obstore.list(self._single, path or None, chunk_size=1000).collect())

    @contextlib.contextmanager
    def _no_store_when_missing(self) -> Iterator[None]:
        try:
            yield
        except ObjectMissingError as error:
            raise no_store(self._place) from error

    def _check_bucket(self) -> None:
        if self._bucket_seen:
            return
        try:
            self._listed("", self._path(f"{CLOCK_KEY}/"))
        except AccessError:
            # Who may not list cannot tell; then the object is what is missing.
            return
        self._bucket_seen = True

    # -- reading

    def _pieces(self, key: str, start: int, length: int | None, same_as: ObjectInfo | None) -> Iterator[bytes]:
        """*length* bytes (None: all) from *start*, in requests of one piece each, a few of them ahead of the reader."""
        check_key(key)
        first_bytes = STREAM_CHUNK_BYTES if length is None else min(length, STREAM_CHUNK_BYTES)
        try:
            first, info = self._ask(key, lambda: self._piece(key, start, first_bytes))
        except _BeyondEndError:
            info = self.head(key)
            self._check_same(same_as, info)
            if start < info.size_bytes:
                raise
            return
        self._check_same(same_as, info)
        stop = info.size_bytes if length is None else min(start + length, info.size_bytes)
        offsets = iter(range(start + len(first), stop, STREAM_CHUNK_BYTES))

        def begin(offset: int) -> "concurrent.futures.Future[tuple[memoryview, ObjectInfo]]":
            return _begin(lambda: self._piece(key, offset, min(STREAM_CHUNK_BYTES, stop - offset)))

        ahead = deque(begin(offset) for offset in itertools.islice(offsets, _READ_AHEAD))
        yield from _handed_out(first)
        while ahead:
            piece, seen = self._await(key, ahead.popleft())
            self._check_same(info, seen)
            ahead.extend(begin(offset) for offset in itertools.islice(offsets, 1))
            yield from _handed_out(piece)

    def _piece(self, key: str, start: int, length: int) -> tuple[memoryview, ObjectInfo]:
        result = obstore.get(self._single, self._path(key), options={"range": (start, start + length)})
        info = _info(key, result.meta)
        data = memoryview(result.bytes())
        if len(data) != min(length, info.size_bytes - start):
            raise StoreUnavailableError(f"{self._name(key)} broke off after {start + len(data)} bytes", hints=BUSY_HINTS)
        return data, info

    def _check_same(self, expected: ObjectInfo | None, seen: ObjectInfo) -> None:
        if expected is not None and (expected.version, expected.size_bytes) != (seen.version, seen.size_bytes):
            raise StoreError(f"{self._name(seen.key)} was replaced while it was read")

    # -- writing

    def _put_whole(self, client: ObjectStore, key: str, data: bytes, *, create: bool = False) -> None:
        obstore.put(client, self._path(key), data, mode="create" if create else "overwrite", use_multipart=False)

    def _put_parts(self, key: str, chunks: Iterable[bytes], expected_bytes: int | None) -> int:
        """Upload in parts; obstore repeats each part by itself, since *chunks* cannot be asked again."""
        parts_max = self._place.cloud.parts_max
        part_bytes = _part_bytes(expected_bytes, parts_max)
        before = self._version(key)
        feed = Feed(_WAITING_BYTES)
        upload = _begin(
            lambda: obstore.put(
                self._patient,
                self._path(key),
                feed,
                use_multipart=True,
                chunk_size=part_bytes,
                max_concurrency=max(1, min(_PARTS_AT_ONCE, _PARTS_AT_ONCE_BYTES // part_bytes)),
            )
        )
        upload.add_done_callback(lambda _: feed.close())
        size_bytes = 0
        try:
            for chunk in _within(chunks, part_bytes, parts_max, self._name(key)):
                size_bytes += len(chunk)
                if not feed.send(chunk):
                    break
            feed.finish()
        except BaseException:
            feed.abort()
            # Time for taking back what is uploaded; a store that does not answer now does it by its own rule for left parts.
            concurrent.futures.wait([upload], timeout=_TAKE_BACK_SECONDS)
            raise
        try:
            self._await(key, upload)
        except StoreUnavailableError:
            if not self._is_complete(key, size_bytes, before):
                raise
        return size_bytes

    def _version(self, key: str) -> str | None:
        try:
            return self._head(self._patient, key).version
        except ObjectMissingError:
            return None

    def _is_complete(self, key: str, size_bytes: int, before: str | None) -> bool:
        """Whether the upload took place although its last answer got lost: there is a new object, of its size."""
        try:
            info = self._head(self._patient, key)
        except ClipperError:
            return False
        return info.size_bytes == size_bytes and info.version != before


def _handed_out(piece: memoryview) -> Iterator[bytes]:
    for start in range(0, len(piece), _HANDED_OUT_BYTES):
        yield bytes(piece[start : start + _HANDED_OUT_BYTES])


class _BeyondEndError(StoreError):
    """The range asked for begins beyond the object's end."""


def _begin(call: Callable[[], Result]) -> "concurrent.futures.Future[Result]":
    answer: concurrent.futures.Future[Result] = concurrent.futures.Future()
    threading.Thread(target=_settle, args=(answer, call), name="store", daemon=True).start()
    return answer


def _settle(answer: "concurrent.futures.Future[Result]", call: Callable[[], Result]) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 # handed on to whoever waits
        answer.set_exception(error)
    else:
        answer.set_result(result)
    finally:
        del answer  # as in `_await`


def _within(chunks: Iterable[bytes], part_bytes: int, parts_max: int, name: str) -> Iterator[bytes]:
    limit_bytes = part_bytes * parts_max
    passed_bytes = 0
    for chunk in chunks:
        passed_bytes += len(chunk)
        if passed_bytes > limit_bytes:
            raise StoreError(f"{name} grew beyond {show_bytes(limit_bytes)}, all that its {parts_max} parts can hold")
        yield chunk


def _patience(retry_seconds: int) -> "RetryConfig":
    if retry_seconds == 0:
        return {"max_retries": 0}
    return {
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=min(retry_seconds, _PART_RETRY_SECONDS_MAX)),
        "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
    }


def _part_bytes(expected_bytes: int | None, parts_max: int) -> int:
    """Large enough that *expected_bytes*, and a tenth more, fit into *parts_max*; whole MiB."""
    needed = (expected_bytes or 0) * 11 // 10 // parts_max
    return max(STREAM_CHUNK_BYTES, ((needed >> 20) + 1) << 20)


def _info(key: str, meta: "ObjectMeta") -> ObjectInfo:
    moment = meta["last_modified"]
    # Azure quotes the ETag in an answer's header, and not in a listing.
    version = (meta["e_tag"] or "").strip('"') or meta["version"] or moment.isoformat()
    return ObjectInfo(key, meta["size"], moment, version)
