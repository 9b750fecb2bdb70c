"""The server that is dumped, as found before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipper_backup.config import Settings
from clipper_backup.errors import MissingError
from clipper_backup.format import names
from clipper_backup.ops.keys import Sealer, sealer_of, signer_of
from clipper_backup.ops.work import login_of
from clipper_backup.postgres import server_facts
from clipper_backup.postgres.binaries import Binaries, find_binaries
from clipper_backup.postgres.connection import Login, connect
from clipper_backup.values import show_names

if TYPE_CHECKING:
    from clipper_backup.format.signing import SigningKey

_TOOLS = ("pg_dump", "pg_dumpall", "pg_restore")


@dataclass(frozen=True, slots=True)
class Source:
    """Login, server, client programs and the databases to dump.

    `maintenance` is a database that can be connected to; `passwords` says whether the role may read the roles' passwords.
    With a `sealer` all that is user data is sealed, with a `signing` key the summary is signed.
    """

    login: Login
    facts: server_facts.ServerFacts
    binaries: Binaries
    databases: Sequence[str]
    maintenance: str
    passwords: bool
    sealer: Sealer | None
    signing: "SigningKey | None"

    def named(self, part: str) -> str:
        """How the name of an object ends that holds user data."""
        return part if self.sealer is None else part + names.SEALED


def look_at_source(settings: Settings) -> Source:
    """Everything that can be wrong before anything is written: keys, login, databases, client programs."""
    sealer, signing = sealer_of(settings), signer_of(settings)
    login = login_of(settings)
    with connect(login) as connection:
        facts = server_facts.server_facts(connection)
        present = server_facts.connectable_databases(connection)
        passwords = server_facts.may_read_passwords(connection)
        maintenance = connection.info.dbname
    wanted = list(settings.backup_databases) or present
    if absent := [name for name in wanted if name not in present]:
        raise MissingError(
            f"database {show_names(absent)} does not exist on {login.where}, or accepts no connections",
            hints=[f"it has {show_names(present) or 'none'}; check BACKUP_DATABASES"],
        )
    if not wanted:
        raise MissingError(f"there is no database to dump on {login.where}", hints=["every database is a template or closed"])
    binaries = find_binaries(tools=_TOOLS, at_least=facts.major, bindir=settings.pg_bindir, environment=login.environment())
    return Source(login, facts, binaries, wanted, maintenance, passwords, sealer, signing)
