"""`snapshot create`: VolumeSnapshots of all volumes of the database, taken between start and stop of one session's backup.

The steps are those of docs/design/snapshots.md. Whatever fails, there is a good snapshot or none: what was begun is deleted, and
what could not be is found by the next run, by its mark.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec

from clipper_backup.errors import AccessError, ClipperError, IncompleteError, IntegrityError, ServerError, WalGapError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseObject
from clipper_backup.format.snapshot_documents import (
    Snapshot,
    SnapshotCluster,
    SnapshotPostgres,
    SnapshotTaking,
    SnapshotVolume,
)
from clipper_backup.kubernetes.api import Api
from clipper_backup.kubernetes.objects import Snapshot as Seen
from clipper_backup.kubernetes.objects import SnapshotContent
from clipper_backup.kubernetes.resources import VOLUME_SNAPSHOTS
from clipper_backup.ops.base.create import accepted_system
from clipper_backup.ops.base.source import BaseSource, look_at_base_source
from clipper_backup.ops.base.wal import prove_wal, wait_for_wal
from clipper_backup.ops.events import Warned
from clipper_backup.ops.lease import SNAPSHOT_LEASE, take_lease
from clipper_backup.ops.snapshot.database import Database, Volume, look_at_database
from clipper_backup.ops.snapshot.labels import UNSAFE, Label, Labels
from clipper_backup.ops.snapshot.leftovers import clear_leftovers
from clipper_backup.ops.snapshot.remove import Doomed, delete_all
from clipper_backup.ops.snapshot.take import PREFIX, Taken, make, name_of, until_ready, until_taken
from clipper_backup.ops.work import SOFTWARE, Work, repository_of, skew, step, this_process
from clipper_backup.postgres.backup_session import BackupSession, Stopped
from clipper_backup.postgres.cluster_facts import archiver_failure, server_address, server_now
from clipper_backup.postgres.wal_stream import HeldWal
from clipper_backup.repository.leases import Lease
from clipper_backup.repository.snapshots import SnapshotRun
from clipper_backup.repository.systems import physical_id
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import BackupId, Lsn, show_count, show_names
from clipper_backup.wal_names import Segment

_NO_END = "what was taken until then is unsafe, without the end of a backup, and was deleted"


@dataclass(frozen=True, slots=True)
class SnapshotMade:
    """A committed volume snapshot and its label. `incomplete` says why its WAL is not in the archive, where it should be."""

    record: Snapshot
    label: Label
    incomplete: IncompleteError | None = None


def create_snapshot(work: Work, api: Api, stateful_set: str) -> SnapshotMade:
    """Snapshot the volumes of the first Pod of *stateful_set*, on which the configured server runs.

    Returns only when it is committed and ready; whatever raises leaves no snapshot behind. IncompleteError where something of a
    failed one is still there, with the failure's words.
    """
    # over the network whatever BASE_SOURCE says: no file of the server is read
    source = look_at_base_source(replace(work.settings, base_source="protocol"), work.clock, must_archive=False)
    repository = repository_of(work)
    physical_id(repository)
    with take_lease(work, SNAPSHOT_LEASE, "snapshot create") as lease:
        database = look_at_database(work, api, stateful_set, source.facts, server_address(source.login))
        accepted_system(work, source)
        clear_leftovers(work, api)
        return _Making(work, api, lease, source, database, repository.id).make()


class _Making:
    """One volume snapshot on its way."""

    def __init__(self, work: Work, api: Api, lease: Lease, source: BaseSource, database: Database, repository_id: str) -> None:
        self._work, self._api, self._lease = work, api, lease
        self._source, self._database, self._repository_id = source, database, repository_id
        self._begun_at = work.store.now()
        self._id = BackupId.make(self._begun_at)
        self._names = {name_of(volume, database.pod, self._id): volume for volume in database.volumes}
        self._doomed = [Doomed(name) for name in self._names]
        self._segment_bytes = source.facts.segment_bytes
        self._start = Lsn(0)

    def make(self) -> SnapshotMade:
        """All steps from the mark on."""
        taking = SnapshotTaking(
            id=str(self._id),
            begun_at=self._begun_at,
            started_by=this_process(),
            namespace=self._api.namespace,
            volume_snapshots=list(self._names),
        )
        run = SnapshotRun(self._work.store, self._lease, self._source.sealer, taking)
        try:
            return self._make(run)
        except BaseException as error:
            self._undo(run, error)
            raise

    def _make(self, run: SnapshotRun) -> SnapshotMade:
        source = self._source
        with ExitStack() as until_proven:
            held = until_proven.enter_context(HeldWal(source.login)) if source.facts.archiving else None
            taken, stopped = self._take()
            stopped_at = server_now(source.login)
            objects = [run.keep(names.LABEL, "label", [stopped.label])]
            if stopped.tablespace_map:
                objects.append(run.keep(names.TABLESPACE_MAP, "tablespace_map", [stopped.tablespace_map]))
            self._annotate(taken, stopped, stopped_at)
            links, incomplete = (None, None) if held is None else self._wal(held, stopped)
        if links is None and not self._database.whole:
            raise ServerError(
                "the server does not archive its WAL, and the database lies on more than one volume: nothing could be restored",
                hints=["switch archiving on: docs/guides/archive-wal.md", "or put all of it on one volume"],
            )
        ready = self._ready(taken)
        record = self._record(taken, ready, stopped, stopped_at, objects, links)
        with step(self._work, "commit", f"commit {self._id}") as committing:
            run.commit(record, None if source.signing is None else source.signing.sign)
            label = Labels(self._work.store).label_of(record)
            committing.done = f"committed {self._id}: {label.text}"
        self._tell_label(label)
        return SnapshotMade(record, label, incomplete)

    # -- the backup, and what is taken in it

    def _take(self) -> tuple[dict[str, Taken], Stopped]:
        """Steps 3 to 6, in one session; what fails in it leaves snapshots that are unsafe."""
        work, api = self._work, self._api
        taken = {}
        count = show_count(len(self._names), "volume")
        try:
            with step(work, "start", "begin a backup on the server") as running:
                session = BackupSession(self._source.login, f"clipper-backup snapshot {self._id}", work.settings.base_checkpoint)
                began_at = work.clock.now() + skew(work.store, work.clock)
                self._start = session.lsn
                running.done = f"the backup begins at {session.lsn}"
            with session:
                with step(work, "take", f"take snapshots of {count}") as running:
                    snapshot_class = work.settings.volume_snapshot_class
                    made = {
                        name: make(api, name, volume, self._id, self._repository_id, snapshot_class)
                        for name, volume in self._names.items()
                    }
                    self._doomed = [Doomed(name, each.uid) for name, each in made.items()]
                    deadline = api.clock.monotonic() + work.settings.snapshot_taken_seconds
                    for name, each in made.items():
                        taken[name] = until_taken(
                            api, each, begun_at=began_at, deadline=deadline, check=session.check
                        )  # fmt: skip
                    running.done = f"{count} taken: {show_names(list(taken))}"
                session.check()
                self._lease.check()
                stopped = session.stop(self._source.timeline)
        except ClipperError as error:
            raise type(error)(f"{error.message}; {_NO_END}", hints=error.hints) from error
        return taken, stopped

    def _annotate(self, taken: dict[str, Taken], stopped: Stopped, stopped_at: datetime) -> None:
        """What whoever finds the VolumeSnapshots without this repository needs, on each of them."""
        said = {
            "system-id": self._source.system_id,
            "timeline": str(int(stopped.end.timeline)),
            "stop-lsn": str(stopped.end.lsn),
            "needs-wal-until": stopped_at.isoformat(timespec="seconds"),
            "backup-label": stopped.label.decode(errors="backslashreplace"),
            "label": UNSAFE,
        }
        if stopped.tablespace_map:
            said["tablespace-map"] = stopped.tablespace_map.decode(errors="backslashreplace")
        for name, each in taken.items():
            own = said | {"start-lsn": str(self._start), "taken-at": each.created_at.isoformat(timespec="seconds")}
            annotations = {f"{PREFIX}{key}": value for key, value in own.items()}
            self._api.patch(VOLUME_SNAPSHOTS, name, {"metadata": {"annotations": annotations}})

    def _tell_label(self, label: Label) -> None:
        """Put the label on them; without it they say unsafe, which the next prune corrects."""
        try:
            for name in self._names:
                self._api.patch(VOLUME_SNAPSHOTS, name, {"metadata": {"annotations": {f"{PREFIX}label": label.text}}})
        except ClipperError as error:
            self._work.emit(Warned(f"{self._id} is committed, but its label is not on it: {error.message}", error.hints))

    # -- what must be there before it counts

    def _wal(self, held: HeldWal, stopped: Stopped) -> tuple[tuple[str, str] | None, IncompleteError | None]:
        """The links of its first and last segment, once all are in the archive and this server's own (B4)."""
        source = self._source
        catalog = WalCatalog(self._work.store, source.system_id, self._segment_bytes)
        first, last = self._segments(stopped)
        try:
            wait_for_wal(self._work, catalog, first, last, lambda: archiver_failure(source.login))
            return prove_wal(self._work, catalog, held, first, last, self._repository_id), None
        except WalGapError as error:
            if not self._database.whole:
                raise
            told = f"the volume snapshot {self._id} is good to the instant it was taken, and no further: {error.message}"
            return None, IncompleteError(told, hints=error.hints)

    def _segments(self, stopped: Stopped) -> tuple[Segment, Segment]:
        timeline = stopped.end.timeline
        return (
            Segment.holding(timeline, self._start, self._segment_bytes),
            Segment.ending(timeline, stopped.end.lsn, self._segment_bytes),
        )

    def _ready(self, taken: dict[str, Taken]) -> dict[str, tuple[Seen, SnapshotContent]]:
        deadline = self._api.clock.monotonic() + self._work.settings.snapshot_ready_seconds
        with step(self._work, "ready", "wait until they can be restored from") as running:
            ready = {
                name: until_ready(self._api, each, deadline=deadline, check=self._lease.check) for name, each in taken.items()
            }
            running.done = f"{show_count(len(ready), 'volume snapshot is', 'volume snapshots are')} ready"
        return ready

    def _record(
        self,
        taken: dict[str, Taken],
        ready: dict[str, tuple[Seen, SnapshotContent]],
        stopped: Stopped,
        stopped_at: datetime,
        objects: list[BaseObject],
        links: tuple[str, str] | None,
    ) -> Snapshot:
        source, database = self._source, self._database
        volumes = [_volume(self._names[name], taken[name], *ready[name]) for name in taken]
        first, last = self._segments(stopped)
        return Snapshot(
            id=str(self._id),
            repository_id=self._repository_id,
            system_id=source.system_id,
            timeline=int(stopped.end.timeline),
            start_lsn=str(self._start),
            stop_lsn=str(stopped.end.lsn),
            taken_at=max(volume.created_at for volume in volumes),
            begun_at=self._begun_at,
            finished_at=self._work.store.now(),
            stopped_at=stopped_at,
            software=SOFTWARE,
            whole=database.whole,
            first_segment=first.name,
            last_segment=last.name,
            first_link=msgspec.UNSET if links is None else links[0],
            last_link=msgspec.UNSET if links is None else links[1],
            cluster=SnapshotCluster(
                namespace=self._api.namespace,
                stateful_set=database.stateful_set.name,
                stateful_set_uid=database.stateful_set.uid,
                pod=database.pod,
            ),
            volumes=volumes,
            postgres=SnapshotPostgres(
                major=source.facts.major,
                version=source.facts.version_text,
                container=database.container,
                image=database.image,
                uid=database.uid,
                gid=database.gid,
                pgdata=database.pgdata,
                mount_path=database.volumes[0].mount_path,
                data_checksums=source.facts.checksums,
                segment_bytes=self._segment_bytes,
            ),
            objects=objects,
            recipients=[] if source.sealer is None else list(source.sealer.recipients),
            signed_by=None if source.signing is None else source.signing.public,
        )

    def _undo(self, run: SnapshotRun, error: BaseException) -> None:
        """Delete what was begun. What is left keeps its mark, by which the next run finds it."""
        try:
            run.withdraw()
            left = delete_all(self._api, self._doomed)
            if not left:
                run.abandon()
                return
            told = "; ".join(f"VolumeSnapshot {name}: {why.message}" for name, why in left.items())
            hints = [hint for why in left.values() for hint in why.hints]
        except ClipperError as why:
            told, hints = why.message, [*why.hints]
        hints = list(dict.fromkeys([*hints, "the next `snapshot create` or `snapshot prune` deletes it"]))
        said = f"not all of the failed volume snapshot {self._id} could be deleted: {told}"
        if not isinstance(error, ClipperError):  # a stop goes on as one
            self._work.emit(Warned(said, tuple(hints)))
            return
        kind = AccessError if isinstance(error, AccessError) else IncompleteError  # the missing right is what to repair
        raise kind(f"{error.message}; {said}", hints=[*error.hints, *hints]) from error


def _volume(volume: Volume, taken: Taken, seen: Seen, content: SnapshotContent) -> SnapshotVolume:
    if seen.uid != taken.snapshot.uid:
        raise IntegrityError(f"VolumeSnapshot {seen.name} is another one than was taken")
    return SnapshotVolume(
        role=volume.role,
        claim=volume.claim.name,
        storage_class=volume.claim.storage_class,
        size=volume.claim.size,
        volume_snapshot=seen.name,
        uid=seen.uid,
        content=content.name,
        snapshot_class=seen.snapshot_class,
        driver=content.driver,
        deletion_policy=content.deletion_policy,
        handle=content.handle,
        restore_bytes=content.restore_bytes,
        created_at=taken.created_at,
    )
