"""The dumps of a `verify`: each summary and the sizes it names; whose turn it is, read whole and their rows counted."""

from clipper_backup.errors import ClipperError, IntegrityError, StoreError
from clipper_backup.format import names
from clipper_backup.ops.dump.read import Entry, catalog
from clipper_backup.ops.dump.verify import look_at_dump
from clipper_backup.ops.verify.units import TRUST_HINTS, Damage, Kind, Unit
from clipper_backup.ops.work import Work, step
from clipper_backup.values import show_bytes, show_count


def look_at_dumps(work: Work, kind: Kind) -> None:
    """Look at every committed dump, and read those that *kind* chooses, one after the other.

    Temporary errors pass through until all were looked at; one of a dump that is read ends the reading, and is kept.
    """
    with step(work, "dumps", "look at every dump") as running:
        entries = [entry for entry in catalog(work) if entry.listed.committed]
        for entry in entries:
            _look(kind, entry)
        readable = [entry for entry in entries if entry.summary is not None and not entry.untrusted]
        units = {unit.key: unit for unit in map(unit_of, entries)}
        chosen = kind.choose([units[key_of(entry)] for entry in readable])
        running.done = f"{show_count(len(entries), 'dump')}, {show_bytes(sum(unit.size_bytes for unit in units.values()))}"
    read: set[str] = set()
    for entry in readable:
        if key_of(entry) not in chosen:
            continue
        try:
            _read(work, kind, entry)
        except ClipperError as error:
            kind.unlooked.append(error)
            if error.temporary:  # the store was asked again and again already
                break
        else:
            read.add(key_of(entry))
    kind.count(units.values(), read, lost=units.keys() - {key_of(entry) for entry in readable})


def key_of(entry: Entry) -> str:
    """The key of the unit: its summary's."""
    return names.dump_key(entry.listed.dump_id, names.SUMMARY)


def unit_of(entry: Entry) -> Unit:
    """All objects of the dump together."""
    return Unit(key_of(entry), entry.listed.stored_bytes, entry.listed.last_written_at)


def _look(kind: Kind, entry: Entry) -> None:
    if entry.problem is None:
        return
    if entry.unreadable:
        kind.unlooked.append(StoreError(f"{entry.listed.dump_id} cannot be read here: {entry.problem}"))
        return
    if entry.untrusted:  # whatever lies there, nobody vouches for it
        kind.unopened.append(IntegrityError(entry.problem, hints=TRUST_HINTS))
        return
    _damaged(kind, entry, f"{entry.listed.dump_id}: {entry.problem}", f"{entry.listed.dump_id}: {entry.problem}")


def _read(work: Work, kind: Kind, entry: Entry) -> None:
    assert entry.summary is not None  # noqa: S101  it is readable
    try:
        seen = look_at_dump(work, entry.summary)
    except IntegrityError as error:
        _damaged(kind, entry, f"{entry.listed.dump_id}: {error.message}", f"{entry.listed.dump_id} is damaged")
        return
    for problem in seen.problems:
        _damaged(kind, entry, f"{entry.listed.dump_id}: {problem.text}", f"{problem.key} is not what was dumped")
    if seen.closed is not None:
        kind.unopened.append(seen.closed)


def _damaged(kind: Kind, entry: Entry, text: str, noted: str) -> None:
    kind.damaged.add(key_of(entry))
    kind.damage.append(Damage(key_of(entry), text, noted))
