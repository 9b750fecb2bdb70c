"""`snapshot prune`: what SNAPSHOT_RETENTION_DAYS no longer keeps, with the storage's own snapshots, then its record (rule 51)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clipper_backup.errors import AccessError, ClipperError, IncompleteError
from clipper_backup.kubernetes.api import Api
from clipper_backup.kubernetes.resources import VOLUME_SNAPSHOTS
from clipper_backup.ops.events import Warned
from clipper_backup.ops.lease import SNAPSHOT_LEASE, take_lease
from clipper_backup.ops.snapshot.leftovers import clear_leftovers
from clipper_backup.ops.snapshot.read import Shown, snapshot_catalog
from clipper_backup.ops.snapshot.remove import Doomed, delete_all
from clipper_backup.ops.snapshot.take import PREFIX
from clipper_backup.ops.work import Work, step
from clipper_backup.repository.snapshots import remove_snapshot
from clipper_backup.values import BackupId, show_count, show_first

_LONGEST_UNREADY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one volume snapshot, and why."""

    shown: Shown
    keep: bool
    reason: str

    @property
    def snapshot_id(self) -> BackupId:
        """Its id."""
        return self.shown.snapshot_id


def plan_snapshots(catalog: Sequence[Shown], *, now: datetime, days: int) -> list[Decision]:
    """Decide of each, in the order of *catalog*. Only good ones count, and the newest good one stays whatever its age (S4)."""
    newest = max((each.snapshot_id for each in catalog if each.good), default=None)
    return [Decision(each, *_decide(each, newest, now, days)) for each in catalog]


def _decide(shown: Shown, newest: BackupId | None, now: datetime, days: int) -> tuple[bool, str]:
    age = now - shown.snapshot_id.at
    if shown.held:
        return True, "held"
    if shown.state in {"elsewhere", "damaged", "unknown"}:
        return True, shown.problem or shown.state
    if shown.snapshot_id == newest:
        return True, "the newest good one"
    if (reader := shown.read_by(now)) is not None:
        return True, reader
    if shown.state == "unfinished":
        return False, "never finished; deleted unless its run still lives"
    if shown.state == "not ready" and age > _LONGEST_UNREADY:
        return False, f"{shown.problem}, a day after it was taken"
    if age <= timedelta(days=days):
        return True, f"younger than {show_count(days, 'day')}"
    if newest is None and shown.label is not None and shown.label.safe and shown.state != "gone":
        return True, "no good one is there that could replace it"
    return False, f"older than {show_count(days, 'day')}" + ("" if shown.good else f", and {shown.problem or 'unsafe'}")


def look_at_snapshots(work: Work, api: Api) -> list[Decision]:
    """What a prune would do now; changes nothing."""
    return plan_snapshots(snapshot_catalog(work, api), now=work.store.now(), days=work.settings.snapshot_retention_days)


def prune_snapshots(work: Work, api: Api) -> list[Decision]:
    """Do it, under the lease; what was done. Labels of those that stay are put right on the way.

    AccessError where a right is missing, IncompleteError naming what else could not be deleted: it is tried again next time.
    """
    with take_lease(work, SNAPSHOT_LEASE, "snapshot prune") as lease:
        clear_leftovers(work, api)
        decisions = look_at_snapshots(work, api)
        going = [each for each in decisions if not each.keep and each.shown.record is not None]
        if going:
            with step(work, "prune", f"delete {show_count(len(going), 'volume snapshot')}") as running:
                lease.check()
                left = delete_all(api, [doomed for each in going for doomed in _doomed(each.shown)])
                done = [each for each in going if not left.keys() & {doomed.name for doomed in _doomed(each.shown)}]
                for each in done:
                    remove_snapshot(work.store, each.snapshot_id, lease.check)
                running.done = f"{show_count(len(done), 'volume snapshot')} deleted"
            _raise(left)
        _put_right(work, api, [each.shown for each in decisions if each.keep])
    return decisions


def _doomed(shown: Shown) -> list[Doomed]:
    assert shown.record is not None  # noqa: S101  only those are deleted
    return [Doomed(volume.volume_snapshot, volume.uid, volume.content) for volume in shown.record.volumes]


def _raise(left: dict[str, ClipperError]) -> None:
    for error in left.values():
        if isinstance(error, AccessError):
            raise error
    if left:
        hints = [hint for error in left.values() for hint in error.hints]
        told = [f"VolumeSnapshot {name}: {error.message}" for name, error in left.items()]
        raise IncompleteError(
            f"not all could be deleted: {show_first(told)}",
            hints=list(dict.fromkeys([*hints, "their records stay, and the next `snapshot prune` tries again"])),
        )


def _put_right(work: Work, api: Api, kept: Sequence[Shown]) -> None:
    """Write the label of today where another stands, as when its WAL went (rule 52)."""
    for shown in kept:
        if shown.label is None or shown.state not in {"ready", "not ready"}:
            continue
        for seen in shown.seen:
            if seen.annotations.get(f"{PREFIX}label") == shown.label.text:
                continue
            try:
                body = {"metadata": {"annotations": {f"{PREFIX}label": shown.label.text}}}
                api.patch(VOLUME_SNAPSHOTS, seen.name, body)
            except AccessError:
                raise
            except ClipperError as error:
                work.emit(Warned(f"VolumeSnapshot {seen.name} does not carry its label of today: {error.message}", error.hints))
