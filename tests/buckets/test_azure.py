"""What is read of a container of Azure's: by their own SDK, from Azurite."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from azure.core.credentials import AzureNamedKeyCredential
from azure.storage.blob import BlobServiceClient, PublicAccess, RetentionPolicy

from clipper_backup.buckets.azure import read_azure
from clipper_backup.buckets.facts import BucketFacts, ExtraMissingError, Known, Unread, Way
from clipper_backup.store.credentials import azure_credentials
from fixtures.azurite import AzureServer
from fixtures.fronts import Answer, HttpFront, Request, make_authority

OF_BLOBS = "Microsoft.Storage/storageAccounts/blobServices"
_fresh = count(1)


@pytest.fixture
def container(azure_server: AzureServer) -> AzureServer:
    """A container of the test's own, with the blob `k` in it."""
    server = replace(azure_server, bucket=f"clipper-own-{next(_fresh)}")
    assert server.ask("PUT", f"/{server.bucket}", {"restype": "container"})[0] == 201
    server.open("p").put("k", b"")
    return server


@pytest.fixture
def owner(azure_server: AzureServer) -> Iterator[BlobServiceClient]:
    """Azure's own client, for the account."""
    key = AzureNamedKeyCredential(azure_server.account, azure_server.key)
    with closing(BlobServiceClient(azure_server.endpoint, credential=key)) as client:
        yield client


def read(
    server: AzureServer, *, environment: dict[str, str] | None = None, endpoint: str | None = None, ca_file: Path | None = None
) -> BucketFacts:
    way = Way(
        endpoint=endpoint or server.endpoint,
        timeout_seconds=10,
        credentials=azure_credentials(server.environment if environment is None else environment),
        ca_file=ca_file,
    )
    return read_azure(server.bucket, way, account=server.account, written="p/k")


def test_a_container_as_it_was_made(container: AzureServer) -> None:
    facts = read(container)
    account = container.account
    assert (facts.versioning, facts.public) == (Known(False), Known(""))
    assert isinstance(facts.encryption, Known)
    assert facts.encryption.value.startswith("AES256 with the account's key")
    assert facts.rules == Unread(
        "the account's management API alone tells",
        f"az storage account management-policy show --account-name {account} --resource-group YOUR_GROUP",
    )
    assert facts.public_blocked == Unread(
        "the account's management API alone tells", f"az storage account show --name {account} --query allowBlobPublicAccess"
    )


@pytest.mark.parametrize(("access", "said"), [
    (PublicAccess.CONTAINER, "everybody lists and reads it"), (PublicAccess.BLOB, "everybody reads what he knows the name of"),
])  # fmt: skip
def test_an_access_level_makes_it_public(
    container: AzureServer, owner: BlobServiceClient, access: PublicAccess, said: str
) -> None:
    owner.get_container_client(container.bucket).set_container_access_policy({}, public_access=access)
    assert read(container).public == Known(said)


def test_soft_delete_is_counted_in_days(container: AzureServer, owner: BlobServiceClient) -> None:
    owner.set_service_properties(delete_retention_policy=RetentionPolicy(enabled=True, days=7))
    assert read(container).kept_days == Known(7)
    owner.set_service_properties(delete_retention_policy=RetentionPolicy(enabled=False))
    assert read(container).kept_days == Known(0)


@pytest.mark.parametrize(("header", "versioned", "key"), [
    ({"x-ms-version-id": "2026-11-22T02:00:00.0000000Z"}, True, "AES256 with the account's key"),
    ({"x-ms-encryption-scope": "backups"}, False, "AES256 with the key of the scope backups"),
    ({"x-ms-server-encrypted": "false"}, False, ""),
])  # fmt: skip
def test_a_new_blob_tells_versioning_and_encryption(
    container: AzureServer, header: dict[str, str], versioned: bool, key: str
) -> None:
    """Azurite knows neither: the headers are as Azure documents them."""

    def adds(request: Request) -> Answer | None:
        answer = front.ask(request)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in header}
        return replace(answer, headers=kept | header)

    with HttpFront((container.host, container.port), adds) as front:
        facts = read(container, endpoint=f"http://127.0.0.1:{front.port}/{container.account}")
    assert facts.versioning == Known(versioned)
    assert isinstance(facts.encryption, Known)
    assert facts.encryption.value.startswith(key)
    assert bool(facts.encryption.value) == bool(key)


def test_what_is_denied_names_the_action_and_where_to_look(container: AzureServer) -> None:
    """A signature for the blobs of the container may not look at the container itself."""
    facts = read(container, environment=container.reader_environment)
    assert facts.versioning == Known(False), "that one is allowed"
    look = f"az storage container show-permission --account-name {container.account} --name {container.bucket}"
    assert facts.public == Unread(f"this identity lacks {OF_BLOBS}/containers/read", look)
    assert isinstance(facts.kept_days, Unread)
    assert facts.kept_days.look.endswith("--query deleteRetentionPolicy")


def test_a_key_that_is_wrong_says_nothing_of_the_container(container: AzureServer) -> None:
    facts = read(container, environment={"AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="})
    for fact in (facts.versioning, facts.kept_days, facts.encryption, facts.public):
        assert isinstance(fact, Unread)
        assert "d3Jvbmc" not in fact.why


def test_a_server_that_is_away_is_said_to_be(container: AzureServer, deaf_port: str) -> None:
    facts = read(container, endpoint=f"http://127.0.0.1:{deaf_port}/{container.account}")
    assert isinstance(facts.public, Unread)
    assert "Connection refused" in facts.public.why
    assert container.key not in facts.public.why


def test_a_private_authority_is_trusted_when_it_is_named(container: AzureServer, tmp_path: Path) -> None:
    authority, host = make_authority(tmp_path)
    with HttpFront((container.host, container.port), tls=host) as front:
        endpoint = f"https://localhost:{front.port}/{container.account}"
        unknown = read(container, endpoint=endpoint).public
        assert isinstance(unknown, Unread)
        assert "CERTIFICATE_VERIFY_FAILED" in unknown.why
        assert read(container, endpoint=endpoint, ca_file=authority).public == Known("")


def test_without_keys_the_machine_is_asked_who_it_is(
    monkeypatch: pytest.MonkeyPatch, azure_server: AzureServer, tmp_path: Path
) -> None:
    authority, host = make_authority(tmp_path)
    seen: list[str] = []

    def machine(_: Request) -> Answer:
        told = b'{"access_token": "a-token", "expires_in": "3600", "expires_on": "4102444800", "token_type": "Bearer"}'
        return Answer(200, told, {"Content-Type": "application/json"})

    def blobs(request: Request) -> Answer:
        seen.append(request.headers["Authorization"])
        return Answer(404)

    with HttpFront(("127.0.0.1", 1), machine) as metadata, HttpFront(("127.0.0.1", 1), blobs, tls=host) as front:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{metadata.port}")
        read(azure_server, environment={}, endpoint=f"https://localhost:{front.port}", ca_file=authority)
        facts = read(azure_server, environment={}, endpoint=f"http://127.0.0.1:{front.port}")
    assert set(seen) == {"Bearer a-token"}
    assert isinstance(facts.versioning, Unread)
    assert "https:// endpoints only" in facts.versioning.why


def test_a_service_principal_asks_the_authority_that_is_named_and_no_other(azure_server: AzureServer, tmp_path: Path) -> None:
    authority, host = make_authority(tmp_path)
    asked: list[str] = []

    def entra(request: Request) -> Answer:
        asked.append(request.path.partition("?")[0])
        if "openid-configuration" in request.path:
            base = f"https://localhost:{front.port}/a-tenant"
            told = {"issuer": base, "authorization_endpoint": f"{base}/a", "token_endpoint": f"{base}/oauth2/v2.0/token"}
        elif request.path.endswith("/token"):
            told = {"access_token": "a-token", "expires_in": "3600", "token_type": "Bearer"}
        else:
            assert request.headers["Authorization"] == "Bearer a-token"
            return Answer(404)
        return Answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    with HttpFront(("127.0.0.1", 1), entra, tls=host) as front:
        principal = {
            "AZURE_CLIENT_ID": "a-client", "AZURE_TENANT_ID": "a-tenant", "AZURE_CLIENT_SECRET": "a-secret",
            "AZURE_AUTHORITY_HOST": f"https://localhost:{front.port}",
        }  # fmt: skip
        facts = read(azure_server, environment=principal, endpoint=f"https://localhost:{front.port}", ca_file=authority)
    assert isinstance(facts.versioning, Unread)
    assert "a-secret" not in str(facts)
    assert any(path.endswith("/oauth2/v2.0/token") for path in asked)
    assert any(path.startswith(f"/{azure_server.bucket}") for path in asked)


def test_without_the_extra_it_says_which(azure_server: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.storage.blob", None)
    with pytest.raises(ExtraMissingError, match="azure-storage-blob is not installed") as caught:
        read(azure_server)
    assert caught.value.hints == ("pip install 'clipper-backup[azure]'",)
