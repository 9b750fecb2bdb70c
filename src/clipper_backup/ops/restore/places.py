"""Where the files of a base backup come to lie: its data folder, and a folder for each tablespace."""

import os
from collections.abc import Mapping
from pathlib import Path

from clipper_backup.errors import UsageError
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.manifest import Entry, File, Outside, Tablespace
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.restore.recovery import tablespaces_in
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import part_of, plain_part, read_entries


def find_places(
    work: Work, summary: BaseSummary, data: Path, chosen: Mapping[int, Path]
) -> tuple[dict[int, Path], dict[Path, int]]:
    """Where tablespaces go, by OID, those of *chosen* elsewhere than they were; and how many bytes go into which folder.

    The manifest is read to its end, so it is whole (M1). UsageError when *chosen* has a tablespace that the backup has not.
    """
    opener = opener_of(work.settings, summary.recipients)
    tablespaces: dict[int, Path] = {}
    if summary.part("tablespace_map") is not None:
        tablespaces = tablespaces_in(b"".join(plain_part(work.store, part_of(summary, "tablespace_map"), opener)))
    if unknown := sorted(set(chosen) - set(tablespaces)):
        known = ", ".join(f"{oid} ({folder})" for oid, folder in sorted(tablespaces.items())) or "none"
        raise UsageError(
            f"the backup has no tablespace {unknown[0]}",
            hints=[
                f"its tablespaces: {known}",
                "one that was made after the backup goes where the WAL says, and only into an empty folder: nothing moves it",
            ],
        )
    tablespaces |= chosen
    sizes = {data: 0} | dict.fromkeys(tablespaces.values(), 0)
    for entry in read_entries(work.store, summary, opener):
        if isinstance(entry, File):
            sizes[_place_of(entry, tablespaces, data)] += entry.size_bytes
        elif isinstance(entry, Tablespace) and _oid(entry) not in tablespaces:
            tablespaces[_oid(entry)] = Path(os.fsdecode(entry.leads_to))
            sizes.setdefault(tablespaces[_oid(entry)], 0)
    return tablespaces, sizes


def _place_of(entry: Entry, tablespaces: Mapping[int, Path], data: Path) -> Path:
    """In which of these folders a file comes to lie."""
    parts = entry.named.split(b"/", 2)
    if not isinstance(entry, Outside) and parts[0] == b"pg_tblspc" and len(parts) > 2 and parts[1].isdigit():
        return tablespaces.get(int(parts[1]), data)
    return data


def _oid(entry: Tablespace) -> int:
    return int(entry.named.rpartition(b"/")[2])
