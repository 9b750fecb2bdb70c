"""BASE_BACKUP as we read it: what pg_basebackup writes, damaged pages, and backups that the server ends."""

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest
from psycopg import pq

from clipper_backup.errors import AccessError, ServerError
from clipper_backup.postgres.base_backup import BaseBackup, Member, is_needed, skipped_path
from clipper_backup.postgres.replication import Replication, identify
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import Lsn
from fixtures.postgres import login_to, major_of, private_folder, running_server, server_binaries, sql

pytestmark = pytest.mark.soak(share=0.25)

OWN = {b"backup_label", b"tablespace_map"}
CHANGING = {b"global/pg_control"}
"""What a checkpoint changes, of which each backup makes one."""


@pytest.fixture(scope="module", params=[15, 18])
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    with running_server(request.param, {"autovacuum": "off", "max_wal_senders": "3"}) as server:
        yield server


def everything(server: PrivateServer, label: str = "test") -> tuple[BaseBackup, dict[bytes, tuple[Member, bytes]], bytes]:
    with Replication(login_to(server)) as replication:
        backup = BaseBackup(replication, label, "fast")
        found = {member.path: (member, b"".join(content)) for member, content in backup.members()}
        manifest = b"".join(backup.manifest())
        stop = backup.finish()
        assert stop.lsn > backup.start.lsn
        return backup, found, manifest


def described(folder: Path, name: bytes) -> tuple[str, int, int]:
    path = folder / os.fsdecode(name)
    info = path.lstat() if not path.is_symlink() else path.stat()
    return ("folder" if path.is_dir() else "file"), stat.S_IMODE(info.st_mode), 0 if path.is_dir() else info.st_size


@pytest.mark.rule(29)
@pytest.mark.rule(30)
@pytest.mark.rule(36)
def test_it_yields_what_pg_basebackup_writes(server: PrivateServer) -> None:
    with private_folder() as folder:
        place = folder / "späce"
        place.mkdir()
        os.chown(place, *owner(server))
        sql(server, "postgres", f"CREATE TABLESPACE aside LOCATION '{place}'")
        try:
            sql(server, "postgres", "CREATE TABLE inside AS SELECT n, repeat('x', 500) FROM generate_series(1, 300) n")
            sql(server, "postgres", "CREATE TABLE away TABLESPACE aside AS SELECT n FROM generate_series(1, 100000) n")
            sql(server, "postgres", "CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS n")
            ((fleeting,),) = sql(server, "postgres", "SELECT pg_relation_filepath('fleeting')")
            target = folder / "copy"
            where = server.connection()
            command: list[str | Path] = [
                server_binaries(major_of(server)).program("pg_basebackup"), "-h", where["host"], "-p", where["port"],
                "-U", where["user"], "-D", target, "-X", "none", "-c", "fast", "-T", f"{place}={folder / 'moved'}",
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
            backup, found, manifest = everything(server)
        finally:
            for name in ("inside", "away", "fleeting"):
                sql(server, "postgres", f"DROP TABLE IF EXISTS {name}")
            sql(server, "postgres", "DROP TABLESPACE aside")

        (tablespace,) = backup.tablespaces
        assert tablespace.path == os.fsencode(place)
        link = f"pg_tblspc/{tablespace.oid}".encode()
        written = {
            os.fsencode(path.relative_to(target))
            for path in target.rglob("*")
            if path.name not in {"backup_manifest", "backup_label", "tablespace_map"}
        }
        written |= {link + b"/" + os.fsencode(path.relative_to(folder / "moved")) for path in (folder / "moved").rglob("*")}
        assert found.keys() - OWN == written - {link}
        assert any(name.startswith(link + b"/PG_") and member.size_bytes > 3_000_000 for name, (member, _) in found.items())
        for path, (member, content) in found.items():
            if path not in OWN:
                assert (member.kind, member.mode, member.size_bytes) == described(target, path), path
                assert (member.uid, member.gid) == owner(server)
                assert member.mtime_ns > 1_600_000_000 * 10**9
                assert len(content) == member.size_bytes
                if member.kind == "file" and path not in CHANGING:
                    assert content == (target / os.fsdecode(path)).read_bytes(), path
        check_left_out(found, fleeting.encode())
        assert found[b"tablespace_map"][1] == b"%d %s\n" % (tablespace.oid, os.fsencode(place))
        assert list(found)[-1] == b"global/pg_control"
        check_manifest(json.loads(manifest), found)
        assert backup.damaged == {}
        assert backup.done_bytes >= sum(len(content) for _, content in found.values())


def owner(server: PrivateServer) -> tuple[int, int]:
    info = server.data.stat()
    return info.st_uid, info.st_gid


def check_left_out(found: dict[bytes, tuple[Member, bytes]], fleeting: bytes) -> None:
    for folder in (b"pg_replslot", b"pg_dynshmem", b"pg_notify", b"pg_serial", b"pg_snapshots", b"pg_stat_tmp", b"pg_subtrans"):
        assert found[folder][0].kind == "folder"
        assert not any(name.startswith(folder + b"/") for name in found)
    assert {member.kind for name, (member, _) in found.items() if name.startswith(b"pg_wal")} == {"folder"}
    assert not {b"postmaster.pid", b"postmaster.opts", fleeting} & found.keys()
    assert fleeting + b"_init" in found


def check_manifest(manifest: dict[str, list[dict[str, str]]], found: dict[bytes, tuple[Member, bytes]]) -> None:
    files = {entry["Path"].encode(): entry for entry in manifest["Files"]}
    assert files.keys() == {name for name, (member, _) in found.items() if member.kind == "file"}
    for name, entry in files.items():
        checksum = google_crc32c.value(found[name][1]).to_bytes(4, "little").hex()
        assert (entry["Checksum-Algorithm"], entry["Checksum"]) == ("CRC32C", checksum)


@pytest.mark.rule(27)
def test_the_label_is_handed_on_as_the_server_wrote_it(server: PrivateServer) -> None:
    backup, found, _ = everything(server, "it's\n ours")
    label = found[b"backup_label"][1].decode()
    assert f"START WAL LOCATION: {backup.start.lsn} (file " in label
    assert "LABEL: it's\n ours\n" in label
    assert f"START TIMELINE: {int(backup.start.timeline)}\n" in label
    assert found[b"tablespace_map"][1] == b""


@pytest.mark.rule(43)
def test_damaged_pages_are_named_and_the_backup_goes_on(server: PrivateServer) -> None:
    sql(server, "postgres", "CREATE TABLE torn AS SELECT n, repeat('x', 2000) FROM generate_series(1, 100) n")
    sql(server, "postgres", "CREATE TABLE ruined AS SELECT n, repeat('x', 2000) FROM generate_series(1, 100) n")
    ((torn, ruined),) = sql(server, "postgres", "SELECT pg_relation_filepath('torn'), pg_relation_filepath('ruined')")
    server.stop()
    pages = {torn: [3], ruined: [0, 2, 4, 6, 8, 10, 12]}
    for name, numbers in pages.items():
        with (server.data / name).open("r+b") as file:
            for number in numbers:
                file.seek(number * 8192 + 4000)
                file.write(b"damage")
    server.start()
    try:
        backup, found, _ = everything(server)
        assert backup.damaged.keys() == {torn.encode(), ruined.encode()}
        assert (backup.damaged[torn.encode()].count, backup.damaged[torn.encode()].pages) == (1, [3])
        assert backup.damaged[ruined.encode()].count == 7
        assert backup.damaged[ruined.encode()].pages == [0, 2, 4, 6, 8]  # those that the server names
        assert found[torn.encode()][1][3 * 8192 + 4000 :][:6] == b"damage"
    finally:
        sql(server, "postgres", "DROP TABLE torn")
        sql(server, "postgres", "DROP TABLE ruined")


@pytest.mark.rule(26)
def test_a_session_that_dies_makes_no_backup(server: PrivateServer) -> None:
    with Replication(login_to(server)) as replication:
        backup = BaseBackup(replication, "dies", "fast")
        members = backup.members()
        b"".join(next(members)[1])

        def read_on() -> None:
            for _, content in members:
                b"".join(content)
            b"".join(backup.manifest())
            backup.finish()

        sql(
            server,
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'clipper-backup'",
        )
        with pytest.raises(ServerError, match="taking the base backup"):
            read_on()


def test_a_content_that_was_not_read_is_no_backup(server: PrivateServer) -> None:
    with Replication(login_to(server)) as replication:
        members = BaseBackup(replication, "lazy", "fast").members()
        with pytest.raises(ServerError, match="was not read to its end"):
            for _ in members:
                pass


def test_a_name_that_no_header_can_hold_is_the_servers_error(server: PrivateServer) -> None:
    long = server.data / ("x" * 120)
    long.write_bytes(b"")
    os.chown(long, *owner(server))
    try:
        with pytest.raises(ServerError, match="too long for tar format"):
            everything(server)
    finally:
        long.unlink()


def test_who_it_is_and_how_far(server: PrivateServer) -> None:
    with Replication(login_to(server)) as replication:
        system_id, timeline, lsn = identify(replication)
    ((expected, flushed),) = sql(
        server, "postgres", "SELECT (SELECT system_identifier::text FROM pg_control_system()), pg_current_wal_flush_lsn()::text"
    )
    assert (system_id, timeline) == (expected, 1)
    assert lsn <= Lsn.parse(flushed)


def test_a_role_without_replication_is_refused(server: PrivateServer) -> None:
    sql(server, "postgres", "CREATE ROLE weak LOGIN")
    try:
        with pytest.raises(AccessError) as refused:
            Replication(login_to(server, user="weak"))
        assert "REPLICATION" in refused.value.hints[1]
    finally:
        sql(server, "postgres", "DROP ROLE weak")


def test_waiting_for_the_server_hears_signals(server: PrivateServer) -> None:
    """libpq's own waiting would not: while a spread checkpoint runs, the server says nothing for minutes."""

    class StoppedError(Exception):
        pass

    def stop(number: int, frame: object) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with Replication(login_to(server)) as replication:
            _, timeline, lsn = identify(replication)
            replication.send(f"START_REPLICATION {lsn} TIMELINE {int(timeline)}")
            replication.result(pq.ExecStatus.COPY_BOTH)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(StoppedError):
                list(iter(replication.copy_data, None))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("said", "path", "needed"),
    [
        ('skipping special file "./base/16387"', "base/16387", True),
        ('skipping special file or directory "./pg_xact"', "pg_xact", True),
        ('skipping special file "/srv/space/PG_15_202209061/16387"', "/srv/space/PG_15_202209061/16387", True),
        ("überspringe besondere Datei »./base«", "base", True),
        ("überspringe besondere Datei „./global/1262“", "global/1262", True),
        ("omission du fichier spécial « ./base/5 »", "base/5", True),
        ('пропускается специальный файл "./base/5" ...', "base/5", True),
        ('skipping special file "./log"', "log", False),
        ('skipping special file "./base.old/1"', "base.old/1", False),
        ("something else", None, None),
    ],
)
def test_what_the_server_skips_is_understood_in_any_language(said: str, path: str | None, needed: bool | None) -> None:
    assert skipped_path(said) == path
    assert path is None or is_needed(path) is needed
