import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import UsageError
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Kind, Segment, classify, history_name

SIZES = [1 << shift for shift in range(20, 31)]
sizes = st.sampled_from(SIZES)
timelines = st.integers(1, 2**32 - 1).map(Timeline)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    size = draw(sizes)
    return Segment(draw(timelines), draw(st.integers(1, 2**64 // size - 2)), size)


@pytest.mark.rule(9)
@given(segments())
def test_a_name_stands_for_one_segment_at_every_size(segment: Segment) -> None:
    assert Segment.parse(segment.name, segment.size_bytes) == segment
    assert classify(segment.name) is Kind.SEGMENT
    assert segment.next().previous() == segment
    assert segment.next().start == segment.end
    assert segment.end - segment.start == segment.size_bytes
    assert segment.name.startswith(segment.folder)


@pytest.mark.rule(9)
@given(segments(), st.integers(0, 2**30))
def test_a_position_lies_in_one_segment_and_an_end_in_that_of_its_last_byte(segment: Segment, offset: int) -> None:
    lsn = Lsn(segment.start + offset % segment.size_bytes)
    assert Segment.holding(segment.timeline, lsn, segment.size_bytes) == segment
    assert Segment.ending(segment.timeline, lsn + 1, segment.size_bytes) == segment
    assert Segment.ending(segment.timeline, segment.start, segment.size_bytes) == segment.previous()


@given(segments(), segments())
def test_names_of_a_timeline_sort_as_their_segments(one: Segment, other: Segment) -> None:
    other = Segment(one.timeline, other.number % (2**64 // one.size_bytes), one.size_bytes)
    assert (one.name < other.name) == (one < other)


@pytest.mark.rule(9)
@pytest.mark.parametrize(
    ("size", "before", "after"),
    [
        (16 << 20, "0000000100000000000000FF", "000000010000000100000000"),
        (1 << 20, "000000010000000000000FFF", "000000010000000100000000"),
        (1 << 30, "00000001000000AB00000003", "00000001000000AC00000000"),
    ],
)
def test_the_last_segment_of_four_gigabytes(size: int, before: str, after: str) -> None:
    assert Segment.parse(before, size).next().name == after


@pytest.mark.parametrize("name", ["000000010000000000000100", "00000001000000000000000", "00000000000000000000000A", "x", ""])
def test_what_names_no_segment_of_sixteen_megabytes(name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a WAL segment"):
        Segment.parse(name, 16 << 20)


@pytest.mark.parametrize("size", [0, 1, 1 << 19, (16 << 20) + 1, 3 << 20, 1 << 31])
def test_sizes_that_no_segment_has(size: int) -> None:
    with pytest.raises(ValueError, match="no size of a WAL segment"):
        Segment(Timeline(1), 1, size)


@pytest.mark.rule(5)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("00000001000000000000000D", Kind.SEGMENT),
        ("00000001000000000000000D.partial", Kind.PARTIAL),
        ("00000001000000000000000D.00000028.backup", Kind.BACKUP),
        ("00000002.history", Kind.HISTORY),
        ("00000000.history", None),
        ("00000001000000000000000d", None),
        ("00000001000000000000000D.partial.tmp", None),
        ("../00000002.history", None),
        ("backup_label", None),
    ],
)
def test_what_an_archive_is_handed(name: str, kind: Kind | None) -> None:
    assert classify(name) is kind


def test_a_timeline_is_eight_digits() -> None:
    assert history_name(Timeline(10)) == "0000000A.history"
    assert Timeline.parse("0000000A") == 10
    for text in ("00000000", "A", "0000000a", "000000010"):
        with pytest.raises(UsageError, match="not a timeline"):
            Timeline.parse(text)
