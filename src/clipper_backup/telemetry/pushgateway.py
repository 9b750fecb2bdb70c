"""Handing metrics to a Prometheus Pushgateway.

Each job has one group, and each report is a POST: it replaces the metrics it names, with all their series, and leaves
the others of the group. So the time of the last good dump survives failed runs, and a database that is dumped no longer
disappears with the next good one.

Importing this module takes 70 ms (HTTP client, prometheus_client): import it where something is pushed.
"""

import base64
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, quote, unquote, urlsplit

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Gauge, generate_latest

from clipper_backup.errors import TelemetryError, UsageError
from clipper_backup.telemetry.metrics import Metric, Sample
from clipper_backup.values import Secret

PUSH_TIMEOUT_SECONDS = 10.0
"""A Pushgateway in the same cluster answers within milliseconds; a job should not wait long for one that does not."""

_ANSWER_LIMIT_BYTES = 64 << 10
_SHOWN_BYTES = 2000
_NO_PUSHGATEWAY = "is PROMETHEUS_PUSHGATEWAY the address of a Pushgateway, and not of Prometheus itself?"
_UNREACHABLE = (
    "the job's own work is not affected; its metrics are missing until the next run",
    "check PROMETHEUS_PUSHGATEWAY, the Pushgateway's Service and Pod, and network policies",
)


def render(samples: Iterable[Sample]) -> bytes:
    """*samples* in Prometheus' text format."""
    registry = CollectorRegistry()
    gauges: dict[Metric, Gauge] = {}
    for sample in samples:
        metric = sample.metric
        if metric not in gauges:
            gauges[metric] = Gauge(metric.name, metric.help, metric.labels, registry=registry)
        series = gauges[metric].labels(*sample.labels) if metric.labels else gauges[metric]
        series.set(sample.value)
    return generate_latest(registry)


@dataclass(frozen=True, slots=True)
class Pushgateway:
    """A Pushgateway. `url` is without user name and password, for people to read."""

    url: str
    login: Secret | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `http[s]://[user:password@]host[:port][/prefix]`; UsageError, which never repeats it, for anything else.

        Special characters of user name and password are percent-encoded.
        """
        parts = _split(url)
        host = parts.netloc.rpartition("@")[2]
        login = None
        if parts.username is not None:
            login = Secret(f"{unquote(parts.username)}:{unquote(parts.password or '')}")
        return cls(f"{parts.scheme}://{host}{parts.path.rstrip('/')}", login)

    def push(self, job: str, samples: Iterable[Sample], *, timeout_seconds: float = PUSH_TIMEOUT_SECONDS) -> None:
        """Report *samples* as *job*'s; TelemetryError when they were not taken.

        The proxies of the environment are used (http_proxy, https_proxy, no_proxy). *timeout_seconds* bounds each
        network operation. Never tried again here: the next run reports anew.
        """
        self._ask(f"metrics/job/{quote(job, safe='')}", render(samples), timeout_seconds)

    def version(self, *, timeout_seconds: float = PUSH_TIMEOUT_SECONDS) -> str:
        """The version it says it has; TelemetryError when it does not answer, or is no Pushgateway. Nothing is reported."""
        answer = self._ask("api/v1/status", None, timeout_seconds)
        try:
            return str(json.loads(answer)["data"]["build_information"]["version"])
        except (ValueError, TypeError, KeyError) as error:
            raise TelemetryError(f"what answers at {self.url} is no Pushgateway", hints=[_NO_PUSHGATEWAY]) from error

    def _ask(self, path: str, body: bytes | None, timeout_seconds: float) -> bytes:
        """The answer to a POST of *body*, or to a GET without one."""
        headers = {} if body is None else {"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
        if self.login is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(self.login.reveal().encode()).decode()
        request = urllib.request.Request(  # noqa: S310 — `parse` admits http and https only
            f"{self.url}/{path}", data=body, headers=headers, method="GET" if body is None else "POST"
        )
        try:
            with urllib.request.build_opener(_RefuseRedirects).open(request, timeout=timeout_seconds) as answer:
                return bytes(answer.read(_ANSWER_LIMIT_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(self.url, error) from error
        except urllib.error.URLError as error:
            raise TelemetryError(f"cannot reach the Pushgateway {self.url}: {error.reason}", hints=_UNREACHABLE) from error
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise TelemetryError(f"no answer from the Pushgateway {self.url}: {said}", hints=_UNREACHABLE) from error


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """urllib follows a redirected POST with a GET, which the target may well answer with 200: nothing would be pushed."""

    def redirect_request(self, *_: object) -> None:
        return None


def _refused(url: str, error: urllib.error.HTTPError) -> TelemetryError:
    message = f"the Pushgateway {url} answered {error.code}"
    if error.code in {401, 403}:
        hint = "put its login into PROMETHEUS_PUSHGATEWAY: https://user:password@host"
    elif 300 <= error.code < 400:
        hint = "redirects are not followed: set PROMETHEUS_PUSHGATEWAY to where it is now"
    else:
        try:
            said = error.read(_SHOWN_BYTES).decode(errors="replace").strip().partition("\n")[0]
        except (OSError, http.client.HTTPException):
            said = ""
        message += f": {said}" if said else f" ({error.reason})"
        hint = _NO_PUSHGATEWAY
    return TelemetryError(message, hints=[hint])


def _split(url: str) -> SplitResult:
    """The parts of a usable URL. Messages say what is wrong with it without showing it: it may hold a password."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 — reading it is how urllib checks it
    except ValueError:
        raise _bad("its host or port is malformed") from None
    if parts.scheme not in {"http", "https"}:
        raise _bad("it must begin with http:// or https://")
    if not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
        raise _bad("it names no host, or has a space in it")
    if parts.query or parts.fragment:
        raise _bad("it must not contain ? or #")
    return parts


def _bad(reason: str) -> UsageError:
    return UsageError(
        f"the URL of the Pushgateway is bad: {reason}",
        hints=[
            "PROMETHEUS_PUSHGATEWAY looks like http://prometheus-pushgateway.clipper-monitoring:9091",
            "special characters in its user name or password are percent-encoded, as %23 for #",
        ],
    )
