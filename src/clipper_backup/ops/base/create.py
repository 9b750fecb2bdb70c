"""`base create`: steps 1 to 11 of docs/design/repository-format.md, from the lease to backup.json."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import msgspec

from clipper_backup.errors import (
    AccessError,
    IncompleteError,
    IntegrityError,
    MissingError,
    ObjectMissingError,
    ServerError,
)
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import (
    BaseDetails,
    BaseIntent,
    BaseObject,
    BaseSummary,
    PacksDocument,
    ReadFrom,
    Started,
    SystemEntry,
)
from clipper_backup.format.documents import NewerError, Repository, encode
from clipper_backup.format.frames import STRETCH_BYTES
from clipper_backup.format.manifest import Head, write_manifest
from clipper_backup.linux import keep_freed_memory
from clipper_backup.ops.base.describe import (
    Copied,
    check_control,
    check_in_place,
    details_of,
    server_manifest,
    shown_pages,
    summary_of,
)
from clipper_backup.ops.base.gather import LABEL, TABLESPACE_MAP, Gathering
from clipper_backup.ops.base.source import BaseSource, look_at_base_source
from clipper_backup.ops.base.table import EntrySorter, KnownFiles
from clipper_backup.ops.base.unchanged import read_from, unchanged_since
from clipper_backup.ops.base.wal import end_last_segment, prove_wal, wait_for_wal, warn_of_newer_lines
from clipper_backup.ops.events import Warned
from clipper_backup.ops.keys import check_meant, opener_of
from clipper_backup.ops.lease import BASE_LEASE, take_lease
from clipper_backup.ops.scratch import scratch_folder
from clipper_backup.ops.work import SOFTWARE, Step, Work, repository_of, step, this_process
from clipper_backup.postgres.base_backup import BaseBackup, Position
from clipper_backup.postgres.cluster_facts import archiver_failure, databases_placed, outside_files, server_now
from clipper_backup.postgres.control_file import ControlFile
from clipper_backup.postgres.files_backup import FilesBackup
from clipper_backup.postgres.replication import Replication
from clipper_backup.postgres.wal_stream import HeldWal
from clipper_backup.repository.adoption import Adoption, doomed_by, plan_adoption
from clipper_backup.repository.base_backups import (
    BaseCatalog,
    BaseEntry,
    choose_parent,
    last_base_backup,
    read_base_details,
    read_entries,
    read_packs,
)
from clipper_backup.repository.base_intents import LiveIntent
from clipper_backup.repository.base_run import BaseRun, begin_intent, read_prune_records
from clipper_backup.repository.data_keys import DataKeys, begin_frames
from clipper_backup.repository.leases import Lease
from clipper_backup.repository.pack_reader import PackReader
from clipper_backup.repository.pack_writer import RunWriter
from clipper_backup.repository.systems import accept_system, add_system, list_systems, physical_id
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import BackupId, Lsn, show_bytes, show_count
from clipper_backup.wal_names import Segment

_SCRATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class BaseWritten:
    """A committed base backup, and what is recorded of its cluster."""

    summary: BaseSummary
    details: BaseDetails


def create_base(work: Work, *, new_system: bool = False) -> BaseWritten:
    """Take a base backup under the lease. Returns only when it is committed; whatever raises leaves no backup behind.

    With *new_system* the server may be a new one of this repository's cluster, as after pg_upgrade.
    """
    source = look_at_base_source(work.settings, work.clock)
    repository = repository_of(work)
    with take_lease(work, BASE_LEASE, "base create") as lease:
        return write_base(work, repository, lease, source, new_system=new_system)


def write_base(work: Work, repository: Repository, lease: Lease, source: BaseSource, *, new_system: bool = False) -> BaseWritten:
    """Write and commit one base backup; the caller holds *lease*."""
    physical_id(repository)
    keep_freed_memory()
    catalog = BaseCatalog(work.store, repository.id, work.trusted)
    entries = catalog.entries()
    check_meant(work.settings, source.sealer, source.signing, "base backup", lambda: last_base_backup(work.store))
    system = accepted_system(work, source, new_system=new_system)
    tables = [part.plain_bytes for entry in entries if entry.summary and (part := entry.summary.part("manifest"))]
    needed_bytes = _SCRATCH_BYTES + 2 * max(tables, default=0)
    with ExitStack() as until_done:
        scratch = until_done.enter_context(scratch_folder(work.settings.scratch_dir, needed_bytes, "the table of files"))
        making = _Making(work, repository, source, system, scratch, until_done)
        intent, parent = making.begin(catalog, entries)
        until_done.enter_context(intent)
        run = BaseRun(work.store, intent, lease, source.sealer)
        try:
            return making.write(run, parent)
        except BaseException:
            run.abandon()
            raise


def refuse_damaged(summary: BaseSummary) -> None:
    """IncompleteError for one that has pages with wrong checksums: it is kept, and counts as no good one (rule 43, B5)."""
    if summary.pages.damaged:
        raise IncompleteError(
            f"the base backup {summary.id} holds {show_count(summary.pages.damaged, 'page')}"
            " whose checksums were wrong on the server",
            hints=[
                f"`clipper-backup base show {summary.id}` names the files; the server's disk, memory or file system damaged them",
                "older good base backups stay until a good one follows",
            ],
        )


def accepted_system(work: Work, source: BaseSource, *, new_system: bool = False) -> SystemEntry:
    """The repository's entry for this server, which must be the newest one (R2)."""
    here = SystemEntry(
        number=1,
        system_id=source.system_id,
        segment_bytes=source.facts.segment_bytes,
        server_major=source.facts.major,
        added_at=work.store.now(),
        added_by=this_process(),
    )
    system = add_system(work.store, here) if new_system else accept_system(work.store, here)
    newest = list_systems(work.store)[-1]
    if newest.number != system.number:
        raise IntegrityError(
            f"the system {system.system_id} was succeeded by {newest.system_id} in this repository: it is backed up no more",
            hints=["back up the new server; the old one's backups can still be restored"],
        )
    return system


@dataclass(frozen=True, slots=True)
class _Parent:
    """The backup that pages are taken from, and its files."""

    summary: BaseSummary
    packs: PacksDocument
    known: KnownFiles
    details: BaseDetails | None


@dataclass(frozen=True, slots=True)
class _Adopted:
    """What may be taken over: of a backup without a parent nothing."""

    adoption: Adoption | None = None
    reader: PackReader | None = None
    seed: int | None = None


class _Making:
    """One base backup on its way: what it needs all along, and what it has to warn of."""

    def __init__(
        self, work: Work, repository: Repository, source: BaseSource, system: SystemEntry, scratch: Path, until_done: ExitStack
    ) -> None:
        self._work, self._repository, self._source, self._system = work, repository, source, system
        self._scratch, self._until_done = scratch, until_done
        self._wal = WalCatalog(work.store, source.system_id, system.segment_bytes)
        self._warnings: list[str] = []
        self._objects: list[BaseObject] = []
        self._read_from: ReadFrom | None = None

    # -- step 1

    def begin(self, catalog: BaseCatalog, entries: Sequence[BaseEntry]) -> tuple[LiveIntent, _Parent | None]:
        """Choose a parent and write the intent; anew when the parent is deleted meanwhile."""
        while True:
            parent = self._choose(entries)
            committed = [entry.listed.backup_id for entry in entries if entry.listed.committed]
            parent_id = None if parent is None else BackupId.parse(parent.summary.id)
            try:
                return begin_intent(self._work.store, self._work.clock, committed, parent_id, _intended(parent_id)), parent
            except ObjectMissingError:
                entries = catalog.entries()

    def _choose(self, entries: Sequence[BaseEntry]) -> _Parent | None:
        """The backup to take pages from; None when there is none, or none that can be read here: all is stored anew then."""
        try:
            line = self._wal.line(self._source.timeline)
        except MissingError as error:
            self._warn(f"no pages are taken from earlier backups: {error}")
            return None
        recipients = () if self._source.sealer is None else self._source.sealer.recipients
        summary = choose_parent(entries, line, self._source.system_id, recipients)
        if summary is None:
            self._tell_of_new_keys(entries, recipients)
            return None
        if summary.sealed and self._work.settings.encryption_identity_file is None:
            return None  # who can only seal reads no parent: each of his backups is whole, and that is meant
        try:
            opened = opener_of(self._work.settings, summary.recipients)
            packs = read_packs(self._work.store, summary)
            details = read_base_details(self._work.store, summary, opened) if summary.source == "files" else None
            manifest = read_entries(self._work.store, summary, opened)
            if (theirs := manifest.head.stretch_bytes) != STRETCH_BYTES:
                self._warn(
                    f"no pages are taken from the base backup {summary.id}: its page maps are of {show_bytes(theirs)} each, "
                    f"this version writes such of {show_bytes(STRETCH_BYTES)}"
                )
                return None
            known = KnownFiles(self._scratch, manifest)
            self._until_done.callback(known.close)
            return _Parent(summary, packs, known, details)
        except (AccessError, IntegrityError, NewerError) as error:
            self._warn(f"no pages are taken from the base backup {summary.id}: {error}")
            return None

    def _tell_of_new_keys(self, entries: Sequence[BaseEntry], recipients: Sequence[str]) -> None:
        """Why the first backup after a change of ENCRYPTION_RECIPIENTS is a whole one."""
        newest = next((entry.summary for entry in reversed(entries) if entry.good and entry.summary is not None), None)
        if newest is not None and newest.sealed and set(recipients) - set(newest.recipients):
            self._warn(f"{newest.id} is not sealed to all of ENCRYPTION_RECIPIENTS: this backup is whole, so that each opens it")

    # -- steps 2 to 10

    def write(self, run: BaseRun, parent: _Parent | None) -> BaseWritten:
        """All that follows the intent."""
        work, source = self._work, self._source
        frames = begin_frames(work.store, self._repository.id, run.backup_id, source.sealer)
        page_bytes = source.facts.page_bytes
        sorter = EntrySorter(self._scratch)
        take = self._adopted(parent, page_bytes)
        databases = databases_placed(source.login)
        with HeldWal(source.login) as held:
            with RunWriter(
                work.store, frames, page_bytes, reader=take.reader, adoption=take.adoption, seed=take.seed
            ) as writer:  # fmt: skip
                gathering = Gathering(writer, None if parent is None else parent.known, sorter)
                copied = self._copy(run, gathering, parent)
                gathering.check_databases(databases, databases_placed(source.login))
                for file in outside_files(source.login, self._warnings, gathering.inside):
                    gathering.take_outside(file)
                with step(work, "packs", "store the last packs") as running:
                    written = writer.finish()
                    running.done = f"{show_bytes(written.stored_bytes)} stored in packs"
                gathering.settle()
            packs = PacksDocument(id=str(run.backup_id), runs=written.runs)
            details = self._keep(run, gathering, sorter, packs, copied)
            summary = summary_of(
                run.backup_id, self._repository, source, self._system, copied,
                parent=None if parent is None else parent.summary.id, files=sorter.files, plain_bytes=sorter.size_bytes,
                packed_bytes=written.stored_bytes, pages=written.pages, damaged=gathering.damaged_pages, objects=self._objects,
                warnings=len(details.warnings),
            )  # fmt: skip
            first, last = (
                Segment.parse(name, self._system.segment_bytes) for name in (summary.first_segment, summary.last_segment)
            )
            end_last_segment(work, source, last)
            wait_for_wal(
                work, self._wal, first, last, lambda: archiver_failure(source.login), from_standby=source.facts.in_recovery
            )  # fmt: skip
            first_link, last_link = prove_wal(work, self._wal, held, first, last, self._repository.id)
            warn_of_newer_lines(work, self._wal, source.timeline)
        with step(work, "commit", f"commit {run.backup_id}") as committing:
            summary = msgspec.structs.replace(summary, first_link=first_link, last_link=last_link, finished_at=work.store.now())
            run.commit(summary, packs, None if source.signing is None else source.signing.sign)
            committing.done = f"committed {run.backup_id}: {show_bytes(summary.stored_bytes)} stored"
        return BaseWritten(summary, details)

    def _adopted(self, parent: _Parent | None, page_bytes: int) -> _Adopted:
        """Step 3: what may be taken over."""
        if parent is None:
            return _Adopted()
        store, keys = self._work.store, None
        if self._source.sealer is not None:
            keys = DataKeys(store, self._repository.id, opener_of(self._work.settings, parent.summary.recipients))
        records = read_prune_records(store)
        doomed_keys = {run for record in records for run in record.keys}

        def opens(run: BackupId) -> bool:
            try:
                return str(run) not in doomed_keys and keys is not None and keys.cipher(run) is not None
            except (AccessError, IntegrityError):
                return False

        adoption = plan_adoption(
            parent.packs,
            store.list(names.PACKS_FOLDER),
            doomed=doomed_by(records),
            sealed=keys is not None,
            opens=opens,
            now=store.now(),
            max_age=timedelta(days=self._work.settings.max_pack_age_days),
        )
        reader = PackReader(store, keys, page_bytes, STRETCH_BYTES)
        return _Adopted(adoption, reader, reader.seed(file.part for file in parent.known))

    def _copy(self, run: BaseRun, gathering: Gathering, parent: _Parent | None) -> Copied:
        """Steps 4 to 6: everything that the server has, sent by it or read where it lies."""
        by_files = self._source.folder is not None
        copied = self._read_files(run, gathering, parent) if by_files else self._receive(run, gathering)
        check_control(copied.control, self._source)
        return copied

    def _receive(self, run: BaseRun, gathering: Gathering) -> Copied:
        work, source = self._work, self._source
        kind = work.settings.base_checkpoint
        with Replication(source.login) as replication:
            with self._checkpoint_step() as running:
                backup = BaseBackup(replication, f"clipper-backup {run.backup_id}", kind)
                running.done = _begins(backup.start)
            check_in_place(source, backup.tablespaces)
            self._begin_copy(run, backup.start)
            with step(work, "copy", "copy the server's files") as running:
                gathering.take_members(backup, running)
                self._objects.append(run.keep(names.SERVER_MANIFEST, backup.manifest()))
                stop = backup.finish()
                running.done = _copied(backup.done_bytes, stop)
        for warning in backup.warnings:
            self._warn(warning)
        return Copied(backup.start, stop, server_now(source.login), ControlFile.parse(gathering.control))

    def _read_files(self, run: BaseRun, gathering: Gathering, parent: _Parent | None) -> Copied:
        work, source, folder = self._work, self._source, self._source.folder
        assert folder is not None  # noqa: S101  whoever calls has looked
        known_below = Lsn.parse(parent.summary.start_lsn) if parent is not None and parent.summary.checksums else None
        with ExitStack() as session:
            with self._checkpoint_step() as running:
                backup = session.enter_context(
                    FilesBackup(
                        source.login, folder, work.clock, f"clipper-backup {run.backup_id}", work.settings.base_checkpoint,
                        known_below=known_below, total_bytes=sum(each.size_bytes or 0 for each in source.facts.databases),
                    )
                )  # fmt: skip
                running.done = _begins(backup.start)
            self._begin_copy(run, backup.start)
            self._read_from = here = read_from(folder.path, backup.clock_ns)
            unchanged = None
            if parent is not None and work.settings.base_skip_unchanged:
                unchanged = unchanged_since(
                    parent.summary, parent.details, here, backup.start.timeline, from_standby=source.facts.in_recovery
                )
            with step(work, "copy", "read the server's files") as running:
                gathering.take_members(backup, running, unchanged)
                gathering.wait_until_read()  # a standby's pg_control must be newer than every page that was read
                gathering.take_control(*backup.control())
                stopped = backup.finish()
                running.done = _copied(backup.done_bytes, stopped.end)
        gathering.own = {LABEL: stopped.label, TABLESPACE_MAP: stopped.tablespace_map}
        for warning in backup.warnings:
            self._warn(warning)
        for path, damage in sorted(backup.damaged.items()):
            pages = show_count(damage.count, "page")
            self._warn(f"checksum verification failed in file {os.fsdecode(path)!r}: {pages}, {shown_pages(damage.pages)}")
        return Copied(backup.start, stopped.end, server_now(source.login), ControlFile.parse(gathering.control))

    def _checkpoint_step(self) -> AbstractContextManager[Step]:
        return step(self._work, "checkpoint", f"wait for a {self._work.settings.base_checkpoint} checkpoint of the server")

    def _begin_copy(self, run: BaseRun, start: Position) -> None:
        """The server has begun; ServerError when it is not on the timeline any more that the parent was chosen for."""
        expected = self._source.timeline
        if start.timeline != expected:
            raise ServerError(
                f"the server went from timeline {int(expected)} to {int(start.timeline)} as the backup began",
                hints=["it was promoted: take another backup"],
            )
        run.start(self._started(run, start))

    def _started(self, run: BaseRun, start: Position) -> Started:
        return Started(
            id=str(run.backup_id),
            system_id=self._source.system_id,
            timeline=int(start.timeline),
            start_lsn=str(start.lsn),
            started_at=self._work.store.now(),
        )

    def _keep(self, run: BaseRun, gathering: Gathering, sorter: EntrySorter, packs: PacksDocument, copied: Copied) -> BaseDetails:
        """The other objects of `base/<id>/`."""
        for name, part in ((LABEL, names.LABEL), (TABLESPACE_MAP, names.TABLESPACE_MAP)):
            if name in gathering.own:
                self._objects.append(run.keep(part, [gathering.own[name]]))
        head = Head(
            id=str(run.backup_id),
            repository_id=self._repository.id,
            page_bytes=self._source.facts.page_bytes,
            sealed=self._source.sealer is not None,
        )
        details = details_of(run.backup_id, self._source.facts, self._warnings, self._read_from)
        with step(self._work, "documents", "store the table of files and what is known of the cluster") as running:
            key = names.base_key(run.backup_id, names.MANIFEST)
            if self._source.folder is not None:
                manifest = server_manifest(self._source, copied, gathering, sorter.entries())
                self._objects.append(run.keep(names.SERVER_MANIFEST, manifest))
            self._objects.append(run.keep(names.MANIFEST, write_manifest(head, sorter.entries(), key)))
            self._objects.append(run.keep(names.PACKS, [encode(packs)]))
            self._objects.append(run.keep(names.BASE_DETAILS, [encode(details)]))
            running.done = f"{show_count(sorter.files, 'file')}, {show_bytes(sorter.size_bytes)}"
        return details

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._work.emit(Warned(text))


def _begins(start: Position) -> str:
    return f"the backup begins at {start.lsn} on timeline {int(start.timeline)}"


def _copied(done_bytes: int, stop: Position) -> str:
    return f"{show_bytes(done_bytes)} copied, the backup ends at {stop.lsn}"


def _intended(parent: BackupId | None) -> Callable[[BackupId], BaseIntent]:
    parents = [] if parent is None else [str(parent)]

    def intent_of(backup_id: BackupId) -> BaseIntent:
        return BaseIntent(id=str(backup_id), parents=parents, holder=this_process(), software=SOFTWARE, begun_at=backup_id.at)

    return intent_of
