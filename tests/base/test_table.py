"""The table of files: sorted with as little memory as wanted, and the parent's found again."""

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import IntegrityError
from clipper_backup.format.manifest import Entry, File, Folder, Outside, as_path
from clipper_backup.ops.base.table import EntrySorter, KnownFiles

OWNED: Any = {"mode": 0o600, "uid": 1, "gid": 1, "mtime_ns": 0}


def entries(count: int, seed: int = 1) -> list[Entry]:
    made: list[Entry] = [File(**as_path(b"base/%d" % number), **OWNED, size_bytes=number) for number in range(count)]
    made += [Folder(**as_path(b"base"), **OWNED), File(**as_path(b"\xff"), **OWNED, size_bytes=7)]
    made += [Outside(**as_path(b"/etc/%d" % number), **OWNED, size_bytes=1) for number in range(3)]
    random.Random(seed).shuffle(made)
    return made


@pytest.mark.parametrize("run_bytes", [1, 5_000, 1 << 30])
def test_any_order_becomes_the_manifests_however_many_runs_it_takes(tmp_path: Path, run_bytes: int) -> None:
    sorter = EntrySorter(tmp_path, run_bytes)
    made = entries(200)
    for entry in made:
        sorter.add(entry)
    assert list(sorter.entries()) == sorted(made, key=lambda entry: entry.order)
    assert (sorter.files, sorter.size_bytes) == (204, sum(range(200)) + 7 + 3)
    runs = len(list(tmp_path.iterdir()))
    assert {1: runs == 205, 5_000: 10 < runs < 20, 1 << 30: runs == 0}[run_bytes]


@given(st.sets(st.binary(min_size=1, max_size=3).filter(lambda name: b"\n" not in name), max_size=80), st.binary(max_size=3))
def test_a_file_of_the_parent_is_found_by_its_path(names: set[bytes], other: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = [File(**as_path(name), **OWNED, size_bytes=number) for number, name in enumerate(sorted(names))]
        known = KnownFiles(Path(folder), [Folder(**as_path(b"f"), **OWNED), *made])
        assert list(known) == made
        for entry in made:
            assert known.find(entry.named) == entry
            assert known.find(entry.named, outside=True) is None
        assert (known.find(other) is None) == (other not in names)
        known.close()


def test_a_parent_that_is_damaged_is_not_used(tmp_path: Path) -> None:
    def broken() -> Any:
        yield File(**as_path(b"a"), **OWNED, size_bytes=1)
        raise IntegrityError("it ends too early")

    with pytest.raises(IntegrityError, match="ends too early"):
        KnownFiles(tmp_path, broken())
