"""The ways to a bucket that are not the usual one: proxies, private authorities, addressing, servers that can do less."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import AccessError, ClipperError, MissingError, ObjectMissingError, StoreError, UsageError
from clipper_backup.store.conformance import (
    CHECKS,
    Check,
    create_refuses_a_taken_key,
    in_a_room,
    many_objects_are_all_listed,
    name_of,
    one_of_many_rivals_creates,
    removing_twice_is_no_error,
)
from clipper_backup.store.opening import Options, open_store
from clipper_backup.store.protocol import Store
from fixtures.fronts import Answer, HttpFront, Request, forward_proxy, make_authority
from fixtures.stores import S3Server

PROXY_VARIABLES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"}


def opened(server: S3Server, prefix: str, endpoint: str, options: Options = Options()) -> Store:  # noqa: B008 # frozen
    return open_store(
        f"s3://{server.bucket}/{prefix}", endpoint=endpoint, timeout_seconds=10, retry_seconds=0, clock=SystemClock(),
        environment=server.environment, options=options,
    )  # fmt: skip


# -- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def tls(s3_server: S3Server, authority: tuple[Path, Path]) -> Iterator[HttpFront]:
    """The server behind TLS, with a certificate of the private authority."""
    with HttpFront((s3_server.host, s3_server.port), tls=authority[1]) as front:
        yield front


def test_a_private_authority_is_trusted_when_it_is_named(
    s3_server: S3Server, s3_prefix: str, tls: HttpFront, authority: tuple[Path, Path]
) -> None:
    endpoint = f"https://localhost:{tls.port}"
    with pytest.raises(StoreError, match="its certificate is not trusted") as caught:
        opened(s3_server, s3_prefix, endpoint).get("k")
    assert any("STORE_CA_FILE" in hint for hint in caught.value.hints)
    assert tls.requests == []
    store = opened(s3_server, s3_prefix, endpoint, Options(ca_file=authority[0]))
    store.put("k", b"x")
    assert store.get("k") == b"x"


def test_the_name_of_the_host_is_checked_all_the_same(
    s3_server: S3Server, s3_prefix: str, tls: HttpFront, authority: tuple[Path, Path]
) -> None:
    store = opened(s3_server, s3_prefix, f"https://127.0.0.2:{tls.port}", Options(ca_file=authority[0]))
    with pytest.raises(StoreError):
        store.get("k")
    assert tls.requests == []


@pytest.mark.parametrize(("content", "error", "said"), [
    (None, MissingError, "cannot read .*ca.pem: No such file"), (b"", UsageError, "no certificate in .*ca.pem"),
    (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", UsageError, "with these certificates or proxies"),
])  # fmt: skip
def test_what_is_no_authority(
    s3_server: S3Server, tmp_path: Path, content: bytes | None, error: type[ClipperError], said: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=said) as caught:
        opened(s3_server, "x", "https://localhost:1", Options(ca_file=path))
    assert any("STORE_CA_FILE" in hint for hint in caught.value.hints)


# -- what obstore takes from the environment by itself, shown in processes of their own

GET = """
import os, sys
from pathlib import Path
from clipper_backup.clock import SystemClock
from clipper_backup.store.opening import Options, open_store
try:
    store = open_store(
        sys.argv[3], endpoint=sys.argv[1] or None, timeout_seconds=10, retry_seconds=0, clock=SystemClock(),
        environment={"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"} | dict(os.environ),
        options=Options(ca_file=Path(sys.argv[2]) if sys.argv[2] else None, azure_account="account", unsafe_http=True),
    )
    store.get("k")
except Exception as error:
    print(type(error).__name__, error, *error.hints, sep="|")
"""


def get(endpoint: str, url: str = "s3://clipper/x", /, ca_file: Path | None = None, **variables: str) -> str:
    """What a process says that gets an object of *endpoint* (empty: the provider's), with *variables* in its environment."""
    usual = {name: value for name, value in os.environ.items() if name.lower() not in PROXY_VARIABLES}
    command = [sys.executable, "-c", GET, endpoint, str(ca_file or ""), url]
    return subprocess.run(command, env=usual | variables, capture_output=True, text=True, check=True, timeout=60).stdout


def nothing(request: Request) -> Answer:
    del request
    return Answer(404)


def test_ssl_cert_file_names_an_authority_too(authority: tuple[Path, Path]) -> None:
    with HttpFront(("127.0.0.1", 1), nothing, tls=authority[1]) as front:
        said = get(f"https://localhost:{front.port}", SSL_CERT_FILE=str(authority[0]))
    assert said.startswith("ObjectMissingError|no object s3://clipper/x/k")
    assert get("https://localhost:1", SSL_CERT_FILE="/no/such/file").startswith(
        "UsageError|no connection to https://localhost:1 can be made with these certificates or proxies|check STORE_CA_FILE"
    )


def test_store_ca_file_adds_to_what_is_trusted_already(authority: tuple[Path, Path], tmp_path: Path) -> None:
    other_authority, _ = make_authority(tmp_path)
    with HttpFront(("127.0.0.1", 1), nothing, tls=authority[1]) as front:
        endpoint = f"https://localhost:{front.port}"
        assert get(endpoint, ca_file=other_authority).startswith("StoreError")
        said = get(endpoint, ca_file=other_authority, SSL_CERT_FILE=str(authority[0]))
    assert said.startswith("ObjectMissingError")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_carries_what_is_encrypted(authority: tuple[Path, Path], variable: str) -> None:
    """The host's name is resolved by the proxy, and TLS goes through it: the proxy sees the host, not the bucket."""
    with (
        HttpFront(("127.0.0.1", 1), nothing, tls=authority[1]) as front,
        forward_proxy(("127.0.0.1", front.port)) as (proxy, asked),
    ):
        said = get("https://store.test", ca_file=authority[0], **{variable: proxy})
    assert said.startswith("ObjectMissingError")
    assert asked == ["CONNECT store.test:443 HTTP/1.1"]
    assert front.requests == ["GET /clipper/x/k"]


def test_no_proxy_names_what_is_reached_without_it() -> None:
    with forward_proxy(("127.0.0.1", 1)) as (proxy, asked):
        said = get("https://store.invalid", HTTPS_PROXY=proxy, NO_PROXY="invalid,10.0.0.0/8")
    assert said.startswith("StoreUnavailableError")
    assert asked == []


def test_an_http_proxy_is_for_http_alone() -> None:
    with HttpFront(("127.0.0.1", 1), nothing) as front, forward_proxy(("127.0.0.1", front.port)) as (proxy, asked):
        get("http://store.invalid", HTTPS_PROXY=proxy)
        assert (len(front.requests), asked) == (0, [])
        get("http://store.invalid", HTTP_PROXY=proxy)
        assert asked == ["GET http://store.invalid/clipper/x/k HTTP/1.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.0.1"])
def test_no_proxy_carries_what_stays_on_this_machine(host: str) -> None:
    """http:// is let through because it does: a proxy would take it elsewhere, to be read on the way."""
    with HttpFront(("127.0.0.1", 1), nothing) as front, forward_proxy(("127.0.0.1", front.port)) as (proxy, asked):
        get(f"http://{host}:{front.port}", HTTP_PROXY=proxy, ALL_PROXY=proxy)
        assert asked == []
        assert len(front.requests) == (host != "127.8.0.1")  # where nobody listens


_ENDPOINTS = (
    "AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "GOOGLE_BASE_URL", "AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT",
)  # fmt: skip
LEFT_OVER = dict.fromkeys(_ENDPOINTS, "http://127.0.0.1:2") | {
    "AWS_S3_EXPRESS": "true", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false", "AWS_ALLOW_HTTP": "true",
    "AZURE_STORAGE_USE_EMULATOR": "true", "AZURE_USE_FABRIC_ENDPOINT": "true", "AZURE_ALLOW_HTTP": "true",
    "GOOGLE_ALLOW_HTTP": "true", "GOOGLE_SERVICE_ACCOUNT_KEY": '{"type": "service_account", "private_key": "", '
    '"private_key_id": "", "client_email": "x", "disable_oauth": true}', "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
}  # fmt: skip


@pytest.mark.parametrize(("url", "host"), [
    ("s3://clipper/x", "clipper.s3.eu-west-9.amazonaws.com"), ("gs://clipper/x", "storage.googleapis.com"),
    ("az://clipper/x", "account.blob.core.windows.net"),
])  # fmt: skip
def test_without_an_endpoint_it_is_the_provider_s_whatever_the_environment_says(url: str, host: str) -> None:
    with HttpFront(("127.0.0.1", 1), nothing) as front, forward_proxy(("127.0.0.1", front.port)) as (proxy, asked):
        get("", url, None, HTTPS_PROXY=proxy, HTTP_PROXY=proxy, AWS_REGION="eu-west-9", **LEFT_OVER)
    assert asked == [f"CONNECT {host}:443 HTTP/1.1"]


@pytest.mark.parametrize(
    ("url", "provider"), [("s3://clipper/x", "AWS"), ("gs://clipper/x", "GOOGLE"), ("az://clipper/x", "AZURE")]
)
def test_no_variable_makes_a_certificate_good_or_names_another_proxy(
    authority: tuple[Path, Path], url: str, provider: str
) -> None:
    with (
        HttpFront(("127.0.0.1", 1), nothing, tls=authority[1]) as front,
        forward_proxy(("127.0.0.1", front.port)) as (proxy, asked),
        forward_proxy(("127.0.0.1", front.port)) as (other, asked_other),
    ):
        named = {f"{provider}_PROXY_URL": other, f"{provider}_ALLOW_INVALID_CERTIFICATES": "true"}
        said = get("https://store.test", url, None, HTTPS_PROXY=proxy, **LEFT_OVER | named)
    assert "its certificate is not trusted" in said
    assert (asked, asked_other, front.requests) == (["CONNECT store.test:443 HTTP/1.1"], [], [])


def test_a_proxy_that_is_away_is_hinted_at_and_its_password_is_not_told() -> None:
    said = get("https://store.test", HTTPS_PROXY="http://somebody:pa55word@127.0.0.1:1")
    assert said.startswith("StoreUnavailableError|cannot reach https://store.test for s3://clipper/x/k: connection refused|")
    assert "the environment names a proxy" in said
    assert "pa55word" not in said


# -- addressing, and http


@pytest.mark.parametrize(("style", "host", "path"), [
    ("auto", "s3.test", "/clipper/x/k"), ("path", "s3.test", "/clipper/x/k"), ("virtual", "clipper.s3.test", "/x/k"),
])  # fmt: skip
def test_where_the_name_of_the_bucket_goes(
    monkeypatch: pytest.MonkeyPatch, s3_server: S3Server, style: str, host: str, path: str
) -> None:
    with forward_proxy(("127.0.0.1", 1)) as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        options = Options(s3_addressing=style, unsafe_http=True)
        with pytest.raises(ObjectMissingError):
            opened(s3_server, "x", "http://s3.test/", options).get("k")
    assert asked == [f"GET http://{host}{path} HTTP/1.1"]


def test_http_to_another_machine_is_refused_unless_it_was_said_to_be_all_right(s3_server: S3Server) -> None:
    with pytest.raises(UsageError, match=r"http://192\.0\.2\.1:9000 would send backups unencrypted") as caught:
        opened(s3_server, "x", "http://192.0.2.1:9000")
    assert any("--unsafe-http" in hint for hint in caught.value.hints)
    assert opened(s3_server, "x", "http://192.0.2.1:9000", Options(unsafe_http=True)).url == "s3://clipper/x"


# -- servers that can do less


def an_old_server(request: Request) -> Answer | None:
    """Knows no conditions, no checksums and no removal of many objects at once."""
    names = {name.lower() for name in request.headers}
    if "if-none-match" in names or any(name.startswith("x-amz-checksum") or name == "content-md5" for name in names):
        return Answer(501, b"<Error><Code>NotImplemented</Code><Message>A header.</Message></Error>")
    if request.method == "POST" and request.path.endswith("?delete"):
        return Answer(501, b"<Error><Code>NotImplemented</Code><Message>DeleteObjects.</Message></Error>")
    return None


@pytest.fixture
def old(s3_server: S3Server) -> Iterator[HttpFront]:
    with HttpFront((s3_server.host, s3_server.port), an_old_server) as front:
        yield front


DIFFERENT = {create_refuses_a_taken_key, one_of_many_rivals_creates, many_objects_are_all_listed, removing_twice_is_no_error}
"""What is done in other ways on such a server; the rest is drawn."""
_CASES = [check if check in DIFFERENT else pytest.param(check, marks=pytest.mark.soak(over=["check"])) for check in CHECKS]


@pytest.mark.parametrize("check", _CASES, ids=name_of)
def test_a_server_without_conditions_checksums_and_bulk_removal_conforms(
    s3_server: S3Server, s3_prefix: str, old: HttpFront, check: Check
) -> None:
    store = opened(s3_server, s3_prefix, f"http://127.0.0.1:{old.port}", Options(conditional_create=False, s3_bulk_delete=False))
    assert not store.capabilities.conditional_create
    with in_a_room(store, SystemClock(), many_objects=50) as room:
        check(room)
    assert list(store.list("")) == []


CALLS: dict[str, Callable[[Store], None]] = {
    "STORE_CONDITIONAL_CREATE=no": lambda store: store.put("k", b"", create=True),
    "S3_BULK_DELETE=no": lambda store: store.delete(["k"]),
}


@pytest.mark.parametrize("setting", CALLS)
def test_the_setting_that_such_a_server_needs_is_named(s3_server: S3Server, s3_prefix: str, old: HttpFront, setting: str) -> None:
    with pytest.raises(StoreError, match="501 NotImplemented") as caught:
        CALLS[setting](opened(s3_server, s3_prefix, f"http://127.0.0.1:{old.port}"))
    assert not isinstance(caught.value, AccessError)
    assert any(setting in hint for hint in caught.value.hints)


@pytest.mark.parametrize("check", [create_refuses_a_taken_key, one_of_many_rivals_creates], ids=name_of)
def test_a_server_that_ignores_the_condition_is_found_out_by_the_suite(s3_server: S3Server, s3_prefix: str, check: Check) -> None:
    """What `bucket check` runs: the setting is needed there, too, and then the same checks hold."""

    def ignores(request: Request) -> Answer | None:
        if request.method == "PUT" and "if-none-match" in {name.lower() for name in request.headers}:
            return Answer(200, headers={"ETag": '"ignored"'})
        return None

    with HttpFront((s3_server.host, s3_server.port), ignores) as front:
        endpoint = f"http://127.0.0.1:{front.port}"
        with pytest.raises(AssertionError), in_a_room(opened(s3_server, s3_prefix, endpoint), SystemClock()) as room:
            check(room)
        options = Options(conditional_create=False)
        with in_a_room(opened(s3_server, s3_prefix, endpoint, options), SystemClock()) as room:
            check(room)
