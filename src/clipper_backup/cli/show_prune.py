"""What a prune did or would do, as text and JSON."""

from typing import Any

from clipper_backup.cli.tables import table
from clipper_backup.ops.dump.prune import Plan
from clipper_backup.ops.physical_prune import PhysicalPrune
from clipper_backup.values import show_bytes


def question(plan: Plan, physical: PhysicalPrune) -> str:
    """What a person is asked before anything is removed."""
    parts = []
    if plan.going or not physical.changes:
        parts.append(f"{len(plan.going)} of {len(plan.decisions)} dumps")
    if physical.going:
        parts.append(f"{len(physical.going)} of {len(physical.items)} base backups")
    if physical.wal.segments:
        parts.append(f"{physical.wal.segments} WAL segments")
    if physical.doomed or physical.freed.packs or physical.freed.keys:
        parts.append("packs that nothing needs")
    return f"Remove {', '.join(parts)}?"


def document(plan: Plan, physical: PhysicalPrune, *, dry_run: bool) -> dict[str, Any]:
    """A reason for each dump and each base backup; what goes of packs and WAL, in numbers."""
    announced = set(plan.announced)
    dumps = [
        {
            "id": str(decision.dump_id),
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
            "keep": item.keep,
            "reason": item.reason,
            "stored_bytes": item.stored_bytes,
            "goes_next_time": False,
        }
        for item in physical.items
    ]
    return {
        "dry_run": dry_run,
        "retention_days": plan.retention_days,
        "wal_segments": physical.wal.segments,
        "wal_bytes": physical.wal.stored_bytes,
        "packs_doomed": physical.doomed,
        "packs_deleted": physical.freed.packs,
        "packs_bytes": physical.freed.stored_bytes,
        "items": [*dumps, *backups],
    }


def text(plan: Plan, physical: PhysicalPrune, *, dry_run: bool) -> str:
    """The same for people."""
    if not plan.decisions and not physical.items:
        return "there are no dumps\n" if not physical.changes else _numbers(physical, dry_run=dry_run)
    going = "would go" if dry_run else "removed"
    announced = set(plan.announced)
    rows = [
        (
            str(d.dump_id),
            ("kept, goes next time" if d.dump_id in announced else "kept") if d.keep else going,
            show_bytes(d.stored_bytes),
            d.reason,
        )
        for d in plan.decisions
    ]
    rows += [(str(i.backup_id), "kept" if i.keep else going, show_bytes(i.stored_bytes), i.reason) for i in physical.items]
    return table(("ID", "", "STORED", "WHY"), rows, right=("STORED",)) + _numbers(physical, dry_run=dry_run)


def _numbers(physical: PhysicalPrune, *, dry_run: bool) -> str:
    """A line each for WAL and packs, where anything goes."""
    verb = "would go" if dry_run else "removed"
    lines = []
    if physical.wal.segments or physical.wal.stored_bytes:
        lines.append(f"WAL: {physical.wal.segments} segments {verb}, {show_bytes(physical.wal.stored_bytes)}")
    if physical.freed.packs or physical.freed.keys:
        lines.append(f"packs: {physical.freed.packs} {verb}, {show_bytes(physical.freed.stored_bytes)}")
    if physical.doomed:
        lines.append(f"packs: {physical.doomed} no longer needed, deleted by a prune a day from now or later")
    return "".join(f"{line}\n" for line in lines)
