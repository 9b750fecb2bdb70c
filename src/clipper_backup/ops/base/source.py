"""The server that is backed up, and with which keys, as found before anything is written."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipper_backup.config import Settings
from clipper_backup.errors import ServerError
from clipper_backup.ops.keys import Sealer, sealer_of, signer_of
from clipper_backup.ops.work import login_of
from clipper_backup.postgres.cluster_facts import ClusterFacts, cluster_facts
from clipper_backup.postgres.connection import Login
from clipper_backup.postgres.replication import Replication, identify
from clipper_backup.values import Timeline

if TYPE_CHECKING:
    from clipper_backup.format.signing import SigningKey


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Login, server and keys. With a `sealer` all that is user data is sealed, with a `signing` key the summary is signed."""

    login: Login
    facts: ClusterFacts
    system_id: str
    timeline: Timeline
    sealer: Sealer | None
    signing: "SigningKey | None"


def look_at_base_source(settings: Settings) -> BaseSource:
    """Everything that can be wrong before anything is written: keys, login, archiving."""
    sealer, signing = sealer_of(settings), signer_of(settings)
    login = login_of(settings)
    facts = cluster_facts(login)
    if not facts.archiving and not facts.in_recovery:
        raise ServerError(
            "the server does not archive its WAL (archive_mode is off): a base backup of it could not be restored",
            hints=[
                "set archive_mode and archive_command, and restart it; or set them up on the primary and name that",
                "`clipper-backup dump create` needs no WAL",
            ],
        )
    with Replication(login) as replication:
        system_id, timeline, _ = identify(replication)
    return BaseSource(login, facts, system_id, timeline, sealer, signing)
