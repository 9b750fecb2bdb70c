"""Two restores of one folder, each with a restore folder of its own: the one that wakes up late changes nothing."""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.errors import ClipperError, LockedError
from clipper_backup.format.physical_names import LABEL
from clipper_backup.ops.restore.held import held, held_target
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.target_dir import MARKER, Found, begin
from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.account import Account, server_account
from clipper_backup.store.local import LocalStore
from clipper_backup.store.protocol import ObjectInfo
from fixtures.moments import just_before
from fixtures.restore import World, planned

US = Account("us", os.geteuid(), os.getegid())
VERSION = "PG_15_202209061"


def test_a_target_is_one_restores_whatever_it_is_called(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "link").symlink_to(data)
    with held_target(data, US):
        for name in (data, tmp_path / "link"):
            with pytest.raises(LockedError, match="another restore fills"), held_target(name, US):
                pass
    assert data.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ZeroDivisionError), held_target(data, US):
        raise ZeroDivisionError
    assert data.exists(), "who did not make it does not remove it"
    with pytest.raises(ZeroDivisionError), held_target(tmp_path / "new", US):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    with pytest.raises(ClipperError, match="cannot make or open"), held_target(tmp_path / "no/where", US):
        pass


def test_a_folder_that_was_made_anew_is_held_anew(tmp_path: Path) -> None:
    """Between its opening and the lock somebody removed it and made another one."""
    data = tmp_path / "data"
    data.mkdir()

    def make_anew(_: object) -> None:
        data.rmdir()
        data.mkdir()

    with just_before(fcntl.flock, make_anew), held(data, "fills"), pytest.raises(LockedError), held(data, "fills"):
        pass


@pytest.mark.rule(53)
def test_the_one_that_comes_second_is_refused(restore_world: World, place: Path) -> None:
    request, plan = planned(restore_world, place, Target("immediate"), work_dir=place / "of another pod")
    with held_target(request.data, request.account):
        with pytest.raises(LockedError, match=f"another restore fills {request.data}"):
            restore(restore_world.reading(), request, plan)
        assert list(request.data.iterdir()) == []


class Waking(LocalStore):
    """Whoever reads a backup's label through it finds, when he has it, that another machine's restore began in *data*."""

    data: Path

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        yield from super().get_stream(key, start=start, same_as=same_as)
        if f"/{LABEL}" in key:
            begin(self.data, server_account(), Found("unfinished"), [], version=VERSION, backup="b")


@pytest.mark.rule(53)
def test_the_one_that_wakes_up_late_writes_nothing_that_a_server_reads(restore_world: World, place: Path) -> None:
    """Without a lock that both see: as on a network file system."""
    request, plan = planned(restore_world, place, Target("immediate"))
    store = Waking(restore_world.repository)
    store.data = request.data
    with pytest.raises(LockedError, match=f"another restore fills {request.data}, or did, since this one began"):
        restore(replace(restore_world.work, store=store), request, plan)
    assert [entry.name for entry in request.data.iterdir()] == [MARKER]
