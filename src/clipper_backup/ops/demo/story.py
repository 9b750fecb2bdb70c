"""`demo`: the main job once through, on this machine and nothing but this machine.

A private PostgreSQL server with a generated database archives its WAL; it is dumped, the dump is verified, and a base backup
is taken. Then somebody overwrites a column while others write: the cluster is restored to the instant before. Then the server
is destroyed with all its files: the database is restored from the dump. Both are compared with what was there. Everything lies
in one temporary folder that goes at the end.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.config import Settings
from clipper_backup.errors import ClipperError
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.demo.database import create_clipper_database
from clipper_backup.ops.demo.recovery import Writers, archive_settings, archiving, go_back, make_disaster
from clipper_backup.ops.dump.create import create_dump
from clipper_backup.ops.dump.restore import Request as DumpRequest
from clipper_backup.ops.dump.restore import Restored, restore_dump
from clipper_backup.ops.dump.verify import Verified, verify_dump
from clipper_backup.ops.events import Emit
from clipper_backup.ops.work import SOFTWARE, Work, login_of, open_work, step
from clipper_backup.postgres import server_facts
from clipper_backup.postgres.binaries import Binaries, find_binaries
from clipper_backup.postgres.connection import connect
from clipper_backup.postgres.databases import create_database
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.values import DumpId, show_bytes, show_count

DATABASE = "clipper"
MAJOR = 18
_NEEDED_BYTES_AT_SCALE_1 = 3_000_000_000
_TOOLS = ("postgres", "initdb", "pg_dump", "pg_dumpall", "pg_restore")


@dataclass(frozen=True, slots=True)
class Chapter:
    """One line of the final table."""

    title: str
    seconds: float
    result: str


@dataclass(frozen=True, slots=True)
class Story:
    """What happened."""

    server_version: str
    verified: Verified
    restored: Restored
    chapters: tuple[Chapter, ...]


def run_demo(clock: Clock, emit: Emit, *, scale: float) -> Story:
    """Tell the whole story; leaves nothing behind, however it ends. *scale* 1 is a database of at least 200 MB."""
    binaries = find_binaries(tools=_TOOLS, exactly=MAJOR, environment=os.environ)
    chapters: list[Chapter] = []
    with _folder(scale) as folder:
        with _server(folder / "first", binaries, clock, archive_settings(folder)) as server:
            work = _work(server, folder, binaries, clock, emit)
            open_or_create_repository(work.store, clock, SOFTWARE)  # a new one is no surprise here
            with archiving(work, server, folder):
                dump_id, verified = _back_up(work, chapters, binaries, scale)
                _lose_and_recover(work, chapters, folder)
        with (
            _chapter(chapters, clock, "the next disaster") as chapter,
            step(work, "disaster", "delete the server and all its files") as told,
        ):
            shutil.rmtree(folder / "first")
            told.done = chapter.result = "server, database and roles are gone"
        with _server(folder / "second", binaries, clock) as server:
            work = _work(server, folder, binaries, clock, emit)
            with _chapter(chapters, clock, "restore the dump on a new server") as chapter:
                restored = restore_dump(work, DumpRequest(dump_id, DATABASE, DATABASE, jobs=2))
                chapter.result = f"database {restored.into}, {show_count(len(restored.roles_created), 'role')}"
    compared = restored.comparison
    proof = f"{compared.tables} tables, {compared.rows or 0:,} rows by hash, {compared.sequences} sequences: all equal"
    chapters.append(Chapter("compare (part of the restore)", 0.0, proof))
    return Story(binaries.version, verified, restored, tuple(chapters))


def _back_up(work: Work, chapters: list[Chapter], binaries: Binaries, scale: float) -> tuple[DumpId, Verified]:
    with _chapter(chapters, work.clock, "a database to lose") as chapter:
        size = _make_database(work, scale)
        chapter.result = f"{DATABASE}, {show_bytes(size)}, PostgreSQL {binaries.version}, its WAL archived as it is written"
    with _chapter(chapters, work.clock, "dump") as chapter:
        dumped = create_dump(work).summary
        chapter.result = f"{dumped.id}: {dumped.rows:,} rows hashed, {show_bytes(dumped.stored_bytes)} stored and read back"
    dump_id = DumpId.parse(dumped.id)
    with _chapter(chapters, work.clock, "verify") as chapter:
        verified = verify_dump(work, dump_id)
        chapter.result = f"{verified.objects} objects, {verified.rows or 0:,} rows in the archive, as counted"
    return dump_id, verified


def _lose_and_recover(work: Work, chapters: list[Chapter], folder: Path) -> None:
    writers = Writers(login_of(work.settings), DATABASE)
    writers.begin()
    try:
        with _chapter(chapters, work.clock, "base backup") as chapter:
            base = create_base(work).summary
            chapter.result = f"{base.id}: {base.files:,} files, {show_bytes(base.stored_bytes)} stored, while rows are written"
        with _chapter(chapters, work.clock, "a disaster") as chapter, step(work, "disaster", "UPDATE clips, no WHERE") as told:
            disaster = make_disaster(work, DATABASE, writers)
            told.done = chapter.result = f"UPDATE without WHERE: {disaster.clips[0]:,} titles overwritten, and rows written on"
    finally:
        writers.end()
    with _chapter(chapters, work.clock, "restore to the instant before") as chapter:
        restored, proof = go_back(work, DATABASE, disaster, folder)
        assert restored.started is not None  # noqa: S101  it was asked for
        chapter.result = f"{disaster.instant:%H:%M:%S.%f}, stopped at {restored.started.stopped_at}, a new timeline"
    compared = (
        f"{proof.clips:,} clips by hash as they were; of {disaster.ticks} rows written meanwhile the {proof.last_tick} of before"
    )
    chapters.append(Chapter("compare", 0.0, compared))


class _Chapter:
    result = ""


@contextmanager
def _chapter(chapters: list[Chapter], clock: Clock, title: str) -> Iterator[_Chapter]:
    began, chapter = clock.monotonic(), _Chapter()
    yield chapter
    chapters.append(Chapter(title, clock.monotonic() - began, chapter.result))


@contextmanager
def _folder(scale: float) -> Iterator[Path]:
    base = Path(tempfile.gettempdir())
    needed, free = int(_NEEDED_BYTES_AT_SCALE_1 * max(scale, 0.1)), shutil.disk_usage(base).free
    if free < needed:
        raise ClipperError(
            f"the demo needs {show_bytes(needed)}, {base} has {show_bytes(free)}",
            hints=["TMPDIR=/another/folder clipper-backup demo"],
        )
    folder = Path(tempfile.mkdtemp(prefix="clipper-demo-", dir=base))
    try:
        folder.chmod(0o755)  # PostgreSQL's account must pass through it when we are root
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _server(folder: Path, binaries: Binaries, clock: Clock, more: Mapping[str, str] | None = None) -> Iterator[PrivateServer]:
    # The server's data is thrown away in a minute; the store is written as durably as ever.
    settings = {"fsync": "off", "max_wal_size": "4GB", "shared_buffers": "256MB", "maintenance_work_mem": "256MB"} | dict(
        more or {}
    )
    with PrivateServer(folder, binaries, environment=os.environ, settings=settings, clock=clock) as server:
        server.initdb(sync=False)
        server.start()
        yield server


def _work(server: PrivateServer, folder: Path, binaries: Binaries, clock: Clock, emit: Emit) -> Work:
    where = server.connection()
    settings = Settings(
        backup_url=f"file://{folder}/store",
        backup_databases=(DATABASE,),
        dump_fingerprint="hash",
        pg_bindir=binaries.bindir,
        scratch_dir=folder,
        pghost=where["host"],
        pgport=where["port"],
        pguser=where["user"],
    )
    return open_work(settings, clock, emit, read_only=False)


def _make_database(work: Work, scale: float) -> int:
    login = login_of(work.settings)
    with closing(connect(login)) as maintenance:
        properties = server_facts.database_properties(maintenance, MAJOR)
        create_database(maintenance, DATABASE, properties, None)
    with closing(connect(login, DATABASE)) as connection:

        def execute(statement: str) -> None:
            connection.execute(statement.encode())

        execute("SET search_path = public")  # our own sessions search no schema
        create_clipper_database(execute, scale=scale, emit=work.emit)
        return server_facts.database_size_bytes(connection)
