"""VolumeSnapshots: made, waited for until they are taken, and until they can be restored from."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from clipper_backup.errors import KubernetesError, MissingError, UsageError
from clipper_backup.kubernetes.api import Api, Object
from clipper_backup.kubernetes.objects import Snapshot, SnapshotContent, content_of, snapshot_of
from clipper_backup.kubernetes.resources import VOLUME_SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS
from clipper_backup.kubernetes.watch import wait_for
from clipper_backup.ops.snapshot.database import Volume
from clipper_backup.values import BackupId, show_time

PREFIX = "clipper-backup/"
"""Of our labels and annotations."""
OURS = {"app.kubernetes.io/name": "clipper-backup", "app.kubernetes.io/managed-by": "clipper-backup"}
"""Labels of every VolumeSnapshot that is made here."""
SELECTOR = ",".join(f"{key}={value}" for key, value in OURS.items())

_NAME_CHARACTERS = 63
_HASH_CHARACTERS = 8
_SILENT_SECONDS = 60.0
"""No controller that is there needs so long for its first word."""
_OLDER = timedelta(seconds=60)
"""By how much the driver's clock may be behind the store's."""
_NO_CLASS = "Failed to get snapshot class"
_NO_DEFAULT = "cannot find default snapshot class"
_NO_CLAIM = "cannot get claim from snapshot"


def name_of(volume: Volume, pod: str, snapshot_id: BackupId) -> str:
    """`<claim template>-<id>`, cut so that it is a label's value too; it does not change from one try to the next (K8)."""
    template = volume.claim.name.removesuffix(f"-{pod}")
    name = f"{template}-{snapshot_id}"
    if len(name) <= _NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(volume.claim.name.encode()).hexdigest()[:_HASH_CHARACTERS]
    room = _NAME_CHARACTERS - len(str(snapshot_id)) - len(digest) - 2
    return f"{template[:room].rstrip('-.')}-{digest}-{snapshot_id}"


def make(api: Api, name: str, volume: Volume, snapshot_id: BackupId, repository_id: str, snapshot_class: str | None) -> Snapshot:
    """Ask for it; nothing is taken yet."""
    spec: Object = {"source": {"persistentVolumeClaimName": volume.claim.name}}
    if snapshot_class is not None:
        spec["volumeSnapshotClassName"] = snapshot_class
    labels = OURS | {f"{PREFIX}snapshot": str(snapshot_id), f"{PREFIX}role": volume.role}
    about = {"name": name, "labels": labels, "annotations": {f"{PREFIX}repository-id": repository_id}}
    return snapshot_of(api.create(VOLUME_SNAPSHOTS, {"metadata": about, "spec": spec}))


@dataclass(frozen=True, slots=True)
class Taken:
    """One that is taken; it may be ready much later."""

    snapshot: Snapshot
    created_at: datetime


class _TakenError(Exception):
    """The content says it first, and nothing is watched there."""

    def __init__(self, taken: Taken) -> None:
        self.taken = taken


def until_taken(api: Api, made: Snapshot, *, begun_at: datetime, deadline: float, check: Callable[[], None]) -> Taken:
    """Wait until the driver says when it took it: creationTime, of the snapshot or of its content.

    *check* is called each second and may raise; *begun_at* is the store's time at which the backup had begun, *deadline* by the
    API's clock. KubernetesError for what no controller tries again, TimedOutError at the deadline.
    """
    begun = api.clock.monotonic()
    seen = made

    def of(created_at: datetime) -> Taken:
        if created_at < begun_at - _OLDER:
            raise KubernetesError(
                f"VolumeSnapshot {made.name} was taken at {show_time(created_at)}, the backup began at {show_time(begun_at)}",
                hints=["it is somebody's older one, or the storage's clock is wrong"],
            )
        return Taken(seen, created_at)

    def until(found: Object | None) -> Taken | None:
        nonlocal seen
        seen = _judged(made, found)
        return None if seen.created_at is None else of(seen.created_at)

    def beat() -> None:
        check()
        if seen.content is not None and seen.created_at is None:
            with suppress(MissingError):  # then its snapshot is going too, which is seen there
                content = content_of(api.get(VOLUME_SNAPSHOT_CONTENTS, seen.content))
                if content.created_at is not None:
                    raise _TakenError(of(content.created_at))
        silent = seen.content is None and seen.error is None
        if silent and api.clock.monotonic() - begun >= _SILENT_SECONDS:
            raise KubernetesError(
                f"nobody answers VolumeSnapshot {made.name}: there seems to be no snapshot controller",
                hints=[
                    "kubectl get pods -A | grep snapshot-controller; `clipper-backup doctor` has the commands that install one",
                    f"kubectl describe volumesnapshot {made.name}",
                ],
            )

    left = max(1.0, deadline - api.clock.monotonic())
    try:
        return wait_for(
            api, VOLUME_SNAPSHOTS, made.name, until, timeout_seconds=left, beat=beat, beat_seconds=1
        )  # fmt: skip
    except _TakenError as found:
        return found.taken


def until_ready(api: Api, taken: Taken, *, deadline: float, check: Callable[[], None]) -> tuple[Snapshot, SnapshotContent]:
    """Wait until it can be restored from; it, and its content. Errors as of `until_taken`."""

    def until(found: Object | None) -> Snapshot | None:
        seen = _judged(taken.snapshot, found)
        return seen if seen.ready else None

    left = max(1.0, deadline - api.clock.monotonic())
    seen = wait_for(api, VOLUME_SNAPSHOTS, taken.snapshot.name, until, timeout_seconds=left, beat=check)
    return seen, content_of(api.get(VOLUME_SNAPSHOT_CONTENTS, str(seen.content)))


def _judged(made: Snapshot, found: Object | None) -> Snapshot:
    """What is seen of it; an error where no controller will do anything more."""
    seen = None if found is None else snapshot_of(found)
    if seen is None or seen.uid != made.uid or seen.deleting:
        raise KubernetesError(
            f"VolumeSnapshot {made.name} was deleted while it was taken",
            hints=["a person, another tool, or the end of its namespace; the cluster's audit log says who"],
        )
    if seen.error is None:
        return seen
    if _NO_CLASS in seen.error:
        hints = [
            "VOLUME_SNAPSHOT_CLASS names one of: kubectl get volumesnapshotclass",
            "infrastructure/k8s/overlays has one for each cloud",
        ]
        raise KubernetesError(f"VolumeSnapshot {made.name}: {seen.error}", hints=hints)
    if _NO_DEFAULT in seen.error:
        raise UsageError(
            f"VolumeSnapshot {made.name}: the cluster has no default VolumeSnapshotClass",
            hints=["set VOLUME_SNAPSHOT_CLASS to one of: kubectl get volumesnapshotclass"],
        )
    if _NO_CLAIM in seen.error:
        raise MissingError(f"VolumeSnapshot {made.name}: claim {made.claim} is gone: {seen.error}")
    return seen  # controllers try again: the time-out tells the error
