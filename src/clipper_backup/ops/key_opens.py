"""The newest sealed thing of each kind that a repository holds, and how one key alone opens it: quickly, so a part of each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

from clipper_backup.errors import AccessError, IntegrityError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import BaseSummary, SystemEntry
from clipper_backup.format.compression import decompress
from clipper_backup.format.documents import DumpSummary, Repository
from clipper_backup.format.manifest import File
from clipper_backup.format.names import SEALED
from clipper_backup.format.sealing import HEAD_BYTES, Identity, unseal_head
from clipper_backup.format.wal_objects import check_header, decode_object, place_of
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.dump.read import good_dumps
from clipper_backup.ops.keys import opened_with
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import plain_part, read_entries
from clipper_backup.repository.data_keys import DataKeys
from clipper_backup.repository.dumps import LOST_HINTS, list_dumps, read_details
from clipper_backup.repository.pack_reader import PackReader
from clipper_backup.repository.systems import list_systems
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_survey import Listings
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId, show_count
from clipper_backup.wal_names import Segment

Kind = Literal["dump", "base_backup", "wal"]


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest of a kind: `name` is an id, or a segment's name; `at` when it was taken, or stored; `part` what is opened of it.

    `open` opens it with one identity: AccessError when that is not one that it is sealed to, IntegrityError when it is damaged.
    `recipients` are those that it names, none where it cannot say.
    """

    kind: Kind
    name: str
    at: datetime
    part: str
    objects: int
    recipients: tuple[str, ...]
    open: Callable[[Identity], None]

    @property
    def title(self) -> str:
        """For people."""
        return {"dump": "", "base_backup": "the base backup ", "wal": "the WAL segment "}[self.kind] + self.name


def newest_sealed(work: Work, repository: Repository) -> tuple[list[Newest], list[str]]:
    """The newest good sealed dump and base backup, and the newest sealed segment; and, for people, what is newest and not sealed.

    Of WAL only the last segment of each timeline is looked at.
    """
    found: list[Newest] = []
    plain: list[str] = []
    for sealed, unsealed in (_dump(work), _base_backup(work), _segment(work.store, repository)):
        if sealed is not None:
            found.append(sealed)
        elif unsealed:
            plain.append(unsealed)
    return found, plain


def _dump(work: Work) -> tuple[Newest | None, str]:
    good = good_dumps(work, list_dumps(work.store))
    last = next(good, None)
    if last is None:
        return None, ""
    newest = last if last.sealed else next((summary for summary in good if summary.sealed), None)
    if newest is None:
        return None, f"the newest good dump, {last.id}"
    count = len(newest.objects)
    opened = partial(_open_dump, work.store, newest)
    return (
        Newest("dump", newest.id, newest.taken_at, show_count(count, "object"), count, tuple(newest.recipients), opened),
        "",
    )


def _open_dump(store: Store, summary: DumpSummary, identity: Identity) -> None:
    """Its details whole, of every other object the beginning."""
    opener = partial(opened_with, [identity])
    read_details(store, summary, opener)
    for stored in summary.objects:
        if stored.role != "details":
            try:
                next(decompress(opener(store.get_stream(stored.key), stored.key), stored.key), None)
            except AccessError as error:
                raise IntegrityError(
                    f"{stored.key} does not open with the key that opens {summary.id}'s details: its head is damaged",
                    hints=LOST_HINTS,
                ) from error
            except IntegrityError as error:
                raise IntegrityError(error.message, hints=LOST_HINTS) from error


def _base_backup(work: Work) -> tuple[Newest | None, str]:
    good = [shown.entry.summary for shown in base_catalog(work) if shown.entry.good and shown.entry.summary is not None]
    if not good:
        return None, ""
    newest = next((summary for summary in reversed(good) if summary.sealed), None)
    if newest is None:
        return None, f"the newest good base backup, {good[-1].id}"
    opened = partial(_open_base_backup, work.store, newest)
    at = BackupId.parse(newest.id).at
    return Newest("base_backup", newest.id, at, "its data key and a frame", 0, tuple(newest.recipients), opened), ""


def _open_base_backup(store: Store, summary: BaseSummary, identity: Identity) -> None:
    """The key of its own run, the details whole, the beginning of its manifest, and the first frame that this names."""
    opener = partial(opened_with, [identity])
    data_keys = DataKeys(store, summary.repository_id, opener)
    data_keys.cipher(BackupId.parse(summary.id))
    for part in summary.objects:
        if part.role == "details":
            for _ in plain_part(store, part, opener):
                pass
    manifest = read_entries(store, summary, opener)
    reader = PackReader(store, data_keys, summary.sizes.page_bytes, manifest.head.stretch_bytes)
    for file in (entry.part for entry in manifest if isinstance(entry, File)):
        if file.small is not None:
            reader.small(file.small, file.size_bytes)
            return
        for reference, size_bytes in reader.stretches_of(file):
            reader.map_of(reference, size_bytes)
            return


def _segment(store: Store, repository: Repository) -> tuple[Newest | None, str]:
    last = list(_last_segments(store))
    sealed = [(info, entry, segment) for info, entry, segment in last if info.key.endswith(SEALED)]
    if not sealed:
        plain = max(last, key=lambda each: each[0].modified_at, default=None)
        return None, "" if plain is None else f"the newest segment of WAL, {plain[2]}"
    info, entry, segment = max(sealed, key=lambda each: each[0].modified_at)
    opened = partial(_open_segment, store, repository, entry, segment, info.key)
    return Newest("wal", segment.name, info.modified_at, "its header", 0, (), opened), ""


def _last_segments(store: Store) -> Iterator[tuple[ObjectInfo, SystemEntry, Segment]]:
    """The last one of each timeline; sealed where it lies there sealed and plain."""
    for entry in list_systems(store):
        listings = Listings(store, entry.system_id, entry.segment_bytes)
        for timeline in WalCatalog(store, entry.system_id, entry.segment_bytes).timelines():
            if (segment := listings.newest(timeline)) is not None:
                stored = listings.objects(segment)
                yield stored.get(keys.STORED + SEALED) or stored[keys.STORED], entry, segment


def _open_segment(
    store: Store, repository: Repository, entry: SystemEntry, segment: Segment, key: str, identity: Identity
) -> None:
    head = unseal_head(store.get(key, length=HEAD_BYTES), [identity], key)
    header, _ = decode_object([head], key)
    place = place_of(segment.name, entry.segment_bytes)
    check_header(
        header, place, system_id=int(entry.system_id), repository_id=bytes.fromhex(repository.id), name=key
    )  # fmt: skip
