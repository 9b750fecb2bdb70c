"""Scratch space: checked before it is used, always removed, leftovers of killed runs too."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipper_backup.errors import ClipperError
from clipper_backup.values import show_bytes

_PREFIX = "clipper-backup-scratch-"


@contextmanager
def scratch_folder(parent: Path | None, needed_bytes: int, purpose: str) -> Iterator[Path]:
    """A private folder with room for *needed_bytes*; ClipperError says how much is missing for what *purpose*.

    A folder is locked while its process lives; unlocked ones were left by a killed run and are removed first.
    """
    base = parent or Path(tempfile.gettempdir())
    try:
        _remove_leftovers(base)
        free = shutil.disk_usage(base).free
        if free < needed_bytes:
            raise ClipperError(
                f"{purpose} needs {show_bytes(needed_bytes)} of scratch space, {base} has {show_bytes(free)}",
                hints=["set SCRATCH_DIR to a folder with more room, or use one job, which needs none"],
            )
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    except OSError as error:
        raise ClipperError(f"cannot use {base} as scratch space: {error.strerror}", hints=["set SCRATCH_DIR"]) from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_leftovers(base: Path) -> None:
    for folder in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
