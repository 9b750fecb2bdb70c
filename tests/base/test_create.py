"""`base create` against real servers: what it stores is what the server had, and what it says of it is true."""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from clipper_backup.errors import AccessError, IncompleteError, IntegrityError, ServerError, UsageError, WalGapError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.manifest import File, Outside, Tablespace
from clipper_backup.ops.base.create import create_base, refuse_damaged
from clipper_backup.ops.base.delete import check_base_deletable, delete_base
from clipper_backup.ops.base.gather import Gathering
from clipper_backup.ops.base.read import base_catalog, base_details
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.work import Work
from clipper_backup.postgres.backup_session import BackupSession
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.base_backups import list_base_backups
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.base import SECRET, Cluster, backed_up, contents_of, work_for
from fixtures.keys import Key, opening, sealed_to
from fixtures.postgres import connect, login_to, major_of, private_folder, server_binaries, sql

pytestmark = pytest.mark.soak(share=0.25)
each_source = pytest.mark.parametrize("source", ["protocol", "files"])


def committed(store: Store) -> list[str]:
    return [str(listed.backup_id) for listed in list_base_backups(store) if listed.committed]


def plain_of(work: Work, summary: BaseSummary, role: str) -> bytes:
    key = next(stored.key for stored in summary.objects if stored.role == role)
    return decompress_bytes(work.store.get(key), key)


def check_contents(work: Work, summary: BaseSummary) -> None:
    """Every file that the server's own manifest lists is there, with the CRC-32C that the server says."""
    contents = contents_of(work, summary)
    listed = {entry["Path"].encode(): entry for entry in json.loads(plain_of(work, summary, "server_manifest"))["Files"]}
    own = {b"backup_label", b"tablespace_map"}
    inside = {name for name, (entry, _) in contents.items() if isinstance(entry, File) and not isinstance(entry, Outside)}
    assert inside == listed.keys() - own
    for name in listed.keys() - own:
        assert google_crc32c.value(contents[name][1]).to_bytes(4, "little").hex() == listed[name]["Checksum"], name


@pytest.mark.rule(27)
@pytest.mark.rule(31)
@pytest.mark.rule(36)
@pytest.mark.rule(41)
def test_backups_hold_what_the_server_sent_and_each_costs_what_changed(archived: Cluster) -> None:
    work = work_for(archived)
    first = backed_up(archived, work)
    check_contents(work, first.summary)
    check_said(work, archived, first.summary)
    with pytest.raises(UsageError, match="no newer good base backup follows"):
        check_base_deletable(work, BackupId.parse(first.summary.id))

    sql(archived.server, "postgres", "UPDATE rows SET n = -n WHERE n = 1")
    for statement in CHANGES:
        sql(archived.server, "postgres", statement)
    second = backed_up(archived, work)
    check_contents(work, second.summary)
    assert second.summary.parent == first.summary.id
    assert 0 < second.summary.pages.new < 2000
    assert second.summary.pages.adopted > 350
    assert second.summary.pages.healed == 0
    assert second.summary.stored_bytes < first.summary.stored_bytes / 2

    delete_base(work, BackupId.parse(first.summary.id))
    check_contents(work, second.summary)
    verified = verify_base(work, BackupId.parse(second.summary.id), share=1)
    assert (verified.share, verified.files) == (1, second.summary.files)
    (shown,) = base_catalog(work)
    assert shown.entry.good
    assert shown.entry.verified is not None
    assert [warning for warning in work.emit.warnings if "pages" in warning] == []  # type: ignore[attr-defined]  # a Kept


@pytest.mark.rule(42)
@each_source
def test_what_changed_is_found_whatever_its_time_says(archived15: Cluster, source: str) -> None:
    """A copy of the volume was set back, say, or the clock: time and size of the file are as they were in the parent."""
    sql(archived15.server, "postgres", "DROP TABLE IF EXISTS timed")
    sql(archived15.server, "postgres", "CREATE TABLE timed AS SELECT n FROM generate_series(1, 10000) n")
    ((name,),) = sql(archived15.server, "postgres", "SELECT pg_relation_filepath('timed')")
    work = work_for(archived15, BASE_SOURCE=source)
    backed_up(archived15, work)
    path = archived15.server.data / name
    before = path.stat()
    sql(archived15.server, "postgres", "UPDATE timed SET n = -n WHERE n = 1")
    sql(archived15.server, "postgres", "VACUUM timed")
    sql(archived15.server, "postgres", "UPDATE timed SET n = -n WHERE n = -1")  # onto its first page
    sql(archived15.server, "postgres", "CHECKPOINT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = backed_up(archived15, work)
    assert contents_of(work, second.summary)[name.encode()][1] == path.read_bytes()


CHANGES = (
    "DROP TABLE IF EXISTS shrinks, grows, again",
    "CREATE TABLE shrinks AS SELECT n FROM generate_series(1, 200000) n",
    "CREATE TABLE grows AS SELECT n FROM generate_series(1, 200000) n",
    "DELETE FROM shrinks WHERE n > 100000",
    "VACUUM shrinks",  # cuts its end off; visibility map and free space map change without a record of their pages
    "CREATE TABLE again AS SELECT n FROM generate_series(1, 1000) n",
    "TRUNCATE again",
)


def check_said(work: Work, archived: Cluster, summary: BaseSummary) -> None:
    """The summary says of the backup what the server's own label and view of itself say."""
    label = plain_of(work, summary, "label").decode()
    found = re.search(r"START WAL LOCATION: (\S+) \(file (\S+)\)\n", label)
    assert found is not None
    assert found.groups() == (summary.start_lsn, summary.first_segment)
    assert f"LABEL: clipper-backup {summary.id}\n" in label
    size = summary.sizes.segment_bytes
    last = Segment.parse(summary.last_segment, size)
    assert last.start < Lsn.parse(summary.stop_lsn) <= last.end
    ((system_id, version, connections),) = sql(
        archived.server,
        "postgres",
        "SELECT system_identifier::text, current_setting('server_version_num')::int / 10000,"
        " current_setting('max_connections')::int FROM pg_control_system()",
    )
    assert (summary.system_id, summary.versions.server_major, summary.settings.max_connections) == (
        system_id,
        version,
        connections,
    )
    assert (size, summary.sizes.page_bytes, summary.timeline, summary.from_standby) == (1 << 20, 8192, 1, False)
    details = base_details(work, summary)
    assert details is not None
    assert details.fingerprint.settings["wal_level"] == "replica"
    assert {database.name for database in details.fingerprint.databases} == {"postgres", "template0", "template1"}
    started = json.loads(work.store.get(f"base/{summary.id}/started.json"))
    assert (started["start_lsn"], started["system_id"]) == (summary.start_lsn, system_id)


@pytest.mark.rule(86)
def test_no_plaintext_when_sealing_is_on(archived15: Cluster, keys: dict[str, Key]) -> None:
    with pytest.raises(UsageError, match="ENCRYPTION_RECIPIENTS"):
        create_base(work_for(archived15, **opening(keys["operator"])))
    sealing = work_for(archived15, **sealed_to(keys))
    summary = backed_up(archived15, sealing).summary
    for info in sealing.store.list(""):
        data = sealing.store.get(info.key)
        assert SECRET.encode() not in data
        assert b"base/5/" not in data
        if info.key.startswith(("base/", "keys/")) and not info.key.endswith((".json", names.PACKS)):
            assert data.startswith(b"age-encryption.org/v1\n"), info.key
    assert base_details(sealing, summary) is None
    whole = backed_up(archived15, sealing).summary
    assert (whole.parent, whole.pages.adopted) == (None, 0)  # it cannot read what came before

    knowing = work_for(archived15, sealing.store, **sealed_to(keys), **opening(keys["recovery"]))
    assert any(SECRET.encode() in content for _, content in contents_of(knowing, summary).values())
    incremental = backed_up(archived15, knowing).summary
    assert incremental.parent == whole.id
    assert incremental.pages.adopted > 350
    assert verify_base(knowing, BackupId.parse(incremental.id), share=1).files == incremental.files
    stranger = work_for(archived15, sealing.store, **opening(keys["stranger"]))
    with pytest.raises(AccessError, match="sealed to other keys"):
        contents_of(stranger, incremental)
    with pytest.raises(UsageError, match="is sealed, and there are no ENCRYPTION_RECIPIENTS"):
        create_base(work_for(archived15, sealing.store))
    starts_anew = backed_up(archived15, work_for(archived15, sealing.store, ENCRYPTION_RECIPIENTS="none")).summary
    assert (starts_anew.parent, starts_anew.pages.adopted) == (None, 0)  # P5
    check_contents(work_for(archived15, sealing.store), starts_anew)


@pytest.mark.rule(87)
def test_pages_are_taken_over_only_where_each_new_key_opens_them(
    archived15: Cluster, keys: dict[str, Key], tmp_path: Path
) -> None:
    """The data keys of earlier runs are sealed to the recipients of their time: who destroys the old key must lose nothing."""
    held = tmp_path / "held.key"  # while keys change, the old one and the new one
    held.write_text(keys["operator"].path.read_text() + keys["stranger"].path.read_text())
    before = work_for(archived15, **sealed_to(keys), ENCRYPTION_IDENTITY_FILE=str(held))
    first = backed_up(archived15, before).summary
    changed = ",".join(keys[name].public for name in ("stranger", "recovery"))
    after = work_for(archived15, before.store, ENCRYPTION_RECIPIENTS=changed, ENCRYPTION_IDENTITY_FILE=str(held))
    written = backed_up(archived15, after)
    assert (written.summary.parent, written.summary.pages.adopted) == (None, 0)
    assert any(f"{first.id} is not sealed to all of ENCRYPTION_RECIPIENTS" in warning for warning in written.details.warnings)

    fewer = work_for(archived15, before.store, ENCRYPTION_RECIPIENTS=keys["stranger"].public, ENCRYPTION_IDENTITY_FILE=str(held))
    incremental = backed_up(archived15, fewer).summary
    assert incremental.parent == written.summary.id
    assert incremental.pages.adopted > 350
    alone = work_for(archived15, before.store, **opening(keys["stranger"]))
    for summary in (written.summary, incremental):
        assert verify_base(alone, BackupId.parse(summary.id), share=1).files == summary.files
        assert any(SECRET.encode() in content for _, content in contents_of(alone, summary).values())


def test_unsigned_parent_is_not_adopted(archived15: Cluster, keys: dict[str, Key]) -> None:
    plain = work_for(archived15)
    unsigned = backed_up(archived15, plain).summary
    signing = work_for(archived15, plain.store, SIGNING_KEY_FILE=str(keys["signer"].path), trusted=keys["signer"].public)
    first, second = (backed_up(archived15, signing).summary for _ in range(2))
    assert (first.parent, first.pages.adopted, first.signed_by) == (None, 0, keys["signer"].public)
    assert second.parent == first.id
    assert [shown.entry.untrusted for shown in base_catalog(signing)] == [True, False, False]
    assert unsigned.signed_by is None
    with pytest.raises(UsageError, match="is signed, and there is no SIGNING_KEY_FILE"):
        create_base(plain)
    plain.store.delete([names.base_key(BackupId.parse(second.id), names.BASE_SIGNATURE)])
    with pytest.raises(UsageError, match="is signed, and there is no SIGNING_KEY_FILE"):
        create_base(plain)  # its summary says so


@pytest.mark.rule(35)
@pytest.mark.rule(17)
@each_source
def test_tablespaces_and_configuration_elsewhere_are_in_it(archived15: Cluster, source: str) -> None:
    ((away, place, outside),) = sql(
        archived15.server,
        "postgres",
        "SELECT pg_relation_filepath('away'), pg_tablespace_location(oid), current_setting('hba_file') FROM pg_tablespace"
        " WHERE spcname = 'aside'",
    )
    work = work_for(archived15, BASE_SOURCE=source)
    for _ in range(2):
        summary = backed_up(archived15, work).summary
    contents = contents_of(work, summary)
    (link,) = [entry for entry, _ in contents.values() if isinstance(entry, Tablespace)]
    assert (link.leads_to, away.encode().startswith(link.named)) == (os.fsencode(place), True)
    assert contents[away.encode()][1] == (archived15.server.data / away).read_bytes()
    ((entry, content),) = [each for each in contents.values() if isinstance(each[0], Outside)]
    assert (entry.named, content) == (os.fsencode(outside), Path(outside).read_bytes())
    assert plain_of(work, summary, "tablespace_map") == b"%s %s\n" % (link.named[10:], os.fsencode(place))


@contextlib.contextmanager
def moved_away(path: Path, elsewhere: Path) -> Iterator[None]:
    """A link is in its place, as of somebody who needed room."""
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    try:
        yield
    finally:
        path.unlink()
        elsewhere.rename(path)


@pytest.mark.rule(17)
def test_a_tablespace_in_place_is_in_it_or_there_is_no_backup(archived: Cluster) -> None:
    """B6: BASE_BACKUP of 15 sends nothing of pg_tblspc but links; what lies there itself would be lost in silence."""
    with connect(archived.server) as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE in_place LOCATION ''")
        connection.execute("CREATE TABLE placed TABLESPACE in_place AS SELECT generate_series(1, 1000) AS n")
        ((path,),) = connection.execute("SELECT pg_relation_filepath('placed')").fetchall()
    work = work_for(archived)
    try:
        if major_of(archived.server) < 16:
            with pytest.raises(ServerError, match="sends nothing of the tablespaces that lie in pg_tblspc itself"):
                backed_up(archived, work)
            assert committed(work.store) == []
        else:
            _, content = contents_of(work, backed_up(archived, work).summary)[path.encode()]
            assert content == (archived.server.data / path).read_bytes()
    finally:
        sql(archived.server, "postgres", "DROP TABLE placed")
        sql(archived.server, "postgres", "DROP TABLESPACE in_place")


@pytest.mark.rule(17)
@each_source
def test_what_lies_behind_a_link_is_in_it_or_there_is_no_backup(archived: Cluster, source: str) -> None:
    data, work = archived.server.data, work_for(archived, BASE_SOURCE=source)
    elsewhere = archived.server.directory / "elsewhere"
    for needed in ("base/1", "pg_xact"):
        with (
            moved_away(data / needed, elsewhere),
            pytest.raises(ServerError, match=f"the server leaves out {needed}: a link") as refused,
        ):
            create_base(work)
        assert "tablespace" in refused.value.hints[1]
    assert committed(work.store) == []
    with moved_away(data / "pg_ident.conf", elsewhere):
        summary = backed_up(archived, work).summary
    entry, content = contents_of(work, summary)[os.fsencode(data / "pg_ident.conf")]
    assert (type(entry), content) == (Outside, (data / "pg_ident.conf").read_bytes())
    assert [warning for warning in work.emit.warnings if "pg_ident.conf" in warning]  # type: ignore[attr-defined]  # a Kept


def test_a_database_without_its_folder_is_found_whatever_the_server_says() -> None:
    none: Any = None
    gathering = Gathering(none, none, none)
    gathering.databases = {(1663, 1), (1663, 5), (16400, 16500)}
    before = {1: 1663, 5: 1663, 16500: 16400, 16600: 1663, 16700: 1663}
    gathering.check_databases(before, {1: 1663, 5: 1663, 16500: 16400, 16600: 16400, 16800: 1663})  # moved, dropped, made
    with pytest.raises(ServerError, match="the databases with the OIDs 16600, 16700: is it a link"):
        gathering.check_databases(before, before)


@pytest.mark.rule(34)
def test_a_spread_checkpoint_is_waited_for_and_told(archived15: Cluster) -> None:
    work = work_for(archived15, BASE_CHECKPOINT="spread")
    backed_up(archived15, work)
    sql(archived15.server, "postgres", "CHECKPOINT")
    backed_up(archived15, work)
    told = [event for event in work.emit.events if getattr(event, "step", "") == "checkpoint"]  # type: ignore[attr-defined]  # a Kept
    assert [type(event).__name__ for event in told] == ["StepBegun", "StepDone"] * 2
    assert told[0].text == "wait for a spread checkpoint of the server"


@pytest.mark.rule(33)
@each_source
def test_no_timeout_of_the_server_ends_a_backup(archived15: Cluster, source: str) -> None:
    for name in TIMEOUTS:
        sql(archived15.server, "postgres", f"ALTER SYSTEM SET {name} = '40ms'")
    try:
        with connect(archived15.server, options=" ".join(f"-c {name}=0" for name in TIMEOUTS)) as connection:
            connection.execute("SELECT pg_reload_conf()")
        assert sql(archived15.server, "postgres", "SHOW statement_timeout") == [("40ms",)]
        work = work_for(archived15, BASE_SOURCE=source)
        backed_up(archived15, work)
        assert [shown.entry.good for shown in base_catalog(work)] == [True]
    finally:
        with connect(archived15.server, options=" ".join(f"-c {name}=0" for name in TIMEOUTS)) as connection:
            for name in TIMEOUTS:
                connection.execute(f"ALTER SYSTEM RESET {name}".encode())
            connection.execute("SELECT pg_reload_conf()")


TIMEOUTS = ("statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout", "lock_timeout")


# -- what makes no backup


def test_a_backup_whose_wal_does_not_come_is_none(archived15: Cluster) -> None:
    work = work_for(archived15, BASE_WAL_WAIT_SECONDS="1")
    with archived15.archiving(work) as archiver:
        archiver.held.set()
        with pytest.raises(
            WalGapError, match=r"did not reach the archive within 1\.0 s, the first of them is 0000000100000000"
        ) as gap:
            create_base(work)
        assert "pg_stat_archiver" in gap.value.hints[0]
        archiver.held.clear()
        assert committed(work.store) == []
        assert not [info.key for info in work.store.list("base/") if info.key.endswith(names.BASE_INTENT)]
        create_base(work)
    assert len(committed(work.store)) == 1


@pytest.mark.rule(43)
@each_source
def test_damaged_pages_make_a_backup_that_is_kept_and_is_not_good(archived15: Cluster, source: str) -> None:
    server, work = archived15.server, work_for(archived15, BASE_SOURCE=source)
    good = backed_up(archived15, work).summary
    sql(server, "postgres", "CREATE TABLE torn AS SELECT n, repeat('x', 2000) FROM generate_series(1, 100) n")
    ((path,),) = sql(server, "postgres", "SELECT pg_relation_filepath('torn')")
    archived15.stop()
    with (server.data / path).open("r+b") as file:
        file.seek(3 * 8192 + 4000)
        file.write(b"damage")
    server.start()
    damaged = backed_up(archived15, work)
    entry, _ = contents_of(work, damaged.summary)[path.encode()]
    assert isinstance(entry, File)
    assert (damaged.summary.pages.damaged, entry.damaged_pages) == (1, (3,))
    assert [text for text in damaged.details.warnings if path in text]
    with pytest.raises(IncompleteError, match="1 page whose checksums were wrong"):
        refuse_damaged(damaged.summary)
    with pytest.raises(UsageError, match="no newer good base backup"):
        check_base_deletable(work, BackupId.parse(good.id))
    sql(server, "postgres", "DROP TABLE torn")
    assert backed_up(archived15, work).summary.parent == good.id
    check_base_deletable(work, BackupId.parse(good.id))


def test_backup_of_rolled_back_copy_refused(archived15: Cluster) -> None:
    """B4: all names from start to stop are in the archive, and they are the WAL of this server's own lost future."""
    server, work = archived15.server, work_for(archived15)
    backed_up(archived15, work)
    archived15.stop()
    copy = server.directory / "copy"
    run("cp", "-a", server.data, copy)
    server.start()
    with archived15.archiving(work):
        for _ in range(6):
            sql(server, "postgres", "SELECT txid_current()")
            sql(server, "postgres", "SELECT pg_switch_wal()")
        server.stop()
    run("rm", "-r", server.data)
    run("mv", copy, server.data)
    server.start()
    sql(server, "postgres", "DROP TABLE IF EXISTS another_history")
    sql(server, "postgres", "CREATE TABLE another_history AS SELECT 1 AS n")
    before = committed(work.store)
    with pytest.raises(IntegrityError, match=r"is not the server's own: it was archived by .*, of another history"):
        create_base(work)
    assert committed(work.store) == before
    for marker in archived15.released.iterdir():  # what the lost future had archived is this one's to archive anew
        marker.unlink()


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True)


@pytest.mark.rule(32)
@each_source
def test_promotion_during_backup(archived15: Cluster, source: str) -> None:
    """B3, on a standby that is promoted while it sends."""
    with private_folder() as folder:
        where = archived15.server.connection()
        data, binaries = folder / "standby/data", server_binaries(15)
        run(binaries.program("pg_basebackup"), "-h", where["host"], "-p", where["port"], "-U", where["user"], "-D", data,
            "-X", "fetch", "-c", "fast", f"--tablespace-mapping={folder_of('aside', archived15)}={folder / 'aside'}")  # fmt: skip
        (data / "standby.signal").touch()
        owner = archived15.server.data.stat()
        run("chown", "-R", f"{owner.st_uid}:{owner.st_gid}", folder / "standby", folder / "aside")
        settings = archived15.server.settings
        with PrivateServer(folder / "standby", binaries, environment=os.environ, settings=settings) as standby:
            standby.start()
            promoted = Cluster(standby, archived15.released)
            work = work_for(promoted, BASE_SOURCE=source)

            class Promoting:
                done = False

                def __call__(self, event: object) -> None:
                    if getattr(event, "step", "") == "copy" and not self.done:
                        self.done = True
                        sql(standby, "postgres", "SELECT pg_promote()")

            with BackupSession(login_to(standby), "another", "fast") as session:
                session.check()
                with pytest.raises(ServerError, match="the standby was promoted during online backup"):
                    create_base(replace(work, emit=Promoting()))
                for ends in (session.check, lambda: session.stop(Timeline(1))):
                    with pytest.raises(ServerError, match="the standby was promoted during online backup"):
                        ends()
            promoted.stop()
            assert committed(work.store) == []


def folder_of(tablespace: str, archived: Cluster) -> str:
    ((place,),) = sql(
        archived.server, "postgres", "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = %s", [tablespace]
    )  # fmt: skip
    return str(place)


def test_a_server_that_does_not_archive_is_refused(postgres: PrivateServer, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="does not archive its WAL"):
        create_base(work_for(Cluster(postgres, tmp_path)))


@pytest.mark.rule(44)
def test_another_cluster_is_refused_until_it_is_said_to_be_the_new_one(archived15: Cluster, archived18: Cluster) -> None:
    work = work_for(archived15)
    backed_up(archived15, work)
    theirs = work_for(archived18, work.store)
    with pytest.raises(IntegrityError, match="another cluster"):
        create_base(theirs)
    # Its WAL is refused until then, too: the archiver begins when the system is known.
    with pytest.raises(WalGapError):
        create_base(work_for(archived18, work.store, BASE_WAL_WAIT_SECONDS="1"), new_system=True)
    summary = backed_up(archived18, theirs).summary
    assert (summary.system_number, summary.parent) == (2, None)
    with pytest.raises(IntegrityError, match="was succeeded by"):
        create_base(work)
