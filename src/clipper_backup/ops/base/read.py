"""What the commands that read base backups share: the catalog in its order, and finding the one that a person means."""

from dataclasses import dataclass

from clipper_backup.errors import AccessError, IntegrityError, MissingError, StoreError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseDetails, BaseSummary
from clipper_backup.format.documents import HoldMark, decode
from clipper_backup.format.names import HOLDS_FOLDER
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import (
    BaseCatalog,
    BaseEntry,
    listed_base,
    read_base_details,
    read_base_summary,
    read_packs,
)
from clipper_backup.repository.root import open_repository
from clipper_backup.values import BackupId


@dataclass(frozen=True, slots=True)
class Shown:
    """One id of the catalog, and whether somebody holds it."""

    entry: BaseEntry
    hold: HoldMark | None


@dataclass(frozen=True, slots=True)
class PackUse:
    """The packs that a backup needs: how many, of how many runs, their bytes in the store, and the share it needs of them."""

    packs: int
    runs: int
    stored_bytes: int
    live_share: float

    @property
    def amplification(self) -> float:
        """How much larger they are than what is needed of them: 1 where all is."""
        return 1 / self.live_share if self.live_share else 1.0


def base_catalog(work: Work) -> list[Shown]:
    """Every id below `base/`: what is committed by system and end, what has no readable summary by its id among them."""
    repository = open_repository(work.store)
    entries = BaseCatalog(work.store, repository.id, work.trusted).entries()
    holds = _holds(work)
    return [Shown(entry, holds.get(entry.listed.backup_id)) for entry in sorted(entries, key=order_of)]


def order_of(entry: BaseEntry) -> tuple[int, str]:
    """By system number, then by when it was finished; the time in the id stands in where no summary can be read."""
    if entry.summary is None:
        return 0, entry.listed.backup_id.at.isoformat()
    return entry.summary.system_number, entry.summary.finished_at.isoformat()


def find_base(work: Work, wanted: str) -> BackupId:
    """The base backup that a person means: an id, or `latest` for the one that was committed last."""
    if wanted != "latest":
        return BackupId.parse(wanted)
    committed = [shown.entry for shown in base_catalog(work) if shown.entry.summary is not None]
    if not committed:
        raise MissingError(
            f"there is no base backup in {work.store.url}", hints=["`clipper-backup base create` makes one"]
        )  # fmt: skip
    return committed[-1].listed.backup_id


def base_summary(work: Work, backup_id: BackupId) -> BaseSummary:
    """The summary of one committed base backup."""
    return read_base_summary(work.store, backup_id, work.trusted, open_repository(work.store).id)


def base_entry(work: Work, backup_id: BackupId) -> BaseEntry:
    """One id of the catalog; MissingError when nothing of it is there."""
    listed = listed_base(work.store, backup_id)
    if not listed.objects:
        raise MissingError(f"there is no base backup {backup_id}", hints=["`clipper-backup base list` shows them"])
    return BaseCatalog(work.store, open_repository(work.store).id, work.trusted).entry(listed)


def base_details(work: Work, summary: BaseSummary) -> BaseDetails | None:
    """Warnings and fingerprint; None when they are sealed and there is no identity to open them."""
    if summary.sealed and work.settings.encryption_identity_file is None:
        return None
    return read_base_details(work.store, summary, opener_of(work.settings, summary.recipients))


def pack_use(work: Work, summary: BaseSummary) -> PackUse | None:
    """From its own list of packs; None where that is lost or damaged, which `base verify` tells."""
    try:
        runs = read_packs(work.store, summary).runs
    except IntegrityError:
        return None
    rows = [row for of_run in runs for row in of_run.packs]
    plain_bytes, live_bytes = sum(row[2] for row in rows), sum(row[3] for row in rows)
    return PackUse(len(rows), len(runs), sum(row[1] for row in rows), live_bytes / plain_bytes if plain_bytes else 1.0)


def _holds(work: Work) -> dict[BackupId, HoldMark]:
    """Every hold on a base backup. One whose mark cannot be read holds all the same."""
    found = {}
    for info in work.store.list(HOLDS_FOLDER):
        backup_id = names.parse_base_hold_key(info.key)
        if backup_id is None:
            continue
        try:
            found[backup_id] = decode(work.store.get(info.key), HoldMark, info.key)
        except MissingError:
            continue
        except (IntegrityError, StoreError, AccessError) as error:
            if error.temporary:
                raise
            found[backup_id] = HoldMark(reason="its mark cannot be read", held_by="somebody", held_at=info.modified_at)
    return found
