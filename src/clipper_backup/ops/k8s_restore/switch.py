"""The steps of a restore, each begun in the state before its first request and done behind its check.

A step that is run again finds what it did by names that the id fixes, and by uids that the plan saw: what anybody else changed
meanwhile is refused, and named. No server ever has a volume that another one may write to.
"""

from collections.abc import Callable
from typing import Any

from clipper_backup.errors import ConflictError, IntegrityError, MissingError, ObjectExistsError
from clipper_backup.kubernetes.api import Api, Object
from clipper_backup.kubernetes.objects import claim_of, clean, pod_of
from clipper_backup.kubernetes.resources import (
    CRON_JOBS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    STATEFUL_SETS,
    Resource,
)
from clipper_backup.kubernetes.watch import wait_for
from clipper_backup.ops.k8s_restore.jobs import GONE_SECONDS, run_job
from clipper_backup.ops.k8s_restore.plan import BASE_JOB, steps_of
from clipper_backup.ops.k8s_restore.state import State
from clipper_backup.ops.restore_pod import RESTORE
from clipper_backup.ops.work import Work, step

READY_SECONDS = 900.0
_ATTEMPTS = 5
"""Of a change to what controllers change too."""
_KEEP = {"whenDeleted": "Retain", "whenScaled": "Retain"}


class Restoring:
    """One restore, from wherever its state says it is."""

    def __init__(self, work: Work, api: Api, state: State) -> None:
        self._work, self._api, self._state, self._plan = work, api, state, state.plan
        self._texts = dict(steps_of(state.plan))

    def copy(self) -> dict[str, Any]:
        """Make the copy, and return what the restore in it reported. Nothing of production is touched."""
        self._run("volume", self._volume)
        self._run("copy", self._copy)
        return self._state.facts("copy")

    def switch(self) -> None:
        """Let the StatefulSet go on with the copy: whoever calls this has asked a person. Only after `copy`."""
        if not self._state.is_done("copy"):
            raise ConflictError(f"restore {self._plan.id} has no copy to switch to yet")
        self._run("consent", dict)
        self._run("guard", self._guard)
        self._run("stop", self._stop)
        self._run("remove", self._remove)
        self._run("swap", self._swap)
        self._run("return", self._return)
        self._run("proof", self._proof)
        self._run("finish", self._finish)

    def _run(self, name: str, act: Callable[[], dict[str, Any]]) -> None:
        if self._state.is_done(name):
            return
        self._state.enter(name)
        with step(self._work, name, self._texts[name]):
            self._state.done(name, act())

    # -- the copy

    def _volume(self) -> dict[str, Any]:
        made = self._api.create(PERSISTENT_VOLUME_CLAIMS, self._plan.claim_for_copy(), resumed=True)
        return {"uid": made["metadata"]["uid"]}

    def _copy(self) -> dict[str, Any]:
        report = run_job(self._api, self._plan.job_object(), RESTORE)
        restored = report.get("restored") or {}
        if not restored.get("history_archived"):
            raise IntegrityError(f"Job {self._plan.job} ended, and the history of its timeline is not archived")
        return {"timeline": int(restored["started"]["timeline"]), "report": report}

    # -- the switch

    def _guard(self) -> dict[str, Any]:
        """Both volumes are kept whatever becomes of their claims. What they were is noted first."""
        facts = self._state.facts("guard")
        if not facts:
            old, new = self._claim(self._plan.claim), self._claim(self._plan.new_claim)
            _same(old, self._plan.claim_uid)
            _same(new, self._state.facts("volume")["uid"])
            _bound_to(old, self._plan.volume)
            volume = self._api.get(PERSISTENT_VOLUMES, claim_of(new).volume or "")
            if (volume["spec"].get("claimRef") or {}).get("uid") != new["metadata"]["uid"]:
                raise ConflictError(f"volume {volume['metadata']['name']} is not of claim {self._plan.new_claim}")
            self._state.note(
                "guard",
                {
                    "volume": volume["metadata"]["name"],
                    "volume_uid": volume["metadata"]["uid"],
                    "policy": volume["spec"].get("persistentVolumeReclaimPolicy", "Delete"),
                },
            )
        for name, uid in self._volumes():
            self._change(PERSISTENT_VOLUMES, name, uid, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
        self._check_kept()
        return {}

    def _stop(self) -> dict[str, Any]:
        plan = self._plan
        for name in plan.suspended:
            self._api.patch(CRON_JOBS, name, {"spec": {"suspend": True}})
        found = self._api.get(STATEFUL_SETS, plan.stateful_set)
        _same(found, plan.set_uid)
        if _lasting(found) != _lasting(plan.set_object):
            raise ConflictError(
                f"StatefulSet {plan.stateful_set} was changed since the plan, and would be made again as it was then",
                hints=[f"kubectl get statefulset {plan.stateful_set} -o yaml shows it; change it back"],
            )
        kept = {"spec": {"replicas": 0, "persistentVolumeClaimRetentionPolicy": _KEEP}}
        self._change(STATEFUL_SETS, plan.stateful_set, plan.set_uid, kept)
        grace = plan.set_object["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        wait_for(self._api, PODS, plan.pod, _is_gone, timeout_seconds=grace + GONE_SECONDS)
        self._check_unused()
        return {}

    def _remove(self) -> dict[str, Any]:
        plan = self._plan
        self._check_unused()
        self._delete(STATEFUL_SETS, plan.stateful_set, plan.set_uid, orphan=True)
        return {}

    def _swap(self) -> dict[str, Any]:
        plan, facts = self._plan, self._state.facts("guard")
        self._check_away()
        self._check_unused()
        self._check_kept()
        self._delete(PERSISTENT_VOLUME_CLAIMS, plan.new_claim, self._state.facts("volume")["uid"])
        body = plan.claim_object | {"spec": plan.claim_object["spec"] | {"volumeName": facts["volume"]}}
        about = plan.claim_object["metadata"]
        body["metadata"] = about | {"annotations": {**(about.get("annotations") or {}), "clipper-backup/restore": plan.id}}
        present = self._find(PERSISTENT_VOLUME_CLAIMS, plan.claim)
        if present is None or present["metadata"]["uid"] == plan.claim_uid:
            self._delete(PERSISTENT_VOLUME_CLAIMS, plan.claim, plan.claim_uid)
            reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": plan.namespace, "name": plan.claim}
            freed = {"spec": {"claimRef": reference | {"uid": None, "resourceVersion": None}}}
            self._change(PERSISTENT_VOLUMES, facts["volume"], facts["volume_uid"], freed)
        try:
            made = self._api.create(PERSISTENT_VOLUME_CLAIMS, body, resumed=True)
        except ObjectExistsError as error:
            raise ConflictError(
                f"claim {plan.claim} was made by somebody else while it was to change its volume",
                hints=["both volumes are kept; delete that claim, then go on"],
            ) from error
        uid = made["metadata"]["uid"]

        def bound(found: Object | None) -> bool | None:
            if found is None:
                raise ConflictError(f"claim {plan.claim} was deleted before it was bound")
            _same(found, uid)
            return True if claim_of(found).bound else None

        wait_for(self._api, PERSISTENT_VOLUME_CLAIMS, plan.claim, bound, timeout_seconds=GONE_SECONDS)
        return {"claim_uid": uid}

    def _return(self) -> dict[str, Any]:
        plan = self._plan
        claim = self._claim(plan.claim)
        _same(claim, self._state.facts("swap")["claim_uid"])
        _bound_to(claim, self._state.facts("guard")["volume"])
        try:
            self._api.create(STATEFUL_SETS, plan.set_object, resumed=True)
        except ObjectExistsError as error:
            raise ConflictError(
                f"StatefulSet {plan.stateful_set} was made by somebody else, and not as it was",
                hints=["pause what manages it, delete it with --cascade=orphan, then go on"],
            ) from error

        def ready(found: Object | None) -> bool | None:
            return True if found is not None and pod_of(found).ready and "deletionTimestamp" not in found["metadata"] else None

        wait_for(self._api, PODS, plan.pod, ready, timeout_seconds=READY_SECONDS)
        return {}

    def _proof(self) -> dict[str, Any]:
        """A base backup on the timeline of the copy: the server runs on it, archives, and the archive can restore it."""
        template = self._api.get(CRON_JOBS, BASE_JOB)["spec"]["jobTemplate"]
        (backup,) = template["spec"]["template"]["spec"]["containers"]
        pod = template["spec"]["template"]
        words = {"args": ["base", "create", "--json"]}
        body = {
            "metadata": {
                "name": f"{self._plan.job}-base",
                "labels": template.get("metadata", {}).get("labels") or {},
                "annotations": {"clipper-backup/restore": self._plan.id},
            },
            "spec": template["spec"] | {"template": pod | {"spec": pod["spec"] | {"containers": [backup | words]}}},
        }
        report = run_job(self._api, body, str(backup["name"]))
        wanted = self._state.facts("copy")["timeline"]
        if report.get("timeline") != wanted:
            raise IntegrityError(
                f"the new base backup is of timeline {report.get('timeline')}, and the copy ended on {wanted}:"
                " the database that was backed up is another one",
                hints=["PGHOST in backup-config names the database of the StatefulSet"],
            )
        return {"base_backup": report.get("id")}

    def _finish(self) -> dict[str, Any]:
        for name, before in self._plan.suspended.items():
            self._api.patch(CRON_JOBS, name, {"spec": {"suspend": before}})
        facts = self._state.facts("guard")
        policy = {"spec": {"persistentVolumeReclaimPolicy": facts["policy"]}}
        self._change(PERSISTENT_VOLUMES, facts["volume"], facts["volume_uid"], policy)
        return {"kept_volume": self._plan.volume}

    # -- what they share

    def _volumes(self) -> list[tuple[str, str]]:
        facts = self._state.facts("guard")
        return [(self._plan.volume, self._plan.volume_uid), (facts["volume"], facts["volume_uid"])]

    def _check_kept(self) -> None:
        for name, uid in self._volumes():
            found = self._api.get(PERSISTENT_VOLUMES, name)
            _same(found, uid)
            if found["spec"].get("persistentVolumeReclaimPolicy") != "Retain":
                raise ConflictError(
                    f"volume {name} would be deleted with its claim: somebody changed its policy",
                    hints=[f"""kubectl patch pv {name} -p '{{"spec":{{"persistentVolumeReclaimPolicy":"Retain"}}}}'"""],
                )

    def _check_away(self) -> None:
        if self._find(STATEFUL_SETS, self._plan.stateful_set) is not None:
            raise ConflictError(
                f"StatefulSet {self._plan.stateful_set} is there again: something made it anew amid the switch",
                hints=["pause what manages it (GitOps, Helm), delete it with --cascade=orphan, then go on"],
            )

    def _check_unused(self) -> None:
        claims = {self._plan.claim, self._plan.new_claim}
        for found in self._api.list(PODS):
            pod = pod_of(found)
            if pod.phase not in {"Succeeded", "Failed"} and claims & set(pod.claims.values()):
                raise ConflictError(f"Pod {pod.name} uses a volume of the switch", hints=[f"kubectl describe pod {pod.name}"])

    def _claim(self, name: str) -> Object:
        return self._api.get(PERSISTENT_VOLUME_CLAIMS, name)

    def _find(self, resource: Resource, name: str) -> Object | None:
        try:
            return self._api.get(resource, name)
        except MissingError:
            return None

    def _delete(self, resource: Resource, name: str, uid: str, *, orphan: bool = False) -> None:
        """Delete that very object and wait until it is gone. One of its name with another uid is refused."""
        found = self._find(resource, name)
        if found is None:
            return
        _same(found, uid)
        try:
            self._api.delete(resource, name, uid=uid, propagation="Orphan" if orphan else None)
        except MissingError:
            return

        def gone(left: Object | None) -> bool | None:
            return True if left is None or left["metadata"]["uid"] != uid else None

        wait_for(self._api, resource, name, gone, timeout_seconds=GONE_SECONDS)

    def _change(self, resource: Resource, name: str, uid: str, body: Object) -> None:
        """Patch that very object; controllers may write to it meanwhile, nobody may replace it."""
        for attempt in range(_ATTEMPTS):
            found = self._api.get(resource, name)
            _same(found, uid)
            try:
                self._api.patch(resource, name, body | {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}})
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return


def _is_gone(found: Object | None) -> bool | None:
    return True if found is None else None


def _same(found: Object, uid: str) -> None:
    if found["metadata"]["uid"] != uid:
        name = f"{found.get('kind', 'object')} {found['metadata']['name']}"
        raise ConflictError(f"{name} is another one than the plan saw: somebody made it anew")


def _bound_to(claim: Object, volume: str) -> None:
    if claim_of(claim).volume != volume or not claim_of(claim).bound:
        raise ConflictError(f"claim {claim['metadata']['name']} is not bound to volume {volume}")


def _lasting(found: Object) -> Object:
    """Its spec, but for what a switch changes."""
    ours = {"replicas", "persistentVolumeClaimRetentionPolicy"}
    return {key: value for key, value in clean(found)["spec"].items() if key not in ours}
