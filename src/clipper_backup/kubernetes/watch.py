"""Waiting until something is so in the cluster: list, judge, watch from there, and begin anew whatever the stream does.

Every list is judged as an event is, so nothing that happens while no stream is open is missed (K7).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from clipper_backup.errors import ApiUnavailableError, ClipperError, TimedOutError
from clipper_backup.kubernetes.api import Api, Listing, Object
from clipper_backup.kubernetes.errors import GoneError, error_of
from clipper_backup.kubernetes.resources import EVENTS, Resource

STREAM_SECONDS = 50
"""The server ends a watch after this; a load balancer in between often ends a silent one after 60."""
IDLE_SECONDS = 60.0
"""No byte for so long: the connection is dead, whatever TCP believes."""
GRACE_SECONDS = 8.0
"""How much later than its time-out a wait may end: one request that was under way."""
AGAIN_SECONDS = 0.2

Found = TypeVar("Found")


@dataclass(frozen=True)
class Matching:
    """Wait for any object with these labels (`job-name=x`), in place of one by its name."""

    labels: str


def wait_for(
    api: Api,
    resource: Resource,
    what: str | Matching,
    until: Callable[[Object | None], Found | None],
    *,
    timeout_seconds: float,
    namespace: str | None = None,
    beat: Callable[[], None] = lambda: None,
    beat_seconds: int = STREAM_SECONDS,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """What *until* returns first that is not None, of the objects of that name (or labels), as they are and as they change.

    *until* is told None where there is no such object, also when it was deleted; what it raises ends the wait. *beat* is called
    at every look, at least each *beat_seconds*, and may raise too. TimedOutError after *timeout_seconds* (at most GRACE_SECONDS
    later) says what was seen last. *tell* is given a line when the connection is lost, and when the phase changes.
    """
    answers: list[Found] = []

    def judged(found: Object | None) -> bool:
        if (answer := until(found)) is not None:
            answers.append(answer)
        return bool(answers)

    _Wait(api, resource, what, judged, timeout_seconds, namespace or api.namespace, beat, beat_seconds, tell).run()
    return answers[0]


class _Again(Exception):  # noqa: N818  no error: list anew
    """The stream cannot be gone on with."""


class _Done(Exception):  # noqa: N818  no error: the condition holds
    pass


class _Wait:
    def __init__(
        self,
        api: Api,
        resource: Resource,
        what: str | Matching,
        until: Callable[[Object | None], bool],
        timeout_seconds: float,
        namespace: str,
        beat: Callable[[], None],
        beat_seconds: int,
        tell: Callable[[str], None],
    ) -> None:
        self._api, self._resource, self._what, self._until = api, resource, what, until
        self._timeout_seconds, self._namespace = timeout_seconds, namespace
        self._beat, self._beat_seconds, self._tell = beat, beat_seconds, tell
        self._selector = {"labels": what.labels} if isinstance(what, Matching) else {"fields": f"metadata.name={what}"}
        self._end = api.clock.monotonic() + timeout_seconds
        self._last: Object | None = None
        self._gone = False
        self._said = ""

    def run(self) -> None:
        with suppress(_Done):
            while True:
                self._once()

    def _once(self) -> None:
        """One list, and the streams after it until one breaks."""
        try:
            listing = self._list()
            self._judge_all(listing)
            version = listing.version
            while True:
                self._past()
                version = self._stream(version)
        except (_Again, GoneError):
            self._past()
            self._api.clock.sleep(AGAIN_SECONDS)  # a server that forgets at once is not asked without a pause
        except ApiUnavailableError as error:
            self._past(error)
            self._tell(f"{error}; looking again")
            self._api.clock.sleep(min(1.0, max(0.0, self._left())))

    def _list(self) -> Listing:
        within = min(30.0, max(0.0, self._left())) + GRACE_SECONDS
        return self._api.list_at(self._resource, namespace=self._namespace, within_seconds=within, **self._selector)

    def _judge_all(self, listing: Listing) -> None:
        for item in listing.items:
            self._judge(item)
        if not listing.items:
            self._judge(None)

    def _judge(self, found: Object | None) -> None:
        self._beat()
        self._last, self._gone = found or self._last, found is None
        if found is not None and (said := describe(found)) != self._said:
            self._said = said
            self._tell(f"{self._resource.kind} {found['metadata'].get('name')}: {said}")
        if self._until(found):
            raise _Done

    def _stream(self, version: str) -> str:
        """Judge the events of one stream; the version to go on from, when the server ended it in good order."""
        seconds = max(1, min(STREAM_SECONDS, self._beat_seconds, int(self._left())))
        params = {"resourceVersion": version, "timeoutSeconds": str(seconds), "allowWatchBookmarks": "true"}
        for key, value in self._selector.items():
            params[f"{key[:-1]}Selector"] = value
        idle = min(IDLE_SECONDS, seconds + GRACE_SECONDS / 2)
        with self._api.watch(
            self._resource, params=params, namespace=self._namespace, idle_seconds=idle, within_seconds=GRACE_SECONDS
        ) as (answer, lines):
            if answer.status == 410:
                raise GoneError
            if answer.status != 200:
                raise error_of(
                    answer.status,
                    answer.body,
                    verb="watch",
                    resource=self._resource,
                    namespace=self._namespace,
                    name=None,
                    who=self._api.who,
                )
            for kind, found in _events(lines):
                version = str(found.get("metadata", {}).get("resourceVersion") or version)
                self._event(kind, found)
                self._past()
        self._beat()
        return version

    def _event(self, kind: str, found: Object) -> None:
        if kind == "BOOKMARK":
            return
        if isinstance(self._what, Matching):
            if kind == "DELETED":
                raise _Again  # others may be left: the list says
        elif found.get("metadata", {}).get("name") != self._what:
            return  # a server, or a proxy, that knows no field selector
        self._judge(None if kind == "DELETED" else found)

    def _left(self) -> float:
        return self._end - self._api.clock.monotonic()

    def _past(self, cause: BaseException | None = None) -> None:
        if self._left() > 0:
            return
        what = f"with {self._what.labels}" if isinstance(self._what, Matching) else self._what
        seen = "there is none" if self._last is None else describe(self._last)
        if self._gone and self._last is not None:
            seen = f"there is none any more; when it was last seen: {seen}"
        said = (
            f"{self._resource.kind} {what} in namespace {self._namespace} is not ready after {self._timeout_seconds:g} s: {seen}"
        )
        if cause is not None:
            said += f"; {cause}"
        warning = "" if cause is not None or self._last is None else self._warning(self._last)
        raise TimedOutError(said + (f"; last warning: {warning}" if warning else "")) from cause

    def _warning(self, found: Object) -> str:
        """The text of the newest Warning about it; nothing where events may not be read: it is a help, not an answer."""
        about = found["metadata"]
        fields = f"involvedObject.kind={self._resource.kind},involvedObject.name={about.get('name')},type=Warning"
        try:
            events = self._api.list_at(EVENTS, namespace=self._namespace, fields=fields, within_seconds=2.0).items
        except ClipperError:
            return ""
        newest = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default=None)
        return str(newest.get("message", "")) if newest else ""


def describe(found: Object) -> str:
    """Its state in one line: phase, error, conditions, being deleted."""
    status = found.get("status") or {}
    said = [str(status["phase"])] if "phase" in status else []
    if "readyToUse" in status:
        said.append("ready to use" if status["readyToUse"] else "not ready to use")
    if message := (status.get("error") or {}).get("message"):
        said.append(str(message))
    for condition in status.get("conditions") or ():
        told = ": ".join(str(condition[key]) for key in ("reason", "message") if condition.get(key))
        is_so = f"{condition.get('type')}={condition.get('status')}"
        said.append(f"{is_so} ({told})" if told else is_so)
    if found.get("metadata", {}).get("deletionTimestamp"):
        said.append("being deleted")
    return ", ".join(said) or "nothing said yet"


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Object]]:
    for line in lines:
        if not line:
            continue
        try:
            event = json.loads(line)
            kind, found = event["type"], event["object"]
        except (ValueError, KeyError, TypeError):
            raise _Again from None  # a line that was cut
        if kind == "ERROR":
            # 410 inside a 200 (recorded), or anything else that ends it: a list begins anew, and says what is wrong
            raise _Again
        yield str(kind), found
