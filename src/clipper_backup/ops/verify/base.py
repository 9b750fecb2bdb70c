"""The base backups of a `verify`: each one's documents and listings; every pack once, however many of them need it.

Damage of a pack is written beside each backup that needs it, as `base verify` does.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from clipper_backup.errors import AccessError, ClipperError, IntegrityError, StoreError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.documents import NewerError
from clipper_backup.format.packs import PackFacts
from clipper_backup.format.physical_names import PackKey, packs_named
from clipper_backup.ops.base.verify import (
    Look,
    mark_others,
    marks_of,
    own_wal_damage,
    packs_of,
    put_together,
    read_objects,
    read_packs_whole,
    settle,
)
from clipper_backup.ops.verify.units import TRUST_HINTS, Damage, Kind, Mode, Unit
from clipper_backup.ops.work import Work, step
from clipper_backup.repository.base_backups import (
    BaseCatalog,
    BaseEntry,
    damaged_when_taken,
    list_keys,
    list_packs,
    lost_keys,
    lost_packs,
    needed_packs,
)
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.verify_marks import naming
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.values import BackupId, show_bytes, show_count


@dataclass
class BaseSeen:
    """What was looked at: so many committed backups; of those that are damaged, what is wrong with each.

    `problems` are what somebody should look at although all is as it was committed. `files` of the newest were put together,
    where all was read.
    """

    backups: int = 0
    damaged: dict[BackupId, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    files: int = 0


@dataclass
class _Backup:
    """One of them, and what is wrong with it by itself.

    `opened`: nothing of its objects stayed closed, for want of a key or of a newer version; `whole`: its files were put together.
    """

    summary: BaseSummary
    damage: list[str] = field(default_factory=list)
    opened: bool = True
    whole: bool = False


class BaseLook:
    """A look at all base backups; what it reads of packs is what *kind* chooses."""

    def __init__(self, work: Work, kind: Kind, seen: BaseSeen) -> None:
        self._work, self._kind, self.seen = work, kind, seen
        self._begun_at = work.store.now()
        self._marks = marks_of(work)
        self._listed = list_packs(work.store)
        self._keys: set[BackupId] | None = None
        self._packs: dict[tuple[PackKey, PackFacts], None] = {}
        self._chosen: Collection[str] = ()
        self._are_packs_read = True

    def look(self) -> None:
        """Look at everything, and write down what is damaged.

        Temporary errors pass through where nothing was found yet; later ones are kept beside what was.
        """
        repository_id = open_repository(self._work.store).id
        catalog = BaseCatalog(self._work.store, repository_id, self._work.trusted)
        entries = [entry for entry in catalog.entries() if entry.listed.committed]
        self.seen.backups = len(entries)
        backups = [found for entry in entries if (found := self._documents(entry)) is not None]
        of_packs = self._read_packs(repository_id)
        if self._kind.mode is Mode.ALL and self._are_packs_read:
            self._put_newest_together(backups, packs_named(of_packs))
        for backup in backups:
            self._settle(backup, of_packs)
        damaged = [text for texts in self.seen.damaged.values() for text in texts]
        with self._told():
            mark_others(self._work, [BackupId.parse(backup.summary.id) for backup in backups], [*of_packs, *damaged])
        self._count(of_packs)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An error here hides nothing of what was found: it is told beside that."""
        try:
            yield
        except ClipperError as error:
            self._kind.unlooked.append(error)

    # -- one backup

    def _documents(self, entry: BaseEntry) -> _Backup | None:
        """Its documents and listings. None for one of which the summary says nothing."""
        backup_id = entry.listed.backup_id
        if entry.summary is None and entry.unreadable:
            self._kind.unlooked.append(StoreError(f"the base backup {backup_id} cannot be read here: {entry.problem}"))
        elif entry.summary is None and entry.untrusted:
            self._kind.unopened.append(IntegrityError(f"{backup_id}: {entry.problem}", hints=TRUST_HINTS))
        elif entry.summary is None:
            self.seen.damaged[backup_id] = [entry.problem or "its summary cannot be read"]
        if entry.summary is None:
            return None
        found = _Backup(entry.summary)
        if (problem := damaged_when_taken(entry.summary)) is not None:
            self.seen.problems.append(f"the base backup {backup_id}: {problem}")
        try:
            self._objects(found)
            packs = packs_of(self._work, found.summary, found.damage)
            if self._keys is None:
                self._keys = list_keys(self._work.store)
            found.damage += [*lost_keys(packs, self._keys), *lost_packs(packs, self._listed)]
            found.damage += own_wal_damage(self._work, found.summary)
        except ClipperError as error:
            if error.temporary:
                raise
            self._kind.unlooked.append(error)
            return None
        for of_run in packs.runs:
            run = BackupId.parse(of_run.run)
            for number, size_bytes, plain_bytes, _, digest in of_run.packs:
                self._packs[PackKey(run, number), PackFacts(size_bytes, plain_bytes, bytes.fromhex(digest))] = None
        return found

    def _objects(self, found: _Backup) -> None:
        opened = not found.summary.sealed or self._work.settings.encryption_identity_file is not None
        try:
            damage, newer = self._read(found, opened=opened)
        except AccessError as error:
            if not opened or not found.summary.sealed:
                raise
            self._kind.unopened.append(error)  # sealed to others: its bytes can be compared all the same
            opened = False
            damage, newer = self._read(found, opened=False)
        else:
            if not opened:
                self._kind.unopened.append(AccessError(f"{found.summary.id} is sealed, and there is no identity to open it"))
        found.damage += damage
        found.opened = opened and not newer
        self._kind.unlooked += newer

    def _read(self, found: _Backup, *, opened: bool) -> tuple[list[str], list[NewerError]]:
        damage: list[str] = []
        newer: list[NewerError] = []
        read_objects(self._work, found.summary, damage, newer, opened=opened)
        return damage, newer

    def _put_newest_together(self, backups: Sequence[_Backup], damaged: Collection[PackKey]) -> None:
        """The files of the newest backup, where it opens here: a forged page passes everything else.

        What is wrong because one of the *damaged* packs is, was told of that.
        """
        newest = max(backups, key=lambda each: each.summary.finished_at, default=None)
        if newest is None or not newest.opened:
            return
        newer: list[NewerError] = []
        with self._told():
            told: list[str] = []
            self.seen.files = put_together(self._work, newest.summary, told, newer)
            newest.damage += [text for text in told if not (of := packs_named([text])) or not of <= set(damaged)]
            newest.whole = not newer
        self._kind.unlooked += newer

    def _settle(self, backup: _Backup, of_packs: Collection[str]) -> None:
        """Write down what is wrong with it, by itself and by the packs that it needs."""
        backup_id = BackupId.parse(backup.summary.id)
        damage, newer = backup.damage, list[NewerError]()
        with self._told():
            needed = dict(needed_packs(packs_of(self._work, backup.summary, [])))
            damage = [*damage, *(text for text in naming(of_packs, needed) if text not in damage)]
            total = sum(needed.values())
            share = sum(size for pack, size in needed.items() if str(pack) in self._chosen) / total if total else 1.0
            look = Look(backup_id, self._begun_at, self._marks, share, whole=backup.whole)
            damage = settle(self._work, look, damage, needed, newer)
        if damage:
            self.seen.damaged[backup_id] = damage
        self._kind.unlooked += newer

    # -- packs

    def _read_packs(self, repository_id: str) -> list[str]:
        """Read those that were chosen, each once; what is wrong with them."""
        kind, damage = self._kind, list[str]()
        marked = packs_named(text for mark in self._marks.values() for text in mark.damage)
        kind.known = {*kind.known, *map(str, marked)}
        units = {str(pack): _unit(pack, facts, self._listed) for pack, facts in self._packs}
        there = {str(pack) for pack in self._listed}
        self._chosen = kind.choose([unit for key, unit in units.items() if key in there])
        wanted = [(pack, facts) for pack, facts in self._packs if str(pack) in self._chosen]
        try:
            read_packs_whole(self._work, repository_id, wanted, damage)
        except ClipperError as error:  # what was found until then is told and written down
            kind.unlooked.append(error)
            self._chosen, self._are_packs_read = (), False
        kind.count(units.values(), self._chosen, lost=units.keys() - there)
        return damage

    def _count(self, of_packs: Sequence[str]) -> None:
        kind = self._kind
        every = [*of_packs, *(text for texts in self.seen.damaged.values() for text in texts)]
        kind.damaged = {str(pack) for pack in packs_named(every)} & {str(pack) for pack, _ in self._packs}
        by_text: dict[str, list[BackupId]] = {}
        for backup_id, texts in self.seen.damaged.items():
            for text in texts:
                by_text.setdefault(text, []).append(backup_id)
        for text, of in by_text.items():
            of_pack = packs_named([text])
            key = str(min(of_pack)) if of_pack else names.base_key(of[0], names.BASE_SUMMARY)
            kind.damage.append(Damage(key, f"{text} (needed by {_named(of)})" if of_pack else f"{of[0]}: {text}", text))


def _named(backups: Sequence[BackupId]) -> str:
    more = f" and {show_count(len(backups) - 1, 'other')}" if len(backups) > 1 else ""
    return f"the base backup {max(backups)}{more}"


def look_at_base(work: Work, kind: Kind, seen: BaseSeen) -> None:
    """Look at every committed base backup, and read the packs that *kind* chooses; *seen* has what was found.

    Temporary errors pass through.
    """
    with step(work, "base backups", "look at every base backup") as running:
        BaseLook(work, kind, seen).look()
        told = f"{show_bytes(kind.read_bytes)} of {show_count(kind.units, 'pack')} read"
        running.done = f"{show_count(seen.backups, 'base backup')}, {told}"


def _unit(pack: PackKey, facts: PackFacts, listed: Mapping[PackKey, ObjectInfo]) -> Unit:
    """A pack; of one that is lost the run's time stands for Last-Modified."""
    info = listed.get(pack)
    return Unit(str(pack), facts.size_bytes, pack.run.at if info is None else info.modified_at)
