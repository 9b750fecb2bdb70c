"""The primary of a standby that is backed up: it alone can end the WAL segment in which such a backup ends (rule 31)."""

from contextlib import closing

from clipper_backup.errors import IntegrityError, ServerError
from clipper_backup.postgres.connection import Login, connect, rows, translated
from clipper_backup.postgres.server_facts import server_facts
from clipper_backup.values import Lsn
from clipper_backup.wal_names import Segment


def check_primary(login: Login, system_id: str) -> None:
    """ServerError when the server that PRIMARY_CONNINFO leads to is no primary; IntegrityError when it is of another system."""
    with closing(connect(login)) as connection:
        facts = server_facts(connection)
    if facts.in_recovery:
        raise ServerError(
            f"the server at {login.where}, to which PRIMARY_CONNINFO leads, is a standby itself",
            hints=["it must name host and port of the primary: what it leaves out is taken from the PG* variables"],
        )
    if facts.system_id not in {None, system_id}:
        raise IntegrityError(
            f"the server at {login.where}, to which PRIMARY_CONNINFO leads, is of the system {facts.system_id}, the standby of"
            f" {system_id}",
            hints=["it must lead to the primary that the standby follows"],
        )


def end_segment(login: Login, segment: Segment) -> bool:
    """Have the primary end *segment*, so that it is archived; False when it writes a later one already."""
    with closing(connect(login)) as connection, translated(f"having the primary end the segment {segment}"):
        ((lsn,),) = rows(connection, "SELECT pg_current_wal_insert_lsn()::text")
        if Lsn.parse(lsn) >= segment.end:
            return False
        rows(connection, "SELECT pg_switch_wal()")
    return True
