"""Which segment makes a tablespace, in whatever order a plan reads them."""

import pytest

from clipper_backup.ops.restore.later_tablespaces import Watch
from clipper_backup.wal_names import Segment
from fixtures.wal_bytes import WalWriter

OID, PAGE = 16387, 8192


def with_a_tablespace(*, over_the_border: bool) -> tuple[dict[Segment, bytes], list[Segment]]:
    """Segments 3 to 5; a record near the end of 4, or from there into 5; and those that hold its last byte."""
    writer = WalWriter(3)
    border = writer.first.next().end
    while border - writer.here > 20_000:
        writer.other(5000)
    room = border - writer.here
    writer.other(room - 24 * (1 + room // PAGE) - 24 - 3 - 5 - (50 if over_the_border else 400))
    writer.tablespace(OID, b"/srv/" + b"x" * 60)
    made = writer.records[-1]
    assert (made.end > border) is over_the_border
    writer.other(5000)
    segments = writer.segments()
    return segments, [segment for segment in segments if segment.start < made.end <= segment.end]


@pytest.mark.rule(70)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)], ids=str)
def test_a_tablespace_is_of_the_segment_that_makes_it(order: tuple[int, ...]) -> None:
    """To the latest a plan reads from the end backwards; a stop before that segment needs no folder."""
    segments, made = with_a_tablespace(over_the_border=False)
    watch = Watch(lambda segment: [segments[segment]], PAGE)
    for number in order:
        assert b"".join(watch(sorted(segments)[number]) or ()) == segments[sorted(segments)[number]]
    assert list(watch.created) == made == [sorted(segments)[1]]


@pytest.mark.rule(70)
def test_one_that_goes_over_the_border_is_of_the_second() -> None:
    """Also where its beginning was read while others were open."""
    segments, made = with_a_tablespace(over_the_border=True)
    third, fourth, fifth = sorted(segments)
    watch = Watch(lambda segment: [segments[segment]], PAGE)
    opened = watch(third)
    assert opened is not None
    next(iter(opened))
    for segment in (fourth, fifth):
        for _ in watch(segment) or ():
            pass
    assert list(watch.created) == made == [fifth]
