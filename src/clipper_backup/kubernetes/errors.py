"""What the API server's answers mean to a person, and to the exit code."""

from collections.abc import Mapping
from typing import Any

from clipper_backup.errors import (
    AccessError,
    ApiUnavailableError,
    ClipperError,
    ConflictError,
    KubernetesError,
    MissingError,
    ObjectExistsError,
    UsageError,
)
from clipper_backup.kubernetes.resources import Resource

SNAPSHOTTER = "v8.6.0"
"""The release of external-snapshotter that our hints install: a branch may change, or go."""

_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
_INSTALL = "https://github.com/kubernetes-csi/external-snapshotter"
_HINTS: Mapping[str, tuple[str, ...]] = {
    "snapshot.storage.k8s.io": (
        "GKE has CRDs and controller already, once its CSI driver is on; elsewhere:",
        f"kubectl apply -k '{_INSTALL}/client/config/crd?ref={SNAPSHOTTER}'",
        f"kubectl apply -k '{_INSTALL}/deploy/kubernetes/snapshot-controller?ref={SNAPSHOTTER}'",
    )
}


class GoneError(Exception):
    """410: the version that a page or a watch goes on from is forgotten. Never leaves this package."""


def error_of(
    status: int, body: Any, *, verb: str, resource: Resource, namespace: str, name: str | None, who: str
) -> ClipperError:
    """The error for an answer that is none of 2xx (and no 410)."""
    said = _message(body)
    what = f"{resource.full_name}{f' {name}' if name else ''}"
    where = f" in namespace {namespace}" if resource.namespaced else ""
    reason = body.get("reason") if isinstance(body, dict) else None
    if status == 401:
        return AccessError(
            f"the Kubernetes API refuses the login: {who}: {said}",
            hints=["its token has expired or is another cluster's: log in anew, or mount the account's token"],
        )
    if status == 403 and reason == "Forbidden" and " cannot " not in said:
        # a lacking right is always told as `User "x" cannot …`: this is a quota, an admission policy, a namespace that ends
        return KubernetesError(
            f"Kubernetes refuses to {verb} {what}{where}: {said}",
            hints=["no right is lacking: a quota, an admission policy or the namespace's own end refuses it"],
        )
    if status == 403:
        return AccessError(
            f"Kubernetes refuses to {verb} {what}{where} as {who}: {said}",
            hints=[
                f"it lacks {verb} on {resource.full_name}; infrastructure/k8s/base/rbac.yaml grants each account what it needs",
                "kubectl apply -f infrastructure/k8s/base/rbac.yaml, or run as an account that has it",
            ],
        )
    if status == 404 and not isinstance(body, dict):
        return MissingError(
            f"the cluster has no {resource.full_name} {resource.version}: its API is not installed",
            hints=_HINTS.get(resource.group, ()),
        )
    if status == 404 and _details(body).get("kind") == "namespaces":
        return MissingError(
            f"there is no namespace {_details(body).get('name') or namespace}: Kubernetes cannot {verb} {what}",
            hints=["kubectl get namespaces shows them; --namespace names one"],
        )
    if status == 404:
        return MissingError(f"{resource.kind} {name or ''}{where} does not exist: {said}")
    if status == 409 and verb == "create" and reason == "Conflict":
        # nothing of that name is there yet: the count of a quota changed meanwhile, and kubectl's user would just try again
        return ApiUnavailableError(f"the Kubernetes API cannot {verb} {what} now: {said}")
    if status == 409 and reason == "AlreadyExists":
        return ObjectExistsError(f"{resource.kind} {name or ''}{where} exists already")
    if status == 409:
        return ConflictError(f"{resource.kind} {name or ''}{where} is not as it was: {said}")
    if status == 400 and verb == "get":
        # of a log: its container has not begun, or there is none of that name
        return KubernetesError(f"Kubernetes cannot {verb} {what}{where}: {said}")
    if status in {400, 422}:
        return UsageError(f"Kubernetes does not accept {resource.kind} {name or ''}{where}: {said}", hints=_causes(body))
    if status in _TEMPORARY:
        return ApiUnavailableError(f"the Kubernetes API cannot {verb} {what} now: {status}: {said}")
    return KubernetesError(f"the Kubernetes API answers {status} to {verb} {what}: {said}")


def _message(body: Any) -> str:
    said = body.get("message") if isinstance(body, dict) else body
    return str(said or "without a reason").strip()


def _details(body: Any) -> Mapping[str, Any]:
    details = body.get("details") if isinstance(body, dict) else None
    return details if isinstance(details, dict) else {}


def _causes(body: Any) -> list[str]:
    causes = _details(body).get("causes")
    return [f"{cause.get('field', '')}: {cause.get('message', '')}" for cause in causes or () if isinstance(cause, dict)]
