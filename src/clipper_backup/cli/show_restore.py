"""How plans and ends of restores are shown: text for people, documents for `--json`. Field names are a contract."""

import shlex
from collections.abc import Sequence
from typing import TypeAlias

from clipper_backup.cli.tables import pairs
from clipper_backup.ops.restore.left_wal import timelines_of
from clipper_backup.ops.restore.plan import Plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import Restored, say_beside
from clipper_backup.ops.restore.start import Started
from clipper_backup.ops.restore.targets import show_moment
from clipper_backup.postgres.wal_records import Kind, Record, as_moment
from clipper_backup.repository.kept_wal import Kept
from clipper_backup.values import json_time, show_bytes, show_count, show_seconds
from clipper_backup.wal_names import Segment

Document: TypeAlias = dict[str, object]

_GRACE_SECONDS = 86400
"""For how long a prune that begins meanwhile leaves everything that a restore reads."""
_STATES = {
    "absent": "is made",
    "empty": "is empty",
    "unfinished": "holds an unfinished restore, which is removed",
    "cluster": "holds this cluster: WAL that was not archived and its configuration are saved, all else there is removed",
}


def plan_document(request: Request, plan: Plan) -> Document:
    """What a restore does or would do."""
    target = plan.target
    return {
        "backup": plan.summary.id,
        "backup_problem": plan.problem,
        "system_id": plan.summary.system_id,
        "followed_by": plan.followed_by,
        "target": {
            "kind": target.kind,
            "time": None if target.time is None else json_time(target.time),
            "lsn": None if target.lsn is None else str(target.lsn),
            "xid": target.xid,
            "name": target.name,
            "exclusive": target.exclusive,
        },
        "timeline": int(plan.line.timeline),
        "timelines_passed_over": [int(timeline) for timeline in plan.passed_over],
        "stop_lsn": None if plan.stop is None else str(plan.stop.record.start),
        "first_segment": plan.first.name,
        "last_segment": None if plan.last is None else plan.last.name,
        "segments": len(plan.wal.segments),
        "gap_segment": None if plan.wal.gap is None else plan.wal.gap.segment.name,
        "gap_why": None if plan.wal.gap is None else plan.wal.gap.why,
        "last_commit_at": None if plan.last_commit_at is None else json_time(plan.last_commit_at),
        "plain_bytes": plan.plain_bytes,
        "wal_bytes": plan.wal_bytes,
        "forecast_seconds": round(plan.forecast_seconds, 1),
        "target_dir": str(request.data),
        "target_dir_state": plan.found.state,
        "unarchived_wal": list(plan.left),
        "stray_wal": list(plan.stray),
        "timelines_beside": [int(end.timeline) for end in plan.beside],
        "former_timeline": None if plan.former is None else int(plan.former),
        "notes": list(plan.notes),
        "kept_wal": None if plan.kept is None else _kept_document(plan.kept),
        "namesakes": [_namesake_document(each) for each in plan.namesakes],
        "restore_dir": str(request.folder),
        "standby": request.standby,
        "tablespaces": [{"id": oid, "path": str(folder)} for oid, folder in sorted(plan.tablespaces.items())],
        "later_tablespaces": [{"id": oid, "path": str(folder)} for oid, folder in sorted(plan.later_tablespaces.items())],
    }


def _kept_document(kept: Kept) -> Document:
    return {
        "folder": str(kept.folder),
        "segments": [segment.name for segment in kept.names],
        "ends_at_lsn": str(kept.ends_at),
        "last_commit_at": None if kept.last_commit_at is None else json_time(kept.last_commit_at),
    }


def _namesake_document(record: Record) -> Document:
    return {"lsn": str(record.start), "at": None if record.at is None else json_time(as_moment(record.at))}


def plan_text(request: Request, plan: Plan) -> str:
    """The same for people."""
    return pairs(_plan_pairs(request, plan)) + "Nothing was written.\n"


def _plan_pairs(request: Request, plan: Plan) -> list[tuple[str, str]]:
    summary = plan.summary
    items = [
        ("target", plan.target.describe() if not request.standby else "a standby, which follows the archive"),
        ("backup", f"{summary.id}, ended {show_moment(summary.stopped_at)}, LSN {summary.stop_lsn}"),
        ("timeline", _timeline(plan)),
        ("WAL", f"{_segments(plan.wal.segments)}, all there"),
    ]
    if plan.kept is not None:
        items.append(("and then", _kept(plan.kept)))
    if plan.followed_by is not None:
        system = f"{summary.system_id}, of PostgreSQL {summary.versions.server_major}: {plan.followed_by} followed it"
        items.insert(2, ("system", system))
    if plan.problem:
        items.insert(2, ("warning", f"this backup is not good: {plan.problem}"))
    if plan.wal.gap is not None:
        items.append(("gap", f"at {plan.wal.gap.segment}, {plan.wal.gap.why}: what lies behind it is lost"))
    if plan.stop is not None:
        items.append(("stops at", f"LSN {plan.stop.record.start}, in {plan.stop.segment}" + _named_at(plan.stop.record)))
    items += [("beside", f"{say_beside(plan, end)}: --timeline {int(end.timeline)}") for end in plan.beside]
    items += [("note", note) for note in plan.notes]
    items += [("same name", _namesake(each)) for each in plan.namesakes]
    items += [
        ("loss", _loss(plan)),
        ("size", f"{show_bytes(plan.plain_bytes)} to restore, {show_bytes(plan.wal_bytes)} of WAL to replay"),
        ("takes", f"about {show_seconds(plan.forecast_seconds)} on two cores near the store"),
        ("into", f"{request.data}, which {_STATES[plan.found.state]}"),
        *(
            ("tablespace", f"{oid} in {folder}" + (", which is emptied" if folder in plan.emptied else ""))
            for oid, folder in sorted(plan.tablespaces.items())
        ),
        *(("tablespace", f"{oid} in {folder}, made by the WAL") for oid, folder in sorted(plan.later_tablespaces.items())),
    ]
    if plan.found.wal_folder is not None:
        items.append(("pg_wal", f"a link to {plan.found.wal_folder}: becomes a plain folder, and what lies there stays"))
    if plan.found.state == "cluster":
        verify = f"`clipper-backup base verify {summary.id} --read-data`, `clipper-backup wal verify --read-data`"
        items.append(("before", f"packs and WAL were listed, not read: that they are whole says {verify}"))
    if plan.left:
        items.append(
            ("first", f"{show_count(len(plan.left), 'file')} of the pg_wal there, never archived before, into the archive")
        )
    if plan.stray:
        theirs = f"{show_count(len(plan.stray), 'file')} of the pg_wal there, of {timelines_of(plan.stray)}"
        items.append(("kept", f"{theirs}: not archived"))
    if plan.forecast_seconds > _GRACE_SECONDS / 2:
        items.append(("hold", f"it may take longer than a prune waits: first `clipper-backup hold {summary.id}`"))
    return items


def _segments(segments: Sequence[Segment]) -> str:
    ends = f", {segments[0]} to {segments[-1]}" if len(segments) > 1 else f", {segments[0]}"
    return show_count(len(segments), "segment") + ends


def _kept(kept: Kept) -> str:
    commit = "no transaction ended in them"
    if kept.last_commit_at is not None:
        commit = f"the last transaction in them ended {show_moment(kept.last_commit_at)}"
    return f"{_segments(kept.names)}, which no archive has, of {kept.folder}: up to LSN {kept.ends_at}; {commit}"


def _named_at(record: Record) -> str:
    if record.kind is not Kind.RESTORE_POINT or record.at is None:
        return ""
    return f", made {show_moment(as_moment(record.at))}"


def _namesake(record: Record) -> str:
    return f"also at LSN {record.start}{_named_at(record)}: --to-lsn {record.start}"


def _timeline(plan: Plan) -> str:
    number = str(int(plan.line.timeline))
    if not plan.passed_over:
        return number
    return f"{number}; newer, without WAL or a base backup: {', '.join(str(int(each)) for each in plan.passed_over)}"


def _loss(plan: Plan) -> str:
    if plan.target.kind != "latest":
        return "everything behind the target, as asked"
    if plan.kept is not None and not plan.left_out:
        return f"nothing that was committed up to the end of what lies in {plan.kept.folder}"
    if plan.left_out:
        return f"what was not archived of timeline {int(plan.way.timeline)}, and what the server there wrote on one of its own"
    if plan.last_commit_at is None:
        return "what was not archived; the last segments hold no commit"
    return f"what was not archived: the last commit that is, is of {show_moment(plan.last_commit_at)}"


def restored_document(restored: Restored) -> Document:
    """What came of it."""
    return {
        "saved_wal": list(restored.saved),
        "saved_in": None if restored.saved_in is None else str(restored.saved_in),
        "saved_settings": None if restored.settings_in is None else str(restored.settings_in),
        "outside": None if restored.outside is None else str(restored.outside),
        "recovery_settings": list(restored.passing),
        "duration_seconds": round(restored.seconds, 3),
        "files_seconds": round(restored.files_seconds, 3),
        "started": None if restored.started is None else _started_document(restored.started),
        "history_archived": restored.archived,
    }


def _started_document(started: Started) -> Document:
    runs = started.server is None
    return {
        "stopped_at_lsn": str(started.stopped_at),
        "last_commit_at": None if started.last_commit_at is None else json_time(started.last_commit_at),
        "timeline": int(started.timeline),
        "running": runs,
        "socket_dir": str(started.socket_folder) if runs else None,
        "port": started.port if runs else None,
        "pid": started.pid if runs else None,
        "log": str(started.log),
        "recovery_seconds": round(started.seconds, 3),
        "consistent_seconds": None if started.consistent_seconds is None else round(started.consistent_seconds, 3),
    }


def restored_text(request: Request, restored: Restored) -> str:
    """The same for people, and what is to be done next."""
    started = restored.started
    items = [
        ("restored", f"{restored.plan.summary.id} to {restored.data}, in {_took(restored)}"),
        ("target", restored.plan.target.describe()),
    ]
    if restored.plan.left:
        items.append(("archived", f"{show_count(len(restored.plan.left), 'file')} of the former server's pg_wal, before"))
    if restored.saved:
        items.append(("saved WAL", f"{show_count(len(restored.saved), 'file')} of the former server, in {restored.saved_in}"))
    if restored.settings_in is not None:
        items.append(("settings", f"those of the backup; what the former server had is in {restored.settings_in}"))
    if restored.outside is not None:
        items.append(("configuration", f"from outside the data folder, not put into place: {restored.outside}"))
    if started is not None:
        commit = "none behind the backup's start" if started.last_commit_at is None else show_moment(started.last_commit_at)
        items += [
            ("stopped at", f"LSN {started.stopped_at}" + (f": {started.stopping}" if started.stopping else "")),
            ("last commit", commit),
            ("timeline", f"{int(started.timeline)}, its history " + ("archived" if restored.archived else "NOT archived")),
        ]
        items += _server(restored, started)
    return pairs(items) + _next(request, restored)


def _server(restored: Restored, started: Started) -> list[tuple[str, str]]:
    if started.server is not None:
        return [("server", f"stopped in order, in its own container; log {started.log}")]
    return [
        ("server", f"process {started.pid}, no network; log {started.log}"),
        ("connect", f"psql -h {shlex.quote(str(started.socket_folder))} -p {started.port} -d postgres -U ROLE"),
        ("stop", f"pg_ctl -D {shlex.quote(str(restored.data))} stop"),
    ]


def _took(restored: Restored) -> str:
    """How long, and what of it was what (rule 72)."""
    started = restored.started
    if started is None:
        return show_seconds(restored.seconds)
    consistent = "" if started.consistent_seconds is None else f", consistent after {show_seconds(started.consistent_seconds)}"
    parts = f"files {show_seconds(restored.files_seconds)}, recovery {show_seconds(started.seconds)}{consistent}"
    return f"{show_seconds(restored.seconds)}: {parts}"


def _next(request: Request, restored: Restored) -> str:
    data = shlex.quote(str(restored.data))
    if request.standby:
        return (
            "Next: start it with BACKUP_URL in its environment, and what else reading needs: its restore_command asks for WAL by"
            " that.\nSet primary_conninfo where it is to stream. It archives nothing until archive_mode is on.\n"
        )
    lines = []
    if restored.started is None:
        lines += [
            f"start it: pg_ctl -D {data} start; it recovers, then opens on a new timeline",
            f'archive that timeline\'s history: clipper-backup wal push "$(ls {data}/pg_wal/*.history | tail -1)"',
        ]
    elif not restored.archived:
        lines.append(f"archive the history: clipper-backup wal push {shlex.quote(str(restored.started.history))}")
    if restored.started is not None and restored.started.server is not None:
        lines.append(f"start it in the database's own image, on {data}")
    if restored.started is None:
        lines.append(
            "take the settings of this recovery away, which a standby of it would follow: for name in "
            + " ".join(restored.passing)
            + '; do psql -d postgres -c "ALTER SYSTEM RESET $name"; done'
        )
    lines += [
        "when it is right, switch archiving on: ALTER SYSTEM SET archive_mode = on, then restart it with its own configuration",
        "take a base backup at once: clipper-backup base create; until then a restore begins with the old one",
    ]
    return "Next:\n" + "".join(f"  {number}. {line}\n" for number, line in enumerate(lines, 1))
