"""What a check is, and what it is given; every check is declared once, where its function stands."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from clipper_backup.clock import Clock
from clipper_backup.config import Settings
from clipper_backup.ops.events import ignore
from clipper_backup.ops.findings import Finding
from clipper_backup.ops.keys import trusted_of
from clipper_backup.ops.physical_status import PhysicalStatus, look_at_physical
from clipper_backup.ops.status import Status, look_at_repository
from clipper_backup.ops.work import Work, hasty, login_of, open_work
from clipper_backup.postgres import server_facts
from clipper_backup.postgres.archiver_facts import ArchiverFacts, Archiving, read_archiver, read_archiving
from clipper_backup.postgres.connection import Connection, connect, translated
from clipper_backup.repository.dumps import Last, last_dump
from clipper_backup.store.protocol import Store
from clipper_backup.store.readonly import ReadOnlyStore

STORE_SECONDS = 10
"""How long one request to the store may take here, and how long it is tried again: a person waits for the answer."""
QUERY_SECONDS = 10


class Surroundings:
    """What the checks look at, opened when the first of them asks; one that fails fails again for the next who asks."""

    def __init__(self, load: Callable[[], Settings], clock: Clock, environment: Mapping[str, str]) -> None:
        self._load, self.clock, self.environment = load, clock, environment
        self.major: int | None = None
        """The server's major version, once `facts` knows it."""

    @cached_property
    def settings(self) -> Settings:
        """All settings; UsageError or MissingError when one is wrong."""
        return self._load()

    @cached_property
    def work(self) -> Work:
        """The store, writable, with requests that give up soon; signatures play no part in it."""
        return open_work(hasty(self.settings, STORE_SECONDS), self.clock, ignore, read_only=False, unsigned=True)

    @property
    def store(self) -> Store:
        """The store, writable."""
        return self.work.store

    @cached_property
    def status(self) -> Status:
        """All that `status` knows of the repository, read once."""
        trusted = trusted_of(self.settings)
        return look_at_repository(replace(self.work, store=ReadOnlyStore(self.store, self.clock), trusted=trusted))

    @cached_property
    def physical(self) -> PhysicalStatus | None:
        """What `status` knows of base backups and WAL, read once; None where there are none."""
        trusted = trusted_of(self.settings)
        work = replace(self.work, store=ReadOnlyStore(self.store, self.clock), trusted=trusted)
        return look_at_physical(work, ask_server=False)

    @cached_property
    def archiving(self) -> Archiving:
        """How the server archives."""
        with self.session() as connection:
            return read_archiving(connection)

    @cached_property
    def archiver(self) -> ArchiverFacts:
        """How far the server's archiver is."""
        return read_archiver(login_of(self.settings))

    @property
    def is_pitr_off(self) -> bool:
        """Whether nobody wants point-in-time recovery: the server does not archive, and there is no base backup and no WAL."""
        return self.archiving.off_because is not None and self.physical is None

    @cached_property
    def last(self) -> Last | None:
        """The newest dump as `dump create` sees it, None before the first."""
        return last_dump(self.store)

    @contextmanager
    def session(self, database: str | None = None) -> Iterator[Connection]:
        """A session whose queries give up soon: locks on the catalog are no reason to wait for ever."""
        with closing(connect(login_of(self.settings), database)) as connection:
            with translated("preparing a session"):
                connection.execute(f"SET statement_timeout = '{QUERY_SECONDS}s'".encode())
            yield connection

    @cached_property
    def facts(self) -> server_facts.ServerFacts:
        """The server's version, and whether it is a standby."""
        with self.session() as connection:
            facts = server_facts.server_facts(connection)
        self.major = facts.major
        return facts

    @cached_property
    def databases(self) -> Sequence[str]:
        """Those of BACKUP_DATABASES that are there, or without it all that can be dumped."""
        present = self.present
        return [name for name in self.settings.backup_databases if name in present] or present

    @cached_property
    def present(self) -> Sequence[str]:
        """All databases that can be dumped."""
        with self.session() as connection:
            return server_facts.connectable_databases(connection)


Look: TypeAlias = Callable[[Surroundings], Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `doctor`. Without what it `needs` (names of checks that are not red) it is not looked at.

    `looks_at` says what at, `todo` what to do about it when nothing more exact is known.
    """

    name: str
    looks_at: str
    todo: str
    needs: tuple[str, ...]
    look: Look = field(compare=False)


class Declaring:
    """Collects the checks of a module: `check = Declaring()` above them, `CHECKS = check.all` below."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def __call__(self, name: str, looks_at: str, todo: str, *, needs: Sequence[str] = ()) -> Callable[[Look], Look]:
        """Declare the function below it as the check *name*. It returns a Finding; an error it raises is red."""

        def declare(look: Look) -> Look:
            self._checks.append(Check(name, looks_at, todo, tuple(needs), look))
            return look

        return declare

    @property
    def all(self) -> tuple[Check, ...]:
        """Those that were declared, in order."""
        return tuple(self._checks)
