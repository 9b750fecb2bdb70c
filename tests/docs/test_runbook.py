"""What the runbook says of the cluster and of our messages is so: names in manifests, paths in the CronJob, words in the code."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipper_backup.config import DECLARED, load
from clipper_backup.ops.work import login_of
from fixtures.docs import ROOT, blocks

RUNBOOK = ROOT / "docs/operations/backup-recovery-runbook.md"
TEXT = RUNBOOK.read_text(encoding="utf-8")
KUBECTL = "\n".join(block.text for block in blocks(RUNBOOK) if "kubectl" in block.text)
MANIFESTS = [path for path in sorted((ROOT / "infrastructure/k8s/base").glob("*.yaml")) if path.name != "kustomization.yaml"]
ELSEWHERE = {"No space left on device": "the operating system", "could not open extension control file": "PostgreSQL"}
"""Words in the runbook that others say."""


@pytest.fixture(scope="module")
def manifests() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in MANIFESTS)


@pytest.fixture(scope="module")
def cronjob() -> dict[str, Any]:
    documents = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text()) if document]
    (found,) = (document for document in documents if document["metadata"]["name"] == "postgres-backup")
    assert isinstance(found, dict)
    return found


def test_namespaces_and_resources_exist(cronjob: dict[str, Any], manifests: str) -> None:
    assert set(re.findall(r"-n ([\w-]+)", KUBECTL)) == {cronjob["metadata"]["namespace"]}
    assert set(re.findall(r"cronjob[/ ]([\w-]+)", KUBECTL)) == {cronjob["metadata"]["name"]}
    made = set(re.findall(r"kubectl create job (?:--from=\S+ )?([\w-]+)", KUBECTL))
    used = set(re.findall(r"(?:(?<!cron)job/|delete job |job-name=)([\w-]+)", KUBECTL))
    assert used == made
    for kind, name in re.findall(r"the (ConfigMap|Secret|ServiceAccount) `([\w-]+)`", TEXT):
        assert re.search(rf"{kind}\s+{name}\b|name: {name}\b", manifests), f"{kind} {name}"


def test_the_paths_it_patches_exist_and_it_changes_nothing_else(cronjob: dict[str, Any]) -> None:
    (patch,) = re.findall(r"--type=json -p '(\[.+?\])'", KUBECTL, re.DOTALL)
    job = cronjob["spec"]["jobTemplate"]  # what `kubectl create job --from` makes a Job of
    for operation in json.loads(patch):
        assert operation["op"] == "replace", "replacing fails where the path is gone; adding would not"
        found: Any = job
        for part in operation["path"].strip("/").split("/"):
            found = found[int(part) if part.isdecimal() else part]
        assert type(found) is type(operation["value"])


CONFIGURED = {
    "PGHOST": "db.example",
    "PGPORT": "6432",
    "PGUSER": "not-this-one",
    "PGPASSFILE": "/etc/clipper-backup-keys/pgpass\n",
    "PGDATABASE": "the maintenance one",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/etc/clipper-backup-keys/ca.pem",
}
"""A ConfigMap that says all that libpq takes, the user too, which the Secret overrides."""


@pytest.mark.parametrize("configured", [{}, CONFIGURED], ids=["nothing", "everything"])
def test_the_shell_logs_in_as_the_job_does(cronjob: dict[str, Any], tmp_path: Path, configured: dict[str, str]) -> None:
    """Every PG… variable that psql finds there is what the settings are, whether they come from the Pod or the ConfigMap."""
    (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value", "of the Secret") for variable in container["env"]}
    (block,) = (block.text for block in blocks(RUNBOOK) if block.said("not run") == ["inside the pod"])
    folder = variables["CLIPPER_BACKUP_CONFIG"]
    assert folder in block
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert re.findall(r"^cd (\S+)$", block, re.MULTILINE) == [*writable]
    for name, text in configured.items():
        (tmp_path / name).write_text(text)
    found = subprocess.run(
        ["bash", "-ec", block.replace(folder, str(tmp_path)) + "\nenv --null"],
        env={"PATH": os.environ["PATH"], **variables},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout.decode()
    shell = dict(line.partition("=")[::2] for line in found.split("\0") if line.startswith("PG"))
    settings = load({}, variables, tmp_path).settings
    login = login_of(settings)
    meant = login.environment(settings.pgdatabase)
    named = {declared.name for declared in DECLARED if declared.name.startswith("PG") and declared.name != "PG_BINDIR"}
    assert {name: shell.get(name) for name in named} == {name: meant.get(name) for name in named}
    assert shell["PGUSER"] == "of the Secret"


def test_messages_it_explains_are_ours() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    tables = TEXT[TEXT.index("### If it fails halfway") : TEXT.index("### Going back")]
    quoted = re.findall(r"\*([^*]+)\*", tables)
    assert len(quoted) > 5
    for words in quoted:
        assert words in ELSEWHERE or words in code, words
