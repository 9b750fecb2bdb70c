"""The program that reads a base backup without us: written from the page alone, it shows that the page is whole."""

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clipper_backup.format.physical_names import PACKS_FOLDER
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.store.local import LocalStore
from fixtures.base import Cluster, backed_up, work_for
from fixtures.docs import ROOT
from fixtures.keys import Key, opening, sealed_to
from fixtures.postgres import FAST, private_folder, server_binaries, sql

PROGRAM, FETCH = (ROOT / "docs/guides" / name for name in ("read_base_backup.py", "fetch_wal.sh"))
MAJOR = 15
ROWS = "SELECT count(*), sum(n), sum(hashtextextended(r::text, 0)) FROM rows r"


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


@pytest.mark.rule(27)
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_a_server_is_restored_without_us(archived15: Cluster, keys: dict[str, Key], sealed: bool) -> None:
    with private_folder() as folder:
        bucket, data = folder / "bucket", folder / "data"
        settings = sealed_to(keys) | opening(keys["operator"]) if sealed else {}
        work = work_for(archived15, LocalStore(bucket), None, **settings)
        backed_up(archived15, work)
        sql(archived15.server, "postgres", "CREATE TABLE between AS SELECT 42 AS n")
        summary = backed_up(archived15, work).summary
        rows = sql(archived15.server, "postgres", ROWS)  # other tests change them
        sql(archived15.server, "postgres", "DROP TABLE between")
        assert summary.pages.adopted > 0
        identity = [Path(shutil.copy(keys["recovery"].path, folder))] if sealed else []
        said = read(bucket, summary.id, data, *identity)
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.endswith(f"recovery begins with the segment {summary.first_segment}\n")
        verify = server_binaries(MAJOR).program("pg_verifybackup")
        told = subprocess.run(
            [verify, "--no-parse-wal", "--ignore=tablespace_map", data], capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stderr
        recover(folder, " ".join(["sh", str(FETCH), f"{bucket}/wal/{summary.system_id}", "%f", "%p", *map(str, identity)]), rows)


def recover(folder: Path, restore_command: str, rows: list[Any]) -> None:
    """Start a server on what was read, and look at what it holds."""
    (folder / "data" / "recovery.signal").touch()
    with (folder / "data" / "postgresql.auto.conf").open("a") as file:
        file.write(f"restore_command = '{restore_command}'\narchive_mode = off\n")
    for path in [folder, *folder.rglob("*")]:
        server_account().own(path)
    restored = PrivateServer(folder, server_binaries(MAJOR), environment=os.environ, port=0, settings=FAST)
    with restored:
        restored.start()
        while sql(restored, "postgres", "SELECT pg_is_in_recovery()") == [(True,)]:
            time.sleep(0.05)
        assert sql(restored, "postgres", "SELECT n FROM between") == [(42,)]
        assert sql(restored, "postgres", ROWS) == rows
        assert sql(restored, "postgres", "SELECT count(*) FROM away") == [(1000,)]
        ((place,),) = sql(restored, "postgres", "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'aside'")
        assert place.startswith(f"{folder}/data.tablespaces/")


def test_it_refuses_what_is_damaged(archived15: Cluster, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    store = LocalStore(bucket)
    summary = backed_up(archived15, work_for(archived15, store)).summary
    for number, info in enumerate([*store.list(PACKS_FOLDER), store.head(f"base/{summary.id}/manifest.zst")]):
        whole = store.get(info.key)
        store.put(info.key, whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        said = read(bucket, summary.id, tmp_path / f"data {number}")
        assert said.returncode == 1
        assert "is damaged, or not what this program can read" in said.stderr
        store.put(info.key, whole)
