"""How `verify` looks: one document, and one line for each kind of thing under a first line that is the answer."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from clipper_backup.cli import show_wal
from clipper_backup.cli.tables import pairs
from clipper_backup.format.documents import VerifyReport
from clipper_backup.ops.lost_instants import Cost, Lost, PerhapsLost, Restorable
from clipper_backup.ops.verify.run import VerifiedAll
from clipper_backup.ops.verify.units import Kind, Mode
from clipper_backup.repository.verify_report import covered_share, never_in_turn
from clipper_backup.values import BackupId, json_time, show_bytes, show_count, show_seconds, show_share, show_time

Document = dict[str, Any]


def verified_document(found: VerifiedAll, url: str) -> Document:
    """What was found, for programs."""
    cost = found.cost
    return {
        "schema": 1,
        "url": url,
        "intact": not (found.damage or found.unlooked or _gaps(found)),
        "mode": found.mode.value,
        "begun_at": json_time(found.begun_at),
        "ended_at": json_time(found.ended_at),
        "cycle_days": found.cycle_days,
        "covered_share": round(found.covered_share, 6),
        "noted": found.noted,
        "dumps": _kind_document(found.dumps),
        "base_backups": {
            "count": found.base.backups,
            "damaged": [str(backup_id) for backup_id in sorted(found.base.damaged)],
            "files_put_together": found.base.files,
            "newest_good": None if found.newest_good is None else str(found.newest_good.listed.backup_id),
        },
        "packs": _kind_document(found.packs),
        "wal": _kind_document(found.files),
        "gaps": [show_wal.hole_document(hole) for hole in _gaps(found)],
        "lost": [_lost_document(lost) for lost in cost.lost] if cost is not None else [],
        "perhaps_lost": [_perhaps_document(each) for each in cost.perhaps] if cost is not None else [],
        "restorable": [_restorable_document(each) for each in _restorable(found)],
        "unlooked": [error.message for error in found.unlooked],
        "unopened": [error.message for error in found.unopened],
        "problems": found.problems,
        "next_steps": found.next_steps,
        "items": [{"id": each.key, "damage": each.text} for each in found.damage],
    }


def _kind_document(kind: Kind) -> Document:
    rotation = kind.rotation
    return {
        "units": kind.units,
        "stored_bytes": kind.size_bytes,
        "read_units": kind.read_units,
        "read_bytes": kind.read_bytes,
        "covered_bytes": kind.covered_bytes,
        "owed_bytes": kind.owed_bytes,
        "damaged": len(kind.damaged),
        "covered_since": None if rotation is None else json_time(rotation.covered_since),
        "covered_until": None if rotation is None else json_time(rotation.covered_until),
    }


def _lost_document(lost: Lost) -> Document:
    return {
        "system_id": lost.system_id,
        "timeline": int(lost.timeline),
        "from": show_wal.optional_time(lost.since),
        "to": show_wal.optional_time(lost.until),
        "from_lsn": str(lost.begin),
        "to_lsn": str(lost.end),
        "because_of": list(lost.why),
    }


def _perhaps_document(each: PerhapsLost) -> Document:
    return {
        "of": each.what,
        "why": each.why,
        "from": show_wal.optional_time(each.since),
        "to": show_wal.optional_time(each.until),
    }


def _restorable_document(each: Restorable) -> Document:
    return {
        "backup": each.backup_id,
        "from": json_time(each.since),
        "to": show_wal.optional_time(each.until),
        "to_end": each.to_end,
    }


def _gaps(found: VerifiedAll) -> Sequence[Any]:
    return [] if found.wal is None else found.wal.gaps


def _restorable(found: VerifiedAll) -> list[Restorable]:
    """What of the newest line can be restored to any instant, as far as that is known."""
    if found.cost is not None:
        return list(found.cost.restorable)
    if _wrong(found):
        return []
    window = None if found.wal is None else found.wal.window
    return [] if window is None else [Restorable(window.backup.id, window.backup.stopped_at, window.to, to_end=True)]


def verified_text(found: VerifiedAll, url: str) -> str:
    """The same for people."""
    lost = [] if found.cost is None else [*found.cost.lost, *found.cost.perhaps]
    items = [
        ("repository", url),
        ("dumps", _kind_text(found.dumps, "dump")),
        *(_physical_items(found) if found.wal is not None or found.base.backups else []),
        ("read in turn", _rotation_text(found)),
        *([("damage", show_wal.first_lines([each.text for each in found.damage]))] if found.damage else []),
        *([("gaps", show_wal.first_lines([f"{hole.first}: {hole.why}" for hole in _gaps(found)]))] if _gaps(found) else []),
        *([("lost", show_wal.first_lines(list(map(str, lost))))] if lost else []),
        *([("still there", _still_there(found.cost))] if found.cost is not None and _wrong(found) else []),
        *([("healed", _healed(found))] if found.base.damaged and found.newest_good is not None else []),
        *([("not looked at", show_wal.first_lines([error.message for error in found.unlooked]))] if found.unlooked else []),
        *([("not looked into", show_wal.first_lines([error.message for error in found.unopened]))] if found.unopened else []),
        *([("ATTENTION", show_wal.first_lines(found.problems))] if found.problems else []),
        *([("next", "\n".join(found.next_steps))] if found.next_steps else []),
    ]
    return f"{_answer(found)}\n\n{pairs(items)}"


def _wrong(found: VerifiedAll) -> bool:
    """Whether something of base backups or WAL is: each may cost instants."""
    return bool(found.base.damaged or found.files.damaged or _gaps(found))


def _still_there(cost: Cost) -> str:
    return show_wal.first_lines(list(map(str, cost.restorable))) or "no instant"


def _answer(found: VerifiedAll) -> str:
    wrong = [
        show_count(len(things), one, several)
        for things, one, several in (
            (found.dumps.damaged, "damaged dump", ""),
            (found.base.damaged, "damaged base backup", ""),
            (found.files.damaged, "damaged file of the WAL", "damaged files of the WAL"),
            (_gaps(found), "gap in the WAL", "gaps in the WAL"),
        )
        if things
    ]
    read = f"{show_bytes(sum(kind.read_bytes for kind in found.kinds))} read"
    if wrong or found.damage:
        return f"DAMAGED: {', '.join(wrong) or show_count(len(found.damage), 'object')}{_cost(found)}"
    if found.unlooked:
        return f"NOT ALL LOOKED AT: {found.unlooked[0].message}"
    intact = f"INTACT as far as it was read: {read} now, {_covered(found)}"
    return f"{intact}; but somebody should look: {found.problems[0]}" if found.problems else intact


def _covered(found: VerifiedAll) -> str:
    """The share that was read within the cycle, and what the rest is."""
    all_bytes = "the bytes that were looked at" if found.cut else "all bytes"
    covered = f"{show_share(found.covered_share)} of {all_bytes} within {show_count(found.cycle_days, 'day')}"
    owed = sum(kind.owed_bytes for kind in found.kinds)
    if owed:
        return f"{covered}; {show_bytes(owed)} older than that were not read yet"
    return covered if found.covered_share == 1 else f"{covered}, the rest is newer and waits for its turn"


def _cost(found: VerifiedAll) -> str:
    """Of the window, where there may be one."""
    cost, unlooked = found.cost, found.packs.unlooked or found.files.unlooked
    if cost is not None and (cost.lost or cost.perhaps):
        return f"; instants of the window {'are' if cost.lost else 'may be'} lost, see below"
    if unlooked or (cost is None and _wrong(found)):
        return "; which instants are lost was not found out"
    return "" if found.wal is None else "; no instant of the window is lost"


def _physical_items(found: VerifiedAll) -> list[tuple[str, str]]:
    bad = f", {len(found.base.damaged)} damaged: {_newest_three(found.base.damaged)}" if found.base.damaged else ""
    files = f"; {show_count(found.base.files, 'file')} of the newest put together" if found.base.files else ""
    return [
        ("base backups", f"{found.base.backups} looked at{bad}{files}"),
        ("packs", _kind_text(found.packs, "pack")),
        ("WAL", _kind_text(found.files, "file")),
    ]


def _newest_three(backups: Collection[BackupId]) -> str:
    older = len(backups) - 3
    return ", ".join(map(str, sorted(backups)[-3:])) + (f" and {older} older" if older > 0 else "")


def _kind_text(kind: Kind, one: str) -> str:
    if not kind.units:
        return "not looked at" if kind.unlooked else "none"
    bad = f"; {len(kind.damaged)} damaged" if kind.damaged else ""
    read = f"{kind.read_units} read now, {show_bytes(kind.read_bytes)}"
    covered = f"{show_share(kind.covered_bytes / kind.size_bytes)} within the cycle" if kind.size_bytes else "nothing to read"
    cut = "; NOT all looked at" if kind.cut else ""
    return f"{show_count(kind.units, one)}, {show_bytes(kind.size_bytes)}; {read}; {covered}{bad}{cut}"


def _rotation_text(found: VerifiedAll) -> str:
    share = f"{_covered(found)} (VERIFY_CYCLE_DAYS)"
    if not found.noted:
        return f"{share}; not written down, so the next run knows nothing of it"
    if found.mode is Mode.SAMPLE:
        return f"{share}; a sample moves no rotation"
    all_read = not found.cut and all(kind.read_units == kind.units for kind in found.kinds)
    return f"{share}; all was read now" if all_read else share


def _healed(found: VerifiedAll) -> str:
    newest = found.newest_good
    assert newest is not None and newest.summary is not None  # noqa: S101, PT018  it is good
    since = show_time(newest.summary.stopped_at)
    return (
        f"the newest base backup, {newest.summary.id}, needs nothing of what is damaged: it leads to {since}, and on from there"
    )


def report_text(report: VerifyReport | None, now: datetime) -> str:
    """One line of `status`: when, how much of it all was read lately, and whether damage is known."""
    if report is None:
        return "never: `clipper-backup verify` reads what is stored, in turn"
    ago = show_seconds(max(0.0, (now - report.ended_at).total_seconds()))
    share = f"{show_share(covered_share(report, now))} of all bytes read within {show_count(report.cycle_days, 'day')}"
    never = f"; {', '.join(never_in_turn(report))} never read in turn" if never_in_turn(report) else ""
    damage = f"{show_count(report.damaged, 'thing is', 'things are')} damaged" if report.damaged else "no damage known"
    return f"{ago} ago, {share}{never}; {damage}"


def report_document(report: VerifyReport | None, now: datetime) -> Document | None:
    """The same for programs."""
    if report is None:
        return None
    return {
        "verified_at": json_time(report.ended_at),
        "covered_share": round(covered_share(report, now), 6),
        "cycle_days": report.cycle_days,
        "damaged": report.damaged,
    }
