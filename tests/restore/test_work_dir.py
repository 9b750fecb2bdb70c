"""Where a restore works: in no folder that somebody else uses, and in none that it fills."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipper_backup.errors import LockedError, UsageError
from clipper_backup.ops.restore.recovery import AUTO_CONF
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.restore.work_dir import OURS, check_work_folder, work_folder
from clipper_backup.postgres.account import Account, run, server_account
from clipper_backup.repository.restore_plan import read_plan
from fixtures.restore import World, planned, restored
from fixtures.server_program import server_environment

US = Account("us", os.geteuid(), os.getegid())


def test_one_restore_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with work_folder(tmp_path / "work", US, []):
        assert (tmp_path / "work").stat().st_mode & 0o777 == 0o700
        with pytest.raises(LockedError), work_folder(tmp_path / "work", US, []):
            pass
    (tmp_path / "work/of a killed restore").touch()
    with work_folder(tmp_path / "work", US, []):
        pass


def test_a_plan_says_where_none_can_be_made(place: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*/no to make the restore folder in"):
        check_work_folder(place / "no/where", US, [])
    if US.uid == 0:
        place.chmod(0o755)
        os.seteuid(1)
        try:
            with pytest.raises(UsageError, match="may not be written by us") as caught:
                check_work_folder(place / "work", US, [])
        finally:
            os.seteuid(0)
        assert "--work-dir" in caught.value.hints[0]


FLEETING = """
import subprocess, sys
from pathlib import Path
from clipper_backup.ops.restore.work_dir import fleeting
from clipper_backup.linux import kind_of_filesystem
layer, volume = Path(sys.argv[1]), Path(sys.argv[1]) / "a data"
for place in (layer, volume):
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
beside = layer / "a data.clipper-restore"
print([kind_of_filesystem(place) for place in (volume, layer / "x", Path("/proc/self"))])
print(fleeting(beside, volume), fleeting(volume / "work", volume / "pgdata"), fleeting(beside, layer / "data"), sep="|")
"""


def test_a_restore_folder_that_goes_with_its_container_is_seen(tmp_path: Path) -> None:
    """The data folder is a volume, and what lies beside it is the container's: the copy of the newest commits for one."""
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", FLEETING, str(tmp_path / "layer")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    kinds, told = ran.stdout.splitlines()
    assert kinds == "['tmpfs', 'tmpfs', 'proc']"
    beside, within, layer = told.split("|")
    assert beside.startswith(
        f"the restore folder {tmp_path}/layer/a data.clipper-restore would lie in {tmp_path}/layer, which is"
    )
    assert (within, layer) == ("None", "None")


@pytest.mark.rule(53)
def test_a_folder_of_others_is_not_touched(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "outside").mkdir(parents=True)
    (shared / "outside/thesis").touch()
    with pytest.raises(UsageError, match="is not empty, and no restore made it"), work_folder(shared, US, []):
        pass
    assert (shared / "outside/thesis").exists()
    assert not (shared / OURS).exists()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for mode, account in ((0o1777, US), (0o755, US), (0o750, Account("another", os.geteuid() + 1, os.getegid()))):
        scratch.chmod(mode)
        with pytest.raises(UsageError, match=r"is not for user .* alone") as caught, work_folder(scratch, account, []):
            pass
        assert caught.value.hints == (f"name a folder within it that does not exist: --work-dir {scratch}/restore",)
        assert scratch.stat().st_mode & 0o7777 == mode
    scratch.chmod(0o700)
    with work_folder(scratch, US, []):
        pass


@pytest.mark.rule(54)
def test_it_lies_beside_what_is_filled(tmp_path: Path) -> None:
    """What is saved lies there, and the target is emptied."""
    data, space = tmp_path / "a/data", tmp_path / "b/space"
    data.mkdir(parents=True)
    (tmp_path / "link").symlink_to(data)
    for folder in (data, data / "work", tmp_path / "a", space, space / "work", tmp_path / "b", tmp_path / "link/work"):
        with pytest.raises(UsageError, match="one within the other"):
            check_work_folder(folder, US, [data, space])
    check_work_folder(tmp_path / "a/data.clipper-restore", US, [data, space])


@pytest.mark.rule(56)
def test_whose_plan_another_restore_took_away_is_not_told_that_the_wal_ends(restore_world: World, place: Path) -> None:
    """One to the latest, not started yet; then one to an earlier place, in the same restore folder."""
    world = restore_world.copied_to(place)
    for path in (world.repository, *world.repository.rglob("*")):
        server_account().own(path)
    first = restored(world, place, Target("latest"), work_dir=place / "work")
    plan = read_plan(place / "work")
    (place / "two").mkdir()
    server_account().own(place / "two")

    def fetch(name: str) -> tuple[int, str]:
        found = re.search(r"^restore_command = '(.*)'$", (first.data / AUTO_CONF).read_text(), re.MULTILINE)
        assert found is not None
        command = found[1].replace("''", "'").replace("%f", name).replace("%p", str(first.data / "pg_wal/RECOVERYXLOG"))
        return run(["/bin/sh", "-c", command], server_account(), environment=server_environment())

    assert fetch(first.plan.wal.segments[0].name) == (0, "")
    restored(world, place / "two", Target("immediate"), work_dir=place / "work")
    last = read_plan(place / "work").last_segment
    assert last is not None
    assert last < first.plan.wal.segments[-1]
    code, said = fetch(last.next().name)
    assert (code, "is that of another restore" in said, plan.id in said) == (255, True, True)


@pytest.mark.rule(53)
def test_room_for_wal_is_needed_where_pg_wal_lies(restore_world: World, place: Path) -> None:
    """A restore folder on a small volume is refused for nothing else, and a full data volume is no surprise half-way."""
    _, plan = planned(restore_world, place, Target("immediate"), work_dir=place / "work")
    needed, gained = plan.space
    assert (place / "work" in needed, gained) == (False, {})
    assert needed[place / "data"] > plan.sizes[place / "data"] + (128 << 20)
