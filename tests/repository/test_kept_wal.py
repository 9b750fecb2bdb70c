"""What counts of a dead primary's pg_wal: records that follow on the archive's end, whatever lies behind and beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.history import Ancestor
from clipper_backup.postgres.wal_pages import WalLayout
from clipper_backup.postgres.wal_records import Kind, Record, as_moment
from clipper_backup.repository.kept_wal import Kept, chunks_of_kept, find_kept
from clipper_backup.repository.lines import Line
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.sweeps import chosen
from fixtures.wal_archive import MADE_AT, MIB, SYSTEM, MadeArchive
from fixtures.wal_bytes import WalWriter

LAYOUT = WalLayout(15, int(SYSTEM), MIB, 8192)
LINE = Line.of(Timeline(1), [])
PAGE = 8192


def load(*, timeline: int = 1, number: int = 1, segments: int = 3) -> WalWriter:
    """Commits among records of all lengths, one of them longer than a segment, up to amid the last segment."""
    writer = WalWriter(number, timeline=timeline)
    xid, end = 700, writer.first.start + segments * MIB
    while writer.here < end - MIB // 2:
        xid += 1
        writer.other((xid * 37) % 9000)
        writer.end(Kind.COMMIT, xid, xid * 1000)
    return writer


@dataclass
class Left:
    """A pg_wal that holds all that *writer* wrote; the archive holds the first segment."""

    folder: Path
    writer: WalWriter

    def __post_init__(self) -> None:
        self.archive = MadeArchive(MemoryStore(VirtualClock(MADE_AT)))
        self.content = self.writer.segments()
        for segment, data in self.content.items():
            (self.folder / segment.name).write_bytes(data)
        self.behind = self.writer.first
        self.archive.segment(self.behind.timeline, self.behind.number, plain=self.content[self.behind])

    @property
    def last(self) -> Segment:
        return max(self.content)

    def put(self, segment: Segment, data: bytes) -> None:
        (self.folder / segment.name).write_bytes(data)

    def find(self, line: Line = LINE) -> Kept | None:
        return find_kept(
            [self.folder], line, self.behind, LAYOUT, self._archived, WalCatalog(self.archive.store, SYSTEM, MIB).claim
        )

    def _archived(self, segment: Segment) -> list[bytes] | None:
        return [self.content[segment]] if segment <= self.behind else None


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path, load())


def ends_of(left: Left, kept: Kept | None) -> tuple[Record, list[str]]:
    assert kept is not None
    (last,) = [record for record in left.writer.records if record.end == kept.ends_at]
    return last, [segment.name for segment in kept.names]


@pytest.mark.rule(54)
def test_whole_segments_and_the_last_unfinished_one(left: Left) -> None:
    kept = left.find()
    last, names = ends_of(left, kept)
    assert kept is not None
    assert last == left.writer.records[-1]
    assert names == [segment.name for segment in sorted(left.content)[1:]]
    assert kept.last_commit_at == as_moment(last.at or 0)
    for segment in kept.names:
        assert b"".join(kept.open(segment) or ()) == left.content[segment]
    assert kept.open(left.behind) is None


@pytest.mark.rule(102)
def test_wherever_the_writing_was_cut_off(left: Left) -> None:
    """Behind it old pages lie, or in its page what was never written whole: what counts ends with the last whole record."""
    data = left.content[left.last]
    begin = left.last.start
    end = left.writer.here - begin
    old = load(number=900).segments()[Segment(Timeline(1), 900, MIB)]
    for cut in chosen(range(0, end + 1, 997), 40):
        torn = data[:cut] + b"\xa5" * (-cut % PAGE)
        left.put(left.last, torn + old[len(torn) :])
        whole = [record for record in left.writer.records if record.end <= begin + cut]
        kept = left.find()
        assert kept is not None
        assert kept.ends_at == whole[-1].end, cut
        if left.last in kept:
            held = b"".join(kept.open(left.last) or ())
            assert held == data[: kept.ends_at - begin] + bytes(MIB - (kept.ends_at - begin))


@pytest.mark.rule(54)
def test_a_file_that_was_cut_short_counts_up_to_there(left: Left) -> None:
    """A filesystem was mended, or a copy broken off: of its last page any part may be there."""
    data, begin = left.content[left.last], left.last.start
    for size in (0, 5, 20, 5 * PAGE, 5 * PAGE + 1, 5 * PAGE + 20, 5 * PAGE + 700):
        left.put(left.last, data[:size])
        kept = left.find()
        assert kept is not None
        whole = [record for record in left.writer.records if record.end <= begin + size // PAGE * PAGE]
        assert kept.ends_at == whole[-1].end, size


@pytest.mark.rule(68)
def test_a_record_whose_crc_is_wrong_ends_it(left: Left) -> None:
    behind = [each for each in left.writer.records if each.start > left.behind.end]
    for place in chosen(range(0, len(behind), 5), 20):
        record = behind[place]
        segment = Segment.holding(Timeline(1), record.end - 1, MIB)
        data = bytearray(left.content[segment])
        data[record.end - 1 - segment.start] ^= 1
        left.put(segment, bytes(data))
        kept = left.find()
        before = [each for each in left.writer.records if each.end <= record.start]
        assert (left.behind.end if kept is None else kept.ends_at) == max(before[-1].end, left.behind.end)
        left.put(segment, left.content[segment])


def _other_pages(change: Callable[[bytearray], None]) -> Callable[[Left], None]:
    def do(left: Left) -> None:
        segment = left.behind.next()
        data = bytearray(left.content[segment])
        change(data)
        left.put(segment, bytes(data))

    return do


def _set(at: int, value: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at : at + len(value)] = value

    return change


OTHERS: dict[str, Callable[[Left], None]] = {
    "of another system": _other_pages(_set(24, bytes(8))),
    "of another timeline": _other_pages(_set(4, b"\2")),
    "of another place": _other_pages(_set(8, bytes(8))),
    "of another version": _other_pages(_set(0, b"\x13")),
    "of another segment size": _other_pages(_set(32, b"\0\0\0\1")),
    "cut to nothing": _other_pages(bytearray.clear),
    "gone": lambda left: (left.folder / left.behind.next().name).unlink(),
    "of a server that wrote another segment before": lambda left: left.put(left.behind, bytes(MIB)),
    "what another server claimed": lambda left: left.archive.claim(
        left.behind.next().name, left.archive.header(left.behind.next().name, b"other")
    ),
}


@pytest.mark.rule(10)
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_does_not_follow_is_not_taken(left: Left, other: Callable[[Left], None]) -> None:
    other(left)
    assert left.find() is None


def test_what_was_written_on_after_a_copy_is_another_history(tmp_path: Path) -> None:
    """A clone: its records follow on others than the archive's last one, on pages with the same addresses."""
    left = Left(tmp_path, load())
    clone = WalWriter(1)
    clone.other(3_000)
    while clone.here < left.behind.end + MIB // 2:
        clone.other(5_000)
        clone.end(Kind.COMMIT, 900, 900)
    left.put(left.behind.next(), clone.segments()[left.behind.next()])
    (left.folder / left.behind.name).unlink()
    assert left.find() is None


def test_a_timeline_that_began_in_the_segment_is_followed(tmp_path: Path) -> None:
    """Nothing of it is archived: its first segment begins with the parent's pages."""
    left = Left(tmp_path, load(segments=2))
    parent, child = left.last, Segment(Timeline(2), left.last.number, MIB)
    fork = Lsn((left.writer.records[-9].end + 7) & ~7)
    data = bytearray(left.content[parent])
    for at in range(-(-(fork - parent.start) // PAGE) * PAGE, MIB, PAGE):
        data[at + 4] = 2
    (left.folder / parent.name).unlink()
    left.put(child, bytes(data))
    line = Line.of(Timeline(2), [Ancestor(Timeline(1), fork)])
    last, names = ends_of(left, left.find(line))
    assert (last, names) == (left.writer.records[-1], [child.name])


def test_what_changed_since_is_not_handed_on(left: Left) -> None:
    kept = left.find()
    assert kept is not None
    data = bytearray(left.content[left.last])
    data[100] ^= 1
    left.put(left.last, bytes(data))
    with pytest.raises(IntegrityError, match="is not what it was"):
        list(kept.open(left.last) or ())
    left.put(left.last, bytes(data[:50]))
    with pytest.raises(IntegrityError, match="is not what it was"):
        list(chunks_of_kept(kept.folder, kept.segments[-1], MIB))
