"""Every metric, defined once: names, labels and units here are what alert rules and dashboards may rely on.

`postgres_…` names come from the source document and are kept to the letter; ours begin with `clipper_backup_`. Absent is
not 0: a metric is reported only by a run that knows its value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, always a gauge: a job that ends has nothing to count upwards from."""

    name: str
    help: str
    unit: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric; `labels` are the values of the metric's labels, in their order."""

    metric: Metric
    value: float
    labels: tuple[str, ...] = ()


DUMP_JOB = "postgres-backup"
"""The Pushgateway's group for everything that the job `postgres-backup` reports."""

BACKUP_SUCCESS = Metric(
    "postgres_backup_success", "Whether the last run of the dump job ended well: 1 it did, 0 it did not.", "1 or 0"
)
BACKUP_TIMESTAMP = Metric(
    "postgres_backup_timestamp", "When the last good dump was finished; a failed run leaves it as it is.", "Unix time in seconds"
)
DUMP_DURATION = Metric(
    "clipper_backup_dump_duration_seconds", "How long the last run of the dump job took, whichever way it ended.", "seconds"
)
DUMP_STORED_BYTES = Metric(
    "clipper_backup_dump_stored_bytes", "What the last good dump takes in the store, all its objects together.", "bytes"
)
DUMP_SIZE_BYTES = Metric(
    "clipper_backup_dump_size_bytes",
    "What one database of the last good dump takes in the store, compressed.",
    "bytes",
    ("database",),
)
DUMP_ROWS = Metric(
    "clipper_backup_dump_rows",
    "Rows of one database, counted on the last good dump's own snapshot; NaN where they were not counted.",
    "rows",
    ("database",),
)

RESTORE_TEST_JOB = "restore-test"
"""The Pushgateway's group for everything that the job `restore-test` reports."""

RESTORE_TEST_SUCCESS = Metric(
    "postgres_restore_test_success",
    "Whether the last restore test restored a backup that is what was recorded: 1 it did, 0 it did not.",
    "1 or 0",
)
RESTORE_TEST_DURATION = Metric(
    "postgres_restore_test_duration_seconds",
    "How long the last good restore test took, from the download until the data was validated; a failed one leaves it as it is.",
    "seconds",
)

SNAPSHOT_JOB = "volume-snapshot"
"""The Pushgateway's group for everything that the job `volume-snapshot` reports."""

SNAPSHOT_SUCCESS = Metric(
    "clipper_backup_snapshot_success",
    "Whether the last run of the snapshot job took a volume snapshot that is ready and restores: 1 it did, 0 it did not.",
    "1 or 0",
)
SNAPSHOT_TIMESTAMP = Metric(
    "clipper_backup_snapshot_timestamp_seconds",
    "When the last good volume snapshot was taken; a failed run leaves it as it is; Unix time.",
    "seconds",
)

METRICS = (
    BACKUP_SUCCESS,
    BACKUP_TIMESTAMP,
    DUMP_DURATION,
    DUMP_STORED_BYTES,
    DUMP_SIZE_BYTES,
    DUMP_ROWS,
    RESTORE_TEST_SUCCESS,
    RESTORE_TEST_DURATION,
    SNAPSHOT_SUCCESS,
    SNAPSHOT_TIMESTAMP,
)


@dataclass(frozen=True, slots=True)
class DatabaseFigures:
    """What a good dump knows of one database. `rows` is None with DUMP_FINGERPRINT=off."""

    database: str
    size_bytes: int
    rows: int | None


def dump_succeeded(
    *, finished_at: datetime, duration_seconds: float, stored_bytes: int, databases: Sequence[DatabaseFigures]
) -> list[Sample]:
    """What a run reports that made a good dump; *finished_at* is the dump's own, not the time of the report."""
    return [
        Sample(BACKUP_SUCCESS, 1),
        Sample(BACKUP_TIMESTAMP, finished_at.timestamp()),
        Sample(DUMP_DURATION, duration_seconds),
        Sample(DUMP_STORED_BYTES, stored_bytes),
        *(Sample(DUMP_SIZE_BYTES, figures.size_bytes, (figures.database,)) for figures in databases),
        # A Pushgateway keeps a metric until it is sent again: without NaN, an earlier run's counts would pass for this one's.
        *(Sample(DUMP_ROWS, math.nan if figures.rows is None else figures.rows, (figures.database,)) for figures in databases),
    ]


def dump_failed(*, duration_seconds: float) -> list[Sample]:
    """What a run reports that made no good dump: nothing that would overwrite the last good one's time and figures."""
    return [Sample(BACKUP_SUCCESS, 0), Sample(DUMP_DURATION, duration_seconds)]


def restore_test_succeeded(*, duration_seconds: float) -> list[Sample]:
    """What a restore test reports that passed, also one that took longer than its target."""
    return [Sample(RESTORE_TEST_SUCCESS, 1), Sample(RESTORE_TEST_DURATION, duration_seconds)]


def restore_test_failed() -> list[Sample]:
    """What one reports that did not: no duration, which would tell of a restore that did not take place."""
    return [Sample(RESTORE_TEST_SUCCESS, 0)]


def snapshot_succeeded(*, taken_at: datetime) -> list[Sample]:
    """What a run reports that took a good volume snapshot; *taken_at* is the storage's time of it, not that of the report."""
    return [Sample(SNAPSHOT_SUCCESS, 1), Sample(SNAPSHOT_TIMESTAMP, taken_at.timestamp())]


def snapshot_failed() -> list[Sample]:
    """What a run reports that took none: not when, which is the last good one's."""
    return [Sample(SNAPSHOT_SUCCESS, 0)]
