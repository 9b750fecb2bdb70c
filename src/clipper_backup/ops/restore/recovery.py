"""What PostgreSQL is told before its first start: recovery settings in postgresql.auto.conf, and one signal file.

Nothing else of the restored configuration is changed. What only a private start needs goes on the server's command line
(`start.py`).
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.errors import IntegrityError
from clipper_backup.format.base_documents import ServerSettings
from clipper_backup.ops.restore.target_dir import sync_folder
from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.account import Account
from clipper_backup.values import Timeline

AUTO_CONF = "postgresql.auto.conf"
SIGNALS = ("recovery.signal", "standby.signal")
_HEADING = "# written by clipper-backup restore; ALTER SYSTEM RESET takes a line away"
_LASTING = "archive_mode"
"""What stays when it has recovered: whoever looked at it switches archiving on."""

_SOURCES = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
"""Those that must be at least the source's while it recovers (rule 64); what the source itself has set stays, for afterwards."""

_ASSIGNMENT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.$]*)\s*(?:=|\s)")
_TARGETS = ("recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid")
_FORMER = {"archive_cleanup_command": "", "recovery_end_command": "", "recovery_min_apply_delay": "0", "primary_slot_name": ""}
"""What the source may have had as a standby: its clean-up would delete from an archive, its delay would hold up recovery."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How the restored server is to recover. A `standby` follows the newest timeline, and goes on for ever."""

    target: Target
    timeline: Timeline
    restore_command: str
    source: ServerSettings
    standby: bool = False

    def settings(self) -> dict[str, str]:
        """What stands in postgresql.auto.conf, in this order.

        Targets that are not meant are emptied first: one that is left from an earlier recovery would contradict, and PostgreSQL
        takes an empty one that comes behind for "no target at all" (assign_recovery_target_… in guc_tables.c).
        """
        target = {} if self.standby else self.target.settings()
        return {
            **_FORMER,
            **{name: "" for name in _TARGETS if name not in target},
            **target,
            "recovery_target_timeline": "latest" if self.standby else str(int(self.timeline)),
            "recovery_target_action": "promote",
            "restore_command": self.restore_command,
            "archive_mode": "off",
            **{name: str(getattr(self.source, name)) for name in _SOURCES},
        }

    def passing(self) -> list[str]:
        """The settings that nothing needs any more when it has recovered, and that a standby made of it would follow.

        The five are not among them: to reset one would take away what the source had set, as well.
        """
        return [name for name in self.settings() if name != _LASTING and name not in _SOURCES]


def write_recovery(data: Path, recovery: Recovery, account: Account) -> None:
    """Write settings and signal file into *data*, synced.

    What postgresql.auto.conf says of other settings stays, and what it says of the five: ours stand behind them, and count.
    """
    path = data / AUTO_CONF
    former = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
    text = merged(former, recovery.settings(), keep=_SOURCES)
    write_synced(path, text.encode("utf-8", "surrogateescape"), account)
    wanted = SIGNALS[1] if recovery.standby else SIGNALS[0]
    for name in SIGNALS:
        if name == wanted:
            write_synced(data / name, b"", account)
        else:
            (data / name).unlink(missing_ok=True)
    sync_folder(data)


def settle(data: Path, recovery: Recovery, account: Account) -> None:
    """Take what was for recovery out of postgresql.auto.conf, in one step: its server has recovered, and may be running.

    Of the five, what the source had set counts again: without it the next start may end, on transactions that are prepared.
    """
    path = data / AUTO_CONF
    settings = recovery.settings()
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    text = merged(text, settings, {_LASTING: settings[_LASTING]}, keep=_SOURCES)
    temporary = path.with_name(f"{AUTO_CONF}.clipper-backup")
    write_synced(temporary, text.encode("utf-8", "surrogateescape"), account)
    temporary.replace(path)
    sync_folder(data)


def merged(
    text: str, settings: Mapping[str, str], lasting: Mapping[str, str] | None = None, *, keep: Collection[str] = ()
) -> str:
    """A configuration file's *text* without its lines for *settings*, and behind it those, or the *lasting* ones alone.

    Names count in any case. Of those of *keep* only the lines go that an earlier call wrote: they stand behind the heading.
    """
    kept, ours = [], False
    for line in text.splitlines():
        match = _ASSIGNMENT.match(line)
        name = match[1].lower() if match else ""
        ours = ours or line == _HEADING
        if line != _HEADING and (name not in settings or (name in keep and not ours)):
            kept.append(line)
    written = [f"{name} = {quoted(value)}" for name, value in (settings if lasting is None else lasting).items()]
    return "\n".join([*kept, _HEADING, *written]) + "\n"


def quoted(value: str) -> str:
    """*value* as a configuration file has it (GUC_scanstr: backslashes escape, quotes are doubled)."""
    if "\n" in value:
        raise ValueError("a setting of PostgreSQL has no line feeds")
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def tablespaces_in(tablespace_map: bytes) -> dict[int, Path]:
    """The folders that the server's tablespace_map names, by OID.

    A line is an OID, a blank and a path, in which backslash, line feed and carriage return have a backslash before them
    (do_pg_backup_start in xlog.c). IntegrityError for another form.
    """
    return {oid: Path(os.fsdecode(re.sub(rb"\\(.)", rb"\1", path, flags=re.DOTALL))) for oid, path in _lines_of(tablespace_map)}


def remapped(tablespace_map: bytes, folders: Mapping[int, Path]) -> bytes:
    """The server's tablespace_map with other folders; byte for byte the same where none is."""
    result = []
    for oid, path in _lines_of(tablespace_map):
        if oid in folders:
            path = re.sub(rb"([\\\n\r])", rb"\\\1", os.fsencode(folders[oid]))  # noqa: PLW2901  the line's, moved
        result.append(b"%d %s\n" % (oid, path))
    return b"".join(result)


def _lines_of(tablespace_map: bytes) -> list[tuple[int, bytes]]:
    """OID and path, still escaped, of each line."""
    lines = re.findall(rb"(?:[^\\\n]|\\.)*\n", tablespace_map, re.DOTALL)
    if b"".join(lines) != tablespace_map:
        raise IntegrityError("tablespace_map is damaged: its last line does not end")
    found = [re.fullmatch(rb"([1-9][0-9]*) (.+)\n", line, re.DOTALL) for line in lines]
    if None in found:
        raise IntegrityError("tablespace_map is damaged: a line is not an OID and a path")
    return [(int(match[1]), match[2]) for match in found if match is not None]


def write_synced(path: Path, content: bytes, account: Account, *, mode: int = 0o600) -> None:
    """Write a file durably but for its name: the caller syncs the folder."""
    with account.create(path) as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
