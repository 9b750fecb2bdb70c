"""What damage of base backups and WAL costs: from when to when no instant can be restored any more.

On each line everything from the stop of its oldest base backup, good or not, to the end of its WAL is what should be there. What
is there says `survey_line`, as for `status`, without the backups that are not good and the segments that are damaged.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clipper_backup.errors import ClipperError, IntegrityError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.ops.wal.look import Looker, SystemSeen, TimelineSeen, WalSeen, led_by_own
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import is_on
from clipper_backup.repository.lines import Line
from clipper_backup.repository.wal_survey import LineSurvey, Listings, Run, survey_line
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.values import BackupId, Lsn, Timeline, show_count, show_time
from clipper_backup.wal_names import Segment

HEALS_HINTS = (
    "the next `clipper-backup base create` stores damaged pages anew: every instant behind it can be restored",
    "`clipper-backup verify` afterwards says so",
)
"""What to type next."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Instants of a line that cannot be restored: behind `since`, the last that can, and before `until`.

    `since` None: that is not known. `until` None: up to the end of the line. In positions: from `begin` to `end`. `why` says what
    is not good, missing or damaged there.
    """

    system_id: str
    timeline: Timeline
    begin: Lsn
    end: Lsn
    since: datetime | None
    until: datetime | None
    why: tuple[str, ...]

    def __str__(self) -> str:
        begun = "an instant that no map tells" if self.since is None else show_time(self.since)
        ends = "the end of the WAL" if self.until is None else show_time(self.until)
        more = f" and {len(self.why) - 1} more" if len(self.why) > 1 else ""
        why = f", because of {self.why[0]}{more}" if self.why else ""
        return f"no instant between {begun} and {ends} can be restored on timeline {int(self.timeline)}{why}"


@dataclass(frozen=True, slots=True)
class Restorable:
    """Instants of the newest line that can be: each from `since` on; `until` None where no map tells when its WAL ends."""

    backup_id: str
    since: datetime
    until: datetime | None
    to_end: bool

    def __str__(self) -> str:
        ends = "what is damaged or missing behind it" if self.until is None else show_time(self.until)
        return f"every instant from {show_time(self.since)} to {'the end of the WAL' if self.to_end else ends}"


@dataclass(frozen=True, slots=True)
class PerhapsLost:
    """A base backup or timeline of which nobody can say which instants it leads to, and `why`.

    They lie behind `since`, and before `until`, the stop of the next good base backup; each None where that is not known.
    """

    what: str
    why: str
    since: datetime | None = None
    until: datetime | None = None

    def __str__(self) -> str:
        begun = "" if self.since is None else f" behind {show_time(self.since)}"
        ends = "" if self.until is None else f" before {show_time(self.until)}"
        return f"perhaps instants{begun}{ends}: where {self.what} leads to nobody can say, {self.why}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What is lost within the window, what may be, and what of the newest line is not."""

    lost: tuple[Lost, ...] = ()
    restorable: tuple[Restorable, ...] = ()
    perhaps: tuple[PerhapsLost, ...] = ()


def told_cost(work: Work, *, bad_backups: Collection[BackupId]) -> list[str]:
    """The cost of base backups that are not good, in sentences, for whoever was told of the damage already."""
    try:
        looker = Looker(work, whole=False)
        cost = cost_of(work, looker, looker.look(), bad_backups=bad_backups, bad_segments={})
    except ClipperError as error:
        return [f"which instants it costs was not found out: {error.message}"]
    if not cost.lost and not cost.perhaps:
        return ["it costs no instant of the window: other base backups lead to each of them"]
    return [*map(str, cost.lost), *map(str, cost.perhaps), *(f"{each} still can be" for each in cost.restorable)]


def cost_of(
    work: Work,
    looker: Looker,
    seen: WalSeen,
    *,
    bad_backups: Collection[BackupId],
    bad_segments: Mapping[str, Collection[str]],
) -> Cost:
    """What it costs that those backups are not good, and the segments of those names, by system id, damaged; and each gap."""
    lost: list[Lost] = []
    restorable: tuple[Restorable, ...] = ()
    since = looker.now - timedelta(days=work.settings.pitr_window_days)
    for system in seen.systems:
        current = system.current
        bad = frozenset(bad_segments.get(system.entry.system_id, ()))
        listings = _Lacking(work, system, bad)
        everyone = [
            (each.summary, each.good and each.listed.backup_id not in bad_backups)
            for each in seen.backups
            if each.summary is not None and each.summary.system_id == system.entry.system_id
        ]
        for each in sorted(system.timelines, key=lambda each: each is not current):
            if each.survey is not None:
                own = everyone if each.problem is None else _leading(everyone, each.survey.line)
                line = _OfLine(looker, system, each, each.survey, listings, own, since)
                lost += (one for one in line.lost() if not any(_same(one, other) for other in lost))
                if system is seen.systems[-1] and each is current:
                    restorable = tuple(line.restorable())
    return Cost(tuple(lost), restorable, tuple(_perhaps(seen, bad_backups, since)))


def _leading(everyone: Sequence[tuple[BaseSummary, bool]], line: Line) -> list[tuple[BaseSummary, bool]]:
    """Those that lead along a *line* whose history is damaged."""
    own = led_by_own((backup for backup, _ in everyone), line)
    return [(backup, good) for backup, good in everyone if backup in own]


def _same(one: Lost, other: Lost) -> bool:
    """Whether it is the part of two lines that they share: what goes to the end of a line is that line's."""
    return one.until is not None and (one.system_id, one.begin, one.end) == (other.system_id, other.begin, other.end)


def _perhaps(seen: WalSeen, bad_backups: Collection[BackupId], since: datetime) -> Iterator[PerhapsLost]:
    """Base backups without a summary that can be read, and timelines without a history: they stand on no line."""
    good = [
        each.summary
        for each in seen.backups
        if each.summary is not None and each.good and each.listed.backup_id not in bad_backups
    ]
    for each in seen.backups:
        if each.summary is None and each.problem is not None:
            begun = each.listed.backup_id.at
            until = min((other.stopped_at for other in good if other.begun_at > begun), default=None)
            if until is None or until > since:
                yield PerhapsLost(f"the base backup {each.listed.backup_id}", each.problem, begun, until)
    for system in seen.systems:
        for timeline in system.timelines:
            if timeline.holds and timeline.problem is not None and (timeline.written_at is None or timeline.written_at > since):
                own = [] if timeline.survey is None else led_by_own(good, timeline.survey.line)
                until = min((each.stopped_at for each in own), default=None)
                if until is None or until > since:
                    yield PerhapsLost(f"timeline {int(timeline.timeline)}", timeline.problem, None, until)


class _Lacking(Listings):
    """Listings without the objects of damaged segments."""

    def __init__(self, work: Work, system: SystemSeen, bad: Collection[str]) -> None:
        super().__init__(work.store, system.entry.system_id, system.entry.segment_bytes)
        self._bad = bad

    def files(self, timeline: Timeline, folder: str) -> dict[str, dict[str, ObjectInfo]]:
        """See `Listings.files`."""
        return {
            name: {suffix: info for suffix, info in objects.items() if name not in self._bad or suffix == keys.CLAIM}
            for name, objects in super().files(timeline, folder).items()
        }


@dataclass(frozen=True, slots=True)
class _Span:
    """Positions of a line that can be restored, and the backup that leads there."""

    begin: Lsn
    end: Lsn
    run: Run
    backup: BaseSummary


class _OfLine:
    """One line: what should be there, and what is."""

    def __init__(
        self,
        looker: Looker,
        system: SystemSeen,
        seen: TimelineSeen,
        before: LineSurvey,
        listings: Listings,
        everyone: Sequence[tuple[BaseSummary, bool]],
        since: datetime,
    ) -> None:
        self._looker, self._entry, self._seen, self._since = looker, system.entry, seen, since
        self.line: Line = before.line
        self._size = system.entry.segment_bytes
        self._all = [(backup, good) for backup, good in everyone if is_on(self.line, backup)]
        unfit = {hole.first for hole in before.holes if not hole.missing}
        good = [backup for backup, is_good in self._all if is_good]
        self._after = survey_line(self.line, listings, good, lambda segment: segment not in unfit, since=since)
        # A base backup had its WAL to its stop when it was taken: what is gone of it at the end of the archive was there.
        ends = [Segment.parse(backup.last_segment, self._size).number for backup, _ in self._all]
        ends += [run.last for run in before.runs] + [hole.last for hole in before.holes]
        self._last = max(ends, default=None)
        self._spans = sorted(map(self._span, (run for run in self._after.runs if run.backups)), key=lambda span: span.begin)

    def _span(self, run: Run) -> _Span:
        first = min(run.backups, key=lambda each: Lsn.parse(each.stop_lsn))
        return _Span(Lsn.parse(first.stop_lsn), Lsn((run.last + 1) * self._size), run, first)

    def lost(self) -> Iterator[Lost]:
        """What of it cannot be restored any more, and lies in the window."""
        if not self._all or self._last is None:
            return
        oldest = min((backup for backup, _ in self._all), key=lambda each: Lsn.parse(each.stop_lsn))
        begin, since = Lsn.parse(oldest.stop_lsn), oldest.stopped_at
        known: datetime | None = since
        for span in self._spans:
            if begin < span.begin and span.backup.stopped_at > self._since:
                yield self._of(begin, span.begin, known, span.backup.stopped_at)
            begin, known = span.end, self._end(span)
        end = Lsn((self._last + 1) * self._size)
        known_at = [backup.stopped_at for backup, _ in self._all]
        known_at += [] if self._seen.written_at is None else [self._seen.written_at]
        if begin < end and max(known_at) > self._since:
            yield self._of(begin, end, known, None)

    def restorable(self) -> Iterator[Restorable]:
        """What of it can be."""
        for span in self._spans:
            to_end = self._last is not None and span.run.last == self._last
            yield Restorable(span.backup.id, span.backup.stopped_at, self._end(span), to_end)

    def _end(self, span: _Span) -> datetime | None:
        """The last commit in the span: what was committed before its backup stopped is in that."""
        try:
            found = self._looker.end_of(self._entry, self.line, span.run)
        except IntegrityError:
            return None
        return None if found is None else max(found, span.backup.stopped_at)

    def _of(self, begin: Lsn, end: Lsn, since: datetime | None, until: datetime | None) -> Lost:
        why = [
            f"the base backup {backup.id}" for backup, good in self._all if not good and begin <= Lsn.parse(backup.stop_lsn) < end
        ]
        holes = [hole for hole in self._after.holes if begin <= hole.first.start < end]
        why += [f"{hole.first}{_and_behind(hole.missing - 1)}" for hole in holes]
        return Lost(self._entry.system_id, self.line.timeline, begin, end, since, until, tuple(why))


def _and_behind(count: int) -> str:
    return f" and {show_count(count, 'segment')} behind it" if count > 0 else ""


def segment_of(name: str, segment_bytes: int) -> str | None:
    """The segment that is lost when the file of that name is damaged; None for one that no replay needs."""
    try:
        return Segment.parse(name, segment_bytes).name
    except ClipperError:
        return None
