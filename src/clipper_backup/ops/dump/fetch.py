"""`dump fetch`: a dump's files in a folder, checked, ready for pg_restore and psql."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.errors import ClipperError, UsageError
from clipper_backup.format import names
from clipper_backup.format.documents import StoredObject
from clipper_backup.ops.dump.read import plain_stream, summary_of
from clipper_backup.ops.work import Work, step
from clipper_backup.repository.dumps import read_checked
from clipper_backup.values import DumpId, show_bytes

_PART = ".part"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was written."""

    path: Path
    size_bytes: int


def fetch_dump(work: Work, dump_id: DumpId, folder: Path, *, as_stored: bool) -> list[Fetched]:
    """Write every object into *folder*, decompressed unless *as_stored*. A file appears only whole and checked.

    UsageError when a file is there already.
    """
    summary = summary_of(work, dump_id)
    targets = [(stored, folder / _file_name(stored, as_stored=as_stored)) for stored in summary.objects]
    if there := [str(path) for _, path in targets if path.exists()]:
        raise UsageError(f"{there[0]} exists already", hints=["fetch into an empty folder"])
    needed = sum(_size(stored, as_stored=as_stored) for stored in summary.objects)
    hints = [f"--to names another folder: one that we may write into, with room for {show_bytes(needed)}"]
    if not as_stored:
        hints.append(f"--as-stored needs {show_bytes(summary.stored_bytes)}; docs/guides/restore-without-us.md opens those")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < needed:
            raise ClipperError(f"{folder} has {show_bytes(free)} free, the dump needs {show_bytes(needed)}", hints=hints)
        fetched = []
        for stored, path in targets:
            with step(work, f"fetch {path.name}", f"fetch {path.name}") as running:
                chunks = (
                    running.metered(read_checked(work.store, summary, stored.key), stored.size_bytes)
                    if as_stored
                    else plain_stream(work, summary, stored, running)
                )
                fetched.append(Fetched(path, _write(path, chunks)))
                running.done = f"{path.name}: {show_bytes(fetched[-1].size_bytes)}"
    except OSError as error:
        raise ClipperError(f"cannot write to {folder}: {error.strerror}", hints=hints) from error
    return fetched


def _size(stored: StoredObject, *, as_stored: bool) -> int:
    return stored.size_bytes if as_stored else stored.plain_bytes


def _file_name(stored: StoredObject, *, as_stored: bool) -> str:
    name = stored.key.removeprefix(names.DATABASE_FOLDER)
    if as_stored:
        return name
    return name.removesuffix(names.SEALED).removesuffix(".zst") + (".json" if stored.role == "details" else "")


def _write(path: Path, chunks: Iterable[bytes]) -> int:
    part = path.with_name(path.name + _PART)
    size = 0
    try:
        with part.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            for chunk in chunks:
                size += file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return size
