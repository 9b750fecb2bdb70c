import pytest

from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.history import Ancestor, is_made, made_history, parse_history
from clipper_backup.values import Lsn, Timeline


def ancestor(timeline: int, lsn: str) -> Ancestor:
    return Ancestor(Timeline(timeline), Lsn.parse(lsn))


def test_what_postgresql_writes() -> None:
    text = b"1\t0/B7D618\tno recovery target specified\n\n2\t1/AF000000\tbefore 2026-11-22 14:05:00+00\n"
    assert parse_history(text, "00000003.history") == [ancestor(1, "0/B7D618"), ancestor(2, "1/AF000000")]


def test_positions_may_fall() -> None:
    """Seen: recovery to timeline 2 that stops before it begins."""
    assert parse_history(b"1\t0/B7D618\n2\t0/AFFF48\n", "00000003.history") == [ancestor(1, "0/B7D618"), ancestor(2, "0/AFFF48")]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"# only a comment\n",
        b"2\t0/1\n1\t0/2\n",
        b"1\t0/1\n1\t0/2\n",
        b"3\t0/1\n",
        b"0\t0/1\n",
        b"1 0\n",
        b"1\n",
        b"\x00\x01\n",
        b"1\t0/123456789\n",
    ],
)
def test_what_is_no_history_of_timeline_3(text: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"00000003\.history"):
        parse_history(text, "00000003.history")


def test_timeline_1_has_none() -> None:
    with pytest.raises(IntegrityError, match="cannot stand there"):
        parse_history(b"1\t0/1\n", "00000001.history")


def test_a_made_one_is_known_as_such_and_has_no_ancestors() -> None:
    made = made_history(Timeline(5))
    assert made == b"# clipper-backup: the history of timeline 5 cannot be read; its number stays taken\n"
    assert is_made(made)
    assert not is_made(b"1\t0/1\n")
    with pytest.raises(IntegrityError, match="comes from"):
        parse_history(made, "00000005.history")
