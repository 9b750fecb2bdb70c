"""`snapshot create`: real servers, whose folders a fake cluster believes to lie on its volumes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from clipper_backup.errors import (
    AccessError,
    ClipperError,
    IncompleteError,
    KubernetesError,
    MissingError,
    ServerError,
    TimedOutError,
    UsageError,
)
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import SnapshotRecord
from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.documents import decode
from clipper_backup.kubernetes.api import Api
from clipper_backup.kubernetes.objects import snapshot_of
from clipper_backup.kubernetes.resources import (
    PODS,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
)
from clipper_backup.ops.job_snapshot import Done, run_volume_snapshot
from clipper_backup.ops.snapshot.create import SnapshotMade, create_snapshot
from clipper_backup.ops.snapshot.database import look_at_database
from clipper_backup.ops.snapshot.labels import Labels
from clipper_backup.ops.snapshot.leftovers import clear_leftovers
from clipper_backup.ops.snapshot.prune import prune_snapshots
from clipper_backup.ops.snapshot.verbs import ACCOUNT, VERBS, Verb
from clipper_backup.ops.work import Work, login_of
from clipper_backup.postgres.cluster_facts import cluster_facts
from clipper_backup.repository.snapshots import list_snapshots, read_snapshot
from clipper_backup.values import BackupId, Lsn
from clipper_backup.wal_names import Segment
from fixtures.base import Cluster, archived_cluster, fill, work_for
from fixtures.kube_cluster import Cluster as FakeCluster
from fixtures.moments import just_before
from fixtures.monitoring import RunningPushgateway
from fixtures.postgres import sql
from fixtures.snapshots import CLASS, RETAIN, as_account, run_database

pytestmark = pytest.mark.soak(share=0.25)


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """One without tablespaces: a volume may hold all of it."""
    with archived_cluster(18) as cluster:
        fill(cluster)
        yield cluster


@dataclass
class Here:
    """A server, the fake cluster it is believed to run in, and a client with the account's rights."""

    server: Cluster
    cluster: FakeCluster
    api: Api
    work: Work

    def create(self) -> SnapshotMade:
        with self.server.archiving(self.work):
            return create_snapshot(self.work, self.api, "postgres")

    def check_nothing_is_left(self) -> None:
        self.cluster.run_controllers()
        assert self.cluster.store.all(VOLUME_SNAPSHOTS) == []
        assert self.cluster.store.all(VOLUME_SNAPSHOT_CONTENTS) == []
        assert self.cluster.controllers.disk_snapshots == set()
        assert list_snapshots(self.work.store) == []


def make_here(
    server: Cluster, cluster: FakeCluster, tmp_path: Path, mounts: dict[str, str] | None = None, **settings: str
) -> Here:
    run_database(cluster, mounts or {"postgres-data": str(server.server.data.parent)})
    ours = {"VOLUME_SNAPSHOT_CLASS": CLASS, "SNAPSHOT_TAKEN_SECONDS": "20", "SNAPSHOT_READY_SECONDS": "20", "LEASE_SECONDS": "10"}
    work = work_for(server, **ours | settings)
    return Here(server, cluster, as_account(cluster, tmp_path, retry_seconds=1.0), work)


@pytest.fixture
def here(server: Cluster, cluster: FakeCluster, tmp_path: Path) -> Here:
    return make_here(server, cluster, tmp_path)


@pytest.mark.rule(47)
@pytest.mark.rule(49)
def test_a_snapshot_is_committed_with_label_lsns_and_annotations(here: Here) -> None:
    here.cluster.controllers.uploads = True
    made = here.create()
    record = made.record
    assert made.incomplete is None
    assert made.label.text.startswith("self-contained, and with WAL any instant from ")
    assert record == read_snapshot(here.work.store, BackupId.parse(record.id))
    (volume,) = record.volumes
    assert (volume.role, volume.claim, volume.deletion_policy) == ("data", "postgres-data-postgres-0", "Delete")
    assert volume.volume_snapshot == f"postgres-data-{record.id}"
    assert volume.handle in here.cluster.controllers.disk_snapshots
    (stored,) = record.objects
    label = decompress_bytes(here.work.store.get(stored.key), stored.key)
    assert f"START WAL LOCATION: {record.start_lsn} ".encode() in label
    assert Lsn.parse(record.start_lsn) < Lsn.parse(record.stop_lsn)
    assert record.begun_at - timedelta(seconds=1) <= record.taken_at <= record.finished_at
    found = snapshot_of(here.cluster.get(VOLUME_SNAPSHOTS, volume.volume_snapshot) or {})
    said = {key.removeprefix("clipper-backup/"): value for key, value in found.annotations.items() if "clipper-backup/" in key}
    assert said["backup-label"].encode() == label
    assert said["label"] == made.label.text
    assert (said["start-lsn"], said["stop-lsn"], said["timeline"]) == (record.start_lsn, record.stop_lsn, "1")
    assert said["system-id"] == record.system_id
    assert said["repository-id"] == record.repository_id
    assert found.labels["clipper-backup/snapshot"] == record.id
    assert [listed.taking for listed in list_snapshots(here.work.store)] == [False]


def test_older_versions_read_of_it_what_keeps_its_wal(here: Here) -> None:
    record = here.create().record
    key = names.snapshot_key(BackupId.parse(record.id))
    assert names.is_snapshot_key(key)
    reserved = decode(here.work.store.get(key), SnapshotRecord, key)
    assert (reserved.system_id, reserved.start_lsn, reserved.stop_lsn) == (record.system_id, record.start_lsn, record.stop_lsn)
    others = [info.key for info in here.work.store.list(names.SNAPSHOTS_FOLDER) if info.key != key]
    assert others
    assert not any(names.is_snapshot_key(other) for other in others)


@pytest.mark.rule(52)
def test_the_label_goes_down_when_its_wal_goes(here: Here) -> None:
    record = here.create().record
    segment = Segment.parse(record.last_segment, record.postgres.segment_bytes)
    here.work.store.delete([names.archive_key(record.system_id, segment.name, names.STORED)])
    label = Labels(here.work.store).label_of(record)
    assert (label.text, label.safe) == ("self-contained", True)


@pytest.mark.rule(45)
@pytest.mark.rule(46)
def test_two_claims_are_taken_together_and_need_their_wal(server: Cluster, cluster: FakeCluster, tmp_path: Path) -> None:
    data = str(server.server.data)
    here = make_here(server, cluster, tmp_path, {"postgres-data": data, "postgres-wal": f"{data}/pg_wal"})
    made = here.create()
    assert [(volume.role, volume.claim) for volume in made.record.volumes] == [
        ("data", "postgres-data-postgres-0"),
        ("wal", "postgres-wal-postgres-0"),
    ]
    assert made.label.text.startswith("needs WAL until ")
    segment = Segment.parse(made.record.first_segment, made.record.postgres.segment_bytes)
    here.work.store.delete([names.archive_key(made.record.system_id, segment.name, names.STORED)])
    label = Labels(here.work.store).label_of(made.record)
    assert (label.text, label.safe) == ("unsafe", False)


# -- what fails leaves nothing


def never_ready(here: Here) -> None:
    here.cluster.controllers.uploads = True
    here.cluster.controllers.holds = lambda step, _: step == "ready"


def fails(here: Here) -> None:
    here.cluster.controllers.snapshot_error = "rpc error: code = ResourceExhausted"


def deleted_under_us(here: Here) -> None:
    def delete(step: str, found: Any) -> bool:
        if step == "taken" and "deletionTimestamp" not in found["metadata"]:
            here.cluster.store.delete(VOLUME_SNAPSHOTS, here.cluster.namespace, found["metadata"]["name"])
        return step == "taken"

    here.cluster.controllers.holds = delete


def away(here: Here) -> None:
    here.cluster.fail("watch", VOLUME_SNAPSHOTS, 503, times=1000)
    here.cluster.fail("list", VOLUME_SNAPSHOTS, 503, times=1000)


def session_lost(here: Here) -> None:
    def end(step: str, _: Any) -> bool:
        if step == "taken":
            statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_is_in_recovery%'"
            sql(here.server.server, "postgres", f"{statement} AND pid <> pg_backend_pid()")
        return step == "taken"

    here.cluster.controllers.holds = end


FAILURES: dict[str, tuple[Callable[[Here], None], type[ClipperError], str]] = {
    "never ready": (never_ready, TimedOutError, "is not ready after .*not ready to use"),
    "status.error": (fails, TimedOutError, "ResourceExhausted.*without the end of a backup"),
    "deleted under us": (deleted_under_us, KubernetesError, "was deleted while it was taken"),
    "session lost": (session_lost, ServerError, "the connection to PostgreSQL was lost.*unsafe"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_says_why_and_leaves_nothing(failure: str, server: Cluster, cluster: FakeCluster, tmp_path: Path) -> None:
    here = make_here(server, cluster, tmp_path, SNAPSHOT_TAKEN_SECONDS="3", SNAPSHOT_READY_SECONDS="2")
    spoil, error, said = FAILURES[failure]
    spoil(here)
    with pytest.raises(error, match=said):
        here.create()
    cluster.controllers.holds = lambda *_: False
    here.check_nothing_is_left()


def test_an_api_that_goes_away_leaves_what_the_next_run_deletes(here: Here) -> None:
    away(here)
    with pytest.raises(IncompleteError, match=r"does not answer|cannot .* now") as failed:
        here.create()
    assert any("next `snapshot create`" in hint for hint in failed.value.hints)
    (left,) = list_snapshots(here.work.store)
    assert (left.taking, left.committed) == (True, False)
    here.cluster.served.faults.clear()
    made = here.create()
    assert [str(listed.snapshot_id) for listed in list_snapshots(here.work.store)] == [made.record.id]
    assert len(here.cluster.store.all(VOLUME_SNAPSHOTS)) == 1


def test_a_forgotten_past_and_broken_watches_do_no_harm(here: Here) -> None:
    """410 on a watch, and on a list."""
    here.cluster.fail("watch", VOLUME_SNAPSHOTS, 410, times=2)
    here.cluster.fail("watch", VOLUME_SNAPSHOTS, "cut", times=2)
    assert here.create().label.safe


def test_no_controller_is_told_apart(server: Cluster, patient_cluster: FakeCluster, tmp_path: Path) -> None:
    run_database(patient_cluster, {"postgres-data": str(server.server.data.parent)})
    work = work_for(server, VOLUME_SNAPSHOT_CLASS=CLASS)
    here = Here(server, patient_cluster, as_account(patient_cluster, tmp_path), work)
    patient_cluster.controllers.stopped.add("snapshots")
    with pytest.raises(ClipperError, match="seems to be no snapshot controller"):
        here.create()


BEFORE: dict[str, tuple[dict[str, str], type[ClipperError], str]] = {
    "class": ({"VOLUME_SNAPSHOT_CLASS": "nobodys"}, MissingError, "VolumeSnapshotClass nobodys"),
    "no default class": ({"VOLUME_SNAPSHOT_CLASS": ""}, UsageError, "no default VolumeSnapshotClass"),
}


@pytest.mark.parametrize("case", BEFORE)
def test_classes_that_are_not_there(case: str, server: Cluster, cluster: FakeCluster, tmp_path: Path) -> None:
    settings, error, said = BEFORE[case]
    here = make_here(server, cluster, tmp_path, None, **settings)
    with pytest.raises(error, match=said) as failed:
        here.create()
    assert any("kubectl get volumesnapshotclass" in hint for hint in failed.value.hints)
    here.check_nothing_is_left()


def test_a_retained_content_goes_with_a_snapshot_that_failed(server: Cluster, cluster: FakeCluster, tmp_path: Path) -> None:
    here = make_here(server, cluster, tmp_path, VOLUME_SNAPSHOT_CLASS=RETAIN, SNAPSHOT_READY_SECONDS="1")
    never_ready(here)
    with pytest.raises(TimedOutError):
        here.create()
    cluster.controllers.holds = lambda *_: False
    here.check_nothing_is_left()


def test_a_server_that_is_not_the_pods_is_refused(here: Here) -> None:
    def elsewhere(found: Any) -> Any:
        return found | {"status": found["status"] | {"podIP": "127.0.0.2"}}

    here.cluster.store.update(PODS, here.cluster.namespace, "postgres-0", elsewhere, by_server=True)
    facts = cluster_facts(login_of(here.work.settings))
    with pytest.raises(ServerError, match=r"a server at 127\.0\.0\.1, and Pod postgres-0 is at 127\.0\.0\.2"):
        look_at_database(here.work, here.api, "postgres", facts, "127.0.0.1")
    assert look_at_database(here.work, here.api, "postgres", facts, "127.0.0.2").whole


def test_a_data_folder_on_no_claim_is_refused(server: Cluster, cluster: FakeCluster, tmp_path: Path) -> None:
    here = make_here(server, cluster, tmp_path, {"postgres-data": "/somewhere/else"})
    with pytest.raises(UsageError, match=r"no container of Pod postgres-0 has .* on a PersistentVolumeClaim"):
        here.create()
    here.check_nothing_is_left()


NEEDED = [verb for verb in VERBS if "snapshot create" in verb.commands]


@pytest.mark.parametrize("verb", NEEDED, ids=lambda verb: f"{verb.name} {verb.resource.plural}")
def test_each_verb_that_is_missing_is_named_and_nothing_half_is_left(here: Here, verb: Verb) -> None:
    here.cluster.revoke(verb.name, verb.resource)
    with pytest.raises(AccessError, match=f"{verb.name} {verb.resource.plural}") as refused:
        here.create()
    assert "backup-snapshots" in str(refused.value)
    assert not any(listed.committed for listed in list_snapshots(here.work.store))
    here.cluster.access.without.clear()
    here.cluster.run_controllers()
    if here.cluster.store.all(VOLUME_SNAPSHOTS):  # what may not be looked at is not deleted, and found by its mark
        assert [listed.taking for listed in list_snapshots(here.work.store)] == [True]
        assert clear_leftovers(here.work, here.api) != []
    here.cluster.run_controllers()
    assert here.cluster.store.all(VOLUME_SNAPSHOTS) == []


@pytest.mark.rule(48)
def test_a_server_in_recovery_is_refused(here: Here) -> None:
    facts = replace(cluster_facts(login_of(here.work.settings)), in_recovery=True)
    with pytest.raises(ServerError, match="the server is in recovery"):
        look_at_database(here.work, here.api, "postgres", facts, None)


# -- `job volume-snapshot`


def run_job(here: Here) -> Done:
    with here.server.archiving(here.work):
        return run_volume_snapshot(here.work, lambda: here.cluster.api(ACCOUNT, retry_seconds=1.0), "postgres")


@pytest.fixture
def reporting(server: Cluster, cluster: FakeCluster, tmp_path: Path, pushgateway: RunningPushgateway) -> Here:
    return make_here(server, cluster, tmp_path, PROMETHEUS_PUSHGATEWAY=pushgateway.url)


def test_the_job_reports_a_good_one_and_a_failure_leaves_its_time(reporting: Here, pushgateway: RunningPushgateway) -> None:
    done = run_job(reporting)
    assert done.incomplete is None
    assert [(str(decision.snapshot_id), decision.keep) for decision in done.pruned] == [(done.made.record.id, True)]
    told = pushgateway.metrics()
    assert told["clipper_backup_snapshot_success"] == {(): 1}
    assert told["clipper_backup_snapshot_timestamp_seconds"] == {(): pytest.approx(done.made.record.taken_at.timestamp())}
    reporting.cluster.revoke("create", VOLUME_SNAPSHOTS)
    with pytest.raises(AccessError, match="create volumesnapshots"):
        run_job(reporting)
    after = pushgateway.metrics()
    assert after["clipper_backup_snapshot_success"] == {(): 0}
    assert after["clipper_backup_snapshot_timestamp_seconds"] == told["clipper_backup_snapshot_timestamp_seconds"]


def test_a_good_one_stands_when_only_pruning_failed(reporting: Here, pushgateway: RunningPushgateway) -> None:
    with just_before(prune_snapshots, lambda _: reporting.cluster.revoke("list", VOLUME_SNAPSHOTS)):
        done = run_job(reporting)
    assert isinstance(done.incomplete, IncompleteError)
    assert f"{done.made.record.id} is good, but old ones were not removed" in done.incomplete.message
    assert "list volumesnapshots" in done.incomplete.message
    assert pushgateway.metrics()["clipper_backup_snapshot_success"] == {(): 1}
    assert read_snapshot(reporting.work.store, BackupId.parse(done.made.record.id)) == done.made.record
