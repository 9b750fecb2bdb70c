"""A backup's WAL as it must be before the backup counts: in the archive, linked, and of the server that was backed up (B4)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from clipper_backup.errors import IntegrityError, MissingError, ObjectMissingError, ServerError, WalGapError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import Claim
from clipper_backup.format.wal_objects import (
    HEADER_BYTES_MIN,
    NO_LINK,
    ObjectKind,
    check_header,
    decode_object,
    digest_of,
    link_of,
    place_of,
)
from clipper_backup.ops.base.source import BaseSource
from clipper_backup.ops.events import Warned
from clipper_backup.ops.wal.server_side import STRAY_HINT
from clipper_backup.ops.work import Work, step
from clipper_backup.postgres.primary import end_segment
from clipper_backup.postgres.wal_stream import HeldWal
from clipper_backup.repository.wal_catalog import Listed, WalCatalog
from clipper_backup.store.protocol import Store
from clipper_backup.values import Timeline, show_count, show_seconds
from clipper_backup.wal_names import Segment

_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.02, 1.0
"""Most often one segment is on its way, for a tenth of a second; each look doubles the pause before the next."""
_ASK_SECONDS = 30.0
"""Between two questions to the server's archiver, each of which is a connection."""
_READERS = 16
SWITCH = "SELECT pg_switch_wal();"


def _between(first: Segment, last: Segment) -> list[Segment]:
    return [Segment(first.timeline, number, first.size_bytes) for number in range(first.number, last.number + 1)]


def warn_of_newer_lines(work: Work, catalog: WalCatalog, timeline: Timeline) -> None:
    """Say which newer timelines have WAL that is not on the server's line: a restore to the latest goes along those."""
    try:
        line = catalog.line(timeline)
    except (MissingError, IntegrityError):  # told as a backup without a parent
        return
    for end in catalog.beside(line):
        if end.timeline > timeline:
            told = f"timeline {int(end.timeline)}, which is not this server's, has WAL here up to {end}"
            here = f"--timeline {int(timeline)}"
            work.emit(
                Warned(f"{told}: a restore to the latest goes along that one", (f"along this server's: {here}", STRAY_HINT))
            )


def end_last_segment(work: Work, source: BaseSource, last: Segment) -> None:
    """Have a standby's primary end the segment in which the backup ends; where we may not, say who must."""
    if source.primary is not None:
        with step(work, "switch", f"have the primary end the segment {last}") as running:
            ended = end_segment(source.primary, last)
            running.done = f"the primary {'ended' if ended else 'had ended'} the segment {last}"
    elif source.facts.in_recovery:
        work.emit(
            Warned(f"the backup ends in the segment {last}, which only the primary ends", (f"on the primary: {SWITCH}",))
        )  # fmt: skip


def wait_for_wal(
    work: Work,
    catalog: WalCatalog,
    first: Segment,
    last: Segment,
    failing: Callable[[], str | None],
    *,
    from_standby: bool = False,
) -> None:
    """Return when claim and object of each segment are listed (rule 31).

    WalGapError naming the first that is not, when BASE_WAL_WAIT_SECONDS have passed; *failing* asks the server's archiver.
    ServerError, *from_standby*, when for ARCHIVE_WAIT_SECONDS nothing but the last was missing: its primary did not end it.
    """
    seconds = work.settings.base_wal_wait_seconds
    last_alone_since: float | None = None
    deadline = work.clock.monotonic() + seconds
    count = last.number - first.number + 1
    told = why = None
    pause = _FIRST_POLL_SECONDS
    ask_at = work.clock.monotonic()
    with step(work, "wal", f"wait for {show_count(count, 'segment')} of WAL, {first} to {last}, in the archive") as running:
        while missing := unarchived(catalog, first, last):
            running.progress(count - len(missing), count, "segments")
            overdue = work.clock.monotonic() >= deadline
            if overdue or work.clock.monotonic() >= ask_at:
                why, ask_at = failing(), work.clock.monotonic() + _ASK_SECONDS
            if why is not None and why != told:
                work.emit(Warned(why, ("the server's log has the words of archive_command",)))
                told = why
            if overdue:
                raise WalGapError(
                    f"{len(missing)} of the {show_count(count, 'segment')} that"
                    " the base backup needs did not reach the archive within"
                    f" {show_seconds(seconds)}, the first of them is {missing[0]}" + (f"; {why}" if why else ""),
                    hints=[
                        "does the server archive into this repository? `SELECT * FROM pg_stat_archiver` on it",
                        "an archiver that is far behind needs more BASE_WAL_WAIT_SECONDS",
                    ],
                )
            if from_standby and missing == [last]:
                now = work.clock.monotonic()
                last_alone_since = now if last_alone_since is None else last_alone_since
                if now - last_alone_since >= work.settings.archive_wait_seconds:
                    raise _not_ended(last, work.settings.archive_wait_seconds)
            work.clock.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)
        running.done = f"{show_count(count, 'segment of WAL is', 'segments of WAL are')} in the archive, {first} to {last}"


def _not_ended(last: Segment, seconds: float) -> ServerError:
    return ServerError(
        f"the segment {last}, in which the base backup of the standby ends, did not reach the archive within"
        f" {show_seconds(seconds)}: a standby cannot end it",
        hints=[
            f"take another base backup, and when it waits for its WAL type on the primary: {SWITCH}",
            "with PRIMARY_CONNINFO that is done for you",
            "a primary that did end it archives elsewhere, or is behind: `SELECT * FROM pg_stat_archiver` on it",
        ],
    )


def unarchived(catalog: WalCatalog, first: Segment, last: Segment) -> list[Segment]:
    """The segments from *first* to *last* of which claim and object are not both listed, the object with the size of one."""
    missing = []
    listed: dict[Segment, Listed] = {}
    folder = ""
    for segment in _between(first, last):
        if segment.folder != folder:
            folder = segment.folder
            listed = catalog.segments(segment.timeline, folder)
        found = listed.get(segment)
        if found is None or found.claim is None or found.stored is None or found.stored.size_bytes < HEADER_BYTES_MIN:
            missing.append(segment)
    return missing


def prove_wal(
    work: Work, catalog: WalCatalog, held: HeldWal, first: Segment, last: Segment, repository_id: str
) -> tuple[str, str]:
    """The segments link, and the first and the last are what the server itself has; returned are those two's links.

    WalGapError where two do not link; IntegrityError where the archive holds another server's WAL: a copy that was set back, a
    clone, another primary.
    """
    with step(work, "wal proof", "compare the archived WAL with the server's own") as running:
        wanted = _between(first, last)
        with ThreadPoolExecutor(_READERS) as pool:
            claims = list(pool.map(catalog.claim, wanted))
        before: Claim | None = None
        links = []
        for segment, claim in zip(wanted, claims, strict=True):
            if claim is None:
                raise WalGapError(f"the claim of {segment} is gone from the archive")
            if before is not None and _previous(work.store, catalog, segment, claim, repository_id) != _link(before):
                raise WalGapError(
                    f"{segment} does not follow the segment before it in the archive: they come from different histories, or one"
                    " came late and could not be proved",
                    hints=["take another base backup"],
                )
            before = claim
            links.append(_link(claim))
        for segment, claim in {first: claims[0], last: claims[-1]}.items():
            assert claim is not None  # noqa: S101  looked at above
            if digest_of(held.read(segment), bytes.fromhex(claim.salt)).hex() != claim.digest:
                raise IntegrityError(
                    f"{segment} in the archive is not the server's own: it was archived by {claim.writer}, of another history",
                    hints=[
                        "this server is a copy that was set back, or a clone; or another one archives into this repository",
                        "restore it with `clipper-backup restore`, which begins a new timeline, or give it a prefix of its own",
                    ],
                )
        running.done = f"{show_count(len(wanted), 'segment links', 'segments link')}; {first} and {last} are the server's own"
    return links[0].hex(), links[-1].hex()


def _link(claim: Claim) -> bytes:
    return link_of(bytes.fromhex(claim.salt), bytes.fromhex(claim.digest))


def _previous(store: Store, catalog: WalCatalog, segment: Segment, claim: Claim, repository_id: str) -> bytes:
    """The link that the segment before must have; that of the `.link` where the claim knew none."""
    previous = bytes.fromhex(claim.previous)
    if previous != NO_LINK:
        return previous
    key = names.archive_key(catalog.system_id, segment.name, names.LINK)
    try:
        header, rest = decode_object([store.get(key)], key)
    except ObjectMissingError:
        return NO_LINK
    place = place_of(segment.name, segment.size_bytes)
    wanted = type(place)(ObjectKind.LINK, place.timeline, place.lsn)
    check_header(
        header, wanted, system_id=int(catalog.system_id), repository_id=bytes.fromhex(repository_id), name=key
    )  # fmt: skip
    for _ in rest:
        raise IntegrityError(f"{key} holds more than a header")
    if (header.salt.hex(), header.digest.hex()) != (claim.salt, claim.digest):
        raise IntegrityError(f"{key} speaks of another segment than the one that lies beside it")
    return header.previous
