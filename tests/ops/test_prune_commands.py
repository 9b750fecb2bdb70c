"""`prune`, `hold` and `release` of base backups as a person types them, over a folder that has grown for three weeks."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.format import physical_names as names
from clipper_backup.values import BackupId
from fixtures.base_repository import copy_into, days, make_repository, put_backup, put_segments
from fixtures.cli import RunCli
from fixtures.stores import StorePlace


@pytest.fixture
def made(local_place: StorePlace) -> list[BackupId]:
    """Three weeks of weekly backups, each with a segment more, up to now."""
    clock = VirtualClock(datetime.now(UTC) - timedelta(days=21))
    store = make_repository(clock)
    made: list[BackupId] = []
    for week in range(4):
        made.append(put_backup(store, start=10 * week, own=(0, 1), adopted={made[-1]: (0,)} if made else {}, wal=True))
        put_segments(store, 10 * week + 1, 10 * week + 9)
        days(clock, 7 if week < 3 else 0)
    copy_into(store, Path(local_place.url.removeprefix("file://")))
    return made


def test_what_would_go_goes(run_cli: RunCli, local_place: StorePlace, made: list[BackupId]) -> None:
    planned = run_cli("prune", "--dry-run", "--json", env=local_place.environment, check=True).document
    assert [(item["id"], item["keep"], item["reason"]) for item in planned["items"]] == [
        (str(made[0]), False, "21 days old: the window needs it no more"),
        (str(made[1]), True, "the window of timeline 1 begins with it"),
        (str(made[2]), True, "within the window"),
        (str(made[3]), True, "the newest good one"),
    ]
    assert (planned["wal_segments"], planned["packs_doomed"], planned["packs_deleted"]) == (10, 0, 0)
    asked = run_cli("prune", env=local_place.environment)
    assert asked.code == 2
    assert "nobody to ask: Remove 1 of 4 base backups, 10 WAL segments?" in asked.stderr
    done = run_cli("prune", "--yes", env=local_place.environment, check=True).stdout
    assert re.search(f"{made[0]} +removed", done)
    assert "restorable before" in done
    assert "proven: 3 good base backups stay, with all that is needed" in done
    assert "WAL: 10 segments removed, 4.0 kB" in done
    assert "packs and keys: 1 no longer needed, deleted by a prune a day from now or later" in done


def test_held_it_stays_until_it_is_released(run_cli: RunCli, local_place: StorePlace, made: list[BackupId]) -> None:
    held = str(made[0])
    answer = run_cli("hold", held, "--wal-to", "1:0/500000", "--json", env=local_place.environment, check=True).document
    assert answer == {"schema": 1, "id": held, "held": True}
    planned = run_cli("prune", "--dry-run", "--json", env=local_place.environment, check=True).document
    assert planned["items"][0]["reason"] == "held"
    assert planned["wal_segments"] == 5
    answer = run_cli("release", held, "--json", env=local_place.environment, check=True).document
    assert answer == {"schema": 1, "id": held, "held": False}
    assert run_cli("release", held, env=local_place.environment).code == 15


def test_what_is_not_there_of_a_held_one_is_exit_3(run_cli: RunCli, local_place: StorePlace, made: list[BackupId]) -> None:
    (Path(local_place.url.removeprefix("file://")) / names.pack_key(made[0], 0)).unlink()
    told = run_cli("hold", str(made[0]), env=local_place.environment)
    assert told.code == 3
    assert f"{made[0]} is held, and not whole: {names.pack_key(made[0], 0)} is missing from the store" in told.stderr


def test_what_cannot_be_read_is_exit_13_and_dumps_are_pruned_all_the_same(
    run_cli: RunCli, local_place: StorePlace, made: list[BackupId]
) -> None:
    folder = Path(local_place.url.removeprefix("file://"))
    (folder / "database").mkdir()
    (folder / "database/postgres-backup-20200101-000000.intent").write_text("{}")
    os.utime(folder / "database/postgres-backup-20200101-000000.intent", (0, 0))
    (folder / names.base_key(made[3], names.PACKS)).unlink()
    told = run_cli("prune", "--yes", env=local_place.environment)
    assert told.code == 13
    assert re.search("postgres-backup-20200101-000000 +removed", told.stdout)
    assert names.base_key(made[3], names.PACKS) in told.stderr
    assert (folder / names.base_key(made[0], names.BASE_SUMMARY)).exists()


def test_a_dump_needs_no_wal(run_cli: RunCli, local_place: StorePlace, made: list[BackupId]) -> None:
    told = run_cli("hold", "latest", "--wal-to", "1:0/1", env=local_place.environment)
    assert told.code == 2
    assert "--wal-to goes with a base backup" in told.stderr
