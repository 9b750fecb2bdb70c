"""What a restore will do to which objects, decided and told before the first of them is made.

Everything that cannot work is refused here: afterwards only what somebody changes meanwhile can stop it. The plan is kept in the
cluster, so it holds all that a later run needs to go on, or back.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from clipper_backup.errors import MissingError, UsageError
from clipper_backup.kubernetes.api import Api, Object
from clipper_backup.kubernetes.objects import claim_of, clean, set_of
from clipper_backup.kubernetes.resources import CRON_JOBS, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STATEFUL_SETS
from clipper_backup.ops.restore_pod import SERVER_FLAGS, MountedClaim, RestoreJob, restore_job
from clipper_backup.values import BackupId

STATE = "clipper-restore"
"""The ConfigMap with a restore's plan and steps: one at a time."""
BASE_JOB = "postgres-backup"
SUSPENDED = (BASE_JOB, "volume-snapshot", "restore-test")
_DATABASE = "postgres"
_START_SH = "/clipper-backup/pitr/start.sh"
_TAG = re.compile(r":(?:pg)?(\d{2})(?:\.\d+)?(?:[-.@]|$)")
_FIRST_VERSIONED_MAJOR = 18
"""From this one on the official image has its data folder in one of the version's name."""
_MANAGERS = ("argocd.argoproj.io/", "kustomize.toolkit.fluxcd.io/", "helm.toolkit.fluxcd.io/", "meta.helm.sh/")


class Asked(msgspec.Struct, frozen=True):
    """What a person asked for. `words` are those of `restore` that say where recovery stops; None is found out."""

    stateful_set: str = "postgres"
    words: tuple[str, ...] = ()
    uid: int | None = None
    pgdata: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """Names, uids and former states of everything that is touched. `set_object` and `claim_object` are as they are put back.

    `suspended` maps our CronJobs that are there to whether they were suspended; None: it was not said. `target_dir` is the
    data folder within the new volume, `data_at` what the database's container calls its own.
    """

    id: str
    namespace: str
    stateful_set: str
    set_uid: str
    set_object: dict[str, Any]
    claim: str
    claim_uid: str
    claim_object: dict[str, Any]
    volume: str
    volume_uid: str
    reclaim_policy: str
    mount_path: str
    sub_path: str | None
    data_at: str
    target_dir: str
    image: str
    server_image: str
    uid: int
    identity: str | None
    suspended: dict[str, bool | None]
    words: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def new_claim(self) -> str:
        """The claim that the copy is made in."""
        return f"{self.claim}-restore-{self.id.lower()}"

    @property
    def job(self) -> str:
        """The Job that copies."""
        return f"clipper-restore-{self.id.lower()}"

    @property
    def pod(self) -> str:
        """The Pod of the database."""
        return f"{self.stateful_set}-0"

    def job_object(self) -> Object:
        """The Job that copies."""
        spec = self.set_object["spec"]["template"]["spec"]
        return restore_job(
            RestoreJob(
                name=self.job,
                namespace=self.namespace,
                component="k8s-restore",
                claims=(MountedClaim(self.new_claim, self.mount_path, self.sub_path),),
                image=self.image,
                args=("restore", "--target-dir", self.target_dir, *self.words, *SERVER_FLAGS, "--json", "--yes"),
                server_image=self.server_image,
                uid=self.uid,
                gid=self.uid,
                identity=self.identity,
                annotations={"clipper-backup/restore": self.id},
                affinity=spec.get("affinity"),
                node_selector=spec.get("nodeSelector") or {},
                tolerations=spec.get("tolerations") or (),
            )
        )

    def claim_for_copy(self) -> Object:
        """The new claim: as the old one, empty, and of no label that selects a database."""
        return {
            "metadata": {
                "name": self.new_claim,
                "labels": {"app.kubernetes.io/name": "clipper-backup", "app.kubernetes.io/managed-by": "clipper-backup"},
                "annotations": {"clipper-backup/restore": self.id},
            },
            "spec": {
                key: self.claim_object["spec"][key]
                for key in ("accessModes", "resources", "storageClassName", "volumeMode")
                if key in self.claim_object["spec"]
            },
        }


def make_plan(api: Api, asked: Asked, restore_id: BackupId) -> Plan:
    """Look at what is there. UsageError where it cannot be restored so, MissingError where something is not there."""
    found = api.get(STATEFUL_SETS, asked.stateful_set)
    state = set_of(found)
    if state.replicas > 1:
        raise UsageError(
            f"StatefulSet {state.name} has {state.replicas} replicas: a standby would follow a history that is no more",
            hints=[f"kubectl scale statefulset {state.name} --replicas=1, restore, then let the standbys be made anew"],
        )
    spec = found["spec"]["template"]["spec"]
    container = _container(spec["containers"], state.name)
    claim_name, mount = _mounted(found, container)
    raw_claim = api.get(PERSISTENT_VOLUME_CLAIMS, claim_name)
    claim = claim_of(raw_claim)
    if not claim.bound or claim.volume is None:
        raise MissingError(f"claim {claim.name} is not bound to a volume", hints=[f"kubectl describe pvc {claim.name}"])
    volume = api.get(PERSISTENT_VOLUMES, claim.volume)
    data_at = asked.pgdata or _pgdata(container)
    cron_jobs = _cron_jobs(api)
    backup, *_ = _pod_of(cron_jobs[BASE_JOB])["containers"]
    return Plan(
        id=str(restore_id),
        namespace=api.namespace,
        stateful_set=state.name,
        set_uid=state.uid,
        set_object=clean(found),
        claim=claim.name,
        claim_uid=claim.uid,
        claim_object=_claim_to_put_back(raw_claim),
        volume=claim.volume,
        volume_uid=volume["metadata"]["uid"],
        reclaim_policy=str(volume["spec"].get("persistentVolumeReclaimPolicy", "Delete")),
        mount_path=mount["mountPath"],
        sub_path=mount.get("subPath"),
        data_at=data_at,
        target_dir=_target_dir(data_at, mount["mountPath"], container),
        image=str(backup["image"]),
        server_image=str(container["image"]),
        uid=asked.uid if asked.uid is not None else _uid(spec, container),
        identity=_identity(cron_jobs),
        suspended={name: each["spec"].get("suspend") for name, each in cron_jobs.items()},
        words=asked.words,
        warnings=tuple(_warnings(found)),
    )


def steps_of(plan: Plan) -> list[tuple[str, str]]:
    """Each step's name, and what it does to which objects; for people, before anything is done."""
    jobs = ", ".join(plan.suspended)
    return [
        ("volume", f"make claim {plan.new_claim}, as large as {plan.claim}"),
        ("copy", f"run Job {plan.job}: restore to {plan.target_dir} in it, recover with {plan.server_image}, stop"),
        ("consent", f"ask whether StatefulSet {plan.stateful_set} is to go on with it; nothing of production was touched so far"),
        ("guard", f"keep both volumes: {plan.volume} and the new one get the policy Retain"),
        ("stop", f"suspend CronJobs {jobs}; scale StatefulSet {plan.stateful_set} to 0 and wait until {plan.pod} is gone"),
        ("remove", f"delete StatefulSet {plan.stateful_set}, nothing of what belongs to it"),
        ("swap", f"claim {plan.claim} is bound to the new volume; {plan.volume} is kept, bound to nobody"),
        ("return", f"make StatefulSet {plan.stateful_set} again and wait until {plan.pod} is ready"),
        ("proof", f"run Job {plan.job}-base: a new base backup, on the new timeline"),
        ("finish", f"CronJobs as before; the new volume's policy as before, {plan.volume} stays Retain"),
    ]


def _container(containers: Sequence[Object], name: str) -> Object:
    found = next((each for each in containers if each["name"] == _DATABASE), None)
    if found is None:
        raise UsageError(
            f"StatefulSet {name} has no container {_DATABASE}", hints=["--stateful-set names the one that runs the database"]
        )
    return found


def _mounted(found: Object, container: Object) -> tuple[str, Mapping[str, Any]]:
    """The one claim that the database's container mounts, and its mount."""
    spec, name = found["spec"], found["metadata"]["name"]
    claims = {each["metadata"]["name"]: f"{each['metadata']['name']}-{name}-0" for each in spec.get("volumeClaimTemplates") or ()}
    for volume in spec["template"]["spec"].get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            claims[volume["name"]] = volume["persistentVolumeClaim"]["claimName"]
    mounts = [(claims[each["name"]], each) for each in container.get("volumeMounts") or () if each["name"] in claims]
    if len(mounts) != 1:
        raise UsageError(
            f"the container {_DATABASE} of StatefulSet {name} mounts {len(mounts)} claims, and one is switched",
            hints=[
                "restore by hand: docs/guides/point-in-time.md",
                f"its claims: {', '.join(sorted(claims.values())) or 'none'}",
            ],
        )
    return mounts[0]


def _pgdata(container: Object) -> str:
    """Where the database's container has its data folder: its environment, else as the official image of its tag."""
    said = next((str(each["value"]) for each in container.get("env") or () if each["name"] == "PGDATA" and "value" in each), None)
    if said is not None:
        return said
    match = _TAG.search(str(container.get("image", "")))
    if match is None:
        raise UsageError(
            f"where {container.get('image')} has its data folder cannot be told by its name",
            hints=["--pgdata names it: `SHOW data_directory`"],
        )
    major = int(match[1])
    return f"/var/lib/postgresql/{major}/docker" if major >= _FIRST_VERSIONED_MAJOR else "/var/lib/postgresql/data"


def _target_dir(data_at: str, mount_path: str, container: Object) -> str:
    """The folder to restore to; UsageError where the database would not find it.

    A new volume's root is root's, as PostgreSQL's data folder may not be: then it is `pgdata` in there, which start.sh finds.
    """
    data, mount = PurePosixPath(data_at), PurePosixPath(mount_path)
    if not data.is_relative_to(mount):
        raise UsageError(
            f"{data_at}, the data folder, does not lie in the volume at {mount_path}", hints=["--pgdata: `SHOW data_directory`"]
        )
    if data != mount:
        return str(data)
    if _START_SH not in (container.get("command") or ()):
        raise UsageError(
            f"{data_at} is the root of the volume, and a new volume's root is no PostgreSQL user's",
            hints=["with postgres-pitr-config.yaml or its patch the database starts from the folder pgdata in it too"],
        )
    return str(data / "pgdata")


def _uid(spec: Object, container: Object) -> int:
    """The database's user: as somebody states it, else by the image's name; Alpine's is 70, Debian's 999."""
    stated = {**(spec.get("securityContext") or {}), **(container.get("securityContext") or {})}.get("runAsUser")
    if stated:
        return int(stated)
    for each in [*spec["containers"], *(spec.get("initContainers") or [])]:
        if each["name"] == "wal-archive" and (beside := (each.get("securityContext") or {}).get("runAsUser")):
            return int(beside)
    return 70 if "alpine" in str(container["image"]) else 999


def _identity(cron_jobs: Mapping[str, Object]) -> str | None:
    """The Secret that opens what is sealed: components/sealing mounts it where the restore test runs."""
    volumes = _pod_of(cron_jobs["restore-test"]).get("volumes") or () if "restore-test" in cron_jobs else ()
    return next((each["secret"]["secretName"] for each in volumes if each["name"] == "identity" and "secret" in each), None)


def _pod_of(cron_job: Object) -> Object:
    spec: Object = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def _cron_jobs(api: Api) -> dict[str, Object]:
    """Ours that are there. The first must be."""
    found = {}
    for name in SUSPENDED:
        try:
            found[name] = api.get(CRON_JOBS, name)
        except MissingError as error:
            if name == BASE_JOB:
                hints = ["the image of the copy and of the new base backup are its: kubectl apply -f …/backup-cronjobs.yaml"]
                raise MissingError(error.message, hints=hints) from error
    return found


def _claim_to_put_back(found: Object) -> Object:
    """Without the volume, and without an owner that is gone by then: it would take the claim with it."""
    made = clean(found)
    made["metadata"].pop("ownerReferences", None)
    made["metadata"].pop("finalizers", None)
    kept = {key: value for key, value in (made["metadata"].get("annotations") or {}).items() if not _is_of_binding(key)}
    made["metadata"]["annotations"] = kept
    made["spec"].pop("volumeName", None)
    return made


def _is_of_binding(key: str) -> bool:
    return key.startswith("pv.kubernetes.io/") or key.partition("/")[0].endswith("volume.kubernetes.io")


def _warnings(found: Object) -> list[str]:
    about = found["metadata"]
    said = {**(about.get("labels") or {}), **(about.get("annotations") or {})}
    by = sorted({prefix.rstrip("/") for prefix in _MANAGERS for key in said if key.startswith(prefix)})
    if said.get("app.kubernetes.io/managed-by") == "Helm":
        by.append("Helm")
    return [f"StatefulSet {about['name']} is managed by {each}: pause it until this is done, it would scale it up" for each in by]
