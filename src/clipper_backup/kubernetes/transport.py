"""Requests to the API server, through lightkube's connection: the only module that imports lightkube.

lightkube brings the kubeconfig, TLS, exec plugins, the account's token (read anew when the API refuses it) and, with httpx2, the
HTTP itself. Its own verbs are not used, because they have no preconditions for deletes, wait without end on a silent watch, and
drop what a delete answers: docs/design/decisions/0006. Importing this costs 150 ms, so it is imported by commands that need it.
"""

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import yaml
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.config.models import NameValue
from lightkube.core.exceptions import ConfigError

from clipper_backup.errors import AccessError, ApiUnavailableError, UsageError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
WRITE_SECONDS = 30.0

_EXEC_GROUP = "client.authentication.k8s.io/"


class Answer(NamedTuple):
    """What the server said; *body* is the JSON, or the text where it is said to be none."""

    status: int
    body: Any


class Transport:
    """One cluster, as one login. May be used by several threads; `close` it at the end."""

    def __init__(self, client: httpx2.Client, *, namespace: str, who: str) -> None:
        self._client = client
        self.namespace = namespace
        self.who = who
        """The login in words: of a kubeconfig's context, or the Pod's account."""

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        within_seconds: float | None = None,
    ) -> Answer:
        """Send one request once; *within_seconds* bounds all of connecting and waiting for the answer to begin.

        AccessError where the login has nothing to show or the certificate is not trusted; ApiUnavailableError without an answer.
        """
        content = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": content_type})
        with self._translated():
            answer = self._client.request(
                method, path, params=dict(params or {}), content=content, headers=headers, timeout=_timeout(within_seconds)
            )
        return Answer(answer.status_code, _said(answer))

    @contextmanager
    def stream(
        self, path: str, *, params: Mapping[str, str], idle_seconds: float, within_seconds: float | None = None
    ) -> Iterator[tuple[Answer, Iterator[str]]]:
        """Begin a GET whose answer has no end in sight: its lines as they come, and an answer for what was no 200.

        *idle_seconds* without a byte is ApiUnavailableError, as a broken connection is.
        """
        timeout = _timeout(within_seconds)
        timeout.read = idle_seconds
        request = self._client.build_request("GET", path, params=dict(params), timeout=timeout)
        with self._translated():
            answer = self._client.send(request, stream=True)
        try:
            if answer.status_code == 200:
                yield Answer(200, None), self._lines(answer)
            else:
                with self._translated():
                    answer.read()
                    said = _said(answer)
                yield Answer(answer.status_code, said), iter(())
        finally:
            answer.close()

    def _lines(self, answer: httpx2.Response) -> Iterator[str]:
        # not around what is done with them: an error of that is its own
        lines = _lines_of(answer.iter_bytes())
        while True:
            with self._translated():
                line = next(lines, None)
            if line is None:
                return
            yield line

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            if _is_certificate(error):
                raise AccessError(
                    f"the certificate of the API server {self._client.base_url} is not trusted: {_innermost(error)}",
                    hints=[f"the login is {self.who}; its kubeconfig names the authority (certificate-authority-data)"],
                ) from error
            said = str(error) or type(error).__name__
            raise ApiUnavailableError(f"the Kubernetes API at {self._client.base_url} does not answer: {said}") from error
        except (ConfigError, OSError, KeyError, ValueError) as error:
            # out of an exec plugin, its output, or the token's file: all that lightkube runs before a request is sent
            raise AccessError(
                f"no login for the Kubernetes API: {_in_words(error)}", hints=[f"the login is {self.who}"]
            ) from error


def open_transport(
    *,
    kubeconfig: Path | None = None,
    context: str | None = None,
    namespace: str | None = None,
    service_account: Path = Path(SERVICE_ACCOUNT),
) -> Transport:
    """The cluster of *kubeconfig*; without one, the Pod's own account where there is one, else KUBECONFIG, else ~/.kube/config.

    *context* is one of the kubeconfig. Nothing is asked of the cluster yet. UsageError where there is no configuration, or one
    that makes no sense.
    """
    try:
        config, who = _config(kubeconfig, context, service_account)
    except (
        ConfigError,
        OSError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        msgspec.ValidationError,
        yaml.YAMLError,
    ) as error:
        raise UsageError(
            f"no Kubernetes cluster is configured: {_in_words(error)}",
            hints=[
                "in a Pod: mount its account's token; elsewhere: --kubeconfig, KUBECONFIG or ~/.kube/config",
                "several files in KUBECONFIG: kubectl config view --flatten >one-file, and name that",
            ],
        ) from error
    timeout = _timeout(None)
    try:
        client = Client(config, ConnectionParams(timeout=timeout))
    except (ConfigError, OSError, ValueError, httpx2.InvalidURL) as error:
        raise UsageError(f"the login of {who} cannot be used: {_in_words(error)}") from error
    return Transport(client, namespace=namespace or config.namespace, who=who)


def _config(kubeconfig: Path | None, context: str | None, service_account: Path) -> tuple[SingleConfig, str]:
    if (
        kubeconfig is None
        and context is None
        and "KUBERNETES_SERVICE_HOST" in os.environ
        and (service_account / "token").exists()
    ):
        config = KubeConfig.from_service_account(service_account).get()
        who = "the account of this Pod"
    else:
        file = kubeconfig or Path(os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG).expanduser()
        config = KubeConfig.from_file(file).get(context)
        who = f"context {config.context_name} of {file}" if config is not None else str(file)
    if config is None:
        raise ConfigError("no context is chosen")
    _adapt_plugin(config)
    return config, who


def _adapt_plugin(config: SingleConfig) -> None:
    # lightkube 1.0 knows v1alpha1 and v1beta1 of the plugins' protocol, whose answer is the same in v1, and does not say
    # which one it wants. Plugins of today ask the variable; those of Google, AWS and Azure assume v1beta1 without it.
    plugin = config.user.exec if config.user else None
    if plugin is None or not plugin.apiVersion.startswith(_EXEC_GROUP):
        return
    wanted = {"apiVersion": plugin.apiVersion, "kind": "ExecCredential", "spec": {"interactive": False}}
    if plugin.apiVersion == f"{_EXEC_GROUP}v1":
        plugin.apiVersion = f"{_EXEC_GROUP}v1beta1"
    plugin.env = [*(plugin.env or []), NameValue(name="KUBERNETES_EXEC_INFO", value=json.dumps(wanted))]


def _lines_of(pieces: Iterator[bytes]) -> Iterator[str]:
    # at line feeds alone: httpx2 splits as `str.splitlines`, also within a text that has U+2028 or U+0085
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")


def _timeout(within_seconds: float | None) -> httpx2.Timeout:
    connect, answer = CONNECT_SECONDS, ANSWER_SECONDS
    if within_seconds is not None:
        # connecting is two waits, TCP and TLS
        connect, answer = min(connect, within_seconds / 4), min(answer, within_seconds / 2)
    return httpx2.Timeout(connect=connect, read=answer, write=WRITE_SECONDS, pool=CONNECT_SECONDS)


def _said(answer: httpx2.Response) -> Any:
    # by what it says it is: a container's log may well be JSON, and is a text all the same
    if answer.headers.get("Content-Type", "").partition(";")[0].strip() == "application/json":
        with suppress(ValueError):
            return json.loads(answer.content)
    return answer.content.decode(errors="replace")


def _is_certificate(error: BaseException) -> bool:
    return isinstance(_innermost(error), ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _innermost(error: BaseException) -> BaseException:
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _in_words(error: BaseException) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
