"""`job postgres-backup`: a dump, and a base backup where the server archives; each is attempted whatever became of the other."""

from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import load
from clipper_backup.errors import AccessError, ClipperError, exit_code_of
from clipper_backup.ops.events import Warned
from clipper_backup.ops.job_backup import run_postgres_backup
from clipper_backup.ops.work import Work
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.base_backups import list_base_backups
from clipper_backup.repository.dumps import list_dumps
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from fixtures.base import Cluster, Kept, work_for
from fixtures.postgres import client_environment, fresh_database
from fixtures.wal_look import MadeRepository

pytestmark = pytest.mark.soak(share=0.25)


def committed(store: Store) -> tuple[int, int]:
    """How many dumps there are, and how many base backups."""
    return sum(each.committed for each in list_dumps(store)), sum(each.committed for each in list_base_backups(store))


def test_without_archiving_it_takes_the_dump_and_says_what_is_off(postgres15: PrivateServer) -> None:
    with fresh_database(postgres15) as database:
        environment = client_environment(postgres15) | {"BACKUP_URL": "file:///unused", "BACKUP_DATABASES": database}
        kept = Kept()
        work = Work(load({}, environment).settings, MemoryStore(SystemClock()), SystemClock(), kept)
        done = run_postgres_backup(work)
    assert done.base is None
    assert committed(work.store) == (1, 0)
    (told,) = [event for event in kept.events if isinstance(event, Warned) and "point-in-time" in event.text]
    assert told.text.startswith("point-in-time recovery is off")


def test_a_server_that_archives_no_more_is_a_failure(postgres15: PrivateServer) -> None:
    """As a restore leaves it. A night without a base backup is no success where there were some."""
    made = MadeRepository(VirtualClock(SystemClock().now()), "42")
    made.archive.segments(1, 3, 4)
    made.backup(1, 3, 4)
    with fresh_database(postgres15) as database:
        environment = client_environment(postgres15) | {"BACKUP_URL": "file:///unused", "BACKUP_DATABASES": database}
        work = Work(load({}, environment).settings, made.store, SystemClock(), Kept())
        with pytest.raises(ClipperError, match="the base backup failed: the server does not archive its WAL") as failed:
            run_postgres_backup(work)
    assert failed.value.message.endswith("the dump is good")
    assert exit_code_of(failed.value) == 1
    assert any("a restore leaves it off" in hint for hint in failed.value.hints)
    assert committed(made.store) == (1, 1)


def test_with_archiving_it_takes_both(archived15: Cluster) -> None:
    work = work_for(archived15)
    with archived15.archiving(work):
        done = run_postgres_backup(work)
    assert committed(work.store) == (1, 1)
    assert done.base is not None
    assert done.base.summary.id == str(list_base_backups(work.store)[0].backup_id)


class Refusing(WrapperStore):
    """Takes nothing below one folder."""

    def __init__(self, inner: Store, folder: str) -> None:
        super().__init__(inner)
        self._folder = folder

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        if key.startswith(self._folder):
            raise AccessError(f"may not write {key}")
        self._inner.put(key, data, create=create)


@pytest.mark.parametrize(
    ("folder", "what", "good", "left"),
    [
        ("database/", "the dump failed: may not write database/", "the base backup is good", (0, 1)),
        ("base/", "the base backup failed: may not write base/", "the dump is good", (1, 0)),
    ],
)
def test_when_one_fails_the_other_is_taken_and_it_exits_with_1(
    archived15: Cluster, folder: str, what: str, good: str, left: tuple[int, int]
) -> None:
    work = work_for(archived15)
    with archived15.archiving(work), pytest.raises(ClipperError, match=what) as failed:
        run_postgres_backup(Work(work.settings, Refusing(work.store, folder), work.clock, work.emit))
    assert failed.value.message.endswith(good)
    assert exit_code_of(failed.value) == 1
    assert committed(work.store) == left


def test_a_server_that_cannot_be_reached_is_the_dumps_error(tmp_path: Path) -> None:
    settings = {"BACKUP_URL": "file:///unused", "PGHOST": str(tmp_path), "PGUSER": "nobody"}
    work = Work(load({}, settings).settings, MemoryStore(SystemClock()), SystemClock(), Kept())
    with pytest.raises(ClipperError, match="cannot connect to PostgreSQL"):
        run_postgres_backup(work)
