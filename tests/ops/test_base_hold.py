"""Holds on base backups, and refreshing: what a name keeps, and for how long, over a repository made of a few bytes."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from clipper_backup.errors import IncompleteError, LeaseLostError, LockedError, MissingError, StoreError, UsageError
from clipper_backup.format import names as dump_names
from clipper_backup.format import physical_names as names
from clipper_backup.format.documents import HoldMark, decode
from clipper_backup.ops.base_hold import hold_base, parse_wal_to, release_base
from clipper_backup.ops.events import Event, Warned
from clipper_backup.ops.lease import PRUNE_LEASE, take_lease
from clipper_backup.ops.physical_plan import PhysicalPrune
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import list_base_backups, list_packs, needed_packs, read_base_summary, read_packs
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId, Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.base_repository import (
    SIZE,
    SYSTEM,
    days,
    keys_below,
    make_repository,
    put_backup,
    put_history,
    put_hold,
    put_packs,
    put_segments,
    settings_of_a_week,
)
from fixtures.clocks import SteppedClock


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def store(clock: SteppedClock) -> MemoryStore:
    return make_repository(clock)


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def work(store: MemoryStore, clock: SteppedClock, told: list[Event]) -> Work:
    return Work(settings_of_a_week(), store, clock, told.append)


def prune(work: Work) -> PhysicalPrune:
    return prune_physical(work)


def backups(store: Store) -> list[BackupId]:
    return [listed.backup_id for listed in list_base_backups(store) if listed.committed]


# -- hold and release


def test_hold_keeps_and_release_lets_go(work: Work, store: MemoryStore, clock: SteppedClock) -> None:
    held = put_backup(store, wal=True)
    hold_base(work, held, "the audit", None)
    mark = decode(store.get(names.base_hold_key(held)), HoldMark, "x")
    assert (mark.reason, b"wal_to" in store.get(names.base_hold_key(held))) == ("the audit", False)
    for day in range(20):
        days(clock, 1)
        put_backup(store, start=10 + day, wal=True)
    prune(work)
    assert backups(store)[0] == held
    release_base(work, held)
    prune(work)
    assert backups(store)[0] != held
    with pytest.raises(MissingError, match="is not held"):
        release_base(work, held)


def test_what_is_held_already_stays_so(work: Work, store: MemoryStore, told: list[Event]) -> None:
    held = put_backup(store, wal=True)
    hold_base(work, held, "first", None)
    hold_base(work, held, "second", None)
    assert decode(store.get(names.base_hold_key(held)), HoldMark, "x").reason == "first"
    assert isinstance(told[-1], Warned)
    assert told[-1].text == f"{held} is held already: first"


def test_a_backup_that_is_gone_or_goes_is_not_held(work: Work, store: MemoryStore) -> None:
    with pytest.raises(MissingError, match="there is no base backup"):
        hold_base(work, BackupId.make(store.now()), "x", None)
    going = put_backup(store, wal=True)

    class Removing(WrapperStore):
        """A prune removes it while the mark is written."""

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            if key == names.base_hold_key(going):
                store.delete([names.base_key(going, names.BASE_SUMMARY)])
            super().put(key, data, create=create)

    with pytest.raises(MissingError, match="removed while it was being held"):
        hold_base(Work(work.settings, Removing(store), work.clock, work.emit), going, "x", None)
    assert keys_below(store, "holds/") == set()


def test_what_is_not_there_is_named_and_the_rest_is_held(work: Work, store: MemoryStore) -> None:
    held = put_backup(store, start=5, stop=8)
    put_segments(store, 5, 6)
    put_segments(store, 7, 7, claims_only=True)
    with pytest.raises(IncompleteError, match=r"the WAL segment 000000010000000000000007 is not in the archive$"):
        hold_base(work, held, "x", None)
    store.delete([names.pack_key(held, 0)])
    release_base(work, held)
    with pytest.raises(IncompleteError, match=r"packs/.* is missing from the store \(and 1 more\)"):
        hold_base(work, held, "x", None)
    assert keys_below(store, "holds/") == {names.base_hold_key(held)}


def test_to_where_wal_is_held_lies_on_a_line_of_the_backup(work: Work, store: MemoryStore) -> None:
    held = put_backup(store, start=5, wal=True)
    put_history(store, 2, [(1, 7 * SIZE)])
    put_history(store, 3, [(1, 5 * SIZE)])
    put_segments(store, 6, 6)
    put_segments(store, 7, 9, timeline=2)
    for wal_to, problem in (
        ((Timeline(3), Lsn(9 * SIZE)), "does not lie on the line of timeline 3"),
        ((Timeline(2), Lsn(5 * SIZE)), "lies before the end of the base backup"),
    ):
        with pytest.raises(UsageError, match=problem):
            hold_base(work, held, "x", wal_to)
    with pytest.raises(MissingError, match="nobody has archived the history of timeline 4"):
        hold_base(work, held, "x", (Timeline(4), Lsn(9 * SIZE)))
    assert keys_below(store, "holds/") == set()
    hold_base(work, held, "x", (Timeline(2), Lsn(9 * SIZE + 1)))
    assert decode(store.get(names.base_hold_key(held)), HoldMark, "x").wal_to == ("00000002", "0/900001")
    release_base(work, held)
    with pytest.raises(IncompleteError, match="00000002000000000000000A is not in the archive"):
        hold_base(work, held, "x", (Timeline(2), Lsn(10 * SIZE + 1)))


def test_a_hold_on_wal_waits_for_the_prune_that_runs(work: Work, store: MemoryStore, clock: SteppedClock) -> None:
    held = put_backup(store, start=5, wal=True)
    with take_lease(work, PRUNE_LEASE, "prune"), pytest.raises(LockedError):
        hold_base(work, held, "x", (Timeline(1), Lsn(6 * SIZE)))


@pytest.mark.parametrize("text", ["2:16/B374D848", "00000002:16/B374D848"])
def test_a_timeline_may_be_written_either_way(text: str) -> None:
    assert parse_wal_to(text) == (2, 0x16B374D848)


@pytest.mark.parametrize("text", ["", "2", "0:0/1", "2:", ":0/1", "2:16", "-1:0/1", "00000000:0/1", "x:0/1"])
def test_what_is_no_end_of_wal_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="bad value for --wal-to"):
        parse_wal_to(text)


# -- refreshing


def age_of(store: Store, key: str) -> timedelta:
    return store.now() - store.head(key).modified_at


def delete_older_than(store: MemoryStore, age: timedelta) -> None:
    """The bucket's rule of the source document: every object, by its age."""
    store.delete([info.key for info in list(store.list("")) if store.now() - info.modified_at > age])


@pytest.mark.rule(77)
@pytest.mark.rule(104)
def test_held_backup_restores_on_day_40(work: Work, store: MemoryStore, clock: SteppedClock) -> None:
    """G7: with a rule of the bucket that deletes what is 30 days old, and a prune each day."""
    put_history(store, 2, [(1, 8 * SIZE)])
    held = put_backup(store, start=5, stop=7, own=(0, 1), wal=True)
    put_packs(store, held, (), key=True)
    put_segments(store, 7, 7)
    put_segments(store, 8, 9, timeline=2)
    hold_base(work, held, "x", (Timeline(2), Lsn(10 * SIZE)))
    for day in range(40):
        days(clock, 1)
        if day < 20:
            put_backup(store, start=20 + day, timeline=2, wal=True)
        delete_older_than(store, timedelta(days=30))
        done = prune(work)
        assert (done.problems, done.refreshed.problems) == ((), ())
    summary = read_base_summary(store, held)
    assert {pack for pack, _ in needed_packs(read_packs(store, summary))} <= set(list_packs(store))
    wal = [Segment(Timeline(timeline), number, SIZE).name for timeline, number in ((1, 5), (1, 6), (1, 7), (2, 8), (2, 9))]
    needed = {names.archive_key(SYSTEM, name, suffix) for name in wal for suffix in (names.CLAIM, names.STORED)}
    needed |= {names.history_key(SYSTEM, Timeline(2), suffix) for suffix in (names.CLAIM, names.STORED)}
    needed |= {names.data_key_key(held), names.base_hold_key(held), names.system_key(1), dump_names.REPOSITORY}
    needed |= {stored.key for stored in summary.objects}
    assert needed <= keys_below(store, "")
    assert max(age_of(store, key) for key in needed) <= timedelta(days=15)


def test_refreshing_writes_the_same_bytes_and_only_what_is_old(work: Work, store: MemoryStore, clock: SteppedClock) -> None:
    held = put_backup(store, wal=True)
    put_hold(store, held)
    store.put(names.base_key(held, names.VERIFY), b"written by `base verify`, under no lease")
    before = {key: store.get(key) for key in keys_below(store, "")}
    written: list[str] = []

    class Noting(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            written.append(key)
            assert key.startswith(("locks/", "prune/", "retention.json")) or before[key] == data
            super().put(key, data, create=create)

    noting = Work(work.settings, Noting(store), work.clock, work.emit)
    days(clock, 14)
    assert prune(noting).refreshed.objects == 0
    days(clock, 0.01)
    done = prune(noting)
    refreshed = [key for key in written if not key.startswith(("locks/", "retention.json"))]
    again = set(refreshed)
    assert done.refreshed.objects == len(again) == len(refreshed)
    assert set(before) - again == {names.base_key(held, part) for part in (names.VERIFY, names.BASE_INTENT)}


def test_what_cannot_be_read_is_named(work: Work, store: MemoryStore, clock: SteppedClock) -> None:
    put_hold(store, held := put_backup(store, wal=True))
    days(clock, 15)

    class Rotten(WrapperStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            if key == names.pack_key(held, 0):
                raise StoreError(f"{key} cannot be read")
            return super().get(key, start=start, length=length)

    done = prune(Work(work.settings, Rotten(store), work.clock, work.emit))
    with pytest.raises(IncompleteError, match=f"packs/{held}/00000000 cannot be read"):
        done.raise_problems()
    assert age_of(store, names.system_key(1)) == timedelta()


def test_refresh_and_prune_exclude_each_other(work: Work, store: MemoryStore, clock: SteppedClock) -> None:
    """G6: between reading and writing the lease is looked at; what was removed by its next holder does not come back."""
    put_hold(store, held := put_backup(store, wal=True))
    days(clock, 15)
    taken: list[str] = []

    class Slow(WrapperStore):
        """When the first pack is read, its reader sleeps; somebody takes the lease and removes the backup."""

        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            data = super().get(key, start=start, length=length)
            if key == names.pack_key(held, 0) and not taken:
                taken.append(key)
                epoch = max(key.split("/")[2] for key in keys_below(store, f"locks/{PRUNE_LEASE}/"))
                store.put(f"locks/{PRUNE_LEASE}/{int(epoch) + 1:010d}/holder", b"another")
                store.delete([names.pack_key(held, 0)])
            return data

    with pytest.raises(LeaseLostError):
        prune(Work(work.settings, Slow(store), work.clock, work.emit))
    assert taken
    assert keys_below(store, "packs/") == set()


@pytest.mark.parametrize("lost", [False, True])
def test_a_large_object_is_streamed_and_appears_only_while_the_lease_is_ours(
    work: Work, store: MemoryStore, clock: SteppedClock, *, lost: bool
) -> None:
    put_hold(store, held := put_backup(store, wal=True))
    key, large = names.pack_key(held, 0), bytes(range(256)) * (80 << 10)
    store.put(key, large)
    days(clock, 15)

    class Streaming(WrapperStore):
        def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
            for number, chunk in enumerate(super().get_stream(key, start=start, same_as=same_as)):
                if lost and number == 2:
                    store.put(f"locks/{PRUNE_LEASE}/0000000099/holder", b"another")
                yield chunk

    streaming = Work(work.settings, Streaming(store), work.clock, work.emit)
    if lost:
        with pytest.raises(LeaseLostError):
            prune(streaming)
    else:
        prune(streaming)
    assert store.get(key) == large
    assert age_of(store, key) == timedelta(days=15 if lost else 0)
