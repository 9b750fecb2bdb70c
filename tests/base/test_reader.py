"""The program that reads a base backup without us: written from the page alone, it shows that the page is whole."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipper_backup.format.physical_names import PACKS_FOLDER
from clipper_backup.store.local import LocalStore
from fixtures.base import Cluster, archived_cluster, backed_up, work_for
from fixtures.docs import ROOT
from fixtures.keys import Key, opening, sealed_to
from fixtures.postgres import server_binaries, sql

PROGRAM = ROOT / "docs/guides/read_base_backup.py"
MAJOR = 15


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with archived_cluster(MAJOR) as cluster:
        sql(cluster.server, "postgres", "CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n")
        yield cluster


def read(bucket: Path, backup: str, target: Path, *identity: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", PROGRAM, bucket, backup, target, *identity], capture_output=True, text=True, check=False
    )


def test_it_is_short_and_imports_nothing_of_ours() -> None:
    text = PROGRAM.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    trees = list(ast.walk(ast.parse(text)))
    imported = {alias.name for tree in trees if isinstance(tree, ast.Import) for alias in tree.names}
    imported |= {tree.module or "" for tree in trees if isinstance(tree, ast.ImportFrom)}
    others = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    assert others == {"backports", "zstandard", "cryptography", "blake3"}


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_it_reads_what_was_backed_up_twice(cluster: Cluster, tmp_path: Path, keys: dict[str, Key], sealed: bool) -> None:
    bucket = tmp_path / "bucket"
    settings = sealed_to(keys) | opening(keys["operator"]) if sealed else {}
    work = work_for(cluster, LocalStore(bucket), **settings)
    backed_up(cluster, work)
    sql(cluster.server, "postgres", "UPDATE t SET md5 = 'changed' WHERE n % 5000 = 0")
    summary = backed_up(cluster, work).summary
    assert summary.pages.adopted > 0
    identity = [keys["recovery"].path] if sealed else []
    said = read(bucket, summary.id, tmp_path / "data", *identity)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.endswith(f"recovery begins with the segment {summary.first_segment}\n")
    verify = server_binaries(MAJOR).program("pg_verifybackup")
    told = subprocess.run([verify, "--no-parse-wal", tmp_path / "data"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_it_refuses_what_is_damaged(cluster: Cluster, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    store = LocalStore(bucket)
    summary = backed_up(cluster, work_for(cluster, store)).summary
    for number, info in enumerate([*store.list(PACKS_FOLDER), store.head(f"base/{summary.id}/manifest.zst")]):
        whole = store.get(info.key)
        store.put(info.key, whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        said = read(bucket, summary.id, tmp_path / f"data {number}")
        assert said.returncode == 1
        assert "is damaged, or not what this program can read" in said.stderr
        store.put(info.key, whole)
