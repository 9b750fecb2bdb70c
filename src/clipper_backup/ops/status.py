"""`status`: what could be restored now, from the repository alone: no database, no Prometheus and no key is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from clipper_backup.errors import ClipperError, IntegrityError, StoreError
from clipper_backup.format.documents import DumpSummary, HoldMark, KeyCheck, RetentionMark, VerifyReport
from clipper_backup.ops.dump.prune import last_prune
from clipper_backup.ops.dump.read import Entry, catalog
from clipper_backup.ops.key_check import key_checks
from clipper_backup.ops.lease import LEASES
from clipper_backup.ops.work import Work
from clipper_backup.repository.dumps import held_dumps, is_ahead, newest
from clipper_backup.repository.leases import Held, held_lease
from clipper_backup.repository.verify_report import read_report
from clipper_backup.values import DumpId, show_names, show_seconds


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest good dump of one database, last of all `dumps` that hold it. `stored_bytes` are of this database's archive.

    `wanted` says whether the next dump will hold it: BACKUP_DATABASES does, or without those the newest good dump of all.
    """

    database: str
    dumps: tuple[DumpSummary, ...]
    stored_bytes: int
    wanted: bool

    @property
    def summary(self) -> DumpSummary:
        """The newest."""
        return self.dumps[-1]

    @property
    def taken_at(self) -> datetime:
        """When it was begun, by the store's clock: its snapshots came after."""
        return self.summary.taken_at


@dataclass(frozen=True, slots=True)
class OpenedBy:
    """A key that a newest good backup is sealed to, and the last time it is recorded to have opened what is stored, if it is.

    `unread` says why the mark of that cannot be read, None where it can, or where there is none.
    """

    recipient: str
    check: KeyCheck | None
    unread: str | None

    def opened(self, summary: DumpSummary) -> bool:
        """Whether the last check was of this very dump."""
        return self.check is not None and self.check.dump_id == summary.id


def opened_by(work: Work, recipients: Sequence[str]) -> tuple[OpenedBy, ...]:
    """What is recorded of each of those keys."""
    checks, unread = key_checks(work) if recipients else ({}, {})
    return tuple(OpenedBy(key, checks.get(key), unread.get(key)) for key in recipients)


@dataclass(frozen=True, slots=True)
class Status:
    """What the repository holds, judged at `now`.

    `missing` are the databases that should be in a dump and are in no good one. `gone` are those that the newest good dump no
    longer holds, where nobody said which there should be: that one may have been taken by hand, of one database. `keys` are
    those of the dumps `sealed`.
    `holds` may name dumps that are not there. `pruned` is what the last prune left, None before the first. `verified` is what the
    last `verify` of everything found, None before the first; `verified_unread` says why that cannot be read, where it cannot.
    """

    now: datetime
    entries: tuple[Entry, ...]
    newest: tuple[Newest, ...]
    missing: tuple[str, ...]
    gone: tuple[Newest, ...]
    keys: tuple[OpenedBy, ...]
    holds: Mapping[DumpId, HoldMark]
    leases: Mapping[str, Held]
    pruned: RetentionMark | None
    signatures_checked: bool
    problems: tuple[str, ...]
    verified: VerifyReport | None = None
    verified_unread: ClipperError | None = None

    @property
    def good(self) -> tuple[DumpSummary, ...]:
        """The dumps that can be restored, oldest first."""
        return tuple(e.summary for e in self.entries if e.summary is not None and e.problem is None)

    @property
    def damaged(self) -> tuple[Entry, ...]:
        """Committed dumps that lack something, or whose summary cannot be read."""
        return tuple(e for e in self.entries if e.problem is not None and not e.untrusted)

    @property
    def untrusted(self) -> tuple[Entry, ...]:
        """Dumps that no trusted key has signed."""
        return tuple(e for e in self.entries if e.untrusted)

    @property
    def unfinished(self) -> tuple[Entry, ...]:
        """Ids that are being written, or were left by a killed run."""
        return tuple(e for e in self.entries if not e.listed.committed)

    @property
    def whole(self) -> tuple[DumpSummary, ...]:
        """Those of the good dumps that hold every wanted database."""
        wanted = {*self.missing, *(each.database for each in self.newest if each.wanted)}
        return tuple(summary for summary in self.good if wanted <= set(summary.databases))

    @property
    def sealed(self) -> tuple[DumpSummary, ...]:
        """Of the newest good dumps of the wanted databases and of those `gone` those that open with a key only, oldest first."""
        return _sealed(self.newest, self.gone)

    @property
    def recoverable(self) -> bool:
        """Whether each database that should be in a dump is in a good one."""
        return bool(self.good) and not self.missing

    @property
    def recoverable_to(self) -> datetime | None:
        """What was committed before this moment is in a good dump of every wanted database; None when one has none."""
        if not self.recoverable:
            return None
        return min(each.taken_at for each in self.newest if each.wanted)


def look_at_repository(work: Work) -> Status:
    """Read the catalog and all marks beside it; nothing is written. NoRepositoryError where there is none.

    It is judged by this machine's clock where the store is open for reading only: to ask the store's would write.
    """
    entries = tuple(catalog(work))
    configured = work.settings.backup_databases
    good = [e.summary for e in entries if e.summary is not None and e.problem is None]
    newest_of_each, missing = _newest(good, configured)
    gone = () if configured else tuple(each for each in newest_of_each if not each.wanted)
    recipients = list(dict.fromkeys(key for summary in reversed(_sealed(newest_of_each, gone)) for key in summary.recipients))
    pruned, unread = _of_mark(lambda: last_prune(work.store))
    verified, verified_unread = _of_mark(lambda: read_report(work.store))
    status = Status(
        now=work.store.now(),
        entries=entries,
        newest=newest_of_each,
        missing=missing,
        gone=gone,
        keys=opened_by(work, recipients),
        holds=held_dumps(work.store),
        leases={name: held for name in LEASES if (held := held_lease(work.store, name)) is not None},
        pruned=pruned,
        signatures_checked=bool(work.trusted),
        problems=(),
        verified=verified,
        verified_unread=verified_unread,
    )
    found = _problems(status, timedelta(hours=work.settings.dump_max_age_hours))
    return replace(status, problems=(*found, *(error.message for error in (unread, verified_unread) if error is not None)))


M = TypeVar("M")


def _of_mark(read: Callable[[], M | None]) -> tuple[M | None, ClipperError | None]:
    """What a mark says, None where there is none; and what is wrong with it."""
    try:
        return read(), None
    except (IntegrityError, StoreError) as error:
        if error.temporary:
            raise
        return None, error


def _newest(good: Sequence[DumpSummary], configured: Sequence[str]) -> tuple[tuple[Newest, ...], tuple[str, ...]]:
    """Of each database that a good dump holds the newest one, by name; and the wanted databases that none holds."""
    wanted = list(configured) or (good[-1].databases if good else [])
    holding: dict[str, list[DumpSummary]] = {}
    for summary in good:
        for name in summary.databases:
            holding.setdefault(name, []).append(summary)
    found = []
    for name, summaries in sorted(holding.items()):
        archive = summaries[-1].archive_of(name)
        assert archive is not None  # noqa: S101  it names the database
        found.append(Newest(name, tuple(summaries), archive.size_bytes, name in wanted))
    return tuple(found), tuple(name for name in wanted if name not in holding)


def _sealed(newest: Sequence[Newest], gone: Sequence[Newest]) -> tuple[DumpSummary, ...]:
    looked_at = [each.summary for each in newest if each.wanted or each in gone]
    found = {summary.id: summary for summary in looked_at if summary.sealed}
    return tuple(found[dump_id] for dump_id in sorted(found))


def _problems(status: Status, longest: timedelta) -> list[str]:
    """What somebody should look at although everything can be restored to some moment; the exit code is 3 then."""
    problems = []
    last = newest([entry.listed for entry in status.entries])
    if last is not None and is_ahead(last, status.now):
        problems.append(
            f"{last} lies {show_seconds((last.at - status.now).total_seconds())} ahead of this machine's clock: by that clock no"
            " dump can be taken before then; the check `clock` of `clipper-backup doctor` says what to do"
        )
    for each in status.newest:
        age = status.now - each.taken_at
        if each.wanted and age > longest:
            problems.append(
                f"the newest good dump of {show_names([each.database])} is {show_seconds(age.total_seconds())} old,"
                f" more than DUMP_MAX_AGE_HOURS ({longest.total_seconds() / 3600:.0f})"
            )
    problems += [
        f"{entry.listed.dump_id} {'cannot be read' if entry.unreadable else 'is damaged'}: {entry.problem}"
        for entry in status.damaged
    ]
    problems += [f"{entry.listed.dump_id} is not trusted: {entry.problem}" for entry in status.untrusted]
    problems += [f"{key.unread}; `key check --identity FILE` writes it anew" for key in status.keys if key.unread]
    if status.verified is not None and status.verified.damage:
        damage = status.verified.damage
        more = f" (and {status.verified.damaged - 1} more)" if status.verified.damaged > 1 else ""
        problems.append(f"the last verify found damage: {damage[0].text}{more}; `clipper-backup verify` looks again")
    if status.keys and not any(key.check or key.unread for key in status.keys):
        problems.append(f"{status.sealed[-1].id} is sealed, and no check of a key is recorded: `key check --identity FILE`")
    return problems
