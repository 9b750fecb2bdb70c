"""Which volumes hold the database: what its server says of its folders, laid over what its Pod mounts."""

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from clipper_backup.errors import AccessError, MissingError, ServerError, UsageError
from clipper_backup.kubernetes.api import Api, Object
from clipper_backup.kubernetes.objects import Claim, Set, claim_of, pod_of, set_of
from clipper_backup.kubernetes.resources import PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS, VOLUME_SNAPSHOT_CLASSES
from clipper_backup.ops.events import Warned
from clipper_backup.ops.work import Work
from clipper_backup.postgres.cluster_facts import ClusterFacts

_ROLES = ("data", "wal", "tablespace", "other")
_WAL_ELSEWHERE = "POSTGRES_INITDB_WALDIR"
"""Of the official image: pg_wal is a link to there. No SQL function reads that link."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One claim of the database. `role` says what of the database lies in it, `other` that nobody knows."""

    role: str
    claim: Claim
    mount_path: str


@dataclass(frozen=True, slots=True)
class Database:
    """The database as Kubernetes runs it. `whole`: its first volume, the one with the data folder, holds all of it, WAL too."""

    stateful_set: Set
    pod: str
    container: str
    image: str
    uid: int | None
    gid: int | None
    pgdata: str
    volumes: Sequence[Volume]
    whole: bool


def look_at_database(work: Work, api: Api, stateful_set: str, facts: ClusterFacts, address: str | None) -> Database:
    """The volumes of the first Pod of *stateful_set*, each bound, and their class.

    *address* is where the server answered from. ServerError where it is in recovery, or is another than the Pod's; UsageError
    where a part of the database lies on no claim; MissingError where something is not there.
    """
    if facts.in_recovery:
        raise ServerError(
            "the server is in recovery: its control file may be newer than its data in a snapshot (rule 48)",
            hints=["PGHOST names the primary, and --stateful-set the one whose first Pod it is"],
        )
    pgdata = facts.settings.get("data_directory")
    if pgdata is None:
        raise AccessError(
            "this role may not know where the data folder is", hints=["GRANT pg_read_all_settings TO the role, or pg_monitor"]
        )
    found = set_of(api.get(STATEFUL_SETS, stateful_set))
    pod = api.get(PODS, f"{found.name}-0")
    state = pod_of(pod)
    _check_address(work, state.name, state.pod_ip, address)
    container, mounts = _container(pod, state.claims, pgdata)
    volumes = [
        Volume(role, _bound(api, claim, state.claims.values()), path)
        for role, claim, path in _roles(container, mounts, pgdata, facts)
    ]
    _check_class(api, work.settings.volume_snapshot_class, [volume.claim for volume in volumes])
    context = {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
    return Database(
        stateful_set=found,
        pod=state.name,
        container=str(container["name"]),
        image=str(container.get("image", "")),
        uid=context.get("runAsUser"),
        gid=context.get("runAsGroup"),
        pgdata=pgdata,
        volumes=volumes,
        whole=len(volumes) == 1,
    )


def _check_address(work: Work, pod: str, pod_ip: str | None, address: str | None) -> None:
    """Whether the server is the Pod's own: else a backup of one server would be begun around the volumes of another."""
    if pod_ip is None:
        raise MissingError(f"Pod {pod} has no address: it does not run", hints=[f"kubectl describe pod {pod}"])
    ours = None if address is None else ipaddress.ip_address(address)
    theirs = ipaddress.ip_address(pod_ip)
    if ours is None or (ours.is_loopback and not theirs.is_loopback):
        told = (
            f"whether PGHOST leads to Pod {pod} cannot be seen: the server answers from this machine, as through a forwarded port"
        )
        work.emit(Warned(told, (f"the snapshot is of the volumes of {pod}: see to it that the port leads there",)))
    elif ours != theirs:
        raise ServerError(
            f"PGHOST leads to a server at {ours}, and Pod {pod} is at {theirs}: its volumes are not those of that server",
            hints=["PGHOST and --stateful-set name the same database"],
        )


def _container(pod: Object, claims: Mapping[str, str], pgdata: str) -> tuple[Mapping[str, Any], Mapping[str, str | None]]:
    """The first container that has the data folder on a claim; its mounts: path → claim, None for what is no claim's."""
    for container in pod["spec"]["containers"]:
        mounts = {each["mountPath"]: claims.get(each["name"]) for each in container.get("volumeMounts") or ()}
        if (path := _mount_of(mounts, pgdata)) is not None and mounts[path] is not None:
            return container, mounts
    raise UsageError(
        f"no container of Pod {pod['metadata']['name']} has {pgdata}, the server's data folder, on a PersistentVolumeClaim",
        hints=[
            f"its claims are {', '.join(sorted(claims.values())) or 'none'}",
            "PGHOST and --stateful-set name the same database",
        ],
    )


def _roles(
    container: Mapping[str, Any], mounts: Mapping[str, str | None], pgdata: str, facts: ClusterFacts
) -> Iterator[tuple[str, str, str]]:
    """Role, claim and mount path of all claims that the container mounts: pg_wal may be a link into any of them."""
    wal = next(
        (str(each["value"]) for each in container.get("env") or () if each["name"] == _WAL_ELSEWHERE and "value" in each), None
    )
    places = [("data", pgdata), ("wal", wal or f"{pgdata}/pg_wal")]
    places += [("tablespace", each.path) for each in facts.tablespaces if PurePosixPath(each.path).is_absolute()]
    roles: dict[str, tuple[str, str]] = {}
    for role, place in places:
        path = _mount_of(mounts, place)
        claim = None if path is None else mounts[path]
        if path is None or claim is None:
            raise UsageError(
                f"{place} ({role}) is on no PersistentVolumeClaim of the Pod: no snapshot would hold it",
                hints=["mount a claim there, or take base backups: `clipper-backup base create`"],
            )
        roles.setdefault(claim, (role, path))
    for path, claim in sorted(mounts.items()):
        if claim is not None:
            roles.setdefault(claim, ("other", path))
    yield from sorted(((role, claim, path) for claim, (role, path) in roles.items()), key=lambda each: _ROLES.index(each[0]))


def _mount_of(mounts: Mapping[str, str | None], place: str) -> str | None:
    """The longest mount path that *place* is at or below."""
    above = [path for path in mounts if PurePosixPath(place).is_relative_to(path)]
    return max(above, key=lambda path: len(PurePosixPath(path).parts), default=None)


def _bound(api: Api, name: str, all_claims: Collection[str]) -> Claim:
    try:
        found = claim_of(api.get(PERSISTENT_VOLUME_CLAIMS, name))
    except MissingError as error:
        raise MissingError(error.message, hints=[f"the Pod's claims are {', '.join(sorted(all_claims))}"]) from error
    if not found.bound:
        raise MissingError(f"claim {name} is not bound to a volume", hints=[f"kubectl describe pvc {name}"])
    return found


def _check_class(api: Api, name: str | None, claims: Sequence[Claim]) -> None:
    """Whether the class is there, and its driver that of the volumes."""
    if name is None:
        return
    try:
        found = api.get(VOLUME_SNAPSHOT_CLASSES, name)
    except MissingError as error:
        hints = error.hints or (
            "kubectl get volumesnapshotclass; VOLUME_SNAPSHOT_CLASS names one of them",
            "infrastructure/k8s/overlays has one for each cloud",
        )
        raise MissingError(error.message, hints=hints) from error
    for claim in claims:
        if claim.provisioner not in {None, found["driver"]}:
            raise UsageError(
                f"VolumeSnapshotClass {name} is of the driver {found['driver']}, and claim {claim.name} of {claim.provisioner}",
                hints=["VOLUME_SNAPSHOT_CLASS names a class of that driver: kubectl get volumesnapshotclass"],
            )
