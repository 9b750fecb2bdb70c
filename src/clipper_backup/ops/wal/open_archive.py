"""The archive that a server writes into, by the settings: whose it is, how it is sealed and signed."""

from contextlib import suppress
from typing import TYPE_CHECKING

from clipper_backup.config import Settings
from clipper_backup.errors import IntegrityError, NoRepositoryError, ObjectMissingError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import SystemEntry
from clipper_backup.format.names import is_sealed
from clipper_backup.format.wal_objects import HEADER_BYTES_MAX, decode_object
from clipper_backup.ops.keys import check_meant, opener_of, sealer_of, signer_of
from clipper_backup.ops.work import SOFTWARE, Work, this_process
from clipper_backup.postgres.wal_pages import WalLayout
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.systems import accept_system, physical_id
from clipper_backup.repository.wal_archive import ArchiveKeys, WalArchive
from clipper_backup.store.protocol import Store
from clipper_backup.wal_names import Segment

if TYPE_CHECKING:
    from clipper_backup.repository.dumps import Last


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


def accept(work: Work, layout: WalLayout, before: Segment | None = None) -> SystemEntry:
    """Make sure that the repository is that server's; IntegrityError when it is another cluster's (R2).

    UsageError when its WAL was sealed or signed until now, and nobody said that it no longer is to be (K2). *before* is the
    segment before the one to be archived, which is asked for first.
    """
    settings = work.settings
    if not settings.encryption_recipients:  # whoever seals, or says `none`, pays nothing for the question

        def last() -> "Last | None":
            return _until_now(work.store, str(layout.system_id), layout.segment_bytes, before)

        check_meant(settings, sealer_of(settings), signer_of(settings), "WAL segment", last)
    here = SystemEntry(
        number=1,
        system_id=str(layout.system_id),
        segment_bytes=layout.segment_bytes,
        server_major=layout.server_major,
        added_at=work.clock.now(),
        added_by=f"{SOFTWARE} at {this_process()}",
    )
    return accept_system(work.store, here)


def _until_now(store: Store, system_id: str, segment_bytes: int, before: Segment | None) -> "Last | None":
    """How *before* is stored, by one request where it lies there plain; else the newest segment of all, None without any."""
    from clipper_backup.repository.dumps import Last  # noqa: PLC0415  whoever seals, or says `none`, is not asked
    from clipper_backup.repository.wal_catalog import WalCatalog  # noqa: PLC0415  the same

    if before is not None:
        with suppress(ObjectMissingError):
            return _plain(store, before, keys.archive_key(system_id, before.name, keys.STORED))
    catalog = WalCatalog(store, system_id, segment_bytes)
    for timeline in reversed(catalog.timelines()):
        newest = catalog.newest(timeline)
        stored = None if newest is None else catalog.segments(timeline, newest.folder)[newest].stored
        if newest is not None and stored is not None:
            return Last(newest, sealed=True, signed=False) if is_sealed(stored.key) else _plain(store, newest, stored.key)
    return None


def _plain(store: Store, segment: Segment, key: str) -> "Last":
    """What the header of a segment that is not sealed says; a damaged one says nothing."""
    from clipper_backup.repository.dumps import Last  # noqa: PLC0415  as above

    data, signed = store.get(key, length=HEADER_BYTES_MAX), False
    with suppress(IntegrityError):
        signed = decode_object([data], key)[0].signature is not None
    return Last(segment, sealed=False, signed=signed)
