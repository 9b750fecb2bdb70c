"""The verbs of the Kubernetes API that our commands use, on objects as they are: dicts, of which nothing is dropped.

Each call is tried again for RETRY_SECONDS while the server is away. That is safe for all of them: names are fixed before
(K8), an update is a patch of named fields (K9), and a refusal that an attempt without an answer may itself have brought about
("exists", "changed meanwhile", "not there") is compared with what is there. A delete needs its uid for that where something
makes the name anew.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from clipper_backup.clock import Clock
from clipper_backup.errors import (
    ApiUnavailableError,
    ClipperError,
    ConflictError,
    KubernetesError,
    MissingError,
    ObjectExistsError,
)
from clipper_backup.kubernetes.errors import GoneError, error_of
from clipper_backup.kubernetes.resources import ACCESS_REVIEWS, PODS, Resource, path_of

if TYPE_CHECKING:
    from clipper_backup.kubernetes.transport import Answer, Transport

Object = dict[str, Any]
"""An object of the API, as its JSON."""
Result = TypeVar("Result")

PAGE_ITEMS = 200
RETRY_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0

_VERSION = Resource("", "", "version", "version", namespaced=False)

Propagation = Literal["Orphan", "Background", "Foreground"]

_PATCHES = {"merge": "application/merge-patch+json", "strategic": "application/strategic-merge-patch+json"}


@dataclass(frozen=True)
class Listing:
    """Objects of one resource, all of the same instant; a watch from *version* misses nothing after it."""

    items: list[Object]
    version: str


class Version(NamedTuple):
    """Of the control plane; *text* as it says it (`v1.36.0-gke.100`)."""

    major: int
    minor: int
    text: str


class Api:
    """One cluster, as one login. Threads may share it. *namespace* is where namespaced objects are when a call names no other."""

    def __init__(
        self,
        transport: "Transport",
        *,
        clock: Clock,
        rng: random.Random,
        retry_seconds: float = RETRY_SECONDS,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._transport = transport
        self.clock = clock
        self._rng = rng
        self._retry_seconds = retry_seconds
        self._tell = tell
        self.namespace = transport.namespace
        self.who = transport.who

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object:
        """The object of that name; MissingError where there is none."""
        return self._object(self._call("GET", "get", resource, name, namespace=namespace))

    def list(self, resource: Resource, *, namespace: str | None = None, labels: str = "", fields: str = "") -> Sequence[Object]:
        """All objects that match the selectors (`app=postgres,role!=wal`, `metadata.name=x`), asked for in pages of PAGE_ITEMS.

        A page whose version was forgotten (410) begins the list anew, once; a second time is ApiUnavailableError.
        """
        return self.list_at(resource, namespace=namespace, labels=labels, fields=fields).items

    def list_at(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        within_seconds: float | None = None,
    ) -> Listing:
        """The same, with the version to watch from. *within_seconds* bounds each page, its repetitions included."""
        selectors = {key: value for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
        try:
            return self._pages(resource, namespace, selectors, within_seconds)
        except GoneError:
            pass
        try:
            return self._pages(resource, namespace, selectors, within_seconds)
        except GoneError as error:
            raise ApiUnavailableError(
                f"a list of {resource.full_name} is forgotten by the server before its end, twice"
            ) from error

    def create(self, resource: Resource, body: Object, *, namespace: str | None = None, resumed: bool = False) -> Object:
        """Make it, under the name that *body* states; the object as the server keeps it.

        ObjectExistsError where the name is taken, by anything but this very object: after an attempt without an answer, or when
        *resumed* says that an earlier run may have made it, one that holds all of *body* is taken for ours. So *body* must have
        something unique to the run, as its name or an annotation. One that is being deleted is not taken for ours: it goes.
        """
        name = str(body["metadata"]["name"])
        stated = {"apiVersion": resource.api_version, "kind": resource.kind} | body

        def attempt() -> Object:
            return self._object(self._once("POST", "create", resource, None, namespace=namespace, body=stated, told_name=name))

        def made_before() -> Object | None:
            found = self._object(self._once("GET", "get", resource, name, namespace=namespace))
            return found if _holds(found, body) and "deletionTimestamp" not in found["metadata"] else None

        return self._persist_once(attempt, ObjectExistsError, made_before, unanswered=resumed)

    def patch(
        self,
        resource: Resource,
        name: str,
        body: Object,
        *,
        kind: Literal["merge", "strategic"] = "merge",
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Object:
        """Change the fields that *body* names (K9), by merge patch (RFC 7386) or strategic merge (no custom resources).

        With `metadata.resourceVersion` in *body*, ConflictError when the object was changed since, but by an attempt of this
        very call that got no answer.
        """
        about = {key: value for key, value in (body.get("metadata") or {}).items() if key != "resourceVersion"}

        def attempt() -> Object:
            return self._object(
                self._once(
                    "PATCH",
                    "patch",
                    resource,
                    name,
                    namespace=namespace,
                    body=body,
                    content_type=_PATCHES[kind],
                    subresource=subresource,
                )
            )

        def changed_before() -> Object | None:
            found = self._object(self._once("GET", "get", resource, name, namespace=namespace))
            return found if _holds(found, body | {"metadata": about}) else None

        return self._persist_once(attempt, ConflictError, changed_before)

    def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        propagation: Propagation | None = None,
        uid: str | None = None,
    ) -> None:
        """Ask for its end. It may live on until its finalizers are gone: wait for that.

        With *uid*, ConflictError when the object of that name is another one. MissingError where there is none. Without *uid*,
        an attempt that is repeated for want of an answer deletes what was made under that name meanwhile.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if propagation is not None:
            options["propagationPolicy"] = propagation
        if uid is not None:
            options["preconditions"] = {"uid": uid}

        def attempt() -> bool:
            self._once("DELETE", "delete", resource, name, namespace=namespace, body=options)
            return True

        self._persist_once(attempt, MissingError, lambda: True)

    def log(self, pod: str, *, container: str | None = None, namespace: str | None = None, tail_lines: int | None = None) -> str:
        """What the container wrote so far, or its last *tail_lines*."""
        params = {} if container is None else {"container": container}
        if tail_lines is not None:
            params["tailLines"] = str(tail_lines)
        return str(self._call("GET", "get", PODS, pod, namespace=namespace, subresource="log", params=params).body)

    def version(self) -> Version:
        """Of the control plane."""
        answer = self._persist(lambda: self._answer(self._transport.request("GET", "/version"), "get", _VERSION, None, ""))
        said = self._object(answer)
        numbers = [re.match(r"\d+", str(said.get(key, ""))) for key in ("major", "minor")]
        if not all(numbers):
            raise KubernetesError(f"the Kubernetes API says no version: {said}")
        major, minor = (int(number.group()) for number in numbers if number)
        return Version(major, minor, str(said.get("gitVersion", "")))

    def may(self, verb: str, resource: Resource, *, namespace: str | None = None, subresource: str | None = None) -> bool:
        """Whether this login has *verb* (`get`, `list`, `watch`, `create`, `patch`, `delete`) on *resource* here."""
        asked = {"verb": verb, "group": resource.group, "resource": resource.plural}
        if resource.namespaced:
            asked["namespace"] = namespace or self.namespace
        if subresource is not None:
            asked["subresource"] = subresource
        body = {
            "apiVersion": ACCESS_REVIEWS.api_version,
            "kind": ACCESS_REVIEWS.kind,
            "spec": {"resourceAttributes": asked},
        }
        answer = self._object(self._call("POST", "create", ACCESS_REVIEWS, None, body=body))
        return answer.get("status", {}).get("allowed") is True

    def watch(
        self, resource: Resource, *, params: Mapping[str, str], namespace: str, idle_seconds: float, within_seconds: float
    ) -> AbstractContextManager[tuple["Answer", Iterator[str]]]:
        """The lines of a watch, once, as they are: `watch.wait_for` makes sense of them."""
        path = path_of(resource, namespace)
        return self._transport.stream(
            path, params={"watch": "1", **params}, idle_seconds=idle_seconds, within_seconds=within_seconds
        )

    def _pages(
        self, resource: Resource, namespace: str | None, selectors: Mapping[str, str], within_seconds: float | None
    ) -> Listing:
        items: list[Object] = []
        params = {"limit": str(PAGE_ITEMS), **selectors}
        while True:
            page = self._object(
                self._call("GET", "list", resource, None, namespace=namespace, params=params, within_seconds=within_seconds)
            )
            # the items of a typed list do not state what they are; what we hand on does
            items += [{"apiVersion": resource.api_version, "kind": resource.kind} | item for item in page.get("items") or ()]
            about = page.get("metadata", {})
            if not about.get("continue"):
                return Listing(items, str(about.get("resourceVersion", "")))
            params["continue"] = about["continue"]

    def _call(self, method: str, verb: str, resource: Resource, name: str | None, **how: Any) -> "Answer":
        within = how.pop("within_seconds", None)
        end = None if within is None else self.clock.monotonic() + within

        def attempt() -> "Answer":
            left = None if end is None else max(1.0, end - self.clock.monotonic())
            return self._once(method, verb, resource, name, within_seconds=left, **how)

        return self._persist(attempt, within)

    def _once(
        self,
        method: str,
        verb: str,
        resource: Resource,
        name: str | None,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        within_seconds: float | None = None,
        told_name: str | None = None,
    ) -> "Answer":
        place = namespace or self.namespace
        answer = self._transport.request(
            method,
            path_of(resource, place, name, subresource),
            params=params,
            body=body,
            content_type=content_type,
            within_seconds=within_seconds,
        )
        told = resource if subresource is None else resource._replace(plural=f"{resource.plural}/{subresource}")
        return self._answer(answer, verb, told, told_name or name, place)

    def _answer(self, answer: "Answer", verb: str, resource: Resource, name: str | None, namespace: str) -> "Answer":
        if 200 <= answer.status < 300:
            return answer
        if answer.status == 410 and verb in {"list", "watch"}:
            raise GoneError
        raise error_of(answer.status, answer.body, verb=verb, resource=resource, namespace=namespace, name=name, who=self.who)

    def _object(self, answer: "Answer") -> Object:
        if not isinstance(answer.body, dict):
            raise KubernetesError(f"the Kubernetes API says something that is no object: {str(answer.body)[:200]!r}")
        return answer.body

    def _persist_once(
        self,
        attempt: Callable[[], Result],
        refused: type[ClipperError],
        done_before: Callable[[], Result | None],
        *,
        unanswered: bool = False,
    ) -> Result:
        # *refused* may be the doing of an attempt of ours that got no answer: done_before is its outcome, None when it is not
        def judged() -> Result:
            nonlocal unanswered
            try:
                return attempt()
            except ApiUnavailableError:
                unanswered = True
                raise
            except refused:
                if not unanswered or (done := done_before()) is None:
                    raise
                return done

        return self._persist(judged)

    def _persist(self, attempt: Callable[[], Result], within_seconds: float | None = None) -> Result:
        patience = self._retry_seconds if within_seconds is None else min(self._retry_seconds, within_seconds)
        begun = self.clock.monotonic()
        longest = FIRST_PAUSE_SECONDS
        while True:
            try:
                return attempt()
            except ApiUnavailableError as error:
                left = patience - (self.clock.monotonic() - begun)
                if left <= 0:
                    raise
                self._tell(f"{error}; trying again")
            self.clock.sleep(min(left, self._rng.uniform(0, longest)))
            longest = min(LONGEST_PAUSE_SECONDS, longest * 2)


def _holds(found: Any, sent: Any) -> bool:
    """Whether *found* has all that was *sent*: the server adds defaults, and leaves out what is null or empty."""
    if found is None:
        return sent is None or sent in ("", [], {})
    if isinstance(sent, dict):
        return isinstance(found, dict) and all(_holds(found.get(key), value) for key, value in sent.items())
    if isinstance(sent, list):
        return isinstance(found, list) and len(found) == len(sent) and all(map(_holds, found, sent))
    return bool(found == sent)
