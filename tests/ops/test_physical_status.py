"""What `status` says of base backups and WAL, of archives in every state."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from clipper_backup.cli.show_status import all_problems, status_document, status_text
from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.format import names as dump_names
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import VerifyMark
from clipper_backup.format.documents import KeyCheck, encode
from clipper_backup.ops.physical_status import PhysicalStatus, look_at_physical
from clipper_backup.ops.status import Status, look_at_repository
from clipper_backup.store.local import LocalStore
from clipper_backup.store.metering import MeteringStore
from clipper_backup.values import BackupId
from fixtures.base_repository import put_hold
from fixtures.catalog import make_dump
from fixtures.cli import RunCli
from fixtures.golden import Golden
from fixtures.wal_archive import MADE_AT, segment_name
from fixtures.wal_look import MadeRepository

GOLDEN = Path(__file__).parent / "golden"
URL = "file:///backups"


def look(made: MadeRepository) -> tuple[Status, PhysicalStatus | None]:
    return look_at_repository(made.work()), look_at_physical(made.work(), ask_server=False)


def screen(made: MadeRepository) -> str:
    found, physical = look(made)
    return status_text(found, URL, made.settings, physical)


def good_night(made: MadeRepository) -> BackupId:
    made.archive.segments(1, 3, 7)
    make_dump(made.store)
    return BackupId.parse(made.backup(1, 3, 4).id)


def _whole(made: MadeRepository) -> None:
    backup = good_night(made)
    put_hold(made.store, backup)
    mark = VerifyMark(id=str(backup), verified_at=MADE_AT, share=0.05, damage=[])
    made.store.put(names.base_key(backup, names.VERIFY), encode(mark))
    made.days(1)


def _gap(made: MadeRepository) -> None:
    good_night(made)
    made.days(1)
    made.backup(1, 7, 7)
    made.archive.lose(segment_name(1, 6))


def _unled(made: MadeRepository) -> None:
    good_night(made)
    made.archive.lose(segment_name(1, 6))


def _late(made: MadeRepository) -> None:
    good_night(made)
    made.days(9)


@pytest.mark.parametrize("fill", [_whole, _gap, _unled, _late], ids=["whole", "gap", "unled", "late"])
def test_what_a_person_reads(golden: Golden, fill: Callable[[MadeRepository], None]) -> None:
    made = MadeRepository()
    fill(made)
    golden(GOLDEN / f"status-{fill.__name__.strip('_')}.txt", screen(made))


def test_the_first_line_is_the_window_and_the_dumps_have_a_row() -> None:
    made = MadeRepository()
    good_night(made)
    first, *rows = screen(made).splitlines()
    assert first.startswith("RECOVERABLE to every instant from 2026-11-22 02:00:00Z to ")
    assert any(row.startswith("by dumps:") and "to the moment of 1 dump" in row for row in rows)
    assert all_problems(*look(made)) == []


def test_without_base_backups_it_says_that_it_is_off() -> None:
    made = MadeRepository()
    make_dump(made.store)
    assert look(made)[1] is None
    assert "instants:    off: no base backup and no WAL is here" in screen(made)
    assert status_document(look(made)[0], URL, None)["pitr"] is None


def test_base_backups_alone_are_enough_and_a_missing_dump_is_told_where_one_is_wanted() -> None:
    made = MadeRepository()
    made.archive.segments(1, 3, 7)
    made.backup(1, 3, 4)
    assert screen(made).startswith("RECOVERABLE to every instant from ")
    assert all_problems(*look(made)) == []
    found, physical = look(made)
    (lacking,) = all_problems(replace(found, missing=("shop",)), physical)
    assert lacking == "no good dump holds shop"


def test_an_old_base_backup_a_damaged_one_and_one_without_its_wal_are_problems() -> None:
    made = MadeRepository()
    first = good_night(made)
    made.days(2)
    (old,) = (problem for problem in all_problems(*look(made)) if "base backup" in problem)
    assert old == f"the newest good base backup, {first}, is 2 d 0 h old, more than BASE_MAX_AGE_HOURS (25)"
    second = BackupId.parse(made.backup(1, 5, 6).id)
    made.store.delete([names.base_key(second, names.MANIFEST)])
    assert any(f"the base backup {second} is not good: " in each for each in all_problems(*look(made)))
    made.archive.lose(segment_name(1, 4))
    assert any("no good base backup has all of its WAL" in each for each in all_problems(*look(made)))


def test_what_keeps_everything_from_being_restored_to_the_end_is_told_as_it_is() -> None:
    """No base backup lacks WAL: it is the history of the newest timeline that nobody has."""
    made = MadeRepository()
    good_night(made)
    made.archive.history(2, (1, (7 << 20) + 77))
    made.archive.segment(2, 7)
    made.store.put(made.archive.key("00000002.history"), b"")
    assert "instants:      NOT to the end of the WAL: timeline 2, the newest, cannot be followed" in screen(made)
    assert any("timeline 2, the newest, cannot be followed" in each for each in all_problems(*look(made)))


def test_the_keys_of_base_backups_alone_are_told_with_what_they_opened() -> None:
    """Where nobody takes dumps too: a key that was never shown to open one may be lost."""
    made = MadeRepository()
    made.archive.segments(1, 3, 7)
    backup = made.backup(1, 3, 4, recipients=["age1first", "age1second"])
    never = f"the base backup {backup.id} is sealed, and no key is recorded to have opened one: `key check --identity FILE`"
    assert all_problems(*look(made)) == [never]
    assert "sealed to:     age1first: no check recorded\n               age1second: no check recorded\n" in screen(made)
    check = KeyCheck(
        recipient="age1second", dump_id="", base_backup=backup.id, segment=segment_name(1, 7), checked_at=MADE_AT, checked_by="x"
    )
    made.store.put(f"{dump_names.KEY_CHECKS_FOLDER}age1second", encode(check))
    assert all_problems(*look(made)) == []
    opened = f"opened the base backup {backup.id}, the segment {segment_name(1, 7)} "
    assert f"age1second: {opened}" in screen(made)
    found, physical = look(made)
    keys = {key["id"]: key for key in status_document(found, URL, physical)["keys"]}
    assert keys["age1first"]["checked_base_backup"] is None
    assert (keys["age1second"]["checked_base_backup"], keys["age1second"]["checked_segment"]) == (backup.id, segment_name(1, 7))
    assert keys["age1second"]["checked_dump"] is None


def test_the_window_is_measured_by_what_is_asked() -> None:
    made = MadeRepository()
    good_night(made)
    made.days(6.9)
    assert (physical := look(made)[1]) is not None
    assert not physical.reaches_back
    made.days(0.2)
    assert (physical := look(made)[1]) is not None
    assert physical.reaches_back
    assert physical.now - MADE_AT == timedelta(days=7.1)


def test_it_writes_nothing_and_costs_no_listing_more_where_there_is_more_wal() -> None:
    listings = []
    for last in (5, 60):
        made = MadeRepository()
        made.archive.segments(1, 3, last)
        made.backup(1, 3, 4)
        before = {info.key: info.version for info in made.store.list("")}
        made.store = metered = MeteringStore(made.store)
        assert look(made)[1] is not None
        listings.append(metered.usage()["list"].calls)
        assert {info.key: info.version for info in metered.list("")} == before
    assert listings[0] == listings[1] < 20


def test_exit_codes(run_cli: RunCli, tmp_path: Path) -> None:
    made = MadeRepository(VirtualClock(SystemClock().now()), given=LocalStore(tmp_path / "repository"))
    environment = {"BACKUP_URL": f"file://{tmp_path}/repository"}
    made.archive.segments(1, 3, 5)
    lost = run_cli("status", "--no-server", env=environment)
    assert (lost.code, lost.stdout.splitlines()[0]) == (15, "NOT RECOVERABLE: no good dump is there"), lost
    assert "; and nothing can be restored to the end of the WAL: no good base backup has all of its WAL" in lost.stderr
    assert "`clipper-backup base create` takes a base backup" in lost.stderr
    made.backup(1, 3, 3)
    assert run_cli("status", "--no-server", env=environment).code == 0
    made.clock.advance(1)
    made.backup(1, 5, 5)
    made.archive.lose(segment_name(1, 4))
    gap = run_cli("status", "--no-server", env=environment)
    assert (gap.code, f"the WAL has a gap at {segment_name(1, 4)}" in gap.stderr) == (14, True), gap
