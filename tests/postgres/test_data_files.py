"""Reading a data folder that its server goes on writing; and page checksums, as real servers of both versions wrote them."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import ClipperError, ServerError
from clipper_backup.postgres.base_backup import Member
from clipper_backup.postgres.data_file import DataFile, PageChecks
from clipper_backup.postgres.data_walk import DataWalk, Found
from clipper_backup.postgres.page_checksums import is_new, page_lsns, wrong_pages
from clipper_backup.values import Lsn
from fixtures.base import Cluster
from fixtures.clocks import START
from fixtures.postgres import as_server_account, private_folder, sql

PAGE = 8192
FAR = Lsn(1 << 60)


def found(path: Path, relation_file: int | None = None) -> Found:
    info = path.stat()
    name = os.fsencode(path.name)
    return Found(
        Member(name, "file", 0o600, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_size), os.fsencode(path), relation_file
    )


def opened(path: Path, checks: PageChecks | None = None, relation_file: int | None = None) -> DataFile:
    file = DataFile.open(found(path, relation_file), checks)
    assert file is not None
    return file


def read(file: DataFile, start: int = 0) -> bytes:
    """All of it that it had when it was opened."""
    content = bytearray(b"\xee" * (file.identity.size_bytes - start))
    file.read(memoryview(content), start)
    return bytes(content)


# -- files that change


@pytest.mark.rule(29)
def test_a_file_is_what_it_was_when_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "16384"
    before = random.Random(1).randbytes(5 * (1 << 20) + 3)
    path.write_bytes(before)
    file = opened(path)
    with path.open("ab") as more:
        more.write(b"grown")
    assert read(file) == before
    assert read(file, 1 << 20) == before[1 << 20 :]
    os.truncate(path, 2 * (1 << 20) + 1)
    assert read(file) == before[: 2 * (1 << 20) + 1].ljust(len(before), b"\0")
    path.unlink()
    assert read(file)[:100] == before[:100]
    os.truncate(f"/proc/self/fd/{file._descriptor}", 0)
    assert read(file) == bytes(len(before))
    file.close()


@pytest.mark.rule(29)
def test_a_file_that_is_gone_is_none_and_another_kind_of_thing_is_told(tmp_path: Path) -> None:
    path = tmp_path / "16384"
    path.write_bytes(b"x")
    at = found(path)
    path.unlink()
    assert DataFile.open(at, None) is None
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClipperError, match=r"cannot read .*16384"):
        DataFile.open(at, None)


def data_folder(path: Path) -> Path:
    for name in ("base/5", "global", "pg_tblspc", "pg_wal/archive_status", "base/16400"):
        (path / name).mkdir(parents=True)
    for name in ("PG_VERSION", "base/5/PG_VERSION", "base/5/1259", "base/16400/1259", "global/1262", "global/pg_control"):
        (path / name).write_bytes(b"x")
    return path


@pytest.mark.rule(29)
@pytest.mark.parametrize("when", ["before its folder comes", "behind its folder"])
def test_a_database_that_is_dropped_while_we_walk_is_left_out(tmp_path: Path, when: str) -> None:
    data = data_folder(tmp_path / "data")
    seen = []
    for each in DataWalk(os.fsencode(data), 18, 202506291, os.fsencode(data)):
        seen.append(each.member.path)
        if seen[-1] == (b"base" if when.startswith("before") else b"base/16400"):
            (data / "base/16400/1259").unlink()
            (data / "base/16400").rmdir()
    left = [] if when.startswith("before") else [b"base/16400"]
    assert [path for path in seen if path.startswith(b"base/")] == [*left, b"base/5", b"base/5/1259", b"base/5/PG_VERSION"]
    assert b"pg_wal/summaries" in seen
    assert b"global/pg_control" not in seen


@pytest.mark.rule(35)
def test_a_tablespace_that_is_not_mounted_here_ends_it(tmp_path: Path) -> None:
    data, space = data_folder(tmp_path / "data"), tmp_path / "space"
    (data / "pg_tblspc/16390").symlink_to(space)
    walk = DataWalk(os.fsencode(data), 15, 202209061, b"/var/lib/postgresql")
    with pytest.raises(ServerError, match="the tablespace 16390 is not there") as refused:
        list(walk)
    assert "must be mounted here at the same place" in refused.value.hints[0]
    (space / "PG_15_202209061/5").mkdir(parents=True)
    (space / "PG_16_1/5").mkdir(parents=True)  # of a newer server that shares it, as pg_upgrade leaves it
    (space / "PG_15_202209061/5/16391").write_bytes(b"x")
    within = [each.member.path for each in walk if each.member.path.startswith(b"pg_tblspc/")]
    version = b"pg_tblspc/16390/PG_15_202209061"
    assert within == [version, version + b"/5", version + b"/5/16391"]
    assert [tablespace.path for tablespace in walk.tablespaces] == [os.fsencode(space)]


def test_what_may_not_be_read_is_named() -> None:
    with private_folder() as folder:
        data = data_folder(folder / "data")
        (data / "base/5").chmod(0)
        with as_server_account(), pytest.raises(ClipperError, match="base/5: permission denied") as refused:
            list(DataWalk(os.fsencode(data), 15, 1, b"/data"))
        assert "run this as the account of the server" in refused.value.hints[0]
        (data / "base/5").chmod(0o700)


# -- checksums


def relation_pages(cluster: Cluster) -> bytes:
    """A table's and an index's pages, as the server wrote them; the page number of the first is 0 in both."""
    server = cluster.server
    sql(server, "postgres", "DROP TABLE IF EXISTS summed")
    sql(server, "postgres", "CREATE TABLE summed AS SELECT n, md5(n::text) t FROM generate_series(1, 40000) n")
    sql(server, "postgres", "CREATE INDEX ON summed (t)")
    sql(server, "postgres", "CHECKPOINT")
    ((table, index),) = sql(
        server, "postgres", "SELECT pg_relation_filepath('summed'), pg_relation_filepath('summed_t_idx')"
    )  # fmt: skip
    content: bytes = (server.data / table).read_bytes()
    content = content[: int((~is_new(content, PAGE)).sum()) * PAGE]  # a server extends a table by more than it needs
    other = (server.data / index).read_bytes()
    assert all_wrong(other) == []
    assert len(content) > 300 * PAGE
    return content


def all_wrong(content: bytes, first_block: int = 0) -> list[int]:
    found: list[int] = wrong_pages(content, PAGE, first_block, np.flatnonzero(~is_new(content, PAGE))).tolist()
    return found


@pytest.mark.rule(43)
def test_checksums_are_those_of_real_servers(archived: Cluster) -> None:
    content = relation_pages(archived)
    assert all_wrong(content) == []
    assert page_lsns(content, PAGE).max() > 0
    assert len(all_wrong(content, first_block=1)) == len(content) // PAGE  # the page's number is in it
    drawn = random.Random(5)
    for _ in range(50):
        page, byte, bit = drawn.randrange(300), drawn.randrange(PAGE), drawn.randrange(8)
        harmed = bytearray(content)
        harmed[page * PAGE + byte] ^= 1 << bit
        if byte not in {14, 15}:  # of pd_upper: a page without it is a new one
            assert all_wrong(bytes(harmed)) == [page], (page, byte, bit)
    some = np.array([3, 4, 5, 100, 299])
    harmed = bytearray(content)
    harmed[100 * PAGE + 77] ^= 1
    assert wrong_pages(harmed, PAGE, 0, some).tolist() == [100]


def checks(**fields: object) -> PageChecks:
    said = {"page_bytes": PAGE, "relation_file_pages": 100, "start": FAR, "wal_end": lambda: FAR, "clock": VirtualClock(START)}
    return PageChecks(**(said | fields))  # type: ignore[arg-type]  # of their own types


def looked_at(
    path: Path, content: bytes, looks: PageChecks, relation_file: int | None, start: int = 0, *, same: bool = False
) -> bytes:
    """What is left of a file behind a look."""
    path.write_bytes(content)
    file = opened(path, looks, relation_file)
    held = bytearray(content[start:])
    file.check(memoryview(held), start, np.full(-(-len(held) // PAGE), same))
    file.close()
    return bytes(held)


@pytest.mark.rule(43)
def test_pages_are_counted_over_all_files_of_a_relation(archived18: Cluster, tmp_path: Path) -> None:
    content = relation_pages(archived18)
    for number in range(3):
        looks = checks()
        part = content[number * 100 * PAGE : (number + 1) * 100 * PAGE]
        looked_at(tmp_path / f"16384.{number}", part + b"half a page", looks, number)
        assert looks.damaged == {}
        harmed = bytearray(part)
        harmed[31 * PAGE + 5000] ^= 1
        looked_at(tmp_path / f"16384.{number}", bytes(harmed), looks, number, start=30 * PAGE)
        assert {path: damage.pages for path, damage in looks.damaged.items()} == {b"16384.%d" % number: [31]}
        looked_at(tmp_path / "no relation", bytes(harmed), looks, None)
        assert len(looks.damaged) == 1


@pytest.mark.rule(43)
def test_what_is_damaged_and_what_wal_mends(archived18: Cluster, tmp_path: Path) -> None:
    content = bytearray(relation_pages(archived18)[: 20 * PAGE])
    content[7 * PAGE + 5000] ^= 1
    lsn = Lsn(int(page_lsns(bytes(content), PAGE)[7]))

    def damaged(*, same: bool = False, **fields: object) -> list[int]:
        looks = checks(**fields)
        looked_at(tmp_path / "16384", bytes(content), looks, 0, same=same)
        return [page for damage in looks.damaged.values() for page in damage.pages]

    assert damaged(start=Lsn(lsn + 1)) == [7]  # older than the backup
    assert damaged(start=lsn, wal_end=lambda: lsn) == []  # written since: torn
    assert damaged(start=Lsn(1), wal_end=lambda: Lsn(lsn - 1)) == [7]  # newer than all there is
    assert damaged(same=True) == [7]
    assert damaged(same=True, known_below=lsn) == [7]
    assert damaged(same=True, known_below=Lsn(lsn + 1)) == []  # the parent looked at it
    assert damaged(same=False, known_below=Lsn(lsn + 1)) == [7]


class Mending(VirtualClock):
    """While somebody waits, a write goes on."""

    def __init__(self, go_on: Callable[[], object]) -> None:
        super().__init__(START)
        self._go_on = go_on

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._go_on()


@pytest.mark.rule(43)
def test_a_page_that_looks_damaged_is_read_again(archived18: Cluster, tmp_path: Path) -> None:
    content = relation_pages(archived18)[: 20 * PAGE]
    path = tmp_path / "16384"
    torn = content[: 7 * PAGE + 4096] + b"\1" * 4096 + content[8 * PAGE :]
    looks = checks(clock=Mending(lambda: path.write_bytes(content)))
    assert looked_at(path, torn, looks, 0) == content
    assert looks.damaged == {}
    assert 0 < looks.clock.monotonic() < 1
    shorter = checks(clock=Mending(lambda: os.truncate(path, 7 * PAGE)))
    assert looked_at(path, torn, shorter, 0) == torn[: 7 * PAGE] + bytes(PAGE) + torn[8 * PAGE :]
    assert shorter.damaged == {}  # cut off meanwhile: a page of zeros has no checksum
