"""What a replaced cluster left of a timeline along which the restore does not go: never archived, never followed."""

from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.cli.show_restore import plan_text
from clipper_backup.errors import UsageError
from clipper_backup.ops.restore.left_wal import archive_left, held_of, make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.account import server_account
from clipper_backup.repository.base_backups import read_base_summary
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.store.local import LocalStore
from clipper_backup.values import BackupId, Timeline
from clipper_backup.wal_names import Segment
from fixtures.base import Cluster, Kept, backed_up, work_for
from fixtures.cli import RunCli
from fixtures.keys import Key
from fixtures.restore import World, end_left_running, planned, restored
from fixtures.server_program import server_program
from fixtures.wal_archive import MadeArchive

_STRAY = ("00000002.history", "000000020000000000000077")


def leave(data: Path, name: str, content: bytes = b"what a copy wrote that was opened to try it") -> None:
    """As its server does: ready to be archived."""
    (data / "pg_wal" / name).write_bytes(content)
    (data / "pg_wal/archive_status" / f"{name}.ready").touch()


def read_archived(world: World, segment: Segment) -> bytes:
    summary = read_base_summary(world.work.store, BackupId.parse(world.backups[0]))
    opened = WalReader(
        world.work.store,
        repository_id=summary.repository_id,
        system_id=summary.system_id,
        segment_bytes=segment.size_bytes,
        opener=lambda chunks, _: iter(chunks),
    ).segment(segment)
    assert opened is not None
    return b"".join(opened.chunks)


@pytest.mark.rule(54)
@pytest.mark.rule(62)
def test_no_timeline_becomes_the_newest_because_a_folder_is_replaced(restore_world: World, place: Path) -> None:
    world = restore_world.copied_to(place)
    data = restored(world, place, Target("immediate")).data
    for name in _STRAY:
        leave(data, name)
    request, _ = planned(world, place, Target("immediate"), replace=True)
    latest = replace(request, target=Target("latest"))
    with pytest.raises(UsageError, match=r"2 files are of timeline 2, .*: the restore would go along timeline 1") as caught:
        make_plan(world.reading(), latest)
    assert "--timeline 1" in caught.value.hints[0]
    assert f"wal push {data}/pg_wal/{_STRAY[0]}`" in caught.value.hints[1]
    of_another = "000000030000000000000078"
    leave(data, of_another)
    with pytest.raises(UsageError, match="3 files are of timelines 2 and 3, and never archived"):
        make_plan(world.reading(), latest)
    told = plan_text(request, make_plan(world.reading(), request))
    assert "3 files of the pg_wal there, of timelines 2 and 3: not archived" in told
    for path in (data / "pg_wal" / of_another, data / f"pg_wal/archive_status/{of_another}.ready"):
        path.unlink()

    said = Kept()
    for asked in (request, replace(latest, timeline=Timeline(1))):
        plan = make_plan(world.reading(), asked)
        assert (plan.left, plan.stray) == ((), _STRAY)
        assert archive_left(replace(world.work, emit=said), asked, plan) == plan
    assert len([text for text in said.warnings if "2 files of timeline 2" in text]) == 2
    catalog = WalCatalog(world.work.store, plan.summary.system_id, plan.summary.sizes.segment_bytes)
    assert catalog.timelines() == [Timeline(1)]

    assert held_of(world.work, data, plan) == set()
    for name in _STRAY:
        (data / f"pg_wal/archive_status/{name}.ready").unlink()
    last = plan.wal.segments[-1]
    leave(data, last.name, read_archived(world, last))
    plan = make_plan(world.reading(), latest)
    assert (plan.left, plan.stray) == ((last.name,), ())
    assert held_of(world.work, data, plan) == {last.name}
    archive = MadeArchive(world.work.store, plan.summary.system_id, plan.repository_id, made_at=world.work.clock.now())
    archive.history(2, (1, last.start))
    archive.segment(2, last.number)
    with pytest.raises(UsageError, match="along timeline 2 since the restore was planned along timeline 1"):
        archive_left(world.reading(), latest, plan)
    assert archive_left(world.reading(), replace(latest, timeline=Timeline(1)), plan).way.timeline == 1


def test_what_is_left_of_a_signed_server_is_not_archived_unsigned(
    archived18: Cluster, place: Path, keys: dict[str, Key], run_cli: RunCli
) -> None:
    """Whoever restores has the public key alone: later restores would refuse what he archives."""
    url = {"BACKUP_URL": f"file://{place}/repository", "ARCHIVE_WAIT_SECONDS": "1"}
    writing = work_for(archived18, LocalStore(place / "repository"), None, **url, SIGNING_KEY_FILE=str(keys["signer"].path))
    backed_up(archived18, writing)
    request = Request(place / "data", Target("immediate"), server_account(), program=server_program())
    plan = make_plan(writing, request)
    restore(writing, request, plan)
    leave(request.data, plan.wal.segments[-1].name)
    reading = work_for(archived18, writing.store, None, **url)
    over = replace(request, target=Target("latest"), replace=True)
    with pytest.raises(UsageError, match="no SIGNING_KEY_FILE to sign what is archived"):
        make_plan(reading, over)
    told = replace(over, target=Target("immediate"))
    found = make_plan(reading, told)
    assert found.left == (plan.wal.segments[-1].name,)
    assert archive_left(reading, told, found).left == (), "of what is told to be archived, nothing was"
    assert "no SIGNING_KEY_FILE" in reading.emit.warnings[-1]  # type: ignore[attr-defined]  # a Kept
    assert make_plan(work_for(archived18, writing.store, None, **url, SIGNING_KEY_FILE="none"), over).left == found.left

    # Nor is the history of a server that recovered: it runs, and what is missing is the exit code's to say.
    words = ("restore", "--target-dir", str(place / "new"), "--owner", server_account().name, "--immediate", "--start", "--json")
    done = run_cli(*words, env=url)
    try:
        assert (done.code, done.document["restored"]["history_archived"]) == (3, False)
        assert "00000002.history is not archived" in done.stderr
        assert f"wal push {place / 'new/pg_wal/00000002.history'}`" in done.stderr
    finally:
        end_left_running(done.document)
