"""From the URL of a repository to a store that retries."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from clipper_backup.clock import Clock
from clipper_backup.errors import MissingError, UsageError
from clipper_backup.store.local import LocalStore
from clipper_backup.store.protocol import Store, is_key
from clipper_backup.store.retrying import RetryingStore, nobody
from clipper_backup.store.throttling import ThrottledStore

FAULTS_VARIABLE = "CLIPPER_BACKUP_FAULTS"
"""A script of `FaultyStore`, for sweeps over real processes: below the retries, above the store."""

_EXAMPLES = (
    "a folder: file:///var/backups/clipper",
    "a bucket, perhaps with a folder in it: s3://clipper-backups/production, or gs://…, or az://…",
)
_BUCKETS = {
    "s3": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]"),
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
    "az": re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"),
}
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_KEY_HINTS = {
    "s3": "put keys into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "name a key file in GOOGLE_APPLICATION_CREDENTIALS",
    "az": "put the account into AZURE_STORAGE_ACCOUNT, and a key into AZURE_STORAGE_ACCOUNT_KEY",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a store is reached, where that is not the usual way. Each is a setting, which says what it means."""

    azure_account: str | None = None
    s3_addressing: str = "auto"
    s3_bulk_delete: bool = True
    conditional_create: bool = True
    ca_file: Path | None = None
    unsafe_http: bool = False
    max_bytes_per_second: int | None = None


_USUAL = Options()


def open_store(
    url: str,
    *,
    endpoint: str | None,
    timeout_seconds: int,
    retry_seconds: int,
    clock: Clock,
    environment: Mapping[str, str],
    options: Options = _USUAL,
    tell: Callable[[str], None] = nobody,
) -> Store:
    """The store at *url*; nothing is asked of it yet.

    *endpoint* is the URL of another server than the provider's own: S3-compatible, an emulator, a private endpoint.
    Static credentials come from *environment* (see `credentials.py`); without them the identity of the pod or the machine
    is asked for. *tell* is given a line about each call that is tried for long. UsageError for a URL or endpoint that makes
    no sense or would send backups unencrypted, AccessError for credentials that are not of their form.
    """
    parts = _split(url)
    if parts.scheme == "file":
        store: Store = _open_local(parts)
    elif parts.scheme in _BUCKETS:
        store = _open_bucket(
            parts,
            endpoint=endpoint,
            timeout_seconds=timeout_seconds,
            retry_seconds=retry_seconds,
            environment=environment,
            options=options,
        )
    else:
        raise UsageError(f"no store has such a URL: {_shown(parts)}", hints=_EXAMPLES)
    if script := environment.get(FAULTS_VARIABLE):
        from clipper_backup.store.faulty import FaultyStore  # noqa: PLC0415 # only tests pay for it

        store = FaultyStore(store, script, clock)
    rng = random.Random()  # noqa: S311 # jitter, no secret
    if not store.capabilities.conditional_create:
        from clipper_backup.store.claiming import ClaimingStore  # noqa: PLC0415 # few servers need it

        store = ClaimingStore(store, clock, rng)
    if options.max_bytes_per_second is not None:
        store = ThrottledStore(store, options.max_bytes_per_second, clock)
    return RetryingStore(store, retry_seconds=retry_seconds, clock=clock, rng=rng, tell=tell)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port if parts.scheme != "file" else None
    except ValueError:
        raise UsageError("the URL of the store cannot be read", hints=_EXAMPLES) from None
    if "@" in parts.netloc:
        raise UsageError(
            f"the URL of the store holds a name or password: {_shown(parts)}",
            hints=[_KEY_HINTS.get(parts.scheme, _KEY_HINTS["s3"])],
        )
    if parts.query or parts.fragment or (parts.scheme in _BUCKETS and port is not None):
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


def _open_bucket(
    parts: SplitResult,
    *,
    endpoint: str | None,
    timeout_seconds: int,
    retry_seconds: int,
    environment: Mapping[str, str],
    options: Options,
) -> Store:
    # Imported here: it costs 25 ms, which an archive command with a local store must not pay.
    from clipper_backup.store import credentials, remote_open  # noqa: PLC0415 # see above

    bucket, folder = parts.netloc, parts.path.strip("/")
    if not _BUCKETS[parts.scheme].fullmatch(bucket) or (folder and not is_key(folder)):
        raise UsageError(f"not a bucket with a folder: {_shown(parts)}", hints=_EXAMPLES)
    if endpoint is not None:
        _check_endpoint(endpoint, unsafe_http=options.unsafe_http)
    prefix = f"{folder}/" if folder else ""
    direct = is_on_this_machine(endpoint)
    reach = remote_open.Reach(
        endpoint=endpoint.rstrip("/") if endpoint else None,
        timeout_seconds=timeout_seconds,
        retry_seconds=retry_seconds,
        virtual_host=by_virtual_host(options.s3_addressing, endpoint),
        bulk_delete=options.s3_bulk_delete,
        conditional_create=options.conditional_create,
        authorities=_authorities(options.ca_file),
        direct=direct,
        proxied=not direct and any(environment.get(name) for name in _PROXY_VARIABLES),
    )
    if parts.scheme == "gs":
        return remote_open.open_gcs(bucket, prefix, reach, credentials=credentials.google_credentials(environment))
    if parts.scheme == "az":
        account = _account(options.azure_account)
        found = credentials.azure_credentials(environment)
        return remote_open.open_azure(bucket, prefix, reach, account=account, credentials=found)
    region = credentials.aws_region(environment)
    return remote_open.open_s3(bucket, prefix, reach, credentials=credentials.aws_credentials(environment), region=region)


def by_virtual_host(addressing: str, endpoint: str | None) -> bool:
    """Whether a bucket's name goes before the host, by S3_ADDRESSING_STYLE."""
    return addressing == "virtual" or (addressing == "auto" and endpoint is None)


def _account(name: str | None) -> str:
    if name is not None and _ACCOUNT.fullmatch(name):
        return name
    raise UsageError(
        "AZURE_STORAGE_ACCOUNT is not set" if name is None else f"AZURE_STORAGE_ACCOUNT is no storage account: {name}",
        hints=["it is the name of the storage account: 3 to 24 small letters and digits"],
    )


def _authorities(ca_file: Path | None) -> bytes | None:
    if ca_file is None:
        return None
    try:
        found = ca_file.read_bytes()
    except OSError as error:
        raise MissingError(f"cannot read {ca_file}: {error.strerror}", hints=["STORE_CA_FILE names it"]) from error
    if b"-----BEGIN CERTIFICATE-----" not in found:
        raise UsageError(f"no certificate in {ca_file}", hints=["STORE_CA_FILE names a file with certificates in PEM"])
    return found


def _check_endpoint(endpoint: str, *, unsafe_http: bool) -> None:
    example = ["an endpoint looks like https://s3.example.com"]
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError("the endpoint of the store cannot be read", hints=example) from None
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"not an endpoint: {_shown(parts)}", hints=example)
    if parts.scheme == "http" and not is_on_this_machine(endpoint) and not unsafe_http:
        raise UsageError(
            f"{_shown(parts)} would send backups unencrypted",
            hints=[
                "use an https:// endpoint; STORE_CA_FILE names a private certificate authority",
                "--unsafe-http allows it: whoever can listen on the way reads the backups, and can change them",
            ],
        )


def is_on_this_machine(endpoint: str | None) -> bool:
    """Whether what is sent there stays here, so that it needs no TLS; a proxy is never used then, it may be anywhere."""
    host = endpoint and urlsplit(endpoint).hostname
    if not host or host == "localhost":
        return bool(host)
    from ipaddress import ip_address  # noqa: PLC0415  a store without an endpoint starts faster without

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
