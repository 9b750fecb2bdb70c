"""The state of an id is the same in JSON and in the table, of dumps and of base backups."""

import pytest

from clipper_backup.cli import show_base, show_dump
from clipper_backup.clock import VirtualClock
from clipper_backup.format.documents import HoldMark
from clipper_backup.ops.base.read import Shown
from clipper_backup.ops.dump.read import Entry
from clipper_backup.repository.base_backups import BaseEntry, ListedBase
from clipper_backup.repository.dumps import Listed
from clipper_backup.values import BackupId, DumpId
from fixtures.base_repository import make_repository, summary_of
from fixtures.catalog import HOLD
from fixtures.clocks import START

DUMP = Listed(DumpId.parse("postgres-backup-20261122-020000"), ())
BASE = ListedBase(BackupId.parse("20261122-020000-7f3a9c2e"), ())


@pytest.mark.parametrize("hold", [None, HOLD])
@pytest.mark.parametrize(
    ("untrusted", "unreadable", "state", "note"),
    [
        (True, False, "untrusted", "NOT TRUSTED: it is odd"),
        (False, True, "unreadable", "NOT READABLE: it is odd"),
        (False, False, "damaged", "DAMAGED: it is odd"),
    ],
)
def test_one_without_a_summary_that_counts(
    untrusted: bool, unreadable: bool, state: str, note: str, hold: HoldMark | None
) -> None:
    dump = Entry(DUMP, None, "it is odd", hold, untrusted=untrusted, unreadable=unreadable)
    base = Shown(BaseEntry(BASE, None, "it is odd", untrusted=untrusted, unreadable=unreadable), hold)
    assert show_dump.entry_document(dump)["state"] == show_base.shown_document(base)["state"] == state
    note += "" if hold is None else f"; held: {hold.reason}"
    for text in (show_dump.entries_text([dump]), show_base.catalog_text([base])):
        assert text.rstrip().endswith(note)


def test_one_that_is_not_finished() -> None:
    dump, base = Entry(DUMP, None, None, HOLD), Shown(BaseEntry(BASE, None, None), HOLD)
    assert show_dump.entry_document(dump)["state"] == show_base.shown_document(base)["state"] == "unfinished"
    for text in (show_dump.entries_text([dump]), show_base.catalog_text([base])):
        assert text.rstrip().endswith(f"unfinished; held: {HOLD.reason}")


def test_a_base_backup_names_the_wal_that_it_needs_and_does_not_say_that_it_is_there() -> None:
    summary = summary_of(make_repository(VirtualClock(START)), BASE.backup_id, [], start=3, stop=5)
    (line,) = (each for each in show_base.summary_text(summary).splitlines() if each.startswith("needs WAL"))
    assert line.split()[2:] == ["000000010000000000000003", "to", "000000010000000000000004"]
