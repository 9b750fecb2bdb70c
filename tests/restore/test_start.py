"""`--start` on what pg_basebackup and a folder of WAL give: where it stops, what it refuses, what it says."""

import contextlib
import os
import pwd
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import Settings
from clipper_backup.errors import ClipperError, IntegrityError, ServerError, WalGapError
from clipper_backup.format.base_documents import ServerSettings
from clipper_backup.ops.events import ignore
from clipper_backup.ops.restore.recovery import Recovery, write_recovery
from clipper_backup.ops.restore.start import Started, Starting, start_recovered
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import Account, run, server_account
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Lsn, Timeline
from fixtures.postgres import connect, private_folder, server_binaries, sql

pytestmark = pytest.mark.soak(share=0.25)

SOURCE = ServerSettings(
    max_connections=30,
    max_worker_processes=4,
    max_wal_senders=5,
    max_prepared_transactions=3,
    max_locks_per_transaction=64,
    wal_level="replica",
)


@dataclass(frozen=True)
class Moment:
    """What a server held: the sum of its rows after a commit, and where its WAL ended then."""

    total: int
    lsn: Lsn


@dataclass(frozen=True)
class Source:
    """A plain copy of a server's data folder, its WAL in a folder, and what it held at some moments after the copy."""

    backup: Path
    archive: Path
    begin: Lsn
    moments: tuple[Moment, ...]
    last: Lsn


def segment_of(lsn: Lsn) -> str:
    return f"00000001{lsn >> 32:08X}{(lsn & 0xFFFFFFFF) >> 20:08X}"


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    account = server_account()
    with private_folder() as folder:
        archive, backup = folder / "archive", folder / "backup"
        archive.mkdir()
        account.own(archive)
        server = PrivateServer(
            folder / "server",
            server_binaries(15),
            environment=os.environ,
            settings={
                "fsync": "off",
                "archive_mode": "on",
                "archive_command": f"cp %p {archive}/%f",
                "max_connections": "30",
                "max_prepared_transactions": "3",
                "autovacuum": "off",
            },
        )
        with server:
            server.initdb(sync=False, wal_segment_mib=1)
            server.start()
            sql(server, "postgres", "CREATE TABLE ledger (n int)")
            where = server.connection()
            command: list[str | Path] = [server_binaries(15).program("pg_basebackup"), "-h", where["host"], "-p", where["port"]]
            command += ["-U", where["user"], "-X", "none", "-c", "fast", "--no-sync", "-D", folder / "server/copied"]
            code, printed = run(command, account, environment=os.environ)
            assert code == 0, printed
            (folder / "server/copied").rename(backup)
            label = (backup / "backup_label").read_text()
            begin = Lsn.parse(label.split("START WAL LOCATION: ")[1].split()[0])
            moments = tuple(_moments(server))
            ((last,),) = sql(server, "postgres", "SELECT pg_switch_wal()")
            with connect(server) as connection:
                while (archive / segment_of(Lsn.parse(last) - 1)).exists() is False:  # type: ignore[arg-type] # an int
                    connection.execute("SELECT pg_sleep(0.02)")
        yield Source(backup, archive, begin, moments, Lsn.parse(last))


def _moments(server: PrivateServer) -> Iterator[Moment]:
    with connect(server) as connection:
        for n in range(4):
            connection.execute("INSERT INTO ledger SELECT %s FROM generate_series(1, 20000)", [10**n])
            found = connection.execute("SELECT (SELECT sum(n) FROM ledger), pg_current_wal_insert_lsn()").fetchone()
            assert found is not None
            yield Moment(int(found[0]), Lsn.parse(found[1]))


def work() -> Work:
    clock = SystemClock()
    return Work(Settings(), MemoryStore(clock), clock, ignore)


@dataclass(frozen=True)
class Copy:
    """A copy of the source that a test may recover."""

    folder: Path
    source: Source

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def prepare(self, target: Target, command: str | None = None, account: Account | None = None) -> Starting:
        account = account or server_account()
        shutil.copytree(self.source.backup, self.data, symlinks=True)
        if os.geteuid() == 0:
            for path in (self.data, *self.data.rglob("*")):
                account.own(path)
        fetch = command or f"cp {self.source.archive}/%f %p"
        with (self.data / "postgresql.auto.conf").open("a") as config:
            config.write("fsync = off\n")
        write_recovery(self.data, Recovery(target, Timeline(1), fetch, SOURCE), account)
        work_folder = self.folder / "work"
        work_folder.mkdir(mode=0o700)
        account.own(work_folder)
        must_reach = self.source.last if target.kind == "latest" else None
        return Starting(self.data, work_folder, account, 15, target, self.source.begin, self.source.last, must_reach)


@pytest.fixture
def copy(source: Source) -> Iterator[Copy]:
    with private_folder() as folder:
        yield Copy(folder, source)


@contextlib.contextmanager
def started(starting: Starting) -> Iterator[tuple[Started, int]]:
    """The server that is left running, and the sum of its rows; ended afterwards."""
    found = start_recovered(work(), starting)
    try:
        with psycopg.connect(host=str(found.socket_folder), port=found.port, user="postgres", dbname="postgres") as connection:
            row = connection.execute("SELECT sum(n) FROM ledger").fetchone()
            assert row is not None
            yield found, int(row[0] or 0)
    finally:
        os.kill(found.pid, signal.SIGQUIT)
        os.waitpid(found.pid, 0)


@pytest.mark.rule(66)
def test_latest_is_all_there_is_and_the_server_is_private(copy: Copy) -> None:
    starting = copy.prepare(Target("latest"))
    with (copy.data / "postgresql.conf").open("a") as config:
        config.write(
            "listen_addresses = '*'\nport = 5432\ndata_directory = '/nonexistent'\nsynchronous_standby_names = '*'\nssl = on\n"
        )
        config.write("recovery_target_name = 'of an earlier recovery'\nrecovery_target_action = shutdown\n")
    with started(starting) as (found, total):
        assert total == copy.source.moments[-1].total
        assert found.stopped_at == copy.source.last.__class__(-(-copy.source.last // 2**20) * 2**20)
        with psycopg.connect(
            host=str(found.socket_folder), port=found.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute("CREATE TABLE written_after (n int)")
            told: dict[str, str] = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
        assert told["listen_addresses"] == ""
        assert told["archive_mode"] == "off"
        assert told["data_directory"] == str(copy.data)
        assert told["max_connections"] == "30"
        assert told["max_prepared_transactions"] == "3"
        assert found.socket_folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root restores for others")
def test_the_server_runs_as_the_owner_of_its_files(copy: Copy) -> None:
    """--owner names any user: with the files of one and a server of another PostgreSQL refuses to start."""
    entry = pwd.getpwnam("nobody")
    account = Account("nobody", entry.pw_uid, entry.pw_gid)
    archive = copy.folder / "archive"
    shutil.copytree(copy.source.archive, archive)
    for path in (archive, *archive.iterdir()):
        account.own(path)
    with started(copy.prepare(Target("latest"), f"cp {archive}/%f %p", account)) as (found, total):
        assert total == copy.source.moments[-1].total
        assert Path(f"/proc/{found.pid}").stat().st_uid == found.log.parent.stat().st_uid == account.uid


@pytest.mark.rule(56)
def test_wal_that_is_refused_ends_it(copy: Copy) -> None:
    gone = segment_of(copy.source.moments[2].lsn)
    starting = copy.prepare(Target("latest"))
    refusals: tuple[tuple[int, type[ClipperError], str], ...] = (
        (214, WalGapError, gone),
        (213, IntegrityError, gone),
        (255, ServerError, "exit code 255"),
    )
    for code, error, words in refusals:
        command = f'test "%f" = {gone} && exit {code}; cp {copy.source.archive}/%f %p'
        with pytest.raises(error, match=words):
            start_recovered(work(), replace(starting, command=command))
        assert not (copy.data / "postmaster.pid").exists()
        assert not (copy.data / "pg_wal/00000002.history").exists()
    told = replace(starting, command="exit 255", refused=lambda: WalGapError("segment X is missing", hints=["look"]))
    with pytest.raises(WalGapError, match="recovery was ended: segment X is missing"):
        start_recovered(work(), told)


@pytest.mark.rule(68)
def test_wal_that_ends_early_is_found(copy: Copy) -> None:
    """The last segment alone, so that it stops about where that begins."""
    gone = segment_of(Lsn(copy.source.last - 1))
    starting = copy.prepare(Target("latest"), f'test "%f" = {gone} && exit 1; cp {copy.source.archive}/%f %p')
    with pytest.raises(
        IntegrityError, match=rf"recovery ended at .* the last record that is there ends at {copy.source.last}"
    ) as caught:
        start_recovered(work(), starting)
    # It opened, on timeline 2: that is not what the next try is to go along.
    assert caught.value.hints[-1].endswith("--replace --timeline 1")
    assert not (copy.data / "postmaster.pid").exists()
