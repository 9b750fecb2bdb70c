from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clipper_backup.format import names
from clipper_backup.format.names import DumpKey, database_key, encode_database, keys_of, parse_dump_key
from clipper_backup.store.protocol import check_key
from clipper_backup.values import DumpId

ID = DumpId.parse("postgres-backup-20261122-020000")
LATER = ID.next()
NAME_BYTES = 63
"""The longest name of a database: NAMEDATALEN - 1."""

any_text = st.text(st.characters(exclude_categories=["Cs"]))
"""All of unicode but surrogates, which no database name can hold: its bytes are those of an encoding."""
database_names = any_text.filter(lambda name: 0 < len(name.encode()) <= NAME_BYTES)
archive_parts = st.sampled_from([names.CUSTOM, names.DIRECTORY])


@given(any_text)
@example("a.b/c%2E~ d")
@example("%2E")
@example("..")
@example("é" + "🦊" * 15)
def test_every_name_comes_back(name: str) -> None:
    assert unquote(encode_database(name), errors="strict") == name


@given(any_text, any_text)
@example("a.b", "a%2Eb")
@example("A", "a")
def test_different_names_differ_in_a_key(one: str, other: str) -> None:
    assert (encode_database(one) == encode_database(other)) == (one == other)


@given(any_text)
def test_an_encoded_name_has_only_what_every_store_takes(name: str) -> None:
    assert set(encode_database(name)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_%")


@given(database_names, archive_parts)
@example("\x01" * NAME_BYTES, names.DIRECTORY)
@example("é" * 31, names.DIRECTORY)
@example("." * NAME_BYTES, names.DIRECTORY)
def test_the_archive_of_every_database_has_a_key_that_parses_back(name: str, part: str) -> None:
    key = database_key(ID, name, part)
    check_key(key)
    assert len(key.rpartition("/")[2].encode()) <= 255
    assert parse_dump_key(key) == DumpKey(ID, f"{encode_database(name)}.{part}")


@pytest.mark.parametrize("part", [names.INTENT, names.SUMMARY, names.DETAILS, names.GLOBALS])
def test_the_other_parts_parse_back(part: str) -> None:
    key = names.dump_key(ID, part)
    check_key(key)
    assert parse_dump_key(key) == DumpKey(ID, part)


@given(database_names, archive_parts, st.sampled_from([names.INTENT, names.SUMMARY, names.DETAILS, names.GLOBALS]))
@example("globals", names.CUSTOM, names.GLOBALS)
@example("backup", names.CUSTOM, names.SUMMARY)
def test_no_database_can_be_named_like_another_part(name: str, archive: str, part: str) -> None:
    assert database_key(ID, name, archive) != names.dump_key(ID, part)


@pytest.mark.parametrize(
    "key",
    [
        "database/postgres-backup-20261122-020000",
        "database/postgres-backup-20261122-020000.",
        "database/postgres-backup-20261322-020000.intent",
        "database/postgres-backup-2026112-020000.intent",
        "database/postgres-backup-20261122-020000.intent.bak",
        "database/xpostgres-backup-20261122-020000.intent",
        "database/old/postgres-backup-20261122-020000.intent",
        "postgres-backup-20261122-020000.intent",
        "holds/postgres-backup-20261122-020000",
        "database/postgres-backup-٢٠٢٦١١٢٢-020000.intent",
        # what other tools and people may put beside ours, under the very names that the source document uses
        "database/postgres-backup-20261122-020000.sql.gz",
        "database/postgres-backup-20261122-020000.dump",
        "database/postgres-backup-20261122-020000.dump.zst",
        "database/postgres-backup-20261122-020000.a.b.dump.zst",
        "database/postgres-backup-20261122-020000.clipper.dump.zst.copy",
        "database/postgres-backup-20261122-020000.notes/why.dump.zst",
    ],
)
def test_what_others_put_there_is_none_of_ours(key: str) -> None:
    assert parse_dump_key(key) is None


def test_the_keys_of_one_dump() -> None:
    ours = [database_key(ID, "a b", names.CUSTOM), names.dump_key(ID, names.INTENT)]
    foreign = [names.dump_key(LATER, names.INTENT), f"database/{ID}.sql.gz", "repository.json", f"holds/{ID}"]
    assert keys_of(ID, [*foreign, *ours]) == ours
