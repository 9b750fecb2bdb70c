"""The catalog of dumps: what is committed, what is being written, what is garbage. Its own order of writes keeps D1 to D5."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from clipper_backup.errors import (
    ClipperError,
    IntegrityError,
    MissingError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from clipper_backup.format import names
from clipper_backup.format.base_documents import BaseObject, BaseSummary
from clipper_backup.format.compression import Meter, decompress_bytes
from clipper_backup.format.documents import DumpDetails, DumpSummary, HoldMark, Intent, StoredObject, decode, encode
from clipper_backup.store.protocol import ObjectInfo, Store, is_key
from clipper_backup.values import BackupId, DumpId, show_time
from clipper_backup.wal_names import Segment

_ID_ATTEMPTS = 60

Opener = Callable[[Iterable[bytes], str], Iterator[bytes]]
"""Makes of the chunks of the object at a key what they were before they were sealed, if they were."""


@dataclass(frozen=True, slots=True)
class Listed:
    """All objects of one dump id as a listing shows them. `committed` when there is a summary."""

    dump_id: DumpId
    objects: tuple[ObjectInfo, ...] = field(default=())

    @property
    def committed(self) -> bool:
        """Whether its backup.json exists."""
        return any(info.key == names.dump_key(self.dump_id, names.SUMMARY) for info in self.objects)

    @property
    def last_written_at(self) -> datetime:
        """Last-Modified of its newest object, by the store's clock."""
        return max(info.modified_at for info in self.objects)

    @property
    def stored_bytes(self) -> int:
        """Size of all its objects."""
        return sum(info.size_bytes for info in self.objects)


def list_dumps(store: Store) -> list[Listed]:
    """Every dump id that has objects, oldest first, from one listing."""
    found: dict[DumpId, list[ObjectInfo]] = {}
    for info in store.list(names.DATABASE_FOLDER):
        if (parsed := names.parse_dump_key(info.key)) is not None:
            found.setdefault(parsed.dump_id, []).append(info)
    return [Listed(dump_id, tuple(found[dump_id])) for dump_id in sorted(found)]


def lost_objects(listed: Listed, summary: DumpSummary) -> str | None:
    """What a dump no longer has of what its summary commits, as far as a listing shows it; None when all is there."""
    present = {info.key: info.size_bytes for info in listed.objects}
    lost = [
        f"{stored.key} is missing from the store"
        if stored.key not in present
        else f"{stored.key} has {present[stored.key]} bytes, {stored.size_bytes} were committed"
        for stored in summary.objects
        if present.get(stored.key) != stored.size_bytes
    ]
    return lost[0] + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else "") if lost else None


def is_ahead(dump_id: DumpId, moment: datetime) -> bool:
    """Whether no dump begun at *moment* gets so late an id: a clock runs wrong, or ran wrong when that dump was taken."""
    return (dump_id.at - DumpId.at_time(moment).at).total_seconds() >= _ID_ATTEMPTS


def read_summary(store: Store, dump_id: DumpId, trusted: Sequence[str] = (), repository_id: str = "") -> DumpSummary:
    """A committed dump's summary; MissingError when there is no such dump, IntegrityError when it is damaged.

    With *trusted* public keys, UntrustedError unless one of them signed it, and for the repository with this id.
    """
    key = names.dump_key(dump_id, names.SUMMARY)
    try:
        data = store.get(key)
    except ObjectMissingError as error:
        raise MissingError(f"there is no dump {dump_id}", hints=["`clipper-backup dump list` shows them"]) from error
    if trusted:
        signature = names.dump_key(dump_id, names.SIGNATURE)
        check_signature(store, signature, data, trusted, f"the dump {dump_id}", f"… {dump_id}")
    with explained_damage():
        summary = decode(data, DumpSummary, key)
        if summary.id != str(dump_id):
            raise IntegrityError(f"{key} belongs to the dump {summary.id}, not to {dump_id}")
        if trusted and summary.repository_id != repository_id:
            raise UntrustedError(
                f"{key} was signed for another repository: {summary.repository_id}, this is {repository_id}",
                hints=["somebody copied it here; use one signing key for one repository"],
            )
        archives = [stored.database for stored in summary.objects if stored.role == "database"]
        whole = archives and None not in archives and archives == summary.databases and len(set(archives)) == len(archives)
        if not whole or summary.part("globals") is None or summary.part("details") is None:
            raise IntegrityError(f"{key} is damaged: it does not commit one archive of each database, globals and details")
        for stored in summary.objects:
            if (parsed := names.parse_dump_key(stored.key)) is None or parsed.dump_id != dump_id or not is_key(stored.key):
                raise IntegrityError(f"{key} is damaged: {stored.key!r} is no object of this dump")
    return summary


class UntrustedError(IntegrityError):
    """A dump or base backup that may be whole, but that no trusted key has signed."""


def check_signature(store: Store, key: str, document: bytes, trusted: Sequence[str], what: str, command: str) -> None:
    """UntrustedError unless the object at *key* is a signature of *document* by one of the *trusted* keys.

    *what* is signed (`the dump …`), *command* takes it without, with `--unsigned` behind it.
    """
    from clipper_backup.format.signing import SIGNATURE_BYTES, signer  # noqa: PLC0415  30 ms that only signed ones need

    hints = ["somebody other than the trusted signer may have written it: see who could write into the store"]
    try:
        signature = store.get(key, length=SIGNATURE_BYTES + 1)
    except ObjectMissingError:
        hints.append(f"if it was made before signing was switched on: `{command} --unsigned` takes it")
        told = f"{what} is not signed, and SIGNATURE_KEYS (or SIGNING_KEY_FILE) asks for it"
        raise UntrustedError(told, hints=hints) from None
    if signer(document, signature, trusted) is None:
        hints.append("if the signing key was changed: SIGNATURE_KEYS takes the old public key beside the new one")
        raise UntrustedError(f"{what} is signed by no key that is trusted, or was changed since", hints=hints)


def find_dump(store: Store, wanted: str) -> DumpId:
    """The dump that a person means: an id, or `latest` for the newest committed one."""
    if wanted != "latest":
        return DumpId.parse(wanted)
    found = newest(list_dumps(store))
    if found is None:
        raise MissingError(f"there is no dump in {store.url}", hints=["`clipper-backup dump create` makes one"])
    return found


def read_details(store: Store, summary: DumpSummary, opened: Opener) -> DumpDetails:
    """What was recorded on the dump's snapshots, *opened* when it is sealed. IntegrityError when it is not what was committed."""
    committed = summary.part("details")
    if committed is None:
        raise IntegrityError(f"the dump {summary.id} commits no details")
    with explained_damage():
        data = read_object(store, summary, committed.key)
        plain = b"".join(opened([data], committed.key))
        details = decode(decompress_bytes(plain, committed.key), DumpDetails, committed.key)
        if details.id != summary.id:
            raise IntegrityError(f"{committed.key} belongs to the dump {details.id}")
    return details


def read_object(store: Store, summary: DumpSummary, key: str) -> bytes:
    """A small committed object, checked against the summary's size and SHA-256."""
    return b"".join(read_checked(store, summary, key))


def read_checked(store: Store, summary: DumpSummary, key: str) -> Iterator[bytes]:
    """Stream a committed object; after its last byte IntegrityError when size or SHA-256 are not the committed ones."""
    return read_committed(store, next(o for o in summary.objects if o.key == key), LOST_HINTS)


def read_committed(store: Store, committed: StoredObject | BaseObject, hints: Sequence[str]) -> Iterator[bytes]:
    """Stream an object that a summary of any kind commits, as in `read_checked`; *hints* say what to do when it is lost."""
    key, meter = committed.key, Meter()
    try:
        yield from meter.pass_through(store.get_stream(key))
    except ObjectMissingError as error:
        raise IntegrityError(f"{key} is missing from the store", hints=hints) from error
    if meter.size_bytes != committed.size_bytes:
        raise IntegrityError(f"{key} has {meter.size_bytes} bytes, {committed.size_bytes} were committed", hints=hints)
    if meter.sha256 != committed.sha256:
        raise IntegrityError(f"{key} does not hold the bytes that were committed (SHA-256 differs)", hints=hints)


LOST_HINTS = ("use another dump: `clipper-backup dump list`", "with versioning on, the bucket may still hold the old object")


@contextmanager
def explained_damage() -> Iterator[None]:
    """Say what to do about any damage found inside."""
    try:
        yield
    except IntegrityError as error:
        if error.hints:
            raise
        raise IntegrityError(error.message, hints=LOST_HINTS) from error


def other_bytes(key: str) -> StoreError:
    """For an object that was written and is not what is read."""
    return StoreError(
        f"{key}: the store gave back other bytes than it was given",
        hints=["`clipper-backup bucket check` tries whether the store keeps what it is given, over the same network"],
    )


class DumpWriter:
    """One dump being written, from taking its id to its commit."""

    def __init__(self, store: Store, dump_id: DumpId, intent: bytes) -> None:
        self._store = store
        self.dump_id = dump_id
        self._intent = intent
        self._left_alone = False

    @classmethod
    def take_id(cls, store: Store, intent: Intent) -> "DumpWriter":
        """Take the first free id from the store's time on. ClipperError when that is older than a committed dump."""
        last = newest(list_dumps(store))
        moment = store.now()
        dump_id = DumpId.at_time(moment)
        if last is not None and is_ahead(last, moment):
            raise ClipperError(
                f"the store's clock says {show_time(moment)}, but the newest dump is {last}",
                hints=[
                    "if the store's clock runs wrong, correct it",
                    f"if a clock ran wrong when that dump was taken: `clipper-backup dump delete {last}`",
                ],
            )
        if last is not None and dump_id <= last:
            dump_id = last.next()
        for _ in range(_ID_ATTEMPTS):
            writer = cls(store, dump_id, encode(intent))
            with suppress(ObjectExistsError):
                try:
                    store.put(names.dump_key(dump_id, names.INTENT), encode(intent), create=True)
                    if writer.is_ours():
                        return writer
                except ObjectExistsError:
                    raise
                except BaseException:  # the caller has no writer yet that it could abandon
                    writer.abandon()
                    raise
            dump_id = dump_id.next()
        raise ClipperError(f"{_ID_ATTEMPTS} dump ids from {DumpId.at_time(moment)} on are taken", hints=["wait a minute"])

    def is_ours(self) -> bool:
        """Whether the id is: a store whose create is not exclusive gives one to two, and the bytes that stayed decide."""
        try:
            return self._store.get(names.dump_key(self.dump_id, names.INTENT)) == self._intent
        except ObjectMissingError:
            return False

    def commit(self, summary: DumpSummary, sign: Callable[[bytes], bytes] | None = None) -> None:
        """Make the dump exist, signed by *sign*. Every object must have been read back before (D1)."""
        document = encode(summary)
        if sign is not None:
            key, signature = names.dump_key(self.dump_id, names.SIGNATURE), sign(document)
            self._store.put(key, signature)
            if self._store.get(key) != signature:
                raise other_bytes(key)
        key = names.dump_key(self.dump_id, names.SUMMARY)
        # A request that was sent may be served after we gave it up, whatever a repetition of it was answered: nothing that its
        # summary names may be gone then.
        self._left_alone = self._store.capabilities.writes_late
        try:
            self._store.put(key, document, create=True)
        except ObjectExistsError:
            self._left_alone = True  # somebody else's: nothing under this id is ours to remove
            raise
        except StoreUnavailableError as error:
            told = f"{error.message}; whether {self.dump_id} was committed, `clipper-backup dump list` says"
            raise StoreUnavailableError(told, hints=error.hints) from error
        try:
            stored = self._store.get(key)
        except StoreUnavailableError as error:
            self._left_alone = True  # all it names was read back: it is a dump
            told = f"{error.message}; {self.dump_id} is committed, its summary could not be read back"
            hints = [f"`clipper-backup dump verify {self.dump_id}` reads it", *error.hints]
            raise StoreUnavailableError(told, hints=hints) from error
        except ClipperError:
            self._left_alone = False
            raise
        if stored != document:
            self._left_alone = False
            raise other_bytes(key)

    def abandon(self) -> None:
        """Remove what was written, as far as the store lets us; prune removes the rest later.

        Nothing while a summary may be on its way (D3): should it arrive, it commits a whole dump. Nothing under an id that is
        another's too.
        """
        if self._left_alone:
            return
        with suppress(ClipperError):
            if self.is_ours():
                delete_objects(self._store, self.dump_id)


def delete_objects(store: Store, dump_id: DumpId) -> None:
    """Remove a dump: its summary first, alone, so that a crash leaves garbage and never a dump that lacks parts (D3)."""
    store.delete([names.dump_key(dump_id, names.SUMMARY)])
    keys = names.keys_of(dump_id, (info.key for info in store.list(names.DATABASE_FOLDER)))
    intent = names.dump_key(dump_id, names.INTENT)
    rest = [key for key in keys if key != intent]
    if rest:
        store.delete(rest)
    store.delete([intent])


def held_dumps(store: Store) -> dict[DumpId, HoldMark]:
    """Every hold. One whose mark cannot be read holds all the same."""
    holds = {}
    for info in store.list(names.HOLDS_FOLDER):
        with suppress(UsageError, ObjectMissingError):
            dump_id = DumpId.parse(info.key.removeprefix(names.HOLDS_FOLDER))
            holds[dump_id] = _hold_mark(store.get(info.key), info)
    return holds


def _hold_mark(data: bytes, info: ObjectInfo) -> HoldMark:
    try:
        return decode(data, HoldMark, info.key)
    except (IntegrityError, StoreError):
        return HoldMark(reason="its mark cannot be read", held_by="somebody", held_at=info.modified_at)


def hold_dump(store: Store, dump_id: DumpId, mark: HoldMark) -> None:
    """Keep a dump until it is released. MissingError when there is no such dump, or when it is removed at this moment.

    A removal lists the holds just before it takes the summary: only one that is between these two requests is not seen here.
    """
    read_summary(store, dump_id)
    key = names.hold_key(dump_id)
    store.put(key, encode(mark))
    try:
        read_summary(store, dump_id)
    except MissingError as error:
        store.delete([key])
        raise MissingError(
            f"the dump {dump_id} was removed while it was being held", hints=["`clipper-backup dump list` shows what is there"]
        ) from error


def release_dump(store: Store, dump_id: DumpId) -> None:
    """Take a hold back; MissingError when there is none."""
    key = names.hold_key(dump_id)
    try:
        store.head(key)
    except ObjectMissingError as error:
        hints = ["`clipper-backup dump list` shows which are held"]
        raise MissingError(f"the dump {dump_id} is not held", hints=hints) from error
    store.delete([key])


@dataclass(frozen=True, slots=True)
class Last:
    """The newest committed backup of its kind, or WAL segment, good or not, made by whomever: is it sealed, and signed."""

    id: DumpId | BackupId | Segment
    sealed: bool
    signed: bool

    def or_as_said(self, read: Callable[[], DumpSummary | BaseSummary]) -> "Last":
        """As the names of its objects say, or its summary, when *read* gives one: who takes a signature away hides nothing."""
        try:
            summary = read()
        except ClipperError as error:
            if error.temporary:
                raise
            return self
        return replace(self, sealed=self.sealed or summary.sealed, signed=self.signed or summary.signed_by is not None)


def last_dump(store: Store) -> Last | None:
    """What the next dump is measured by, None before the first.

    It is sealed or signed where the names of its objects say so, or its summary, as far as that can be read.
    StoreUnavailableError while the store does not answer.
    """
    listed = next((listed for listed in reversed(list_dumps(store)) if listed.committed), None)
    if listed is None:
        return None
    sealed = any(names.is_sealed(info.key) for info in listed.objects)
    signed = any(info.key.endswith(names.SIGNATURE) for info in listed.objects)
    return Last(listed.dump_id, sealed, signed).or_as_said(lambda: read_summary(store, listed.dump_id))


def newest(dumps: Sequence[Listed]) -> DumpId | None:
    """The newest committed dump."""
    return next((listed.dump_id for listed in reversed(dumps) if listed.committed), None)
