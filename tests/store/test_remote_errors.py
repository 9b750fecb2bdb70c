"""What the texts of foreign errors become: obstore's form around the codes that S3 documents. test_remote.py meets real ones."""

from dataclasses import replace

import pytest

from clipper_backup.errors import (
    AccessError,
    ClipperError,
    MissingError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from clipper_backup.store.clouds import AZURE, GCS, S3, Cloud
from clipper_backup.store.remote_errors import Place, is_beyond_end, translated

PLACE = Place("s3://clipper/folder", "clipper", "https://s3.example.com", S3)
NAME = "s3://clipper/folder/k"


def answered(status: str, code: str = "", message: str = "", request: str = "PUT https://s3.example.com/clipper/folder/k") -> str:
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
    xml += "<AWSAccessKeyId>AKIASECRETID</AWSAccessKeyId><StringToSign>AWS4-HMAC</StringToSign></Error>"
    return (
        f"Generic S3 error: Error performing {request} in 1.2ms - Server returned non-2xx status code: {status}: {xml}\n\n"
        f"Debug source:\nGeneric {{\n    inner: Status {{ status: {status[:3]}, body: Some({xml!r}) }}\n}}"
    )


def unanswered(dump: str, request: str = "GET https://s3.example.com/clipper/folder/k?uploadId=abc") -> str:
    return f"Generic S3 error: Error performing {request} in 2ms - HTTP error: error sending request\n\nDebug source:\n{dump}"


CASES: list[tuple[str, type[ClipperError], str]] = [
    (answered("403 Forbidden", "SignatureDoesNotMatch", "The signature differs."), AccessError,
     f"the store refused {NAME}: 403 SignatureDoesNotMatch The signature differs."),
    (answered("403 Forbidden"), AccessError, f"the store refused {NAME}: 403"),
    (answered("401 Unauthorized"), AccessError, f"the store refused {NAME}: 401"),
    (answered("400 Bad Request", "ExpiredToken", "The provided token has expired."), AccessError,
     f"the store refused {NAME}: 400 ExpiredToken The provided token has expired."),
    (answered("403 Forbidden", "RequestTimeTooSkewed", "Too large."), AccessError,
     f"the store refused {NAME}: 403 RequestTimeTooSkewed Too large."),
    ("Generic S3 error: DeleteObjects request failed for key x: Access Denied. (code: AccessDenied)", AccessError,
     f"the store refused {NAME}: AccessDenied"),
    ("Generic S3 error: DeleteObjects request failed for key x: Reduce your rate. (code: SlowDown)", StoreUnavailableError,
     f"the store cannot serve {NAME} now: SlowDown"),
    (answered("503 Service Unavailable", "SlowDown", "Reduce your request rate."), StoreUnavailableError,
     f"the store cannot serve {NAME} now: 503 SlowDown Reduce your request rate."),
    (answered("500 Internal Server Error"), StoreUnavailableError, f"the store cannot serve {NAME} now: 500"),
    (answered("429 Too Many Requests"), StoreUnavailableError, f"the store cannot serve {NAME} now: 429"),
    (answered("400 Bad Request", "RequestTimeout", "Your socket was idle."), StoreUnavailableError,
     f"the store cannot serve {NAME} now: 400 RequestTimeout Your socket was idle."),
    (answered("409 Conflict", "ConditionalRequestConflict", "Conflict."), StoreUnavailableError,
     f"the store cannot serve {NAME} now: 409 ConditionalRequestConflict Conflict."),
    (answered("404 Not Found", "NoSuchUpload", "Gone."), StoreUnavailableError,
     f"the store cannot serve {NAME} now: 404 NoSuchUpload Gone."),
    (answered("412 Precondition Failed", "PreconditionFailed"), ObjectExistsError, f"there is an object {NAME} already"),
    (answered("404 Not Found", "NoSuchKey"), ObjectMissingError, f"no object {NAME}"),
    (answered("404 Not Found", "NoSuchBucket"), MissingError, "there is no bucket clipper at https://s3.example.com"),
    (answered("301 Moved Permanently", "PermanentRedirect", "Use another."), StoreError,
     "bucket clipper is in another region or at another endpoint"),
    ("Generic S3 error: Received redirect without LOCATION, this normally indicates an incorrectly configured region", StoreError,
     "bucket clipper is in another region or at another endpoint"),
    (answered("501 Not Implemented", "NotImplemented", "No conditions here."), StoreError,
     f"the store refused {NAME}: 501 NotImplemented No conditions here."),
    (unanswered("HttpError { kind: Connect, Os { code: 111, kind: ConnectionRefused } }"), StoreUnavailableError,
     f"cannot reach https://s3.example.com for {NAME}: connection refused"),
    (unanswered('HttpError { kind: Connect, error: "failed to lookup address information: Name or service not known" }'),
     StoreUnavailableError, f"cannot reach https://s3.example.com for {NAME}: its name is unknown"),
    (unanswered("HttpError { kind: Timeout, source: TimedOut }"), StoreUnavailableError,
     f"cannot reach https://s3.example.com for {NAME}: no answer in time"),
    (unanswered("HttpError { kind: Interrupted, Os { code: 104, kind: ConnectionReset } }"), StoreUnavailableError,
     f"cannot reach https://s3.example.com for {NAME}: the connection broke"),
    (unanswered("HttpError { kind: Unknown }"), StoreUnavailableError,
     f"cannot reach https://s3.example.com for {NAME}: the connection failed"),
    (unanswered("InvalidCertificate(UnknownIssuer)"), StoreError,
     f"cannot reach https://s3.example.com for {NAME}: its certificate is not trusted"),
    (unanswered("InvalidMessage(InvalidContentType)"), StoreError,
     f"cannot reach https://s3.example.com for {NAME}: it does not speak TLS"),
    (unanswered("Connect", "PUT http://169.254.169.254/latest/api/token"), AccessError, "no credentials for s3://clipper/folder"),
    (answered("403 Forbidden", request="PUT http://169.254.169.254/latest/api/token"), AccessError,
     "no credentials for s3://clipper/folder"),
    (answered("503 Busy", request="GET http://169.254.170.23/v1/credentials"), StoreUnavailableError,
     "cannot get credentials for s3://clipper/folder now: 503"),
    (unanswered("kind: Timeout", "POST https://sts.eu-west-1.amazonaws.com/"), StoreUnavailableError,
     "cannot get credentials for s3://clipper/folder now: no answer in time"),
    (answered("400 Bad Request", "InvalidIdentityToken", request="POST https://sts.eu-west-1.amazonaws.com/"), AccessError,
     "no credentials for s3://clipper/folder"),
    ("something quite new\nDebug source: x", StoreError, f"cannot use {NAME}: something quite new"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "message"), CASES)
def test_a_foreign_error_becomes_ours(text: str, kind: type[ClipperError], message: str) -> None:
    error = translated(text, NAME, PLACE)
    assert type(error) is kind
    assert error.message == message
    said = " ".join([error.message, *error.hints])
    assert not any(secret in said for secret in ("Debug", "AKIASECRETID", "AWS4-HMAC", "uploadId", "<", "\n"))
    if kind in {AccessError, MissingError} or error.message.startswith("cannot reach"):
        assert error.hints


AZURE_CASES: list[tuple[str, type[ClipperError], str]] = [
    (answered("404 The specified container does not exist.", "ContainerNotFound", "It does not exist."), MissingError,
     "there is no container clipper at https://s3.example.com"),
    (answered("409 Conflict", "ContainerBeingDeleted", "Try later."), MissingError,
     "there is no container clipper at https://s3.example.com"),
    (answered("404 Not Found", "BlobNotFound", "No blob."), ObjectMissingError, f"no object {NAME}"),
    ("Generic MicrosoftAzure error: Bulk delete request failed for key x: The specified blob does not exist. (code: 404)",
     ObjectMissingError, f"no object {NAME}"),
    ("Generic MicrosoftAzure error: Bulk delete request failed for key x: This request is not authorized. (code: 403)",
     AccessError, f"the store refused {NAME}: 403"),
    (answered("403 Forbidden", "AuthenticationFailed", "No signature.\nRequestId:1\nTime:2"), AccessError,
     f"the store refused {NAME}: 403 AuthenticationFailed No signature."),
    (answered("403 Forbidden", "AuthorizationPermissionMismatch", "No."), AccessError,
     f"the store refused {NAME}: 403 AuthorizationPermissionMismatch No."),
    (answered("409 Conflict", "PublicAccessNotPermitted", "No."), AccessError,
     f"the store refused {NAME}: 409 PublicAccessNotPermitted No."),
    (answered("503 Service Unavailable", "ServerBusy", "Busy."), StoreUnavailableError,
     f"the store cannot serve {NAME} now: 503 ServerBusy Busy."),
    (answered("500 Internal Server Error", "OperationTimedOut", "Late."), StoreUnavailableError,
     f"the store cannot serve {NAME} now: 500 OperationTimedOut Late."),
    (answered("400 Bad Request", "InvalidBlockList", "Gone."), StoreUnavailableError,
     f"the store cannot serve {NAME} now: 400 InvalidBlockList Gone."),
    (answered("409 Conflict", "BlobAlreadyExists", "Taken."), ObjectExistsError, f"there is an object {NAME} already"),
    (answered("412 Precondition Failed", "ConditionNotMet", "Taken."), ObjectExistsError, f"there is an object {NAME} already"),
    (answered("412 Precondition Failed", "LeaseIdMissing", "Somebody holds a lease."), StoreError,
     f"the store refused {NAME}: 412 LeaseIdMissing Somebody holds a lease."),
    (answered("409 Conflict", "BlobImmutableDueToPolicy", "A policy."), StoreError,
     f"the store refused {NAME}: 409 BlobImmutableDueToPolicy A policy."),
    (unanswered('HttpError { kind: Connect, error: "failed to lookup address information: Name or service not known" }'),
     StoreUnavailableError, f"cannot reach https://s3.example.com for {NAME}: its name is unknown"),
    (answered("401 Unauthorized", request="POST https://login.microsoftonline.com/t/oauth2/v2.0/token").replace(
        "<Error>", '{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided."}<Error>'),
     AccessError, "no credentials for s3://clipper/folder: AADSTS7000215"),
    (answered("429 Too Many", request="GET http://169.254.169.254/metadata/identity/oauth2/token?api-version=2019-08-01&resource=x"),
     StoreUnavailableError, "cannot get credentials for s3://clipper/folder now: 429"),
]  # fmt: skip

GCS_CASES: list[tuple[str, type[ClipperError], str]] = [
    (answered("404 Not Found", "NoSuchBucket"), MissingError, "there is no bucket clipper at https://s3.example.com"),
    (answered("403 Forbidden", "AccessDenied", "Access denied."), AccessError,
     f"the store refused {NAME}: 403 AccessDenied Access denied."),
    (answered("429 Too Many Requests", "SlowDown", "The object exceeded the rate limit."), StoreUnavailableError,
     f"the store cannot serve {NAME} now: 429 SlowDown The object exceeded the rate limit."),
    (answered("412 Precondition Failed", "PreconditionFailed"), ObjectExistsError, f"there is an object {NAME} already"),
    (unanswered("Connect", "GET http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token"),
     AccessError, "no credentials for s3://clipper/folder"),
    (answered("400 Bad Request", request="POST https://accounts.google.com/o/oauth2/token"), AccessError,
     "no credentials for s3://clipper/folder"),
    (unanswered("kind: Timeout", "POST https://accounts.google.com/o/oauth2/token"), StoreUnavailableError,
     "cannot get credentials for s3://clipper/folder now: no answer in time"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cloud", "text", "kind", "message"), [(AZURE, *case) for case in AZURE_CASES] + [(GCS, *case) for case in GCS_CASES]
)
def test_what_other_clouds_say_becomes_ours_too(cloud: Cloud, text: str, kind: type[ClipperError], message: str) -> None:
    error = translated(text, NAME, replace(PLACE, cloud=cloud))
    assert type(error) is kind
    assert error.message == message
    said = " ".join([error.message, *error.hints])
    assert not any(secret in said for secret in ("Debug", "AKIASECRETID", "AWS", "RequestId", "<", "\n"))
    if kind in {AccessError, MissingError} or error.message.startswith("cannot reach"):
        assert error.hints


def test_a_host_of_azure_that_is_unknown_is_perhaps_no_account() -> None:
    text = unanswered('HttpError { kind: Connect, error: "failed to lookup address information: Name or service not known" }')
    assert any("AZURE_STORAGE_ACCOUNT" in hint for hint in translated(text, NAME, replace(PLACE, cloud=AZURE)).hints)


def test_an_empty_text_is_still_an_error() -> None:
    assert translated("", NAME, PLACE).message == f"cannot use {NAME}: unknown error"


@pytest.mark.parametrize(("text", "beyond"), [
    (answered("416 Range Not Satisfiable", "InvalidRange"), True),
    ('Generic MicrosoftAzure error: Failed to parse value for CONTENT_RANGE header: "bytes 0--1/0"', True),
    ("Generic MicrosoftAzure error: Wanted range starting at 5, but object was only 5 bytes long", True),
    (answered("404 Not Found", "NoSuchKey"), False),
])  # fmt: skip
def test_a_range_beyond_the_end_is_told_from_other_errors(text: str, *, beyond: bool) -> None:
    assert is_beyond_end(text) == beyond
