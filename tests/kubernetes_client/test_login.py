"""How a login is found, and what is said when it is refused: kubeconfig, exec plugins, the Pod's own token, certificates."""

import json
import random
import re
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipper_backup.clock import SystemClock
from clipper_backup.errors import AccessError, ApiUnavailableError, UsageError
from clipper_backup.kubernetes.api import Api
from clipper_backup.kubernetes.resources import PODS
from clipper_backup.kubernetes.transport import Transport, open_transport
from fixtures.kube_cluster import NAMESPACE, Cluster, make_authority

POD_READER = """
kind: Role
metadata: {name: r, namespace: clipper-production}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
kind: RoleBinding
metadata: {name: r, namespace: clipper-production}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}
subjects: [{kind: ServiceAccount, name: backup-snapshots, namespace: clipper-production}]
"""


def api_over(transport: Transport, retry_seconds: float = 0.0) -> Api:
    return Api(transport, clock=SystemClock(), rng=random.Random(1), retry_seconds=retry_seconds)


def with_user(cluster: Cluster, user: dict[str, Any], **of_cluster: Any) -> Path:
    document = yaml.safe_load(cluster.kubeconfig().read_text())
    document["users"][0]["user"] = user
    document["clusters"][0]["cluster"] |= of_cluster
    path = cluster.folder / "kubeconfig-made"
    path.write_text(yaml.safe_dump(document))
    return path


def plugin(folder: Path, body: str) -> Path:
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def pod_files(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a Pod of backup-snapshots sees: its token, the authority, its namespace, and the two variables."""
    roles = cluster.folder / "roles.yaml"
    roles.write_text(POD_READER)
    cluster.grant(roles)
    folder = cluster.folder / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text(cluster.rotate("backup-snapshots"))
    (folder / "namespace").write_text(NAMESPACE)
    (folder / "ca.crt").write_bytes(cluster.authority.ca_file.read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.server.server_port))
    return folder


def test_in_a_pod_its_own_account_is_used_and_a_rotated_token_is_read_anew(cluster: Cluster, pod_files: Path) -> None:
    with api_over(open_transport(service_account=pod_files)) as api:
        assert (api.namespace, api.who) == (NAMESPACE, "the account of this Pod")
        assert api.list(PODS) == []
        (pod_files / "token").write_text(cluster.rotate("backup-snapshots"))
        assert api.list(PODS) == []
        cluster.rotate("backup-snapshots")
        with pytest.raises(AccessError, match="refuses the login: the account of this Pod") as raised:
            api.list(PODS)
        assert raised.value.exit_code == 12
    assert cluster.used() == {(f"system:serviceaccount:{NAMESPACE}:backup-snapshots", "list", "pods")}


def test_a_named_kubeconfig_is_used_even_in_a_pod(cluster: Cluster, pod_files: Path) -> None:
    with api_over(open_transport(kubeconfig=cluster.kubeconfig(), service_account=pod_files)) as api:
        assert api.who == f"context fake of {cluster.kubeconfig()}"


@pytest.mark.parametrize("protocol", ["v1", "v1beta1"])
def test_an_exec_plugin_is_asked_and_asked_again_when_its_token_is_refused(cluster: Cluster, protocol: str) -> None:
    tokens = cluster.folder / "token"
    tokens.write_text("token-of-a-person")
    told = cluster.folder / "told"
    program = plugin(
        cluster.folder,
        f'printf "%s\\n" "$KUBERNETES_EXEC_INFO" >>{told}\n'
        f'printf \'{{"kind":"ExecCredential","status":{{"token":"%s"}}}}\' "$(cat {tokens})"',
    )
    path = with_user(cluster, {"exec": {"apiVersion": f"client.authentication.k8s.io/{protocol}", "command": str(program)}})
    with api_over(open_transport(kubeconfig=path)) as api:
        api.list(PODS)
        api.list(PODS)
        cluster._tokens["another"] = cluster._tokens.pop("token-of-a-person")
        tokens.write_text("another")
        api.list(PODS)
    asked = [json.loads(line) for line in told.read_text().splitlines()]
    assert [each["apiVersion"] for each in asked] == [f"client.authentication.k8s.io/{protocol}"] * 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo expired >&2; exit 3", "returned 3: expired"),
        ("echo nonsense", "no login for the Kubernetes API"),
        ("echo '{\"status\": {}}'", "'token' is missing"),
        (None, "No such file"),
    ],
)
def test_a_plugin_that_fails_is_a_login_that_failed(cluster: Cluster, body: str | None, said: str) -> None:
    program = cluster.folder / "nowhere" if body is None else plugin(cluster.folder, body)
    path = with_user(cluster, {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": str(program)}})
    with api_over(open_transport(kubeconfig=path)) as api, pytest.raises(AccessError, match=said):
        api.list(PODS)


def test_a_certificate_of_somebody_else_is_no_outage(cluster: Cluster, tmp_path: Path) -> None:
    other = make_authority(tmp_path)
    path = with_user(cluster, {"token": "x"}, **{"certificate-authority": str(other.ca_file), "certificate-authority-data": None})
    with api_over(open_transport(kubeconfig=path), 60.0) as api, pytest.raises(AccessError, match="is not trusted"):
        api.list(PODS)


def test_a_server_that_is_not_there_is_told_with_its_address(cluster: Cluster) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and never listens
        address = f"https://127.0.0.1:{held.getsockname()[1]}"
        path = with_user(cluster, {"token": "x"}, server=address)
        with api_over(open_transport(kubeconfig=path)) as api, pytest.raises(ApiUnavailableError, match=address):
            api.list(PODS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not found"),
        ("{", "no Kubernetes cluster is configured"),
        ("clusters: []\ncontexts: []\n", "context"),
        ("{clusters: [], contexts: [{name: a, context: {cluster: b}}], current-context: a}", "'b' is missing"),
        ("current-context: a", "'clusters' is missing"),
        ("[]", "no Kubernetes cluster is configured"),
    ],
)
def test_a_configuration_that_makes_no_sense(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=said) as raised:
        open_transport(kubeconfig=path)
    assert any("kubectl config view --flatten" in hint for hint in raised.value.hints)


def test_an_address_that_is_none_is_told(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(re.sub(r"(https://[^:/]+):[0-9]+", r"\1:no-port", cluster.kubeconfig().read_text()))
    with pytest.raises(UsageError, match=r"the login of context fake of .* cannot be used: Invalid port"):
        open_transport(kubeconfig=path)


def test_an_unknown_context_is_named(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match="Context 'prod' not found"):
        open_transport(kubeconfig=cluster.kubeconfig(), context="prod")
