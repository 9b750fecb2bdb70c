"""`k8s restore`'s steps against the fake API, as the account that rbac.yaml grants it to."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from clipper_backup.clock import SystemClock
from clipper_backup.config import load
from clipper_backup.errors import ClipperError, ConflictError, KubernetesError, LockedError, MissingError, UsageError
from clipper_backup.kubernetes.objects import clean
from clipper_backup.kubernetes.resources import (
    CRON_JOBS,
    JOBS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    STATEFUL_SETS,
)
from clipper_backup.kubernetes.transport import Transport
from clipper_backup.ops.k8s_restore.plan import SUSPENDED, Asked, Plan, make_plan, steps_of
from clipper_backup.ops.k8s_restore.state import State
from clipper_backup.ops.k8s_restore.switch import Restoring
from clipper_backup.ops.work import Work
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import BackupId
from fixtures.docs import ROOT
from fixtures.kube_cluster import Cluster
from fixtures.kube_store import Object
from fixtures.moments import just_before
from fixtures.snapshots import run_database

DATA = "/var/lib/postgresql/data"
CLAIM = "postgres-data-postgres-0"


@dataclass
class Here:
    """A database in a fake cluster, whose Jobs end with these reports."""

    cluster: Cluster
    fails: bool = False
    timeline: int = 2

    def __post_init__(self) -> None:
        run_database(self.cluster, {"postgres-data": DATA}, command=["sh", "/clipper-backup/pitr/start.sh"])
        for each in yaml.safe_load_all((ROOT / "infrastructure/k8s/base/backup-cronjobs.yaml").read_text()):
            if each["kind"] == "CronJob":
                self.cluster.create(each)
        self.cluster.controllers.ends = self._ends
        self.cluster.served.idle = lambda: self.cluster.run_controllers() > 0  # all that can happen while somebody waits
        self.api = self.cluster.api("backup-restore", retry_seconds=1.0)
        clock = SystemClock()
        self.work = Work(load({}, {}).settings, MemoryStore(clock), clock, lambda _: None)
        self.before = {name: self.get(CRON_JOBS, name)["spec"] for name in SUSPENDED}
        self.old_set = clean(self.get(STATEFUL_SETS, "postgres"))
        self.old_volume = self.get(PERSISTENT_VOLUME_CLAIMS, CLAIM)["spec"]["volumeName"]

    def get(self, resource: Any, name: str) -> Object:
        found = self.cluster.store.peek(resource, self.cluster.namespace if resource.namespaced else "", name)
        assert found is not None, name
        return found

    def plan(self, **asked: Any) -> Plan:
        return make_plan(self.api, Asked(**asked), BackupId.make(datetime.now(UTC)))

    def begin(self) -> Restoring:
        return Restoring(self.work, self.api, State.begin(self.api, self.plan(words=("--to-time", "2026-11-22 14:05Z"))))

    def resumed(self) -> Restoring:
        return Restoring(self.work, self.api, State.read(self.api))

    def _ends(self, pod: Object) -> bool:
        about = pod["metadata"]
        names = [each["name"] for each in pod["spec"]["containers"]]
        if about["labels"].get("app") == "postgres":
            return False
        report: Object = {"schema": 1, "id": "base", "timeline": self.timeline}
        if "restore" in names:
            report = {"restored": {"history_archived": True, "started": {"timeline": 2}}}
        self.cluster.served.logs[about["namespace"], about["name"], names[0]] = f"on its way\n{json.dumps(report)}"
        self.cluster.end_pod(pod, **dict.fromkeys(names, 13 if self.fails else 0))
        return True

    def check_untouched(self) -> None:
        """R1: production is as it was."""
        self.cluster.run_controllers()
        assert clean(self.get(STATEFUL_SETS, "postgres")) == self.old_set
        assert self.get(PERSISTENT_VOLUME_CLAIMS, CLAIM)["spec"]["volumeName"] == self.old_volume
        assert self.get(PERSISTENT_VOLUMES, self.old_volume)["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        assert {name: self.get(CRON_JOBS, name)["spec"] for name in SUSPENDED} == self.before
        assert self.get(PODS, "postgres-0")["status"]["phase"] == "Running"

    def check_switched(self) -> None:
        self.cluster.run_controllers()
        claim = self.get(PERSISTENT_VOLUME_CLAIMS, CLAIM)
        volume = self.get(PERSISTENT_VOLUMES, claim["spec"]["volumeName"])
        assert claim["spec"]["volumeName"] != self.old_volume
        assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
        assert (claim["status"]["phase"], volume["spec"]["persistentVolumeReclaimPolicy"]) == ("Bound", "Delete")
        old = self.get(PERSISTENT_VOLUMES, self.old_volume)
        assert (old["status"]["phase"], old["spec"]["persistentVolumeReclaimPolicy"]) == ("Released", "Retain")
        assert clean(self.get(STATEFUL_SETS, "postgres")) == self.old_set
        assert self.get(PODS, "postgres-0")["status"]["phase"] == "Running"
        assert [each["metadata"]["name"] for each in self.cluster.store.all(PERSISTENT_VOLUME_CLAIMS)] == [CLAIM]
        assert len(self.cluster.store.all(PERSISTENT_VOLUMES)) == 2
        for name in SUSPENDED:
            assert not self.get(CRON_JOBS, name)["spec"].get("suspend")
        names = [each["metadata"]["name"] for each in self.cluster.store.all(JOBS)]
        assert len(names) == len(set(names)) == 2
        assert State.read(self.api).is_done("finish")


@pytest.fixture
def here(cluster: Cluster) -> Here:
    return Here(cluster)


def test_the_plan_names_each_object_and_touches_none(here: Here) -> None:
    version = here.cluster.store.version
    plan = here.plan()
    told = "\n".join(text for _, text in steps_of(plan))
    for name in (plan.new_claim, plan.job, CLAIM, here.old_volume, "StatefulSet postgres", "postgres-0", *SUSPENDED):
        assert name in told
    assert (plan.uid, plan.target_dir, plan.server_image) == (70, f"{DATA}/pgdata", "postgres:17-alpine")
    assert here.cluster.store.version == version


def test_what_cannot_be_switched_is_refused_before_anything_is_made(here: Here) -> None:
    with pytest.raises(UsageError, match="does not lie in the volume"):
        here.plan(pgdata="/elsewhere")
    with pytest.raises(MissingError, match="StatefulSet other"):
        here.plan(stateful_set="other")
    here.cluster.store.update(
        STATEFUL_SETS, here.cluster.namespace, "postgres", lambda found: found | {"spec": found["spec"] | {"replicas": 2}}
    )
    with pytest.raises(UsageError, match="2 replicas"):
        here.plan()


def test_the_copy_touches_nothing_of_production(here: Here) -> None:
    report = here.begin().copy()
    assert report["timeline"] == 2
    here.check_untouched()
    with pytest.raises(LockedError, match="since step copy"):
        here.begin()


def test_the_switch(here: Here) -> None:
    restoring = here.begin()
    restoring.copy()
    restoring.switch()
    here.check_switched()


def test_nothing_is_switched_without_a_copy(here: Here) -> None:
    with pytest.raises(ConflictError, match="no copy"):
        here.begin().switch()
    here.check_untouched()


def test_a_copy_that_fails_is_told_and_made_anew(here: Here) -> None:
    here.fails = True
    with pytest.raises(KubernetesError, match="failed") as raised:
        here.begin().copy()
    assert "on its way" in raised.value.hints
    here.check_untouched()
    here.fails = False
    here.resumed().copy()
    here.check_untouched()


def test_a_backup_of_another_timeline_is_no_proof(here: Here) -> None:
    here.timeline = 1
    restoring = here.begin()
    restoring.copy()
    with pytest.raises(ClipperError, match="of timeline 1, and the copy ended on 2"):
        restoring.switch()


class KilledError(BaseException):
    """What no code of ours catches."""


def _killed_at(call: int, act: Callable[[], object]) -> bool:
    def kill(_: object) -> None:
        raise KilledError

    try:
        with just_before(Transport.request, kill, call=call):
            act()
    except KilledError:
        return True
    except AssertionError:  # there are not so many
        return False
    return False


@pytest.mark.soak(over=["call"])
@pytest.mark.parametrize("call", range(1, 76))
def test_killed_at_any_request_it_goes_on(here: Here, call: int) -> None:
    restoring = here.begin()

    def all_of_it() -> None:
        restoring.copy()
        restoring.switch()

    _killed_at(call, all_of_it)
    here.cluster.cut_watch()  # as the end of the process does
    again = here.resumed()
    again.copy()
    again.switch()
    here.check_switched()


@pytest.mark.soak(over=["what"])
@pytest.mark.parametrize("what", ["statefulset", "policy", "claim", "pod"])
def test_what_somebody_changes_amid_is_refused_and_named(here: Here, what: str) -> None:
    restoring = here.begin()
    restoring.copy()
    namespace = here.cluster.namespace

    def let_go(_: object) -> None:
        here.cluster.api().patch(PERSISTENT_VOLUMES, here.old_volume, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})

    if what == "statefulset":
        here.api.patch(STATEFUL_SETS, "postgres", {"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}})
        said = "StatefulSet postgres was changed since the plan"
    elif what == "claim":
        new = State.read(here.api).plan.new_claim
        here.api.delete(PERSISTENT_VOLUME_CLAIMS, new)
        here.cluster.run_controllers()
        said = f"{new} in namespace {namespace} does not exist"
    elif what == "pod":
        spec = {
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": CLAIM}}],
        }
        here.cluster.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "other", "labels": {"app": "postgres"}},
                "spec": spec,
                "status": {"phase": "Running"},
            }
        )
        said = "Pod other uses a volume"
    else:
        said = f"volume {here.old_volume} would be deleted with its claim"
    with ExitStack() as stack:
        if what == "policy":
            stack.enter_context(just_before(Restoring._swap, let_go))
        with pytest.raises(ClipperError, match=said):
            restoring.switch()
    assert here.get(PERSISTENT_VOLUMES, here.old_volume)["status"]["phase"] == "Bound"
