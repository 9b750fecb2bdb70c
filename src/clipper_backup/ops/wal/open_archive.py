"""The archive that a server writes into, by the settings: whose it is, how it is sealed and signed."""

from pathlib import Path

from clipper_backup.config import Settings
from clipper_backup.errors import NoRepositoryError
from clipper_backup.format.base_documents import SystemEntry
from clipper_backup.ops.keys import opener_of, sealer_of, signer_of
from clipper_backup.ops.work import SOFTWARE, Work, this_process
from clipper_backup.postgres.wal_pages import WalLayout
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.systems import accept_system, physical_id
from clipper_backup.repository.wal_archive import ArchiveKeys, WalArchive


def archive_keys(settings: Settings) -> ArchiveKeys:
    """How segments are sealed and signed. UsageError where a setting asks for it and cannot be followed: nothing goes plain."""
    sealer, signer = sealer_of(settings), signer_of(settings)
    trusted = settings.signature_keys or (() if signer is None else (signer.public,))
    return ArchiveKeys(
        seal=None if sealer is None else sealer.seal_away,
        opened=None if settings.encryption_identity_file is None else opener_of(settings, settings.encryption_recipients),
        signer=signer,
        trusted=trusted,
    )


def open_archive(work: Work, layout: WalLayout) -> WalArchive:
    """The archive for a server with that *layout*. Nothing may be claimed before `accept`.

    NoRepositoryError where none is: archiving never makes one, since a volume that is not mounted looks like a new place.
    """
    try:
        repository = open_repository(work.store, writing=True)
    except NoRepositoryError as error:
        hints = [
            "if there should be one: is its volume mounted? Is BACKUP_URL (or CLOUD_PROVIDER and BACKUP_BUCKET) right?",
            "if not: the first `clipper-backup base create` makes it; PostgreSQL keeps its WAL until then",
        ]
        raise NoRepositoryError(error.message, hints=hints) from error
    return WalArchive(
        work.store,
        work.clock,
        repository_id=physical_id(repository),
        system_id=str(layout.system_id),
        segment_bytes=layout.segment_bytes,
        writer=this_process(),
        keys=archive_keys(work.settings),
    )


def accept(work: Work, layout: WalLayout) -> SystemEntry:
    """Make sure that the repository is that server's; IntegrityError when it is another cluster's (R2)."""
    here = SystemEntry(
        number=1,
        system_id=str(layout.system_id),
        segment_bytes=layout.segment_bytes,
        server_major=layout.server_major,
        added_at=work.clock.now(),
        added_by=f"{SOFTWARE} at {this_process()}",
    )
    return accept_system(work.store, here)


def data_folder_of(path: Path) -> Path:
    """PGDATA of a file in pg_wal, by the path's own words: pg_wal may be a link."""
    return path.parent.parent
