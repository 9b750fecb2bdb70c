"""What a runbook says of our own files is compared with these files; a number that changed there must change here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipper_backup.errors import every_error

ROOT = Path(__file__).parents[2]
RUNBOOKS = sorted((ROOT / "docs/operations/runbooks").glob("*.md"))
each_runbook = pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda path: path.stem)


def sections(runbook: Path) -> list[str]:
    return re.findall(r"^## (.+)$", runbook.read_text(), re.MULTILINE)


@each_runbook
def test_a_runbook_has_its_five_sections(runbook: Path) -> None:
    assert sections(runbook) == ["Meaning", "Impact", "Diagnosis", "Mitigation", "How to see that it worked"]


@each_runbook
def test_a_runbook_belongs_to_an_alert(runbook: Path) -> None:
    groups = yaml.safe_load((ROOT / "monitoring/alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    severity = rules[runbook.stem]["labels"]["severity"]
    assert runbook.read_text().startswith(f"# {runbook.stem}\n\nSeverity: {severity}.")


@pytest.fixture
def text() -> str:
    return (ROOT / "docs/operations/runbooks/BackupJobFailed.md").read_text()


@pytest.fixture
def cronjob() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "infrastructure/k8s/base/backup-cronjobs.yaml").read_text())
    return next(o for o in documents if o["metadata"]["name"] == "postgres-backup")


def test_the_numbers_are_the_manifests(text: str, cronjob: dict[str, Any]) -> None:
    spec = cronjob["spec"]
    job = spec["jobTemplate"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert spec["schedule"] == "0 2 * * *"
    assert "daily at 02:00 UTC" in text
    assert f"until {2 + spec['startingDeadlineSeconds'] // 3600:02}:00 UTC" in text
    assert f"away for more than {spec['startingDeadlineSeconds'] // 3600} hours after 02:00 UTC" in text
    assert f"it was tried {job['backoffLimit'] + 1} times" in text
    assert f"not done within {job['activeDeadlineSeconds'] // 3600} hours" in text
    assert f"more than {container['resources']['limits']['memory'].removesuffix('Mi')} MiB" in text


def test_the_numbers_are_the_rules(text: str) -> None:
    rule = (ROOT / "monitoring/alerts.yml").read_text()
    (hours,) = {int(n) for n in re.findall(r"> (\d+) \* 3600", rule)}
    assert f"in the last {hours} hours" in text
    assert f"below {hours * 3600} ({hours} hours, in seconds)" in text


def test_labels_and_names_in_its_commands_exist(text: str, cronjob: dict[str, Any]) -> None:
    for labels in (cronjob["spec"]["jobTemplate"]["metadata"], cronjob["spec"]["jobTemplate"]["spec"]["template"]["metadata"]):
        for key, value in re.findall(r"-l ([\w./-]+)=([\w-]+)", text):
            assert labels["labels"][key] == value
    assert set(re.findall(r"-n ([\w-]+)", text)) == {cronjob["metadata"]["namespace"]}
    assert set(re.findall(r"cronjob[/ ]([a-z-]+)", text)) == {cronjob["metadata"]["name"]}


def test_the_path_it_patches_is_the_commands_arguments(text: str, cronjob: dict[str, Any]) -> None:
    (path,) = re.findall(r'\\"path\\": \\"([^\\]+)\\"', text)
    found: Any = cronjob["spec"]["jobTemplate"]  # `kubectl create job --from` makes the Job's spec of this one
    for part in path.strip("/").split("/"):
        found = found[int(part) if part.isdecimal() else part]
    assert found == ["job", "postgres-backup"]


def test_every_exit_code_it_explains_is_one_of_ours(text: str, cronjob: dict[str, Any]) -> None:
    explained = {int(code) for code in re.findall(r"^\| exit (\d+)", text, re.MULTILINE)}
    killed_by_the_kernel = 137
    assert explained - {killed_by_the_kernel} <= {error.exit_code for error in every_error()}
    (fail, _) = cronjob["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert set(fail["onExitCodes"]["values"]) <= explained, "what is not tried again must be explained"
