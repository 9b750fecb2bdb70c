"""Does a key open what is stored? Shown with the key alone, and recorded for those who ask later."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from clipper_backup.errors import (
    AccessError,
    ClipperError,
    IntegrityError,
    MissingError,
    ObjectMissingError,
    StoreError,
    UsageError,
)
from clipper_backup.format import names
from clipper_backup.format.compression import decompress
from clipper_backup.format.documents import DumpSummary, KeyCheck, decode, encode
from clipper_backup.format.sealing import Identity
from clipper_backup.kinds import NONE
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.dump.read import catalog, good_dumps
from clipper_backup.ops.events import Warned
from clipper_backup.ops.keys import opened_with, read_identities
from clipper_backup.ops.work import Work, step, this_process
from clipper_backup.repository.dumps import LOST_HINTS, list_dumps, read_details
from clipper_backup.repository.root import open_repository
from clipper_backup.values import BackupId, DumpId, show_count


@dataclass(frozen=True, slots=True)
class Checked:
    """Which keys opened what. `recorded` says whether the repository now knows."""

    recipients: tuple[str, ...]
    dump_id: DumpId
    objects: int
    recorded: bool


def check_key(work: Work, identity_file: Path) -> Checked:
    """Open the newest good sealed dump with the identity in a file: its details whole, of every other object the beginning.

    Of several identities each is tried alone. AccessError when none opens it; UsageError when no dump is sealed.
    """
    identities = read_identities(identity_file)
    open_repository(work.store)
    good = good_dumps(work, list_dumps(work.store))
    last = next(good, None)
    if last is None:
        raise MissingError(f"there is no good dump in {work.store.url}", hints=["`clipper-backup dump create` takes one"])
    newest = last if last.sealed else next((summary for summary in good if summary.sealed), None)
    if newest is None:
        raise UsageError(f"the newest good dump, {last.id}, is not sealed, nor is another: they open without a key")
    with step(work, "check key", f"open {newest.id} with {identity_file}") as running:
        recipients = tuple(identity.recipient for identity in identities if _opens(work, newest, identity))
        if not recipients:
            have = ", ".join(identity.recipient for identity in identities)
            raise AccessError(
                f"{newest.id} is sealed to other keys: {identity_file} holds {have}",
                hints=[f"it is sealed to {', '.join(newest.recipients)}"],
            )
        running.done = f"{newest.id}: {show_count(len(newest.objects), 'object opens', 'objects open')}"
    for recipient in set(recipients) - set(work.settings.encryption_recipients or newest.recipients):
        work.emit(Warned(f"{recipient} is none of ENCRYPTION_RECIPIENTS: the next dump will not open with it"))
    dump_id = DumpId.parse(newest.id)
    return Checked(recipients, dump_id, len(newest.objects), _record(work, recipients, dump_id))


def _opens(work: Work, summary: DumpSummary, identity: Identity) -> bool:
    """Whether an identity opens every object; IntegrityError when one is damaged."""
    opener = partial(opened_with, [identity])
    try:
        read_details(work.store, summary, opener)
    except AccessError:
        return False
    for stored in summary.objects:
        if stored.role != "details":
            try:
                next(decompress(opener(work.store.get_stream(stored.key), stored.key), stored.key), None)
            except AccessError as error:
                raise IntegrityError(
                    f"{stored.key} does not open with the key that opens {summary.id}'s details: its head is damaged",
                    hints=LOST_HINTS,
                ) from error
            except IntegrityError as error:
                raise IntegrityError(error.message, hints=LOST_HINTS) from error
    return True


def _record(work: Work, recipients: Sequence[str], dump_id: DumpId) -> bool:
    """Whether every mark could be written. One that could not is told, for whoever may write it: it holds no secret."""
    recorded = True
    try:
        now = work.store.now()
    except ClipperError:  # asking a bucket writes
        now = work.clock.now()
    for recipient in recipients:
        key = f"{names.KEY_CHECKS_FOLDER}{recipient}"
        mark = encode(KeyCheck(recipient=recipient, dump_id=str(dump_id), checked_at=now, checked_by=this_process()))
        try:
            open_repository(work.store, writing=True)
            work.store.put(key, mark)
        except ClipperError as error:
            told = f"the key opens the dump all the same; whoever may write into the store can record it, as the object {key}:"
            work.emit(Warned(f"the check is not recorded: {error}", (f"{told} {' '.join(mark.decode().split())}",)))
            recorded = False
    return recorded


@dataclass(frozen=True, slots=True)
class Needed:
    """A key, and the dumps and base backups that open with it, oldest first. `checked_at`: when it was last shown to open one."""

    recipient: str
    configured: bool
    dumps: tuple[DumpId, ...]
    base_backups: tuple[BackupId, ...]
    checked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Rotation:
    """Every key that a backup is or will be sealed to, configured ones first. `unread` are the ids of those nobody could ask."""

    keys: tuple[Needed, ...]
    unread: tuple[DumpId | BackupId, ...]


def keys_needed(work: Work) -> Rotation:
    """Which key opens which backups, damaged and untrusted ones too: a key is needed for as long as one of them is there."""
    work = replace(work, trusted=())
    dumps = [(entry.listed, entry.listed.dump_id, entry.summary) for entry in catalog(work)]
    bases = [(each.entry.listed, each.entry.listed.backup_id, each.entry.summary) for each in base_catalog(work)]
    of_dumps = {dump_id: summary.recipients for _, dump_id, summary in dumps if summary is not None}
    of_bases = {backup_id: summary.recipients for _, backup_id, summary in bases if summary is not None}
    configured = [key for key in work.settings.encryption_recipients if key != NONE]
    others = sorted({key for each in (*of_dumps.values(), *of_bases.values()) for key in each} - set(configured))
    checks, unread = key_checks(work)
    for problem in unread.values():
        work.emit(Warned(f"{problem}; it counts as never checked"))
    keys = [
        Needed(
            key,
            key in configured,
            tuple(dump_id for dump_id, recipients in of_dumps.items() if key in recipients),
            tuple(backup_id for backup_id, recipients in of_bases.items() if key in recipients),
            None if key not in checks else checks[key].checked_at,
        )
        for key in [*configured, *others]
    ]
    unknown: list[DumpId | BackupId] = [found for listed, found, summary in dumps if listed.committed and summary is None]
    unknown += [found for listed, found, summary in bases if listed.committed and summary is None]
    return Rotation(tuple(keys), tuple(unknown))


def key_checks(work: Work) -> tuple[dict[str, KeyCheck], dict[str, str]]:
    """The last check of each key, as far as the store is to be believed; and what is wrong with those that cannot be read."""
    marks, unread = {}, {}
    for info in work.store.list(names.KEY_CHECKS_FOLDER):
        recipient = info.key.removeprefix(names.KEY_CHECKS_FOLDER)
        try:
            data = work.store.get(info.key)
        except ObjectMissingError:
            continue
        try:
            mark = decode(data, KeyCheck, info.key)
        except (IntegrityError, StoreError) as error:
            unread[recipient] = error.message
            continue
        if mark.recipient == recipient:
            marks[recipient] = mark
        else:
            unread[recipient] = f"{info.key} is damaged: it is of the key {mark.recipient}"
    return marks, unread
