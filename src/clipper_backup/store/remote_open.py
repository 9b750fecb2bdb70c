"""Makes the obstore clients of the three clouds, each with everything said that the environment could otherwise say otherwise.

obstore takes what is not said here from variables of the process: AWS_…, GOOGLE_…, AZURE_…. So the endpoint is always
said, and that requests are signed: no leftover variable may send a repository elsewhere, or send it as nobody. (What they say
of connections, AWS_PROXY_URL or AWS_ALLOW_INVALID_CERTIFICATES, counts for nothing as soon as any option is given here.)
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from clipper_backup.store.clouds import AZURE, GCS, S3, Cloud
from clipper_backup.store.remote import ObstoreStore
from clipper_backup.store.remote_errors import Place, no_client

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, RetryConfig, S3Config

GOOGLE_ENDPOINT = "https://storage.googleapis.com"
_REGION = "us-east-1"
"""What AWS's own programs take where none is said."""

_CONNECT_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How a bucket is reached. *endpoint* None means the provider's own.

    *virtual_host* says whether the bucket's name goes before the endpoint's host instead of into the path, *bulk_delete*
    whether many objects are removed by one request (both S3's alone). *conditional_create* is False for a server that
    ignores or refuses `If-None-Match`. *authorities* are certificates (PEM) that are trusted besides the system's.
    *direct* means that no proxy is used. *proxied* only makes messages clearer: otherwise obstore takes proxies from
    HTTPS_PROXY, HTTP_PROXY and NO_PROXY by itself.
    """

    endpoint: str | None
    timeout_seconds: int
    retry_seconds: int
    virtual_host: bool = False
    bulk_delete: bool = True
    conditional_create: bool = True
    authorities: bytes | None = None
    direct: bool = False
    proxied: bool = False


def open_s3(
    bucket: str,
    prefix: str,
    reach: Reach,
    *,
    credentials: Mapping[str, str],
    region: str | None = None,
    cloud: Cloud = S3,
) -> ObstoreStore:
    """The store below *prefix* (a folder with its `/`, or empty) of an S3 bucket.

    *credentials* are `access_key_id`, `secret_access_key` and perhaps `session_token`; empty means that obstore looks for
    a web identity or instance metadata. AWS's own endpoint is that of *region*. *cloud* is S3 or one with other limits.
    """
    region = region or _REGION
    endpoint = reach.endpoint or f"https://s3.{region}.amazonaws.com"
    if reach.virtual_host:
        endpoint = _with_bucket(endpoint, bucket)
    config: S3Config = {
        "virtual_hosted_style_request": reach.virtual_host,
        "disable_bulk_delete": not reach.bulk_delete,
        "s3_express": False,
        "skip_signature": False,
        "region": region,
        # Both names: a service-specific AWS_ENDPOINT_URL_S3 of the environment would win over the plain one.
        "endpoint": endpoint,
        "aws_endpoint_url_s3": endpoint,
    }

    def client(options: "ClientConfig", retry: "RetryConfig") -> ObjectStore:
        return S3Store(bucket, config=config, client_options=options, retry_config=retry, **credentials)  # type: ignore[arg-type] # names checked by the caller

    return _store(cloud, bucket, prefix, reach, client)


def open_gcs(bucket: str, prefix: str, reach: Reach, *, credentials: Mapping[str, str]) -> ObstoreStore:
    """The store below *prefix* of a Google Cloud Storage bucket.

    *credentials* are `application_credentials` (a file), `service_account` (a file) or `service_account_key` (JSON); empty
    means gcloud's own file in the home folder, else the metadata server of the machine or pod.
    """
    config: GCSConfig = {"base_url": reach.endpoint or GOOGLE_ENDPOINT, "skip_signature": False}

    def client(options: "ClientConfig", retry: "RetryConfig") -> ObjectStore:
        return GCSStore(bucket, config=config, client_options=options, retry_config=retry, **credentials)  # type: ignore[arg-type] # see above

    return _store(GCS, bucket, prefix, reach, client)


def open_azure(container: str, prefix: str, reach: Reach, *, account: str, credentials: Mapping[str, str]) -> ObstoreStore:
    """The store below *prefix* of a container of an Azure storage account.

    *credentials* are obstore's names of a key, a shared access signature, a federated token or a client secret; empty
    means the managed identity of the machine. An emulator's endpoint ends with the account's name.
    """
    config: AzureConfig = {
        "account_name": account,
        "endpoint": reach.endpoint or f"https://{account}.blob.core.windows.net",
        "use_emulator": False,
        "use_fabric_endpoint": False,
        "skip_signature": False,
    }

    def client(options: "ClientConfig", retry: "RetryConfig") -> ObjectStore:
        return AzureStore(container, config=config, client_options=options, retry_config=retry, **credentials)  # type: ignore[arg-type] # see above

    return _store(AZURE, container, prefix, reach, client)


def _store(
    cloud: Cloud, bucket: str, prefix: str, reach: Reach, client: "Callable[[ClientConfig, RetryConfig], ObjectStore]"
) -> ObstoreStore:
    options: ClientConfig = {
        "timeout": timedelta(seconds=reach.timeout_seconds),
        "connect_timeout": timedelta(seconds=min(reach.timeout_seconds, _CONNECT_SECONDS)),
        "allow_http": reach.endpoint is not None and reach.endpoint.startswith("http:"),
    }
    if reach.direct:
        # A client that is given a proxy looks for no other; and nothing goes through this one.
        options["proxy_url"], options["proxy_excludes"] = "http://127.0.0.1:9", "*,0.0.0.0/0,::/0"
    if reach.authorities is not None:
        options["root_certificate"] = reach.authorities
    place = Place(f"{cloud.scheme}://{bucket}/{prefix}".rstrip("/"), bucket, reach.endpoint or "", cloud, proxied=reach.proxied)
    _forget_blank_variables()
    try:
        return ObstoreStore(
            lambda retry: client(options, retry),
            prefix,
            place,
            retry_seconds=reach.retry_seconds,
            conditional_create=reach.conditional_create,
        )
    except (BaseError, ValueError) as error:
        raise no_client(str(error), place) from error


def _forget_blank_variables() -> None:
    """What is there and empty is not set, as for our own settings; to obstore it is a key of no characters."""
    for name, value in list(os.environ.items()):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) and not value.strip():
            del os.environ[name]


def _with_bucket(endpoint: str, bucket: str) -> str:
    scheme, _, rest = endpoint.partition("://")
    return f"{scheme}://{bucket}.{rest}"
