"""`base verify`: what a base backup needs is there, and is what was stored; what is found is written beside it.

`verify`, which looks at all of them, is made of the same parts (`ops/verify`).

Objects are always read whole. Of packs the listing is looked at; read are those of a sample, or all of them, and always those in
which any verify found damage. With all of them each file is put together too, where a key opens it: a forged page passes
everything else. Only that takes back what an earlier verify found. Damage of a pack is written beside each backup that needs it,
and what another verify found meanwhile stays.
"""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice

from clipper_backup.errors import AccessError, ClipperError, IncompleteError, IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary, PacksDocument, VerifyMark
from clipper_backup.format.documents import NewerError
from clipper_backup.format.manifest import File
from clipper_backup.format.names import is_sealed
from clipper_backup.format.packs import PackFacts
from clipper_backup.format.physical_names import PackKey, packs_named
from clipper_backup.ops.base.read import base_summary
from clipper_backup.ops.base.wal import unarchived
from clipper_backup.ops.events import Warned
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.lost_instants import HEALS_HINTS, told_cost
from clipper_backup.ops.work import Work, step
from clipper_backup.repository.base_backups import (
    LOST_HINTS,
    is_known,
    list_base_backups,
    list_packs,
    lost_packs,
    needed_packs,
    part_of,
    plain_part,
    read_entries,
    read_marks,
    read_packs,
)
from clipper_backup.repository.data_keys import DataKeys
from clipper_backup.repository.dumps import read_committed
from clipper_backup.repository.pack_reader import PackReader, readers_for, verify_pack
from clipper_backup.repository.verify_marks import (
    Marks,
    add_damage,
    found_meanwhile,
    known_damage,
    naming,
    needing,
    refuse_newer,
    write_mark,
)
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_range import FOREIGN, foreign_wal
from clipper_backup.values import BackupId, show_bytes, show_count, show_first
from clipper_backup.wal_names import Segment

_READERS = 4
_FILES_AHEAD = 64
_READ_ALWAYS = (names.BASE_FOLDER, "segment ")
"""How damage of what each verify looks at begins."""


@dataclass(frozen=True, slots=True)
class BaseVerified:
    """What was looked at. `share` of the packs' bytes was read, `files` were put together; `opened` tells whether a key did."""

    summary: BaseSummary
    packs: int
    read_bytes: int
    share: float
    files: int
    opened: bool


def verify_base(work: Work, backup_id: BackupId, *, share: float) -> BaseVerified:
    """Look at a base backup, reading *share* (0 to 1) of its packs' bytes; with 1 also put together each file.

    IntegrityError names what is wrong, after it was written into verify.json. NewerError, where nothing is wrong with what
    could be read: a newer version wrote the rest.
    """
    summary, marks, begun_at = base_summary(work, backup_id), marks_of(work), work.store.now()
    opened = not summary.sealed or work.settings.encryption_identity_file is not None
    damage: list[str] = []
    newer: list[NewerError] = []
    read_objects(work, summary, damage, newer, opened=opened)
    packs = packs_of(work, summary, damage)
    read_bytes = files = 0
    whole_bytes = sum(row[1] for of_run in packs.runs for row in of_run.packs)
    whole = share >= 1 and opened
    try:
        damage += own_wal_damage(work, summary)
        if packs.runs:
            damage += lost_packs(packs, list_packs(work.store))
            chosen = list(_chosen(packs, share, packs_named(text for mark in marks.values() for text in mark.damage)))
            read_packs_whole(work, summary.repository_id, chosen, damage)
            read_bytes = sum(facts.size_bytes for _, facts in chosen)
        if whole and not newer:
            files = put_together(work, summary, damage, newer)
    except ClipperError as error:
        if not damage:
            raise
        work.emit(Warned(f"not all was looked at: {error}", error.hints))
        whole = False
    needed = {pack for pack, _ in needed_packs(packs)}
    read_share = read_bytes / whole_bytes if whole_bytes else 1.0
    look = Look(backup_id, begun_at, marks, read_share, whole=whole and not newer)
    damage = settle(work, look, damage, needed, newer)
    mark_others(work, [backup_id], damage)
    if damage:
        raise _damaged(work, backup_id, damage)
    if newer:
        raise newer[0]
    return BaseVerified(summary, sum(len(of_run.packs) for of_run in packs.runs), read_bytes, read_share, files, opened)


@dataclass(frozen=True, slots=True)
class Look:
    """A look at one base backup, which began at `begun_at`, when `marks` said what was known.

    `share` of its packs' bytes was read; `whole`: all of it, and its files were put together.
    """

    backup_id: BackupId
    begun_at: datetime
    marks: Marks
    share: float
    whole: bool


def settle(work: Work, look: Look, damage: Sequence[str], needed: Collection[PackKey], newer: list[NewerError]) -> list[str]:
    """Write down what a look at a backup, which needs those packs, found; the answer has what is known from before, too.

    A mark that a newer version wrote stays, which *newer* then says.
    """
    again = marks_of(work)  # anew: other verifies wrote theirs meanwhile
    if look.whole:
        known = naming(found_meanwhile(look.backup_id, look.marks, again, look.begun_at), needed)
    else:
        former = again.get(look.backup_id)
        known = [] if former is None else [text for text in former.damage if not text.startswith(_READ_ALWAYS)]
        known += known_damage(look.backup_id, again, needed)
    every = [*damage, *(text for text in dict.fromkeys(known) if text not in damage)]
    mark = VerifyMark(
        id=str(look.backup_id), begun_at=look.begun_at, verified_at=work.store.now(), share=look.share, damage=every
    )
    try:
        refuse_newer(again.get(look.backup_id))
        written_down(work, lambda: write_mark(work.store, look.backup_id, mark, every), bad=bool(every))
    except NewerError as error:
        work.emit(Warned(f"what was found is not written down: {error}"))
        newer.append(error)
    return every


def _damaged(work: Work, backup_id: BackupId, damage: Sequence[str]) -> IntegrityError:
    costs = told_cost(work, bad_backups=[backup_id])
    return IntegrityError(
        f"the base backup {backup_id} is damaged: {show_first(damage)}", hints=[*damage[1:20], *costs, *HEALS_HINTS, *LOST_HINTS]
    )


def refuse_unopened(verified: BaseVerified) -> None:
    """IncompleteError where nobody opened what is sealed: bytes were compared, not what they hold."""
    if not verified.opened:
        raise IncompleteError(
            f"what was read of {verified.summary.id} is as committed, but it is sealed and was not opened",
            hints=["set ENCRYPTION_IDENTITY_FILE to the file with an identity that opens it"],
        )


def read_objects(work: Work, summary: BaseSummary, damage: list[str], newer: list[NewerError], *, opened: bool) -> None:
    """Read each object that the backup commits, and where it is *opened* its manifest line by line."""
    opener = opener_of(work.settings, summary.recipients)
    with step(work, "objects", f"read the objects of {summary.id}") as running:
        for part in summary.objects:
            try:
                if not is_known(part) or (not opened and is_sealed(part.key)):
                    _drain(read_committed(work.store, part, LOST_HINTS))
                else:
                    _drain(plain_part(work.store, part, opener))
                    if part.role == "manifest":
                        _check_manifest(work, summary, damage)
            except NewerError as error:
                newer.append(error)
            except IntegrityError as error:
                damage.append(str(error))
        running.done = f"{show_count(len(summary.objects), 'object')} read"


def _check_manifest(work: Work, summary: BaseSummary, damage: list[str]) -> None:
    """Its lines; what is wrong with one may name a path, which is told and not written down. NewerError passes through."""
    try:
        _drain(read_entries(work.store, summary, opener_of(work.settings, summary.recipients)))
    except IntegrityError as error:
        work.emit(Warned(str(error)))
        damage.append(f"{part_of(summary, 'manifest').key} is as committed, and no manifest as it must be")


def packs_of(work: Work, summary: BaseSummary, damage: list[str]) -> PacksDocument:
    """The packs that it needs; none where nobody can say, which is damage."""
    try:
        return read_packs(work.store, summary)
    except IntegrityError as error:
        if str(error) not in damage:
            damage.append(str(error))
        return PacksDocument(id=summary.id, runs=[])


def marks_of(work: Work) -> Marks:
    """What was found in any base backup."""
    return read_marks(work.store, list_base_backups(work.store))


def _chosen(packs: PacksDocument, share: float, known: Collection[PackKey]) -> Iterator[tuple[PackKey, PackFacts]]:
    """Packs of about that share of all bytes, drawn at random, behind the *known* ones."""
    rows = [
        (PackKey(BackupId.parse(of_run.run), number), PackFacts(size_bytes, plain_bytes, bytes.fromhex(digest)))
        for of_run in packs.runs
        for number, size_bytes, plain_bytes, _, digest in of_run.packs
    ]
    random.SystemRandom().shuffle(rows)
    yield from (row for row in rows if row[0] in known)
    rows = [row for row in rows if row[0] not in known]
    left = share * sum(facts.size_bytes for _, facts in rows)
    for pack, facts in rows:
        if left <= 0:
            return
        left -= facts.size_bytes
        yield pack, facts


def read_packs_whole(work: Work, repository_id: str, chosen: Sequence[tuple[PackKey, PackFacts]], damage: list[str]) -> None:
    """Read each of those packs once, and compare every byte."""
    if not chosen:
        return
    total = sum(facts.size_bytes for _, facts in chosen)
    with (
        step(work, "packs", f"read {show_count(len(chosen), 'pack')}, {show_bytes(total)}") as running,
        ThreadPoolExecutor(_READERS) as pool,
    ):
        done = 0
        for problem, (_, facts) in zip(
            pool.map(lambda each: _problem_of_pack(work, repository_id, *each), chosen), chosen, strict=True
        ):  # fmt: skip
            done += facts.size_bytes
            running.progress(done, total)
            if problem is not None and not any(str(problem).startswith(known) for known in damage):
                damage.append(problem)
        running.done = f"{show_count(len(chosen), 'pack')} read, {show_bytes(total)}"


def _problem_of_pack(work: Work, repository_id: str, pack: PackKey, facts: PackFacts) -> str | None:
    try:
        verify_pack(work.store, pack, facts, repository_id)
    except IntegrityError as error:
        return str(error)
    return None


def put_together(work: Work, summary: BaseSummary, damage: list[str], newer: list[NewerError]) -> int:
    """Put together each file; how many there are."""
    opener = opener_of(work.settings, summary.recipients)
    keys = DataKeys(work.store, summary.repository_id, opener) if summary.sealed else None
    done = done_bytes = 0

    def problem(reader: PackReader, file: File) -> str | None:
        try:
            found = sum(len(piece) for piece in reader.content(file.part))
        except IntegrityError as error:
            return str(error)
        except NewerError as error:
            newer.append(error)
            return None
        return None if found == file.size_bytes else f"a file is not of {file.size_bytes} bytes"

    with step(work, "files", f"put together the files of {summary.id}") as running:
        try:
            manifest = read_entries(work.store, summary, opener)
            size = manifest.head.stretch_bytes
            read = partial(problem, PackReader(work.store, keys, summary.sizes.page_bytes, size))
            entries = (entry for entry in manifest if isinstance(entry, File))
            with ThreadPoolExecutor(readers_for(size, _READERS)) as pool:
                while batch := list(islice(entries, _FILES_AHEAD)):
                    for file, found in zip(batch, pool.map(read, batch), strict=True):
                        done, done_bytes = done + 1, done_bytes + file.size_bytes
                        if found is not None and found not in damage:
                            damage.append(found)
                    running.progress(done_bytes, summary.plain_bytes)
        except IntegrityError:  # of the manifest: `_objects` has named it
            if not damage:
                raise
        running.done = f"{show_count(done, 'file')} put together, {show_bytes(done_bytes)}"
    return done


def own_wal_damage(work: Work, summary: BaseSummary) -> list[str]:
    """What is wrong with the WAL from its start to its stop, as listings and claims show it."""
    size = summary.sizes.segment_bytes
    first, last = Segment.parse(summary.first_segment, size), Segment.parse(summary.last_segment, size)
    catalog = WalCatalog(work.store, summary.system_id, size)
    lost = [f"segment {segment} of its WAL is missing from the archive" for segment in unarchived(catalog, first, last)]
    return lost + [f"segment {segment} of its WAL {FOREIGN}" for segment in foreign_wal(catalog, summary)]


def written_down(work: Work, write: Callable[[], None], *, bad: bool) -> bool:
    """Write down what was found; who may only read says so. A store that fails raises only where nothing *bad* is to be told.

    Whether it was written.
    """
    try:
        write()
    except AccessError as error:
        work.emit(Warned(f"what was found is not written down: {error}"))
    except ClipperError as error:
        if not bad:
            raise
        work.emit(Warned(f"the damage could not be written down: {error}", error.hints))
    else:
        return True
    return False


def mark_others(work: Work, apart_from: Collection[BackupId], damage: Sequence[str]) -> None:
    """Write what was found in packs beside each other backup that needs them, and say which those are."""

    def unknown(other: BackupId, error: ClipperError) -> None:
        work.emit(Warned(f"whether {other} is damaged too was not found out: {error}", error.hints))

    others = []
    for other, shared in needing(work.store, damage, apart_from, unknown):
        others.append(str(other))
        written_down(work, partial(add_damage, work.store, other, shared), bad=True)
    if others:
        work.emit(Warned(f"needed by other base backups too, which are not good either: {', '.join(others)}"))


def _drain(pieces: Iterable[object]) -> None:
    for _ in pieces:
        pass
