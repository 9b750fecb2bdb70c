"""How dumps look in answers: one document and one text for each kind of thing."""

from typing import TYPE_CHECKING, Any

from clipper_backup.cli.show_entry import notes_of, state_of
from clipper_backup.cli.tables import pairs, table
from clipper_backup.format.documents import DatabaseRecord, DumpDetails, DumpSummary
from clipper_backup.ops.dump.read import Entry
from clipper_backup.ops.dump.verify import Verified
from clipper_backup.values import json_time, show_bytes, show_count, show_names, show_seconds, show_time

if TYPE_CHECKING:
    from clipper_backup.ops.dump.compare import Comparison
    from clipper_backup.ops.dump.restore import Restored

Document = dict[str, Any]


def summary_document(summary: DumpSummary) -> Document:
    """A committed dump, without what its details hold."""
    return {
        "id": summary.id,
        "state": "committed",
        "begun_at": json_time(summary.begun_at),
        "finished_at": json_time(summary.finished_at),
        "duration_seconds": round(summary.seconds, 3),
        "databases": summary.databases,
        "rows": summary.rows,
        "recipients": list(summary.recipients),
        "signed_by": summary.signed_by,
        "fingerprint": summary.fingerprint,
        "plain_bytes": summary.plain_bytes,
        "stored_bytes": summary.stored_bytes,
        "server_version": summary.versions.server,
        "client_version": summary.versions.client,
        "software": summary.versions.software,
        "system_id": summary.system_id,
        "from_standby": summary.from_standby,
        "warnings": list(summary.warnings),
        "objects": [
            {
                "key": stored.key,
                "role": stored.role,
                "database": stored.database,
                "size_bytes": stored.size_bytes,
                "plain_bytes": stored.plain_bytes,
                "sha256": stored.sha256,
            }
            for stored in summary.objects
        ],
    }


def summary_text(summary: DumpSummary) -> str:
    """The same for people."""
    return pairs(
        [
            ("dump", summary.id),
            ("taken", f"{show_time(summary.taken_at)}, in {show_seconds(summary.seconds)}"),
            ("databases", show_names(summary.databases)),
            ("rows", _rows(summary) + {"hash": ", every row hashed"}.get(summary.fingerprint, "")),
            ("size", f"{show_bytes(summary.stored_bytes)} stored, {show_bytes(summary.plain_bytes)} dumped"),
            ("server", f"PostgreSQL {summary.versions.server}{' (a standby)' if summary.from_standby else ''}"),
            *(("sealed to", recipient) for recipient in summary.recipients),
            *([("signed by", summary.signed_by)] if summary.signed_by else []),
            *(("warning", warning) for warning in summary.warnings),
        ]
    )


def _rows(summary: DumpSummary) -> str:
    if summary.rows is not None:
        return f"{summary.rows:,}"
    return "sealed" if summary.sealed and summary.fingerprint != "off" else "not counted"


_SUMMARY_FIELDS = (
    "id", "state", "begun_at", "finished_at", "duration_seconds", "databases", "rows", "recipients", "signed_by",
    "fingerprint", "plain_bytes", "stored_bytes", "server_version", "client_version", "software", "system_id", "from_standby",
    "warnings", "objects",
)  # fmt: skip
"""Those of `summary_document`, for an entry without a summary."""


def entry_document(entry: Entry) -> Document:
    """One id of the catalog."""
    hold = None if entry.hold is None else {"reason": entry.hold.reason, "held_at": json_time(entry.hold.held_at)}
    state = state_of(entry)
    if entry.summary is not None:
        return {**summary_document(entry.summary), "state": state, "problem": entry.problem, "hold": hold}
    return {
        **dict.fromkeys(_SUMMARY_FIELDS),  # what does not apply is null, never left out
        "id": str(entry.listed.dump_id),
        "state": state,
        "stored_bytes": entry.listed.stored_bytes,
        "problem": entry.problem,
        "hold": hold,
    }


def entries_text(entries: list[Entry]) -> str:
    """The catalog as a table, oldest first."""
    rows = []
    for entry in entries:
        notes = notes_of(entry, None if entry.hold is None else entry.hold.reason)
        if entry.summary is not None:
            notes += [show_count(len(entry.summary.warnings), "warning")] if entry.summary.warnings else []
            rows.append(
                (
                    entry.summary.id,
                    show_time(entry.summary.taken_at),
                    show_seconds(entry.summary.seconds),
                    show_bytes(entry.summary.stored_bytes),
                    _rows(entry.summary),
                    show_names(entry.summary.databases),
                    "; ".join(notes),
                )
            )
        else:
            rows.append((str(entry.listed.dump_id), "", "", show_bytes(entry.listed.stored_bytes), "", "", "; ".join(notes)))
    return table(("ID", "TAKEN", "TOOK", "STORED", "ROWS", "DATABASES", "NOTE"), rows, right=("STORED", "ROWS"))


def details_document(details: DumpDetails | None) -> list[Document] | None:
    """What was recorded of each database; None when it is sealed and was not opened."""
    return None if details is None else [_database_document(record) for record in details.databases]


def _database_document(record: DatabaseRecord) -> Document:
    return {
        "id": record.name,
        "snapshot": record.snapshot,
        "lsn_before": record.lsn_before,
        "lsn_after": record.lsn_after,
        "size_bytes": record.size_bytes,
        "rows": record.rows,
        "large_objects": record.large_objects,
        "tables": [
            {"schema": table.schema, "name": table.name, "rows": table.rows, "hash": table.hash} for table in record.tables
        ],
        "sequences": [
            {"schema": s.schema, "name": s.name, "last_value": s.last_value, "is_called": s.is_called} for s in record.sequences
        ],
        "extensions": [{"name": e.name, "version": e.version} for e in record.extensions],
        "queries": [{"name": q.name, "sql": q.sql, "answer": q.answer} for q in record.queries],
    }


def details_text(details: DumpDetails | None) -> str:
    """The same for people: the tables with their counts."""
    if details is None:
        return "\nits tables are sealed: with ENCRYPTION_IDENTITY_FILE they are shown\n"
    parts = [f"warning: {warning}\n" for warning in details.warnings]
    for record in details.databases:
        rows = [(f"{t.schema}.{t.name}", "not counted" if t.rows is None else f"{t.rows:,}", t.hash or "") for t in record.tables]
        parts.append(f"\ndatabase {record.name}, {show_bytes(record.size_bytes)}, at {record.lsn_before}\n")
        parts.append(table(("TABLE", "ROWS", "HASH"), rows, right=("ROWS",)))
        parts.extend(f"{query.name}: {', '.join(map(str, query.answer))}\n" for query in record.queries)
    return "".join(parts)


def verified_document(verified: Verified) -> Document:
    """An intact dump."""
    return {
        "id": verified.summary.id,
        "intact": True,
        "objects": verified.objects,
        "stored_bytes": verified.stored_bytes,
        "tables": verified.tables,
        "rows": verified.rows,
    }


def verified_text(verified: Verified) -> str:
    """The same for people, with what it does not prove."""
    counted = (
        "rows were not recorded when it was taken (DUMP_FINGERPRINT=off), so only bytes were compared"
        if verified.rows is None
        else f"{show_count(verified.tables, 'table')} with {show_count(verified.rows, 'row', grouped=True)}, as counted"
        " when it was taken"
    )
    return (
        f"{verified.summary.id} is intact: {show_count(verified.objects, 'object')},"
        f" {show_bytes(verified.stored_bytes)}; {counted}\n"
        "Not proven by this: that a server accepts it. `clipper-backup dump restore` proves that.\n"
    )


def comparison_document(comparison: "Comparison") -> Document:
    """What was compared after a restore."""
    return {
        "tables": comparison.tables,
        "rows": comparison.rows,
        "hashed": comparison.hashed,
        "sequences": comparison.sequences,
        "queries": comparison.queries,
        "differences": [str(difference) for difference in comparison.differences],
    }


def restored_document(restored: "Restored") -> Document:
    """A finished restore."""
    return {
        "id": str(restored.dump_id),
        "database": restored.source,
        "into": restored.into,
        "replaced": restored.replaced,
        "roles_created": list(restored.roles_created),
        "duration_seconds": round(restored.seconds, 3),
        "compared": comparison_document(restored.comparison),
    }


def restored_text(restored: "Restored") -> str:
    """The same for people."""
    compared = restored.comparison
    proof = (
        "nothing was counted when it was dumped (DUMP_FINGERPRINT=off), so nothing could be compared"
        if compared.rows is None
        else f"{show_count(compared.tables, 'table')}, {show_count(compared.rows, 'row', grouped=True)}"
        f"{' with equal hashes' if compared.hashed else ''},"
        f" {show_count(compared.sequences, 'sequence')}, {show_count(compared.queries, 'query', 'queries')}: all as recorded"
    )
    text = pairs(
        [
            ("restored", f"{restored.source} of {restored.dump_id} into {restored.into}"),
            ("took", show_seconds(restored.seconds)),
            ("compared", proof),
            *([("roles created", show_names(restored.roles_created))] if restored.roles_created else []),
            *([("before it", f"kept as database {restored.replaced}")] if restored.replaced else []),
        ]
    )
    if restored.replaced:
        quoted = restored.replaced.replace('"', '""')
        text += f'When the restored database is right: DROP DATABASE "{quoted}";\n'
    return text
