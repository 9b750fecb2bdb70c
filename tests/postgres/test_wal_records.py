"""Our reader of WAL and pg_waldump say the same of a real load; and no bytes whatever break it."""

import itertools
import os
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipper_backup.postgres.server import PrivateServer
from clipper_backup.postgres.wal_records import Kind, Record, RecordReader, as_microseconds, as_moment
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.postgres import FAST, connect, private_folder, server_binaries, sql
from fixtures.wal_bytes import MIB, WalWriter

pytestmark = pytest.mark.soak(share=0.25)

_LINE = re.compile(
    r"rmgr: (?P<manager>\S+) +len \(rec/tot\): +\d+/ *(?P<total>\d+), tx: +(?P<xid>\d+),"
    r" lsn: (?P<lsn>\S+), prev \S+ desc: (?P<said>.*)"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} UTC")

BEFORE = "zwischen den Zeiten"
LOAD = (
    "CREATE TABLE many (n int, filling text); CREATE TABLE given_up (n int)",
    "INSERT INTO many SELECT n, repeat('x', n % 300) FROM generate_series(1, 12000) n",
    """DO $$ BEGIN FOR n IN 1..300 LOOP
       INSERT INTO many VALUES (n); COMMIT; INSERT INTO many VALUES (-n); ROLLBACK; END LOOP; END $$""",
    """DO $$ BEGIN FOR n IN 1..3000 LOOP
       BEGIN INSERT INTO many VALUES (n); EXCEPTION WHEN unique_violation THEN NULL; END; END LOOP; END $$""",
    f"SELECT pg_create_restore_point('{BEFORE}')",
    "BEGIN", "DROP TABLE given_up", "SAVEPOINT one", "CREATE TABLE kept (n int)", "PREPARE TRANSACTION 'kept'",
    "BEGIN", "CREATE TABLE lost (n int)", "SAVEPOINT one", "CREATE TABLE lost_too (n int)", "PREPARE TRANSACTION 'lost'",
    "BEGIN", "INSERT INTO many VALUES (0)", "COMMIT",
    "COMMIT PREPARED 'kept'", "ROLLBACK PREPARED 'lost'",
    "SELECT pg_logical_emit_message(false, '', repeat('over three segments', 150000))",
    "SELECT pg_switch_wal()",
    "CREATE TABLE behind_a_switch AS SELECT 1 AS n",
)  # fmt: skip
"""All kinds of ends, and records over the borders of pages and segments."""


class Load(NamedTuple):
    """A load as the server left it: its pg_wal, and what pg_waldump says of the records in it."""

    folder: Path
    major: int
    segments: list[Segment]
    said: list[Record]


@pytest.fixture(scope="module", params=[15, 18])
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    """A load with a crash in it, which cuts off a record at the end of a segment."""
    major = request.param
    settings = FAST | {"max_prepared_transactions": "4", "wal_keep_size": "1GB", "autovacuum": "off"}
    binaries = server_binaries(major)
    with (
        private_folder() as folder,
        PrivateServer(folder / "server", binaries, environment=os.environ, settings=settings) as server,
    ):
        server.initdb(wal_segment_mib=1, sync=False)
        server.start()
        with connect(server) as connection:
            for statement in LOAD:
                connection.execute(statement.encode())
        wal = server.data / "pg_wal"
        _cut_off_a_record(server, wal)
        sql(server, "postgres", "CREATE TABLE after_the_crash AS SELECT 1 AS n")
        ((last,),) = sql(server, "postgres", "SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
        server.stop()
        names = sorted(path.name for path in wal.iterdir() if len(path.name) == 24 and path.name <= last)
        assert any((wal / name).read_bytes()[2] & 8 for name in names), "no record was cut off"
        said = list(_waldump(binaries.program("pg_waldump"), wal, names))
        yield Load(wal, major, [Segment.parse(name, MIB) for name in names], said)


def _cut_off_a_record(server: PrivateServer, wal: Path) -> None:
    """Crash the server, and lose the segment in which its last record ends."""
    emit = "SELECT pg_logical_emit_message(true, '', repeat('-', %s))"
    ((offset,),) = sql(server, "postgres", "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    sql(server, "postgres", emit, ((MIB - 100_000 - offset) % MIB,))
    ((begun_in,),) = sql(server, "postgres", "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    sql(server, "postgres", emit, (200_000,))
    server.kill9()
    for path in wal.iterdir():
        if len(path.name) == 24 and path.name > begun_in:
            path.unlink()
    server.start()


def _waldump(program: Path, wal: Path, names: Sequence[str]) -> Iterator[Record]:
    """What pg_waldump says, as records; where one ends is not among it, nor the time of a restore point."""
    ran = subprocess.run(
        [program, "--path", wal, names[0], names[-1]], env={"TZ": "UTC"}, capture_output=True, text=True, check=False
    )
    for line in ran.stdout.splitlines():
        match = _LINE.fullmatch(line)
        assert match is not None, line
        start, said = Lsn.parse(match["lsn"]), match["said"]
        kind, xid, at, name = Kind.OTHER, 0, None, b""
        if match["manager"] == "Transaction" and (ends := re.match("(COMMIT|ABORT)(_PREPARED)?", said)):
            kind = Kind[ends[1]]
            moment = _TIME.search(said)
            assert moment is not None
            at = as_microseconds(datetime.strptime(moment[0], "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC))
            prepared = re.search(r" (\d+): ", said)
            xid = int(prepared[1] if ends[2] and prepared else match["xid"])
        elif match["manager"] == "XLOG" and said.startswith(("SWITCH", "RESTORE_POINT ")):
            kind = Kind[said.split()[0]]
            name = said.removeprefix("RESTORE_POINT ").encode() if kind is Kind.RESTORE_POINT else b""
        yield Record(kind, start, _end(start, int(match["total"])), xid, at, name)


def _end(start: Lsn, total: int) -> Lsn:
    """Where a record of *total* bytes ends: the headers of the pages that it enters lie in it."""
    position = int(start)
    while (room := 8192 - position % 8192) < total:
        position, total = position + room, total - room
        position += 40 if position % MIB == 0 else 24
    return Lsn(position + total)


def _read(reader: RecordReader, load: Load, segment: Segment, every_from: int | None = 0) -> list[Record]:
    return list(reader.read(segment, [(load.folder / segment.name).read_bytes()], every_from=every_from))


def _without_time(record: Record) -> Record:
    return record if record.kind is not Kind.RESTORE_POINT else replace(record, at=None)


def test_every_record_is_what_pg_waldump_says(load: Load) -> None:
    reader = RecordReader()
    found: list[Record] = []
    for segment in load.segments:
        records = _read(reader, load, segment)
        assert all(Segment.ending(segment.timeline, record.end, MIB) == segment for record in records)
        # the first one may begin with the rest of a record, in the middle of what initdb wrote; the last one ends in zeros
        assert reader.understood == (segment != load.segments[-1]) or segment == load.segments[0]
        assert reader.switched == (Kind.SWITCH in {record.kind for record in records})
        found += records
    assert [_without_time(record) for record in found] == load.said
    kinds = Counter(record.kind for record in found)
    assert (kinds[Kind.RESTORE_POINT], kinds[Kind.SWITCH]) == (1, 1)
    assert kinds[Kind.COMMIT] > 300
    assert kinds[Kind.ABORT] == 301
    place = next(n for n, record in enumerate(found) if record.kind is Kind.RESTORE_POINT)
    assert found[place].name == BEFORE.encode()
    before, after = (next(r.at for r in near if r.at) for near in (found[place - 1 :: -1], found[place + 1 :]))
    assert before is not None
    assert after is not None
    assert before < (found[place].at or 0) < after


def test_what_tells_nothing_is_passed_over_only(load: Load) -> None:
    reader, other = RecordReader(), RecordReader()
    for segment in load.segments:
        told = [record for record in _read(other, load, segment) if record.kind is not Kind.OTHER]
        assert _read(reader, load, segment, None) == told
        assert (reader.understood, reader.switched) == (other.understood, other.switched)


def test_each_segment_alone_tells_what_begins_in_it(load: Load) -> None:
    expected = {segment: [r for r in load.said if segment.start <= r.start and r.end <= segment.end] for segment in load.segments}
    begun_before = {Segment.ending(Timeline(1), r.end, MIB) for r in load.said if r.start // MIB != (r.end - 1) // MIB}
    assert len(begun_before) >= 4
    for segment in load.segments:
        reader = RecordReader()
        assert [_without_time(record) for record in _read(reader, load, segment)] == expected[segment]
        if segment != load.segments[-1]:
            assert reader.understood <= (segment not in begun_before)


def test_times_go_there_and_back() -> None:
    moment = datetime(2026, 11, 22, 14, 5, 0, 123456, UTC)
    assert as_moment(as_microseconds(moment)) == moment
    assert as_microseconds(datetime(2000, 1, 1, tzinfo=UTC)) == 0


def _write(steps: Sequence[tuple[str, int]], major: int, page_bytes: int) -> WalWriter:
    """The WAL of *steps*: what is written, and how large it is or which xid ends."""
    wal = WalWriter(number=3, major=major, page_bytes=page_bytes)
    for number, (what, size) in enumerate(steps):
        match what:
            case "commit" | "abort":
                wal.end(Kind(what), size + 3, number, prepared=size % 3 == 1, subtransactions=size % 70)
            case "point":
                wal.restore_point(b"p" * (size % 64), number)
            case "switch":
                wal.switch()
            case "crash":
                wal.crash(size + 3 * page_bytes)
            case _:
                wal.other(size)
    return wal


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["commit", "abort", "other", "point"]), st.integers(0, 300)),
        st.tuples(st.just("commit"), st.integers(10_000, 90_000)),
        st.tuples(st.sampled_from(["other", "other", "crash"]), st.integers(0, 3 * MIB // 2)),
        st.just(("switch", 0)),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(STEPS, st.sampled_from([15, 16, 17, 18]), st.sampled_from([1024, 8192, 65536]), st.data())
def test_what_was_written_is_read_however_it_is_cut(
    steps: Sequence[tuple[str, int]], major: int, page_bytes: int, data: st.DataObject
) -> None:
    wal = _write(steps, major, page_bytes)
    reader, found = RecordReader(), list[Record]()
    whole = True
    for segment, content in wal.segments().items():
        cuts = sorted(data.draw(st.lists(st.integers(0, MIB), max_size=4)))
        chunks = [content[a:b] for a, b in zip([0, *cuts], [*cuts, MIB], strict=True)]
        records = list(reader.read(segment, chunks, every_from=0))
        assert all(Segment.ending(segment.timeline, record.end, MIB) == segment for record in records)
        found += records
        assert whole, "only the last segment may end in zeros"
        whole = reader.understood
    assert found == wal.records


def _some_wal() -> WalWriter:
    return _write([("commit", 5), ("other", 5000), ("commit", 30_000), ("point", 9), ("other", MIB), ("commit", 1)] * 3, 15, 8192)


@settings(max_examples=40)
@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_no_bytes_break_it(drawn: random.Random, changes: int) -> None:
    """No error is raised, no record is missed on the pages before the first of them, and what is found rises."""
    wal = _some_wal()
    reader = RecordReader()
    for segment, content in wal.segments().items():
        damaged = bytearray(content[: drawn.randrange(MIB)] if drawn.random() < 0.2 else content)
        whole = len(damaged)
        for _ in range(changes):
            place = drawn.randrange(len(damaged) + 1)
            whole = min(whole, place)
            damaged[place : place + drawn.randrange(9)] = drawn.randbytes(drawn.choice([1, 8, 40]))
        found = list(reader.read(segment, [bytes(damaged)], every_from=0))
        untouched = [
            each for each in wal.records if segment.start <= each.start and each.end <= segment.start + whole // 8192 * 8192
        ]
        assert [each for each in found if each in untouched] == untouched
        assert all(record.start < record.end for record in found)
        assert all(before.end <= record.start for before, record in itertools.pairwise(found))
        assert not found or segment.start < found[0].end <= found[-1].end <= segment.end


@pytest.mark.parametrize("tail", ["zeros", "recycled", "cut short"])
def test_what_lies_behind_the_end_is_not_read(tail: str) -> None:
    wal = _some_wal()
    (segment, content), *_ = wal.segments().items()
    end = 8192 * 3
    older = _some_wal().segments()[segment.next()]
    rest = {"zeros": bytes(MIB - end), "recycled": older[end:], "cut short": b""}[tail]
    reader = RecordReader()
    records = list(reader.read(segment, [content[:end] + rest]))
    assert records == [record for record in wal.records if record.end <= segment.start + end and record.kind is not Kind.OTHER]
    assert not reader.understood


def test_a_neighbour_of_another_history_is_not_understood() -> None:
    steps = [("commit", n) for n in range(20_000)]
    wal, other = _write(steps, 15, 8192), _write([("commit", 0), *steps], 15, 8192)
    (first, content), (second, _), *_ = wal.segments().items()
    reader = RecordReader()
    assert list(reader.read(first, [content]))
    assert reader.understood
    assert list(reader.read(second, [other.segments()[second]])) != list(RecordReader().read(second, [wal.segments()[second]]))
    _assert_not_understood(reader)


def test_pages_of_two_histories_in_one_segment_are_not_followed() -> None:
    """Also where their records begin and end alike: each names where the one before it begins."""
    pages = []
    for sizes in ((104, 200), (200, 104)):
        wal = WalWriter()
        wal.other(8192 - 40 - sum(sizes) - 24)
        for size in sizes:
            wal.other(size - 24)
        assert wal.here % 8192 == 0
        wal.end(Kind.COMMIT, 7, 1)
        wal.switch()
        pages.append(wal.segments()[wal.first])
    one, other = pages
    reader = RecordReader()
    assert len(list(reader.read(wal.first, [one]))) == 2
    assert reader.complete
    assert list(reader.read(wal.first, [one[:8192] + other[8192:]])) == []
    _assert_not_understood(reader)


def test_the_end_of_a_record_whose_begin_nobody_read_is_in_doubt() -> None:
    wal = WalWriter()
    wal.end(Kind.COMMIT, 7, 1, subtransactions=700_000)
    wal.switch()
    _, (second, amid), (third, end) = wal.segments().items()
    reader = RecordReader()
    for segment, content in ((second, amid), (third, end)):
        assert [record.kind for record in reader.read(segment, [content])] == ([] if segment == second else [Kind.SWITCH])
        assert reader.complete
        _assert_not_understood(reader)


def _assert_not_understood(reader: RecordReader) -> None:
    assert not reader.understood


def test_the_version_that_is_not_known_is_not_understood() -> None:
    segment, content = next(iter(_some_wal().segments().items()))
    reader = RecordReader()
    assert list(reader.read(segment, [b"\x21\xd1" + content[2:]])) == []
    assert not reader.understood


def test_a_record_whose_begin_was_not_read_leaves_its_segment_in_doubt() -> None:
    wal = WalWriter()
    wal.other(900_000)
    wal.end(Kind.COMMIT, 7, 1, subtransactions=60_000)
    wal.end(Kind.COMMIT, 8, 2)
    wal.switch()
    (first, content), (second, more) = wal.segments().items()
    reader = RecordReader()
    assert list(reader.read(second, [more])) == wal.records[2:]
    _assert_not_understood(reader)
    assert list(reader.read(first, [content])) == []
    assert reader.understood
    assert list(reader.read(second, [more])) == wal.records[1:]
