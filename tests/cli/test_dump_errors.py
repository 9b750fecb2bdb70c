"""What `release` and `dump restore` say to what they cannot use: a dump that is not there, a name that is too long."""

from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.store.local import LocalStore
from fixtures.catalog import make_dump, make_unfinished
from fixtures.cli import RunCli


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "repository")
    open_or_create_repository(store, SystemClock(), "a test")
    return store


def test_a_dump_that_is_not_held_is_not_released(run_cli: RunCli, store: LocalStore) -> None:
    for dump_id in (make_dump(store), make_unfinished(store)):
        outcome = run_cli("release", str(dump_id), env={"BACKUP_URL": store.url})
        assert (outcome.code, outcome.stdout) == (15, "")
        assert outcome.stderr == f"error: the dump {dump_id} is not held\n"


def test_a_dump_that_does_not_exist_is_not_said_to_be_without_a_hold(run_cli: RunCli, store: LocalStore) -> None:
    outcome = run_cli("release", "postgres-backup-20200101-020000", env={"BACKUP_URL": store.url})
    assert (outcome.code, outcome.stdout) == (15, "")
    assert outcome.stderr.splitlines() == [
        "error: there is no dump postgres-backup-20200101-020000",
        "HINT: `clipper-backup dump list` shows them",
    ]


@pytest.mark.parametrize("name", ["", "x" * 64, "ä" * 32], ids=["none", "64 letters", "32 letters of two bytes"])
def test_a_name_that_postgresql_would_cut_is_refused_with_its_limit(run_cli: RunCli, store: LocalStore, name: str) -> None:
    outcome = run_cli("dump", "restore", str(make_dump(store)), "--into", name, env={"BACKUP_URL": store.url})
    assert (outcome.code, outcome.stdout) == (2, "")
    error, hint = outcome.stderr.splitlines()
    assert error == f"error: {name!r} is no name for a database: PostgreSQL keeps 63 bytes"
    assert "1 to 63 bytes" in hint
