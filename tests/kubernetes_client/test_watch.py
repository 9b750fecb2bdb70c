"""K7: a wait ends when the condition holds, whatever the stream loses or repeats, and never much later than its time-out."""

import itertools
import json
import random
import threading
from collections.abc import Callable

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import AccessError, TimedOutError
from clipper_backup.kubernetes.api import Api, Object
from clipper_backup.kubernetes.resources import CONFIG_MAPS, EVENTS
from clipper_backup.kubernetes.watch import Matching, describe, wait_for
from fixtures.kube_cluster import NAMESPACE, Cluster


def config_map(name: str, step: int = 0, **labels: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels},
        "data": {"step": str(step)},
    }


def reached(step: int) -> Callable[[Object | None], int | None]:
    def until(found: Object | None) -> int | None:
        at = -1 if found is None else int(found["data"]["step"])
        return at if at >= step else None

    return until


def set_step(cluster: Cluster, name: str, step: int) -> None:
    def change(found: Object) -> Object:
        found["data"]["step"] = str(step)
        return found

    cluster.store.update(CONFIG_MAPS, NAMESPACE, name, change)


def test_what_is_so_already_needs_no_watch(cluster: Cluster) -> None:
    cluster.create(config_map("state", 3))
    assert wait_for(cluster.api(), CONFIG_MAPS, "state", reached(3), timeout_seconds=5) == 3
    assert {call.verb for call in cluster.served.calls} == {"list"}


@pytest.mark.soak(over=["seed"])
@pytest.mark.parametrize("seed", range(8))
def test_a_wait_survives_drawn_cuts_of_the_stream(cluster: Cluster, seed: int) -> None:
    """Streams cut, forgotten, refused and frozen lists between the steps: the condition is seen all the same."""
    draw = random.Random(seed)
    cluster.create(config_map("state"))
    cluster.create(config_map("other"))
    seen: list[int] = []
    steps = 12

    def until(found: Object | None) -> bool | None:
        at = -1 if found is None else int(found["data"]["step"])
        seen.append(at)
        return True if at >= steps else None

    def happen() -> None:
        for step in range(1, steps + 1):
            harm = draw.choice(["cut", "expire", "list", "watch", "lost", "none", "none"])
            if harm == "cut":
                cluster.cut_watch()
            elif harm == "expire":
                cluster.expire()
                cluster.cut_watch()
            elif harm == "list":
                answers: list[int | str] = [500, 503, 429, "cut"]
                cluster.fail("list", CONFIG_MAPS, draw.choice(answers))
                cluster.cut_watch()
            elif harm == "watch":
                answers = [500, "cut", 410]
                cluster.fail("watch", CONFIG_MAPS, draw.choice(answers))
                cluster.cut_watch()
            elif harm == "lost":
                cluster.fail("list", CONFIG_MAPS, "lost")
                cluster.cut_watch()
            set_step(cluster, "other", step)
            set_step(cluster, "state", step)
            SystemClock().sleep(draw.uniform(0, 0.1))

    happening = threading.Thread(target=happen)
    happening.start()
    try:
        assert wait_for(cluster.api(), CONFIG_MAPS, "state", until, timeout_seconds=60)
    finally:
        happening.join()
    assert seen[-1] == steps
    assert sorted(seen) == seen, "no step is seen before an earlier one"


def test_a_410_within_the_stream_lists_anew(cluster: Cluster) -> None:
    cluster.create(config_map("state"))
    api = cluster.api()
    threads: list[threading.Thread] = []

    def beat() -> None:
        # after the first list: the version it names is forgotten, and the change is in no stream
        if not threads:
            threads.append(threading.Thread())
            set_step(cluster, "state", 1)
            cluster.expire()

    assert wait_for(api, CONFIG_MAPS, "state", reached(1), timeout_seconds=20, beat=beat) == 1
    assert [call.verb for call in cluster.served.calls].count("list") == 2


@pytest.mark.soak(over=["harm"])
@pytest.mark.parametrize("harm", ["nothing", "freeze list", "freeze watch", "down", "forgets"])
def test_a_wait_ends_soon_after_its_time_out(cluster: Cluster, harm: str) -> None:
    cluster.create(config_map("state"))
    api = cluster.api()
    if harm.startswith("freeze"):
        cluster.fail(harm.split()[1], CONFIG_MAPS, "freeze", 1000)
    if harm == "down":
        cluster.server.end()
    if harm == "forgets":
        cluster.fail("watch", CONFIG_MAPS, 410, 1000)
    clock = SystemClock()
    begun = clock.monotonic()
    with pytest.raises(TimedOutError, match="ConfigMap state in namespace clipper-production is not ready after 1 s"):
        wait_for(api, CONFIG_MAPS, "state", reached(1), timeout_seconds=1)
    assert clock.monotonic() - begun < 1 + 10


def test_a_time_out_says_what_was_seen_last(cluster: Cluster) -> None:
    made = config_map("state")
    made["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "Ready", "status": "False", "reason": "Slow", "message": "no node"}],
    }
    cluster.create(made)
    for second, said in ((1, "older"), (2, "the volume is elsewhere")):
        cluster.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"e{second}"},
                "type": "Warning",
                "message": said,
                "lastTimestamp": f"2026-11-23T00:00:0{second}Z",
                "involvedObject": {"kind": "ConfigMap", "name": "state"},
            }
        )
    with pytest.raises(TimedOutError) as raised:
        wait_for(cluster.api(), CONFIG_MAPS, "state", reached(1), timeout_seconds=0.5)
    assert str(raised.value).endswith("Pending, Ready=False (Slow: no node); last warning: the volume is elsewhere")
    cluster.fail("list", EVENTS, 403, 5)
    with pytest.raises(TimedOutError, match=r"no node\)$"):
        wait_for(cluster.api(), CONFIG_MAPS, "state", reached(1), timeout_seconds=0.5)


def test_a_time_out_says_that_what_was_there_is_gone(cluster: Cluster) -> None:
    made = config_map("state")
    made["status"] = {"phase": "Pending"}
    cluster.create(made)

    def until(found: Object | None) -> bool | None:
        if found is not None:
            cluster.store.delete(CONFIG_MAPS, NAMESPACE, "state")
        return None

    with pytest.raises(TimedOutError, match="there is none any more; when it was last seen: Pending"):
        wait_for(cluster.api(), CONFIG_MAPS, "state", until, timeout_seconds=1)


def test_a_text_with_another_line_end_is_one_event(cluster: Cluster) -> None:
    """The API server writes U+0085 as it is, which `str.splitlines` takes for the end of a line."""
    api = cluster.api()
    params = {"resourceVersion": api.list_at(CONFIG_MAPS).version, "timeoutSeconds": "1"}
    cluster.create(config_map("state") | {"data": {"said": "a\x85b"}})
    with api.watch(CONFIG_MAPS, params=params, namespace=NAMESPACE, idle_seconds=10, within_seconds=10) as (_, lines):
        found = [json.loads(line)["object"]["data"]["said"] for line in lines if line]
    assert found == ["a\x85b"]


def test_an_object_that_goes_is_told_as_none(cluster: Cluster) -> None:
    cluster.create(config_map("state"))
    looks: list[Object | None] = []

    def until(found: Object | None) -> bool | None:
        looks.append(found)
        if len(looks) == 1:
            cluster.store.delete(CONFIG_MAPS, NAMESPACE, "state")
        return True if found is None else None

    assert wait_for(cluster.api(), CONFIG_MAPS, "state", until, timeout_seconds=10)
    assert len(looks) == 2


def test_one_of_several_by_label(cluster: Cluster) -> None:
    cluster.create(config_map("a", 1, job="x"))
    cluster.create(config_map("b", 2, job="x"))
    cluster.create(config_map("c", 5, job="y"))
    assert wait_for(cluster.api(), CONFIG_MAPS, Matching("job=x"), reached(2), timeout_seconds=5) == 2
    with pytest.raises(TimedOutError, match="ConfigMap with job=x"):
        wait_for(cluster.api(), CONFIG_MAPS, Matching("job=x"), reached(3), timeout_seconds=0.5)


def test_what_the_condition_raises_ends_the_wait(cluster: Cluster) -> None:
    """Not taken for a fault of the connection, though it is raised while the stream is open."""
    cluster.create(config_map("state"))
    api: Api = cluster.api()

    def until(found: Object | None) -> None:
        if found is not None and found["data"]["step"] == "1":
            raise KeyError("mine")
        set_step(cluster, "state", 1)

    with pytest.raises(KeyError, match="mine"):
        wait_for(api, CONFIG_MAPS, "state", until, timeout_seconds=10)


def test_the_beat_is_kept_while_nothing_happens(cluster: Cluster) -> None:
    cluster.create(config_map("state"))
    beats: list[float] = []
    clock = SystemClock()

    def beat() -> None:
        beats.append(clock.monotonic())
        if len(beats) == 4:
            raise AccessError("the session is gone")

    with pytest.raises(AccessError, match="the session is gone"):
        wait_for(cluster.api(), CONFIG_MAPS, "state", reached(1), timeout_seconds=30, beat=beat, beat_seconds=1)
    assert max(after - before for before, after in itertools.pairwise(beats)) < 3


def test_a_refused_watch_is_told_at_once(cluster: Cluster) -> None:
    cluster.create(config_map("state"))
    cluster.fail("watch", CONFIG_MAPS, 403, 1)
    with pytest.raises(AccessError, match="refuses to watch configmaps in namespace clipper-production"):
        wait_for(cluster.api(), CONFIG_MAPS, "state", reached(1), timeout_seconds=30)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, "nothing said yet"),
        ({"phase": "Bound"}, "Bound"),
        ({"readyToUse": False, "error": {"message": "no class"}}, "not ready to use, no class"),
    ],
)
def test_a_state_is_one_line(status: Object, said: str) -> None:
    assert describe({"metadata": {}, "status": status}) == said


def test_ninety_minutes_in_vain_take_no_time(patient_cluster: Cluster) -> None:
    patient_cluster.create(config_map("state"))
    clock = SystemClock()
    begun = clock.monotonic()
    before = patient_cluster.clock.monotonic()
    with pytest.raises(TimedOutError, match="not ready after 5400 s"):
        wait_for(patient_cluster.api(), CONFIG_MAPS, "state", reached(1), timeout_seconds=5400)
    assert 5400 <= patient_cluster.clock.monotonic() - before < 5400 + 10
    assert clock.monotonic() - begun < 30
