"""Files of a base backup as they are written: in what order they become durable, and what is refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from clipper_backup.errors import ClipperError, IntegrityError, LockedError
from clipper_backup.format.frames import STRETCH_BYTES, Reference, Small
from clipper_backup.format.manifest import Entry, File, Folder, Outside, Tablespace
from clipper_backup.format.physical_names import PackKey
from clipper_backup.ops.restore.files import CONTROL, FileWriter, Places, flush
from clipper_backup.ops.restore.target_dir import MARKER
from clipper_backup.postgres.account import Account
from clipper_backup.values import BackupId
from fixtures.moments import just_before
from fixtures.page_cache import goes_past_it, is_cached

US = Account("us", os.geteuid(), os.getegid())
RUN = BackupId.parse("20261122-020000-7f3a9c2e")
HOW = {"mode": 0o600, "uid": 0, "gid": 0, "mtime_ns": 0}


def reference(number: int) -> Reference:
    return Reference(PackKey(RUN, 0), 64 + number, 1, 1, number, bytes(16))


class Stored:
    """Every stretch is its frame's number over and over, every small file its place; frame 99 is damaged."""

    def stretch(self, reference: Reference, size_bytes: int, room: memoryview) -> memoryview:
        if reference.number == 99:
            raise IntegrityError("packs/… is damaged")
        room[:size_bytes] = bytes([reference.number]) * size_bytes
        return room[:size_bytes]

    def small(self, small: Small, size_bytes: int) -> bytes:
        return bytes([small.start]) * size_bytes


def maps(*numbers: int) -> dict[str, object]:
    return {"maps": tuple(tuple(reference(number).to_json()) for number in numbers)}


def small(start: int) -> dict[str, object]:
    return {"small": (tuple(reference(0).to_json()), start, "00" * 32)}


def entries(second: int = 2) -> Iterator[Entry]:
    yield File(path="PG_VERSION", size_bytes=3, **HOW, **small(7))  # type: ignore[arg-type] # a mapping of fields
    yield Folder(path="base", **HOW | {"mode": 0o750})  # type: ignore[arg-type]
    yield File(path="base/1", size_bytes=STRETCH_BYTES + 10, **HOW, **maps(1, second))  # type: ignore[arg-type]
    yield File(path="empty", size_bytes=0, **HOW)  # type: ignore[arg-type]
    yield Folder(path="global", **HOW)  # type: ignore[arg-type]
    yield File(path=CONTROL.decode(), size_bytes=5, **HOW, **small(9))  # type: ignore[arg-type]
    yield Folder(path="pg_tblspc", **HOW)  # type: ignore[arg-type]
    yield Tablespace(path="pg_tblspc/16384", target="/where/it/was", **HOW)  # type: ignore[arg-type]
    yield Folder(path="pg_tblspc/16384/PG_15_1", **HOW)  # type: ignore[arg-type]
    yield File(path="pg_tblspc/16384/PG_15_1/2", size_bytes=8, **HOW, **small(3))  # type: ignore[arg-type]
    yield Outside(path="/etc/postgresql/pg_hba.conf", size_bytes=4, **HOW, **small(5))  # type: ignore[arg-type]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "data").mkdir()
    return Places(tmp_path / "data", tmp_path / "outside", {16384: tmp_path / "spaces/one"}, US)


@pytest.mark.rule(71)
def test_everything_is_synced_before_pg_control_is_there(places: Places) -> None:
    seen: list[tuple[set[Path], bool, int]] = []

    def look(frame: FrameType) -> None:
        folders = frame.f_locals["folders"]
        seen.append((folders, (places.data / "global/pg_control").exists(), (places.data / "base/1").stat().st_size))

    wrote: list[int] = []
    writer = FileWriter(places, Stored(), wrote.append, STRETCH_BYTES)
    writer.write(entries())
    assert not (places.data / "global/pg_control").exists()
    with just_before(flush, look):
        writer.finish(lambda: None)
    assert seen == [({places.data, places.outside, places.tablespaces[16384]}, False, STRETCH_BYTES + 10)]
    assert (places.data / "global/pg_control").read_bytes() == b"\t" * 5
    assert (places.data / "PG_VERSION").read_bytes() == b"\7" * 3
    content = (places.data / "base/1").read_bytes()
    assert (content.count(b"\1"), content[STRETCH_BYTES:]) == (STRETCH_BYTES, b"\2" * 10)
    assert (places.data / "base").stat().st_mode & 0o777 == 0o750
    assert (places.data / "base/1").stat().st_mode & 0o777 == 0o600
    assert (places.data / "empty").read_bytes() == b""
    assert (places.data / "pg_tblspc/16384").readlink() == places.tablespaces[16384]
    assert (places.tablespaces[16384] / "PG_15_1/2").read_bytes() == b"\3" * 8
    assert writer.has_outside
    assert (places.outside / "etc/postgresql/pg_hba.conf").read_bytes() == b"\5" * 4
    assert sum(wrote) == STRETCH_BYTES + 10 + 3 + 5 + 8 + 4


@pytest.mark.rule(71)
def test_a_volume_within_the_data_folder_is_synced_too(places: Places) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", MOUNTED, str(places.data)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "True\n")


MOUNTED = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from clipper_backup.ops.restore import files
from restore.test_files import US, Stored, entries
data = Path(sys.argv[1])
(data / "base").mkdir()
subprocess.run(["mount", "-t", "tmpfs", "none", data / "base"], check=True)
synced, really = set(), files.sync_filesystem
def sync(descriptor):
    synced.add(os.fstat(descriptor).st_dev)
    really(descriptor)
files.sync_filesystem = sync
places = files.Places(data, data.parent / "outside", {16384: data.parent / "space"}, US)
writer = files.FileWriter(places, Stored(), lambda _: None, 64 << 20)
writer.write(entries())
writer.finish(lambda: None)
print((data / "base").stat().st_dev in synced)
"""
"""A volume at base, as some have a database's on a disk of its own; the devices that were synced."""


def test_the_marker_of_an_earlier_restore_in_a_backup_is_left_out(places: Places) -> None:
    (places.data / MARKER).touch()
    backed_up = [File(path=MARKER, size_bytes=3, **HOW, **small(7)), *entries()]  # type: ignore[arg-type] # a mapping of fields
    FileWriter(places, Stored(), lambda _: None, STRETCH_BYTES).write(backed_up)
    assert (places.data / MARKER).read_bytes() == b""


def test_what_is_large_goes_past_the_page_cache(places: Places, tmp_path: Path) -> None:
    FileWriter(places, Stored(), lambda _: None, STRETCH_BYTES).write(entries())
    assert is_cached(places.data / "base/1") != goes_past_it(tmp_path)
    assert is_cached(places.data / "pg_tblspc/16384/PG_15_1/2"), "what is small does not"


class OffBlocks(Stored):
    """Its stretches lie in memory as O_DIRECT does not take it."""

    def stretch(self, reference: Reference, size_bytes: int, room: memoryview) -> memoryview:
        content = memoryview(bytearray(size_bytes + 1))[1:]
        content[:] = super().stretch(reference, size_bytes, room)
        return content


def test_what_direct_writes_refuse_goes_through_it(places: Places) -> None:
    FileWriter(places, OffBlocks(), lambda _: None, STRETCH_BYTES).write(entries())
    content = (places.data / "base/1").read_bytes()
    assert (content.count(b"\1"), content[STRETCH_BYTES:]) == (STRETCH_BYTES, b"\2" * 10)
    assert is_cached(places.data / "base/1")


def test_damage_ends_it_without_pg_control(places: Places) -> None:
    with pytest.raises(IntegrityError, match="is damaged"):
        FileWriter(places, Stored(), lambda _: None, STRETCH_BYTES).write(entries(second=99))
    assert not (places.data / "global/pg_control").exists()


@pytest.mark.rule(53)
def test_what_is_another_restores_by_now_gets_no_pg_control(places: Places) -> None:
    def check() -> None:
        raise LockedError("another restore fills it")

    writer = FileWriter(places, Stored(), lambda _: None, STRETCH_BYTES)
    writer.write(entries())
    with pytest.raises(LockedError):
        writer.finish(check)
    assert list((places.data / "global").iterdir()) == []


def test_a_manifest_without_pg_control_is_refused(places: Places) -> None:
    without = (entry for entry in entries() if entry.named != CONTROL)
    with pytest.raises(IntegrityError, match="has no global/pg_control"):
        FileWriter(places, Stored(), lambda _: None, STRETCH_BYTES).write(without)


def test_what_the_filesystem_refuses_is_told(places: Places) -> None:
    (places.data / "PG_VERSION").touch()
    with pytest.raises(ClipperError, match=r"cannot write .*PG_VERSION: File exists"):
        FileWriter(places, Stored(), lambda _: None, STRETCH_BYTES).write(entries())
