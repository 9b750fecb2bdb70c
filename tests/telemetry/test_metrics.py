import math
import subprocess
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clipper_backup.telemetry.metrics import (
    METRICS,
    DatabaseFigures,
    Metric,
    Sample,
    dump_failed,
    dump_succeeded,
    restore_test_failed,
    restore_test_succeeded,
    snapshot_failed,
    snapshot_succeeded,
)
from clipper_backup.telemetry.pushgateway import render
from fixtures.monitoring import program

FINISHED_AT = datetime(2026, 11, 22, 2, 7, 30, tzinfo=UTC)


def good_dump() -> list[Sample]:
    return dump_succeeded(
        finished_at=FINISHED_AT,
        duration_seconds=450.25,
        stored_bytes=5_000_000_123,
        databases=[DatabaseFigures("clipper", 4_999_000_000, 12_345_678), DatabaseFigures("postgres", 1200, 0)],
    )


def rendered(samples: list[Sample]) -> dict[tuple[str, str | None], float]:
    families = text_string_to_metric_families(render(samples).decode())
    return {(s.name, s.labels.get("database")): s.value for family in families for s in family.samples}


def test_a_good_dump_reports_every_figure_under_its_promised_name() -> None:
    assert rendered(good_dump()) == {
        ("postgres_backup_success", None): 1,
        ("postgres_backup_timestamp", None): FINISHED_AT.timestamp(),
        ("clipper_backup_dump_duration_seconds", None): 450.25,
        ("clipper_backup_dump_stored_bytes", None): 5_000_000_123,
        ("clipper_backup_dump_size_bytes", "clipper"): 4_999_000_000,
        ("clipper_backup_dump_size_bytes", "postgres"): 1200,
        ("clipper_backup_dump_rows", "clipper"): 12_345_678,
        ("clipper_backup_dump_rows", "postgres"): 0,
    }


def test_a_failed_run_says_nothing_about_the_last_good_dump() -> None:
    assert rendered(dump_failed(duration_seconds=3)) == {
        ("postgres_backup_success", None): 0,
        ("clipper_backup_dump_duration_seconds", None): 3,
    }


def test_a_restore_test_reports_a_duration_only_when_it_passed() -> None:
    assert rendered(restore_test_succeeded(duration_seconds=41.5)) == {
        ("postgres_restore_test_success", None): 1,
        ("postgres_restore_test_duration_seconds", None): 41.5,
    }
    assert rendered(restore_test_failed()) == {("postgres_restore_test_success", None): 0}


def test_a_snapshot_reports_its_time_only_when_it_was_taken() -> None:
    assert rendered(snapshot_succeeded(taken_at=FINISHED_AT)) == {
        ("clipper_backup_snapshot_success", None): 1,
        ("clipper_backup_snapshot_timestamp_seconds", None): FINISHED_AT.timestamp(),
    }
    assert rendered(snapshot_failed()) == {("clipper_backup_snapshot_success", None): 0}


def test_rows_that_were_not_counted_are_not_zero() -> None:
    samples = dump_succeeded(
        finished_at=FINISHED_AT, duration_seconds=1, stored_bytes=1, databases=[DatabaseFigures("clipper", 1, None)]
    )
    assert math.isnan(rendered(samples)["clipper_backup_dump_rows", "clipper"])


def test_every_defined_metric_is_reported_and_the_other_way_round() -> None:
    reported = [*good_dump(), *restore_test_succeeded(duration_seconds=1), *snapshot_succeeded(taken_at=FINISHED_AT)]
    assert {sample.metric for sample in reported} == set(METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_ends_with_its_unit(metric: Metric) -> None:
    if metric.name != "postgres_backup_timestamp":  # kept from the source
        assert metric.name.endswith("_success" if metric.unit == "1 or 0" else f"_{metric.unit}")


def test_promtool_finds_no_fault_with_names_types_and_help() -> None:
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=render(good_dump()), capture_output=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "two\nlines", "datenbänke", "a,b={c}"])
def test_any_database_name_survives_the_text_format(name: str) -> None:
    samples = dump_succeeded(
        finished_at=FINISHED_AT, duration_seconds=1, stored_bytes=1, databases=[DatabaseFigures(name, 77, 5)]
    )
    assert rendered(samples)["clipper_backup_dump_size_bytes", name] == 77
