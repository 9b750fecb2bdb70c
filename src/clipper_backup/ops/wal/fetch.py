"""What `wal fetch` answers: the table of docs/design/repository-wal.md, "What a restore reads", row by row.

"No such file" ends a recovery as if nothing were missing, so it is said only where the table says 44. Everything else that is
not the file itself is an error, and ends PostgreSQL.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.errors import IntegrityError, ObjectMissingError, UsageError, WalGapError
from clipper_backup.format import physical_names as keys
from clipper_backup.ops.wal.spool import Spool, hand_over
from clipper_backup.ops.wal.tablespaces import check_tablespaces, tail_of
from clipper_backup.postgres.history import is_made, made_history, parse_history, told_history
from clipper_backup.postgres.postmaster import is_up
from clipper_backup.repository.lines import Line
from clipper_backup.repository.restore_plan import KeptSegment, Linked, RestorePlan, Turn, links_of, must_fit
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_reader import Opened, UnopenedError, WalReader
from clipper_backup.values import Timeline, show_time
from clipper_backup.wal_names import Kind, Segment, classify, history_name

_LOOK_AGAIN_SECONDS = 1.0


class _Archive(ABC):
    """What both ways of restoring do: one file of the archive, found, checked and handed over."""

    def __init__(self, reader: WalReader, catalog: WalCatalog, spool: Spool, clock: Clock, wait_seconds: float) -> None:
        self._reader, self._catalog, self._spool = reader, catalog, spool
        self._clock, self._wait_seconds = clock, wait_seconds
        self._first_number = 0

    def answer(self, name: str, target: Path) -> bool:
        """Put the file that PostgreSQL calls *name* at *target*; False when it is missing behind the end (44)."""
        kind = classify(name)
        if kind is None:
            raise UsageError(f"{name!r} is not the name of a WAL file", hints=["restore_command hands over %f and %p"])
        if kind is Kind.SEGMENT:
            return self._segment(Segment.parse(name, self._reader.segment_bytes), target)
        if kind is Kind.HISTORY:
            return self._history(Timeline.parse(name[:8]), target)
        data = self._reader.file(name) if kind is Kind.BACKUP else None
        return self._missing() if data is None else self._hand_out(name, data, target)

    @abstractmethod
    def _segment(self, segment: Segment, target: Path) -> bool: ...

    @abstractmethod
    def _history(self, timeline: Timeline, target: Path) -> bool: ...

    def _hand_out(self, name: str, data: bytes, target: Path) -> bool:
        self._spool.open()
        with self._spool.writing(name) as draft:
            draft.write([data])
            with self._turn():
                draft.hand_over(target)
        return True

    def _turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _check_tablespaces(self, line: Line, segment: Segment, file: Path, target: Path, *, watched: bool = False) -> None:
        """Of a recovery's first segment, what began before it is not replayed. What was read ahead was *watched* then."""
        before = line.segment(segment.number - 1, segment.size_bytes) if segment.number > self._first_number else None
        pg_wal = target.parent
        check_tablespaces(segment, file, pg_wal.parent, lambda size: tail_of(before, pg_wal, self._reader, size), watched=watched)

    def _must_lie_on(self, line: Line, segment: Segment) -> None:
        if not line.holds(segment):
            owner = line.segment(segment.number, segment.size_bytes)
            raise WalGapError(
                f"{segment} does not lead to timeline {int(line.timeline)}: {owner} does, and PostgreSQL does not find that",
                hints=[f"{owner} is missing from the archive, or was never archived; `clipper-backup wal verify` says more"],
            )

    def _missing(self) -> bool:
        """False, once the store showed that it is the repository: an empty folder lacks every segment, too."""
        from clipper_backup.repository.root import open_repository  # noqa: PLC0415  only the end of the WAL needs it

        found = open_repository(self._reader.store)
        if found.id != self._reader.repository_id:
            raise IntegrityError(
                f"{self._reader.store.url} is another repository ({found.id}, not {self._reader.repository_id}) than when the"
                " restore was planned",
                hints=["was BACKUP_URL changed, or another volume mounted?"],
            )
        return False

    def _later(self, segment: Segment) -> str | None:
        """What shows that the WAL goes on behind *segment*, which is not there; None when nothing does (row 7)."""
        stored = self._catalog.stored_behind(segment)
        if stored is not None:
            return f"{stored} is there"
        for timeline, listed in self._catalog.histories().items():
            if listed.claim is not None:
                ancestors = self._catalog.ancestors(timeline)
            else:
                ancestors = parse_history(self._reader.history(timeline) or b"", history_name(timeline))
            if any(each.timeline == segment.timeline and each.left_at >= segment.end for each in ancestors):
                return f"timeline {int(timeline)} began behind it"
        return None

    def _wait_for(self, segment: Segment, take: Callable[[], bool]) -> bool:
        """Row 4: its archiver may be about to put the object, if it claimed the name a moment ago."""
        store, key = self._reader.store, keys.archive_key(self._reader.system_id, segment.name, keys.CLAIM)
        begun = self._clock.monotonic()
        while True:
            try:
                claimed_at = store.head(key).modified_at
            except ObjectMissingError:
                return False
            if take():  # after that look: it may have come between
                return True
            # Two limits, because the store's clock and ours may differ.
            young = (store.now() - claimed_at).total_seconds() < self._wait_seconds
            if not young or self._clock.monotonic() - begun >= self._wait_seconds:
                return False
            self._clock.sleep(_LOOK_AGAIN_SECONDS)


class PlannedFetch(_Archive):
    """Answers for one restore, by its plan. Not safe to use from several threads: PostgreSQL asks for one file at a time."""

    def __init__(
        self,
        plan: RestorePlan,
        folder: Path,
        reader: WalReader,
        catalog: WalCatalog,
        spool: Spool,
        clock: Clock,
        wait_seconds: float,
    ) -> None:
        super().__init__(reader, catalog, spool, clock, wait_seconds)
        self._plan, self._folder = plan, folder
        self._line, self._last = plan.line, plan.last_segment
        self._first_number = plan.first_segment.number
        self._request: Turn | None = None

    def answer(self, name: str, target: Path) -> bool:
        """See above; ClipperError too when PostgreSQL asked for another file meanwhile."""
        self._request = Turn(self._folder)
        return super().answer(name, target)

    def _turn(self) -> AbstractContextManager[None]:
        return nullcontext() if self._request is None else self._request.held()

    def _segment(self, segment: Segment, target: Path) -> bool:
        if self._last is not None and segment.number > self._last.number:
            return False
        self._must_lie_on(self._line, segment)
        if self._take(segment, target) or self._wait_for(segment, lambda: self._take(segment, target)):
            return True
        if (kept := self._plan.kept_segment(segment)) is not None:
            return self._take_kept(segment, kept, target)
        if self._last is not None:
            raise self._gap(segment, f"recovery needs the WAL up to {self._last}")
        seen = self._plan.seen_segment
        if seen is not None and segment.number <= seen.number:
            raise self._gap(segment, f"when the restore was planned, all was there up to {seen}")
        later = self._later(segment)
        if later is not None:
            raise self._gap(segment, later)
        return self._missing()

    def _take(self, segment: Segment, target: Path) -> bool:
        self._spool.open()
        self._spool.ask(segment)
        ready = self._spool.ready(segment)
        if ready is not None:
            self._check_tablespaces(self._line, segment, ready.path, target, watched=True)
            with self._turn(), links_of(self._folder, self._plan) as links:
                links.add(ready.linked)
                hand_over(ready.path, target)
            return True
        opened = self._reader.segment(segment)
        if opened is None:
            return False
        with self._spool.writing(segment.name) as draft:
            draft.write(opened.chunks)
            self._check_tablespaces(self._line, segment, draft.path, target)
            linked = Linked(segment, opened.header.link, self._reader.previous(segment, opened.header))
            with self._turn(), links_of(self._folder, self._plan) as links:
                links.add(linked)
                draft.hand_over(target)
        return True

    def _take_kept(self, segment: Segment, kept: KeptSegment, target: Path) -> bool:
        """What a dead primary left is the end of the WAL: where the archive goes on, that is of another server."""
        from clipper_backup.repository.kept_wal import chunks_of_kept  # noqa: PLC0415  once in a recovery

        if (behind := self._catalog.stored_behind(segment)) is not None:
            raise self._gap(segment, f"{behind} is there: what the former server left of it is another history")
        with self._spool.writing(segment.name) as draft:
            draft.write(chunks_of_kept(self._folder / self._plan.kept_in, kept, segment.size_bytes))
            self._check_tablespaces(self._line, segment, draft.path, target)
            with self._turn():
                draft.hand_over(target)
        return True

    def _gap(self, segment: Segment, why: str) -> WalGapError:
        key = keys.archive_key(self._reader.system_id, segment.name, keys.CLAIM)
        try:
            claimed_at = self._reader.store.head(key).modified_at
            known = f"it was claimed at {show_time(claimed_at)}, and never stored, or lost since"
        except ObjectMissingError:
            known = "nothing of it is there"
        return WalGapError(
            f"{segment} is missing from the archive, and {why}",
            hints=[known, "recovery ends here: PostgreSQL would open short of the target; `clipper-backup wal verify` says more"],
        )

    def _history(self, timeline: Timeline, target: Path) -> bool:
        if timeline == self._plan.target:
            return self._own_history(timeline, target)
        try:
            data = self._reader.history(timeline)
        except (IntegrityError, UnopenedError):
            data = None
        if data is None and self._catalog.is_taken(timeline):
            data = made_history(timeline)
        return self._missing() if data is None else self._hand_out(history_name(timeline), data, target)

    def _own_history(self, timeline: Timeline, target: Path) -> bool:
        if timeline == 1:
            return False
        name = history_name(timeline)
        try:
            data = self._reader.history(timeline)
        except (IntegrityError, UnopenedError):  # of keys that were changed since, for one: a history outlives all others
            if not self._plan.line_recorded:
                raise
            data = None
        if data is None and self._plan.line_recorded:
            data = told_history(self._plan.left)
        if data is None:
            raise WalGapError(
                f"{name}, the history of the timeline to recover to, is missing from the archive",
                hints=["copy it from pg_wal of a server of that timeline and archive it: `clipper-backup wal push FILE`"],
            )
        if Line.of(timeline, parse_history(data, name)) != self._line:
            raise IntegrityError(f"{name} in the archive is not the one that this restore was planned with")
        return self._hand_out(name, data, target)


class StandbyFetch(_Archive):
    """Answers for a standby, which has no plan: it follows the newest timeline, and asks again whatever it is told."""

    def answer(self, name: str, target: Path) -> bool:
        """See above; nothing is left in pg_wal, since nobody reads ahead for it."""
        try:
            return super().answer(name, target)
        finally:
            self._spool.leave()

    def _segment(self, segment: Segment, target: Path) -> bool:
        line = self._catalog.line(self._catalog.followed_timeline())
        self._must_lie_on(line, segment)
        opened = self._reader.segment(segment)
        if opened is None:
            return self._missing()
        self._must_follow(segment, opened)
        self._spool.open()
        with self._spool.writing(segment.name) as draft:
            draft.write(opened.chunks)
            self._check_tablespaces(line, segment, draft.path, target)
            draft.hand_over(target)
        return True

    def _must_follow(self, segment: Segment, opened: Opened) -> None:
        claim = self._catalog.claim(segment.previous()) if segment.number > 0 else None
        if claim is not None:
            must_fit(segment, self._catalog.link_of(claim), self._reader.previous(segment, opened.header))

    def _history(self, timeline: Timeline, target: Path) -> bool:
        if timeline > self._catalog.newest_timeline() and timeline in self._catalog.timelines():
            return self._nobody_follows(timeline, target)
        data = self._reader.history(timeline)
        return self._missing() if data is None else self._hand_out(history_name(timeline), data, target)

    def _nobody_follows(self, timeline: Timeline, target: Path) -> bool:
        """Of a number that is taken, and holds nothing: "there is none" for a server that starts, for it would go there.

        One that is up learns that it is taken, for it may be about to be promoted. What is made names no ancestors, so that the
        server stays where it is otherwise; but it keeps the file in pg_wal, where it must not find it when it starts again.
        """
        name, pg_wal = history_name(timeline), target.parent
        if is_up(pg_wal.parent):
            return self._hand_out(name, made_history(timeline), target)
        kept = pg_wal / name
        with suppress(FileNotFoundError):
            if is_made(kept.read_bytes()):
                kept.unlink()
        return self._missing()
