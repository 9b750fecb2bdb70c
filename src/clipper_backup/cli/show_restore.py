"""How plans and ends of restores are shown: text for people, documents for `--json`. Field names are a contract."""

import shlex
from typing import TypeAlias

from clipper_backup.cli.tables import pairs
from clipper_backup.ops.restore.plan import Plan, Request
from clipper_backup.ops.restore.restore import Restored
from clipper_backup.ops.restore.start import Started
from clipper_backup.ops.restore.targets import show_moment
from clipper_backup.values import json_time, show_bytes, show_seconds

Document: TypeAlias = dict[str, object]

_GRACE_SECONDS = 86400
"""For how long a prune that begins meanwhile leaves everything that a restore reads."""
_STATES = {
    "absent": "is made",
    "empty": "is empty",
    "unfinished": "holds an unfinished restore, which is removed",
    "cluster": "holds this cluster: WAL that was not archived is saved, all else there is removed",
}


def plan_document(request: Request, plan: Plan) -> Document:
    """What a restore does or would do."""
    target = plan.target
    return {
        "backup": plan.summary.id,
        "backup_problem": plan.problem,
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
        "restore_dir": str(request.folder),
        "standby": request.standby,
        "tablespaces": [{"id": oid, "path": str(folder)} for oid, folder in sorted(plan.tablespaces.items())],
    }


def plan_text(request: Request, plan: Plan) -> str:
    """The same for people."""
    return pairs(_plan_pairs(request, plan)) + "Nothing was written.\n"


def _plan_pairs(request: Request, plan: Plan) -> list[tuple[str, str]]:
    summary = plan.summary
    items = [
        ("target", plan.target.describe() if not request.standby else "a standby, which follows the archive"),
        ("backup", f"{summary.id}, ended {show_moment(summary.stopped_at)}, LSN {summary.stop_lsn}"),
        ("timeline", _timeline(plan)),
        ("WAL", f"{len(plan.wal.segments)} segments, {plan.wal.segments[0]} to {plan.wal.segments[-1]}, all there"),
    ]
    if plan.problem:
        items.insert(2, ("warning", f"this backup is not good: {plan.problem}"))
    if plan.wal.gap is not None:
        items.append(("gap", f"at {plan.wal.gap.segment}, {plan.wal.gap.why}: what lies behind it is lost"))
    if plan.stop is not None:
        items.append(("stops at", f"LSN {plan.stop.record.start}, in {plan.stop.segment}"))
    items += [
        ("loss", _loss(plan)),
        ("size", f"{show_bytes(plan.plain_bytes)} to restore, {show_bytes(plan.wal_bytes)} of WAL to replay"),
        ("takes", f"about {show_seconds(plan.forecast_seconds)} on two cores near the store"),
        ("into", f"{request.data}, which {_STATES[plan.found.state]}"),
        *(
            ("tablespace", f"{oid} in {folder}" + (", which is emptied" if folder in plan.emptied else ""))
            for oid, folder in sorted(plan.tablespaces.items())
        ),
    ]
    if plan.left:
        items.append(("first", f"{len(plan.left)} files of the pg_wal there, which were never archived, are archived"))
    if plan.forecast_seconds > _GRACE_SECONDS / 2:
        items.append(("hold", f"it may take longer than a prune waits: first `clipper-backup hold {summary.id}`"))
    return items


def _timeline(plan: Plan) -> str:
    number = str(int(plan.line.timeline))
    if not plan.passed_over:
        return number
    return f"{number}; newer, without WAL or a base backup: {', '.join(str(int(each)) for each in plan.passed_over)}"


def _loss(plan: Plan) -> str:
    if plan.target.kind != "latest":
        return "everything behind the target, as asked"
    if plan.last_commit_at is None:
        return "what was not archived; the last segments hold no commit"
    return f"what was not archived: the last commit that is, is of {show_moment(plan.last_commit_at)}"


def restored_document(restored: Restored) -> Document:
    """What came of it."""
    return {
        "saved_wal": list(restored.saved),
        "saved_in": None if restored.saved_in is None else str(restored.saved_in),
        "outside": None if restored.outside is None else str(restored.outside),
        "duration_seconds": round(restored.seconds, 3),
        "started": None if restored.started is None else _started_document(restored.started),
        "history_archived": restored.archived,
    }


def _started_document(started: Started) -> Document:
    return {
        "stopped_at_lsn": str(started.stopped_at),
        "last_commit_at": None if started.last_commit_at is None else json_time(started.last_commit_at),
        "timeline": int(started.timeline),
        "socket_dir": str(started.socket_folder),
        "port": started.port,
        "pid": started.pid,
        "log": str(started.log),
    }


def restored_text(request: Request, restored: Restored) -> str:
    """The same for people, and what is to be done next."""
    started = restored.started
    items = [
        ("restored", f"{restored.plan.summary.id} to {restored.data}, in {show_seconds(restored.seconds)}"),
        ("target", restored.plan.target.describe()),
    ]
    if restored.plan.left:
        items.append(("archived", f"{len(restored.plan.left)} files of the former server's pg_wal, before"))
    if restored.saved:
        items.append(("saved WAL", f"{len(restored.saved)} files of the former server, in {restored.saved_in}"))
    if restored.outside is not None:
        items.append(("configuration", f"from outside the data folder, not put into place: {restored.outside}"))
    if started is not None:
        commit = "none behind the backup's start" if started.last_commit_at is None else show_moment(started.last_commit_at)
        items += [
            ("stopped at", f"LSN {started.stopped_at}" + (f": {started.stopping}" if started.stopping else "")),
            ("last commit", commit),
            ("timeline", f"{int(started.timeline)}, its history " + ("archived" if restored.archived else "NOT archived")),
            ("server", f"process {started.pid}, no network; log {started.log}"),
            ("connect", f"psql -h {shlex.quote(str(started.socket_folder))} -p {started.port} -d postgres -U ROLE"),
            ("stop", f"pg_ctl -D {shlex.quote(str(restored.data))} stop"),
        ]
    return pairs(items) + _next(request, restored)


def _next(request: Request, restored: Restored) -> str:
    data = shlex.quote(str(restored.data))
    if request.standby:
        return "Next: set primary_conninfo where it is to stream, and start it. It archives nothing until archive_mode is on.\n"
    lines = []
    if restored.started is None:
        lines += [
            f"start it: pg_ctl -D {data} start; it recovers, then opens on a new timeline",
            f'archive that timeline\'s history: clipper-backup wal push "$(ls {data}/pg_wal/*.history | tail -1)"',
        ]
    elif not restored.archived:
        lines.append(f"archive the history: clipper-backup wal push {shlex.quote(str(restored.started.history))}")
    lines += [
        "when it is right, switch archiving on: ALTER SYSTEM RESET archive_mode, then restart it with its own configuration",
        "take a base backup at once: clipper-backup base create; until then a restore begins with the old one",
    ]
    return "Next:\n" + "".join(f"  {number}. {line}\n" for number, line in enumerate(lines, 1))
