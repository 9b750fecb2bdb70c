"""What every operation is given, and the few things all of them do."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from clipper_backup import __version__
from clipper_backup.clock import Clock
from clipper_backup.config import Settings, repository_url
from clipper_backup.errors import NoRepositoryError, UsageError
from clipper_backup.format.documents import Repository
from clipper_backup.ops.events import Emit, Progress, StepBegun, StepDone, Warned
from clipper_backup.ops.keys import trusted_of
from clipper_backup.repository.root import open_or_create_repository, open_repository
from clipper_backup.store.noting import NotingStore
from clipper_backup.store.opening import Options, open_store
from clipper_backup.store.protocol import Store
from clipper_backup.store.readonly import ReadOnlyStore

if TYPE_CHECKING:
    from concurrent.futures import Future

    from clipper_backup.postgres.connection import Login

SOFTWARE = f"clipper-backup {__version__}"
_PROGRESS_BYTES = 8 << 20
_CANCEL_AGAIN_SECONDS = 0.5
_SIGNAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """One operation's surroundings: settings, the store, the clock, whom to tell, and whose signatures dumps must carry."""

    settings: Settings
    store: Store
    clock: Clock
    emit: Emit
    trusted: tuple[str, ...] = ()


def open_work(settings: Settings, clock: Clock, emit: Emit, *, read_only: bool, unsigned: bool = False) -> Work:
    """Open the configured store; for reading commands so that nothing can be written (rule 88).

    With *unsigned* no signature matters, whatever is configured.
    """
    store = open_store(
        repository_url(settings),
        endpoint=settings.backup_endpoint,
        timeout_seconds=settings.store_timeout_seconds,
        retry_seconds=settings.store_retry_seconds,
        clock=clock,
        environment=os.environ,
        options=Options(
            azure_account=settings.azure_storage_account,
            s3_addressing=settings.s3_addressing_style,
            s3_bulk_delete=settings.s3_bulk_delete,
            conditional_create=settings.store_conditional_create,
            ca_file=settings.store_ca_file,
            unsafe_http=settings.unsafe_http,
            max_bytes_per_second=settings.store_max_bytes_per_second,
        ),
        tell=lambda text: emit(Warned(text)),
    )
    return Work(
        settings, ReadOnlyStore(store, clock) if read_only else store, clock, emit, () if unsigned else trusted_of(settings)
    )


def noting(work: Work) -> Work:
    """The same for who looks: nothing can be written but what a verify found (rule 88)."""
    from clipper_backup.repository.verify_report import is_note  # noqa: PLC0415  the hash of it costs what `wal push` must not pay

    return replace(work, store=NotingStore(work.store, work.clock, is_note))


def repository_of(work: Work) -> Repository:
    """The store's repository, for writing commands. Where none is yet one is made, and that is told: a path may be mistyped."""
    try:
        return open_repository(work.store, writing=True)
    except NoRepositoryError:
        repository = open_or_create_repository(work.store, work.clock, SOFTWARE)
        hint = "if there should be one already: check BACKUP_URL (or CLOUD_PROVIDER and BACKUP_BUCKET), letter by letter"
        work.emit(Warned(f"a new repository was made at {work.store.url}", (hint,)))
        return repository


def hasty(settings: Settings, seconds: int) -> Settings:
    """The same, with requests to the store given up and no longer tried again after *seconds*: a person waits for the answer."""
    timeout, retry = min(settings.store_timeout_seconds, seconds), min(settings.store_retry_seconds, seconds)
    return replace(settings, store_timeout_seconds=timeout, store_retry_seconds=retry)


def skew(store: Store, clock: Clock) -> timedelta:
    """How far the store's clock is at least ahead of ours, negative when it is behind; asking it writes into a bucket."""
    before = clock.now()
    theirs = store.now()
    after = clock.now()
    # A bucket tells whole seconds, and somewhere between our two looks.
    behind = before - theirs - timedelta(seconds=1)
    return max(theirs - after, timedelta()) - max(behind, timedelta())


def login_of(settings: Settings) -> "Login":
    """How to reach PostgreSQL."""
    from clipper_backup.postgres.connection import Login  # noqa: PLC0415  psycopg costs 100 ms, which `wal push` must not pay

    named = {
        "host": settings.pghost,
        "port": settings.pgport,
        "user": settings.pguser,
        "passfile": settings.pgpassfile,
        "sslmode": settings.pgsslmode,
        "sslrootcert": settings.pgsslrootcert,
    }
    return Login({keyword: value for keyword, value in named.items() if value}, settings.pgpassword, settings.pgdatabase)


def pgdata_of(settings: Settings) -> Path:
    """The data folder of the server beside us; UsageError where none is named."""
    if settings.pgdata is None:
        raise UsageError(
            "it is not said where the server's data folder is", hints=["--pgdata PATH names it, or PGDATA in the environment"]
        )  # fmt: skip
    return settings.pgdata


def this_process() -> str:
    """Host and process id: who holds a lease or wrote an intent."""
    return f"{os.uname().nodename} pid {os.getpid()}"


class Step:
    """A running step; `done` becomes the one-line result."""

    def __init__(self, work: Work, name: str) -> None:
        self._work, self.name = work, name
        self.done = ""

    def progress(self, done: int, total: int | None, unit: str = "bytes") -> None:
        """Say how far it is."""
        self._work.emit(Progress(self.name, done, total, unit))

    def metered(self, chunks: Iterable[bytes], total: int | None = None) -> Iterator[bytes]:
        """The same chunks, with progress told every few megabytes."""
        passed = told = 0
        for chunk in chunks:
            passed += len(chunk)
            yield chunk
            if passed - told >= _PROGRESS_BYTES:
                told = passed
                self.progress(passed, total)


@contextmanager
def step(work: Work, name: str, text: str) -> Iterator[Step]:
    """Tell that a step begins and, when it ends well, how long it took. A failing step tells nothing: the error does."""
    running = Step(work, name)
    began = work.clock.monotonic()
    work.emit(StepBegun(name, text))
    yield running
    work.emit(StepDone(name, running.done or text, work.clock.monotonic() - began))


def together(tasks: Sequence[Callable[[], None]], *, cancel: Callable[[], None]) -> None:
    """Run *tasks* in threads of their own until all ended; the first failure is raised after the others were ended.

    *cancel* must make what every task is doing now end soon, and is called again while one goes on; also when a signal's
    exception arrives here meanwhile (the calling thread only waits, so that it does arrive).
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  5 ms, which `wal push` must not pay

    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        futures: list[Future[None]] = []
        try:
            futures.extend(pool.submit(task) for task in tasks)
            done = _wait(futures)
        except BaseException:
            cancel()
            _end(futures, cancel)
            raise
        failed = [error for future in futures if future in done and (error := future.exception()) is not None]
        if failed:
            _end(futures, cancel)
            raise failed[0]


def _wait(futures: "Sequence[Future[None]]") -> "set[Future[None]]":
    """Those that have ended when all have, or when one has failed."""
    from concurrent.futures import FIRST_EXCEPTION, wait  # noqa: PLC0415  see `together`

    # In slices: Python does not notice a signal that comes between its last look and the wait for a lock until that wait ends.
    while True:
        done, pending = wait(futures, timeout=_SIGNAL_SECONDS, return_when=FIRST_EXCEPTION)
        if not pending or any(future.exception() is not None for future in done):
            return done


def _end(futures: "Sequence[Future[None]]", cancel: Callable[[], None]) -> None:
    from concurrent.futures import wait  # noqa: PLC0415  see `together`

    # A task that was between two queries, or not yet at its first, has missed a cancel.
    while wait(futures, timeout=0).not_done:
        cancel()
        wait(futures, timeout=_CANCEL_AGAIN_SECONDS)
