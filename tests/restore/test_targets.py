"""What a person types as a target, and what PostgreSQL is told."""

from datetime import UTC, datetime

import pytest

from clipper_backup.errors import UsageError
from clipper_backup.ops.restore.targets import Target, choose_target, parse_time, show_moment
from clipper_backup.values import Lsn

NOW = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)


def utc(*numbers: int) -> datetime:
    return datetime(*numbers, tzinfo=UTC)  # type: ignore[arg-type,misc] # year to microsecond


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22 14:05+01", utc(2026, 11, 22, 13, 5)),
        ("2026-11-22 14:05 +0100", utc(2026, 11, 22, 13, 5)),
        ("2026-11-22T14:05:07.25+01:30", utc(2026, 11, 22, 12, 35, 7, 250000)),
        ("2026-11-22 14:05:07.123456Z", utc(2026, 11, 22, 14, 5, 7, 123456)),
        ("2026-11-22 9:05 UTC", utc(2026, 11, 22, 9, 5)),
        ("14:05Z", utc(2026, 11, 22, 14, 5)),
        ("23:50Z", utc(2026, 11, 21, 23, 50)),  # the last time a clock showed that
        ("01:00+14", utc(2026, 11, 22, 11, 0)),  # where it is the 23rd already
        ("10 min ago", utc(2026, 11, 22, 14, 20)),
        ("1.5 hours ago", utc(2026, 11, 22, 13, 0)),
        ("2d ago", utc(2026, 11, 20, 14, 30)),
    ],
)
@pytest.mark.rule(61)
def test_times(text: str, moment: datetime) -> None:
    assert parse_time(text, NOW) == moment


@pytest.mark.parametrize("text", ["2026-11-22 14:05", "14:05", "2026-11-22T02:30:00"])
@pytest.mark.rule(61)
def test_a_time_without_zone_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time zone"):
        parse_time(text, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "", "13am", "2026-11-22", "yesterday", "2026-11-22 25:00Z", "2026-02-30 10:00Z", "14:60Z", "2026-11-22 14:05 CET",
        "2026-11-22 14:05+15", "10 lightyears ago", "min ago", "2026-11-22 14:05Z and more", "99999999999 days ago",
    ],
)  # fmt: skip
@pytest.mark.rule(61)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        parse_time(text, NOW)


def test_the_future_is_refused() -> None:
    with pytest.raises(UsageError, match="is in the future: it is 2026-11-22 14:30:00Z"):
        parse_time("2026-11-22 14:31Z", NOW)


def test_times_are_shown_in_utc_and_on_this_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    import time  # noqa: PLC0415  for its tzset

    try:
        for zone, shown in (
            ("UTC", "2026-11-22 23:05:00Z"),
            ("CET-1", "2026-11-22 23:05:00Z (2026-11-23 00:05:00+01:00 here)"),
            ("EST5", "2026-11-22 23:05:00Z (18:05:00-05:00 here)"),
        ):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert show_moment(utc(2026, 11, 22, 23, 5)) == shown
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({}, {}),
        ({"immediate": True}, {"recovery_target": "immediate"}),
        (
            {"time": "2026-11-22 14:05:00.5+01"},
            {"recovery_target_time": "2026-11-22 13:05:00.500000+00", "recovery_target_inclusive": "on"},
        ),
        ({"lsn": "16/b374d848", "exclusive": True}, {"recovery_target_lsn": "16/B374D848", "recovery_target_inclusive": "off"}),
        ({"xid": "4294968042"}, {"recovery_target_xid": "4294968042", "recovery_target_inclusive": "on"}),
        ({"name": "before the move"}, {"recovery_target_name": "before the move"}),
    ],
)
def test_settings_of_targets(asked: dict[str, str], settings: dict[str, str]) -> None:
    assert choose_target(NOW, **asked).settings() == settings  # type: ignore[arg-type] # booleans among texts


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"time": "14:05Z", "lsn": "0/1"}, "--to-time and --to-lsn contradict"),
        ({"name": "x", "immediate": True}, "--to-name and --immediate contradict"),
        ({"exclusive": True}, "--exclusive needs"),
        ({"name": "x", "exclusive": True}, "--exclusive needs"),
        ({"immediate": True, "exclusive": True}, "--exclusive needs"),
        ({"xid": "2"}, "not a transaction id"),
        ({"xid": "0x10"}, "not a transaction id"),
        ({"xid": "18446744073709551619"}, "not a transaction id"),
        ({"lsn": "now"}, "not a WAL position"),
        ({"name": ""}, "not the name of a restore point"),
        ({"name": "ä" * 32}, "not the name of a restore point"),
    ],
)
def test_targets_that_make_no_sense(asked: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_target(NOW, **asked)  # type: ignore[arg-type] # booleans among texts


def test_targets_are_described() -> None:
    assert Target("lsn", lsn=Lsn(0xD00140), exclusive=True).describe() == "LSN 0/D00140, exclusive"
    assert Target("name", name="before").describe() == "restore point 'before'"
