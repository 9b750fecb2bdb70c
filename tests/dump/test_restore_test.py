"""`job restore-test`: six lines, both metrics, a report; what fails says at which step, and nothing is ever left."""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clipper_backup.format.documents import RestoreTestReport, decode
from clipper_backup.format.physical_names import RESTORE_TESTS_FOLDER
from fixtures.cli import DEADLINE_SECONDS, PROGRAM, Outcome, RunCli
from fixtures.dump import FAULTS, Site, check_told, parts_of
from fixtures.keys import Key, opening, sealed_to
from fixtures.monitoring import RunningPushgateway
from fixtures.postgres import private_folder, server_binaries, sql
from fixtures.sweeps import chosen

JOB = ("job", "restore-test")
LINES = [
    "Download latest backup",
    "Create test database",
    "Restore backup",
    "Validate data (clip count, user count)",
    "Report RTO metrics",
    "Cleanup",
]
"""As the source document has them."""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that the server's account can enter; at the end nothing is in it, and nobody works in it."""
    with private_folder() as folder:
        yield folder
        until_left(folder)
        assert list(folder.iterdir()) == []


def until_left(folder: Path) -> None:
    """Wait until no process works in it: the kernel ends a killed run's server a moment later."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while working_in(folder):
        assert time.monotonic() < deadline, working_in(folder)
        time.sleep(0.05)


def working_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def run(site: Site, scratch: Path, **settings: str) -> Outcome:
    # It asks no server but its own.
    nobody = {"PGHOST": "127.0.0.1", "PGPORT": "1", "PGUSER": "nobody", "PGPASSWORD": "none"}
    return site.run(*JOB, **{**nobody, "SCRATCH_DIR": str(scratch), **settings})


def headings(outcome: Outcome) -> list[str]:
    return [line for line in outcome.stdout.splitlines() if not line.startswith("  ")]


def reports(site: Site) -> list[RestoreTestReport]:
    return [
        decode(data, RestoreTestReport, key) for key, data in sorted(site.objects.items()) if key.startswith(RESTORE_TESTS_FOLDER)
    ]


def test_six_lines_two_metrics_and_a_report(site: Site, scratch: Path, pushgateway: RunningPushgateway) -> None:
    outcome = run(site, scratch, PROMETHEUS_PUSHGATEWAY=pushgateway.url)
    assert outcome.code == 0, outcome
    assert headings(outcome) == LINES
    ((clips, users),) = sql(site.server, site.database, "SELECT (SELECT count(*) FROM clips), (SELECT count(*) FROM users)")
    assert f"clip count {clips}, user count {users}, as recorded" in outcome.stdout
    told = pushgateway.metrics()
    assert told["postgres_restore_test_success"] == {(): 1}
    (report,) = reports(site)
    assert told["postgres_restore_test_duration_seconds"] == {(): pytest.approx(report.seconds)}
    assert (report.dump, report.result, report.failed_step, report.exit_code) == (site.recent, "passed", None, 0)
    assert [each.name for each in report.steps] == ["download", "create", "restore", "validate"]
    assert report.seconds is not None
    assert 0 < sum(each.seconds for each in report.steps) <= report.seconds < DEADLINE_SECONDS
    # What prune and its proof make of it.
    pruned = site.run("prune", "--yes", "--json", RETENTION_MIN_DUMPS="1")
    assert pruned.code == 0, pruned
    assert len(reports(site)) == 1


def test_a_missed_target_is_a_warning(site: Site, scratch: Path) -> None:
    outcome = run(site, scratch, RTO_TARGET_SECONDS="1")
    assert outcome.code == 0, outcome
    assert "longer than the target of 1" in outcome.stderr
    assert "target 1.0 s: missed" in outcome.stdout or "target 1 s: missed" in outcome.stdout


def failed(site: Site, outcome: Outcome, code: int, step: int, *words: str) -> None:
    """With *code*, at the line of that number: the line that failed is followed by the last two."""
    check_told(outcome, code, f"the restore test failed at {LINES[step]!r}: ", *words, hint=None)
    assert headings(outcome) == [*LINES[: step + 1], *LINES[4:]]
    *_, report = reports(site)
    assert (report.result, report.exit_code, report.seconds) == ("failed", code, None)
    assert report.failed_step == ["download", "create", "restore", "validate"][step]


def test_a_damaged_dump_fails_as_a_test(site: Site, scratch: Path, pushgateway: RunningPushgateway) -> None:
    settings = {"PROMETHEUS_PUSHGATEWAY": pushgateway.url}
    assert run(site, scratch, **settings).code == 0
    before = pushgateway.metrics()
    (key,) = (key for key in parts_of(site.objects, site.recent) if key.endswith(".dump.zst"))
    path = site.folder / key
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    failed(site, run(site, scratch, **settings), 13, 2)
    after = pushgateway.metrics()
    assert after["postgres_restore_test_success"] == {(): 0}
    assert after["postgres_restore_test_duration_seconds"] == before["postgres_restore_test_duration_seconds"]


def test_data_that_differ_fail_as_a_test(site: Site, scratch: Path) -> None:
    dumped = site.run("dump", "create", VALIDATION_QUERIES="when: SELECT now()::text")
    assert dumped.code == 0, dumped
    failed(site, run(site, scratch), 13, 3, "is restored, and is not what was recorded", "validation query 'when'")


def test_an_extension_that_is_missing_here_is_named(site: Site, scratch: Path) -> None:
    """The wheel of PostgreSQL 18 has no pgcrypto."""
    sql(site.server, site.database, "CREATE EXTENSION pgcrypto")
    try:
        assert site.run("dump", "create").code == 0
        failed(site, run(site, scratch, PG_BINDIR=str(server_binaries(18).bindir)), 3, 1, "has no extension pgcrypto")
    finally:
        sql(site.server, site.database, "DROP EXTENSION pgcrypto")


def test_a_sealed_dump_is_tested_by_who_can_open_it(site: Site, scratch: Path, keys: dict[str, Key]) -> None:
    assert site.run("dump", "create", **sealed_to(keys)).code == 0
    failed(site, run(site, scratch), 12, 0)
    opened = run(site, scratch, **opening(keys["operator"]))
    assert (opened.code, headings(opened)) == (0, LINES), opened


def test_no_room_is_told_before_anything_is_copied(site: Site, scratch: Path, run_cli: RunCli) -> None:
    """In a namespace where scratch is a file system of a few megabytes."""
    mounting = f'mount -t tmpfs -o size=4m none {scratch} && exec "$@"'
    program = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounting, "sh", *PROGRAM]
    outcome = run_cli(*JOB, env={**site.settings, "SCRATCH_DIR": str(scratch)}, program=program)
    failed(site, outcome, 1, 0, "a restore test needs", "of scratch space")


def test_without_a_dump_there_is_nothing_to_test(site: Site, scratch: Path) -> None:
    for path in (site.folder / "database").iterdir():
        path.unlink()
    failed(site, run(site, scratch), 15, 0, "there is no good dump")


def test_without_a_server_of_its_version_it_is_no_failed_test(site: Site, scratch: Path, tmp_path: Path) -> None:
    failed(site, run(site, scratch, PG_BINDIR=str(tmp_path)), 1, 1)


def test_an_identity_that_only_reads_is_enough(site: Site, scratch: Path) -> None:
    outcome = run(site, scratch, **{FAULTS: "put:1+:denied"})
    assert outcome.code == 0, outcome
    assert "the report of this test was not stored" in outcome.stderr
    assert reports(site) == []


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_at_any_step_it_leaves_nothing(
    site: Site, scratch: Path, pushgateway: RunningPushgateway, how: signal.Signals
) -> None:
    """What was killed leaves files, which the next run removes; its server goes with it."""
    settings = {"PROMETHEUS_PUSHGATEWAY": pushgateway.url, "SCRATCH_DIR": str(scratch)}
    for line in chosen(LINES, 1):
        process = site.start(*JOB, **settings)
        assert process.stderr is not None
        assert any(line in said for said in process.stderr), line
        process.send_signal(how)
        code = process.wait(DEADLINE_SECONDS)
        until_left(scratch)
        if how == signal.SIGTERM:
            assert code in {143, 0}, line
            assert list(scratch.iterdir()) == [], line
            if line not in LINES[4:]:
                assert pushgateway.metrics()["postgres_restore_test_success"] == {(): 0}, line
        else:
            assert code == -signal.SIGKILL
        process.stderr.close()
    assert run(site, scratch, PROMETHEUS_PUSHGATEWAY=pushgateway.url).code == 0
    assert pushgateway.metrics()["postgres_restore_test_success"] == {(): 1}
