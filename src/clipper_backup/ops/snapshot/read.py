"""`snapshot list`: what the repository says, joined with what is in the cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from clipper_backup.errors import ClipperError
from clipper_backup.format.documents import NewerError
from clipper_backup.format.snapshot_documents import Snapshot
from clipper_backup.kubernetes.api import Api
from clipper_backup.kubernetes.objects import Snapshot as Seen
from clipper_backup.ops.snapshot.labels import Label, Labels
from clipper_backup.ops.snapshot.remove import ours
from clipper_backup.ops.snapshot.take import PREFIX
from clipper_backup.ops.work import Work
from clipper_backup.repository.physical_survey import read_holds
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.snapshots import list_snapshots, read_snapshot
from clipper_backup.values import BackupId, show_names

NOT_OFF_SITE = "a volume snapshot lies where its volume lies: it is no off-site backup"

State = Literal["ready", "not ready", "gone", "elsewhere", "unfinished", "damaged", "unknown"]


@dataclass(frozen=True, slots=True)
class Shown:
    """One volume snapshot. `unknown` is one in the cluster that carries our labels and of which the repository says nothing.

    `elsewhere`: of another namespace, where alone it can be looked at. `record` and `label` are None where there is no record
    that can be read; `seen` are its VolumeSnapshots, as far as they are there.
    """

    snapshot_id: BackupId
    state: State
    record: Snapshot | None = None
    label: Label | None = None
    seen: tuple[Seen, ...] = ()
    problem: str | None = None
    held: bool = False

    @property
    def good(self) -> bool:
        """Whether it counts: ready, and not unsafe."""
        return self.state == "ready" and self.label is not None and self.label.safe

    def read_by(self, now: datetime) -> str | None:
        """Who restores from it, as it says of itself; None when nobody does."""
        for seen in self.seen:
            if seen.is_read:
                return f"a volume is being filled from {seen.name}"
            who, _, until = seen.annotations.get(f"{PREFIX}reading", "").rpartition(" until ")
            if who and now < _time(until):
                return f"{who} restores from it until {until}"
        return None


def snapshot_catalog(work: Work, api: Api) -> list[Shown]:
    """All of them, oldest first. The cluster's are listed once, in pages."""
    repository = open_repository(work.store)
    there = ours(api)
    of_id: dict[str, list[Seen]] = {}
    for seen in there.values():
        of_id.setdefault(seen.labels.get(f"{PREFIX}snapshot", ""), []).append(seen)
    labels, holds = Labels(work.store), read_holds(work.store, [])
    shown = []
    for listed in list_snapshots(work.store):
        of_this = tuple(of_id.pop(str(listed.snapshot_id), ()))
        held = listed.snapshot_id in holds
        if not listed.committed:
            shown.append(Shown(listed.snapshot_id, "unfinished", seen=of_this, held=held, problem="its run has not finished"))
            continue
        try:
            record = read_snapshot(work.store, listed.snapshot_id, work.trusted, repository.id)
        except (ClipperError, NewerError) as error:
            if error.temporary:
                raise
            shown.append(Shown(listed.snapshot_id, "damaged", seen=of_this, held=held, problem=str(error)))
            continue
        state, problem = _state(record, there, api.namespace)
        shown.append(Shown(listed.snapshot_id, state, record, labels.label_of(record), of_this, problem, held))
    for text, others in of_id.items():
        shown += _unknown(text, others)
    return sorted(shown, key=lambda each: each.snapshot_id)


def _state(record: Snapshot, there: Mapping[str, Seen], namespace: str) -> tuple[State, str | None]:
    if record.cluster.namespace != namespace:
        return "elsewhere", f"it is of namespace {record.cluster.namespace}: --namespace {record.cluster.namespace}"
    seen = {volume.volume_snapshot: there.get(volume.volume_snapshot) for volume in record.volumes}
    uids = {volume.volume_snapshot: volume.uid for volume in record.volumes}
    gone = [name for name, found in seen.items() if found is None or found.uid != uids[name]]
    if gone:
        return "gone", f"VolumeSnapshot {show_names(gone)} is not in namespace {namespace}"
    waiting = [name for name, found in seen.items() if found is not None and (not found.ready or found.deleting)]
    return ("not ready", f"VolumeSnapshot {show_names(waiting)} is not ready") if waiting else ("ready", None)


def _unknown(text: str, seen: Sequence[Seen]) -> list[Shown]:
    try:
        snapshot_id = BackupId.parse(text)
    except ClipperError:
        return []  # no id of ours: whoever labelled it knows
    told = f"the repository knows nothing of VolumeSnapshot {show_names([each.name for each in seen])}"
    return [Shown(snapshot_id, "unknown", seen=tuple(seen), problem=told)]


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)  # what cannot be read is not over
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
