"""Along which timeline a restore goes, and what the server that it replaces left of it behind the archive's end.

The rules are those of docs/design/repository-wal.md, "What a restore reads". Where nobody named a timeline nor an instant, and
the newest one that the archive holds may not be the one in use, this refuses: it is for a person to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from clipper_backup.errors import IntegrityError, MissingError, UsageError, WalGapError
from clipper_backup.ops.restore.former import Former
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.saved_wal import repair_hint
from clipper_backup.postgres.data_folder import WAL_FOLDER
from clipper_backup.postgres.wal_pages import WalLayout
from clipper_backup.repository.kept_wal import Kept, find_kept
from clipper_backup.repository.line_records import OpenSegment
from clipper_backup.repository.lines import Line
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment


@dataclass(frozen=True, slots=True)
class Way:
    """`line` is that of the timeline that was named, or of the newest; `kept` what follows on the archive's end of it.

    `passed_over` are newer timelines that hold nothing, where nobody named one. `beside` is where other timelines end. `notes`
    are for people.
    """

    line: Line
    passed_over: Sequence[Timeline] = ()
    kept: Kept | None = None
    beside: Sequence[Segment] = ()
    notes: tuple[str, ...] = ()


class WayChoice:
    """Chooses by the *catalog* of an archive whose segments *archived* gives, with *layout* (None: no backup can be read).

    *former* is the server that is to be replaced; *folders* are where WAL of it lies, its own pg_wal first. *of_backups* are
    the timelines of base backups.
    """

    def __init__(
        self,
        request: Request,
        catalog: WalCatalog,
        archived: OpenSegment,
        layout: WalLayout | None,
        *,
        of_backups: set[Timeline],
        former: Former | None,
        folders: Sequence[Path],
    ) -> None:
        self._request, self._catalog, self._archived, self._layout = request, catalog, archived, layout
        self._of_backups, self._former, self._folders = of_backups, former, folders

    def choose(self) -> Way:
        """Errors as of `Planner.plan`."""
        named = self._request.timeline
        way = self._unnamed() if named is None else self._named(named)
        way = replace(way, beside=self._catalog.beside(way.line))
        if named is None and self._request.target.kind == "latest" and not self._request.standby and self._former is None:
            self._refuse_older(way)
        former = self._former
        if former is None or former.is_along(way.line):
            return way
        if named is None and self._request.target.kind == "latest":
            self._refuse_other(way.line, former)
        note = (
            f"the server there was on timeline {int(former.timeline)}, along which this restore does not go: what it wrote is"
            f" kept, not replayed; along that one: --timeline {int(former.timeline)}"
        )
        return replace(way, notes=(*way.notes, note))

    def _named(self, named: Timeline) -> Way:
        way = self._with_kept(self._line(named))
        if named > 1 and way.kept is None and self._request.target.kind == "latest" and not self._request.standby:
            self._refuse_empty(way.line)
        return way

    def _unnamed(self) -> Way:
        """Of the newest timeline that holds something, and the newer ones that do not.

        What a dead primary left is something too, and goes on behind what is archived of its timeline; but where the archive
        went on beside that timeline, its server was not the one in use, or not the last: that is for a person to say.
        """
        newest = self._catalog.followed_timeline(self._of_backups)
        newer = [each for each in self._catalog.timelines() if each > newest and self._catalog.newest(each) is None]
        end = self._catalog.newest(newest)
        own = self._former.timeline if self._former is not None and self._former.wrote else None
        tried = [*reversed(newer), newest] if own is None else [own, newest]
        for timeline in dict.fromkeys(each for each in tried if each >= newest):
            if not any(next(folder.glob(f"{timeline}{'?' * 16}"), None) for folder in self._folders):
                continue
            line = self._line(timeline)
            if line.part(newest) is None or (end is not None and not line.holds(end)):
                continue
            way = self._with_kept(line)
            if way.kept is not None:
                return replace(way, passed_over=[each for each in newer if each > timeline])
            if timeline != newest and self._request.target.kind == "latest" and not self._request.standby:
                self._refuse_lost(line)
        return replace(self._with_kept(self._line(newest)), passed_over=newer)

    def _line(self, timeline: Timeline) -> Line:
        """By the archive; where nobody archived its history yet, by that of the server that is replaced."""
        try:
            return self._catalog.line(timeline)
        except MissingError:
            own = None if self._former is None else self._former.line(timeline)
            if own is None:
                raise
            return own

    # -- what was left

    def _with_kept(self, line: Line) -> Way:
        """What lies in the pg_wal there comes first; what a restore saved of it before only where that has nothing."""
        layout = self._layout
        if layout is None or not self._folders:
            return Way(line)
        end = self._end(line)
        behind = line.segment(end.number + 1, end.size_bytes)
        if not any((folder / behind.name).is_file() for folder in self._folders):
            return Way(line)
        mine = self._request.data / WAL_FOLDER
        others = [folder for folder in self._folders if folder != mine]
        tries = [[mine, *others]] if mine in self._folders and self._is_of(line) else []
        tries += [[folder] for folder in others]
        try:
            found = [find_kept(folders, line, end, layout, self._archived, self._catalog.claim) for folders in tries]
        except IntegrityError as error:
            return self._unknown(line, end, error)
        left = [each for each in found if each is not None]
        if not left:
            return Way(line)
        first = found[0] is not None and mine in found[0].folders
        kept = left[0] if first else max(left, key=lambda each: each.ends_at)
        notes = tuple(
            f"{each.folder} has other WAL behind the archive's end, up to LSN {each.ends_at}: it is kept, and not replayed"
            for each in left
            if each.ends_at > kept.ends_at
        )
        return Way(line, kept=kept, notes=notes)

    def _is_of(self, line: Line) -> bool:
        """Whether the timelines of the pg_wal there are those of *line*: a number may have been taken twice."""
        own = None if self._former is None else self._former.line(line.timeline)
        return own is None or own == line

    def _end(self, line: Line) -> Segment:
        """The last segment of *line* that is archived, whatever is missing before it; nothing: the one before it begins."""
        size = self._catalog.segment_bytes
        for part in reversed(line.parts):
            newest = self._catalog.newest(part.timeline)
            if newest is None or newest.end <= part.begin:
                continue
            if line.holds(newest):
                return newest
            if part.end is not None:
                return line.segment(max(part.end // size, 1) - 1, size)
        return line.segment(max(line.parts[-1].begin // size, 1) - 1, size)

    def _unknown(self, line: Line, end: Segment, error: IntegrityError) -> Way:
        """Where the archive's end is damaged nobody can say what follows on it. A target that lies before needs none of it."""
        mine = self._request.data / WAL_FOLDER / end.name
        if self._request.target.kind == "latest" and not self._request.accept_gap:
            raise IntegrityError(
                error.message, hints=[*error.hints, *self.repair(end), "to end before it: --accept-gap"]
            ) from error
        note = f"what goes on behind the archive's end cannot be told: {error.message}"
        return Way(line, notes=(note, *(self.repair(end) if mine.is_file() else ())))

    def repair(self, segment: Segment) -> list[str]:
        """Hints: how a damaged segment of the archive is put right by a file that lies here."""
        paths = (folder / segment.name for folder in self._folders)
        return [repair_hint(path) for path in paths if path.is_file()][:1]

    # -- refusals

    def _refuse_other(self, line: Line, former: Former) -> None:
        """UsageError: the server there was on another timeline than the newest that is archived, and nobody named one."""
        own, ours = int(former.timeline), int(line.timeline)
        if own == ours:
            raise UsageError(
                f"the server in {self._request.data} was on a timeline {own} of its own, and timeline {own} of the archive is"
                " another server's",
                hints=[
                    f"along that of the archive: --timeline {own}; what the server there wrote is kept, and not replayed",
                    "to have what it wrote: if it is whole, start it again, and archive into another place",
                ],
            )
        raise UsageError(
            f"the server in {self._request.data} was on timeline {own}, and the restore would go along timeline {ours}, without"
            " what it wrote there",
            hints=[
                f"to what that server had: --timeline {own}",
                f"to the end of timeline {ours}: --timeline {ours}; its {WAL_FOLDER} is kept, and not replayed",
            ],
        )

    def _refuse_older(self, way: Way) -> None:
        """UsageError when WAL of another timeline was archived later: then the newest by number may not be the one in use."""
        newest = self._catalog.newest(way.line.timeline)
        at = None if newest is None else self._claimed_at(newest)
        if at is None:
            return
        later = [end for end in way.beside if (other := self._claimed_at(end)) is not None and other > at]
        if later:
            ours, theirs = int(way.line.timeline), int(later[-1].timeline)
            raise UsageError(
                f"timeline {ours} is the newest, and timeline {theirs} has WAL of its own that was archived later, up to"
                f" {later[-1]}: which one was in use is for you to say",
                hints=[
                    *(f"to the end of timeline {int(end.timeline)}: --timeline {int(end.timeline)}" for end in later),
                    f"to the end of timeline {ours}: --timeline {ours}",
                ],
            )

    def _claimed_at(self, segment: Segment) -> datetime | None:
        """When its writer claimed it; refreshing renews what the store says of its object, not this."""
        try:
            claim = self._catalog.claim(segment)
        except IntegrityError:
            return None
        return None if claim is None else claim.claimed_at

    def _refuse_lost(self, line: Line) -> None:
        """WalGapError for a timeline that the former server was on, and that nothing archived leads to."""
        number, parent = int(line.timeline), int(line.parts[-2].timeline)
        here = self._former is not None
        lacking = "is not in its pg_wal any more" if here else f"is not in {', '.join(map(str, self._folders))}"
        still = f"{self._request.data} holds it: if it is whole, start that server again, and archive"
        raise WalGapError(
            f"the former server was on timeline {number}, of which nothing is archived, and what leads there from the archive's"
            f" end {lacking}: the restore would lose what was committed there",
            hints=[
                still if here else "another restore folder may hold it, of a try before: name that one, --work-dir",
                f"to the end of timeline {parent} all the same: --timeline {parent}; its pg_wal is kept",
            ],
        )

    def _refuse_empty(self, line: Line) -> None:
        """WalGapError for a timeline of which nothing is archived."""
        if self._catalog.newest(line.timeline) is None:
            parent, begin = line.parts[-2].timeline, line.parts[-1].begin
            raise WalGapError(
                f"nothing of timeline {int(line.timeline)} is archived, which began at {begin}",
                hints=[
                    f"to the end of timeline {int(parent)}, which it comes from: --timeline {int(parent)}",
                    f"no further than where it began: --timeline {int(parent)} --to-lsn {begin} --exclusive",
                ],
            )
