"""The JSON documents of base backups and WAL (docs/design/repository-format.md, repository-wal.md)."""

from typing import Annotated, Literal

import msgspec

from clipper_backup.format.documents import SCHEMA, Document, ExtensionRecord, Time, register

Hex128 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
SystemNumber = Annotated[str, msgspec.Meta(pattern=r"\A[1-9][0-9]{0,19}\Z")]
"""A system identifier as decimal text: JSON numbers lose bits beyond 2^53."""
LsnText = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-F]{1,8}/[0-9A-F]{1,8}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0)]
TimelineText = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-F]{8}\Z")]
RunText = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{8}-[0-9]{6}-[0-9a-f]{8}\Z")]


class SystemEntry(Document, kw_only=True, frozen=True):
    """`systems/<number>.json`: one `initdb` whose WAL this repository accepts."""

    schema: int = SCHEMA
    number: Annotated[int, msgspec.Meta(ge=1, le=9999)]
    system_id: SystemNumber
    segment_bytes: Count
    server_major: int
    added_at: Time
    added_by: str


class Claim(Document, kw_only=True, frozen=True):
    """Which plaintext may lie at a name of the archive, for ever.

    `claimed_at` is the writer's clock, but a history's is the store's. `ancestors`, of a history only: timeline and LSN, as its
    file has them.
    """

    schema: int = SCHEMA
    name: str
    system_id: SystemNumber
    plain_bytes: Count
    salt: Hex256
    digest: Hex256
    previous: Hex128
    writer: str
    claimed_at: Time
    ancestors: list[tuple[Annotated[int, msgspec.Meta(ge=1)], LsnText]] | msgspec.UnsetType = msgspec.UNSET


class DataKey(Document, kw_only=True, frozen=True):
    """What `keys/<run>.age` seals: the key of a run's frames, which no text of it shows."""

    schema: int = SCHEMA
    repository_id: Hex128
    run: RunText
    algorithm: Literal["aes-256-gcm"] = "aes-256-gcm"
    key: Hex256

    def __repr__(self) -> str:
        return f"DataKey({self.run})"


class BaseIntent(Document, kw_only=True, frozen=True):
    """`base/<id>/intent.json`: a run lives, and takes pages from these parents (none or one)."""

    schema: int = SCHEMA
    id: RunText
    parents: list[RunText]
    holder: str
    software: str
    begun_at: Time


class Started(Document, kw_only=True, frozen=True):
    """`base/<id>/started.json`: the server has begun; its WAL from start_lsn on is held while the run lives."""

    schema: int = SCHEMA
    id: RunText
    system_id: SystemNumber
    timeline: Annotated[int, msgspec.Meta(ge=1)]
    start_lsn: LsnText
    started_at: Time


class PacksOfRun(Document, kw_only=True, frozen=True):
    """The packs of one run that a backup needs, rising: number, size, plain bytes, live bytes, pack digest."""

    run: RunText
    sealed: bool
    packs: list[tuple[Count, Count, Count, Count, Hex256]]


class PacksDocument(Document, kw_only=True, frozen=True):
    """`base/<id>/packs.json.zst`: every pack that a reference of the manifest or of its page maps names, runs rising."""

    schema: int = SCHEMA
    id: RunText
    runs: list[PacksOfRun]


class BaseVersions(Document, kw_only=True, frozen=True):
    """The programs and formats that made a base backup."""

    software: str
    server: str
    server_major: int
    control: int
    catalog: int


class Sizes(Document, kw_only=True, frozen=True):
    """The cluster's sizes, as pg_control has them. Bytes, but the last."""

    page_bytes: Count
    wal_page_bytes: Count
    segment_bytes: Count
    relation_segment_pages: Count


class ServerSettings(Document, kw_only=True, frozen=True):
    """The five settings that a restored server must have at least (rule 64), and wal_level."""

    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    wal_level: str


class PageCounts(Document, kw_only=True, frozen=True):
    """What became of the pages of a backup; zero pages are stored nowhere."""

    adopted: Count = 0
    new: Count = 0
    compacted: Count = 0
    aged: Count = 0
    healed: Count = 0
    zero: Count = 0
    damaged: Count = 0


Role = Literal["manifest", "details", "packs", "label", "tablespace_map", "server_manifest"]
"""What an object of a base backup is to it, as far as this version knows."""
Word = Annotated[str, msgspec.Meta(pattern=r"\A[a-z_]+\Z")]
"""One of a list that later versions may make longer."""
SOURCES = frozenset({"protocol", "files"})
"""How the files of a base backup came to us. One from elsewhere is of a newer version."""


class BaseObject(Document, kw_only=True, frozen=True):
    """One object of `base/<id>/` that the summary commits. Sizes in bytes; `plain_bytes` before compression.

    `role` is a `Role`, or a later version's: such an object is there as it was committed, and says nothing here.
    """

    key: str
    role: Word
    size_bytes: Count
    plain_bytes: Count
    sha256: Hex256


class BaseSummary(Document, kw_only=True, frozen=True):
    """`base/<id>/backup.json`: its existence commits the base backup; nothing in it is user data.

    `stopped_at` is the server's clock after the stop, which commit times are compared with; the other times are the store's.
    `ancestors` are those of its timeline, as the server's history has them: timeline and LSN; unset where nobody asked it.
    `source` is one of SOURCES, or a later version's. `first_link` and `last_link` are the links of its first and its last segment
    as they were when those were compared with the server's own; unset in those of before.
    """

    schema: int = SCHEMA
    kind: Literal["base"] = "base"
    id: RunText
    repository_id: str
    system_number: Annotated[int, msgspec.Meta(ge=1, le=9999)]
    system_id: SystemNumber
    begun_at: Time
    finished_at: Time
    versions: BaseVersions
    source: Word
    from_standby: bool
    timeline: Annotated[int, msgspec.Meta(ge=1)]
    ancestors: list[tuple[Annotated[int, msgspec.Meta(ge=1)], LsnText]] | msgspec.UnsetType = msgspec.UNSET
    start_lsn: LsnText
    stop_lsn: LsnText
    stopped_at: Time
    first_segment: str
    last_segment: str
    first_link: Hex128 | msgspec.UnsetType = msgspec.UNSET
    last_link: Hex128 | msgspec.UnsetType = msgspec.UNSET
    sizes: Sizes
    checksums: bool
    settings: ServerSettings
    parent: RunText | None
    recipients: list[str] = msgspec.field(default_factory=list)
    signed_by: str | None = None
    files: Count
    plain_bytes: Count
    stored_bytes: Count
    pages: PageCounts
    objects: list[BaseObject]
    warnings: Count

    @property
    def sealed(self) -> bool:
        """Whether reading it needs an identity."""
        return bool(self.recipients)

    def part(self, role: Role) -> BaseObject | None:
        """The object with that role."""
        return next((o for o in self.objects if o.role == role), None)


class DatabaseFingerprint(Document, kw_only=True, frozen=True):
    """One database of the cluster. Of one that accepts no connections, `extensions` and `collations` are null.

    `collation_version` is what it was made with; `collations` are the versioned ones that its columns use. Sizes in bytes.
    """

    name: str
    encoding: str
    collate: str
    ctype: str
    locale_provider: str
    collation_version: str | None
    tablespace: str
    size_bytes: int | None
    extensions: list[ExtensionRecord] | None
    collations: list[str] | None


class TablespaceRecord(Document, kw_only=True, frozen=True):
    """A tablespace with a folder of its own, and where that is on the server."""

    oid: int
    name: str
    path: str


class Fingerprint(Document, kw_only=True, frozen=True):
    """The cluster as its server described it: what a copy elsewhere must find alike.

    `libraries` are the versions of what sorts text (`glibc`, `icu`). `left_out` says what could not be asked, and why.
    """

    server: str
    settings: dict[str, str]
    libraries: dict[str, str]
    tablespaces: list[TablespaceRecord]
    databases: list[DatabaseFingerprint]
    left_out: list[str]


class ReadFrom(Document, kw_only=True, frozen=True):
    """The data folder whose files were read in place: of which machine, and which folder it is there.

    `clock_ns` is a time of the folder's file system, counted from 1970: nothing was read before it.
    """

    host: str
    path: str
    device: Count
    inode: Count
    clock_ns: int


class BaseDetails(Document, kw_only=True, frozen=True):
    """`base/<id>/details.zst[.age]`: what may name databases and paths: the texts of the warnings, and the fingerprint.

    `read_from` is of backups with the source `files` only.
    """

    schema: int = SCHEMA
    id: RunText
    warnings: list[str]
    fingerprint: Fingerprint
    read_from: ReadFrom | msgspec.UnsetType = msgspec.UNSET


class PruneRecord(Document, kw_only=True, frozen=True):
    """`prune/<id>.json`: what is doomed: ranges of pack numbers by run, and runs whose keys go.

    Its age is its Last-Modified.
    """

    schema: int = SCHEMA
    id: RunText
    doomed_at: Time
    packs: dict[RunText, list[tuple[Count, Count]]]
    keys: list[RunText]


class SnapshotRecord(Document, kw_only=True, frozen=True):
    """`snapshots/<name>.json`, reserved: what retention reads of it. Its WAL from start to stop stays.

    Its name is an id of the form that runs have. One that is being taken has another name, which this version reads past.
    """

    schema: int = SCHEMA
    kind: Literal["snapshot"] = "snapshot"
    system_id: SystemNumber
    timeline: Annotated[int, msgspec.Meta(ge=1)]
    start_lsn: LsnText
    stop_lsn: LsnText
    taken_at: Time


class VerifyMark(Document, kw_only=True, frozen=True):
    """`base/<id>/verify.json`: what the last `base verify` found. `share` of its packs' bytes was read; `damage` names keys.

    `begun_at` is when that verify began to look; unset where only what others found was written down.
    """

    schema: int = SCHEMA
    id: RunText
    begun_at: Time | msgspec.UnsetType = msgspec.UNSET
    verified_at: Time
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    damage: list[str]


register(*(kind for kind in Document.__subclasses__() if kind.__module__ == __name__))
