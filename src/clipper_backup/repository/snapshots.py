"""Volume snapshots in the repository: the mark of a run, what it keeps, the record that commits it (docs/design/snapshots.md).

The volumes themselves lie in the cluster. Here lies what no restore can do without, and what keeps their WAL.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from clipper_backup.errors import ClipperError, IntegrityError, MissingError, ObjectMissingError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseObject, Role
from clipper_backup.format.documents import HoldMark, decode, encode
from clipper_backup.format.names import SEALED
from clipper_backup.format.snapshot_documents import Snapshot, SnapshotTaking
from clipper_backup.repository.base_run import keep_object
from clipper_backup.repository.data_keys import Sealer
from clipper_backup.repository.dumps import UntrustedError, check_signature, other_bytes
from clipper_backup.repository.leases import Lease
from clipper_backup.repository.root import check_same_repository
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId

_HINTS = ("`clipper-backup snapshot list` shows them",)


@dataclass(frozen=True, slots=True)
class ListedSnapshot:
    """What a listing shows of one id."""

    snapshot_id: BackupId
    objects: tuple[ObjectInfo, ...]

    @property
    def committed(self) -> bool:
        """Whether its record is there."""
        return self._has(names.snapshot_key(self.snapshot_id))

    @property
    def taking(self) -> bool:
        """Whether a run lives, or died before its end."""
        return self._has(names.snapshot_part_key(self.snapshot_id, names.TAKING))

    def _has(self, key: str) -> bool:
        return any(info.key == key for info in self.objects)


def list_snapshots(store: Store) -> list[ListedSnapshot]:
    """All that have any object, oldest first."""
    found: dict[BackupId, list[ObjectInfo]] = {}
    for info in store.list(names.SNAPSHOTS_FOLDER):
        parsed = names.parse_snapshot_key(info.key)
        if parsed is not None:
            found.setdefault(parsed[0], []).append(info)
    return [ListedSnapshot(snapshot_id, tuple(found[snapshot_id])) for snapshot_id in sorted(found)]


def read_snapshot(store: Store, snapshot_id: BackupId, trusted: Sequence[str] = (), repository_id: str = "") -> Snapshot:
    """A committed record; MissingError where there is none, IntegrityError when it is damaged or another's.

    With *trusted* public keys, UntrustedError unless one of them signed it, and for the repository with this id.
    """
    key = names.snapshot_key(snapshot_id)
    try:
        data = store.get(key)
    except ObjectMissingError as error:
        raise MissingError(f"there is no volume snapshot {snapshot_id}", hints=_HINTS) from error
    if trusted:
        signature = names.snapshot_signature_key(snapshot_id)
        check_signature(store, signature, data, trusted, f"the volume snapshot {snapshot_id}", f"… {snapshot_id}")
    record = decode(data, Snapshot, key)
    if record.id != str(snapshot_id):
        raise IntegrityError(f"{key} belongs to the volume snapshot {record.id}", hints=_HINTS)
    if trusted and record.repository_id != repository_id:
        raise UntrustedError(
            f"{key} was signed for another repository: {record.repository_id}, this is {repository_id}",
            hints=["somebody copied it here; use one signing key for one repository"],
        )
    return record


def read_taking(store: Store, snapshot_id: BackupId) -> SnapshotTaking:
    """What a run has said before it began; ObjectMissingError, IntegrityError when it is damaged."""
    key = names.snapshot_part_key(snapshot_id, names.TAKING)
    return decode(store.get(key), SnapshotTaking, key)


def hold_snapshot(store: Store, snapshot_id: BackupId, mark: HoldMark) -> None:
    """Hold it; MissingError when it is not there, also when it was removed meanwhile."""
    key = names.base_hold_key(snapshot_id)
    store.put(key, encode(mark))
    try:
        store.head(names.snapshot_key(snapshot_id))
    except ObjectMissingError as error:
        store.delete([key])
        raise MissingError(f"there is no volume snapshot {snapshot_id}", hints=_HINTS) from error


def is_snapshot(store: Store, snapshot_id: BackupId) -> bool:
    """Whether an id is that of a committed volume snapshot."""
    with suppress(ObjectMissingError):
        store.head(names.snapshot_key(snapshot_id))
        return True
    return False


def remove_snapshot(store: Store, snapshot_id: BackupId, check: Callable[[], None]) -> None:
    """Remove the record, and then the rest; *check* raises when the lease is lost. The volumes are gone by then."""
    taking = names.snapshot_part_key(snapshot_id, names.TAKING)
    parts = [info.key for info in store.list(names.snapshot_part_key(snapshot_id, "")) if info.key != taking]
    check()
    store.delete([names.snapshot_key(snapshot_id)])
    store.delete([*parts, names.snapshot_signature_key(snapshot_id)])
    store.delete([taking])  # last: what is left until then is found by it


class SnapshotRun:
    """One that is being taken: what raises before `commit` leaves no record."""

    def __init__(self, store: Store, lease: Lease, sealer: Sealer | None, taking: SnapshotTaking) -> None:
        """Write its mark; ObjectExistsError when the id is taken."""
        self._store, self._lease, self._sealer = store, lease, sealer
        self.snapshot_id = BackupId.parse(taking.id)
        self._taking = names.snapshot_part_key(self.snapshot_id, names.TAKING)
        store.put(self._taking, encode(taking), create=True)

    def keep(self, part: str, role: Role, plain: Iterable[bytes]) -> BaseObject:
        """Write one of the objects, compressed, sealed where this run seals, and read it back."""
        key = names.snapshot_part_key(self.snapshot_id, part if self._sealer is None else part + SEALED)
        return keep_object(self._store, key, role, plain, self._sealer)

    def commit(self, record: Snapshot, sign: Callable[[bytes], bytes] | None = None) -> None:
        """Make it exist. LeaseLostError, IntegrityError (another repository by now) or StoreError: there is none then."""
        self._lease.check()
        check_same_repository(self._store, record.repository_id)
        document = encode(record)
        if sign is not None:
            self._put_exactly(names.snapshot_signature_key(self.snapshot_id), sign(document))
        self._put_exactly(names.snapshot_key(self.snapshot_id), document, create=True)
        with suppress(ClipperError):  # beside a record it says nothing; the next run removes it
            self._store.delete([self._taking])

    def withdraw(self) -> None:
        """See to it that there is no record, before the volumes go: one whose writing ended in an error may be there."""
        self._store.delete([names.snapshot_key(self.snapshot_id)])

    def abandon(self) -> None:
        """Remove all that was written, the mark last: nothing is left in the cluster."""
        remove_snapshot(self._store, self.snapshot_id, self._lease.check)

    def _put_exactly(self, key: str, data: bytes, *, create: bool = False) -> None:
        self._store.put(key, data, create=create)
        if self._store.get(key) != data:
            raise other_bytes(key)
