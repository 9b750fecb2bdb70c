"""How `status` looks: one document, and one screen of text whose first line is the answer."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from clipper_backup.cli.tables import pairs, table
from clipper_backup.config import Settings
from clipper_backup.format.documents import DumpSummary
from clipper_backup.ops.status import OpenedBy, Status, taken_at
from clipper_backup.values import json_time, show_bytes, show_names, show_seconds, show_time

_SHOWN = 5
"""Of each kind of thing so many are named; the others are counted."""


def status_document(status: Status, url: str) -> dict[str, Any]:
    """What is known, for programs."""
    to = status.recoverable_to
    return {
        "schema": 1,
        "url": url,
        "recoverable": status.recoverable,
        "recoverable_from": None if to is None else json_time(taken_at(status.good[0])),
        "recoverable_to": None if to is None else json_time(to),
        "proven_at": None,
        "missing": list(status.missing),
        "problems": list(status.problems),
        "items": [
            {
                "id": each.database,
                "dump": each.summary.id,
                "taken_at": json_time(each.taken_at),
                "age_seconds": _age(status, each.taken_at),
                "stored_bytes": each.stored_bytes,
                "recipients": list(each.summary.recipients),
                "signed_by": each.summary.signed_by,
                "signature_checked": status.signatures_checked,
                "wanted": each.wanted,
            }
            for each in status.newest
        ],
        "dumps": {
            "good": len(status.good),
            "damaged": [str(entry.listed.dump_id) for entry in status.damaged],
            "untrusted": [str(entry.listed.dump_id) for entry in status.untrusted],
            "unfinished": [str(entry.listed.dump_id) for entry in status.unfinished],
            "stored_bytes": sum(entry.listed.stored_bytes for entry in status.entries),
        },
        "keys": [
            {
                "id": key.recipient,
                "checked_at": None if key.check is None else json_time(key.check.checked_at),
                "checked_dump": None if key.check is None else key.check.dump_id,
            }
            for key in status.keys
        ],
        "holds": [
            {"id": str(dump_id), "reason": mark.reason, "held_by": mark.held_by, "held_at": json_time(mark.held_at)}
            for dump_id, mark in sorted(status.holds.items())
        ],
        "lease": None
        if status.lease is None
        else {
            "holder": status.lease.holder,
            "purpose": status.lease.purpose,
            "taken_at": json_time(status.lease.taken_at),
            "last_sign_at": json_time(status.lease.last_sign_at),
        },
        "pruned_at": None if status.pruned is None else json_time(status.pruned.pruned_at),
    }


def _age(status: Status, moment: datetime) -> float:
    """Seconds since *moment*; none for one that lies ahead, by clocks that differ."""
    return max(0.0, round((status.now - moment).total_seconds(), 3))


def status_text(status: Status, url: str, settings: Settings) -> str:
    """The same for people."""
    minimum = settings.retention_min_dumps
    items = [
        ("repository", url),
        ("dumps", _counts(status)),
        *([("sealed to", "\n".join(_opened(status, key) for key in status.keys))] if status.keys else []),
        ("proven", "never: this version keeps no record of restores; `dump restore` compares, and says so when it ends"),
        ("held", _holds(status)),
        ("kept for", f"{settings.retention_days} days, and the {minimum} newest of each database; {_pruned(status)}"),
        ("at work", _lease(status)),
        *([("ATTENTION", _problems(status))] if status.problems else []),
    ]
    rows = [
        (
            show_names([each.database]),
            each.summary.id,
            show_time(each.taken_at),
            show_seconds(_age(status, each.taken_at)),
            show_bytes(each.stored_bytes),
            "sealed" if each.summary.sealed else "plain",
            _signed(status, each.summary),
            "" if each.wanted else "no longer dumped",
        )
        for each in status.newest
    ]
    headings = ("DATABASE", "NEWEST GOOD DUMP", "TAKEN", "AGE", "STORED", "SEALED", "SIGNED", "NOTE")
    listing = f"\n{table(headings, rows, right=('AGE', 'STORED'))}" if rows else ""
    return f"{_first_line(status)}\n{pairs(items)}{listing}"


def _first_line(status: Status) -> str:
    to = status.recoverable_to
    if to is None:
        lacking = f"holds {show_names(status.missing)}" if status.missing else "is there"
        return f"NOT RECOVERABLE: no good dump {lacking}"
    moments = "the moment of 1 dump" if len(status.good) == 1 else f"the moments of {len(status.good)} dumps"
    began = taken_at(status.good[0])
    span = show_time(to) if began >= to else f"from {show_time(began)} to {show_time(to)}"
    key = " with a key" if status.keys else ""
    return f"RECOVERABLE{key} to {moments}: {span}, {show_seconds(_age(status, to))} ago; proven: never"


def _counts(status: Status) -> str:
    counts = [f"{len(status.good)} good"]
    for name, entries in (("damaged", status.damaged), ("not trusted", status.untrusted), ("unfinished", status.unfinished)):
        if entries:
            counts.append(f"{len(entries)} {name}: {', '.join(_first([str(e.listed.dump_id) for e in reversed(entries)]))}")
    total = show_bytes(sum(entry.listed.stored_bytes for entry in status.entries))
    return "\n".join([f"{counts[0]}, {total} stored", *counts[1:]])


def _problems(status: Status) -> str:
    return "\n".join(_first(status.problems))


def _first(lines: Sequence[str]) -> list[str]:
    """The first of *lines*, and how many more there are."""
    return [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]


def _opened(status: Status, key: OpenedBy) -> str:
    if key.check is None:
        return f"{key.recipient}: never shown to open a dump"
    ago = show_seconds(_age(status, key.check.checked_at))
    what = "the newest good dump" if key.opened(status.good[-1]) else key.check.dump_id
    return f"{key.recipient}: opened {what} {ago} ago"


def _signed(status: Status, summary: DumpSummary) -> str:
    if status.signatures_checked:
        return "trusted"
    return "no" if summary.signed_by is None else "not checked"


def _holds(status: Status) -> str:
    if not status.holds:
        return "none"
    return "\n".join(_first([f"{dump_id}: {mark.reason}" for dump_id, mark in sorted(status.holds.items(), reverse=True)]))


def _pruned(status: Status) -> str:
    if status.pruned is None:
        return "never pruned"
    return f"last pruned {show_time(status.pruned.pruned_at)}"


def _lease(status: Status) -> str:
    if status.lease is None:
        return "nobody"
    seen = show_seconds(_age(status, status.lease.last_sign_at))
    return f"{status.lease.who}, since {show_time(status.lease.taken_at)}, last seen {seen} ago"
