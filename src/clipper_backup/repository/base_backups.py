"""The catalog of base backups: what is committed, what is good, and which one the next takes its pages from.

What makes one, and keeps B1 to B5, is `base_run`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from msgspec import UnsetType

from clipper_backup.errors import ClipperError, IntegrityError, MissingError, ObjectMissingError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import SOURCES, BaseDetails, BaseObject, BaseSummary, PacksDocument, Role, VerifyMark
from clipper_backup.format.compression import decompress
from clipper_backup.format.documents import NewerError, decode, written_by_newer
from clipper_backup.format.manifest import Head, Manifest, read_manifest
from clipper_backup.format.names import SEALED
from clipper_backup.format.physical_names import PackKey
from clipper_backup.postgres.history import Ancestor
from clipper_backup.repository.dumps import Last, Opener, UntrustedError, check_signature, read_committed
from clipper_backup.repository.lines import Line
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import BackupId, Lsn, Timeline, show_count, show_first

LOST_HINTS = (
    "use another base backup: `clipper-backup base list`",
    "with versioning on, the bucket may still hold the old object",
)
_ROLES: dict[str, Role] = {
    names.MANIFEST: "manifest",
    names.BASE_DETAILS: "details",
    names.PACKS: "packs",
    names.LABEL: "label",
    names.TABLESPACE_MAP: "tablespace_map",
    names.SERVER_MANIFEST: "server_manifest",
}
"""Part of a key -> what backup.json calls it."""
_NEEDED = {"manifest", "details", "packs", "label", "server_manifest"}


@dataclass(frozen=True, slots=True)
class ListedBase:
    """All objects of one id below `base/` as a listing shows them. `committed` when there is a backup.json."""

    backup_id: BackupId
    objects: tuple[ObjectInfo, ...] = field(default=())

    def part(self, part: str) -> ObjectInfo | None:
        """The object of that name; None when it is not listed."""
        key = names.base_key(self.backup_id, part)
        return next((info for info in self.objects if info.key == key), None)

    @property
    def committed(self) -> bool:
        """Whether its backup.json exists."""
        return self.part(names.BASE_SUMMARY) is not None

    @property
    def last_written_at(self) -> datetime:
        """Last-Modified of its newest object, by the store's clock."""
        return max(info.modified_at for info in self.objects)

    @property
    def own_bytes(self) -> int:
        """Size of all its objects; its pages lie in packs."""
        return sum(info.size_bytes for info in self.objects)


def list_base_backups(store: Store) -> list[ListedBase]:
    """Every id below `base/` that has objects, by id, from one listing."""
    found: dict[BackupId, list[ObjectInfo]] = {}
    for info in store.list(names.BASE_FOLDER):
        if (parsed := names.parse_base_key(info.key)) is not None:
            found.setdefault(parsed.backup_id, []).append(info)
    return [ListedBase(backup_id, tuple(found[backup_id])) for backup_id in sorted(found)]


def listed_base(store: Store, backup_id: BackupId) -> ListedBase:
    """One id, by a listing of its own folder."""
    folder = names.base_key(backup_id, "")
    return ListedBase(backup_id, tuple(info for info in store.list(folder) if names.parse_base_key(info.key) is not None))


def list_packs(store: Store) -> dict[PackKey, ObjectInfo]:
    """Every pack that a listing shows."""
    listed = ((names.parse_pack_key(info.key), info) for info in store.list(names.PACKS_FOLDER))
    return {pack: info for pack, info in listed if pack is not None}


def lost_keys(packs: PacksDocument, present: Collection[BackupId]) -> list[str]:
    """The data keys it needs that a listing does not show: without one of them its run's packs are noise."""
    runs = (BackupId.parse(of_run.run) for of_run in packs.runs if of_run.sealed)
    return [_lost(names.data_key_key(run), None, 0) for run in runs if run not in present]


def list_keys(store: Store) -> set[BackupId]:
    """The runs whose data keys a listing shows."""
    listed = (names.parse_data_key_key(info.key) for info in store.list(names.KEYS_FOLDER))
    return {run for run in listed if run is not None}


def role_of(part: str) -> Role:
    """What backup.json calls the object with this part of a key, sealed or not."""
    return _ROLES[part.removesuffix(SEALED)]


def read_base_summary(store: Store, backup_id: BackupId, trusted: Sequence[str] = (), repository_id: str = "") -> BaseSummary:
    """A committed base backup's summary; MissingError when there is no such backup, IntegrityError when it is damaged.

    NewerError when a newer version took it in a way that this one does not know. With *trusted* public keys, UntrustedError
    unless one of them signed it, and for the repository with this id.
    """
    key = names.base_key(backup_id, names.BASE_SUMMARY)
    try:
        data = store.get(key)
    except ObjectMissingError as error:
        raise MissingError(f"there is no base backup {backup_id}", hints=["`clipper-backup base list` shows them"]) from error
    if trusted:
        signature = names.base_key(backup_id, names.BASE_SIGNATURE)
        check_signature(store, signature, data, trusted, f"the base backup {backup_id}", f"… {backup_id}")
    summary = decode(data, BaseSummary, key)
    if summary.id != str(backup_id):
        raise IntegrityError(f"{key} belongs to the base backup {summary.id}, not to {backup_id}", hints=LOST_HINTS)
    if trusted and summary.repository_id != repository_id:
        raise UntrustedError(
            f"{key} was signed for another repository: {summary.repository_id}, this is {repository_id}",
            hints=["somebody copied it here; use one signing key for one repository"],
        )
    if summary.source not in SOURCES:
        raise written_by_newer(key, f"the source {summary.source!r}")
    _check_objects(summary, key, backup_id)
    return summary


def _check_objects(summary: BaseSummary, key: str, backup_id: BackupId) -> None:
    roles = [stored.role for stored in summary.objects if is_known(stored)]
    keys = {stored.key for stored in summary.objects}
    if not _NEEDED.issubset(roles) or len(set(roles)) != len(roles) or len(keys) != len(summary.objects):
        raise IntegrityError(f"{key} is damaged: it does not commit one object of each role", hints=LOST_HINTS)
    for stored in summary.objects:
        parsed = names.parse_base_key(stored.key)
        fits = parsed is not None and parsed.backup_id == backup_id and parsed.part not in names.UNCOMMITTED
        known = None if parsed is None else _ROLES.get(parsed.part.removesuffix(SEALED))
        if not fits or known != (stored.role if is_known(stored) else None):
            raise IntegrityError(f"{key} is damaged: {stored.key!r} is no such object of this base backup", hints=LOST_HINTS)


def is_known(stored: BaseObject) -> bool:
    """Whether this version knows what the object is for. Of another only its bytes are looked at."""
    return stored.role in _ROLES.values()


def plain_part(store: Store, part: BaseObject, opened: Opener) -> Iterator[bytes]:
    """An object that a summary commits, opened and decompressed; it counts only when this ends without an error.

    IntegrityError when it is lost, or not what was committed; AccessError when it is sealed to others.
    """
    passed = 0
    for piece in decompress(opened(read_committed(store, part, LOST_HINTS), part.key), part.key):
        passed += len(piece)
        yield piece
    if passed != part.plain_bytes:
        raise IntegrityError(f"{part.key} decompresses to {passed} bytes, {part.plain_bytes} were committed", hints=LOST_HINTS)


def part_of(summary: BaseSummary, role: Role) -> BaseObject:
    """The object with that role; IntegrityError when the summary commits none."""
    part = summary.part(role)
    if part is None:
        raise IntegrityError(f"the base backup {summary.id} commits no {role}", hints=LOST_HINTS)
    return part


def read_packs(store: Store, summary: BaseSummary) -> PacksDocument:
    """The packs it needs: no key is needed for that. IntegrityError when the object is not what was committed."""
    part = part_of(summary, "packs")
    document = decode(b"".join(plain_part(store, part, lambda chunks, _: iter(chunks))), PacksDocument, part.key)
    if document.id != summary.id:
        raise IntegrityError(f"{part.key} belongs to the base backup {document.id}", hints=LOST_HINTS)
    return document


def read_base_details(store: Store, summary: BaseSummary, opened: Opener) -> BaseDetails:
    """Warnings and fingerprint, opened when sealed."""
    part = part_of(summary, "details")
    details = decode(b"".join(plain_part(store, part, opened)), BaseDetails, part.key)
    if details.id != summary.id:
        raise IntegrityError(f"{part.key} belongs to the base backup {details.id}", hints=LOST_HINTS)
    return details


def manifest_head(summary: BaseSummary) -> Head:
    """What the first line of its manifest must say, but for the size of its stretches, which only that line knows."""
    return Head(
        id=summary.id, repository_id=summary.repository_id, page_bytes=summary.sizes.page_bytes, sealed=summary.sealed
    )  # fmt: skip


def read_entries(store: Store, summary: BaseSummary, opened: Opener) -> Manifest:
    """Its manifest; the lines are a stream, and count only when that ends without an error."""
    part = part_of(summary, "manifest")
    return read_manifest(plain_part(store, part, opened), manifest_head(summary), part.key)


class NewerMark(VerifyMark, kw_only=True, frozen=True):
    """A mark that a newer version wrote. What it found is not known here: no damage, and nothing to rely on; *why* says so."""

    why: str


def read_verify_mark(store: Store, listed: ListedBase) -> VerifyMark | None:
    """What the last `base verify` found; None when there was none. One that cannot be read counts as damage.

    A NewerMark where a newer version looked (P9).
    """
    if listed.part(names.VERIFY) is None:
        return None
    key = names.base_key(listed.backup_id, names.VERIFY)
    try:
        return decode(store.get(key), VerifyMark, key)
    except ObjectMissingError:
        return None
    except NewerError as error:
        return NewerMark(id=str(listed.backup_id), verified_at=listed.last_written_at, share=0, damage=[], why=str(error))
    except ClipperError as error:
        if error.temporary:
            raise
        return VerifyMark(
            id=str(listed.backup_id), verified_at=listed.last_written_at, share=0, damage=[f"{key} cannot be read: {error}"]
        )


def read_marks(store: Store, everyone: Iterable[ListedBase]) -> dict[BackupId, VerifyMark]:
    """What was found in each of *everyone*, also in those that are not committed: what they name may be needed by others."""
    found = ((listed.backup_id, read_verify_mark(store, listed)) for listed in everyone)
    return {backup_id: mark for backup_id, mark in found if mark is not None}


def found_by_others(backup_id: BackupId, marks: Mapping[BackupId, VerifyMark]) -> list[str]:
    """What verifies of other base backups found since this one was looked at itself, or without that since it was begun."""
    own = marks.get(backup_id)
    since = backup_id.at if own is None or isinstance(own.begun_at, UnsetType) else own.begun_at
    return [text for other, mark in marks.items() if other != backup_id and mark.verified_at > since for text in mark.damage]


def lost_parts(listed: ListedBase, summary: BaseSummary) -> list[str]:
    """What is gone of what its summary commits, or has another size, as far as a listing shows it."""
    present = {info.key: info.size_bytes for info in listed.objects}
    return [_lost(part.key, present.get(part.key), part.size_bytes) for part in summary.objects
            if present.get(part.key) != part.size_bytes]  # fmt: skip


def lost_packs(packs: PacksDocument, present: Mapping[PackKey, ObjectInfo]) -> list[str]:
    """The packs it needs that a listing does not show, or not with their size."""
    lost = []
    for pack, size_bytes in needed_packs(packs):
        info = present.get(pack)
        if info is None or info.size_bytes != size_bytes:
            lost.append(_lost(str(pack), None if info is None else info.size_bytes, size_bytes))
    return lost


def needed_packs(packs: PacksDocument) -> Iterator[tuple[PackKey, int]]:
    """Each pack that a backup needs, with its size in bytes."""
    for of_run in packs.runs:
        run = BackupId.parse(of_run.run)
        for number, size_bytes, *_ in of_run.packs:
            yield PackKey(run, number), size_bytes


def _lost(key: str, found: int | None, size_bytes: int) -> str:
    if found is None:
        return f"{key} is missing from the store"
    return f"{key} has {found} bytes, {size_bytes} were committed"


def last_base_backup(store: Store) -> Last | None:
    """What the next base backup is measured by, as `last_dump` is for dumps; None before the first."""
    listed = next((listed for listed in reversed(list_base_backups(store)) if listed.committed), None)
    if listed is None:
        return None
    sealed = any(listed.part(part + SEALED) is not None for part in names.SEALABLE)
    signed = listed.part(names.BASE_SIGNATURE) is not None
    return Last(listed.backup_id, sealed, signed).or_as_said(lambda: read_base_summary(store, listed.backup_id))


@dataclass(frozen=True, slots=True)
class BaseEntry:
    """One id of the catalog. `summary` is None while it is unfinished, or when it cannot be read.

    `problem` says why a committed one is not good; `untrusted` when that is because no trusted key signed it; `unreadable`
    when a newer version wrote it, or looked at it last, or the store does not let us read it: it may be good all the same.
    """

    listed: ListedBase
    summary: BaseSummary | None
    problem: str | None
    verified: VerifyMark | None = None
    untrusted: bool = False
    unreadable: bool = False

    @property
    def good(self) -> bool:
        """Whether a restore may count on it, as far as its documents and listings show."""
        return self.summary is not None and self.problem is None


class BaseCatalog:
    """The base backups of a repository; *trusted* keys must have signed them. Packs and keys are listed once."""

    def __init__(self, store: Store, repository_id: str, trusted: Sequence[str] = ()) -> None:
        self._store, self._repository_id, self._trusted = store, repository_id, trusted
        self._packs: dict[PackKey, ObjectInfo] | None = None
        self._keys: set[BackupId] | None = None
        self._marks: dict[BackupId, VerifyMark] | None = None

    @property
    def marks(self) -> Mapping[BackupId, VerifyMark]:
        """What was found in each, as it was read with the entries."""
        if self._marks is None:
            self._marks = read_marks(self._store, list_base_backups(self._store))
        return self._marks

    def entries(self) -> list[BaseEntry]:
        """Every id, by id."""
        everyone = list_base_backups(self._store)
        self._marks = read_marks(self._store, everyone)
        return [self.entry(listed) for listed in everyone]

    def entry(self, listed: ListedBase) -> BaseEntry:
        """What there is to say of one; a damaged one is no error here.

        What a verify found in a pack holds for each backup that needs it, until a verify of its own that began later.
        """
        return self._shared(self._own(listed, self.marks.get(listed.backup_id)), self.marks)

    def _own(self, listed: ListedBase, mark: VerifyMark | None) -> BaseEntry:
        """What its own objects and mark say."""
        if not listed.committed:
            return BaseEntry(listed, None, None)
        try:
            summary = read_base_summary(self._store, listed.backup_id, self._trusted, self._repository_id)
            problem = self._problem(listed, summary, mark)
            if isinstance(mark, NewerMark):
                return BaseEntry(listed, summary, problem or mark.why, unreadable=problem is None)
            return BaseEntry(listed, summary, problem, mark)
        except UntrustedError as error:
            return BaseEntry(listed, None, str(error), untrusted=True)
        except (IntegrityError, MissingError) as error:
            return BaseEntry(listed, None, str(error))
        except ClipperError as error:
            if error.temporary:
                raise
            return BaseEntry(listed, None, str(error), unreadable=True)

    def _shared(self, entry: BaseEntry, marks: Mapping[BackupId, VerifyMark]) -> BaseEntry:
        if not entry.good or entry.summary is None:
            return entry
        damaged = names.packs_named(found_by_others(entry.listed.backup_id, marks))
        if damaged:
            hit = [str(pack) for pack, _ in needed_packs(read_packs(self._store, entry.summary)) if pack in damaged]
            if hit:
                return replace(entry, problem=f"the verify of another base backup found damage in {show_first(hit)}")
        return entry

    def _problem(self, listed: ListedBase, summary: BaseSummary, mark: VerifyMark | None) -> str | None:
        if lost := lost_parts(listed, summary):
            return show_first(lost)
        if self._packs is None:
            self._packs = list_packs(self._store)
        needed = read_packs(self._store, summary)
        if self._keys is None and any(of_run.sealed for of_run in needed.runs):
            self._keys = list_keys(self._store)
        if lost := [*lost_keys(needed, self._keys or ()), *lost_packs(needed, self._packs)]:
            return show_first(lost)
        if mark is not None and mark.damage:
            return f"the last verify found damage: {show_first(mark.damage)}"
        return damaged_when_taken(summary)


def damaged_when_taken(summary: BaseSummary) -> str | None:
    """Why a base backup is not good although all of it is as it was committed; None where there is no such reason."""
    count = summary.pages.damaged
    return f"{show_count(count, 'page')} had wrong checksums when it was taken" if count else None


def is_on(line: Line, summary: BaseSummary) -> bool:
    """Whether a base backup is a copy of a server on that line."""
    return line.holds_backup(Timeline(summary.timeline), Lsn.parse(summary.stop_lsn))


def recorded_line(summary: BaseSummary) -> Line | None:
    """The line of its own timeline as a base backup has it; None where it does not say."""
    if isinstance(summary.ancestors, UnsetType):
        return None
    return Line.of(
        Timeline(summary.timeline), [Ancestor(Timeline(number), Lsn.parse(left_at)) for number, left_at in summary.ancestors]
    )


def choose_parent(entries: Iterable[BaseEntry], line: Line, system_id: str, recipients: Collection[str]) -> BaseSummary | None:
    """The newest good base backup on the server's line, by start LSN (B3), whose pages open to all *recipients* of the next (P5).

    A run's key is sealed to the recipients of its time. From a parent that lacks one of *recipients* nothing may be taken: who
    holds that key alone could not open the backup that says it is sealed to him.
    """
    fit = [
        entry.summary
        for entry in entries
        if entry.good
        and entry.summary is not None
        and entry.summary.system_id == system_id
        and entry.summary.sealed == bool(recipients)
        and set(recipients) <= set(entry.summary.recipients)
        and is_on(line, entry.summary)
    ]
    return max(fit, key=lambda summary: (Lsn.parse(summary.start_lsn), summary.id), default=None)
