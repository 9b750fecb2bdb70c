"""What a volume snapshot can do by now: computed at each look, for WAL goes and labels do not (rule 52)."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import msgspec

from clipper_backup.errors import IntegrityError
from clipper_backup.format.snapshot_documents import Snapshot
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.protocol import Store
from clipper_backup.values import Timeline, show_time
from clipper_backup.wal_names import Segment

UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Label:
    """`whole`: restores by itself to the instant at which it was taken. `with_wal`: to any instant from `until` on."""

    whole: bool
    with_wal: bool
    until: datetime

    @property
    def safe(self) -> bool:
        """Whether it restores at all."""
        return self.whole or self.with_wal

    @property
    def kind(self) -> str:
        """One of three words for programs: `needs-wal`, `self-contained` or `unsafe`; the first also where both hold."""
        if self.with_wal:
            return "needs-wal"
        return "self-contained" if self.whole else UNSAFE

    @property
    def text(self) -> str:
        """For people."""
        if not self.with_wal:
            return self.kind
        at = show_time(self.until)
        return f"self-contained, and with WAL any instant from {at}" if self.whole else f"needs WAL until {at}"


class Labels:
    """The labels of many, with each folder of the archive listed once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folders: dict[tuple[str, Timeline, str], set[int]] = {}

    def label_of(self, record: Snapshot) -> Label:
        """Its label now."""
        return Label(record.whole, self._has_wal(record), record.stopped_at)

    def _has_wal(self, record: Snapshot) -> bool:
        """Whether the WAL from start to stop is in the archive, as it was when it was found to be the server's own.

        What was never proven does not count: it may have come from elsewhere.
        """
        links = (record.first_link, record.last_link)
        if msgspec.UNSET in links:
            return False
        size = record.postgres.segment_bytes
        catalog = WalCatalog(self._store, record.system_id, size)
        first, last = Segment.parse(record.first_segment, size), Segment.parse(record.last_segment, size)
        between = (Segment(first.timeline, number, size) for number in range(first.number, last.number + 1))
        if not all(each.number in self._listed(catalog, each) for each in between):
            return False
        return all(_link(catalog, segment) == link for segment, link in zip((first, last), links, strict=True))

    def _listed(self, catalog: WalCatalog, segment: Segment) -> set[int]:
        place = catalog.system_id, segment.timeline, segment.folder
        if place not in self._folders:
            found = catalog.segments(segment.timeline, segment.folder)
            self._folders[place] = {each.number for each, listed in found.items() if listed.claim and listed.stored}
        return self._folders[place]


def _link(catalog: WalCatalog, segment: Segment) -> str | None:
    with suppress(IntegrityError):
        claim = catalog.claim(segment)
        return None if claim is None else catalog.link_of(claim).hex()
    return None
