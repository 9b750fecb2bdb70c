"""What is read of a bucket of Google's: by their own client, from an emulator of the JSON API that was set up through it."""

import sys
from pathlib import Path

import pytest
from google.cloud.storage import Bucket  # type: ignore[import-untyped]  # it has no types

from clipper_backup.buckets.facts import BucketFacts, ExtraMissingError, Known, LifecycleRule, Unread, Way
from clipper_backup.buckets.gcs import read_gcs, read_rules
from clipper_backup.store.credentials import google_credentials
from fixtures.fronts import Answer, HttpFront, Request, make_authority
from fixtures.gcs import GcsServer

DESCRIBE = "gcloud storage buckets describe gs://"
STRANGERS = [("allUsers", "everybody"), ("allAuthenticatedUsers", "everybody with an account")]


def read(
    server: GcsServer, bucket: Bucket | str, *, who: str = "writer", endpoint: str | None = None, ca_file: Path | None = None
) -> BucketFacts:
    way = Way(
        endpoint=endpoint or server.endpoint,
        timeout_seconds=10,
        credentials=google_credentials(server.environment_of(who)),
        ca_file=ca_file,
    )
    return read_gcs(bucket if isinstance(bucket, str) else bucket.name, way)


def test_a_bucket_as_it_was_made_does_nothing_by_itself(gcs_server: GcsServer, gcs_bucket: Bucket) -> None:
    facts = read(gcs_server, gcs_bucket)
    assert (facts.versioning, facts.kept_days, facts.public, facts.rules) == (Known(False), Known(7), Known(""), Known(()))
    assert facts.encryption == Known("AES256 with keys of Google's own")
    assert isinstance(facts.public_blocked, Unread), "an organization's policy may"
    assert "storage.publicAccessPrevention" in facts.public_blocked.why


def test_versioning(gcs_server: GcsServer, gcs_bucket: Bucket) -> None:
    gcs_bucket.versioning_enabled = True
    gcs_bucket.patch()
    assert read(gcs_server, gcs_bucket).versioning == Known(True)


def test_a_key_of_ones_own_is_named(gcs_server: GcsServer, gcs_bucket: Bucket) -> None:
    gcs_bucket.default_kms_key_name = "projects/p/locations/us/keyRings/r/cryptoKeys/k"
    gcs_bucket.patch()
    key = "projects/p/locations/us/keyRings/r/cryptoKeys/k"
    assert read(gcs_server, gcs_bucket).encryption == Known(f"AES256 with the key {key}")


@pytest.mark.parametrize(("member", "who"), STRANGERS)
def test_a_policy_makes_it_public(gcs_server: GcsServer, gcs_bucket: Bucket, member: str, who: str) -> None:
    policy = gcs_bucket.get_iam_policy(requested_policy_version=3)
    policy.bindings = [{"role": "roles/storage.objectViewer", "members": {"user:somebody@clipper.example", member}}]
    gcs_bucket.set_iam_policy(policy)
    assert read(gcs_server, gcs_bucket).public == Known(f"its policy grants roles/storage.objectViewer to {who}")
    assert read(gcs_server, gcs_bucket, who="looker").public == Unread(
        "this identity lacks storage.buckets.getIamPolicy", DESCRIBE + str(gcs_bucket.name)
    )


@pytest.mark.parametrize(("member", "who"), STRANGERS)
def test_access_lists_make_it_public(gcs_server: GcsServer, gcs_bucket: Bucket, member: str, who: str) -> None:
    set_lists(gcs_bucket, defaultObjectAcl=[{"entity": member, "role": "READER"}])
    assert read(gcs_server, gcs_bucket).public == Known(f"the access list that new objects get grants READER to {who}")
    set_lists(gcs_bucket, acl=[{"entity": "user-a@clipper.example", "role": "OWNER"}, {"entity": member, "role": "READER"}])
    assert read(gcs_server, gcs_bucket).public == Known(f"its access list grants READER to {who}")
    set_lists(gcs_bucket, iamConfiguration={"uniformBucketLevelAccess": {"enabled": True}})
    assert read(gcs_server, gcs_bucket).public == Known(""), "then lists do not count"


def test_public_access_prevention_ends_it_whatever_lists_say(gcs_server: GcsServer, gcs_bucket: Bucket) -> None:
    set_lists(gcs_bucket, acl=[{"entity": "allUsers", "role": "READER"}])
    gcs_bucket.iam_configuration.public_access_prevention = "enforced"
    gcs_bucket.patch()
    facts = read(gcs_server, gcs_bucket, who="looker")
    assert (facts.public, facts.public_blocked) == (Known(""), Known(True))


def set_lists(bucket: Bucket, **fields: object) -> None:
    """Change what Google's client has no words for in one request."""
    bucket.client._connection.api_request(method="PATCH", path=bucket.path, data=fields)


def test_rules_are_read_whatever_their_form(gcs_server: GcsServer, gcs_bucket: Bucket) -> None:
    gcs_bucket.add_lifecycle_delete_rule(age=30, matches_prefix=["production/database/", "logs/"])
    gcs_bucket.add_lifecycle_delete_rule(days_since_noncurrent_time=7)
    gcs_bucket.add_lifecycle_abort_incomplete_multipart_upload_rule(age=3)
    gcs_bucket.add_lifecycle_set_storage_class_rule("COLDLINE", age=10)
    gcs_bucket.patch()
    assert read(gcs_server, gcs_bucket, who="looker").rules == Known((
        LifecycleRule("no. 1", "production/database/", False, 30, 30, None, None),
        LifecycleRule("no. 1", "logs/", False, 30, 30, None, None),
        LifecycleRule("no. 2", "", False, None, 7, None, None),
        LifecycleRule("no. 3", "", False, None, None, None, 3),
        LifecycleRule("no. 4", "", False, None, None, None, None),
    ))  # fmt: skip


@pytest.mark.parametrize(("condition", "days", "old_days", "narrowed"), [
    ({"age": 30}, 30, 30, False),
    ({"age": 30, "isLive": True}, 30, None, False),
    ({"age": 30, "isLive": False}, None, 30, False),
    ({"createdBefore": "2026-01-01"}, 0, 0, False),
    ({"isLive": True}, 0, None, False),
    ({"age": 0}, 0, 0, False),
    ({"numNewerVersions": 3}, None, None, False),
    ({"noncurrentTimeBefore": "2026-01-01"}, None, None, False),
    ({"age": 3, "daysSinceNoncurrentTime": 7}, None, 7, False),
    ({"age": 3, "daysSinceCustomTime": 1}, 3, 3, True),
    ({"age": 3, "customTimeBefore": "2026-01-01"}, 3, 3, True),
    ({"age": 3, "matchesStorageClass": ["STANDARD", "NEARLINE"]}, 3, 3, False),
    ({"age": 3, "matchesStorageClass": ["NEARLINE"]}, 3, 3, True),
    ({"age": 3, "matchesStorageClass": ["COLDLINE"]}, 3, 3, False),
    ({"age": 3, "matchesSuffix": [".log"]}, 3, 3, False),
])  # fmt: skip
def test_what_a_rule_that_deletes_does(
    condition: dict[str, object], days: int | None, old_days: int | None, narrowed: bool
) -> None:
    moves: dict[str, dict[str, object]] = {
        "action": {"type": "SetStorageClass", "storageClass": "COLDLINE"},
        "condition": {"age": 1},
    }
    rule, _ = read_rules([{"action": {"type": "Delete"}, "condition": condition}, moves], "STANDARD", any_class=False)
    assert (rule.deletes_after_days, rule.deletes_old_versions_after_days, rule.narrowed) == (days, old_days, narrowed)
    assert (rule.archives_after_days, rule.ends_uploads_after_days) == (None, None)


def test_with_autoclass_objects_are_of_any_class() -> None:
    rules: list[dict[str, dict[str, object]]] = [
        {"action": {"type": "Delete"}, "condition": {"age": 3, "matchesStorageClass": ["ARCHIVE"]}}
    ]
    assert [rule.narrowed for rule in read_rules(rules, "STANDARD", any_class=True)] == [False]


def test_soft_delete_is_counted_in_days(gcs_server: GcsServer, gcs_bucket: Bucket) -> None:
    gcs_bucket.soft_delete_policy.retention_duration_seconds = 0
    gcs_bucket.patch()
    assert read(gcs_server, gcs_bucket).kept_days == Known(0)


def test_what_is_denied_names_the_permission(gcs_server: GcsServer, gcs_bucket: Bucket) -> None:
    facts = read(gcs_server, gcs_bucket, who="reader")
    lacking = Unread("this identity lacks storage.buckets.get", DESCRIBE + str(gcs_bucket.name))
    assert facts == BucketFacts(lacking, lacking, lacking, lacking, lacking, lacking)


def test_a_key_that_is_not_known_says_nothing_of_the_bucket(gcs_server: GcsServer, gcs_bucket: Bucket) -> None:
    facts = read(gcs_server, gcs_bucket, who="stranger")
    for fact in (facts.versioning, facts.encryption, facts.public, facts.public_blocked, facts.rules):
        assert isinstance(fact, Unread)
        assert fact.why.startswith("buckets.get: 401"), "not a permission that could be given"


def test_a_bucket_that_is_not_there_is_not_one_without_rules(gcs_server: GcsServer) -> None:
    assert read(gcs_server, "clipper-nowhere").rules == Unread("there is no such bucket")


def test_a_server_that_is_away_is_said_to_be(gcs_server: GcsServer, deaf_port: str) -> None:
    facts = read(gcs_server, "clipper", endpoint=f"http://127.0.0.1:{deaf_port}")
    assert isinstance(facts.rules, Unread)
    assert "Connection refused" in facts.rules.why
    assert "PRIVATE" not in facts.rules.why


def test_a_private_authority_is_trusted_when_it_is_named(gcs_server: GcsServer, gcs_bucket: Bucket, tmp_path: Path) -> None:
    authority, host = make_authority(tmp_path)
    with HttpFront(("127.0.0.1", gcs_server.port), tls=host) as front:
        endpoint = f"https://localhost:{front.port}"
        unknown = read(gcs_server, gcs_bucket, endpoint=endpoint).versioning
        assert isinstance(unknown, Unread)
        assert "CERTIFICATE_VERIFY_FAILED" in unknown.why
        assert read(gcs_server, gcs_bucket, endpoint=endpoint, ca_file=authority).versioning == Known(False)


def test_no_variable_left_over_makes_us_nobody_or_sends_us_elsewhere(
    monkeypatch: pytest.MonkeyPatch, gcs_server: GcsServer, gcs_bucket: Bucket
) -> None:
    """Google's client takes an emulator's address for a reason to be nobody."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:2")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")
    assert read(gcs_server, gcs_bucket).versioning == Known(False)


def test_without_keys_the_machine_is_asked_who_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def google(request: Request) -> Answer:
        flavour = {"Metadata-Flavor": "Google", "Content-Type": "application/json"}
        if "/token" in request.path:
            return Answer(200, b'{"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"}', flavour)
        if request.path.startswith("/storage/v1/b/"):
            seen.append(request.headers.get("authorization", request.headers.get("Authorization", "nobody")))
            return Answer(404, b"{}", flavour)
        if request.path.endswith("/universe-domain"):
            return Answer(404, b"", flavour)
        return Answer(200, b'{"email": "machine@clipper.example", "scopes": []}', flavour)

    seen: list[str] = []
    with HttpFront(("127.0.0.1", 1), google) as front:
        monkeypatch.setenv("HOME", str(tmp_path))
        for variable in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
            monkeypatch.setenv(variable, f"127.0.0.1:{front.port}")
        way = Way(endpoint=f"http://127.0.0.1:{front.port}", timeout_seconds=10, credentials={})
        assert read_gcs("clipper", way).rules == Unread("there is no such bucket")
    assert seen == ["Bearer a-token"]


def test_without_the_extra_it_says_which(gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr("google.cloud.storage")
    with pytest.raises(ExtraMissingError, match="google-cloud-storage is not installed") as caught:
        read(gcs_server, "clipper")
    assert caught.value.hints == ("pip install 'clipper-backup[gcs]'",)
