"""What damage costs, against a plain count of what could be restored: nothing more is called lost, and nothing less."""

from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.config import Settings
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.ops.lost_instants import Cost, cost_of
from clipper_backup.ops.wal.look import Looker
from clipper_backup.values import BackupId
from fixtures.wal_archive import MIB, SYSTEM, segment_name
from fixtures.wal_look import MadeRepository

ALL_TIME = Settings(pitr_window_days=36500)


@dataclass(frozen=True)
class Case:
    """Segments 1 to `last`; base backups of one segment each; what is missing or damaged, and which backups are bad."""

    last: int
    backups: frozenset[int]
    bad_backups: frozenset[int]
    missing: frozenset[int]
    damaged: frozenset[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    last = draw(st.integers(3, 9))
    some = st.frozensets(st.integers(1, last), max_size=3)
    backups = draw(st.frozensets(st.integers(1, last), min_size=1, max_size=4))
    bad = draw(st.frozensets(st.sampled_from(sorted(backups)), max_size=3))
    return Case(last, backups, bad, draw(some), draw(some))


def cost(made: MadeRepository, bad_backups: list[BaseSummary], damaged: frozenset[int], *, timeline: int = 1) -> Cost:
    work = made.work()
    looker = Looker(work, whole=True)
    return cost_of(
        work,
        looker,
        looker.look(),
        bad_backups=[BackupId.parse(each.id) for each in bad_backups],
        bad_segments={SYSTEM: {segment_name(timeline, number) for number in damaged}},
    )


def places(found: Cost) -> set[int]:
    """The segments whose instants are lost, by number; backups stop at the end of one."""
    return {number for lost in found.lost for number in range(lost.begin // MIB, lost.end // MIB)}


@given(cases())
def test_what_is_lost_is_what_cannot_be_restored(case: Case) -> None:
    made = MadeRepository()
    made.settings = ALL_TIME
    taken: dict[int, BaseSummary] = {}
    for number in range(1, case.last + 1):
        made.archive.segment(1, number)
        if number in case.backups:
            taken[number] = made.backup(1, number, number)
        made.days(0.01)
    for number in case.missing:
        made.archive.lose(segment_name(1, number))
    found = cost(made, [taken[number] for number in case.bad_backups], case.damaged)

    there = {number for number in range(1, case.last + 1) if number not in case.missing}
    whole = there - case.damaged
    restorable = {
        number
        for number in there
        for backup in case.backups - case.bad_backups
        if backup < number and all(each in whole for each in range(backup, number + 1))
    }
    end = max(there | case.backups)  # a backup had its own WAL, whatever was lost since
    should_be = set(range(min(case.backups) + 1, end + 1))
    assert places(found) == should_be - restorable
    for lost in found.lost:
        behind = [each for number, each in taken.items() if number + 1 == lost.end // MIB and number not in case.bad_backups]
        assert lost.until in {each.stopped_at for each in behind} | {None}
        assert lost.until is not None or lost.end // MIB == end + 1, "to the end of the WAL"


@pytest.mark.parametrize(("days", "lost"), [(3, 1), (9, 0)])
def test_what_lies_before_the_window_costs_nothing(days: float, lost: int) -> None:
    made = MadeRepository()
    made.archive.segments(1, 1, 9)
    bad = made.backup(1, 2, 2)
    made.days(0.5)
    good = made.backup(1, 8, 8)
    made.days(days)
    found = cost(made, [bad], frozenset())
    assert len(found.lost) == lost
    assert all((each.since, each.until) == (bad.stopped_at, good.stopped_at) for each in found.lost)
    assert [each.backup_id for each in found.restorable] == [good.id]


def test_what_two_timelines_share_is_told_once() -> None:
    made = MadeRepository()
    made.archive.segments(1, 1, 6)
    made.backup(1, 2, 2)
    made.archive.history(2, (1, 6 * MIB + 77))
    made.archive.segments(2, 6, 9)
    made.days(0.1)
    good = made.backup(2, 8, 8)
    found = cost(made, [], frozenset({4}))
    assert [(int(each.timeline), each.begin // MIB, each.end // MIB) for each in found.lost] == [(2, 4, 9), (1, 4, 7)]
    assert found.lost[0].until == good.stopped_at
    assert found.lost[0].why == (segment_name(1, 4),)
    assert "on timeline 2, because of" in str(found.lost[0])


def test_what_two_timelines_lose_to_their_ends_is_told_of_both() -> None:
    """Though they end at the same position: no byte of the one is in the other."""
    made = MadeRepository()
    made.archive.segments(1, 1, 7)
    bad = made.backup(1, 2, 2)
    made.archive.history(2, (1, 5 * MIB + 77))
    made.archive.segments(2, 5, 7)
    found = cost(made, [bad], frozenset())
    assert [(int(each.timeline), each.begin // MIB, each.end // MIB) for each in found.lost] == [(2, 3, 8), (1, 3, 8)]


def test_a_timeline_that_cannot_be_followed_may_cost_what_is_on_it() -> None:
    made = MadeRepository()
    made.archive.segments(1, 1, 6)
    made.backup(1, 2, 2)
    made.archive.history(2, (1, 6 * MIB + 77))
    made.archive.segments(2, 6, 9)
    assert cost(made, [], frozenset()).perhaps == ()
    made.store.put(made.archive.key("00000002.history"), b"")
    (perhaps,) = cost(made, [], frozenset()).perhaps
    assert (perhaps.what, perhaps.until, "00000002.history" in perhaps.why) == ("timeline 2", None, True)
    made.days(0.1)
    own = made.backup(2, 8, 8, ancestors=[(1, 6 * MIB + 77)])
    found = cost(made, [], frozenset())
    assert [each.until for each in found.perhaps] == [own.stopped_at]
    assert [each.backup_id for each in found.restorable] == [own.id]
    made.days(9)
    assert cost(made, [], frozenset()).perhaps == (), "before the window"


def test_a_gap_is_lost_too() -> None:
    made = MadeRepository()
    made.archive.segments(1, 1, 9)
    first = made.backup(1, 2, 2)
    made.archive.lose(segment_name(1, 5))
    (lost,) = cost(made, [], frozenset()).lost
    assert (lost.begin // MIB, lost.end // MIB, lost.until) == (5, 10, None)
    assert lost.since is None or lost.since >= first.stopped_at - timedelta(seconds=1)
    assert str(lost).endswith(f"because of {segment_name(1, 5)}")
