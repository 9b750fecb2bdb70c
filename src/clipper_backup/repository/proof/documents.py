"""What the proof reads of a store: documents, and what of them cannot be read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from clipper_backup.errors import ClipperError, IntegrityError, ObjectMissingError, StoreError
from clipper_backup.format import physical_names as names
from clipper_backup.format.documents import HoldMark, NewerError, RetentionMark, VerifyReport, decode
from clipper_backup.format.names import HOLDS_FOLDER, RETENTION, parse_dump_key
from clipper_backup.format.signing import SIGNATURE_BYTES, signer
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, DumpId

T = TypeVar("T")


@dataclass(slots=True)
class Unread:
    """What could not be read, in words, by what nobody knows then: which WAL is needed; which backups; which packs."""

    wal: list[str] = field(default_factory=list)
    backups: list[str] = field(default_factory=list)
    packs: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trust:
    """The repository's id, and whose signatures backups must carry; none: they need not be signed."""

    repository_id: str
    keys: Sequence[str] = ()

    def holds(self, store: Store, signature: str, document: bytes, repository_id: str) -> bool:
        """Whether what lies at the key *signature* lets a summary count, with which *repository_id* it names."""
        if not self.keys:
            return True
        try:
            signed = store.get(signature, length=SIGNATURE_BYTES + 1)
        except ObjectMissingError:
            return False
        return signer(document, signed, self.keys) is not None and repository_id == self.repository_id


def unless_unread(read: Callable[[], T], unread: list[str]) -> T | None:
    """What *read* returns; None for what is gone, and for what cannot be read, which is in *unread* then.

    A store that does not answer, or refuses, passes through.
    """
    try:
        return read()
    except ObjectMissingError:
        return None
    except (IntegrityError, StoreError) as error:
        if error.temporary:
            raise
        unread.append(str(error))
        return None


def read_holds(store: Store) -> dict[str, HoldMark | None]:
    """What is held, by its id as text; None for a mark that cannot be read: it holds all the same."""
    holds: dict[str, HoldMark | None] = {}
    for info in store.list(HOLDS_FOLDER):
        mark = None
        try:
            mark = decode(store.get(info.key), HoldMark, info.key)
        except ObjectMissingError:
            continue
        except ClipperError as error:
            if error.temporary:
                raise
        holds[info.key.removeprefix(HOLDS_FOLDER)] = mark
    return holds


def read_base_holds(store: Store) -> dict[BackupId, HoldMark | None]:
    """The same, of base backups."""
    holds = ((names.parse_base_hold_key(f"{HOLDS_FOLDER}{text}"), mark) for text, mark in read_holds(store).items())
    return {backup_id: mark for backup_id, mark in holds if backup_id is not None}


def read_damaged_dumps(store: Store) -> set[DumpId]:
    """The dumps in which the last verify found damage; none where its report is lost, damaged, or a newer version's."""
    try:
        report = decode(store.get(names.VERIFY_REPORT), VerifyReport, names.VERIFY_REPORT)
    except (ObjectMissingError, IntegrityError, NewerError):
        return set()
    keys = (parse_dump_key(each.key) for each in report.damage)
    return {key.dump_id for key in keys if key is not None}


def read_mark(store: Store) -> RetentionMark | None:
    """What the last prune left; None before the first. IntegrityError and StoreError as `decode`."""
    try:
        return decode(store.get(RETENTION), RetentionMark, RETENTION)
    except ObjectMissingError:
        return None
