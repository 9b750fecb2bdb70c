"""The client against the fake API: each verb, pages, and what comes back when the server says no."""

import pytest

from clipper_backup.errors import ConflictError, MissingError, ObjectExistsError
from clipper_backup.kubernetes.api import PAGE_ITEMS, Object
from clipper_backup.kubernetes.resources import CONFIG_MAPS, PODS, VOLUME_SNAPSHOTS
from fixtures.kube_cluster import NAMESPACE, Cluster
from fixtures.kube_kinds import DEPLOYMENTS


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": "x"}}, "data": data}


def test_an_object_is_made_read_changed_and_removed(cluster: Cluster) -> None:
    api = cluster.api()
    made = api.create(CONFIG_MAPS, config_map("state", step="1", unknown="kept"))
    assert made["metadata"]["uid"]
    assert made["metadata"]["namespace"] == NAMESPACE
    assert api.get(CONFIG_MAPS, "state")["data"] == {"step": "1", "unknown": "kept"}
    assert api.patch(CONFIG_MAPS, "state", {"data": {"step": "2"}})["data"] == {"step": "2", "unknown": "kept"}
    api.delete(CONFIG_MAPS, "state", uid=made["metadata"]["uid"])
    with pytest.raises(MissingError, match="ConfigMap state in namespace clipper-production does not exist"):
        api.get(CONFIG_MAPS, "state")


def test_a_name_that_is_taken_is_told(cluster: Cluster) -> None:
    api = cluster.api()
    api.create(CONFIG_MAPS, config_map("state"))
    with pytest.raises(ObjectExistsError, match="ConfigMap state"):
        api.create(CONFIG_MAPS, config_map("state"))


def test_another_object_of_that_name_is_not_deleted(cluster: Cluster) -> None:
    api = cluster.api()
    api.create(CONFIG_MAPS, config_map("state"))
    with pytest.raises(ConflictError, match="precondition"):
        api.delete(CONFIG_MAPS, "state", uid="somebody-else")
    assert cluster.get(CONFIG_MAPS, "state") is not None


def test_an_update_of_what_changed_meanwhile_is_refused(cluster: Cluster) -> None:
    api = cluster.api()
    seen = api.create(CONFIG_MAPS, config_map("state"))["metadata"]["resourceVersion"]
    api.patch(CONFIG_MAPS, "state", {"data": {"a": "1"}})
    with pytest.raises(ConflictError, match="has been modified"):
        api.patch(CONFIG_MAPS, "state", {"metadata": {"resourceVersion": seen}, "data": {"a": "2"}})


def test_a_thousand_objects_come_in_pages(cluster: Cluster) -> None:
    for number in range(1000):
        cluster.create(config_map(f"page-{number:04}"))
    api = cluster.api()
    found = api.list(CONFIG_MAPS, labels="app=x")
    assert [item["metadata"]["name"] for item in found] == [f"page-{number:04}" for number in range(1000)]
    assert {item["kind"] for item in found} == {"ConfigMap"}
    assert len(cluster.served.calls) == 1000 // PAGE_ITEMS
    assert api.list(CONFIG_MAPS, fields="metadata.name=page-0500") == [cluster.get(CONFIG_MAPS, "page-0500")]


def test_containers_are_merged_by_name(cluster: Cluster) -> None:
    pod = {"containers": [{"name": "a", "image": "one", "env": [{"name": "A", "value": "1"}]}]}
    spec = {"replicas": 1, "template": {"spec": pod}}
    cluster.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
    patch = {
        "spec": {"template": {"spec": {"containers": [{"name": "b", "image": "two"}, {"name": "a", "env": [{"name": "B"}]}]}}}
    }
    after = cluster.api().patch(DEPLOYMENTS, "d", patch, kind="strategic")["spec"]["template"]["spec"]["containers"]
    assert after == [
        {"name": "a", "image": "one", "env": [{"name": "A", "value": "1"}, {"name": "B"}]},
        {"name": "b", "image": "two"},
    ]


def test_an_api_that_is_not_installed_says_how_to_get_it(cluster: Cluster) -> None:
    cluster.served.absent.add("snapshot.storage.k8s.io")
    with pytest.raises(MissingError, match="is not installed") as raised:
        cluster.api().list(VOLUME_SNAPSHOTS)
    assert any("ref=v8.6.0" in hint for hint in raised.value.hints)


def test_a_log_is_read(cluster: Cluster) -> None:
    cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}})
    cluster.served.logs[NAMESPACE, "p", "c"] = "one\ntwo\nthree\n"
    api = cluster.api()
    assert api.log("p", container="c") == "one\ntwo\nthree\n"
    assert api.log("p", container="c", tail_lines=1) == "three\n"
    with pytest.raises(MissingError):
        api.log("q")


@pytest.mark.parametrize("said", ['{"level": "info"}\n', "42\n", "null\n", "true"])
def test_a_log_that_is_json_stays_a_text(cluster: Cluster, said: str) -> None:
    cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}})
    cluster.served.logs[NAMESPACE, "p", "c"] = said
    assert cluster.api().log("p", container="c") == said


def test_version_and_rights_are_asked(cluster: Cluster) -> None:
    api = cluster.api()
    assert api.version()[:2] == (1, 36)
    assert api.may("get", PODS, subresource="log")
