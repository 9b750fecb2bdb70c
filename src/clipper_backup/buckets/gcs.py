"""What Google Cloud Storage says of a bucket, through google-cloud-storage (the extra `gcs`). It only reads."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipper_backup.buckets.facts import BucketFacts, Known, LifecycleRule, Unread, Way, extra_missing
from clipper_backup.buckets.trust import trusted

if TYPE_CHECKING:
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud.storage import Bucket  # type: ignore[import-untyped]  # it has no types

T = TypeVar("T")
Ask = Callable[[Callable[[], T], str], "T | Unread"]

_ENDPOINT = "https://storage.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.full_control",)
"""A narrower one may not read who may do what; what this identity may do is decided by its roles all the same."""
_STRANGERS = {"allUsers": "everybody", "allAuthenticatedUsers": "everybody with an account"}
_OF_OLD_VERSIONS = frozenset({"daysSinceNoncurrentTime", "noncurrentTimeBefore", "numNewerVersions"})
_OF_CUSTOM_TIME = frozenset({"daysSinceCustomTime", "customTimeBefore"})
_DAY_SECONDS = 86_400


def read_gcs(bucket: str, way: Way) -> BucketFacts:
    """Ask for the bucket and who may use it; what is refused is Unread and names the permission.

    Never as nobody, whatever STORAGE_EMULATOR_HOST says. ExtraMissingError without google-cloud-storage.
    """
    try:
        from google.cloud import storage  # type: ignore[import-untyped]  # noqa: PLC0415  an extra: only here, and only when it is asked for
    except ImportError as error:
        raise extra_missing("google-cloud-storage", "gcs") from error
    ask = _asker(f"gcloud storage buckets describe gs://{bucket}")
    with trusted(way.ca_file) as authorities:
        session = ask(lambda: _session(way, authorities), "storage.buckets.get")
        if isinstance(session, Unread):
            return BucketFacts(session, session, session, session, session, session)
        with closing(session):
            # No request here concerns a project; without the name of one it would be looked for.
            options = {"api_endpoint": way.endpoint or _ENDPOINT}
            client = storage.Client(project="none", credentials=session.credentials, _http=session, client_options=options)
            found = client.bucket(bucket)
            refused = ask(lambda: found.reload(timeout=way.timeout_seconds, retry=None), "storage.buckets.get")
            if isinstance(refused, Unread):
                return BucketFacts(refused, refused, refused, refused, refused, refused)
            return BucketFacts(
                versioning=Known(bool(found.versioning_enabled)),
                kept_days=Known(int(found.soft_delete_policy.retention_duration_seconds or 0) // _DAY_SECONDS),
                encryption=Known(f"AES256 with {_key(found.default_kms_key_name)}"),
                public=_public(found, ask, way.timeout_seconds),
                public_blocked=_blocked(found, bucket),
                rules=Known(
                    tuple(read_rules(found.lifecycle_rules, str(found.storage_class), any_class=found.autoclass_enabled))
                ),
            )


def _session(way: Way, authorities: str | None) -> "AuthorizedSession":
    import requests  # noqa: PLC0415  comes with the extra
    from google.auth.transport.requests import AuthorizedSession, Request  # noqa: PLC0415  the same

    class Trusting(requests.adapters.HTTPAdapter):
        """Trusts as the store does, whatever REQUESTS_CA_BUNDLE says."""

        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            return super().send(request, *args, **options | {"verify": authorities or True})

    tokens = requests.Session()
    session = AuthorizedSession(_identity(way.credentials), auth_request=Request(tokens))  # type: ignore[no-untyped-call]  # see above
    session.trust_env = not way.direct
    for each in (session, tokens):
        each.mount("https://", Trusting())
    return session


def _identity(credentials: Mapping[str, str]) -> Any:
    """Who the store is, in the order in which obstore looks: a service account's key, a file, else gcloud's or the machine's."""
    import google.auth  # noqa: PLC0415  see `read_gcs`
    from google.oauth2 import credentials as person  # noqa: PLC0415  the same
    from google.oauth2 import service_account  # noqa: PLC0415  the same

    if key := credentials.get("service_account_key"):
        document = json.loads(key)
    elif path := credentials.get("service_account") or credentials.get("application_credentials"):
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    else:
        return google.auth.default(scopes=_SCOPES)[0]
    if document.get("type") == "authorized_user":
        return person.Credentials.from_authorized_user_info(document, scopes=_SCOPES)  # type: ignore[no-untyped-call]  # it has no types
    made = service_account.Credentials.from_service_account_info(document, scopes=_SCOPES)  # type: ignore[no-untyped-call]  # the same
    # It signs for itself, as obstore does: no third host needs to be reached.
    return made.with_always_use_jwt_access(True)


def _asker(look: str) -> Ask[Any]:
    from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound  # noqa: PLC0415  see `read_gcs`
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415  the same
    from requests.exceptions import RequestException  # noqa: PLC0415  the same

    def ask(question: Callable[[], T], permission: str) -> T | Unread:
        try:
            return question()
        except Forbidden:
            return Unread(f"this identity lacks {permission}", look)
        except NotFound:
            return Unread("there is no such bucket")
        except GoogleAPICallError as error:
            return Unread(f"{permission.removeprefix('storage.')}: {error.code} {error.message}", look)
        except (GoogleAuthError, RequestException, ValueError) as error:  # ValueError: a key file that is none
            return Unread(f"{permission.removeprefix('storage.')}: {' '.join(str(error).split())}", look)

    return ask


def _key(name: str | None) -> str:
    return f"the key {name}" if name else "keys of Google's own"


def _public(bucket: "Bucket", ask: Ask[Any], timeout_seconds: int) -> Known[str] | Unread:
    """By policy or by access list. One that opens the bucket is enough to know; that none does needs every answer."""
    configuration = bucket.iam_configuration
    if configuration.get("publicAccessPrevention") == "enforced":
        return Known("")
    permission = "storage.buckets.getIamPolicy"
    policy = ask(
        lambda: bucket.get_iam_policy(requested_policy_version=3, timeout=timeout_seconds, retry=None).bindings, permission
    )
    unread = policy if isinstance(policy, Unread) else None
    for binding in () if isinstance(policy, Unread) else policy:
        for who in _STRANGERS.keys() & set(binding.get("members", ())):
            return Known(f"its policy grants {binding.get('role')} to {_STRANGERS[who]}")
    if not configuration.uniform_bucket_level_access_enabled:
        lists = (bucket.acl, "its access list"), (bucket.default_object_acl, "the access list that new objects get")
        for entries, name in lists:
            refused = ask(lambda entries=entries: entries.reload(timeout=timeout_seconds, retry=None), permission)  # type: ignore[misc]  # bound
            if isinstance(refused, Unread):
                unread = unread or refused
                continue
            for entry in entries:
                if stranger := _STRANGERS.get(entry["entity"]):
                    return Known(f"{name} grants {entry['role']} to {stranger}")
    return unread or Known("")


def _blocked(bucket: "Bucket", name: str) -> Known[bool] | Unread:
    if bucket.iam_configuration.get("publicAccessPrevention") == "enforced":
        return Known(True)
    return Unread(
        "the bucket leaves it to the organization's policy storage.publicAccessPrevention, which it does not tell",
        f"gcloud storage buckets update gs://{name} --public-access-prevention",
    )


def read_rules(
    rules: Iterable[Mapping[str, Mapping[str, Any]]], storage_class: str, *, any_class: bool
) -> Iterator[LifecycleRule]:
    """Lifecycle rules of the JSON API, one for each prefix of each; they have numbers instead of names.

    *storage_class* is that of new objects; with *any_class* (Autoclass) objects wander. A rule for certain suffixes counts as one
    for all: of ours some may end so. Every class of Google's is read at once: none archives.
    """
    found = [dict(rule) for rule in rules]
    classes = {storage_class} | {rule["action"].get("storageClass") for rule in found}
    for number, rule in enumerate(found, start=1):
        action, condition = rule["action"].get("type"), rule["condition"]
        others = condition.get("matchesStorageClass") and not any_class and classes.isdisjoint(condition["matchesStorageClass"])
        days = int(condition.get("age", 0))
        old_days = int(condition.get("daysSinceNoncurrentTime", days))
        live, of_old = condition.get("isLive"), not _OF_OLD_VERSIONS.isdisjoint(condition)
        # Those two never remove the newest version of what was deleted long ago.
        leaves_some = "numNewerVersions" in condition or "noncurrentTimeBefore" in condition
        for prefix in condition.get("matchesPrefix") or ("",):
            yield LifecycleRule(
                name=f"no. {number}",
                prefix=prefix,
                narrowed=bool(others) or not _OF_CUSTOM_TIME.isdisjoint(condition),
                deletes_after_days=days if action == "Delete" and live is not False and not of_old else None,
                deletes_old_versions_after_days=old_days if action == "Delete" and live is not True and not leaves_some else None,
                archives_after_days=None,
                ends_uploads_after_days=days if action == "AbortIncompleteMultipartUpload" else None,
            )
