"""Static credentials from the environment, and whether there is a whole set of them.

Everything else that says who we are (a web identity, a pod's or a machine's own) is found and renewed by obstore. Files are
read by obstore too; they are looked at here only to say clearly what is wrong with them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from clipper_backup.errors import AccessError, UsageError

_AWS = {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}
_GOOGLE = {
    "application_credentials": "GOOGLE_APPLICATION_CREDENTIALS",
    "service_account": "GOOGLE_SERVICE_ACCOUNT",
    "service_account_key": "GOOGLE_SERVICE_ACCOUNT_KEY",
}
_AZURE = {
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "sas_key": "AZURE_STORAGE_SAS_TOKEN",
    "client_id": "AZURE_CLIENT_ID",
    "tenant_id": "AZURE_TENANT_ID",
    "client_secret": "AZURE_CLIENT_SECRET",
    "federated_token_file": "AZURE_FEDERATED_TOKEN_FILE",
    "authority_host": "AZURE_AUTHORITY_HOST",
}
_GOOGLE_KINDS = frozenset({"service_account", "authorized_user"})


def aws_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """By obstore's names; empty when there are none, UsageError for half a key."""
    keys = _found(_AWS, environment)
    if not keys:
        return {}
    if absent := [variable for name, variable in _AWS.items() if name not in keys]:
        raise UsageError(f"{absent[0]} is not set", hints=["set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither"])
    if token := environment.get("AWS_SESSION_TOKEN", "").strip():
        keys["session_token"] = token
    return keys


def aws_region(environment: Mapping[str, str]) -> str | None:
    """The bucket's region, where it is said."""
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None


def google_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """By obstore's names; empty when there are none. AccessError for a file that cannot be a key."""
    keys = _found(_GOOGLE, environment)
    for name in ("application_credentials", "service_account"):
        if name in keys:
            _check_google_file(Path(keys[name]), _GOOGLE[name])
    if "service_account_key" in keys and _json(keys["service_account_key"]) is None:
        raise AccessError(
            "GOOGLE_SERVICE_ACCOUNT_KEY is not the JSON of a service account's key",
            hints=[
                "its value is the whole content of the key file; the path of the file goes into GOOGLE_APPLICATION_CREDENTIALS"
            ],
        )
    return keys


def azure_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """By obstore's names; empty when there are none, UsageError for a service principal without its other half."""
    keys = _found(_AZURE, environment)
    for proof in ("client_secret", "federated_token_file"):
        if proof in keys and (absent := [_AZURE[name] for name in ("client_id", "tenant_id") if name not in keys]):
            raise UsageError(f"{absent[0]} is not set", hints=[f"{_AZURE[proof]} needs AZURE_CLIENT_ID and AZURE_TENANT_ID"])
    return keys


def _found(names: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    # Without the line feed that a Secret made from a file ends with.
    return {name: value for name, variable in names.items() if (value := environment.get(variable, "").strip())}


def _check_google_file(path: Path, variable: str) -> None:
    try:
        document = _json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AccessError(f"cannot read {path}: {error.strerror}", hints=[f"{variable} names it"]) from error
    except UnicodeDecodeError:
        document = None
    kind = document.get("type", "service_account") if document else None
    if kind == "external_account":
        raise AccessError(
            f"{path} describes a federated identity, which is not supported",
            hints=["in GKE, Workload Identity needs no file: leave it out", "elsewhere, give a service account's key"],
        )
    if kind not in _GOOGLE_KINDS:
        raise AccessError(f"{path} is not a key file of Google Cloud", hints=[f"{variable} names it; it is JSON"])


def _json(text: str) -> "dict[str, object] | None":
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
