"""The JSON documents of volume snapshots (docs/design/snapshots.md)."""

from typing import Annotated, Literal

import msgspec

from clipper_backup.format.base_documents import BaseObject, Count, Hex128, LsnText, RunText, SystemNumber, Word
from clipper_backup.format.documents import SCHEMA, Document, Time, register


class SnapshotTaking(Document, kw_only=True, frozen=True):
    """`snapshots/<id>/taking.json`: a run lives, or died; the names of the VolumeSnapshots that it may have made."""

    schema: int = SCHEMA
    id: RunText
    begun_at: Time
    started_by: str
    namespace: str
    volume_snapshots: list[str]


class SnapshotVolume(Document, kw_only=True, frozen=True):
    """One volume of it. `role` is data, wal, tablespace or other; `uid` and `handle` say which VolumeSnapshot, and which disk's.

    `created_at` is when the driver took it; `size` is what the claim asked for, as it says it.
    """

    role: Word
    claim: str
    storage_class: str | None
    size: str
    volume_snapshot: str
    uid: str
    content: str
    snapshot_class: str | None
    driver: str
    deletion_policy: str
    handle: str | None
    restore_bytes: Count | None
    created_at: Time


class SnapshotCluster(Document, kw_only=True, frozen=True):
    """Where in Kubernetes the database ran."""

    namespace: str
    stateful_set: str
    stateful_set_uid: str
    pod: str


class SnapshotPostgres(Document, kw_only=True, frozen=True):
    """The server. `version` is its own text, which says of musl; uid and gid are null where the Pod says none."""

    major: int
    version: str
    container: str
    image: str
    uid: int | None
    gid: int | None
    pgdata: str
    mount_path: str
    data_checksums: bool
    segment_bytes: Count


class Snapshot(Document, kw_only=True, frozen=True):
    """`snapshots/<id>.json`: its existence commits the volume snapshot.

    Its first fields are a SnapshotRecord's, which is all that retention reads, and that older versions know.
    `stopped_at` is the server's clock after the stop, the other times are the store's, but `taken_at` and the volumes': the
    driver's. `whole`: one volume holds all of the database, WAL included. The links are of the WAL that it needs, once that was
    found to be the server's own; unset where it was not.
    """

    schema: int = SCHEMA
    kind: Literal["snapshot"] = "snapshot"
    system_id: SystemNumber
    timeline: Annotated[int, msgspec.Meta(ge=1)]
    start_lsn: LsnText
    stop_lsn: LsnText
    taken_at: Time
    id: RunText
    repository_id: str
    begun_at: Time
    finished_at: Time
    stopped_at: Time
    software: str
    whole: bool
    first_segment: str
    last_segment: str
    first_link: Hex128 | msgspec.UnsetType = msgspec.UNSET
    last_link: Hex128 | msgspec.UnsetType = msgspec.UNSET
    cluster: SnapshotCluster
    volumes: Annotated[list[SnapshotVolume], msgspec.Meta(min_length=1)]
    postgres: SnapshotPostgres
    objects: list[BaseObject]
    recipients: list[str] = msgspec.field(default_factory=list)
    signed_by: str | None = None


register(*(kind for kind in Document.__subclasses__() if kind.__module__ == __name__))
