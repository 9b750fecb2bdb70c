"""The WAL of a `verify`: each claim, link and header; the files whose turn it is, read to their end."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from clipper_backup.ops.lost_instants import segment_of
from clipper_backup.ops.verify.units import Damage, Kind, Unit
from clipper_backup.ops.wal.look import Looker, WalSeen
from clipper_backup.ops.wal.verify import FileSeen, look_at_files, look_at_links, maps_not_used
from clipper_backup.ops.work import Work, step
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.values import show_bytes, show_count


@dataclass
class WalLooked:
    """The whole archive. `bad_segments`: the names of those that are damaged, by system id."""

    looker: Looker
    seen: WalSeen
    bad_segments: dict[str, set[str]] = field(default_factory=dict)


def look_at_wal(work: Work, kind: Kind) -> WalLooked:
    """Look at the whole archive, and read the files that *kind* chooses. Temporary errors pass through."""
    looker, seen = look_at_links(work)
    looked = WalLooked(looker, seen)
    sizes = {system.entry.system_id: system.entry.segment_bytes for system in seen.systems}

    def choose(objects: Sequence[ObjectInfo]) -> Collection[str]:
        return kind.choose([_unit(info) for info in objects])

    with step(work, "files", "look at every file") as running:
        for file in look_at_files(work, looker, seen, choose, running):
            lost = () if file.damage is None else {info.key for info in file.stored}
            kind.count(map(_unit, file.stored), {info.key for info in file.read}, lost=lost)
            if file.closed is not None:
                kind.owed = True
                kind.unopened.append(file.closed)
            if file.newer is not None:
                kind.unlooked.append(file.newer)
            if file.damage is not None:
                _damaged(kind, looked, file, sizes[file.system_id])
        kind.damage += [Damage(text.partition(" ")[0], text, text) for text in maps_not_used(work, seen)]
        running.done = f"{show_count(kind.units, 'file')}, {show_bytes(kind.read_bytes)} of {show_bytes(kind.size_bytes)} read"
    return looked


def _unit(info: ObjectInfo) -> Unit:
    return Unit(info.key, info.size_bytes, info.modified_at)


def _damaged(kind: Kind, looked: WalLooked, file: FileSeen, segment_bytes: int) -> None:
    assert file.damage is not None  # noqa: S101  it is damaged
    kind.damaged |= {info.key for info in file.stored} or {file.name}
    kind.damage += [Damage(info.key, file.damage, file.damage) for info in file.stored[:1]] or [
        Damage(file.name, file.damage, file.damage)
    ]
    if (segment := segment_of(file.name, segment_bytes)) is not None:
        looked.bad_segments.setdefault(file.system_id, set()).add(segment)
