"""Does a key open what is stored? Shown with the key alone, and recorded for those who ask later."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from msgspec import UNSET

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
from clipper_backup.format.documents import KeyCheck, NewerError, decode, encode
from clipper_backup.format.sealing import Identity
from clipper_backup.kinds import NONE
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.dump.read import catalog
from clipper_backup.ops.events import Warned
from clipper_backup.ops.key_opens import Newest, newest_sealed
from clipper_backup.ops.keys import read_identities
from clipper_backup.ops.work import Work, step, this_process
from clipper_backup.repository.root import open_repository
from clipper_backup.values import BackupId, DumpId


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of the newest of a kind: the keys that open it, `problem` when none does or it is damaged."""

    newest: Newest
    recipients: tuple[str, ...]
    problem: ClipperError | None


@dataclass(frozen=True, slots=True)
class Checked:
    """Which keys opened what. `recipients` open all of it; `recorded` says whether the repository now knows."""

    recipients: tuple[str, ...]
    tried: tuple[Tried, ...]
    recorded: bool

    def raise_problem(self) -> None:
        """The first thing that is damaged, or that no key opens."""
        problems = [each.problem for each in self.tried if each.problem is not None]
        worst = next((each for each in problems if not isinstance(each, AccessError)), next(iter(problems), None))
        if worst is not None:
            raise worst


def check_key(work: Work, identity_file: Path) -> Checked:
    """Open the newest good sealed dump, the newest base backup and the newest segment of WAL with the identity in a file.

    Of several identities each is tried alone. AccessError when none opens any of them; UsageError when nothing is sealed.
    """
    identities = read_identities(identity_file)
    found, plain = newest_sealed(work, open_repository(work.store))
    if not found and not plain:
        raise MissingError(
            f"there is no good dump in {work.store.url}, no good base backup, and no WAL",
            hints=["`clipper-backup dump create` takes one"],
        )
    said = f"{' and '.join(plain)} {'is' if len(plain) == 1 else 'are'} not sealed"
    if not found:
        raise UsageError(f"{said}, nor is an earlier one: what is not sealed opens without a key")
    if plain:
        hint = "whoever takes dumps and base backups, or archives WAL, each needs ENCRYPTION_RECIPIENTS in its own environment"
        work.emit(Warned(f"{said}: whoever can read the store can read it", (hint,)))
    tried = tuple(_try(work, each, identities, identity_file) for each in found)
    recipients = tuple(key for key in (each.recipient for each in identities) if all(key in one.recipients for one in tried))
    checked = Checked(recipients, tried, recorded=False)
    if not any(each.recipients for each in tried):
        checked.raise_problem()
    known = {key for each in found for key in each.recipients}
    for recipient in {key for each in tried for key in each.recipients} - set(work.settings.encryption_recipients or known):
        work.emit(Warned(f"{recipient} is none of ENCRYPTION_RECIPIENTS: the next backup will not open with it"))
    return replace(checked, recorded=bool(recipients) and _record(work, recipients, found))


def _try(work: Work, newest: Newest, identities: Sequence[Identity], identity_file: Path) -> Tried:
    opened: list[str] = []
    with step(work, "check key", f"open {newest.title} with {identity_file}") as running:
        try:
            for identity in identities:
                with suppress(AccessError):
                    newest.open(identity)
                    opened.append(identity.recipient)
        except (IntegrityError, NewerError) as error:
            running.done = f"{newest.title} was not opened"
            return Tried(newest, (), error)
        running.done = f"{newest.title}: {newest.part} opened"
        if opened:
            return Tried(newest, tuple(opened), None)
        running.done = f"{newest.title} does not open"
    have = ", ".join(identity.recipient for identity in identities)
    hint = f"it is sealed to {', '.join(newest.recipients)}" if newest.recipients else "whoever archived it had other recipients"
    return Tried(newest, (), AccessError(f"{newest.title} is sealed to other keys: {identity_file} holds {have}", hints=[hint]))


def _record(work: Work, recipients: Sequence[str], found: Sequence[Newest]) -> bool:
    """Whether every mark could be written. One that could not is told, for whoever may write it: it holds no secret."""
    recorded = True
    try:
        now = work.store.now()
    except ClipperError:  # asking a bucket writes
        now = work.clock.now()
    names_of = {each.kind: each.name for each in found}
    for recipient in recipients:
        key = f"{names.KEY_CHECKS_FOLDER}{recipient}"
        mark = encode(
            KeyCheck(
                recipient=recipient,
                dump_id=names_of.get("dump", ""),
                base_backup=names_of.get("base_backup", UNSET),
                segment=names_of.get("wal", UNSET),
                checked_at=now,
                checked_by=this_process(),
            )
        )
        try:
            open_repository(work.store, writing=True)
            work.store.put(key, mark)
        except ClipperError as error:
            told = f"the key opens it all the same; whoever may write into the store can record it, as the object {key}:"
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
