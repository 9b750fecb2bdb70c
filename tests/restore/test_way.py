"""Along which timeline a restore goes, by what an archive and folders beside it hold."""

from pathlib import Path

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import WalGapError
from clipper_backup.ops.restore.former import Former
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.restore.way import WayChoice
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.wal_pages import WalLayout
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Lsn, Timeline
from fixtures.wal_archive import MADE_AT, MIB, SYSTEM, MadeArchive, segment_name


@pytest.mark.rule(54)
@pytest.mark.parametrize("emptied", [False, True], ids=["its folder is there", "a try before emptied it"])
def test_commits_that_lie_nowhere_are_not_said_to_lie_in_a_folder_that_was_emptied(tmp_path: Path, *, emptied: bool) -> None:
    """Timeline 2 began behind segment 7, nothing of it is archived, and of its segments only a later one is left."""
    made = MadeArchive(MemoryStore(VirtualClock(MADE_AT)))
    made.segments(1, 3, 7)
    made.history(2, (1, 8 * MIB))
    folder = tmp_path / ("saved-pg_wal-20261122-020000" if emptied else "data/pg_wal")
    folder.mkdir(parents=True)
    (folder / segment_name(2, 9)).touch()
    choice = WayChoice(
        Request(tmp_path / "data", Target("latest"), server_account(), replace=True),
        WalCatalog(made.store, SYSTEM, MIB),
        lambda _: None,
        WalLayout(15, int(SYSTEM), MIB, 8192),
        of_backups={Timeline(1)},
        former=None if emptied else Former(Timeline(2), wrote=True, histories={}, reached=Lsn(9 * MIB)),
        folders=[folder],
    )
    with pytest.raises(WalGapError, match="the former server was on timeline 2, of which nothing is archived") as caught:
        choice.choose()
    assert (f"{tmp_path}/data holds it" in caught.value.hints[0]) is not emptied
    assert (str(folder) in caught.value.message) is emptied
    assert "--timeline 1" in caught.value.hints[1]
