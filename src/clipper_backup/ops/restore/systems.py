"""Which of a repository's systems a restore is of: after pg_upgrade there are several, each with timelines of its own."""

from collections.abc import Sequence
from datetime import datetime

from clipper_backup.errors import IntegrityError, MissingError
from clipper_backup.format.physical_names import SYSTEMS_FOLDER
from clipper_backup.repository.base_backups import BaseEntry
from clipper_backup.repository.systems import list_systems
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId

_NAME_ONE = "name the base backup, and none of it is needed: `clipper-backup base list`, then --backup ID"


class Systems:
    """The systems of `systems/`, oldest first. Where a base backup is named (*wanted*) nothing of them is needed."""

    def __init__(self, store: Store, entries: Sequence[BaseEntry], wanted: BackupId | None) -> None:
        self._store, self._entries, self._wanted = store, entries, wanted
        try:
            self._known = list_systems(store)
        except IntegrityError as error:
            if wanted is None:
                raise IntegrityError(error.message, hints=[*error.hints, _NAME_ONE]) from error
            self._known = []

    def choose(self, at: datetime | None) -> tuple[str, int]:
        """Id and segment size of the one to restore: that of the backup that was named, else the newest; of a time, that time's.

        That is the newest one with a base backup that ended by then: an upgrade begins a new system, and its window.
        """
        for entry in self._entries:
            if entry.summary is not None and entry.listed.backup_id == self._wanted:
                return entry.summary.system_id, entry.summary.sizes.segment_bytes
        if not self._known and self._entries:
            raise IntegrityError(
                f"{self._store.url} holds base backups, and nothing in {SYSTEMS_FOLDER} says of which system", hints=[_NAME_ONE]
            )
        if not self._known:
            raise MissingError(
                f"{self._store.url} holds no base backup and no WAL",
                hints=["`clipper-backup base create` takes one", "`clipper-backup dump list`: a dump may do"],
            )
        summaries = [entry.summary for entry in self._entries if entry.summary is not None]
        ended = {each.system_id for each in summaries if at is not None and each.stopped_at <= at}
        system = next((each for each in reversed(self._known) if each.system_id in ended), self._known[-1])
        return system.system_id, system.segment_bytes

    def newer_than(self, system_id: str) -> str | None:
        """The newest system, where it is another one."""
        return next((each.system_id for each in self._known[-1:] if each.system_id != system_id), None)

    def hints_beside(self, system_id: str) -> list[str]:
        """How the systems before an upgrade, or behind it, are restored."""
        newest = {entry.summary.system_id: entry.summary for entry in self._entries if entry.summary is not None}
        newest.pop(system_id, None)
        return [
            f"system {each.system_id}, of PostgreSQL {each.versions.server_major}, has backups of its own: --backup {each.id}"
            for each in newest.values()
        ]
