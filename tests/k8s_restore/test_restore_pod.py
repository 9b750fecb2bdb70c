"""The Job that restores: its object against schemas and manifests, and its two containers as two processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml

from clipper_backup.cli.app import make_app
from clipper_backup.errors import UsageError
from clipper_backup.kubernetes.resources import CONFIG_MAPS, JOBS, PERSISTENT_VOLUME_CLAIMS, PODS
from clipper_backup.ops.restore_pod import CONTROL, RESTORE, SERVER, SERVER_FLAGS, WORK, MountedClaim, RestoreJob, restore_job
from fixtures.cli import DEADLINE_SECONDS, RunCli
from fixtures.docs import ROOT
from fixtures.driven import SHELLS, control_folder, obeying
from fixtures.kube_cluster import NAMESPACE, Cluster
from fixtures.restore import World, restoring

BASE = ROOT / "infrastructure/k8s/base"
DATA = MountedClaim("postgres-data-restore-1", "/var/lib/postgresql/data")
ASKED = RestoreJob(
    name="clipper-restore-1",
    namespace=NAMESPACE,
    component="k8s-restore",
    claims=(DATA,),
    image="clipper-backup:0.1.0",
    args=("restore", "--target-dir", "/var/lib/postgresql/data/pgdata", "--to-time", "2026-11-22 14:05Z", *SERVER_FLAGS),
    server_image="postgres:17-alpine",
    uid=70,
    gid=70,
)


def manifest(name: str, kind: str, of: str) -> Any:
    (found,) = (
        each for each in yaml.safe_load_all((BASE / name).read_text()) if (each["kind"], each["metadata"]["name"]) == (kind, of)
    )
    return found


def containers(job: Any) -> dict[str, Any]:
    return {each["name"]: each for each in job["spec"]["template"]["spec"]["containers"]}


@pytest.mark.parametrize("version", ["1.28", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "asked",
    [
        ASKED,
        replace(ASKED, identity="backup-identity", annotations={"clipper-backup/restore": "1"}, node_selector={"disk": "fast"}),
        replace(ASKED, server_image=None, args=("restore", "--target-dir", "/var/lib/postgresql/data/pgdata")),
        replace(ASKED, tolerations=[{"operator": "Exists"}], affinity={"nodeAffinity": {}}),
        replace(ASKED, claims=(DATA, MountedClaim("postgres-more", "/spaces", "one"))),
    ],
    ids=["plain", "sealed", "no server", "placed", "two claims"],
)
def test_strict_schemas_accept_it(asked: RestoreJob, version: str) -> None:
    kubernetes_validate.validate(restore_job(asked), version, strict=True)


def test_both_containers_see_the_same_and_run_as_the_databases_user() -> None:
    job = restore_job(ASKED)
    pod, found = job["spec"]["template"]["spec"], containers(job)
    assert set(found) == {RESTORE, SERVER}
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"], context["runAsNonRoot"]) == (70, 70, 70, True)
    for container in found.values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert {CONTROL: "control", WORK: "work", DATA.path: "claim-0"}.items() <= mounts.items()
    assert found[SERVER]["image"] == "postgres:17-alpine", "never another libc"
    assert "env" not in found[SERVER]
    assert {each["name"] for each in found[SERVER]["volumeMounts"]} == {"obey", "control", "work", "tmp", "claim-0"}, "no key"
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["claim-0"] == {"name": "claim-0", "persistentVolumeClaim": {"claimName": DATA.claim}}
    assert {each["name"] for container in found.values() for each in container["volumeMounts"]} == set(volumes)


def test_its_pod_has_no_token_and_nothing_that_selects_a_database_selects_it() -> None:
    job = restore_job(ASKED)
    template = job["spec"]["template"]
    assert template["spec"]["automountServiceAccountToken"] is False
    assert not any(
        "serviceAccountToken" in source
        for v in template["spec"]["volumes"]
        for source in v.get("projected", {}).get("sources", ())
    )
    selector = manifest("postgres-pitr-config.yaml", "StatefulSet", "postgres")["spec"]["selector"]["matchLabels"]
    for labels in (job["metadata"]["labels"], template["metadata"]["labels"]):
        assert not selector.items() <= labels.items()
        assert "app" not in labels


def test_it_takes_from_the_namespace_what_the_manifests_put_there() -> None:
    job = restore_job(replace(ASKED, identity="backup-identity"))
    volumes = {each["name"]: each for each in job["spec"]["template"]["spec"]["volumes"]}
    obey = manifest("backup-cronjobs.yaml", "ConfigMap", volumes["obey"]["configMap"]["name"])
    command = containers(job)[SERVER]["command"]
    mounted = {each["name"]: each["mountPath"] for each in containers(job)[SERVER]["volumeMounts"]}
    assert command == ["sh", f"{mounted['obey']}/obey.sh", CONTROL]
    assert "obey.sh" in obey["data"]
    assert manifest("rbac.yaml", "ServiceAccount", "backup-restore")
    cron = manifest("backup-cronjobs.yaml", "CronJob", "postgres-backup")["spec"]["jobTemplate"]["spec"]
    theirs, ours = cron["podFailurePolicy"]["rules"][0]["onExitCodes"], job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert ours == theirs | {"containerName": RESTORE}
    (backup,) = cron["template"]["spec"]["containers"]
    assert containers(job)[RESTORE]["envFrom"] == backup["envFrom"]
    assert containers(job)[RESTORE]["env"][0] == backup["env"][0]
    component = yaml.safe_load((BASE.parent / "components/sealing/identity.yaml").read_text())
    sealing = component["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert sealing["containers"][0]["env"] == containers(job)[RESTORE]["env"][1:]
    assert sealing["volumes"][0]["secret"]["secretName"] == volumes["identity"]["secret"]["secretName"]


def test_its_words_are_a_command() -> None:
    command, bound, _ = make_app().parse_args(list(ASKED.args), print_error=False, exit_on_error=False)
    assert (command.__name__, str(bound.kwargs["server_folder"]), bound.kwargs["start"]) == ("restore", CONTROL, True)


@pytest.mark.parametrize(("change", "said"), [({"uid": 0}, "root"), ({"gid": 0}, "root"), ({"claims": ()}, "no claim")])
def test_what_cannot_work_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        restore_job(replace(ASKED, **change))


def test_the_job_runs_in_a_cluster_and_a_second_one_of_its_words_is_the_same(cluster: Cluster) -> None:
    cluster.add_storage()
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "csi-hostpath"}
    api = cluster.api()
    api.create(PERSISTENT_VOLUME_CLAIMS, {"metadata": {"name": DATA.claim}, "spec": spec})
    api.create(CONFIG_MAPS, {"metadata": {"name": "clipper-backup-obey"}})
    made = api.create(JOBS, restore_job(ASKED))
    assert api.create(JOBS, restore_job(ASKED), resumed=True)["metadata"]["uid"] == made["metadata"]["uid"]
    cluster.run_controllers()
    (pod,) = cluster.store.all(PODS)
    assert pod["status"]["phase"] == "Running"
    cluster.end_pod(pod, restore=0, server=0)
    cluster.run_controllers()
    assert (cluster.get(JOBS, ASKED.name) or {})["status"]["succeeded"] == 1


@pytest.mark.rule(98)
@pytest.mark.parametrize("shell", SHELLS)
def test_its_two_containers_restore_as_two_processes(restore_world: World, place: Path, run_cli: RunCli, shell: str) -> None:
    """The work folder is an emptyDir, everybody's; what a restore keeps there it must make itself."""
    world = restore_world.copied_to(place)
    control, work = control_folder(place), place / "work"
    work.mkdir()
    work.chmod(0o777)
    flags = [word.replace(CONTROL, str(control)).replace(WORK, str(work)) for word in SERVER_FLAGS]
    words = [*restoring(world, place, "--to-name", "moment 2"), *flags, "--json"]
    with obeying(control, world.major, shell, patience=15) as loop:
        done = run_cli(*words, env=world.settings, check=True).document["restored"]
        assert loop.wait(DEADLINE_SECONDS) == 0
    assert done["history_archived"]
    assert done["started"]["timeline"] == 2
