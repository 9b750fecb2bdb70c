"""What a restore on another machine must know of a cluster, asked before its base backup: sizes, settings, libraries, collations.

Also its configuration outside PGDATA or behind links, which no base backup holds (rule 17). What the role may not see is left
out and said.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath

import psycopg

from clipper_backup.errors import ClipperError
from clipper_backup.postgres import server_facts
from clipper_backup.postgres.connection import Connection, Login, connect, query_error, rows, translated

NEEDED_AT_RECOVERY = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
"""A server in recovery must have at least as much of these as the one whose WAL it reads (rule 64)."""
_SETTINGS = (
    *NEEDED_AT_RECOVERY, "wal_level", "archive_mode", "archive_library", "full_page_writes", "wal_log_hints", "wal_compression",
    "max_wal_size", "shared_buffers", "huge_pages", "shared_preload_libraries", "session_preload_libraries",
    "local_preload_libraries", "dynamic_library_path", "extension_control_path", "jit_provider", "data_directory", "config_file",
    "hba_file", "ident_file", "unix_socket_directories", "listen_addresses", "port", "ssl", "ssl_cert_file", "ssl_key_file",
    "ssl_ca_file", "hot_standby", "server_encoding", "lc_messages", "lc_monetary", "lc_numeric", "lc_time", "TimeZone",
    "log_timezone", "default_text_search_config", "default_tablespace", "temp_tablespaces", "allow_in_place_tablespaces",
)  # fmt: skip
"""Those that decide whether a restored copy starts elsewhere, and finds what it names (rules 64, 66). None holds a secret."""
_FILE_BYTES_MAX = 1 << 20
"""Of a configuration file; larger ones are none."""
_VERSIONS = {
    "glibc": "SELECT pg_collation_actual_version(oid) FROM pg_collation WHERE collprovider = 'c' AND collname = 'en_US.utf8'"
    " UNION ALL SELECT pg_collation_actual_version(oid) FROM pg_collation WHERE collprovider = 'c' AND collversion IS NOT NULL",
    "icu": "SELECT pg_collation_actual_version(oid) FROM pg_collation WHERE collprovider = 'i' LIMIT 1",
}
"""What sorts text, by asking for the version of one collation of each kind."""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """One database. What was not asked, since it accepts no connections, is None. `extensions`: name, version, schema.

    `collation_version` is what it was made with, `collations` are the versioned ones its columns use.
    """

    name: str
    encoding: str
    collate: str
    ctype: str
    locale_provider: str
    collation_version: str | None
    tablespace: str
    size_bytes: int | None
    extensions: Sequence[tuple[str, str, str]] | None = None
    collations: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class TablespaceFacts:
    """A tablespace with a folder of its own."""

    oid: int
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The cluster as its server describes it. Sizes in bytes, but `relation_segment_pages`.

    `libraries` are versions of what sorts text (glibc, icu), `left_out` says what the role may not see.
    """

    version: str
    major: int
    version_text: str
    in_recovery: bool
    now: datetime
    page_bytes: int
    wal_page_bytes: int
    segment_bytes: int
    relation_segment_pages: int
    checksums: bool
    archiving: bool
    settings: dict[str, str]
    libraries: dict[str, str]
    tablespaces: Sequence[TablespaceFacts]
    databases: Sequence[DatabaseFacts] = ()
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OutsideFile:
    """A configuration file that does not lie in PGDATA, as it was when it was read."""

    path: str
    content: bytes
    modified_at: datetime


def cluster_facts(login: Login) -> ClusterFacts:
    """Ask the server, and each of its databases."""
    with closing(connect(login)) as connection:
        facts = _of_server(connection)
        names = server_facts.connectable_databases(connection)
    asked = {name: _of_database(login, name, facts.left_out) for name in names}
    databases = [
        DatabaseFacts(d.name, d.encoding, d.collate, d.ctype, d.locale_provider, d.collation_version, d.tablespace, d.size_bytes,
                      *(asked.get(d.name) or (None, None)))
        for d in facts.databases
    ]  # fmt: skip
    values = {name: getattr(facts, name) for name in ClusterFacts.__slots__}
    return ClusterFacts(**values | {"databases": databases})


def is_archiving(login: Login) -> bool:
    """Whether the server archives its WAL at all: only then is a base backup of use."""
    with closing(connect(login)) as connection, translated("asking whether the server archives its WAL"):
        ((mode,),) = rows(connection, "SELECT current_setting('archive_mode')")
    return bool(mode != "off")


def archiver_failure(login: Login) -> str | None:
    """What the archiver says of its last failure, when nothing succeeded since; None when all is well, or is not known."""
    with closing(connect(login)) as connection, translated("asking the archiver"):
        found = rows(
            connection,
            "SELECT format('archiving %s failed %s times, last at %s', last_failed_wal, failed_count, last_failed_time)"
            " FROM pg_stat_archiver WHERE last_failed_time > coalesce(last_archived_time, '-infinity')",
        )
    return str(found[0][0]) if found else None


def databases_placed(login: Login) -> dict[int, int]:
    """The OID of each database, and of the tablespace that it lies in; without those whose DROP was not finished."""
    with closing(connect(login)) as connection, translated("asking for the server's databases"):
        found = rows(connection, "SELECT oid::bigint, dattablespace::bigint FROM pg_database WHERE datconnlimit <> -2")
    return {int(oid): int(tablespace) for oid, tablespace in found}


def server_now(login: Login) -> datetime:
    """The server's clock, by which commits are timed."""
    with closing(connect(login)) as connection, translated("asking the server for its time"):
        ((now,),) = rows(connection, "SELECT clock_timestamp()")
    moment: datetime = now
    return moment.astimezone(UTC)


def server_address(login: Login) -> str | None:
    """The address at which the server takes our connection; None on a socket."""
    with closing(connect(login)) as connection, translated("asking the server for its address"):
        ((address,),) = rows(connection, "SELECT host(inet_server_addr())")
    return None if address is None else str(address)


def _of_server(connection: Connection) -> ClusterFacts:
    basic = server_facts.server_facts(connection)
    left_out: list[str] = []
    with translated("asking the server about its cluster"):
        ((text, now),) = rows(connection, "SELECT version(), clock_timestamp()")
        settings = _settings(connection, *_SETTINGS)
        unseen = [name for name in ("data_directory", "config_file", "shared_preload_libraries") if name not in settings]
        if unseen:
            left_out.append(f"the settings {', '.join(unseen)} are hidden from this role: it needs pg_read_all_settings")
        sizes = _settings(connection, "block_size", "wal_block_size", "wal_segment_size", "segment_size", "data_checksums")
        tablespaces = [
            TablespaceFacts(int(oid), name, path)
            for oid, name, path in rows(
                connection,
                "SELECT oid::bigint, spcname::text, pg_tablespace_location(oid) FROM pg_tablespace"
                " WHERE pg_tablespace_location(oid) <> '' ORDER BY oid",
            )
        ]
        databases = [DatabaseFacts(*row) for row in rows(
            connection,
            "SELECT d.datname::text, pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text,"
            " d.datlocprovider::text, d.datcollversion, t.spcname::text,"
            " CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') OR has_database_privilege(d.oid, 'CONNECT')"
            " THEN pg_database_size(d.oid) END"
            " FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace ORDER BY 1",
        )]  # fmt: skip
    return ClusterFacts(
        version=basic.version,
        major=basic.major,
        version_text=str(text),
        in_recovery=basic.in_recovery,
        now=now,
        page_bytes=int(sizes["block_size"]),
        wal_page_bytes=int(sizes["wal_block_size"]),
        segment_bytes=int(sizes["wal_segment_size"]),
        relation_segment_pages=int(sizes["segment_size"]),
        checksums=sizes["data_checksums"] == "on",
        archiving=settings.get("archive_mode", "off") != "off",
        settings=settings,
        libraries=_libraries(connection),
        tablespaces=tablespaces,
        databases=databases,
        left_out=left_out,
    )


def _settings(connection: Connection, *names: str) -> dict[str, str]:
    """Those that the role may see."""
    return dict(rows(connection, "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(names)]))


def _libraries(connection: Connection) -> dict[str, str]:
    found: dict[str, str] = {}
    with translated("asking what sorts text"):
        for name, statement in _VERSIONS.items():
            version = next((version for (version,) in connection.execute(statement.encode()) if version), None)
            if version is not None:
                found[name] = version
    return found


def _of_database(login: Login, name: str, left_out: list[str]) -> tuple[Sequence[tuple[str, str, str]], Sequence[str]] | None:
    """Extensions and collations; None, said in *left_out*, when the role may not connect."""
    try:
        with closing(connect(login, name)) as connection:
            return server_facts.installed_extensions(connection), server_facts.used_collations(connection)
    except ClipperError as error:
        left_out.append(f"extensions and collations of database {name}: {error}")
        return None


def outside_files(login: Login, left_out: list[str], inside: Container[str]) -> list[OutsideFile]:
    """The configuration files outside PGDATA, by path; what cannot be read is said in *left_out*.

    *inside* are the files of PGDATA that the backup holds: what is not among them lies elsewhere, behind a link.
    """
    with closing(connect(login)) as connection:
        return [*_outside(connection, left_out, inside)]


def _outside(connection: Connection, left_out: list[str], inside: Container[str]) -> Iterator[OutsideFile]:
    directory, paths = _configuration(connection, left_out)
    if directory is None:
        left_out.append("configuration outside PGDATA: this role may not see where it is, it needs pg_read_all_settings")
        return
    for path in sorted(paths):
        below = PurePosixPath(path).is_relative_to(directory)
        if below and str(PurePosixPath(path).relative_to(directory)) in inside:
            continue
        try:
            found = rows(
                connection,
                "SELECT pg_read_binary_file(%s, 0, %s, true), s.modification FROM pg_stat_file(%s, true) s",
                [path, _FILE_BYTES_MAX + 1, path],
            )
        except psycopg.errors.InsufficientPrivilege:
            left_out.append(f"{path}: it takes pg_read_server_files and EXECUTE on pg_read_binary_file to read it")
            continue
        except psycopg.Error as error:
            raise query_error(f"reading {path}", error) from error
        content, modified_at = found[0]
        if content is None or modified_at is None:
            if not below:
                left_out.append(f"{path}: the server names it, and it does not exist")
        elif len(content) > _FILE_BYTES_MAX:
            left_out.append(f"{path}: it has more than {_FILE_BYTES_MAX} bytes, so it is no configuration file")
        else:
            yield OutsideFile(path, bytes(content), modified_at)


def _configuration(connection: Connection, left_out: list[str]) -> tuple[str | None, set[str]]:
    """PGDATA, and all files that the configuration is made of, included ones too where the role may see them."""
    with translated("asking where the configuration is"):
        named = _settings(connection, "data_directory", "config_file", "hba_file", "ident_file")
        paths = {path for name, path in named.items() if name != "data_directory" and path}
        for view, column in (("pg_file_settings", "sourcefile"), ("pg_hba_file_rules", "file_name")):
            try:
                if rows(connection, "SELECT 1 FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s", [view, column]):
                    statement = f"SELECT DISTINCT {column} FROM {view} WHERE {column} IS NOT NULL"  # noqa: S608  literals above
                    paths |= {path for (path,) in connection.execute(statement.encode())}
            except psycopg.errors.InsufficientPrivilege:
                left_out.append(f"files that the configuration includes: this role may not read {view}")
    return named.get("data_directory"), paths
