"""Keys of base backups, packs and WAL: made and read in this one place (docs/design/repository-format.md, Objects)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from clipper_backup.errors import UsageError
from clipper_backup.format.names import HOLDS_FOLDER, SEALED
from clipper_backup.values import BackupId, Timeline
from clipper_backup.wal_names import Kind, Segment, classify, history_name

SYSTEMS_FOLDER = "systems/"
KEYS_FOLDER = "keys/"
PACKS_FOLDER = "packs/"
BASE_FOLDER = "base/"
WAL_FOLDER = "wal/"
PRUNE_FOLDER = "prune/"
SNAPSHOTS_FOLDER = "snapshots/"
RESTORE_TESTS_FOLDER = "restore-tests/"
VERIFY_FOLDER = "verify/"
OWN = (
    SYSTEMS_FOLDER,
    KEYS_FOLDER,
    PACKS_FOLDER,
    BASE_FOLDER,
    WAL_FOLDER,
    PRUNE_FOLDER,
    SNAPSHOTS_FOLDER,
    RESTORE_TESTS_FOLDER,
    VERIFY_FOLDER,
)
"""The folders of a repository beside those of its dumps."""

VERIFY_REPORT = f"{VERIFY_FOLDER}report.json"

BASE_INTENT = "intent.json"
STARTED = "started.json"
VERIFY = "verify.json"
PACKS = "packs.json.zst"
MANIFEST = "manifest.zst"
BASE_DETAILS = "details.zst"
LABEL = "backup_label.zst"
TABLESPACE_MAP = "tablespace_map.zst"
SERVER_MANIFEST = "backup_manifest.zst"
BASE_SUMMARY = "backup.json"
BASE_SIGNATURE = "backup.json.sig"
TAKING = "taking.json"
"""Of a volume snapshot: its run lives."""
SEALABLE = (LABEL, TABLESPACE_MAP, SERVER_MANIFEST, MANIFEST, BASE_DETAILS)
"""Objects of a base backup whose name ends with SEALED when recipients are configured."""
UNCOMMITTED = frozenset({BASE_INTENT, STARTED, VERIFY, BASE_SUMMARY, BASE_SIGNATURE})
"""Objects of a base backup that its summary does not list: they come before or behind it, or are it."""

CLAIM = ".claim"
LINK = ".link"
STORED = ".zst"

# Compiled when first used: `wal push`, which starts for each segment, reads no keys.
_ID = "[0-9]{8}-[0-9]{6}-[0-9a-f]{8}"
_BASE_KEY = rf"base/({_ID})/([a-z0-9_][a-z0-9_.-]*)"
_PACK_KEY = rf"packs/({_ID})/([0-9]{{8}})"
_KEY_KEY = rf"keys/({_ID})\.age"
_PRUNE_KEY = rf"prune/({_ID})\.json"
_SYSTEM_KEY = r"systems/([0-9]{4})\.json"
_SNAPSHOT_KEY = r"snapshots/([^/]+)\.json"
_SNAPSHOT_OBJECT = rf"snapshots/({_ID})(?:\.json|\.json\.sig|/([a-z0-9_][a-z0-9_.-]*))"
_SYSTEM = "[1-9][0-9]{0,19}"
_HISTORY_KEY = rf"wal/({_SYSTEM})/histories/([0-9A-F]{{8}}\.history)(\.claim|\.zst|\.zst\.age)"
_WAL_KEY = rf"wal/({_SYSTEM})/([0-9A-F]{{8}})/([0-9A-F]{{16}})/(.+?)(\.claim|\.link|\.zst|\.zst\.age)"
_PARTIAL = "[0-9A-F]{24}\\.partial-[0-9a-f]{16}"


def system_key(number: int) -> str:
    """The entry of the *number*-th system, from 1."""
    return f"{SYSTEMS_FOLDER}{number:04d}.json"


def parse_system_key(key: str) -> int | None:
    """The number of a system's entry."""
    match = re.fullmatch(_SYSTEM_KEY, key)
    return int(match[1]) if match else None


def data_key_key(run: BackupId) -> str:
    """Where the data key of a run lies, sealed."""
    return f"{KEYS_FOLDER}{run}{SEALED}"


def parse_data_key_key(key: str) -> BackupId | None:
    """The run whose data key it is."""
    match = re.fullmatch(_KEY_KEY, key)
    return _backup_id(match[1]) if match else None


def pack_key(run: BackupId, number: int) -> str:
    """A pack of a run; *number* from 0."""
    return f"{PACKS_FOLDER}{run}/{number:08d}"


@dataclass(frozen=True, slots=True, order=True)
class PackKey:
    """A key below `packs/`, taken apart."""

    run: BackupId
    number: int

    def __str__(self) -> str:
        return pack_key(self.run, self.number)


def parse_pack_key(key: str) -> PackKey | None:
    """The run and number of a pack; None when the key is none of ours."""
    match = re.fullmatch(_PACK_KEY, key)
    run = _backup_id(match[1]) if match else None
    return PackKey(run, int(match[2])) if match and run else None


def packs_named(texts: Iterable[str]) -> set[PackKey]:
    """The packs that *texts* name, as messages about damage do."""
    found = (parse_pack_key(match[0]) for text in texts for match in re.finditer(_PACK_KEY, text))
    return {pack for pack in found if pack is not None}


def base_key(backup_id: BackupId, part: str) -> str:
    """An object of a base backup; *part* is one of the constants above, perhaps with SEALED behind it."""
    return f"{BASE_FOLDER}{backup_id}/{part}"


@dataclass(frozen=True, slots=True)
class BaseKey:
    """A key below `base/`, taken apart."""

    backup_id: BackupId
    part: str


def parse_base_key(key: str) -> BaseKey | None:
    """The backup and part of a key below `base/`, of a later version's part too; None when it is none of ours."""
    match = re.fullmatch(_BASE_KEY, key)
    backup_id = _backup_id(match[1]) if match else None
    return BaseKey(backup_id, match[2]) if match and backup_id else None


def base_hold_key(backup_id: BackupId) -> str:
    """The hold on a base backup."""
    return f"{HOLDS_FOLDER}{backup_id}"


def parse_base_hold_key(key: str) -> BackupId | None:
    """The base backup that a hold is on; None for a hold on something else."""
    return _backup_id(key.removeprefix(HOLDS_FOLDER)) if key.startswith(HOLDS_FOLDER) else None


def prune_key(prune_id: BackupId) -> str:
    """The record of what a prune doomed."""
    return f"{PRUNE_FOLDER}{prune_id}.json"


def parse_prune_key(key: str) -> BackupId | None:
    """The id of a prune's record."""
    match = re.fullmatch(_PRUNE_KEY, key)
    return _backup_id(match[1]) if match else None


def restore_test_key(test_id: BackupId) -> str:
    """`restore-tests/<id>/report.json`."""
    return f"{RESTORE_TESTS_FOLDER}{test_id}/report.json"


def histories_folder(system_id: str) -> str:
    """Where the histories of a system lie, with its `/`."""
    return f"{WAL_FOLDER}{system_id}/histories/"


def timeline_folder(system_id: str, timeline: Timeline) -> str:
    """Where the WAL of a timeline lies, with its `/`."""
    return f"{WAL_FOLDER}{system_id}/{timeline}/"


def times_folder(system_id: str, timeline: Timeline) -> str:
    """Where the time maps of a timeline lie, with its `/`."""
    return f"{timeline_folder(system_id, timeline)}times/"


def is_snapshot_key(key: str) -> bool:
    """Whether it is the record of a volume snapshot."""
    return re.fullmatch(_SNAPSHOT_KEY, key) is not None


def snapshot_key(snapshot_id: BackupId) -> str:
    """The record of a volume snapshot."""
    return f"{SNAPSHOTS_FOLDER}{snapshot_id}.json"


def snapshot_signature_key(snapshot_id: BackupId) -> str:
    """The signature of that record."""
    return f"{snapshot_key(snapshot_id)}.sig"


def snapshot_part_key(snapshot_id: BackupId, part: str) -> str:
    """Another object of it: TAKING, LABEL or TABLESPACE_MAP, the last two perhaps with SEALED behind it."""
    return f"{SNAPSHOTS_FOLDER}{snapshot_id}/{part}"


def parse_snapshot_key(key: str) -> tuple[BackupId, str | None] | None:
    """The snapshot of a key below `snapshots/`, and its part: None for the record and its signature. None for others' keys."""
    match = re.fullmatch(_SNAPSHOT_OBJECT, key)
    snapshot_id = _backup_id(match[1]) if match else None
    return (snapshot_id, match[2]) if match and snapshot_id else None


def segment_folder(system_id: str, segment: Segment) -> str:
    """The folder of a segment, with its `/`: it holds the segments of 4 GiB of WAL."""
    return f"{timeline_folder(system_id, segment.timeline)}{segment.folder}/"


def first_segment_of(folder: str, segment_bytes: int) -> int:
    """The number of the first segment that can lie in a folder, which is named by its segments' first sixteen digits."""
    return int(folder[8:], 16) * ((1 << 32) // segment_bytes)


def archive_key(system_id: str, name: str, suffix: str) -> str:
    """The key of a file of the archive, by the name that PostgreSQL (or `.partial-<h>`) gives it.

    *suffix* is CLAIM, LINK or STORED, the last perhaps with SEALED behind it. ValueError for a name that is no file's.
    """
    kind = classify(name)
    if kind is Kind.HISTORY:
        return f"{histories_folder(system_id)}{name}{suffix}"
    if kind in {Kind.SEGMENT, Kind.BACKUP} or re.fullmatch(_PARTIAL, name):
        return f"{WAL_FOLDER}{system_id}/{name[:8]}/{name[:16]}/{name}{suffix}"
    raise ValueError(f"no file of the archive: {name!r}")


@dataclass(frozen=True, slots=True)
class ArchiveKey:
    """A key of a file of the archive, taken apart; `suffix` as in `archive_key`."""

    system_id: str
    name: str
    suffix: str


def parse_archive_key(key: str) -> ArchiveKey | None:
    """The parts of a key below `wal/`; None when it is none of ours, or a time map's or a tail's."""
    match = re.fullmatch(_HISTORY_KEY, key)
    if match is not None:
        return ArchiveKey(*match.groups()) if classify(match[2]) else None
    match = re.fullmatch(_WAL_KEY, key)
    if match is None:
        return None
    system_id, timeline, folder, name, suffix = match.groups()
    partial = re.fullmatch(_PARTIAL, name) is not None
    known = partial or classify(name) in {Kind.SEGMENT, Kind.BACKUP}
    if not known or name[:8] != timeline or name[:16] != folder or (suffix == CLAIM and partial):
        return None
    if suffix == LINK and classify(name) is not Kind.SEGMENT:
        return None
    return ArchiveKey(system_id, name, suffix)


def history_key(system_id: str, timeline: Timeline, suffix: str) -> str:
    """The key of a timeline's history; *suffix* as in `archive_key`."""
    return archive_key(system_id, history_name(timeline), suffix)


def _backup_id(text: str) -> BackupId | None:
    try:
        return BackupId.parse(text)
    except UsageError:
        return None
