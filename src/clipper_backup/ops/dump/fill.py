"""What goes into a restored database: its data by pg_restore, its statistics, and the settings that are the database's own."""

import dataclasses
from contextlib import closing
from dataclasses import dataclass

from clipper_backup.format.documents import DumpSummary, StoredObject
from clipper_backup.ops.dump.read import archive_in_scratch, plain_stream
from clipper_backup.ops.events import Warned
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres import databases, globals_script, server_facts
from clipper_backup.postgres.binaries import Binaries
from clipper_backup.postgres.connection import Connection, Login, connect, dbname_argument, translated
from clipper_backup.postgres.programs import Program, run
from clipper_backup.values import show_bytes


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
    _finish(work, login, name, filling)


def _restore(work: Work, login: Login, name: str, filling: Filling) -> None:
    pg_restore = filling.binaries.program("pg_restore")
    environment = login.environment(name)
    stored = filling.stored
    without = _without(work, login, filling.summary)
    arguments = ["--exit-on-error", "--no-password", dbname_argument(name), *without]
    if not filling.roles:
        arguments += ["--no-owner", "--no-privileges"]
    with step(work, "restore", f"restore {filling.source} into {name}") as running:
        if filling.jobs > 1 or stored.archive == "directory":
            with archive_in_scratch(work, filling.summary, stored, running) as path:
                run(pg_restore, [*arguments, f"--jobs={filling.jobs}", str(path)], environment)
        else:
            with Program(pg_restore, arguments, environment, feed=True) as program:
                chunks = plain_stream(work, filling.summary, stored, running)
                program.feed(chunks)
                # pg_restore may stop reading after the last entry; size and hash are compared after the last byte.
                for _ in chunks:
                    pass
                program.finish()
        running.done = f"{filling.source}: {show_bytes(stored.plain_bytes)} restored"


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


def _finish(work: Work, login: Login, name: str, filling: Filling) -> None:
    with step(work, "analyze", "ANALYZE") as running, closing(connect(login, name)) as connection:
        with translated("ANALYZE"):
            connection.execute("ANALYZE")
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
        running.done = "statistics gathered, the database's own settings applied"


def _absent_roles(connection: Connection, properties: server_facts.Properties) -> set[str]:
    named = {grantee for grantee, *_ in properties.grants or ()} | {role for role, _ in properties.settings}
    return {name for name in named if name is not None} - server_facts.role_names(connection)
