"""What a server says of itself, held against the archive: the timeline it writes on, and what it was told is archived."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_fields

from clipper_backup.format import physical_names as keys
from clipper_backup.ops.wal.server_side import Loss, loss_of, not_followed, not_here
from clipper_backup.ops.wal.status import wal_status
from clipper_backup.postgres.archiver_facts import ArchiverFacts
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.base import Cluster, Kept, backed_up, work_for
from fixtures.postgres import sql
from fixtures.wal_archive import MADE_AT, MIB, SYSTEM, MadeArchive, segment_name
from fixtures.wal_look import MadeRepository

SERVER = ArchiverFacts(
    system_id=SYSTEM, archives=True, lsn=Lsn(8 * MIB), timeline=Timeline(1), ready=0, ready_since=None, ready_bytes=0,
    archived=7, last_archived=segment_name(1, 7), last_archived_at=MADE_AT, failed=0, last_failed=None, last_failed_at=None,
    now=MADE_AT,
)  # fmt: skip


@pytest.fixture
def made() -> MadeRepository:
    """Timeline 1 to segment 7, with a base backup."""
    made = MadeRepository()
    made.archive.segments(1, 3, 7)
    made.backup(1, 3, 4)
    return made


def on(timeline: int) -> ArchiverFacts:
    return replace(SERVER, timeline=Timeline(timeline))


def branch(made: MadeRepository, timeline: int, at: int, *segments: int, of: int = 1) -> None:
    """A timeline that left *of* at the begin of a segment."""
    made.archive.history(timeline, (of, at * MIB))
    for number in segments:
        made.archive.segment(timeline, number)


def followed(made: MadeRepository, server: ArchiverFacts) -> str:
    return not_followed(made.look(), server) or "followed"


def test_a_server_on_the_line_that_a_restore_follows(made: MadeRepository) -> None:
    assert followed(made, on(1)) == "followed"
    assert followed(made, replace(on(2), timeline=None)) == "followed", "a standby writes nothing"
    assert followed(made, replace(on(2), system_id="42")) == "followed", "told otherwise"
    branch(made, 2, 8)
    assert followed(made, on(2)) == "followed", "promoted at the archive's end, no segment filled yet"
    branch(made, 2, 8, 8)
    assert followed(made, on(2)) == "followed"


def test_a_copy_that_archived_one_segment_takes_over_and_the_server_is_told(made: MadeRepository) -> None:
    branch(made, 2, 6, 6)
    told = followed(made, on(1))
    assert told.startswith(
        "the server writes on timeline 1, and a restore to the latest leaves that out: it goes along timeline 2"
    )
    assert f"up to {segment_name(2, 6)}; --timeline 1 names the server's" in told
    assert followed(made, on(2)) == "followed"


def test_a_restored_server_whose_wal_is_not_here_yet_is_not_followed(made: MadeRepository) -> None:
    branch(made, 2, 6)
    assert followed(made, on(2)).endswith("none of its WAL is here yet: SELECT pg_switch_wal() on the server")
    assert followed(made, on(3)).endswith("`clipper-backup wal push pg_wal/00000003.history` on the server")


def test_what_is_to_be_done_for_it_is_what_helps(made: MadeRepository) -> None:
    """Timeline 1 has no history, and one that is there and damaged is not missing."""
    branch(made, 2, 6, 6)
    for number in range(3, 8):
        made.archive.lose(segment_name(1, number), keys.CLAIM)
        made.archive.lose(segment_name(1, number))
    assert followed(made, on(1)).endswith("none of its WAL is here yet: SELECT pg_switch_wal() on the server")
    branch(made, 3, 6)
    made.store.put(keys.history_key(SYSTEM, Timeline(3), keys.CLAIM), b"{}")
    assert "is damaged: " in followed(made, on(3))
    assert "; when its history is missing: " in followed(made, on(3))
    assert "is not in the archive" not in followed(made, on(3))


@pytest.mark.parametrize(
    ("last_archived", "expected"),
    [
        (None, None),
        (segment_name(1, 7), None),
        (segment_name(1, 8), f"it is not here, its timeline ends with {segment_name(1, 7)}: "),
        (f"{segment_name(1, 4)}.00000028.backup", None),
        (f"{segment_name(1, 9)}.00000028.backup", "is archived, and it is not here"),
        ("00000002.history", "00000002.history is archived, and it is not here, nothing of its timeline is: "),
        (f"{segment_name(1, 9)}.partial", None),
        (segment_name(1, 1), None),  # pruned
        (segment_name(2, 9), None),  # of a line that was pruned: the server writes on another
    ],
)
def test_what_the_server_was_told_is_archived_is_there(
    made: MadeRepository, last_archived: str | None, expected: str | None
) -> None:
    told = not_here(made.store, made.look(), replace(SERVER, last_archived=last_archived))
    assert (told is None) is (expected is None)
    assert (expected or "") in (told or "")


def test_what_came_after_the_look_is_there_and_a_claim_alone_is_not(made: MadeRepository) -> None:
    seen, server = made.look(), replace(SERVER, last_archived=segment_name(1, 8))
    made.archive.segment(1, 8, stored=False)
    assert not_here(made.store, seen, server) is not None
    made.archive.segment(1, 8)
    assert not_here(made.store, seen, server) is None
    made.store.put(f"{made.archive.key(segment_name(1, 8))}.age", b"sealed")
    made.archive.lose(segment_name(1, 8))
    assert not_here(made.store, seen, server) is None


def test_a_timeline_of_the_server_of_which_nothing_arrives(made: MadeRepository) -> None:
    branch(made, 2, 8)
    told = not_here(made.store, made.look(), replace(on(2), last_archived=segment_name(2, 8)))
    assert told is not None
    assert "nothing of its timeline is" in told


def claim_later(archive: MadeArchive, timeline: int, number: int) -> None:
    key = keys.archive_key(SYSTEM, segment_name(timeline, number), keys.CLAIM)
    archive.store.put(key, archive.store.get(key).replace(b"2026-11-22T02:00", b"2026-11-22T03:00"))


def test_without_asking_a_server_the_line_that_was_written_on_last_is_told(made: MadeRepository) -> None:
    branch(made, 2, 6, 6)
    assert made.look().problems == []
    claim_later(made.archive, 1, 7)
    (told,) = made.look().problems
    assert told.startswith("timeline 1 was written on after timeline 2, along which a restore to the latest goes, up to ")
    assert told.endswith(f"{segment_name(1, 7)}: the one of your server must be named, --timeline 1 or --timeline 2")
    claim_later(made.archive, 2, 6)
    assert made.look().problems == []


def test_what_lies_on_the_line_itself_may_be_the_newest(made: MadeRepository) -> None:
    branch(made, 2, 8, 8)
    claim_later(made.archive, 1, 7)
    assert made.look().problems == []


def test_a_server_from_before_an_upgrade_is_not_measured_by_the_new_ones_window(made: MadeRepository) -> None:
    """Both are on timeline 1 of their system."""
    seen = made.look()
    assert seen.window is not None
    seen = replace(seen, window=replace(seen.window, to=MADE_AT))
    assert loss_of(seen, SERVER) == Loss(Lsn(8 * MIB), 0, MADE_AT)
    (new,) = seen.systems
    both = replace(seen, systems=[replace(new, entry=replace_fields(new.entry, system_id="42")), new])
    assert loss_of(both, replace(SERVER, system_id="42")) == Loss(Lsn(8 * MIB), 0, None)
    assert loss_of(both, SERVER) == Loss(Lsn(8 * MIB), 0, MADE_AT)


# -- a real server


def _stray(store_of: Callable[[str], MadeArchive], system_id: str, beyond: Segment) -> None:
    """What a private copy leaves that archives: a history, and one segment."""
    archive = store_of(system_id)
    archive.history(2, (1, beyond.number * MIB))
    archive.segment(2, beyond.number)


def test_a_copy_beside_a_server_is_told_by_status_and_by_the_next_base_backup(archived15: Cluster) -> None:
    work = work_for(archived15)
    summary = backed_up(archived15, work).summary
    assert not any("timeline" in each for each in wal_status(work, ask_server=True).problems)
    last = Segment.parse(summary.last_segment, MIB)

    def archive(system_id: str) -> MadeArchive:
        made = MadeArchive(work.store, system_id, summary.repository_id)
        work.store.put("repository.json", before)
        return made

    before = work.store.get("repository.json")
    _stray(archive, summary.system_id, last)
    with archived15.archiving(work):
        sql(archived15.server, "postgres", "SELECT pg_logical_emit_message(false, '', 'x'), pg_switch_wal()")
    assert any(each.startswith("the server writes on timeline 1") for each in wal_status(work, ask_server=True).problems)
    emit = Kept()
    backed_up(archived15, replace(work, emit=emit))
    (told,) = (each for each in emit.warnings if "timeline 2" in each)
    assert told.endswith("a restore to the latest goes along that one")
