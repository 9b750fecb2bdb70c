"""What `wal status` and `wal verify` find: the window, gaps and what they cost, neighbours that do not link, damage."""

import random
from pathlib import Path

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.config import load
from clipper_backup.errors import NoRepositoryError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.sealing import seal
from clipper_backup.format.signing import SigningKey, raw_public
from clipper_backup.format.time_maps import SegmentTimes
from clipper_backup.format.wal_objects import HEADER_BYTES_MIN, NO_LINK, encode_object
from clipper_backup.postgres.history import made_history
from clipper_backup.postgres.wal_records import Kind
from clipper_backup.repository.times import TimeMaps
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_survey import Links, Listings
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment
from fixtures.keys import make_keys, opening
from fixtures.wal_archive import MADE_AT, MIB, SYSTEM, plain_of, segment_name
from fixtures.wal_bytes import WalWriter
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


@pytest.mark.rule(73)
def test_nothing_is_recoverable_to_the_end_where_that_is_of_a_timeline_nobody_can_name(made: MadeRepository) -> None:
    _filled(made)
    made.archive.segments(2, 9, 10)
    seen = made.look()
    assert (seen.window, [window.last.name for window in seen.earlier]) == (None, [segment_name(1, 9)])
    assert seen.why_no_window == "timeline 2, the newest, cannot be followed"
    made.archive.history(3, (1, 9 * MIB + 5))
    made.archive.segment(3, 9)
    assert made.look().window is not None, "a newer one is what a restore follows"


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


@pytest.mark.parametrize("left", [0, 100])
def test_an_object_that_is_too_small_to_be_one_is_a_gap(made: MadeRepository, left: int) -> None:
    """What a full disk leaves, or a copy that broke off."""
    _filled(made)
    made.store.put(made.archive.key(segment_name(1, 6)), bytes(left))
    assert _holes(made) == [(segment_name(1, 6), 1, True)]
    assert made.look().gaps[0].why == f"its object has {left} bytes and is none"
    made.store.put(f"{made.archive.key(segment_name(1, 6))}.age", b"sealed" * 99)
    assert _holes(made) == []


def flip(made: MadeRepository, number: int, at: int = -6) -> None:
    key = made.archive.key(segment_name(1, number))
    data = bytearray(made.store.get(key))
    data[at] ^= 1
    made.store.put(key, bytes(data))


@pytest.mark.parametrize("mapped", [False, True])
def test_the_last_segment_is_read_whatever_a_map_tells_of_it(made: MadeRepository, *, mapped: bool) -> None:
    _filled(made)
    if mapped:
        maps = TimeMaps(made.store, SYSTEM, MIB)
        maps.write(Segment(Timeline(1), 3, MIB), [SegmentTimes(latest=5, ends=1, linked=True)] * 7)
    flip(made, 9)
    seen = made.look()
    assert seen.refused == seen.problems
    (problem,) = seen.problems
    assert segment_name(1, 9) in problem


def test_what_is_damaged_where_the_last_transaction_is_looked_for_is_told(made: MadeRepository) -> None:
    wal = WalWriter(3)
    for number in range(3, 8):
        (wal.other(100) if number == 7 else wal.end(Kind.COMMIT, number, number))
        wal.switch()
    for segment, plain in wal.segments().items():
        made.archive.segment(1, segment.number, plain=plain)
    made.backup(1, 3, 4)
    assert made.look().problems == []
    flip(made, 6, HEADER_BYTES_MIN)
    seen = made.look()
    (problem,) = seen.problems
    assert problem.startswith("the end of the WAL cannot be read: ")
    assert segment_name(1, 6) in problem
    assert seen.window is not None
    assert seen.window.to is None


@pytest.mark.parametrize("what", ["damaged", "empty", "of another", "made by a restore"])
def test_a_history_that_cannot_be_followed_is_told(made: MadeRepository, what: str) -> None:
    """PostgreSQL is given the archived one: without it recovery cannot go to that timeline."""
    _filled(made)
    made.archive.history(2, (1, 9 * MIB + 77))
    made.archive.segment(2, 9)
    assert made.look().window is not None
    key = made.archive.key("00000002.history")
    match what:
        case "damaged":
            data = made.store.get(key)
            made.store.put(key, data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
        case "empty":
            made.store.put(key, b"")
        case "of another":
            made.archive.history(2, (1, 8 * MIB + 77), claimed=False)
        case _:
            plain = made_history(Timeline(2))
            made.archive.put("00000002.history", made.archive.header("00000002.history", plain), plain)
    seen = made.look()
    assert (seen.window, seen.why_no_window) == (None, "timeline 2, the newest, cannot be followed")
    (told,) = seen.problems
    assert told.startswith("timeline 2: ")
    assert "00000002.history" in told


def test_a_damaged_history_stops_no_base_backup_that_has_its_line_recorded(made: MadeRepository) -> None:
    """A restore from it does without that history; those of other timelines lead no further than before."""
    _filled(made)
    branch = (1, 9 * MIB + 77)
    made.archive.history(2, branch)
    made.archive.segments(2, 9, 12)
    made.store.put(made.archive.key("00000002.history"), b"")
    unrecorded = made.backup(2, 10, 10)
    seen = made.look()
    assert (seen.window, seen.why_no_window) == (None, "timeline 2, the newest, cannot be followed")
    made.backup(2, 11, 11, ancestors=[(1, 9 * MIB)])
    assert made.look().window is None, "of another line"
    recorded = made.backup(2, 12, 12, ancestors=[branch])
    seen = made.look()
    assert seen.window is not None
    assert (seen.window.backup.id, seen.window.timeline) == (recorded.id, 2)
    assert recorded.id != unrecorded.id
    (told,) = seen.problems
    assert told.startswith("timeline 2: ")


def test_a_segment_amid_the_archive_that_another_key_signed_is_found_by_its_header(made: MadeRepository) -> None:
    ours, other = SigningKey.make(), SigningKey.make()
    made.archive.segments(1, 3, 9)
    for number in range(3, 10):
        name, key = segment_name(1, number), other if number == 6 else ours
        header = made.archive.header(name, plain_of(Segment(Timeline(1), number, MIB)), previous=made.archive.links.get(
            segment_name(1, number - 1), NO_LINK))  # fmt: skip
        made.archive.put(name, header.signed(raw_public(key.public), key.sign), plain_of(Segment(Timeline(1), number, MIB)))
    made.backup(1, 3, 4)
    made.trusted = (ours.public,)
    (damage,) = made.verify().damage
    assert damage.startswith(f"wal/{SYSTEM}/00000001/0000000100000000/{segment_name(1, 6)}.zst is not signed by any of")


def test_sealed_headers_are_compared_where_a_key_is_at_hand(made: MadeRepository, tmp_path: Path) -> None:
    """Of an object that is larger than what is read of it, too."""
    key = make_keys(tmp_path)["operator"]
    made.archive.segments(1, 3, 9)
    made.backup(1, 3, 4)
    for number in range(3, 10):
        name = segment_name(1, number)
        plain = random.Random(number).randbytes(MIB)
        header = made.archive.header(name, plain, previous=made.archive.links.get(segment_name(1, number - 1), NO_LINK))
        made.archive.links[name] = header.link
        made.archive.claim(name, header)
        wrong = made.archive.header(segment_name(1, 5), plain) if number == 6 else header
        made.store.put(f"{made.archive.key(name)}.age", b"".join(seal(encode_object(wrong, [plain]), [key.public])))
        made.archive.lose(name)
    assert made.verify().damage == []
    made.settings = load({}, {"BACKUP_URL": "file:///unused", **opening(key)}).settings
    (damage,) = made.verify().damage
    assert f"{segment_name(1, 6)}.zst.age does not belong there" in damage
    assert len(made.verify(read_data=True).damage) == 1


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
    [
        "flipped",
        "swapped",
        "zeros",
        "nothing",
        "cut short",
        "no claim",
        "claim",
        "claim of another",
        "digest",
        "history",
        "unsigned",
    ],
)
def test_damage_is_found(made: MadeRepository, what: str) -> None:
    _filled(made)
    made.archive.history(2, (1, 9 * MIB + 77))
    name = segment_name(1, 5)
    key, claim = made.archive.key(name), keys.archive_key(SYSTEM, name, keys.CLAIM)
    data, only_when_read = made.store.get(key), what in {"flipped", "cut short", "history"}
    match what:
        case "flipped":
            made.store.put(key, data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
        case "swapped":
            made.store.put(key, made.store.get(made.archive.key(segment_name(1, 6))))
        case "zeros":
            made.store.put(key, bytes(len(data)))
        case "nothing":
            made.store.put(key, b"")
        case "cut short":
            made.store.put(key, data[:-1])
        case "no claim":
            made.store.delete([claim])
        case "claim":
            made.store.put(claim, made.store.get(claim)[:-5])
        case "claim of another":
            made.store.put(claim, made.store.get(keys.archive_key(SYSTEM, segment_name(1, 6), keys.CLAIM)))
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
    assert bool(made.verify().damage) is not only_when_read, "a header tells, or a claim"
