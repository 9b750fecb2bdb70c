"""What is read of a bucket, on a real S3 server that was set up through boto3."""

import json
import sys

import pytest

from clipper_backup.buckets.facts import BucketFacts, ExtraMissingError, Known, LifecycleRule, Unread
from clipper_backup.buckets.s3 import read_s3
from fixtures.buckets import Bucket


@pytest.fixture(autouse=True)
def _our_keys_only(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    """boto3 finds keys in the environment, and elsewhere when there are none."""
    for name, value in bucket.server.environment.items():
        monkeypatch.setenv(name, value)


def read(bucket: Bucket, *, name: str | None = None, endpoint: str | None = None) -> BucketFacts:
    return read_s3(name or bucket.name, endpoint=endpoint or bucket.server.endpoint, environment={}, timeout_seconds=10)


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


def test_what_is_denied_names_the_permission(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.as_reader().items():
        monkeypatch.setenv(name, value)
    facts = read(bucket)
    assert facts.encryption == Unread("this identity lacks s3:GetEncryptionConfiguration")
    assert facts.public_blocked == Unread("this identity lacks s3:GetBucketPublicAccessBlock")
    assert isinstance(facts.public, Unread), "half an answer is none"
    assert facts.public.why.startswith("this identity lacks s3:GetBucket")
    assert facts.versioning == Known(False), "that one is allowed"


def test_keys_that_are_wrong_say_nothing_of_the_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    facts = read(bucket)
    for fact in (facts.versioning, facts.encryption, facts.public, facts.public_blocked, facts.rules):
        assert isinstance(fact, Unread)
        assert fact.why.endswith(": SignatureDoesNotMatch"), "not a permission that could be given"


def test_a_bucket_that_is_not_there_is_not_one_without_rules(bucket: Bucket) -> None:
    assert read(bucket, name="clipper-nowhere").rules == Unread("GetLifecycleConfiguration: NoSuchBucket")


def test_a_server_that_is_away_is_said_to_be(bucket: Bucket, deaf_port: str) -> None:
    facts = read(bucket, endpoint=f"http://127.0.0.1:{deaf_port}")
    assert isinstance(facts.rules, Unread)
    assert "Could not connect" in facts.rules.why


def test_without_the_extra_it_says_which(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ExtraMissingError, match="boto3 is not installed") as caught:
        read(bucket)
    assert caught.value.hints == ("pip install 'clipper-backup[s3]'",)
