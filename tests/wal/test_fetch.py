"""`wal fetch`, row by row of its table (docs/design/repository-wal.md, What a restore reads)."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import (
    AccessError,
    ClipperError,
    IntegrityError,
    NoRepositoryError,
    StoreError,
    StoreUnavailableError,
    UsageError,
    WalGapError,
    fetch_code_of,
)
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import (
    BaseSummary,
    BaseVersions,
    PageCounts,
    ServerSettings,
    Sizes,
)
from clipper_backup.format.documents import encode
from clipper_backup.format.names import SEALED
from clipper_backup.format.sealing import Identity, seal, unseal
from clipper_backup.format.signing import SigningKey
from clipper_backup.format.wal_objects import NO_LINK, ObjectKind
from clipper_backup.postgres.history import Ancestor, made_history, parse_history
from clipper_backup.repository.restore_plan import LINKS
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.wal_archive import MADE_AT, MIB, REPOSITORY, SYSTEM, plain_of, segment_name
from fixtures.wal_restore import BACKUP_ID, WAIT_SECONDS, Restoring, make_plan


def plain(timeline: int, number: int) -> bytes:
    return plain_of(Segment(Timeline(timeline), number, MIB))


# -- rows 1 to 3


def test_segments_are_handed_out_in_order(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 6)
    restoring.planned(make_plan(last=(1, 6)))
    assert [restoring.ask((1, number)) for number in range(3, 7)] == [plain(1, number) for number in range(3, 7)]
    assert restoring.links == [segment_name(1, number) for number in range(3, 7)]


@pytest.mark.rule(55)
def test_behind_last_is_missing_without_asking_the_store(restoring: Restoring) -> None:
    restoring.planned(make_plan(last=(1, 6)))
    restoring.store = FaultyStore(restoring.memory, "*:1+:denied", restoring.clock)
    assert restoring.ask((1, 7)) is None
    assert restoring.ask((9, 7)) is None, "on whatever timeline"


def test_read_ahead_behind_a_held_backup(restoring: Restoring) -> None:
    """PostgreSQL asks for what lies behind the last segment it needs; of a held backup, all of that is pruned."""
    restoring.archive.segments(1, 3, 6)
    restoring.archive.segments(1, 4000, 4001)
    restoring.planned(make_plan(last=(1, 6)))
    assert restoring.ask((1, 6)) == plain(1, 6)
    assert restoring.ask((1, 7)) is None


@pytest.mark.rule(96)
def test_an_ancestor_behind_the_switch_is_a_gap(restoring: Restoring) -> None:
    """Row 2: PostgreSQL asks for the parent's segment where the child's is not there, and would read its other history."""
    restoring.archive.segments(1, 3, 9)
    restoring.archive.history(2, (1, 5 * MIB + 100))
    restoring.planned(make_plan(timeline=2, ancestors=[(1, 5 * MIB + 100)]))
    assert restoring.ask((1, 4)) == plain(1, 4)
    with pytest.raises(WalGapError, match="does not lead to timeline 2"):
        restoring.ask((1, 5))


def test_a_segment_that_no_system_of_this_size_has(restoring: Restoring) -> None:
    restoring.planned(make_plan())
    with pytest.raises(UsageError):
        restoring.ask("000000010000000000001000")


# -- rows 4 to 7


@pytest.mark.rule(56)
@pytest.mark.rule(96)
def test_middle_segment_gone_is_a_gap(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 6)
    restoring.archive.lose(segment_name(1, 4), keys.STORED, keys.CLAIM)
    restoring.planned(make_plan(last=(1, 6)))
    with pytest.raises(WalGapError, match="recovery needs the WAL up to 000000010000000000000006"):
        restoring.ask((1, 4))


def test_a_gap_that_was_claimed_says_since_when(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 6)
    restoring.archive.lose(segment_name(1, 4))
    restoring.planned(make_plan(last=(1, 6)))
    restoring.clock.advance(3600)
    with pytest.raises(WalGapError) as found:
        restoring.ask((1, 4))
    assert found.value.hints[0] == "it was claimed at 2026-11-22 02:00:00Z, and never stored, or lost since"


@pytest.mark.rule(96)
@pytest.mark.parametrize("later", [5, 6, 4096, 9000], ids=["the next", "the one after", "in the next folder", "far behind"])
def test_without_last_something_later_makes_it_a_gap(restoring: Restoring, later: int) -> None:
    restoring.archive.segments(1, 3, 3)
    restoring.archive.segment(1, later)
    restoring.planned(make_plan())
    with pytest.raises(WalGapError, match=f"{segment_name(1, later)} is there"):
        restoring.ask((1, 4))


@pytest.mark.rule(96)
@pytest.mark.parametrize("lost", [4, 5, 6])
def test_what_the_plan_saw_and_is_gone_is_a_gap(restoring: Restoring, lost: int) -> None:
    """To the end of what is there: all of the end may be lost since, so that nothing lies behind it."""
    restoring.archive.segments(1, 3, 6)
    restoring.planned(make_plan(seen=(1, 6)))
    for number in range(lost, 7):
        restoring.archive.lose(segment_name(1, number), keys.STORED, keys.CLAIM)
    for number in range(lost, 7):
        with pytest.raises(WalGapError, match="all was there up to 000000010000000000000006"):
            restoring.ask((1, number))
    assert restoring.ask((1, 7)) is None
    restoring.archive.segment(1, 7)
    assert restoring.ask((1, 7)) == plain(1, 7), "archived since"


@pytest.mark.parametrize(("left", "gap"), [(5 * MIB, True), (5 * MIB + 1, True), (5 * MIB - 1, False)])
def test_without_last_a_history_that_left_behind_it_makes_it_a_gap(restoring: Restoring, left: int, gap: bool) -> None:
    """Segment 4 ends at 5 MiB: who left there or later had it whole."""
    restoring.archive.segments(1, 3, 3)
    restoring.archive.history(2, (1, left))
    restoring.planned(make_plan())
    if gap:
        with pytest.raises(WalGapError, match="timeline 2 began behind it"):
            restoring.ask((1, 4))
    else:
        assert restoring.ask((1, 4)) is None


def test_a_history_without_its_claim_is_looked_into(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 3)
    restoring.archive.history(2, (1, 6 * MIB), claimed=False)
    restoring.planned(make_plan())
    with pytest.raises(WalGapError, match="timeline 2 began behind it"):
        restoring.ask((1, 4))


def test_a_claim_that_cannot_be_read_is_no_end(restoring: Restoring) -> None:
    restoring.archive.history(2, (1, 6 * MIB))
    restoring.memory.put(keys.history_key(SYSTEM, Timeline(2), keys.CLAIM), b"{")
    restoring.planned(make_plan())
    with pytest.raises(IntegrityError, match=r"00000002\.history\.claim is damaged"):
        restoring.ask((1, 4))


@pytest.mark.rule(55)
def test_nothing_later_is_the_end(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 3)
    restoring.archive.segments(2, 3, 9)  # another timeline's
    restoring.planned(make_plan())
    assert restoring.ask((1, 3)) == plain(1, 3)
    assert restoring.ask((1, 4)) is None


@pytest.mark.rule(56)
def test_an_empty_folder_is_no_end_of_the_wal(restoring: Restoring) -> None:
    """The volume that the repository is on may not be mounted: all of it is missing, and nothing of it is known to be."""
    restoring.planned(make_plan())
    restoring.memory.delete(["repository.json"])
    for name in ("00000002.history", segment_name(1, 3), f"{segment_name(1, 3)}.00000028.backup"):
        with pytest.raises(NoRepositoryError):
            restoring.ask(name)


@pytest.mark.rule(56)
def test_another_repository_is_no_end_of_the_wal(restoring: Restoring) -> None:
    restoring.planned(make_plan())
    restoring.memory.put("repository.json", restoring.memory.get("repository.json").replace(b"4f1a", b"ffff"))
    with pytest.raises(IntegrityError, match="another repository"):
        restoring.ask((1, 3))


def test_server_died_between_claim_and_object(restoring: Restoring) -> None:
    """A claim alone at the end is the end, once it is too old for its archiver to be at work."""
    restoring.archive.segments(1, 3, 4)
    restoring.archive.segment(1, 5, stored=False)
    restoring.planned(make_plan())
    assert restoring.ask((1, 4)) == plain(1, 4)
    restoring.clock.advance(WAIT_SECONDS)
    before = restoring.clock.monotonic()
    assert restoring.ask((1, 5)) is None
    assert restoring.clock.monotonic() == before, "nothing to wait for"


def test_a_young_claim_is_waited_for(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.archive.segment(1, 5, stored=False)
    restoring.planned(make_plan())
    assert restoring.ask((1, 5)) is None
    assert WAIT_SECONDS <= restoring.clock.monotonic() <= WAIT_SECONDS + 2


def test_the_object_arrives_while_it_is_waited_for(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.archive.segment(1, 5, stored=False)
    restoring.planned(make_plan())

    class Late(VirtualClock):
        """After ten seconds it is put."""

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.monotonic() > 10:
                restoring.archive.segment(1, 5)

    restoring.clock = Late(MADE_AT)
    assert restoring.ask((1, 5)) == plain(1, 5)
    assert 10 < restoring.clock.monotonic() < WAIT_SECONDS


def test_a_store_whose_clock_is_ahead_of_ours_is_waited_for_no_longer(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.clock.advance(3600)
    restoring.archive.segment(1, 5, stored=False)
    restoring.planned(make_plan())

    class Behind(FaultyStore):
        def now(self):  # type: ignore[no-untyped-def] # noqa: ANN202
            return MADE_AT

    restoring.store = Behind(restoring.memory, "", restoring.clock)
    assert restoring.ask((1, 5)) is None
    assert restoring.clock.monotonic() <= 3600 + WAIT_SECONDS + 2


@pytest.mark.rule(56)
@pytest.mark.parametrize(
    ("name", "calls"),
    [(segment_name(1, 3), 8), ("00000002.history", 7), (f"{segment_name(1, 3)}.00000028.backup", 3)],
    ids=["segment", "history", "backup"],
)
def test_store_down_is_never_missing(restoring: Restoring, name: str, calls: int) -> None:
    """Whichever call fails on the way to "missing": it is said only when none did."""
    restoring.archive.history(5, (1, 2 * MIB))
    restoring.memory.put(f"base/{BACKUP_ID}/backup.json", b"{")
    restoring.planned(make_plan())
    for number in range(1, calls + 1):
        for effect, error in (("unavailable", StoreUnavailableError), ("denied", AccessError), ("broken", StoreError)):
            restoring.store = FaultyStore(restoring.memory, f"*:{number}:{effect}", restoring.clock)
            with pytest.raises(error):
                restoring.ask(name)
    restoring.store = FaultyStore(restoring.memory, f"*:{calls + 1}:denied", restoring.clock)
    assert restoring.ask(name) is None


@pytest.mark.rule(56)
def test_login_refused_is_never_missing(restoring: Restoring) -> None:
    restoring.planned(make_plan(timeline=2, ancestors=[(1, 5 * MIB)]))
    restoring.store = FaultyStore(restoring.memory, "get:1+:denied", restoring.clock)
    for name in ("00000002.history", "00000003.history", segment_name(1, 3)):
        with pytest.raises(AccessError):
            restoring.ask(name)


# -- what is handed out was checked


Damage = Callable[[Restoring], None]


def swap(restoring: Restoring) -> None:
    ours, theirs = (restoring.archive.key(segment_name(1, number)) for number in (4, 5))
    restoring.memory.put(ours, restoring.memory.get(theirs))


def of_another_cluster(restoring: Restoring) -> None:
    restoring.archive.system_id = "7000000000000000001"
    name = segment_name(1, 4)
    header = restoring.archive.header(name, plain(1, 4))
    restoring.archive.system_id = SYSTEM
    restoring.archive.put(name, header, plain(1, 4))


def of_another_repository(restoring: Restoring) -> None:
    name = segment_name(1, 4)
    header = replace(restoring.archive.header(name, plain(1, 4)), repository_id=bytes(16))
    restoring.archive.put(name, header, plain(1, 4))


def of_another_timeline(restoring: Restoring) -> None:
    header = restoring.archive.header(segment_name(2, 4), plain(1, 4))
    restoring.archive.put(segment_name(1, 4), header, plain(1, 4))


def a_partial(restoring: Restoring) -> None:
    header = replace(restoring.archive.header(segment_name(1, 4), plain(1, 4)), kind=ObjectKind.PARTIAL)
    restoring.archive.put(segment_name(1, 4), header, plain(1, 4))


def short(restoring: Restoring) -> None:
    half = plain(1, 4)[: MIB // 2]
    restoring.archive.put(segment_name(1, 4), restoring.archive.header(segment_name(1, 4), half), half)


def other_bytes(restoring: Restoring) -> None:
    restoring.archive.put(segment_name(1, 4), restoring.archive.header(segment_name(1, 4), plain(1, 4)), plain(1, 5))


def truncated(restoring: Restoring) -> None:
    key = restoring.archive.key(segment_name(1, 4))
    restoring.memory.put(key, restoring.memory.get(key)[:-10])


def cut_in_the_header(restoring: Restoring) -> None:
    key = restoring.archive.key(segment_name(1, 4))
    restoring.memory.put(key, restoring.memory.get(key)[:100])


def empty(restoring: Restoring) -> None:
    restoring.memory.put(restoring.archive.key(segment_name(1, 4)), b"")


def zeroed(restoring: Restoring) -> None:
    key = restoring.archive.key(segment_name(1, 4))
    restoring.memory.put(key, bytes(len(restoring.memory.get(key))))


DAMAGES: list[Damage] = [
    swap, of_another_cluster, of_another_repository, of_another_timeline, a_partial, short, other_bytes, truncated,
    cut_in_the_header, empty, zeroed,
]  # fmt: skip


@pytest.mark.rule(8)
@pytest.mark.rule(57)
@pytest.mark.parametrize("damage", DAMAGES)
def test_swapped_segments(restoring: Restoring, damage: Damage) -> None:
    """W4: whatever lies at the name and is not its segment is refused, and nothing is left behind for PostgreSQL to find."""
    restoring.archive.segments(1, 3, 6)
    damage(restoring)
    restoring.planned(make_plan(last=(1, 6)))
    assert restoring.ask((1, 3)) == plain(1, 3)
    with pytest.raises(IntegrityError, match=segment_name(1, 4)):
        restoring.ask((1, 4))
    assert not restoring.target.exists()
    assert sorted(path.name for path in restoring.spool().folder.iterdir()) == ["asked"]
    assert restoring.links == [segment_name(1, 3)]


def test_every_flipped_byte_of_a_header_is_refused(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.planned(make_plan(last=(1, 4)))
    assert restoring.ask((1, 3)) == plain(1, 3)
    key = restoring.archive.key(segment_name(1, 4))
    whole = restoring.memory.get(key)
    for at in range(144):
        restoring.memory.put(key, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((IntegrityError, WalGapError)):
            restoring.ask((1, 4))


def test_either_name_of_an_object_will_do(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 3)
    key = restoring.archive.key(segment_name(1, 3))
    restoring.memory.put(f"{key}.age", restoring.memory.get(key))
    restoring.memory.delete([key])
    opened: list[str] = []

    def opener(chunks, key):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        opened.append(key)
        return iter(chunks)

    restoring.opener = opener
    restoring.planned(make_plan())
    assert restoring.ask((1, 3)) == plain(1, 3)
    assert opened == [f"{key}.age"]


# -- links, W8


@pytest.mark.rule(10)
def test_other_history_behind_a_pruned_edge(restoring: Restoring) -> None:
    """A copy that was set back archived the names anew, up to the first that was still there: these two do not link."""
    restoring.archive.segments(1, 3, 5)
    restoring.archive.links.clear()
    restoring.archive.segments(1, 3, 4, writer="a copy")
    restoring.planned(make_plan(last=(1, 5)))
    restoring.ask((1, 3))
    restoring.ask((1, 4))
    with pytest.raises(WalGapError, match="000000010000000000000005 does not follow"):
        restoring.ask((1, 5))


def test_links_are_compared_whichever_was_asked_for_first(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 6)
    restoring.archive.segment(1, 4, writer="a copy")
    restoring.planned(make_plan(last=(1, 6)))
    restoring.ask((1, 5))
    with pytest.raises(WalGapError, match="000000010000000000000005 does not follow"):
        restoring.ask((1, 4))


def test_a_segment_is_handed_out_again(restoring: Restoring) -> None:
    """PostgreSQL asks for the checkpoint's segment, then for earlier ones, then for the last one again."""
    restoring.archive.segments(1, 3, 6)
    restoring.planned(make_plan(last=(1, 6)))
    for number in (5, 3, 4, 5, 6, 6):
        assert restoring.ask((1, number)) == plain(1, number)
    assert len(restoring.links) == 4


def test_a_segment_that_changed_since_it_was_handed_out(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 3)
    restoring.planned(make_plan())
    restoring.ask((1, 3))
    restoring.archive.segment(1, 3, writer="somebody else")
    with pytest.raises(WalGapError, match="not the one that this restore took before"):
        restoring.ask((1, 3))


def test_no_link_links_to_nothing(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 3)
    restoring.archive.segment(1, 4, previous=NO_LINK)
    restoring.planned(make_plan(last=(1, 4)))
    restoring.ask((1, 3))
    with pytest.raises(WalGapError):
        restoring.ask((1, 4))


def test_first_has_nothing_to_fit_to(restoring: Restoring) -> None:
    restoring.archive.segment(1, 2, writer="somebody else")
    restoring.archive.segment(1, 3, previous=NO_LINK)
    restoring.planned(make_plan())
    restoring.ask((1, 2))
    assert restoring.ask((1, 3)) == plain(1, 3)


def test_late_segment_heals_the_chain(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 3)
    restoring.archive.segment(1, 4, previous=NO_LINK)
    restoring.archive.link(1, 4, restoring.archive.links[segment_name(1, 3)])
    restoring.planned(make_plan(last=(1, 4)))
    restoring.ask((1, 3))
    assert restoring.ask((1, 4)) == plain(1, 4)


def test_a_link_of_another_segment_is_refused(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 3)
    restoring.archive.segment(1, 4, previous=NO_LINK)
    restoring.archive.link(1, 5, restoring.archive.links[segment_name(1, 3)])
    forged, ours = (keys.archive_key(SYSTEM, segment_name(1, number), keys.LINK) for number in (5, 4))
    restoring.memory.put(ours, restoring.memory.get(forged))
    restoring.planned(make_plan(last=(1, 4)))
    with pytest.raises(IntegrityError, match=r"04\.link does not belong there"):
        restoring.ask((1, 4))


def test_a_link_for_other_bytes_is_refused(restoring: Restoring) -> None:
    """It was put for another plaintext of that name, whose claim is gone."""
    restoring.archive.segments(1, 3, 3)
    restoring.archive.link(1, 4, restoring.archive.links[segment_name(1, 3)])
    restoring.archive.segment(1, 4, previous=NO_LINK, writer="somebody else")
    restoring.planned(make_plan(last=(1, 4)))
    with pytest.raises(IntegrityError, match="speaks of another segment"):
        restoring.ask((1, 4))


def test_the_first_segment_of_a_timeline_fits_to_the_history_alone(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 5)
    restoring.archive.segments(2, 5, 6)
    restoring.planned(make_plan(timeline=2, ancestors=[(1, 5 * MIB + 100)]))
    for name in ((1, 3), (1, 4), (2, 5), (2, 6)):
        assert restoring.ask(name) == plain(*name)


def test_a_line_that_was_broken_off_is_ignored(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 5)
    restoring.planned(make_plan(last=(1, 5)))
    restoring.ask((1, 3))
    with (restoring.restore_folder / LINKS).open("a") as file:
        file.write(segment_name(1, 4)[:20])
    assert restoring.ask((1, 4)) == plain(1, 4)
    assert restoring.links == [segment_name(1, 3), segment_name(1, 4)]


@pytest.mark.rule(56)
@pytest.mark.parametrize("name", [LINKS])
def test_without_the_list_of_links_nothing_is_handed_out(restoring: Restoring, name: str) -> None:
    restoring.archive.segments(1, 3, 5)
    restoring.planned(make_plan())
    (restoring.restore_folder / name).unlink()
    with pytest.raises(ClipperError, match="cannot open") as found:
        restoring.ask((1, 3))
    assert fetch_code_of(found.value.exit_code, standby=False) == 201
    assert not restoring.target.exists()


def test_the_line_is_written_before_the_rename(restoring: Restoring) -> None:
    """A fetch that is killed between the two leaves a link without its segment, never the other way round."""
    restoring.archive.segments(1, 3, 3)
    restoring.planned(make_plan())
    with pytest.raises(ClipperError, match="No such file or directory"):
        restoring.fetch().answer(segment_name(1, 3), restoring.pg_wal / "no folder" / "RECOVERYXLOG")
    assert restoring.links == [segment_name(1, 3)]
    assert restoring.ask((1, 3)) == plain(1, 3)
    assert restoring.links == [segment_name(1, 3)]


# -- histories


def test_the_targets_own_history(restoring: Restoring) -> None:
    text = restoring.archive.history(2, (1, 5 * MIB))
    restoring.planned(make_plan(timeline=2, ancestors=[(1, 5 * MIB)]))
    assert restoring.ask("00000002.history") == text


def test_the_targets_own_history_is_missing(restoring: Restoring) -> None:
    restoring.archive.history(2, (1, 5 * MIB), stored=False)
    restoring.planned(make_plan(timeline=2, ancestors=[(1, 5 * MIB)]))
    with pytest.raises(WalGapError, match=r"00000002\.history"):
        restoring.ask("00000002.history")


@pytest.mark.rule(87)
@pytest.mark.parametrize("how", ["sealed to a key that is gone", "damaged", "missing"])
def test_the_base_backups_own_line_stands_for_a_history_that_cannot_be_read(restoring: Restoring, how: str) -> None:
    """Histories stay for ever, the keys that they were sealed to do not."""
    restoring.archive.history(3, (1, 3 * MIB), (2, 5 * MIB), stored=how != "missing")
    restoring.planned(msgspec.structs.replace(make_plan(timeline=3, ancestors=[(1, 3 * MIB), (2, 5 * MIB)]), line_recorded=True))
    if how == "damaged":
        restoring.memory.put(keys.history_key(SYSTEM, Timeline(3), keys.STORED), b"x" * 200)
    elif how != "missing":
        key = keys.history_key(SYSTEM, Timeline(3), keys.STORED)
        restoring.memory.put(key + SEALED, b"".join(seal([restoring.memory.get(key)], [Identity.make().recipient])))
        restoring.memory.delete([key])
        restoring.opener = lambda chunks, name: unseal(chunks, [Identity.make()], name)
    told = restoring.ask("00000003.history")
    assert told is not None
    assert parse_history(told, "00000003.history") == [Ancestor(Timeline(1), Lsn(3 * MIB)), Ancestor(Timeline(2), Lsn(5 * MIB))]


@pytest.mark.parametrize("ancestors", [((1, 4 * MIB),), ((1, 3 * MIB), (2, 4 * MIB))])
def test_the_targets_own_history_is_damaged(restoring: Restoring, ancestors: tuple[tuple[int, int], ...]) -> None:
    restoring.archive.history(3, *ancestors)
    restoring.planned(make_plan(timeline=3, ancestors=[(1, 5 * MIB)]))
    with pytest.raises(IntegrityError, match="not the one that this restore was planned with"):
        restoring.ask("00000003.history")
    restoring.memory.put(keys.history_key(SYSTEM, Timeline(3), keys.STORED), b"x" * 200)
    with pytest.raises(IntegrityError):
        restoring.ask("00000003.history")


@pytest.mark.rule(55)
def test_timeline_1_has_no_history(restoring: Restoring) -> None:
    restoring.planned(make_plan())
    assert restoring.ask("00000001.history") is None


@pytest.mark.rule(55)
def test_a_number_that_nobody_ever_took(restoring: Restoring) -> None:
    restoring.archive.history(2, (1, 5 * MIB))
    restoring.planned(make_plan())
    assert restoring.ask("00000003.history") is None


def lost(restoring: Restoring) -> None:
    restoring.archive.lose("00000002.history")


def lost_with_its_claim(restoring: Restoring) -> None:
    restoring.archive.segment(2, 5)
    restoring.archive.lose("00000002.history", keys.STORED, keys.CLAIM)


def damaged(restoring: Restoring) -> None:
    restoring.memory.put(keys.history_key(SYSTEM, Timeline(2), keys.STORED), b"x" * 200)


def sealed_to_others(restoring: Restoring) -> None:
    def refuse(chunks, key):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        raise AccessError(f"{key} is sealed to other keys")

    restoring.opener = refuse


def of_a_backup_only(restoring: Restoring) -> None:
    restoring.archive.lose("00000002.history", keys.STORED, keys.CLAIM)
    restoring.memory.put(f"base/{BACKUP_ID}/backup.json", encode(summary(timeline=2)))
    restoring.memory.put("base/20261122-010000-00000000/intent.json", b"{}")
    restoring.memory.put("base/20261122-010000-00000001/backup.json", b"{")


@pytest.mark.rule(6)
@pytest.mark.parametrize("loss", [lost, lost_with_its_claim, damaged, sealed_to_others, of_a_backup_only])
def test_final_probe_meets_a_lost_history(restoring: Restoring, loss: Damage) -> None:
    """W10: it ends no recovery that is done, and its number is not taken again."""
    restoring.archive.history(2, (1, 5 * MIB))
    loss(restoring)
    restoring.planned(make_plan())
    made = restoring.ask("00000002.history")
    assert made == b"# clipper-backup: the history of timeline 2 cannot be read; its number stays taken\n"
    assert made == made_history(Timeline(2))
    assert restoring.ask("00000003.history") is None


def test_a_history_of_another_timeline_is_handed_out(restoring: Restoring) -> None:
    text = restoring.archive.history(7, (1, 5 * MIB), (4, 6 * MIB))
    restoring.planned(make_plan())
    assert restoring.ask("00000007.history") == text


def summary(timeline: int) -> BaseSummary:
    return BaseSummary(
        id=BACKUP_ID, repository_id=REPOSITORY, system_number=1, system_id=SYSTEM, begun_at=MADE_AT, finished_at=MADE_AT,
        versions=BaseVersions(software="a test", server="15.18", server_major=15, control=1300, catalog=202209061),
        source="protocol", from_standby=False, timeline=timeline, start_lsn=str(Lsn(MIB)), stop_lsn=str(Lsn(2 * MIB)),
        stopped_at=MADE_AT, first_segment=segment_name(timeline, 1), last_segment=segment_name(timeline, 1),
        sizes=Sizes(page_bytes=8192, wal_page_bytes=8192, segment_bytes=MIB, relation_segment_pages=131072), checksums=True,
        settings=ServerSettings(max_connections=1, max_worker_processes=1, max_wal_senders=1, max_prepared_transactions=0,
                                max_locks_per_transaction=64, wal_level="replica"),
        parent=None, files=0, plain_bytes=0, stored_bytes=0, pages=PageCounts(), objects=[], warnings=0,
    )  # fmt: skip


# -- other names


def test_a_backup_history_file(restoring: Restoring) -> None:
    name = f"{segment_name(1, 3)}.00000028.backup"
    restoring.planned(make_plan())
    assert restoring.ask(name) is None
    restoring.archive.backup_label(name, b"START WAL LOCATION: 0/300028\n")
    assert restoring.ask(name) == b"START WAL LOCATION: 0/300028\n"


@pytest.mark.rule(7)
def test_a_partial_is_never_handed_out(restoring: Restoring) -> None:
    """W6: also where it lies in the archive."""
    restoring.archive.segments(1, 3, 3)
    restoring.memory.put(f"wal/{SYSTEM}/00000001/0000000100000000/{segment_name(1, 4)}.partial-{'0' * 16}.zst", b"x")
    restoring.planned(make_plan())
    assert restoring.ask(f"{segment_name(1, 4)}.partial") is None
    assert restoring.ask((1, 4)) is None


@pytest.mark.rule(5)
@pytest.mark.parametrize("name", ["RECOVERYXLOG", "", "../../etc/passwd", "00000000.history", "backup_label"])
def test_any_other_name_is_usage(restoring: Restoring, name: str) -> None:
    restoring.planned(make_plan())
    with pytest.raises(UsageError) as found:
        restoring.ask(name)
    assert fetch_code_of(found.value.exit_code, standby=False) == 202


# -- signatures, S4


def test_forged_segment_refused(restoring: Restoring) -> None:
    signer, forger = SigningKey.make(), SigningKey.make()
    restoring.archive.segments(1, 3, 5)
    for number, key in ((3, signer), (4, forger)):
        name = segment_name(1, number)
        previous = restoring.archive.links[segment_name(1, 3)] if number == 4 else NO_LINK
        header = restoring.archive.header(name, plain(1, number), previous=previous)
        raw = key.key.public_key().public_bytes_raw()
        restoring.archive.put(name, header.signed(raw, key.sign), plain(1, number))
    restoring.planned(make_plan(last=(1, 5)))
    restoring.trusted = (signer.public,)
    assert restoring.ask((1, 3)) == plain(1, 3)
    for unsigned in ((1, 4), (1, 5)):
        with pytest.raises(IntegrityError, match="not signed by any of SIGNATURE_KEYS"):
            restoring.ask(unsigned)


# -- standbys


def test_a_standby_follows_the_newest_timeline(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 6)
    assert restoring.ask_as_standby((1, 3)) == plain(1, 3)
    text = restoring.archive.history(2, (1, 5 * MIB + 7))
    restoring.archive.segments(2, 5, 5)
    assert restoring.ask_as_standby("00000002.history") == text
    assert restoring.ask_as_standby((1, 4)) == plain(1, 4)
    assert restoring.ask_as_standby((2, 5)) == plain(2, 5)
    with pytest.raises(WalGapError):
        restoring.ask_as_standby((1, 5))
    assert restoring.ask_as_standby((2, 6)) is None
    assert restoring.ask_as_standby("00000003.history") is None
    assert list(restoring.pg_wal.iterdir()) == [], "nothing is left there"


def test_a_standby_waits_for_a_history_that_is_gone(restoring: Restoring) -> None:
    """On timeline 1 it would go where the primary is not, and say nothing."""
    restoring.archive.segments(1, 3, 6)
    restoring.archive.segments(2, 5, 5)
    with pytest.raises(WalGapError, match="2 has WAL or a base backup here, and nobody has archived its history"):
        restoring.ask_as_standby((1, 3))
    restoring.archive.history(2, (1, 5 * MIB + 7))
    assert restoring.ask_as_standby((1, 3)) == plain(1, 3)


def test_a_standby_compares_links_with_the_claim_before(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 5)
    restoring.archive.segment(1, 4, writer="a copy")
    assert restoring.ask_as_standby((1, 3)) == plain(1, 3)
    with pytest.raises(WalGapError, match="000000010000000000000005 does not follow"):
        restoring.ask_as_standby((1, 5))


def test_a_standby_is_given_no_made_history(restoring: Restoring) -> None:
    restoring.archive.history(2, (1, 5 * MIB), stored=False)
    assert restoring.ask_as_standby("00000002.history") is None


@pytest.mark.rule(98)
@pytest.mark.parametrize("status", ["ready   ", "standby "])
def test_a_standby_stays_when_a_restore_was_opened_beside_it(restoring: Restoring, status: str) -> None:
    """It must not follow the timeline of that restore, and not take its number either when it is promoted."""
    restoring.archive.segments(1, 3, 4)
    restoring.archive.history(2, (1, 5 * MIB + 7))
    restoring.archive.segments(1, 5, 7)
    running = restoring.folder / "postmaster.pid"
    written = ["7", str(restoring.folder), "1795000000", "5432", "/tmp", "", " 1 2"]
    running.write_text("\n".join([*written, "starting", ""]))
    assert restoring.ask_as_standby("00000002.history") is None
    running.write_text("\n".join([*written, status, ""]))
    for number in range(3, 8):
        assert restoring.ask_as_standby((1, number)) == plain(1, number)
    assert restoring.ask_as_standby("00000002.history") == made_history(Timeline(2))
    assert restoring.ask_as_standby("00000003.history") is None, "the number that it takes when it is promoted"

    kept = restoring.pg_wal / "00000002.history"  # PostgreSQL keeps it
    kept.write_bytes(made_history(Timeline(2)))
    running.unlink()
    assert restoring.ask_as_standby("00000002.history") is None
    assert not kept.exists()
    kept.write_bytes(b"1\t0/500007\twhat PostgreSQL wrote\n")
    assert restoring.ask_as_standby("00000002.history") is None
    assert kept.exists()


def test_a_standby_follows_over_numbers_that_hold_nothing(restoring: Restoring) -> None:
    """PostgreSQL looks no further than the first number that is not there."""
    restoring.archive.segments(1, 3, 5)
    tested = restoring.archive.history(2, (1, 4 * MIB))
    restoring.archive.history(3, (1, 6 * MIB))
    restoring.archive.segment(3, 6)
    assert restoring.ask_as_standby("00000002.history") == tested
    assert restoring.ask_as_standby((3, 6)) == plain(3, 6)


# -- exit codes


@pytest.mark.rule(56)
@pytest.mark.parametrize(
    ("code", "planned", "standby"), [(0, 0, 0), (44, 44, 1), (1, 201, 1), (2, 202, 1), (12, 212, 1), (13, 213, 1), (14, 214, 1),
                                     (143, 143, 1)]
)  # fmt: skip
def test_exit_codes_of_fetch(code: int, planned: int, standby: int) -> None:
    assert fetch_code_of(code, standby=False) == planned
    assert fetch_code_of(code, standby=True) == standby
