"""How far a restore came, kept in the namespace: a ConfigMap, whose creation is the lock."""

from typing import Any, Self

import msgspec

from clipper_backup.errors import ConflictError, LockedError, ObjectExistsError
from clipper_backup.kubernetes.api import Api
from clipper_backup.kubernetes.resources import CONFIG_MAPS
from clipper_backup.ops.k8s_restore.plan import STATE, Plan
from clipper_backup.values import json_time


class Step(msgspec.Struct):
    """A step that was begun; *done_at* is None until its check held. *facts* are what later steps and an undo need."""

    begun_at: str
    done_at: str | None = None
    facts: dict[str, Any] = {}


class State:
    """One restore's plan and steps. Every change is written before it counts; ConflictError when another client wrote."""

    def __init__(self, api: Api, plan: Plan, steps: dict[str, Step], version: str) -> None:
        self._api, self.plan, self.steps, self._version = api, plan, steps, version

    @classmethod
    def begin(cls, api: Api, plan: Plan) -> Self:
        """Make it. LockedError where there is one, of another restore."""
        body = {
            "metadata": {
                "name": STATE,
                "labels": {"app.kubernetes.io/name": "clipper-backup", "app.kubernetes.io/managed-by": "clipper-backup"},
                "annotations": {"clipper-backup/restore": plan.id},
            },
            "data": {"id": plan.id, "plan": msgspec.json.encode(plan).decode(), "steps": "{}"},
        }
        try:
            made = api.create(CONFIG_MAPS, body)
        except ObjectExistsError:
            other = cls.read(api)
            raise LockedError(
                f"restore {other.plan.id} is under way in namespace {plan.namespace}, since step {other.latest or 'plan'}",
                hints=[f"its state is in ConfigMap {STATE}"],
            ) from None
        return cls(api, plan, {}, made["metadata"]["resourceVersion"])

    @classmethod
    def read(cls, api: Api) -> Self:
        """The one that is there; MissingError without any."""
        found = api.get(CONFIG_MAPS, STATE)
        data = found["data"]
        steps = msgspec.json.decode(data["steps"], type=dict[str, Step])
        return cls(api, msgspec.json.decode(data["plan"], type=Plan), steps, found["metadata"]["resourceVersion"])

    @property
    def latest(self) -> str | None:
        """The last step that was begun."""
        return next(reversed(self.steps), None)

    def is_done(self, name: str) -> bool:
        """Whether the step was done and checked."""
        step = self.steps.get(name)
        return step is not None and step.done_at is not None

    def facts(self, name: str) -> dict[str, Any]:
        """What the step noted so far."""
        return self.steps[name].facts

    def enter(self, name: str) -> None:
        """Note that the step begins, before its first request."""
        if name not in self.steps:
            self.steps[name] = Step(self._now())
            self._write()

    def note(self, name: str, facts: dict[str, Any]) -> None:
        """Keep *facts* of a step, before something is done by which they would be lost."""
        self.steps[name].facts.update(facts)
        self._write()

    def done(self, name: str, facts: dict[str, Any]) -> None:
        """Note that the step is done, behind its check."""
        self.steps[name].facts.update(facts)
        self.steps[name].done_at = self._now()
        self._write()

    def _now(self) -> str:
        return json_time(self._api.clock.now())

    def _write(self) -> None:
        body = {
            "metadata": {"resourceVersion": self._version},
            "data": {"steps": msgspec.json.encode(self.steps).decode()},
        }
        try:
            self._version = self._api.patch(CONFIG_MAPS, STATE, body)["metadata"]["resourceVersion"]
        except ConflictError as error:
            raise ConflictError(f"another client goes on with restore {self.plan.id}: {error.message}") from error
