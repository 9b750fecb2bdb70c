"""Every setting, declared once: this module yields parsing, validation, `--help`, `settings` and docs/reference/settings.md.

Precedence: flag, environment, settings file or folder, `NAME_DEFAULT` in the environment, default. A settings file is TOML
(`NAME = "value"`); a folder holds one file per setting, the way Kubernetes mounts a ConfigMap. Unknown names are errors
there, and never in the environment: Kubernetes injects names like POSTGRES_PORT into every process. `NAME_DEFAULT` is for
whoever ships a deployment: it names what is usual there (PGHOST_DEFAULT=postgres) and yields to what a user writes into the
settings file.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipper_backup.errors import MissingError, UsageError
from clipper_backup.kinds import (
    KEY_PATH,
    NAMES,
    PATH,
    QUERIES,
    RECIPIENTS,
    SECRET,
    SIGNATURE_KEYS,
    SIZE,
    SWITCH,
    TEXT,
    URL,
    Kind,
    ValidationQuery,
    choice,
    integer,
)
from clipper_backup.values import Secret, show_names

CONFIG_VARIABLE = "CLIPPER_BACKUP_CONFIG"


CLIPPER_QUERIES = (
    ValidationQuery("clip count", "SELECT count(*) FROM public.clips", table=("public", "clips")),
    ValidationQuery("user count", "SELECT count(*) FROM public.users", table=("public", "users")),
)


def setting(default: Any, kind: Kind, meaning: str, why: str = "", *, section: str = "") -> Any:
    """Declare a setting: its default, kind, meaning (one sentence), and why the default is what it is.

    *section* begins a new section of the reference page; settings without one belong to the section before them.
    """
    return field(default=default, metadata={"kind": kind, "meaning": meaning, "why": why, "section": section})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, parsed. A field's name in upper case is the setting's name."""

    cloud_provider: str | None = setting(
        None, choice("gcp", "aws", "azure", "local"), "which kind of store BACKUP_BUCKET names", section="Where backups go"
    )
    backup_bucket: str | None = setting(
        None, TEXT, "the bucket, or for CLOUD_PROVIDER=local the folder, that holds the repository"
    )
    backup_url: str | None = setting(
        None,
        URL,
        "where the repository is: `file:///folder`, `s3://bucket/prefix`, `gs://…` or `az://…`; overrides CLOUD_PROVIDER and"
        " BACKUP_BUCKET",
    )
    backup_endpoint: str | None = setting(
        None,
        URL,
        "the URL of another server than the provider's own: S3-compatible, a private endpoint, an emulator (Azure's with the"
        " account's name after the host); AWS_ENDPOINT_URL and the like are not followed",
    )
    azure_storage_account: str | None = setting(None, TEXT, "the Azure storage account that holds BACKUP_BUCKET")
    s3_addressing_style: Literal["auto", "path", "virtual"] = setting(
        "auto",
        choice("auto", "path", "virtual"),
        "where the bucket's name goes in S3 requests: into the path, or before the host (`bucket.host`)",
        "auto is path with a BACKUP_ENDPOINT, as most servers want it, and virtual without one, as AWS wants it",
    )
    s3_bulk_delete: bool = setting(
        True,
        SWITCH,
        "whether many S3 objects are removed by one request, which carries a checksum",
        "no is for servers without DeleteObjects or without checksums",
    )
    store_conditional_create: bool = setting(
        True,
        SWITCH,
        "whether the store can create an object only where none is; with no, claims and listings stand in for it",
        "all three clouds can; a server that ignores the condition lets two jobs hold one lease",
    )
    store_ca_file: Path | None = setting(
        None, PATH, "file with certificate authorities (PEM) to trust besides the system's, for a store with a private one"
    )
    unsafe_http: bool = setting(
        False,
        SWITCH,
        "whether an http:// endpoint may be on another machine",
        "no: whoever can listen on the way would read the backups, and could change them",
    )
    store_max_bytes_per_second: int | None = setting(
        None, SIZE, "how much may pass to and from the store in a second, on average; unset means no limit"
    )
    store_timeout_seconds: int = setting(
        60,
        integer(1, 3600, "seconds"),
        "how long one request to the store may take",
        "a part of 8 MiB takes a minute at 1 Mbit/s; anything slower is broken",
    )
    store_retry_seconds: int = setting(
        180,
        integer(0, 3600, "seconds"),
        "how long a failing request is tried again before the command gives up; 0 tries once",
        "stores answer again within a minute or two after a restart or a throttled minute",
    )
    lease_seconds: int = setting(
        60,
        integer(2, 3600, "seconds"),
        "after how long without renewal a lease counts as abandoned; where its holder set it to more, after that",
        "renewed three times within it, so two lost renewals are survived",
    )
    backup_databases: tuple[str, ...] = setting(
        (),
        NAMES,
        "the databases to dump; empty means every one that accepts connections, is no template and not being restored",
        "a name with a comma stands in double quotes",
        section="What is dumped, and how",
    )
    dump_fingerprint: Literal["counts", "hash", "off"] = setting(
        "counts",
        choice("counts", "hash", "off"),
        "what is recorded of every table on the dump's snapshot: exact row counts, also a hash of all rows, or nothing",
        "counts cost one scan of each table; hash finds a single changed value and costs several times more",
    )
    validation_queries: tuple[ValidationQuery, ...] = setting(
        CLIPPER_QUERIES,
        QUERIES,
        "queries answered on the dump's snapshot and after a restore, one a line: `name: SELECT …` or `database/name: SELECT …`;"
        " an answer must depend on the rows alone, not on `now()` or `random()`",
        "counts of `clips` and `users`, where these tables exist",
    )
    dump_jobs: int = setting(
        1,
        integer(1, 64),
        "parallel table readers; more than 1 needs scratch space as large as the database",
        "1 streams without scratch space",
    )
    dump_compression_level: int = setting(
        1,
        integer(1, 19),
        "zstd level of dumps",
        "level 1 keeps up with pg_dump on one core; higher levels make it wait",
    )
    dump_compression_threads: int = setting(
        1,
        integer(1, 64),
        "threads that compress one dump",
        "at level 1 one keeps up with any single pg_dump; higher levels use more",
    )
    dump_lock_timeout_seconds: int = setting(
        600,
        integer(1, 86400, "seconds"),
        "how long to wait for the lock on a table that somebody is changing",
        "longer than a usual migration, shorter than the backup window",
    )
    scratch_dir: Path | None = setting(
        None,
        PATH,
        "folder for scratch files (DUMP_JOBS > 1, `dump restore --jobs`, SIGNATURE_KEYS); unset: the system's temporary folder",
    )
    pg_bindir: Path | None = setting(None, PATH, "folder with pg_dump, pg_dumpall, pg_restore and psql; unset: look for them")
    base_source: Literal["protocol", "files"] = setting(
        "protocol",
        choice("protocol", "files"),
        "how a base backup gets the server's files: over a replication connection, or by reading them in PGDATA, side by side",
        "protocol works from anywhere; files is for the server's own host or pod, and faster there",
        section="Base backups",
    )
    base_skip_unchanged: bool = setting(
        True,
        SWITCH,
        "whether BASE_SOURCE=files passes over files whose inode, size and times are those of the backup before, unread",
        "whoever changes a file behind the file system's back must say no",
    )
    base_checkpoint: Literal["fast", "spread"] = setting(
        "fast",
        choice("fast", "spread"),
        "the checkpoint that begins a base backup: at once, or spread over minutes, with less load on the server",
        "fast: nobody waits for a backup that has not begun; its load is that of the backup itself",
    )
    base_wal_wait_seconds: int = setting(
        3600,
        integer(1, 604800, "seconds"),
        "how long a base backup waits until all of its WAL is in the archive, before it counts as failed",
        "an archiver that was held up for an hour catches up in less",
    )
    max_pack_age_days: int = setting(
        14,
        integer(2, 3650, "days"),
        "how old a pack may be that a base backup takes pages from; what is older is stored anew",
        "it bounds the harm of one rotten object, and of a bucket's rule that deletes at 30 days",
    )
    archive_wait_seconds: int = setting(
        60,
        integer(1, 3600, "seconds"),
        "how long archive_command waits for the sidecar, and a restore for a segment that was claimed a moment ago",
        "a segment takes seconds; PostgreSQL asks again after a minute anyway",
        section="The WAL archive",
    )
    archive_jobs: int = setting(
        4,
        integer(1, 64),
        "how many segments `wal archive` reads and stores at a time",
        "four keep a store at some distance busy; each may take 20 MB of memory, 70 MB where WAL hardly compresses",
    )
    encryption_recipients: tuple[str, ...] = setting(
        (),
        RECIPIENTS,
        "the age X25519 keys (`age1…`) that dumps are sealed to, each opens them alone; `none` says that they are to be plain",
        "give two: the operator's, and that of a recovery key that is kept offline",
        section="Who can read it, and who vouches for it",
    )
    encryption_identity_file: Path | None = setting(
        None, KEY_PATH, "the file with the age identity that opens sealed dumps; needed to restore, not to dump"
    )
    signing_key_file: Path | None = setting(
        None,
        KEY_PATH,
        "the file with the Ed25519 private key (PEM) that signs every dump; its public key is then trusted; `none` says that"
        " dumps are to be unsigned",
    )
    signature_keys: tuple[str, ...] = setting(
        (),
        SIGNATURE_KEYS,
        "the public keys (`ed25519:…`) of which one must have signed a dump that is restored; unset, that of SIGNING_KEY_FILE",
    )
    retention_days: int = setting(30, integer(1, 36500, "days"), "how many days a dump is kept", section="How long it is kept")
    retention_min_dumps: int = setting(
        3,
        integer(1, 10000),
        "how many of the newest good dumps of each database are kept however old they are",
        "age alone must never delete the last good ones",
    )
    snapshot_retention_days: int = setting(
        14,
        integer(1, 36500, "days"),
        "how many days a volume snapshot is kept; the newest good one stays however old it is",
        "the source document's two weeks; older ones are what the dumps and base backups are for",
    )
    pitr_window_days: int = setting(
        7,
        integer(1, 36500, "days"),
        "how many days back every instant can be restored: base backups and WAL are kept for it, however old they are",
        "what went wrong on a Friday is found on a Monday; each day more costs a day's WAL",
    )
    dump_max_age_hours: int = setting(
        25,
        integer(1, 87600, "hours"),
        "how old the newest good dump may be before `status` and `doctor` say that one is missing",
        "dumps are taken daily and may run for an hour; the alert BackupJobFailed fires at this age too",
    )
    base_max_age_hours: int = setting(
        25,
        integer(1, 87600, "hours"),
        "how old the newest good base backup may be before `status` and `doctor` say that one is missing",
        "the nightly job takes one with each dump; whoever takes them weekly says so here",
    )
    verify_cycle_days: int = setting(
        7,
        integer(1, 365, "days"),
        "within how many days `verify` reads every stored byte once, in turn; it is run daily for that",
        "what the window of seven days needs is read while it is needed; each run reads a seventh of all",
    )
    rto_target_seconds: int = setting(
        3600,
        integer(1, 604800, "seconds"),
        "how long a restore may take: `job restore-test` warns when its own took longer",
        "the source document's target of an hour",
        section="How fast it must come back",
    )
    prometheus_pushgateway: str | None = setting(
        None,
        URL,
        "the Pushgateway that jobs report to, like http://prometheus-pushgateway.clipper-monitoring:9091; unset means nobody",
        section="Who is told",
    )
    volume_snapshot_class: str | None = setting(
        None,
        TEXT,
        "the VolumeSnapshotClass that volume snapshots are taken with; unset means the cluster's default one",
        "the classes of infrastructure/k8s/overlays are none's default, for that would decide for other tools too",
        section="Kubernetes",
    )
    snapshot_taken_seconds: int = setting(
        600,
        integer(1, 86400, "seconds"),
        "how long to wait until all volume snapshots are taken, which holds a backup open on the server",
        "a driver takes one in seconds; what takes minutes is a queue or an error",
    )
    snapshot_ready_seconds: int = setting(
        5400,
        integer(1, 604800, "seconds"),
        "how long to wait until they are ready to be restored from; the server is not held up by that",
        "clouds upload a snapshot first; the job's deadline is two hours",
    )
    pghost: str | None = setting(
        None, TEXT, "PostgreSQL's host or socket folder", section="PostgreSQL, with libpq's own names and meaning"
    )
    pgport: str | None = setting(None, TEXT, "PostgreSQL's port")
    pguser: str | None = setting(None, TEXT, "the role to connect as")
    pgpassword: Secret | None = setting(None, SECRET, "that role's password; a PGPASSFILE is better")
    pgpassfile: str | None = setting(None, TEXT, "a file with passwords, in libpq's format")
    pgdatabase: str | None = setting(None, TEXT, "the database to connect to first; unset means postgres, then template1")
    pgdata: Path | None = setting(
        None,
        PATH,
        "the data folder of the server beside us, as we see it, for `wal archive`, `wal serve` and BASE_SOURCE=files; unset, the"
        " last one reads where the server says that it is",
    )
    primary_conninfo: Secret | None = setting(
        None,
        SECRET,
        "how to reach the primary of the standby that is backed up, in libpq's words (`host=… user=…`): it is told to end its WAL"
        " segment; unset: somebody else does that",
    )
    pgsslmode: str | None = setting(
        None, choice("disable", "allow", "prefer", "require", "verify-ca", "verify-full"), "libpq's sslmode"
    )
    pgsslrootcert: str | None = setting(None, TEXT, "file with the certificate authority of the server's certificate")
    backup_role_password: Secret | None = setting(
        None, SECRET, "the password that `setup database --apply` gives the role of backups", section="Setting up PostgreSQL"
    )


@dataclass(frozen=True, slots=True)
class Declared:
    """The declaration of one setting, for help pages and the settings command."""

    section: str
    name: str
    field: str
    kind: Kind
    default: Any
    meaning: str
    why: str

    @property
    def flag(self) -> str:
        """The command-line flag that sets it, unless it is a secret."""
        return "--" + self.field.replace("_", "-")

    @property
    def switch(self) -> bool:
        """Whether its flag alone, without a value, means yes."""
        return self.kind is SWITCH

    @property
    def secret(self) -> bool:
        """Whether its value is never shown, nor taken from a command line."""
        return self.kind is SECRET

    def show(self, value: Any) -> str:
        """*value* for people, without secrets; empty for one that is not set."""
        return "" if value is None else self.kind.show(value)

    def public(self, value: Any) -> str | int | list[str] | None:
        """*value* for JSON, without secrets: numbers stay numbers, lists of names stay lists."""
        if isinstance(value, int) or value is None:
            return value
        return list(value) if self.kind in {NAMES, RECIPIENTS, SIGNATURE_KEYS} else self.kind.show(value)


def _declared() -> Iterator[Declared]:
    section = ""
    for each in dataclasses.fields(Settings):
        said = each.metadata
        section = said["section"] or section
        yield Declared(section, each.name.upper(), each.name, said["kind"], each.default, said["meaning"], said["why"])


DECLARED: tuple[Declared, ...] = tuple(_declared())
_BY_NAME = {declared.name: declared for declared in DECLARED}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each one that was set where it came from (`flag`, `environment`, or the file's path)."""

    settings: Settings
    origins: Mapping[str, str]


_NEVER_EMPTY = {
    "ENCRYPTION_RECIPIENTS": "say `none` for plain dumps",
    "ENCRYPTION_IDENTITY_FILE": "name a file",
    "SIGNING_KEY_FILE": "name a file",
    "SIGNATURE_KEYS": "name a public key",
}
"""Whoever wrote these meant to be protected: a value that got lost on its way must not switch that off."""


def load(flags: Mapping[str, str], environment: Mapping[str, str], config: Path | None = None) -> Loaded:
    """Parse and validate every setting before any work starts.

    *flags* maps setting names to text. *config* is a TOML file or a folder; unset, CLIPPER_BACKUP_CONFIG names it.
    An empty text means "not set", as an empty environment variable does for libpq, but for what protects the dumps.
    UsageError names the setting, where it came from, and what was expected; MissingError when the file is not there.
    """
    if config is None and (named := environment.get(CONFIG_VARIABLE)):
        config = Path(named)

    def there(name: str) -> bool:
        return name in environment and bool(environment[name] or name.removesuffix("_DEFAULT") in _NEVER_EMPTY)

    shipped = {name: f"{name}_DEFAULT" for name in _BY_NAME}
    texts = {name: (environment[variable], variable) for name, variable in shipped.items() if there(variable)}
    if config is not None:
        texts.update({name: (text, str(config)) for name, text in _read_config(config).items()})
    texts.update({name: (environment[name], "environment") for name in _BY_NAME if there(name)})
    texts.update({name: (text, "flag") for name, text in flags.items()})
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, (text, origin) in texts.items():
        declared = _BY_NAME[name]
        if not text.strip():
            if name in _NEVER_EMPTY:
                raise UsageError(f"{name} (from {origin}) is there but empty", hints=[f"leave it out, or {_NEVER_EMPTY[name]}"])
            continue
        try:
            values[declared.field] = declared.kind.parse(text.strip() if declared.kind is not SECRET else text.rstrip("\n"))
        except ValueError as error:
            shown = "" if declared.kind is SECRET else f": {error}"
            raise UsageError(f"bad value for {name} (from {origin}){shown}", hints=[f"{name}: {declared.meaning}"]) from None
        origins[name] = origin
    return Loaded(Settings(**values), origins)


def _read_config(config: Path) -> dict[str, str]:
    """The settings in a file or folder, by name; UsageError for unknown names and what is not text."""
    try:
        entries = _read_folder(config) if config.is_dir() else _read_toml(config)
    except OSError as error:
        hint = f"--config or {CONFIG_VARIABLE} names a TOML file, or a folder with one file per setting"
        raise MissingError(f"cannot read settings from {error.filename or config}: {error.strerror}", hints=[hint]) from error
    if unknown := sorted(set(entries) - set(_BY_NAME)):
        import difflib  # noqa: PLC0415  only for whoever mistyped

        similar = [other for name in unknown for other in difflib.get_close_matches(name.upper(), _BY_NAME, n=1)]
        raise UsageError(
            f"unknown setting {', '.join(unknown)} in {config}",
            hints=[*(f"did you mean {name}?" for name in similar), "`clipper-backup settings` lists every setting"],
        )
    return {name: _as_text(name, value, config) for name, value in entries.items()}


def _read_folder(config: Path) -> dict[str, Any]:
    # Kubernetes mounts a ConfigMap as links through `..data`; those hidden names are not settings.
    return {entry.name: _read_text(entry) for entry in sorted(config.iterdir()) if not entry.name.startswith(".")}


def _read_toml(config: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 - most processes are configured by their environment, and start faster without

    try:
        return tomllib.loads(_read_text(config))
    except tomllib.TOMLDecodeError as error:
        hints = ['one setting a line: RETENTION_DAYS = "30"']
        raise UsageError(f"the settings file {config} is not TOML: {error}", hints=hints) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the settings file {path} is not UTF-8 text") from error


def _as_text(name: str, value: object, config: Path) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return show_names(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int):
        return str(value)
    raise UsageError(f"bad value for {name} in {config}: text or a number is needed")


def repository_url(settings: Settings) -> str:
    """The URL of the repository: BACKUP_URL, or made of CLOUD_PROVIDER and BACKUP_BUCKET; UsageError without either."""
    if settings.backup_url is not None:
        return settings.backup_url
    hints = [
        "set BACKUP_URL=file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
        "or CLOUD_PROVIDER (gcp, aws, azure, local) and BACKUP_BUCKET",
    ]
    if settings.cloud_provider is None or settings.backup_bucket is None:
        raise UsageError("no repository is configured", hints=hints)
    scheme = {"gcp": "gs", "aws": "s3", "azure": "az", "local": "file"}[settings.cloud_provider]
    return f"{scheme}://{settings.backup_bucket}"
