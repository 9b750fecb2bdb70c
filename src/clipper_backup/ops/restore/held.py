"""One restore at a time in a folder: the lock is on the folder itself, whatever its name is elsewhere, and ends with the process.

It is the kernel's: processes in other containers of one machine see it, on a network file system those of other machines may
not.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from clipper_backup.errors import ClipperError, LockedError
from clipper_backup.postgres.account import Account


@contextlib.contextmanager
def held(folder: Path, doing: str) -> Iterator[None]:
    """Hold *folder*, which is there. LockedError when another restore is *doing* something with it; OSError."""
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(f"another restore {doing} {folder}", hints=["wait for it, or end it"]) from None
            if os.path.samestat(os.fstat(descriptor), folder.stat()):  # else it was removed, and made anew, before it was ours
                yield
                return
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def held_target(data: Path, account: Account) -> Iterator[None]:
    """Hold the folder that a restore fills, until its server runs or it failed; make it where it is missing.

    The restore folder's lock does not do: of two pods that have *data* as a volume each has a restore folder of its own.
    """
    with contextlib.ExitStack() as stack:
        made = False
        try:
            with contextlib.suppress(FileExistsError):
                data.mkdir(mode=0o700)
                made = True
                account.own(data)
            stack.enter_context(held(data, "fills"))
        except OSError as error:
            raise ClipperError(f"cannot make or open {data}: {error.strerror}", hints=["name another: --target-dir"]) from error
        try:
            yield
        except BaseException:
            if made:
                with contextlib.suppress(OSError):  # something is in it
                    data.rmdir()
            raise
