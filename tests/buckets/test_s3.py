"""What is read of a bucket, on a real S3 server that was set up through boto3."""

import json
import sys
from pathlib import Path

import pytest

from clipper_backup.buckets.facts import BucketFacts, ExtraMissingError, Known, LifecycleRule, Unread, Way
from clipper_backup.buckets.s3 import read_s3
from clipper_backup.store.credentials import aws_credentials
from fixtures.buckets import Bucket
from fixtures.fronts import Answer, HttpFront, forward_proxy, make_authority


def read(
    bucket: Bucket,
    *,
    keys: dict[str, str] | None = None,
    name: str | None = None,
    endpoint: str | None = None,
    ca_file: Path | None = None,
    virtual_host: bool = False,
    direct: bool = False,
) -> BucketFacts:
    way = Way(
        endpoint=endpoint or bucket.server.endpoint,
        timeout_seconds=10,
        credentials=aws_credentials(bucket.server.environment if keys is None else keys),
        ca_file=ca_file,
        direct=direct,
    )
    return read_s3(name or bucket.name, way, region="us-east-1", virtual_host=virtual_host)


def test_a_bucket_as_it_was_made_does_nothing_by_itself(bucket: Bucket) -> None:
    facts = read(bucket)
    assert (facts.versioning, facts.encryption, facts.public, facts.rules) == (Known(False), Known(""), Known(""), Known(()))
    # SeaweedFS knows no block of public access: that is said, and not taken for an answer.
    assert facts.public_blocked == Unread("the server does not answer GetBucketPublicAccessBlock")


def test_versioning_is_on_only_when_it_is_enabled(bucket: Bucket) -> None:
    bucket.version("Enabled")
    assert read(bucket).versioning == Known(True)
    bucket.version("Suspended")
    assert read(bucket).versioning == Known(False)


def test_encryption_is_named(bucket: Bucket) -> None:
    bucket.encrypt()
    assert read(bucket).encryption == Known("AES256")


def test_a_key_of_ones_own_is_named(bucket: Bucket) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "arn:aws:kms:us-east-1:1:key/k"}}
    bucket.client.put_bucket_encryption(Bucket=bucket.name, ServerSideEncryptionConfiguration={"Rules": [rule]})
    assert read(bucket).encryption == Known("aws:kms with the key arn:aws:kms:us-east-1:1:key/k")


def test_a_policy_or_an_access_list_makes_it_public(bucket: Bucket) -> None:
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read")
    assert read(bucket).public == Known("its access list grants READ to everybody")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket.name}/*"}
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    assert read(bucket).public == Known("its policy lets everybody in")


def test_rules_are_read_whatever_their_form(bucket: Bucket) -> None:
    bucket.rule(
        {"Filter": {"Prefix": "production/database/"}, "Expiration": {"Days": 30}},
        {"NoncurrentVersionExpiration": {"NoncurrentDays": 7}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3}},
        {"Filter": {"And": {"Prefix": "a/", "Tags": [{"Key": "k", "Value": "v"}]}}, "Expiration": {"Days": 3}},
        {"Status": "Disabled", "Expiration": {"Days": 1}},
    )
    assert read(bucket).rules == Known((
        LifecycleRule("rule-0", "production/database/", False, 30, None, None, None),
        LifecycleRule("rule-1", "", False, None, 7, None, 3),
        LifecycleRule("rule-2", "a/", True, 3, None, None, None),
    ))  # fmt: skip


def test_what_is_denied_names_the_permission(bucket: Bucket) -> None:
    facts = read(bucket, keys=bucket.as_reader())
    where = f"--bucket {bucket.name} --endpoint-url {bucket.server.endpoint}"
    assert facts.encryption == Unread(
        "this identity lacks s3:GetEncryptionConfiguration", f"aws s3api get-bucket-encryption {where}"
    )
    assert isinstance(facts.public_blocked, Unread)
    assert facts.public_blocked.why == "this identity lacks s3:GetBucketPublicAccessBlock"
    assert isinstance(facts.public, Unread), "half an answer is none"
    assert facts.public.why.startswith("this identity lacks s3:GetBucket")
    assert facts.versioning == Known(False), "that one is allowed"


def test_keys_that_are_wrong_say_nothing_of_the_bucket(bucket: Bucket) -> None:
    facts = read(bucket, keys=bucket.server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    for fact in (facts.versioning, facts.encryption, facts.public, facts.public_blocked, facts.rules):
        assert isinstance(fact, Unread)
        assert fact.why.endswith(": SignatureDoesNotMatch"), "not a permission that could be given"


def test_a_bucket_that_is_not_there_is_not_one_without_rules(bucket: Bucket) -> None:
    rules = read(bucket, name="clipper-nowhere").rules
    assert isinstance(rules, Unread)
    assert rules.why == "GetLifecycleConfiguration: NoSuchBucket"


def test_a_server_that_is_away_is_said_to_be(bucket: Bucket, deaf_port: str) -> None:
    facts = read(bucket, endpoint=f"http://127.0.0.1:{deaf_port}")
    assert isinstance(facts.rules, Unread)
    assert "Could not connect" in facts.rules.why


def test_a_private_authority_is_trusted_when_it_is_named(bucket: Bucket, tmp_path: Path) -> None:
    authority, host = make_authority(tmp_path)
    with HttpFront((bucket.server.host, bucket.server.port), tls=host) as front:
        endpoint = f"https://localhost:{front.port}"
        unknown = read(bucket, endpoint=endpoint).versioning
        assert isinstance(unknown, Unread)
        assert "CERTIFICATE_VERIFY_FAILED" in unknown.why
        assert read(bucket, endpoint=endpoint, ca_file=authority).versioning == Known(False)


@pytest.mark.parametrize("ca_file", [True, False])
def test_what_the_system_trusts_is_trusted_too(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ca_file: bool
) -> None:
    authority, host = make_authority(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = make_authority(tmp_path / "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with HttpFront((bucket.server.host, bucket.server.port), tls=host) as front:
        facts = read(bucket, endpoint=f"https://localhost:{front.port}", ca_file=other if ca_file else None)
    assert facts.versioning == Known(False)


@pytest.mark.parametrize(("virtual_host", "host", "path"), [(True, "clipper.s3.test", "/"), (False, "s3.test", "/clipper")])
def test_where_the_name_of_the_bucket_goes(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, virtual_host: bool, host: str, path: str
) -> None:
    with forward_proxy(("127.0.0.1", 1)) as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        read(bucket, name="clipper", endpoint="http://s3.test", virtual_host=virtual_host)
    assert f"GET http://{host}{path}?versioning HTTP/1.1" in asked


def test_no_variable_left_over_sends_us_elsewhere(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(variable, bucket.server.endpoint)
    with HttpFront(("127.0.0.1", 1)) as front, forward_proxy(("127.0.0.1", front.port)) as (proxy, asked):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        way = Way(endpoint=None, timeout_seconds=10, credentials=aws_credentials(bucket.server.environment))
        read_s3(bucket.name, way, region="us-east-1", virtual_host=True)
    assert {line.split()[1] for line in asked} == {f"{bucket.name}.s3.amazonaws.com:443"}


def test_no_proxy_is_used_where_it_is_said(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert read(bucket, direct=True).versioning == Known(False)
    assert isinstance(read(bucket).versioning, Unread)


def test_what_lies_in_a_home_folder_makes_us_nobody_else(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The store does not look there: another identity would tell of what it may see, perhaps of another server."""

    def nothing(_: object) -> Answer:
        return Answer(404)

    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = an-id\naws_secret_access_key = a-secret\n")
    (tmp_path / ".aws" / "config").write_text("[default]\nendpoint_url = http://127.0.0.1:2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "left-over")
    with HttpFront(("127.0.0.1", 1), nothing) as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{metadata.port}")
        unknown = read(bucket, keys={}).versioning
    assert isinstance(unknown, Unread)
    assert unknown.why == "GetBucketVersioning: Unable to locate credentials"
    assert metadata.requests, "a machine's own identity is asked for"
    assert read(bucket).versioning == Known(False)


def test_without_the_extra_it_says_which(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ExtraMissingError, match="boto3 is not installed") as caught:
        read(bucket)
    assert caught.value.hints == ("pip install 'clipper-backup[s3]'",)
