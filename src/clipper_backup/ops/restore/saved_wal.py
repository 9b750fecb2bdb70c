"""What of a former server's pg_wal a restore saves before anything is removed, where it lies, and where a later one finds it.

All of it is saved but for what the archive was *read* to hold: neither its archiver's notes nor a listing are a proof, and the
file there may be the only good copy (rule 54).
"""

import errno
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clipper_backup.errors import ClipperError, IntegrityError
from clipper_backup.format.base_documents import Claim
from clipper_backup.format.wal_objects import digest_of
from clipper_backup.ops.events import Warned
from clipper_backup.ops.restore.target_dir import Found, check_space, sync_folder
from clipper_backup.ops.wal.open_restore import reader_of
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.data_folder import SAVED_FACTS, WAL_FOLDER
from clipper_backup.repository.wal_catalog import Listed, WalCatalog
from clipper_backup.repository.wal_reader import UnopenedError, WalReader
from clipper_backup.values import Timeline, show_count
from clipper_backup.wal_names import Kind, Segment, classify, history_name

SAVED = "saved-pg_wal"
"""How the folders in a restore folder begin that hold what was saved; behind it stands when, so that the newest is last."""
_COPY_BYTES = 1 << 20
_PROVED = (Kind.SEGMENT, Kind.HISTORY)
"""What has a claim that says which bytes it is of; the rest is small, and is always saved."""
_ONE_BY_ONE = "what its server never archived may be read one by one before that: `clipper-backup wal push` takes each file"


class UnreadableError(ClipperError):
    """What lies in the folder that is to be replaced cannot be read: no room elsewhere helps."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> "UnreadableError":
        """Of the file or folder *path*, unless the *error* names one."""
        beside = "restore beside it: --target-dir another folder"
        return cls(
            f"nothing was removed: cannot read {error.filename or path}: {(error.strerror or str(error)).lower()}",
            hints=[f"the disk fails: {beside}, on another disk", _ONE_BY_ONE]
            if error.errno == errno.EIO
            else [f"user id {os.geteuid()} must be able to read all that lies there", f"or {beside}"],
        )


def left_folders(data: Path, folder: Path, found: Found) -> list[Path]:
    """Where WAL of the cluster lies that was *found* at *data*, or that restores to there replaced: its own pg_wal first.

    Restores save into *folder*, the restore folder, which may have been another one: that of no `--work-dir`, and those that
    the marker of an unfinished restore names.
    """
    known = [folder, data.with_name(f"{data.name}.clipper-restore"), *(saved.parent for saved in found.saved)]
    saved = [path for each in dict.fromkeys(known) for path in sorted(each.glob(f"{SAVED}-*"), reverse=True)]
    return [data / WAL_FOLDER, *saved] if found.state == "cluster" else saved


def wal_files(data: Path) -> list[str]:
    """The names in *data*'s pg_wal that PostgreSQL archives, in order. Recycled files that wait for their turn are like them."""
    folder = data / WAL_FOLDER
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [each.name for each in entries if classify(each.name) is not None and each.is_file()]


def listed_files(catalog: WalCatalog, names: Iterable[str]) -> set[str]:
    """Those segments and histories of *names* that a listing of the archive shows, claim and object."""
    names = set(names)
    found: dict[str, Listed] = {history_name(timeline): listed for timeline, listed in catalog.histories().items()}
    for folder in {name[:16] for name in names if classify(name) is Kind.SEGMENT}:
        found |= {segment.name: listed for segment, listed in catalog.segments(Timeline.parse(folder[:8]), folder).items()}
    return {name for name, listed in found.items() if listed.claim is not None and listed.stored is not None} & names


@dataclass(frozen=True, slots=True)
class Archived:
    """The archive of one system, asked whether it holds a file."""

    work: Work
    catalog: WalCatalog
    reader: WalReader

    @classmethod
    def of(cls, work: Work, repository_id: str, system_id: str, segment_bytes: int) -> "Archived":
        """By the settings of *work*."""
        catalog = WalCatalog(work.store, system_id, segment_bytes)
        return cls(work, catalog, reader_of(work, repository_id, system_id, segment_bytes))

    def holds(self, path: Path) -> bool:
        """Whether what is archived under the file's name was read, is what its claim says, and is this file.

        IntegrityError where the object is damaged.
        """
        name = path.name
        try:
            if classify(name) is Kind.HISTORY:
                timeline = Timeline.parse(name[:8])
                data, claim = self.reader.history(timeline), self.catalog.history_claim(timeline)
                return data is not None and claim is not None and _is(claim, [data]) and path.read_bytes() == data
            segment = Segment.parse(name, self.catalog.segment_bytes)
            opened, claim = self.reader.segment(segment), self.catalog.claim(segment)
            if opened is None or claim is None:
                return False
            for _ in opened.chunks:  # whose digest is the header's, or they end with an error
                pass
            named = (opened.header.salt.hex(), opened.header.digest.hex())
        except UnopenedError:
            return False
        if named != (claim.salt, claim.digest):
            raise IntegrityError(f"{opened.key} is damaged: it is not the segment that was claimed")
        with path.open("rb") as file:
            return _is(claim, iter(lambda: file.read(_COPY_BYTES), b""))


def _is(claim: Claim, chunks: Iterable[bytes]) -> bool:
    return digest_of(chunks, bytes.fromhex(claim.salt)).hex() == claim.digest


def held_wal(archived: Archived, data: Path, needed: Sequence[Segment]) -> set[str]:
    """The files of *data*'s pg_wal that the archive was read to hold.

    IntegrityError, so that nothing is removed, where an object is damaged that the restore *needed*, and the file is there;
    UnreadableError where the file cannot be read, FileNotFoundError where it went meanwhile.
    """
    names = sorted(listed_files(archived.catalog, wal_files(data)))
    needs, held = {segment.name for segment in needed}, set[str]()
    with step(
        archived.work, "compare", f"compare {show_count(len(names), 'file')} of {data / WAL_FOLDER} with the archive"
    ) as running:
        for done, name in enumerate(names):
            running.progress(done, len(names), "segments")
            path = data / WAL_FOLDER / name
            try:
                if archived.holds(path):
                    held.add(name)
            except IntegrityError as error:
                hints = [*error.hints, repair_hint(path)]
                if name in needs:
                    raise IntegrityError(f"nothing was removed: {error.message}", hints=hints) from error
                archived.work.emit(Warned(error.message, tuple(hints)))
            except FileNotFoundError:
                raise
            except OSError as error:
                raise UnreadableError.of(path, error) from error
        running.done = f"{len(held)} of {show_count(len(names), 'file')} there are in the archive as well, read and compared"
    return held


def repair_hint(path: Path) -> str:
    """How a damaged file of the archive is put right by the same one at *path*."""
    how = "take the damaged object out of the store, and then"
    return f"{path} may be whole: {how} `clipper-backup wal push {path}`, which takes only what the archive had"


def bytes_of(folder: Path, names: Iterable[str]) -> int:
    """The sizes of files, together."""
    return sum((folder / name).stat().st_size for name in names)


def save_wal(data: Path, into: Path, account: Account, held: Container[str], also: Iterable[Path] = ()) -> list[str]:
    """Copy what *data*'s pg_wal holds, but for *held*, synced, and the files *also*; the names of the former, in order.

    What tells `wal push` whose they are comes along. All of it belongs to *account*. ClipperError when it does not fit, or
    cannot be copied: then nothing of it is left behind.
    """
    names = [name for name in wal_files(data) if name not in held]
    paths = [*(data / WAL_FOLDER / name for name in names), *also]
    if not paths:
        return []
    facts = [data / name for name in SAVED_FACTS] if (data / SAVED_FACTS[0]).exists() else _facts_beside(paths)
    with all_or_nothing(into):
        check_space({into: sum(path.stat().st_size for path in paths)}, {})
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        account.own(into)
        for path in (*paths, *facts):
            copy_synced(path, into / path.name, account)
        sync_folder(into)
        sync_folder(into.parent)
    return names


@contextmanager
def all_or_nothing(into: Path) -> Iterator[None]:
    """What is saved in *into* within; ClipperError when it cannot be: then nothing of it is left behind."""
    try:
        yield
    except UnreadableError:
        shutil.rmtree(into, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(into, ignore_errors=True)
        raise ClipperError(
            f"nothing was removed: {error.filename or into} cannot be saved in {into}: {(error.strerror or str(error)).lower()}",
            hints=["make room there, or name another restore folder: --work-dir"],
        ) from error


def _facts_beside(paths: Sequence[Path]) -> list[Path]:
    """Of what a restore before saved."""
    names = [Path(name).name for name in SAVED_FACTS]
    return [paths[-1].parent / name for name in names if (paths[-1].parent / name).exists()]


class _Source:
    """A file that is copied, so that its own errors are told from those of the copy."""

    def __init__(self, path: Path, opened: BinaryIO) -> None:
        self._path, self._opened = path, opened

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._opened.read(size)
        except OSError as error:
            raise UnreadableError.of(self._path, error) from error


def copy_synced(source: Path, target: Path, account: Account) -> None:
    """Copy a file for *account* alone. UnreadableError of *source*; OSError of *target*."""
    try:
        read = source.open("rb")
    except OSError as error:
        raise UnreadableError.of(source, error) from error
    with read, account.create(target) as written:
        shutil.copyfileobj(_Source(source, read), written, _COPY_BYTES)
        written.flush()
        os.fsync(written.fileno())
