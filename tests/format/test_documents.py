import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import IntegrityError, StoreError
from clipper_backup.format import documents
from clipper_backup.format.documents import (
    SCHEMA,
    DatabaseRecord,
    Document,
    DumpDetails,
    DumpSummary,
    ExtensionRecord,
    HoldMark,
    Intent,
    KeyCheck,
    LeaseHolder,
    QueryRecord,
    Repository,
    RestoreTestReport,
    RetentionMark,
    SequenceRecord,
    StoredObject,
    TableRecord,
    VerifyReport,
    Versions,
    decode,
    encode,
)

GOLDEN = Path(__file__).with_name("golden")
KINDS: dict[str, type[Document]] = {
    "repository.json": Repository,
    "intent.json": Intent,
    "backup.json": DumpSummary,
    "details.json": DumpDetails,
    "hold.json": HoldMark,
    "retention.json": RetentionMark,
    "holder.json": LeaseHolder,
    "key-check.json": KeyCheck,
    "verify-report.json": VerifyReport,
    "restore-test.json": RestoreTestReport,
}
"""One document of each kind as format 1 first wrote it. They are in people's buckets: never write these files anew."""


def golden_bytes(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


# -- what was written once stays readable


def test_there_is_a_golden_document_of_every_kind() -> None:
    kinds = {kind for kind in vars(documents).values() if isinstance(kind, type) and issubclass(kind, Document)} - {Document}
    fields = repr([list(kind.__annotations__.values()) for kind in kinds])
    assert {kind for kind in kinds if f".{kind.__name__}" not in fields} == set(KINDS.values())
    assert {path.name for path in GOLDEN.iterdir()} == set(KINDS)


def check_holds(written: Any, golden: Any) -> None:
    """All that *golden* says stands in *written*, which may say more: fields are added, never taken away or changed."""
    if isinstance(golden, dict):
        assert golden.keys() <= written.keys()
        for name, value in golden.items():
            check_holds(written[name], value)
    elif isinstance(golden, list):
        for each, value in zip(written, golden, strict=True):
            check_holds(each, value)
    else:
        assert written == golden


@pytest.mark.parametrize("name", KINDS)
def test_a_golden_document_is_read_in_full_and_written_alike(name: str) -> None:
    check_holds(json.loads(encode(decode(golden_bytes(name), KINDS[name], name))), json.loads(golden_bytes(name)))


def test_the_golden_summary_means_what_it_meant() -> None:
    summary = decode(golden_bytes("backup.json"), DumpSummary, "backup.json")
    assert summary.databases == ["clipper", "Fuß /.'\""]
    assert summary.begun_at == datetime(2026, 11, 22, 2, tzinfo=UTC)
    assert summary.seconds == 200.5
    assert summary.stored_bytes == 123_456_789_012 + 10 + 900 + 700
    assert summary.plain_bytes == 523_456_789_012 + 2048 + 4000 + 9000
    assert summary.versions.needed_major == 18
    clipper = summary.archive_of("clipper")
    assert clipper is not None
    assert (clipper.archive, clipper.sha256) == ("custom", "ab" * 32)
    assert summary.archive_of("Clipper") is None
    assert [part and part.key.rpartition(".zst")[0][-11:] for part in (summary.part("globals"), summary.part("details"))] == [
        "globals.sql",
        "000.details",
    ]


def test_the_golden_details_mean_what_they_meant() -> None:
    record = decode(golden_bytes("details.json"), DumpDetails, "details.json").database("clipper")
    assert record is not None
    assert record.rows == 1203
    assert record.tables[1].oid == 4_294_967_295
    assert record.sequences[0].last_value == -(2**63)
    assert record.properties.grants is not None
    assert [grant.grantee for grant in record.properties.grants] == [None, "reader"]


def test_the_golden_lease_is_of_a_time_when_nobody_said_for_how_long() -> None:
    assert decode(golden_bytes("holder.json"), LeaseHolder, "holder").lease_seconds is None


def test_people_can_read_it_in_their_bucket() -> None:
    text = golden_bytes("backup.json").decode()
    assert '\n  "rows": 1203,\n' in text
    assert "Fuß" in text
    assert text.endswith("}\n")


# -- what is written can be read

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
versions = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}|beta[1-4])", fullmatch=True)
times = st.datetimes(timezones=st.just(UTC))
counts = st.integers(0, 2**63 - 1)
summaries = st.builds(
    DumpSummary,
    id=texts,
    repository_id=texts,
    begun_at=times,
    finished_at=times,
    versions=st.builds(Versions, software=texts, client=versions, server=texts, server_major=st.integers(0, 99)),
    system_id=st.none() | texts,
    from_standby=st.booleans(),
    fingerprint=st.sampled_from(["counts", "hash", "off"]),
    rows=st.none() | counts,
    objects=st.lists(
        st.builds(
            StoredObject,
            key=texts,
            role=st.sampled_from(["database", "globals", "details"]),
            database=st.none() | texts,
            archive=st.sampled_from([None, "custom", "directory"]),
            size_bytes=counts,
            plain_bytes=counts,
            sha256=texts,
        ),
        max_size=3,
    ),
    warnings=st.lists(texts, max_size=3),
)
details = st.builds(
    DumpDetails,
    id=texts,
    databases=st.lists(
        st.builds(
            DatabaseRecord,
            name=texts,
            properties=st.just(decode(golden_bytes("details.json"), DumpDetails, "golden").databases[0].properties),
            snapshot=texts,
            lsn_before=st.none() | texts,
            lsn_after=st.none() | texts,
            size_bytes=counts,
            tables=st.lists(st.builds(TableRecord, oid=counts, schema=texts, name=texts, rows=st.none() | counts), max_size=3),
            sequences=st.lists(
                st.builds(
                    SequenceRecord,
                    schema=texts,
                    name=texts,
                    last_value=st.integers(-(2**63), 2**63 - 1),
                    is_called=st.booleans(),
                ),
                max_size=3,
            ),
            large_objects=st.none() | counts,
            extensions=st.lists(st.builds(ExtensionRecord, name=texts, version=texts, schema=texts), max_size=2),
            collations=st.lists(texts, max_size=2),
            queries=st.lists(st.builds(QueryRecord, name=texts, sql=texts, answer=st.lists(st.none() | texts)), max_size=2),
        ),
        max_size=2,
    ),
)


@given(summaries)
def test_every_summary_comes_back(summary: DumpSummary) -> None:
    assert decode(encode(summary), DumpSummary, "it") == summary


@given(details)
def test_all_details_come_back(written: DumpDetails) -> None:
    assert decode(encode(written), DumpDetails, "them") == written


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    document = json.loads(golden_bytes("hold.json")) | {"held_at": "2026-11-22T10:00:00+01:00"}
    assert decode(json.dumps(document).encode(), HoldMark, "it").held_at == datetime(2026, 11, 22, 9, tzinfo=UTC)


def test_rows_are_unknown_when_one_table_was_not_counted() -> None:
    record = decode(golden_bytes("details.json"), DumpDetails, "golden").databases[0]
    uncounted = TableRecord(oid=1, schema="public", name="uncounted")
    assert msgspec.structs.replace(record, tables=[*record.tables, uncounted]).rows is None


# -- other versions


def with_unknown_fields(value: Any) -> Any:
    """The same document with a field more in every object of it."""
    if isinstance(value, dict):
        return {name: with_unknown_fields(each) for name, each in value.items()} | {"from_the_future": {"a": [1]}}
    return [with_unknown_fields(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", KINDS)
def test_fields_of_the_future_are_ignored(name: str) -> None:
    extended = with_unknown_fields(json.loads(golden_bytes(name)))
    assert decode(json.dumps(extended).encode(), KINDS[name], name) == decode(golden_bytes(name), KINDS[name], name)


@pytest.mark.parametrize("name", KINDS)
def test_a_newer_schema_is_refused_even_where_nothing_else_could_be_read(name: str) -> None:
    newer = json.dumps({"schema": SCHEMA + 1, "everything": "is different"}).encode()
    with pytest.raises(StoreError, match=rf"holds/x was written by a newer version \(schema {SCHEMA + 1}") as raised:
        decode(newer, KINDS[name], "holds/x")
    assert "install" in raised.value.hints[0]
    assert not raised.value.temporary


def test_a_newer_document_does_not_count_as_damaged() -> None:
    newer = json.dumps(json.loads(golden_bytes("backup.json")) | {"schema": SCHEMA + 1}).encode()
    with pytest.raises(StoreError) as raised:
        decode(newer, DumpSummary, "x")
    assert not isinstance(raised.value, IntegrityError)


# -- damage


@pytest.mark.parametrize("name", KINDS)
def test_a_document_says_what_it_is(name: str) -> None:
    """Its schema, and where it is signed its kind: the signature of one kind must be worth nothing for another."""
    whole = json.loads(golden_bytes(name))
    for field in ("schema", "kind"):
        if field in whole:
            lacking = {other: value for other, value in whole.items() if other != field}
            with pytest.raises(IntegrityError, match=f"x is damaged: it has no {field}"):
                decode(json.dumps(lacking).encode(), KINDS[name], "x")


def test_no_schema_is_below_the_first() -> None:
    whole = json.loads(golden_bytes("backup.json"))
    for schema in (0, -1):
        with pytest.raises(IntegrityError, match="x is damaged"):
            decode(json.dumps(whole | {"schema": schema}).encode(), DumpSummary, "x")


@pytest.mark.parametrize("name", KINDS)
def test_cut_short_anywhere_it_is_damaged(name: str) -> None:
    whole = golden_bytes(name).rstrip()
    for length in range(len(whole)):
        with pytest.raises(IntegrityError, match="x is damaged"):
            decode(whole[:length], KINDS[name], "x")


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_byte_is_damage_or_another_document_and_never_another_error(name: str) -> None:
    whole = golden_bytes(name)
    chosen = random.Random(name)
    damaged = 0
    for place in range(len(whole)):
        for byte in {0, 0x22, 0x5C, 0x80, 0xC3, 0xFF, chosen.randrange(256), whole[place] ^ (1 << chosen.randrange(8))}:
            try:
                decode(whole[:place] + bytes([byte]) + whole[place + 1 :], KINDS[name], "x")
            except IntegrityError:
                damaged += 1
            except StoreError:  # the number of the schema grew
                assert b'"schema": ' in whole[:place]
    assert damaged > len(whole)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\x00" * 100,
        b'{"schema": "1"}',
        b'{"schema": 1e999}',
        b'{"schema": 1}',
        b'{"a":' * 100_000,
        '{"schema": 1}'.encode("utf-16"),
        golden_bytes("backup.json") * 2,
        golden_bytes("retention.json"),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_summary_is_damaged(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="x is damaged"):
        decode(data, DumpSummary, "x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("begun_at", "2026-11-22T02:00:00"),
        ("begun_at", "yesterday"),
        ("begun_at", 1_795_000_000),
        ("rows", "many"),
        ("rows", 1.5),
        ("fingerprint", "guess"),
        ("kind", "base backup"),
        ("objects", None),
        ("system_id", 7),
    ],
)
def test_a_field_that_means_nothing_is_damage(field: str, value: object) -> None:
    document = json.loads(golden_bytes("backup.json")) | {field: value}
    with pytest.raises(IntegrityError, match="x is damaged"):
        decode(json.dumps(document).encode(), DumpSummary, "x")


@pytest.mark.parametrize(("client", "needed"), [("18.6", 18), ("19beta1", 19), ("15.14 (Debian 15.14-1)", 16)])
def test_the_programs_that_are_needed_are_of_the_newer_major(client: str, needed: int) -> None:
    assert Versions(software="", client=client, server="16.2", server_major=min(needed, 16)).needed_major == needed


def test_how_each_kind_is_read_is_known_before_threads_read_it() -> None:
    """msgspec fills in a type at the first look, and crashes when two threads meet there: `status` ended with signal 11."""
    assert documents._DECODERS.keys() == {documents._Head, *Document.__subclasses__()}
    assert {*KINDS.values()} <= documents._DECODERS.keys()
