import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import (
    ClipperError,
    IntegrityError,
    MissingError,
    ObjectExistsError,
    StoreUnavailableError,
    UsageError,
    exit_code_of,
)
from clipper_backup.format import names
from clipper_backup.format.compression import compress_bytes
from clipper_backup.format.documents import DumpDetails, Intent, decode, encode
from clipper_backup.repository.dumps import (
    DumpWriter,
    delete_objects,
    find_dump,
    list_dumps,
    newest,
    read_checked,
    read_details,
    read_object,
    read_summary,
)
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Capabilities, Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import DumpId
from fixtures.catalog import DATABASES, INTENT, is_whole, keys, make_dump, make_unfinished, put_parts
from fixtures.clocks import START
from fixtures.proxy import TcpProxy
from fixtures.stores import S3Server

FIRST = DumpId.at_time(START)


# -- what is there


def test_the_listing_tells_committed_from_unfinished_oldest_first(memory: MemoryStore, clock: VirtualClock) -> None:
    ids = []
    for make in (make_dump, make_unfinished, make_dump):
        ids.append(make(memory))
        clock.advance(86_400)
    assert [(each.dump_id, each.committed) for each in list_dumps(memory)] == list(zip(ids, [True, False, True], strict=True))
    assert find_dump(memory, "latest") == newest(list_dumps(memory)) == ids[2]


def test_what_the_listing_says_of_one_dump(memory: MemoryStore, clock: VirtualClock) -> None:
    DumpWriter.take_id(memory, INTENT)
    clock.advance(600)
    summary = put_parts(memory, FIRST)
    (listed,) = list_dumps(memory)
    assert listed.last_written_at == START + timedelta(seconds=600)
    assert listed.stored_bytes == summary.stored_bytes + len(encode(INTENT))
    assert not listed.committed


def test_what_others_put_into_the_folder_is_not_listed(memory: MemoryStore) -> None:
    make_dump(memory)
    for key in ("database/README.md", f"database/{FIRST.next()}.sql.gz", f"database/old/{FIRST.next()}.backup.json", "x"):
        memory.put(key, b"theirs")
    assert [each.dump_id for each in list_dumps(memory)] == [FIRST]


def test_without_a_committed_dump_there_is_no_latest(memory: MemoryStore) -> None:
    make_unfinished(memory)
    assert newest(list_dumps(memory)) is None
    with pytest.raises(MissingError, match="there is no dump in memory:") as raised:
        find_dump(memory, "latest")
    assert exit_code_of(raised.value) == 15


def test_a_dump_is_found_by_its_id_only(memory: MemoryStore) -> None:
    assert find_dump(memory, str(FIRST)) == FIRST
    with pytest.raises(UsageError, match="not a dump id: 'newest'"):
        find_dump(memory, "newest")


# -- reading


def test_a_summary_is_read_with_all_it_says(memory: MemoryStore) -> None:
    make_dump(memory)
    assert read_summary(memory, FIRST).databases == list(DATABASES)


def test_a_summary_that_is_not_there(memory: MemoryStore) -> None:
    make_unfinished(memory)
    with pytest.raises(MissingError, match=f"there is no dump {FIRST}") as raised:
        read_summary(memory, FIRST)
    assert not isinstance(raised.value, IntegrityError)


def test_the_summary_of_another_day_under_this_name(memory: MemoryStore) -> None:
    make_dump(memory)
    memory.put(names.dump_key(FIRST.next(), names.SUMMARY), memory.get(names.dump_key(FIRST, names.SUMMARY)))
    with pytest.raises(IntegrityError, match=rf"{FIRST.next()}.backup.json belongs to the dump {FIRST}, not to"):
        read_summary(memory, FIRST.next())


def test_a_damaged_summary(memory: MemoryStore) -> None:
    make_dump(memory)
    memory.put(names.dump_key(FIRST, names.SUMMARY), b"\xff" * 100)
    with pytest.raises(IntegrityError, match=r"backup\.json is damaged") as raised:
        read_summary(memory, FIRST)
    assert exit_code_of(raised.value) == 13


def test_every_committed_object_reads_back(memory: MemoryStore) -> None:
    make_dump(memory)
    summary = read_summary(memory, FIRST)
    for stored in summary.objects:
        assert read_object(memory, summary, stored.key) == memory.get(stored.key)


@given(st.data())
def test_no_other_bytes_are_read_as_the_committed_ones(data: st.DataObject) -> None:
    store = MemoryStore(VirtualClock(START))
    make_dump(store)
    summary = read_summary(store, FIRST)
    key = data.draw(st.sampled_from([stored.key for stored in summary.objects]))
    true = store.get(key)
    other = data.draw(
        st.one_of(
            st.binary(),
            st.integers(0, len(true) - 1).map(lambda length: true[:length]),
            st.binary(min_size=1).map(lambda more: true + more),
            st.tuples(st.integers(0, len(true) - 1), st.integers(1, 255)).map(
                lambda flip: true[: flip[0]] + bytes([true[flip[0]] ^ flip[1]]) + true[flip[0] + 1 :]
            ),
        ).filter(lambda drawn: drawn != true)
    )
    store.put(key, other)
    with pytest.raises(IntegrityError, match=rf"has {len(other)} bytes|SHA-256 differs") as raised:
        read_object(store, summary, key)
    assert key in str(raised.value)
    assert raised.value.hints


def test_a_missing_object_is_a_loss_not_an_absence(memory: MemoryStore) -> None:
    make_dump(memory)
    summary = read_summary(memory, FIRST)
    key = summary.objects[0].key
    memory.delete([key])
    with pytest.raises(IntegrityError, match="is missing from the store") as raised:
        read_object(memory, summary, key)
    assert exit_code_of(raised.value) == 13


def test_a_stream_that_breaks_off_is_neither_whole_nor_damaged(memory: MemoryStore, clock: VirtualClock) -> None:
    make_dump(memory)
    summary = read_summary(memory, FIRST)
    faulty = FaultyStore(memory, "get_stream:1:after=5:unavailable", clock)
    with pytest.raises(StoreUnavailableError):
        list(read_checked(faulty, summary, summary.objects[0].key))


def test_a_stream_that_ends_early_is_found(memory: MemoryStore, clock: VirtualClock) -> None:
    make_dump(memory)
    summary = read_summary(memory, FIRST)
    faulty = FaultyStore(memory, "get_stream:1:after=5:short", clock)
    with pytest.raises(IntegrityError, match=r"has 5 bytes, \d+ were committed"):
        list(read_checked(faulty, summary, summary.objects[0].key))


def plain(chunks: Iterable[bytes], _key: str) -> Iterator[bytes]:
    """Nothing here is sealed."""
    yield from chunks


def test_details_are_those_of_this_dump(memory: MemoryStore) -> None:
    make_dump(memory)
    assert read_details(memory, read_summary(memory, FIRST), plain) == DumpDetails(id=str(FIRST), databases=[])


def test_details_of_another_dump_are_refused_even_when_they_were_committed(memory: MemoryStore) -> None:
    writer = DumpWriter.take_id(memory, INTENT)
    foreign = compress_bytes(encode(DumpDetails(id=str(FIRST.next()), databases=[])))
    summary = put_parts(memory, FIRST)
    committed = summary.part("details")
    assert committed is not None
    memory.put(committed.key, foreign)
    changed = msgspec.structs.replace(committed, size_bytes=len(foreign), sha256=hashlib.sha256(foreign).hexdigest())
    writer.commit(msgspec.structs.replace(summary, objects=[*summary.objects[:-1], changed]))
    with pytest.raises(IntegrityError, match=rf"belongs to the dump {FIRST.next()}"):
        read_details(memory, read_summary(memory, FIRST), plain)


# -- taking an id


def test_the_intent_says_who_is_writing(memory: MemoryStore) -> None:
    assert DumpWriter.take_id(memory, INTENT).dump_id == FIRST
    key = names.dump_key(FIRST, names.INTENT)
    assert decode(memory.get(key), Intent, key) == INTENT
    assert keys(memory) == [key]


def test_a_second_dump_in_the_same_second_gets_the_next(memory: MemoryStore) -> None:
    assert [make_dump(memory), make_unfinished(memory), make_dump(memory)] == [FIRST, FIRST.next(), FIRST.next().next()]


def test_a_fraction_of_a_second_is_cut(memory: MemoryStore, clock: VirtualClock) -> None:
    clock.advance(0.999)
    assert make_dump(memory) == FIRST


@pytest.mark.parametrize("behind", [1, 30, 59])
def test_a_clock_a_little_behind_the_newest_dump_follows_it(memory: MemoryStore, behind: int) -> None:
    make_dump(memory)
    late = MemoryStore(VirtualClock(START - timedelta(seconds=behind)))
    copy_all(memory, late)
    assert make_dump(late) == FIRST.next()


@pytest.mark.parametrize("behind", [timedelta(seconds=60), timedelta(hours=1), timedelta(days=400)])
def test_a_clock_far_behind_the_newest_dump_is_refused(memory: MemoryStore, behind: timedelta) -> None:
    make_dump(memory)
    late = MemoryStore(VirtualClock(START - behind))
    copy_all(memory, late)
    before = keys(late)
    with pytest.raises(ClipperError, match=f"the store's clock says .*, but the newest dump is {FIRST}") as raised:
        DumpWriter.take_id(late, INTENT)
    assert "clock" in raised.value.hints[0]
    assert keys(late) == before


def test_unfinished_dumps_of_the_future_reorder_nothing(memory: MemoryStore, clock: VirtualClock) -> None:
    clock.advance(3600)
    make_unfinished(memory)
    late = MemoryStore(VirtualClock(START))
    copy_all(memory, late)
    assert make_dump(late) == FIRST


def test_a_minute_of_taken_ids_is_too_many(memory: MemoryStore) -> None:
    taken = FIRST
    for _ in range(60):
        memory.put(names.dump_key(taken, names.INTENT), encode(INTENT))
        taken = taken.next()
    with pytest.raises(ClipperError, match=f"60 dump ids from {FIRST} on are taken"):
        DumpWriter.take_id(memory, INTENT)
    memory.delete([names.dump_key(FIRST, names.INTENT)])
    assert DumpWriter.take_id(memory, INTENT).dump_id == FIRST


@pytest.mark.parametrize("effect", ["denied", "broken", "unavailable"])
def test_who_cannot_see_whether_an_id_is_his_takes_it_back(memory: MemoryStore, clock: VirtualClock, effect: str) -> None:
    with pytest.raises(ClipperError, match="scripted fault get:1"):
        DumpWriter.take_id(FaultyStore(memory, f"get:1:{effect}", clock), INTENT)
    assert keys(memory) == []


def test_many_writers_at_once_get_an_id_each(memory: MemoryStore) -> None:
    taken: list[DumpId] = []
    barrier = threading.Barrier(8)

    def write() -> None:
        barrier.wait(30)
        taken.append(DumpWriter.take_id(memory, INTENT).dump_id)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 8


def test_an_id_in_use_is_not_taken_by_a_commit(memory: MemoryStore) -> None:
    writer = DumpWriter.take_id(memory, INTENT)
    summary = put_parts(memory, writer.dump_id)
    writer.commit(summary)
    before = memory.get(names.dump_key(FIRST, names.SUMMARY))
    with pytest.raises(ObjectExistsError):
        writer.commit(msgspec.structs.replace(summary, rows=7))
    assert memory.get(names.dump_key(FIRST, names.SUMMARY)) == before


def copy_all(source: Store, target: Store) -> None:
    for key in keys(source):
        target.put(key, source.get(key))


# -- taking it away


def test_an_abandoned_dump_leaves_nothing_and_no_other_dump_loses_anything(memory: MemoryStore) -> None:
    make_dump(memory)
    before = keys(memory)
    writer = DumpWriter.take_id(memory, INTENT)
    put_parts(memory, writer.dump_id)
    writer.abandon()
    assert keys(memory) == before
    assert is_whole(memory, FIRST)


def test_abandoning_on_a_store_that_fails_says_nothing(memory: MemoryStore, clock: VirtualClock) -> None:
    DumpWriter(FaultyStore(memory, "delete:1+:unavailable", clock), make_unfinished(memory), encode(INTENT)).abandon()
    assert [each.committed for each in list_dumps(memory)] == [False]


class OneByOne(WrapperStore):
    """Removes the objects of one call in single calls, in an order that no caller chose: a set is not removed atomically."""

    def __init__(self, inner: Store, order: Callable[[Sequence[str]], Sequence[str]]) -> None:
        super().__init__(inner)
        self._order = order

    def delete(self, keys: Sequence[str]) -> None:
        for key in self._order(keys):
            self._inner.delete([key])


def crashing(store: Store, call: int, effect: str, order: Callable[[Sequence[str]], Sequence[str]]) -> Store:
    """The store whose *call*-th call, and all later ones, fail."""
    clock = VirtualClock(START)
    once = FaultyStore(store, f"*:{call}:{effect}", clock)
    return OneByOne(FaultyStore(once, f"*:{call + 1}+:unavailable", clock), order)


@pytest.mark.parametrize("order", [sorted, lambda keys: sorted(keys, reverse=True)], ids=["sorted", "reversed"])
@pytest.mark.parametrize("effect", ["unavailable", "lost", "denied"])
@pytest.mark.rule(75)
def test_a_crash_while_deleting_leaves_the_dump_or_garbage(effect: str, order: Callable[[Sequence[str]], Sequence[str]]) -> None:
    seen: set[bool | None] = set()
    for call in range(1, 100):
        store = MemoryStore(VirtualClock(START))
        make_dump(store)
        other = make_dump(store)
        finished = False
        with suppress(ClipperError):
            delete_objects(crashing(store, call, effect, order), FIRST)
            finished = True
        whole = is_whole(store, FIRST)
        assert whole is not False, f"a dump that lacks parts after call {call}: {keys(store)}"
        seen.add(whole)
        left = names.keys_of(FIRST, keys(store))
        if left:
            assert names.dump_key(FIRST, names.INTENT) in left, "its id would be free while its objects are there"
        delete_objects(store, FIRST)  # the next prune
        assert names.keys_of(FIRST, keys(store)) == []
        assert is_whole(store, other)
        if finished:
            assert left == []
            break
    else:
        raise AssertionError("it never ends")
    assert call > 5
    assert seen == ({True, None} if effect != "lost" else {None})


def test_deleting_what_is_not_there_is_no_error(memory: MemoryStore) -> None:
    delete_objects(memory, FIRST)
    assert keys(memory) == []


def test_deleting_takes_nothing_that_others_put_beside_it(memory: MemoryStore) -> None:
    make_dump(memory)
    theirs = f"database/{FIRST}.sql.gz"
    memory.put(theirs, b"theirs")
    delete_objects(memory, FIRST)
    assert keys(memory) == [theirs]


# -- a commit of which nobody knows whether it took place


def test_a_commit_whose_answer_never_came_loses_none_of_its_objects(s3_server: S3Server, s3_prefix: str) -> None:
    with TcpProxy((s3_server.host, s3_server.port)) as proxy:
        store = s3_server.open(s3_prefix, endpoint=f"http://127.0.0.1:{proxy.port}", timeout_seconds=2, retry_seconds=0)
        writer = DumpWriter.take_id(store, INTENT)
        summary = put_parts(store, writer.dump_id)
        proxy.break_at(b".backup.json", how="stall", direction="answers")
        with pytest.raises(StoreUnavailableError, match=rf"whether {writer.dump_id} was committed, .*dump list"):
            writer.commit(summary)
        proxy.heal()
        writer.abandon()

        assert read_summary(store, writer.dump_id) == summary
        assert is_whole(store, writer.dump_id)


def test_a_summary_of_somebody_else_and_its_objects_are_not_ours_to_remove(memory: MemoryStore) -> None:
    writer = DumpWriter.take_id(memory, INTENT)
    summary = put_parts(memory, writer.dump_id)
    DumpWriter(memory, writer.dump_id, encode(INTENT)).commit(summary)
    with pytest.raises(ObjectExistsError):
        writer.commit(summary)
    writer.abandon()
    assert is_whole(memory, writer.dump_id)


@pytest.mark.parametrize(
    ("fault", "said"), [("put:1:denied", "scripted fault"), ("get:1:flip", "gave back other bytes")], ids=["refused", "otherwise"]
)
def test_a_summary_that_was_refused_or_comes_back_otherwise_is_no_commit(
    memory: MemoryStore, clock: VirtualClock, fault: str, said: str
) -> None:
    writer = DumpWriter.take_id(memory, INTENT)
    summary = put_parts(memory, writer.dump_id)
    failing = DumpWriter(FaultyStore(memory, fault, clock), writer.dump_id, encode(INTENT))
    with pytest.raises(ClipperError, match=said):
        failing.commit(summary)
    failing.abandon()
    assert keys(memory) == []


class Late(WrapperStore):
    """One whose requests may be served after they were given up, like a bucket's."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, writes_late=True)


def test_a_refusal_may_be_that_of_a_repetition(memory: MemoryStore, clock: VirtualClock) -> None:
    """The first attempt, which nobody answered, is served after the second was refused."""
    writer = DumpWriter.take_id(memory, INTENT)
    summary = put_parts(memory, writer.dump_id)
    refusing = DumpWriter(Late(FaultyStore(memory, "put:1:denied", clock)), writer.dump_id, encode(INTENT))
    with pytest.raises(ClipperError, match="scripted fault"):
        refusing.commit(summary)
    refusing.abandon()
    writer.commit(summary)
    assert is_whole(memory, writer.dump_id)


def test_a_dump_whose_summary_cannot_be_read_back_is_one_all_the_same(memory: MemoryStore, clock: VirtualClock) -> None:
    writer = DumpWriter.take_id(memory, INTENT)
    summary = put_parts(memory, writer.dump_id)
    away = DumpWriter(FaultyStore(memory, "get:1:unavailable", clock), writer.dump_id, encode(INTENT))
    with pytest.raises(StoreUnavailableError, match=rf"{writer.dump_id} is committed, its summary could not be read back"):
        away.commit(summary)
    away.abandon()
    assert is_whole(memory, writer.dump_id)


# -- an id that a store without exclusive create gave to two


class NotExclusive(WrapperStore):
    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        del create
        super().put(key, data)


def test_who_was_written_over_removes_nothing(memory: MemoryStore) -> None:
    first = DumpWriter.take_id(memory, INTENT)
    second = DumpWriter.take_id(NotExclusive(memory), msgspec.structs.replace(INTENT, run_id="second"))
    assert second.dump_id == first.dump_id
    second.commit(put_parts(memory, second.dump_id))
    first.abandon()
    assert is_whole(memory, second.dump_id)


def test_who_is_written_over_while_taking_an_id_takes_the_next(memory: MemoryStore) -> None:
    class Overwritten(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            super().put(key, data, create=create)
            if key == names.dump_key(FIRST, names.INTENT):
                DumpWriter.take_id(NotExclusive(memory), msgspec.structs.replace(INTENT, run_id="second"))

    assert DumpWriter.take_id(Overwritten(memory), INTENT).dump_id == FIRST.next()
