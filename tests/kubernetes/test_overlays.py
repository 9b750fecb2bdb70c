"""The overlays and the component for sealing, as kubectl builds them; and that nothing built holds a credential."""

import base64
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
from fixtures.docs import ROOT
from fixtures.kube_cluster import KUBECTL, Cluster
from fixtures.kube_kinds import resource_of
from fixtures.kube_schemas import check_strictly

CLOUDS = {
    "gcp": ("csi-gce-pd", "pd.csi.storage.gke.io", "iam.gke.io/gcp-service-account"),
    "aws": ("csi-aws-vsc", "ebs.csi.aws.com", "eks.amazonaws.com/role-arn"),
    "azure": ("csi-azuredisk-vsc", "disk.csi.azure.com", "azure.workload.identity/client-id"),
}
"""The class of the source document, its driver, and the annotation of the identity."""
OVERLAYS = [*CLOUDS, "local"]
PASSWORD = "only-in-the-secret"

Object = dict[str, Any]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of infrastructure/k8s, with the file for the local database's login that a person makes."""
    folder = tmp_path_factory.mktemp("tree") / "k8s"
    shutil.copytree(ROOT / "infrastructure/k8s", folder)
    (folder / "overlays/local/postgres-secret.env").write_text(f"POSTGRES_USER=clipper\nPOSTGRES_PASSWORD={PASSWORD}\n")
    return folder


def built(folder: Path) -> list[Object]:
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(done.stdout))


def only(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


def pods(objects: list[Object]) -> Iterator[Object]:
    for o in objects:
        spec = o.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template is not None:
            yield template["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_every_overlay_is_tried_here() -> None:
    assert {path.name for path in (ROOT / "infrastructure/k8s/overlays").iterdir()} == {*OVERLAYS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_built_of_what_the_api_knows(overlay: str, tree: Path) -> None:
    for o in built(tree / "overlays" / overlay):
        if o["kind"] == "VolumeSnapshotClass":
            check_strictly(resource_of(o["kind"]), o, "1.28")
            continue
        for version in ("1.28", kubernetes_validate.latest_version()):
            if not (version == "1.28" and overlay in CLOUDS and o["kind"] == "StatefulSet"):  # native sidecars: 1.29
                kubernetes_validate.validate(o, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_applies(overlay: str, tree: Path, cluster: Cluster) -> None:
    folder = tree / "overlays" / overlay
    assert len(cluster.apply(folder).splitlines()) == len(built(folder))


@pytest.mark.parametrize("overlay", CLOUDS)
def test_a_clouds_overlay_has_its_class_and_an_identity_for_every_account(overlay: str, tree: Path) -> None:
    name, driver, annotation = CLOUDS[overlay]
    objects = built(tree / "overlays" / overlay)
    found = only(objects, "VolumeSnapshotClass", name)
    assert (found["driver"], found["deletionPolicy"]) == (driver, "Retain")
    assert "annotations" not in found["metadata"], "not the cluster's default"
    accounts = [o for o in objects if o["kind"] == "ServiceAccount"]
    assert len(accounts) == 4
    assert all(set(o["metadata"]["annotations"]) == {annotation} for o in accounts)
    rbac = (ROOT / "infrastructure/k8s/base/rbac.yaml").read_text()
    for o in accounts:
        assert f"{annotation}={o['metadata']['annotations'][annotation]}\n" in rbac, "as the file tells a person to say it"
    (archiver,) = only(objects, "StatefulSet", "postgres")["spec"]["template"]["spec"]["initContainers"]
    assert (archiver["name"], archiver["restartPolicy"]) == ("wal-archive", "Always")


@pytest.mark.parametrize("where", ["base", *(f"overlays/{name}" for name in OVERLAYS)])
def test_nothing_built_holds_a_credential(where: str, tree: Path) -> None:
    objects = built(tree / where)
    secrets = [o for o in objects if o["kind"] == "Secret"]
    assert [o["metadata"]["name"] for o in secrets] == (["postgres-secret"] if where == "overlays/local" else [])
    for o in secrets:
        assert base64.b64decode(o["data"]["POSTGRES_PASSWORD"]).decode() == PASSWORD
    text = yaml.safe_dump_all([o for o in objects if o["kind"] != "Secret"])
    assert PASSWORD not in text
    assert not re.search(r"://[^/\s]*:[^/\s]*@|BEGIN [A-Z ]*PRIVATE KEY|AGE-SECRET-KEY|AKIA[0-9A-Z]{16}|AccountKey=", text)
    for pod in pods(objects):
        for variable in (each for container in containers(pod) for each in container.get("env", [])):
            if re.search(r"PASS|SECRET|TOKEN|KEY|CREDENTIAL|USER$", variable["name"]):
                assert set(variable) == {"name", "valueFrom"}, variable["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_image_of_ours(overlay: str, tree: Path) -> None:
    images = {each["image"] for pod in pods(built(tree / "overlays" / overlay)) for each in containers(pod)}
    database = "postgres:17-bookworm" if overlay == "local" else "postgres:17-alpine"
    assert images == {f"clipper-backup:{__version__}", "prom/pushgateway:v1.6.2", database}


def test_locally_all_who_write_the_repository_are_one_user(tree: Path) -> None:
    users = set()
    for pod in pods(built(tree / "overlays/local")):
        for each in containers(pod):
            if any(mount["mountPath"] == "/backups" for mount in each["volumeMounts"]):
                users.add({**pod["securityContext"], **each["securityContext"]}["runAsUser"])
                assert pod["securityContext"]["fsGroup"] == 999
    assert users == {999}


@pytest.mark.parametrize("sidecar", ["wal-sidecar", "wal-sidecar-native"])
def test_sealed_every_pod_has_the_recipients_and_the_restore_test_alone_an_identity(tree: Path, sidecar: str) -> None:
    folder = tree / f"sealed-{sidecar}"
    folder.mkdir()
    components = [f"../components/{sidecar}", "../components/sealing"]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../base"], "components": components}))
    opening = []
    for pod in pods(built(folder)):
        for each in containers(pod):
            folders = [mount["name"] for mount in each["volumeMounts"] if mount["mountPath"] == "/etc/clipper-backup"]
            if not each["image"].startswith("clipper-backup:"):
                assert folders == []
                continue
            (settings,) = (volume for volume in pod["volumes"] if volume["name"] == folders[0])
            assert settings.keys() == {"name", "projected"}
            theirs, ours = (source["configMap"] for source in settings["projected"]["sources"])
            assert theirs == {"name": "backup-config", "optional": True}
            assert ours == {
                "name": "clipper-backup-recipients",
                "items": [{"key": "ENCRYPTION_RECIPIENTS", "path": "ENCRYPTION_RECIPIENTS"}],
            }, "not optional: without it plain backups would be written"
            opening += [pod["serviceAccountName"] for variable in each["env"] if variable["name"] == "ENCRYPTION_IDENTITY_FILE"]
        if any("backup-identity" in str(volume) for volume in pod["volumes"]):
            assert pod["serviceAccountName"] == "backup-restore-test"
    assert opening == ["backup-restore-test"]
