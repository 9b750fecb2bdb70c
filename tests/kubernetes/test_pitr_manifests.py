"""postgres-pitr-config.yaml and the patches of components/, read as the API and the kubelet would read them."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # it ships no types
import pytest
import yaml

from clipper_backup import __version__
from clipper_backup.cli.arguments import split
from clipper_backup.config import CONFIG_VARIABLE, DECLARED
from clipper_backup.ops.wal.shims import ARCHIVE_SHIM, HBA_FILE, START_SHIM
from clipper_backup.values import parse_bytes
from fixtures.docs import ROOT
from fixtures.kube_cluster import KUBECTL
from fixtures.pod import documents
from fixtures.strategic_merge import Object, merged

COMPONENTS = ROOT / "infrastructure/k8s/components"
CONFIG, STATEFUL_SET = documents()
VERSIONS = ("1.28", kubernetes_validate.latest_version())
MIB = 2**20


def patch(component: str) -> Object:
    document = yaml.safe_load((COMPONENTS / component / "statefulset.yaml").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


PLAIN, NATIVE = patch("wal-sidecar"), patch("wal-sidecar-native")
COMPONENT_NAMES = ["wal-sidecar", "wal-sidecar-native", "debian-image", "debian-image-native"]


def pod_of(stateful_set: Object) -> Object:
    spec = stateful_set["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container(stateful_set: Object, name: str) -> Object:
    pod = pod_of(stateful_set)
    every = (*pod.get("initContainers", []), *pod["containers"])
    (found,) = (each for each in every if each["name"] == name and "$patch" not in each)
    assert isinstance(found, dict)
    return found


def recorded() -> Object:
    """The StatefulSet that a real control plane took (../shared/k8s-recordings/statefulset-immutable-fields.jsonl)."""
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "postgres", "namespace": "clipper-production"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "postgres"}},
            "serviceName": "postgres",
            "template": {
                "metadata": {"labels": {"app": "postgres"}},
                "spec": {"containers": [{"image": "postgres:17-alpine", "name": "postgres"}]},
            },
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "postgres-data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
                }
            ],
        },
    }


def with_secret(stateful_set: Object) -> Object:
    """The same with its login and its data, as base has them."""
    made = copy.deepcopy(stateful_set)
    (postgres,) = made["spec"]["template"]["spec"]["containers"]
    postgres["env"] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": "postgres-secret", "key": name}}}
        for name in ("POSTGRES_USER", "POSTGRES_PASSWORD")
    ]
    postgres["volumeMounts"] = [{"name": "postgres-data", "mountPath": "/var/lib/postgresql/data"}]
    return made


def helms() -> Object:
    """A chart's: other labels, size and class, args, probes, resources, an init container and a sidecar of its own."""
    made = with_secret(recorded())
    spec = made["spec"]
    spec["selector"]["matchLabels"] = {"app.kubernetes.io/name": "postgresql", "app.kubernetes.io/instance": "clipper"}
    spec["serviceName"] = "clipper-postgresql-hl"
    spec["template"]["metadata"] = {"labels": dict(spec["selector"]["matchLabels"]), "annotations": {"checksum/config": "1"}}
    spec["volumeClaimTemplates"][0]["spec"] |= {"storageClassName": "fast", "resources": {"requests": {"storage": "100Gi"}}}
    pod = spec["template"]["spec"]
    pod["securityContext"] = {"fsGroup": 70, "runAsUser": 70}
    pod["initContainers"] = [
        {"name": "volume-permissions", "image": "busybox", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}
    ]
    pod["containers"].append({"name": "metrics", "image": "postgres-exporter:0.15", "ports": [{"containerPort": 9187}]})
    pod["volumes"] = [{"name": "x", "emptyDir": {}}]
    postgres = pod["containers"][0]
    postgres["args"] = ["-c", "shared_buffers=1GB"]
    postgres["env"] += [{"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"}, {"name": "LANG", "value": "C"}]
    postgres["volumeMounts"].append({"name": "x", "mountPath": "/dev/shm"})
    postgres["livenessProbe"] = {"exec": {"command": ["pg_isready"]}}
    postgres["resources"] = {"requests": {"memory": "2Gi"}}
    return made


def with_a_plain_claim() -> Object:
    """Clipper's own with a PersistentVolumeClaim instead of a template."""
    made = with_secret(recorded())
    del made["spec"]["volumeClaimTemplates"]
    pod_of(made)["volumes"] = [{"name": "postgres-data", "persistentVolumeClaim": {"claimName": "postgres"}}]
    return made


def of_debian() -> Object:
    made = with_secret(recorded())
    postgres = container(made, "postgres")
    postgres["image"] = "pgvector/pgvector:pg16"
    postgres["volumeMounts"] = [{"name": "postgres-data", "mountPath": "/var/lib/postgresql/data", "subPath": "pg"}]
    return made


THEIRS = {"recorded": with_secret(recorded()), "helm": helms(), "plain claim": with_a_plain_claim(), "debian": of_debian()}


def paths(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Each scalar with where it stands; elements that have a name or a mountPath stand under that."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths(each, f"{at}.{key}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            name = each.get("mountPath", each.get("name", number)) if isinstance(each, dict) else number
            yield from paths(each, f"{at}[{name}]")
    else:
        yield at, value


def by_kubectl(stateful_set: Object, component: str, folder: Path) -> Object:
    """The patch as kubectl merges it."""
    (folder / "theirs.json").write_text(json.dumps(stateful_set))
    file = COMPONENTS / component / "statefulset.yaml"
    words = [
        "patch",
        "--local",
        "-f",
        str(folder / "theirs.json"),
        "--type",
        "strategic",
        "--patch-file",
        str(file),
        "-o",
        "json",
    ]
    done = subprocess.run([KUBECTL, *words], capture_output=True, text=True, check=True, timeout=60)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


# -- K3: the patch takes nothing away


@pytest.mark.parametrize("component", ["wal-sidecar", "wal-sidecar-native"])
@pytest.mark.parametrize("name", THEIRS)
def test_the_patch_changes_nothing_of_the_users(name: str, component: str) -> None:
    theirs = dict(paths(THEIRS[name]))
    after = dict(paths(merged(THEIRS[name], patch(component))))
    assert theirs.items() <= after.items()
    ours = {path for path in after if path not in theirs}
    pod = ".spec.template.spec"
    mounts = r"\[postgres\]\.volumeMounts\[/clipper-backup/(pitr|handshake)\]"
    allowed = re.compile(
        rf"\.spec\.template\.metadata\.labels\.azure|{re.escape(pod)}\.((init)?[cC]ontainers(\[wal-archive\]|\[postgres\]\.command|{mounts})"
        r"|volumes\[clipper-backup-|serviceAccountName$|terminationGracePeriodSeconds$)"
    )
    assert [path for path in ours if not allowed.match(path)] == []


def test_a_command_of_the_users_own_is_replaced() -> None:
    theirs = with_secret(recorded())
    container(theirs, "postgres")["command"] = ["their-wrapper.sh"]
    assert container(merged(theirs, PLAIN), "postgres")["command"] == ["sh", "/clipper-backup/pitr/start.sh"]


@pytest.mark.parametrize("component", COMPONENT_NAMES)
@pytest.mark.parametrize("name", THEIRS)
def test_kubectl_merges_as_we_do(name: str, component: str, tmp_path: Path) -> None:
    before = THEIRS[name]
    if component.startswith("debian-image"):
        before = merged(before, NATIVE if component.endswith("native") else PLAIN)
    assert dict(paths(by_kubectl(before, component, tmp_path))) == dict(paths(merged(before, patch(component))))


def test_base_is_the_recorded_one_with_its_secret_and_the_patch() -> None:
    assert dict(paths(STATEFUL_SET)) == dict(paths(merged(with_secret(recorded()), PLAIN)))


def test_base_applies_over_itself_and_the_recorded_one_without_immutable_fields() -> None:
    mutable = {"replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "minReadySeconds"}
    immutable = {key: value for key, value in STATEFUL_SET["spec"].items() if key not in mutable}
    assert immutable == {key: value for key, value in recorded()["spec"].items() if key not in mutable}


@pytest.mark.parametrize("name", ["helm", "plain claim"])
def test_base_is_refused_over_another_one(name: str) -> None:
    immutable = ("selector", "serviceName", "volumeClaimTemplates")
    assert any(STATEFUL_SET["spec"][key] != THEIRS[name]["spec"].get(key) for key in immutable)


def test_what_deletes_by_our_label_deletes_no_database() -> None:
    assert "labels" not in STATEFUL_SET["metadata"]
    assert "app.kubernetes.io/name" not in STATEFUL_SET["spec"]["template"]["metadata"]["labels"]


# -- the native one, and Debian's


def test_the_native_sidecar_is_the_plain_one_that_is_started_first_and_stays() -> None:
    plain, native = (container(merged(with_secret(recorded()), each), "wal-archive") for each in (PLAIN, NATIVE))
    assert native.pop("restartPolicy") == "Always"
    assert native == plain


@pytest.mark.parametrize("before", [PLAIN, NATIVE, {}], ids=["plain", "native", "none"])
def test_the_native_patch_leaves_one_archiver_wherever_there_was_one(before: Object) -> None:
    after = merged(merged(with_secret(recorded()), before), NATIVE)
    assert [each["name"] for each in pod_of(after)["initContainers"]] == ["wal-archive"]
    assert [each["name"] for each in pod_of(after)["containers"]] == ["postgres"]


@pytest.mark.parametrize(("sidecar", "component"), [(PLAIN, "debian-image"), (NATIVE, "debian-image-native")])
def test_debians_user_and_nothing_else(sidecar: Object, component: str) -> None:
    alpine = merged(of_debian(), sidecar)
    debian = merged(alpine, patch(component))
    changed = dict(paths(debian)).items() - dict(paths(alpine)).items()
    assert {(path.rpartition("[wal-archive]")[2], value) for path, value in changed} == {
        (".securityContext.runAsUser", 999),
        (".securityContext.runAsGroup", 999),
    }


@pytest.mark.parametrize("component", COMPONENT_NAMES)
def test_a_component_is_its_patch(component: str) -> None:
    kustomization = yaml.safe_load((COMPONENTS / component / "kustomization.yaml").read_text(encoding="utf-8"))
    assert kustomization["kind"] == "Component"
    assert kustomization["patches"] == [{"path": "statefulset.yaml"}]


@pytest.mark.parametrize("components", [["wal-sidecar"], ["wal-sidecar-native"], ["wal-sidecar-native", "debian-image-native"]])
def test_kustomize_builds_base_with_components(components: list[str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infrastructure/k8s", tmp_path / "k8s")
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps({"resources": ["k8s/base"], "components": [f"k8s/components/{name}" for name in components]})
    )
    done = subprocess.run([KUBECTL, "kustomize", str(tmp_path)], capture_output=True, text=True, check=True, timeout=60)
    (built,) = (each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "StatefulSet")
    expected = STATEFUL_SET
    for name in components:
        expected = merged(expected, patch(name))
    assert dict(paths(built)) == dict(paths(expected))


# -- what the kubelet is given

MERGED = {
    f"{name}, {kind}": merged(theirs, each)
    for name, theirs in THEIRS.items()
    for kind, each in (("plain", PLAIN), ("native", NATIVE))
}


@pytest.mark.parametrize("name", MERGED)
def test_the_schema_holds(name: str) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(MERGED[name], version, strict=True)


@pytest.mark.parametrize(("name", "file"), [("start.sh", START_SHIM), ("archive.sh", ARCHIVE_SHIM), ("pg_hba.conf", HBA_FILE)])
def test_the_configmap_holds_our_own_files(name: str, file: Path) -> None:
    assert CONFIG["data"][name] == file.read_text(encoding="utf-8")
    assert set(CONFIG["data"]) == {"start.sh", "archive.sh", "pg_hba.conf"}


@pytest.mark.parametrize("name", MERGED)
def test_what_is_mounted_is_there_and_the_server_and_its_archiver_share_it(name: str) -> None:
    pod, archiver = pod_of(MERGED[name]), container(MERGED[name], "wal-archive")
    volumes = {each["name"]: each for each in pod["volumes"]}
    claimed = {each["metadata"]["name"] for each in MERGED[name]["spec"].get("volumeClaimTemplates", [])}
    assert {each["name"] for each in archiver["volumeMounts"]} <= {*volumes, *claimed}
    assert volumes["clipper-backup-pitr"]["configMap"]["name"] == CONFIG["metadata"]["name"]
    assert "optional" not in volumes["clipper-backup-pitr"]["configMap"]
    servers = {each["mountPath"]: each for each in container(MERGED[name], "postgres")["volumeMounts"]}
    ours = {each["mountPath"]: each for each in archiver["volumeMounts"]}
    for path in ("/clipper-backup/handshake", "/var/lib/postgresql/data"):
        assert ours[path]["name"] == servers[path]["name"]
    assert ours["/var/lib/postgresql/data"]["readOnly"] is True
    assert servers["/clipper-backup/pitr"]["readOnly"] is True
    named = re.findall(r"/clipper-backup/(\w+)/", START_SHIM.read_text(encoding="utf-8"))
    assert {f"/clipper-backup/{each}" for each in named} <= {*servers}


@pytest.mark.parametrize("stateful_set", [PLAIN, NATIVE], ids=["plain", "native"])
def test_the_archiver_is_restricted_whatever_the_users_pod_is(stateful_set: Object) -> None:
    archiver = container(stateful_set, "wal-archive")
    assert archiver["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 70,
        "runAsGroup": 70,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert "securityContext" not in pod_of(stateful_set)
    assert "securityContext" not in container(stateful_set, "postgres")
    assert archiver["image"] == f"clipper-backup:{__version__}"
    limit, asked = archiver["resources"]["limits"], archiver["resources"]["requests"]
    assert set(limit) == {"memory"}
    assert parse_bytes(asked["memory"] + "B") <= parse_bytes(limit["memory"] + "B") <= 512 * MIB
    scratch = [each["emptyDir"] for each in pod_of(stateful_set)["volumes"] if "emptyDir" in each]
    assert sum(parse_bytes(each["sizeLimit"] + "B") for each in scratch) <= parse_bytes(asked["ephemeral-storage"] + "B")


@pytest.mark.parametrize("stateful_set", [PLAIN, NATIVE], ids=["plain", "native"])
def test_the_archivers_words_and_variables_are_ours(stateful_set: Object) -> None:
    archiver = container(stateful_set, "wal-archive")
    assert archiver["command"] == ["clipper-backup"]
    assert list(split(archiver["args"]).words)[:2] == ["wal", "archive"]
    assert "--pgdata" not in archiver["args"]
    lingers = int(archiver["args"][archiver["args"].index("--linger-seconds") + 1])
    assert 0 < lingers < pod_of(stateful_set)["terminationGracePeriodSeconds"] - 30
    names = {declared.name for declared in DECLARED} | {CONFIG_VARIABLE}
    assert {each["name"] for each in archiver["env"]} <= names
    assert {"name": "PGDATA", "value": ""} in archiver["env"], "the image's would win over what start.sh says"
    for each in archiver["env"]:
        assert not re.search(r"PASS|SECRET|TOKEN|KEY|CREDENTIAL", each["name"])
    assert "args" not in container(stateful_set, "postgres")


def test_the_commands_of_the_guide_are_those_of_the_files_and_select_the_configmap_alone() -> None:
    guide = (ROOT / "docs/guides/archive-wal.md").read_text(encoding="utf-8")
    commands = re.findall(r"`(kubectl [^`]+)`", guide)
    _, alone, patched = commands[:3]
    base = (ROOT / "infrastructure/k8s/base/postgres-pitr-config.yaml").read_text(encoding="utf-8")
    plain = (COMPONENTS / "wal-sidecar/statefulset.yaml").read_text(encoding="utf-8")
    for command in (alone, patched):
        assert f"#   {command}" in base
        assert f"#   {command}" in plain
        assert (ROOT / re.findall(r"infrastructure/\S+", command)[0]).is_file()
    key, value = alone.rpartition(" -l ")[2].split("=")
    assert CONFIG["metadata"]["labels"][key] == value
    assert key not in STATEFUL_SET["metadata"].get("labels", {})
