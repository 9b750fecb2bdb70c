"""Google Cloud Storage and Azure Blob Storage: who we are there, what is refused, and what no variable may change."""

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import (
    AccessError,
    ClipperError,
    MissingError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from clipper_backup.store.opening import Options, open_store
from clipper_backup.store.protocol import Store
from fixtures.azurite import AzureServer
from fixtures.gcs import GcsServer
from fixtures.store_calls import CALLS, WRITING

CloudServer = GcsServer | AzureServer
ACCOUNT = "clipperaccount"
A_KEY = base64.b64encode(b"a key").decode()


@pytest.fixture(params=["gcs", "azure"])
def cloud(request: pytest.FixtureRequest) -> CloudServer:
    server: CloudServer = request.getfixturevalue(f"{request.param}_server")
    return server


def stranger(server: CloudServer) -> dict[str, str]:
    if isinstance(server, GcsServer):
        return server.environment_of("stranger")
    return {"AZURE_STORAGE_ACCOUNT_KEY": A_KEY}


def check_message(error: ClipperError, server: CloudServer) -> None:
    said = " ".join([error.message, *error.hints])
    secrets = [server.key, A_KEY] if isinstance(server, AzureServer) else ["PRIVATE"]
    assert not any(word in said for word in (*secrets, "Debug", "source", "sig=", "RequestId", "<", "\n"))
    assert error.hints


# -- what people get wrong


@pytest.mark.parametrize("name", CALLS)
def test_a_key_that_the_store_does_not_know(cloud: CloudServer, s3_prefix: str, name: str) -> None:
    store = cloud.open(s3_prefix, environment=stranger(cloud))
    with pytest.raises(AccessError, match=f"the store refused .*{cloud.bucket}/{s3_prefix}.*: 40[13]") as caught:
        CALLS[name](store)
    check_message(caught.value, cloud)


@pytest.mark.parametrize("name", CALLS)
def test_an_identity_that_may_only_read(cloud: CloudServer, s3_prefix: str, name: str) -> None:
    cloud.open(s3_prefix).put("k", b"x")
    reader = cloud.open(s3_prefix, environment=cloud.reader_environment)
    if name not in WRITING:
        CALLS[name](reader)
        return
    with pytest.raises(AccessError, match="the store refused") as caught:
        CALLS[name](reader)
    check_message(caught.value, cloud)


@pytest.mark.parametrize("name", CALLS)
def test_a_bucket_that_does_not_exist(azure_server: AzureServer, name: str) -> None:
    store = open_store(
        "az://no-such-container/x", endpoint=azure_server.endpoint, timeout_seconds=10, retry_seconds=10, clock=SystemClock(),
        environment=azure_server.environment, options=Options(azure_account=azure_server.account),
    )  # fmt: skip
    with pytest.raises(MissingError) as caught:
        CALLS[name](store)
    assert type(caught.value) is MissingError
    assert caught.value.message == f"there is no container no-such-container at {azure_server.endpoint}"
    check_message(caught.value, azure_server)


def test_a_missing_object_in_a_bucket_that_exists_names_it(cloud: CloudServer, s3_prefix: str) -> None:
    with pytest.raises(ObjectMissingError, match=f"no object .*/{s3_prefix}/k"):
        cloud.open(s3_prefix).head("k")


def test_many_removals_go_on_past_what_is_absent(cloud: CloudServer, s3_prefix: str) -> None:
    store = cloud.open(s3_prefix)
    names = [f"{number:03d}" for number in range(300)]
    for name in names[::10]:
        store.put(name, b"x")
    store.put("kept", b"x")
    store.delete(names)
    assert [info.key for info in store.list("")] == ["kept"]


@pytest.mark.parametrize(("account", "said"), [
    (None, "AZURE_STORAGE_ACCOUNT is not set"), ("Has.Dots", "AZURE_STORAGE_ACCOUNT is no storage account: Has.Dots"),
])  # fmt: skip
def test_azure_needs_an_account(account: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        opened("az://clipper", {"AZURE_STORAGE_ACCOUNT_KEY": A_KEY}, account=account)


@pytest.mark.parametrize(("environment", "said"), [
    ({"AZURE_CLIENT_SECRET": "a-secret"}, "AZURE_CLIENT_ID is not set"),
    ({"AZURE_CLIENT_SECRET": "a-secret", "AZURE_CLIENT_ID": "x"}, "AZURE_TENANT_ID is not set"),
    ({"AZURE_FEDERATED_TOKEN_FILE": "/a/file"}, "AZURE_CLIENT_ID is not set"),
])  # fmt: skip
def test_half_an_azure_identity_is_a_usage_error(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        opened("az://clipper", environment)


def test_what_is_no_azure_key_is_not_repeated() -> None:
    with pytest.raises(AccessError, match="the credentials for az://clipper are not of their form") as caught:
        opened("az://clipper", {"AZURE_STORAGE_ACCOUNT_KEY": "a secret, in no base64"})
    assert "secret," not in " ".join([caught.value.message, *caught.value.hints])


@pytest.mark.parametrize(("content", "said"), [
    (None, "cannot read .*key.json: No such file or directory"),
    ("no JSON", "key.json is not a key file of Google Cloud"),
    ("[1]", "key.json is not a key file of Google Cloud"),
    ('{"type": "something_else"}', "key.json is not a key file of Google Cloud"),
    (b"\xff\xfe", "key.json is not a key file of Google Cloud"),
    ('{"type": "external_account"}', "key.json describes a federated identity"),
    ('{"type": "service_account", "private_key": "a-secret", "private_key_id": "x", "client_email": "y"}',
     "the credentials for gs://clipper are not of their form"),
])  # fmt: skip
@pytest.mark.parametrize("variable", ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"])
def test_what_is_no_google_key_file(tmp_path: Path, variable: str, content: str | bytes | None, said: str) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AccessError, match=said) as caught:
        opened("gs://clipper", {variable: str(path)})
    assert "a-secret" not in " ".join([caught.value.message, *caught.value.hints])
    assert caught.value.hints


def test_a_path_where_the_key_itself_belongs() -> None:
    with pytest.raises(AccessError, match="GOOGLE_SERVICE_ACCOUNT_KEY is not the JSON"):
        opened("gs://clipper", {"GOOGLE_SERVICE_ACCOUNT_KEY": "/path/of/key.json"})


# -- who we are


class Recorder(http.server.BaseHTTPRequestHandler):
    """Gives out tokens where clouds do, and answers a bucket's requests with 404; `seen` has each Authorization."""

    seen: list[str]
    token_status = 200

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for_token = "computeMetadata" in self.path or "api-version=2019" in self.path or "oauth2" in self.path
        if for_token:
            self.seen.append(f"{self.path.partition('?')[0]} {body.decode()}".strip())
            text = {"access_token": "a-token", "expires_in": 3600, "expires_on": "4102444800", "token_type": "Bearer"}
            self.send(self.token_status, json.dumps(text).encode() if self.token_status == 200 else b"")
        else:
            self.seen.append(self.headers.get("Authorization", "nobody"))
            self.send(404, b"<Error><Code>BlobNotFound</Code></Error>" if "api" in self.path else b"<Error/>")

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 # the base's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base's name
        """Nothing."""


@contextlib.contextmanager
def recorder(status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """Its address (without scheme) and what it saw."""
    requests: list[str] = []

    class Handler(Recorder):
        seen = requests
        token_status = status

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


def opened(url: str, environment: dict[str, str], *, account: str | None = ACCOUNT, address: str = "127.0.0.1:1") -> Store:
    return open_store(
        url, endpoint=f"http://{address}", timeout_seconds=5, retry_seconds=0, clock=SystemClock(), environment=environment,
        options=Options(azure_account=account),
    )  # fmt: skip


IDENTITIES: dict[str, tuple[str, Callable[[str, Path], dict[str, str]], str]] = {
    "GKE or a machine of Google": (
        "gs://clipper",
        lambda address, home: {"GCE_METADATA_HOST": address, "HOME": str(home)},
        "/computeMetadata/v1/instance/service-accounts/default/token",
    ),
    "a machine of Azure": ("az://clipper", lambda address, _: {"AZURE_MSI_ENDPOINT": f"http://{address}/token"}, "/token"),
    "AKS": (
        "az://clipper",
        lambda address, home: {
            "AZURE_CLIENT_ID": "a-client", "AZURE_TENANT_ID": "a-tenant", "AZURE_AUTHORITY_HOST": f"http://{address}",
            "AZURE_FEDERATED_TOKEN_FILE": str(token_file(home)),
        },
        "/a-tenant/oauth2/v2.0/token client_id=a-client",
    ),
    "a service principal": (
        "az://clipper",
        lambda address, _: {
            "AZURE_CLIENT_ID": "a-client", "AZURE_TENANT_ID": "a-tenant", "AZURE_AUTHORITY_HOST": f"http://{address}",
            "AZURE_CLIENT_SECRET": "a-secret",
        },
        "/a-tenant/oauth2/v2.0/token client_id=a-client&client_secret=a-secret",
    ),
}  # fmt: skip


def token_file(folder: Path) -> Path:
    path = folder / "federated-token"
    path.write_text("projected-token")
    return path


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_of_the_platform_is_asked_for_and_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    url, variables, asked = IDENTITIES[name]
    with recorder() as (address, seen):
        environment = variables(address, tmp_path)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)  # some of them are read by obstore itself
        with pytest.raises(ObjectMissingError):
            opened(url, environment, address=address).get("k")
    assert seen[0].startswith(asked)
    assert seen[1] == "Bearer a-token"


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize(("status", "error"), [(400, AccessError), (404, AccessError), (503, StoreUnavailableError)])
def test_an_identity_that_is_not_given_is_no_reason_to_be_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, status: int, error: type[ClipperError]
) -> None:
    url, variables, _ = IDENTITIES[name]
    with recorder(status) as (address, seen):
        environment = variables(address, tmp_path)
        monkeypatch.setenv("GCE_METADATA_IP", address)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(error, match="credentials for") as caught:
            opened(url, environment, address=address).get("k")
    assert "nobody" not in seen
    assert "a-secret" not in " ".join([caught.value.message, *caught.value.hints])


def test_a_token_file_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_FEDERATED_TOKEN_FILE": "/no/such/file"}
    with pytest.raises(AccessError, match="cannot read the file that AZURE_FEDERATED_TOKEN_FILE names"):
        opened("az://clipper", environment).get("k")


@pytest.mark.parametrize(("url", "blank", "begins"), [
    ("s3://clipper", ["AWS_SESSION_TOKEN"], "AWS4-HMAC-SHA256 Credential=an-id/"),
    ("az://clipper", ["AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_ID"], f"SharedKey {ACCOUNT}:"),
    ("gs://clipper", ["GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SERVICE_ACCOUNT"], "Bearer ey"),
])  # fmt: skip
@pytest.mark.parametrize("nothing", ["", " "], ids=["empty", "blank"])
def test_a_variable_that_is_there_and_empty_is_not_set(
    monkeypatch: pytest.MonkeyPatch, gcs_server: GcsServer, url: str, blank: list[str], begins: str, nothing: str
) -> None:
    """A Secret's key without a value must not stand before the identity that there is; obstore reads the process's variables."""
    keys = {"AZURE_STORAGE_ACCOUNT_KEY": A_KEY, "AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "s"}
    keys |= gcs_server.environment
    for name in blank:
        monkeypatch.setenv(name, nothing)
    with recorder() as (address, seen), pytest.raises(ObjectMissingError):
        opened(url, keys | dict.fromkeys(blank, nothing), address=address).get("k")
    assert seen[-1].startswith(begins)


def test_keys_that_are_empty_do_not_stand_before_the_identity_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"]
    for name in empty:
        monkeypatch.setenv(name, "")
    with recorder() as (address, seen):
        monkeypatch.setenv("AZURE_MSI_ENDPOINT", f"http://{address}/token")
        with pytest.raises(ObjectMissingError):
            opened("az://clipper", dict.fromkeys(empty, ""), address=address).get("k")
    assert seen[-1] == "Bearer a-token"


def test_a_server_that_is_no_store_has_no_empty_repository() -> None:
    """404 to a listing: the bucket's name in BACKUP_ENDPOINT, or the console's address."""
    keys = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "s"}
    with (
        recorder() as (address, _),
        pytest.raises(StoreError, match=f"what answers at http://{address} has no listing") as caught,
    ):
        list(opened("s3://clipper", keys, address=address).list("database/"))
    assert not isinstance(caught.value, ObjectMissingError)
    assert "BACKUP_ENDPOINT" in caught.value.hints[0]


LEFT_OVER = {
    "AZURE_SKIP_SIGNATURE": "true", "AZURE_STORAGE_USE_EMULATOR": "true", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:2",
    "AZURE_ENDPOINT": "http://127.0.0.1:2", "AZURE_STORAGE_ACCOUNT_NAME": "another", "AZURE_CONTAINER_NAME": "another",
    "GOOGLE_SKIP_SIGNATURE": "true", "GOOGLE_BASE_URL": "http://127.0.0.1:2", "GOOGLE_BUCKET": "another",
    "AWS_SKIP_SIGNATURE": "true", "AWS_ENDPOINT_URL": "http://127.0.0.1:2", "AWS_BUCKET": "another",
}  # fmt: skip


@pytest.mark.parametrize(("url", "begins"), [
    ("az://clipper", f"SharedKey {ACCOUNT}:"), ("gs://clipper", "Bearer ey"),
    ("s3://clipper", "AWS4-HMAC-SHA256 Credential=an-id/"),
])  # fmt: skip
def test_no_variable_left_over_makes_us_nobody_or_sends_us_elsewhere(
    monkeypatch: pytest.MonkeyPatch, gcs_server: GcsServer, url: str, begins: str
) -> None:
    for variable, value in LEFT_OVER.items():
        monkeypatch.setenv(variable, value)
    keys = {
        "AZURE_STORAGE_ACCOUNT_KEY": A_KEY,
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "s",
        **gcs_server.environment,
    }
    with recorder() as (address, seen), pytest.raises(ObjectMissingError):
        opened(url, keys, address=address).get("k")
    assert len(seen) == 1
    assert seen[0].startswith(begins)
