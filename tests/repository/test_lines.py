"""Lines against a model: servers that write, are promoted, and are restored to anywhere on the way to a timeline."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.postgres.history import Ancestor
from clipper_backup.repository.lines import Line, Part
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment

MIB = 1 << 20


def line(timeline: int, *ancestors: tuple[int, int]) -> Line:
    return Line.of(Timeline(timeline), [Ancestor(Timeline(number), Lsn(lsn)) for number, lsn in ancestors])


def part(timeline: int, begin: int, end: int | None) -> Part:
    return Part(Timeline(timeline), Lsn(begin), None if end is None else Lsn(end))


def test_timeline_1_is_a_line_of_its_own() -> None:
    assert line(1).parts == (part(1, 0, None),)


def test_each_ancestor_ends_where_it_was_left() -> None:
    assert line(4, (1, 100), (3, 250)).parts == (part(1, 0, 100), part(3, 100, 250), part(4, 250, None))


@pytest.mark.rule(62)
def test_a_history_whose_lsns_fall_has_an_empty_part() -> None:
    # Recovery to timeline 2 that stopped before 2 began: PostgreSQL writes `1 0/B7D618` and then `2 0/AFFF48`.
    found = line(3, (1, 0xB7D618), (2, 0xAFFF48))
    assert found.parts == (part(1, 0, 0xAFFF48), part(2, 0xAFFF48, 0xAFFF48), part(3, 0xAFFF48, None))
    assert [each.timeline for each in found.segments(0, 20, MIB)] == [1] * 10 + [3] * 11


def test_the_segment_where_an_ancestor_was_left_is_the_descendants() -> None:
    found = line(2, (1, 3 * MIB + 5))
    assert not found.holds(Segment(Timeline(1), 3, MIB))
    assert found.holds(Segment(Timeline(1), 2, MIB))
    assert found.holds(Segment(Timeline(2), 3, MIB))
    assert not found.holds(Segment(Timeline(2), 2, MIB))


def test_left_exactly_between_two_segments() -> None:
    found = line(2, (1, 3 * MIB))
    assert [each.name for each in found.segments(2, 3, MIB)] == ["000000010000000000000002", "000000020000000000000003"]


def test_a_foreign_timeline_is_not_on_it() -> None:
    found = line(3, (1, 100))
    assert found.part(Timeline(2)) is None
    assert not found.holds_backup(Timeline(2), Lsn(50))
    assert not found.is_first(Segment(Timeline(2), 0, MIB))


@pytest.mark.parametrize(("timeline", "stop", "on_it"), [(1, 99, True), (1, 100, True), (1, 101, False), (3, 9999, True)])
def test_a_backup_lies_on_it_by_its_stop(timeline: int, stop: int, on_it: bool) -> None:
    assert line(3, (1, 100)).holds_backup(Timeline(timeline), Lsn(stop)) is on_it


@pytest.mark.parametrize(("lsn", "timeline"), [(1, 1), (100, 1), (101, 3)])
def test_the_part_on_which_a_recovery_stops(lsn: int, timeline: int) -> None:
    assert line(3, (1, 100)).at(Lsn(lsn)).timeline == timeline


def test_the_first_segment_of_each_part() -> None:
    found = line(2, (1, 3 * MIB + 5))
    assert [each.number for each in found.segments(0, 9, MIB) if found.is_first(each)] == [0, 3]


# -- against a model

SIZE = 4
"""How many units a segment of the model has; a unit is a quarter of the smallest segment, and knows who wrote it."""
UNIT = MIB // SIZE


@dataclass
class World:
    """Servers by their timeline: the WAL that led to each state, its history, and the segments it archived."""

    wal: dict[int, list[int]] = field(default_factory=dict)
    histories: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    archive: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def start(self, timeline: int, before: list[int], history: list[tuple[int, int]], written: int) -> None:
        """A server that begins where *before* ends writes on; each segment it touched is archived when it is full."""
        self.wal[timeline] = before + [timeline] * written
        self.histories[timeline] = history
        for number in range(len(before) // SIZE, len(self.wal[timeline]) // SIZE):
            self.archive[timeline, number] = self.wal[timeline][number * SIZE : (number + 1) * SIZE]

    def restore(self, target: int, stop: int, written: int) -> None:
        """A recovery to *stop* on the way to *target*, wherever that lies: PostgreSQL copies the target's history."""
        self.start(len(self.wal) + 1, self.wal[target][:stop], [*self.histories[target], (target, stop)], written)

    def line(self, timeline: int) -> Line:
        return line(timeline, *((ancestor, left * UNIT) for ancestor, left in self.histories[timeline]))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = World()
    world.start(1, [], [], draw(st.integers(1, 40)))
    for _ in range(draw(st.integers(0, 6))):
        target = draw(st.sampled_from(sorted(world.wal)))
        world.restore(target, draw(st.integers(1, len(world.wal[target]))), draw(st.integers(0, 30)))
    return world


@pytest.mark.rule(62)
@given(worlds())
def test_the_segments_of_a_line_are_the_wal_that_its_server_saw(world: World) -> None:
    for timeline, wal in world.wal.items():
        whole = len(wal) // SIZE
        segments = world.line(timeline).segments(0, whole - 1, MIB)
        assert [world.archive[each.timeline, each.number] for each in segments] == [
            wal[number * SIZE : (number + 1) * SIZE] for number in range(whole)
        ]


@given(worlds())
def test_parts_follow_one_another_and_hold_every_end_once(world: World) -> None:
    for timeline in world.wal:
        found = world.line(timeline)
        assert found.timeline == timeline
        assert found.parts[0].begin == 0
        assert [each.end for each in found.parts[:-1]] == [each.begin for each in found.parts[1:]]
        assert found.parts[-1].end is None
        for end in range(1, 60):
            assert [each for each in found.parts if each.holds_end(Lsn(end * UNIT))] == [found.at(Lsn(end * UNIT))]


@pytest.mark.rule(59)
@given(worlds(), st.data())
def test_a_backup_lies_on_a_line_when_its_server_saw_the_same_wal(world: World, data: st.DataObject) -> None:
    timeline, source = (data.draw(st.sampled_from(sorted(world.wal))) for _ in range(2))
    written = [at for at, writer in enumerate(world.wal[source], 1) if writer == source]
    if written and timeline != source:
        stop = data.draw(st.sampled_from(written))
        same = world.wal[source][:stop] == world.wal[timeline][:stop]
        assert world.line(timeline).holds_backup(Timeline(source), Lsn(stop * UNIT)) is same
