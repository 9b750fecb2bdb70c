"""A server's own words compared with the archive: the timeline it writes on, what it was told is archived, what it could lose."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from clipper_backup.errors import ObjectMissingError, UsageError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.names import SEALED
from clipper_backup.ops.wal.look import SystemSeen, TimelineSeen, WalSeen
from clipper_backup.postgres.archiver_facts import ArchiverFacts
from clipper_backup.store.protocol import Store
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Kind, Segment, classify

STRAY_HINT = "a copy that archives there needs a repository of its own; while its WAL is here, a restore must name the timeline"


@dataclass(frozen=True, slots=True)
class Loss:
    """What would be lost if the server's host died now: the WAL from `archived_to` on, up to `bytes` of it.

    `since`: every transaction that ended at this time or before is archived; None when that is not known.
    """

    archived_to: Lsn
    bytes: int
    since: datetime | None


def not_followed(seen: WalSeen, server: ArchiverFacts) -> str | None:
    """Why a restore to the latest would not bring back what the server writes now: it goes along another timeline.

    None where it would, and where the server is in recovery, or none of the newest system.
    """
    system = seen.systems[-1] if seen.systems else None
    if system is None or system.entry.system_id != server.system_id or server.timeline is None:
        return None
    current = system.current
    if current is None or current.last is None or current.timeline == server.timeline:
        return None
    own = _of(system, server.timeline)
    if own is not None and own.survey is not None and own.survey.line.holds(current.last):
        return None  # it was promoted, or restored, and has not filled a segment yet
    return (
        f"the server writes on timeline {int(server.timeline)}, and a restore to the latest leaves that out: it goes along"
        f" timeline {int(current.timeline)}, which has WAL up to {current.last}; {_what_to_type(own, server.timeline)}"
    )


def _what_to_type(own: TimelineSeen | None, timeline: Timeline) -> str:
    if timeline > 1 and (own is None or own.survey is None):
        why = "its history is not in the archive" if own is None else f"{own.problem}; when its history is missing"
        return f"{why}: `clipper-backup wal push pg_wal/{timeline}.history` on the server"
    if own is None or not own.holds:
        return "none of its WAL is here yet: SELECT pg_switch_wal() on the server"
    return f"--timeline {int(timeline)} names the server's"


def not_here(store: Store, seen: WalSeen, server: ArchiverFacts) -> str | None:
    """What PostgreSQL was told is archived, last of all, and is not there; None where it is, or was pruned.

    It asks the store anew: what the server said came later than *seen*, or not.
    """
    name = server.last_archived
    system = next((each for each in seen.systems if each.entry.system_id == server.system_id), None)
    kind = None if name is None else classify(name)
    if name is None or system is None or kind in {None, Kind.PARTIAL}:
        return None
    name = name if kind is Kind.HISTORY else name[:24]
    timeline = Timeline.parse(name[:8])
    if _is_stored(store, system, name) or (kind is not Kind.HISTORY and not _is_expected(system, server, name)):
        return None
    newest = _of(system, timeline)
    last = None if newest is None else newest.last
    ends = "nothing of its timeline is" if last is None else f"its timeline ends with {last}"
    return (
        f"the server was told that {name} is archived, and it is not here, {ends}: what was written meanwhile cannot be restored;"
        " does archive_command push into this repository? did somebody remove it?"
    )


def _is_expected(system: SystemSeen, server: ArchiverFacts, name: str) -> bool:
    """Not what a prune may have removed: the last word of a server that has not archived for long, a standby."""
    try:
        segment = Segment.parse(name, system.entry.segment_bytes)
    except UsageError:  # of other segments
        return False
    of_timeline = _of(system, segment.timeline)
    if of_timeline is None or of_timeline.first is None:
        return segment.timeline == server.timeline
    return segment >= of_timeline.first


def loss_of(seen: WalSeen, server: ArchiverFacts) -> Loss | None:
    """What would be lost of a server, of whichever system of the repository; None while it is in recovery."""
    if server.lsn is None or server.timeline is None:
        return None
    archived_to = _archived_to(seen, server.system_id, server.timeline)
    window = seen.window  # of the newest system: one before an upgrade may still run, and both have a timeline 1
    is_its = window is not None and (window.backup.system_id, window.timeline) == (server.system_id, server.timeline)
    return Loss(archived_to, max(0, server.lsn - archived_to), window.to if window is not None and is_its else None)


def _archived_to(seen: WalSeen, system_id: str, timeline: Timeline) -> Lsn:
    """Up to where that timeline's WAL can be followed from the last backup, or from its begin."""
    for system in seen.systems:
        for each in system.timelines if system.entry.system_id == system_id else ():
            if each.timeline == timeline and each.survey is not None and each.survey.runs:
                return Lsn((each.survey.runs[-1].last + 1) * system.entry.segment_bytes)
    return Lsn(0)


def _is_stored(store: Store, system: SystemSeen, name: str) -> bool:
    for suffix in (keys.STORED, keys.STORED + SEALED):
        with suppress(ObjectMissingError):
            store.head(keys.archive_key(system.entry.system_id, name, suffix))
            return True
    return False


def _of(system: SystemSeen, timeline: Timeline) -> TimelineSeen | None:
    return next((each for each in system.timelines if each.timeline == timeline), None)
