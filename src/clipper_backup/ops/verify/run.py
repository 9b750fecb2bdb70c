"""One run of `verify`: every kind of unit after the other, what damage costs, and the report that the next run goes on from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from clipper_backup.errors import ClipperError, IncompleteError, IntegrityError, WalGapError
from clipper_backup.format import names
from clipper_backup.format import physical_names as physical
from clipper_backup.format.documents import NewerError, VerifiedKind, VerifyDamage, VerifyReport
from clipper_backup.ops.base.verify import written_down
from clipper_backup.ops.events import Warned
from clipper_backup.ops.lost_instants import HEALS_HINTS, Cost, cost_of
from clipper_backup.ops.physical_plan import has_physical
from clipper_backup.ops.verify.base import BaseSeen, look_at_base
from clipper_backup.ops.verify.dumps import look_at_dumps
from clipper_backup.ops.verify.units import Damage, Kind, Mode
from clipper_backup.ops.verify.wal import WalLooked, look_at_wal
from clipper_backup.ops.wal.look import WalSeen
from clipper_backup.ops.work import SOFTWARE, Work
from clipper_backup.repository.base_backups import BaseEntry
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.rotation import next_arc
from clipper_backup.repository.verify_report import DAMAGE_MAX, kinds_of, read_report, write_report
from clipper_backup.values import show_first

T = TypeVar("T")
_KEYS_OF = {
    "dumps": (names.DATABASE_FOLDER,),
    "packs": (physical.PACKS_FOLDER, physical.BASE_FOLDER),
    "wal": (physical.WAL_FOLDER,),
}
"""How the keys begin of what is damaged of each kind."""


@dataclass(frozen=True, slots=True)
class VerifiedAll:
    """What a run looked at and found.

    `wal` is None where there is none, or it could not be looked at; `cost` where no base backup or WAL is wrong, or nobody could
    find out what that costs. `newest_good` is the newest base backup, where it and its own WAL are good. `noted`: the report was
    written.
    """

    begun_at: datetime
    ended_at: datetime
    mode: Mode
    cycle_days: int
    dumps: Kind
    packs: Kind
    files: Kind
    base: BaseSeen
    wal: WalSeen | None
    cost: Cost | None
    newest_good: BaseEntry | None
    noted: bool

    @property
    def kinds(self) -> tuple[Kind, Kind, Kind]:
        """All of them."""
        return self.dumps, self.packs, self.files

    @property
    def damage(self) -> list[Damage]:
        """All that is damaged."""
        return [each for kind in self.kinds for each in kind.damage]

    @property
    def unlooked(self) -> list[ClipperError]:
        """What could not be looked at."""
        return [each for kind in self.kinds for each in kind.unlooked]

    @property
    def unopened(self) -> list[ClipperError]:
        """What was not looked into: no key at hand opens it, or nobody trusted has signed it."""
        return [each for kind in self.kinds for each in kind.unopened]

    @property
    def problems(self) -> list[str]:
        """What somebody should look at although nothing that was read is damaged."""
        return [*self.base.problems, *([] if self.wal is None else self.wal.problems)]

    @property
    def cut(self) -> bool:
        """Whether not all that is there was counted, since something kept the run from looking."""
        return any(kind.cut for kind in self.kinds)

    @property
    def covered_share(self) -> float:
        """The share of all bytes that were counted which was read within the cycle, for sure."""
        total = sum(kind.size_bytes for kind in self.kinds)
        return sum(kind.covered_bytes for kind in self.kinds) / total if total else 1.0

    @property
    def next_steps(self) -> list[str]:
        """What to type about what is damaged."""
        steps = []
        if self.dumps.damage:
            steps.append("`clipper-backup dump create` takes another dump; `clipper-backup dump delete ID` removes a damaged one")
        of_wal = self.files.damaged or (self.wal is not None and self.wal.gaps)
        if self.base.damaged or of_wal:
            steps += [*HEALS_HINTS] if of_wal or self.newest_good is None else []
        if self.base.damaged:
            steps.append("`clipper-backup base delete ID` removes a damaged base backup that a newer good one follows")
            steps.append(
                "where it was mended, `clipper-backup base verify ID --read-data` reads it whole and takes the damage back"
            )
        if of_wal:
            steps.append("a segment that still lies in the server's pg_wal closes a gap: `clipper-backup wal push`")
        if self.wal is not None and any(each.problem for system in self.wal.systems for each in system.timelines):
            steps.append(
                "a history that is missing, or damaged and taken out of the store: `clipper-backup wal push pg_wal/HISTORY` on a"
                " server that has it; a new base backup of that server does without: `clipper-backup base create`"
            )
        if self.damage:
            steps.append("with versioning on, the bucket may still hold what was there before")
        return steps

    def raise_worst(self) -> None:
        """WalGapError, IntegrityError, what kept the run from looking, or IncompleteError: the first that there is reason for."""
        gaps = [] if self.wal is None else self.wal.gaps
        if gaps:
            told = [f"the WAL has a gap at {gap.first}: {gap.why}" for gap in gaps]
            raise WalGapError(show_first(told), hints=self.next_steps)
        if self.damage:
            raise IntegrityError(show_first([each.text for each in self.damage]), hints=self.next_steps)
        if self.unlooked:
            raise self.unlooked[0]
        if self.unopened:
            why = show_first([error.message for error in self.unopened])
            hints = self.unopened[0].hints or _IDENTITY_HINTS
            raise IncompleteError(f"what was read is as committed, and not all was looked into: {why}", hints=hints)
        if problems := self.problems:
            where = "`clipper-backup wal status` shows the archive, `clipper-backup base list` the base backups"
            raise IncompleteError(show_first(problems), hints=[where])


_IDENTITY_HINTS = ("set ENCRYPTION_IDENTITY_FILE to the file with an identity that opens it",)


def verify_all(work: Work, mode: Mode = Mode.ROTATION, *, share: float = 0.0) -> VerifiedAll:
    """Look at everything that is stored, and read what *mode* says, of each kind about *share* of all bytes for a sample.

    Damage is no error here. What could not be looked at does not keep the run from the others, and stands in the answer.
    """
    open_repository(work.store)
    begun_at = work.store.now()
    former, may_note = _former(work)
    kinds = {name: _kind(work, name, mode, former, begun_at, share) for name in _KEYS_OF}
    dumps, packs, files = kinds["dumps"], kinds["packs"], kinds["wal"]
    _attempt(dumps, lambda: look_at_dumps(work, dumps))
    base, wal = BaseSeen(), None
    if has_physical(work.store):
        _attempt(packs, lambda: look_at_base(work, packs, base))
        wal = _attempt(files, lambda: look_at_wal(work, files))
    cost = None if wal is None else _cost(work, files, base, wal)
    ended_at = work.store.now()
    found = VerifiedAll(
        begun_at, ended_at, mode, work.settings.verify_cycle_days, dumps, packs, files, base,
        None if wal is None else wal.seen, cost, None if wal is None else _newest_good(wal, base), noted=False,
    )  # fmt: skip
    noted = may_note and written_down(
        work, lambda: write_report(work.store, _report(found, kinds, former)), bad=bool(found.damage)
    )
    return replace(found, noted=noted)


def _former(work: Work) -> tuple[VerifyReport | None, bool]:
    """The last report, where it can be used; and whether another may be written in its place."""
    try:
        return read_report(work.store), True
    except NewerError as error:
        work.emit(Warned(f"{error.message}: it stays, and this run is written down nowhere", error.hints))
        return None, False
    except IntegrityError as error:
        work.emit(Warned(f"{error.message}: the rotation begins anew"))
        return None, True


def _kind(work: Work, name: str, mode: Mode, former: VerifyReport | None, now: datetime, share: float) -> Kind:
    rotation = None if former is None else kinds_of(former)[name].rotation
    if rotation is not None and rotation.covered_until > now:
        rotation = None  # a clock ran wrong
    cycle = timedelta(days=work.settings.verify_cycle_days)
    before = cycle if former is None else timedelta(days=former.cycle_days)
    known = set() if former is None else {each.key for each in former.damage}
    return Kind(name, mode, next_arc(rotation, before, now, cycle), rotation, share, known)


def _attempt(kind: Kind, look: Callable[[], T]) -> T | None:
    """What *look* found; None when it ended with an error, which the kind keeps."""
    try:
        return look()
    except ClipperError as error:
        kind.unlooked.append(error)
        kind.cut = True
        return None


def _cost(work: Work, files: Kind, base: BaseSeen, wal: WalLooked) -> Cost | None:
    """What is lost by all that is known to be wrong, also from before; None where nothing is wrong, or nobody could find out."""
    wrong = base.damaged or files.damage or wal.seen.gaps or any(each.problem for each in wal.seen.backups)
    if not wrong:
        return None
    try:
        return cost_of(work, wal.looker, wal.seen, bad_backups=base.damaged.keys(), bad_segments=wal.bad_segments)
    except ClipperError as error:
        files.unlooked.append(error)
        return None


def _newest_good(wal: WalLooked, base: BaseSeen) -> BaseEntry | None:
    """The newest base backup of all, where it is good, and no segment that it needs itself is damaged."""
    committed = [each for each in wal.seen.backups if each.listed.committed]
    newest = max(committed, key=lambda each: each.listed.backup_id, default=None)
    if newest is None or newest.summary is None or not newest.good or newest.listed.backup_id in base.damaged:
        return None
    first, last = newest.summary.first_segment, newest.summary.last_segment  # names of one timeline rise with their LSN
    bad = wal.bad_segments.get(newest.summary.system_id, ())
    return None if any(first <= name <= last for name in bad) else newest


def _report(found: VerifiedAll, kinds: dict[str, Kind], former: VerifyReport | None) -> VerifyReport:
    """What is written down. Of a kind that could not be looked at, what was known of it stays."""
    documents: dict[str, VerifiedKind] = {}
    damage: dict[str, str] = {}
    for name, kind in kinds.items():
        documents[name] = kind.document()
        for each in kind.damage:
            damage.setdefault(each.key, each.noted)
        if kind.unlooked and former is not None:
            documents[name] = kinds_of(former)[name] if kind.cut else documents[name]
            for known in former.damage:
                if known.key.startswith(_KEYS_OF[name]):
                    damage.setdefault(known.key, known.text)
    return VerifyReport(
        begun_at=found.begun_at,
        ended_at=found.ended_at,
        software=SOFTWARE,
        mode=found.mode.value,
        cycle_days=found.cycle_days,
        dumps=documents["dumps"],
        packs=documents["packs"],
        wal=documents["wal"],
        damaged=len(damage),
        damage=[VerifyDamage(key=key, text=text) for key, text in islice(damage.items(), DAMAGE_MAX)],
    )
