import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.format import names, physical_names
from clipper_backup.format.physical_names import PackKey
from clipper_backup.store.protocol import is_key
from clipper_backup.values import BackupId, Timeline
from clipper_backup.wal_names import Segment

RUN = BackupId("20261122-020000-7f3a9c2e")
SYSTEM = "7711155930822877805"
SEGMENT = Segment(Timeline(1), 13, 1 << 20)
PARTIAL = "00000001000000000000000D.partial-e53e315fe26b7ee9"


def test_where_things_lie() -> None:
    assert physical_names.system_key(1) == "systems/0001.json"
    assert physical_names.data_key_key(RUN) == "keys/20261122-020000-7f3a9c2e.age"
    assert physical_names.pack_key(RUN, 4) == "packs/20261122-020000-7f3a9c2e/00000004"
    assert physical_names.base_key(RUN, physical_names.MANIFEST) == "base/20261122-020000-7f3a9c2e/manifest.zst"
    assert physical_names.prune_key(RUN) == "prune/20261122-020000-7f3a9c2e.json"
    folder = f"wal/{SYSTEM}/00000001/0000000100000000/"
    assert physical_names.segment_folder(SYSTEM, SEGMENT) == folder
    assert physical_names.archive_key(SYSTEM, SEGMENT.name, physical_names.CLAIM) == f"{folder}{SEGMENT.name}.claim"
    assert physical_names.archive_key(SYSTEM, PARTIAL, ".zst.age") == f"{folder}{PARTIAL}.zst.age"
    assert physical_names.history_key(SYSTEM, Timeline(2), ".zst") == f"wal/{SYSTEM}/histories/00000002.history.zst"
    assert physical_names.times_folder(SYSTEM, Timeline(2)) == f"wal/{SYSTEM}/00000002/times/"


@pytest.mark.parametrize(
    "part", [*physical_names.SEALABLE, "manifest.zst.age", "packs.json.zst", "backup.json.sig", "a-later-one.2", "_", "0"]
)
def test_parts_of_a_base_backup_are_read_back(part: str) -> None:
    key = physical_names.base_key(RUN, part)
    parsed = physical_names.parse_base_key(key)
    assert parsed is not None
    assert (parsed.backup_id, parsed.part) == (RUN, part)
    assert is_key(key)


@given(st.integers(0, 99_999_999))
def test_packs_are_read_back(number: int) -> None:
    assert physical_names.parse_pack_key(physical_names.pack_key(RUN, number)) == PackKey(RUN, number)


def test_the_others_are_read_back() -> None:
    assert physical_names.parse_system_key(physical_names.system_key(12)) == 12
    assert physical_names.parse_data_key_key(physical_names.data_key_key(RUN)) == RUN
    assert physical_names.parse_prune_key(physical_names.prune_key(RUN)) == RUN


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        (SEGMENT.name, {".claim", ".link", ".zst", ".zst.age"}),
        (f"{SEGMENT.name}.00000028.backup", {".claim", ".zst", ".zst.age"}),
        (PARTIAL, {".zst", ".zst.age"}),
        ("00000002.history", {".claim", ".zst", ".zst.age"}),
    ],
)
def test_files_of_the_archive_are_read_back(name: str, suffixes: set[str]) -> None:
    read = {}
    for suffix in (".claim", ".link", ".zst", ".zst.age"):
        key = physical_names.archive_key(SYSTEM, name, suffix)
        assert is_key(key)
        if (parsed := physical_names.parse_archive_key(key)) is not None:
            read[suffix] = (parsed.system_id, parsed.name, parsed.suffix)
    assert read == {suffix: (SYSTEM, name, suffix) for suffix in suffixes}


@pytest.mark.parametrize(
    "key",
    [
        f"wal/{SYSTEM}/00000002/0000000100000000/{SEGMENT.name}.zst",
        f"wal/{SYSTEM}/00000001/0000000100000001/{SEGMENT.name}.zst",
        f"wal/0{SYSTEM}/00000001/0000000100000000/{SEGMENT.name}.zst",
        f"wal/{SYSTEM}/00000001/0000000100000000/{SEGMENT.name}.zst.tmp",
        f"wal/{SYSTEM}/00000001/0000000100000000/{SEGMENT.name}.partial.zst",
        f"wal/{SYSTEM}/00000001/times/{SEGMENT.name}-{SEGMENT.name}-000303E56199DE80.zst",
        f"wal/{SYSTEM}/histories/00000000.history.zst",
        f"wal/{SYSTEM}/histories/{SEGMENT.name}.zst",
    ],
)
def test_what_is_no_file_of_the_archive(key: str) -> None:
    assert physical_names.parse_archive_key(key) is None


@pytest.mark.parametrize("part", ["", ".x", "-x", "X", "a b", "a/b", "\xe4", "a\n"])
def test_what_is_no_part_of_a_base_backup(part: str) -> None:
    assert physical_names.parse_base_key(f"base/{RUN}/{part}") is None


@pytest.mark.parametrize("key", ["base/20261322-020000-7f3a9c2e/backup.json", "base/x"])
def test_what_is_of_no_base_backup(key: str) -> None:
    assert physical_names.parse_base_key(key) is None


def test_no_folder_of_base_backups_is_one_of_dumps() -> None:
    assert not set(physical_names.OWN) & set(names.OWN)
