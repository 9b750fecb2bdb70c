"""What of base backups, packs, keys and runs must stay, compared with what would (docs/design/prune.md, B and P)."""

from collections.abc import Iterator
from datetime import datetime

from clipper_backup.format import physical_names as names
from clipper_backup.repository.proof.base import GRACE, Base, BaseFacts, order_of, packs_in_use
from clipper_backup.repository.proof.documents import read_base_holds
from clipper_backup.repository.proof.numbers import Ranges
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, show_time


def check_base(
    store: Store, before: BaseFacts, after: BaseFacts, removal: Removal, edge: datetime, now: datetime
) -> Iterator[str]:
    """What is promised and would be lost, in words. *edge*: since when instants are of the window."""
    held = read_base_holds(store)
    for backup_id in sorted(removal.backups | removal.summaries):
        base = before.bases.get(backup_id)
        if base is not None:
            yield from _check_going(base, after, removal, edge, backup_id in held)
    yield from _check_remaining(before, after, removal)
    yield from _check_packs(before, after, removal, now)


def incomplete(facts: BaseFacts) -> Iterator[str]:
    """The committed backups that lack something that their documents name."""
    for base in facts.summarized:
        if base.missing:
            yield f"{base.backup_id} lacks {_shown(base.missing)}"


def _check_going(base: Base, after: BaseFacts, removal: Removal, edge: datetime, is_held: bool) -> Iterator[str]:
    backup_id = base.backup_id
    if base.live:
        yield f"{backup_id} is being written: its run gave a sign of life less than a day ago"
    children = [
        each.backup_id for each in after.bases.values() if each.intent is not None and str(backup_id) in each.intent.parents
    ]
    left = after.bases.get(backup_id)
    if base.newer:
        yield f"a newer version of clipper-backup took {backup_id}, or looked at it last: nobody knows here what it needs"
    if children and (left is None or names.PACKS not in left.objects):
        yield f"the run {children[0]} takes pages from {backup_id}, and nothing would tell any more which packs hold them"
    if not base.committed:
        return
    if is_held:
        yield f"the base backup {backup_id} is held"
    if base.summary is None:
        return  # it cannot be read: `unread` tells
    finished_at = base.summary.finished_at
    if finished_at >= edge:
        yield f"the base backup {backup_id} ended at {show_time(finished_at)}, within the window"
    order = (base.summary.system_number, finished_at)
    if not any(each.good and each.summary and (each.summary.system_number, each.summary.finished_at) > order
               for each in after.summarized):  # fmt: skip
        yield f"no newer good base backup than {backup_id} would remain"
    if backup_id in removal.backups and left is not None and left.committed:
        yield f"of the base backup {backup_id} all but its backup.json would go"


def _check_remaining(before: BaseFacts, after: BaseFacts, removal: Removal) -> Iterator[str]:
    for backup_id, base in sorted(after.bases.items()):
        was = before.bases.get(backup_id)
        lost = frozenset(key for key in base.missing if removal.has(key))
        if lost:
            yield f"the base backup {backup_id}, which stays, would lack {_shown(lost)}"
        if was is not None and was.good and not base.good and not lost and backup_id not in removal.summaries:
            yield f"the base backup {backup_id}, which stays, would not be good any more"
    newest = max((order_of(base) for base in before.summarized if base.good), default=None)
    if newest is not None and not any(base.good and order_of(base) >= newest for base in after.summarized):
        yield f"the newest good base backup {newest[2]} would go"


def _check_packs(before: BaseFacts, after: BaseFacts, removal: Removal, now: datetime) -> Iterator[str]:
    in_use = packs_in_use(after)
    for what, packs in (("be deleted", removal.packs), ("be announced as not needed", removal.announced)):
        for run, numbers in sorted(packs.items()):
            needed = numbers & in_use.get(run, Ranges())
            if needed:
                who = _who_needs(after, run, needed)
                yield f"packs of the run {run} would {what}, and {who} needs them: {_first(needed, run)}"
    announced: dict[BackupId, list[Ranges]] = {}
    announced_keys: set[BackupId] = set()
    for prune_id, (written_at, record) in before.records.items():
        if now - written_at >= GRACE:
            for text, ranges in record.packs.items():
                announced.setdefault(BackupId.parse(text), []).append(Ranges((first, last + 1) for first, last in ranges))
            announced_keys.update(map(BackupId.parse, record.keys))
        elif prune_id in removal.records:
            yield f"{names.prune_key(prune_id)} is younger than a day, and would go"
    for run, numbers in sorted(removal.packs.items()):
        told = Ranges(each for ranges in announced.get(run, ()) for each in ranges)
        if sudden := numbers - told:
            yield f"packs of the run {run} would be deleted that no prune announced a day ago: {_first(sudden, run)}"
    for run in sorted(removal.data_keys):
        key = names.data_key_key(run)
        base = after.bases.get(run)
        if after.packs.get(run) or run in in_use or (base is not None and base.live):
            yield f"{key} would be deleted, and without it packs of that run cannot be opened"
        if run not in announced_keys:
            yield f"{key} would be deleted, and no prune announced it a day ago"


def _who_needs(facts: BaseFacts, run: BackupId, numbers: Ranges) -> str:
    for backup_id, base in sorted(facts.bases.items()):
        if base.needed is not None and run in base.needed and any(number in numbers for number in base.needed[run][0]):
            return f"the base backup {backup_id}" if base.committed else f"what is left of {backup_id}"
    return f"the run {run}, which lives,"


def _first(numbers: Ranges, run: BackupId) -> str:
    first = numbers.first or 0
    count = sum(end - begin for begin, end in numbers)
    return names.pack_key(run, first) + (f" (and {count - 1} more)" if count > 1 else "")


def _shown(keys: frozenset[str]) -> str:
    return min(keys) + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")
