"""What every store must do, as checks that run against a real one: ours in the tests, a user's by `bucket check`.

Each check works in a folder of its own and raises ConformanceError with what differed. `in_a_room` removes everything
afterwards.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError, ObjectExistsError, ObjectMissingError, StoreError
from clipper_backup.store.protocol import KEY_BYTES_MAX, STREAM_CHUNK_BYTES, Store

RIVALS = 16
ROOM_PREFIX = "conformance-"
"""How every room's name begins; what follows is random."""
_CLOCK_TOLERANCE = timedelta(minutes=10)


class ConformanceError(AssertionError):
    """The store did something else than every store must do."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where one check works: a folder of its own (with its `/`) in *store*.

    *many_objects* should be more than a page of the store's listing. *clock* is ours, to compare the store's with.
    """

    store: Store
    folder: str
    clock: Clock
    many_objects: int

    def key(self, name: str) -> str:
        """The key of *name* in this room."""
        return self.folder + name

    def names(self) -> list[str]:
        """What a listing of the room shows, in its order."""
        return [info.key.removeprefix(self.folder) for info in self.store.list(self.folder)]


Check: TypeAlias = Callable[[Room], None]


@contextlib.contextmanager
def in_a_room(store: Store, clock: Clock, *, many_objects: int = 1100) -> Iterator[Room]:
    """A fresh room, emptied afterwards."""
    room = Room(store, f"{ROOM_PREFIX}{os.urandom(8).hex()}/", clock, many_objects)
    try:
        yield room
    finally:
        store.delete([info.key for info in store.list(room.folder)])


def name_of(check: Check) -> str:
    """What people call *check*."""
    return check.__name__.replace("_", " ")


def run_checks(
    store: Store, clock: Clock, *, many_objects: int = 1100, checks: Sequence[Check] | None = None
) -> Iterator[tuple[str, ConformanceError | ClipperError | None]]:
    """Run all checks, yielding the name of each with None, or with what was wrong."""
    for check in checks or CHECKS:
        try:
            with in_a_room(store, clock, many_objects=many_objects) as room:
                check(room)
        except (ConformanceError, ClipperError) as error:
            yield name_of(check), error
        else:
            yield name_of(check), None


# -- the checks


def objects_of_any_size_come_back(room: Room) -> None:
    """By each pair of a way to write and a way to read."""
    for size in (0, 1, STREAM_CHUNK_BYTES - 1, STREAM_CHUNK_BYTES, STREAM_CHUNK_BYTES + 1, 3 * STREAM_CHUNK_BYTES + 12_345):
        data = _bytes(size)
        room.store.put(room.key("whole"), data)
        _expect("size told by put_stream", room.store.put_stream(room.key("stream"), _pieces(data, 1_000_003)), size)
        for name in ("whole", "stream"):
            _expect_bytes(f"get of {size} bytes", room.store.get(room.key(name)), data)
            pieces = list(room.store.get_stream(room.key(name)))
            _expect_bytes(f"get_stream of {size} bytes", b"".join(pieces), data)
            _expect("the longest piece is no longer than a chunk", max(map(len, pieces), default=0) <= STREAM_CHUNK_BYTES, True)
            _expect(f"head of {size} bytes", room.store.head(room.key(name)).size_bytes, size)


def a_write_is_seen_at_once(room: Room) -> None:
    """Also over an older object, and after a removal: by get, head and list."""
    key = room.key("a/b")
    for data in (b"first", b"second, longer", b""):
        room.store.put(key, data)
        _expect("get after put", room.store.get(key), data)
        _expect("size after put", room.store.head(key).size_bytes, len(data))
        _expect("size listed after put", [info.size_bytes for info in room.store.list(room.folder)], [len(data)])
        room.store.put_stream(key, [data, b"+"])
        _expect("get after put_stream", room.store.get(key), data + b"+")
        room.store.delete([key])
        _expect_missing("get after delete", lambda: room.store.get(key))
        _expect("names after delete", room.names(), [])


def create_refuses_a_taken_key(room: Room) -> None:
    """And leaves what is there."""
    key = room.key("holder")
    room.store.put(key, b"mine", create=True)
    _expect_raises("second create", ObjectExistsError, lambda: room.store.put(key, b"yours", create=True))
    _expect("object after a refused create", room.store.get(key), b"mine")
    room.store.delete([key])
    room.store.put(key, b"yours", create=True)
    _expect("object created after a removal", room.store.get(key), b"yours")


def one_of_many_rivals_creates(room: Room) -> None:
    """Sixteen at once: exactly one wins, and it is its bytes that stay."""
    for attempt in range(2):
        key = room.key(f"race/{attempt}")
        start = threading.Barrier(RIVALS)

        def rival(number: int, key: str = key, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                room.store.put(key, b"rival %d" % number, create=True)
            except ObjectExistsError:
                return False
            return True

        with ThreadPoolExecutor(RIVALS) as pool:
            won = list(pool.map(rival, range(RIVALS)))
        _expect("rivals that won", sum(won), 1)
        _expect("the object", room.store.get(key), b"rival %d" % won.index(True))


def a_range_is_exactly_what_was_asked(room: Room) -> None:
    """Fewer bytes only where the object ends, none beyond it."""
    data = _bytes(2 * STREAM_CHUNK_BYTES + 777)
    key, empty, end = room.key("data"), room.key("empty"), len(data)
    room.store.put(key, data)
    room.store.put(empty, b"")
    asked: tuple[tuple[int, int | None], ...] = (
        (0, 1), (0, 0), (5, 10), (0, None), (7, None), (end - 1, 1), (end - 3, 10), (end - 3, None), (end, 1), (end, None),
        (end + 5, 5), (end + 5, None), (3, STREAM_CHUNK_BYTES), (3, 2 * STREAM_CHUNK_BYTES), (0, end + 1),
    )  # fmt: skip
    for start, length in asked:
        wanted = data[start : None if length is None else start + length]
        _expect_bytes(f"get from {start}, length {length}, of {end}", room.store.get(key, start=start, length=length), wanted)
        nothing = room.store.get(empty, start=start, length=length)
        _expect(f"get from {start}, length {length}, of an empty object", nothing, b"")
        if length is None:
            _expect_bytes(f"get_stream from {start} of {end}", b"".join(room.store.get_stream(key, start=start)), wanted)


def ranges_come_in_the_order_asked(room: Room) -> None:
    """Overlapping, adjacent, far apart, empty; one that reaches beyond the end is an error, not a short answer."""
    data = _bytes(3 * STREAM_CHUNK_BYTES)
    key, end = room.key("data"), len(data)
    room.store.put(key, data)
    ranges = [(end - 10, 10), (0, 5), (3, 5), (8, 1), (100, 0), (STREAM_CHUNK_BYTES - 2, 4), (0, end)]
    ranges += [(position, 4096) for position in range(0, end - 4096, end // 50)]
    for (start, length), got in zip(ranges, room.store.get_ranges(key, ranges), strict=True):
        _expect_bytes(f"range from {start}, length {length}", got, data[start : start + length])
    _expect("no ranges", room.store.get_ranges(key, []), [])
    for beyond in ((end - 1, 2), (end, 1), (end + 10, 1)):
        _expect_raises(f"range {beyond} of {end}", StoreError, partial(room.store.get_ranges, key, [(0, 1), beyond]))


def a_listing_is_sorted_and_keeps_to_its_folder(room: Room) -> None:
    """By whole keys: `a-b/x` comes before `a/b`, and `a/bc` is not below `a/b/`."""
    names = ["a-b/x", "a.b", "a/b/1", "a/b/2", "a/bc/1", "a0", "b", "B", "a/b-c/1", "a/b=/1", "%41", "_"]
    for name in names:
        room.store.put(room.key(name), name.encode())
    _expect("names of the room", room.names(), sorted(names))
    below = [info.key for info in room.store.list(room.key("a/b/"))]
    _expect("names below a/b/", below, [room.key("a/b/1"), room.key("a/b/2")])
    _expect("names below a folder that is none", list(room.store.list(room.key("nothing/"))), [])
    for info in room.store.list(room.folder):
        _expect(f"what list and head say of {info.key}", room.store.head(info.key), info)
    room.store.put_stream(room.key("c"), [_bytes(STREAM_CHUNK_BYTES), b"x"])
    listed = {info.key: info for info in room.store.list(room.folder)}
    _expect("what list and head say of an object in parts", listed[room.key("c")], room.store.head(room.key("c")))


def many_objects_are_all_listed(room: Room) -> None:
    """More than one page of them, and of folders."""
    names = [f"{number:06d}/{number % 7}" for number in range(room.many_objects)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: room.store.put(room.key(name), b"x"), names))
    _expect("names", room.names(), sorted(names))
    _expect("folders", room.store.folders(room.folder), [name.partition("/")[0] for name in names])
    room.store.delete([room.key(name) for name in names])
    _expect("names after deleting all", room.names(), [])


def folders_are_those_directly_below(room: Room) -> None:
    """Without what lies in them."""
    for name in ("a/b/c/1", "a/b-/1", "a/1", "a/%41=/1", "b/1"):
        room.store.put(room.key(name), b"x")
    _expect("folders of the room", room.store.folders(room.folder), ["a", "b"])
    _expect("folders below a/", room.store.folders(room.key("a/")), ["%41=", "b", "b-"])
    _expect("folders below one that has none", room.store.folders(room.key("b/")), [])
    _expect("folders below one that is none", room.store.folders(room.key("nothing/")), [])


def percent_signs_are_just_characters(room: Room) -> None:
    """A key is neither decoded nor encoded once more on its way."""
    names = [
        "database/x.my%20db%2Fq.dump.zst",
        "database/x.my%2520db.zst",
        "a%2Fb",
        "a/b",
        "%",
        "100%",
        "x@y+z=1_-.zst",
        "%C3%A4",
    ]
    for name in names:
        room.store.put(room.key(name), name.encode())
    room.store.put_stream(room.key("in%20parts"), [_bytes(STREAM_CHUNK_BYTES), b"x"])
    _expect("names", room.names(), sorted([*names, "in%20parts"]))
    for name in names:
        _expect(f"get of {name}", room.store.get(room.key(name)), name.encode())
        _expect(f"head of {name}", room.store.head(room.key(name)).key, room.key(name))
    room.store.delete([room.key(name) for name in [*names, "in%20parts"]])
    _expect("names after delete", room.names(), [])


def long_keys_are_keys(room: Room) -> None:
    """Parts of 255 bytes, whole keys of KEY_BYTES_MAX."""
    part = "p" * 255
    longest = "/".join(["k" * 100] * 8)[: KEY_BYTES_MAX - len(room.folder)]
    for name in (part, f"d/{part}", longest):
        room.store.put(room.key(name), b"1", create=True)
        room.store.put_stream(room.key(name), [b"long"])
        _expect("get of a long key", room.store.get(room.key(name)), b"long")
    _expect("names", room.names(), sorted([part, f"d/{part}", longest]))


def removing_twice_is_no_error(room: Room) -> None:
    """Absent objects are as good as removed; neighbours stay."""
    for name in ("d/1", "d/2", "e/f/1"):
        room.store.put(room.key(name), b"x")
    room.store.delete([room.key("d/1"), room.key("d/absent"), room.key("absent/1"), room.key("e/f/1")])
    _expect("names", room.names(), ["d/2"])
    room.store.delete([room.key("d/1")])
    room.store.delete([])
    room.store.put(room.key("e/f/1"), b"again")
    _expect("names", room.names(), ["d/2", "e/f/1"])


def what_is_absent_is_missing(room: Room) -> None:
    """For every way to read, with and without neighbours."""
    room.store.put(room.key("there/1"), b"x")
    for name in ("absent", "there/2", "no/such/folder"):
        key = room.key(name)
        _expect_missing("get", partial(room.store.get, key))
        _expect_missing("get of nothing", partial(room.store.get, key, length=0))
        _expect_missing("get_stream", partial(_read_stream, room, key))
        _expect_missing("get_ranges", partial(room.store.get_ranges, key, [(0, 1)]))
        _expect_missing("head", partial(room.store.head, key))


def a_failing_stream_leaves_nothing(room: Room) -> None:
    """Whether it fails before the first byte or after several parts; what was there before stays."""
    for size in (0, 1, STREAM_CHUNK_BYTES, 3 * STREAM_CHUNK_BYTES + 5):
        failure = _SourceError(f"after {size} bytes")
        for name in ("new", "old"):
            if name == "old":
                room.store.put(room.key(name), b"as it was")
            try:
                room.store.put_stream(room.key(name), _failing(size, failure))
            except _SourceError as error:
                _expect("the exception that came through", error is failure, True)
            else:
                raise ConformanceError("a stream that raised was taken for complete")
        _expect_missing(f"object whose stream failed after {size} bytes", lambda: room.store.get(room.key("new")))
        _expect("object that was there before", room.store.get(room.key("old")), b"as it was")
    _expect("names", room.names(), ["old"])


def streams_do_not_mix(room: Room) -> None:
    """Several at once, two of them to one key: each object is one stream's, whole. Of the two one may be refused."""
    contents = [_bytes(2 * STREAM_CHUNK_BYTES + number) for number in range(4)]
    names = ["0", "1", "same", "same"]
    with ThreadPoolExecutor(len(names)) as pool:
        written = list(pool.map(partial(_stream_unless_refused, room), names, contents))
    _expect("sizes", written[:2], [len(data) for data in contents[:2]])
    _expect_bytes("object 0", room.store.get(room.key("0")), contents[0])
    _expect_bytes("object 1", room.store.get(room.key("1")), contents[1])
    taken = [data for size, data in zip(written, contents, strict=True) if size == len(data)][2:]
    _expect("the object with two writers is that of one who was told so", room.store.get(room.key("same")) in taken, True)


def a_replaced_object_is_not_read_on(room: Room) -> None:
    """A stream that goes on from the middle gets the bytes of the same object, or an error."""
    key = room.key("data")
    data = _bytes(STREAM_CHUNK_BYTES + 10)
    room.store.put(key, data)
    first = room.store.head(key)
    rest = b"".join(room.store.get_stream(key, start=100, same_as=first))
    _expect_bytes("the same object from byte 100", rest, data[100:])
    for other in (_bytes(len(data)), data + b"x", data[:50]):
        room.store.put(key, other)
        _expect_raises(
            "reading on in a replaced object", StoreError, lambda: list(room.store.get_stream(key, start=100, same_as=first))
        )


def the_clock_goes_with_the_objects(room: Room) -> None:
    """Never behind an object already written, never back, and not far from ours."""
    moments = []
    for number in range(3):
        room.store.put(room.key(str(number)), b"x")
        moments += [room.store.head(room.key(str(number))).modified_at, room.store.now()]
    _expect("times of objects and clock, in the order they were made", moments, sorted(moments))
    _expect("the clock's zone is UTC", {moment.utcoffset() for moment in moments}, {timedelta(0)})
    difference = abs(room.store.now() - room.clock.now())
    if difference > _CLOCK_TOLERANCE:
        raise ConformanceError(f"the store's clock and ours differ by {difference}")
    _expect("names", room.names(), ["0", "1", "2"])


CHECKS: tuple[Check, ...] = (
    objects_of_any_size_come_back,
    a_write_is_seen_at_once,
    create_refuses_a_taken_key,
    one_of_many_rivals_creates,
    a_range_is_exactly_what_was_asked,
    ranges_come_in_the_order_asked,
    a_listing_is_sorted_and_keeps_to_its_folder,
    many_objects_are_all_listed,
    folders_are_those_directly_below,
    percent_signs_are_just_characters,
    long_keys_are_keys,
    removing_twice_is_no_error,
    what_is_absent_is_missing,
    a_failing_stream_leaves_nothing,
    streams_do_not_mix,
    a_replaced_object_is_not_read_on,
    the_clock_goes_with_the_objects,
)


# -- what the checks are made of


class _SourceError(Exception):
    """What a check's own stream fails with."""


def _bytes(size: int) -> bytes:
    """Bytes that compress badly, differ each time, and differ from page to page."""
    block = os.urandom(65_536)
    counted = b"".join(number.to_bytes(4) + block for number in range(size // (len(block) + 4) + 1))
    return counted[:size]


def _pieces(data: bytes, piece_bytes: int) -> Iterator[bytes]:
    for position in range(0, len(data), piece_bytes):
        yield data[position : position + piece_bytes]


def _stream_unless_refused(room: Room, name: str, data: bytes) -> int | None:
    # Azure throws away the parts of every other upload to a key when one is completed.
    try:
        return room.store.put_stream(room.key(name), _pieces(data, 500_000))
    except StoreError:
        return None


def _read_stream(room: Room, key: str) -> bytes:
    return b"".join(room.store.get_stream(key))


def _failing(size: int, failure: Exception) -> Iterator[bytes]:
    yield from _pieces(bytes(size), 1_000_000)
    raise failure


def _expect(what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise ConformanceError(f"{what}: expected {_short(wanted)}, got {_short(got)}")


def _expect_bytes(what: str, got: bytes, wanted: bytes) -> None:
    if got == wanted:
        return
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(got, wanted, strict=False)))
    raise ConformanceError(f"{what}: expected {len(wanted)} bytes, got {len(got)}, which differ from byte {common} on")


def _expect_missing(what: str, call: Callable[[], object]) -> None:
    _expect_raises(what, ObjectMissingError, call)


def _expect_raises(what: str, wanted: type[ClipperError], call: Callable[[], object]) -> None:
    try:
        got = call()
    except wanted:
        return
    except ClipperError as error:
        raise ConformanceError(f"{what}: expected {wanted.__name__}, got {type(error).__name__}: {error}") from error
    raise ConformanceError(f"{what}: expected {wanted.__name__}, got {_short(got)}")


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
