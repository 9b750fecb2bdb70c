"""Which verbs of the Kubernetes API each command needs: what rbac.yaml grants is compared with this, and with what tests used."""

from typing import NamedTuple

from clipper_backup.kubernetes.resources import (
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    STATEFUL_SETS,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
    Resource,
)

ACCOUNT = "backup-snapshots"


class Verb(NamedTuple):
    """One right, and the commands that fail without it."""

    name: str
    resource: Resource
    commands: tuple[str, ...]


VERBS = (
    Verb("get", STATEFUL_SETS, ("snapshot create",)),
    Verb("get", PERSISTENT_VOLUME_CLAIMS, ("snapshot create",)),
    Verb("get", PODS, ("snapshot create",)),
    Verb("get", VOLUME_SNAPSHOT_CLASSES, ("snapshot create",)),
    Verb("create", VOLUME_SNAPSHOTS, ("snapshot create",)),
    Verb("watch", VOLUME_SNAPSHOTS, ("snapshot create", "snapshot prune")),
    Verb("list", VOLUME_SNAPSHOTS, ("snapshot create", "snapshot list", "snapshot prune")),
    Verb("patch", VOLUME_SNAPSHOTS, ("snapshot create", "snapshot prune")),
    Verb("get", VOLUME_SNAPSHOT_CONTENTS, ("snapshot create", "snapshot prune")),
    # of a snapshot that failed half-way too
    Verb("get", VOLUME_SNAPSHOTS, ("snapshot prune",)),
    Verb("delete", VOLUME_SNAPSHOTS, ("snapshot prune",)),
    Verb("patch", VOLUME_SNAPSHOT_CONTENTS, ("snapshot prune",)),
    Verb("delete", VOLUME_SNAPSHOT_CONTENTS, ("snapshot prune",)),
)
