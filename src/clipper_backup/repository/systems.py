"""`systems/`: the one cluster whose WAL a repository takes, by its system identifiers over time (R2)."""

from collections.abc import Sequence
from contextlib import suppress

from clipper_backup.errors import IntegrityError, ObjectExistsError, ObjectMissingError
from clipper_backup.format.base_documents import SystemEntry
from clipper_backup.format.documents import Repository, decode, encode
from clipper_backup.format.physical_names import SYSTEMS_FOLDER, parse_system_key, system_key
from clipper_backup.store.protocol import Store

_ID_BYTES = 16


def physical_id(repository: Repository) -> bytes:
    """The 16 bytes that headers of segments and packs have; IntegrityError for a repository whose id is none of ours."""
    try:
        found = bytes.fromhex(repository.id)
    except ValueError:
        found = b""
    if len(found) != _ID_BYTES or found.hex() != repository.id:
        raise IntegrityError(
            f"the id of the repository is {repository.id!r}, not 32 hexadecimal digits: it can hold nothing but dumps",
            hints=["use a new prefix for WAL and base backups"],
        )
    return found


def list_systems(store: Store) -> list[SystemEntry]:
    """Every entry, oldest first; IntegrityError for one that cannot be read."""
    keys = sorted(info.key for info in store.list(SYSTEMS_FOLDER) if parse_system_key(info.key) is not None)
    return [_read(store, key) for key in keys]


def accept_system(store: Store, here: SystemEntry) -> SystemEntry:
    """The repository's entry for a server; the first physical write of all makes it, of the server that *here* describes.

    IntegrityError when the repository is another cluster's, or its segments have another size: nothing may be written then.
    """
    try:
        first = _read(store, system_key(1))
    except ObjectMissingError:
        first = _create(store, here)
    if _is(first, here):
        return first
    entries = list_systems(store)
    found = next((entry for entry in reversed(entries) if _is(entry, here)), None)
    if found is None:
        raise _refusal(store, entries, here)
    return found


def add_system(store: Store, here: SystemEntry) -> SystemEntry:
    """Make *here* the newest system, after an upgrade. Of two at once one wins; the other is refused unless it is the same."""
    entries = list_systems(store)
    if entries and _is(entries[-1], here):
        return entries[-1]
    number = entries[-1].number + 1 if entries else 1
    entry = _create(store, here, number)
    if not _is(entry, here):
        raise _refusal(store, [*entries, entry], here)
    return entry


def _create(store: Store, here: SystemEntry, number: int = 1) -> SystemEntry:
    """The entry of that number: ours, or that of whoever came first."""
    key = system_key(number)
    with suppress(ObjectExistsError):
        store.put(key, encode(_numbered(here, number)), create=True)
    return _read(store, key)


def _numbered(here: SystemEntry, number: int) -> SystemEntry:
    return SystemEntry(
        number=number,
        system_id=here.system_id,
        segment_bytes=here.segment_bytes,
        server_major=here.server_major,
        added_at=here.added_at,
        added_by=here.added_by,
    )


def _read(store: Store, key: str) -> SystemEntry:
    entry = decode(store.get(key), SystemEntry, key)
    if parse_system_key(key) != entry.number:
        raise IntegrityError(f"{key} is damaged: it says that its number is {entry.number}")
    return entry


def _is(entry: SystemEntry, here: SystemEntry) -> bool:
    return (entry.system_id, entry.segment_bytes) == (here.system_id, here.segment_bytes)


def _refusal(store: Store, entries: Sequence[SystemEntry], here: SystemEntry) -> IntegrityError:
    if any(entry.system_id == here.system_id for entry in entries):
        sizes = ", ".join(str(entry.segment_bytes) for entry in entries if entry.system_id == here.system_id)
        return IntegrityError(
            f"{store.url} holds segments of {sizes} bytes of the system {here.system_id}, this server has {here.segment_bytes}",
            hints=["their size was changed by pg_resetwal: archive into a new prefix from now on"],
        )
    known = ", ".join(entry.system_id for entry in entries)
    return IntegrityError(
        f"{store.url} is the repository of another cluster: of the system {known}, this server is {here.system_id}",
        hints=[
            "two clusters need two prefixes: see BACKUP_URL",
            "after pg_upgrade the first `clipper-backup base create --new-system` adds the new system",
        ],
    )
