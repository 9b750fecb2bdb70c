"""A folder is emptied, whatever is mounted in it; what could not be is refused before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipper_backup.errors import UsageError
from clipper_backup.ops.restore.clear import clear, refuse_unremovable
from clipper_backup.ops.restore.target_dir import wal_place
from clipper_backup.postgres.account import server_account
from fixtures.postgres import as_server_account

MOUNTED = """
import subprocess, sys
from pathlib import Path
from clipper_backup.ops.restore.clear import clear, refuse_unremovable
from clipper_backup.ops.restore.target_dir import size_of, wal_place
data = Path(sys.argv[1])
volume = data / "pg_wal"
volume.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
for folder in (volume / "lost+found", volume / "archive_status", data / "base/1"):
    folder.mkdir(parents=True)
for file in (volume / "000000010000000000000001", data / "base/1/2", data / "marker"):
    file.touch()
(volume / "000000010000000000000002").write_bytes(bytes(100_000))
print(wal_place(data), size_of([data])[data] < 100_000 <= size_of([volume])[volume])
for _ in range(2):
    refuse_unremovable(data)
    clear(data, but="marker")
    print(sorted(str(path.relative_to(data)) for path in data.rglob("*")), volume.is_mount())
"""


def test_a_volume_that_is_mounted_within_stays_and_is_emptied(tmp_path: Path) -> None:
    """A link's removal is not the only way to lose a pg_wal of its own: that of a mount point fails, each time again."""
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", MOUNTED, str(tmp_path / "data")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    place, *left = ran.stdout.splitlines()
    assert place == f"{tmp_path}/data/pg_wal True", "room is counted there"
    assert left == ["['marker', 'pg_wal', 'pg_wal/lost+found'] True"] * 2


def test_room_for_a_linked_pg_wal_is_counted_where_it_will_be(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "data/pg_wal").symlink_to(tmp_path / "volume")
    assert wal_place(tmp_path / "data") == tmp_path / "data"
    assert wal_place(tmp_path / "new") == tmp_path / "new"


def test_links_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    for folder in ("data/pg_tblspc", "elsewhere/5"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/pg_tblspc/16384").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/pg_wal").symlink_to(tmp_path / "gone")
    (tmp_path / "data/lost+found").mkdir()  # nothing is mounted there
    clear(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    assert (tmp_path / "elsewhere/5").is_dir()


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_what_may_not_be_removed_is_refused_before(place: Path, mode: int) -> None:
    data, logs = place / "data", place / "data/log"
    (data / "base").mkdir(parents=True)
    server_account().own(data)
    server_account().own(data / "base")
    logs.mkdir()
    (logs / "1.log").touch()
    logs.chmod(mode)
    if os.geteuid() == 0:
        refuse_unremovable(data)  # whom no mode stops
    refused = r"data cannot be replaced: what lies in .*/log cannot be removed"
    with as_server_account(), pytest.raises(UsageError, match=refused):
        refuse_unremovable(data)
    logs.chmod(0o755)
    (logs / "1.log").unlink()
    with as_server_account():
        refuse_unremovable(data)  # an empty one goes with its parent
        clear(data)
    assert list(data.iterdir()) == []
