"""How `status` looks: one document, and one screen of text whose first line is the answer."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from clipper_backup.cli import show_physical
from clipper_backup.cli.show_verify import report_document, report_text
from clipper_backup.cli.tables import pairs, table
from clipper_backup.config import Settings
from clipper_backup.format.documents import DumpSummary
from clipper_backup.ops.findings import SKEW
from clipper_backup.ops.lease import DUMP_LEASE
from clipper_backup.ops.physical_status import PhysicalStatus, keys_of
from clipper_backup.ops.status import Newest, OpenedBy, Status
from clipper_backup.repository.leases import Held
from clipper_backup.values import json_time, show_bytes, show_count, show_names, show_seconds, show_time

_SHOWN = 5
"""Of each kind of thing so many are named; the others are counted."""


def all_problems(status: Status, physical: PhysicalStatus | None) -> list[str]:
    """Of dumps, and of base backups and WAL. Where those are enough, no good dump is a problem if somebody wants dumps."""
    if physical is None:
        return list(status.problems)
    wanted = physical.window is not None and not status.recoverable and (status.entries or status.missing)
    lacking = [f"no good dump {_lacking(status)}"] if wanted else []
    return [*status.problems, *lacking, *physical.problems]


def status_document(status: Status, url: str, physical: PhysicalStatus | None = None) -> dict[str, Any]:
    """What is known, for programs."""
    to, whole = status.recoverable_to, status.whole
    return {
        "schema": 1,
        "url": url,
        "recoverable": status.recoverable,
        "recoverable_from": json_time(whole[0].taken_at) if whole else None,
        "recoverable_to": None if to is None else json_time(to),
        "proven_at": None,
        "missing": list(status.missing),
        "verify": report_document(status.verified, status.now),
        "problems": all_problems(status, physical),
        "pitr": None if physical is None else show_physical.document(physical),
        "items": [
            {
                "id": each.database,
                "dump": each.summary.id,
                "taken_at": json_time(each.taken_at),
                "age_seconds": _age(status, each.taken_at),
                "dumps": len(each.dumps),
                "oldest_at": json_time(each.dumps[0].taken_at),
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
                "checked_dump": None if key.check is None else key.check.dump_id or None,
                "checked_base_backup": None if key.check is None else key.check.base_backup or None,
                "checked_segment": None if key.check is None else key.check.segment or None,
            }
            for key in keys_of(status, physical)
        ],
        "holds": [
            {"id": str(dump_id), "reason": mark.reason, "held_by": mark.held_by, "held_at": json_time(mark.held_at)}
            for dump_id, mark in sorted(status.holds.items())
        ],
        "lease": _lease_document(status.leases[DUMP_LEASE]) if DUMP_LEASE in status.leases else None,
        "leases": [{"name": name, **_lease_document(held)} for name, held in status.leases.items()],
        "pruned_at": None if status.pruned is None else json_time(status.pruned.pruned_at),
    }


def _age(status: Status, moment: datetime) -> float:
    """Seconds since *moment*, by this machine's clock; negative for one that lies ahead of it."""
    return round((status.now - moment).total_seconds(), 3)


def _shown_age(status: Status, moment: datetime) -> str:
    age = _age(status, moment)
    return "ahead" if age < -SKEW.total_seconds() else show_seconds(max(0.0, age))


def _ago(status: Status, moment: datetime) -> str:
    age = _shown_age(status, moment)
    return f"{age} of this machine's clock" if age == "ahead" else f"{age} ago"


def status_text(status: Status, url: str, settings: Settings, physical: PhysicalStatus | None = None) -> str:
    """The same for people."""
    minimum = settings.retention_min_dumps
    problems, keys = all_problems(status, physical), keys_of(status, physical)
    window = None if physical is None else physical.window
    items = [
        ("repository", url),
        *([("by dumps", _moments(status).lstrip(", "))] if window is not None else []),
        ("dumps", _counts(status)),
        *show_physical.items(physical),
        *([("gone", _gone(status))] if status.gone else []),
        *([("sealed to", "\n".join(_opened(status, key) for key in keys))] if keys else []),
        ("proven", "never: this version keeps no record of restores; `dump restore` compares, and says so when it ends"),
        ("verified", report_text(status.verified, status.now)),
        ("held", _holds(status, physical)),
        (
            "kept for",
            f"{show_count(settings.retention_days, 'day')}, and the {minimum} newest of each database; {_pruned(status)}",
        ),
        ("at work", _lease(status)),
        *([("ATTENTION", "\n".join(_first(problems)))] if problems else []),
    ]
    rows = [
        (
            show_names([each.database]),
            each.summary.id,
            show_time(each.taken_at),
            _shown_age(status, each.taken_at),
            show_bytes(each.stored_bytes),
            "sealed" if each.summary.sealed else "plain",
            _signed(status, each.summary),
            _note(status, each),
        )
        for each in status.newest
    ]
    headings = ("DATABASE", "NEWEST GOOD DUMP", "TAKEN", "AGE", "STORED", "SEALED", "SIGNED", "NOTE")
    listing = f"\n{table(headings, rows, right=('AGE', 'STORED'))}" if rows else ""
    first = _first_line(status) if physical is None or window is None else show_physical.first_line(physical, window)
    return f"{first}\n{pairs(items)}{listing}"


def _lacking(status: Status) -> str:
    return f"holds {show_names(status.missing)}" if status.missing else "is there"


def _first_line(status: Status) -> str:
    if status.recoverable_to is None:
        return f"NOT RECOVERABLE: {_moments(status)}"
    key = " with a key" if any(each.wanted and each.summary.sealed for each in status.newest) else ""
    return f"RECOVERABLE{key}{_moments(status)}; proven: never"


def _moments(status: Status) -> str:
    """What the dumps lead to."""
    to = status.recoverable_to
    if to is None:
        return f"no good dump {_lacking(status)}"
    whole = status.whole
    if not whole or whole[-1].taken_at != to:
        moments = f", each database to its own moments: all of them to {show_time(to)}"
    elif len(whole) == 1:
        moments = f" to the moment of 1 dump: {show_time(to)}"
    else:
        moments = f" to the moments of {show_count(len(whole), 'dump')}: from {show_time(whole[0].taken_at)} to {show_time(to)}"
    return f"{moments}, {_ago(status, to)}"


def _note(status: Status, each: Newest) -> str:
    """What the first line does not say of a database."""
    if not each.wanted:
        return "no longer dumped"
    if each.dumps == status.whole:
        return ""
    counted = show_count(len(each.dumps), "dump")
    return f"in {counted}, from {show_time(each.dumps[0].taken_at)}"


def _gone(status: Status) -> str:
    """The databases that vanished; whether they should have, nobody said."""
    last = [f"{show_names([each.database])}, last in {each.summary.id}" for each in status.gone]
    return "\n".join([*_first(last), "dropped or renamed? BACKUP_DATABASES says which there should be"])


def _counts(status: Status) -> str:
    counts = [f"{len(status.good)} good"]
    for name, entries in (("damaged", status.damaged), ("not trusted", status.untrusted), ("unfinished", status.unfinished)):
        if entries:
            counts.append(f"{len(entries)} {name}: {', '.join(_first([str(e.listed.dump_id) for e in reversed(entries)]))}")
    total = show_bytes(sum(entry.listed.stored_bytes for entry in status.entries))
    return "\n".join([f"{counts[0]}, {total} stored", *counts[1:]])


def _first(lines: Sequence[str]) -> list[str]:
    """The first of *lines*, and how many more there are."""
    return [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]


def _opened(status: Status, key: OpenedBy) -> str:
    if key.check is None:
        return f"{key.recipient}: {'its check cannot be read' if key.unread else 'no check recorded'}"
    check, newest = key.check, bool(status.good) and key.opened(status.good[-1])
    opened = [
        *([("the newest good dump" if newest else check.dump_id)] if check.dump_id else []),
        *([f"the base backup {check.base_backup}"] if check.base_backup else []),
        *([f"the segment {check.segment}"] if check.segment else []),
    ]
    return f"{key.recipient}: opened {', '.join(opened)} {_ago(status, check.checked_at)}"


def _signed(status: Status, summary: DumpSummary) -> str:
    if status.signatures_checked:
        return "trusted"
    return "no" if summary.signed_by is None else "not checked"


def _holds(status: Status, physical: PhysicalStatus | None) -> str:
    held = [f"{dump_id}: {mark.reason}" for dump_id, mark in sorted(status.holds.items(), reverse=True)]
    held += [] if physical is None else show_physical.holds(physical)
    return "\n".join(_first(held)) if held else "none"


def _pruned(status: Status) -> str:
    if status.pruned is None:
        return "never pruned"
    return f"last pruned {show_time(status.pruned.pruned_at)}"


def _lease(status: Status) -> str:
    lines = [
        f"{held.who}, since {show_time(held.taken_at)}, last seen {_ago(status, held.last_sign_at)}"
        for held in status.leases.values()
    ]
    return "\n".join(lines) or "nobody"


def _lease_document(held: Held) -> dict[str, str]:
    return {
        "holder": held.holder,
        "purpose": held.purpose,
        "taken_at": json_time(held.taken_at),
        "last_sign_at": json_time(held.last_sign_at),
    }
