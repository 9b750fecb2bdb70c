"""The manifests of base, read as the cluster would read them. Most tests look at every Pod of every file."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # it ships no types
import pytest
import yaml
from lightkube.config.kubeconfig import SERVICE_ACCOUNT

from clipper_backup import __version__
from clipper_backup.cli.app import make_app
from clipper_backup.cli.arguments import split
from clipper_backup.config import CONFIG_VARIABLE, DECLARED, Loaded, load
from clipper_backup.errors import UsageError, every_error
from clipper_backup.ops.wal.shims import RESTORE_SHIM
from clipper_backup.postgres import folder_runner
from clipper_backup.telemetry.metrics import RESTORE_TEST_JOB, restore_test_failed
from clipper_backup.telemetry.pushgateway import Pushgateway
from clipper_backup.values import parse_bytes
from fixtures.kube_cluster import KUBECTL
from fixtures.monitoring import running_pushgateway

ROOT = Path(__file__).parents[2]
BASE = ROOT / "infrastructure" / "k8s" / "base"
MANIFESTS = sorted(path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
VERSIONS = ("1.28", kubernetes_validate.latest_version())
MIB = 2**20
CRON_JOBS = {
    "postgres-backup": ("0 2 * * *", "backup-operator", 6 * 3600),
    "volume-snapshot": ("0 3 * * *", "backup-snapshots", 2 * 3600),
    "restore-test": ("0 4 1 * *", "backup-restore-test", 4 * 3600 + 1800),
}
"""By name: when, as whom, within how many seconds."""

Object = dict[str, Any]


def read(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


OBJECTS = [pytest.param(o, id=f"{path.name}-{o['kind']}-{o['metadata']['name']}") for path in MANIFESTS for o in read(path)]
EVERY_OBJECT: list[Object] = [o for path in MANIFESTS for o in read(path)]


def pod_template(o: Object) -> Object | None:
    """The Pods that are all ours; the database's, with what we add to it, is looked at in test_pitr_manifests.py."""
    if o["kind"] == "StatefulSet":
        return None
    spec = o.get("spec", {})
    template: Object | None = spec.get("jobTemplate", {}).get("spec", spec).get("template")
    return template


PODS = [
    pytest.param(template["spec"], id=f"{o['kind']}-{o['metadata']['name']}")
    for o in EVERY_OBJECT
    if (template := pod_template(o)) is not None
]


def containers(pod: Object) -> Iterator[Object]:
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def cronjob(name: str) -> Object:
    (found,) = (o for o in EVERY_OBJECT if o["kind"] == "CronJob" and o["metadata"]["name"] == name)
    return found


def job(name: str) -> Object:
    spec: Object = cronjob(name)["spec"]["jobTemplate"]["spec"]
    return spec


@pytest.fixture
def dump_pod() -> Object:
    pod: Object = job("postgres-backup")["template"]["spec"]
    return pod


@pytest.fixture
def dump_container(dump_pod: Object) -> Object:
    (container,) = dump_pod["containers"]
    assert isinstance(container, dict)
    return container


# -- every object


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("o", OBJECTS)
def test_the_schema_holds(o: Object, version: str) -> None:
    assert version.startswith(kubernetes_validate.validate(o, version, strict=True)), "it says against which schema"


def test_the_schema_is_strict() -> None:
    with pytest.raises(kubernetes_validate.ValidationError, match="suspended"):
        kubernetes_validate.validate(
            {**cronjob("postgres-backup"), "spec": {**cronjob("postgres-backup")["spec"], "suspended": True}}, "1.28", strict=True
        )


@pytest.mark.parametrize("o", OBJECTS)
def test_everything_says_its_namespace_and_whose_it_is(o: Object) -> None:
    of_no_namespace = o["kind"] in {"ClusterRole", "ClusterRoleBinding"}
    assert o["metadata"].get("namespace") in ({None} if of_no_namespace else {"clipper-production", "clipper-monitoring"})
    # What deletes by our label must never delete a database.
    ours = o["kind"] != "StatefulSet"
    assert (o["metadata"].get("labels", {}).get("app.kubernetes.io/name") == "clipper-backup") is ours


def test_nothing_that_is_the_users_is_in_our_files() -> None:
    kinds = {o["kind"] for o in EVERY_OBJECT}
    assert not kinds & {"Namespace", "Secret"}
    assert "backup-config" not in {o["metadata"]["name"] for o in EVERY_OBJECT}


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(o["kind"], o["metadata"]["name"]): o for o in objects}


def test_kustomize_builds_exactly_what_the_files_hold() -> None:
    answer = subprocess.run([KUBECTL, "kustomize", str(BASE)], capture_output=True, text=True, check=True, timeout=60)
    assert by_name(list(yaml.safe_load_all(answer.stdout))) == by_name(EVERY_OBJECT)


def test_scripts_in_configmaps_are_copies_of_ours() -> None:
    assert by_name(EVERY_OBJECT)["ConfigMap", "clipper-backup-obey"]["data"] == {
        "obey.sh": Path(folder_runner.__file__).with_name("obey.sh").read_text(),
        "restore.sh": RESTORE_SHIM.read_text(),
    }


# -- every Pod


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_is_within_the_restricted_profile(pod: Object) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
    for container in containers(pod):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in security


@pytest.mark.parametrize("pod", PODS)
@pytest.mark.rule(93)
def test_a_pod_gets_nothing_it_did_not_ask_for(pod: Object) -> None:
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    if "serviceAccountName" in pod:  # the Pushgateway is nobody
        account = by_name(EVERY_OBJECT)["ServiceAccount", pod["serviceAccountName"]]
        assert account["automountServiceAccountToken"] is False


def tokens(pod: Object) -> list[Object]:
    sources = [source for volume in pod["volumes"] for source in volume.get("projected", {}).get("sources", [])]
    return [source["serviceAccountToken"] for source in sources if "serviceAccountToken" in source]


@pytest.mark.rule(93)
def test_one_job_has_a_token_of_the_api_for_an_hour_where_the_client_looks_for_it() -> None:
    pods = [template["spec"] for o in EVERY_OBJECT if (template := pod_template(o)) is not None]
    having = {pod["serviceAccountName"]: tokens(pod) for pod in pods if tokens(pod)}
    assert having == {"backup-snapshots": [{"path": "token", "expirationSeconds": 3600}]}
    (container,) = job("volume-snapshot")["template"]["spec"]["containers"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "api")
    assert mount["mountPath"] == SERVICE_ACCOUNT


@pytest.mark.parametrize("pod", PODS)
def test_memory_and_scratch_are_bounded(pod: Object) -> None:
    for container in containers(pod):
        resources = container["resources"]
        limit = parse_bytes(resources["limits"]["memory"] + "B")
        own_server = pod.get("serviceAccountName") == "backup-restore-test"  # runs a PostgreSQL besides
        assert parse_bytes(resources["requests"]["memory"] + "B") <= limit <= (2 if own_server else 1) * 512 * MIB
        assert "cpu" not in resources["limits"]
    scratch = [volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume]
    requested = [parse_bytes(c["resources"]["requests"]["ephemeral-storage"] + "B") for c in containers(pod)]
    assert sum(parse_bytes(volume["sizeLimit"] + "B") for volume in scratch) <= sum(requested)


@pytest.mark.parametrize("pod", PODS)
def test_credentials_come_by_reference_only(pod: Object) -> None:
    for container in containers(pod):
        for variable in container.get("env", []):
            if re.search(r"PASS|SECRET|TOKEN|KEY|CREDENTIAL|PGUSER", variable["name"]):
                assert set(variable) == {"name", "valueFrom"}, f"{variable['name']} must not stand here"
            assert not re.search(r"://[^/]*@", variable.get("value", "")), f"{variable['name']} has a login in its URL"


@pytest.mark.parametrize("pod", PODS)
def test_every_variable_is_a_setting_we_know(pod: Object) -> None:
    names = {declared.name for declared in DECLARED}
    for container in containers(pod):
        for variable in container.get("env", []):
            assert variable["name"] == CONFIG_VARIABLE or variable["name"].removesuffix("_DEFAULT") in names


@pytest.mark.parametrize("pod", PODS)
def test_what_a_container_mounts_exists(pod: Object) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
    assert mounted == volumes


def test_there_is_one_image_and_it_is_this_version() -> None:
    images = {c["image"] for o in EVERY_OBJECT if (template := pod_template(o)) for c in containers(template["spec"])}
    assert images == {f"clipper-backup:{__version__}", "prom/pushgateway:v1.6.2"}


# -- every CronJob


@pytest.mark.parametrize("name", [o["metadata"]["name"] for o in EVERY_OBJECT if o["kind"] == "CronJob"])
@pytest.mark.rule(90)
def test_a_cronjob_starts_once_and_ends_before_its_next_run(name: str) -> None:
    spec = cronjob(name)["spec"]
    assert spec["timeZone"] == "UTC"
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] + job(name)["activeDeadlineSeconds"] < 24 * 3600
    assert "suspend" not in spec, "a user's `kubectl patch … suspend` must survive the next apply"
    assert spec["successfulJobsHistoryLimit"] > 0
    assert spec["failedJobsHistoryLimit"] > 0


@pytest.mark.parametrize("name", [o["metadata"]["name"] for o in EVERY_OBJECT if o["kind"] == "CronJob"])
def test_what_trying_again_cannot_change_is_not_tried_again(name: str) -> None:
    policy = job(name)["podFailurePolicy"]["rules"]
    pod = job(name)["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "the API refuses podFailurePolicy otherwise"
    (fail,) = (rule["onExitCodes"] for rule in policy if rule["action"] == "FailJob")
    assert fail["containerName"] in {container["name"] for container in pod["containers"]}
    assert fail["operator"] == "In"
    assert fail["values"] == [2, 3, 10, 12, 13]
    assert set(fail["values"]) <= {error.exit_code for error in every_error()}
    temporary = {error.exit_code for error in every_error() if error.temporary}
    assert not temporary & set(fail["values"])
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in policy
    assert job(name)["backoffLimit"] > 0


@pytest.mark.parametrize("name", CRON_JOBS)
def test_a_cronjob_runs_its_own_command_at_its_hour(name: str) -> None:
    schedule, account, deadline = CRON_JOBS[name]
    assert cronjob(name)["spec"]["schedule"] == schedule
    assert job(name)["activeDeadlineSeconds"] == deadline
    pod = job(name)["template"]["spec"]
    assert pod["serviceAccountName"] == account
    (container,) = pod["containers"]
    assert container["command"] == ["clipper-backup"]
    words = list(split(container["args"]).words)
    assert words == ["job", name]
    make_app().parse_args(words, exit_on_error=False, print_error=False)  # raises on a word too many


@pytest.mark.parametrize("name", CRON_JOBS)
def test_labels_are_on_the_cronjob_its_jobs_and_their_pods(name: str) -> None:
    ours = {"app.kubernetes.io/name": "clipper-backup", "app.kubernetes.io/component": name}
    for about in (cronjob(name), cronjob(name)["spec"]["jobTemplate"], job(name)["template"]):
        assert ours.items() <= about["metadata"]["labels"].items()


def test_a_restore_test_may_take_four_times_its_target() -> None:
    target = next(declared.default for declared in DECLARED if declared.name == "RTO_TARGET_SECONDS")
    assert job("restore-test")["activeDeadlineSeconds"] >= 4 * int(str(target))


@pytest.mark.rule(94)
def test_the_restore_tests_scratch_is_bounded_and_asked_for() -> None:
    pod = job("restore-test")["template"]["spec"]
    (container,) = pod["containers"]
    (scratch,) = (volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)
    assert scratch["sizeLimit"] == container["resources"]["requests"]["ephemeral-storage"] == "10Gi"
    assert {variable["name"] for variable in container["env"]}.isdisjoint({"PGUSER", "PGPASSWORD", "PGHOST_DEFAULT"})


# -- the network


def test_jobs_are_reached_by_nobody_and_only_those_that_ask_the_api_reach_its_port() -> None:
    policies = {o["metadata"]["name"]: o["spec"] for o in EVERY_OBJECT if o["kind"] == "NetworkPolicy"}
    ours = policies["clipper-backup"]
    assert (ours["policyTypes"], ours["ingress"]) == (["Ingress", "Egress"], [])
    (asking,) = policies["clipper-backup-api"]["podSelector"]["matchExpressions"]
    assert "volume-snapshot" in asking["values"]
    assert not {"postgres-backup", "restore-test"} & set(asking["values"])
    ports = [{(port["protocol"], port["port"]) for port in rule["ports"]} for rule in ours["egress"]]
    assert {("UDP", 53), ("TCP", 53)} in ports
    assert {port for each in ports for port in each} == {("UDP", 53)} | {("TCP", n) for n in (53, 80, 443, 988, 5432, 9091)}
    database = pod_labels("StatefulSet", "postgres")
    selector = ours["podSelector"]["matchLabels"].items()
    assert not selector <= database.items(), "the database is not ours to restrict"
    (to_database,) = (rule["to"] for rule in ours["egress"] if {"protocol": "TCP", "port": 5432} in rule["ports"])
    assert to_database[0]["podSelector"]["matchLabels"].items() <= database.items()
    for name in CRON_JOBS:
        assert selector <= job(name)["template"]["metadata"]["labels"].items()


def pod_labels(kind: str, name: str) -> dict[str, str]:
    labels: dict[str, str] = by_name(EVERY_OBJECT)[kind, name]["spec"]["template"]["metadata"]["labels"]
    return labels


def test_the_pushgateway_is_where_jobs_look_for_it() -> None:
    objects = by_name(EVERY_OBJECT)
    service, labels = objects["Service", "prometheus-pushgateway"], pod_labels("Deployment", "prometheus-pushgateway")
    (port,) = service["spec"]["ports"]
    where = f"http://{service['metadata']['name']}.{service['metadata']['namespace']}:{port['port']}"
    for name in CRON_JOBS:
        (container,) = job(name)["template"]["spec"]["containers"]
        assert {"name": "PROMETHEUS_PUSHGATEWAY_DEFAULT", "value": where} in container["env"]
    policy = objects["NetworkPolicy", "prometheus-pushgateway"]["spec"]
    for selector in (service["spec"]["selector"], policy["podSelector"]["matchLabels"]):
        assert selector == labels == objects["Deployment", "prometheus-pushgateway"]["spec"]["selector"]["matchLabels"]
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port["targetPort"]}]


def test_what_was_pushed_survives_a_restart_of_the_pushgateway(tmp_path: Path) -> None:
    pod = by_name(EVERY_OBJECT)["Deployment", "prometheus-pushgateway"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    flags = [word.replace(mount["mountPath"], str(tmp_path)).replace("=1m", "=100ms") for word in container["args"]]
    with running_pushgateway(*flags) as running:
        Pushgateway.parse(running.url).push(RESTORE_TEST_JOB, restore_test_failed())
        pushed = running.metrics()["postgres_restore_test_success"]
        until = time.monotonic() + 30
        while not (tmp_path / "metrics").exists() and time.monotonic() < until:
            time.sleep(0.05)
    with running_pushgateway(*flags) as again:
        assert again.metrics()["postgres_restore_test_success"] == pushed


# -- the dump


def test_the_dump_may_use_what_it_promises_to_need(dump_container: Object) -> None:
    assert parse_bytes(dump_container["resources"]["requests"]["memory"] + "B") >= 300 * MIB


def test_the_dump_logs_in_as_the_secret_says(dump_container: Object) -> None:
    references = {v["name"]: v["valueFrom"] for v in dump_container["env"] if "valueFrom" in v}
    assert references == {
        "PGUSER": {"secretKeyRef": {"name": "postgres-secret", "key": "POSTGRES_USER"}},
        "PGPASSWORD": {"secretKeyRef": {"name": "postgres-secret", "key": "POSTGRES_PASSWORD"}},
    }


def test_temporary_files_go_to_the_scratch_volume(dump_pod: Object, dump_container: Object) -> None:
    (mount,) = (m for m in dump_container["volumeMounts"] if m["mountPath"] == "/tmp")
    (volume,) = (v for v in dump_pod["volumes"] if v["name"] == mount["name"])
    assert "emptyDir" in volume


# The ConfigMap of the source document, Step 2, as it stands there.
BACKUP_CONFIG = yaml.safe_load("""
apiVersion: v1
kind: ConfigMap
metadata:
  name: backup-config
  namespace: clipper-production
data:
  CLOUD_PROVIDER: "gcp"  # Options: gcp, aws, azure
  BACKUP_BUCKET: "clipper-backups-prod"
  RETENTION_DAYS: "30"
  VOLUME_SNAPSHOT_CLASS: "csi-gce-pd"  # GCP: csi-gce-pd, AWS: csi-aws-vsc, Azure: csi-azuredisk-vsc
  # Azure only:
  # AZURE_STORAGE_ACCOUNT: "clipperbackupsprod"
""")["data"]


class Configured:
    """What the dump's settings are when `backup-config` holds *data*, mounted the way the kubelet does it."""

    def __init__(self, pod: Object, container: Object, folder: Path) -> None:
        self._environment = {v["name"]: v.get("value", "from-the-secret") for v in container["env"]}
        (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == self._environment[CONFIG_VARIABLE])
        (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
        assert mount["readOnly"] is True
        assert volume["configMap"] == {"name": "backup-config", "optional": True}
        self._folder = folder
        self._environment[CONFIG_VARIABLE] = str(folder)

    def __call__(self, data: dict[str, str]) -> Loaded:
        (self._folder / "..2026_11_22").mkdir()
        (self._folder / "..data").symlink_to("..2026_11_22")
        for name, text in data.items():
            (self._folder / "..data" / name).write_text(text)
            (self._folder / name).symlink_to(f"..data/{name}")
        return load({}, self._environment)


@pytest.fixture
def configured(dump_pod: Object, dump_container: Object, tmp_path: Path) -> Configured:
    return Configured(dump_pod, dump_container, tmp_path)


def test_the_sources_configmap_is_understood_and_the_defaults_stand(configured: Configured) -> None:
    settings = configured(BACKUP_CONFIG).settings
    assert (settings.cloud_provider, settings.backup_bucket, settings.retention_days) == ("gcp", "clipper-backups-prod", 30)
    assert settings.pghost == "postgres"
    assert settings.prometheus_pushgateway == "http://prometheus-pushgateway.clipper-monitoring:9091"
    assert settings.pguser == "from-the-secret"


def test_backup_config_beats_the_defaults_of_the_manifest(configured: Configured) -> None:
    loaded = configured({**BACKUP_CONFIG, "PGHOST": "db.example", "PROMETHEUS_PUSHGATEWAY": "http://elsewhere:9091"})
    assert loaded.settings.pghost == "db.example"
    assert loaded.settings.prometheus_pushgateway == "http://elsewhere:9091"
    assert loaded.origins["PGHOST"].endswith(str(configured._folder))


def test_an_empty_value_in_backup_config_switches_a_default_off(configured: Configured) -> None:
    assert configured({**BACKUP_CONFIG, "PROMETHEUS_PUSHGATEWAY": ""}).settings.prometheus_pushgateway is None


def test_a_misspelt_key_in_backup_config_is_an_error(configured: Configured) -> None:
    with pytest.raises(UsageError, match="unknown setting RETENTION_DAY "):
        configured({**BACKUP_CONFIG, "RETENTION_DAY": "3"})
