"""What an S3 server says of a bucket, through boto3 (the extra `s3`). It only reads."""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from clipper_backup.buckets.facts import BucketFacts, Known, LifecycleRule, Unread, Way, extra_missing
from clipper_backup.buckets.trust import trusted

_STRANGERS = {
    "http://acs.amazonaws.com/groups/global/AllUsers": "everybody",
    "http://acs.amazonaws.com/groups/global/AuthenticatedUsers": "everybody with an account",
}
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "403"})
_UNKNOWN_TO_SERVER = frozenset({"NotImplemented", "MethodNotAllowed", "UnsupportedOperation", "501", "405"})
_SLOW_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Objects in these cannot be read before they were brought back, which takes hours."""

Ask = Callable[[str, str], "Mapping[str, Any] | Unread"]


def read_s3(bucket: str, way: Way, *, region: str | None, virtual_host: bool) -> BucketFacts:
    """Ask for everything; what is refused is Unread and names the permission. ExtraMissingError without boto3.

    *virtual_host* says whether the bucket's name goes before the host instead of into the path. Without credentials boto3 looks
    where the store does: a web identity, or the machine's; never into `~/.aws`.
    """
    with trusted(way.ca_file) as authorities, closing(_client(way, region, authorities, virtual_host=virtual_host)) as client:
        ask = _asker(bucket, client, way.endpoint)
        return BucketFacts(
            versioning=_answer(
                ask("get_bucket_versioning", "s3:GetBucketVersioning"), lambda said: said.get("Status") == "Enabled"
            ),
            kept_days=Known(0),  # S3 has no soft delete
            encryption=_answer(ask("get_bucket_encryption", "s3:GetEncryptionConfiguration"), _encryption),
            public=_public(ask),
            public_blocked=_answer(ask("get_public_access_block", "s3:GetBucketPublicAccessBlock"), _all_blocked),
            rules=_answer(
                ask("get_bucket_lifecycle_configuration", "s3:GetLifecycleConfiguration"),
                lambda said: tuple(_rule(rule) for rule in said.get("Rules", ()) if rule.get("Status") == "Enabled"),
            ),
        )


def _client(way: Way, region: str | None, authorities: str | None, *, virtual_host: bool) -> Any:
    try:
        import boto3  # type: ignore[import-untyped]  # noqa: PLC0415  an extra: only here, and only when it is asked for
        from botocore.config import Config  # type: ignore[import-untyped]  # noqa: PLC0415  the same
        from botocore.session import Session  # type: ignore[import-untyped]  # noqa: PLC0415  the same
    except ImportError as error:
        raise extra_missing("boto3", "s3") from error
    config = Config(
        connect_timeout=way.timeout_seconds,
        read_timeout=way.timeout_seconds,
        retries={"total_max_attempts": 2},
        ignore_configured_endpoint_urls=True,
        proxies={} if way.direct else None,
        s3={"addressing_style": "virtual" if virtual_host else "path"},
    )
    # A session of its own, blind for `~/.aws`: no profile left over there may say who we are, or send us elsewhere.
    blind = Session({
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    })  # fmt: skip
    keys = {f"aws_{name}": value for name, value in way.credentials.items()}
    return boto3.session.Session(botocore_session=blind).client(
        "s3", endpoint_url=way.endpoint, region_name=region or "us-east-1", config=config, verify=authorities, **keys
    )


def _asker(bucket: str, client: Any, endpoint: str | None) -> Ask:
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # noqa: PLC0415  see `_client`

    elsewhere = f" --endpoint-url {endpoint}" if endpoint else ""

    def ask(question: str, permission: str) -> Mapping[str, Any] | Unread:
        """The answer, empty where nothing of the kind is configured."""
        look = f"aws s3api {question.replace('_', '-')} --bucket {bucket}{elsewhere}"
        try:
            answer: Mapping[str, Any] = getattr(client, question)(Bucket=bucket)
        except ClientError as error:
            code, status = str(error.response["Error"].get("Code")), error.response["ResponseMetadata"].get("HTTPStatusCode")
            if code in _DENIED:
                return Unread(f"this identity lacks {permission}", look)
            if code in _UNKNOWN_TO_SERVER or status in {405, 501}:
                return Unread(f"the server does not answer {permission.removeprefix('s3:')}")
            if status == 404 and code != "NoSuchBucket":
                return {}
            return Unread(f"{permission.removeprefix('s3:')}: {code}", look)
        except BotoCoreError as error:
            return Unread(f"{permission.removeprefix('s3:')}: {' '.join(str(error).split())}", look)
        return answer

    return ask


def _answer(said: Mapping[str, Any] | Unread, read: Callable[[Mapping[str, Any]], Any]) -> Any:
    return said if isinstance(said, Unread) else Known(read(said))


def _encryption(said: Mapping[str, Any]) -> str:
    rules = said.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
    default = rules[0].get("ApplyServerSideEncryptionByDefault", {}) if rules else {}
    key = default.get("KMSMasterKeyID")
    return str(default.get("SSEAlgorithm", "")) + (f" with the key {key}" if key else "")


def _all_blocked(said: Mapping[str, Any]) -> bool:
    block = said.get("PublicAccessBlockConfiguration", {})
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    return all(block.get(name) is True for name in names)


def _public(ask: Ask) -> Known[str] | Unread:
    """By policy or by access list. One of them that opens the bucket is enough to know; that none does needs both answers."""
    policy = ask("get_bucket_policy_status", "s3:GetBucketPolicyStatus")
    acl = ask("get_bucket_acl", "s3:GetBucketAcl")
    if not isinstance(policy, Unread) and policy.get("PolicyStatus", {}).get("IsPublic"):
        return Known("its policy lets everybody in")
    if not isinstance(acl, Unread):
        for grant in acl.get("Grants", ()):
            if who := _STRANGERS.get(grant.get("Grantee", {}).get("URI", "")):
                return Known(f"its access list grants {grant.get('Permission')} to {who}")
    return next((answer for answer in (policy, acl) if isinstance(answer, Unread)), Known(""))


def _rule(rule: Mapping[str, Any]) -> LifecycleRule:
    where = rule.get("Filter") or {}
    both = where.get("And") or {}
    expiration = rule.get("Expiration") or {}
    slow = [each for each in rule.get("Transitions", ()) if each.get("StorageClass") in _SLOW_CLASSES]
    return LifecycleRule(
        name=str(rule.get("ID") or "without a name"),
        prefix=str(rule.get("Prefix") or where.get("Prefix") or both.get("Prefix") or ""),
        narrowed=bool(where.get("Tag") or both.get("Tags")),
        deletes_after_days=_days(expiration),
        deletes_old_versions_after_days=(rule.get("NoncurrentVersionExpiration") or {}).get("NoncurrentDays"),
        archives_after_days=min((_days(each) or 0 for each in slow), default=None),
        ends_uploads_after_days=(rule.get("AbortIncompleteMultipartUpload") or {}).get("DaysAfterInitiation"),
    )


def _days(said: Mapping[str, Any]) -> int | None:
    """After how many days; 0 for a date, None when it says neither (it may only remove delete markers)."""
    return 0 if "Date" in said else said.get("Days")
