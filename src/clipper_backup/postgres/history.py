"""Timeline histories as PostgreSQL writes them (timeline.c): which timelines came before, and where each was left."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from clipper_backup.errors import IntegrityError
from clipper_backup.values import Lsn, Timeline

_MADE = b"# clipper-backup:"
_LINE = re.compile(r"\s*([0-9]{1,10})\s+([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})(?:\s.*)?")


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A timeline before, and the LSN where the next one left it, as the file says it."""

    timeline: Timeline
    left_at: Lsn


def parse_history(data: bytes, name: str) -> list[Ancestor]:
    """The ancestors that the history *name* (`00000003.history`) lists, oldest first.

    IntegrityError unless the timelines rise and stay below its own. Their LSNs may fall: who recovers to a timeline and stops
    before it begins gets such a history from PostgreSQL (docs/design/repository-wal.md, Timelines and lines).
    """
    own = Timeline.parse(name.removesuffix(".history"))
    ancestors: list[Ancestor] = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise IntegrityError(f"{name}, line {number} is no line of a timeline history")
        timeline = int(match[1])
        below = ancestors[-1].timeline if ancestors else 0
        if not below < timeline < own:
            raise IntegrityError(f"{name}, line {number}: timeline {timeline} cannot stand there")
        ancestors.append(Ancestor(Timeline(timeline), Lsn((int(match[2], 16) << 32) + int(match[3], 16))))
    if own == 1 or not ancestors:
        raise IntegrityError(f"{name} names no timeline that it comes from")
    return ancestors


def is_made(data: bytes) -> bool:
    """Whether a restore of ours made this one, to keep a number taken whose own history cannot be read."""
    return data.startswith(_MADE)


def told_history(ancestors: Iterable[Ancestor]) -> bytes:
    """The history that these give, in PostgreSQL's own form; its reasons are not known."""
    return "".join(f"{int(each.timeline)}\t{each.left_at}\tas the base backup has it\n" for each in ancestors).encode()


def made_history(timeline: Timeline) -> bytes:
    """The history that stands for one which cannot be read: PostgreSQL asks only whether it exists."""
    return _MADE + f" the history of timeline {int(timeline)} cannot be read; its number stays taken\n".encode()
