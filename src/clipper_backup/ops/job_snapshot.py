"""`job volume-snapshot`, the whole of it: snapshot, prune, metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipper_backup.errors import ClipperError, IncompleteError, LockedError
from clipper_backup.kubernetes.api import Api
from clipper_backup.ops.events import Warned
from clipper_backup.ops.job_dump import gateway_of, report_metrics
from clipper_backup.ops.snapshot.create import SnapshotMade, create_snapshot
from clipper_backup.ops.snapshot.prune import Decision, prune_snapshots
from clipper_backup.ops.work import Work
from clipper_backup.telemetry import metrics


@dataclass(frozen=True, slots=True)
class Done:
    """What one run did. `incomplete` says what is left to do: WAL that is not in the archive, or old ones not removed."""

    made: SnapshotMade
    pruned: Sequence[Decision]
    incomplete: IncompleteError | None


def run_volume_snapshot(work: Work, open_api: Callable[[], Api], stateful_set: str) -> Done:
    """Take a volume snapshot, report it, prune old ones.

    One that failed or was stopped is reported as such, prunes nothing and raises; LockedError is reported by nobody: another run
    is at work. UsageError for a bad URL of the Pushgateway, before any work.
    """
    gateway = gateway_of(work.settings)
    made = None
    try:
        with open_api() as api:
            made = create_snapshot(work, api, stateful_set)
            report_metrics(work, gateway, metrics.SNAPSHOT_JOB, metrics.snapshot_succeeded(taken_at=made.record.taken_at))
            try:
                return Done(made, prune_snapshots(work, api), made.incomplete)
            except ClipperError as error:
                if made.incomplete is None:
                    return Done(made, (), _not_pruned(made, error))
                work.emit(Warned(f"old volume snapshots were not removed: {error}", error.hints))
                return Done(made, (), made.incomplete)
    except LockedError:
        raise
    except BaseException:
        if made is None:
            report_metrics(work, gateway, metrics.SNAPSHOT_JOB, metrics.snapshot_failed())
        raise


def _not_pruned(made: SnapshotMade, error: ClipperError) -> IncompleteError:
    return IncompleteError(
        f"the volume snapshot {made.record.id} is good, but old ones were not removed: {error}",
        hints=[*error.hints, "when nothing is in its way, `clipper-backup snapshot prune` removes them, or the next run"],
    )
