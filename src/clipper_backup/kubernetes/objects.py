"""What we read of objects, as small structs; the objects themselves stay dicts, so that nothing of them is lost.

Facts of shape are from the recordings of a 1.36 control plane with external-snapshotter 8.6.
"""

import copy
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from clipper_backup.kubernetes.api import Object

_OF_SERVER = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_PROVISIONERS = ("volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner")
_RESTORING = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"
"""A finalizer: a volume is being filled from that snapshot."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Claim(NamedTuple):
    """A PersistentVolumeClaim. *size* as asked for (`1Gi`); *volume* is None until it is bound.

    *provisioner* is the CSI driver that made its volume; None where nobody says so.
    """

    name: str
    uid: str
    bound: bool
    volume: str | None
    storage_class: str | None
    size: str
    provisioner: str | None = None


class Snapshot(NamedTuple):
    """A VolumeSnapshot. *created_at* is when it was taken, to the second; it may be ready much later.

    *is_read*: a volume is being filled from it.
    """

    name: str
    uid: str
    claim: str | None
    snapshot_class: str | None
    content: str | None
    created_at: datetime | None
    ready: bool
    restore_size: str | None
    error: str | None
    deleting: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    is_read: bool = False
    made_at: datetime | None = None


class SnapshotContent(NamedTuple):
    """A VolumeSnapshotContent. *created_at* is exact to the microsecond; *handle* is the driver's name for it."""

    name: str
    uid: str
    driver: str
    deletion_policy: str
    snapshot: str | None
    created_at: datetime | None
    ready: bool
    handle: str | None
    restore_bytes: int | None
    error: str | None


class Set(NamedTuple):
    """A StatefulSet. *templates* are the names of its claim templates."""

    name: str
    uid: str
    replicas: int
    ready_replicas: int
    templates: tuple[str, ...]


class PodState(NamedTuple):
    """A Pod. *claims* maps the names of its volumes to claims; *exit_codes* maps containers that ended to their codes."""

    name: str
    uid: str
    phase: str
    pod_ip: str | None
    ready: bool
    claims: Mapping[str, str]
    exit_codes: Mapping[str, int]
    owner_uid: str | None


class JobState(NamedTuple):
    """A Job. *failed* says why, once it is final."""

    name: str
    uid: str
    complete: bool
    failed: str | None
    active: int


def claim_of(found: Object) -> Claim:
    """Read a PersistentVolumeClaim."""
    spec, about = found.get("spec") or {}, found["metadata"]
    said = about.get("annotations") or {}
    return Claim(
        name=about["name"],
        uid=about["uid"],
        bound=_status(found).get("phase") == "Bound",
        volume=spec.get("volumeName"),
        storage_class=spec.get("storageClassName"),
        size=str(((spec.get("resources") or {}).get("requests") or {}).get("storage", "")),
        provisioner=next((said[key] for key in _PROVISIONERS if key in said), None),
    )


def snapshot_of(found: Object) -> Snapshot:
    """Read a VolumeSnapshot."""
    spec, status, about = found.get("spec") or {}, _status(found), found["metadata"]
    created = status.get("creationTime")
    return Snapshot(
        name=about["name"],
        uid=about["uid"],
        claim=(spec.get("source") or {}).get("persistentVolumeClaimName"),
        snapshot_class=spec.get("volumeSnapshotClassName"),
        content=status.get("boundVolumeSnapshotContentName"),
        created_at=None if created is None else datetime.fromisoformat(str(created)).astimezone(UTC),
        ready=status.get("readyToUse") is True,
        restore_size=status.get("restoreSize"),
        error=_error(status),
        deleting="deletionTimestamp" in about,
        labels=about.get("labels") or {},
        annotations=about.get("annotations") or {},
        is_read=_RESTORING in (about.get("finalizers") or ()),
        made_at=None if "creationTimestamp" not in about else datetime.fromisoformat(about["creationTimestamp"]),
    )


def content_of(found: Object) -> SnapshotContent:
    """Read a VolumeSnapshotContent."""
    spec, status, about = found.get("spec") or {}, _status(found), found["metadata"]
    created = status.get("creationTime")
    return SnapshotContent(
        name=about["name"],
        uid=about["uid"],
        driver=str(spec.get("driver", "")),
        deletion_policy=str(spec.get("deletionPolicy", "")),
        snapshot=(spec.get("volumeSnapshotRef") or {}).get("name"),
        created_at=None if created is None else datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(created) // 1000),
        ready=status.get("readyToUse") is True,
        handle=status.get("snapshotHandle"),
        restore_bytes=status.get("restoreSize"),
        error=_error(status),
    )


def set_of(found: Object) -> Set:
    """Read a StatefulSet."""
    spec, about = found.get("spec") or {}, found["metadata"]
    return Set(
        name=about["name"],
        uid=about["uid"],
        replicas=int(spec.get("replicas", 1)),
        ready_replicas=int(_status(found).get("readyReplicas", 0)),
        templates=tuple(template["metadata"]["name"] for template in spec.get("volumeClaimTemplates") or ()),
    )


def pod_of(found: Object) -> PodState:
    """Read a Pod."""
    spec, status, about = found.get("spec") or {}, _status(found), found["metadata"]
    owners = [str(each["uid"]) for each in about.get("ownerReferences") or () if each.get("controller")]
    return PodState(
        name=about["name"],
        uid=about["uid"],
        phase=str(status.get("phase", "")),
        pod_ip=status.get("podIP"),
        ready=_condition(status, "Ready") is not None,
        claims={
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in spec.get("volumes") or ()
            if "persistentVolumeClaim" in volume
        },
        exit_codes={
            container["name"]: int(container["state"]["terminated"]["exitCode"])
            for container in status.get("containerStatuses") or ()
            if "terminated" in (container.get("state") or {})
        },
        owner_uid=owners[0] if owners else None,
    )


def job_of(found: Object) -> JobState:
    """Read a Job."""
    status, about = _status(found), found["metadata"]
    failed = _condition(status, "Failed")
    return JobState(
        name=about["name"],
        uid=about["uid"],
        complete=_condition(status, "Complete") is not None,
        failed=None if failed is None else str(failed.get("message") or failed.get("reason") or "failed"),
        active=int(status.get("active", 0)),
    )


def clean(found: Object) -> Object:
    """A copy to put back: without status, and without what the server and kubectl wrote into it."""
    copied = copy.deepcopy({key: value for key, value in found.items() if key != "status"})
    about = copied["metadata"]
    for key in _OF_SERVER:
        about.pop(key, None)
    if "annotations" in about:
        about["annotations"].pop(_LAST_APPLIED, None)
        if not about["annotations"]:
            del about["annotations"]
    return copied


def _status(found: Object) -> Mapping[str, Any]:
    return found.get("status") or {}


def _error(status: Mapping[str, Any]) -> str | None:
    error = status.get("error")
    return None if error is None else str(error.get("message") or "without a message")


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    return next(
        (each for each in status.get("conditions") or () if each.get("type") == kind and each.get("status") == "True"), None
    )
