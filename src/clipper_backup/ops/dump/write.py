"""An archive on its way into the store: pg_dump, zstd, upload, and the proof that the store gives it back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from clipper_backup.errors import IntegrityError, StoreError
from clipper_backup.format import names
from clipper_backup.format.compression import Counter, Meter, compress, decompress
from clipper_backup.format.documents import StoredObject
from clipper_backup.format.tar import tar_of_folder
from clipper_backup.ops.dump.source import Source
from clipper_backup.ops.scratch import scratch_folder
from clipper_backup.ops.work import Step, Work, step
from clipper_backup.postgres.archive import Contents, read_contents
from clipper_backup.postgres.programs import READ_BYTES, Program
from clipper_backup.postgres.snapshot import Snapshot
from clipper_backup.store.protocol import Store
from clipper_backup.values import DumpId, show_bytes

_PG_DUMP_LOCK_WAIT_MS = 5_000
"""We hold every lock that pg_dump asks for. It can only wait behind somebody who wants a table for himself and waits for *us*:
a deadlock that PostgreSQL cannot see. pg_dump gives up, we release our locks, let him pass and begin again."""


class Writing:
    """An archive on its way into the store."""

    def __init__(
        self,
        work: Work,
        key: str,
        name: str,
        archive: Literal["custom", "directory"],
        *,
        database_bytes: int,
        program: Program,
        source: Callable[[], Iterator[bytes]],
        contents_of: Callable[[Iterator[bytes]], Contents],
    ) -> None:
        self._work, self._key, self._name, self._archive = work, key, name, archive
        self._program, self._source, self._contents_of = program, source, contents_of
        self._database_bytes = database_bytes
        self._plain, self._stored = Counter(), Meter()

    def upload(self) -> None:
        """Stream the source into the store; the object appears only when the source ended well."""
        with step(self._work, f"dump {self._name}", f"{self._name}: pg_dump into {self._key}") as running:
            plain = running.metered(self._plain.pass_through(self._source()))
            level = self._work.settings.dump_compression_level
            threads = self._work.settings.dump_compression_threads
            stored = self._stored.pass_through(compress(plain, level=level, threads=threads))
            # A compressed dump is smaller than its database: good enough to choose the size of an upload's parts.
            self._work.store.put_stream(self._key, stored, expected_bytes=self._database_bytes)
            plain_bytes, stored_bytes = self._plain.size_bytes, self._stored.size_bytes
            running.done = f"{self._name}: {show_bytes(plain_bytes)} dumped, {show_bytes(stored_bytes)} stored"

    def cancel(self) -> None:
        """End pg_dump; the upload then fails and leaves nothing."""
        self._program.kill()

    def warnings(self) -> list[str]:
        """What pg_dump warned about."""
        return [f"database {self._name}: {line}" for line in self._program.warnings]

    def read_back(self) -> tuple[StoredObject, Contents]:
        """Read the stored bytes again: same hash, decompressing, and with a table of contents that pg_restore accepts."""
        stored = StoredObject(
            key=self._key,
            role="database",
            database=self._name,
            archive=self._archive,
            size_bytes=self._stored.size_bytes,
            plain_bytes=self._plain.size_bytes,
            sha256=self._stored.sha256,
        )
        with step(self._work, f"read back {self._name}", f"{self._name}: read back what was stored") as running:
            contents = read_back(self._work.store, stored, self._contents_of, running)
            running.done = f"{self._name}: stored bytes are equal, {contents.entries} entries in the archive"
        return stored, contents


def read_back(store: Store, stored: StoredObject, contents_of: Callable[[Iterator[bytes]], Contents], running: Step) -> Contents:
    """Prove that the store gives back what it was given; StoreError otherwise: the dump must not be committed."""
    meter, counter = Meter(), Counter()
    try:
        chunks = running.metered(meter.pass_through(store.get_stream(stored.key)), stored.size_bytes)
        plain = counter.pass_through(decompress(chunks, stored.key))
        contents = contents_of(plain)
        for _ in plain:
            pass
    except IntegrityError as error:
        raise StoreError(f"what was stored could not be read back: {error}") from error
    if (meter.size_bytes, meter.sha256, counter.size_bytes) != (stored.size_bytes, stored.sha256, stored.plain_bytes):
        raise StoreError(f"{stored.key}: the store gave back other bytes than it was given")
    return contents


@contextmanager
def write_custom(
    work: Work, source: Source, dump_id: DumpId, snapshot: Snapshot, name: str, *, size_bytes: int
) -> Iterator[Writing]:
    """`pg_dump -Fc` straight into the store, without scratch space."""
    environment = source.login.environment(name)
    arguments = [*_arguments(snapshot), "--format=custom"]
    with Program(source.binaries.program("pg_dump"), arguments, environment, of=f"database {name}") as program:
        yield Writing(
            work,
            names.database_key(dump_id, name, names.CUSTOM),
            name,
            "custom",
            database_bytes=size_bytes,
            program=program,
            source=program.chunks,
            contents_of=lambda plain: read_contents(source.binaries.program("pg_restore"), environment, plain, name),
        )


@contextmanager
def write_directory(
    work: Work, source: Source, dump_id: DumpId, snapshot: Snapshot, name: str, *, size_bytes: int
) -> Iterator[Writing]:
    """`pg_dump -Fd --jobs` into scratch, then as one tar into the store; scratch must hold the database's *size_bytes*."""
    environment = source.login.environment(name)
    with scratch_folder(work.settings.scratch_dir, size_bytes, f"a dump of {name} with DUMP_JOBS") as folder:
        target = folder / "archive"
        arguments = [*_arguments(snapshot), "--format=directory", f"--jobs={work.settings.dump_jobs}", f"--file={target}"]
        with Program(source.binaries.program("pg_dump"), arguments, environment, of=f"database {name}") as program:

            def chunks() -> Iterator[bytes]:
                yield from program.chunks()  # it prints nothing; raises unless it ends with 0
                yield from tar_of_folder(_files(target))

            yield Writing(
                work,
                names.database_key(dump_id, name, names.DIRECTORY),
                name,
                "directory",
                database_bytes=size_bytes,
                program=program,
                source=chunks,
                contents_of=lambda _plain: read_contents(source.binaries.program("pg_restore"), environment, target, name),
            )


def _files(target: Path) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """Name, size and content of each file, the table of contents first: a reader finds it without reading the rest."""
    for path in sorted(target.iterdir(), key=lambda path: (path.name != "toc.dat", path.name)):
        with path.open("rb") as file:
            yield path.name, path.stat().st_size, iter(partial(file.read, READ_BYTES), b"")


def _arguments(snapshot: Snapshot) -> list[str]:
    arguments = [f"--snapshot={snapshot.exported}", "--compress=0", "--no-password"]
    arguments.append(f"--lock-wait-timeout={_PG_DUMP_LOCK_WAIT_MS}")
    # So that names in the archive are those that our own session sees. The text of SQL_ASCII is bytes: nothing converts it.
    if snapshot.connection.info.parameter_status("server_encoding") != "SQL_ASCII":
        arguments.append("--encoding=UTF8")
    return arguments


def store_whole(store: Store, key: str, data: bytes, *, plain_bytes: int, role: Literal["globals", "details"]) -> StoredObject:
    """Write a small object and prove that it can be read back."""
    meter = Meter()
    for _ in meter.pass_through([data]):
        store.put(key, data)
    if store.get(key) != data:
        raise StoreError(f"{key}: the store gave back other bytes than it was given")
    return StoredObject(key=key, role=role, size_bytes=len(data), plain_bytes=plain_bytes, sha256=meter.sha256)
