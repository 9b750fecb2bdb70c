"""`base create` with BASE_SOURCE=files: what the server would send, of that server alone; and what need not be read for it."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clipper_backup.errors import IntegrityError, MissingError, ServerError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary, PruneRecord
from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.documents import encode
from clipper_backup.format.manifest import Entry, File, Outside
from clipper_backup.format.physical_names import parse_pack_key
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.events import Event, Progress, StepBegun
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.repository.base_backups import list_base_backups, read_base_summary
from clipper_backup.store.local import LocalStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster, archived_cluster, backed_up, contents_of, read_bytes, until_older, work_for
from fixtures.cli import RunCli
from fixtures.postgres import major_of, private_folder, sql

pytestmark = pytest.mark.soak(share=0.25)
PAGE = 8192


@pytest.fixture(scope="module", params=[15, 18])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with archived_cluster(request.param, {"full_page_writes": "on", "allow_in_place_tablespaces": "on"}) as made:
        yield made


def files_work(cluster: Cluster, work: Work | None = None, **settings: str) -> Work:
    """A work whose base backups read files, with the store of another one."""
    return work_for(cluster, None if work is None else work.store, BASE_SOURCE="files", **settings)


def committed(work: Work) -> list[str]:
    return [str(listed.backup_id) for listed in list_base_backups(work.store) if listed.committed]


def path_of(cluster: Cluster, relation: str) -> Path:
    ((path,),) = sql(cluster.server, "postgres", "SELECT pg_relation_filepath(%s)", [relation])
    return cluster.server.data / str(path)


def stored(work: Work, summary: BaseSummary, cluster: Cluster, path: Path) -> tuple[File, bytes]:
    entry, content = contents_of(work, summary)[os.fsencode(path.relative_to(cluster.server.data))]
    assert isinstance(entry, File)
    return entry, content


# -- what is in it


def litter(cluster: Cluster) -> None:
    """What lies about in a data folder, and what only looks like something else."""
    data, account = cluster.server.data, server_account()
    database = next(path for path in (data / "base").iterdir() if path.name == "5")
    (data / "own folder").mkdir()
    inside = data / "own folder" / "space"
    for folder in (
        inside,
        database / "pgsql_tmp",
        data / "pg_wal/archive_status/x",
        data / "base/pgsql_tmp",
        data / "own folder/pg_notify",
    ):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "backup_label.old", "tablespace_map.old", "backup_manifest", "postgresql.auto.conf.tmp", "current_logfiles", ".DS_Store",
        "current_logfiles.tmp", "pg_notify/0000", "pg_stat_tmp/x", "pg_serial/0000", "pg_snapshots/1", "pg_subtrans/0001",
        "base/5/pg_internal.init.77", "base/5/t3_16400", "base/5/t3_16400_fsm.1", "base/5/t3_x", "base/5/99999",
        "base/5/99999_init", "base/5/99999.1", "base/5/99999_vm", "base/5/099999", "base/5/99999_other",
        "base/5/88888_fsm", "global/99999",
        "base/5/pgsql_tmp/pgsql_tmp1.0", "base/pgsql_tmp/1", "own folder/pg_notify/1", "own folder/postmaster.opts", "pg_wal/000",
        "own folder/pgsql_tmp", "own folder/t3_16400", "own folder/99999",
    ):  # fmt: skip
        (data / name).write_bytes(name.encode())
    if cluster.server.data.joinpath("PG_VERSION").read_text().strip() != "15":
        (data / "global/99999_init").write_bytes(b"since 16 of shared relations too")
    Path(os.fsdecode(os.fsencode(data) + b"/own folder/\xff\xfe")).write_bytes(b"no UTF-8")
    os.mkfifo(data / "own folder/fifo")
    (data / "own folder/link").symlink_to(data / "PG_VERSION")
    for path in data.rglob("*"):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    sql(cluster.server, "postgres", f"CREATE TABLESPACE inside LOCATION '{inside}'")
    sql(cluster.server, "postgres", "CREATE TABLESPACE in_place LOCATION ''")
    for name in ("inside", "in_place"):
        sql(cluster.server, "postgres", f"CREATE TABLE of_{name} TABLESPACE {name} AS SELECT generate_series(1, 2000) AS n")
    sql(cluster.server, "postgres", "CREATE UNLOGGED TABLE forgets (n int PRIMARY KEY)")
    sql(cluster.server, "postgres", "INSERT INTO forgets SELECT generate_series(1, 1000)")


def shown(entry: Entry) -> dict[str, object]:
    """A line, without where it lies in packs, and with its time as a server tells it."""
    told = {name: getattr(entry, name) for name in ("kind", "mode", "uid", "gid", "target", "size_bytes") if hasattr(entry, name)}
    by_itself = isinstance(entry, File) and entry.named.startswith((b"base/", b"pg_tblspc/"))  # others each checkpoint writes
    return {**told, "type": type(entry), "seconds": entry.mtime_ns // 10**9 if by_itself else None}


@pytest.mark.rule(29)
@pytest.mark.rule(30)
def test_it_holds_what_the_server_would_send(cluster: Cluster) -> None:
    litter(cluster)
    sql(cluster.server, "postgres", "CHECKPOINT")
    received, read = work_for(cluster), files_work(cluster)
    if major_of(cluster.server) == 15:  # such a server leaves out tablespaces in place, and says nothing
        with pytest.raises(ServerError, match="sends nothing of the tablespaces that lie in pg_tblspc itself"):
            create_base(received)
        ((path,),) = sql(cluster.server, "postgres", "SELECT pg_relation_filepath('of_in_place')")
        _, content = contents_of(read, backed_up(cluster, read).summary)[path.encode()]
        assert content == (cluster.server.data / path).read_bytes()
        sql(cluster.server, "postgres", "DROP TABLE of_in_place")
        sql(cluster.server, "postgres", "DROP TABLESPACE in_place")
        sql(cluster.server, "postgres", "CHECKPOINT")
    by_protocol = contents_of(received, backed_up(cluster, received).summary)
    summary = backed_up(cluster, read).summary
    by_files = contents_of(read, summary)
    assert by_files.keys() == by_protocol.keys()
    for name, (entry, content) in by_files.items():
        # The second one has a checkpoint of its own.
        if name != b"global/pg_control" and not name.startswith(b"pg_wal"):
            assert (shown(entry), content) == (shown(by_protocol[name][0]), by_protocol[name][1]), name
    assert [warning for warning in read.emit.warnings if "own folder/fifo" in warning]  # type: ignore[attr-defined]  # a Kept
    key = next(part.key for part in summary.objects if part.role == "server_manifest")
    named = json.loads(decompress_bytes(read.store.get(key), key))
    paths = {(each["Path"].encode() if "Path" in each else bytes.fromhex(each["Encoded-Path"])) for each in named["Files"]}
    files = {name for name, (entry, _) in by_files.items() if isinstance(entry, File) and not isinstance(entry, Outside)}
    assert paths == files | {b"backup_label", b"tablespace_map"}


# -- of which server


@contextlib.contextmanager
def copied(cluster: Cluster, *, running: bool) -> Iterator[Path]:
    """A copy of the data folder, as a snapshot of its volume would be; with *running* its postmaster.pid is in it."""
    with private_folder() as folder:
        copy = folder / "data"
        shutil.copytree(cluster.server.data, copy, symlinks=True, copy_function=shutil.copy2, ignore=ignored)
        if not running:
            (copy / "postmaster.pid").unlink()
        yield copy


def ignored(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "fifo" or (Path(folder).name == "pg_wal" and len(name) == 24)]


@pytest.mark.rule(44)
def test_another_folder_is_refused_before_anything_is_written(cluster: Cluster, tmp_path: Path) -> None:
    def refused(data: Path, kind: type[Exception], match: str) -> None:
        work = files_work(cluster, PGDATA=str(data))
        with pytest.raises(kind, match=match):
            create_base(work)
        assert not [info.key for info in work.store.list("") if not info.key.startswith(("clock", "repository", "locks/"))]

    refused(tmp_path / "nothing", MissingError, "is no data folder of PostgreSQL")
    with copied(cluster, running=False) as copy:
        refused(copy, IntegrityError, "no server runs on it")
    with copied(cluster, running=True) as copy:
        pid = copy / "postmaster.pid"
        lines = pid.read_text().splitlines()
        for number, value, why in (
            (1, "/elsewhere", "its postmaster.pid says /elsewhere, the server's data_directory is"),
            (2, str(int(lines[2]) - 4000), "was started at another time"),
            (3, "5999", "the server on it listens on port 5999"),
        ):
            pid.write_text("\n".join([*lines[:number], value, *lines[number + 1 :]]))
            refused(copy, IntegrityError, why)
        pid.write_text("\n".join(lines[:2]))
        refused(copy, IntegrityError, "its postmaster.pid is cut short")
        pid.write_text("\n".join(lines))
        sql(cluster.server, "postgres", "CHECKPOINT")  # which the copy does not have
        refused(copy, IntegrityError, "its pg_control has the checkpoint .* the server's own")
    with archived_cluster(15) as other:
        work = files_work(other, PGDATA=str(cluster.server.data))
        with pytest.raises(IntegrityError, match="is not the data folder of the server at"):
            create_base(work)


@pytest.mark.rule(44)
def test_a_copy_made_a_moment_ago_is_refused_when_the_backup_begins(cluster: Cluster) -> None:
    """Nothing tells it from the folder but the checkpoint that the server makes for us."""
    with copied(cluster, running=True) as copy:
        work = files_work(cluster, PGDATA=str(copy))
        with pytest.raises(IntegrityError, match="its pg_control"):
            create_base(work)
        assert not [info.key for info in work.store.list("") if info.key.startswith(("base/", "packs/"))]
        ((running,),) = sql(cluster.server, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_backup_start'")
        assert running == 1  # our own question


@dataclass
class When:
    """An `emit` that does something once: when the copying begins, or behind so many of its files."""

    do: Callable[[], object]
    after: int = 0
    done: bool = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.step == "copy":
            self.after -= 1
        begun = isinstance(event, StepBegun | Progress) and event.step == "copy"
        if begun and self.after <= 0 and not self.done:
            self.done = True
            self.do()


KILL = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE {query} AND pid <> pg_backend_pid()"


@pytest.mark.rule(26)
@pytest.mark.rule(33)
def test_a_session_that_breaks_ends_the_backup(cluster: Cluster) -> None:
    def kill() -> None:
        ended.extend(sql(cluster.server, "postgres", KILL.format(query="'%pg_backup_start(label%'")))

    ended: list[tuple[int]] = []
    work = files_work(cluster)
    with pytest.raises(ServerError, match="taking the base backup: the connection to PostgreSQL was lost"):
        create_base(replace(work, emit=When(kill)))
    assert ended == [(1,)]
    assert committed(work) == []
    backed_up(cluster, work)  # the server counts no backup any more, so another may begin and end
    assert len(committed(work)) == 1


# -- pages whose checksum is wrong


@dataclass
class PageOf:
    """Some page of a file, changed behind the server's back; it is as it was when the context is left."""

    path: Path
    number: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.number * PAGE)
            return file.read(PAGE)

    def write(self, content: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.number * PAGE)
            file.write(content)

    @contextlib.contextmanager
    def holding(self, content: bytes) -> Iterator[None]:
        before = self.read()
        self.write(content)
        try:
            yield
        finally:
            self.write(before)


def page(**fields: int) -> Callable[[bytes], bytes]:
    """What changes an LSN or a byte of a page."""

    def changed(content: bytes) -> bytes:
        lsn = fields.get("lsn")
        begin = content[:8] if lsn is None else (lsn >> 32).to_bytes(4, "little") + (lsn & 0xFFFFFFFF).to_bytes(4, "little")
        return begin + content[8:5000] + bytes([content[5000] ^ fields.get("flip", 1)]) + content[5001:]

    return changed


@pytest.mark.rule(43)
def test_a_damaged_page_is_told_from_a_torn_one(cluster: Cluster) -> None:
    sql(cluster.server, "postgres", "CREATE TABLE harmed AS SELECT n, repeat('x', 900) FROM generate_series(1, 2000) n")
    sql(cluster.server, "postgres", "VACUUM FREEZE harmed")
    sql(cluster.server, "postgres", "CHECKPOINT")
    path = path_of(cluster, "harmed")
    ((now,),) = sql(cluster.server, "postgres", "SELECT pg_current_wal_insert_lsn() - '0/0'")
    work = files_work(cluster)
    with contextlib.ExitStack() as harmed:
        for number, lsn in ((3, None), (7, int(now) + (1 << 40)), (150, None)):
            target = PageOf(path, number)
            harmed.enter_context(target.holding(page(**({} if lsn is None else {"lsn": lsn}))(target.read())))
        bad = backed_up(cluster, work)
    entry, _ = stored(work, bad.summary, cluster, path)
    assert (bad.summary.pages.damaged, entry.damaged_pages) == (3, (3, 7, 150))
    assert [text for text in bad.details.warnings if path.name in text and text.endswith("3 pages, blocks 3, 7, 150")]

    def torn() -> None:
        """Its LSN is of now: somebody is writing it, and that is in the WAL of the backup."""
        ((lsn,),) = sql(cluster.server, "postgres", "SELECT pg_current_wal_insert_lsn() - '0/0'")
        target = PageOf(path, 3)
        mended.append(target.read())
        target.write(page(lsn=int(lsn))(mended[0]))

    mended: list[bytes] = []
    with cluster.archiving(work):
        assert create_base(replace(work, emit=When(torn))).summary.pages.damaged == 0
    PageOf(path, 3).write(mended[0])


# -- what is not read


def measured(cluster: Cluster, work: Work) -> tuple[BaseSummary, int]:
    """A base backup, and how much was read for it."""
    with cluster.archiving(work):
        before = read_bytes()
        summary = create_base(work).summary
        return summary, read_bytes() - before


MIB = 1 << 20


@pytest.mark.rule(42)
def test_what_nobody_wrote_is_not_read_again(cluster: Cluster) -> None:
    for name in ("still", "fresh"):
        sql(cluster.server, "postgres", f"CREATE TABLE {name} AS SELECT n, repeat('y', 900) t FROM generate_series(1, 20000) n")
        sql(cluster.server, "postgres", f"VACUUM FREEZE {name}")
    sql(cluster.server, "postgres", "CHECKPOINT")
    still, fresh = path_of(cluster, "still"), path_of(cluster, "fresh")
    assert still.stat().st_size > 16 * MIB
    until_older(cluster, still, 2.1)
    sql(cluster.server, "postgres", "UPDATE fresh SET t = repeat('z', 900) WHERE n = 1")
    work = files_work(cluster)
    first, whole = measured(cluster, work)
    second, less = measured(cluster, work)
    assert whole > 40 * MIB
    assert 16 * MIB < less < whole - 16 * MIB  # `fresh` was written within the two seconds, `still` was not
    assert second.parent == first.id
    assert second.pages.adopted > 4500
    assert second.pages.adopted + second.pages.new + second.pages.zero == first.pages.new + first.pages.zero
    for path in (still, fresh):
        assert stored(work, second, cluster, path)[1] == path.read_bytes()

    # The third parent knows that both are older.
    until_older(cluster, fresh, 2.1)
    third, _ = measured(cluster, work)
    fourth, least = measured(cluster, work)
    assert least < 8 * MIB
    assert fourth.parent == third.id
    _, all_of_it = measured(cluster, files_work(cluster, work, BASE_SKIP_UNCHANGED="no"))
    assert all_of_it > 40 * MIB

    # Whoever sets the time of a file back cannot set back that of its inode.
    info = still.stat()
    target = PageOf(still, 5)
    before = target.read()
    target.write(page(flip=1)(before))
    os.utime(still, ns=(info.st_atime_ns, info.st_mtime_ns))
    changed, _ = measured(cluster, work)
    assert (changed.pages.damaged, stored(work, changed, cluster, still)[0].damaged_pages) == (1, (5,))
    target.write(before)

    # A pack that a prune is about to delete: what lies there is read, and stored anew.
    largest = parse_pack_key(max(work.store.list("packs/"), key=lambda info: info.size_bytes).key)
    assert largest is not None
    doomed = {str(largest.run): [(largest.number, largest.number)]}
    record = PruneRecord(id=first.id, doomed_at=work.store.now(), packs=doomed, keys=[])
    work.store.put(names.prune_key(BackupId.parse(first.id)), encode(record))
    healed, _ = measured(cluster, work)
    assert healed.pages.healed > 0
    for path in (still, fresh):
        assert stored(work, healed, cluster, path)[1] == path.read_bytes()


@pytest.mark.rule(42)
def test_after_a_backup_over_the_connection_everything_is_read(cluster: Cluster) -> None:
    work = work_for(cluster)
    with cluster.archiving(work):
        parent = create_base(work).summary
    until_older(cluster, cluster.server.data / "global/pg_control", 2.1)
    reading = files_work(cluster, work)
    summary, read = measured(cluster, reading)
    assert (summary.parent, parent.source, summary.source) == (parent.id, "protocol", "files")
    assert read > summary.plain_bytes * 0.95
    assert summary.stored_bytes < parent.stored_bytes / 2


def test_the_command_takes_the_source_as_an_option(cluster: Cluster, run_cli: RunCli, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/repository"
    work = work_for(cluster, LocalStore(tmp_path / "repository"), BACKUP_URL=url)
    with cluster.archiving(work):
        for words in ((), ("--source", "files")):
            run_cli("base", "create", *words, env=cluster.settings(BACKUP_URL=url), check=True)
    said = [read_base_summary(work.store, listed.backup_id).source for listed in list_base_backups(work.store)]
    assert said == ["protocol", "files"]
