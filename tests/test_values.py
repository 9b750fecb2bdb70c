"""Value types: what they accept, how they show themselves, how they are ordered."""

import copy
import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import UsageError
from clipper_backup.values import (
    BackupId,
    DumpId,
    Lsn,
    Secret,
    parse_bytes,
    show_bytes,
    show_names,
    show_seconds,
    show_share,
    show_time,
)

SECONDS = st.integers(0, 253_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
"""Whole seconds from 1970 to 9987."""
TWO = datetime(2026, 11, 22, 2, tzinfo=UTC)


@given(st.integers(0, 2**64 - 1))
def test_a_wal_position_is_read_back_from_its_text(position: int) -> None:
    assert Lsn.parse(str(Lsn(position))) == position


def test_a_wal_position_looks_like_postgresql_prints_it() -> None:
    assert str(Lsn(0x16B374D848)) == "16/B374D848"
    assert str(Lsn(0x1_0000_000A)) == "1/A"
    assert Lsn.parse("0/0") == 0
    assert Lsn.parse("ffffffff/ffffffff") == 2**64 - 1


@pytest.mark.parametrize("text", ["", "16", "16/", "/B", "16/B374D8480", "g/1", "1/2/3", " 1/2", "1/2\n", "-1/2"])
def test_what_is_no_wal_position(text: str) -> None:
    with pytest.raises(UsageError, match="not a WAL position"):
        Lsn.parse(text)


@given(SECONDS)
def test_a_dump_id_is_read_back_from_its_text(at: datetime) -> None:
    assert DumpId.parse(str(DumpId(at))) == DumpId(at)


@given(SECONDS, SECONDS)
def test_dump_ids_are_ordered_by_time_as_their_texts_are(one: datetime, other: datetime) -> None:
    assert (DumpId(one) < DumpId(other)) == (one < other) == (str(DumpId(one)) < str(DumpId(other)))


def test_a_dump_id_is_its_time_in_utc() -> None:
    berlin = timezone(timedelta(hours=1))
    assert str(DumpId(datetime(2026, 11, 22, 3, tzinfo=berlin))) == "postgres-backup-20261122-020000"
    assert str(DumpId.at_time(datetime(2026, 11, 22, 2, 0, 59, 999_999, UTC))) == "postgres-backup-20261122-020059"


def test_a_taken_dump_id_is_followed_by_the_next_second() -> None:
    last_of_the_year = DumpId(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert str(last_of_the_year.next()) == "postgres-backup-20270101-000000"


@pytest.mark.parametrize("at", [TWO.replace(tzinfo=None), TWO.replace(microsecond=1)])
def test_a_dump_id_needs_a_zone_and_whole_seconds(at: datetime) -> None:
    with pytest.raises(ValueError, match="needs a time with a zone and whole seconds"):
        DumpId(at)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "postgres-backup-",
        "postgres-backup-20261122-0200",
        "postgres-backup-20261322-020000",
        "postgres-backup-20261122-020060",
        "postgres-backup-20261122-020000.clipper.dump",
        "xpostgres-backup-20261122-020000",
        "postgres-backup-20261122-020000\n",
        "postgres-backup-\uff12\uff10\uff12\uff16\uff11\uff11\uff12\uff12-020000",  # digits, but not ours
    ],
)
def test_what_is_no_dump_id(text: str) -> None:
    with pytest.raises(UsageError, match="not a dump id") as caught:
        DumpId.parse(text)
    assert "postgres-backup-20261122-020000" in caught.value.hints[0]


@given(st.from_regex(r"[0-2][0-9]{3}[01][0-9][0-3][0-9]-[0-2][0-9][0-6][0-9][0-6][0-9]", fullmatch=True, alphabet="0123456789-"))
def test_the_time_in_an_id_is_the_one_that_its_digits_say(digits: str) -> None:
    try:
        said = datetime.strptime(digits, "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        for parse, text in ((DumpId.parse, f"postgres-backup-{digits}"), (BackupId.parse, f"{digits}-7f3a9c2e")):
            with pytest.raises(UsageError, match=r"not (a dump id|the id of a base backup)"):
                parse(text)
    else:
        assert DumpId.parse(f"postgres-backup-{digits}").at == said == BackupId.parse(f"{digits}-7f3a9c2e").at


@given(st.text(min_size=4))
def test_a_secret_never_shows_itself(value: str) -> None:
    secret = Secret(value)
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r}", f"{[secret]}", f"{secret}"]
    assert set(shown) == {"***", "Secret(***)", "[Secret(***)]"}
    assert secret.reveal() == value


def test_a_secret_does_not_slip_into_json() -> None:
    assert msgspec.json.encode({"password": Secret("hush")}, enc_hook=str) == b'{"password":"***"}'
    with pytest.raises(TypeError):
        json.dumps({"password": Secret("hush")})
    assert not hasattr(Secret("hush"), "__dict__")


def test_secrets_are_compared_by_value() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert copy.deepcopy(Secret("a")) == Secret("a")


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("17", 17), ("17 B", 17), ("64MiB", 64 * 2**20), ("1.5 GB", 1_500_000_000), ("2k", 2000), (" 1 tib ", 2**40)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "1 MiBs", "-1", "1,5 GB", "1.GB", "0x10", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size like 64MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (2.5e9, "2.5 GB"),
        (4e12, "4.0 TB"),
        (4e15, "4000.0 TB"),
    ],
)
def test_sizes_are_shown(count: float, shown: str) -> None:
    assert show_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86_400 * 4 + 3 * 3600, "4 d 3 h"),
    ],
)
def test_durations_are_shown(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


def test_times_are_shown_in_utc() -> None:
    assert show_time(datetime(2026, 11, 22, 3, 0, 1, tzinfo=timezone(timedelta(hours=1)))) == "2026-11-22 02:00:01Z"


def test_names_are_shown_as_the_settings_take_them() -> None:
    assert show_names(["clipper", "a, b", 'qu"ote', '"']) == 'clipper, "a, b", qu"ote, """"'


def test_a_share_is_all_when_it_is() -> None:
    assert [show_share(share) for share in (0, 0.004, 0.57, 0.99999, 1.0)] == ["0%", "0%", "57%", "99%", "100%"]
