"""What goes and what stays. The plan is a pure function, so any past can be given to it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.format import names
from clipper_backup.repository.dumps import Listed
from clipper_backup.repository.retention import GARBAGE_AGE, Decision, plan_retention
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.values import DumpId
from fixtures.golden import Golden

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def listed(dump_id: DumpId, *, committed: bool, written_at: datetime | None = None) -> Listed:
    """A dump as a listing shows it; its objects are as old as its id, unless *written_at* says how old the newest is."""
    last = written_at or dump_id.at
    parts = [(names.INTENT, min(dump_id.at, last)), (names.DETAILS, last), *([(names.SUMMARY, last)] if committed else [])]
    return Listed(dump_id, tuple(ObjectInfo(names.dump_key(dump_id, part), 100, at) for part, at in parts))


def days_old(days: float) -> DumpId:
    return DumpId.at_time(NOW - timedelta(days=days))


def plan(
    dumps: Sequence[Listed],
    *,
    now: datetime = NOW,
    days: int = 30,
    minimum: int = 0,
    databases: Mapping[DumpId, Collection[str]] | None = None,
    held: Collection[DumpId] = (),
    damaged: Collection[DumpId] = (),
) -> list[Decision]:
    """Where *databases* are not given, every dump holds the same one."""
    holds = {each.dump_id: ("clipper",) for each in dumps} if databases is None else databases
    return plan_retention(dumps, now=now, retention_days=days, minimum=minimum, databases=holds, held=held, damaged=damaged)


def going(decisions: Sequence[Decision]) -> set[DumpId]:
    return {decision.dump_id for decision in decisions if not decision.keep}


# -- one rule after the other


@pytest.mark.parametrize(("age", "kept"), [(0, True), (29.9, True), (30, True), (30.001, False), (400, False)])
def test_a_dump_is_kept_for_its_days_to_the_second(age: float, kept: bool) -> None:
    (decision,) = plan([listed(days_old(age), committed=True)])
    assert decision.keep is kept


def test_the_time_in_the_id_counts_not_when_it_was_written() -> None:
    (decision,) = plan([listed(days_old(31), committed=True, written_at=NOW)])
    assert not decision.keep


@pytest.mark.rule(74)
def test_the_newest_good_ones_are_kept_whatever_their_age() -> None:
    ids = [days_old(age) for age in (400, 300, 200, 100)]
    assert going(plan([listed(i, committed=True) for i in ids], minimum=3)) == {ids[0]}


@pytest.mark.rule(74)
def test_the_newest_of_each_database_are_kept_and_one_of_several_counts_for_each() -> None:
    ids = [days_old(age) for age in (500, 400, 300, 200, 100)]
    holds = dict(zip(ids, (["a", "b"], ["a", "b"], ["a"], ["c"], ["c"]), strict=True))
    decisions = plan([listed(i, committed=True) for i in ids], minimum=1, databases=holds)
    assert {decision.dump_id for decision in decisions if decision.keep} == {ids[1], ids[2], ids[4]}
    assert [decision.reason for decision in decisions if decision.keep] == [
        "400 days old, but one of the 1 newest of b; `dump delete` lets go of it",
        "300 days old, but one of the 1 newest of a; `dump delete` lets go of it",
        "100 days old, but one of the 1 newest",
    ]


def test_what_is_unfinished_or_damaged_does_not_count_as_one_of_the_newest() -> None:
    old, good, damaged, unfinished = (days_old(age) for age in (300, 200, 100, 0.5))
    dumps = [listed(i, committed=True) for i in (old, good, damaged)] + [listed(unfinished, committed=False)]
    assert going(plan(dumps, minimum=1, damaged={damaged})) == {old}


@pytest.mark.rule(77)
def test_a_held_one_is_kept_for_ever() -> None:
    assert going(plan([listed(days_old(4000), committed=True)], held={days_old(4000)})) == set()


def test_a_held_one_that_lost_its_summary_is_still_held() -> None:
    # Its archives can be restored with stock tools: whoever holds it wants to.
    (decision,) = plan([listed(days_old(40), committed=False)], held={days_old(40)})
    assert decision.keep
    assert decision.reason == "held"


@pytest.mark.parametrize(
    ("since", "kept"), [(timedelta(0), True), (GARBAGE_AGE, True), (GARBAGE_AGE + timedelta(seconds=1), False)]
)
def test_the_unfinished_is_garbage_a_day_after_its_last_object(since: timedelta, kept: bool) -> None:
    (decision,) = plan([listed(days_old(50), committed=False, written_at=NOW - since)])
    assert decision.keep is kept


def test_a_store_clock_that_jumped_back_deletes_nothing() -> None:
    dumps = [listed(days_old(age), committed=age % 2 == 0) for age in range(10)]
    assert going(plan(dumps, now=NOW - 100 * DAY)) == set()


def test_zero_days_keep_only_the_minimum() -> None:
    ids = [days_old(age) for age in (3, 2, 1)]
    assert going(plan([listed(i, committed=True) for i in ids], days=0, minimum=1)) == set(ids[:2])


# -- for every past

pasts = st.lists(
    st.tuples(
        st.floats(-2, 90),  # age of the id in days; the future too, where a clock ran wrong
        st.booleans(),  # committed
        st.floats(0, 3),  # days that writing took
        st.booleans(),  # held
        st.booleans(),  # damaged
        st.sets(st.sampled_from("abc"), min_size=1),  # databases
    ),
    max_size=12,
    unique_by=lambda each: days_old(each[0]),
)


class Past:
    """A past as the planner is given it."""

    def __init__(self, drawn: list[tuple[float, bool, float, bool, bool, set[str]]]) -> None:
        drawn = sorted(drawn, key=lambda each: each[0], reverse=True)
        self.dumps = [
            listed(days_old(age), committed=committed, written_at=days_old(age).at + timedelta(days=took))
            for age, committed, took, *_ in drawn
        ]
        self.held = {days_old(age) for age, _, _, held, *_ in drawn if held}
        self.damaged = {days_old(age) for age, committed, _, _, damaged, _ in drawn if committed and damaged}
        self.databases = {days_old(each[0]): each[5] for each in drawn}

    def plan(self, *, days: int, minimum: int, now: datetime = NOW) -> list[Decision]:
        return plan(
            self.dumps, now=now, days=days, minimum=minimum, databases=self.databases, held=self.held, damaged=self.damaged
        )


past_of = pasts.map(Past)
day_counts = st.integers(0, 60)
minimums = st.integers(0, 5)


@given(past_of, day_counts, minimums)
def test_what_must_never_happen_does_not(past: Past, days: int, minimum: int) -> None:
    decisions = past.plan(days=days, minimum=minimum)
    gone = going(decisions)
    by_id = {each.dump_id: each for each in past.dumps}
    assert [decision.dump_id for decision in decisions] == [each.dump_id for each in past.dumps]
    assert not gone & past.held
    assert not gone & past.damaged
    good = [each.dump_id for each in past.dumps if each.committed and each.dump_id not in past.damaged]
    for database in "abc":
        holding = [dump_id for dump_id in good if database in past.databases[dump_id]]
        assert not gone & set(holding[max(0, len(holding) - minimum) :])
    for dump_id in gone:
        if by_id[dump_id].committed:
            assert NOW - dump_id.at > timedelta(days=days)
        else:
            assert NOW - by_id[dump_id].last_written_at > DAY
    for decision in decisions:
        assert decision.reason
        assert decision.stored_bytes == by_id[decision.dump_id].stored_bytes


@given(past_of, day_counts, minimums)
def test_what_may_go_goes(past: Past, days: int, minimum: int) -> None:
    decisions = past.plan(days=days, minimum=minimum)
    good = [each.dump_id for each in past.dumps if each.committed and each.dump_id not in past.damaged]
    kept_for_their_number = [d for d in decisions if d.keep and "newest" in d.reason]
    for decision in kept_for_their_number:
        newer = [dump_id for dump_id in good if dump_id > decision.dump_id]
        assert any(sum(name in past.databases[i] for i in newer) < minimum for name in past.databases[decision.dump_id])
    for decision in decisions:
        if decision.keep and decision not in kept_for_their_number:
            held_or_damaged = decision.dump_id in past.held | past.damaged
            assert held_or_damaged or NOW - decision.dump_id.at <= timedelta(days=days) or "not finished" in decision.reason


@given(past_of, day_counts, day_counts, minimums, minimums)
def test_more_days_or_a_larger_minimum_never_delete_more(past: Past, days: int, more: int, minimum: int, larger: int) -> None:
    assert going(past.plan(days=days + more, minimum=minimum + larger)) <= going(past.plan(days=days, minimum=minimum))


@given(past_of, day_counts, minimums, st.floats(0, 100))
def test_an_earlier_clock_never_deletes_more(past: Past, days: int, minimum: int, earlier: float) -> None:
    before = NOW - timedelta(days=earlier)
    assert going(past.plan(days=days, minimum=minimum, now=before)) <= going(past.plan(days=days, minimum=minimum))


@given(past_of, day_counts, minimums)
def test_pruning_twice_is_pruning_once(past: Past, days: int, minimum: int) -> None:
    gone = going(past.plan(days=days, minimum=minimum))
    past.dumps = [each for each in past.dumps if each.dump_id not in gone]
    assert going(past.plan(days=days, minimum=minimum)) == set()


# -- the words


def test_the_reasons_are_those_a_person_agreed_to(golden: Golden) -> None:
    ages = [90, 60.5, 45, 44, 31, 30, 29, 2, 1, 0]
    dumps = [listed(days_old(age), committed=True) for age in ages]
    dumps += [
        listed(days_old(50), committed=False),
        listed(days_old(1.2), committed=False, written_at=NOW - timedelta(hours=2)),
        listed(days_old(-0.5), committed=True),
    ]
    dumps.sort(key=lambda each: each.dump_id)
    holds = {each.dump_id: ["clipper"] for each in dumps} | {days_old(90): ["clipper", "gone", "lost"], days_old(45): ["gone"]}
    text = ""
    for days, minimum in ((30, 3), (0, 4), (400, 0)):
        text += f"RETENTION_DAYS={days} RETENTION_MIN_DUMPS={minimum}, now {NOW:%Y-%m-%d %H:%M}\n"
        for decision in plan(dumps, days=days, minimum=minimum, databases=holds, held={days_old(60.5)}, damaged={days_old(44)}):
            text += f"  {decision.dump_id}  {'keep' if decision.keep else 'GO  '}  {decision.reason}\n"
    golden(Path(__file__).with_name("golden") / "retention.txt", text)
