"""Time maps in a store: which one counts, how small ones become large ones, what they tell of segments."""

from collections.abc import Sequence
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.clock import VirtualClock
from clipper_backup.format.time_maps import LONG, SHORT, RestorePoint, SegmentTimes
from clipper_backup.postgres.wal_records import Kind, Record
from clipper_backup.repository.line_records import LineRecords
from clipper_backup.repository.lines import Line
from clipper_backup.repository.times import TimeMaps, TimesWriter, summarise
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.wal_bytes import MIB, WalWriter

SYSTEM = "7711155930822877805"
ONE = Timeline(1)


def _maps() -> tuple[TimeMaps, MemoryStore, VirtualClock]:
    clock = VirtualClock(datetime(2026, 11, 22, tzinfo=UTC))
    store = MemoryStore(clock)
    return TimeMaps(store, SYSTEM, MIB), store, clock


def _segment(number: int) -> Segment:
    return Segment(ONE, number, MIB)


def _times(*numbers: int) -> list[SegmentTimes]:
    return [SegmentTimes(number, number, 1, number % 2**32, number % 2**32) for number in numbers]


@given(st.lists(st.tuples(st.integers(0, 600), st.sampled_from([1, 2, 7, SHORT, SHORT, 300])), max_size=12))
def test_the_longest_map_counts_and_of_equals_the_youngest(ranges: Sequence[tuple[int, int]]) -> None:
    maps, _, clock = _maps()
    best: dict[int, tuple[int, int]] = {}
    for age, (first, count) in enumerate(ranges):
        first = first // SHORT * SHORT if count >= SHORT else first  # noqa: PLW2901
        maps.write(_segment(first), [SegmentTimes(latest=1000 * age)] * count)
        clock.advance(60)
        for number in range(first, first + count):
            if number not in best or count >= best[number][0]:
                best[number] = (count, age)
    found = {}
    for piece in maps.cover(ONE):
        assert piece.name.first.number <= piece.first <= piece.last <= piece.name.last.number
        for number in range(piece.first, piece.last + 1):
            assert number not in found
            found[number] = (piece.name.segments, piece.name.latest // 1000)
    assert found == best


def test_short_maps_become_full_ones_and_go() -> None:
    maps, store, _ = _maps()
    for begin, end in ((250, 259), (260, 511), (512, 600), (40, 49)):
        maps.write(_segment(begin), _times(*range(begin, end + 1)), [RestorePoint(Lsn(end * MIB + 9), end, b"p%d" % end)])
    maps.write(_segment(255), _times(*range(255, 266)))
    maps.consolidate(ONE)
    pieces = maps.cover(ONE)
    assert [(piece.first, piece.last) for piece in pieces] == [(40, 49), (250, 254), (255, 255), (256, 511), (512, 600)]
    assert len(list(store.list(""))) == len(pieces)
    joined = maps.read(pieces[3].name)
    assert joined is not None
    assert joined.segments == _times(*range(256, 512))
    assert [point.name for point in joined.points] == [b"p511"]
    before = [info.version for info in store.list("")]
    maps.consolidate(ONE)
    assert [info.version for info in store.list("")] == before


def test_full_ones_become_a_long_one() -> None:
    maps, store, _ = _maps()
    for first in range(LONG, 2 * LONG, SHORT):
        maps.write(_segment(first), _times(*range(first, first + SHORT)))
    maps.write(_segment(2 * LONG), _times(2 * LONG))
    maps.consolidate(ONE)
    (long, short) = maps.cover(ONE)
    assert (long.first, long.last, short.first) == (LONG, 2 * LONG - 1, 2 * LONG)
    assert len(list(store.list(""))) == 2
    found = maps.read(long.name)
    assert found is not None
    assert found.segments == _times(*range(LONG, 2 * LONG))


def test_a_map_that_cannot_be_used_is_no_map_and_is_not_joined() -> None:
    maps, store, _ = _maps()
    maps.write(_segment(0), _times(*range(100)))
    maps.write(_segment(100), _times(*range(100, SHORT)))
    broken = maps.cover(ONE)[0].name
    store.put(broken.key(SYSTEM), b"no map")
    store.put(f"wal/{SYSTEM}/00000001/times/other.zst", b"not ours")
    assert maps.read(broken) is None
    maps.consolidate(ONE)
    assert [piece.name.segments for piece in maps.cover(ONE)] == [100, 156]
    store.delete([broken.key(SYSTEM)])
    assert maps.read(broken) is None


# Those that can be told apart lie less than 2^31 from each other; PostgreSQL stops long before.
XIDS = st.integers(0, 2**32 - 1).flatmap(
    lambda near: st.lists(st.integers(-(2**30) + 1, 2**30 - 1).map(lambda d: (near + d) % 2**32), min_size=1, max_size=20)
)


@given(XIDS, st.lists(st.integers(-(2**62), 2**62), min_size=20, max_size=20))
def test_what_ended_in_a_segment(xids: Sequence[int], moments: Sequence[int]) -> None:
    records = [Record(Kind.COMMIT, Lsn(n), Lsn(n + 1), xid, at) for n, (xid, at) in enumerate(zip(xids, moments, strict=False))]
    times, points = summarise([*records, Record(Kind.RESTORE_POINT, Lsn(77), Lsn(78), 0, 5, b"here")])
    assert (times.earliest, times.latest, times.ends) == (min(moments[: len(xids)]), max(moments[: len(xids)]), len(xids))
    assert all(times.may_end(xid) for xid in xids)
    assert {times.lowest_xid, times.highest_xid} <= set(xids)
    assert (times.highest_xid - times.lowest_xid) % 2**32 <= 2**31
    assert points == [RestorePoint(Lsn(77), 5, b"here")]


def _load() -> WalWriter:
    wal = WalWriter(number=SHORT - 2)
    for number in range(12):
        wal.end(Kind.COMMIT, 700 + number, 1_000_000 * number)
        wal.other(400_000)
    wal.restore_point(b"before", 12_500_000)
    wal.switch()
    wal.end(Kind.ABORT, 712, 13_000_000)
    return wal


def test_maps_are_written_from_segments_in_their_order() -> None:
    maps, _, _ = _maps()
    wal = _load()
    content = wal.segments()
    writer = TimesWriter(maps, LineRecords(Line.of(ONE, []), lambda segment: [content[segment]] if segment in content else None))
    segments = list(content)
    for segment in segments[:-1]:
        assert writer.add(segment, linked=segment != segments[0])
    assert not writer.add(_segment(5), linked=True)
    assert [(piece.first, piece.last) for piece in maps.cover(ONE)] == [(SHORT - 2, SHORT - 1)]  # full, so written
    writer.flush()
    first, second = maps.cover(ONE)
    assert (second.first, second.last) == (SHORT, segments[-2].number)
    told = [maps.read(piece.name) for piece in (first, second)]
    times = [each for known in told if known is not None for each in known.segments]
    assert sum(each.ends for each in times) == 12
    assert [each.linked for each in times] == [False, *[True] * (len(times) - 1)]
    assert all(each.understood for each in times)
    assert [each.switched for each in times] == [*[False] * (len(times) - 1), True]
    assert told[1] is not None
    assert [point.name for point in told[1].points] == [b"before"]


def test_reading_that_begins_amid_a_record_looks_back_for_its_begin() -> None:
    wal = WalWriter()
    wal.other(500_000)
    commit = wal.end(Kind.COMMIT, 7, 1, subtransactions=700_000)  # over three segments
    wal.switch()
    content = wal.segments()
    segments = list(content)
    assert len(segments) == 4
    records = LineRecords(Line.of(ONE, []), lambda segment: [content[segment]] if segment in content else None)
    found = records.of(segments[3])
    assert found is not None
    assert next(found) == commit
    assert [record.kind for record in found] == [Kind.SWITCH]
    assert records.reader.understood
    del content[segments[1]]
    found = records.of(segments[2])
    assert found is not None
    assert not list(found)
    _assert_not_understood(records)


def _assert_not_understood(records: LineRecords) -> None:
    assert not records.reader.understood
