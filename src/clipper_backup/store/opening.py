"""From the URL of a repository to a store that retries."""

import random
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from clipper_backup.clock import Clock
from clipper_backup.errors import UsageError
from clipper_backup.store.local import LocalStore
from clipper_backup.store.protocol import Store, is_key
from clipper_backup.store.retrying import RetryingStore

FAULTS_VARIABLE = "CLIPPER_BACKUP_FAULTS"
"""A script of `FaultyStore`, for sweeps over real processes: below the retries, above the store."""

_EXAMPLES = ("a folder: file:///var/backups/clipper", "a bucket, perhaps with a folder in it: s3://clipper-backups/production")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")


def open_store(
    url: str,
    *,
    endpoint: str | None,
    timeout_seconds: int,
    retry_seconds: int,
    clock: Clock,
    environment: Mapping[str, str],
) -> Store:
    """The store at *url*; nothing is asked of it yet.

    *endpoint* is the URL of an S3-compatible server. S3's key and secret come from *environment* (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION); without them a web identity or the
    instance's metadata is asked. UsageError for a URL or endpoint that makes no sense or would send keys unencrypted.
    """
    parts = _split(url)
    if parts.scheme == "file":
        store: Store = _open_local(parts)
    elif parts.scheme == "s3":
        store = _open_s3(parts, endpoint, environment, timeout_seconds, retry_seconds)
    elif parts.scheme in {"gs", "az"}:
        raise UsageError(f"this version does not speak {parts.scheme}:// yet", hints=_EXAMPLES)
    else:
        raise UsageError(f"no store has such a URL: {_shown(parts)}", hints=_EXAMPLES)
    if script := environment.get(FAULTS_VARIABLE):
        from clipper_backup.store.faulty import FaultyStore  # noqa: PLC0415 # only tests pay for it

        store = FaultyStore(store, script, clock)
    return RetryingStore(store, retry_seconds=retry_seconds, clock=clock, rng=random.Random())  # noqa: S311 # jitter, no secret


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port if parts.scheme != "file" else None
    except ValueError:
        raise UsageError("the URL of the store cannot be read", hints=_EXAMPLES) from None
    if "@" in parts.netloc:
        raise UsageError(
            f"the URL of the store holds a name or password: {_shown(parts)}",
            hints=["put keys into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"],
        )
    if parts.query or parts.fragment or (parts.scheme == "s3" and port is not None):
        raise UsageError(f"the URL of the store has more than a bucket and a folder: {_shown(parts)}", hints=_EXAMPLES)
    return parts


def _shown(parts: SplitResult) -> str:
    """The URL without anything that may be a secret."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else parts.path


def _open_local(parts: SplitResult) -> LocalStore:
    if parts.netloc or not parts.path.startswith("/"):
        raise UsageError(f"a file URL needs three slashes: {_shown(parts)}", hints=_EXAMPLES)
    if parts.path == "/":
        raise UsageError("the repository cannot be the root folder itself", hints=_EXAMPLES)
    return LocalStore(Path(unquote(parts.path)))


def _open_s3(
    parts: SplitResult, endpoint: str | None, environment: Mapping[str, str], timeout_seconds: int, retry_seconds: int
) -> Store:
    # Imported here: it costs 25 ms, which an archive command with a local store must not pay.
    from clipper_backup.store.remote import open_s3  # noqa: PLC0415 # see above

    bucket, folder = parts.netloc, parts.path.strip("/")
    if not _BUCKET.fullmatch(bucket) or (folder and not is_key(folder)):
        raise UsageError(f"not a bucket with a folder: {_shown(parts)}", hints=_EXAMPLES)
    if endpoint is not None:
        _check_endpoint(endpoint)
    return open_s3(
        bucket,
        f"{folder}/" if folder else "",
        endpoint=endpoint,
        credentials=_keys(environment),
        region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None,
        timeout_seconds=timeout_seconds,
        retry_seconds=retry_seconds,
    )


def _keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Static credentials, by obstore's names; empty when there are none, UsageError for half of them."""
    names = {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    keys = {name: value for name, variable in names.items() if (value := environment.get(variable))}
    if not keys:
        return {}
    if absent := [variable for name, variable in names.items() if name not in keys]:
        raise UsageError(f"{absent[0]} is not set", hints=["set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither"])
    if token := environment.get("AWS_SESSION_TOKEN"):
        keys["session_token"] = token
    return keys


def _check_endpoint(endpoint: str) -> None:
    example = ["an endpoint looks like https://s3.example.com"]
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError("the endpoint of the store cannot be read", hints=example) from None
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"not an endpoint: {_shown(parts)}", hints=example)
    if parts.scheme == "http" and not _is_loopback(host):
        raise UsageError(
            f"{_shown(parts)} would send backups unencrypted",
            hints=["use an https:// endpoint; http:// is for this machine only"],
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
