"""K8, K9 and the table of errors: what goes wrong between us and the API server, and what is left of it."""

import threading
from collections.abc import Callable

import pytest

from clipper_backup.errors import (
    AccessError,
    ApiUnavailableError,
    ClipperError,
    ConflictError,
    KubernetesError,
    MissingError,
    ObjectExistsError,
    UsageError,
)
from clipper_backup.kubernetes.api import Api, Object
from clipper_backup.kubernetes.errors import error_of
from clipper_backup.kubernetes.resources import CONFIG_MAPS, CRON_JOBS, VOLUME_SNAPSHOTS
from fixtures.kube_cluster import NAMESPACE, Cluster


def ours(run: str = "7f3a") -> Object:
    return {"metadata": {"name": "state", "annotations": {"clipper-backup/run": run}}, "data": {"step": "1"}}


@pytest.mark.parametrize("harm", [("lost", 1), ("lost", 2), ("cut", 1), (503, 3), (500, 1), (429, 2)], ids=str)
def test_a_create_that_was_sent_twice_makes_one_object(cluster: Cluster, harm: tuple[int | str, int]) -> None:
    cluster.fail("create", CONFIG_MAPS, *harm)
    made = cluster.api().create(CONFIG_MAPS, ours())
    assert made == cluster.get(CONFIG_MAPS, "state")
    assert [event.type for event in cluster.store.events if event.resource == CONFIG_MAPS] == ["ADDED"]


def test_after_a_lost_answer_another_runs_object_is_not_taken_for_ours(cluster: Cluster) -> None:
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", **ours("somebody else")})
    cluster.fail("create", CONFIG_MAPS, "cut")
    with pytest.raises(ObjectExistsError, match="ConfigMap state in namespace clipper-production exists already"):
        cluster.api().create(CONFIG_MAPS, ours())


@pytest.mark.parametrize(("run", "resumed"), [("7f3a", True), ("7f3a", False), ("other", True)])
def test_an_object_of_an_earlier_run_is_ours_only_where_that_is_said(cluster: Cluster, run: str, *, resumed: bool) -> None:
    api = cluster.api()
    api.create(CONFIG_MAPS, ours())
    if run == "7f3a" and resumed:
        assert api.create(CONFIG_MAPS, ours(run), resumed=True)["metadata"]["uid"]
    else:
        with pytest.raises(ObjectExistsError):
            api.create(CONFIG_MAPS, ours(run), resumed=resumed)


def test_an_object_of_ours_that_is_being_deleted_is_not_taken_for_made(cluster: Cluster) -> None:
    held = ours()
    held["metadata"]["finalizers"] = ["example.com/held"]
    api = cluster.api()
    api.create(CONFIG_MAPS, held)
    api.delete(CONFIG_MAPS, "state")
    with pytest.raises(ObjectExistsError, match="exists already"):
        api.create(CONFIG_MAPS, ours(), resumed=True)


def test_what_the_server_leaves_out_of_ours_does_not_make_it_anothers(cluster: Cluster) -> None:
    """The API server keeps no empty map and no null."""
    api = cluster.api()
    api.create(CONFIG_MAPS, ours())
    sent = ours() | {"binaryData": {}, "immutable": None}
    assert api.create(CONFIG_MAPS, sent, resumed=True)["data"] == {"step": "1"}
    with pytest.raises(ObjectExistsError):
        api.create(CONFIG_MAPS, ours() | {"data": {"step": "1", "more": "x"}}, resumed=True)


@pytest.mark.parametrize("meddled", [False, True])
def test_a_patch_of_a_version_whose_answer_was_lost_is_no_conflict_with_itself(cluster: Cluster, *, meddled: bool) -> None:
    api = cluster.api()
    seen = api.create(CONFIG_MAPS, ours())["metadata"]["resourceVersion"]
    if meddled:
        api.patch(CONFIG_MAPS, "state", {"data": {"step": "9"}})
    cluster.fail("patch", CONFIG_MAPS, "lost")
    patch: Object = {"metadata": {"resourceVersion": seen}, "data": {"step": "2", "gone": None}}
    if meddled:
        with pytest.raises(ConflictError, match="has been modified"):
            api.patch(CONFIG_MAPS, "state", patch)
    else:
        assert api.patch(CONFIG_MAPS, "state", patch)["data"] == {"step": "2"}


@pytest.mark.parametrize("answer", ["lost", "cut", 503], ids=str)
def test_a_delete_and_a_patch_may_be_sent_twice(cluster: Cluster, answer: int | str) -> None:
    api = cluster.api()
    api.create(CONFIG_MAPS, ours())
    cluster.fail("patch", CONFIG_MAPS, answer)
    assert api.patch(CONFIG_MAPS, "state", {"data": {"step": "2"}})["data"] == {"step": "2"}
    cluster.fail("delete", CONFIG_MAPS, answer)
    api.delete(CONFIG_MAPS, "state")
    assert cluster.get(CONFIG_MAPS, "state") is None
    with pytest.raises(MissingError):
        api.delete(CONFIG_MAPS, "state")


def test_a_list_that_is_forgotten_between_its_pages_begins_anew(cluster: Cluster) -> None:
    for number in range(450):
        cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{number:03}"}})
    api = cluster.api()
    cluster.fail("list", CONFIG_MAPS, 410, after=1)
    found = api.list(CONFIG_MAPS)
    assert len(found) == len({item["metadata"]["name"] for item in found}) == 450
    assert len(cluster.served.calls) == 2 + 3


def test_a_list_that_is_forgotten_twice_is_given_up(cluster: Cluster) -> None:
    cluster.fail("list", CONFIG_MAPS, 410, 2)
    with pytest.raises(ApiUnavailableError, match="forgotten by the server before its end, twice"):
        cluster.api().list(CONFIG_MAPS)


def test_a_server_that_stays_away_is_waited_for_a_minute(cluster: Cluster) -> None:
    told: list[str] = []
    api = cluster.api(retry_seconds=1.5, tell=told.append)
    cluster.fail("list", CONFIG_MAPS, 503, 1000)
    clock = api.clock
    begun = clock.monotonic()
    with pytest.raises(ApiUnavailableError, match="cannot list configmaps now: 503"):
        api.list(CONFIG_MAPS)
    assert 1.4 < clock.monotonic() - begun < 4
    assert all(line.endswith("; trying again") for line in told)


def test_no_verb_ever_replaces_an_object() -> None:
    """K9: there is no way to PUT."""
    assert not [name for name in dir(Api) if "replace" in name or "update" in name or "put" in name]


def test_what_we_do_not_know_survives_a_patch(cluster: Cluster) -> None:
    cluster.create(
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "c", "annotations": {"somebody": "else"}},
            "spec": {"schedule": "0 2 * * *", "newField": {"of": "1.40"}, "suspend": True},
        }
    )
    after = cluster.api().patch(CRON_JOBS, "c", {"metadata": {"annotations": {"ours": "1"}}})
    assert after["spec"] == {"schedule": "0 2 * * *", "newField": {"of": "1.40"}, "suspend": True}
    assert after["metadata"]["annotations"] == {"somebody": "else", "ours": "1"}


def test_threads_share_one_client(cluster: Cluster) -> None:
    api = cluster.api()

    def work(number: int) -> None:
        for step in range(10):
            api.create(CONFIG_MAPS, {"metadata": {"name": f"t{number}-{step}"}})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.list(CONFIG_MAPS)) == 60


def test_what_makes_no_sense_is_told_with_its_causes(cluster: Cluster) -> None:
    body = {"metadata": {"name": "c"}, "spec": {"schedule": "61 * * * *"}}
    with pytest.raises(UsageError, match="does not accept CronJob c in namespace clipper-production") as raised:
        cluster.api().create(CRON_JOBS, body)
    assert any(hint.startswith("spec.schedule: Invalid value") for hint in raised.value.hints)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"message": 'container "c" in pod "p" is waiting to start'}, KubernetesError),
        (401, {"message": "Unauthorized"}, AccessError),
        (403, {"message": "no"}, AccessError),
        (403, {"reason": "Forbidden", "message": 'pods "p" is forbidden: User "u" cannot get resource "pods"'}, AccessError),
        (403, {"reason": "Forbidden", "message": 'jobs.batch "j" is forbidden: exceeded quota: q'}, KubernetesError),
        (404, "404 page not found\n", MissingError),
        (404, {"message": "not found"}, MissingError),
        (409, {"reason": "AlreadyExists"}, ObjectExistsError),
        (409, {"reason": "Conflict", "message": "changed"}, ConflictError),
        (415, {"message": "format"}, KubernetesError),
        (422, {"message": "no", "details": {"causes": [{"field": "f", "message": "m"}]}}, UsageError),
        (429, "slow down", ApiUnavailableError),
        (500, None, ApiUnavailableError),
        (503, "<html>", ApiUnavailableError),
        (504, {}, ApiUnavailableError),
        (302, "", KubernetesError),
    ],
)
def test_each_answer_has_its_error(status: int, body: object, error: type[ClipperError]) -> None:
    made = error_of(status, body, verb="get", resource=VOLUME_SNAPSHOTS, namespace=NAMESPACE, name="s", who="me")
    assert type(made) is error
    assert not made.message.endswith(".")


def test_a_namespace_that_is_not_there_is_told_as_that() -> None:
    body = {"reason": "NotFound", "message": 'namespaces "x" not found', "details": {"name": "x", "kind": "namespaces"}}
    made = error_of(404, body, verb="create", resource=CONFIG_MAPS, namespace="x", name="state", who="me")
    assert type(made) is MissingError
    assert made.message == "there is no namespace x: Kubernetes cannot create configmaps state"


def test_a_create_that_a_quota_s_count_came_before_is_tried_again() -> None:
    said = 'Operation cannot be fulfilled on resourcequotas "q": the object has been modified'
    body = {"reason": "Conflict", "message": said}
    made = error_of(409, body, verb="create", resource=CONFIG_MAPS, namespace="x", name="state", who="me")
    assert type(made) is ApiUnavailableError
    assert said in made.message


def test_what_the_server_does_not_accept_is_the_user_s() -> None:
    made = error_of(400, {"message": "no"}, verb="create", resource=CONFIG_MAPS, namespace="x", name="state", who="me")
    assert type(made) is UsageError


@pytest.mark.parametrize(
    "call",
    [
        lambda api: api.list(CONFIG_MAPS),
        lambda api: api.get(CONFIG_MAPS, "state"),
        lambda api: api.create(CONFIG_MAPS, ours()),
        lambda api: api.patch(CONFIG_MAPS, "state", {}),
        lambda api: api.delete(CONFIG_MAPS, "state"),
        lambda api: api.version(),
        lambda api: api.may("get", CONFIG_MAPS),
    ],
)
def test_with_the_server_gone_every_verb_says_so(cluster: Cluster, call: Callable[[Api], object]) -> None:
    api = cluster.api(retry_seconds=0.0)
    cluster.server.end()
    with pytest.raises(ApiUnavailableError, match="does not answer"):
        call(api)
