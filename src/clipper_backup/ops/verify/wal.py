"""The WAL of a `verify`: each claim, link and header; the files whose turn it is, read to their end."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from clipper_backup.errors import ClipperError
from clipper_backup.format.physical_names import CLAIM, STORED, archive_key, history_key, parse_archive_key
from clipper_backup.ops.lost_instants import segment_of
from clipper_backup.ops.verify.units import Damage, Kind, Unit
from clipper_backup.ops.wal.look import ENDS_LOOKED_AT, Looker, WalSeen
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
    """Look at the whole archive, and read the files that *kind* chooses, and those at its end that a restore would not take.

    Temporary errors pass through before gaps are known; one of a file ends the look at files, and is kept beside what was found.
    """
    looker, seen = look_at_links(work)
    looked = WalLooked(looker, seen)
    sizes = {system.entry.system_id: system.entry.segment_bytes for system in seen.systems}
    suspects = _suspects(seen)

    def choose(objects: Sequence[ObjectInfo]) -> Collection[str]:
        now = {info.key for info in objects if (key := parse_archive_key(info.key)) is not None and key.name in suspects}
        return now | kind.choose([_unit(info) for info in objects])

    try:
        with step(work, "files", "look at every file") as running:
            for file in look_at_files(work, looker, seen, choose, running):
                _count(kind, looked, file, sizes[file.system_id])
            kind.damage += [Damage(text.partition(" ")[0], text, text) for text in maps_not_used(work, seen)]
            running.done = (
                f"{show_count(kind.units, 'file')}, {show_bytes(kind.read_bytes)} of {show_bytes(kind.size_bytes)} read"
            )
    except ClipperError as error:
        kind.unlooked.append(error)
        kind.cut = True
    kind.damage += _unfollowed(seen, {each.text for each in kind.damage})
    return looked


def _unfollowed(seen: WalSeen, told: Collection[str]) -> Iterator[Damage]:
    """Timelines that hold something, and that no restore can follow, or not from each base backup; where that was not *told*."""
    for system in seen.systems:
        for each in system.timelines:
            if each.holds and each.problem is not None and each.problem not in told:
                key = history_key(system.entry.system_id, each.timeline, STORED)
                yield Damage(
                    key, f"timeline {int(each.timeline)}: {each.problem}", f"timeline {int(each.timeline)}: {each.problem}"
                )


def _suspects(seen: WalSeen) -> set[str]:
    """The segments of which one is refused: the first that the window needs, and those of its end."""
    window, current = seen.window, seen.systems[-1].current if seen.systems else None
    if window is None or current is None or current.survey is None or not seen.refused:
        return set()
    last, line = window.last, current.survey.line
    ends = line.segments(max(0, last.number + 1 - ENDS_LOOKED_AT), last.number, last.size_bytes)
    return {window.backup.first_segment, *(segment.name for segment in ends)}


def _count(kind: Kind, looked: WalLooked, file: FileSeen, segment_bytes: int) -> None:
    lost = () if file.damage is None else {info.key for info in file.stored}
    kind.count(map(_unit, file.stored), {info.key for info in file.read}, lost=lost)
    if file.closed is not None:
        kind.owed = True
        kind.unopened.append(file.closed)
    if file.newer is not None:
        kind.unlooked.append(file.newer)
    if file.damage is not None:
        _damaged(kind, looked, file, segment_bytes)


def _unit(info: ObjectInfo) -> Unit:
    return Unit(info.key, info.size_bytes, info.modified_at)


def _damaged(kind: Kind, looked: WalLooked, file: FileSeen, segment_bytes: int) -> None:
    assert file.damage is not None  # noqa: S101  it is damaged
    key = file.damaged or next((info.key for info in file.stored), archive_key(file.system_id, file.name, CLAIM))
    kind.damaged.add(key)
    kind.damage.append(Damage(key, file.damage, file.damage))
    if (segment := segment_of(file.name, segment_bytes)) is not None:
        looked.bad_segments.setdefault(file.system_id, set()).add(segment)
