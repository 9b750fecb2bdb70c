"""How `wal status` and `wal verify` look, and how they end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clipper_backup.cli.show_wal import status_text, verify_text
from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.format import physical_names as keys
from clipper_backup.ops.wal.status import wal_status
from clipper_backup.store.local import LocalStore
from fixtures.cli import RunCli
from fixtures.golden import Golden
from fixtures.wal_archive import MIB, SYSTEM, segment_name
from fixtures.wal_look import MadeRepository

GOLDEN = Path(__file__).parent / "golden"


def _with_a_gap(made: MadeRepository) -> None:
    made.archive.segments(1, 3, 7)
    made.backup(1, 3, 4)
    made.days(1)
    made.backup(1, 7, 7)
    made.archive.history(2, (1, 8 * MIB + 77))
    made.archive.segments(2, 8, 9)
    made.archive.segment(2, 10, stored=False)
    made.archive.segments(3, 9, 9)
    made.archive.lose(segment_name(1, 6))
    made.store.put(f"{made.archive.key(segment_name(1, 5))}.age", b"sealed" * 99)


def _whole(made: MadeRepository) -> None:
    made.archive.segments(1, 3, 7)
    made.backup(1, 3, 4)


@pytest.mark.parametrize("fill", [_whole, _with_a_gap], ids=["whole", "gap"])
def test_what_a_person_reads(golden: Golden, fill: Callable[[MadeRepository], None]) -> None:
    made = MadeRepository()
    fill(made)
    name = fill.__name__.strip("_").replace("_", "-")
    golden(GOLDEN / f"status-{name}.txt", status_text(wal_status(made.work(), ask_server=False), "file:///backups"))
    golden(GOLDEN / f"verify-{name}.txt", verify_text(made.verify(read_data=fill is _whole)))


def test_how_they_end(run_cli: RunCli, tmp_path: Path) -> None:
    environment = {"BACKUP_URL": f"file://{tmp_path}/repository"}
    assert run_cli("wal", "status", "--no-server", env=environment).code == 10
    made = MadeRepository(VirtualClock(SystemClock().now()), given=LocalStore(tmp_path / "repository"))
    made.archive.segments(1, 3, 5)
    nothing = run_cli("wal", "status", "--no-server", env=environment)
    assert (nothing.code, "no good base backup has all of its WAL" in nothing.stderr) == (15, True), nothing
    made.backup(1, 3, 4)
    assert run_cli("wal", "status", "--no-server", env=environment).code == 0
    made.store.put(f"wal/9/00000001/0000000100000000/{segment_name(1, 3)}.zst", b"x")
    strange = run_cli("wal", "status", "--no-server", env=environment)
    assert (strange.code, "wal/9/ is of a system" in strange.stderr) == (3, True), strange
    made.archive.segment(1, 7)
    gap = run_cli("wal", "status", "--no-server", env=environment)
    assert (gap.code, "standbys with archive_mode = always leave no such gap" in gap.stderr) == (14, True), gap
    made.archive.lose(segment_name(1, 7), keys.STORED, keys.CLAIM)
    made.store.put(keys.archive_key(SYSTEM, segment_name(1, 4), keys.STORED), b"damaged" * 99)
    damaged = run_cli("wal", "verify", "--read-data", env=environment)
    assert (damaged.code, f"{segment_name(1, 4)}.zst" in damaged.stderr) == (13, True), damaged
