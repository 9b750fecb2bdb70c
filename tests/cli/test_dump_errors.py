"""What commands say to what they cannot use: a dump that is not there, a name that is too long, a folder without room."""

import json
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.format import names
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
        assert outcome.stderr.splitlines() == [
            f"error: the dump {dump_id} is not held",
            "HINT: `clipper-backup dump list` shows which are held",
        ]


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


def test_no_job_at_all_restores_nothing(run_cli: RunCli) -> None:
    outcome = run_cli("dump", "restore", "latest", "--into", "x", "--jobs", "0")
    assert (outcome.code, outcome.stdout) == (2, "")
    error, hint = outcome.stderr.splitlines()
    assert error == "error: --jobs must be at least 1, not 0"
    assert hint.startswith("HINT: ")


def test_a_folder_that_cannot_take_a_dump_is_named_with_what_it_takes(run_cli: RunCli, store: LocalStore, tmp_path: Path) -> None:
    dump_id = make_dump(store)
    (tmp_path / "file").touch()
    words = ["dump", "fetch", str(dump_id), "--to", "file/inside"]
    for wrong, needs in (("cannot write to file/inside: Not a directory", "157 B"), ("the dump needs 1000.0 TB", "1000.0 TB")):
        outcome = run_cli(*words, env={"BACKUP_URL": store.url})
        error, *hints = outcome.stderr.splitlines()
        assert (outcome.code, outcome.stdout) == (1, "")
        assert wrong in error
        assert f"with room for {needs}" in hints[0]
        assert "--as-stored" in hints[1]
        key = names.dump_key(dump_id, names.SUMMARY)
        summary = json.loads(store.get(key))
        summary["objects"][0]["plain_bytes"] = 10**15
        store.put(key, json.dumps(summary).encode())
        words[-1] = "elsewhere"


@pytest.mark.parametrize(("words", "code", "hint"), [
    (["generate", "--output", "nowhere/x"], 1, "is nowhere one?"),
    (["generate", "--output", "."], 2, "--output"),
    (["public", "/"], 1, "name the file itself"),
    (["public", "nothing"], 15, "is the Secret mounted?"),
], ids=["no folder", "a folder", "a folder to read", "no file"])  # fmt: skip
def test_a_path_that_is_no_key_file_is_told_with_a_hint(run_cli: RunCli, words: list[str], code: int, hint: str) -> None:
    outcome = run_cli("key", *words)
    error, *hints = outcome.stderr.splitlines()
    assert (outcome.code, outcome.stdout) == (code, "")
    assert hint in hints[0], error
