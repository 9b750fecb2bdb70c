"""The alert rules, judged by promtool: that their own tests pass, and that these would notice if a rule were wrong."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipper_backup.telemetry.metrics import METRICS
from fixtures.monitoring import program

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
BY_ALERT = {rule["alert"]: rule for rule in RULES}
each_rule = pytest.mark.parametrize("rule", RULES, ids=BY_ALERT)


def promtool(*arguments: str, folder: Path = MONITORING) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_promtool_accepts_the_rules() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.rule(91)
def test_the_rules_pass_their_tests() -> None:
    tested = promtool("test", "rules", "alerts.test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.soak(over=["right", "wrong"])
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("> 25 * 3600", "> 24 * 3600"),
        ("> 25 * 3600", "> 50 * 3600"),
        ("> 25 * 3600", ">= 25 * 3600"),
        ("max(max_over_time(postgres_backup_timestamp[26h]))", "max(postgres_backup_timestamp)"),
        ("max(max_over_time", "min(max_over_time"),
        ("or absent_over_time(postgres_backup_timestamp[26h]) * Inf", ""),
        ("or absent_over_time(postgres_backup_timestamp[26h])", "or absent(postgres_backup_timestamp)"),
        ("or absent_over_time", "or max(postgres_backup_success) == 0 or absent_over_time"),
        ("[26h]) * Inf", "[26h])"),
        ("for: 5m", "for: 1h"),
        ("for: 5m", "for: 0m"),
        ("severity: critical", "severity: warning"),
    ],
)
def test_the_tests_notice_a_wrong_rule(right: str, wrong: str, tmp_path: Path) -> None:
    rules = (MONITORING / "alerts.yml").read_text()
    assert right in rules
    (tmp_path / "alerts.yml").write_text(rules.replace(right, wrong))
    shutil.copy(MONITORING / "alerts.test.yml", tmp_path)
    assert promtool("check", "rules", "alerts.yml", folder=tmp_path).returncode == 0, (
        "a rule that does not even parse proves nothing"
    )
    assert promtool("test", "rules", "alerts.test.yml", folder=tmp_path).returncode == 1


_NOT_METRICS = {"time", "max", "max_over_time", "absent_over_time", "or", "Inf"}


@each_rule
def test_every_metric_of_a_rule_is_one_that_we_report(rule: dict[str, Any]) -> None:
    without_labels_and_ranges = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby\s*\([^)]*\)", " ", rule["expr"])
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", without_labels_and_ranges)) - _NOT_METRICS
    assert words
    assert words <= {metric.name for metric in METRICS}


@each_rule
def test_a_rule_says_what_a_person_needs(rule: dict[str, Any]) -> None:
    assert rule["labels"]["component"] == "backup"
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert re.search(r"\d+ (h|min|s|%|bytes)\b", rule["annotations"]["description"]), "a number with its unit"


@each_rule
def test_every_alert_has_its_tests_and_its_runbook(rule: dict[str, Any]) -> None:
    tests = yaml.safe_load((MONITORING / "alerts.test.yml").read_text())["tests"]
    moments = [moment for test in tests for moment in test.get("alert_rule_test", []) if moment["alertname"] == rule["alert"]]
    expectations = [moment.get("exp_alerts", []) for moment in moments]
    assert [] in expectations, "no moment at which it must be silent"
    assert any(expectations), "no moment at which it must fire"
    repository, path = rule["annotations"]["runbook_url"].split("/blob/main/")
    assert repository == "https://github.com/subculture-collective/clipper"
    assert path == f"docs/operations/runbooks/{rule['alert']}.md"
    assert (ROOT / path).is_file()


def test_the_sources_alert_is_there_with_its_severity() -> None:
    assert BY_ALERT["BackupJobFailed"]["labels"]["severity"] == "critical"
