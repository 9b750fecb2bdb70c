"""How volume snapshots look in answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipper_backup.cli.tables import pairs, table
from clipper_backup.format.snapshot_documents import Snapshot
from clipper_backup.ops.snapshot.labels import Label
from clipper_backup.ops.snapshot.read import NOT_OFF_SITE, Shown
from clipper_backup.values import json_time, show_count, show_time

if TYPE_CHECKING:
    from clipper_backup.ops.snapshot.create import SnapshotMade
    from clipper_backup.ops.snapshot.prune import Decision

Document = dict[str, Any]

_NOTHING: Document = dict.fromkeys(
    (
        "label",
        "label_text",
        "restores_from",
        "taken_at",
        "finished_at",
        "system_id",
        "timeline",
        "start_lsn",
        "stop_lsn",
        "namespace",
        "stateful_set",
        "server_version",
    )
)


def _record_document(record: Snapshot, label: Label) -> Document:
    return {
        "label": label.kind,
        "label_text": label.text,
        "restores_from": json_time(label.until) if label.with_wal else None,
        "taken_at": json_time(record.taken_at),
        "finished_at": json_time(record.finished_at),
        "system_id": record.system_id,
        "timeline": record.timeline,
        "start_lsn": record.start_lsn,
        "stop_lsn": record.stop_lsn,
        "namespace": record.cluster.namespace,
        "stateful_set": record.cluster.stateful_set,
        "server_version": record.postgres.version,
        "volumes": [
            {
                "role": volume.role,
                "claim": volume.claim,
                "volume_snapshot": volume.volume_snapshot,
                "content": volume.content,
                "driver": volume.driver,
                "deletion_policy": volume.deletion_policy,
                "handle": volume.handle,
                "restore_bytes": volume.restore_bytes,
                "created_at": json_time(volume.created_at),
            }
            for volume in record.volumes
        ],
    }


def made_document(made: "SnapshotMade") -> Document:
    """One that was just committed."""
    return {"id": made.record.id, "state": "ready", **_record_document(made.record, made.label)}


def made_text(made: "SnapshotMade") -> str:
    """The same for people."""
    record = made.record
    return pairs(
        [
            ("volume snapshot", record.id),
            ("taken", show_time(record.taken_at)),
            ("restores", made.label.text),
            *((volume.role, f"{volume.claim}: VolumeSnapshot {volume.volume_snapshot}") for volume in record.volumes),
            ("needs WAL", f"{record.first_segment} to {record.last_segment}" if made.label.with_wal else "none"),
            ("note", NOT_OFF_SITE),
        ]
    )


def shown_document(shown: Shown) -> Document:
    """One of the catalog."""
    fields: Document = {**_NOTHING, "volumes": []}
    if shown.record is not None and shown.label is not None:
        fields = _record_document(shown.record, shown.label)
    seen = [each.name for each in shown.seen]
    return {
        "id": str(shown.snapshot_id),
        "state": shown.state,
        **fields,
        "seen": seen,
        "held": shown.held,
        "problem": shown.problem,
    }


def catalog_text(catalog: Sequence[Shown]) -> str:
    """All of them for people; the last line is always the same."""
    if not catalog:
        return f"no volume snapshots yet; `clipper-backup snapshot create` takes one\n{NOT_OFF_SITE}\n"
    rows = [
        (
            str(shown.snapshot_id),
            shown.state,
            "" if shown.label is None else shown.label.text,
            "; ".join(filter(None, ["held" if shown.held else "", shown.problem or ""])),
        )
        for shown in catalog
    ]
    return f"{table(('ID', 'STATE', 'RESTORES', 'NOTES'), rows)}{NOT_OFF_SITE}\n"


def question(decisions: "Sequence[Decision]") -> str:
    """What a person is asked before anything goes."""
    going = [str(each.snapshot_id) for each in decisions if not each.keep]
    return f"Delete {show_count(len(going), 'volume snapshot')} ({', '.join(going[:3])}{', …' if len(going) > 3 else ''})?"


def pruned_document(decisions: "Sequence[Decision]", *, dry_run: bool) -> Document:
    """What went or would go, and what stays."""
    items = [
        {"id": str(each.snapshot_id), "keep": each.keep, "reason": each.reason, "state": each.shown.state} for each in decisions
    ]
    return {"dry_run": dry_run, "items": items}


def pruned_text(decisions: "Sequence[Decision]", *, dry_run: bool) -> str:
    """The same for people."""
    if not decisions:
        return "no volume snapshots\n"
    going = "would go" if dry_run else "deleted"
    return table(
        ("ID", "", "REASON"), [(str(each.snapshot_id), "stays" if each.keep else going, each.reason) for each in decisions]
    )
