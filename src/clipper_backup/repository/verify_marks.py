"""`base/<id>/verify.json` kept true: damage of a pack is damage of each backup that needs it, and outlives who found it.

Marks are written under no lease. So each is read again just before it is written, and what others found stays in it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime

from clipper_backup.errors import ClipperError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import PacksDocument, VerifyMark
from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.documents import NewerError, decode, encode
from clipper_backup.format.physical_names import PackKey, packs_named
from clipper_backup.repository.base_backups import (
    NewerMark,
    found_by_others,
    list_base_backups,
    listed_base,
    needed_packs,
    read_marks,
    read_verify_mark,
)
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId

DAMAGE_MAX = 1000
"""Of what is written down; a backup with more of it is no backup."""

Marks = Mapping[BackupId, VerifyMark]


def naming(texts: Collection[str], packs: Collection[PackKey]) -> list[str]:
    """Those of *texts* that name one of *packs*."""
    return [text for text in texts if not packs_named([text]).isdisjoint(packs)]


def known_damage(backup_id: BackupId, marks: Marks, packs: Collection[PackKey]) -> list[str]:
    """What *marks* say of those of its *packs*: its own, and what others found since it was looked at."""
    own = marks.get(backup_id)
    return naming([*([] if own is None else own.damage), *found_by_others(backup_id, marks)], packs)


def found_meanwhile(backup_id: BackupId, before: Marks, after: Marks, begun_at: datetime) -> list[str]:
    """What was written into any mark since *before* was read, or by a verify of another backup that ended after *begun_at*."""
    texts = []
    for each, mark in after.items():
        old = before.get(each)
        again = each != backup_id and mark.verified_at > begun_at
        texts += [text for text in mark.damage if again or old is None or text not in old.damage]
    return texts


def damage_of_taken(store: Store, parent: BackupId, packs: Collection[PackKey]) -> list[str]:
    """What is known by now of *packs* that a run took over from its *parent*, which was good when it began."""
    return known_damage(parent, read_marks(store, list_base_backups(store)), packs)


def needing(
    store: Store, texts: Collection[str], apart_from: Collection[BackupId], unknown: Callable[[BackupId, ClipperError], None]
) -> Iterator[tuple[BackupId, list[str]]]:
    """Each other backup that needs a pack that *texts* name, and those of them; one that a run still takes pages from too.

    Whose packs cannot be read has damage of its own; where that may be only for now, *unknown* is told.
    """
    if not packs_named(texts):
        return
    for listed in list_base_backups(store):
        if listed.backup_id in apart_from or listed.part(names.PACKS) is None:
            continue
        key = names.base_key(listed.backup_id, names.PACKS)
        try:
            needed = {pack for pack, _ in needed_packs(decode(decompress_bytes(store.get(key), key), PacksDocument, key))}
        except ClipperError as error:
            if error.temporary:
                unknown(listed.backup_id, error)
            continue
        if shared := naming(texts, needed):
            yield listed.backup_id, shared


def refuse_newer(mark: VerifyMark | None) -> None:
    """NewerError for a mark of a newer version: what it says we could not say again, so it is not replaced or removed."""
    if isinstance(mark, NewerMark):
        raise NewerError(
            f"what was found in {mark.id} is not known here: {mark.why}",
            hints=["install the version of clipper-backup that wrote it, or a newer one"],
        )


def add_damage(store: Store, backup_id: BackupId, texts: Sequence[str]) -> None:
    """Write *texts* into a backup's mark beside what it says; when it was looked at itself stays as it was.

    NewerError where a newer version wrote that mark: it is not replaced.
    """
    listed = listed_base(store, backup_id)
    mark = read_verify_mark(store, listed)
    refuse_newer(mark)
    if mark is None:
        mark = VerifyMark(id=str(backup_id), verified_at=store.now(), share=0, damage=[])
    if new := [text for text in texts if text not in mark.damage]:
        write_mark(store, backup_id, mark, [*new, *mark.damage])


def write_mark(store: Store, backup_id: BackupId, mark: VerifyMark, damage: Sequence[str]) -> None:
    """Write a mark with that *damage*, of which the first are kept."""
    written = VerifyMark(
        id=mark.id, begun_at=mark.begun_at, verified_at=mark.verified_at, share=mark.share, damage=list(damage[:DAMAGE_MAX])
    )
    store.put(names.base_key(backup_id, names.VERIFY), encode(written))


def hand_on(store: Store, backup_id: BackupId) -> None:
    """Before a backup's mark is removed: write what it says of packs beside each other backup that needs them.

    Not where that one was read whole since. The store's errors pass through, and NewerError for a mark of a newer version, its
    own or one beside which something is to be written: nothing is to be removed then.
    """
    for other, texts in _handed_on(store, backup_id, read_marks(store, list_base_backups(store))):
        add_damage(store, other, texts)


def not_handed_on(store: Store, marks: Marks) -> dict[BackupId, str]:
    """The backups of whose *marks* `hand_on` is refused, so that they must stay, and why. Other errors pass through."""
    refused: dict[BackupId, str] = {}
    if not any(isinstance(mark, NewerMark) for mark in marks.values()):
        return refused
    for backup_id in marks:
        try:
            for _ in _handed_on(store, backup_id, marks):
                pass
        except NewerError as error:
            refused[backup_id] = error.message
    return refused


def _handed_on(store: Store, backup_id: BackupId, marks: Marks) -> Iterator[tuple[BackupId, list[str]]]:
    """What is to be written beside which other backup; NewerError as for `hand_on`."""
    leaving = marks.get(backup_id)
    refuse_newer(leaving)
    if leaving is None:
        return

    def unknown(_: BackupId, error: ClipperError) -> None:
        raise error

    for other, shared in needing(store, leaving.damage, [backup_id], unknown):
        counted = found_by_others(other, {each: mark for each, mark in marks.items() if each in {backup_id, other}})
        if texts := [text for text in shared if text in counted]:
            refuse_newer(marks.get(other))
            yield other, texts
