"""Names of WAL files and the arithmetic behind them, at every segment size (PostgreSQL: xlog_internal.h)."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Self

from clipper_backup.errors import UsageError
from clipper_backup.values import Lsn, Timeline

SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = 1 << 20, 1 << 30
_LOG_BYTES = 1 << 32
"""What the middle eight digits of a segment's name count."""


class Kind(Enum):
    """What PostgreSQL hands to an archive."""

    SEGMENT = "segment"
    PARTIAL = "partial segment"
    BACKUP = "backup history"
    HISTORY = "timeline history"


_KINDS = {
    Kind.SEGMENT: "[0-9A-F]{24}",
    Kind.PARTIAL: r"[0-9A-F]{24}\.partial",
    Kind.BACKUP: r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup",
    Kind.HISTORY: r"[0-9A-F]{8}\.history",
}


def classify(name: str) -> Kind | None:
    """What a file with this name is; None when PostgreSQL gives no such name to an archive. Timeline 0 does not exist."""
    if name.startswith("0" * 8):
        return None
    return next((kind for kind, pattern in _KINDS.items() if re.fullmatch(pattern, name)), None)


def is_segment_size(size_bytes: int) -> bool:
    """Whether PostgreSQL can have segments of this size: a power of two from 1 MiB to 1 GiB."""
    return SEGMENT_BYTES_MIN <= size_bytes <= SEGMENT_BYTES_MAX and size_bytes & (size_bytes - 1) == 0


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One segment: its timeline, its number (start LSN ÷ size), and the size of all segments of its system in bytes."""

    timeline: Timeline
    number: int
    size_bytes: int

    def __post_init__(self) -> None:
        if not is_segment_size(self.size_bytes):
            raise ValueError(f"no size of a WAL segment: {self.size_bytes}")
        if self.number < 0 or self.number >= 2**64 // self.size_bytes:
            raise ValueError(f"no number of a WAL segment of {self.size_bytes} bytes: {self.number}")

    @classmethod
    def parse(cls, name: str, size_bytes: int) -> Self:
        """Read a name of 24 digits; UsageError when no segment of this size has it."""
        if classify(name) is Kind.SEGMENT:
            log, part = int(name[8:16], 16), int(name[16:], 16)
            per_log = _LOG_BYTES // size_bytes
            if part < per_log:
                return cls(Timeline.parse(name[:8]), log * per_log + part, size_bytes)
        raise UsageError(f"not the name of a WAL segment of {size_bytes} bytes: {name!r}")

    @classmethod
    def holding(cls, timeline: Timeline, lsn: int, size_bytes: int) -> Self:
        """The segment in which the byte at *lsn* lies: for a start."""
        return cls(timeline, lsn // size_bytes, size_bytes)

    @classmethod
    def ending(cls, timeline: Timeline, end: int, size_bytes: int) -> Self:
        """The segment of the last byte before *end*: for the end of a record or of a backup. ValueError at 0."""
        return cls(timeline, (end - 1) // size_bytes, size_bytes)

    @property
    def name(self) -> str:
        """`000000010000000A000000FE`."""
        per_log = _LOG_BYTES // self.size_bytes
        return f"{self.timeline}{self.number // per_log:08X}{self.number % per_log:08X}"

    @property
    def folder(self) -> str:
        """The first sixteen digits: what the segments of 4 GiB of WAL share."""
        return self.name[:16]

    @property
    def start(self) -> Lsn:
        """Where it begins."""
        return Lsn(self.number * self.size_bytes)

    @property
    def end(self) -> Lsn:
        """Where the next one begins."""
        return Lsn((self.number + 1) * self.size_bytes)

    def next(self) -> Self:
        """The one behind it, on the same timeline."""
        return type(self)(self.timeline, self.number + 1, self.size_bytes)

    def previous(self) -> Self:
        """The one before it, on the same timeline; ValueError before the first."""
        return type(self)(self.timeline, self.number - 1, self.size_bytes)

    def __str__(self) -> str:
        return self.name


def history_name(timeline: Timeline) -> str:
    """`00000002.history`."""
    return f"{timeline}.history"
