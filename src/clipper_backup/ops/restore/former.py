"""The server whose data folder a restore replaces: on which timeline it was, by its own files, and what it says of others.

Whoever replaces a server without naming an instant or a timeline wants what that server had. Its archive may know nothing of the
timeline that it was on: a server that was restored does not archive before somebody switches it on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.errors import IntegrityError, WalGapError
from clipper_backup.format.wal_objects import digest_of
from clipper_backup.ops.restore.recovery import SIGNALS
from clipper_backup.ops.restore.target_dir import RAN
from clipper_backup.postgres.data_folder import WAL_FOLDER, DataFolder
from clipper_backup.postgres.history import parse_history
from clipper_backup.repository.lines import Line
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Kind, classify, history_name

_LABEL = "backup_label"
_HEADER_BYTES = 40
"""Of a segment's first page: behind it lies the record that follows on the end of the segment before."""


@dataclass(frozen=True, slots=True)
class Former:
    """A server that wrote, or followed one that did. `timeline` is the newest that its files are of.

    `wrote` is False for a standby: what it has is of the server that it followed. `histories` are those of its pg_wal that
    PostgreSQL wrote and that can be read. `reached` is an LSN behind which WAL was on its disk, and may be in its tables, by its
    pg_control: its last checkpoint's record begins there, or a standby was there at least.
    """

    timeline: Timeline
    wrote: bool
    histories: Mapping[Timeline, bytes]
    reached: Lsn

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
    """The server of the data folder *data*; None where none has opened it since it was restored: then nothing is its own.

    A recovery.signal says that only where pg_control does: somebody may have made one for a server that wrote.
    """
    folder = DataFolder(data, clock)
    control = folder.control()
    if (data / _LABEL).exists() or ((data / SIGNALS[0]).exists() and control.state not in RAN):
        return None
    histories = dict(_histories(folder))
    names = [path.name for path in (data / WAL_FOLDER).iterdir()]
    segments = [Timeline.parse(name[:8]) for name in names if classify(name) is Kind.SEGMENT]
    newest = max([control.timeline, *segments, *histories])
    reached = max(control.checkpoint, control.minimum_recovery_end)
    return Former(newest, not (data / SIGNALS[1]).exists(), histories, reached)


def say_short(former: Former, ends_at: Lsn) -> str | None:
    """What is lost where a restore along the timeline of *former* ends at *ends_at*; None where that is not before it was."""
    if ends_at + _HEADER_BYTES >= former.reached:
        return None
    return (
        f"the server there was at LSN {former.reached} at least, and the WAL that is archived or in its {WAL_FOLDER} goes on to"
        f" {ends_at} only: what it committed between lies nowhere but in its tables"
    )


def refuse_short(former: Former, data: Path, ends_at: Lsn) -> None:
    """WalGapError where a restore would lose what nothing but the data folder *data* has any more."""
    lost = say_short(former, ends_at)
    if lost is not None:
        raise WalGapError(
            lost,
            hints=[
                f"{data} holds it: if it is whole, start that server again, and take a base backup",
                "beside it, without what is missing: --target-dir another folder",
                f"in its place, and lose that: --timeline {int(former.timeline)}; its {WAL_FOLDER} is kept",
            ],
        )


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
