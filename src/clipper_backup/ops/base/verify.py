"""`base verify`: what a base backup needs is there, and is what was stored; what is found is written beside it.

Objects are always read whole. Of packs the listing is looked at; read are those of a sample, or all of them. Then each file is
put together too, where a key opens it: a forged page passes everything else.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from clipper_backup.errors import AccessError, ClipperError, IncompleteError, IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary, PacksDocument, VerifyMark
from clipper_backup.format.documents import encode
from clipper_backup.format.manifest import File
from clipper_backup.format.names import is_sealed
from clipper_backup.format.packs import PackFacts
from clipper_backup.format.physical_names import PackKey
from clipper_backup.ops.base.read import base_summary
from clipper_backup.ops.base.wal import unarchived
from clipper_backup.ops.events import Warned
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.work import Work, step
from clipper_backup.repository.base_backups import (
    LOST_HINTS,
    list_packs,
    lost_packs,
    part_of,
    plain_part,
    read_entries,
    read_packs,
    shown,
)
from clipper_backup.repository.data_keys import DataKeys
from clipper_backup.repository.dumps import read_committed
from clipper_backup.repository.pack_reader import PackReader, verify_pack
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import BackupId, show_bytes
from clipper_backup.wal_names import Segment

_READERS = 4
_FILES_AHEAD = 64
_DAMAGE_MAX = 1000
"""Of what is written down; a backup with more of it is no backup."""


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

    IntegrityError names what is wrong, after it was written into verify.json.
    """
    summary = base_summary(work, backup_id)
    opened = not summary.sealed or work.settings.encryption_identity_file is not None
    damage: list[str] = []
    _objects(work, summary, damage, opened=opened)
    packs = _packs_of(work, summary, damage)
    read_bytes = files = 0
    whole_bytes = sum(row[1] for of_run in packs.runs for row in of_run.packs)
    if packs.runs:
        damage += lost_packs(packs, list_packs(work.store))
        chosen = list(_chosen(packs, share))
        read_bytes = sum(facts.size_bytes for _, facts in chosen)
        _read_packs(work, summary, chosen, damage)
    if share >= 1 and opened:
        files = _files(work, summary, damage)
    _wal(work, summary, damage)
    read_share = read_bytes / whole_bytes if whole_bytes else 1.0
    _mark(work, backup_id, read_share, damage)
    if damage:
        raise IntegrityError(f"the base backup {backup_id} is damaged: {shown(damage)}", hints=[*damage[1:20], *LOST_HINTS])
    return BaseVerified(summary, sum(len(of_run.packs) for of_run in packs.runs), read_bytes, read_share, files, opened)


def refuse_unopened(verified: BaseVerified) -> None:
    """IncompleteError where nobody opened what is sealed: bytes were compared, not what they hold."""
    if not verified.opened:
        raise IncompleteError(
            f"what was read of {verified.summary.id} is as committed, but it is sealed and was not opened",
            hints=["set ENCRYPTION_IDENTITY_FILE to the file with an identity that opens it"],
        )


def _objects(work: Work, summary: BaseSummary, damage: list[str], *, opened: bool) -> None:
    opener = opener_of(work.settings, summary.recipients)
    with step(work, "objects", f"read the objects of {summary.id}") as running:
        for part in summary.objects:
            try:
                if not opened and is_sealed(part.key):
                    _drain(read_committed(work.store, part, LOST_HINTS))
                else:
                    _drain(plain_part(work.store, part, opener))
                    if part.role == "manifest":
                        _check_manifest(work, summary, damage)
            except IntegrityError as error:
                damage.append(str(error))
        running.done = f"{len(summary.objects)} objects read"


def _check_manifest(work: Work, summary: BaseSummary, damage: list[str]) -> None:
    """Its lines; what is wrong with one may name a path, which is told and not written down."""
    try:
        _drain(read_entries(work.store, summary, opener_of(work.settings, summary.recipients)))
    except IntegrityError as error:
        work.emit(Warned(str(error)))
        damage.append(f"{part_of(summary, 'manifest').key} is as committed, and no manifest as it must be")


def _packs_of(work: Work, summary: BaseSummary, damage: list[str]) -> PacksDocument:
    try:
        return read_packs(work.store, summary)
    except IntegrityError as error:
        if str(error) not in damage:
            damage.append(str(error))
        return PacksDocument(id=summary.id, runs=[])


def _chosen(packs: PacksDocument, share: float) -> Iterator[tuple[PackKey, PackFacts]]:
    """Packs of about that share of all bytes, drawn at random."""
    rows = [
        (PackKey(BackupId.parse(of_run.run), number), PackFacts(size_bytes, plain_bytes, bytes.fromhex(digest)))
        for of_run in packs.runs
        for number, size_bytes, plain_bytes, _, digest in of_run.packs
    ]
    random.SystemRandom().shuffle(rows)
    left = share * sum(facts.size_bytes for _, facts in rows)
    for pack, facts in rows:
        if left <= 0:
            return
        left -= facts.size_bytes
        yield pack, facts


def _read_packs(work: Work, summary: BaseSummary, chosen: Sequence[tuple[PackKey, PackFacts]], damage: list[str]) -> None:
    if not chosen:
        return
    total = sum(facts.size_bytes for _, facts in chosen)
    with step(work, "packs", f"read {len(chosen)} packs, {show_bytes(total)}") as running, ThreadPoolExecutor(_READERS) as pool:
        done = 0
        for problem, (_, facts) in zip(
            pool.map(lambda each: _problem_of_pack(work, summary, *each), chosen), chosen, strict=True
        ):  # fmt: skip
            done += facts.size_bytes
            running.progress(done, total)
            if problem is not None and not any(str(problem).startswith(known) for known in damage):
                damage.append(problem)
        running.done = f"{len(chosen)} packs read, {show_bytes(total)}"


def _problem_of_pack(work: Work, summary: BaseSummary, pack: PackKey, facts: PackFacts) -> str | None:
    try:
        verify_pack(work.store, pack, facts, summary.repository_id)
    except IntegrityError as error:
        return str(error)
    return None


def _files(work: Work, summary: BaseSummary, damage: list[str]) -> int:
    """Put together each file; how many there are."""
    opener = opener_of(work.settings, summary.recipients)
    keys = DataKeys(work.store, summary.repository_id, opener) if summary.sealed else None
    reader = PackReader(work.store, keys, summary.sizes.page_bytes)
    done = done_bytes = 0

    def problem(file: File) -> str | None:
        try:
            found = sum(len(piece) for piece in reader.content(file.part))
        except IntegrityError as error:
            return str(error)
        return None if found == file.size_bytes else f"a file is not of {file.size_bytes} bytes"

    with step(work, "files", f"put together the files of {summary.id}") as running, ThreadPoolExecutor(_READERS) as pool:
        try:
            entries = (entry for entry in read_entries(work.store, summary, opener) if isinstance(entry, File))
            while batch := list(islice(entries, _FILES_AHEAD)):
                for file, found in zip(batch, pool.map(problem, batch), strict=True):
                    done, done_bytes = done + 1, done_bytes + file.size_bytes
                    if found is not None and found not in damage:
                        damage.append(found)
                running.progress(done_bytes, summary.plain_bytes)
        except IntegrityError:  # of the manifest: `_objects` has named it
            if not damage:
                raise
        running.done = f"{done} files put together, {show_bytes(done_bytes)}"
    return done


def _wal(work: Work, summary: BaseSummary, damage: list[str]) -> None:
    size = summary.sizes.segment_bytes
    first, last = Segment.parse(summary.first_segment, size), Segment.parse(summary.last_segment, size)
    catalog = WalCatalog(work.store, summary.system_id, size)
    damage += [f"segment {segment} of its WAL is missing from the archive" for segment in unarchived(catalog, first, last)]


def _mark(work: Work, backup_id: BackupId, share: float, damage: Sequence[str]) -> None:
    """Write down what was found; who may only read says so."""
    key = names.base_key(backup_id, names.VERIFY)
    try:
        mark = VerifyMark(id=str(backup_id), verified_at=work.store.now(), share=share, damage=list(damage[:_DAMAGE_MAX]))
        work.store.put(key, encode(mark))
    except AccessError as error:
        work.emit(Warned(f"what was found is not written down: {error}"))
    except ClipperError as error:
        if not damage:
            raise
        work.emit(Warned(f"the damage could not be written down: {error}", error.hints))


def _drain(pieces: Iterable[object]) -> None:
    for _ in pieces:
        pass
