"""What a prune wants to remove, as its plan hands it over: the only thing that plan and proof have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from clipper_backup.errors import UsageError
from clipper_backup.format import physical_names as names
from clipper_backup.format.names import parse_dump_key
from clipper_backup.format.time_maps import is_map_key
from clipper_backup.repository.proof.numbers import Ranges
from clipper_backup.values import BackupId, DumpId, Timeline
from clipper_backup.wal_names import Segment


@dataclass(frozen=True, slots=True)
class Removal:
    """Objects, named by what they belong to.

    `backups` are folders below `base/`, with all that lies in them; of those in `summaries` only backup.json. `wal` are numbers
    of segments, by system id and timeline, with all that lies beside them; `maps` are keys of time maps. `records` are ids of
    prunes. `announced` is not removed: packs that are announced to be, a day from now.
    """

    dumps: frozenset[DumpId] = frozenset()
    backups: frozenset[BackupId] = frozenset()
    summaries: frozenset[BackupId] = frozenset()
    packs: Mapping[BackupId, Ranges] = field(default_factory=dict)
    data_keys: frozenset[BackupId] = frozenset()
    records: frozenset[BackupId] = frozenset()
    wal: Mapping[tuple[str, Timeline], Ranges] = field(default_factory=dict)
    segment_bytes: Mapping[str, int] = field(default_factory=dict)
    maps: frozenset[str] = frozenset()
    announced: Mapping[BackupId, Ranges] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        """Whether the object at *key* is to go. Histories, holds, systems, records of snapshots and reports never are."""
        folder = key.partition("/")[0] + "/"
        if folder == names.PACKS_FOLDER:
            pack = names.parse_pack_key(key)
            return pack is not None and pack.number in self.packs.get(pack.run, Ranges())
        if folder == names.WAL_FOLDER:
            return self._has_wal(key)
        if folder == names.BASE_FOLDER:
            base = names.parse_base_key(key)
            if base is None:
                return False
            return base.backup_id in (self.summaries if base.part == names.BASE_SUMMARY else ()) or base.backup_id in self.backups
        if folder == names.KEYS_FOLDER:
            return names.parse_data_key_key(key) in self.data_keys
        if folder == names.PRUNE_FOLDER:
            return names.parse_prune_key(key) in self.records
        dump = parse_dump_key(key)
        return dump is not None and dump.dump_id in self.dumps

    def has_of_base(self) -> bool:
        """Whether it takes anything of base backups, their packs or keys."""
        return bool(self.backups or self.summaries or self.packs or self.data_keys or self.records or self.announced)

    def _has_wal(self, key: str) -> bool:
        if key in self.maps:
            return is_map_key(key)
        archived = names.parse_archive_key(key)
        if archived is None or len(archived.name) < 24:
            return False
        ranges = self.wal.get((archived.system_id, Timeline.parse(archived.name[:8])))
        return bool(ranges) and number_of(archived.name, self.segment_bytes[archived.system_id]) in (ranges or ())


def number_of(name: str, segment_bytes: int) -> int | None:
    """The number of the segment that a file of the archive is, or lies beside; None when no segment of this size has that."""
    try:
        return Segment.parse(name[:24], segment_bytes).number
    except UsageError:
        return None
