"""Which packs of its parent a run may take pages from, and which it stores anew (docs/design/repository-format.md, step 3).

All of it is decided by pack, before the first page is read: lost and doomed packs heal, old ones are renewed, those of which
little lives are emptied.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum

from blake3 import blake3

from clipper_backup.format.base_documents import PacksDocument, PruneRecord
from clipper_backup.format.packs import PackFacts
from clipper_backup.format.physical_names import PackKey, parse_pack_key
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.values import BackupId

_LIVE_SHARE, _LIVE_SHARE_SPREAD = 0.4, 0.2
"""Below 0.4 to 0.6, each pack its own, what lives is stored anew. At one half, packs hold at most about twice what lives."""
_YOUNGEST_SHARE = 0.5
"""Of MAX_PACK_AGE_DAYS: packs are renewed from then on, each at an age of its own, so that one day's packs are not again one
day's."""


class Fate(IntEnum):
    """What becomes of an unchanged page, or map, by the pack that it lies in; the names are those of backup.json's `pages`."""

    ADOPTED = 0
    COMPACTED = 1
    AGED = 2
    HEALED = 3


@dataclass(frozen=True, slots=True)
class Adoption:
    """The packs of a parent. Without one, or for any other pack, nothing is adopted."""

    fates: Mapping[PackKey, Fate] = field(default_factory=dict)
    facts: Mapping[PackKey, PackFacts] = field(default_factory=dict)

    def fate(self, pack: PackKey) -> Fate:
        """What becomes of what lies in *pack*."""
        return self.fates.get(pack, Fate.HEALED)


def plan_adoption(
    parent: PacksDocument,
    listed: Iterable[ObjectInfo],
    *,
    doomed: Callable[[PackKey], bool],
    sealed: bool,
    opens: Callable[[BackupId], bool],
    now: datetime,
    max_age: timedelta,
) -> Adoption:
    """What a run may take from its *parent*, by a listing of `packs/` (P4).

    *sealed*: whether this run seals; it adopts only from runs that did the same (P5). *opens*: whether the key of a run opens;
    asked once for each run that seals, never without sealing. *now* is the store's clock.
    """
    found = {pack: info for info in listed if (pack := parse_pack_key(info.key)) is not None}
    fates: dict[PackKey, Fate] = {}
    facts: dict[PackKey, PackFacts] = {}
    for of_run in parent.runs:
        run = BackupId.parse(of_run.run)
        usable = of_run.sealed == sealed and (not sealed or opens(run))
        for number, size_bytes, plain_bytes, live_bytes, digest in of_run.packs:
            pack = PackKey(run, number)
            facts[pack] = PackFacts(size_bytes, plain_bytes, bytes.fromhex(digest))
            info = found.get(pack)
            if not usable or info is None or info.size_bytes != size_bytes or doomed(pack):
                fates[pack] = Fate.HEALED
            elif now - min(run.at, info.modified_at) > longest_age(pack, max_age):
                fates[pack] = Fate.AGED
            elif live_bytes < lowest_share(pack) * plain_bytes:
                fates[pack] = Fate.COMPACTED
            else:
                fates[pack] = Fate.ADOPTED
    return Adoption(fates, facts)


def doomed_by(records: Iterable[PruneRecord]) -> Callable[[PackKey], bool]:
    """Whether any of the *records* of `prune/` announces that a pack is deleted."""
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for record in records:
        for run, numbers in record.packs.items():
            ranges[run] += numbers
    return lambda pack: any(first <= pack.number <= last for first, last in ranges.get(str(pack.run), ()))


def longest_age(pack: PackKey, max_age: timedelta) -> timedelta:
    """At which age a pack's content is stored anew: half of *max_age* or more, never more than all of it."""
    return max_age * (_YOUNGEST_SHARE + (1 - _YOUNGEST_SHARE) * _lot(b"age", pack))


def lowest_share(pack: PackKey) -> float:
    """Which share of a pack must live, or what lives is stored anew."""
    return _LIVE_SHARE + _LIVE_SHARE_SPREAD * _lot(b"share", pack)


def _lot(purpose: bytes, pack: PackKey) -> float:
    """Between 0 and 1; the same whenever it is drawn for this pack and purpose."""
    return int.from_bytes(blake3(purpose + str(pack).encode()).digest(length=6), "big") / (1 << 48)
