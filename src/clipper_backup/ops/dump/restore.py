"""`dump restore`: roles, a database under a working name, its data, ANALYZE, the comparison, and only then its real name."""

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from clipper_backup.errors import ClipperError, IntegrityError, LockedError, ServerError, UsageError
from clipper_backup.format.documents import DatabaseProperties, DatabaseRecord, DumpSummary
from clipper_backup.ops.dump.compare import Comparison, compare
from clipper_backup.ops.dump.fill import Filling, fill
from clipper_backup.ops.dump.read import choose_database, details_of, plain_stream, summary_of
from clipper_backup.ops.events import Warned
from clipper_backup.ops.work import Work, login_of, step
from clipper_backup.postgres import databases, globals_script, server_facts
from clipper_backup.postgres.binaries import find_binaries
from clipper_backup.postgres.connection import Connection, Login, connect
from clipper_backup.values import WORKING_PREFIX, DumpId, show_count

_REPLACED = "_replaced_"
_NAME_BYTES = 63
"""The longest name PostgreSQL keeps (NAMEDATALEN - 1); a longer one would be cut without an error."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for.

    `replace` lets a database that is in use give way; it is kept under another name. Without `roles` no role is created and
    everything belongs to whoever restores.
    """

    dump_id: DumpId
    into: str
    database: str | None = None
    jobs: int = 1
    replace: bool = False
    roles: bool = True


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it. `replaced` is the new name of the database that was there before."""

    dump_id: DumpId
    source: str
    into: str
    comparison: Comparison
    roles_created: tuple[str, ...]
    replaced: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Target:
    """Where it goes: `name` is filled. `working_oid` is that of a database made here, to be renamed at the end; else None."""

    login: Login
    name: str
    working_oid: int | None


def restore_dump(work: Work, request: Request) -> Restored:
    """Restore one database of a dump and prove it equal to what was recorded.

    IntegrityError names every difference; the restored database is then left under its working name for people to look at.
    Any other failure removes it.
    """
    began = work.clock.monotonic()
    if len(request.into.encode()) > _NAME_BYTES or not request.into:
        raise UsageError(
            f"{request.into!r} is no name for a database: PostgreSQL keeps {_NAME_BYTES} bytes",
            hints=[f"give --into a name of 1 to {_NAME_BYTES} bytes; a letter beyond ASCII takes several"],
        )
    summary = summary_of(work, request.dump_id)
    stored = choose_database(work, summary, request.database)
    record = details_of(work, summary).database(stored.database or "")
    if record is None:
        raise IntegrityError(f"the details of {summary.id} do not know database {stored.database}")
    login = login_of(work.settings)
    with closing(_maintenance(login, request.into)) as maintenance:
        if not databases.lock_name(maintenance, request.into):
            raise LockedError(
                f"somebody restores into {request.into!r} already", hints=["wait for it to end, or choose another name"]
            )
        facts = server_facts.server_facts(maintenance)
        binaries = find_binaries(
            tools=("pg_restore",),
            at_least=max(facts.major, summary.versions.needed_major),
            bindir=work.settings.pg_bindir,
            environment=login.environment(),
        )
        replaces = _look_at_target(maintenance, login, request)
        created = restore_roles(work, maintenance, summary) if request.roles else ()
        with _target(work, maintenance, login, request, record, replaces=replaces) as target:
            filling = Filling(
                summary, stored, record.name, as_properties(record.properties), binaries, jobs=request.jobs, roles=request.roles
            )
            fill(work, login, target.name, filling)
            comparison = _prove(work, target, record)
            if comparison.differences:
                raise _KeptError(_difference_error(target, request, comparison))
            replaced = (
                _give_name(work, maintenance, target, request, replaces=replaces) if target.working_oid is not None else None
            )
    seconds = work.clock.monotonic() - began
    return Restored(request.dump_id, record.name, request.into, comparison, created, replaced, seconds)


class _KeptError(Exception):
    """Carries an error past the clean-up: what was restored is kept for people to look at."""

    def __init__(self, error: ClipperError) -> None:
        super().__init__()
        self.error = error


# -- where it goes


def _maintenance(login: Login, into: str) -> Connection:
    """A session in another database than the one that is to get a new name."""
    connection = connect(login)
    if connection.info.dbname != into:
        return connection
    connection.close()
    return connect(login, "template1" if into != "template1" else "postgres")


def _look_at_target(maintenance: Connection, login: Login, request: Request) -> bool:
    """Whether a database in use must give way at the end. UsageError when it may not."""
    if not databases.database_exists(maintenance, request.into):
        return False
    if databases.is_template(maintenance, request.into):
        raise UsageError(
            f"{request.into!r} is a template: every database that is made from it later would hold what is restored",
            hints=["restore beside it: --into another name"],
        )
    with closing(connect(login, request.into)) as inside:
        if databases.is_empty(inside):
            return False
    if not request.replace:
        raise UsageError(
            f"database {request.into!r} exists and is not empty",
            hints=[
                "restore beside it: --into another name",
                "or --replace: it keeps its data under another name, and the restored one takes its place",
            ],
        )
    return True


@contextmanager
def _target(
    work: Work, maintenance: Connection, login: Login, request: Request, record: DatabaseRecord, *, replaces: bool
) -> Iterator[_Target]:
    exists = databases.database_exists(maintenance, request.into)
    if exists and not replaces:
        # Empty and made beforehand: its maker may have chosen its locale, and we may not be allowed to make another.
        try:
            yield _Target(login, request.into, None)
        except _KeptError as kept:
            raise kept.error from None
        except ClipperError as error:
            raise type(error)(error.message, hints=[*error.hints, f"database {request.into!r} holds a part: drop it"]) from error
        return
    name = _working_name(request, record.name)
    properties = as_properties(record.properties)
    roles = server_facts.role_names(maintenance)
    oid = None
    try:
        with step(work, "create", f"create the database {name}") as running:
            databases.drop_database(maintenance, name)  # left by a killed run of this very restore
            owner = properties.owner if request.roles and properties.owner in roles else None
            databases.create_database(maintenance, name, properties, owner)
            oid = databases.database_oid(maintenance, name)
            running.done = f"created {name}, a working name"
        yield _Target(login, name, oid)
    except _KeptError as kept:
        raise kept.error from None
    except BaseException:
        with suppress(ClipperError), closing(connect(login, maintenance.info.dbname)) as fresh:
            # Nobody else's: a run that lost its session, and with it the lock, may have been followed by another.
            if oid is None or databases.database_oid(fresh, name) == oid:
                databases.drop_database(fresh, name)
        raise


def _working_name(request: Request, source: str) -> str:
    """The same for the same request, so that a rerun finds what a killed run left."""
    digest = hashlib.sha256("\0".join((str(request.dump_id), source, request.into)).encode()).hexdigest()
    return f"{WORKING_PREFIX}{digest[:16]}"


def _give_name(work: Work, maintenance: Connection, target: _Target, request: Request, *, replaces: bool) -> str | None:
    with step(work, "rename", f"rename {target.name} to {request.into}") as running:
        replaced = None
        if replaces:
            stamp = work.clock.now().strftime("%Y%m%d%H%M%S")
            kept = request.into.encode()[: _NAME_BYTES - len(_REPLACED) - len(stamp)].decode(errors="ignore")
            replaced = f"{kept}{_REPLACED}{stamp}"
        renames = [(target.name, request.into)] if replaced is None else [(request.into, replaced), (target.name, request.into)]
        if databases.database_oid(maintenance, target.name) != target.working_oid:
            raise ServerError(
                f"the database {target.name} that was restored is gone: somebody dropped it, or made another of that name",
                hints=[f"nothing got the name {request.into!r}; run the restore again"],
            )
        try:
            # In one transaction: whoever is killed meanwhile leaves all names as they were, or as they should be.
            databases.rename_databases(maintenance, target.login, renames)
        except ClipperError as error:
            complete = f"the restored database is complete and equal, under the name {target.name}"
            hint = f'ALTER DATABASE "{target.name}" RENAME TO …'
            raise _KeptError(ServerError(f"{error}; {complete}", hints=[hint])) from error
        running.done = f"{request.into} is ready" + (f"; what was there is now {replaced}" if replaced else "")
    return replaced


# -- what goes in


def restore_roles(work: Work, maintenance: Connection, summary: DumpSummary) -> tuple[str, ...]:
    """Create the roles that are missing, with their memberships; present ones are not touched: their passwords may be newer."""
    stored = summary.part("globals")
    if stored is None:
        raise IntegrityError(f"the dump {summary.id} commits no globals")
    with step(work, "roles", "create missing roles") as running:
        script = b"".join(plain_stream(work, summary, stored, running)).decode()
        found = globals_script.parse(script)
        present = server_facts.role_names(maintenance)
        missing = [name for name in found.roles if name not in present]
        statements = [statement for name in missing for statement in found.roles[name]]
        statements += [s for granted, member, s in found.memberships if granted in missing or member in missing]
        for refused in server_facts.run_statements(maintenance, statements):
            work.emit(Warned(refused))
        running.done = f"{show_count(len(missing), 'role')} created, {len(found.roles) - len(missing)} were there"
    return tuple(missing)


# -- whether it is right


def _prove(work: Work, target: _Target, record: DatabaseRecord) -> Comparison:
    with closing(connect(target.login, target.name)) as connection:
        return compare(work, connection, record)


def _difference_error(target: _Target, request: Request, comparison: Comparison) -> IntegrityError:
    shown = "; ".join(str(difference) for difference in comparison.differences[:20])
    more = len(comparison.differences) - 20
    tail = f"; and {more} more" if more > 0 else ""
    hints = [f"the restored copy was kept as database {target.name!r}: look at it, then drop it or rename it yourself"]
    return IntegrityError(f"the restored database is not equal to the dump {request.dump_id}: {shown}{tail}", hints=hints)


def as_properties(document: DatabaseProperties) -> server_facts.Properties:
    """The properties of a database, as they were recorded."""
    return server_facts.Properties(
        owner=document.owner,
        encoding=document.encoding,
        collate=document.collate,
        ctype=document.ctype,
        locale_provider=document.locale_provider,
        locale=document.locale,
        icu_rules=document.icu_rules,
        collation_version=document.collation_version,
        connection_limit=document.connection_limit,
        comment=document.comment,
        grants=None
        if document.grants is None
        else tuple((g.grantee, g.grantor, g.privilege, g.grantable) for g in document.grants),
        settings=tuple((s.role, s.setting) for s in document.settings),
    )
