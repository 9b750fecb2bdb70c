"""`doctor` as a whole: all is green where all is right, and nothing that happens to one check holds up the others."""

import socket
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import load
from clipper_backup.format.sealing import Identity
from clipper_backup.format.signing import SigningKey
from clipper_backup.ops.doctor.declared import Check, Surroundings
from clipper_backup.ops.doctor.examine import CHECKS, examine
from clipper_backup.ops.findings import Finding
from fixtures.doctor import GREEN, NAMES, RED, YELLOW, Case
from fixtures.dump import FAULTS, Site, check_told
from fixtures.monitoring import RunningPushgateway

pytestmark = pytest.mark.soak(share=0.25)


def test_every_check_is_made_to_fail_in_the_file_of_its_area() -> None:
    areas = {check.look.__module__.rpartition(".")[2] for check in CHECKS}
    assert areas == {path.stem.removeprefix("test_doctor_") for path in Path(__file__).parent.glob("test_doctor_of_*.py")}
    assert len(set(NAMES)) == len(NAMES)


def test_what_is_needed_is_looked_at_before() -> None:
    for number, check in enumerate(CHECKS):
        assert set(check.needs) <= set(NAMES[:number]), check.name


def test_all_is_green_where_all_is_right(case: Case, monkeypatch: pytest.MonkeyPatch, pushgateway: RunningPushgateway) -> None:
    """But for what only more machines could make green."""
    ours, offline = Identity.make(), Identity.make()
    for name, secret in (("signing.key", SigningKey.make().reveal()), ("ours", ours.reveal().encode())):
        (case.tmp_path / name).write_bytes(secret)
    settings = {
        **case.bucket()[1],
        "ENCRYPTION_RECIPIENTS": f"{ours.recipient},{offline.recipient}",
        "SIGNING_KEY_FILE": str(case.tmp_path / "signing.key"),
        "PROMETHEUS_PUSHGATEWAY": pushgateway.url,
    }
    assert case.site.run("dump", "create", **settings).code == 0
    assert case.site.run("key", "check", "--identity", str(case.tmp_path / "ours"), **settings).code == 0
    assert case.site.run("verify", **settings, ENCRYPTION_IDENTITY_FILE=str(case.tmp_path / "ours")).code == 0
    lines = case.look(monkeypatch, settings)
    notes = {name: line.finding.text for name, line in lines.items() if line.finding.colour is not GREEN}
    if notes.get("databases", "").startswith("not dumped: test_"):
        del notes["databases"]  # other tests' databases on the same server
    assert notes == {
        "key check": f"no check of {offline.recipient} is recorded",
        "archiving": "point-in-time recovery is off: archive_mode is off",
    }
    assert all(line.todo == () for line in lines.values() if line.finding.colour is GREEN)
    assert pushgateway.metrics() == {}, "nothing is reported"


def test_nothing_is_left_in_the_store(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.look(monkeypatch, {})
    assert case.site.objects.keys() - {"clock"} == case.site.before.keys() - {"clock"}
    case.site.check_untouched()


# -- whatever happens


def test_what_raises_is_a_red_line_and_the_others_go_on() -> None:
    def fails(here: Surroundings) -> Finding:
        raise ZeroDivisionError(f"with {here.settings.retention_days}")

    other = Check("other", "nothing", "nothing", (), lambda _: Finding(GREEN, "as it should be"))
    after = Check("after", "nothing", "nothing", ("broken", "other"), other.look)
    checks = (Check("broken", "a bug", "report it", (), fails), other, after)
    broken, fine, skipped = examine(lambda: load({}, {}).settings, SystemClock(), {}, checks=checks)
    assert (broken.finding.colour, broken.finding.text) == (RED, "internal error: ZeroDivisionError: with 30")
    assert fine.finding.colour is GREEN
    expected = Finding(YELLOW, "not looked at before this is right: broken", waits_for="broken")
    assert (skipped.finding, skipped.todo) == (expected, ())


def test_what_hangs_is_a_red_line_and_the_others_go_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = case.look(monkeypatch, {FAULTS: "list:1:slow=3600"}, check_seconds=2.0)
    assert lines["store"].finding == Finding(RED, "no answer within 2.0 s")
    assert lines["database server"].finding.colour is GREEN


def test_when_time_is_up_the_rest_is_red(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = case.look(monkeypatch, {}, all_seconds=0.0)
    assert lines["settings"].finding.text == "not looked at: the others took 0.0 s"
    assert {line.finding.colour for line in lines.values()} == {RED, YELLOW}


def test_servers_that_take_connections_and_never_answer_do_not_hold_it_up(case: Case) -> None:
    """The real program: it ends by itself, though nobody it asks ever says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        outcome = case.site.run(
            "doctor",
            "--json",
            **{
                **case.bucket()[1],
                "BACKUP_ENDPOINT": f"http://127.0.0.1:{port}",
                "STORE_TIMEOUT_SECONDS": "2",
                "STORE_RETRY_SECONDS": "0",
                "PGPORT": port,
                "PGCONNECT_TIMEOUT": "2",
                "PROMETHEUS_PUSHGATEWAY": f"http://127.0.0.1:{port}",
            },
        )
    assert outcome.code == 1
    red = {item["id"] for item in outcome.document["items"] if item["colour"] == "red"}
    assert red == {"store", "database server", "pushgateway"}


def test_no_secret_is_shown(case: Case) -> None:
    """Not where all is well, and not in what is said of logins that are refused."""
    secrets = {"PGPASSWORD": "pg-hunter2", "AWS_SECRET_ACCESS_KEY": "s3-hunter2"}
    gateway = {"PROMETHEUS_PUSHGATEWAY": f"http://somebody:gw-hunter2@127.0.0.1:{case.deaf_port()}"}
    in_url = {"BACKUP_URL": f"s3://key:url-hunter2@{case.bucket()[0].bucket}"}
    for settings in ({**case.bucket()[1], **secrets, **gateway}, {**in_url, **secrets}):
        for words in (["doctor"], ["doctor", "--json"], ["status"], ["bucket", "check", "--objects", "1", "--size", "1MiB"]):
            outcome = case.site.run(*words, **settings)
            assert outcome.code != 0
            assert "hunter2" not in outcome.stdout + outcome.stderr


# -- as people run it


def test_exit_codes_and_text(site: Site, deaf_port: str) -> None:
    fine = site.run("doctor")
    assert (fine.code, fine.stderr) == (0, ""), fine
    assert fine.stdout.splitlines()[-1].endswith(" yellow, 0 red")
    away = site.run("doctor", PGPORT=deaf_port)
    check_told(away, 1, "red, 1 of ", "database server", hint="what to do")
    assert "RED" in away.stdout
    assert "-> check PGHOST and PGPORT" in away.stdout
