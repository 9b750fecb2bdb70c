"""Refreshing: what must outlive a bucket's rule that deletes by age is written again, with the same bytes, before it is old.

It happens under the lease `prune`, so that nothing comes back that is being deleted (G6; docs/design/repository-format.md,
"Refreshing").
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clipper_backup.errors import ClipperError, IntegrityError, LeaseLostError
from clipper_backup.format import physical_names as names
from clipper_backup.format.names import HOLDS_FOLDER, REPOSITORY
from clipper_backup.format.time_maps import parse_map_key
from clipper_backup.repository.base_state import PackState
from clipper_backup.repository.physical_retention import BackupSeen, Pin, Seen, spans_of
from clipper_backup.repository.wal_catalog import Listed, WalCatalog
from clipper_backup.store.protocol import STREAM_CHUNK_BYTES, ObjectInfo, Store

REFRESH_AGE = timedelta(days=14)
"""Half of what the source document's rule allows, so that a fortnight without a run loses nothing."""

_RULE_DAYS = 30
"""At which age the source document's own rule deletes every object of the bucket, whatever needs it."""
_SPARE_DAYS = 2
"""A day of grace before the window's edge, and one because a job runs at an hour and a rule at another."""


def tolerated_outage_days(*, max_pack_age_days: int, window_days: int) -> int:
    """How many days may pass without a base backup under a bucket's rule that deletes at 30 days, and nothing promised is lost.

    The backup that the window begins with may be a window and the outage old, its packs MAX_PACK_AGE_DAYS older; what is only
    refreshed may be REFRESH_AGE old before the outage. 0 or less: the rule takes what is needed without any.
    """
    of_packs = _RULE_DAYS - _SPARE_DAYS - max_pack_age_days - window_days
    return min(of_packs, _RULE_DAYS - _SPARE_DAYS - REFRESH_AGE.days)


Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """How many objects were written again, of how many bytes; and what could not be read."""

    objects: int = 0
    stored_bytes: int = 0
    problems: tuple[ClipperError, ...] = ()


def refresh(
    store: Store,
    state: PackState,
    seen: Seen,
    catalogs: Mapping[int, WalCatalog],
    check: Check,
) -> Refreshed:
    """Write again what is older than REFRESH_AGE; *check* raises when the lease `prune` is lost.

    What cannot be read or written is in the answer. LeaseLostError and temporary errors pass through.
    """
    now = store.now()
    problems: list[ClipperError] = []
    written = [_again(store, info, check, problems) for info in _old(_lasting(store, state, seen, catalogs), now)]
    return Refreshed(sum(size is not None for size in written), sum(size or 0 for size in written), tuple(problems))


def _old(infos: Iterable[ObjectInfo], now: datetime) -> Iterator[ObjectInfo]:
    found: dict[str, ObjectInfo] = {}
    for info in infos:
        if now - info.modified_at > REFRESH_AGE:
            found[info.key] = info
    yield from found.values()


def _lasting(store: Store, state: PackState, seen: Seen, catalogs: Mapping[int, WalCatalog]) -> Iterator[ObjectInfo]:
    """All that a rule must not take."""
    yield store.head(REPOSITORY)
    yield from state.keys.values()
    yield from (info for info in store.list(names.SYSTEMS_FOLDER) if names.parse_system_key(info.key) is not None)
    yield from store.list(HOLDS_FOLDER)
    yield from (info for info in store.list(names.SNAPSHOTS_FOLDER) if not info.key.endswith(f"/{names.TAKING}"))
    for catalog in catalogs.values():
        yield from _objects(catalog.histories().values())
        for timeline in catalog.timelines():
            folder = names.times_folder(catalog.system_id, timeline)
            yield from (info for info in store.list(folder) if parse_map_key(info.key, catalog.segment_bytes) is not None)
    held = [backup for backup in seen.backups if backup.held]
    for backup in held:
        # verify.json is written anew by whoever verifies, under no lease: an old one must not come back over it.
        committed = {stored.key for stored in state.base.summaries[backup.backup_id].objects}
        committed |= {names.base_key(backup.backup_id, part) for part in (names.BASE_SUMMARY, names.BASE_SIGNATURE)}
        yield from (info for info in state.base.intents.folders[backup.backup_id].objects if info.key in committed)
        for pack, _ in state.base.packs.get(backup.backup_id, ()):
            info = state.packs.get(pack.run, {}).get(pack.number)
            if info is not None:
                yield info
    yield from _wal(seen, held, [pin for pin in seen.pins if pin.stop is not None], catalogs)


def _wal(seen: Seen, held: Sequence[BackupSeen], pins: Sequence[Pin], catalogs: Mapping[int, WalCatalog]) -> Iterator[ObjectInfo]:
    """The segments of held backups, to where their holds say, and of snapshots."""
    for of, spans in spans_of(seen, held, pins).items():
        catalog = catalogs.get(of.system)
        for folder in () if catalog is None else catalog.folders(of.timeline):
            first = names.first_segment_of(folder, seen.segment_bytes[of.system])
            last = first + (1 << 32) // seen.segment_bytes[of.system] - 1
            if catalog is None or not any(span.first <= last and (span.last is None or first <= span.last) for span in spans):
                continue
            for segment, listed in catalog.segments(of.timeline, folder).items():
                if any(span.first <= segment.number and (span.last is None or segment.number <= span.last) for span in spans):
                    yield from _objects([listed])


def _objects(listed: Iterable[Listed]) -> Iterator[ObjectInfo]:
    for each in listed:
        yield from (info for info in (each.claim, each.stored, each.link) if info is not None)


def _again(store: Store, info: ObjectInfo, check: Check, problems: list[ClipperError]) -> int | None:
    """Write one object again; its size, or None where it could not be read."""
    try:
        check()
        if info.size_bytes > STREAM_CHUNK_BYTES:
            return store.put_stream(
                info.key, _checked(store.get_stream(info.key, same_as=info), check), expected_bytes=info.size_bytes
            )
        data = store.get(info.key)
        if len(data) != info.size_bytes:
            raise IntegrityError(f"{info.key} has {len(data)} bytes, {info.size_bytes} were listed")
        check()
        store.put(info.key, data)
    except LeaseLostError:
        raise
    except ClipperError as error:
        if error.temporary:
            raise
        problems.append(error)
        return None
    return info.size_bytes


def _checked(chunks: Iterable[bytes], check: Check) -> Iterator[bytes]:
    """The chunks of a large object; the last is handed on only when the lease is ours after it was read."""
    for chunk in chunks:
        check()
        yield chunk
