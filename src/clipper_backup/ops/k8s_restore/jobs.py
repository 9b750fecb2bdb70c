"""Jobs of a restore: made once, waited for, and what they reported."""

import json
from typing import Any

from clipper_backup.errors import ClipperError, KubernetesError, MissingError
from clipper_backup.kubernetes.api import Api, Object
from clipper_backup.kubernetes.objects import JobState, job_of, pod_of
from clipper_backup.kubernetes.resources import JOBS, PODS
from clipper_backup.kubernetes.watch import wait_for

JOB_SECONDS = 86400.0
"""How long a Job is waited for; whoever waits longer goes on later."""
GONE_SECONDS = 300.0
_LAST_LINES = 5


def run_job(api: Api, body: Object, container: str) -> dict[str, Any]:
    """Run the Job *body*, or go on waiting for it, and return what *container* reported: its last line, JSON.

    One that failed in an earlier run is made anew. KubernetesError with its last lines when it fails.
    """
    name = str(body["metadata"]["name"])
    _clear_failed(api, name)
    api.create(JOBS, body, resumed=True)

    def ended(found: Object | None) -> JobState | None:
        if found is None:
            raise KubernetesError(f"Job {name} was deleted before it ended")
        state = job_of(found)
        return state if state.complete or state.failed is not None else None

    state = wait_for(api, JOBS, name, ended, timeout_seconds=JOB_SECONDS)
    pods = [pod_of(found) for found in api.list(PODS, labels=f"job-name={name}")]
    if state.failed is not None:
        tails = [line for pod in pods if pod.phase == "Failed" for line in _tail(api, pod.name, container)]
        raise KubernetesError(
            f"Job {name} failed: {state.failed}", hints=tails[-_LAST_LINES:] or [f"kubectl describe job {name}"]
        )
    pod = next((each for each in pods if each.phase == "Succeeded"), None)
    if pod is None:
        raise MissingError(f"the Pod of Job {name}, which has its report, is gone")
    *_, last = api.log(pod.name, container=container).splitlines() or [""]
    try:
        report = json.loads(last)
    except ValueError:
        report = None
    if not isinstance(report, dict):
        raise KubernetesError(f"Job {name} ended well and reported nothing", hints=[f"kubectl logs {pod.name} -c {container}"])
    return report


def _clear_failed(api: Api, name: str) -> None:
    try:
        found = job_of(api.get(JOBS, name))
    except MissingError:
        return
    if found.failed is None:
        return
    api.delete(JOBS, name, uid=found.uid, propagation="Foreground")  # its Pods have the claim
    wait_for(api, JOBS, name, lambda left: True if left is None else None, timeout_seconds=GONE_SECONDS)


def _tail(api: Api, pod: str, container: str) -> list[str]:
    try:
        return api.log(pod, container=container, tail_lines=_LAST_LINES).splitlines()
    except ClipperError:  # it is gone, or never began: what failed is told without
        return []
