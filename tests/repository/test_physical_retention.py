"""Which base backups and WAL stay (G4): random histories of a cluster, pruned daily, against what could be restored without."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from clipper_backup.postgres.history import Ancestor
from clipper_backup.repository import physical_retention as retention
from clipper_backup.repository.lines import Line
from clipper_backup.repository.physical_retention import (
    BackupSeen,
    PhysicalPlan,
    Pin,
    Seen,
    TimelineOf,
    TimelineSeen,
)
from clipper_backup.values import BackupId, Lsn, Timeline
from fixtures.histories import BEGIN, DAY, MUTANTS, SIZE, Chapter, World, by_age, by_names, chapters, product, with_another
from fixtures.sweeps import SOAK


@pytest.mark.rule(73)
@pytest.mark.rule(78)
@settings(max_examples=3000 if SOAK else 60)
@given(chapters)
@pytest.mark.no_cover
def test_prune_after_pitr(history: list[Chapter]) -> None:
    assert World(product).live_through(history) is None


# -- broken on purpose: each of these loses an instant of some history


def find_lost(plan: Callable[[Seen, datetime], PhysicalPlan]) -> list[Chapter]:
    """A history that loses an instant by *plan*; NoSuchExample when there is none."""
    return find(
        chapters,
        lambda history: World(plan).live_through(history) is not None,
        settings=settings(max_examples=3000, phases=[Phase.generate], database=None, derandomize=True),
        random=random.Random(1),
    )


@pytest.mark.parametrize("plan", [by_names, by_age])
def test_a_plan_by_names_or_age_loses_instants(plan: Callable[[Seen, datetime], PhysicalPlan]) -> None:
    assert find_lost(plan)


def test_an_idle_server_whose_backups_fail_loses_nothing() -> None:
    """And does, where a line lasts only while its signs are young: broken on purpose."""
    idle = [Chapter(3, 16, "good", "nothing", 0), Chapter(12, 0, "none", "clone", 1), Chapter(8, 0, "bad", "nothing", 0)]
    assert World(product).live_through(idle) is None
    young = with_another(
        "_is_live", lambda timeline, backups, horizon: (retention._last_sign(timeline, backups) or horizon) >= horizon
    )
    assert World(young).live_through(idle) is not None
    assert World(with_another("_is_live", retention._is_live)).live_through(idle) is None, "a copy loses nothing by itself"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_lose_instants(mutant: str) -> None:
    assert find_lost(MUTANTS[mutant])


# -- one rule after the other

NOW = BEGIN + 40 * DAY
ONE = TimelineSeen(1, Line.of(Timeline(1), []), written_at=NOW)


def backup(days_old: float, start: int, *, timeline: int = 1, stop: int | None = None, **others: Any) -> BackupSeen:
    """*start* and *stop* in segments."""
    at = NOW - timedelta(days=days_old)
    end = start + 1 if stop is None else stop
    return BackupSeen(BackupId.make(at), 1, Timeline(timeline), Lsn(start * SIZE), Lsn(end * SIZE), at, **others)


def planned(*backups: BackupSeen, timelines: Sequence[TimelineSeen] = (ONE,), **others: Any) -> PhysicalPlan:
    return product(Seen({1: SIZE}, timelines, backups, **others), NOW)


def kept(plan: PhysicalPlan) -> list[str | None]:
    return [decision.reason if decision.keep else None for decision in plan.backups]


def stays(plan: PhysicalPlan, last: int, timeline: int = 1) -> list[int]:
    """The old segments that stay, of those up to *last*."""
    return [number for number in range(last + 1) if plan.keeps(TimelineOf(1, Timeline(timeline)), number, BEGIN)]


def test_the_window_begins_with_the_newest_backup_before_it() -> None:
    plan = planned(backup(20, 1), backup(9, 5), backup(8.1, 7), backup(7.9, 9), backup(1, 20))
    assert kept(plan) == [None, None, "the window of timeline 1 begins with it", "within the window", "the newest good one"]
    assert stays(plan, 21) == list(range(7, 22))
    assert plan.edge(ONE.of) == 7


def test_without_a_backup_all_of_a_line_stays() -> None:
    assert stays(planned(), 5) == list(range(6))
    assert stays(planned(backup(20, 3, good=False)), 5) == list(range(6))


def test_the_oldest_is_the_anchor_while_none_is_old() -> None:
    plan = planned(backup(3, 4), backup(1, 9))
    assert stays(plan, 10) == list(range(4, 11))


def test_damaged_backup_is_no_anchor() -> None:
    """B5: nor does it make a good one go, however many damaged ones follow."""
    plan = planned(backup(30, 2), backup(20, 5, good=False), backup(10, 8, good=False))
    assert kept(plan) == ["the newest good one", "no newer good one follows", "no newer good one follows"]
    assert stays(plan, 9) == list(range(2, 10))


def test_a_held_one_stays_with_its_own_wal_and_to_where_the_hold_says() -> None:
    plain = planned(backup(30, 2, stop=4, held=True), backup(10, 20), backup(1, 30))
    assert kept(plain)[0] == "held"
    assert stays(plain, 20) == [2, 3, 20]
    further = planned(backup(30, 2, stop=4, held=True, wal_to=(Timeline(1), Lsn(7 * SIZE + 1))), backup(10, 20), backup(1, 30))
    assert stays(further, 20) == [2, 3, 4, 5, 6, 7, 20]


def test_a_hold_reaches_along_its_line() -> None:
    two = TimelineSeen(1, Line.of(Timeline(2), [Ancestor(Timeline(1), Lsn(5 * SIZE + 7))]), NOW, NOW)
    held = backup(30, 2, held=True, wal_to=(Timeline(2), Lsn(8 * SIZE)))
    plan = planned(held, backup(10, 20, timeline=2), backup(1, 30, timeline=2), timelines=[replace(ONE, written_at=BEGIN), two])
    assert (stays(plan, 20), stays(plan, 20, 2)) == ([2, 3, 4], [5, 6, 7, 20])


def test_a_hold_on_a_line_that_nobody_knows_keeps_all_wal() -> None:
    plan = planned(backup(30, 2, held=True, wal_to=(Timeline(9), Lsn(8 * SIZE))), backup(10, 20), backup(1, 30))
    assert stays(plan, 20) == list(range(21))


def test_what_snapshots_and_live_runs_need_stays() -> None:
    pins = [Pin(ONE.of, Lsn(3 * SIZE), Lsn(5 * SIZE)), Pin(TimelineOf(1, Timeline(2)), Lsn(6 * SIZE), None)]
    plan = planned(backup(10, 20), backup(1, 30), pins=pins)
    assert stays(plan, 20) == [3, 4, 20]
    assert stays(plan, 8, 2) == [6, 7, 8]


def test_of_a_line_that_was_left_all_goes_once_the_window_has_passed() -> None:
    two = TimelineSeen(1, Line.of(Timeline(2), [Ancestor(Timeline(1), Lsn(5 * SIZE))]), NOW, NOW - 12 * DAY)
    left = replace(ONE, written_at=NOW - 12 * DAY)
    old, new = backup(13, 2), backup(11, 6, timeline=2)
    plan = planned(old, new, backup(1, 20, timeline=2), timelines=[left, two])
    assert kept(plan) == [None, "the window of timeline 2 begins with it", "the newest good one"]
    assert (stays(plan, 8), plan.edge(ONE.of)) == ([], None)
    young = planned(old, backup(7, 6, timeline=2), timelines=[left, two])
    assert kept(young) == ["the window of timeline 1 begins with it", "the newest good one"]
    assert stays(young, 8) == list(range(2, 9))


def test_backups_of_an_older_system_do_not_end_a_newer_ones_line() -> None:
    """A server that was upgraded, and the old one that somebody started again: a person must decide."""
    newer = replace(ONE, system=2, written_at=NOW - 20 * DAY)
    backups = [replace(backup(21, 1), system=2), backup(10, 20), backup(1, 30)]
    plan = product(Seen({1: SIZE, 2: SIZE}, [ONE, newer], backups), NOW)
    assert [plan.keeps(newer.of, number, BEGIN) for number in (0, 1, 2, 3)] == [False, True, True, True]


def test_young_wal_stays_wherever_it_lies() -> None:
    plan = planned(backup(10, 20), backup(1, 30))
    assert plan.keeps(ONE.of, 1, NOW - 8 * DAY)
    assert not plan.keeps(ONE.of, 1, NOW - 8.1 * DAY)


def test_what_cannot_be_read_keeps_all_wal_and_an_unknown_line_every_backup() -> None:
    backups = [backup(20, 1), backup(10, 20), backup(1, 30)]
    wal = planned(*backups, unknown_wal=True)
    assert (kept(wal)[0], stays(wal, 5), wal.edge(ONE.of)) == (None, list(range(6)), 0)
    lines = planned(*backups, unknown_lines=True)
    assert kept(lines)[0] == "there is a timeline of which nobody knows what it needs"
    assert stays(lines, 5) == list(range(6))


@given(st.floats(-1, 1), st.lists(st.floats(0, 40), min_size=1, max_size=8))
def test_a_clock_that_is_wrong_by_less_than_an_hour_takes_no_newest_backup(hours: float, ages: list[float]) -> None:
    """G5, the half of it that is arithmetic: neither it nor the WAL that it needs."""
    backups = [backup(age, 100 - int(age * 2)) for age in ages]
    newest = max(backups, key=lambda each: each.finished_at)
    plan = product(Seen({1: SIZE}, [ONE], backups), NOW + timedelta(hours=hours))
    assert next(decision.keep for decision in plan.backups if decision.backup_id == newest.backup_id)
    assert all(plan.keeps(ONE.of, number, BEGIN) for number in range(newest.start // SIZE, 120))
