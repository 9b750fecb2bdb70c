"""The server whose data folder a restore replaces: on which timeline it was, by its own files, and what it says of others.

Whoever replaces a server without naming an instant or a timeline wants what that server had. Its archive may know nothing of the
timeline that it was on: a server that was restored does not archive before somebody switches it on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.errors import IntegrityError
from clipper_backup.format.wal_objects import digest_of
from clipper_backup.ops.restore.recovery import SIGNALS
from clipper_backup.postgres.data_folder import WAL_FOLDER, DataFolder
from clipper_backup.postgres.history import parse_history
from clipper_backup.repository.lines import Line
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Kind, classify, history_name

_LABEL = "backup_label"


@dataclass(frozen=True, slots=True)
class Former:
    """A server that wrote, or followed one that did. `timeline` is the newest that its files are of.

    `wrote` is False for a standby: what it has is of the server that it followed. `histories` are those of its pg_wal that
    PostgreSQL wrote and that can be read.
    """

    timeline: Timeline
    wrote: bool
    histories: Mapping[Timeline, bytes]

    def line(self, timeline: Timeline) -> Line | None:
        """By its own history file; None without one."""
        if timeline == 1:
            return Line.of(timeline, [])
        data = self.histories.get(timeline)
        return None if data is None else Line.of(timeline, parse_history(data, history_name(timeline)))

    def is_along(self, line: Line) -> bool:
        """Whether a restore along *line* goes along what it wrote: that is its own timeline, with the same ancestors.

        A standby's need only be on the way.
        """
        if not self.wrote:
            return line.part(self.timeline) is not None
        return self.timeline == line.timeline and self.line(self.timeline) in {None, line}


def former_server(data: Path, clock: Clock) -> Former | None:
    """The server of the data folder *data*; None where none has opened it since it was restored: then nothing is its own."""
    if (data / _LABEL).exists() or (data / SIGNALS[0]).exists():
        return None
    folder = DataFolder(data, clock)
    histories = dict(_histories(folder))
    names = [path.name for path in (data / WAL_FOLDER).iterdir()]
    segments = [Timeline.parse(name[:8]) for name in names if classify(name) is Kind.SEGMENT]
    newest = max([folder.control().timeline, *segments, *histories])
    return Former(newest, not (data / SIGNALS[1]).exists(), histories)


def _histories(folder: DataFolder) -> Iterator[tuple[Timeline, bytes]]:
    for path in sorted(folder.wal.iterdir()):
        if classify(path.name) is not Kind.HISTORY:
            continue
        timeline = Timeline.parse(path.name[:8])
        data = folder.history(timeline)
        try:
            if data is not None and parse_history(data, path.name):
                yield timeline, data
        except IntegrityError:
            continue  # it says nothing, and is saved with the rest


def unarchived_histories(former: Former, catalog: WalCatalog) -> list[Timeline]:
    """The histories that the archive lacks: their numbers would be given away once more (rule 97), and nothing leads there.

    One that was claimed with other bytes is not the archive's, or was put together by a restore of ours.
    """
    listed, lacking = catalog.histories(), []
    for timeline, data in sorted(former.histories.items()):
        claim = catalog.history_claim(timeline)
        stored = listed[timeline].stored if timeline in listed else None
        same = claim is not None and digest_of([data], bytes.fromhex(claim.salt)).hex() == claim.digest
        if claim is None or (stored is None and same):
            lacking.append(timeline)
    return lacking
