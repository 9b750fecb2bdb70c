"""Where recovery stops: by PostgreSQL's own rules, whatever the time maps say (W7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import IntegrityError, WalGapError
from clipper_backup.format.base_documents import Claim
from clipper_backup.format.documents import encode
from clipper_backup.format.physical_names import CLAIM, STORED, archive_key, history_key
from clipper_backup.format.time_maps import ALWAYS, NEVER, RestorePoint, SegmentTimes
from clipper_backup.postgres.history import Ancestor
from clipper_backup.postgres.wal_records import Kind, Record, as_microseconds, as_moment
from clipper_backup.repository.line_records import LineRecords
from clipper_backup.repository.lines import Line
from clipper_backup.repository.stops import NoStop, Stop, StopAt, StopSearch
from clipper_backup.repository.times import TimeMaps, TimesWriter
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.wal_bytes import MIB, WalWriter

SYSTEM = "7711155930822877805"
BEGAN = datetime(2026, 11, 22, tzinfo=UTC)
ZERO = as_microseconds(BEGAN)


@dataclass
class Archive:
    """An archive in memory: what the catalog lists lies in *store*, the segments' bytes in *content*; `reads` were read."""

    store: MemoryStore
    content: dict[Segment, bytes]
    line: Line
    reads: list[Segment]

    @classmethod
    def of(cls, segments: Mapping[Segment, bytes], line: Line | None = None) -> "Archive":
        archive = cls(MemoryStore(VirtualClock(BEGAN)), dict(segments), line or Line.of(Timeline(1), []), [])
        for segment in segments:
            archive.store.put(archive_key(SYSTEM, segment.name, STORED), b"stands for it")
        return archive

    def lose(self, segment: Segment) -> None:
        del self.content[segment]
        self.store.delete([archive_key(SYSTEM, segment.name, STORED)])

    @property
    def maps(self) -> TimeMaps:
        return TimeMaps(self.store, SYSTEM, MIB)

    def records(self) -> LineRecords:
        def opened(segment: Segment) -> list[bytes] | None:
            self.reads.append(segment)
            return [self.content[segment]] if segment in self.content else None

        return LineRecords(self.line, opened)

    def find(self, wanted: StopAt, start: int = MIB) -> Stop | NoStop:
        self.reads.clear()
        return StopSearch(WalCatalog(self.store, SYSTEM, MIB), self.records(), self.maps).find(wanted, Lsn(start))

    def write_maps(self) -> None:
        writer = TimesWriter(self.maps, self.records())
        for segment in sorted(self.content):
            writer.add(segment, linked=True)
        writer.flush()


def _at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def _load(count: int = 30) -> WalWriter:
    """A transaction every ten seconds, three to a segment, whose WAL is whole; in the middle a restore point."""
    wal = WalWriter()
    for number in range(count):
        wal.other(340_000)
        wal.end(Kind.ABORT if number % 7 == 3 else Kind.COMMIT, 700 + number, ZERO + 10_000_000 * number)
        if number == count // 2:
            wal.restore_point(b"in the middle", ZERO + 10_000_000 * number + 5)
    wal.switch()
    return wal


def _stop_by_the_rules(records: Sequence[Record], wanted: StopAt, start: int) -> Record | None:
    """recoveryStopsBefore and recoveryStopsAfter of xlogrecovery.c, written out."""
    for record in records:
        if record.start < start:
            continue
        ends = record.kind in {Kind.COMMIT, Kind.ABORT}
        at = BEGAN if record.at is None else as_moment(record.at)
        before = (
            (wanted.exclusive and wanted.lsn is not None and record.start >= wanted.lsn)
            or (ends and wanted.exclusive and wanted.xid is not None and record.xid == wanted.xid)
            or (ends and wanted.time is not None and (at >= wanted.time if wanted.exclusive else at > wanted.time))
        )
        after = (
            (record.kind is Kind.RESTORE_POINT and wanted.name is not None and record.name.decode() == wanted.name)
            or (not wanted.exclusive and wanted.lsn is not None and record.start >= wanted.lsn)
            or (ends and not wanted.exclusive and wanted.xid is not None and record.xid == wanted.xid)
        )
        if before or after:
            return record
    return None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("end"), st.integers(-20, 400)),
        st.tuples(st.just("end"), st.integers(100, 110)),
        st.tuples(st.just("other"), st.integers(0, 3 * MIB // 2)),
        st.tuples(st.just("other"), st.integers(0, MIB // 4)),
        st.tuples(st.just("point"), st.integers(0, 2)),
        st.just(("switch", 0)),
    ),
    max_size=40,
)
WANTED = st.one_of(
    st.builds(StopAt, time=st.integers(-30, 410).map(_at), exclusive=st.booleans()),
    st.builds(StopAt, time=st.integers(99, 111).map(_at), exclusive=st.booleans()),
    st.builds(StopAt, lsn=st.integers(MIB, 12 * MIB).map(Lsn), exclusive=st.booleans()),
    st.builds(StopAt, xid=st.integers(695, 745), exclusive=st.booleans()),
    st.builds(StopAt, name=st.sampled_from(["p0", "p1", "p2"])),
)


def _write(steps: Sequence[tuple[str, int]]) -> WalWriter:
    wal = WalWriter()
    for number, (what, size) in enumerate(steps):
        match what:
            case "end":  # the clock steps, and xids overtake each other
                wal.end(
                    Kind.COMMIT if size % 3 else Kind.ABORT, 700 + (number ^ 1), ZERO + 1_000_000 * size, prepared=size % 5 == 0
                )
            case "point":
                wal.restore_point(b"p%d" % size, ZERO)
            case "switch":
                wal.switch()
            case _:
                wal.other(size)
    wal.switch()
    return wal


@pytest.mark.rule(60)
@settings(max_examples=150)
@given(STEPS, WANTED, st.integers(0, 5 * MIB), st.booleans())
@example([("end", 0), ("switch", 0)], StopAt(time=_at(0)), 41, True)  # what ended before the backup is not reached
def test_it_stops_where_postgresql_does(steps: Sequence[tuple[str, int]], wanted: StopAt, start: int, mapped: bool) -> None:
    wal = _write(steps)
    archive = Archive.of(wal.segments())
    if mapped:
        archive.write_maps()
    found = archive.find(wanted, MIB + start)
    expected = _stop_by_the_rules(wal.records, wanted, MIB + start)
    if expected is None:
        assert isinstance(found, NoStop)
        ends = [record.at for record in wal.records if record.start >= MIB + start and record.kind in {Kind.COMMIT, Kind.ABORT}]
        newest = max((at for at in ends if at is not None), default=None)
        assert found.newest_end == (None if newest is None or wanted.time is None else as_moment(newest))
    else:
        assert found == Stop(expected, Segment.ending(Timeline(1), expected.end, MIB))


WRONG = st.one_of(
    st.builds(SegmentTimes, st.just(ALWAYS), st.just(NEVER)),
    st.just(SegmentTimes.strange(linked=True)),
    st.builds(
        SegmentTimes,
        st.integers(NEVER, ALWAYS),
        st.one_of(st.integers(NEVER, ALWAYS), st.integers(0, 400).map(lambda s: ZERO + s * 1_000_000)),
        st.integers(0, 5),
        st.integers(690, 750),
        st.integers(690, 750),
    ),
)


@pytest.mark.rule(68)
@settings(max_examples=150)
@given(STEPS, WANTED, st.lists(st.tuples(st.integers(0, 12), st.lists(WRONG, min_size=1, max_size=13)), max_size=4))
def test_plan_without_time_maps(
    steps: Sequence[tuple[str, int]], wanted: StopAt, wrong: Sequence[tuple[int, Sequence[SegmentTimes]]]
) -> None:
    wal = _write(steps)
    archive = Archive.of(wal.segments())
    truth = archive.find(wanted)
    for first, times in wrong:
        archive.maps.write(Segment(Timeline(1), first, MIB), times, [RestorePoint(Lsn(first * MIB + 99), 5, b"p1")])
    found = archive.find(wanted)
    if isinstance(found, Stop):  # PostgreSQL stops at the true record, and has all the WAL up to there
        assert isinstance(truth, Stop)
        assert found.record.start >= truth.record.start
        assert found.segment >= truth.segment
        assert wanted.stops(found.record)


def test_of_a_mapped_archive_one_segment_is_read() -> None:
    wal = _load(300)
    archive = Archive.of(wal.segments())
    archive.write_maps()
    for wanted in (StopAt(time=_at(2000)), StopAt(xid=900), StopAt(name="in the middle"), StopAt(lsn=Lsn(70 * MIB + 5))):
        found = archive.find(wanted)
        assert isinstance(found, Stop)
        # the first one, without a look at maps; that of the stop; and the one before it where a record began there
        assert len(archive.reads) <= 3, wanted
    assert isinstance(archive.find(StopAt(time=_at(5000))), NoStop)
    assert len(archive.reads) == 2, "the first one, and the one that is not there"


def test_an_lsn_amid_a_record_stops_at_the_next_one() -> None:
    wal = _load()
    archive = Archive.of(wal.segments())
    for record, following in zip(wal.records[10:20], wal.records[11:], strict=False):
        for lsn, expected in ((record.start, record), (record.start + 1, following), (following.start - 1, following)):
            assert archive.find(StopAt(lsn=Lsn(lsn))) == Stop(expected, Segment.ending(Timeline(1), expected.end, MIB))


def test_a_restore_point_over_a_border_is_found_by_its_map() -> None:
    wal = WalWriter()
    wal.end(Kind.COMMIT, 700, ZERO)
    while wal.here < 3 * MIB - 60_000:
        wal.other(20_000)
    while wal.here < 3 * MIB - 80:
        wal.other(16)
    point = wal.restore_point(b"here", ZERO)
    wal.switch()
    assert (point.start // MIB, (point.end - 1) // MIB) == (2, 3)
    archive = Archive.of(wal.segments())
    archive.write_maps()
    assert archive.find(StopAt(name="here")) == Stop(point, Segment(Timeline(1), 3, MIB))


@pytest.mark.rule(60)
def test_a_quiet_database_has_a_newest_instant() -> None:
    wal = _load()
    archive = Archive.of(wal.segments())
    last = wal.first.number + len(wal.segments()) - 1
    found = archive.find(StopAt(time=_at(290)))
    assert found == NoStop(Segment(Timeline(1), last, MIB), _at(290))
    reached = archive.find(StopAt(time=_at(290) - timedelta(microseconds=1)))
    assert isinstance(reached, Stop)
    assert reached.record.xid == 729
    assert isinstance(archive.find(StopAt(time=_at(290), exclusive=True)), Stop)
    assert archive.find(StopAt(xid=5)) == NoStop(Segment(Timeline(1), last, MIB), None)
    assert Archive.of({}).find(StopAt(time=BEGAN)) == NoStop(None, None)


def test_a_segment_that_is_missing_amid_is_a_gap() -> None:
    wal = _load()
    archive = Archive.of(wal.segments())
    archive.lose(Segment(Timeline(1), 5, MIB))
    assert isinstance(archive.find(StopAt(time=_at(40))), Stop)
    with pytest.raises(WalGapError, match=r"000000010000000000000005 is missing .* 000000010000000000000006 is there"):
        archive.find(StopAt(time=_at(200)))
    archive = Archive.of(wal.segments())
    archive.write_maps()
    archive.lose(Segment(Timeline(1), 7, MIB))
    with pytest.raises(WalGapError, match=r"000000010000000000000007 is missing .* 000000010000000000000008 is there"):
        archive.find(StopAt(xid=723))


def test_a_segment_that_cannot_be_followed_is_refused() -> None:
    wal = _load()
    segments = wal.segments()
    fifth = Segment(Timeline(1), 5, MIB)
    segments[fifth] = segments[fifth][: MIB // 2] + bytes(MIB // 2)
    with pytest.raises(IntegrityError, match=r"000000010000000000000005 cannot be followed"):
        Archive.of(segments).find(StopAt(time=_at(200)))


def _branched() -> tuple[Archive, WalWriter, WalWriter, Lsn]:
    """Timeline 2 left timeline 1 amid its segment 4, after its ninth transaction; both went on."""
    old, new = WalWriter(), WalWriter(timeline=2)
    left_at = Lsn(0)
    for number in range(20):
        for wal, on in ((old, 0), (new, 1000)):
            wal.other(340_000)
            late = on if number >= 9 else 0
            wal.end(Kind.COMMIT, 700 + number + late, ZERO + (10 * number + late) * 1_000_000)
        left_at = old.here if number == 8 else left_at
    old.switch()
    new.switch()
    line = Line.of(Timeline(2), [Ancestor(Timeline(1), left_at)])
    segments = {**old.segments(), **{segment: data for segment, data in new.segments().items() if segment.end > left_at}}
    archive = Archive.of(segments, line)
    claim = Claim(
        name="00000002.history", system_id=SYSTEM, plain_bytes=1, salt="0" * 64, digest="0" * 64, previous="0" * 32,
        writer="test", claimed_at=BEGAN, ancestors=[(1, str(left_at))],
    )  # fmt: skip
    archive.store.put(history_key(SYSTEM, Timeline(2), CLAIM), encode(claim))
    return archive, old, new, left_at


@pytest.mark.parametrize("mapped", [False, True])
def test_the_line_is_followed_not_the_number(mapped: bool) -> None:
    archive, _, new, left_at = _branched()
    if mapped:
        archive.write_maps()
        archive.maps.write(Segment(Timeline(1), 1, MIB), [SegmentTimes(ZERO, ZERO + 190_000_000, 6, 700, 719)] * 7)
    for wanted in (StopAt(time=_at(85)), StopAt(xid=1712), StopAt(lsn=left_at), StopAt(time=_at(1100)), StopAt(xid=712)):
        expected = _stop_by_the_rules(new.records, wanted, 0)
        found = archive.find(wanted)
        if expected is None:
            assert isinstance(found, NoStop)
        else:
            assert found == Stop(expected, archive.line.segment((expected.end - 1) // MIB, MIB)), wanted
    assert archive.find(StopAt(time=_at(5000))) == NoStop(max(archive.content), _at(1190))


def test_an_ancestors_segment_that_is_missing_is_a_gap() -> None:
    archive, _, _, _ = _branched()
    for segment in sorted(archive.content)[1:]:
        archive.lose(segment)
    with pytest.raises(WalGapError, match=r"000000010000000000000002 is missing .* timeline 2 began behind it"):
        archive.find(StopAt(time=_at(1100)))
