"""Which base backups and which WAL stay: a pure function of what is there and of the time.

The rules are those of docs/design/repository-format.md, "Deleting". WAL is decided by LSN and ancestry, for each live line, never
by names or age alone (G4). Nothing here reads anything.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from clipper_backup.repository.base_intents import GRACE
from clipper_backup.repository.lines import Line
from clipper_backup.values import BackupId, Lsn, Timeline, show_count


@dataclass(frozen=True, slots=True, order=True)
class TimelineOf:
    """A timeline of a system, by the number of the system's entry: after pg_upgrade timelines begin with 1 again."""

    system: int
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class TimelineSeen:
    """A timeline that has WAL, a history, or a base backup. Times are the store's.

    `written_at` is Last-Modified of its newest segment's object or claim, `claimed_at` stands in the claim of its own history;
    None without them.
    """

    system: int
    line: Line
    written_at: datetime | None = None
    claimed_at: datetime | None = None

    @property
    def of(self) -> TimelineOf:
        """Which one it is."""
        return TimelineOf(self.system, self.line.timeline)


@dataclass(frozen=True, slots=True)
class BackupSeen:
    """A committed base backup. `wal_to` is the end, on a line, to which a hold keeps WAL too.

    `good`: whether a restore may begin with it, so its WAL from start to stop is in the archive, too. `newer` says what of it
    only a newer version knows: then it stays.
    """

    backup_id: BackupId
    system: int
    timeline: Timeline
    start: Lsn
    stop: Lsn
    finished_at: datetime
    good: bool = True
    held: bool = False
    newer: str | None = None
    wal_to: tuple[Timeline, Lsn] | None = None

    @property
    def of(self) -> TimelineOf:
        """The timeline that it was taken on."""
        return TimelineOf(self.system, self.timeline)


@dataclass(frozen=True, slots=True)
class Pin:
    """WAL that stays whatever becomes of the backups: a snapshot's; or a live run's, with `stop` None: all behind its start."""

    of: TimelineOf
    start: Lsn
    stop: Lsn | None


@dataclass(frozen=True, slots=True)
class Seen:
    """All that decides. `segment_bytes` is by the number of the system.

    `unknown_wal`: something that may need WAL could not be read, so all of it stays. `unknown_lines`: there is a timeline whose
    line nobody knows, so that any backup may be its anchor: no backup goes, either.
    """

    segment_bytes: Mapping[int, int]
    timelines: Sequence[TimelineSeen]
    backups: Sequence[BackupSeen]
    pins: Sequence[Pin] = ()
    unknown_wal: bool = False
    unknown_lines: bool = False


@dataclass(frozen=True, slots=True)
class BackupDecision:
    """What happens to one base backup, and why."""

    backup_id: BackupId
    keep: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Span:
    """Segments of one timeline, by number, from `first` to `last`, both included; `last` None: without end."""

    first: int
    last: int | None


@dataclass(frozen=True, slots=True)
class KeptSpan:
    """Segments that stay whatever their age, and why."""

    of: TimelineOf
    span: Span
    reason: str


@dataclass(frozen=True, slots=True)
class PhysicalPlan:
    """What stays. `spans` are rising and apart; `young_from` is when WAL that was written since stays by its age alone.

    `kept` says of what `spans` are made, each with its reason. `live` are the lines that live, with their anchors.
    """

    backups: tuple[BackupDecision, ...]
    young_from: datetime
    all_wal: bool
    spans: Mapping[TimelineOf, tuple[Span, ...]] = field(default_factory=dict)
    kept: tuple[KeptSpan, ...] = ()
    live: tuple[tuple[TimelineSeen, BackupSeen | None], ...] = ()

    def keeps(self, of: TimelineOf, number: int, written_at: datetime) -> bool:
        """Whether a segment stays, with its claim and link; *written_at* is the youngest Last-Modified of the three."""
        return written_at >= self.young_from or self.keeps_any(of, number, number)

    def keeps_any(self, of: TimelineOf, first: int, last: int) -> bool:
        """Whether any of the segments from *first* to *last* stays, whatever its age."""
        return self.all_wal or any(
            span.first <= last and (span.last is None or first <= span.last) for span in self.spans.get(of, ())
        )

    def edge(self, of: TimelineOf) -> int | None:
        """The number from which on all of a timeline stays; None where there is none."""
        if self.all_wal:
            return 0
        spans = self.spans.get(of, ())
        return spans[-1].first if spans and spans[-1].last is None else None


def plan_physical(seen: Seen, *, now: datetime, window: timedelta) -> PhysicalPlan:
    """Decide; *now* is the store's clock, *window* PITR_WINDOW_DAYS, to which grace is added for a restore to its edge."""
    horizon = now - (window + GRACE)
    live = [timeline for timeline in seen.timelines if _is_live(timeline, seen.backups, horizon)]
    anchors = {timeline.of: _anchor(timeline, seen.backups, horizon) for timeline in live}
    reasons = _reasons(seen, live, anchors, horizon)
    decisions = tuple(
        BackupDecision(backup.backup_id, keep=True, reason=reasons[backup.backup_id])
        if backup.backup_id in reasons
        else BackupDecision(
            backup.backup_id, keep=False, reason=f"{_days(now - backup.finished_at)}: the window needs it no more"
        )
        for backup in seen.backups
    )
    staying = [backup for backup in seen.backups if backup.backup_id in reasons]
    known = {timeline.of for timeline in seen.timelines}
    lost = any(each.wal_to is not None and TimelineOf(each.system, each.wal_to[0]) not in known for each in staying)
    all_wal = seen.unknown_wal or seen.unknown_lines or lost
    kept = _kept(seen, live, anchors, staying)
    lines = tuple((timeline, anchors[timeline.of]) for timeline in live)
    return PhysicalPlan(decisions, horizon, all_wal, _by_timeline(kept), tuple(_worth_telling(kept)), lines)


def _on_line(line: Line, backup: BackupSeen) -> bool:
    return line.holds_backup(backup.timeline, backup.stop)


def _last_sign(timeline: TimelineSeen, backups: Iterable[BackupSeen]) -> datetime | None:
    """When the server of a timeline last gave a sign of life; None when it never did."""
    own = [backup.finished_at for backup in backups if backup.of == timeline.of]
    return max([at for at in (timeline.written_at, timeline.claimed_at) if at is not None] + own, default=None)


def _is_live(timeline: TimelineSeen, backups: Collection[BackupSeen], horizon: datetime) -> bool:
    """Whether nothing else has stood in the place of a line for so long that the window has left it.

    A good backup of another timeline that ended after this one's last sign is what takes its place.
    """
    sign = _last_sign(timeline, backups)
    return sign is None or not any(
        backup.good and backup.of != timeline.of and backup.system >= timeline.system and sign < backup.finished_at < horizon
        for backup in backups
    )


def _good_on(timeline: TimelineSeen, backups: Iterable[BackupSeen]) -> list[BackupSeen]:
    """The good backups on a line, oldest first."""
    on = [backup for backup in backups if backup.good and backup.system == timeline.system and _on_line(timeline.line, backup)]
    return sorted(on, key=lambda backup: (backup.start, backup.finished_at))


def _anchor(timeline: TimelineSeen, backups: Iterable[BackupSeen], horizon: datetime) -> BackupSeen | None:
    """The newest good backup on a line that ended before *horizon*; without one the oldest; None without any."""
    on = _good_on(timeline, backups)
    old = [backup for backup in on if backup.finished_at < horizon]
    return old[-1] if old else next(iter(on), None)


def _reasons(
    seen: Seen, live: Sequence[TimelineSeen], anchors: Mapping[TimelineOf, BackupSeen | None], horizon: datetime
) -> dict[BackupId, str]:
    """The backups that stay, with the words for it; the first that applies."""
    reasons: dict[BackupId, str] = {}
    good = [backup for backup in seen.backups if backup.good]
    newest = max(good, key=_age, default=None)
    for backup in seen.backups:
        if backup.held:
            reasons[backup.backup_id] = "held"
        elif backup.newer is not None:
            reasons[backup.backup_id] = backup.newer
        elif seen.unknown_lines:
            reasons[backup.backup_id] = "there is a timeline of which nobody knows what it needs"
        elif backup is newest:
            reasons[backup.backup_id] = "the newest good one"
        elif newest is None or _age(backup) > _age(newest) or backup.finished_at > max(each.finished_at for each in good):
            reasons[backup.backup_id] = "no newer good one follows"
        elif backup.finished_at >= horizon:
            reasons[backup.backup_id] = "within the window"
    for timeline in live:
        for staying, words in (
            (anchors[timeline.of], "the window of timeline {} begins with it"),
            (next(reversed(_good_on(timeline, seen.backups)), None), "the newest good one of timeline {}"),
        ):
            if staying is not None:
                reasons.setdefault(staying.backup_id, words.format(int(timeline.line.timeline)))
    return reasons


def _age(backup: BackupSeen) -> tuple[int, datetime]:
    """Backups of all lines in their order."""
    return backup.system, backup.finished_at


def _kept(
    seen: Seen,
    live: Sequence[TimelineSeen],
    anchors: Mapping[TimelineOf, BackupSeen | None],
    staying: Sequence[BackupSeen],
) -> list[KeptSpan]:
    """The segments that stay whatever their age, of each timeline."""
    found: list[KeptSpan] = []
    for timeline in live:
        anchor, name = anchors[timeline.of], f"timeline {int(timeline.line.timeline)}"
        begin = Lsn(0) if anchor is None else anchor.start
        why = f"no good base backup of {name}" if anchor is None else f"the window of {name} begins with {anchor.backup_id}"
        along = _along(timeline.line, timeline.system, seen.segment_bytes[timeline.system], begin, None)
        found += (KeptSpan(of, span, why) for of, span in along)
    return found + _own_spans(seen, staying, seen.pins)


def _worth_telling(kept: Sequence[KeptSpan]) -> Iterator[KeptSpan]:
    """Those that are not within one that came before."""
    told: list[KeptSpan] = []
    for each in kept:
        if not any(each.of == before.of and _within(each.span, before.span) for before in told):
            told.append(each)
            yield each


def _within(inner: Span, outer: Span) -> bool:
    return outer.first <= inner.first and (outer.last is None or (inner.last is not None and inner.last <= outer.last))


def spans_of(seen: Seen, backups: Iterable[BackupSeen], pins: Iterable[Pin]) -> dict[TimelineOf, tuple[Span, ...]]:
    """The segments that these backups need to be consistent, and to where holds say, and those of the pins."""
    return _by_timeline(_own_spans(seen, backups, pins))


def _own_spans(seen: Seen, backups: Iterable[BackupSeen], pins: Iterable[Pin]) -> list[KeptSpan]:
    lines = {timeline.of: timeline.line for timeline in seen.timelines}
    found: list[KeptSpan] = []
    for backup in backups:
        size, why = seen.segment_bytes[backup.system], f"{backup.backup_id} needs it to be consistent"
        along = _along(Line.of(backup.timeline, ()), backup.system, size, backup.start, backup.stop)
        found += (KeptSpan(of, span, why) for of, span in along)
        if backup.wal_to is not None and (line := lines.get(TimelineOf(backup.system, backup.wal_to[0]))) is not None:
            why = f"held, from {backup.backup_id} to {backup.wal_to[1]}"
            found += (KeptSpan(of, span, why) for of, span in _along(line, backup.system, size, backup.start, backup.wal_to[1]))
    for pin in pins:
        why = "a base backup is being made" if pin.stop is None else "a volume snapshot needs it"
        size = seen.segment_bytes[pin.of.system]
        along = _along(Line.of(pin.of.timeline, ()), pin.of.system, size, pin.start, pin.stop)
        found += (KeptSpan(of, span, why) for of, span in along)
    return found


def _along(line: Line, system: int, size: int, start: Lsn, stop: Lsn | None) -> Iterator[tuple[TimelineOf, Span]]:
    """All of a line that ends after *start*, to the segment of the last byte before *stop*; None: to its end."""
    for part in line.parts:
        ends = [end for end in (None if part.end is None else part.end // size - 1, None if stop is None else (stop - 1) // size)
                if end is not None]  # fmt: skip
        first, last = max(part.begin, start) // size, min(ends, default=None)
        if last is None or first <= last:
            yield TimelineOf(system, part.timeline), Span(first, last)


def _by_timeline(found: Iterable[KeptSpan]) -> dict[TimelineOf, tuple[Span, ...]]:
    spans: dict[TimelineOf, list[Span]] = {}
    for each in found:
        spans.setdefault(each.of, []).append(each.span)
    return {of: _joined(each) for of, each in spans.items()}


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same segments in spans that are rising and apart."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: span.first):
        if joined and (joined[-1].last is None or span.first <= joined[-1].last + 1):
            before = joined.pop()
            last = None if before.last is None or span.last is None else max(before.last, span.last)
            joined.append(Span(before.first, last))
        else:
            joined.append(span)
    return tuple(joined)


def _days(age: timedelta) -> str:
    return f"{show_count(max(0, age.days), 'day')} old"
