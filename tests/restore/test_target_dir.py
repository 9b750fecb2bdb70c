"""What a restore refuses to fill, what it saves first, and that a killed one can be repeated."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import ClipperError, IntegrityError, UsageError
from clipper_backup.ops.restore.recovery import write_synced
from clipper_backup.ops.restore.saved_wal import save_wal
from clipper_backup.ops.restore.target_dir import (
    MARKER,
    Found,
    begin,
    check_account,
    check_space,
    check_tablespaces,
    finish,
    look_at,
    size_of,
)
from clipper_backup.postgres.account import Account, server_account
from clipper_backup.postgres.control_file import State
from clipper_backup.postgres.data_folder import NO_CONTROL_HINT, DataFolder
from fixtures.clocks import START
from fixtures.moments import just_before

SYSTEM = "7711155930822877805"
VERSION = "PG_15_202209061"
US = Account("us", os.geteuid(), os.getegid())


def control_file(system: str = SYSTEM, state: State = State.STARTING) -> bytes:
    """A pg_control that says who it is, that its last checkpoint's redo is in segment 8 of timeline 2, and little else."""
    head = struct.pack("<QIII", int(system), 1300, 202209061, state).ljust(32, b"\0")
    head = (head + struct.pack("<QQI", 8 << 20, (8 << 20) + 40, 2)).ljust(216, b"\0")
    head = (head + struct.pack("<IIII", 8192, 131072, 8192, 1 << 20)).ljust(288, b"\0")
    return (head + struct.pack("<I", google_crc32c.value(head))).ljust(8192, b"\0")


def make_cluster(data: Path, system: str = SYSTEM) -> Path:
    """A data folder whose server died, with WAL of which one segment was archived."""
    for folder in ("global", "base/5", "pg_wal/archive_status", "pg_tblspc"):
        (data / folder).mkdir(parents=True)
    (data / "PG_VERSION").write_text("15\n")
    (data / "global/pg_control").write_bytes(control_file(system))
    for name in ("00000002.history", "000000020000000000000007", "000000020000000000000008", "000000020000000000000009"):
        (data / "pg_wal" / name).write_bytes(name.encode())
    (data / "pg_wal/archive_status/000000020000000000000007.done").touch()
    (data / "pg_wal/archive_status/000000020000000000000008.ready").touch()
    (data / "pg_wal/xlogtemp.7").touch()
    return data


def look(data: Path, *, replace: bool = False, account: Account = US) -> str:
    return look_at(data, account, system_id=SYSTEM, replace=replace).state


@pytest.mark.rule(53)
def test_root_restores_nothing() -> None:
    with pytest.raises(UsageError, match="root restores nothing"):
        check_account(0)
    check_account(101)


def test_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    assert look(tmp_path / "new") == "absent"
    (tmp_path / "empty").mkdir()
    assert look(tmp_path / "empty") == "empty"


@pytest.mark.rule(53)
def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        look(tmp_path / "no/where")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"):
        look(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one").touch()
    for replace in (False, True):
        with pytest.raises(UsageError, match="is no data folder of PostgreSQL"):
            look(tmp_path / "photos", replace=replace)
    with pytest.raises(UsageError, match="belongs to the user with id"):
        look(tmp_path / "photos", account=Account("another", os.geteuid() + 1, os.getegid()))
    cluster = make_cluster(tmp_path / "cluster")
    with pytest.raises(UsageError, match="holds a data folder of this cluster") as caught:
        look(cluster)
    assert any("--replace" in hint for hint in caught.value.hints)
    assert look(cluster, replace=True) == "cluster"
    with pytest.raises(UsageError, match="holds another cluster, system 42"):
        look(make_cluster(tmp_path / "other", system="42"), replace=True)


@pytest.mark.rule(54)
@pytest.mark.parametrize("control", [None, b"", bytes(8192)], ids=["missing", "cut short", "zeros"])
def test_a_cluster_without_its_control_file_may_hold_wal_of_worth(tmp_path: Path, control: bytes | None) -> None:
    """With that of any other copy, what its server never archived can be."""
    cluster = make_cluster(tmp_path / "cluster")
    path = cluster / "global/pg_control"
    path.unlink()
    if control is not None:
        path.write_bytes(control)
        with pytest.raises(IntegrityError) as pushed:
            DataFolder(cluster, VirtualClock(START)).layout()
        assert NO_CONTROL_HINT in pushed.value.hints
    with pytest.raises(UsageError, match=r"is a damaged data folder: .*global/pg_control") as caught:
        look(cluster, replace=True)
    assert NO_CONTROL_HINT in caught.value.hints
    path.write_bytes(control_file())
    assert look(cluster, replace=True) == "cluster"


def test_a_linked_pg_wal_is_seen(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path / "cluster")
    assert look_at(cluster, US, system_id=SYSTEM, replace=True).wal_folder is None
    (cluster / "pg_wal").rename(tmp_path / "volume")
    (cluster / "pg_wal").symlink_to(tmp_path / "volume")
    assert look_at(cluster, US, system_id=SYSTEM, replace=True).wal_folder == tmp_path / "volume"


@pytest.mark.rule(54)
@pytest.mark.parametrize("gone", ["nothing there", "not mounted", "another volume", "no folder"])
def test_a_pg_wal_that_is_not_there_may_hold_the_newest_commits(tmp_path: Path, gone: str) -> None:
    cluster = make_cluster(tmp_path / "cluster")
    (cluster / "global/pg_control").write_bytes(control_file(state=State.IN_PRODUCTION))
    wal, volume = cluster / "pg_wal", tmp_path / "volume"
    wal.rename(volume)
    wal.symlink_to(volume)
    assert look(cluster, replace=True) == "cluster"
    volume.rename(tmp_path / "elsewhere")
    if gone == "not mounted":
        volume.mkdir()
    elif gone == "another volume":
        volume.mkdir()
        (volume / "000000020000000000000009").touch()
    elif gone == "no folder":
        wal.unlink()
    with pytest.raises(
        UsageError, match=r"the pg_wal of .* (leads to|is not there|does not hold 000000020000000000000008)"
    ) as caught:
        look(cluster, replace=True)
    assert "Mount it" in caught.value.hints[0]
    if gone != "no folder":
        volume.mkdir(exist_ok=True)
        (volume / "000000020000000000000008.partial").touch()  # what a server that was promoted made of it
        assert look(cluster, replace=True) == "cluster"


@pytest.fixture
def process_in(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose working folder is `cluster`, as a postmaster's is."""
    command = [sys.executable, "-I", "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        command, cwd=make_cluster(tmp_path / "cluster"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


@pytest.mark.rule(53)
def test_a_running_server_is_refused(tmp_path: Path, process_in: "subprocess.Popen[bytes]") -> None:
    pid_file = tmp_path / "cluster/postmaster.pid"
    for first in (process_in.pid, -process_in.pid):
        pid_file.write_text(f"{first}\n{tmp_path}/cluster\n")
        with pytest.raises(UsageError, match=f"a PostgreSQL server runs in .*, as process {process_in.pid}"):
            look(tmp_path / "cluster", replace=True)
    process_in.communicate()
    for number in (str(process_in.pid), str(os.getpid()), "0", ""):  # in another container it may have any number, and live
        pid_file.write_text(f"{number}\n")
        with pytest.raises(UsageError, match=r"a PostgreSQL server may run in .*: it has a postmaster.pid") as caught:
            look(tmp_path / "cluster", replace=True)
        assert caught.value.hints[-1].endswith(f"rm {pid_file}")
    pid_file.unlink()
    assert look(tmp_path / "cluster", replace=True) == "cluster"


@pytest.mark.rule(54)
def test_wal_that_was_not_archived_is_saved_first(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path / "cluster")
    archived = "000000020000000000000007"
    saved = save_wal(cluster, tmp_path / "work/saved", US, {archived, "000000020000000000000008"})
    assert saved == ["00000002.history", "000000020000000000000009"]
    assert sorted(path.name for path in (tmp_path / "work/saved").iterdir()) == [*saved, "PG_VERSION", "pg_control"]
    assert archived in save_wal(cluster, tmp_path / "work/lost", US, ()), "its note is no word of the archive"
    begin(cluster, US, Found("cluster"), [], version=VERSION, backup="b")
    assert sorted(entry.name for entry in cluster.iterdir()) == [MARKER]
    for name in saved:
        assert (tmp_path / "work/saved" / name).read_bytes() == name.encode()


def start(data: Path, *spaces: Path, replace: bool = False) -> Found:
    """As a restore does it: what it found."""
    found = look_at(data, US, system_id=SYSTEM, replace=replace)
    check_tablespaces(data, dict(enumerate(spaces, 16384)), found, US, version=VERSION)
    begin(data, US, found, spaces, version=VERSION, backup="b")
    return found


def files_in(space: Path) -> None:
    (space / VERSION / "5").mkdir(parents=True)
    (space / VERSION / "5/16400").touch()


def test_a_killed_restore_can_be_repeated(tmp_path: Path) -> None:
    """Whatever is there after a kill, the same restore begins anew, and its tablespaces are emptied too."""
    data, space = tmp_path / "data", tmp_path / "space"
    start(data, space)
    assert look(data) == "unfinished"
    files_in(space)
    (data / "base").mkdir()
    (data / "base/1").touch()
    assert look_at(data, US, system_id="another", replace=False).tablespaces == (space,)
    start(data)  # elsewhere: it stays as it is, and known
    assert (space / VERSION).exists()
    start(data, space)
    assert sorted(entry.name for entry in data.iterdir()) == [MARKER]
    assert [entry.name for entry in space.iterdir()] == [MARKER]
    assert data.stat().st_mode & 0o777 == 0o700
    finish(data, [space])
    assert look(data) == "empty"
    assert list(space.iterdir()) == []


@pytest.mark.rule(53)
def test_a_restore_that_was_killed_at_its_last_step_may_have_been_used_since(tmp_path: Path) -> None:
    """All was written but for taking the marker away: its server could be started, and was."""
    data = tmp_path / "data"
    start(data)
    make_cluster(data)
    with pytest.raises(UsageError, match="holds a data folder of this cluster") as refused:
        look(data)
    assert refused.value.hints[0].endswith(f"after rm {data / MARKER}")
    assert look(data, replace=True) == "cluster"
    (data / "base").mkdir(exist_ok=True)
    start(data, replace=True)
    assert sorted(entry.name for entry in data.iterdir()) == [MARKER]


def test_a_replacement_that_is_killed_while_it_empties_is_unfinished(tmp_path: Path) -> None:
    """pg_control goes first, so that what is left of a cluster is never taken for one."""
    data = make_cluster(tmp_path / "data")
    (data / "base").mkdir(exist_ok=True)

    def interrupts(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), just_before(os.rmdir, interrupts):
        start(data, replace=True)
    assert not (data / "global/pg_control").exists()
    assert (data / "global").is_dir()
    assert look(data) == "unfinished"


@pytest.mark.rule(53)
def test_a_tablespace_of_an_unfinished_restore_that_is_anothers_by_now_is_not_emptied(tmp_path: Path) -> None:
    """The marker of the killed restore still names it."""
    data, space = tmp_path / "data", tmp_path / "space"
    start(data, space)
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    with pytest.raises(UsageError, match="which is not empty"):
        start(copy, space)  # the restore that was copied may still go on
    (space / MARKER).unlink()
    files_in(space)
    assert start(data, tmp_path / "elsewhere").tablespaces == ()
    with pytest.raises(UsageError, match=f"which is not empty: it holds {VERSION}"):
        start(data, space)
    assert (space / VERSION / "5/16400").exists()


def test_a_marker_that_was_being_written_is_ours(tmp_path: Path) -> None:
    data, space = tmp_path / "data", tmp_path / "space"
    for folder in (data, space):
        folder.mkdir()
        (folder / f"{MARKER}.new").write_text("{")
    assert look(data) == "unfinished"
    start(data, space)
    assert sorted(entry.name for entry in data.iterdir()) == [MARKER]


def test_tablespaces_of_a_replaced_cluster_are_emptied(tmp_path: Path) -> None:
    cluster, space = make_cluster(tmp_path / "cluster"), tmp_path / "space"
    files_in(space)
    (cluster / "pg_tblspc/16384").symlink_to(space)
    start(cluster, space, replace=True)
    assert [entry.name for entry in space.iterdir()] == [MARKER]


@pytest.mark.rule(53)
def test_tablespaces_that_are_put_elsewhere_are_left_alone(tmp_path: Path) -> None:
    """The target may be a copy of a data folder: its links lead to what the living server has."""
    cluster, space = make_cluster(tmp_path / "cluster"), tmp_path / "space"
    files_in(space)
    (cluster / "pg_tblspc/16384").symlink_to(space)
    start(cluster, tmp_path / "elsewhere", replace=True)
    assert (space / VERSION / "5/16400").exists()
    assert [entry.name for entry in space.iterdir()] == [VERSION]


@pytest.mark.rule(53)
def test_a_tablespace_that_a_running_server_has_too_is_refused(tmp_path: Path, process_in: "subprocess.Popen[bytes]") -> None:
    living, space = tmp_path / "cluster", tmp_path / "space"
    files_in(space)
    (living / "postmaster.pid").write_text(f"{process_in.pid}\n")
    copy = make_cluster(tmp_path / "copy")
    for data in (living, copy):
        (data / "pg_tblspc/16384").symlink_to(space)
    with pytest.raises(UsageError, match=f"belongs to the server that runs in {living}"):
        start(copy, space, replace=True)
    assert (space / VERSION / "5/16400").exists()
    process_in.communicate()
    start(copy, space, replace=True)


def test_a_tablespace_with_another_versions_files_is_refused(tmp_path: Path) -> None:
    """pg_upgrade leaves the new server's beside the old one's."""
    cluster, space = make_cluster(tmp_path / "cluster"), tmp_path / "space"
    files_in(space)
    (space / "PG_18_202506291").mkdir()
    (cluster / "pg_tblspc/16384").symlink_to(space)
    with pytest.raises(UsageError, match="it holds PG_18_202506291"):
        start(cluster, space, replace=True)


@pytest.mark.rule(35)
def test_tablespaces_that_cannot_lie_there_are_refused(tmp_path: Path) -> None:
    data, found = tmp_path / "data", look_at(tmp_path / "data", US, system_id=SYSTEM, replace=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "old/PG_15_202209061").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "in data").symlink_to(data / "base")
    for folders, words in (
        ({1: tmp_path / "a", 2: tmp_path / "a"}, "one within the other"),
        ({1: tmp_path / "a", 2: tmp_path / "a/b"}, "one within the other"),
        ({1: data / "pg_tblspc/1"}, "one within the other"),
        ({1: tmp_path}, "one within the other"),
        ({1: tmp_path / "a", 2: tmp_path / "link"}, "one within the other"),
        ({1: tmp_path / "in data/1"}, "one within the other"),
        ({1: Path("relative")}, "absolute path"),
        ({1: tmp_path / "full"}, "not empty"),
        ({1: tmp_path / "old"}, "not empty"),
        ({1: tmp_path / "full/file/below"}, "may not be written"),
    ):
        with pytest.raises(UsageError, match=words):
            check_tablespaces(data, folders, found, US, version=VERSION)
    check_tablespaces(data, {1: tmp_path / "a", 2: tmp_path / "b/c"}, found, US, version=VERSION)


@pytest.mark.skipif(US.uid != 0, reason="needs a folder of another user")
def test_a_folder_of_another_user_that_nobody_else_enters_is_refused(place: Path) -> None:
    """It cannot be listed either: that is no bug of ours."""
    (place / "another's").mkdir(mode=0o700)
    account = server_account()
    place.chmod(0o755)
    os.seteuid(account.uid)
    try:
        with pytest.raises(UsageError, match="belongs to another user") as caught:
            check_tablespaces(place / "data", {1: place / "another's"}, Found("absent"), account, version=VERSION)
    finally:
        os.seteuid(0)
    assert "--tablespace 1=" in caught.value.hints[0]


@pytest.mark.rule(53)
def test_too_little_space_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(ClipperError, match=r"the restore needs .* which has"):
        check_space({tmp_path / "not/there/yet": free, tmp_path: 1 << 30}, {})
    check_space({tmp_path / "not/there/yet": free, tmp_path: 1 << 30}, {tmp_path: 2 << 30})
    (tmp_path / "file").write_bytes(bytes(100_000))
    assert size_of([tmp_path])[tmp_path] >= 100_000


# -- what the account put there while we, perhaps as root, work in its folders


def test_what_is_written_goes_through_no_link_that_lies_there(tmp_path: Path) -> None:
    data, victim = tmp_path / "data", tmp_path / "victim"
    data.mkdir()
    victim.write_text("another's")
    for name in (f"{MARKER}.new", "backup_label"):
        (data / name).symlink_to(victim)
    write_synced(data / "backup_label", b"ours", US)
    begin(data, US, Found("empty"), [], version=VERSION, backup="it", saved=None)
    assert victim.read_text() == "another's"
    assert (data / MARKER).is_file()
    assert not (data / MARKER).is_symlink()


def test_a_file_keeps_its_content_where_its_other_name_is_written_anew(tmp_path: Path) -> None:
    """A hard link is no link to open(2): it is taken away, not written through."""
    (tmp_path / "victim").write_text("another's")
    (tmp_path / "backup_label").hardlink_to(tmp_path / "victim")
    write_synced(tmp_path / "backup_label", b"ours", US)
    assert ((tmp_path / "victim").read_text(), (tmp_path / "backup_label").read_text()) == ("another's", "ours")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")
def test_a_link_is_given_away_and_not_what_it_leads_to(tmp_path: Path) -> None:
    account = Account("theirs", 12345, 12346)
    (tmp_path / "victim").mkdir()
    (tmp_path / "socket").symlink_to(tmp_path / "victim")
    account.own(tmp_path / "socket")
    with account.create(tmp_path / "made"):
        owners = [((tmp_path / name).lstat().st_uid, (tmp_path / name).lstat().st_gid) for name in ("victim", "socket", "made")]
    assert owners == [(0, 0), (12345, 12346), (12345, 12346)]
