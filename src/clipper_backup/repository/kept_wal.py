"""WAL that lies in a dead primary's pg_wal and in no archive: its last, unfinished segment holds the newest commits (rule 54).

What counts is what follows record by record on the archive's end, each with its CRC, on pages that say that they belong there.
Behind it lie old pages of a recycled file, or what was being written: zeros stand for that.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from blake3 import blake3

from clipper_backup.errors import ClipperError, IntegrityError
from clipper_backup.format.base_documents import Claim
from clipper_backup.format.wal_objects import digest_of
from clipper_backup.postgres.history import Ancestor
from clipper_backup.postgres.wal_pages import PageCheck, WalLayout
from clipper_backup.postgres.wal_records import Kind, as_moment
from clipper_backup.repository.line_records import LineRecords, OpenSegment
from clipper_backup.repository.lines import Line
from clipper_backup.repository.restore_plan import KeptSegment
from clipper_backup.values import Lsn
from clipper_backup.wal_names import Segment

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """The segments that go on behind an archive's end, in order, up to `ends_at`, where the last record ends.

    `folders` says where each of them lies. `last_commit_at`: when the last transaction ended in them, by the server's clock;
    None when none did.
    """

    folders: tuple[Path, ...]
    segments: tuple[KeptSegment, ...]
    segment_bytes: int
    ends_at: Lsn
    last_commit_at: datetime | None

    @property
    def folder(self) -> Path:
        """Where the newest of them lies."""
        return self.folders[-1]

    @property
    def whole(self) -> list[Path]:
        """The files that a record behind them shows to be finished: those may be archived."""
        placed = zip(self.folders, self.segments, strict=True)
        return [folder / each.name for folder, each in placed if each.used_bytes == self.segment_bytes]

    @property
    def names(self) -> list[Segment]:
        """The segments; there is at least one."""
        return [Segment.parse(each.name, self.segment_bytes) for each in self.segments]

    def open(self, segment: Segment) -> Iterator[bytes] | None:
        """As `OpenSegment`: one of them, checked."""
        placed = zip(self.folders, self.segments, strict=True)
        found = next(((folder, each) for folder, each in placed if each.name == segment.name), None)
        return None if found is None else chunks_of_kept(*found, self.segment_bytes)

    def __contains__(self, segment: Segment) -> bool:
        return any(each.name == segment.name for each in self.segments)


def chunks_of_kept(folder: Path, kept: KeptSegment, segment_bytes: int) -> Iterator[bytes]:
    """A kept segment, whole. IntegrityError when it is not what it was when it was found; ClipperError when it cannot be read."""
    path, hasher, left = folder / kept.name, blake3(), kept.used_bytes
    try:
        with path.open("rb") as opened:
            while left and (piece := opened.read(min(_READ_BYTES, left))):
                hasher.update(piece)
                left -= len(piece)
                yield piece
    except OSError as error:
        raise ClipperError(f"cannot read {path}: {error.strerror}") from error
    if left or hasher.hexdigest() != kept.digest:
        raise IntegrityError(f"{path} is not what it was when the restore was planned", hints=["begin the restore again"])
    for at in range(kept.used_bytes, segment_bytes, _READ_BYTES):
        yield bytes(min(_READ_BYTES, segment_bytes - at))


def find_kept(
    folders: Sequence[Path],
    line: Line,
    behind: Segment,
    layout: WalLayout,
    archived: OpenSegment,
    claim_of: Callable[[Segment], Claim | None],
) -> Kept | None:
    """What *folders* have of *line* behind the segment *behind*, the last one that is *archived*; None for nothing.

    Of a segment that lies in several the first one's is taken. One with other content than its claim says ends it, also that
    one: then what follows is of another history. IntegrityError and the store's errors are of what is archived.
    """
    ancestors = [Ancestor(part.timeline, part.end) for part in line.parts if part.end is not None]

    def path_of(segment: Segment) -> Path:
        paths = (folder / segment.name for folder in folders)
        return next((path for path in paths if path.is_file()), folders[0] / segment.name)

    def pages(segment: Segment) -> Iterator[bytes]:
        """Up to the first that does not belong there, or is not whole."""
        check = PageCheck(segment, layout, ancestors, segment.name)
        with path_of(segment).open("rb") as opened:
            while len(page := opened.read(layout.page_bytes)) == layout.page_bytes:
                try:
                    check.feed(page)
                except IntegrityError:
                    return
                yield page

    def opened(segment: Segment) -> Iterator[bytes] | None:
        if segment.number <= behind.number:
            found = archived(segment)
            return None if found is None else iter(found)
        return pages(segment) if path_of(segment).is_file() else None

    try:
        if _is_other(path_of(behind), claim_of(behind)):
            return None
        records = LineRecords(line, opened, checked=True)
        ends_at, newest, segment = behind.end, None, behind
        for _ in records.of(behind) or ():
            pass
        while records.reader.complete:
            segment = line.segment(segment.number + 1, segment.size_bytes)
            found = None if _is_other(path_of(segment), claim_of(segment)) else records.of(segment, every_from=0)
            if found is None:
                break
            for record in found:
                ends_at = record.end
                if record.kind in {Kind.COMMIT, Kind.ABORT} and record.at is not None:
                    newest = max(newest or record.at, record.at)
        if ends_at == behind.end:
            return None
        last = Segment.ending(line.timeline, ends_at, behind.size_bytes)
        segments = list(line.segments(behind.number + 1, last.number, behind.size_bytes))
        kept = tuple(_kept(path_of(segment), segment, ends_at) for segment in segments)
    except OSError as error:
        raise ClipperError(f"cannot read {error.filename}: {error.strerror}") from error
    folders_of = tuple(path_of(segment).parent for segment in segments)
    return Kept(folders_of, kept, behind.size_bytes, ends_at, None if newest is None else as_moment(newest))


def _kept(path: Path, segment: Segment, ends_at: Lsn) -> KeptSegment:
    used_bytes, hasher = min(ends_at, segment.end) - segment.start, blake3()
    with path.open("rb") as opened:
        left = used_bytes
        while left and (piece := opened.read(min(_READ_BYTES, left))):
            hasher.update(piece)
            left -= len(piece)
    return KeptSegment(name=segment.name, used_bytes=used_bytes, digest=hasher.hexdigest())


def _is_other(path: Path, claim: Claim | None) -> bool:
    """Whether a segment is there, and not the one that was claimed."""
    if claim is None or not path.is_file():
        return False
    with path.open("rb") as opened:
        return digest_of(iter(lambda: opened.read(_READ_BYTES), b""), bytes.fromhex(claim.salt)).hex() != claim.digest
