"""`dump create`: the order of writes of docs/design/dumps.md, from the lease to backup.json."""

import uuid
from dataclasses import dataclass

from clipper_backup.errors import ToolError
from clipper_backup.format import names
from clipper_backup.format.documents import (
    DumpDetails,
    DumpSummary,
    Intent,
    Repository,
    StoredObject,
    Versions,
    encode,
)
from clipper_backup.ops.dump.archive import Archived, archive_database
from clipper_backup.ops.dump.source import Source, look_at_source
from clipper_backup.ops.dump.write import store_whole
from clipper_backup.ops.events import Warned
from clipper_backup.ops.keys import check_meant
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.work import SOFTWARE, Work, repository_of, step, this_process
from clipper_backup.postgres import globals_script
from clipper_backup.postgres.connection import dbname_argument
from clipper_backup.postgres.programs import run
from clipper_backup.repository.dumps import DumpWriter, last_dump
from clipper_backup.repository.leases import Lease
from clipper_backup.values import show_bytes, show_count


@dataclass(frozen=True, slots=True)
class Written:
    """A committed dump, and what was recorded in it."""

    summary: DumpSummary
    details: DumpDetails


def create_dump(work: Work) -> Written:
    """Take a dump under the lease. Returns only when it is committed; whatever raises leaves no dump behind."""
    source = look_at_source(work.settings)
    repository = repository_of(work)
    with take_lease(work, DUMP_LEASE, "dump create") as lease:
        return write_dump(work, repository, lease, source)


def write_dump(work: Work, repository: Repository, lease: Lease, source: Source) -> Written:
    """Write and commit one dump; the caller holds *lease*."""
    check_meant(work.settings, source.sealer, source.signing, "dump", lambda: last_dump(work.store))
    intent = Intent(run_id=uuid.uuid4().hex, holder=this_process(), software=SOFTWARE, begun_at=work.clock.now())
    writer = DumpWriter.take_id(work.store, intent)
    try:
        archived = [_archive(work, writer, source, name, lease) for name in source.databases]
        stored_globals, warnings = _store_globals(work, writer, source)
        all_warnings = [*(warning for one in archived for warning in one.warnings), *warnings]
        details = DumpDetails(
            id=str(writer.dump_id),
            databases=[one.record for one in archived],
            warnings=[] if source.sealer is None else all_warnings,  # they may quote what the server said of a row
        )
        stored_details = _store_details(work, writer, source, details)
        summary = DumpSummary(
            id=str(writer.dump_id),
            repository_id=repository.id,
            begun_at=intent.begun_at,
            finished_at=work.clock.now(),
            versions=Versions(
                software=SOFTWARE,
                client=source.binaries.version,
                server=source.facts.version,
                server_major=source.facts.major,
            ),
            system_id=source.facts.system_id,
            from_standby=source.facts.in_recovery,
            fingerprint=work.settings.dump_fingerprint,
            rows=_total_rows(details) if source.sealer is None else None,
            signed_by=None if source.signing is None else source.signing.public,
            recipients=[] if source.sealer is None else list(source.sealer.recipients),
            objects=[*(one.stored for one in archived), stored_globals, stored_details],
            warnings=all_warnings if source.sealer is None else [],
        )
        lease.check()
        with step(work, "commit", f"commit {writer.dump_id}") as committing:
            writer.commit(summary, None if source.signing is None else source.signing.sign)
            committing.done = f"committed {writer.dump_id}: {show_bytes(summary.stored_bytes)} stored"
    except BaseException:
        writer.abandon()
        raise
    return Written(summary, details)


def _archive(work: Work, writer: DumpWriter, source: Source, name: str, lease: Lease) -> Archived:
    lease.check()
    archived = archive_database(work, writer.dump_id, source, name)
    for warning in archived.warnings:
        work.emit(Warned(warning))
    return archived


def _store_globals(work: Work, writer: DumpWriter, source: Source) -> tuple[StoredObject, list[str]]:
    """Roles, memberships and tablespaces: small, so written from memory."""
    warnings = []
    arguments = ["--globals-only", "--no-password", dbname_argument(source.maintenance)]
    if not source.passwords:
        arguments.append("--no-role-passwords")
        warnings.append("the globals hold no passwords: this role may not read pg_authid")
        work.emit(
            Warned(warnings[0], ("restored roles must be given passwords; a superuser, or SELECT on pg_authid, dumps them",))
        )
    with step(work, "globals", "roles and other globals") as running:
        script = run(source.binaries.program("pg_dumpall"), arguments, source.login.environment(source.maintenance))
        found = globals_script.parse(script.decode())
        if not found.roles:
            raise ToolError("pg_dumpall wrote globals without a single role")
        key = names.dump_key(writer.dump_id, source.named(names.GLOBALS))
        stored = store_whole(work, source, key, script, role="globals")
        running.done = show_count(len(found.roles), "role")
    return stored, warnings


def _store_details(work: Work, writer: DumpWriter, source: Source, details: DumpDetails) -> StoredObject:
    key = names.dump_key(writer.dump_id, source.named(names.DETAILS))
    return store_whole(work, source, key, encode(details), role="details")


def _total_rows(details: DumpDetails) -> int | None:
    counted = [record.rows for record in details.databases]
    return None if None in counted else sum(rows or 0 for rows in counted)
