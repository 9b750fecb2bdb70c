"""How base backups look in answers: one document and one text for each kind of thing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from clipper_backup.cli.show_entry import notes_of, state_of
from clipper_backup.cli.tables import pairs, table
from clipper_backup.format.base_documents import BaseDetails, BaseSummary
from clipper_backup.ops.base.read import PackUse, Shown
from clipper_backup.values import json_time, show_bytes, show_count, show_seconds, show_share, show_time

if TYPE_CHECKING:
    from clipper_backup.ops.base.verify import BaseVerified

Document = dict[str, Any]


def summary_document(summary: BaseSummary) -> Document:
    """A committed base backup, without what its details hold."""
    return {
        "id": summary.id,
        "state": "committed",
        "begun_at": json_time(summary.begun_at),
        "finished_at": json_time(summary.finished_at),
        "duration_seconds": round(_seconds(summary), 3),
        "system_id": summary.system_id,
        "timeline": summary.timeline,
        "start_lsn": summary.start_lsn,
        "stop_lsn": summary.stop_lsn,
        "stopped_at": json_time(summary.stopped_at),
        "first_segment": summary.first_segment,
        "last_segment": summary.last_segment,
        "parent": summary.parent,
        "source": summary.source,
        "from_standby": summary.from_standby,
        "checksums": summary.checksums,
        "server_version": summary.versions.server,
        "software": summary.versions.software,
        "recipients": list(summary.recipients),
        "signed_by": summary.signed_by,
        "files": summary.files,
        "plain_bytes": summary.plain_bytes,
        "stored_bytes": summary.stored_bytes,
        "pages": msgspec.to_builtins(summary.pages),
        "warnings": summary.warnings,
        "objects": [
            {
                "key": stored.key,
                "role": stored.role,
                "size_bytes": stored.size_bytes,
                "plain_bytes": stored.plain_bytes,
                "sha256": stored.sha256,
            }
            for stored in summary.objects
        ],
    }


def _seconds(summary: BaseSummary) -> float:
    return (summary.finished_at - summary.begun_at).total_seconds()


def summary_text(summary: BaseSummary) -> str:
    """The same for people."""
    pages = summary.pages
    again = pages.compacted + pages.aged + pages.healed
    damaged = [("DAMAGED", f"{show_count(pages.damaged, 'page')} had wrong checksums on the server")] if pages.damaged else []
    return pairs(
        [
            ("base backup", summary.id),
            ("taken", f"{show_time(summary.begun_at)}, in {show_seconds(_seconds(summary))}"),
            ("restores to", f"{show_time(summary.stopped_at)} ({summary.stop_lsn}, timeline {summary.timeline}) and later"),
            (
                "size",
                (
                    f"{show_bytes(summary.plain_bytes)} in {show_count(summary.files, 'file')},"
                    f" {show_bytes(summary.stored_bytes)} stored by it"
                ),
            ),
            ("pages", f"{pages.new:,} new, {pages.adopted:,} taken over, {again:,} stored again, {pages.zero:,} of zeros"),
            ("taken over from", summary.parent or "nothing: it is the first, or all was stored anew"),
            ("needs WAL", f"{summary.first_segment} to {summary.last_segment}"),
            (
                "server",
                f"PostgreSQL {summary.versions.server}{' (a standby)' if summary.from_standby else ''}, source {summary.source}",
            ),
            *(("sealed to", recipient) for recipient in summary.recipients),
            *([("signed by", summary.signed_by)] if summary.signed_by else []),
            *damaged,
        ]
    )


def shown_document(shown: Shown) -> Document:
    """One id of the catalog."""
    entry, hold = shown.entry, shown.hold
    verified = entry.verified
    rest = {
        "problem": entry.problem,
        "verified_at": None if verified is None else json_time(verified.verified_at),
        "verified_share": None if verified is None else verified.share,
        "hold": None if hold is None else {"reason": hold.reason, "held_at": json_time(hold.held_at)},
    }
    state = state_of(entry)
    if entry.summary is not None:
        return {**summary_document(entry.summary), "state": state, **rest}
    fields = dict.fromkeys(_FIELDS)  # what does not apply is null, never left out
    return {**fields, "id": str(entry.listed.backup_id), "state": state, "stored_bytes": entry.listed.own_bytes, **rest}


_FIELDS = (
    "id", "state", "begun_at", "finished_at", "duration_seconds", "system_id", "timeline", "start_lsn", "stop_lsn", "stopped_at",
    "first_segment", "last_segment", "parent", "source", "from_standby", "checksums", "server_version", "software", "recipients",
    "signed_by", "files", "plain_bytes", "stored_bytes", "pages", "warnings", "objects",
)  # fmt: skip
"""Those of `summary_document`, for an entry without a summary."""


def catalog_text(catalog: Sequence[Shown]) -> str:
    """The catalog as a table, oldest first."""
    rows = []
    for shown in catalog:
        entry, summary = shown.entry, shown.entry.summary
        notes = notes_of(entry, None if shown.hold is None else shown.hold.reason)
        if summary is None:
            rows.append((str(entry.listed.backup_id), "", "", "", "", "", "; ".join(notes)))
            continue
        notes += [show_count(summary.warnings, "warning")] if summary.warnings else []
        rows.append(
            (
                summary.id,
                show_time(summary.stopped_at),
                show_seconds(_seconds(summary)),
                show_bytes(summary.plain_bytes),
                show_bytes(summary.stored_bytes),
                f"{summary.timeline}: {summary.stop_lsn}",
                "; ".join(notes),
            )
        )
    return table(("ID", "RESTORES TO", "TOOK", "SIZE", "STORED", "ENDS AT", "NOTE"), rows, right=("SIZE", "STORED"))


def details_document(details: BaseDetails | None) -> Document | None:
    """What is known of the cluster; None when it is sealed and was not opened."""
    if details is None:
        return None
    fingerprint = details.fingerprint
    return {
        "warnings": list(details.warnings),
        "server": fingerprint.server,
        "libraries": [{"name": name, "version": version} for name, version in sorted(fingerprint.libraries.items())],
        "settings": [{"name": name, "value": value} for name, value in sorted(fingerprint.settings.items())],
        "tablespaces": [{"oid": each.oid, "name": each.name, "path": each.path} for each in fingerprint.tablespaces],
        "databases": [
            {
                "id": each.name,
                "encoding": each.encoding,
                "collate": each.collate,
                "ctype": each.ctype,
                "locale_provider": each.locale_provider,
                "collation_version": each.collation_version,
                "tablespace": each.tablespace,
                "size_bytes": each.size_bytes,
                "extensions": None
                if each.extensions is None
                else [{"name": extension.name, "version": extension.version} for extension in each.extensions],
                "collations": each.collations,
            }
            for each in fingerprint.databases
        ],
        "left_out": list(fingerprint.left_out),
    }


def details_text(details: BaseDetails | None) -> str:
    """The same for people: the databases and what a restore elsewhere must find alike."""
    if details is None:
        return "\nwhat is known of the cluster is sealed: with ENCRYPTION_IDENTITY_FILE it is shown\n"
    fingerprint = details.fingerprint
    parts = [f"warning: {warning}\n" for warning in [*details.warnings, *fingerprint.left_out]]
    parts.append(
        "\n"
        + pairs(
            [
                ("made by", fingerprint.server),
                *sorted(fingerprint.libraries.items()),
                ("preloaded", fingerprint.settings.get("shared_preload_libraries") or "nothing"),
                *((f"tablespace {each.name}", each.path) for each in fingerprint.tablespaces),
            ]
        )
    )
    rows = [
        (
            each.name,
            each.encoding,
            each.collate,
            each.collation_version or "",
            "" if each.size_bytes is None else show_bytes(each.size_bytes),
            ", ".join(f"{extension.name} {extension.version}" for extension in each.extensions or ()),
        )
        for each in fingerprint.databases
    ]
    parts.append("\n" + table(("DATABASE", "ENCODING", "COLLATE", "VERSION", "SIZE", "EXTENSIONS"), rows, right=("SIZE",)))
    return "".join(parts)


def packs_document(use: PackUse | None) -> Document | None:
    """The packs it needs; None where its list of them cannot be read."""
    if use is None:
        return None
    return {
        "count": use.packs,
        "runs": use.runs,
        "stored_bytes": use.stored_bytes,
        "live_share": round(use.live_share, 4),
        "amplification": round(use.amplification, 3),
    }


def packs_text(use: PackUse | None) -> str:
    """The same for people."""
    if use is None:
        return "packs: its list of them cannot be read: `clipper-backup base verify` says why\n"
    taken = f"{show_count(use.packs, 'pack')} of {show_count(use.runs, 'run')}, {show_bytes(use.stored_bytes)}"
    return f"packs: {taken}; it needs {use.live_share:.0%} of what they hold ({use.amplification:.2f} times the space)\n"


def verified_document(verified: "BaseVerified") -> Document:
    """An intact base backup."""
    return {
        "id": verified.summary.id,
        "intact": True,
        "objects": len(verified.summary.objects),
        "packs": verified.packs,
        "read_bytes": verified.read_bytes,
        "share": round(verified.share, 6),
        "files": verified.files,
    }


def verified_text(verified: "BaseVerified") -> str:
    """The same for people, with what it does not prove."""
    read = f"{show_share(verified.share)} of its packs' bytes were read ({show_bytes(verified.read_bytes)})"
    if verified.share >= 1 and verified.files:
        read = f"every byte was read, and its {show_count(verified.files, 'file')} were put together"
    objects = len(verified.summary.objects)
    return (
        f"{verified.summary.id} is intact: its {show_count(objects, 'object')},"
        f" {show_count(verified.packs, 'pack')} and its WAL are there; {read}\n"
        "not proved: that PostgreSQL starts from it. Only a restore shows that\n"
    )
