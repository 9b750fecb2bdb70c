"""What Azure Blob Storage says of a container, through azure-storage-blob and azure-identity (the extra `azure`). It only reads.

It asks where blobs are read and written, as the store does. Azure keeps rules and most switches elsewhere, in its management API,
for which a backup's identity has no role: those are Unread, with the command that shows them.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from clipper_backup.buckets.facts import BucketFacts, Known, Unread, Way, extra_missing
from clipper_backup.buckets.trust import trusted

T = TypeVar("T")
Ask = Callable[[Callable[[], T], str, str], "T | Unread"]

_STRANGERS = {
    "container": "everybody lists and reads it",
    "blob": "everybody reads what he knows the name of",
}
_NOT_ALLOWED = frozenset({"AuthorizationFailure", "AuthorizationPermissionMismatch", "InsufficientAccountPermissions"})


def read_azure(container: str, way: Way, *, account: str, written: str) -> BucketFacts:
    """Ask for the container and for the blob *written*, which the store has just put there: it tells what new blobs get.

    What is refused is Unread and names the action to be allowed. Never as nobody. ExtraMissingError without the SDK.
    """
    try:
        from azure.storage.blob import BlobServiceClient  # noqa: PLC0415  an extra: only here, and only when it is asked for
    except ImportError as error:
        raise extra_missing("azure-storage-blob", "azure") from error
    ask = _asker()
    of_account = f"az storage account show --name {account} --query"
    of_service = f"az storage account blob-service-properties show --account-name {account} --query"
    url = way.endpoint or f"https://{account}.blob.core.windows.net"
    with ExitStack() as open_:
        authorities = open_.enter_context(trusted(way.ca_file))
        identity = _identity(way.credentials, account, way, authorities)
        if hasattr(identity, "close"):
            open_.callback(identity.close)
        if hasattr(identity, "get_token") and url.startswith("http:"):
            untold = Unread("Azure's SDK shows tokens to https:// endpoints only, whatever UNSAFE_HTTP says")
            return BucketFacts(untold, untold, untold, untold, untold, untold)
        service = open_.enter_context(
            BlobServiceClient(
                url,
                credential=identity,
                connection_verify=True if authorities is None else authorities,
                connection_timeout=way.timeout_seconds,
                read_timeout=way.timeout_seconds,
                retry_total=0,  # it would wait for 15 s
                use_env_settings=not way.direct,
            )
        )
        client = service.get_container_client(container)
        blob: Any = ask(
            lambda: client.get_blob_client(written).get_blob_properties(),
            "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read",
            f"{of_service} isVersioningEnabled",
        )
        access: Any = ask(
            lambda: client.get_container_properties().public_access or "",
            "Microsoft.Storage/storageAccounts/blobServices/containers/read",
            f"az storage container show-permission --account-name {account} --name {container}",
        )
        kept: Any = ask(
            lambda: service.get_service_properties()["delete_retention_policy"],
            "Microsoft.Storage/storageAccounts/blobServices/read",
            f"{of_service} deleteRetentionPolicy",
        )
    return BucketFacts(
        versioning=blob if isinstance(blob, Unread) else Known(bool(blob.version_id)),
        kept_days=kept if isinstance(kept, Unread) else Known(int(kept.days or 0) if kept.enabled else 0),
        encryption=blob if isinstance(blob, Unread) else _encryption(blob, f"{of_account} encryption.keySource"),
        public=access if isinstance(access, Unread) else Known(_STRANGERS.get(str(access), str(access))),
        public_blocked=Unread("the account's management API alone tells", f"{of_account} allowBlobPublicAccess"),
        rules=Unread(
            "the account's management API alone tells",
            f"az storage account management-policy show --account-name {account} --resource-group YOUR_GROUP",
        ),
    )


def _identity(credentials: Mapping[str, str], account: str, way: Way, authorities: str | None) -> Any:
    """Who the store is, in the order in which obstore looks: key, federated token, client secret, signature, managed identity."""
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential  # noqa: PLC0415  see `read_azure`
    from azure.identity import (  # noqa: PLC0415  the same
        ClientSecretCredential,
        ManagedIdentityCredential,
        WorkloadIdentityCredential,
    )

    if key := credentials.get("account_key"):
        return AzureNamedKeyCredential(account, key)
    told = {name: credentials[name] for name in ("client_id", "tenant_id") if name in credentials}
    reached: dict[str, Any] = {
        "connection_verify": True if authorities is None else authorities,
        "connection_timeout": way.timeout_seconds,
        "read_timeout": way.timeout_seconds,
        "retry_total": 0,
    }
    # Only the authority that is named is asked, not first another one about it.
    authority: dict[str, Any] = {"disable_instance_discovery": True}
    if host := credentials.get("authority_host"):
        authority["authority"] = host
    if path := credentials.get("federated_token_file"):
        return WorkloadIdentityCredential(**told, token_file_path=path, **authority, **reached)
    if secret := credentials.get("client_secret"):
        return ClientSecretCredential(**told, client_secret=secret, **authority, **reached)
    if signature := credentials.get("sas_key"):
        return AzureSasCredential(signature.removeprefix("?"))
    return ManagedIdentityCredential(client_id=credentials.get("client_id"), **reached)


def _asker() -> Ask[Any]:
    from azure.core.exceptions import AzureError, HttpResponseError  # noqa: PLC0415  see `read_azure`

    def ask(question: Callable[[], T], action: str, look: str) -> T | Unread:
        try:
            return question()
        except HttpResponseError as error:
            named = getattr(error, "error_code", None)
            code = str(getattr(named, "value", named) or error.status_code)
            if code in _NOT_ALLOWED:
                return Unread(f"this identity lacks {action}", look)
            return Unread(f"{action}: {code}", look)
        except AzureError as error:
            return Unread(f"{action}: {' '.join(error.message.split())}", look)

    return ask


def _encryption(blob: Any, look: str) -> Known[str]:
    """Azure encrypts every blob; whose key the account has is told to its managers only, but for a scope's or a request's key."""
    if not blob.server_encrypted:
        return Known("")
    if blob.encryption_scope:
        return Known(f"AES256 with the key of the scope {blob.encryption_scope}")
    return Known(f"AES256 with the account's key (whose that is: {look})")
