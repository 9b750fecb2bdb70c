"""The proof itself: what is promised, compared with what would remain (docs/design/prune.md).

It runs before anything is removed, over the whole plan and again over what each phase found anew; what it did not see is refused
by the store through which a prune removes (`permitted`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clipper_backup.errors import ClipperError, IntegrityError
from clipper_backup.repository.proof.archive import read_archive
from clipper_backup.repository.proof.base import BaseFacts, read_base
from clipper_backup.repository.proof.check_base import check_base, incomplete
from clipper_backup.repository.proof.check_wal import LineWindow, check_wal, windows_of
from clipper_backup.repository.proof.documents import Trust, Unread, read_mark
from clipper_backup.repository.proof.dumps import DumpPromise, check_dumps, read_dumps
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.store.protocol import Store
from clipper_backup.store.without import WithoutStore
from clipper_backup.values import DumpId

_SHOWN = 5
_HINTS = (
    "nothing was removed by what was checked; `clipper-backup prune --dry-run --json` lists all of it, as `proof.problems`",
    "this is no fault of your settings: either something changed at that moment, then the next run succeeds;",
    "or plan and proof contradict each other, which is a fault of clipper-backup: please report it with that output",
)


@dataclass(frozen=True, slots=True)
class Promises:
    """What the settings promise, and whose backups count."""

    window_days: int
    dumps: DumpPromise
    trust: Trust


@dataclass(frozen=True, slots=True)
class Proof:
    """What the check found. `problems`: what is promised and would be lost, in words; none: the plan may be carried out.

    `windows` are the lines of the archive with their instants before and after. `newest_dump` would be the newest good one
    afterwards. `incomplete` are base backups that lack something already, whatever is removed; `checked` what stays whole.
    """

    problems: tuple[str, ...] = ()
    windows: tuple[LineWindow, ...] = ()
    newest_dump: DumpId | None = None
    dumps: int = 0
    backups: int = 0
    incomplete: tuple[str, ...] = ()

    def refuse(self) -> None:
        """IntegrityError when something promised would be lost; it names the first of it."""
        if self.problems:
            shown = "; ".join(self.problems[:_SHOWN])
            more = f" (and {len(self.problems) - _SHOWN} more)" if len(self.problems) > _SHOWN else ""
            raise IntegrityError(f"the prune would take what is promised, and is refused: {shown}{more}", hints=_HINTS)


def prove(
    store: Store,
    removal: Removal,
    promises: Promises,
    *,
    now: datetime,
    with_dumps: bool = True,
    with_base: bool = True,
    with_wal: bool = True,
) -> Proof:
    """Read what is there, then what would remain without *removal*, and compare. *now* is the store's clock.

    Parts of which nothing goes may be left out, with what only they can show. Errors of the store pass through.
    """
    problems: list[str] = []
    dump_promise, window_days = _effective(store, promises, problems)
    edge = now - timedelta(days=window_days)
    view = WithoutStore(store, removal.has)
    dumps: Sequence[DumpId] = ()
    if with_dumps:
        before_dumps, after_dumps = read_dumps(store, promises.trust), read_dumps(view, promises.trust)
        problems += check_dumps(before_dumps, after_dumps, dump_promise, now)
        dumps = sorted(dump_id for dump_id, dump in after_dumps.items() if dump.good)
    windows: tuple[LineWindow, ...] = ()
    after: BaseFacts | None = None
    lacking: tuple[str, ...] = ()
    if with_base or with_wal:
        # What would remain is read last: a run that began meanwhile is seen there, and what it needs counts.
        unread = Unread()
        before = read_base(store, promises.trust, now, unread, {})
        after = read_base(view, promises.trust, now, unread, before.marks)
        problems += check_base(store, before, after, removal, edge, now)
        lacking = tuple(incomplete(after))
        if with_wal:
            problems += (f"{key} would go as a time map, and is none" for key in sorted(removal.maps) if not removal.has(key))
            begins = _begins(before)
            view.take_hidden()
            archive = read_archive(view, removal, begins, edge, unread)
            problems += check_wal(store, archive, before, after, edge, unread)
            windows = tuple(windows_of(archive, before, after, edge))
        problems += _unread_problems(unread, removal)
    return Proof(
        tuple(dict.fromkeys(problems)),
        windows,
        dumps[-1] if dumps else None,
        len(dumps),
        0 if after is None else sum(base.good for base in after.bases.values()),
        lacking,
    )


def permitted(removal: Removal) -> Callable[[str], bool]:
    """Which keys may be removed once *removal* was proven."""
    return removal.has


def _effective(store: Store, promises: Promises, problems: list[str]) -> tuple[DumpPromise, int]:
    """What is promised now: a number that fell since the last prune is announced, and counts from the next one on."""
    try:
        mark = read_mark(store)
    except ClipperError as error:
        if error.temporary:
            raise
        problems.append(f"{error}: nobody knows what the last prune announced")
        return promises.dumps, promises.window_days
    if mark is None:
        return promises.dumps, promises.window_days
    days = max(promises.dumps.days, mark.retention_days)
    window = mark.pitr_window_days if isinstance(mark.pitr_window_days, int) else promises.window_days
    return DumpPromise(days, promises.dumps.minimum), max(promises.window_days, window)


def _begins(facts: BaseFacts) -> dict[str, int]:
    """From which position on the archive of each system is listed: where its first backup begins."""
    begins: dict[str, int] = {}
    for base in facts.summarized:
        assert base.summary is not None  # noqa: S101  they are summarized
        system_id = base.summary.system_id
        begins[system_id] = min(base.start, begins.get(system_id, base.start))
    return begins


def _unread_problems(unread: Unread, removal: Removal) -> Iterator[str]:
    if removal.has_of_base():
        yield from (f"{each}: nobody knows which packs are needed" for each in unread.packs)
    if removal.backups or removal.summaries:
        yield from (f"{each}: nobody knows which base backup it needs" for each in unread.backups)
    if removal.wal:
        yield from (f"{each}: nobody knows which WAL is needed" for each in [*unread.wal, *unread.backups])
