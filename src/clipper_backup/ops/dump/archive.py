"""One database into the store: snapshot, pg_dump, zstd, read-back, and what was counted on the same snapshot."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import clipper_backup.postgres.fingerprint as fp
from clipper_backup.errors import ServerError, ToolError
from clipper_backup.format.documents import (
    DatabaseProperties,
    DatabaseRecord,
    ExtensionRecord,
    Grant,
    RoleSetting,
    SequenceRecord,
    StoredObject,
)
from clipper_backup.ops.dump.measure import Measured, measure
from clipper_backup.ops.dump.source import Source
from clipper_backup.ops.dump.write import write_custom, write_directory
from clipper_backup.ops.events import Warned
from clipper_backup.ops.work import Work, step, together
from clipper_backup.postgres import server_facts
from clipper_backup.postgres.archive import Contents
from clipper_backup.postgres.connection import cancel_query, connect
from clipper_backup.postgres.snapshot import DataTable, Snapshot
from clipper_backup.values import DumpId, show_count

_LOCK_FAILURES = ("LOCK TABLE", "could not obtain lock")
"""pg_dump's own words when it got no lock: of the query that timed out, and of a worker of its parallel dump."""
_SESSION_ENDED = "server closed the connection"
"""libpq's."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A database in the store, and its record for the details."""

    stored: StoredObject
    record: DatabaseRecord
    warnings: tuple[str, ...]


def archive_database(work: Work, dump_id: DumpId, source: Source, name: str) -> Archived:
    """Write one database's archive, read it back and describe it. Raises when any part of that is not so."""
    deadline = work.clock.monotonic() + work.settings.dump_lock_timeout_seconds
    while True:
        try:
            return _archive_once(work, dump_id, source, name)
        except ToolError as error:
            if not _no_lock(error):
                raise
            if work.clock.monotonic() >= deadline:
                raise ServerError(
                    f"database {name}: pg_dump could not lock its tables within DUMP_LOCK_TIMEOUT_SECONDS: {error}",
                    hints=[
                        "a migration holds them, or one after the other wants them: pause it during the dump",
                        "SELECT pid, query FROM pg_stat_activity a JOIN pg_locks USING (pid) WHERE mode = 'AccessExclusiveLock'",
                    ],
                ) from error
            work.emit(Warned(f"{name}: somebody's lock kept pg_dump waiting; letting him pass, then beginning again"))


def _no_lock(error: ToolError) -> bool:
    # Told by what libpq and pg_dump say, which is English here; the server speaks any language. A session that was ended
    # while it waited for its lock is no reason to begin again.
    said = "\n".join(error.output)
    return any(words in said for words in _LOCK_FAILURES) and _SESSION_ENDED not in said


def _archive_once(work: Work, dump_id: DumpId, source: Source, name: str) -> Archived:
    settings = work.settings
    with closing(connect(source.login, name)) as outside:
        lsn_before = server_facts.current_lsn(outside)
        size_bytes = server_facts.database_size_bytes(outside)
    with ExitStack() as until_read_back:
        with step(work, f"lock {name}", f"{name}: lock the tables and take a snapshot") as running:
            snapshot = Snapshot.take(source.login, name, lock_timeout_seconds=settings.dump_lock_timeout_seconds)
            running.done = f"{name}: {show_count(len(snapshot.tables), 'table')} locked, snapshot {snapshot.exported}"
        with closing(snapshot):
            connection = snapshot.connection
            fp.fix_text_form(connection)
            described = server_facts.snapshot_text(connection)
            properties = server_facts.database_properties(connection, source.facts.major)
            extensions = server_facts.installed_extensions(connection)
            collations = server_facts.used_collations(connection)
            write = write_directory if settings.dump_jobs > 1 else write_custom
            writing = until_read_back.enter_context(write(work, source, dump_id, snapshot, name, size_bytes=size_bytes))
            measured = Measured()

            def give_up() -> None:
                writing.cancel()
                cancel_query(snapshot.connection)

            # Measuring first: its error ends the transaction, and pg_dump's, that the snapshot is gone, says less.
            together([lambda: measure(work, snapshot, name, measured), writing.upload, writing.check], cancel=give_up)
            snapshot.check_alive(name)
        # The locks are gone from here on: reading back takes a while and needs none.
        stored, contents = writing.read_back()
    with closing(connect(source.login, name)) as outside:
        lsn_after = server_facts.current_lsn(outside)
    _check_contents(name, contents, snapshot.tables)
    measured.warnings.extend(writing.warnings())
    uncounted = set(contents.data_tables) - {table.oid for table in snapshot.tables}
    if uncounted:
        measured.warnings.append(
            f"database {name}: {show_count(len(uncounted), 'table was dumped', 'tables were dumped')} but not counted"
        )
    record = DatabaseRecord(
        name=name,
        properties=_as_document(properties),
        snapshot=described,
        lsn_before=str(lsn_before) if lsn_before is not None else None,
        lsn_after=str(lsn_after) if lsn_after is not None else None,
        size_bytes=size_bytes,
        tables=measured.tables,
        sequences=[
            SequenceRecord(schema=s.schema, name=s.name, last_value=s.last_value, is_called=s.is_called)
            for s in contents.sequences
        ],
        large_objects=measured.large_objects,
        large_objects_hash=measured.large_objects_hash,
        extensions=[ExtensionRecord(name=n, version=v, schema=s) for n, v, s in extensions],
        collations=collations,
        queries=measured.queries,
    )
    return Archived(stored, record, tuple(measured.warnings))


def _check_contents(name: str, contents: Contents, tables: Sequence[DataTable]) -> None:
    """An archive that lacks a table must never be committed, whatever pg_dump's exit status was."""
    lacking = [table.title for table in tables if table.oid not in contents.data_tables]
    if lacking:
        raise ToolError(f"pg_dump left out {show_count(len(lacking), 'table')} of database {name}: {', '.join(lacking[:5])}")


def _as_document(properties: server_facts.Properties) -> DatabaseProperties:
    return DatabaseProperties(
        owner=properties.owner,
        encoding=properties.encoding,
        collate=properties.collate,
        ctype=properties.ctype,
        locale_provider=properties.locale_provider,  # type: ignore[arg-type]  # pg_database.datlocprovider has no other letters
        locale=properties.locale,
        icu_rules=properties.icu_rules,
        collation_version=properties.collation_version,
        connection_limit=properties.connection_limit,
        comment=properties.comment,
        grants=None
        if properties.grants is None
        else [Grant(grantee=e, grantor=r, privilege=p, grantable=g) for e, r, p, g in properties.grants],
        settings=[RoleSetting(role=role, setting=text) for role, text in properties.settings],
    )
