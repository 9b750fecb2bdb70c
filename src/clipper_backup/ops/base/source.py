"""The server that is backed up, and with which keys, as found before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clipper_backup.clock import Clock
from clipper_backup.config import Settings
from clipper_backup.errors import ServerError
from clipper_backup.ops.keys import Sealer, sealer_of, signer_of
from clipper_backup.ops.work import login_of
from clipper_backup.postgres.cluster_facts import ClusterFacts, cluster_facts
from clipper_backup.postgres.connection import Login, login_of_conninfo
from clipper_backup.postgres.data_folder import DataFolder
from clipper_backup.postgres.data_proof import check_is_servers, find_data_folder
from clipper_backup.postgres.files_backup import ServerFolder
from clipper_backup.postgres.history import Ancestor
from clipper_backup.postgres.primary import check_primary
from clipper_backup.postgres.replication import Replication, ancestors_of, identify
from clipper_backup.values import Timeline

if TYPE_CHECKING:
    from clipper_backup.format.signing import SigningKey


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Login, server and keys. With a `sealer` all that is user data is sealed, with a `signing` key the summary is signed.

    `ancestors` are those of its timeline, None where the server has no history of it any more. `folder` is the server's data
    folder where its files are read there, None where the server sends them. `primary` is the login to the server that a standby
    follows, where one is set.
    """

    login: Login
    facts: ClusterFacts
    system_id: str
    timeline: Timeline
    ancestors: Sequence[Ancestor] | None
    sealer: Sealer | None
    signing: "SigningKey | None"
    folder: ServerFolder | None = None
    primary: Login | None = None

    @property
    def kind(self) -> Literal["protocol", "files"]:
        """As backup.json says it."""
        return "protocol" if self.folder is None else "files"


def look_at_base_source(settings: Settings, clock: Clock, *, must_archive: bool = True) -> BaseSource:
    """Everything that can be wrong before anything is written: keys, login, archiving, and whose data folder it is."""
    sealer, signing = sealer_of(settings), signer_of(settings)
    login = login_of(settings)
    facts = cluster_facts(login)
    if must_archive and not facts.archiving and not facts.in_recovery:
        raise ServerError(
            "the server does not archive its WAL (archive_mode is off): a base backup of it could not be restored",
            hints=[
                "set archive_mode (a restore leaves it off) and archive_command, and restart it",
                "or set them up on the primary, and name that",
                "`clipper-backup dump create` needs no WAL",
            ],
        )
    with Replication(login) as replication:
        system_id, timeline, _ = identify(replication)
        ancestors = ancestors_of(replication, timeline)
    folder = None if settings.base_source == "protocol" else _folder(settings, login, facts, clock)
    primary = _primary(settings, system_id) if facts.in_recovery else None
    return BaseSource(login, facts, system_id, timeline, ancestors, sealer, signing, folder, primary)


def _primary(settings: Settings, system_id: str) -> Login | None:
    """The login to the primary, which answers: whoever copied for hours must not learn only then that it does not."""
    if settings.primary_conninfo is None:
        return None
    primary = login_of_conninfo("PRIMARY_CONNINFO", settings.primary_conninfo)
    check_primary(primary, system_id)
    return primary


def _folder(settings: Settings, login: Login, facts: ClusterFacts, clock: Clock) -> ServerFolder:
    """The server's data folder, as far as it can be told before a backup begins."""
    called = facts.settings.get("data_directory")
    path = find_data_folder(login, settings.pgdata, called)
    check_is_servers(DataFolder(path, clock), login)
    return ServerFolder(path, called or str(path), facts.major)
