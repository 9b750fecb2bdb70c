"""`prune` and `dump delete`: what goes is decided by a pure plan, announced when it is new, and removed summary first."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from msgspec import UNSET

from clipper_backup.errors import IntegrityError, MissingError, ObjectMissingError, UsageError
from clipper_backup.format import names
from clipper_backup.format.documents import HoldMark, RetentionMark, decode, encode
from clipper_backup.ops.dump.read import Entry, catalog, summary_of
from clipper_backup.ops.events import Warned
from clipper_backup.ops.prune_proof import prover
from clipper_backup.ops.work import Work, step, this_process
from clipper_backup.repository.dumps import (
    UntrustedError,
    delete_objects,
    held_dumps,
    hold_dump,
    is_ahead,
    release_dump,
)
from clipper_backup.repository.leases import Lease
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.repository.retention import Decision, plan_retention
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.verify_report import damaged_dumps
from clipper_backup.store.protocol import Store
from clipper_backup.values import DumpId, show_bytes, show_count, show_names, show_time


@dataclass(frozen=True, slots=True)
class Plan:
    """What a prune would do. `announced` are dumps that go next time because RETENTION_DAYS fell since the last prune."""

    decisions: tuple[Decision, ...]
    announced: tuple[DumpId, ...]
    retention_days: int

    @property
    def going(self) -> tuple[Decision, ...]:
        """What is removed."""
        return tuple(decision for decision in self.decisions if not decision.keep)


def plan_prune(work: Work) -> Plan:
    """Decide, by the store's clock, without changing anything but the store's `clock` object."""
    entries = catalog(work)
    mark = last_prune(work.store)
    last = None if mark is None else mark.retention_days
    wanted = work.settings.retention_days
    now = work.store.now()
    effective = max(wanted, last) if last is not None else wanted
    decisions = _decide(work, entries, now, effective)
    announced: tuple[DumpId, ...] = ()
    if effective != wanted:
        later = {decision.dump_id for decision in _decide(work, entries, now, wanted) if not decision.keep}
        announced = tuple(decision.dump_id for decision in decisions if decision.keep and decision.dump_id in later)
    return Plan(tuple(decisions), announced, effective)


def execute_prune(work: Work, plan: Plan, lease: Lease) -> Plan:
    """Remove what the plan lets go, oldest first, as long as the lease is ours; then remember RETENTION_DAYS.

    Returns the plan as it was carried out: a dump that somebody held since it was made is kept. IntegrityError, and nothing was
    removed, when the proof finds that something promised would be lost.
    """
    open_repository(work.store, writing=True)
    held_since: set[DumpId] = set()
    proven = work.store
    if plan.going:
        proven = prover(work, with_dumps=True)(Removal(dumps=frozenset(decision.dump_id for decision in plan.going)))
    with step(work, "prune", "remove what is no longer kept") as running:
        for number, decision in enumerate(plan.going, 1):
            lease.check()
            if decision.dump_id in held_dumps(work.store):
                held_since.add(decision.dump_id)
            else:
                delete_objects(proven, decision.dump_id)
            running.progress(number, len(plan.going), "dumps")
        decisions = (replace(d, keep=True, reason="held") if d.dump_id in held_since else d for d in plan.decisions)
        done = replace(plan, decisions=tuple(decisions))
        freed = sum(decision.stored_bytes for decision in done.going)
        running.done = f"{show_count(len(done.going), 'dump')} removed, {show_bytes(freed)} freed"
    if plan.announced:
        shown = ", ".join(map(str, plan.announced[:5])) + (" …" if len(plan.announced) > 5 else "")
        hint = "set RETENTION_DAYS back, or `clipper-backup hold ID`, to keep them"
        work.emit(
            Warned(
                f"RETENTION_DAYS fell: the next prune removes {show_count(len(plan.announced), 'more dump')}: {shown}", (hint,)
            )
        )
    before = last_prune(work.store)
    window = UNSET if before is None else before.pitr_window_days
    mark = RetentionMark(retention_days=work.settings.retention_days, pruned_at=work.clock.now(), pitr_window_days=window)
    work.store.put(names.RETENTION, encode(mark))
    return done


def _decide(work: Work, entries: list[Entry], now: datetime, days: int) -> list[Decision]:
    found = damaged_dumps(work.store)
    return plan_retention(
        [entry.listed for entry in entries],
        now=now,
        retention_days=days,
        minimum=work.settings.retention_min_dumps,
        databases={entry.listed.dump_id: entry.summary.databases for entry in entries if entry.summary is not None},
        held={entry.listed.dump_id for entry in entries if entry.hold is not None},
        damaged={
            entry.listed.dump_id
            for entry in entries
            if not entry.untrusted and (entry.problem is not None or entry.listed.dump_id in found)
        },
        untrusted={entry.listed.dump_id for entry in entries if entry.untrusted},
    )


def last_prune(store: Store) -> RetentionMark | None:
    """What the last prune left for the next, None before the first. IntegrityError or StoreError while no prune may run."""
    try:
        data = store.get(names.RETENTION)
    except ObjectMissingError:
        return None
    try:
        return decode(data, RetentionMark, names.RETENTION)
    except IntegrityError as error:
        hint = f"remove the object {names.RETENTION}: the next prune goes by RETENTION_DAYS, and announces nothing before"
        raise IntegrityError(f"{error.message}; no prune runs until it is removed", hints=[hint]) from error


def check_deletable(work: Work, dump_id: DumpId, *, last: bool = False) -> None:
    """UsageError when a dump must not be deleted by hand. MissingError when there is none.

    That is one that is held, the newest good one, and, unless *last*, the newest good one that holds some database, and one
    of which only we may be wrong while no other holds its databases: that is not trusted (SIGNATURE_KEYS), that cannot be read
    here, or that is whole and whose id lies ahead of the clock. One that lies ahead protects no other: while it is there, no dump
    can be taken.
    """
    open_repository(work.store, writing=True)
    entries = catalog(work)
    wanted = next((entry for entry in entries if entry.listed.dump_id == dump_id), None)
    if wanted is None:
        raise MissingError(f"there is no dump {dump_id}", hints=["`clipper-backup dump list` shows them"])
    _check_not_held(work, dump_id)
    now, found = work.store.now(), damaged_dumps(work.store)
    whole = [entry for entry in entries if entry.summary is not None and entry.problem is None]
    good = [each for each in whole if not is_ahead(each.listed.dump_id, now) and each.listed.dump_id not in found]
    if not last:
        _check_dispensable(wanted, [entry for entry in good if entry is not wanted], now)
    if wanted in good:
        newer = {name for entry in good if entry.listed.dump_id > dump_id for name in _databases(entry)}
        _check_others_hold(wanted, newer, last=last)


def _databases(entry: Entry) -> Sequence[str]:
    return () if entry.summary is None else entry.summary.databases


def _check_dispensable(wanted: Entry, others: Collection[Entry], now: datetime) -> None:
    """UsageError when it may be we who are wrong about *wanted*, and the *others*, which are good, do not hold what it holds."""
    dump_id = wanted.listed.dump_id
    if not wanted.listed.committed:
        return
    if wanted.untrusted:
        what = f"is not trusted: {wanted.problem}"
        hint = "is SIGNATURE_KEYS right? with the key that signed it, it may be good"
    elif wanted.unreadable:
        what, hint = f"cannot be read here: {wanted.problem}", "whoever can read it may find it good"
    elif wanted.problem is None and is_ahead(dump_id, now):
        what, hint = "lies ahead of the store's clock", "is that clock right? if it runs behind, this may be the newest good dump"
    else:
        return
    good = {name for entry in others for name in _databases(entry)}
    only = [name for name in _databases(wanted) if name not in good]
    if only or not good:
        raise UsageError(
            f"no good dump but {dump_id} holds {show_names(only) or 'any database'}, and it {what}",
            hints=[hint, "--last removes it all the same"],
        )


def _check_others_hold(wanted: Entry, newer: Collection[str], *, last: bool) -> None:
    """UsageError when newer good dumps, which hold the databases *newer*, do not make a good dump dispensable."""
    if not newer:
        raise UsageError(
            f"{wanted.listed.dump_id} is the newest good dump: without it the database cannot be restored as of then",
            hints=["take another dump first"],
        )
    only = show_names([name for name in _databases(wanted) if name not in newer])
    if only and not last:
        raise UsageError(
            f"{wanted.listed.dump_id} is the newest good dump that holds {only}",
            hints=["dump that database again first", "or --last, if nobody will want it back"],
        )


def _check_not_held(work: Work, dump_id: DumpId) -> None:
    if dump_id in held_dumps(work.store):
        raise UsageError(f"the dump {dump_id} is held", hints=[f"`clipper-backup release {dump_id}` first"])


def delete_dump(work: Work, dump_id: DumpId, lease: Lease, *, last: bool = False) -> None:
    """Remove one dump, under the lease; refused like `check_deletable`."""
    check_deletable(work, dump_id, last=last)
    lease.check()
    with step(work, "delete", f"delete {dump_id}") as running:
        _check_not_held(work, dump_id)  # by somebody, since the check above
        delete_objects(work.store, dump_id)
        running.done = f"deleted {dump_id}"


def hold(work: Work, dump_id: DumpId, reason: str) -> None:
    """Keep a dump, whatever its age, until it is released. One that is not trusted is kept too, and that is said."""
    open_repository(work.store, writing=True)
    try:
        summary_of(work, dump_id)
    except UntrustedError as error:
        work.emit(Warned(str(error), error.hints[:1]))
    if (mark := held_dumps(work.store).get(dump_id)) is not None:
        told = f"{dump_id} is held already, by {mark.held_by} since {show_time(mark.held_at)}: {mark.reason}"
        work.emit(Warned(told, ("that hold stays as it is: release it only when nobody needs it any more",)))
        return
    hold_dump(work.store, dump_id, HoldMark(reason=reason, held_by=this_process(), held_at=work.clock.now()))


def release(work: Work, dump_id: DumpId) -> None:
    """Take a hold back."""
    open_repository(work.store, writing=True)
    release_dump(work.store, dump_id)
