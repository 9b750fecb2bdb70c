"""After pg_upgrade: what lies before it is the former system's, and is found by its time."""

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from clipper_backup.cli.show_restore import plan_document, plan_text
from clipper_backup.errors import IntegrityError, MissingError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.documents import encode
from clipper_backup.ops.restore.targets import Target
from clipper_backup.repository.base_backups import read_base_summary
from clipper_backup.repository.systems import add_system, list_systems
from clipper_backup.values import BackupId
from fixtures.restore import World, planned

UPGRADED = "7711291921827848028"
ITS_BACKUP = "20991231-235959-01183c0b"


@pytest.mark.rule(59)
def test_a_time_before_an_upgrade_is_the_former_systems(restore_world: World, place: Path) -> None:
    world = restore_world.copied_to(place)
    store = world.work.store
    (former,) = list_systems(store)
    add_system(store, msgspec.structs.replace(former, system_id=UPGRADED, server_major=former.server_major + 1))
    last = world.moments[3]
    begun = last.at + timedelta(hours=1)
    summary = read_base_summary(store, BackupId.parse(world.backups[1]))
    theirs = msgspec.structs.replace(summary, system_id=UPGRADED, begun_at=begun, stopped_at=begun)
    written = encode(theirs).replace(summary.id.encode(), ITS_BACKUP.encode())
    store.put(f"{keys.BASE_FOLDER}{ITS_BACKUP}/{keys.BASE_SUMMARY}", written)

    request, plan = planned(world, place, Target("time", time=world.moments[2].at))
    assert (plan.summary.id, plan.followed_by) == (world.backups[1], UPGRADED)
    assert plan_document(request, plan)["followed_by"] == UPGRADED
    of = f"system {former.system_id}, of PostgreSQL {former.server_major}"
    assert f"{former.system_id}, of PostgreSQL {former.server_major}: {UPGRADED} followed it\n" in plan_text(request, plan)

    for target in (Target("name", name="moment 2"), Target("time", time=begun + timedelta(hours=1))):
        with pytest.raises(MissingError) as caught:
            planned(world, place, target)
        assert f"{of}, has backups of its own: --backup {world.backups[1]}" in caught.value.hints, caught.value.hints
    with pytest.raises(MissingError) as caught:
        planned(world, place, Target("time", time=begun - timedelta(minutes=1)))
    assert any(f"--backup {ITS_BACKUP}" in hint for hint in caught.value.hints), caught.value.hints
    _, named = planned(world, place, Target("name", name="moment 2"), backup=BackupId.parse(world.backups[1]))
    assert named.followed_by == UPGRADED


@pytest.mark.rule(59)
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_without_the_list_of_systems_a_named_backup_restores(restore_world: World, place: Path, harm: str) -> None:
    world = restore_world.copied_to(place)
    if harm == "missing":
        world.work.store.delete([keys.system_key(1)])
    else:
        world.work.store.put(keys.system_key(1), b"{")
    with pytest.raises(IntegrityError, match="systems/") as caught:
        planned(world, place, Target("latest"))
    assert any("--backup ID" in hint for hint in caught.value.hints), caught.value.hints
    _, named = planned(world, place, Target("latest"), backup=BackupId.parse(world.backups[1]))
    assert (named.summary.id, named.followed_by) == (world.backups[1], None)
