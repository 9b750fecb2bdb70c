"""What a server says of itself that matters before it is started with the settings and the pg_hba.conf of our manifest."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from clipper_backup.postgres.connection import Connection, rows, translated

_SETTINGS = ["wal_level", "archive_mode", "archive_command", "archive_library", "max_wal_senders", "data_directory"]


@dataclass(frozen=True, slots=True)
class PitrFacts:
    """`settings` has those of its settings that the role may see; `is_musl` says which C library the server was built for.

    `md5_roles` have a stored password that no scram line takes; None where the role may not look. `wal_bytes_per_hour` is the
    average since the statistics began, None where they began just now.
    """

    settings: dict[str, str]
    is_musl: bool
    in_recovery: bool
    may_replicate: bool
    user: str
    md5_roles: tuple[str, ...] | None
    wal_bytes_per_hour: int | None


@dataclass(frozen=True, slots=True)
class HbaRule:
    """A line of pg_hba.conf, as pg_hba_file_rules tells it; `line` is how one would write it."""

    type: str
    databases: tuple[str, ...]
    users: tuple[str, ...]
    address: str
    method: str
    options: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """As it stands in a file."""
        words = [self.type, ",".join(self.databases), ",".join(self.users), self.address, self.method, *self.options]
        return "  ".join(word for word in words if word)


def read_pitr_facts(connection: Connection) -> PitrFacts:
    """Ask the server."""
    with translated("asking for the server's settings"):
        found: dict[str, str] = dict(rows(connection, "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [_SETTINGS]))
        ((version, in_recovery, user, may),) = rows(
            connection,
            "SELECT version(), pg_is_in_recovery(), current_user::text,"
            " (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)",
        )
        ((per_hour,),) = rows(
            connection,
            "SELECT (wal_bytes * 3600 / nullif(floor(extract(epoch FROM now() - stats_reset)), 0))::bigint FROM pg_stat_wal",
        )
        try:
            stored = rows(
                connection, "SELECT rolname::text FROM pg_authid WHERE rolcanlogin AND left(rolpassword, 3) = 'md5' ORDER BY 1"
            )
        except psycopg.errors.InsufficientPrivilege:
            md5_roles = None
        else:
            md5_roles = tuple(name for (name,) in stored)
    return PitrFacts(found, "-musl" in version, in_recovery, bool(may), user, md5_roles, per_hour)


def read_hba_rules(connection: Connection) -> list[HbaRule] | None:
    """The rules of the server's own pg_hba.conf, in order; None where the role may not look."""
    with translated("looking at pg_hba.conf"):
        try:
            found = rows(
                connection,
                "SELECT type, database, user_name, address, netmask, auth_method, options FROM pg_hba_file_rules"
                " WHERE error IS NULL ORDER BY line_number",
            )
        except psycopg.errors.InsufficientPrivilege:
            return None
    return [
        HbaRule(kind, tuple(databases), tuple(users), _network(address, mask), method, tuple(options or ()))
        for kind, databases, users, address, mask, method, options in found
    ]


def parse_hba(text: str) -> list[HbaRule]:
    """The rules of a pg_hba.conf of our own: plain words, no quotes, no includes, no options."""
    rules = []
    for line in text.splitlines():
        if words := line.partition("#")[0].split():
            kind, databases, users, *address, method = words
            where = address[0] if address else ""
            rules.append(HbaRule(kind, tuple(databases.split(",")), tuple(users.split(",")), where, method))
    return rules


def missing_rules(theirs: Sequence[HbaRule], ours: Sequence[HbaRule]) -> list[HbaRule]:
    """Those of *theirs* of which *ours* has no line that takes all whom it takes, in the same way.

    A line that asks for md5 takes scram passwords too, and so is covered by one that asks for scram.
    """
    return [rule for rule in theirs if not any(_covers(each, rule) for each in ours)]


def _covers(ours: HbaRule, theirs: HbaRule) -> bool:
    databases = theirs.databases == ours.databases or (ours.databases == ("all",) and "replication" not in theirs.databases)
    users = ours.users in {theirs.users, ("all",)}
    kinds = theirs.type == ours.type or (ours.type == "host" and theirs.type in {"hostssl", "hostnossl"})
    methods = theirs.method == ours.method or (ours.method == "scram-sha-256" and theirs.method == "md5")
    return databases and users and kinds and methods and _within(theirs.address, ours.address) and not theirs.options


def _within(theirs: str, ours: str) -> bool:
    if theirs == ours or (ours == "all" and theirs):
        return True
    try:
        inner, outer = ipaddress.ip_network(theirs), ipaddress.ip_network(ours)
    except ValueError:  # a name, or `samenet`
        return False
    return inner.version == outer.version and inner.network_address in outer and inner.prefixlen >= outer.prefixlen


def _network(address: str | None, mask: str | None) -> str:
    """`10.0.0.0/8` of an address and its mask; a name, `all` or `samenet` as it is; empty for `local`."""
    if address is None or mask is None:
        return address or ""
    return f"{address}/{int(ipaddress.ip_address(mask)).bit_count()}"
