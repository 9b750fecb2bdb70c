"""What `wal status` and `wal verify` find: the window, gaps and what they cost, neighbours that do not link, damage."""

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import NoRepositoryError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.signing import SigningKey
from clipper_backup.format.time_maps import SegmentTimes
from clipper_backup.format.wal_objects import NO_LINK
from clipper_backup.repository.times import TimeMaps
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_survey import Links, Listings
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment
from fixtures.wal_archive import MADE_AT, MIB, SYSTEM, segment_name
from fixtures.wal_look import MadeRepository


@pytest.fixture
def made() -> MadeRepository:
    return MadeRepository()


def _filled(made: MadeRepository, last: int = 9) -> MadeRepository:
    """A base backup over segments 3 and 4, and WAL from 1 to *last*."""
    made.archive.segments(1, 1, 4)
    made.backup(1, 3, 4)
    made.days(1)
    made.archive.segments(1, 5, last)
    return made


def _holes(made: MadeRepository, *, whole: bool = False) -> list[tuple[str, int, bool]]:
    (system,) = made.look(whole=whole).systems
    return [(hole.first.name, hole.missing, hole.in_window) for hole in system.holes]


def test_without_a_repository_or_wal() -> None:
    made = MadeRepository()
    made.store.delete([keys.system_key(1)])
    seen = made.look()
    assert (seen.systems, seen.window, seen.problems) == ([], None, [])
    made.store = MemoryStore(VirtualClock(MADE_AT))
    with pytest.raises(NoRepositoryError):
        made.look()


def test_the_window_begins_with_the_stop_of_the_oldest_backup(made: MadeRepository) -> None:
    began = made.clock.now()
    _filled(made)
    made.days(1)
    made.backup(1, 9, 9)
    seen = made.look()
    assert seen.window is not None
    assert seen.window.backup.stopped_at == began
    assert (seen.window.backup.first_segment, seen.window.last.name) == (segment_name(1, 3), segment_name(1, 9))
    assert seen.problems == []
    assert _holes(made) == []


@pytest.mark.parametrize(("age", "in_window"), [(6.5, True), (7.5, False)])
def test_a_gap_counts_until_a_backup_behind_it_leaves_the_window(made: MadeRepository, age: float, in_window: bool) -> None:
    _filled(made)
    made.archive.lose(segment_name(1, 6))
    made.archive.lose(segment_name(1, 7), keys.STORED, keys.CLAIM)
    made.backup(1, 9, 9)
    made.days(age)
    assert _holes(made) == [(segment_name(1, 6), 2, in_window)]
    seen = made.look()
    assert seen.window is not None
    assert seen.window.backup.first_segment == segment_name(1, 9)
    assert bool(seen.gaps) is in_window


def test_a_gap_without_a_backup_behind_it_counts_while_its_line_is_young(made: MadeRepository) -> None:
    _filled(made)
    made.archive.lose(segment_name(1, 6))
    (hole,) = made.look().gaps
    assert hole.why == "claimed at 2026-11-23 02:00:00Z, never stored, or lost since"
    assert made.look().window is None
    made.days(7.5)
    assert made.look().gaps == []


@pytest.mark.rule(73)
def test_what_no_backup_needs_is_no_gap(made: MadeRepository) -> None:
    """Before the first backup, and behind the last segment: claims alone are the end."""
    _filled(made)
    made.archive.lose(segment_name(1, 2))
    made.archive.segment(1, 10, stored=False)
    seen = made.look()
    assert _holes(made) == []
    assert seen.window is not None
    assert seen.window.last.name == segment_name(1, 9)
    assert seen.systems[0].timelines[0].waiting == 1


@pytest.mark.rule(68)
@pytest.mark.parametrize("whole", [False, True])
def test_neighbours_of_two_histories_are_a_gap(made: MadeRepository, whole: bool) -> None:
    made.archive.segments(1, 3, 6)
    made.backup(1, 3, 4)
    made.archive.segment(1, 7, previous=b"of another hist.")
    made.archive.segments(1, 8, 9)
    assert _holes(made, whole=whole) == [(segment_name(1, 7), 0, True)]


def test_a_late_segment_is_linked_by_what_heals_it(made: MadeRepository) -> None:
    made.archive.segments(1, 3, 6)
    made.backup(1, 3, 4)
    made.archive.segment(1, 8, previous=NO_LINK)
    made.archive.segment(1, 7)
    assert _holes(made) == [(segment_name(1, 8), 0, True)]
    made.archive.link(1, 8, b"of another hist.")
    assert _holes(made) == [(segment_name(1, 8), 0, True)]
    made.archive.link(1, 8, made.archive.links[segment_name(1, 7)])
    assert _holes(made) == []


def test_a_link_of_another_claim_heals_nothing(made: MadeRepository) -> None:
    made.archive.segments(1, 3, 7)
    made.backup(1, 3, 4)
    made.archive.segment(1, 8, previous=NO_LINK, writer="another")
    made.archive.link(1, 8, made.archive.links[segment_name(1, 7)])
    assert _holes(made) == [(segment_name(1, 8), 0, True)]


def test_lines_are_followed_across_a_switch(made: MadeRepository) -> None:
    """Timeline 2 left 1 amid its segment 6: that one is not on the line, but its own of that number is."""
    _filled(made, last=8)
    made.archive.history(2, (1, 6 * MIB + 77))
    made.archive.segments(2, 6, 9)
    assert _holes(made) == []
    seen = made.look()
    assert seen.window is not None
    assert (seen.window.timeline, seen.window.last.name) == (2, segment_name(2, 9))
    made.archive.lose(segment_name(1, 5))
    assert _holes(made) == [(segment_name(1, 5), 1, True)]
    made.archive.lose(segment_name(2, 6))
    assert _holes(made) == [(segment_name(1, 5), 1, True), (segment_name(2, 6), 1, True)]


def test_the_window_is_not_of_a_timeline_that_holds_nothing(made: MadeRepository) -> None:
    """A restore that was opened beside the living server leaves such a one; the next restore passes it over, too."""
    _filled(made)
    made.archive.history(2, (1, 6 * MIB + 77))
    window = made.look().window
    assert window is not None
    assert (window.timeline, window.last.name) == (1, segment_name(1, 9))


def test_a_timeline_that_nobody_can_name_is_told(made: MadeRepository) -> None:
    _filled(made)
    made.archive.segments(2, 9, 10)
    made.archive.history(3, (1, 9 * MIB + 5), stored=False)
    made.store.put(f"wal/9/00000001/0000000100000000/{segment_name(1, 3)}.zst", b"x")
    seen = made.look()
    assert [problem.partition(":")[0] for problem in seen.problems] == [
        "timeline 2",
        "timeline 3",
        "wal/9/ is of a system that has no entry in systems/",
    ]
    assert seen.foreign == ["9"]


def test_what_lies_there_twice_is_told(made: MadeRepository) -> None:
    _filled(made)
    made.store.put(f"{made.archive.key(segment_name(1, 5))}.age", b"sealed")
    assert made.look().systems[0].twice == [segment_name(1, 5)]


def test_what_a_restore_would_refuse_of_the_window_is_told(made: MadeRepository) -> None:
    _filled(made)
    assert made.look().refused == []
    made.archive.put(segment_name(1, 9), made.archive.header(segment_name(1, 8), b"x"), b"x")
    (refused,) = made.look().refused
    assert f"{segment_name(1, 9)}.zst does not belong there" in refused


def test_maps_say_what_links_and_verify_compares_all_the_same(made: MadeRepository) -> None:
    made.archive.segments(1, 3, 6)
    made.backup(1, 3, 4)
    made.archive.segment(1, 7, previous=b"of another hist.")
    maps = TimeMaps(made.store, SYSTEM, MIB)
    maps.write(Segment(Timeline(1), 3, MIB), [SegmentTimes(latest=5, ends=1, linked=True)] * 5)
    assert _holes(made) == []
    assert _holes(made, whole=True) == [(segment_name(1, 7), 0, True)]


def test_no_more_links_are_compared_than_allowed(made: MadeRepository) -> None:
    _filled(made)
    catalog, listings = WalCatalog(made.store, SYSTEM, MIB), Listings(made.store, SYSTEM, MIB)
    links = Links(made.store, catalog, listings, maps=None, budget=2)
    assert [links.fit(Segment(Timeline(1), number, MIB)) for number in (4, 5, 6, 7)] == [True, True, None, None]
    assert links.unlooked == 2


# -- verify


def test_a_whole_archive_is_verified(made: MadeRepository) -> None:
    _filled(made)
    made.archive.history(2, (1, 9 * MIB + 77))
    made.archive.segments(2, 9, 9)
    for read_data in (False, True):
        found = made.verify(read_data=read_data)
        assert (found.files, found.damage, found.seen.problems, found.read) == (11, [], [], read_data)


@pytest.mark.parametrize(
    "what",
    ["flipped", "swapped", "zeros", "cut short", "no claim", "claim", "claim of another", "digest", "history", "unsigned"],
)
def test_damage_is_found(made: MadeRepository, what: str) -> None:
    _filled(made)
    made.archive.history(2, (1, 9 * MIB + 77))
    name = segment_name(1, 5)
    key, claim = made.archive.key(name), keys.archive_key(SYSTEM, name, keys.CLAIM)
    data, only_when_read = made.store.get(key), True
    match what:
        case "flipped":
            made.store.put(key, data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
        case "swapped":
            made.store.put(key, made.store.get(made.archive.key(segment_name(1, 6))))
        case "zeros":
            made.store.put(key, bytes(len(data)))
        case "cut short":
            made.store.put(key, data[:-1])
        case "no claim":
            made.store.delete([claim])
            only_when_read = False
        case "claim":
            made.store.put(claim, made.store.get(claim)[:-5])
            only_when_read = False
        case "claim of another":
            made.store.put(claim, made.store.get(keys.archive_key(SYSTEM, segment_name(1, 6), keys.CLAIM)))
            only_when_read = False
        case "digest":
            made.archive.put(name, made.archive.header(name, b"other", previous=made.archive.link_of(1, 4)), b"other")
        case "history":
            other = made.archive.history(2, (1, 9 * MIB + 99), claimed=False)
            assert other
            header = made.archive.header("00000002.history", other)
            made.archive.claim("00000002.history", header, [(1, 9 * MIB + 77)])
        case _:
            made.trusted = (SigningKey.make().public,)
    found = made.verify(read_data=True)
    assert found.damage, what
    assert bool(made.verify().damage) is not only_when_read
