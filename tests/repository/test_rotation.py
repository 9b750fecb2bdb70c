"""Whose turn it is: whenever runs come, each unit is read in each cycle, none twice for a turn, and no more is called covered."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.format.documents import Rotation, VerifiedKind, VerifyReport
from clipper_backup.repository.rotation import FIRST, Arc, is_covered, last_turn, next_arc, phase, share_at
from clipper_backup.repository.verify_report import covered_share, is_note, overdue

NOW = datetime(2026, 11, 22, 2, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
DAY = timedelta(days=1)

keys = st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=12)
cycles = st.integers(1, 30).map(lambda days: timedelta(days=days))
pauses = st.lists(
    st.timedeltas(timedelta(0), timedelta(days=40)) | st.integers(0, 3).map(timedelta), min_size=1, max_size=25
)  # fmt: skip


def runs_at(pauses: Sequence[timedelta], cycle: timedelta) -> list[Arc]:
    """The arcs of runs, each with what the one before wrote down."""
    arcs: list[Arc] = []
    rotation, now = None, NOW
    for pause in pauses:
        now += pause
        arc = next_arc(rotation, cycle, now, cycle)
        rotation = arc.rotation(rotation)
        arcs.append(arc)
    return arcs


@given(keys, cycles, pauses)
def test_each_unit_is_read_in_each_cycle(key: str, cycle: timedelta, pauses: list[timedelta]) -> None:
    """Between the end of what was covered a cycle ago and what is covered now, each unit's turn came, and was read."""
    arcs = runs_at(pauses, cycle)
    for number, arc in enumerate(arcs):
        if arc.until - arc.covered_since >= cycle:
            of_cycle = [earlier for earlier in arcs[: number + 1] if earlier.until > arc.until - cycle]
            assert any(earlier.holds(key) for earlier in of_cycle)


@given(keys, cycles, pauses)
def test_no_turn_is_read_twice(key: str, cycle: timedelta, pauses: list[timedelta]) -> None:
    turns = [last_turn(key, arc.until, cycle) for arc in runs_at(pauses, cycle) if arc.holds(key)]
    assert len(set(turns)) == len(turns)
    assert all(later - earlier >= cycle for earlier, later in pairwise(turns))


@given(keys, cycles, pauses, st.timedeltas(timedelta(days=-40), timedelta(days=400)), st.data())
def test_what_is_called_covered_was_read(
    key: str, cycle: timedelta, pauses: list[timedelta], written: timedelta, data: st.DataObject
) -> None:
    """By a run behind its last writing, within the cycle; with other cycles between, clocks set back, and whole reads."""
    written_at = NOW + written
    read_at: list[datetime] = []
    rotation, before, now = None, cycle, NOW
    for pause in pauses:
        now += data.draw(st.sampled_from([pause, pause, -pause]))
        cycle = data.draw(st.sampled_from([cycle, cycle, cycle, timedelta(days=3)]))
        whole = data.draw(st.sampled_from([False, False, False, True]))
        if rotation is not None and rotation.covered_until > now:
            rotation, read_at = None, []  # by the clock that counts now, those were in times that are to come
        arc = next_arc(rotation, before, now, cycle)
        if (whole or arc.holds(key)) and written_at < now:
            read_at.append(now)
        rotation, before = arc.rotation(rotation, all_read=whole), cycle
        if is_covered(key, written_at, rotation, cycle):
            # A turn may have waited for its run: the read was at the turn or later.
            assert any(at > now - cycle for at in read_at), "nobody read it"


@given(keys, cycles)
def test_daily_runs_that_write_nothing_down_read_everything(key: str, cycle: timedelta) -> None:
    """A host that may only read begins anew each day; an hour of jitter does no harm."""
    days = cycle // DAY + 1
    jitter = [timedelta(minutes=(number * 37) % 60) for number in range(days)]
    arcs = [next_arc(None, cycle, NOW + number * DAY + jitter[number], cycle) for number in range(days)]
    assert any(arc.holds(key) for arc in arcs)


@given(keys, st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)), cycles)  # noqa: DTZ001  it has one
def test_a_turn_comes_once_in_a_cycle(key: str, at: datetime, cycle: timedelta) -> None:
    turn = last_turn(key, at, cycle)
    assert at - cycle < turn <= at
    assert last_turn(key, turn, cycle) == turn
    assert last_turn(key, turn - MICROSECOND, cycle) == turn - cycle
    assert 0 <= phase(key) < 2**64


def test_turns_are_spread_evenly() -> None:
    arc = Arc(NOW - DAY, NOW, timedelta(days=7), NOW - DAY)
    found = sum(arc.holds(f"packs/20261122-020000-7f3a9c2e/{number:08d}") for number in range(7000))
    assert 900 < found < 1100


def test_the_first_run_reads_a_day_and_an_hour() -> None:
    arc = next_arc(None, 7 * DAY, NOW, 7 * DAY)
    assert (arc.until - arc.since, arc.covered_since) == (FIRST, arc.since)
    assert next_arc(None, DAY, NOW, DAY).since == NOW - DAY


def test_another_cycle_goes_on_and_what_was_covered_counts_no_more() -> None:
    former = Rotation(covered_since=NOW - 9 * DAY, covered_until=NOW - DAY)
    assert next_arc(former, 7 * DAY, NOW, 7 * DAY) == Arc(NOW - DAY, NOW, 7 * DAY, NOW - 9 * DAY)
    assert next_arc(former, 7 * DAY, NOW, 14 * DAY) == Arc(NOW - DAY, NOW, 14 * DAY, NOW - DAY)


def test_a_rotation_that_lies_ahead_is_none() -> None:
    assert next_arc(Rotation(covered_since=NOW, covered_until=NOW + DAY), 7 * DAY, NOW, 7 * DAY).since == NOW - FIRST


def test_whole_reads_cover_what_was_there_before() -> None:
    arc = next_arc(None, 7 * DAY, NOW, 7 * DAY)
    whole = arc.rotation(None, all_read=True)
    assert all(is_covered(key, NOW - MICROSECOND, whole, 7 * DAY) for key in "abcdefgh")
    assert not any(is_covered(key, NOW, whole, 7 * DAY) for key in "abcdefgh")
    later = Arc(NOW, NOW + 8 * DAY, 7 * DAY, NOW).rotation(whole)
    assert later.all_read_at == NOW
    assert not is_covered("a", NOW + 8 * DAY, later, 7 * DAY)


@pytest.mark.parametrize(("days", "share"), [(0, 1.0), (3.5, 0.5), (7, 0.0), (30, 0.0)])
def test_what_was_covered_gets_old(days: float, share: float) -> None:
    rotation = Rotation(covered_since=NOW - 9 * DAY, covered_until=NOW)
    assert share_at(rotation, 1.0, NOW + days * DAY, 7 * DAY) == pytest.approx(share)
    half = Rotation(covered_since=NOW - 3.5 * DAY, covered_until=NOW)
    assert share_at(half, 0.5, NOW, 7 * DAY) == 0.5
    read = msgspec.structs.replace(rotation, all_read_at=NOW - DAY)
    assert share_at(read, 1.0, NOW + 5 * DAY, 7 * DAY) == 1.0


NONE = VerifiedKind(
    units=0, size_bytes=0, read_units=0, read_bytes=0, covered_bytes=0, owed_bytes=0, damaged=0, rotation=None
)  # fmt: skip


def report(dumps: VerifiedKind = NONE, wal: VerifiedKind = NONE) -> VerifyReport:
    return VerifyReport(
        begun_at=NOW, ended_at=NOW, software="a test", mode="rotation", cycle_days=7, dumps=dumps, packs=NONE, wal=wal,
        damaged=0, damage=[],
    )  # fmt: skip


def test_a_report_says_how_much_was_read_lately_and_when_that_is_overdue() -> None:
    rotation = Rotation(covered_since=NOW - 7 * DAY, covered_until=NOW)
    kind = VerifiedKind(
        units=2, size_bytes=300, read_units=1, read_bytes=1, covered_bytes=300, owed_bytes=0, damaged=0, rotation=rotation
    )
    closed = msgspec.structs.replace(kind, size_bytes=100, covered_bytes=0, rotation=None)
    assert covered_share(report(dumps=kind), NOW) == 1
    assert covered_share(report(dumps=kind, wal=closed), NOW) == 0.75
    assert (covered_share(report(), NOW), covered_share(report(), NOW + 8 * DAY)) == (1, 0)
    assert overdue(report(dumps=kind), NOW + 7 * DAY) is None
    assert overdue(report(dumps=kind), NOW + 8 * DAY) == 8 * DAY
    assert overdue(report(wal=closed), NOW + 6 * DAY) is None
    assert overdue(report(wal=closed), NOW + 8 * DAY) == 8 * DAY


def test_which_objects_a_verify_writes() -> None:
    assert is_note("verify/report.json")
    assert is_note("base/20261122-020000-7f3a9c2e/verify.json")
    assert not any(map(is_note, ["base/20261122-020000-7f3a9c2e/backup.json", "verify/other", "repository.json", "clock"]))


@given(keys, cycles)
def test_a_run_at_the_very_turn_reads_it_and_the_next_one_does_not(key: str, cycle: timedelta) -> None:
    turn = last_turn(key, NOW, cycle)
    at = Arc(turn - DAY, turn, cycle, turn - DAY)
    behind = next_arc(at.rotation(None), cycle, turn + MICROSECOND, cycle)
    assert (at.holds(key), behind.holds(key)) == (True, False)
    assert not Arc(turn - DAY, turn - MICROSECOND, cycle, turn - DAY).holds(key) or cycle <= DAY
