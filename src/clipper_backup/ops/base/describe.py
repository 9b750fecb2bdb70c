"""What is written down of a base backup: its summary and its details, from what the server and the run said."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import msgspec

from clipper_backup.errors import IntegrityError, ServerError
from clipper_backup.format.base_documents import (
    BaseDetails,
    BaseObject,
    BaseSummary,
    BaseVersions,
    DatabaseFingerprint,
    Fingerprint,
    PageCounts,
    ReadFrom,
    ServerSettings,
    Sizes,
    SystemEntry,
    TablespaceRecord,
)
from clipper_backup.format.documents import ExtensionRecord, Repository
from clipper_backup.format.manifest import Entry, File, Outside
from clipper_backup.format.server_manifest import ManifestFile, write_server_manifest
from clipper_backup.ops.base.gather import CONTROL, Gathering
from clipper_backup.ops.base.source import BaseSource
from clipper_backup.ops.work import SOFTWARE
from clipper_backup.postgres.base_backup import Position, TablespaceInfo
from clipper_backup.postgres.cluster_facts import NEEDED_AT_RECOVERY, ClusterFacts
from clipper_backup.postgres.control_file import ControlFile
from clipper_backup.values import BackupId
from clipper_backup.wal_names import Segment


@dataclass(frozen=True, slots=True)
class Copied:
    """What came from the server: from where to where in its WAL, when by its clock, and its pg_control."""

    start: Position
    stop: Position
    stopped_at: datetime
    control: ControlFile


def check_in_place(source: BaseSource, sent: Iterable[TablespaceInfo]) -> None:
    """ServerError where the server has a tablespace in PGDATA itself, and sends nothing of it: before 16 it passes over those."""
    lost = {each.oid for each in source.facts.tablespaces if not each.path.startswith("/")} - {each.oid for each in sent}
    if lost:
        raise ServerError(
            f"the server sends nothing of the tablespaces that lie in pg_tblspc itself: {', '.join(map(str, sorted(lost)))}",
            hints=["they were made with allow_in_place_tablespaces, for tests: move what is in them, and drop them"],
        )


def check_control(control: ControlFile, source: BaseSource) -> None:
    """IntegrityError when the files are not those of the server that was asked: a proxy leads to two of them."""
    facts = source.facts
    found = (control.system_id, control.page_bytes, control.wal_page_bytes, control.segment_bytes, control.relation_segment_pages)
    asked = (source.system_id, facts.page_bytes, facts.wal_page_bytes, facts.segment_bytes, facts.relation_segment_pages)
    if found != asked:
        raise IntegrityError(
            f"the server said that it is {asked[0]}, and its pg_control says {found[0]}, or other sizes",
            hints=["does PGHOST lead to two servers?"],
        )


def details_of(
    backup_id: BackupId, facts: ClusterFacts, warnings: Sequence[str], read_from: ReadFrom | None
) -> BaseDetails:  # fmt: skip
    """The fingerprint, the texts of the warnings, and from which folder the files were read, if they were."""
    databases = []
    for each in facts.databases:
        extensions = each.extensions
        databases.append(
            DatabaseFingerprint(
                name=each.name,
                encoding=each.encoding,
                collate=each.collate,
                ctype=each.ctype,
                locale_provider=each.locale_provider,
                collation_version=each.collation_version,
                tablespace=each.tablespace,
                size_bytes=each.size_bytes,
                extensions=None
                if extensions is None
                else [ExtensionRecord(name=name, version=version, schema=schema) for name, version, schema in extensions],
                collations=None if each.collations is None else list(each.collations),
            )
        )
    fingerprint = Fingerprint(
        server=facts.version_text,
        settings=facts.settings,
        libraries=facts.libraries,
        tablespaces=[TablespaceRecord(oid=each.oid, name=each.name, path=each.path) for each in facts.tablespaces],
        databases=databases,
        left_out=list(facts.left_out),
    )
    where = msgspec.UNSET if read_from is None else read_from
    return BaseDetails(id=str(backup_id), warnings=list(warnings), fingerprint=fingerprint, read_from=where)


def server_manifest(source: BaseSource, copied: Copied, gathering: Gathering, entries: Iterable[Entry]) -> Iterator[bytes]:
    """The backup_manifest that a server would have made of the table's *entries*."""
    own = (
        ManifestFile(path, len(content), int(copied.stopped_at.timestamp()), content)
        for path, content in sorted(gathering.own.items())
    )
    files = (
        ManifestFile(
            entry.named,
            entry.size_bytes,
            entry.mtime_ns // 10**9,
            gathering.control if entry.named == CONTROL else None,
        )
        for entry in entries
        if isinstance(entry, File) and not isinstance(entry, Outside)
    )
    return write_server_manifest(
        chain(own, files),
        major=source.facts.major,
        system_id=source.system_id,
        timeline=copied.start.timeline,
        start=copied.start.lsn,
        stop=copied.stop.lsn,
    )


_PAGES_SHOWN = 5


def shown_pages(pages: Sequence[int]) -> str:
    """The numbers of some pages, for people: the first few, and how many more."""
    shown = ", ".join(map(str, pages[:_PAGES_SHOWN]))
    more = len(pages) - _PAGES_SHOWN
    return f"blocks {shown}" + (f" and {more} more" if more > 0 else "")


def summary_of(
    backup_id: BackupId,
    repository: Repository,
    source: BaseSource,
    system: SystemEntry,
    copied: Copied,
    *,
    parent: str | None,
    files: int,
    plain_bytes: int,
    packed_bytes: int,
    pages: PageCounts,
    damaged: int,
    objects: Sequence[BaseObject],
    warnings: int,
) -> BaseSummary:
    """backup.json; its links and `finished_at` are set when it is committed."""
    control, size = copied.control, system.segment_bytes
    return BaseSummary(
        id=str(backup_id),
        repository_id=repository.id,
        system_number=system.number,
        system_id=source.system_id,
        begun_at=backup_id.at,
        finished_at=backup_id.at,
        versions=BaseVersions(
            software=SOFTWARE,
            server=source.facts.version,
            server_major=source.facts.major,
            control=control.version,
            catalog=control.catalog,
        ),
        source=source.kind,
        from_standby=source.facts.in_recovery,
        timeline=int(copied.start.timeline),
        ancestors=msgspec.UNSET
        if source.ancestors is None
        else [(int(each.timeline), str(each.left_at)) for each in source.ancestors],
        start_lsn=str(copied.start.lsn),
        stop_lsn=str(copied.stop.lsn),
        stopped_at=copied.stopped_at,
        first_segment=Segment.holding(copied.start.timeline, copied.start.lsn, size).name,
        last_segment=Segment.ending(copied.start.timeline, copied.stop.lsn, size).name,
        sizes=Sizes(
            page_bytes=control.page_bytes,
            wal_page_bytes=control.wal_page_bytes,
            segment_bytes=control.segment_bytes,
            relation_segment_pages=control.relation_segment_pages,
        ),
        checksums=control.checksums,
        settings=ServerSettings(
            **{name: getattr(control, name) for name in NEEDED_AT_RECOVERY}, wal_level=source.facts.settings["wal_level"]
        ),
        parent=parent,
        recipients=[] if source.sealer is None else list(source.sealer.recipients),
        signed_by=None if source.signing is None else source.signing.public,
        files=files,
        plain_bytes=plain_bytes,
        stored_bytes=packed_bytes + sum(each.size_bytes for each in objects),
        pages=msgspec.structs.replace(pages, damaged=damaged),
        objects=list(objects),
        warnings=warnings,
    )
