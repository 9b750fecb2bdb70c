"""What the texts of foreign errors become: obstore's form around the codes that S3 documents. test_remote.py meets real ones."""

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
from clipper_backup.store.remote_errors import Place, read_failure, translated

PLACE = Place("s3://clipper/folder", "clipper", "https://s3.example.com")
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


def test_an_empty_text_is_still_an_error() -> None:
    assert translated("", NAME, PLACE).message == f"cannot use {NAME}: unknown error"


def test_a_range_beyond_the_end_is_told_by_its_status() -> None:
    assert read_failure(answered("416 Range Not Satisfiable", "InvalidRange")).status == 416
