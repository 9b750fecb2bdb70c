"""`snapshot list` and `snapshot prune`: what is decided, and what is left in cluster, storage and repository."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import load
from clipper_backup.errors import AccessError, ClipperError
from clipper_backup.format import physical_names as names
from clipper_backup.format.documents import HoldMark, encode
from clipper_backup.format.snapshot_documents import (
    Snapshot,
    SnapshotCluster,
    SnapshotPostgres,
    SnapshotTaking,
    SnapshotVolume,
)
from clipper_backup.kubernetes.api import Api
from clipper_backup.kubernetes.objects import snapshot_of
from clipper_backup.kubernetes.resources import VOLUME_SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS
from clipper_backup.ops.snapshot.labels import Label
from clipper_backup.ops.snapshot.prune import Decision, look_at_snapshots, plan_snapshots, prune_snapshots
from clipper_backup.ops.snapshot.read import Shown, snapshot_catalog
from clipper_backup.ops.snapshot.take import OURS, PREFIX
from clipper_backup.ops.snapshot.verbs import VERBS, Verb
from clipper_backup.ops.work import Work
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.repository.snapshots import list_snapshots
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import BackupId
from fixtures.base import Kept
from fixtures.kube_cluster import Cluster as FakeCluster
from fixtures.snapshots import CLASS, RETAIN, as_account, run_database

pytestmark = pytest.mark.soak(share=0.5)

NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass
class Here:
    """A repository and a fake cluster with snapshots of given ages."""

    cluster: FakeCluster
    api: Api
    work: Work

    def add(
        self, days: float, snapshot_class: str = CLASS, *, whole: bool = True, ready: bool = True, record: bool = True
    ) -> str:
        """One that was taken so long ago; its id."""
        snapshot_id = BackupId.make(NOW - timedelta(days=days))
        name = f"postgres-data-{snapshot_id}"
        labels = OURS | {f"{PREFIX}snapshot": str(snapshot_id), f"{PREFIX}role": "data"}
        source = {"persistentVolumeClaimName": "postgres-data-postgres-0"}
        self.cluster.controllers.uploads = not ready
        self.cluster.controllers.holds = lambda step, _: step == "ready" and not ready
        made = self.cluster.create(
            {
                "apiVersion": VOLUME_SNAPSHOTS.api_version,
                "kind": "VolumeSnapshot",
                "metadata": {"name": name, "labels": labels},
                "spec": {"source": source, "volumeSnapshotClassName": snapshot_class},
            }
        )
        self.cluster.run_controllers()
        if record:
            found = snapshot_of(self.cluster.get(VOLUME_SNAPSHOTS, name) or made)
            self.work.store.put(names.snapshot_key(snapshot_id), encode(self.record(snapshot_id, found.uid, whole=whole)))
        return str(snapshot_id)

    def record(self, snapshot_id: BackupId, uid: str, *, whole: bool) -> Snapshot:
        return Snapshot(
            id=str(snapshot_id),
            repository_id="",
            system_id="42",
            timeline=1,
            start_lsn="0/1000028",
            stop_lsn="0/1000120",
            taken_at=snapshot_id.at,
            begun_at=snapshot_id.at,
            finished_at=snapshot_id.at,
            stopped_at=snapshot_id.at,
            software="a test",
            whole=whole,
            first_segment="000000010000000000000001",
            last_segment="000000010000000000000001",
            cluster=SnapshotCluster(
                namespace=self.cluster.namespace, stateful_set="postgres", stateful_set_uid="u", pod="postgres-0"
            ),
            volumes=[
                SnapshotVolume(
                    role="data",
                    claim="postgres-data-postgres-0",
                    storage_class="csi-hostpath",
                    size="1Gi",
                    volume_snapshot=f"postgres-data-{snapshot_id}",
                    uid=uid,
                    content=f"snapcontent-{uid}",
                    snapshot_class=CLASS,
                    driver="hostpath.csi.k8s.io",
                    deletion_policy="Delete",
                    handle=None,
                    restore_bytes=None,
                    created_at=snapshot_id.at,
                )
            ],
            postgres=SnapshotPostgres(
                major=17,
                version="PostgreSQL 17",
                container="postgres",
                image="postgres:17-alpine",
                uid=None,
                gid=None,
                pgdata="/var/lib/postgresql/data",
                mount_path="/var/lib/postgresql/data",
                data_checksums=True,
                segment_bytes=1 << 24,
            ),
            objects=[],
        )

    def left(self) -> list[str]:
        """Ids in the repository; cluster and storage have as many."""
        ids = [str(listed.snapshot_id) for listed in list_snapshots(self.work.store)]
        assert len(self.cluster.store.all(VOLUME_SNAPSHOTS)) == len(ids)
        assert len(self.cluster.store.all(VOLUME_SNAPSHOT_CONTENTS)) == len(ids)
        assert len(self.cluster.controllers.disk_snapshots) == len(ids)
        return ids


@pytest.fixture
def here(cluster: FakeCluster, tmp_path: Path) -> Here:
    return make_here(cluster, tmp_path)


def make_here(cluster: FakeCluster, tmp_path: Path) -> Here:
    run_database(cluster, {"postgres-data": "/var/lib/postgresql/data"})
    clock = SystemClock()
    store = MemoryStore(clock)
    open_or_create_repository(store, clock, "a test")
    settings = load({}, {"BACKUP_URL": "file:///unused"}).settings
    return Here(cluster, as_account(cluster, tmp_path, retry_seconds=1.0), Work(settings, store, clock, Kept()))


def reasons(decisions: list[Decision]) -> dict[str, tuple[bool, str]]:
    return {str(each.snapshot_id): (each.keep, each.reason) for each in decisions}


@pytest.mark.rule(51)
@pytest.mark.parametrize("snapshot_class", [CLASS, RETAIN])
def test_the_old_go_with_what_their_class_retains(here: Here, snapshot_class: str) -> None:
    old, young, new = here.add(15, snapshot_class), here.add(13, snapshot_class), here.add(1, snapshot_class)
    assert reasons(look_at_snapshots(here.work, here.api)) == {
        old: (False, "older than 14 days"),
        young: (True, "younger than 14 days"),
        new: (True, "the newest good one"),
    }
    prune_snapshots(here.work, here.api)
    assert here.left() == [young, new]


@pytest.mark.rule(51)
def test_only_good_ones_count_and_the_last_stays(here: Here) -> None:
    """Of newer ones one is not ready, one is unsafe: neither replaces the last good one, however old that is."""
    good, unsafe, waiting = here.add(40), here.add(20, whole=False), here.add(2, ready=False)
    assert reasons(look_at_snapshots(here.work, here.api)) == {
        good: (True, "the newest good one"),
        unsafe: (False, "older than 14 days, and unsafe"),
        waiting: (False, f"VolumeSnapshot postgres-data-{waiting} is not ready, a day after it was taken"),
    }
    prune_snapshots(here.work, here.api)
    assert here.left() == [good]


@pytest.mark.rule(51)
def test_what_is_held_or_read_stays(here: Here) -> None:
    held, filling, reading, read, new = (here.add(days) for days in (20, 19, 18, 17, 0))
    mark = HoldMark(reason="a question", held_by="somebody", held_at=NOW)
    here.work.store.put(names.base_hold_key(BackupId.parse(held)), encode(mark))
    change(here, filling, finalizers=["provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"])
    change(here, reading, annotations={f"{PREFIX}reading": f"job x until {(NOW + timedelta(hours=1)).isoformat()}"})
    change(here, read, annotations={f"{PREFIX}reading": f"job y until {(NOW - timedelta(hours=1)).isoformat()}"})
    prune_snapshots(here.work, here.api)
    assert here.left() == [held, filling, reading, new]


def change(
    here: Here, snapshot_id: str, *, finalizers: list[str] | None = None, annotations: dict[str, str] | None = None
) -> None:
    def changed(found: Any) -> Any:
        about = found["metadata"]
        more = {
            "finalizers": [*(about.get("finalizers") or ()), *(finalizers or ())],
            "annotations": {**(about.get("annotations") or {}), **(annotations or {})},
        }
        return found | {"metadata": about | more}

    here.cluster.store.update(VOLUME_SNAPSHOTS, here.cluster.namespace, f"postgres-data-{snapshot_id}", changed, by_server=True)


@pytest.mark.rule(50)
def test_of_one_whose_snapshot_is_gone_the_retained_content_goes_too(here: Here) -> None:
    """As when its namespace was deleted."""
    old, new = here.add(15, RETAIN), here.add(1, RETAIN)
    here.cluster.store.delete(VOLUME_SNAPSHOTS, here.cluster.namespace, f"postgres-data-{old}")
    here.cluster.run_controllers()
    (gone, _) = snapshot_catalog(here.work, here.api)
    assert gone.state == "gone"
    prune_snapshots(here.work, here.api)
    assert here.left() == [new]


@pytest.mark.parametrize("namespace_is_gone", [False, True])
def test_what_the_storage_does_not_let_go_is_named_and_looked_at_again(
    patient_cluster: FakeCluster, tmp_path: Path, namespace_is_gone: bool
) -> None:
    here = make_here(patient_cluster, tmp_path)
    old, new = here.add(15, RETAIN), here.add(1, RETAIN)
    if namespace_is_gone:
        patient_cluster.store.delete(VOLUME_SNAPSHOTS, patient_cluster.namespace, f"postgres-data-{old}")
        patient_cluster.run_controllers()
    patient_cluster.controllers.stopped.add("snapshots")
    with pytest.raises(ClipperError, match="still there" if namespace_is_gone else f"postgres-data-{old}"):
        prune_snapshots(here.work, here.api)
    assert [str(listed.snapshot_id) for listed in list_snapshots(here.work.store)] == [old, new]
    patient_cluster.controllers.stopped.clear()
    prune_snapshots(here.work, here.api)
    assert here.left() == [new]


def test_another_namespaces_are_left_alone(here: Here) -> None:
    """Its VolumeSnapshots cannot be seen from here: none of them must be taken for gone."""
    old, _ = here.add(15), here.add(1)
    key = names.snapshot_key(BackupId.parse(old))
    here.work.store.put(key, here.work.store.get(key).replace(b'"clipper-production"', b'"elsewhere"'))
    (shown, _) = snapshot_catalog(here.work, here.api)
    assert (shown.state, shown.good) == ("elsewhere", False)
    assert reasons(prune_snapshots(here.work, here.api))[old][0]
    assert old in here.left()


def test_what_died_unfinished_is_deleted_and_what_nobody_knows_is_named(here: Here) -> None:
    died, stray, new = here.add(0.5, record=False), here.add(2, record=False), here.add(0)
    taking = SnapshotTaking(
        id=died, begun_at=NOW, started_by="a test", namespace=here.cluster.namespace, volume_snapshots=[f"postgres-data-{died}"]
    )
    here.work.store.put(names.snapshot_part_key(BackupId.parse(died), names.TAKING), encode(taking))
    assert {str(each.snapshot_id): each.state for each in snapshot_catalog(here.work, here.api)} == {
        died: "unfinished",
        stray: "unknown",
        new: "ready",
    }
    prune_snapshots(here.work, here.api)
    assert [str(listed.snapshot_id) for listed in list_snapshots(here.work.store)] == [new]
    assert here.cluster.get(VOLUME_SNAPSHOTS, f"postgres-data-{died}") is None
    assert here.cluster.get(VOLUME_SNAPSHOTS, f"postgres-data-{stray}") is not None


def test_labels_of_those_that_stay_are_put_right(here: Here) -> None:
    new = here.add(0)
    change(here, new, annotations={f"{PREFIX}label": "self-contained, and with WAL any instant from yesterday"})
    prune_snapshots(here.work, here.api)
    found = snapshot_of(here.cluster.get(VOLUME_SNAPSHOTS, f"postgres-data-{new}") or {})
    assert found.annotations[f"{PREFIX}label"] == "self-contained"


NEEDED = [verb for verb in VERBS if "snapshot prune" in verb.commands]


@pytest.mark.parametrize("verb", NEEDED, ids=lambda verb: f"{verb.name} {verb.resource.plural}")
def test_each_verb_that_is_missing_is_named_and_the_record_stays(
    patient_cluster: FakeCluster, tmp_path: Path, verb: Verb
) -> None:
    here = make_here(patient_cluster, tmp_path)
    old, new = here.add(15, RETAIN), here.add(1)
    gone = here.add(16, RETAIN)
    here.cluster.store.delete(VOLUME_SNAPSHOTS, here.cluster.namespace, f"postgres-data-{gone}")
    here.cluster.run_controllers()
    here.cluster.revoke(verb.name, verb.resource)
    with pytest.raises(AccessError, match=f"{verb.name} {verb.resource.plural}"):
        prune_snapshots(here.work, here.api)
    here.cluster.access.without.clear()
    assert new in [str(listed.snapshot_id) for listed in list_snapshots(here.work.store)]
    prune_snapshots(here.work, here.api)
    assert here.left() == [new]
    assert old != new


def test_a_thousand_are_listed_in_pages_and_pruned_without_a_list_for_each(here: Here) -> None:
    name = here.add(1)
    found = snapshot_of(here.cluster.get(VOLUME_SNAPSHOTS, f"postgres-data-{name}") or {})
    for number in range(1000):
        here.cluster.create(
            {
                "apiVersion": VOLUME_SNAPSHOTS.api_version,
                "kind": "VolumeSnapshot",
                "metadata": {"name": f"s-{number:04d}", "labels": OURS},
                "spec": {"source": {"persistentVolumeClaimName": str(found.claim)}, "volumeSnapshotClassName": CLASS},
            }
        )
    asked = len(here.cluster.served.calls)
    (shown,) = snapshot_catalog(here.work, here.api)
    assert shown.good
    assert [call.verb for call in here.cluster.served.calls[asked:]] == ["list"] * 6


def test_a_plan_is_made_of_what_is_shown() -> None:
    """One without anything good loses nothing that could still be restored."""
    label = Label(whole=True, with_wal=False, until=NOW)
    old = Shown(BackupId.make(NOW - timedelta(days=30)), "not ready", label=label, problem="it is not ready")
    (decision,) = plan_snapshots([replace(old, state="ready")], now=NOW, days=14)
    assert (decision.keep, decision.reason) == (True, "the newest good one")
    (decision,) = plan_snapshots([replace(old, state="gone")], now=NOW, days=14)
    assert not decision.keep
