"""K10: each recording of a real control plane, replayed on the fake API: the same answers, the same events in the same order."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from clipper_backup.kubernetes.resources import STATEFUL_SETS, VOLUME_SNAPSHOTS
from clipper_backup.kubernetes.transport import Answer, Transport, open_transport
from fixtures.docs import ROOT
from fixtures.kube_cluster import Cluster
from fixtures.kube_kinds import KINDS

RECORDINGS = ROOT / "tests/data/kubernetes/recordings"
_UNSEEN = {"Event"}
"""Events of controllers are of no interest to us but as a text, and their order is that of several processes."""

Object = dict[str, Any]


class Line(NamedTuple):
    """One line of a recording."""

    kind: str
    at: Object


def read(name: str) -> list[Line]:
    return [Line(said["kind"], said) for said in map(json.loads, (RECORDINGS / f"{name}.jsonl").read_text().splitlines())]


def masked(found: Any) -> Any:
    """What must be the same: without times, uids, versions, random names."""
    said = json.dumps(found, sort_keys=True)
    said = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID", said)
    said = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", said)
    said = re.sub(r"(postgres-backup-(?:manual|integrity))-[0-9a-z]{5}\b", r"\1-POD", said)
    said = re.sub(r'"(creationTime|restoreSize)": \d+', r'"\1": 1', said)
    return json.loads(re.sub(r"\(\d+\)", "(N)", said))


def state(found: Object) -> Object:
    """What the issue's commands look at in an object."""
    about, status = found["metadata"], dict(found.get("status") or {})
    for key in ("qosClass", "observedGeneration"):
        status.pop(key, None)
    for condition in status.get("conditions") or ():
        for key in ("lastProbeTime", "lastTransitionTime", "observedGeneration"):
            condition.pop(key, None)
    for container in status.get("containerStatuses") or ():
        container.pop("lastState", None)
        for key in ("finishedAt", "startedAt"):
            container["state"].get("terminated", {}).pop(key, None)
    return dict(
        masked(
            {
                "name": about["name"],
                "finalizers": sorted(about.get("finalizers") or []),
                "deleting": "deletionTimestamp" in about,
                "annotations": about.get("annotations") or {},
                "volume": bool((found.get("spec") or {}).get("volumeName")),
                "status": status,
            }
        )
    )


def events_recorded(lines: list[Line]) -> dict[tuple[str, str], list[tuple[str, Object]]]:
    """By kind and name: type and state of each event."""
    seen: dict[tuple[str, str], list[tuple[str, Object]]] = defaultdict(list)
    for line in lines:
        if line.kind == "watch" and (found := line.at["event"]["object"])["kind"] not in _UNSEEN:
            told = state(found)
            seen[found["kind"], told["name"]].append((line.at["event"]["type"], told))
    return dict(seen)


def events_of(cluster: Cluster, since: int) -> dict[tuple[str, str], list[tuple[str, Object]]]:
    seen: dict[tuple[str, str], list[tuple[str, Object]]] = defaultdict(list)
    for event in cluster.store.events:
        if event.version > since:
            told = state(event.object)
            seen[event.resource.kind, told["name"]].append((event.type, told))
    return dict(seen)


class Replay:
    """Sends the requests of a recording, and lets everything settle after each that changes something."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        cluster.moves_by_itself = False
        self._logins: dict[str | None, Transport] = {}
        self._names: dict[str, str] = {}

    def close(self) -> None:
        for login in self._logins.values():
            login.close()

    def send(self, line: Object) -> Answer:
        account = line.get("as_")
        if account not in self._logins:
            self._logins[account] = open_transport(kubeconfig=self.cluster.kubeconfig(account and account.rpartition(":")[2]))
        kind = "application/json"
        if line["method"] == "PATCH":
            kind = f"application/{'strategic-' if 'statefulsets' in line['path'] else ''}merge-patch+json"
        answer = self._logins[account].request(
            line["method"],
            self._renamed(line["path"]),
            params={key: str(value) for key, value in (line.get("params") or {}).items()},
            body=self._filled(line["body"]),
            content_type=kind,
        )
        if line["method"] == "POST" and answer.status == 201:
            self.learn(line["response"]["metadata"]["uid"], answer.body["metadata"]["uid"])
        return answer

    def learn(self, recorded: str, ours: str) -> None:
        self._names[recorded] = ours

    def _renamed(self, path: str) -> str:
        for recorded, ours in self._names.items():
            path = path.replace(recorded, ours)
        return path

    def _filled(self, body: Any) -> Any:
        return None if body is None else json.loads(self._renamed(json.dumps(body)))


@pytest.fixture
def replay(cluster: Cluster) -> Iterator[Replay]:
    made = Replay(cluster)
    yield made
    made.close()


def assert_same_answer(line: Object, answer: Answer) -> None:
    recorded = line["response"]
    assert answer.status == line["status"], line
    if isinstance(recorded, dict) and recorded.get("kind") == "Status":
        ours = {key: answer.body.get(key) for key in ("kind", "status", "reason", "code", "message")}
        wanted = {key: recorded.get(key) for key in ours}
        assert masked(ours) == masked(wanted)
        assert masked(answer.body.get("details")) == masked(recorded.get("details"))
    elif isinstance(recorded, dict) and str(recorded.get("kind")).endswith("List"):
        assert answer.body["kind"] == recorded["kind"]
        # a label selector finds those that the recorder had left behind from a run before
        assert bool(answer.body["items"]) == bool(recorded["items"])
    elif isinstance(recorded, dict) and "kind" in recorded:
        assert answer.body["kind"] == recorded["kind"]
        assert answer.body["metadata"]["name"] == recorded["metadata"]["name"] or "generateName" in recorded["metadata"]
        assert answer.body["metadata"].get("finalizers") == recorded["metadata"].get("finalizers")
    else:
        assert answer.body == recorded


def test_every_recording_is_replayed() -> None:
    replayed = {
        "cronjob-job-pod",
        "forbidden-and-protocol-errors",
        "paging",
        "snapshot-errors",
        "snapshot-retain-delete",
        "snapshot-success-restore-delete",
        "statefulset-immutable-fields",
    }
    assert {path.stem for path in RECORDINGS.glob("*.jsonl")} == replayed


@pytest.mark.parametrize("name", ["snapshot-success-restore-delete", "snapshot-retain-delete", "snapshot-errors"])
def test_snapshots(cluster: Cluster, replay: Replay, name: str) -> None:
    cluster.add_storage()
    lines = read(name)
    if name != "snapshot-success-restore-delete":
        cluster.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "postgres-data-postgres-0"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                    "storageClassName": "csi-hostpath",
                },
            }
        )
        cluster.run_controllers()
    since = cluster.store.version
    for line in lines:
        if line.kind != "request":
            continue
        if (left_behind := re.search(r"snapcontent-[0-9a-f-]+", line.at["path"])) is not None:
            replay.learn(left_behind.group(), cluster.store.all(KINDS_BY_PLURAL["volumesnapshotcontents"])[0]["metadata"]["name"])
            answer = replay.send(line.at)
            assert answer.status == line.at["status"]
        else:
            answer = replay.send(line.at)
            assert_same_answer(line.at, answer)
        cluster.run_controllers()
    ours, recorded = events_of(cluster, since), events_recorded(lines)
    for key, events in recorded.items():
        assert ours[key] == events, key


KINDS_BY_PLURAL = {kind.plural: kind for kind in KINDS}


def test_jobs(cluster: Cluster, replay: Replay) -> None:
    cluster.controllers.nodes = False
    lines = read("cronjob-job-pod")
    since = cluster.store.version
    for line in lines:
        if line.kind != "request":
            continue
        for job in ("manual", "integrity"):
            pods = cluster.store.all(KINDS_BY_PLURAL["pods"])
            for pod in pods:
                if job in pod["metadata"]["name"] and (
                    named := re.search(rf"postgres-backup-{job}-[0-9a-z]{{5}}", line.at["path"])
                ):
                    replay.learn(named.group(), pod["metadata"]["name"])
        answer = replay.send(line.at)
        assert answer.status == line.at["status"]
        cluster.run_controllers()
    ours, recorded = events_of(cluster, since), events_recorded(lines)
    for key in [("CronJob", "postgres-backup"), *[key for key in recorded if key[0] in {"Job", "Pod"}]]:
        assert ours[key] == recorded[key], key


def test_fields_that_cannot_be_changed(cluster: Cluster, replay: Replay) -> None:
    for line in read("statefulset-immutable-fields"):
        assert_same_answer(line.at, replay.send(line.at))
    cluster.controllers.stopped.add("sets")
    cluster.run_controllers()
    assert cluster.get(STATEFUL_SETS, "postgres") is None


def test_a_sidecar_is_added_and_nothing_else_changes(cluster: Cluster, replay: Replay) -> None:
    create, patch, *_ = read("statefulset-immutable-fields")
    before = replay.send(create.at).body["spec"]
    after = replay.send(patch.at).body["spec"]
    assert before == create.at["response"]["spec"]
    assert after == patch.at["response"]["spec"]


def test_refusals_and_protocol(cluster: Cluster, replay: Replay) -> None:
    for line in read("forbidden-and-protocol-errors"):
        if line.at.get("note") == "watch from an expired resourceVersion":
            event = masked(replay.send(line.at).body)
            assert event == masked(line.at["response"])
        else:
            assert_same_answer(line.at, replay.send(line.at))


def test_pages(cluster: Cluster, replay: Replay) -> None:
    cluster.controllers.stopped.add("snapshots")
    recorded = [line.at for line in read("paging")]
    names = [item["metadata"]["name"] for page in recorded[:3] for item in page["response"]["items"]]
    for name in names:
        spec = {"source": {"persistentVolumeClaimName": "missing"}}
        cluster.create(
            {"apiVersion": VOLUME_SNAPSHOTS.api_version, "kind": "VolumeSnapshot", "metadata": {"name": name}, "spec": spec}
        )
    token = None
    for line in recorded[:3]:
        if token is not None:
            line["params"]["continue"] = token
        page = replay.send(line).body
        assert [item["metadata"]["name"] for item in page["items"]] == [
            item["metadata"]["name"] for item in line["response"]["items"]
        ]
        assert page["metadata"].get("remainingItemCount") == line["response"]["metadata"].get("remainingItemCount")
        token = page["metadata"].get("continue")
        assert bool(token) == bool(line["response"]["metadata"].get("continue"))
    assert_same_answer(recorded[3], replay.send(recorded[3]))
