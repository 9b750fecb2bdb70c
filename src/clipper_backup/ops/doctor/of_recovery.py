"""Checks of point-in-time recovery: does the server archive, may we take base backups, and is the window whole and long enough.

Where the server does not archive and the repository holds no base backup and no WAL, nobody wants it: the lines say so, and none
is red.
"""

import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from pathlib import Path

from clipper_backup.ops.doctor.declared import Declaring, Look, Surroundings
from clipper_backup.ops.findings import Finding, green, red, yellow
from clipper_backup.ops.physical_status import PhysicalStatus, finished_at, too_old
from clipper_backup.ops.wal.server_side import STRAY_HINT, not_followed, not_here
from clipper_backup.ops.work import login_of
from clipper_backup.postgres import backup_role
from clipper_backup.postgres.backup_session import lacks_functions
from clipper_backup.postgres.data_folder import WAL_FOLDER, DataFolder
from clipper_backup.postgres.data_proof import check_is_servers, data_directory, find_data_folder
from clipper_backup.postgres.replication import Replication, identify
from clipper_backup.repository.base_backups import BaseEntry
from clipper_backup.repository.refresh import tolerated_outage_days
from clipper_backup.values import show_bytes, show_count, show_seconds, show_time

_OFF = "point-in-time recovery is off"
_WAITED_TOO_LONG_SECONDS = 300
_LEAST_FREE = 0.1
"""Of the volume of pg_wal."""

check = Declaring()


def _where_wanted(look: Look) -> Look:
    """The same check, which is green where nobody wants point-in-time recovery."""

    @wraps(look)
    def looked(here: Surroundings) -> Finding:
        return green(_OFF) if here.is_pitr_off else look(here)

    return looked


def _of_what_is_there(look: Callable[[Surroundings, PhysicalStatus], Finding]) -> Look:
    """A check of the repository's base backups and WAL: red where the server archives and there are none."""

    @wraps(look)
    def looked(here: Surroundings) -> Finding:
        if here.is_pitr_off:
            return green(_OFF)
        if here.physical is None:
            return red("the server archives its WAL, and there is no base backup and no WAL here", _FIRST)
        return look(here, here.physical)

    return looked


_AT_ONCE = "when that is right: `clipper-backup base create`, at once"
_FIRST = "`clipper-backup base create` takes the first base backup, which archiving waits for; is BACKUP_URL the archive's?"


@check(
    "archiving",
    "whether the server archives its WAL (wal_level, archive_mode, archive_command)",
    "docs/guides/point-in-time.md switches it on; without it only the moments of dumps can be restored",
    needs=["repository", "database server"],
)
def _archiving(here: Surroundings) -> Finding:
    why = here.archiving.off_because
    if why is None:
        return green("the server archives its WAL")
    if here.physical is None:
        return yellow(f"{_OFF}: {why}")
    if here.facts.in_recovery:
        return yellow(f"{why} on this standby: its primary archives", "set PGHOST to the primary to see whether it does")
    return red(f"{why}, and there are base backups and WAL: what is written since cannot be restored")


@check(
    "base backup access",
    "whether this role may take a base backup: REPLICATION, a line of pg_hba.conf for `replication`, enough max_wal_senders; with"
    " BASE_SOURCE=files also whether PGDATA is this server's, and may be read",
    "`clipper-backup setup database` prints what is missing",
    needs=["repository", "database server"],
)
@_where_wanted
def _base_backup_access(here: Surroundings) -> Finding:
    with here.session() as connection:
        if obstacles := backup_role.obstacles(connection):
            return red("; ".join(obstacles))
    with Replication(login_of(here.settings)) as replication:
        system_id, _, _ = identify(replication)
    known = [] if here.physical is None else [each.entry.system_id for each in here.physical.wal.seen.systems]
    if known and system_id not in known:
        return red(f"the server is the system {system_id}, the repository is of {known[-1]}", "does BACKUP_URL belong to PGHOST?")
    if here.settings.base_source == "protocol":
        return green("a replication connection is let in")
    with here.session() as connection:
        if lacking := lacks_functions(connection):
            return red(f"this role may not call {', '.join(lacking)}")
        path = find_data_folder(login_of(here.settings), here.settings.pgdata, data_directory(connection))
    check_is_servers(DataFolder(path, here.clock), login_of(here.settings))
    return green(f"a replication connection is let in, and {path} is this server's data folder")


@check(
    "newest base backup",
    "whether there is a good base backup that is not older than BASE_MAX_AGE_HOURS, and no other is damaged",
    "`clipper-backup base create` takes one; `clipper-backup base list` says what is wrong with each",
    needs=["repository", "database server"],
)
@_of_what_is_there
def _newest_base_backup(here: Surroundings, physical: PhysicalStatus) -> Finding:
    old = too_old(physical, timedelta(hours=here.settings.base_max_age_hours))
    if old is not None or physical.newest is None:
        return red(old or "there is none")
    text = f"{physical.newest.listed.backup_id} is {_age(physical, physical.newest)} old"
    if physical.damaged:
        worst = physical.damaged[-1]
        return yellow(
            f"{text}; {show_count(len(physical.damaged), 'other is', 'others are')} not good, the newest of them"
            f" {worst.listed.backup_id}: {worst.problem}"
        )
    return green(text)


def _age(physical: PhysicalStatus, entry: BaseEntry) -> str:
    return show_seconds(max(0.0, (physical.now - finished_at(entry)).total_seconds()))


@check(
    "WAL archive",
    "whether a base backup leads to the end of the server's WAL, without a gap in the window of PITR_WINDOW_DAYS",
    "take a base backup at once: `clipper-backup base create`; `clipper-backup wal status` shows the whole archive",
    needs=["repository", "database server"],
)
@_of_what_is_there
def _wal_archive(here: Surroundings, physical: PhysicalStatus) -> Finding:
    seen, window = physical.wal.seen, physical.window
    if gaps := seen.gaps:
        closes = "a segment that still lies in the server's pg_wal closes it: `clipper-backup wal push`"
        return red(
            f"{show_count(len(gaps), 'gap')}, the first at {gaps[0].first}: {gaps[0].why}",
            "`clipper-backup base create`, at once",
            closes,
        )
    if window is None:
        return red(f"nothing can be restored to the end of the WAL: {physical.wal.seen.why_no_window}")
    if (stray := not_followed(seen, here.archiver)) is not None:
        return red(stray, STRAY_HINT)
    if seen.refused:
        return red(seen.refused[0])
    if seen.problems:
        return yellow(seen.problems[0], "`clipper-backup wal status` shows the whole archive")
    return green(f"whole from {window.backup.first_segment} to {window.last}")


@check(
    "recovery window",
    "whether the oldest base backup lets every instant of PITR_WINDOW_DAYS be restored",
    "nothing, while the first base backup is younger; else see what removed older ones: a lower PITR_WINDOW_DAYS, a rule",
    needs=["WAL archive"],
)
@_of_what_is_there
def _recovery_window(here: Surroundings, physical: PhysicalStatus) -> Finding:
    window, days = physical.window, here.settings.pitr_window_days
    if window is None:
        return red(f"nothing can be restored to the end of the WAL: {physical.wal.seen.why_no_window}")
    text = f"it begins at {show_time(window.backup.stopped_at)}"
    return green(text) if physical.reaches_back else yellow(f"{text}: less than PITR_WINDOW_DAYS ({days}) ago")


@check(
    "outage",
    "how long base backups may fail before a bucket's rule that deletes every object at 30 days takes what the window needs",
    "a smaller MAX_PACK_AGE_DAYS, or a rule of the bucket for `database/` alone: docs/design/source-errata.md, lifecycle rules",
    needs=["settings"],
)
def _outage(here: Surroundings) -> Finding:
    settings = here.settings
    days = tolerated_outage_days(max_pack_age_days=settings.max_pack_age_days, window_days=settings.pitr_window_days)
    if days > 0:
        allowed = show_count(days, "day")
        return green(f"{allowed} without a base backup lose nothing of the window, where a bucket deletes all at 30 days")
    asked = f"MAX_PACK_AGE_DAYS {settings.max_pack_age_days} and PITR_WINDOW_DAYS {settings.pitr_window_days}"
    return yellow(f"with {asked}, a bucket's rule that deletes all at 30 days takes what the window needs")


@check(
    "archiver",
    "whether the server's archiver gets its files archived, and into this repository, and none waits for long",
    "PostgreSQL's log says what archive_command said; `clipper-backup wal push` by hand says it too",
    needs=["repository", "database server"],
)
@_where_wanted
def _archiver(here: Surroundings) -> Finding:
    if here.archiving.off_because is not None:
        return yellow(f"{here.archiving.off_because}: see the check `archiving`")
    facts = here.archiver
    if here.physical is not None and (gone := not_here(here.store, here.physical.wal.seen, facts)) is not None:
        return red(gone, "`clipper-backup settings` shows BACKUP_URL; `SHOW archive_command` on the server", _AT_ONCE)
    if facts.failing:
        since = f"; it worked last at {show_time(facts.last_archived_at)}" if facts.last_archived_at else "; it never worked"
        return red(f"it fails at {facts.last_failed}, {facts.failed} times so far{since}")
    if facts.ready is None:
        return yellow("this role may not see what waits", "GRANT pg_monitor TO the role: `clipper-backup setup database`")
    waited = 0.0 if facts.ready_since is None else (facts.now - facts.ready_since).total_seconds()
    text = f"{facts.ready} files wait, {show_bytes(facts.ready_bytes or 0)}"
    if waited > _WAITED_TOO_LONG_SECONDS:
        return yellow(
            f"{text}, the oldest for {show_seconds(waited)}", "is `wal archive` alive, is the store slow? see their logs"
        )
    return green(text)


@check(
    "pg_wal",
    "whether pg_wal grows beyond what the server's settings keep, or its volume is nearly full, where that can be seen",
    "see the check `archiver`, and replication slots (pg_replication_slots); a full volume stops the server: make it larger now",
    needs=["database server"],
)
@_where_wanted
def _pg_wal(here: Surroundings) -> Finding:
    facts = here.archiving
    if facts.wal_bytes is None:
        return yellow(
            "this role may not see how large pg_wal is", "GRANT pg_monitor TO the role: `clipper-backup setup database`"
        )
    text = f"{show_bytes(facts.wal_bytes)}, of {show_bytes(facts.limit_bytes)} that max_wal_size and wal_keep_size allow"
    folder = None if facts.data_directory is None else Path(facts.data_directory, WAL_FOLDER)
    local = login_of(here.settings).keywords.get("host", "/").startswith("/")
    if folder is not None and local and folder.is_dir():
        usage = shutil.disk_usage(folder)
        if usage.free < _LEAST_FREE * usage.total:
            return red(f"{text}; its volume has {show_bytes(usage.free)} of {show_bytes(usage.total)} left")
    return yellow(text) if facts.wal_bytes > 2 * facts.limit_bytes else green(text)


CHECKS = check.all
