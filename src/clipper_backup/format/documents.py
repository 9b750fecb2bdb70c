"""The JSON documents of a repository, and how they are read: unknown fields are kept out, newer versions refused.

Documents are additive within one `schema` number: a reader ignores fields it does not know.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from clipper_backup.errors import IntegrityError, StoreError
from clipper_backup.values import DumpId

SCHEMA = 1
FORMAT_VERSION = 1
FEATURES: frozenset[str] = frozenset()
"""Feature flags this version understands; a repository that requires another one is refused."""

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A moment with its zone: one without could not be compared with the others."""
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Document(msgspec.Struct, kw_only=True, frozen=True):
    """What all documents share."""


class Repository(Document, kw_only=True, frozen=True):
    """`repository.json`: what this store is. `system_ids` grows when a cluster is upgraded (empty until a physical write)."""

    id: str
    format_version: int = FORMAT_VERSION
    min_reader_version: int = FORMAT_VERSION
    min_writer_version: int = FORMAT_VERSION
    required_features: list[str] = msgspec.field(default_factory=list)
    system_ids: list[str] = msgspec.field(default_factory=list)
    created_at: Time
    created_by: str


class Intent(Document, kw_only=True, frozen=True):
    """`<id>.intent`: who is writing this dump."""

    schema: int = SCHEMA
    run_id: str
    holder: str
    software: str
    begun_at: Time


class StoredObject(Document, kw_only=True, frozen=True):
    """One object that a summary commits. Sizes in bytes; `plain_bytes` before compression."""

    key: str
    role: Literal["database", "globals", "details"]
    database: str | None = None
    archive: Literal["custom", "directory"] | None = None
    size_bytes: int
    plain_bytes: int
    sha256: str


class Versions(Document, kw_only=True, frozen=True):
    """The programs and server that made a dump."""

    software: str
    client: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,3}")]
    server: str
    server_major: int

    @property
    def needed_major(self) -> int:
        """The oldest pg_restore that reads the archives: its archive format is that of the pg_dump that wrote them."""
        client_major = re.match("[0-9]{1,3}", self.client)  # of 18.6, and of 19beta1
        assert client_major is not None  # noqa: S101  the pattern of the field
        return max(self.server_major, int(client_major[0]))


class DumpSummary(Document, kw_only=True, frozen=True):
    """`<id>.backup.json`: small, readable by people, holds no user data; its existence commits the dump.

    `rows` is the number of rows in all tables together, None with DUMP_FINGERPRINT=off and when it is sealed. `recipients` are
    the age keys that it is sealed to, none when it is not. `signed_by` is the public key whose signature lies beside it: what
    it says of itself, which only that signature shows to be so.
    """

    schema: int = SCHEMA
    kind: Literal["dump"] = "dump"
    id: str
    repository_id: str
    begun_at: Time
    finished_at: Time
    versions: Versions
    system_id: str | None
    from_standby: bool
    fingerprint: Literal["counts", "hash", "off"]
    rows: int | None
    recipients: list[str] = msgspec.field(default_factory=list)
    signed_by: str | None = None
    objects: list[StoredObject]
    warnings: list[str]

    @property
    def databases(self) -> list[str]:
        """Names of the databases in it."""
        return [o.database for o in self.objects if o.database is not None]

    @property
    def taken_at(self) -> datetime:
        """When it was begun, as its id says: by the store's clock, like retention. Its snapshots came after."""
        return DumpId.parse(self.id).at

    @property
    def sealed(self) -> bool:
        """Whether reading it needs an identity."""
        return bool(self.recipients)

    @property
    def stored_bytes(self) -> int:
        """Size of all its objects in the store."""
        return sum(o.size_bytes for o in self.objects)

    @property
    def plain_bytes(self) -> int:
        """Size of all its objects before compression."""
        return sum(o.plain_bytes for o in self.objects)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.finished_at - self.begun_at).total_seconds()

    def archive_of(self, database: str) -> StoredObject | None:
        """The archive of one database."""
        return next((o for o in self.objects if o.role == "database" and o.database == database), None)

    def part(self, role: Literal["globals", "details"]) -> StoredObject | None:
        """The object with that role."""
        return next((o for o in self.objects if o.role == role), None)


class TableRecord(Document, kw_only=True, frozen=True):
    """One table on the dump's snapshot; `oid` is the one its archive entry names.

    `rows` and `hash` are None where they were not recorded. `moves_below` is the topmost parent (schema and name) that is
    partitioned by hash of an enum: a restore may put the rows into other partitions below it, since that hash depends on object
    ids. `loaded_through` is then the root of the partitions, under whose name the rows stand in the archive.
    """

    oid: int
    schema: str
    name: str
    rows: int | None = None
    hash: str | None = None
    condition: str | None = None
    moves_below: tuple[str, str] | None = None
    loaded_through: tuple[str, str] | None = None


class SequenceRecord(Document, kw_only=True, frozen=True):
    """A sequence as the archive's own SEQUENCE SET entry will set it."""

    schema: str
    name: str
    last_value: int
    is_called: bool


class ExtensionRecord(Document, kw_only=True, frozen=True):
    """An installed extension."""

    name: str
    version: str
    schema: str


class QueryRecord(Document, kw_only=True, frozen=True):
    """A validation query, the search_path it was asked with, and its answer: the values of its first row as text."""

    name: str
    sql: str
    search_path: str = ""
    answer: list[str | None]


class Grant(Document, kw_only=True, frozen=True):
    """One privilege on a database; `grantee` None is PUBLIC."""

    grantee: str | None
    grantor: str
    privilege: str
    grantable: bool


class RoleSetting(Document, kw_only=True, frozen=True):
    """`ALTER DATABASE … SET` (role None) or `ALTER ROLE … IN DATABASE … SET`, as `name=value`."""

    role: str | None
    setting: str


class DatabaseProperties(Document, kw_only=True, frozen=True):
    """What CREATE DATABASE and ALTER DATABASE must say to make the same database; pg_restore into a new name says none of it."""

    owner: str
    encoding: str
    collate: str
    ctype: str
    locale_provider: Literal["c", "i", "b"]
    locale: str | None
    icu_rules: str | None
    collation_version: str | None
    connection_limit: int
    comment: str | None
    grants: list[Grant] | None
    settings: list[RoleSetting]


class DatabaseRecord(Document, kw_only=True, frozen=True):
    """Everything that was recorded on one database's snapshot. Sizes in bytes."""

    name: str
    properties: DatabaseProperties
    snapshot: str
    lsn_before: str | None
    lsn_after: str | None
    size_bytes: int
    tables: list[TableRecord]
    sequences: list[SequenceRecord]
    large_objects: int | None
    large_objects_hash: str | None = None
    extensions: list[ExtensionRecord]
    collations: list[str]
    queries: list[QueryRecord]

    @property
    def rows(self) -> int | None:
        """Rows of all its tables together; None where they were not counted."""
        counted = [table.rows for table in self.tables]
        return None if None in counted else sum(rows or 0 for rows in counted)


class DumpDetails(Document, kw_only=True, frozen=True):
    """`<id>.details.zst[.age]`: what a restore is compared with. Holds user data (counts, answers).

    `warnings` are those of a sealed dump; a plain one has them in its summary.
    """

    schema: int = SCHEMA
    id: str
    databases: list[DatabaseRecord]
    warnings: list[str] = msgspec.field(default_factory=list)

    def database(self, name: str) -> DatabaseRecord | None:
        """The record of one database."""
        return next((d for d in self.databases if d.name == name), None)


class KeyCheck(Document, kw_only=True, frozen=True):
    """`key-checks/<recipient>`: when somebody last showed that this key opens what is stored, and with what.

    `dump_id` is empty where no dump was sealed; `base_backup` (an id) and `segment` (a name) are unset where there was none.
    """

    schema: int = SCHEMA
    recipient: str
    dump_id: str
    base_backup: str | msgspec.UnsetType = msgspec.UNSET
    segment: str | msgspec.UnsetType = msgspec.UNSET
    checked_at: Time
    checked_by: str


class RetentionMark(Document, kw_only=True, frozen=True):
    """`retention.json`: the RETENTION_DAYS of the last prune, so that a lower one is announced before it deletes.

    `pitr_window_days`: the PITR_WINDOW_DAYS of the last prune of base backups and WAL, the same; unset before the first.
    """

    schema: int = SCHEMA
    retention_days: int
    pruned_at: Time
    pitr_window_days: int | msgspec.UnsetType = msgspec.UNSET


class HoldMark(Document, kw_only=True, frozen=True):
    """`holds/<id>`: somebody wants this kept.

    `wal_to`, of a base backup only: a timeline (eight digits) and an LSN, to which the WAL behind the backup is kept too.
    """

    schema: int = SCHEMA
    reason: str
    held_by: str
    held_at: Time
    wal_to: tuple[str, str] | msgspec.UnsetType = msgspec.UNSET


class LeaseHolder(Document, kw_only=True, frozen=True):
    """`locks/<name>/<epoch>/holder`: who holds a lease, for people and for telling our own epochs from others'.

    `lease_seconds` is the LEASE_SECONDS that its holder renews by; whoever has fewer waits for that long.
    """

    schema: int = SCHEMA
    run_id: str
    holder: str
    purpose: str
    lease_seconds: float | None = None


class Rotation(Document, kw_only=True, frozen=True):
    """Which turns of one kind of unit were read, without a break: those behind `covered_since`, up to `covered_until`.

    `all_read_at`: when the last run that read every unit of the kind began; unset before the first.
    """

    covered_since: Time
    covered_until: Time
    all_read_at: Time | msgspec.UnsetType = msgspec.UNSET


class VerifiedKind(Document, kw_only=True, frozen=True):
    """What a `verify` saw of one kind of unit. Sizes in bytes.

    `covered_bytes` were read within the cycle, for sure; `owed_bytes` are older than a cycle and were not. `damaged` are those
    that it found, or found to be so still.
    """

    units: NotNegative
    size_bytes: NotNegative
    read_units: NotNegative
    read_bytes: NotNegative
    covered_bytes: NotNegative
    owed_bytes: NotNegative
    damaged: NotNegative
    rotation: Rotation | None


class VerifyDamage(Document, kw_only=True, frozen=True):
    """What is wrong with one thing: the key of its unit, or of the object. No path, table or row stands in the text."""

    key: str
    text: str


class VerifyReport(Document, kw_only=True, frozen=True):
    """`verify/report.json`: what the last `verify` found, and from where the next one goes on.

    `mode` is a word of this version's (rotation, sample, all) or of a later one. `damaged` counts all of the damage, of which
    `damage` holds the first.
    """

    schema: int = SCHEMA
    kind: Literal["verify-report"] = "verify-report"
    begun_at: Time
    ended_at: Time
    software: str
    mode: str
    cycle_days: Annotated[int, msgspec.Meta(ge=1)]
    dumps: VerifiedKind
    packs: VerifiedKind
    wal: VerifiedKind
    damaged: NotNegative
    damage: list[VerifyDamage]


class StepTime(Document, kw_only=True, frozen=True):
    """One step of a restore test that was begun, by its name, and how long it took."""

    name: str
    seconds: float


class RestoreTestReport(Document, kw_only=True, frozen=True):
    """`restore-tests/<id>/report.json`: what a restore test did; no name, count or word of an error, for it is not sealed.

    `seconds` is from the download until the data was validated, None when it failed; `failed_step` is the name of the step at
    which it did, with that `exit_code`.
    """

    schema: int = SCHEMA
    kind: Literal["restore-test"] = "restore-test"
    id: str
    tested: str = "dump"
    dump: str | None
    begun_at: Time
    software: str
    result: Literal["passed", "failed"]
    failed_step: str | None
    exit_code: int
    seconds: float | None
    target_seconds: int
    steps: list[StepTime]


class NewerError(StoreError):
    """Something that a newer version wrote, and this one cannot read: it may be good all the same, and is no damage."""


def written_by_newer(what: str, why: str) -> NewerError:
    """The refusal of *what*; *why* says what of it is not known here."""
    return NewerError(
        f"{what} was written by a newer version ({why})",
        hints=["install the version of clipper-backup that wrote it, or a newer one"],
    )


D = TypeVar("D", bound=Document)


def encode(document: Document) -> bytes:
    """A document as indented JSON with a newline at the end: people read these in their bucket."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def encode_compact(document: Document) -> bytes:
    """The same on one line: of documents that there are millions of."""
    return msgspec.json.encode(document)


def decode(data: bytes, kind: type[D], key: str) -> D:
    """Read a document; IntegrityError when it is damaged, NewerError when a newer version wrote it."""
    try:
        head: _Head = _DECODERS[_Head].decode(data)
        if head.schema > SCHEMA:
            raise written_by_newer(key, f"schema {head.schema}, this one reads up to {SCHEMA}")
        lacking = _NEVER_IMPLIED.intersection(kind.__struct_fields__) - {name for name in _NEVER_IMPLIED if getattr(head, name)}
        if lacking:
            raise IntegrityError(f"{key} is damaged: it has no {' and no '.join(sorted(lacking))}")
        document: D = _DECODERS[kind].decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"{key} is damaged: {error}") from error
    else:
        return document


class _Head(msgspec.Struct):
    """What tells documents apart. 0 and the empty text stand for what is not there."""

    schema: Annotated[int, msgspec.Meta(ge=0)] = 0
    kind: str = ""


_NEVER_IMPLIED = frozenset({"schema", "kind"})
"""Writers give them by themselves; a document that lacks them is none of ours."""


# Made while this is imported, by one thread: the first look at a type fills it in, and msgspec (0.22) crashes when two threads
# meet there.
_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}


def register(*kinds: type[msgspec.Struct]) -> None:
    """Make the decoders of documents that a module declares: called once, while that module is imported."""
    _DECODERS.update((kind, msgspec.json.Decoder(kind)) for kind in kinds)


register(_Head, *Document.__subclasses__())
