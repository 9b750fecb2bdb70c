"""Scratch space: checked before it is used, always removed, leftovers of killed runs too."""

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from clipper_backup.errors import ClipperError
from clipper_backup.values import show_bytes

ONE_JOB = "use one job, which needs none"

_PREFIX = "clipper-backup-scratch-"


@contextmanager
def scratch_folder(parent: Path | None, needed_bytes: int, purpose: str, *, instead: str | None = None) -> Iterator[Path]:
    """A private folder with room for *needed_bytes*; ClipperError says how much is missing for what *purpose*.

    Its hint offers what needs no room *instead*, where something does. A folder is locked while its process lives;
    unlocked ones were left by a killed run and are removed first.
    """
    # Named before it is made: a signal's exception may come between any two lines, and nothing may be left then.
    folder = (parent or Path(tempfile.gettempdir())) / f"{_PREFIX}{uuid.uuid4().hex}"
    try:
        with _made(folder, needed_bytes, purpose, instead):
            yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _made(folder: Path, needed_bytes: int, purpose: str, instead: str | None) -> Iterator[None]:
    base = folder.parent
    with ExitStack() as until_used:
        try:
            with _locked(base):  # a folder that is made and not locked yet would look like a leftover to another run
                _remove_leftovers(base)
                free = shutil.disk_usage(base).free
                if free < needed_bytes:
                    raise ClipperError(
                        f"{purpose} needs {show_bytes(needed_bytes)} of scratch space, {base} has {show_bytes(free)}",
                        hints=["set SCRATCH_DIR to a folder with more room" + ("" if instead is None else f", or {instead}")],
                    )
                folder.mkdir(0o700)
                until_used.enter_context(_locked(folder))
        except OSError as error:
            raise ClipperError(f"cannot use {base} as scratch space: {error.strerror}", hints=["set SCRATCH_DIR"]) from error
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
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
