"""`wal push`: one file of pg_wal into the archive. It returns only when PostgreSQL may forget the file (rule 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipper_backup.errors import IntegrityError, MissingError, UsageError
from clipper_backup.format.base_documents import Claim, SystemEntry
from clipper_backup.format.wal_objects import digest_of
from clipper_backup.ops.wal.asked import Asked
from clipper_backup.ops.wal.open_archive import accept, open_archive
from clipper_backup.ops.work import Work
from clipper_backup.postgres.data_folder import WAL_FOLDER, DataFolder, WalFile, is_saved_wal
from clipper_backup.postgres.history import Ancestor, parse_history
from clipper_backup.postgres.wal_pages import WalLayout
from clipper_backup.repository.wal_archive import Claimed, WalArchive, ancestors_in, lacks_link, link_in
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Kind, Segment, classify, history_name

State = Literal["archived", "was archived", "made"]
"""Put now; was there already, whole; or a history that a restore made, which is not stored."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """A file that PostgreSQL may forget. `healed` names the segment behind it that was linked to it."""

    name: str
    kind: Kind
    state: State
    healed: str | None = None


def push(work: Work, path: Path) -> Pushed:
    """Archive the file at *path*, which is in pg_wal of its data folder, or in a folder where a restore saved one's WAL.

    IntegrityError when the archive has other bytes under its name or is another cluster's, or the file is not what its name
    says: then another try will not help. NoRepositoryError where none is: it makes none.
    """
    kind = _kind_of(path)
    folder = DataFolder.of_wal(path.parent, work.clock)
    layout = folder.layout()
    archive = open_archive(work, layout)
    pusher = Pusher(archive, folder, layout)
    number = pusher.segment(path.name).number if kind is Kind.SEGMENT else 0
    before = pusher.segment(path.name).previous() if number else None
    accepted = Asked(lambda: accept(work, layout, before))
    if kind is Kind.SEGMENT:
        pushed = pusher.push_segment(path.name, accepted)
    else:
        accepted.answer()
        pushed = pusher.push_other(pusher.source(path.name))
    archive.check_place()
    return pushed


def _kind_of(path: Path) -> Kind:
    kind = classify(path.name)
    if kind is None:
        raise UsageError(
            f"not the name of a file that PostgreSQL archives: {path.name!r}",
            hints=["archive_command = 'clipper-backup wal push %p'"],
        )
    if path.parent.name != WAL_FOLDER and not is_saved_wal(path.parent):
        raise UsageError(
            f"{path} does not lie in a {WAL_FOLDER}",
            hints=["give %p with PGDATA as the working directory, as PostgreSQL does, or the full path"],
        )
    return kind


class Pusher:
    """Archives files of one server's pg_wal, each through all steps."""

    def __init__(self, archive: WalArchive, folder: DataFolder, layout: WalLayout) -> None:
        self.archive, self.clock = archive, folder.clock
        self._folder, self._layout = folder, layout
        self._followed: set[Timeline] = set()

    def segment(self, name: str) -> Segment:
        """The segment of that name."""
        return Segment.parse(name, self._layout.segment_bytes)

    def source(self, name: str, history: Callable[[], Claim | None] | None = None) -> WalFile:
        """The file in pg_wal, to be read. *history* gives the claim of its timeline's history, where that is known already."""
        ancestors: list[Ancestor] = []
        if classify(name) is Kind.SEGMENT:
            ancestors = self._ancestors(Timeline.parse(name[:8]), history)
        return WalFile.find(self._folder.wal / name, self._layout, ancestors)

    def push_other(self, source: WalFile) -> Pushed:
        """A history, a `.backup` or a `.partial`."""
        name, kind = source.name, _kind_of(source.path)
        ancestors = None
        if kind is Kind.HISTORY:
            text = self._folder.history(Timeline.parse(name[:8]))
            if text is None:
                return Pushed(name, kind, "made")
            ancestors = parse_history(text, name)
        while True:
            claimed = self.archive.claim(self.archive.prepare(source), ancestors=ancestors)
            put = self.archive.store(claimed)
            if self.archive.is_fresh(claimed):
                return Pushed(name, kind, "archived" if put else "was archived")

    def push_segment(self, name: str, accepted: Asked[SystemEntry]) -> Pushed:
        """A segment, whose neighbours' claims are asked for while it is read; claimed only when the system is *accepted*."""
        segment = self.segment(name)
        while True:
            before = Asked(lambda: self._claim_before(segment))
            behind = Asked(lambda: self.archive.read_claim(segment.next().name))
            history = Asked(lambda: self._history_claim(segment.timeline))
            prepared = self.archive.prepare(self.source(name, history.answer))
            accepted.answer()
            self.check_history(segment.timeline, history.answer, first=before.answer() is None)
            claimed = self.archive.claim(prepared, link_in(before.answer()))
            put = self.archive.store(claimed)
            healed = self.heal(claimed, behind.answer())
            if self.archive.is_fresh(claimed):
                return Pushed(name, Kind.SEGMENT, "archived" if put else "was archived", healed)

    def link_before(self, segment: Segment) -> bytes:
        """The link of the segment before *segment*, as its claim stands now."""
        return link_in(self._claim_before(segment))

    def _claim_before(self, segment: Segment) -> Claim | None:
        return self.archive.read_claim(segment.previous().name) if segment.number > 0 else None

    # -- histories

    def _history_claim(self, timeline: Timeline) -> Claim | None:
        return self.archive.read_claim(history_name(timeline)) if timeline > 1 else None

    def _ancestors(self, timeline: Timeline, history: Callable[[], Claim | None] | None) -> list[Ancestor]:
        """Those of *timeline*, from its history in pg_wal, or else from the archive's claim."""
        if timeline == 1:
            return []
        data = self._folder.history(timeline)
        if data is not None:
            return parse_history(data, history_name(timeline))
        claim = self._history_claim(timeline) if history is None else history()
        if claim is None:
            raise IntegrityError(
                f"there is no {history_name(timeline)}, neither in the archive nor in {self._folder.wal}: no restore could reach "
                "what is on its timeline",
                hints=["put the history file back into pg_wal: a standby or a copy of this server may have it"],
            )
        return ancestors_in(claim)

    def check_history(self, timeline: Timeline, history: Callable[[], Claim | None] | None = None, *, first: bool) -> None:
        """W11, and that the timeline is this server's: another one may have taken its number.

        Where *first* no segment before it is claimed: the history's object may be missing as well.
        """
        if timeline == 1:
            return
        self._followed.add(timeline)
        data = self._folder.history(timeline)
        if data is None:
            return  # of a segment without one, `source` has found the claim
        claim = self._history_claim(timeline) if history is None else history()
        if claim is None or first:
            self.push_other(self.source(history_name(timeline)))
        elif digest_of([data], bytes.fromhex(claim.salt)).hex() != claim.digest:
            raise IntegrityError(
                f"timeline {int(timeline)} is another server's: its history in the archive was claimed by {claim.writer}",
                hints=["promote or restore this server once more: it takes the next free number"],
            )

    def check_place(self) -> None:
        """Step 4: IntegrityError when the store is no longer the repository that it was, or lost a history that segments need.

        A store that was set back to an older state has the same id, and none of what came since.
        """
        self.archive.check_place()
        for timeline in sorted(self._followed.copy()):
            if self._history_claim(timeline) is None:
                raise IntegrityError(
                    f"{history_name(timeline)} is no longer in the archive: what follows it is archived anew, behind it",
                    hints=["was the store set back to an older state? `clipper-backup wal status` shows what else is missing"],
                )

    # -- links

    def heal(self, late: Claimed, behind: Claim | None) -> str | None:
        """Link the segment behind, whose claim is *behind*, if it came before this one and is proved to be of this server.

        Its name, if it is linked now.
        """
        if behind is None or not lacks_link(behind) or not self._folder.wrote_its_wal():
            return None
        try:
            return behind.name if self.archive.heal(late, self.source(behind.name), behind) else None
        except MissingError:
            return None  # PostgreSQL has recycled it
