"""`wal fetch` as a process: whatever happens to it, it never ends with a code that PostgreSQL takes for the end of the WAL."""

import signal
import socket
import sys
import time

import msgspec
import pytest

from clipper_backup.format.sealing import seal
from clipper_backup.repository.restore_plan import PLAN, keep_plan
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment
from fixtures.cli import PROGRAM, Outcome, RunCli, StartCli
from fixtures.keys import Key
from fixtures.wal_archive import MIB, plain_of, segment_name
from fixtures.wal_restore import WalPlace
from fixtures.wal_world import end_reading_ahead

pytestmark = pytest.mark.soak(share=0.25)

HEAVY = {"cyclopts", "rich", "psycopg", "obstore", "prometheus_client", "cryptography", "pyrage", "numpy", "asyncio"}


def test_it_hands_out_and_says_nothing(wal_place: WalPlace, run_cli: RunCli) -> None:
    outcome = run_cli(*wal_place.words(segment_name(1, 3)))
    assert outcome == Outcome(0, "", "")
    assert wal_place.target.read_bytes() == plain_of(Segment(Timeline(1), 3, MIB))


def test_it_says_where_as_json(wal_place: WalPlace, run_cli: RunCli) -> None:
    outcome = run_cli(*wal_place.words(segment_name(1, 3)), "--json", check=True)
    assert outcome.document == {"schema": 1, "id": segment_name(1, 3), "path": str(wal_place.target)}


def test_the_plans_settings_stand_above_the_environments(wal_place: WalPlace, run_cli: RunCli) -> None:
    env = {"BACKUP_URL": "file:///nonexistent", "CLIPPER_BACKUP_CONFIG": "/nonexistent"}
    assert run_cli(*wal_place.words(segment_name(1, 3)), env={"BACKUP_URL": env["BACKUP_URL"]}).code == 0


@pytest.mark.rule(55)
def test_missing_behind_the_end(wal_place: WalPlace, run_cli: RunCli) -> None:
    assert run_cli(*wal_place.words(segment_name(1, 7))) == Outcome(44, "", "")
    assert run_cli(*wal_place.words("00000001.history")) == Outcome(44, "", "")
    told = run_cli(*wal_place.words(segment_name(1, 7)), "--json")
    assert (told.code, told.lines[0]["exit_code"]) == (44, 44)


@pytest.mark.rule(56)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([segment_name(1, 3)], 202),
        ([segment_name(1, 3), "x", "--unknown"], 202),
        ([segment_name(1, 3), "x"], 202),
        ([segment_name(1, 3), "x", "--standby"], 1),
        (["--ahead", "x"], 202),
    ],
    ids=str,
)
def test_what_cannot_be_asked(run_cli: RunCli, words: list[str], code: int) -> None:
    outcome = run_cli("wal", "fetch", *words)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert outcome.stderr.startswith("error: ")


@pytest.mark.rule(56)
def test_global_flags_may_stand_before(wal_place: WalPlace, run_cli: RunCli) -> None:
    assert run_cli("--quiet", *wal_place.words(segment_name(1, 7))).code == 44
    assert run_cli("--debug", "wal", "fetch").code == 202


@pytest.mark.rule(56)
def test_a_plan_that_cannot_be_used(wal_place: WalPlace, run_cli: RunCli) -> None:
    path = wal_place.restore_folder / PLAN
    whole = path.read_text()
    for text, code in (
        (whole.replace("BACKUP_URL", "BACKUP_URLS"), 202),
        (whole.replace("file:", "flie:"), 202),
        (whole.replace('"schema": 1', '"schema": 2'), 201),
        (whole.replace("restore-plan", "manifest"), 213),
        ("{", 213),
    ):
        path.write_text(text)
        outcome = run_cli(*wal_place.words(segment_name(1, 3)))
        assert outcome.code == code, outcome
    assert not wal_place.target.exists()


@pytest.mark.rule(56)
@pytest.mark.parametrize("module", ["msgspec", "blake3", "backports", "json"])
def test_an_import_that_fails_late(wal_place: WalPlace, run_cli: RunCli, module: str) -> None:
    """Also of what tells errors: then nothing is said, but the code stays."""
    broken = wal_place.folder / "broken"
    broken.mkdir()
    (broken / f"{module}.py").write_text("raise SystemExit(1)\n")
    outcome = run_cli(*wal_place.words(segment_name(1, 7)[:-1] + "3"), "--json", env={"PYTHONPATH": str(broken)})
    assert outcome.code == 201
    assert not wal_place.target.exists() or module == "json"


@pytest.mark.rule(56)
def test_another_restores_plan_is_no_end_of_the_wal(wal_place: WalPlace, run_cli: RunCli) -> None:
    behind = wal_place.words(segment_name(1, 7))
    assert run_cli(*behind, "--plan", wal_place.plan.id).code == 44
    outcome = run_cli(*behind, "--plan=20261122-020000-00000000")
    assert (outcome.code, wal_place.plan.id in outcome.stderr, "--work-dir" in outcome.stderr) == (202, True, True)


@pytest.mark.rule(56)
def test_an_error_that_nobody_foresaw(wal_place: WalPlace, run_cli: RunCli) -> None:
    (wal_place.restore_folder / PLAN).unlink()
    (wal_place.restore_folder / PLAN).mkdir()
    assert run_cli(*wal_place.words(segment_name(1, 3))).code == 201


@pytest.mark.rule(56)
def test_a_full_disk_is_no_end_of_the_wal(wal_place: WalPlace, run_cli: RunCli) -> None:
    limited = ["sh", "-c", 'ulimit -f 64; exec "$@"', "sh", *PROGRAM]
    outcome = run_cli(*wal_place.words(segment_name(1, 3)), program=limited)
    assert outcome.code > 128, outcome
    assert not wal_place.target.exists()


@pytest.mark.rule(56)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_one(wal_place: WalPlace, start_cli: StartCli, number: signal.Signals) -> None:
    """While it waits for a store that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = {"BACKUP_URL": "s3://nobody", "BACKUP_ENDPOINT": f"http://127.0.0.1:{port}"}
        environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        folder = wal_place.folder / "another"
        keep_plan(folder, msgspec.structs.replace(wal_place.plan, settings=settings, environment=environment))
        process = start_cli("wal", "fetch", "--restore-folder", str(folder), segment_name(1, 3), str(wal_place.target))
        connection, _ = silent.accept()
        with connection:
            process.send_signal(number)
            assert process.wait(30) == 128 + number


@pytest.mark.rule(58)
def test_it_leaves_a_reader_behind(wal_place: WalPlace, run_cli: RunCli) -> None:
    """The segments behind are on their way already; it ends with its server."""
    running = wal_place.folder / "data" / "postmaster.pid"
    running.touch()
    try:
        run_cli(*wal_place.words(segment_name(1, 3)), check=True)
        (spool,) = (wal_place.folder / "data" / "pg_wal").glob("clipper-backup-*")
        deadline = time.monotonic() + 30
        while not list(spool.glob(f"{segment_name(1, 6)}.*.*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        wal_place.archive.store.delete([wal_place.archive.key(segment_name(1, number)) for number in range(3, 7)])
        for number in range(4, 7):
            run_cli(*wal_place.words(segment_name(1, number)), check=True)
            assert wal_place.target.read_bytes() == plain_of(Segment(Timeline(1), number, MIB))
    finally:
        running.unlink()
        end_reading_ahead(spool)


@pytest.mark.rule(19)
def test_it_starts_light(wal_place: WalPlace, run_cli: RunCli) -> None:
    code = (
        "import os, sys\n"
        "from clipper_backup.cli import main\n"
        "def leave(code): print(code, *sys.modules); sys.stdout.flush(); ended(code)\n"
        "ended, os._exit = os._exit, leave\n"
        "main.main(sys.argv[1:])\n"
    )
    unwatched = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
    shown = run_cli("-c", code, *wal_place.words(segment_name(1, 3)), program=[sys.executable], env=unwatched)
    code_and_modules = shown.stdout.split()
    assert code_and_modules[0] == "0"
    assert "clipper_backup.ops.wal.fetch" in code_and_modules
    assert set(code_and_modules) & HEAVY == set()


@pytest.mark.rule(56)
def test_what_is_sealed_needs_its_key(wal_place: WalPlace, run_cli: RunCli, keys: dict[str, Key]) -> None:
    store = wal_place.archive.store
    key = wal_place.archive.key(segment_name(1, 3))
    store.put(f"{key}.age", b"".join(seal([store.get(key)], [keys["operator"].public])))
    store.delete([key])
    for settings, code, said in (
        ({}, 212, "there is no identity to open it"),
        ({"ENCRYPTION_IDENTITY_FILE": str(keys["stranger"].path)}, 212, "is sealed to other keys"),
        ({"ENCRYPTION_IDENTITY_FILE": str(keys["recovery"].path.with_name("gone"))}, 215, "there is no key file"),
        ({"ENCRYPTION_IDENTITY_FILE": str(keys["operator"].path)}, 0, ""),
    ):
        folder = wal_place.folder / f"sealed {code} {len(said)}"
        keep_plan(folder, msgspec.structs.replace(wal_place.plan, settings={**wal_place.settings(), **settings}))
        outcome = run_cli("wal", "fetch", "--restore-folder", str(folder), segment_name(1, 3), str(wal_place.target))
        assert outcome.code == code, outcome
        assert said in outcome.stderr
    assert wal_place.target.read_bytes() == plain_of(Segment(Timeline(1), 3, MIB))
