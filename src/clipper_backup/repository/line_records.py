"""The records of segments on a line, wherever reading begins: a record counts in the segment that holds its last byte."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from clipper_backup.postgres.wal_records import Record, RecordReader, begins_amid_a_record
from clipper_backup.repository.lines import Line
from clipper_backup.wal_names import Segment

OpenSegment = Callable[[Segment], Iterable[bytes] | None]
"""The bytes of a segment, which count only when the iterator came to its end; None when there is no such object."""

_HEAD_BYTES = 24


class LineRecords:
    """Reads segments on *line*, and those before them where a record began there. Errors are those of *open_segment*."""

    def __init__(self, line: Line, open_segment: OpenSegment) -> None:
        self.line = line
        self._open = open_segment
        self._reader = RecordReader()

    @property
    def reader(self) -> RecordReader:
        """What it says of the segment whose records were taken last."""
        return self._reader

    def of(self, segment: Segment, *, every_from: int | None = None) -> Iterator[Record] | None:
        """As `RecordReader.read`; None when *segment* is not there."""
        chunks = self._open(segment)
        if chunks is None:
            return None
        if not self._reader.follows(segment):
            chunks = self._after_what_it_begins_in(segment, chunks)
        return self._reader.read(segment, chunks, every_from=every_from)

    def _after_what_it_begins_in(self, segment: Segment, chunks: Iterable[bytes]) -> Iterable[bytes]:
        """Read the segments before *segment* in which a record begins that goes on in it; where they are there."""
        held = [(segment, iter(chunks))]
        while True:
            here, source = held[-1]
            head = _head(source)
            held[-1] = (here, chain([head], source))
            if not begins_amid_a_record(head) or here.number == 0:
                break
            before = self.line.segment(here.number - 1, here.size_bytes)
            found = self._open(before)
            if found is None:
                break
            held.append((before, iter(found)))
        while len(held) > 1:
            for _ in self._reader.read(*held.pop()):
                pass
        return held[0][1]


def _head(source: Iterator[bytes]) -> bytes:
    head = b""
    while len(head) < _HEAD_BYTES and (piece := next(source, None)) is not None:
        head += piece
    return head
