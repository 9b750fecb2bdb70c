"""`clipper-backup settings`: every value, where it came from, and no secret."""

from pathlib import Path

import pytest

from clipper_backup.config import DECLARED
from fixtures.cli import RunCli


def test_every_setting_is_listed_with_its_default_and_meaning(run_cli: RunCli) -> None:
    document = run_cli("settings", "--json", check=True).document
    assert document["schema"] == 1
    assert [item["id"] for item in document["items"]] == [declared.name for declared in DECLARED]
    by_id = {item["id"]: item for item in document["items"]}
    assert by_id["RETENTION_DAYS"] == {
        "id": "RETENTION_DAYS",
        "value": 30,
        "from": "default",
        "default": 30,
        "kind": "days, 1 to 36500",
        "meaning": "how many days a dump is kept",
        "why": None,
        "flag": "--retention-days",
    }
    assert by_id["BACKUP_DATABASES"]["value"] == []
    assert by_id["BACKUP_URL"]["value"] is None
    assert by_id["PGPASSWORD"]["flag"] is None
    text = run_cli("settings", check=True).stdout
    assert text.startswith("SETTING ")
    for declared in DECLARED:
        assert f"\n{declared.name} " in text
        assert declared.meaning in text


def test_where_a_value_came_from_by_precedence(run_cli: RunCli, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('RETENTION_DAYS = 1\nDUMP_JOBS = "2"\nBACKUP_DATABASES = ["a", "b"]\nPGUSER = "file"\n')
    env = {"RETENTION_DAYS": "3", "DUMP_JOBS": "4", "PGUSER_DEFAULT": "shipped", "PGHOST_DEFAULT": "postgres"}
    run = run_cli("settings", "--set-only", "--json", "--config", str(config), "--retention-days=5", env=env, check=True)
    found = {item["id"]: (item["value"], item["from"]) for item in run.document["items"]}
    assert found == {
        "RETENTION_DAYS": (5, "flag"),
        "DUMP_JOBS": (4, "environment"),
        "BACKUP_DATABASES": (["a", "b"], str(config)),
        "PGUSER": ("file", str(config)),
        "PGHOST": ("postgres", "PGHOST_DEFAULT"),
    }
    text = run_cli("settings", "--set-only", "--config", str(config), "--retention-days=5", env=env, check=True).stdout
    rows = [line.split()[:3] for line in text.splitlines()[1:]]
    assert ["RETENTION_DAYS", "5", "flag"] in rows
    assert ["PGHOST", "postgres", "PGHOST_DEFAULT"] in rows
    assert len(rows) == 5


def test_the_config_variable_names_the_file(run_cli: RunCli, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("RETENTION_DAYS = 7\n")
    run = run_cli("settings", "RETENTION_DAYS", "--json", env={"CLIPPER_BACKUP_CONFIG": str(config)}, check=True)
    assert (run.document["value"], run.document["from"]) == (7, str(config))


@pytest.mark.parametrize("words", ["", "--json", "--set-only", "PGPASSWORD", "PGPASSWORD --json", "NO_SUCH --debug"])
def test_a_secret_is_never_shown(run_cli: RunCli, words: str) -> None:
    env = {"PGPASSWORD": "hush-hush", "BACKUP_URL": "s3://key:hush-hush@bucket/prefix?token=hush-hush&region=eu"}
    run = run_cli("settings", *words.split(), env=env)
    assert "hush" not in run.stdout + run.stderr
    assert "***" in run.stdout or "NO_SUCH" in words


def test_a_url_is_shown_without_its_login(run_cli: RunCli) -> None:
    env = {"BACKUP_URL": "s3://key:hush@bucket/prefix?token=hush&region=eu"}
    document = run_cli("settings", "BACKUP_URL", "--json", env=env, check=True).document
    assert document["value"] == "s3://***@bucket/prefix?token=***&region=eu"


@pytest.mark.parametrize("name", ["RETENTION_MIN_DUMPS", "retention_min_dumps", "--retention-min-dumps", "retention-min-dumps"])
def test_one_setting_with_its_reason(run_cli: RunCli, name: str) -> None:
    words = ["settings", name] if not name.startswith("-") else ["settings", "--", name]
    assert run_cli(*words, check=True).stdout == (
        "RETENTION_MIN_DUMPS:  how many of the newest good dumps of each database are kept however old they are\n"
        "value:                3\n"
        "from:                 default\n"
        "default:              3\n"
        "kind:                 number, 1 to 10000\n"
        "why:                  age alone must never delete the last good ones\n"
        "flag:                 --retention-min-dumps\n"
    )


def test_a_secret_setting_has_no_flag(run_cli: RunCli) -> None:
    page = run_cli("settings", "PGPASSWORD", check=True).stdout
    assert "value:       not set\n" in page
    assert "flag:        none: command lines are public\n" in page


def test_a_bad_value_ends_the_command_before_it_does_anything(run_cli: RunCli) -> None:
    run = run_cli("settings", env={"RETENTION_DAYS": "0"})
    assert (run.code, run.stdout) == (2, "")
    assert run.stderr == (
        "error: bad value for RETENTION_DAYS (from environment): 0 is outside 1 … 36500\n"
        "HINT: RETENTION_DAYS: how many days a dump is kept\n"
    )


def test_version_works_with_bad_settings(run_cli: RunCli) -> None:
    run = run_cli("version", "--retention-days", "0", env={"DUMP_JOBS": "none"})
    assert (run.code, run.stdout, run.stderr) == (0, run_cli("version").stdout, "")


def test_a_missing_settings_file(run_cli: RunCli) -> None:
    run = run_cli("settings", "--config", "/no/such/file")
    error, hint = run.stderr.splitlines()
    assert (run.code, error) == (15, "error: cannot read settings from /no/such/file: No such file or directory")
    assert "--config or CLIPPER_BACKUP_CONFIG" in hint
