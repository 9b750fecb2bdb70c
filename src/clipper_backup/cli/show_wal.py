"""How `wal status` and `wal verify` look: one document, and one screen of text whose first line is the answer."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from clipper_backup.cli.tables import pairs, table
from clipper_backup.ops.wal.look import SystemSeen, TimelineSeen, WalSeen, Window
from clipper_backup.repository.wal_survey import Hole
from clipper_backup.values import json_time, show_bytes, show_count, show_seconds, show_time

if TYPE_CHECKING:
    from clipper_backup.ops.wal.server_side import Loss
    from clipper_backup.ops.wal.status import WalStatus
    from clipper_backup.ops.wal.verify import Verified
    from clipper_backup.postgres.archiver_facts import ArchiverFacts

_SHOWN = 5
"""Of each kind of thing so many are named; the others are counted."""


def status_document(status: "WalStatus", url: str) -> dict[str, Any]:
    """What is known, for programs."""
    return {
        **_seen(status.seen, url),
        "problems": list(status.problems),
        "server": None if status.server is None else server_document(status.server),
        "server_unreached": status.unreached,
        "loss": loss_document(status.loss),
    }


def verify_document(found: "Verified", url: str) -> dict[str, Any]:
    """What was found, for programs."""
    return {
        **_seen(found.seen, url),
        "problems": found.seen.problems,
        "files": found.files,
        "stored_bytes": found.stored_bytes,
        "read_data": found.read,
        "damage": list(found.damage),
        "newer": list(found.newer),
        "unopened": list(found.unopened),
        "unopened_histories": list(found.unopened_histories),
    }


def _seen(seen: WalSeen, url: str) -> dict[str, Any]:
    window = seen.window
    return {
        "schema": 1,
        "url": url,
        "recoverable": window is not None,
        "window": None if window is None else window_document(window),
        "earlier": [_earlier_document(each) for each in seen.earlier],
        "gaps": [hole_document(hole) for system in seen.systems for hole in system.holes],
        "twice": [name for system in seen.systems for name in system.twice],
        "links_not_compared": sum(system.unlooked for system in seen.systems),
        "foreign_systems": list(seen.foreign),
        "items": [_timeline(system, each) for system in seen.systems for each in system.timelines],
    }


def window_document(window: Window) -> dict[str, Any]:
    """A window that leads to the end of the WAL."""
    return {**_earlier_document(window), "to": optional_time(window.to), "timeline": int(window.timeline)}


def loss_document(loss: "Loss | None") -> dict[str, Any] | None:
    """What dies with the host; None where that is not known."""
    if loss is None:
        return None
    return {"archived_to": str(loss.archived_to), "bytes": loss.bytes, "since": optional_time(loss.since)}


def _earlier_document(window: Window) -> dict[str, Any]:
    return {
        "from": json_time(window.backup.stopped_at),
        "backup": window.backup.id,
        "first_segment": window.backup.first_segment,
        "last_segment": window.last.name,
    }


def _timeline(system: SystemSeen, seen: TimelineSeen) -> dict[str, Any]:
    return {
        "id": f"{system.entry.system_id}/{seen.timeline}",
        "system_id": system.entry.system_id,
        "timeline": int(seen.timeline),
        "first_segment": None if seen.first is None else seen.first.name,
        "last_segment": None if seen.last is None else seen.last.name,
        "last_written_at": optional_time(seen.written_at),
        "waiting": seen.waiting,
        "problem": seen.problem,
    }


def hole_document(hole: Hole) -> dict[str, Any]:
    """A hole of a line."""
    return {"segment": hole.first.name, "missing": hole.missing, "why": hole.why, "in_window": hole.in_window}


def server_document(server: "ArchiverFacts") -> dict[str, Any]:
    """What the server says of itself."""
    return {
        "system_id": server.system_id,
        "archives": server.archives,
        "lsn": None if server.lsn is None else str(server.lsn),
        "timeline": None if server.timeline is None else int(server.timeline),
        "ready": server.ready,
        "ready_since": optional_time(server.ready_since),
        "ready_bytes": server.ready_bytes,
        "archived": server.archived,
        "last_archived": server.last_archived,
        "last_archived_at": optional_time(server.last_archived_at),
        "failed": server.failed,
        "last_failed": server.last_failed,
        "last_failed_at": optional_time(server.last_failed_at),
        "failing": server.failing,
    }


def optional_time(moment: datetime | None) -> str | None:
    """A moment for programs, where there is one."""
    return None if moment is None else json_time(moment)


def status_text(status: "WalStatus", url: str) -> str:
    """The same for people."""
    seen = status.seen
    items = [
        ("repository", url),
        *([("only", earlier_text(seen))] if seen.earlier else []),
        ("links", _links(seen)),
        *([("gaps", holes_text(seen))] if any(system.holes for system in seen.systems) else []),
        *([("twice", first_lines([name for system in seen.systems for name in system.twice]))] if _twice(seen) else []),
        ("server", server_text(status)),
        *([("if its host died", loss_text(status))] if status.loss is not None else []),
        *([("ATTENTION", first_lines(status.problems))] if status.problems else []),
    ]
    return f"{_answer(seen)}\n\n{pairs(items)}{_table(seen)}"


def verify_text(found: "Verified") -> str:
    """The same for people."""
    seen = found.seen
    looked = f"{show_count(found.files, 'file')}, {show_bytes(found.stored_bytes)}: " + (
        "all read and compared" if found.read else "headers compared, the rest not read"
    )
    items = [
        ("files", looked),
        *([("only", earlier_text(seen))] if seen.earlier else []),
        *([("gaps", holes_text(seen))] if any(system.holes for system in seen.systems) else []),
        *([("damage", first_lines(found.damage))] if found.damage else []),
        *([("NOT OPENED", _unopened(found))] if found.unopened or found.unopened_histories else []),
        *([("not known", first_lines(found.newer))] if found.newer else []),
        *([("ATTENTION", first_lines(seen.problems))] if seen.problems else []),
    ]
    return f"{_answer(seen)}\n\n{pairs(items)}{_table(seen)}"


def _unopened(found: "Verified") -> str:
    """What is sealed to other keys than those at hand."""
    lines = []
    if found.unopened:
        span = f"{found.unopened[0]} to {found.unopened[-1]}" if len(found.unopened) > 1 else found.unopened[0]
        lines.append(f"{show_count(len(found.unopened), 'file')} sealed to other keys: {span}")
    if found.unopened_histories:
        count = show_count(len(found.unopened_histories), "history", "histories")
        lines.append(f"{count} sealed to other keys: restores from base backups of their timelines, or later ones, do without")
    return "\n".join(lines)


def _answer(seen: WalSeen) -> str:
    window = seen.window
    if window is not None:
        to = "the end of the WAL" if window.to is None else show_time(window.to)
        return f"RECOVERABLE to every instant from {show_time(window.backup.stopped_at)} to {to}"
    if not seen.systems:
        return "NOT RECOVERABLE: no WAL was ever archived here"
    return f"NOT RECOVERABLE to the end of the WAL: {seen.why_no_window}"


def earlier_text(seen: WalSeen) -> str:
    """What can be restored up to a gap."""
    return first_lines([f"from {show_time(each.backup.stopped_at)} to the end of {each.last}" for each in seen.earlier])


def _links(seen: WalSeen) -> str:
    unlooked = sum(system.unlooked for system in seen.systems)
    unfit = sum(not hole.missing for system in seen.systems for hole in system.holes)
    if unfit:
        return f"{unfit} do not fit to the one before them"
    return f"{unlooked} not compared: `wal verify` compares all" if unlooked else "every segment fits to the one before it"


def holes_text(seen: WalSeen) -> str:
    """Where a line cannot be followed, and why."""
    holes = [hole for system in seen.systems for hole in system.holes]
    shown = [
        f"{hole.first}{f' and {hole.missing - 1} behind it' if hole.missing > 1 else ''}: {hole.why}"
        f"{'' if hole.in_window else ' (no instant of the window needs it)'}"
        for hole in holes
    ]
    return first_lines(shown)


def _twice(seen: WalSeen) -> bool:
    return any(system.twice for system in seen.systems)


def first_lines(things: Sequence[str]) -> str:
    """The first of *things*, and how many more there are."""
    more = [f"and {len(things) - _SHOWN} more"] if len(things) > _SHOWN else []
    return "\n".join([*things[:_SHOWN], *more])


def server_text(status: "WalStatus") -> str:
    """How far the server is, and what waits."""
    server = status.server
    if server is None:
        return f"not reached: {status.unreached}" if status.unreached else "not asked"
    if server.lsn is None:
        return f"in recovery; system {server.system_id}"
    waits = (
        "nobody told how many files wait"
        if server.ready is None
        else f"{show_count(server.ready, 'file waits', 'files wait')} to be archived{_size(server)}"
    )
    last = f"; the last one was archived {_ago(server, server.last_archived_at)}" if server.last_archived_at else ""
    return f"writes at {server.lsn} on timeline {int(server.timeline or 0)}; {waits}{last}"


def _size(server: "ArchiverFacts") -> str:
    return f", {show_bytes(server.ready_bytes)}" if server.ready_bytes else ""


def loss_text(status: "WalStatus") -> str:
    """What dies with the server's host."""
    loss = status.loss
    if loss is None:
        return ""
    what = f"the WAL from {loss.archived_to} on, {show_bytes(loss.bytes)}, would be lost"
    return what if loss.since is None else f"{what}; every transaction up to {show_time(loss.since)} is archived"


def _ago(server: "ArchiverFacts", moment: datetime) -> str:
    return f"{show_seconds(max(0.0, (server.now - moment).total_seconds()))} ago"


def _note(seen: TimelineSeen) -> str:
    if seen.problem is not None:
        return "no restore can follow it" if seen.survey is None else "only its own base backups lead along it"
    return f"{seen.waiting} behind it claimed, and not there yet" if seen.waiting else ""


def _table(seen: WalSeen) -> str:
    rows = [
        (
            system.entry.system_id,
            str(int(each.timeline)),
            "" if each.first is None else each.first.name,
            "" if each.last is None else each.last.name,
            "" if each.written_at is None else show_time(each.written_at),
            _note(each),
        )
        for system in seen.systems
        for each in system.timelines
    ]
    headings = ("SYSTEM", "TIMELINE", "FIRST SEGMENT", "LAST SEGMENT", "WRITTEN", "NOTE")
    return f"\n{table(headings, rows, right=('TIMELINE',))}" if rows else ""
