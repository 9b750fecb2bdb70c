"""What a bucket's errors mean: the text of a foreign error in, one of ours out.

obstore tells apart little by type: a refused listing, an unreachable host and a range beyond the end are all
GenericError. What it knows stands in the text: one line with method, URL, status and the server's XML, then
`Debug source:` and a dump of the Rust error. Nothing of the dump, no signed URL and no XML but its Code and Message
gets into our messages.
"""

import re
from dataclasses import dataclass

from clipper_backup.errors import (
    AccessError,
    ClipperError,
    MissingError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from clipper_backup.store.clouds import Cloud

_TEMPORARY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_TEMPORARY_CODES = frozenset(
    {
        "RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict",
        "ServerBusy", "OperationTimedOut",
        # The answer to a completion that was sent again after it took place, or of an upload that somebody's rule removed.
        "NoSuchUpload", "InvalidBlockList",
    }
)  # fmt: skip
_ACCESS_CODES = frozenset(
    {
        "AccessDenied", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch",
        "AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch", "InvalidAuthenticationInfo",
        "InsufficientAccountPermissions", "PublicAccessNotPermitted",
    }
)  # fmt: skip
_NO_BUCKET_CODES = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
# Azure answers 409 and 412 also to what has nothing to do with "create only": a policy, somebody's lease, snapshots.
_EXISTS_CODES = frozenset({"", "PreconditionFailed", "ConditionNotMet", "BlobAlreadyExists"})
_CAUSES = (
    (re.compile(r"kind: Timeout"), "no answer in time"),
    (re.compile(r"failed to lookup address"), "its name is unknown"),
    (re.compile(r"ConnectionRefused"), "connection refused"),
    (
        re.compile(r"ConnectionReset|BrokenPipe|IncompleteMessage|IncompleteBody|UnexpectedEof|ConnectionAborted"),
        "the connection broke",
    ),
    (re.compile(r"InvalidCertificate"), "its certificate is not trusted"),
    (re.compile(r"InvalidContentType"), "it does not speak TLS"),
)
_NOT_IMPLEMENTED = (
    "a server that cannot create only where nothing is needs STORE_CONDITIONAL_CREATE=no",
    "one that cannot remove many objects at once needs S3_BULK_DELETE=no",
)
_ENDPOINT_HINTS = (
    "BACKUP_ENDPOINT is the address of the server alone: without the bucket, and not that of its console or of another service",
    "an emulator of Azure's wants the account's name behind the host",
)
BUSY_HINTS = (
    "what does the provider's status page, or the server's log, say? STORE_RETRY_SECONDS is for how long it is tried again",
)
_NEVER_MENDED = frozenset({"its certificate is not trusted", "it does not speak TLS"})


@dataclass(frozen=True, slots=True)
class Failure:
    """What the text of a foreign error says. `status` is None when no answer came."""

    status: int | None
    code: str
    said: str
    cause: str


@dataclass(frozen=True, slots=True)
class Place:
    """The names that messages speak of. `endpoint` is empty for the provider's own."""

    url: str
    bucket: str
    endpoint: str
    cloud: Cloud
    proxied: bool = False


def read_failure(text: str) -> Failure:
    """Take a foreign error's text apart."""
    line, _, dump = text.partition("Debug source:")
    found = re.search(r"status code: (\d{3})", line) or re.search(r"\(code: (\d{3})\)", line)
    code = re.search(r"<Code>([^<]+)</Code>", line) or re.search(r"\(code: ([A-Za-z]\w*)\)|\b(AADSTS\d+)", line)
    said = re.search(r"<Message>([^<\n]*)", line)
    cause = next((meaning for pattern, meaning in _CAUSES if pattern.search(dump)), "the connection failed")
    named = next((group for group in code.groups() if group), "") if code else ""
    return Failure(int(found[1]) if found else None, named, said[1].strip() if said else "", cause)


def is_beyond_end(text: str) -> bool:
    """Whether the foreign error means that an object ends before the range that was asked of it.

    HTTP has 416 for it. Azurite answers an empty object's first byte, and the byte after the last, with a range that is none.
    """
    return read_failure(text).status == 416 or "CONTENT_RANGE header" in text or "Wanted range starting at" in text


def translated(text: str, name: str, place: Place) -> ClipperError:
    """Our error for the foreign error with *text*, met while working on *name* (an object or folder, with its store)."""
    failure = read_failure(text)
    cloud = place.cloud
    answer = " ".join(part for part in (str(failure.status or ""), failure.code, failure.said) if part)
    if cloud.metadata.search(text) or cloud.tokens.search(text):
        return _without_credentials(text, failure, place)
    if failure.code in _NO_BUCKET_CODES:
        return MissingError(
            f"there is no {cloud.bucket_word} {place.bucket}" + (f" at {place.endpoint}" if place.endpoint else ""),
            hints=[f"create the {cloud.bucket_word}, or correct BACKUP_URL or BACKUP_BUCKET"],
        )
    if failure.code == "RequestTimeTooSkewed":
        return AccessError(f"the store refused {name}: {answer}", hints=["set the clock of this machine right"])
    if failure.status in {401, 403} or failure.code in _ACCESS_CODES:
        return AccessError(f"the store refused {name}: {answer}", hints=cloud.access_hints)
    if failure.status in _TEMPORARY_STATUS or failure.code in _TEMPORARY_CODES:
        return StoreUnavailableError(f"the store cannot serve {name} now: {answer}", hints=BUSY_HINTS)
    if failure.status in {409, 412} and failure.code in _EXISTS_CODES:
        # The only condition we ever set is "create only".
        return ObjectExistsError(f"there is an object {name} already")
    if failure.status == 404:
        return ObjectMissingError(f"no object {name}")
    if failure.status in {301, 307, 308} or "incorrectly configured region" in text:
        word = cloud.bucket_word
        return StoreError(f"{word} {place.bucket} is in another region or at another endpoint", hints=cloud.place_hints)
    if failure.status is not None or failure.code:
        return StoreError(f"the store refused {name}: {answer}", hints=_NOT_IMPLEMENTED if failure.status == 501 else ())
    if "HTTP error" in text:
        return _without_answer(failure, name, place)
    if "federated token file" in text:
        return AccessError(f"no credentials for {place.url}: cannot read the file that AZURE_FEDERATED_TOKEN_FILE names")
    said = " ".join(text.partition("Debug source:")[0].split())
    return StoreError(f"cannot use {name}: {said[:200] or 'unknown error'}", hints=_ENDPOINT_HINTS if place.endpoint else ())


def no_store(place: Place) -> ClipperError:
    """For a listing that is answered with 404 by what knows of no missing bucket: an empty folder would be listed as empty."""
    server = place.endpoint or "the provider's endpoint"
    return StoreError(f"what answers at {server} has no listing of {place.url} (404)", hints=_ENDPOINT_HINTS)


def no_client(text: str, place: Place) -> ClipperError:
    """For a client that could not even be made. What the foreign error says may quote a key: it is left out."""
    if "HTTP client error" in text or "certificate" in text:
        return UsageError(
            f"no connection to {place.endpoint or 'the provider'} can be made with these certificates or proxies",
            hints=["check STORE_CA_FILE, and SSL_CERT_FILE, HTTPS_PROXY and HTTP_PROXY in the environment"],
        )
    return AccessError(f"the credentials for {place.url} are not of their form", hints=place.cloud.identity_hints)


def _without_credentials(text: str, failure: Failure, place: Place) -> ClipperError:
    status = failure.status or 0
    if status >= 500 or status == 429 or (failure.status is None and not place.cloud.metadata.search(text)):
        return StoreUnavailableError(f"cannot get credentials for {place.url} now: {failure.status or failure.cause}")
    why = f": {failure.code}" if failure.code.startswith("AADSTS") else ""
    return AccessError(f"no credentials for {place.url}{why}", hints=place.cloud.identity_hints)


def _without_answer(failure: Failure, name: str, place: Place) -> ClipperError:
    server = place.endpoint or "the provider's endpoint"
    message = f"cannot reach {server} for {name}: {failure.cause}"
    if failure.cause in _NEVER_MENDED:
        return StoreError(message, hints=["correct BACKUP_ENDPOINT; STORE_CA_FILE names a private authority's certificate"])
    more = list(place.cloud.host_hints) if failure.cause == "its name is unknown" else []
    if place.proxied:
        more.append("the environment names a proxy (HTTPS_PROXY or HTTP_PROXY); NO_PROXY lists what is reached without it")
    return StoreUnavailableError(message, hints=[f"is {server} up, and may this machine connect to it?", *more])
