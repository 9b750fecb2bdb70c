"""What the reading commands share: the catalog with what each summary says, and archives as streams or in scratch."""

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from clipper_backup.errors import ClipperError, IntegrityError, MissingError, UsageError
from clipper_backup.feed import Feed
from clipper_backup.format.compression import READ_BYTES, decompress
from clipper_backup.format.documents import DumpDetails, DumpSummary, HoldMark, NewerError, StoredObject
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.scratch import ONE_JOB, scratch_folder
from clipper_backup.ops.work import Step, Work
from clipper_backup.postgres.archive_offsets import write_archive
from clipper_backup.repository.dumps import (
    Listed,
    UntrustedError,
    explained_damage,
    held_dumps,
    list_dumps,
    lost_objects,
    read_checked,
    read_details,
    read_summary,
)
from clipper_backup.repository.root import open_repository
from clipper_backup.values import DumpId, show_names

_READERS = 16
"""Summaries read at once: each is one small request, and a year of dumps should list within a second."""
_WRITE_BEHIND_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One dump id in the catalog. `summary` is None while it is unfinished, or when it cannot be read.

    `problem` says what is wrong with a damaged one: with its summary, or with the objects that the listing shows of it. It also
    says why one is `untrusted`, whose summary is then what somebody wrote there, and why one is `unreadable` here although it
    may be good: a newer version wrote it, or the store does not let us read it.
    """

    listed: Listed
    summary: DumpSummary | None
    problem: str | None
    hold: HoldMark | None
    untrusted: bool = False
    unreadable: bool = False


def catalog(work: Work) -> list[Entry]:
    """Every dump id, oldest first. A damaged summary is shown as a problem, it does not hide the others."""
    repository = open_repository(work.store)
    holds = held_dumps(work.store)
    with ThreadPoolExecutor(_READERS) as pool:
        dumps = list_dumps(work.store)
        found = pool.map(lambda listed: _entry(work, listed, holds.get(listed.dump_id), repository.id), dumps)
        return [entry for entry in found if entry is not None]


def good_dumps(work: Work, dumps: Sequence[Listed]) -> Iterator[DumpSummary]:
    """The summaries of the dumps of a listing that are committed and not damaged, newest first, read one by one."""
    repository = open_repository(work.store)
    for listed in reversed(dumps):
        entry = _entry(work, listed, None, repository.id)
        if entry is not None and entry.summary is not None and entry.problem is None:
            yield entry.summary


def _entry(work: Work, listed: Listed, hold: HoldMark | None, repository_id: str) -> Entry | None:
    """None for a dump that was removed since the listing."""
    if not listed.committed:
        return Entry(listed, None, None, hold)
    try:
        summary = read_summary(work.store, listed.dump_id, work.trusted, repository_id)
        return Entry(listed, summary, lost_objects(listed, summary), hold)
    except UntrustedError as error:
        return Entry(listed, _unsigned_summary(work, listed.dump_id), str(error), hold, untrusted=True)
    except IntegrityError as error:
        return Entry(listed, None, str(error), hold)
    except MissingError as error:
        if not any(again.dump_id == listed.dump_id and again.committed for again in list_dumps(work.store)):
            return None
        return Entry(listed, None, str(error), hold)
    except ClipperError as error:
        if error.temporary:
            raise
        return Entry(listed, None, str(error), hold, unreadable=True)


def _unsigned_summary(work: Work, dump_id: DumpId) -> DumpSummary | None:
    with suppress(IntegrityError, MissingError, NewerError):
        return read_summary(work.store, dump_id)
    return None


def summary_of(work: Work, dump_id: DumpId) -> DumpSummary:
    """The summary of one committed dump."""
    return read_summary(work.store, dump_id, work.trusted, open_repository(work.store).id)


def details_of(work: Work, summary: DumpSummary) -> DumpDetails:
    """What was recorded when it was taken, opened if it is sealed."""
    return read_details(work.store, summary, opener_of(work.settings, summary.recipients))


def choose_database(work: Work, summary: DumpSummary, wanted: str | None) -> StoredObject:
    """The archive of the *wanted* database, or of the only one; UsageError or MissingError naming what there is, and where."""
    has = show_names(summary.databases)
    if wanted is None:
        if len(summary.databases) != 1:
            raise UsageError(f"{summary.id} holds several databases: {has}", hints=["say which with --database NAME"])
        wanted = summary.databases[0]
    archive = summary.archive_of(wanted)
    if archive is None:
        hints = [f"it holds {has}"]
        if (elsewhere := _newest_holding(work, wanted)) is not None:
            hints.append(f"the newest good dump that holds it is {elsewhere}")
        raise MissingError(f"{summary.id} does not hold database {wanted!r}", hints=hints)
    return archive


def _newest_holding(work: Work, database: str) -> DumpId | None:
    good = ((entry.listed.dump_id, entry.summary) for entry in reversed(catalog(work)) if entry.problem is None)
    return next((dump_id for dump_id, summary in good if summary is not None and summary.archive_of(database)), None)


def plain_stream(work: Work, summary: DumpSummary, stored: StoredObject, running: Step) -> Iterator[bytes]:
    """The object, opened and decompressed; IntegrityError at the latest after its last byte when anything is not as committed."""
    passed = 0
    chunks = running.metered(read_checked(work.store, summary, stored.key), stored.size_bytes)
    with explained_damage():
        for plain in decompress(opener_of(work.settings, summary.recipients)(chunks, stored.key), stored.key):
            passed += len(plain)
            yield plain
        if passed != stored.plain_bytes:
            raise IntegrityError(f"{stored.key} decompresses to {passed} bytes, {stored.plain_bytes} were committed")


def must_be_whole(work: Work, stored: StoredObject) -> bool:
    """Whether an archive must be whole in scratch before any of it is run.

    A directory must be. And where signatures matter, its SHA-256 is what is signed: of a stream it is known after the last
    byte, when SQL of whoever can write into the store would have run as us, who may be a superuser.
    """
    return stored.archive == "directory" or bool(work.trusted)


@contextmanager
def archive_in_scratch(work: Work, summary: DumpSummary, stored: StoredObject, running: Step) -> Iterator[Path]:
    """The archive as a file (custom format) or folder (directory format) in scratch, checked; gone afterwards."""
    instead = None if must_be_whole(work, stored) else ONE_JOB
    with scratch_folder(work.settings.scratch_dir, stored.plain_bytes, f"a copy of {stored.key}", instead=instead) as folder:
        target = folder / "archive"
        chunks = plain_stream(work, summary, stored, running)
        if stored.archive == "directory":
            target.mkdir()
            unpack(chunks, target)
        else:
            _write_beside(chunks, target)
        yield target


def _write_beside(chunks: Iterable[bytes], target: Path) -> None:
    """Write an archive in a thread of its own, while the next chunks are read, hashed and decompressed."""
    feed = Feed(_WRITE_BEHIND_BYTES)

    def write() -> None:
        try:
            write_archive(target, feed)
        finally:
            feed.close()

    with ThreadPoolExecutor(1) as pool:
        try:
            try:
                written = pool.submit(write)
                for chunk in chunks:
                    if not feed.send(chunk):
                        break
                feed.finish()
                written.result()
            finally:
                feed.abort()
        finally:  # a signal that came meanwhile must not leave the thread waiting for us, and us for it
            feed.abort()


def unpack(chunks: Iterator[bytes], target: Path) -> None:
    """Write the files of a tar stream into *target*; it must hold plain files with plain names only."""
    for name, content in tar_members(chunks):
        with (target / name).open("wb") as file:
            file.writelines(content)


def tar_members(chunks: Iterator[bytes]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and content of each file of a tar stream, in order; each content must be read before the next is asked for."""
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Readable(chunks)), mode="r|", bufsize=READ_BYTES) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None or "/" in member.name or member.name.startswith("."):
                    raise IntegrityError(f"the archive holds {member.name!r}, which pg_dump does not write")
                yield member.name, iter(partial(file.read, READ_BYTES), b"")
    except tarfile.TarError as error:
        raise IntegrityError(f"the archive is no tar: {error}") from error
    for _ in chunks:  # what follows the end mark belongs to the object, and its hash is checked after the last byte
        pass


class _Readable:
    """Chunks as an object with `read`, for tarfile's stream mode."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, None)) is not None:
            self._rest += chunk
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken
