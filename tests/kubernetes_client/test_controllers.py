"""What the fake cluster does that no recording shows, as Kubernetes documents it: volumes bound again, dependents, rights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clipper_backup.errors import AccessError, KubernetesError, UsageError
from clipper_backup.kubernetes.api import Object
from clipper_backup.kubernetes.objects import claim_of, content_of, job_of, pod_of, set_of, snapshot_of
from clipper_backup.kubernetes.resources import (
    JOBS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    STATEFUL_SETS,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
)
from clipper_backup.kubernetes.watch import wait_for
from fixtures.kube_cluster import NAMESPACE, Cluster


@pytest.fixture
def database(cluster: Cluster) -> Cluster:
    """A cluster in which the recorded StatefulSet runs on a bound claim."""
    cluster.add_storage()
    template = {
        "metadata": {"name": "postgres-data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "csi-hostpath",
        },
    }
    cluster.create(
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": "postgres"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "postgres"}},
                "serviceName": "postgres",
                "template": {
                    "metadata": {"labels": {"app": "postgres"}},
                    "spec": {"containers": [{"name": "postgres", "image": "postgres:17-alpine"}]},
                },
                "volumeClaimTemplates": [template],
            },
        }
    )
    cluster.run_controllers()
    return cluster


def snapshot(name: str, snapshot_class: str = "csi-hostpath-snap") -> Object:
    return {
        "metadata": {"name": name},
        "spec": {"source": {"persistentVolumeClaimName": "postgres-data-postgres-0"}, "volumeSnapshotClassName": snapshot_class},
    }


def test_a_database_comes_up(database: Cluster) -> None:
    api = database.api()
    assert set_of(api.get(STATEFUL_SETS, "postgres")).ready_replicas == 1
    pod = pod_of(api.get(PODS, "postgres-0"))
    assert pod.ready
    assert pod.claims == {"postgres-data": "postgres-data-postgres-0"}
    claim = claim_of(api.get(PERSISTENT_VOLUME_CLAIMS, "postgres-data-postgres-0"))
    assert claim.bound
    assert (claim.size, claim.storage_class) == ("1Gi", "csi-hostpath")


def test_a_snapshot_is_taken_while_it_is_waited_for(database: Cluster) -> None:
    api = database.api()
    api.create(VOLUME_SNAPSHOTS, snapshot("s"))

    def ready(found: Object | None) -> Object | None:
        return found if found is not None and snapshot_of(found).ready else None

    found = snapshot_of(wait_for(api, VOLUME_SNAPSHOTS, "s", ready, timeout_seconds=20))
    content = content_of(api.get(VOLUME_SNAPSHOT_CONTENTS, str(found.content)))
    assert found.created_at is not None
    assert content.created_at is not None
    assert 0 <= (content.created_at - found.created_at).total_seconds() < 1
    assert (content.snapshot, content.deletion_policy, content.restore_bytes) == ("s", "Delete", 2**30)
    assert content.handle in database.controllers.disk_snapshots


def test_a_cloud_takes_a_snapshot_long_before_it_is_ready(database: Cluster) -> None:
    database.controllers.uploads = True
    database.controllers.holds = lambda step, _found: step == "ready"
    api = database.api()
    api.create(VOLUME_SNAPSHOTS, snapshot("s"))
    database.run_controllers()
    taken = snapshot_of(api.get(VOLUME_SNAPSHOTS, "s"))
    assert taken.created_at is not None
    assert not taken.ready
    database.controllers.holds = lambda _step, _found: False
    database.run_controllers()
    assert snapshot_of(api.get(VOLUME_SNAPSHOTS, "s")).ready


def test_a_driver_that_fails_says_so_in_both(database: Cluster) -> None:
    database.controllers.snapshot_error = "rpc error: code = ResourceExhausted"
    api = database.api()
    api.create(VOLUME_SNAPSHOTS, snapshot("s"))
    database.run_controllers()
    found = snapshot_of(api.get(VOLUME_SNAPSHOTS, "s"))
    assert (found.error, found.ready, found.created_at) == ("rpc error: code = ResourceExhausted", False, None)
    assert content_of(api.get(VOLUME_SNAPSHOT_CONTENTS, str(found.content))).error == found.error


@pytest.mark.parametrize("told", [False, True], ids=["as it is", "told Delete first"])
def test_a_retained_content_leaves_its_disk_snapshot_behind(database: Cluster, *, told: bool) -> None:
    api = database.api()
    api.create(VOLUME_SNAPSHOTS, snapshot("s", "csi-hostpath-snap-retain"))
    database.run_controllers()
    content = str(snapshot_of(api.get(VOLUME_SNAPSHOTS, "s")).content)
    if told:
        api.patch(VOLUME_SNAPSHOT_CONTENTS, content, {"spec": {"deletionPolicy": "Delete"}})
    api.delete(VOLUME_SNAPSHOTS, "s")
    database.run_controllers()
    assert database.get(VOLUME_SNAPSHOTS, "s") is None
    assert (database.store.peek(VOLUME_SNAPSHOT_CONTENTS, "", content) is None) is told
    if not told:
        api.delete(VOLUME_SNAPSHOT_CONTENTS, content)
        database.run_controllers()
    assert database.store.all(VOLUME_SNAPSHOT_CONTENTS) == []
    assert (database.controllers.disk_snapshots == set()) is told


def test_a_retained_volume_is_bound_to_a_claim_again(database: Cluster) -> None:
    api = database.api()
    volume = str(claim_of(api.get(PERSISTENT_VOLUME_CLAIMS, "postgres-data-postgres-0")).volume)
    api.patch(PERSISTENT_VOLUMES, volume, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    api.delete(STATEFUL_SETS, "postgres", propagation="Orphan")
    database.run_controllers()
    assert database.get(PODS, "postgres-0") is not None, "orphaned, and still running"
    api.delete(PERSISTENT_VOLUME_CLAIMS, "postgres-data-postgres-0")
    database.run_controllers()
    assert database.get(PERSISTENT_VOLUME_CLAIMS, "postgres-data-postgres-0") is not None, "a Pod uses it"
    api.delete(PODS, "postgres-0")
    database.run_controllers()
    assert api.get(PERSISTENT_VOLUMES, volume)["status"]["phase"] == "Released"
    claim = {
        "metadata": {"name": "again"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "csi-hostpath",
            "volumeName": volume,
        },
    }
    api.create(PERSISTENT_VOLUME_CLAIMS, claim)
    database.run_controllers()
    assert not claim_of(api.get(PERSISTENT_VOLUME_CLAIMS, "again")).bound, "the volume still names the claim that is gone"
    api.patch(PERSISTENT_VOLUMES, volume, {"spec": {"claimRef": None}})
    database.run_controllers()
    assert claim_of(api.get(PERSISTENT_VOLUME_CLAIMS, "again")).bound


def test_a_volume_that_is_not_retained_goes_with_its_claim(database: Cluster) -> None:
    api = database.api()
    api.delete(STATEFUL_SETS, "postgres", propagation="Foreground")
    database.run_controllers()
    assert database.get(PODS, "postgres-0") is None
    api.delete(PERSISTENT_VOLUME_CLAIMS, "postgres-data-postgres-0")
    database.run_controllers()
    assert database.store.all(PERSISTENT_VOLUMES) == []


def test_a_changed_template_makes_the_pod_anew(database: Cluster) -> None:
    before = database.get(PODS, "postgres-0")
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "wal-archive", "image": "x"}]}}}}
    database.api().patch(STATEFUL_SETS, "postgres", patch, kind="strategic")
    database.run_controllers()
    after = database.get(PODS, "postgres-0")
    assert before is not None
    assert after is not None
    assert before["metadata"]["uid"] != after["metadata"]["uid"]
    assert [each["name"] for each in after["spec"]["containers"]] == ["postgres", "wal-archive"]


@pytest.mark.parametrize(
    ("codes", "failed", "pods"),
    [
        ([0], None, 1),
        ([11, 0], None, 2),
        ([13], "matching FailJob rule", 1),
        ([1, 1], "backoff limit", 2),
    ],
)
def test_a_job_ends_as_its_pods_and_its_policy_say(cluster: Cluster, codes: list[int], failed: str | None, pods: int) -> None:
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2, 13]}}
    spec = {
        "backoffLimit": 1,
        "podFailurePolicy": {"rules": [rule]},
        "template": {"spec": {"containers": [{"name": "backup"}], "restartPolicy": "Never"}},
    }
    api = cluster.api()
    api.create(JOBS, {"metadata": {"name": "j"}, "spec": spec})
    for code in codes:
        cluster.run_controllers()
        cluster.end_pod(next(each for each in cluster.store.all(PODS) if each["status"]["phase"] == "Running"), backup=code)
    cluster.run_controllers()
    job = job_of(api.get(JOBS, "j"))
    assert job.complete is (failed is None)
    assert failed is None or failed in str(job.failed)
    assert len(cluster.store.all(PODS)) == pods
    api.delete(JOBS, "j")
    cluster.run_controllers()
    assert len(cluster.store.all(PODS)) == pods, "a Job leaves its Pods behind when nobody says otherwise"


def test_a_pod_that_runs_lives_on_until_its_kubelet_has_stopped_it(database: Cluster) -> None:
    api = database.api()
    database.controllers.stopped.add("pods")  # a node that is slow, or away
    api.patch(STATEFUL_SETS, "postgres", {"spec": {"replicas": 0}})
    database.run_controllers()
    pod = database.get(PODS, "postgres-0")
    assert pod is not None
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 30
    assert pod["status"]["phase"] == "Running"
    api.delete(PERSISTENT_VOLUME_CLAIMS, "postgres-data-postgres-0")
    api.patch(STATEFUL_SETS, "postgres", {"spec": {"replicas": 1}})
    database.run_controllers()
    assert (database.get(PODS, "postgres-0") or {})["metadata"]["uid"] == pod["metadata"]["uid"], "no other of its name yet"
    assert database.get(PERSISTENT_VOLUME_CLAIMS, "postgres-data-postgres-0") is not None, "it is used"
    api.patch(STATEFUL_SETS, "postgres", {"spec": {"replicas": 0}})
    database.controllers.stopped.clear()
    database.run_controllers()
    assert database.get(PODS, "postgres-0") is None
    assert database.get(PERSISTENT_VOLUME_CLAIMS, "postgres-data-postgres-0") is None


RIGHTS = """
kind: Role
metadata: {name: r, namespace: clipper-production}
rules:
- {apiGroups: [""], resources: [pods, pods/log], verbs: [get, list]}
- {apiGroups: [apps], resources: [statefulsets], resourceNames: [postgres], verbs: [get]}
---
kind: RoleBinding
metadata: {name: r, namespace: clipper-production}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}
subjects: [{kind: ServiceAccount, name: backup-restore-test, namespace: clipper-production}]
"""


def test_rights_are_those_of_the_manifest(database: Cluster, tmp_path: Path) -> None:
    manifest = tmp_path / "rbac.yaml"
    manifest.write_text(RIGHTS)
    api = database.api("backup-restore-test")  # rbac.yaml grants it nothing
    with pytest.raises(AccessError, match="refuses to list pods in namespace clipper-production"):
        api.list(PODS)
    database.grant(manifest)
    account = f"system:serviceaccount:{NAMESPACE}:backup-restore-test"
    database.served.calls.clear()
    assert len(api.list(PODS)) == 1
    assert api.get(STATEFUL_SETS, "postgres")["kind"] == "StatefulSet"
    assert database.used() == {(account, "list", "pods"), (account, "get", "statefulsets.apps")}
    assert database.used() < database.access.granted()
    assert len(list(yaml.safe_load_all(RIGHTS))) == 2
    for verb, name in (("get", "other"), ("delete", "postgres")):
        with pytest.raises(AccessError, match=f"refuses to {verb} statefulsets.apps {name}"):
            api.get(STATEFUL_SETS, name) if verb == "get" else api.delete(STATEFUL_SETS, name)
    assert api.may("get", PODS, subresource="log")
    assert not api.may("delete", PODS)
    database.revoke("list", PODS)
    with pytest.raises(AccessError):
        api.list(PODS)


def test_every_verb_that_is_refused_is_named(database: Cluster) -> None:
    api = database.api("backup-operator")
    body = snapshot("s")
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: api.get(VOLUME_SNAPSHOTS, "s"),
        "list": lambda: api.list(VOLUME_SNAPSHOTS),
        "create": lambda: api.create(VOLUME_SNAPSHOTS, body),
        "patch": lambda: api.patch(VOLUME_SNAPSHOTS, "s", {}),
        "delete": lambda: api.delete(VOLUME_SNAPSHOTS, "s"),
    }
    for verb, call in calls.items():
        with pytest.raises(
            AccessError, match=f"refuses to {verb} volumesnapshots.snapshot.storage.k8s.io.* in namespace"
        ) as raised:
            call()
        assert raised.value.exit_code == 12
        assert "backup-operator" in str(raised.value)
        assert "rbac.yaml" in " ".join(raised.value.hints)


def test_a_custom_resource_is_held_to_its_own_schema(database: Cluster) -> None:
    wrong = snapshot("s")
    wrong["spec"]["volumeSnapshotClassName"] = 1
    with pytest.raises(UsageError, match=r"spec\.volumeSnapshotClassName: 1 is not of type 'string'"):
        database.api().create(VOLUME_SNAPSHOTS, wrong)


def test_a_custom_resource_takes_no_strategic_patch(database: Cluster) -> None:
    api = database.api()
    api.create(VOLUME_SNAPSHOTS, snapshot("s"))
    with pytest.raises(KubernetesError, match="answers 415 to patch"):
        api.patch(VOLUME_SNAPSHOTS, "s", {"metadata": {"labels": {"a": "b"}}}, kind="strategic")
