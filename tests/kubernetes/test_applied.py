"""The files as a person applies them, with the real kubectl on the fake API; what a Job of theirs then does, as a process."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipper_backup.kubernetes.resources import CRON_JOBS, JOBS, PODS
from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import PROGRAM
from fixtures.docs import ROOT
from fixtures.kube_cluster import NAMESPACE, Cluster
from fixtures.kube_kinds import DEPLOYMENTS, KINDS, resource_of
from fixtures.postgres import PASSWORD, fresh_database, sql

BASE = ROOT / "infrastructure/k8s/base"
IN_ORDER = ["pushgateway.yaml", "rbac.yaml", "postgres-pitr-config.yaml", "backup-cronjobs.yaml"]
"""As the source document applies them: Prerequisites 3, Steps 1, 3 and 4."""
FILES = [*IN_ORDER, "network-policies.yaml"]

Object = dict[str, Any]

SOURCES_PUSHGATEWAY = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: prometheus-pushgateway
  namespace: clipper-monitoring
spec:
  replicas: 1
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}
  selector:
    matchLabels:
      app: prometheus-pushgateway
  template:
    metadata:
      labels:
        app: prometheus-pushgateway
    spec:
      containers:
      - name: pushgateway
        image: prom/pushgateway:v1.6.2
        ports:
        - containerPort: 9091
"""
"""The Deployment of the source document, with the strategy that the API fills in."""


def stated(path: Path) -> list[Object]:
    return [o for o in yaml.safe_load_all(path.read_text()) if o]


def specs(cluster: Cluster) -> list[tuple[str, Any]]:
    return [(o["metadata"]["name"], o.get("spec")) for kind in KINDS for o in cluster.store.all(kind)]


def check_is_there(cluster: Cluster, path: Path) -> None:
    for o in stated(path):
        namespace = o["metadata"].get("namespace", "")
        found = cluster.store.peek(resource_of(o["kind"], o["apiVersion"]), namespace, o["metadata"]["name"])
        assert found is not None, (o["kind"], o["metadata"]["name"])


def test_every_file_of_base_is_tried_here() -> None:
    assert {path.name for path in BASE.glob("*.yaml")} == {*FILES, "kustomization.yaml"}


@pytest.mark.parametrize("name", FILES)
def test_each_file_alone_and_again(cluster: Cluster, name: str) -> None:
    first = cluster.apply(BASE / name).splitlines()
    assert len(first) == len(stated(BASE / name))
    assert all(line.endswith(" created") for line in first)
    check_is_there(cluster, BASE / name)
    before = specs(cluster)
    again = [line for line in cluster.apply(BASE / name).splitlines() if not line.endswith(" unchanged")]
    assert again == ["statefulset.apps/postgres configured"] * (name == "postgres-pitr-config.yaml"), "its claims have defaults"
    assert specs(cluster) == before


def test_in_the_sources_order_step_3_twice_and_then_the_whole_folder(cluster: Cluster) -> None:
    for name in [*IN_ORDER[:3], *IN_ORDER[2:]]:
        cluster.apply(BASE / name)
    listed = cluster.kubectl("get", "cronjobs", "-n", NAMESPACE).stdout
    for name in ("postgres-backup", "volume-snapshot", "restore-test"):
        assert name in listed
    whole = cluster.apply(BASE).splitlines()
    new = {line for line in whole if not line.endswith(" unchanged")}
    assert {line.partition("/")[0] for line in new} == {"networkpolicy.networking.k8s.io", "statefulset.apps"}
    assert {line.rpartition(" ")[2] for line in new if line.startswith("statefulset")} == {"configured"}


def test_ours_applies_over_the_sources_pushgateway(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "source.yaml").write_text(SOURCES_PUSHGATEWAY)
    cluster.apply(tmp_path / "source.yaml")
    cluster.apply(BASE / "pushgateway.yaml")
    found = cluster.store.peek(DEPLOYMENTS, "clipper-monitoring", "prometheus-pushgateway")
    assert found is not None
    assert found["spec"]["strategy"] == {"type": "Recreate"}


def test_suspend_and_schedule_of_a_person(cluster: Cluster) -> None:
    cluster.apply(BASE / "backup-cronjobs.yaml")
    for name in ("postgres-backup", "volume-snapshot"):
        cluster.kubectl("patch", "cronjob", name, "-n", NAMESPACE, "-p", '{"spec": {"suspend": true}}')
    cluster.apply(BASE / "backup-cronjobs.yaml")
    for name in ("postgres-backup", "volume-snapshot"):
        found = cluster.get(CRON_JOBS, name)
        assert found is not None
        assert found["spec"]["suspend"] is True


def run(cluster: Cluster, cronjob: str, mounts: Path, scratch: Path) -> "subprocess.CompletedProcess[str]":
    """A Job made by hand of *cronjob*, as a process: its Pod's own command and variables, with what Secrets hold."""
    cluster.kubectl("create", "job", f"--from=cronjob/{cronjob}", f"{cronjob}-manual", "-n", NAMESPACE)
    cluster.run_controllers()
    (pod,) = (each for each in cluster.store.all(PODS) if each["metadata"]["labels"]["job-name"] == f"{cronjob}-manual")
    (container,) = pod["spec"]["containers"]
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(scratch)}
    for variable in container["env"]:
        if "value" in variable:
            environment[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            secret = cluster.store.peek(resource_of("Secret"), NAMESPACE, reference["name"])
            assert secret is not None
            environment[variable["name"]] = secret["stringData"][reference["key"]]
    assert environment["CLIPPER_BACKUP_CONFIG"] == "/etc/clipper-backup"
    environment["CLIPPER_BACKUP_CONFIG"] = str(mounts)
    done = subprocess.run(
        [*PROGRAM, *container["args"]], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    cluster.end_pod(pod, backup=done.returncode)
    cluster.run_controllers()
    return done


def test_the_dump_alone_works_from_rbac_and_cronjobs(cluster: Cluster, postgres15: PrivateServer, tmp_path: Path) -> None:
    cluster.apply(BASE / "rbac.yaml")
    cluster.apply(BASE / "backup-cronjobs.yaml")
    where = postgres15.tcp_connection("postgres")
    cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "postgres-secret", "namespace": NAMESPACE},
            "stringData": {"POSTGRES_USER": where["user"], "POSTGRES_PASSWORD": PASSWORD},
        }
    )
    mounts, scratch = tmp_path / "backup-config", tmp_path / "scratch"
    mounts.mkdir()
    scratch.mkdir()
    with fresh_database(postgres15) as database:
        sql(postgres15, database, "CREATE TABLE clips AS SELECT generate_series(1, 7) AS id")
        settings = {
            "BACKUP_URL": f"file://{tmp_path}/repository",
            "BACKUP_DATABASES": database,
            "PGHOST": where["host"],
            "PGPORT": where["port"],
            "PROMETHEUS_PUSHGATEWAY": "",
        }
        for name, text in settings.items():
            (mounts / name).write_text(text)
        done = run(cluster, "postgres-backup", mounts, scratch)
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == []
    found = cluster.get(JOBS, "postgres-backup-manual")
    assert found is not None
    assert {each["type"] for each in found["status"]["conditions"]} >= {"Complete"}
    assert [path.name for path in (tmp_path / "repository/database").iterdir() if path.name.endswith(".backup.json")]
