"""The dump of `job postgres-backup`, the whole of it: dump, prune, metrics, under one lease."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipper_backup.config import Settings
from clipper_backup.errors import ClipperError, IncompleteError, LockedError
from clipper_backup.ops.dump.create import Written, write_dump
from clipper_backup.ops.dump.prune import Plan, execute_prune, plan_prune
from clipper_backup.ops.dump.source import look_at_source
from clipper_backup.ops.events import Warned
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.work import Work, repository_of, step
from clipper_backup.telemetry import metrics

if TYPE_CHECKING:
    from clipper_backup.telemetry.pushgateway import Pushgateway


@dataclass(frozen=True, slots=True)
class Done:
    """What one run did."""

    written: Written
    pruned: Plan


def run_postgres_dump(work: Work) -> Done:
    """Dump, then prune, then report.

    A dump that failed or was stopped is reported as such, prunes nothing and raises. When only pruning failed the dump
    stands, is reported as good, and IncompleteError says what is left to do. LockedError is reported by nobody: the other
    job is at work.
    """
    gateway = gateway_of(work.settings)
    began = work.clock.monotonic()
    written = None
    try:
        source = look_at_source(work.settings)
        repository = repository_of(work)
        with take_lease(work, DUMP_LEASE, "job postgres-backup") as lease:
            written = write_dump(work, repository, lease, source)
            report_metrics(work, gateway, metrics.DUMP_JOB, _good(written, work.clock.monotonic() - began))
            try:
                plan = execute_prune(work, plan_prune(work), lease)
            except ClipperError as error:
                raise IncompleteError(
                    f"the dump {written.summary.id} is good, but old ones were not removed: {error}",
                    hints=[*error.hints, "when nothing is in its way, `clipper-backup prune` removes them, or the next run"],
                ) from error
    except LockedError:
        raise
    except BaseException:
        if written is None:
            report_metrics(work, gateway, metrics.DUMP_JOB, metrics.dump_failed(duration_seconds=work.clock.monotonic() - began))
        raise
    return Done(written, plan)


def _good(written: Written, seconds: float) -> list[metrics.Sample]:
    summary = written.summary
    archives = {stored.database: stored.size_bytes for stored in summary.objects if stored.role == "database"}
    return metrics.dump_succeeded(
        finished_at=summary.finished_at,
        duration_seconds=seconds,
        stored_bytes=summary.stored_bytes,
        databases=[metrics.DatabaseFigures(r.name, archives[r.name], r.rows) for r in written.details.databases],
    )


def gateway_of(settings: Settings) -> "Pushgateway | None":
    """Whom to report to; UsageError for a bad URL, before any work."""
    if settings.prometheus_pushgateway is None:
        return None
    from clipper_backup.telemetry.pushgateway import Pushgateway  # noqa: PLC0415  70 ms that only this needs

    return Pushgateway.parse(settings.prometheus_pushgateway)


def report_metrics(work: Work, gateway: "Pushgateway | None", group: str, samples: Sequence[metrics.Sample]) -> None:
    """Tell the Pushgateway the values of a *group*; one that cannot be reached is a warning, the work stands."""
    if gateway is None:
        return
    try:
        with step(work, "metrics", "report to the Pushgateway") as running:
            gateway.push(group, samples)
            running.done = f"{len(samples)} values reported"
    except ClipperError as error:
        work.emit(Warned(str(error), error.hints))
