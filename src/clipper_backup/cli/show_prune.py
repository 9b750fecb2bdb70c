"""What a prune did or would do, as text and JSON."""

from collections.abc import Iterator
from typing import Any

from clipper_backup.cli.tables import table
from clipper_backup.format.physical_names import data_key_key, pack_key
from clipper_backup.ops.dump.prune import Plan
from clipper_backup.ops.physical_plan import KeptWal, PhysicalPrune
from clipper_backup.repository.base_prune import GoingPacks
from clipper_backup.repository.proof.check import Proof
from clipper_backup.repository.proof.lines import Window
from clipper_backup.repository.wal_prune import GoingRange
from clipper_backup.values import Lsn, json_time, show_bytes, show_count, show_time
from clipper_backup.wal_names import Segment


def question(plan: Plan, physical: PhysicalPrune) -> str:
    """What a person is asked before anything is removed."""
    parts = []
    if plan.going or not physical.changes:
        parts.append(f"{len(plan.going)} of {show_count(len(plan.decisions), 'dump')}")
    for kind, one in (("base backup", "base backup"), ("unfinished", "unfinished run")):
        if going := [item for item in physical.going if item.kind == kind]:
            parts.append(f"{len(going)} of {show_count(sum(item.kind == kind for item in physical.items), one)}")
    if physical.wal.segments:
        parts.append(show_count(physical.wal.segments, "WAL segment"))
    elif physical.wal.ranges or physical.wal.maps:
        parts.append("what is left of WAL that went")
    if physical.doomed or physical.freed.packs or physical.freed.keys:
        parts.append("packs that nothing needs")
    return f"Remove {', '.join(parts)}?"


def document(plan: Plan, physical: PhysicalPrune, *, dry_run: bool) -> dict[str, Any]:
    """A reason for each dump and base backup, for each range of WAL and packs; and what the proof found.

    Where that refused the plan nothing was changed, as in a *dry_run*.
    """
    announced = set(plan.announced)
    dumps = [
        {
            "id": str(decision.dump_id),
            "kind": "dump",
            "keep": decision.keep,
            "reason": decision.reason,
            "stored_bytes": decision.stored_bytes,
            "goes_next_time": decision.dump_id in announced,
        }
        for decision in plan.decisions
    ]
    backups = [
        {
            "id": str(item.backup_id),
            "kind": item.kind,
            "keep": item.keep,
            "reason": item.reason,
            "stored_bytes": item.stored_bytes,
            "goes_next_time": item.backup_id in physical.announced,
        }
        for item in physical.items
    ]
    records = [
        {
            "id": record.key,
            "kind": record.kind,
            "keep": True,
            "reason": record.reason,
            "stored_bytes": record.stored_bytes,
            "goes_next_time": False,
        }
        for record in physical.kept_records
    ]
    return {
        "dry_run": dry_run or bool(physical.proof.problems),
        "retention_days": plan.retention_days,
        "pitr_window_days": physical.window_days,
        "wal_segments": physical.wal.segments,
        "wal_bytes": physical.wal.stored_bytes,
        "packs_doomed": physical.doomed,
        "packs_deleted": physical.freed.packs,
        "packs_bytes": physical.freed.stored_bytes,
        "wal": [*map(_going_wal, physical.wal.ranges), *map(_kept_wal, physical.kept_wal)],
        "packs": [_packs(each) for each in physical.packs],
        "proof": _proof(physical.proof),
        "items": [*dumps, *backups, *records],
    }


def _going_wal(each: GoingRange) -> dict[str, Any]:
    return {
        "system_id": each.system_id,
        "timeline": int(each.timeline),
        "first_segment": each.first.name,
        "last_segment": each.last.name,
        "segments": each.segments,
        "stored_bytes": each.stored_bytes,
        "keep": False,
        "reason": each.reason,
    }


def _kept_wal(each: KeptWal) -> dict[str, Any]:
    return {
        "system_id": each.system_id,
        "timeline": int(each.timeline),
        "first_segment": each.first.name,
        "last_segment": None if each.last is None else each.last.name,
        "segments": None,
        "stored_bytes": None,
        "keep": True,
        "reason": each.reason,
    }


def _packs(each: GoingPacks) -> dict[str, Any]:
    return {
        "run": str(each.run),
        "first": each.first,
        "last": each.last,
        "packs": each.packs,
        "stored_bytes": each.stored_bytes,
        "with_key": each.with_key,
        "announced": each.announced,
        "reason": each.reason,
    }


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "problems": list(proof.problems),
        "incomplete": list(proof.incomplete),
        "dumps": proof.dumps,
        "newest_dump": None if proof.newest_dump is None else str(proof.newest_dump),
        "backups": proof.backups,
        "windows": [
            {
                "system_id": each.system_id,
                "timeline": int(each.timeline),
                "before": _window(each.before),
                "after": _window(each.after),
            }
            for each in proof.windows
        ],
    }


def _window(window: Window | None) -> dict[str, Any] | None:
    if window is None:
        return None
    return {
        "backup": str(window.backup),
        "from": json_time(window.since),
        "to": None if window.until is None else json_time(window.until),
        "from_lsn": str(Lsn(window.from_lsn)),
        "to_lsn": str(Lsn(window.to_lsn)),
    }


def text(plan: Plan, physical: PhysicalPrune, *, dry_run: bool) -> str:
    """The same for people."""
    dry_run = dry_run or bool(physical.proof.problems)
    rows = [*_rows_of_dumps(plan, dry_run=dry_run), *_rows_of_backups(physical, dry_run=dry_run)]
    if not rows and not physical.changes:
        return "there are no dumps\n"
    shown = table(("ID", "", "STORED", "WHY"), rows, right=("STORED",)) if rows else ""
    return shown + _numbers(physical, dry_run=dry_run) + _proven(physical.proof)


Row = tuple[str, str, str, str]


def _rows_of_dumps(plan: Plan, *, dry_run: bool) -> Iterator[Row]:
    announced = set(plan.announced)
    for each in plan.decisions:
        state = _state(keep=each.keep, next_time=each.dump_id in announced, dry_run=dry_run)
        yield str(each.dump_id), state, show_bytes(each.stored_bytes), each.reason


def _rows_of_backups(physical: PhysicalPrune, *, dry_run: bool) -> Iterator[Row]:
    for item in physical.items:
        state = _state(keep=item.keep, next_time=item.backup_id in physical.announced, dry_run=dry_run)
        yield str(item.backup_id), state, show_bytes(item.stored_bytes), item.reason
    going = _state(keep=False, next_time=False, dry_run=dry_run)
    systems = {each.system_id for each in physical.wal.ranges} | {each.system_id for each in physical.kept_wal}

    def of_system(system_id: str) -> str:
        return f" of {system_id}" if len(systems) > 1 else ""

    for packs in physical.packs:
        yield _name_of_packs(packs), "announced" if packs.announced else going, show_bytes(packs.stored_bytes), packs.reason
    for wal in physical.wal.ranges:
        yield _name_of_wal(wal.first, wal.last) + of_system(wal.system_id), going, show_bytes(wal.stored_bytes), wal.reason
    for kept in physical.kept_wal:
        yield _name_of_wal(kept.first, kept.last) + of_system(kept.system_id), "kept", "", kept.reason
    for record in physical.kept_records:
        yield record.key, "kept", show_bytes(record.stored_bytes), record.reason


def _state(*, keep: bool, next_time: bool, dry_run: bool) -> str:
    if keep:
        return "kept, goes next time" if next_time else "kept"
    return "would go" if dry_run else "removed"


def _name_of_packs(packs: GoingPacks) -> str:
    if packs.first is None or packs.last is None:
        return data_key_key(packs.run)
    name = pack_key(packs.run, packs.first)
    name += "" if packs.first == packs.last else f" to {packs.last:08d}"
    return name + (", and its key" if packs.with_key else "")


def _name_of_wal(first: Segment, last: Segment | None) -> str:
    if last is None:
        return f"WAL from {first}"
    return f"WAL {first}" + ("" if first == last else f" to {last}")


def _proven(proof: Proof) -> str:
    """What the check says of what stays: instants before and after, and what is whole."""
    lines = []
    systems = {each.system_id for each in proof.windows}
    for each in proof.windows:
        before, after = _shown_window(each.before), _shown_window(each.after)
        name = f"timeline {int(each.timeline)}" + (f" of system {each.system_id}" if len(systems) > 1 else "")
        lines += [f"{name}, restorable before: {before}", f"{name}, restorable after:  {after}"]
    lines += [f"incomplete, whatever goes: {each}" for each in proof.incomplete]
    if proof.problems:
        lines += [f"REFUSED: {each}" for each in proof.problems]
    else:
        stays = [show_count(proof.dumps, "good dump")] if proof.dumps else []
        stays += [show_count(proof.backups, "good base backup")] if proof.backups else []
        alone = proof.dumps + proof.backups == 1
        lines += [f"proven: {' and '.join(stays)} {'stays' if alone else 'stay'}, with all that is needed"] if stays else []
    return "".join(f"{line}\n" for line in lines)


def _shown_window(window: Window | None) -> str:
    if window is None:
        return "nothing"
    until = str(Lsn(window.to_lsn)) if window.until is None else show_time(window.until)
    return f"{show_time(window.since)} to {until}"


def _numbers(physical: PhysicalPrune, *, dry_run: bool) -> str:
    """A line each for WAL and packs, where anything goes."""
    verb = "would go" if dry_run else "removed"
    lines = []
    if physical.wal.segments or physical.wal.stored_bytes:
        lines.append(f"WAL: {show_count(physical.wal.segments, 'segment')} {verb}, {show_bytes(physical.wal.stored_bytes)}")
    if physical.freed.packs or physical.freed.keys:
        lines.append(f"packs: {physical.freed.packs} {verb}, {show_bytes(physical.freed.stored_bytes)}")
    if physical.doomed:
        lines.append(f"packs and keys: {physical.doomed} no longer needed, deleted by a prune a day from now or later")
    return "".join(f"{line}\n" for line in lines)
