"""Prune and a backup at the same time, at every call of either (G1): what is committed has every pack that it names."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import IntegrityError, LeaseLostError, MissingError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseIntent, PacksDocument, PacksOfRun
from clipper_backup.format.documents import encode
from clipper_backup.repository.adoption import Fate, doomed_by, plan_adoption
from clipper_backup.repository.base_backups import list_base_backups, read_base_summary, read_packs
from clipper_backup.repository.base_prune import delete_doomed, doom, remove_backup, remove_unfinished
from clipper_backup.repository.base_run import BaseRun, begin_intent, read_prune_records
from clipper_backup.repository.leases import acquire_lease
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures.base_repository import PARTS, WithoutIntents, days, keys_below, put_backup, put_packs, put_repository, summary_of
from fixtures.clocks import START
from fixtures.sweeps import chosen

pytestmark = pytest.mark.no_cover  # measuring doubles its time, and others pass its lines

GRACE_DAYS = 1.25


class SleepersClock:
    """The store's clock for a process whose own threads never come to do anything: it is stopped, or the machine sleeps."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._driver = threading.get_ident()
        self.now, self.monotonic, self.since_boot = clock.now, clock.monotonic, clock.since_boot
        self.sleep = clock.sleep

    def wait(self, event: threading.Event, seconds: float) -> bool:  # noqa: ARG002  the protocol's
        if threading.get_ident() == self._driver:
            return event.is_set()
        return event.wait(60)


class Interrupted(WrapperStore):
    """Before its call number *at* something else happens; counts its calls."""

    def __init__(self, inner: Store, at: int, happens: Callable[[], object]) -> None:
        super().__init__(inner)
        self.calls, self._at, self._happens = 0, at, happens

    def _before(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            self._happens()

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        self._before()
        super().put(key, data, create=create)

    def put_stream(self, key: str, chunks: Any, *, expected_bytes: int | None = None) -> int:
        self._before()
        return super().put_stream(key, chunks, expected_bytes=expected_bytes)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self._before()
        return super().get(key, start=start, length=length)

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        self._before()
        return super().get_stream(key, start=start, same_as=same_as)

    def head(self, key: str) -> ObjectInfo:
        self._before()
        return super().head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._before()
        return super().list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        self._before()
        super().delete(keys)


def prune(store: Store, *going: BackupId) -> None:
    def ours() -> None:
        """The lease is."""

    for backup_id in going:
        remove_backup(store, backup_id, ours)
    remove_unfinished(store, ours)
    doom(store, ours)
    delete_doomed(store, ours)


class Careless(BaseRun):
    """Broken on purpose: a run that does not look before and after its commit."""

    def _check(self, *_: object) -> None:
        pass


def back_up(store: Store, clock: VirtualClock, kind: type[BaseRun] = BaseRun) -> None:
    """A backup as `base create` makes it, of the newest one's packs and one of its own; it may refuse to be committed."""
    own_clock = SleepersClock(clock)
    with acquire_lease(
        store, own_clock, "base", lease_seconds=60, wait_seconds=0, holder="a test", run_id="a test", purpose="a test"
    ) as lease:
        committed = [listed.backup_id for listed in list_base_backups(store) if listed.committed]
        parent = max(committed, default=None)
        of_parent = None if parent is None else read_base_summary(store, parent)

        def intended(backup_id: BackupId) -> BaseIntent:
            parents = [] if parent is None else [str(parent)]
            return BaseIntent(id=str(backup_id), parents=parents, holder="a test", software="a test", begun_at=clock.now())

        with begin_intent(store, own_clock, committed, parent, intended) as intent:
            run = kind(store, intent, lease, None)
            rows = [] if of_parent is None else adopted(store, clock, read_packs(store, of_parent))
            put_packs(store, run.backup_id, [0])
            rows.append(PacksOfRun(run=str(run.backup_id), sealed=False, packs=[(0, 6, 100, 100, "22" * 32)]))
            packs = PacksDocument(id=str(run.backup_id), runs=rows)
            objects = [run.keep(part, [part.encode()]) for part in PARTS]
            objects.append(run.keep(names.PACKS, [encode(packs)]))
            run.commit(summary_of(store, run.backup_id, objects, start=9), packs)


def adopted(store: Store, clock: VirtualClock, parent: PacksDocument) -> list[PacksOfRun]:
    doomed = doomed_by(read_prune_records(store))
    plan = plan_adoption(
        parent,
        list(store.list(names.PACKS_FOLDER)),
        doomed=doomed,
        sealed=False,
        opens=lambda _: True,
        now=clock.now(),
        max_age=timedelta(days=100),
    )
    runs = []
    for of_run in parent.runs:
        kept = [row for row in of_run.packs if plan.fate(names.PackKey(BackupId.parse(of_run.run), row[0])) is Fate.ADOPTED]
        if kept:
            runs.append(PacksOfRun(run=of_run.run, sealed=False, packs=kept))
    return runs


class World:
    """A backup that was removed a while ago, whose packs are doomed or named by the next one, which is removed now."""

    def __init__(self) -> None:
        self.clock = VirtualClock(START)
        self.store = MemoryStore(self.clock)
        put_repository(self.store)
        first = put_backup(self.store, own=(0, 1))
        days(self.clock, 1)
        self.going = put_backup(self.store, own=(0, 1), adopted={first: (0,)})
        prune(self.store, first)
        days(self.clock, GRACE_DAYS)

    @property
    def pruned(self) -> Store:
        """The repository as the prune that comes between sees it."""
        return self.store

    def prune(self) -> None:
        prune(self.pruned, self.going)

    def prune_for_days(self) -> None:
        """The other process sleeps meanwhile."""
        self.prune()
        for _ in range(2):
            days(self.clock, GRACE_DAYS)
            prune(self.pruned)

    def check(self) -> int:
        """Prune until nothing changes any more; every committed backup has all it names. Returned is how many there are."""
        for _ in range(3):
            days(self.clock, GRACE_DAYS)
            prune(self.store)
        committed = [listed for listed in list_base_backups(self.store) if listed.committed]
        there = keys_below(self.store, "packs/")
        needed: set[str] = set()
        for listed in committed:
            document = read_packs(self.store, read_base_summary(self.store, listed.backup_id))
            needed |= {names.pack_key(BackupId.parse(of.run), number) for of in document.runs for number, *_ in of.packs}
        assert needed <= there, "a committed backup lacks packs"
        assert there <= needed, "garbage stays for ever"
        return len(committed)


class BlindWorld(World):
    """Broken on purpose: the prune sees no intents."""

    @property
    def pruned(self) -> Store:
        return WithoutIntents(self.store)


def attempt(doing: Callable[[Store, VirtualClock], object], store: Store, clock: VirtualClock) -> None:
    """A backup that refuses to be committed is no failure."""
    with suppress(IntegrityError, MissingError, LeaseLostError):
        doing(store, clock)


def interleave(meanwhile: Callable[[World], None], kind: type[BaseRun] = BaseRun, world_of: type[World] = World) -> set[int]:
    """A prune at every call of a backup; returned is how many backups there were at the end."""
    doing = partial(back_up, kind=kind)
    world = world_of()
    counting = Interrupted(world.store, 0, print)
    doing(counting, world.clock)
    assert world.check() == 2
    found = set()
    for at in chosen(range(1, counting.calls + 1), 100):
        world = world_of()
        attempt(doing, Interrupted(world.store, at, partial(meanwhile, world)), world.clock)
        found.add(world.check())
    return found


@pytest.mark.rule(76)
@pytest.mark.rule(99)
@pytest.mark.parametrize("meanwhile", [World.prune, World.prune_for_days])
def test_prune_and_backup_interleaved_at_every_call(meanwhile: Callable[[World], None]) -> None:
    found = interleave(meanwhile)
    if meanwhile is World.prune:
        assert found == {0, 1}, "it must be tried with backups that come to be and such that do not"


def test_a_backup_at_every_call_of_prune() -> None:
    world = World()
    counting = Interrupted(world.store, 0, print)
    prune(counting, world.going)
    found = set()
    for at in chosen(range(1, counting.calls + 1), 100):
        world = World()
        prune(Interrupted(world.store, at, partial(attempt, back_up, world.store, world.clock)), world.going)
        found.add(world.check())
    assert 1 in found


def test_intents_protect_a_run_that_does_not_look() -> None:
    assert interleave(World.prune, Careless) == {0, 1}


def test_looking_protects_a_run_whose_intent_nobody_sees() -> None:
    assert interleave(World.prune, world_of=BlindWorld) == {0, 1}


def test_without_either_a_committed_backup_lacks_packs() -> None:
    with pytest.raises((AssertionError, IntegrityError), match=r"lacks packs|packs\.json\.zst is missing"):
        interleave(World.prune, Careless, BlindWorld)


def test_a_sleeper_that_does_not_look_lacks_packs() -> None:
    """Its intent is dead when it wakes."""
    with pytest.raises((AssertionError, IntegrityError), match=r"lacks packs|nobody knows which packs"):
        interleave(World.prune_for_days, Careless)
