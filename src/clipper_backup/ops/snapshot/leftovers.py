"""What runs left behind that ended before their end: found by their marks, under the lease, so that none of them lives."""

from clipper_backup.errors import ClipperError, IntegrityError, ObjectMissingError
from clipper_backup.format import physical_names as names
from clipper_backup.kubernetes.api import Api
from clipper_backup.ops.events import Warned
from clipper_backup.ops.snapshot.remove import Doomed, delete_all
from clipper_backup.ops.work import Work
from clipper_backup.repository.snapshots import list_snapshots, read_taking, remove_snapshot
from clipper_backup.values import BackupId


def clear_leftovers(work: Work, api: Api) -> list[BackupId]:
    """Delete what unfinished runs made in this namespace; their ids. What cannot be deleted is warned of, and keeps its mark.

    The caller holds the lease `snapshot`.
    """
    cleared = []
    for listed in list_snapshots(work.store):
        if listed.committed:
            if listed.taking:  # it committed, and ended before it took its mark away
                work.store.delete([names.snapshot_part_key(listed.snapshot_id, names.TAKING)])
            continue
        try:
            if _clear(work, api, listed.snapshot_id):
                cleared.append(listed.snapshot_id)
        except ClipperError as error:
            told = f"the volume snapshot {listed.snapshot_id}, which was never finished, could not be deleted: {error.message}"
            work.emit(Warned(told, error.hints))
    return cleared


def _clear(work: Work, api: Api, snapshot_id: BackupId) -> bool:
    try:
        taking = read_taking(work.store, snapshot_id)
    except ObjectMissingError:  # only what lies behind a mark is left
        remove_snapshot(work.store, snapshot_id, lambda: None)
        return True
    if taking.namespace != api.namespace:
        return False  # where it is looked for by whoever works there
    for name, error in delete_all(api, [Doomed(name) for name in taking.volume_snapshots]).items():
        raise IntegrityError(f"VolumeSnapshot {name}: {error.message}", hints=error.hints)
    remove_snapshot(work.store, snapshot_id, lambda: None)
    return True
