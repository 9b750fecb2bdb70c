"""`wal status`: what of the archive could be restored now, what waits on the server, and what would be lost with its host."""

from dataclasses import dataclass

from clipper_backup.errors import ClipperError
from clipper_backup.ops.wal.asked import Asked
from clipper_backup.ops.wal.look import Looker, WalSeen
from clipper_backup.ops.wal.server_side import Loss, loss_of, not_followed, not_here
from clipper_backup.ops.work import Work, login_of
from clipper_backup.postgres.archiver_facts import ArchiverFacts, read_archiver
from clipper_backup.values import show_count, show_seconds

_READY_SECONDS = 300
"""A file that waits for longer has been asked for several times."""


@dataclass(frozen=True, slots=True)
class WalStatus:
    """The archive, and the server. `server` is None when it was not asked or did not answer: `unreached` says why then."""

    seen: WalSeen
    server: ArchiverFacts | None
    unreached: str | None
    loss: Loss | None
    problems: tuple[str, ...]


def wal_status(work: Work, *, ask_server: bool) -> WalStatus:
    """Look at the archive and, where *ask_server* says so, at the server; one that does not answer is no error."""
    asked = Asked(lambda: read_archiver(login_of(work.settings))) if ask_server else None
    seen = Looker(work, whole=False).look()
    server, unreached = None, None
    if asked is not None:
        try:
            server = asked.answer()
        except ClipperError as error:
            unreached = error.message
    ours = server is not None and any(system.entry.system_id == server.system_id for system in seen.systems)
    loss = None if server is None or not ours else loss_of(seen, server)
    against = [] if server is None else [not_here(work.store, seen, server), not_followed(seen, server)]
    told = [each for each in against if each is not None]
    return WalStatus(seen, server, unreached, loss, (*seen.problems, *told, *_of_server(server, ours=ours)))


def _of_server(server: ArchiverFacts | None, *, ours: bool) -> list[str]:
    if server is None:
        return []
    if not ours:
        return [f"the server is the system {server.system_id}, of which this repository holds no WAL"]
    found = [] if server.archives else ["archive_mode is off: nothing that the server writes is archived"]
    if server.failing:
        found.append(
            f"the archiver fails at {server.last_failed}: {show_count(server.failed, 'time')} so far; PostgreSQL's log says why"
        )
    if server.ready and server.ready_since is not None:
        waited = (server.now - server.ready_since).total_seconds()
        if waited > _READY_SECONDS:
            found.append(
                f"{show_count(server.ready, 'file waits', 'files wait')} to be archived, the oldest for {show_seconds(waited)}"
            )
    return found
