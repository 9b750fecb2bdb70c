"""The documents of base backups and WAL: what format 1 first wrote stays readable, and what means nothing is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipper_backup.errors import IntegrityError, StoreError
from clipper_backup.format import base_documents
from clipper_backup.format.base_documents import (
    BaseDetails,
    BaseIntent,
    BaseSummary,
    Claim,
    DataKey,
    PacksDocument,
    PruneRecord,
    SnapshotRecord,
    Started,
    SystemEntry,
    VerifyMark,
)
from clipper_backup.format.documents import SCHEMA, Document, HoldMark, decode, encode

GOLDEN = Path(__file__).with_name("golden_base")
KINDS: dict[str, type[Document]] = {
    "system.json": SystemEntry,
    "claim.json": Claim,
    "history-claim.json": Claim,
    "data-key.json": DataKey,
    "intent.json": BaseIntent,
    "started.json": Started,
    "packs.json": PacksDocument,
    "backup.json": BaseSummary,
    "details.json": BaseDetails,
    "prune.json": PruneRecord,
    "snapshot.json": SnapshotRecord,
    "verify.json": VerifyMark,
    "hold.json": HoldMark,
}
"""One document of each kind as format 1 first wrote it. They are in people's buckets: never write these files anew."""


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def test_there_is_a_golden_document_of_every_kind() -> None:
    kinds = {kind for kind in Document.__subclasses__() if kind.__module__ == base_documents.__name__}
    fields = repr([list(kind.__annotations__.values()) for kind in kinds])
    assert {kind for kind in kinds if f".{kind.__name__}" not in fields} | {HoldMark} == set(KINDS.values())


@pytest.mark.parametrize("name", KINDS)
def test_what_was_written_once_is_read_and_written_the_same(name: str) -> None:
    assert encode(decode(golden(name), KINDS[name], name)) == golden(name)


@pytest.mark.parametrize("name", KINDS)
def test_fields_of_a_later_version_are_ignored_and_a_higher_schema_is_refused(name: str) -> None:
    document = json.loads(golden(name))
    assert decode(json.dumps(document | {"later": 1}).encode(), KINDS[name], name) == decode(golden(name), KINDS[name], name)
    with pytest.raises(StoreError, match="newer version"):
        decode(json.dumps(document | {"schema": SCHEMA + 1}).encode(), KINDS[name], name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("claim.json", {"digest": "B8" * 32}),
        ("claim.json", {"salt": "00"}),
        ("claim.json", {"system_id": "0771"}),
        ("claim.json", {"system_id": 7711155930822877805}),
        ("claim.json", {"plain_bytes": -1}),
        ("claim.json", {"plain_bytes": 1.5}),
        ("claim.json", {"claimed_at": "2026-11-22T02:00:00"}),
        ("history-claim.json", {"ancestors": [[0, "0/D00000"]]}),
        ("history-claim.json", {"ancestors": [[1, "0/d00000"]]}),
        ("backup.json", {"kind": "dump"}),
        ("backup.json", {"id": "postgres-backup-20261122-020000"}),
        ("backup.json", {"start_lsn": "0/0D00000000"}),
        ("packs.json", {"runs": [{"run": "20261122-020000-7f3a9c2e", "sealed": True, "packs": [[-1, 1, 1, 1, "00" * 32]]}]}),
        ("verify.json", {"share": 1.01}),
        ("data-key.json", {"algorithm": "aes-128-gcm"}),
    ],
)
def test_a_field_that_means_nothing_is_damage(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="x is damaged"):
        decode(json.dumps(json.loads(golden(name)) | change).encode(), KINDS[name], "x")


def test_a_data_key_never_shows_itself() -> None:
    document = decode(golden("data-key.json"), DataKey, "x")
    assert document.key not in f"{document} {document!r}"
