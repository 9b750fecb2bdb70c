"""An archive on its way into the store: pg_dump, zstd, perhaps age, upload, and the proof that it can be read again.

The proof has two halves. While the bytes go into the store they are opened and decompressed again beside it. Afterwards, when
no lock is held any more, the store's bytes are read back and hashed, and pg_restore reads their table of contents. What was
hashed is what was decompressed.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from clipper_backup.errors import AccessError, ClipperError, IntegrityError, StoreError, ToolError
from clipper_backup.feed import Feed, FeedAbortedError
from clipper_backup.format import names
from clipper_backup.format.compression import Counter, Meter, compress, compress_bytes, decompress
from clipper_backup.format.documents import StoredObject
from clipper_backup.format.tar import tar_of_folder
from clipper_backup.ops.dump.source import Source
from clipper_backup.ops.keys import Sealer
from clipper_backup.ops.scratch import ONE_JOB, scratch_folder
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.archive import Contents, read_contents
from clipper_backup.postgres.programs import READ_BYTES, Program
from clipper_backup.postgres.snapshot import Snapshot
from clipper_backup.repository.dumps import other_bytes
from clipper_backup.values import DumpId, show_bytes, show_count

_PG_DUMP_LOCK_WAIT_MS = 5_000
"""We hold every lock that pg_dump asks for. It can only wait behind somebody who wants a table for himself and waits for *us*:
a deadlock that PostgreSQL cannot see. pg_dump gives up, we release our locks, let him pass and begin again."""
_CHECK_BEHIND_BYTES = 16 << 20
"""How far checking may lag behind the upload before the upload waits for it."""


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
        sealer: Sealer | None,
        source: Callable[[], Iterator[bytes]],
        contents_of: Callable[[Iterator[bytes]], Contents],
    ) -> None:
        self._work, self._key, self._name, self._archive = work, key, name, archive
        self._program, self._source, self._contents_of = program, source, contents_of
        self._sealer = sealer
        self._database_bytes = database_bytes
        self._plain, self._stored = Counter(), Meter()
        self._again = Feed(_CHECK_BEHIND_BYTES)

    def upload(self) -> None:
        """Stream the source into the store; the object appears only when the source ended well."""
        with step(self._work, f"dump {self._name}", f"{self._name}: pg_dump into {self._key}") as running:
            plain = running.metered(self._plain.pass_through(self._source()))
            level = self._work.settings.dump_compression_level
            threads = self._work.settings.dump_compression_threads
            packed = compress(plain, level=level, threads=threads)
            stored = self._stored.pass_through(self._passed_on(packed if self._sealer is None else self._sealer.seal(packed)))
            try:
                # A compressed dump is smaller than its database: good enough to choose the size of an upload's parts.
                self._work.store.put_stream(self._key, stored, expected_bytes=self._database_bytes)
            except BaseException:
                self._again.abort()
                raise
            plain_bytes, stored_bytes = self._plain.size_bytes, self._stored.size_bytes
            running.done = f"{self._name}: {show_bytes(plain_bytes)} dumped, {show_bytes(stored_bytes)} stored"

    def _passed_on(self, stored: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in stored:
            self._again.send(chunk)
            yield chunk
        self._again.finish()

    def check(self) -> None:
        """Beside `upload`: what goes into the store can be opened, and decompresses to as much as was dumped."""
        counter = Counter()
        try:
            for _ in counter.pass_through(self._opened(self._again)):
                pass
        except FeedAbortedError:  # the upload failed, and says why
            return
        except (IntegrityError, AccessError) as error:
            raise ToolError(f"database {self._name}: what was dumped cannot be read again: {error}") from error
        finally:
            self._again.close()
        if counter.size_bytes != self._plain.size_bytes:
            raise ToolError(
                f"database {self._name}: {self._plain.size_bytes} bytes were dumped, {counter.size_bytes} could be read again"
            )

    def _opened(self, stored: Iterator[bytes]) -> Iterator[bytes]:
        packed = stored if self._sealer is None else self._sealer.unseal(stored, self._key)
        return decompress(packed, self._key)

    def cancel(self) -> None:
        """End pg_dump; the upload then fails and leaves nothing."""
        self._program.kill()
        self._again.abort()

    def warnings(self) -> list[str]:
        """What pg_dump warned about."""
        return [f"database {self._name}: {line}" for line in self._program.warnings]

    def read_back(self) -> tuple[StoredObject, Contents]:
        """Read the stored bytes again: those that were checked, with a table of contents that pg_restore accepts.

        StoreError or ToolError otherwise: the dump must not be committed.
        """
        stored = StoredObject(
            key=self._key,
            role="database",
            database=self._name,
            archive=self._archive,
            size_bytes=self._stored.size_bytes,
            plain_bytes=self._plain.size_bytes,
            sha256=self._stored.sha256,
        )
        meter = Meter()
        refused: list[ClipperError] = []

        def fetched() -> Iterator[bytes]:
            try:
                yield from self._work.store.get_stream(self._key)
            except ClipperError as error:
                refused.append(error)
                raise

        with step(self._work, f"read back {self._name}", f"{self._name}: read back what was stored") as running:
            chunks = running.metered(meter.pass_through(fetched()), stored.size_bytes)
            contents: Contents | ClipperError
            try:
                contents = self._contents_of(self._opened(chunks))  # as much of it as pg_restore wants
            except (IntegrityError, AccessError) as error:
                if error in refused:  # the store's own, who gave nothing that could be judged
                    raise
                contents = error
            for _ in chunks:
                pass
            if (meter.size_bytes, meter.sha256) != (stored.size_bytes, stored.sha256):
                raise other_bytes(self._key)
            if isinstance(contents, ClipperError):
                raise ToolError(f"database {self._name}: what was dumped cannot be read again: {contents}") from contents
            running.done = (
                f"{self._name}: stored bytes are equal, {show_count(contents.entries, 'entry', 'entries')} in the archive"
            )
        return stored, contents


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
            names.database_key(dump_id, name, source.named(names.CUSTOM)),
            name,
            "custom",
            database_bytes=size_bytes,
            program=program,
            sealer=source.sealer,
            source=program.chunks,
            contents_of=lambda plain: read_contents(source.binaries.program("pg_restore"), environment, plain, name),
        )


@contextmanager
def write_directory(
    work: Work, source: Source, dump_id: DumpId, snapshot: Snapshot, name: str, *, size_bytes: int
) -> Iterator[Writing]:
    """`pg_dump -Fd --jobs` into scratch, then as one tar into the store; scratch must hold the database's *size_bytes*."""
    environment = source.login.environment(name)
    purpose = f"a dump of {name} with DUMP_JOBS"
    with scratch_folder(work.settings.scratch_dir, size_bytes, purpose, instead=ONE_JOB) as folder:
        target = folder / "archive"
        arguments = [*_arguments(snapshot), "--format=directory", f"--jobs={work.settings.dump_jobs}", f"--file={target}"]
        with Program(source.binaries.program("pg_dump"), arguments, environment, of=f"database {name}") as program:

            def chunks() -> Iterator[bytes]:
                yield from program.chunks()  # it prints nothing; raises unless it ends with 0
                yield from tar_of_folder(_files(target))

            def contents(_plain: Iterator[bytes]) -> Contents:
                found = read_contents(source.binaries.program("pg_restore"), environment, target, name)
                lacking = [number for number in found.data_tables.values() if not (target / f"{number}.dat").exists()]
                if lacking:
                    raise IntegrityError(f"{name}: the data of {show_count(len(lacking), 'table')} is gone from {target}")
                return found

            yield Writing(
                work,
                names.database_key(dump_id, name, source.named(names.DIRECTORY)),
                name,
                "directory",
                database_bytes=size_bytes,
                program=program,
                sealer=source.sealer,
                source=chunks,
                contents_of=contents,
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


def store_whole(work: Work, source: Source, key: str, plain: bytes, *, role: Literal["globals", "details"]) -> StoredObject:
    """Write a small object, compressed and perhaps sealed, and prove that it can be read back."""
    packed = compress_bytes(plain)
    data = packed if source.sealer is None else b"".join(source.sealer.seal([packed]))
    meter = Meter()
    for _ in meter.pass_through([data]):
        work.store.put(key, data)
    if work.store.get(key) != data:
        raise other_bytes(key)
    if source.sealer is not None and b"".join(source.sealer.unseal([data], key)) != packed:
        raise StoreError(f"{key}: what was sealed opens to something else")
    return StoredObject(key=key, role=role, size_bytes=len(data), plain_bytes=len(plain), sha256=meter.sha256)
