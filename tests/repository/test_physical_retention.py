"""Which base backups and WAL stay (G4): random histories of a cluster, pruned daily, against what could be restored without."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

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
    Span,
    TimelineOf,
    TimelineSeen,
    plan_physical,
)
from clipper_backup.values import BackupId, Lsn, Timeline
from fixtures.sweeps import SOAK

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
WINDOW = 7 * DAY
SIZE = 1 << 20
UNIT = SIZE // 16
"""LSNs of the histories are multiples of it, so that most ends lie amid a segment and some between two."""
QUARTERS = 4
Event = Literal["nothing", "failover", "failover late", "recovery", "clone", "clone that archives", "upgrade"]


@dataclass(frozen=True)
class Chapter:
    """Days that are alike: how much WAL a quarter of a day writes, what comes of the daily backup, and what happens first.

    `place` says where in the past: of a recovery, which instant of the window, from 0 (its edge) to 1.
    """

    days: int
    wal: int
    backups: Literal["good", "bad", "none"]
    event: Event
    place: float


chapters = st.lists(
    st.builds(
        Chapter,
        days=st.sampled_from([1, 1, 2, 3, 5, 8, 12]),
        wal=st.sampled_from([0, 1, 7, 16, 40]),
        backups=st.sampled_from(["good", "good", "good", "bad", "none"]),
        event=st.sampled_from(
            ["nothing", "nothing", "failover", "failover late", "recovery", "recovery", "clone", "clone that archives", "upgrade"]
        ),
        place=st.floats(0, 1, width=16),
    ),
    min_size=3,
    max_size=12,
)


@dataclass
class Server:
    """A timeline as it really was: its ancestors with the positions where they were left, oldest first."""

    ancestors: list[tuple[int, int]]
    claimed_at: datetime | None


Key = tuple[int, int, int]
"""System, timeline, and number of a segment."""


@dataclass
class World:
    """A cluster and its archive. `ever` and `taken` are what would be there without prune."""

    plan: Callable[[Seen, datetime], PhysicalPlan]
    now: datetime = BEGIN
    system: int = 1
    timeline: int = 1
    lsn: int = 100 * UNIT
    servers: dict[tuple[int, int], Server] = field(default_factory=lambda: {(1, 1): Server([], None)})
    archived: dict[tuple[int, int], int] = field(default_factory=lambda: {(1, 1): 100 // 16})
    wal: dict[Key, datetime] = field(default_factory=dict)
    ever: dict[Key, datetime] = field(default_factory=dict)
    backups: list[BackupSeen] = field(default_factory=list)
    taken: list[BackupSeen] = field(default_factory=list)
    log: list[tuple[datetime, int, int, int]] = field(default_factory=list)

    # -- what happens

    def live_through(self, history: Sequence[Chapter]) -> str | None:
        """What could be restored without prune and cannot be any more; None when nothing."""
        for chapter in history:
            self.happen(chapter.event, chapter.place, chapter.wal)
            for _ in range(chapter.days):
                for quarter in range(QUARTERS):
                    self.now += DAY / QUARTERS
                    self.write(chapter.wal * UNIT)
                    if quarter == 0 and chapter.backups != "none":
                        self.back_up(good=chapter.backups == "good")
                    self.log.append((self.now, self.system, self.timeline, self.lsn))
                self.prune()
                if (lost := self.lost()) is not None:
                    return lost
        return None

    def happen(self, event: Event, place: float, wal: int) -> None:
        if event == "upgrade":
            self.system, self.timeline, self.lsn = max(self.servers)[0] + 1, 1, 100 * UNIT
            self.begin(None, self.lsn)
        elif event in {"failover", "failover late"}:
            old, done = (self.system, self.timeline), self.archived[self.system, self.timeline]
            if event == "failover late":
                self.put(*old, done)  # its last segment, whole, after the new one had left it
            self.branch(self.timeline, self.lsn)
            self.lsn += UNIT
        elif event != "nothing":
            past = [(s, t, lsn) for at, s, t, lsn in self.instants() if self.restores(self.wal, self.backups, at, s, t, lsn)]
            if not past:
                return
            system, timeline, lsn = past[min(int(place * len(past)), len(past) - 1)]
            here = self.system, self.timeline, self.lsn
            self.system = system
            self.branch(timeline, lsn)
            self.lsn = lsn + UNIT
            if event == "recovery":
                return
            if event == "clone that archives":
                self.write((wal + 16) * UNIT)
            self.system, self.timeline, self.lsn = here

    def branch(self, parent: int, at: int) -> None:
        """A new timeline of the system, with the next number that is free."""
        ancestors = [*self.servers[self.system, parent].ancestors, (parent, at)]
        self.timeline = max(timeline for system, timeline in self.servers if system == self.system) + 1
        self.begin(Server(ancestors, self.now), at)

    def begin(self, server: Server | None, at: int) -> None:
        self.servers[self.system, self.timeline] = server or Server([], None)
        self.archived[self.system, self.timeline] = at // SIZE

    def write(self, size: int) -> None:
        self.lsn += size
        self.archive()

    def archive(self) -> None:
        here = self.system, self.timeline
        while (self.archived[here] + 1) * SIZE <= self.lsn:
            self.put(*here, self.archived[here])
            self.archived[here] += 1

    def put(self, system: int, timeline: int, number: int) -> None:
        self.wal[system, timeline, number] = self.ever[system, timeline, number] = self.now

    def back_up(self, *, good: bool) -> None:
        start = self.lsn
        stop = start + 3 * UNIT
        self.lsn = -(-stop // SIZE) * SIZE  # it switches
        self.archive()
        backup = BackupSeen(
            BackupId.make(self.now), self.system, Timeline(self.timeline), Lsn(start), Lsn(stop), self.now, good=good
        )
        self.backups.append(backup)
        self.taken.append(backup)

    # -- what is pruned, and what can be restored then

    def seen(self) -> Seen:
        newest: dict[tuple[int, int], tuple[int, datetime]] = {}
        for (system, timeline, number), at in self.wal.items():
            newest[system, timeline] = max(newest.get((system, timeline), (-1, at)), (number, at))
        return Seen(
            segment_bytes={system: SIZE for system, _ in self.servers},
            timelines=[
                TimelineSeen(
                    system,
                    Line.of(Timeline(timeline), [Ancestor(Timeline(of), Lsn(at)) for of, at in server.ancestors]),
                    newest.get((system, timeline), (0, None))[1],
                    server.claimed_at,
                )
                for (system, timeline), server in self.servers.items()
            ],
            backups=self.backups,
        )

    def prune(self) -> None:
        plan = self.plan(self.seen(), self.now)
        kept = {decision.backup_id for decision in plan.backups if decision.keep}
        self.backups = [backup for backup in self.backups if backup.backup_id in kept]
        self.wal = {
            (system, timeline, number): at
            for (system, timeline, number), at in self.wal.items()
            if plan.keeps(TimelineOf(system, Timeline(timeline)), number, at)
        }

    def instants(self) -> Iterator[tuple[datetime, int, int, int]]:
        return ((at, s, t, lsn) for at, s, t, lsn in self.log if at >= self.now - WINDOW)

    def lost(self) -> str | None:
        for at, system, timeline, lsn in self.instants():
            if self.restores(self.wal, self.backups, at, system, timeline, lsn):
                continue
            if self.restores(self.ever, self.taken, at, system, timeline, lsn):
                return f"day {(self.now - BEGIN) / DAY}: {at} on timeline {timeline} of system {system} at {lsn / SIZE}"
        return None

    def restores(
        self, wal: dict[Key, datetime], backups: list[BackupSeen], at: datetime, system: int, timeline: int, lsn: int
    ) -> bool:
        """Whether some good backup that was there by then, and the WAL from it on, lead to that position on that timeline."""
        parts = self.parts(system, timeline)

        def archived(number: int) -> bool:
            end = (number + 1) * SIZE
            return any((system, of, number) in wal for of, first, last in parts if first < end <= last)

        return any(
            all(archived(number) for number in range((lsn - 1) // SIZE, backup.start // SIZE - 1, -1))
            for backup in reversed(backups)
            if backup.good
            and backup.system == system
            and backup.finished_at <= at
            and backup.stop <= lsn
            and any(of == backup.timeline and backup.stop <= last for of, _, last in parts)
        )

    def parts(self, system: int, timeline: int) -> list[tuple[int, float, float]]:
        """The page's words, written down a second time: each timeline of the line, with the positions between which it counts."""
        ends: list[tuple[int, float]] = [(timeline, math.inf)]
        for of, left in reversed(self.servers[system, timeline].ancestors):
            ends.append((of, min(left, ends[-1][1])))
        ends.reverse()
        return [(of, 0 if number == 0 else ends[number - 1][1], end) for number, (of, end) in enumerate(ends)]


def product(seen: Seen, now: datetime) -> PhysicalPlan:
    return plan_physical(seen, now=now, window=WINDOW)


@pytest.mark.rule(73)
@pytest.mark.rule(78)
@settings(max_examples=3000 if SOAK else 60)
@given(chapters)
def test_prune_after_pitr(history: list[Chapter]) -> None:
    assert World(product).live_through(history) is None


# -- broken on purpose: each of these loses an instant of some history


def by_names(seen: Seen, now: datetime) -> PhysicalPlan:
    """One anchor for all: the newest by name of what ended before the window; what is named before it goes."""

    def name(backup: BackupSeen) -> tuple[int, int, int]:
        return backup.system, backup.timeline, backup.start // SIZE

    young = now - WINDOW - DAY
    anchor = max((b for b in seen.backups if b.good and b.finished_at < young), key=name, default=None)
    plan = product(seen, now)
    if anchor is None:
        return plan
    keep = {backup.backup_id for backup in seen.backups if name(backup) >= name(anchor)}
    spans = {
        timeline.of: (Span(0 if timeline.of > anchor.of else anchor.start // SIZE, None),)
        for timeline in seen.timelines
        if timeline.of >= anchor.of
    }
    decisions = tuple(replace(decision, keep=decision.backup_id in keep) for decision in plan.backups)
    return replace(plan, backups=decisions, spans=spans)


def by_age(seen: Seen, now: datetime) -> PhysicalPlan:
    """WAL that is older than the window goes, whoever needs it."""
    return replace(product(seen, now), spans={})


IS_LIVE = retention._is_live
MUTANTS: dict[str, tuple[str, Callable[..., object]]] = {
    "a backup on a line by its start": ("_on_line", lambda line, backup: line.holds_backup(backup.timeline, backup.start)),
    "left lines dead at once": (
        "_is_live",
        lambda timeline, backups, _: IS_LIVE(timeline, backups, datetime.max.replace(tzinfo=UTC)),
    ),
    "only the highest timeline lives": (
        "_is_live",
        lambda timeline, backups, _: timeline.of >= max((backup.of for backup in backups), default=timeline.of),
    ),
    "an anchor need not be old": (
        "_anchor",
        lambda timeline, backups, _: next(reversed(retention._good_on(timeline, backups)), None),
    ),
    "a damaged backup is an anchor": (
        "_good_on",
        lambda timeline, backups: sorted(
            (b for b in backups if b.system == timeline.system and timeline.line.holds_backup(b.timeline, b.stop)),
            key=lambda b: b.start,
        ),
    ),
}


def find_lost(plan: Callable[[Seen, datetime], PhysicalPlan]) -> None:
    """Raises NoSuchExample when no history loses anything."""
    find(
        chapters,
        lambda history: World(plan).live_through(history) is not None,
        settings=settings(max_examples=3000, phases=[Phase.generate], database=None, derandomize=True),
        random=random.Random(1),
    )


@pytest.mark.parametrize("plan", [by_names, by_age])
def test_a_plan_by_names_or_age_loses_instants(plan: Callable[[Seen, datetime], PhysicalPlan]) -> None:
    find_lost(plan)


def test_an_idle_server_whose_backups_fail_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does, where a line lasts only while its signs are young: broken on purpose."""
    idle = [Chapter(3, 16, "good", "nothing", 0), Chapter(12, 0, "none", "clone", 1), Chapter(8, 0, "bad", "nothing", 0)]
    assert World(product).live_through(idle) is None
    monkeypatch.setattr(
        retention, "_is_live", lambda timeline, backups, horizon: (retention._last_sign(timeline, backups) or horizon) >= horizon
    )
    assert World(product).live_through(idle) is not None


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_lose_instants(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, *MUTANTS[mutant])
    find_lost(product)


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
