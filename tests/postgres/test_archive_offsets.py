"""Places of data in an archive: what we note is what pg_dump notes itself when it writes into a file."""

import random
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipper_backup.postgres.archive_offsets import write_archive
from clipper_backup.postgres.server import PrivateServer
from fixtures.postgres import client_environment, fresh_database, server_binaries, sql
from fixtures.sweeps import SOAK, chosen

SHAPES = """
CREATE TABLE "empty at first" (n int);
CREATE TABLE many AS SELECT n, repeat(md5(n::text), n % 40) AS filling FROM generate_series(1, 5000) n;
CREATE TABLE long_row AS SELECT repeat('x', 70000) || E'\\\\ \\t \\n' AS one, repeat(E'\\x01', 300) AS other;
CREATE TABLE empty_too (n int);
CREATE TABLE bytes AS SELECT decode(repeat('0000000000010007', 100), 'hex') AS zeros FROM generate_series(1, 50);
CREATE SEQUENCE counting START 7;
SELECT lo_from_bytea(0, decode(repeat('00', 100000), 'hex')), lo_from_bytea(0, ''), lo_from_bytea(0, 'few');
CREATE TABLE last_one AS SELECT 1 AS n;
"""


@pytest.fixture
def shaped(postgres: PrivateServer) -> Iterator[str]:
    with fresh_database(postgres) as name:
        sql(postgres, name, SHAPES)
        yield name


def dump(server: PrivateServer, name: str, folder: Path, *options: str) -> tuple[Path, Path]:
    """An archive that went through a pipe, and one that pg_dump wrote into a file."""
    number = int(sql(server, "postgres", "SHOW server_version_num")[0][0]) // 10000
    pg_dump = str(server_binaries(number).bindir / "pg_dump")
    command = [pg_dump, "--format=custom", *(options or ["--compress=0"]), name]
    piped, written = folder / "piped", folder / "written"
    environment = client_environment(server)
    piped.write_bytes(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    subprocess.run([*command, f"--file={written}"], env=environment, check=True)
    return piped, written


def noted(path: Path, chunk_bytes: int = 1 << 20) -> int:
    """Write the archive at *path* anew, in chunks; how many places were noted."""
    data = path.read_bytes()
    return write_archive(path, (data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)))


def without_time(archive: bytes) -> bytes:
    """All but the seven integers that say when it was made."""
    at = 11 + (1 if archive[6] >= 15 else 5)
    return archive[:at] + archive[at + 35 :]


def test_the_places_are_those_that_pg_dump_notes_itself(postgres: PrivateServer, shaped: str, tmp_path: Path) -> None:
    piped, written = dump(postgres, shaped, tmp_path)
    before = piped.read_bytes()
    assert without_time(before) != without_time(written.read_bytes())

    assert noted(piped) >= 7
    assert without_time(piped.read_bytes()) == without_time(written.read_bytes())
    assert noted(piped) == 0  # none wants one


def test_a_real_database(postgres: PrivateServer, clipper: str, tmp_path: Path) -> None:
    piped, written = dump(postgres, clipper, tmp_path)
    assert noted(piped) > 10
    assert without_time(piped.read_bytes()) == without_time(written.read_bytes())


@pytest.mark.soak(over=["postgres"])
def test_a_large_object_that_looks_like_the_next_table(postgres: PrivateServer, shaped: str, tmp_path: Path) -> None:
    piped, _ = dump(postgres, shaped, tmp_path)
    archive = piped.read_bytes()
    found = re.findall(rb"(?=\0{5}\x01\0(.{4}))", archive, re.DOTALL)
    ids = sorted({number for data in found if 0 < (number := int.from_bytes(data, "little")) < 9000})
    assert len(ids) >= 3
    looks = b"".join(b"\0" * 5 + struct.pack("<BBI", 1, 0, i) + b"\0" * 10 for i in ids)
    sql(postgres, shaped, f"SELECT lo_from_bytea(0, decode('{looks.hex()}', 'hex'))")

    piped, written = dump(postgres, shaped, tmp_path)
    assert noted(piped) >= 7
    assert without_time(piped.read_bytes()) == without_time(written.read_bytes())


@pytest.mark.soak(over=["postgres"])
def test_chunks_of_any_size(postgres: PrivateServer, shaped: str, tmp_path: Path) -> None:
    piped, written = dump(postgres, shaped, tmp_path)
    archive = piped.read_bytes()
    slow = [1, 7] if SOAK else []  # minutes of calls
    for chunk_bytes in chosen([*slow, 64, 4096, len(archive) - 1, len(archive)], 1):
        piped.write_bytes(archive)
        assert noted(piped, chunk_bytes) >= 7
        assert without_time(piped.read_bytes()) == without_time(written.read_bytes())


def test_what_is_not_understood_is_left_as_it_was(postgres: PrivateServer, shaped: str, tmp_path: Path) -> None:
    piped, _ = dump(postgres, shaped, tmp_path)
    good = piped.read_bytes()
    strange = [b"", b"PGDMP", b"no archive", good[:5] + b"\x01\x63" + good[7:], good + b"\0", good[:-1], good[: len(good) // 2]]
    strange.append(good[:11] + b"\0\xff\xff\xff\x7f" * 20)  # strings of 2 GB
    strange += [good[:at] for at in random.sample(range(len(good)), 100)]
    for data in strange:
        piped.write_bytes(data)
        assert noted(piped) == 0
        assert piped.read_bytes() == data


def test_a_compressed_archive_is_left_as_it_was(postgres: PrivateServer, shaped: str, tmp_path: Path) -> None:
    piped, _ = dump(postgres, shaped, tmp_path, "--compress=1")
    data = piped.read_bytes()
    assert noted(piped) == 0
    assert piped.read_bytes() == data
