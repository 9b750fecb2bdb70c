"""A restore removes neither the backups nor the keys to them, wherever somebody put those."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import Settings
from clipper_backup.errors import UsageError
from clipper_backup.ops.events import ignore
from clipper_backup.ops.restore.needed import refuse_needed
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.work import Work
from clipper_backup.store.local import LocalStore
from clipper_backup.store.memory import MemoryStore
from fixtures.restore import World, planned, restored


@pytest.mark.rule(53)
def test_a_repository_within_the_data_folder_ends_its_replacement(restore_world: World, place: Path) -> None:
    world = restore_world.copied_to(place)
    data = restored(world, place, Target("immediate")).data
    shutil.move(world.repository, data / "our backups")
    inside = replace(world, work=replace(world.work, store=LocalStore(data / "our backups")))
    with pytest.raises(UsageError, match=f"the repository, {data}/our backups, lies in {data}, which is emptied first") as caught:
        planned(inside, place, Target("immediate"), replace=True)
    assert "--target-dir" in caught.value.hints[1]


@pytest.mark.rule(53)
def test_keys_within_a_folder_that_is_emptied(tmp_path: Path) -> None:
    data, aside = tmp_path / "data", tmp_path / "aside"
    (data / "keys").mkdir(parents=True)
    (data / "keys/identity").touch()
    (tmp_path / "link").symlink_to(data / "keys/identity")
    clock = SystemClock()
    outside = Work(Settings(), MemoryStore(clock), clock, ignore)
    for settings, name in (
        (Settings(encryption_identity_file=data / "keys/identity"), "ENCRYPTION_IDENTITY_FILE"),
        (Settings(encryption_identity_file=tmp_path / "link"), "ENCRYPTION_IDENTITY_FILE"),
        (Settings(signing_key_file=data / "keys/signer"), "SIGNING_KEY_FILE"),
    ):
        refuse_needed(replace(outside, settings=settings), [aside])
        refuse_needed(replace(outside, settings=settings), [])
        with pytest.raises(UsageError, match=f"the key in {name}, .*, lies in {data}"):
            refuse_needed(replace(outside, settings=settings), [aside, data])
    refuse_needed(replace(outside, settings=Settings(signing_key_file=Path("none"))), [data])
    refuse_needed(outside, [data])
