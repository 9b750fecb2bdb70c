"""The Job that restores into a claim: our container restores and answers for WAL, the database's own image runs the server.

Both see the claims at the same paths and run as the same user; the server obeys files (docs/design/kubernetes.md, "The driven
server"). Its Pod has no token of the Kubernetes API. Nothing is asked of a cluster here: the object is made, who asks creates it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipper_backup.errors import UsageError
from clipper_backup.kubernetes.api import Object
from clipper_backup.kubernetes.resources import JOBS

RESTORE, SERVER = "restore", "server"
"""The names of its two containers."""
CONTROL = "/clipper-backup/control"
WORK = "/clipper-backup/work"
SERVER_FLAGS = ("--start", "--server-folder", CONTROL, "--work-dir", f"{WORK}/restore")
"""What `restore` is told so that the second container runs the server. Its folder lies within what it may write, made by itself:
that of an emptyDir is everybody's."""

_OBEY = "/clipper-backup/obey"
_OBEY_CONFIG = "clipper-backup-obey"
_KEPT_SECONDS = 7 * 86400
_FINAL_EXITS = (2, 3, 10, 12, 13)
"""As of the CronJobs: usage, incomplete, no repository, key or login, integrity. Another attempt ends no better."""
_IDENTITY = "/etc/clipper-backup-identity"
_OURS = {"app.kubernetes.io/name": "clipper-backup", "app.kubernetes.io/managed-by": "clipper-backup"}


@dataclass(frozen=True, slots=True)
class MountedClaim:
    """A PersistentVolumeClaim and where both containers see it; `sub_path` is the part of the volume that is mounted."""

    claim: str
    path: str
    sub_path: str | None = None


@dataclass(frozen=True, slots=True)
class RestoreJob:
    """What differs from one to the other. `args` are the words behind `clipper-backup` of the first container.

    `server_image` is the database's own; None where no server is run, and `args` then do without SERVER_FLAGS. `uid` and `gid`
    are the database's: they own the files. `settings` is a ConfigMap, `keys` and `store_environment` are Secrets; none of them
    has to be there. `identity` is the Secret that opens what is sealed, with one key `identity`; None where nothing is sealed.
    """

    name: str
    namespace: str
    component: str
    claims: Sequence[MountedClaim]
    image: str
    args: Sequence[str]
    server_image: str | None
    uid: int
    gid: int
    service_account: str = "backup-restore"
    settings: str = "backup-config"
    recipients: str = "clipper-backup-recipients"
    keys: str = "backup-keys"
    store_environment: str = "backup-store-environment"
    identity: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    affinity: Object | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Object] = ()


def restore_job(asked: RestoreJob) -> Object:
    """The Job, to be created. UsageError for root, whom PostgreSQL refuses, and where no claim is named."""
    if asked.uid == 0 or asked.gid == 0:
        raise UsageError(
            "a database cannot be restored for root: PostgreSQL does not run as root",
            hints=["the user of the database: 70 in Alpine's images, 999 in Debian's"],
        )
    if not asked.claims:
        raise UsageError(f"the Job {asked.name} has no claim to restore into")
    labels = _OURS | {"app.kubernetes.io/component": asked.component}
    policy = {
        "rules": [
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": RESTORE, "operator": "In", "values": list(_FINAL_EXITS)},
                "onPodConditions": [],  # the published schema of 1.28 asks for it
            },
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }
    about = {"name": asked.name, "namespace": asked.namespace, "labels": labels}
    return {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": about | ({"annotations": dict(asked.annotations)} if asked.annotations else {}),
        "spec": {
            "backoffLimit": 2,
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "podFailurePolicy": policy,
            "template": {
                "metadata": {
                    # AKS looks for the last one, others ignore it
                    "labels": labels | {"azure.workload.identity/use": "true"},
                    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                },
                "spec": _pod(asked),
            },
        },
    }


def _pod(asked: RestoreJob) -> Object:
    placed: Object = {"affinity": asked.affinity} if asked.affinity else {}
    if asked.node_selector:
        placed["nodeSelector"] = dict(asked.node_selector)
    if asked.tolerations:
        placed["tolerations"] = list(asked.tolerations)
    return {
        "serviceAccountName": asked.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,  # a server that is stopped in order writes its checkpoint
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": asked.uid,
            "runAsGroup": asked.gid,
            "fsGroup": asked.gid,  # a new volume belongs to root
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_restore(asked), *([_server(asked, asked.server_image)] if asked.server_image is not None else [])],
        "volumes": _volumes(asked),
        **placed,
    }


def _restore(asked: RestoreJob) -> Object:
    env = [{"name": "CLIPPER_BACKUP_CONFIG", "value": "/etc/clipper-backup"}]
    mounts: list[Object] = [
        {"name": "config", "mountPath": "/etc/clipper-backup", "readOnly": True},
        {"name": "keys", "mountPath": "/etc/clipper-backup-keys", "readOnly": True},
    ]
    if asked.identity is not None:
        env.append({"name": "ENCRYPTION_IDENTITY_FILE", "value": f"{_IDENTITY}/identity"})
        mounts.append({"name": "identity", "mountPath": _IDENTITY, "readOnly": True})
    return {
        "name": RESTORE,
        "image": asked.image,
        "command": ["clipper-backup"],
        "args": list(asked.args),
        "envFrom": [{"secretRef": {"name": asked.store_environment, "optional": True}}],
        "env": env,
        "securityContext": _confined(),
        "resources": {"requests": {"cpu": "500m", "memory": "300Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [*mounts, *_shared_mounts(asked)],
    }


def _server(asked: RestoreJob, image: str) -> Object:
    return {
        "name": SERVER,
        "image": image,
        "command": ["sh", f"{_OBEY}/obey.sh", CONTROL],
        "securityContext": _confined(),
        "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}},
        "volumeMounts": [{"name": "obey", "mountPath": _OBEY, "readOnly": True}, *_shared_mounts(asked)],
    }


def _shared_mounts(asked: RestoreJob) -> list[Object]:
    """What both containers see, by the same paths: the server is told them by the other."""
    return [
        {"name": "control", "mountPath": CONTROL},
        {"name": "work", "mountPath": WORK},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  a volume of its own in the Pod
        *(
            {"name": f"claim-{number}", "mountPath": each.path} | ({"subPath": each.sub_path} if each.sub_path else {})
            for number, each in enumerate(asked.claims)
        ),
    ]


def _volumes(asked: RestoreJob) -> list[Object]:
    # Without the recipients the new timeline's history would be stored in plain where all else is sealed.
    recipients = {"name": asked.recipients, "optional": True}
    items = [{"key": "ENCRYPTION_RECIPIENTS", "path": "ENCRYPTION_RECIPIENTS"}]
    sources = [{"configMap": {"name": asked.settings, "optional": True}}, {"configMap": recipients | {"items": items}}]
    made: list[Object] = [
        {"name": "config", "projected": {"sources": sources}},
        {"name": "keys", "secret": {"secretName": asked.keys, "optional": True, "defaultMode": 0o440}},
        {"name": "control", "emptyDir": {"sizeLimit": "16Mi"}},
        {"name": "work", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        *(
            {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": each.claim}}
            for number, each in enumerate(asked.claims)
        ),
    ]
    if asked.server_image is not None:
        made.append({"name": "obey", "configMap": {"name": _OBEY_CONFIG, "defaultMode": 0o555}})
    if asked.identity is not None:
        made.append({"name": "identity", "secret": {"secretName": asked.identity, "defaultMode": 0o440}})
    return made


def _confined() -> Object:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
