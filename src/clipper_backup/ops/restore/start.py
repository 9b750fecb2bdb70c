"""`restore --start`: a private server recovers to its target, is left running, and says exactly where it stopped.

What makes it private stands on its command line, never in its files: whoever starts it later, without us, gets what the
restored configuration says.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from clipper_backup.errors import AccessError, ClipperError, IntegrityError, ServerError, UsageError, WalGapError
from clipper_backup.ops.restore.recovery import write_synced
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.work import Step, Work, step
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.binaries import find_binaries
from clipper_backup.postgres.history import parse_history
from clipper_backup.postgres.recovery_log import RecoveryLog
from clipper_backup.postgres.runner import LocalRunner, Runner
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import history_name

_POLL_SECONDS = 0.05
_STOP_SECONDS = 60.0
_HBA, _IDENT, _CONFIG = "pg_hba.conf", "pg_ident.conf", "postgresql.conf"
_FETCH_BASE = 200
"""What `wal fetch` adds to its exit codes: 212 is 12."""
_ERRORS: Mapping[int, type[ClipperError]] = {error.exit_code: error for error in (AccessError, IntegrityError, WalGapError)}


@dataclass(frozen=True, slots=True)
class Starting:
    """What is to be started. `begin` and `end` are the plan's WAL, for its progress; `end` is the start of its last segment.

    Of the latest, `must_reach` is where the last record ends; None where that is not known, and for other targets.

    `command` is the restore_command for this start alone; `refused` says why WAL was refused, when it was. Without a *port*
    a free one is taken. Without a *runner* the server runs on this machine, and is left running.
    """

    data: Path
    folder: Path
    account: Account
    major: int
    target: Target
    begin: Lsn
    end: Lsn
    must_reach: Lsn | None = None
    command: str | None = None
    refused: Callable[[], ClipperError | None] = lambda: None
    port: int | None = None
    runner: Runner | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A server that recovered and runs. `stopped_at` is the end of the last record that was replayed, where `timeline` begins.

    `last_commit_at` is the source's clock, None when nothing was committed behind the backup's start. `history` is the file
    that must be archived before any WAL of the new timeline. `seconds` is the whole of recovery, WAL fetched while it is
    replayed; `consistent_seconds` of those were over when it was consistent, None when its log does not say. `server` is one that
    a runner other than this machine's runs, for the caller to stop.
    """

    stopped_at: Lsn
    last_commit_at: datetime | None
    timeline: Timeline
    stopping: str | None
    history: Path
    socket_folder: Path
    port: int
    pid: int
    log: Path
    seconds: float
    consistent_seconds: float | None
    server: PrivateServer | None = None


def start_recovered(work: Work, starting: Starting) -> Started:
    """Run recovery to its end and leave the server running. It is stopped when this fails, or is stopped itself.

    WalGapError, IntegrityError or AccessError when WAL was refused, by the reason; IntegrityError when recovery ended elsewhere
    than it should (rule 68); ServerError with the end of its log for all else.
    """
    runner = starting.runner or _local_runner(work, starting)
    server = PrivateServer(
        starting.folder,
        runner,
        # Another container has an environment of its own, and is not told of ours, where secrets may be.
        environment=os.environ if starting.runner is None else {},
        data=starting.data,
        port=starting.port or 0,
        settings=_settings(starting),
        clock=work.clock,
        listens=False,
    )
    server.log.unlink(missing_ok=True)  # of an earlier restore
    try:
        with step(work, "recover", f"recover to {starting.target.describe()}") as running:
            began = work.clock.monotonic()
            server.launch()
            log, consistent_at = _follow(work, server, starting, running)
            took = work.clock.monotonic() - began, None if consistent_at is None else consistent_at - began
            started = _ended_at(server, starting, log, *took)
            running.done = f"recovered to {started.stopped_at}, on timeline {int(started.timeline)} from here"
    except BaseException:
        with suppress(ServerError):
            server.stop("immediate", timeout_seconds=_STOP_SECONDS)
        server.close()
        raise
    if starting.runner is not None:
        return replace(started, server=server)
    server.leave()
    return started


def _local_runner(work: Work, starting: Starting) -> LocalRunner:
    bindir = work.settings.pg_bindir
    binaries = find_binaries(tools=("postgres",), exactly=starting.major, bindir=bindir, environment=os.environ)
    return LocalRunner(binaries, lasting=True, account=starting.account)


def _settings(starting: Starting) -> dict[str, str]:
    """What makes it private and keeps the source's configuration from breaking or reaching anything (rules 63 to 66)."""
    for name, content in (
        (_HBA, b"# who may enter the socket's folder is the owner of all this\nlocal all all trust\n"),
        (_IDENT, b""),
        (_CONFIG, b"# stands in for the source's own file, which was not in its data folder\n"),
    ):
        write_synced(starting.folder / name, content, starting.account)
    settings = {
        "data_directory": str(starting.data),
        "hba_file": str(starting.folder / _HBA),
        "ident_file": str(starting.folder / _IDENT),
        "hot_standby": "off",  # with it, a setting that the source raised since would hold recovery up for ever
        "archive_mode": "off",
        "ssl": "off",
        "huge_pages": "try",
        "synchronous_standby_names": "",  # nobody follows: each commit would wait for ever
        "max_logical_replication_workers": "0",  # subscriptions
        "cron.launch_active_jobs": "off",  # pg_cron
        "log_min_messages": "warning",
        "log_error_verbosity": "default",
        "log_line_prefix": "%m [%p] ",
        "log_timezone": "UTC",
        "log_startup_progress_interval": "1s",
    }
    if not (starting.data / "postgresql.conf").exists():
        settings["config_file"] = str(starting.folder / _CONFIG)
    return settings if starting.command is None else settings | {"restore_command": starting.command}


def _follow(work: Work, server: PrivateServer, starting: Starting, running: Step) -> tuple[RecoveryLog, float | None]:
    """Read the log until clients are let in, telling how far replay is; when on our clock it was consistent."""
    log, total = RecoveryLog(), max(starting.end - starting.begin, 0) or None
    consistent_at = None
    with server.log.open("rb") as file:
        rest = b""
        while True:
            # Asked before the log is read: what is logged before the end is then all there.
            ended, ready = not server.is_running, server.is_ready
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                log.read(line.decode(errors="replace"))
            if consistent_at is None and log.consistent_at is not None:
                consistent_at = work.clock.monotonic()
            if log.replayed is not None:
                running.progress(max(log.replayed - starting.begin, 0), total)
            if ready:
                return log, consistent_at
            if ended:
                raise _why(server, starting, log)
            work.clock.sleep(_POLL_SECONDS)


def _why(server: PrivateServer, starting: Starting, log: RecoveryLog) -> ClipperError:
    """The error for a recovery that did not end well: why WAL was refused, else PostgreSQL's own words."""
    refused = starting.refused()
    if refused is not None:
        return type(refused)(f"recovery was ended: {refused.message}", hints=refused.hints)
    failed = server.failure("ended before it had recovered" + (f": {log.fatal}" if log.fatal else ""))
    fetch = log.failed_fetch
    if fetch is not None:
        kind = _ERRORS.get(fetch.exit_code - _FETCH_BASE, ServerError)
        meaning = f"{kind.meaning}: " if kind is not ServerError else ""
        message = f"recovery was ended: {meaning}{fetch.file} could not be fetched, exit code {fetch.exit_code}"
        return kind(f"{message}; {failed.message}", hints=failed.hints)
    hints = list(failed.hints)
    if "could not access file" in (log.fatal or ""):
        hints.insert(0, "a library that the source preloads is not on this machine: install it, or restore where it is")
    return ServerError(failed.message, hints=hints)


def _ended_at(
    server: PrivateServer, starting: Starting, log: RecoveryLog, seconds: float, consistent_seconds: float | None
) -> Started:
    """Where recovery stopped, compared with where it should have (rule 68)."""
    if log.new_timeline is None:
        raise IntegrityError(
            "the server opened without a timeline of its own: it did no archive recovery", hints=[f"its log: {server.log}"]
        )
    history = starting.data / "pg_wal" / history_name(log.new_timeline)
    left = parse_history(history.read_bytes(), history.name)[-1]
    stopped_at = left.left_at
    short = starting.target.kind in {"time", "lsn", "xid", "name"} and log.stopping is None
    if short or (starting.must_reach is not None and stopped_at < starting.must_reach):
        reason = "its target was not reached" if short else f"the last record that is there ends at {starting.must_reach}"
        raise IntegrityError(
            f"recovery ended at {stopped_at}, and {reason}: the WAL there cannot be read",
            hints=[
                f"its log: {server.log}",
                "`clipper-backup wal verify --read-data` reads the WAL that is archived",
                f"then, nobody wrote into {starting.data}: the same words with --replace --timeline {int(left.timeline)}",
            ],
        )
    where = server.connection()
    return Started(
        stopped_at=stopped_at,
        last_commit_at=log.last_commit_at,
        timeline=log.new_timeline,
        stopping=log.stopping,
        history=history,
        socket_folder=Path(where["host"]),
        port=int(where["port"]),
        pid=server.pid,
        log=server.log,
        seconds=seconds,
        consistent_seconds=consistent_seconds,
    )


def check_port(port: int | None) -> None:
    """UsageError for what is no port."""
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"{port} is no port", hints=["give --port a number from 1 to 65535, or leave it out for a free one"])
