"""Every store does what every store must do, and a store that does not is found out."""

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.errors import ClipperError, ObjectExistsError, ObjectMissingError, StoreError
from clipper_backup.store import conformance
from clipper_backup.store.conformance import CHECKS, RIVALS, Check, ConformanceError, in_a_room, name_of, run_checks
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import STREAM_CHUNK_BYTES, ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_every_store_conforms(store: Store, check: Check) -> None:
    with in_a_room(store, SystemClock()) as room:
        check(room)
    assert list(store.list("")) == []


# -- stores that are wrong in one way each


class LosesTheEnd(WrapperStore):
    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        data = b"".join(super().get_stream(key, start=start, same_as=same_as))
        yield data[: STREAM_CHUNK_BYTES + 1]


class ReadsWhatItReadBefore(WrapperStore):
    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.cache: dict[str, bytes] = {}

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self.cache.setdefault(key, super().get(key, start=start, length=length))


class ForgetsTheCondition(WrapperStore):
    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        del create
        super().put(key, data)


class LooksBeforeItCreates(WrapperStore):
    """Not atomic: all rivals have looked before the first one writes."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.looked = threading.Barrier(RIVALS)

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        if create:
            taken = [info.key for info in self.list("")]
            self.looked.wait()
            if key in taken:
                raise ObjectExistsError(key)
        super().put(key, data)


class AnswersBeyondTheEnd(WrapperStore):
    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        found = super().get(key, start=start, length=length)
        return found if found or length is None else bytes(length)


class ShortensRanges(WrapperStore):
    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        data = super().get(key)
        return [data[start : start + length] for start, length in ranges]


class ListsFolderByFolder(WrapperStore):
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(sorted(super().list(prefix), key=lambda info: info.key.split("/")))


class ListsOnePage(WrapperStore):
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return itertools.islice(super().list(prefix), 1000)


class NamesFoldersBelowFolders(WrapperStore):
    def folders(self, prefix: str) -> Sequence[str]:
        folders = {info.key.removeprefix(prefix).rpartition("/")[0] for info in self.list(prefix)}
        return sorted(folders - {""})


class DecodesKeys(WrapperStore):
    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        super().put(unquote(key) if "%2F" in key else key, data, create=create)


class CutsKeys(WrapperStore):
    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        super().put(key[:250], data, create=create)


class MissesWhatIsAbsent(WrapperStore):
    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._inner.head(key)
        super().delete(keys)


class FindsNothingEmpty(WrapperStore):
    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        try:
            return super().get(key, start=start, length=length)
        except ObjectMissingError:
            return b""


class KeepsHalfAStream(WrapperStore):
    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        del expected_bytes
        data = b""
        try:
            for chunk in chunks:
                data += chunk
        finally:
            super().put(key, data)
        return len(data)


class MixesStreams(WrapperStore):
    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        del expected_bytes
        data = b"".join(chunks)
        super().put(key, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        return len(data)


class ReadsOnInAnother(WrapperStore):
    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        del same_as
        return super().get_stream(key, start=start)


class RunsLate(WrapperStore):
    def now(self) -> datetime:
        return super().now() - timedelta(hours=1)


WRONG: dict[Check, type[WrapperStore]] = {
    conformance.objects_of_any_size_come_back: LosesTheEnd,
    conformance.a_write_is_seen_at_once: ReadsWhatItReadBefore,
    conformance.create_refuses_a_taken_key: ForgetsTheCondition,
    conformance.one_of_many_rivals_creates: LooksBeforeItCreates,
    conformance.a_range_is_exactly_what_was_asked: AnswersBeyondTheEnd,
    conformance.ranges_come_in_the_order_asked: ShortensRanges,
    conformance.a_listing_is_sorted_and_keeps_to_its_folder: ListsFolderByFolder,
    conformance.many_objects_are_all_listed: ListsOnePage,
    conformance.folders_are_those_directly_below: NamesFoldersBelowFolders,
    conformance.percent_signs_are_just_characters: DecodesKeys,
    conformance.long_keys_are_keys: CutsKeys,
    conformance.removing_twice_is_no_error: MissesWhatIsAbsent,
    conformance.what_is_absent_is_missing: FindsNothingEmpty,
    conformance.a_failing_stream_leaves_nothing: KeepsHalfAStream,
    conformance.streams_do_not_mix: MixesStreams,
    conformance.a_replaced_object_is_not_read_on: ReadsOnInAnother,
    conformance.the_clock_goes_with_the_objects: RunsLate,
}


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_a_wrong_store_is_found_out(check: Check) -> None:
    memory = MemoryStore(SystemClock())
    results = dict(run_checks(WRONG[check](memory), SystemClock(), checks=[check]))
    assert isinstance(results[name_of(check)], ConformanceError | ClipperError)
    with in_a_room(memory, SystemClock()) as room:
        check(room)


def test_results_are_named_and_rooms_are_left_empty() -> None:
    clock = VirtualClock(datetime(2026, 11, 22, 2, 0, tzinfo=UTC))
    memory = MemoryStore(clock)
    memory.put("others/k", b"x")
    assert dict(run_checks(memory, clock, many_objects=20)) == {name_of(check): None for check in CHECKS}
    results = dict(run_checks(ListsFolderByFolder(memory), clock, many_objects=20))
    wrong = results["a listing is sorted and keeps to its folder"]
    assert isinstance(wrong, ConformanceError)
    assert str(wrong).startswith("names of the room: expected %41, B, _, a-b/x, ")
    assert [info.key for info in memory.list("")] == ["others/k"]


def test_a_store_that_fails_altogether_is_a_result_too() -> None:
    class Broken(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            del data, create
            raise StoreError(f"cannot write {key}")

    results = dict(run_checks(Broken(MemoryStore(SystemClock())), SystemClock(), checks=CHECKS[:2]))
    assert [type(error) for error in results.values()] == [StoreError, StoreError]
