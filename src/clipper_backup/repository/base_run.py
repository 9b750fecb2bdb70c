"""One base backup being made: its order of writes, from intent to commit (docs/design/repository-format.md, steps 1 to 10).

Nothing on the way to a commit needs the right to delete (rule 88).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from clipper_backup.clock import Clock
from clipper_backup.errors import (
    ClipperError,
    IntegrityError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseIntent, BaseObject, BaseSummary, PacksDocument, PruneRecord, Role, Started
from clipper_backup.format.compression import Counter, Meter, compress, decompress
from clipper_backup.format.documents import decode, encode
from clipper_backup.format.names import SEALED
from clipper_backup.repository.adoption import doomed_by
from clipper_backup.repository.base_backups import list_packs, listed_base, lost_parts, needed_packs, role_of
from clipper_backup.repository.base_intents import LiveIntent
from clipper_backup.repository.data_keys import Sealer
from clipper_backup.repository.dumps import other_bytes
from clipper_backup.repository.leases import Lease
from clipper_backup.repository.root import check_same_repository
from clipper_backup.repository.verify_marks import damage_of_taken
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, Timeline, show_first, show_time
from clipper_backup.wal_names import history_name

_AHEAD_SECONDS = 60
_ID_ATTEMPTS = 8
_LEVEL = 3
"""Of zstd, for the documents of a backup: a manifest is small beside what it describes."""

_TAKE_ANOTHER = "take another; when it happens again, see what removes objects: a bucket's rule, another tool, a person"
_TAKEN_IS_DAMAGED = "a `base verify` found it meanwhile: take another, which takes nothing from what is damaged"

Intended = Callable[[BackupId], BaseIntent]


def begin_intent(
    store: Store, clock: Clock, committed: Iterable[BackupId], parent: BackupId | None, intended: Intended
) -> LiveIntent:
    """Step 1: take an id newer than every *committed* one, by the store's clock, and name the parent.

    ObjectMissingError when the parent was deleted before our intent was there: choose again. ClipperError when the clock is
    behind the newest id.
    """
    newest = max(committed, default=None)
    for _ in range(_ID_ATTEMPTS):
        backup_id = BackupId.make(_moment(store, newest))
        with suppress(ObjectExistsError):
            intent = LiveIntent(store, clock, intended(backup_id))
            break
    else:
        raise ClipperError(f"{_ID_ATTEMPTS} ids of base backups are taken", hints=["try again"])
    try:
        if parent is not None:
            store.head(names.base_key(parent, names.BASE_SUMMARY))
    except BaseException:
        intent.withdraw()
        raise
    return intent


def _moment(store: Store, newest: BackupId | None) -> datetime:
    """Now, or the second behind *newest*: of two ids of one second, chance says which is the newer."""
    moment = store.now()
    if newest is None or moment - newest.at >= timedelta(seconds=1):
        return moment
    if (newest.at - moment).total_seconds() >= _AHEAD_SECONDS:
        raise ClipperError(
            f"the store's clock says {show_time(moment)}, but the newest base backup is {newest}",
            hints=[
                "if the store's clock runs wrong, correct it",
                f"if a clock ran wrong when that backup was taken: `clipper-backup base delete {newest}`",
            ],
        )
    return newest.at + timedelta(seconds=1)


def read_prune_records(store: Store) -> list[PruneRecord]:
    """What is doomed. One that cannot be read raises: nobody knows then what may be adopted or committed."""
    found = []
    for info in store.list(names.PRUNE_FOLDER):
        if names.parse_prune_key(info.key) is not None:
            with suppress(ObjectMissingError):  # all of it is gone, or named again
                found.append(decode(store.get(info.key), PruneRecord, info.key))
    return found


def keep_object(store: Store, key: str, role: Role, plain: Iterable[bytes], sealer: Sealer | None) -> BaseObject:
    """Write an object that a summary will commit, compressed, sealed where there is a *sealer*, and read it back.

    StoreError when the store gives back other bytes, or they do not open to what they were.
    """
    counter, meter = Counter(), Meter()
    packed = compress(counter.pass_through(plain), level=_LEVEL)
    store.put_stream(key, meter.pass_through(packed if sealer is None else sealer.seal(packed)))
    _read_back(store, key, meter, counter.size_bytes, sealer)
    return BaseObject(key=key, role=role, size_bytes=meter.size_bytes, plain_bytes=counter.size_bytes, sha256=meter.sha256)


def _read_back(store: Store, key: str, written: Meter, plain_bytes: int, sealer: Sealer | None) -> None:
    meter = Meter()
    chunks = meter.pass_through(store.get_stream(key))
    try:
        opened = decompress(chunks if sealer is None else sealer.unseal(chunks, key), key)
        found_bytes = sum(len(piece) for piece in opened)
    except IntegrityError as error:
        for _ in chunks:
            pass
        if (meter.size_bytes, meter.sha256) != (written.size_bytes, written.sha256):
            raise other_bytes(key) from error
        raise StoreError(f"{key}: what was written cannot be read again: {error}") from error
    if (meter.size_bytes, meter.sha256, found_bytes) != (written.size_bytes, written.sha256, plain_bytes):
        raise other_bytes(key)


class BaseRun:
    """A run whose intent is there. What raises before `commit` leaves garbage, never a backup."""

    def __init__(self, store: Store, intent: LiveIntent, lease: Lease, sealer: Sealer | None) -> None:
        self._store, self._intent, self._lease, self._sealer = store, intent, lease, sealer
        self.backup_id = intent.backup_id
        self._left_alone = False

    def start(self, started: Started) -> None:
        """Step 4: say where the server has begun, so that its WAL stays."""
        self._store.put(names.base_key(self.backup_id, names.STARTED), encode(started), create=True)

    def keep(self, part: str, plain: Iterable[bytes]) -> BaseObject:
        """Step 6: write one of the objects, compressed, sealed where this run seals, and read it back.

        StoreError when the store gives back other bytes, or they do not open to what they were.
        """
        sealer = None if part == names.PACKS else self._sealer
        key = names.base_key(self.backup_id, part if sealer is None else part + SEALED)
        return keep_object(self._store, key, role_of(part), plain, sealer)

    def commit(self, summary: BaseSummary, packs: PacksDocument, sign: Callable[[bytes], bytes] | None = None) -> None:
        """Steps 8 to 10: look that all it needs is there, make it exist, look again.

        LeaseLostError, IntegrityError (something is missing or doomed, or this run counts as dead) or StoreError: there is no
        such backup then. StoreUnavailableError says where that is not known.
        """
        self._lease.check()
        self._check(summary, packs)
        document = encode(summary)
        if sign is not None:
            self._put_exactly(names.BASE_SIGNATURE, sign(document))
        self._put_summary(document)
        try:
            self._check(summary, packs)
        except IntegrityError as error:
            self._withdraw(error)

    def abandon(self) -> None:
        """Take the intent back, so that the next prune need not wait for its death. Packs are prune's to remove.

        Nothing once backup.json may be on its way: should it arrive, it commits a whole backup.
        """
        if not self._left_alone:
            self._intent.withdraw()

    def _put_exactly(self, part: str, data: bytes) -> None:
        key = names.base_key(self.backup_id, part)
        self._store.put(key, data)
        if self._store.get(key) != data:
            raise other_bytes(key)

    def _put_summary(self, document: bytes) -> None:
        key = names.base_key(self.backup_id, names.BASE_SUMMARY)
        self._left_alone = True
        try:
            self._store.put(key, document, create=True)
            stored = self._store.get(key)
        except StoreUnavailableError as error:
            told = f"{error.message}; whether {self.backup_id} was committed, `clipper-backup base list` says"
            raise StoreUnavailableError(told, hints=error.hints) from error
        if stored != document:
            raise other_bytes(key)

    def _check(self, summary: BaseSummary, packs: PacksDocument) -> None:
        """What is looked at before the commit and after it, in the page's order."""
        self._intent.check()
        check_same_repository(self._store, summary.repository_id)
        records = read_prune_records(self._store)
        runs = {of_run.run for of_run in packs.runs if of_run.sealed} | ({summary.id} if summary.sealed else set())
        is_doomed = doomed_by(records)
        doomed = [f"{pack} is doomed" for pack, _ in needed_packs(packs) if is_doomed(pack)]
        doomed += [f"the key of {run} is doomed" for run in runs & {run for record in records for run in record.keys}]
        self._must_be_none(doomed)
        present = list_packs(self._store)
        self._must_be_none(
            [f"{pack} is not there with its {size_bytes} bytes" for pack, size_bytes in needed_packs(packs)
             if pack not in present or present[pack].size_bytes != size_bytes]
        )  # fmt: skip
        if runs:
            listed = {str(names.parse_data_key_key(info.key)) for info in self._store.list(names.KEYS_FOLDER)}
            self._must_be_none([f"{names.data_key_key(BackupId.parse(run))} is not there" for run in sorted(runs - listed)])
        self._must_be_none(
            self._lost_history(summary),
            f"on the server: `clipper-backup wal push pg_wal/{history_name(Timeline(summary.timeline))}`; then take another",
        )
        self._must_be_none(lost_parts(listed_base(self._store, self.backup_id), summary))
        taken = {pack for pack, _ in needed_packs(packs) if pack.run != self.backup_id}
        if taken and summary.parent is not None:
            self._must_be_none(damage_of_taken(self._store, BackupId.parse(summary.parent), taken), _TAKEN_IS_DAMAGED)

    def _lost_history(self, summary: BaseSummary) -> list[str]:
        """What is missing of the history of its timeline: without it no restore can name that timeline."""
        if summary.timeline == 1:
            return []
        system_id, timeline = summary.system_id, Timeline(summary.timeline)
        there = {info.key for info in self._store.list(names.histories_folder(system_id))}
        claim, stored = (names.history_key(system_id, timeline, suffix) for suffix in (names.CLAIM, names.STORED))
        lost = [] if claim in there else [claim]
        lost += [] if there & {stored, stored + SEALED} else [stored]
        return [f"{key} is not there" for key in lost]

    def _must_be_none(self, problems: Sequence[str], *hints: str) -> None:
        if problems:
            raise IntegrityError(
                f"the base backup {self.backup_id} cannot be committed: {show_first(problems)}",
                hints=hints or [_TAKE_ANOTHER],
            )

    def _withdraw(self, error: IntegrityError) -> None:
        """Take back what was committed, since what it needs went meanwhile; always raises."""
        key = names.base_key(self.backup_id, names.BASE_SUMMARY)
        try:
            self._store.delete([key])
        except ClipperError as refused:
            raise IntegrityError(
                f"{error.message}; and it could not be taken back: {refused}",
                hints=[f"`clipper-backup base delete {self.backup_id}` removes it: it cannot be relied on", *error.hints],
            ) from error
        raise error
