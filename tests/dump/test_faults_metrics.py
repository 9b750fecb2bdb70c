"""What a Pushgateway is told when things go wrong, and that one which cannot be told harms nobody."""

import signal

import pytest

from fixtures.dump import (
    AT_GATE,
    FAULTS,
    Site,
    check_told,
    copy_dump,
    ended,
    gate_closed,
    halted,
    wait_for_session,
)
from fixtures.monitoring import RunningPushgateway, Series

pytestmark = pytest.mark.soak(share=0.25)

JOB = ("job", "postgres-backup")


@pytest.fixture
def told(site: Site, pushgateway: RunningPushgateway) -> dict[str, str]:
    """The job's settings with a Pushgateway that knows of a good run; that run has pruned the old dump."""
    settings = {"PROMETHEUS_PUSHGATEWAY": pushgateway.url, "RETENTION_MIN_DUMPS": "1"}
    assert site.run(*JOB, **settings).code == 0
    assert success(pushgateway) == 1
    return settings


def success(pushgateway: RunningPushgateway) -> float:
    return pushgateway.metrics()["postgres_backup_success"][()]


def check_only_success_changed(pushgateway: RunningPushgateway, before: dict[str, dict[Series, float]]) -> None:
    """Success is 0; time and figures of the last good dump are what they were."""
    after = pushgateway.metrics()
    assert after["postgres_backup_success"] == {(): 0}
    every_run = {"postgres_backup_success", "clipper_backup_dump_duration_seconds", "push_time_seconds"}
    assert {name: values for name, values in after.items() if name not in every_run} == {
        name: values for name, values in before.items() if name not in every_run
    }


def test_a_pushgateway_that_is_down_is_a_warning(site: Site, deaf_port: str) -> None:
    url = f"http://127.0.0.1:{deaf_port}"
    outcome = site.run(*JOB, PROMETHEUS_PUSHGATEWAY=url)

    assert outcome.code == 0
    assert len(site.dumps) == 3
    assert f"warning: cannot reach the Pushgateway {url}" in outcome.stderr
    assert "error:" not in outcome.stderr


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"PGPASSWORD": "wrong"}, 12),
        ({FAULTS: "put_stream:1:broken"}, 1),
        ({FAULTS: "put:5:broken"}, 1),
    ],
    ids=["login", "upload", "commit"],
)
def test_a_failed_job_prunes_nothing(site: Site, wrong: dict[str, str], code: int) -> None:
    # The old dump would go: nothing but the failure keeps it.
    site.check_refused(site.run(*JOB, RETENTION_MIN_DUMPS="1", **wrong), code, hint=None)


def test_a_failed_job_whose_pushgateway_is_down_ends_with_its_own_error(site: Site, deaf_port: str) -> None:
    outcome = site.run(*JOB, PGPASSWORD="wrong", PROMETHEUS_PUSHGATEWAY=f"http://127.0.0.1:{deaf_port}")

    site.check_refused(outcome, 12, "refused the login", hint="PGPASSWORD")


def test_a_failed_job_is_told_and_leaves_the_last_good_ones_figures(
    site: Site, told: dict[str, str], pushgateway: RunningPushgateway
) -> None:
    before = pushgateway.metrics()
    check_told(site.run(*JOB, **told, PGPASSWORD="wrong"), 12)
    check_only_success_changed(pushgateway, before)

    check_told(site.run(*JOB, **told, **{FAULTS: "put_stream:1:broken"}), 1, hint=None)
    check_only_success_changed(pushgateway, before)

    assert site.run(*JOB, **told).code == 0
    assert success(pushgateway) == 1
    assert pushgateway.metrics()["postgres_backup_timestamp"][()] > before["postgres_backup_timestamp"][()]


def test_a_stopped_job_is_told_as_failed(site: Site, told: dict[str, str], pushgateway: RunningPushgateway) -> None:
    before = pushgateway.metrics()
    with gate_closed(site.server, site.database):
        process = site.start(*JOB, **told)
        wait_for_session(site.server, AT_GATE)
        process.send_signal(signal.SIGTERM)
        check_told(ended(process), 143, hint=None)
    check_only_success_changed(pushgateway, before)


def test_a_job_that_could_not_prune_is_told_as_good_and_ends_with_3(
    site: Site, told: dict[str, str], pushgateway: RunningPushgateway
) -> None:
    old = copy_dump(site.folder, site.recent, 40)
    outcome = site.run(*JOB, **told, **{FAULTS: "delete:2+:denied"})

    check_told(outcome, 3, site.dumps[-1], "is good", "were not removed", hint="or the next run")
    assert old in site.dumps
    assert success(pushgateway) == 1


def test_a_job_that_is_stopped_while_it_prunes_has_told_its_dump(
    site: Site, told: dict[str, str], pushgateway: RunningPushgateway
) -> None:
    old = copy_dump(site.folder, site.recent, 40)
    before = site.dumps
    process = site.start(*JOB, **told, **{FAULTS: "delete:1+:stop"})
    assert halted(process)
    while site.dumps == before:  # removals of its lease's traces: not yet those of prune
        process.send_signal(signal.SIGCONT)
        assert halted(process)
    assert old in site.dumps
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)

    check_told(ended(process), 143, hint=None)
    assert success(pushgateway) == 1


def test_a_job_that_gives_way_to_another_tells_nothing(site: Site, told: dict[str, str], pushgateway: RunningPushgateway) -> None:
    before = pushgateway.metrics()
    with gate_closed(site.server, site.database):
        first = site.start("dump", "create", LEASE_SECONDS="2")
        wait_for_session(site.server, AT_GATE)
        check_told(site.run(*JOB, **told, LEASE_SECONDS="2"), 11)
    assert ended(first).code == 0
    assert pushgateway.metrics() == before
