"""The records of segments on a line, wherever reading begins: a record counts in the segment that holds its last byte."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from clipper_backup.postgres.wal_records import SEGMENT_HEAD_BYTES, Record, RecordReader, continued_bytes, is_within_a_record
from clipper_backup.repository.lines import Line
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.wal_names import Segment

OpenSegment = Callable[[Segment], Iterable[bytes] | None]
"""The bytes of a segment, which count only when the iterator came to its end; None when there is no such object."""


def chunks_of(reader: WalReader) -> OpenSegment:
    """The segments of the archive that *reader* reads."""

    def opened(segment: Segment) -> Iterator[bytes] | None:
        found = reader.segment(segment)
        return None if found is None else found.chunks

    return opened


class LineRecords:
    """Reads segments on *line*, and those before them where a record began there. Errors are those of *open_segment*.

    *checked* is `RecordReader`'s.

    `lacking` is the segment in which a record began that ends in the one read last, when that is not there.
    """

    def __init__(self, line: Line, open_segment: OpenSegment, *, checked: bool = False) -> None:
        self.line = line
        self._open = open_segment
        self._reader = RecordReader(checked=checked)
        self.lacking: Segment | None = None

    @property
    def reader(self) -> RecordReader:
        """What it says of the segment whose records were taken last."""
        return self._reader

    def of(self, segment: Segment, *, every_from: int | None = None) -> Iterator[Record] | None:
        """As `RecordReader.read`; None when *segment* is not there."""
        self.lacking = None
        chunks = self._open(segment)
        if chunks is None:
            return None
        if not self._reader.follows(segment):
            chunks = self._after_what_it_begins_in(segment, chunks)
        return self._reader.read(segment, chunks, every_from=every_from)

    def _after_what_it_begins_in(self, segment: Segment, chunks: Iterable[bytes]) -> Iterable[bytes]:
        """Read the segments before *segment* in which a record begins that ends in it; where they are there."""
        head, chunks = _peeked(chunks)
        held: list[tuple[Segment, Iterable[bytes]]] = []
        here, more = segment, continued_bytes(head) > 0
        while more and here.number > 0:
            here = self.line.segment(here.number - 1, here.size_bytes)
            found = self._open(here)
            if found is None:
                self.lacking = here
                break
            head, before = _peeked(found)
            held.append((here, before))
            more = is_within_a_record(head, here.size_bytes)
        for here, before in reversed(held):
            for _ in self._reader.read(here, before):
                pass
        return chunks


def _peeked(chunks: Iterable[bytes]) -> tuple[bytes, Iterable[bytes]]:
    """The first bytes of *chunks*, and all of them still to be read."""
    source, head = iter(chunks), b""
    while len(head) < SEGMENT_HEAD_BYTES and (piece := next(source, None)) is not None:
        head += piece
    return head, chain([head], source)
