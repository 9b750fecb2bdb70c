"""From URLs to stores, and what is refused before anything is sent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import AccessError, StoreUnavailableError, UsageError
from clipper_backup.store.opening import Options, open_store
from clipper_backup.store.protocol import Store
from fixtures.stores import S3Server

KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}


def opened(url: str, *, endpoint: str | None = None, environment: dict[str, str] | None = None) -> Store:
    return open_store(
        url,
        endpoint=endpoint,
        timeout_seconds=1,
        retry_seconds=0,
        clock=SystemClock(),
        environment=KEYS if environment is None else environment,
        options=Options(azure_account="clipper"),
    )


@pytest.mark.parametrize(("url", "shown"), [
    ("file:///var/backups", "file:///var/backups"),
    ("file:///var/my%20backups/", "file:///var/my%20backups"),
    ("file:///var/my backups", "file:///var/my%20backups"),
    ("s3://clipper-backups", "s3://clipper-backups"),
    ("s3://clipper-backups/", "s3://clipper-backups"),
    ("s3://clipper.backups/production/eu-1/", "s3://clipper.backups/production/eu-1"),
    ("gs://clipper_backups/production", "gs://clipper_backups/production"),
    ("az://clipper-backups/production/", "az://clipper-backups/production"),
])  # fmt: skip
def test_a_url_is_opened_and_shown_in_one_form(url: str, shown: str) -> None:
    assert opened(url).url == shown
    assert opened(shown).url == shown


@pytest.mark.parametrize(("url", "said"), [
    ("", "no store has such a URL"),
    ("/var/backups", "no store has such a URL: /var/backups"),
    ("ftp://host/folder", "no store has such a URL: ftp://host/folder"),
    ("file://var/backups", "a file URL needs three slashes: file://var/backups"),
    ("file:backups", "a file URL needs three slashes"),
    ("file:///", "cannot be the root folder itself"),
    ("s3://", "not a bucket with a folder"),
    ("s3://x", "not a bucket with a folder: s3://x"),
    ("s3://clipper backups", "not a bucket with a folder"),
    ("s3://clipper/a//b", "not a bucket with a folder"),
    ("s3://clipper/../x", "not a bucket with a folder"),
    ("s3://clipper/clock", "not a bucket with a folder"),
    ("s3://clipper:9000/x", "more than a bucket and a folder"),
    ("s3://clipper/x?region=eu", "more than a bucket and a folder: s3://clipper/x"),
    ("file:///x#y", "more than a bucket and a folder"),
    ("s3://[", "cannot be read"),
    ("s3://clipper:port/x", "cannot be read"),
    ("gs://Clipper", "not a bucket with a folder: gs://Clipper"),
    ("gs://clipper:9000", "more than a bucket and a folder"),
    ("az://clipper.backups", "not a bucket with a folder: az://clipper.backups"),
    ("az://c", "not a bucket with a folder"),
])  # fmt: skip
def test_a_bad_url_is_a_usage_error_with_examples(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        opened(url)
    assert any("s3://clipper-backups/production" in hint for hint in caught.value.hints)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "ftp"])
def test_keys_in_the_url_are_refused_and_not_repeated(scheme: str) -> None:
    with pytest.raises(UsageError, match=f"holds a name or password: {scheme}://clipper/x") as caught:
        opened(f"{scheme}://an-id:a-secret@clipper/x")
    assert "a-secret" not in str(caught.value) + str(caught.value.hints)


@pytest.mark.parametrize("environment", [
    {"AWS_ACCESS_KEY_ID": "an-id"},
    {"AWS_SECRET_ACCESS_KEY": "a-secret"},
    {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "x"},
])  # fmt: skip
def test_half_a_key_is_a_usage_error(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"AWS_\w+ is not set"):
        opened("s3://clipper", environment=environment)


def test_a_session_token_goes_with_its_key(s3_server: S3Server) -> None:
    """SeaweedFS knows no such session; that it says so shows that the token was sent."""
    variables = s3_server.environment | {"AWS_SESSION_TOKEN": "a-token"}
    with pytest.raises(AccessError) as caught:
        opened(f"s3://{s3_server.bucket}", endpoint=s3_server.endpoint, environment=variables).get("k")
    assert "a-token" not in str(caught.value) + str(caught.value.hints)


def test_without_keys_the_machine_is_asked_for_a_role() -> None:
    code = """
from clipper_backup.clock import SystemClock
from clipper_backup.store.opening import open_store
store = open_store("s3://clipper/x", endpoint=None, timeout_seconds=2, retry_seconds=0, clock=SystemClock(), environment={})
try:
    store.get("k")
except Exception as error:
    print(type(error).__name__, error, *error.hints, sep="|")
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    child = subprocess.run(
        [sys.executable, "-c", code], env=variables | {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert child.stdout.startswith(
        "AccessError|no credentials for s3://clipper/x|set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY|"
    )


@pytest.mark.parametrize("endpoint", [
    "https://s3.example.com", "https://s3.example.com:9000/path", "http://localhost:9000", "http://127.0.0.1", "http://127.9.9.9:1",
    "http://[::1]:9000",
])  # fmt: skip
def test_an_endpoint_is_encrypted_or_on_this_machine(endpoint: str) -> None:
    assert opened("s3://clipper", endpoint=endpoint).url == "s3://clipper"


@pytest.mark.parametrize(
    "endpoint", ["http://s3.example.com", "http://10.0.0.1:9000", "http://localhost.example.com", "http://[::2]:1"]
)
def test_an_endpoint_that_would_send_backups_unencrypted_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="would send backups unencrypted") as caught:
        opened("s3://clipper", endpoint=endpoint)
    assert endpoint in caught.value.message


@pytest.mark.parametrize(
    "endpoint", ["s3.example.com", "ftp://x", "https://", "https://u:p@host", "https://h?x", "https://h:port", "https://["]
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(UsageError, match="endpoint") as caught:
        opened("s3://clipper", endpoint=endpoint)
    assert "u:p" not in caught.value.message


def test_the_endpoint_wins_over_the_environment_of_the_process(tmp_path: Path) -> None:
    """A service-specific endpoint in AWS's own variable must not send a repository elsewhere."""
    code = f"""
from clipper_backup.clock import SystemClock
from clipper_backup.store.opening import open_store
store = open_store("s3://clipper", endpoint="http://127.0.0.1:1", timeout_seconds=1, retry_seconds=0, clock=SystemClock(),
                   environment={KEYS!r})
try:
    store.get("x")
except Exception as error:
    print("127.0.0.1:1/" in str(error.__cause__), "127.0.0.1:2" in str(error.__cause__))
"""
    variables = {"AWS_ENDPOINT_URL_S3": "https://127.0.0.1:2", "AWS_ENDPOINT_URL": "https://127.0.0.1:2"}
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=True, timeout=60
    )
    assert child.stdout == "True False\n"


def test_nothing_is_asked_before_the_first_call() -> None:
    store = opened("s3://clipper", endpoint="http://127.0.0.1:1")
    with pytest.raises(StoreUnavailableError, match="connection refused") as caught:
        store.get("k")
    assert caught.value.message == "cannot reach http://127.0.0.1:1 for s3://clipper/k: connection refused"


def test_faults_of_the_environment_are_put_below_the_retries(tmp_path: Path) -> None:
    script = {"CLIPPER_BACKUP_FAULTS": "put:1:unavailable"}
    url = f"file://{tmp_path}/root"
    with pytest.raises(StoreUnavailableError, match="scripted fault"):
        opened(url, environment=script).put("k", b"")
    patient = open_store(url, endpoint=None, timeout_seconds=1, retry_seconds=30, clock=SystemClock(), environment=script)
    patient.put("k", b"")
    with pytest.raises(UsageError, match="not a fault: 'put'"):
        opened(url, environment={"CLIPPER_BACKUP_FAULTS": "put"})


def test_a_local_store_does_not_load_what_only_buckets_need() -> None:
    code = """
import sys
from clipper_backup.clock import SystemClock
from clipper_backup.store.opening import open_store
open_store("file:///tmp/x", endpoint=None, timeout_seconds=1, retry_seconds=0, clock=SystemClock(), environment={})
print(sorted({"obstore", "concurrent.futures", "clipper_backup.store.faulty"} & set(sys.modules)))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert child.stdout == "[]\n"
