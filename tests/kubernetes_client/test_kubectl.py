"""The real kubectl, on the fake API: what a person types reaches it as it would reach a cluster."""

from pathlib import Path

import pytest
import yaml

from clipper_backup.kubernetes.resources import CONFIG_MAPS, CRON_JOBS, JOBS, PODS, STATEFUL_SETS
from fixtures.docs import ROOT
from fixtures.kube_cluster import NAMESPACE, Cluster
from fixtures.kube_kinds import SERVICE_ACCOUNTS

BASE = ROOT / "infrastructure/k8s/base"

STATEFUL_SET = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postgres, namespace: clipper-production}
spec:
  serviceName: postgres
  selector: {matchLabels: {app: postgres}}
  template:
    metadata: {labels: {app: postgres}}
    spec:
      containers:
      - {name: postgres, image: "postgres:17-alpine", env: [{name: MINE, value: "1"}]}
  volumeClaimTemplates:
  - metadata: {name: postgres-data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"""


def test_a_manifest_is_applied_twice(cluster: Cluster) -> None:
    assert "serviceaccount/backup-operator created" in cluster.apply(BASE / "rbac.yaml")
    assert "serviceaccount/backup-operator unchanged" in cluster.apply(BASE / "rbac.yaml")
    found = cluster.get(SERVICE_ACCOUNTS, "backup-operator")
    assert found is not None
    assert found["automountServiceAccountToken"] is False


def test_a_field_that_does_not_exist_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: clipper-production}, dta: {a: b}}")
    with pytest.raises(AssertionError, match='unknown field "dta"'):
        cluster.apply(path)
    assert cluster.get(CONFIG_MAPS, "x") is None


def test_an_update_takes_away_what_was_applied_before(cluster: Cluster, tmp_path: Path) -> None:
    """The table of docs/design/kubernetes.md, third row: a user's env is gone when it is not in the new document."""
    path = tmp_path / "set.yaml"
    path.write_text(STATEFUL_SET)
    cluster.apply(path)
    document = yaml.safe_load(STATEFUL_SET)
    (container,) = document["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": "OURS", "value": "2"}]
    path.write_text(yaml.safe_dump(document))
    cluster.apply(path)
    found = cluster.get(STATEFUL_SETS, "postgres")
    assert found is not None
    assert found["spec"]["template"]["spec"]["containers"][0]["env"] == [{"name": "OURS", "value": "2"}]
    document["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = "2Gi"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(AssertionError, match="updates to statefulset spec for fields other than"):
        cluster.apply(path)


def test_a_patch_keeps_what_is_the_users(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "set.yaml"
    path.write_text(STATEFUL_SET)
    cluster.apply(path)
    patch = "spec: {template: {spec: {containers: [{name: wal-archive, image: x}]}}}"
    cluster.kubectl("patch", "statefulset", "postgres", "-n", NAMESPACE, "-p", patch)
    found = cluster.get(STATEFUL_SETS, "postgres")
    assert found is not None
    ours, theirs = sorted(found["spec"]["template"]["spec"]["containers"], key=lambda each: str(each["name"]), reverse=True)
    assert (ours["name"], theirs["env"]) == ("wal-archive", [{"name": "MINE", "value": "1"}])


def test_what_the_source_document_types(cluster: Cluster) -> None:
    cluster.apply(BASE / "backup-cronjobs.yaml")
    where = ("-n", NAMESPACE)
    cluster.kubectl("create", "job", "--from=cronjob/postgres-backup", "by-hand", *where)
    cluster.run_controllers()
    (pod,) = cluster.store.all(PODS)
    cluster.served.logs[NAMESPACE, pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]] = "done\n"
    cluster.end_pod(pod, **{pod["spec"]["containers"][0]["name"]: 0})
    cluster.run_controllers()
    assert cluster.kubectl("logs", "job/by-hand", *where).stdout == "done\n"
    wait = ("wait", "--for=condition=complete", "job/by-hand", "--timeout=10s")
    assert "condition met" in cluster.kubectl(*wait, *where).stdout
    suspend = ("patch", "cronjob", "postgres-backup", "-p", '{"spec":{"suspend":true}}')
    cluster.kubectl(*suspend, *where)
    found = cluster.get(CRON_JOBS, "postgres-backup")
    assert found is not None
    assert found["spec"]["suspend"] is True
    cluster.apply(BASE / "backup-cronjobs.yaml")
    assert cluster.get(CRON_JOBS, "postgres-backup") == found, "suspend is the user's, and stays"
    assert "postgres-backup" in cluster.kubectl("get", "cronjobs", *where).stdout
    editor = {"EDITOR": "sed -i s/suspend:.true/suspend:\\ false/"}
    cluster.kubectl("edit", "cronjob", "postgres-backup", *where, environment=editor)
    after = cluster.get(CRON_JOBS, "postgres-backup")
    assert after is not None
    assert after["spec"]["suspend"] is False
    cluster.kubectl("delete", "job", "by-hand", *where)
    cluster.run_controllers()
    assert cluster.get(JOBS, "by-hand") is None
    assert cluster.store.all(PODS) == [], "kubectl deletes in the background, dependents too"
