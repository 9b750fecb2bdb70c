"""Dumps as the proof reads them: which are good, and which must stay (docs/design/prune.md, D)."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from clipper_backup.errors import ClipperError, IntegrityError, ObjectMissingError
from clipper_backup.format import names
from clipper_backup.format.documents import DumpSummary, decode
from clipper_backup.repository.proof.documents import Trust, read_damaged_dumps, read_holds
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.values import DumpId, show_count

_BEING_WRITTEN = timedelta(days=1)
"""A dump without summary may be under way for so long after its last sign."""


@dataclass(slots=True)
class Dump:
    """What is there of one id. `databases` are those that its summary names, None where that cannot be read.

    `whole`: a listing shows all of it, and the last verify found no damage.
    """

    dump_id: DumpId
    objects: dict[str, ObjectInfo] = field(default_factory=dict)
    databases: Sequence[str] | None = None
    whole: bool = False
    trusted: bool = False
    held: bool = False

    @property
    def committed(self) -> bool:
        """Whether its summary is listed."""
        return names.dump_key(self.dump_id, names.SUMMARY) in self.objects

    @property
    def good(self) -> bool:
        """Whether a restore may count on it."""
        return self.committed and self.whole and self.trusted


def read_dumps(store: Store, trust: Trust) -> dict[DumpId, Dump]:
    """Every id below `database/`, by one listing, its summary, and what the last verify found."""
    found: dict[DumpId, Dump] = {}
    for info in store.list(names.DATABASE_FOLDER):
        key = names.parse_dump_key(info.key)
        if key is not None:
            found.setdefault(key.dump_id, Dump(key.dump_id)).objects[info.key] = info
    for dump in found.values():
        if dump.committed:
            _read(store, dump, trust)
    held, damaged = read_holds(store), read_damaged_dumps(store)
    for dump in found.values():
        dump.held = str(dump.dump_id) in held
        dump.whole = dump.whole and dump.dump_id not in damaged
    return found


def _read(store: Store, dump: Dump, trust: Trust) -> None:
    key = names.dump_key(dump.dump_id, names.SUMMARY)
    dump.trusted = True
    try:
        data = store.get(key)
        summary = decode(data, DumpSummary, key)
        dump.trusted = trust.holds(store, names.dump_key(dump.dump_id, names.SIGNATURE), data, summary.repository_id)
        _check(summary, dump, key)
    except (ObjectMissingError, IntegrityError):
        return
    except ClipperError as error:
        if error.temporary:
            raise
        return
    dump.databases = [name for name in (stored.database for stored in summary.objects) if name is not None]
    listed = {info.key: info.size_bytes for info in dump.objects.values()}
    dump.whole = all(listed.get(stored.key) == stored.size_bytes for stored in summary.objects)


def _check(summary: DumpSummary, dump: Dump, key: str) -> None:
    """IntegrityError when it is another dump's, or does not commit each part once."""
    of = [names.parse_dump_key(stored.key) for stored in summary.objects]
    roles = Counter((stored.role, stored.database) for stored in summary.objects)
    once = all(count == 1 for count in roles.values())
    parts = roles[("globals", None)] == roles[("details", None)] == 1
    databases = any(role == "database" and name is not None for role, name in roles)
    theirs = all(parsed is not None and parsed.dump_id == dump.dump_id for parsed in of)
    if summary.id != str(dump.dump_id) or not (once and parts and databases and theirs):
        raise IntegrityError(f"{key} is damaged")


@dataclass(frozen=True, slots=True)
class DumpPromise:
    """How long dumps are kept: *days*, and the newest good *minimum* of each database whatever their age."""

    days: int
    minimum: int


def check_dumps(
    before: Mapping[DumpId, Dump], after: Mapping[DumpId, Dump], promise: DumpPromise, now: datetime
) -> Iterator[str]:
    """What is promised of dumps and would be lost, in words."""
    for dump_id, dump in before.items():
        lost = dump.objects.keys() - (after[dump_id].objects.keys() if dump_id in after else ())
        if lost:
            yield from _check_gone(dump, dump_id in after, promise, now)
    newest = max((dump_id for dump_id, dump in before.items() if dump.good), default=None)
    if newest is not None and (newest not in after or not after[newest].good):
        yield f"{newest} is the newest good dump: its instant, {_told(newest)}, could not be restored any more"
    for database in sorted({name for dump in before.values() if dump.good for name in dump.databases or ()}):
        had = _holding(database, before.values())[: max(1, promise.minimum)]
        left = {dump.dump_id for dump in _holding(database, after.values())}
        for dump in had:
            if dump.dump_id not in left and dump.dump_id != newest:
                told = f"one of the {max(1, promise.minimum)} newest good dumps of {database!r}"
                yield f"{dump.dump_id} is {told}: its instant, {_told(dump.dump_id)}, could not be restored any more"


def _check_gone(dump: Dump, is_part_left: bool, promise: DumpPromise, now: datetime) -> Iterator[str]:
    age = now - dump.dump_id.at
    if is_part_left:
        yield f"{dump.dump_id} would go in part, and what is left of it stand for a dump"
    elif dump.held:
        yield f"{dump.dump_id} is held"
    elif not dump.committed:
        if now - max(info.modified_at for info in dump.objects.values()) <= _BEING_WRITTEN:
            yield f"{dump.dump_id} may still be being written: something of it is less than a day old"
    elif age <= timedelta(days=promise.days):
        kept = show_count(promise.days, "day")
        yield f"{dump.dump_id} is kept for {kept}: its instant, {_told(dump.dump_id)}, could not be restored any more"
    elif dump.trusted and not dump.whole:
        yield f"{dump.dump_id} is damaged: a person must decide"


def _holding(database: str, dumps: Collection[Dump]) -> list[Dump]:
    """The good dumps that hold a database, newest first."""
    good = [dump for dump in dumps if dump.good and database in (dump.databases or ())]
    return sorted(good, key=lambda dump: dump.dump_id, reverse=True)


def _told(dump_id: DumpId) -> str:
    return dump_id.at.strftime("%Y-%m-%d %H:%M:%SZ")
