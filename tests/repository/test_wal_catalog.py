"""Which timeline is the newest, and what lies beside a line (docs/design/repository-wal.md, What a restore reads)."""

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import WalGapError
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Timeline
from fixtures.wal_archive import MADE_AT, MIB, SYSTEM, MadeArchive, segment_name


@pytest.mark.rule(62)
def test_a_history_alone_is_not_the_newest_timeline() -> None:
    """Each restore that was opened beside a living server leaves one."""
    store = MemoryStore(VirtualClock(MADE_AT))
    archive, catalog = MadeArchive(store), WalCatalog(store, SYSTEM, MIB)
    assert catalog.newest_timeline() == 1
    archive.segments(1, 3, 6)
    for tested in (2, 3):
        archive.history(tested, (1, 5 * MIB + 7))
    assert catalog.newest_timeline() == 1
    assert catalog.newest_timeline({Timeline(2)}) == 2, "one with a base backup holds something, whatever is lost of its WAL"

    archive.segment(2, 5, stored=False)
    assert catalog.newest_timeline() == 1, "a claim alone is no segment"
    archive.segment(3, 5)
    archive.history(4, (1, 5 * MIB + 7))
    archive.lose(segment_name(1, 6))
    assert catalog.newest_timeline() == 3


@pytest.mark.rule(62)
def test_a_timeline_without_its_history_is_not_passed_over() -> None:
    """A store that was set back, or lost it: what is on the timeline would be missing from a restore, and nobody told."""
    store = MemoryStore(VirtualClock(MADE_AT))
    archive, catalog = MadeArchive(store), WalCatalog(store, SYSTEM, MIB)
    archive.segments(1, 3, 5)
    archive.history(2, (1, 5 * MIB + 7))
    assert catalog.followed_timeline() == 1
    archive.segments(2, 5, 6)
    assert catalog.followed_timeline() == 2
    archive.lose("00000002.history", ".claim", ".zst")
    with pytest.raises(WalGapError, match="nobody has archived its history") as refused:
        catalog.followed_timeline()
    assert "`clipper-backup wal push pg_wal/00000002.history`" in refused.value.hints[0]
    archive.history(3, (1, 5 * MIB + 7))
    archive.segment(3, 5)
    assert catalog.followed_timeline() == 3, "a newer one is what a restore follows"


def test_what_lies_beside_a_line() -> None:
    store = MemoryStore(VirtualClock(MADE_AT))
    archive, catalog = MadeArchive(store), WalCatalog(store, SYSTEM, MIB)
    archive.segments(1, 3, 4)
    archive.history(2, (1, 5 * MIB + 7))
    archive.segments(2, 5, 6)
    line = catalog.line(Timeline(2))
    assert catalog.beside(line) == []
    archive.segments(1, 5, 8)
    assert [end.name for end in catalog.beside(line)] == [segment_name(1, 8)]
    assert [end.name for end in catalog.beside(catalog.line(Timeline(1)))] == [segment_name(2, 6)]
