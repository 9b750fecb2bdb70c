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
)

_TEMPORARY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_TEMPORARY_CODES = frozenset(
    {
        "RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict",
        # The answer to a completion that was sent again after it took place, or of an upload that somebody's rule removed.
        "NoSuchUpload",
    }
)  # fmt: skip
_ACCESS_CODES = frozenset(
    {"AccessDenied", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
)
# Where AWS's machines and pods ask for their credentials (AWS_METADATA_ENDPOINT moves it); elsewhere nobody answers there.
_METADATA = re.compile(r"//(169\.254\.\d+\.\d+|\[?fd00:ec2::|[^/]+/latest/(api/token|meta-data/))")
_TOKEN_SERVICE = re.compile(r"//sts\.|AssumeRoleWithWebIdentity")
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


def read_failure(text: str) -> Failure:
    """Take a foreign error's text apart."""
    line, _, dump = text.partition("Debug source:")
    status = re.search(r"status code: (\d{3})", line)
    code = re.search(r"<Code>([^<]*)</Code>", line) or re.search(r"\(code: (\w+)\)", line)
    said = re.search(r"<Message>([^<]*)</Message>", line)
    cause = next((meaning for pattern, meaning in _CAUSES if pattern.search(dump)), "the connection failed")
    return Failure(int(status[1]) if status else None, code[1] if code else "", said[1] if said else "", cause)


def translated(text: str, name: str, place: Place) -> ClipperError:
    """Our error for the foreign error with *text*, met while working on *name* (an object or folder, with its store)."""
    failure = read_failure(text)
    answer = " ".join(part for part in (str(failure.status or ""), failure.code, failure.said) if part)
    if _METADATA.search(text) or _TOKEN_SERVICE.search(text):
        return _without_credentials(text, failure, place)
    if failure.code == "NoSuchBucket":
        return MissingError(
            f"there is no bucket {place.bucket}" + (f" at {place.endpoint}" if place.endpoint else ""),
            hints=["create the bucket, or correct BACKUP_URL or BACKUP_BUCKET"],
        )
    if failure.code == "RequestTimeTooSkewed":
        return AccessError(f"the store refused {name}: {answer}", hints=["set the clock of this machine right"])
    if failure.status in {401, 403} or failure.code in _ACCESS_CODES:
        return AccessError(
            f"the store refused {name}: {answer}",
            hints=["check the key and secret (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), and what they may do in this bucket"],
        )
    if failure.status in _TEMPORARY_STATUS or failure.code in _TEMPORARY_CODES:
        return StoreUnavailableError(f"the store cannot serve {name} now: {answer}")
    if failure.status in {409, 412}:
        # The only condition we ever set is "create only".
        return ObjectExistsError(f"there is an object {name} already")
    if failure.status == 404:
        return ObjectMissingError(f"no object {name}")
    if failure.status in {301, 307, 308} or "incorrectly configured region" in text:
        return StoreError(
            f"bucket {place.bucket} is in another region or at another endpoint",
            hints=["set AWS_REGION to the bucket's region, or correct BACKUP_ENDPOINT"],
        )
    if failure.status is not None or failure.code:
        return StoreError(f"the store refused {name}: {answer}")
    if "HTTP error" in text:
        return _without_answer(failure, name, place)
    said = " ".join(text.partition("Debug source:")[0].split())
    return StoreError(f"cannot use {name}: {said[:200] or 'unknown error'}")


def _without_credentials(text: str, failure: Failure, place: Place) -> ClipperError:
    if (failure.status or 0) >= 500 or (failure.status is None and not _METADATA.search(text)):
        return StoreUnavailableError(f"cannot get credentials for {place.url} now: {failure.status or failure.cause}")
    return AccessError(
        f"no credentials for {place.url}",
        hints=[
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "or give this machine or its Kubernetes service account a role that may use the bucket",
        ],
    )


def _without_answer(failure: Failure, name: str, place: Place) -> ClipperError:
    server = place.endpoint or "the provider's endpoint"
    message = f"cannot reach {server} for {name}: {failure.cause}"
    if failure.cause in _NEVER_MENDED:
        return StoreError(message, hints=["correct BACKUP_ENDPOINT; a private authority's certificate goes into SSL_CERT_FILE"])
    return StoreUnavailableError(message, hints=[f"is {server} up, and may this machine connect to it?"])
