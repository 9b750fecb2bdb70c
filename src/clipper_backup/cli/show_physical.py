"""How `status` shows base backups and WAL: the first line where every instant can be restored, rows, a part of the document."""

from datetime import datetime
from typing import Any

from clipper_backup.cli import show_wal
from clipper_backup.ops.physical_status import PhysicalStatus, finished_at
from clipper_backup.ops.wal.look import Window
from clipper_backup.repository.base_backups import BaseEntry
from clipper_backup.values import json_time, show_bytes, show_seconds, show_share, show_time

OFF = "off: no base backup and no WAL is here (docs/guides/point-in-time.md)"


def document(status: PhysicalStatus) -> dict[str, Any]:
    """What is known, for programs."""
    seen, wal = status.wal.seen, status.wal
    return {
        "window": None if seen.window is None else show_wal.window_document(seen.window),
        "reaches_back": status.reaches_back,
        "gaps": [show_wal.hole_document(hole) for system in seen.systems for hole in system.holes],
        "newest": None if status.newest is None else _newest_document(status, status.newest),
        "good": len(status.good),
        "damaged": [str(each.listed.backup_id) for each in status.damaged],
        "unfinished": [str(each.listed.backup_id) for each in status.unfinished],
        "holds": [{"id": str(backup_id), "reason": hold.reason} for backup_id, hold in sorted(status.holds.items())],
        "server": None if wal.server is None else show_wal.server_document(wal.server),
        "server_unreached": wal.unreached,
        "loss": show_wal.loss_document(wal.loss),
    }


def _newest_document(status: PhysicalStatus, entry: BaseEntry) -> dict[str, Any]:
    summary = entry.summary
    assert summary is not None  # noqa: S101  it is good
    return {
        "id": summary.id,
        "finished_at": json_time(summary.finished_at),
        "age_seconds": round((status.now - summary.finished_at).total_seconds(), 3),
        "plain_bytes": summary.plain_bytes,
        "stored_bytes": summary.stored_bytes,
        "verified_at": None if entry.verified is None else json_time(entry.verified.verified_at),
        "verified_share": None if entry.verified is None else entry.verified.share,
    }


def first_line(status: PhysicalStatus, window: Window) -> str:
    """The answer, where every instant of a window can be restored."""
    key = " with a key" if window.backup.sealed else ""
    to = "the end of the WAL" if window.to is None else f"{show_time(window.to)}, {_ago(status, window.to)}"
    return f"RECOVERABLE{key} to every instant from {show_time(window.backup.stopped_at)} to {to}; proven: never"


def items(status: PhysicalStatus | None) -> list[tuple[str, str]]:
    """Rows of the screen."""
    if status is None:
        return [("instants", OFF)]
    seen = status.wal.seen
    return [
        ("base backups", _backups(status)),
        ("instants", _window(status)),
        *([("only", show_wal.earlier_text(seen))] if seen.earlier else []),
        *([("gaps", show_wal.holes_text(seen))] if any(system.holes for system in seen.systems) else []),
        ("archiver", show_wal.server_text(status.wal)),
        *([("host died now", show_wal.loss_text(status.wal))] if status.wal.loss is not None else []),
    ]


def holds(status: PhysicalStatus) -> list[str]:
    """The base backups that are held, newest first."""
    held = sorted(status.holds.items(), reverse=True)
    return [f"{backup_id}: {hold.reason or 'its mark cannot be read'}" for backup_id, hold in held]


def _backups(status: PhysicalStatus) -> str:
    counts = [f"{len(status.good)} good"]
    for name, entries in (("not good", status.damaged), ("unfinished", status.unfinished)):
        counts += [f"{len(entries)} {name}"] if entries else []
    newest = status.newest
    if newest is None or newest.summary is None:
        return ", ".join(counts)
    size = f"{show_bytes(newest.summary.plain_bytes)}, {show_bytes(newest.summary.stored_bytes)} stored"
    age = _ago(status, finished_at(newest))
    return f"{', '.join(counts)}; newest {newest.summary.id}, {age}, {size}; {_verified(status, newest)}"


def _verified(status: PhysicalStatus, entry: BaseEntry) -> str:
    if entry.verified is None:
        return "never verified"
    share = entry.verified.share
    read = "all of it read" if share == 1 else f"{show_share(share)} of it read" if share else "nothing of it read"
    return f"verified {_ago(status, entry.verified.verified_at)}, {read}"


def _window(status: PhysicalStatus) -> str:
    window, days = status.window, status.asked_days
    if window is None:
        return f"NOT to the end of the WAL: {status.wal.seen.why_no_window}"
    back = show_seconds((status.now - window.backup.stopped_at).total_seconds())
    kept = f"PITR_WINDOW_DAYS asks for {days} days" + ("" if status.reaches_back else ": not old enough yet, or pruned")
    return f"{back} back, from {window.backup.id} to {window.last} on timeline {int(window.timeline)}; {kept}"


def _ago(status: PhysicalStatus, moment: datetime) -> str:
    return f"{show_seconds(max(0.0, (status.now - moment).total_seconds()))} ago"
