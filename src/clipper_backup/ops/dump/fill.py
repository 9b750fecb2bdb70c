"""What goes into a restored database: its data by pg_restore, its statistics, and the settings that are the database's own."""

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from clipper_backup.format.documents import DumpSummary, StoredObject
from clipper_backup.ops.dump.read import archive_in_scratch, must_be_whole, plain_stream
from clipper_backup.ops.events import Warned
from clipper_backup.ops.work import Step, Work, step, together
from clipper_backup.postgres import databases, globals_script, server_facts, statistics
from clipper_backup.postgres.binaries import Binaries, find_binaries
from clipper_backup.postgres.connection import Connection, Login, cancel_query, connect, dbname_argument
from clipper_backup.postgres.programs import Program, run
from clipper_backup.values import show_bytes, show_count

_SETS_TRANSACTION_TIMEOUT = 17
"""pg_restore sets transaction_timeout from this version on, whatever the server's: an older one does not know it."""
_TRANSACTION_TIMEOUT = b"\nSET transaction_timeout = 0;\n"
_HEAD_BYTES = 8192
"""More than what goes before it: comments that name two versions, and three other settings."""


@dataclass(frozen=True, slots=True)
class Filling:
    """The archive `stored` of the database `source`, and how it is restored.

    Without `roles` everything belongs to whoever restores, and privileges are left out.
    """

    summary: DumpSummary
    stored: StoredObject
    source: str
    properties: server_facts.Properties
    binaries: Binaries
    jobs: int
    roles: bool


def fill(work: Work, login: Login, name: str, filling: Filling) -> None:
    """Restore an archive into the empty database *name*."""
    _restore(work, login, name, filling)
    _analyze(work, login, name, filling.jobs)
    _apply_properties(work, login, name, filling)


def _restore(work: Work, login: Login, name: str, filling: Filling) -> None:
    stored = filling.stored
    options = ["--no-password", *_without(work, login, filling.summary)]
    if not filling.roles:
        options += ["--no-owner", "--no-privileges"]
    with closing(connect(login)) as connection:
        server_major = server_facts.server_facts(connection).major
    with step(work, "restore", f"restore {filling.source} into {name}") as running:
        if filling.binaries.major >= _SETS_TRANSACTION_TIMEOUT > server_major:
            _restore_by_script(work, login, name, filling, options, running)
        else:
            _restore_directly(work, login, name, filling, options, running)
        running.done = f"{filling.source}: {show_bytes(stored.plain_bytes)} restored"


def _restore_directly(work: Work, login: Login, name: str, filling: Filling, options: Sequence[str], running: Step) -> None:
    pg_restore = filling.binaries.program("pg_restore")
    environment = login.environment(name)
    arguments = [*options, "--exit-on-error", dbname_argument(name)]
    if filling.jobs > 1 or must_be_whole(work, filling.stored):
        with archive_in_scratch(work, filling.summary, filling.stored, running) as path:
            run(pg_restore, [*arguments, f"--jobs={filling.jobs}", str(path)], environment)
    else:
        with Program(pg_restore, arguments, environment, feed=True) as program:
            chunks = plain_stream(work, filling.summary, filling.stored, running)
            program.feed(chunks)
            # pg_restore may stop reading after the last entry, or because damage made it fail: only the size and hash after
            # the last byte tell which.
            for _ in chunks:
                pass
            program.finish()


def _restore_by_script(work: Work, login: Login, name: str, filling: Filling, options: Sequence[str], running: Step) -> None:
    """pg_restore writes a script and psql runs it, all in one session, without the line that this server would refuse."""
    if filling.jobs > 1:
        work.emit(Warned(f"restoring one table at a time: pg_restore {filling.binaries.version} is too new for this server"))
    environment = login.environment(name)
    binaries = find_binaries(
        tools=("pg_restore", "psql"),
        at_least=filling.binaries.major,
        bindir=work.settings.pg_bindir,
        environment=environment,
    )
    stopped = threading.Event()
    with ExitStack() as stack:
        where = []
        if must_be_whole(work, filling.stored):
            where.append(str(stack.enter_context(archive_in_scratch(work, filling.summary, filling.stored, running))))
        writing = Program(binaries.program("pg_restore"), [*options, "--file=-", *where], environment, feed=not where)
        stack.enter_context(writing)
        arguments = [
            "--no-psqlrc",
            "--quiet",
            "--no-password",
            "--set=ON_ERROR_STOP=1",
            "--output=/dev/null",
            dbname_argument(name),
        ]
        running_it = stack.enter_context(Program(binaries.program("psql"), arguments, environment, feed=True))

        def read() -> None:
            if not where:
                chunks = plain_stream(work, filling.summary, filling.stored, running)
                writing.feed(chunks)
                for _ in takewhile(lambda _: not stopped.is_set(), chunks):  # as above
                    pass

        def execute() -> None:
            running_it.feed(without_transaction_timeout(writing.chunks()))
            running_it.finish()

        def stop() -> None:
            stopped.set()
            running_it.kill()
            writing.kill()

        together([read, execute], cancel=stop)


def without_transaction_timeout(script: Iterator[bytes]) -> Iterator[bytes]:
    """A script of pg_restore without the setting that came with PostgreSQL 17; it stands before all that is restored."""
    head = b""
    while len(head) < _HEAD_BYTES and (chunk := next(script, b"")):
        head += chunk
    yield head.replace(_TRANSACTION_TIMEOUT, b"\n", 1)
    yield from script


def _without(work: Work, login: Login, summary: DumpSummary) -> list[str]:
    """Tablespaces are folders of another machine: without all of them, everything goes into the default one."""
    stored = summary.part("globals")
    if stored is None:
        return []
    with step(work, "tablespaces", "look for tablespaces") as running:
        wanted = set(globals_script.parse(b"".join(plain_stream(work, summary, stored, running)).decode()).tablespaces)
        with closing(connect(login)) as connection:
            missing = wanted - server_facts.tablespace_names(connection)
    if not missing:
        return []
    hint = "create them first to keep the placement"
    work.emit(
        Warned(f"tablespace {', '.join(sorted(missing))} does not exist here: everything goes into the default one", (hint,))
    )
    return ["--no-tablespaces"]


def _analyze(work: Work, login: Login, name: str, jobs: int) -> None:
    """Without statistics the first queries may take hours. They are gathered anew at any time, so to lack some is a warning."""
    with step(work, "analyze", "ANALYZE") as running, ExitStack() as stack:
        sessions = [stack.enter_context(closing(connect(login, name))) for _ in range(jobs)]
        tables = statistics.tables(sessions[0])
        waiting, stopped = iter(tables), threading.Event()
        reasons: list[str | None] = []

        def analyze(session: Connection) -> None:
            for schema, table in takewhile(lambda _: not stopped.is_set(), waiting):
                reasons.append(statistics.analyze(session, schema, table))
                running.progress(len(reasons), len(tables), "tables")

        def cancel() -> None:
            stopped.set()
            for session in sessions:
                cancel_query(session)

        together([partial(analyze, session) for session in sessions], cancel=cancel)
        failed = list(filter(None, reasons))
        for reason in failed:
            work.emit(Warned(reason, ("the data is there: run ANALYZE yourself when the cause is gone",)))
        running.done = f"statistics gathered, {show_count(len(failed), 'table')} without" if failed else "statistics gathered"


def _apply_properties(work: Work, login: Login, name: str, filling: Filling) -> None:
    with step(work, "properties", "settings of the database") as running, closing(connect(login, name)) as connection:
        properties = filling.properties
        absent = _absent_roles(connection, properties)
        if not filling.roles:
            absent = set()
            properties = dataclasses.replace(properties, grants=None, settings=())
        if absent:
            work.emit(Warned(f"privileges and settings of the database are left out: no role {', '.join(sorted(absent))}"))
        else:
            for refused in databases.apply_properties(connection, name, properties):
                work.emit(Warned(refused))
        running.done = "the database's own settings applied"


def _absent_roles(connection: Connection, properties: server_facts.Properties) -> set[str]:
    named = {grantee for grantee, *_ in properties.grants or ()} | {role for role, _ in properties.settings}
    return {name for name in named if name is not None} - server_facts.role_names(connection)
