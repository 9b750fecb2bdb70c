"""Every error a caller may see, and the exit code each one becomes.

    ClipperError                 1   failed
    ├── UsageError               2   usage: the request makes no sense as written
    ├── IncompleteError          3   done but incomplete; what is missing is named
    ├── NoRepositoryError       10   the store holds no repository
    ├── LockedError             11   somebody else holds the lease
    │   └── LeaseLostError      11   our own lease went to somebody else while we worked
    ├── AccessError             12   key or login refused (store, PostgreSQL or Kubernetes)
    ├── IntegrityError          13   bytes or rows differ from what was recorded
    ├── WalGapError             14   a WAL segment is missing inside the recovery window
    ├── MissingError            15   the named thing does not exist
    │   └── ObjectMissingError  15   no object at that key
    ├── ObjectExistsError        1   conditional create found the key taken
    ├── StoreError               1   the store answered with an error, or not at all
    │   └── StoreUnavailableError 1  the same, and worth trying again
    ├── ServerError              1   PostgreSQL refused, or the connection to it broke
    ├── ToolError                1   a PostgreSQL client program failed
    │   └── ToolMissingError     1   no suitable client program is installed
    ├── KubernetesError          1   the Kubernetes API refused, or something in the cluster did not happen
    │   ├── ApiUnavailableError  1   it could not be reached, or asked us to come back later
    │   ├── ConflictError        1   somebody else changed the object meanwhile
    │   └── TimedOutError        1   what was waited for did not happen in time
    ├── TelemetryError           1   metrics could not be handed over; jobs turn it into a warning
    └── WalEndError             44   `wal fetch` only: the file is missing behind the end of the WAL
    StoppedError         130 / 143   ended by SIGINT or SIGTERM; no ClipperError, so that nobody who handles those swallows it

Messages are lower case, name the object, have no full stop at the end; `hints` are sentences that a
person on call can act on. Nothing here is logged where it is raised: `cli` renders it once.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar


class ClipperError(Exception):
    """Root of the tree.

    `temporary` tells a retrying caller that the same call may succeed later.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "failed"
    temporary: ClassVar[bool] = False

    def __init__(self, message: str, *, hints: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hints)

    def __str__(self) -> str:
        return self.message


class UsageError(ClipperError):
    """The request makes no sense as written: an unknown name, a bad value, a contradiction."""

    exit_code = 2
    meaning = "usage"


class IncompleteError(ClipperError):
    """The work was done, except for what the message names."""

    exit_code = 3
    meaning = "done but incomplete"


class NoRepositoryError(ClipperError):
    """There is no repository.json at the store, and the command makes none: it reads, or archives WAL."""

    exit_code = 10
    meaning = "no repository"


class LockedError(ClipperError):
    """Somebody else holds the lease; the message names holder, age and when it frees itself."""

    exit_code = 11
    meaning = "locked"


class LeaseLostError(LockedError):
    """Our lease went stale and somebody else took it: nothing may be committed any more."""


class AccessError(ClipperError):
    """A key or login was refused, by the store, by PostgreSQL or by Kubernetes."""

    exit_code = 12
    meaning = "key or login"


class IntegrityError(ClipperError):
    """Bytes or rows are not what was recorded when they were written."""

    exit_code = 13
    meaning = "integrity"


class WalGapError(ClipperError):
    """A WAL segment is missing where recovery needs it."""

    exit_code = 14
    meaning = "WAL gap"


class MissingError(ClipperError):
    """The thing that was named (a backup, a database, a file) does not exist."""

    exit_code = 15
    meaning = "not found"


class ObjectMissingError(MissingError):
    """The store has no object at that key."""


class ObjectExistsError(ClipperError):
    """Conditional create found an object at that key (or, in Kubernetes, of that name) already."""


class StoreError(ClipperError):
    """The store answered with an error that trying again will not change."""


class StoreUnavailableError(StoreError):
    """The store could not be reached, timed out, or asked us to come back later."""

    temporary = True


class ServerError(ClipperError):
    """PostgreSQL refused what we asked, or the connection to it broke."""


class ToolError(ClipperError):
    """A PostgreSQL client program ended with an error; its own words are in the message, all of them in `output`."""

    output: tuple[str, ...] = ()


class ToolMissingError(ToolError):
    """No client program of a suitable major version was found."""


class KubernetesError(ClipperError):
    """The Kubernetes API refused what we asked, or something in the cluster ended badly."""


class ApiUnavailableError(KubernetesError):
    """The Kubernetes API could not be reached, timed out, or asked us to come back later."""

    temporary = True


class ConflictError(KubernetesError):
    """The object in the cluster is another one, or was changed by somebody else, since we looked: look again."""


class TimedOutError(KubernetesError):
    """What was waited for in the cluster did not happen in time; the message says what was seen last."""


class TelemetryError(ClipperError):
    """Metrics could not be handed over. A job that did its work warns and goes on: the backup is what counts."""


class WalEndError(ClipperError):
    """`wal fetch` only: no such file, and by its table that is the end of the WAL, not a gap."""

    exit_code = 44
    meaning = "`wal fetch`: missing behind the end"


class StoppedError(KeyboardInterrupt):
    """SIGINT or SIGTERM asked us to end; whatever was half written has been taken back.

    It may be raised at any point of the main thread. A KeyboardInterrupt, because libraries know that one: psycopg cancels
    the running query and leaves its connection usable for those who clean up.
    """

    def __init__(self, signal_number: int) -> None:
        self.message = f"stopped by signal {signal_number}"
        super().__init__(self.message)
        self.signal_number = signal_number
        self.hints: tuple[str, ...] = ()


def every_error(root: type[ClipperError] = ClipperError) -> Iterator[type[ClipperError]]:
    """All classes of the tree, parents first: the exit-code table of the docs is made from this.

    Private refinements that other modules keep to themselves are no part of it, whether or not they were imported.
    """
    yield root
    for child in root.__subclasses__():
        if child.__module__ == __name__:
            yield from every_error(child)


def exit_code_of(error: BaseException) -> int:
    """The process exit code for *error*: 128 + n for a signal, 1 for anything unknown."""
    if isinstance(error, StoppedError):
        return 128 + error.signal_number
    if isinstance(error, ClipperError):
        return error.exit_code
    return 1


def fetch_code_of(code: int, *, standby: bool) -> int:
    """The exit code of `wal fetch` for the *code* that another command would end with.

    PostgreSQL takes 1 to 125 for "no such file", and opens what it recovered so far: only WalEndError may say that. A standby
    asks again, whatever it is told, but is ended by more than 125.
    """
    if code == 0 or standby:
        return min(code, 1)
    return code if code == WalEndError.exit_code or code > 128 else 200 + code
