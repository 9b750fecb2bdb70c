"""Where things lie in a repository: keys of objects, made and read in this one place (docs/design/dumps.md)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from clipper_backup.errors import UsageError
from clipper_backup.values import DumpId

REPOSITORY = "repository.json"
RETENTION = "retention.json"
DATABASE_FOLDER = "database/"
HOLDS_FOLDER = "holds/"
KEY_CHECKS_FOLDER = "key-checks/"
LOCKS_FOLDER = "locks/"
OWN = (REPOSITORY, RETENTION, DATABASE_FOLDER, HOLDS_FOLDER, KEY_CHECKS_FOLDER, LOCKS_FOLDER)
"""All that a repository is made of: objects, and folders with their `/`."""

INTENT = "intent"
SUMMARY = "backup.json"
SIGNATURE = "backup.json.sig"
DETAILS = "details.zst"
GLOBALS = "globals.sql.zst"
CUSTOM = "dump.zst"
DIRECTORY = "dump.tar.zst"
SEALED = ".age"
"""What the name of a sealed object ends with: of an archive, the globals or the details."""

# Only what this module makes: whatever else lies there, even under one of our ids, is not ours to count or to delete.
_PARTS = "|".join(re.escape(part) for part in (INTENT, SUMMARY, SIGNATURE))
_SEALABLE = "|".join(re.escape(part) for part in (DETAILS, GLOBALS))
_ARCHIVES = "|".join(re.escape(part) for part in (CUSTOM, DIRECTORY))
_KEY = re.compile(
    rf"{DATABASE_FOLDER}(postgres-backup-[0-9]{{8}}-[0-9]{{6}})"
    rf"\.({_PARTS}|(?:{_SEALABLE}|[A-Za-z0-9_%-]+\.(?:{_ARCHIVES}))(?:{re.escape(SEALED)})?)"
)


def encode_database(name: str) -> str:
    """A database's name as it stands in a key: UTF-8, everything but ASCII letters, digits, `-` and `_` percent-encoded.

    Dots are encoded too, so that the parts of a key can be told apart.
    """
    return quote(name, safe="").replace(".", "%2E").replace("~", "%7E")


def dump_key(dump_id: DumpId, part: str) -> str:
    """The key of a dump's object that belongs to no single database.

    `part` is INTENT, SUMMARY or SIGNATURE, or DETAILS or GLOBALS, perhaps with SEALED behind it.
    """
    return f"{DATABASE_FOLDER}{dump_id}.{part}"


def database_key(dump_id: DumpId, database: str, part: str) -> str:
    """The key of the archive of one database (`part` is CUSTOM or DIRECTORY, perhaps SEALED)."""
    return f"{DATABASE_FOLDER}{dump_id}.{encode_database(database)}.{part}"


def is_sealed(key: str) -> bool:
    """Whether the object at *key* is an age file."""
    return key.endswith(SEALED)


def hold_key(dump_id: DumpId) -> str:
    """The key of the hold on a dump."""
    return f"{HOLDS_FOLDER}{dump_id}"


@dataclass(frozen=True, slots=True)
class DumpKey:
    """A key below `database/`, taken apart: `part` is what follows the id."""

    dump_id: DumpId
    part: str


def parse_dump_key(key: str) -> DumpKey | None:
    """The id and part of a key below `database/`; None when it is none of ours."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    try:
        return DumpKey(DumpId.parse(match[1]), match[2])
    except UsageError:
        return None


def keys_of(dump_id: DumpId, listed: Iterable[str]) -> list[str]:
    """Those of the *listed* keys that belong to a dump."""
    return [key for key in listed if (parsed := parse_dump_key(key)) is not None and parsed.dump_id == dump_id]
