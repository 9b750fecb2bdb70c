"""A base backup's order of writes, its intent and its commit, in a store in memory (steps 1 to 10, B1, P4, G3)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import msgspec
import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import (
    AccessError,
    ClipperError,
    IntegrityError,
    LeaseLostError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseIntent, BaseSummary, PacksDocument, PruneRecord, Started
from clipper_backup.format.documents import decode, encode
from clipper_backup.repository.base_backups import list_base_backups, read_base_summary
from clipper_backup.repository.base_intents import RENEW_SECONDS, LiveIntent
from clipper_backup.repository.base_run import BaseRun, begin_intent
from clipper_backup.repository.leases import Lease, acquire_lease
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId, Timeline
from fixtures.base_repository import PARTS, packs_document, put_backup, put_packs, put_repository, summary_of
from fixtures.clocks import START, SteppedClock

HOUR = 3600.0


def intended(parent: BackupId | None = None) -> Callable[[BackupId], BaseIntent]:
    parents = [] if parent is None else [str(parent)]
    return lambda backup_id: BaseIntent(
        id=str(backup_id), parents=parents, holder="a test", software="a test", begun_at=backup_id.at
    )  # fmt: skip


class Made:
    """A run that has written everything but its summary."""

    def __init__(self, store: Store, intent: LiveIntent, lease: Lease, *, sealed: bool = False) -> None:
        self.store, self.intent = store, intent
        self.run = BaseRun(store, intent, lease, None)
        put_packs(store, intent.backup_id, [0, 1], key=sealed)
        objects = [self.run.keep(part, [f"{part} of {intent.backup_id}".encode()]) for part in PARTS]
        self.packs: PacksDocument = packs_document(intent.backup_id, {intent.backup_id: [0, 1]}, sealed=sealed)
        objects.append(self.run.keep(names.PACKS, [encode(self.packs)]))
        recipients = ["age1x"] if sealed else []
        self.summary: BaseSummary = msgspec.structs.replace(
            summary_of(store, intent.backup_id, objects), recipients=recipients, timeline=2
        )  # fmt: skip
        for suffix in (names.CLAIM, names.STORED):
            store.put(self.history(suffix), b"looked for, and not into")

    def history(self, suffix: str) -> str:
        """The key of its timeline's."""
        return names.history_key(self.summary.system_id, Timeline(self.summary.timeline), suffix)

    def commit(self) -> None:
        self.run.commit(self.summary, self.packs)


@contextmanager
def made(store: Store, clock: VirtualClock, *, sealed: bool = False) -> Iterator[Made]:
    with (
        acquire_lease(
            store, SteppedClock(), "base", lease_seconds=60, wait_seconds=0, holder="a test", run_id="a test", purpose="a test"
        ) as lease,
        begin_intent(store, SteppedClock(), [], None, intended()) as intent,
    ):
        yield Made(store, intent, lease, sealed=sealed)


@pytest.fixture
def store(memory: MemoryStore) -> MemoryStore:
    put_repository(memory)
    return memory


def committed(store: Store) -> list[BackupId]:
    return [listed.backup_id for listed in list_base_backups(store) if listed.committed]


# -- step 1


def test_an_id_is_newer_than_every_committed_one(store: MemoryStore, clock: VirtualClock) -> None:
    for seconds in (0, 1, 59):
        newest = BackupId.make(clock.now() + timedelta(seconds=seconds))
        with begin_intent(store, SteppedClock(), [newest], None, intended()) as intent:
            assert intent.backup_id > newest
            assert decode(store.get(names.base_key(intent.backup_id, names.BASE_INTENT)), BaseIntent, "x").parents == []


def test_of_one_second_chance_does_not_say_which_is_newer(store: MemoryStore, clock: VirtualClock) -> None:
    newest = BackupId(f"{BackupId.make(clock.now()).text[:15]}-ffffffff")
    clock.sleep(0.5)
    with begin_intent(store, SteppedClock(), [newest], None, intended()) as intent:
        assert intent.backup_id.at == newest.at + timedelta(seconds=1)


def test_a_clock_that_is_behind_is_refused(store: MemoryStore, clock: VirtualClock) -> None:
    newest = BackupId.make(clock.now() + timedelta(seconds=61))
    with pytest.raises(ClipperError, match=f"the newest base backup is {newest}"):
        begin_intent(store, SteppedClock(), [newest], None, intended())
    assert not list(store.list("base/"))


def test_a_parent_that_was_deleted_meanwhile_is_no_parent(store: MemoryStore, clock: VirtualClock) -> None:
    parent = put_backup(store)
    store.delete([names.base_key(parent, names.BASE_SUMMARY)])
    before = {info.key for info in store.list("base/")}
    with pytest.raises(ObjectMissingError):
        begin_intent(store, SteppedClock(), [], parent, intended(parent))
    assert {info.key for info in store.list("base/")} == before


# -- the intent


def test_an_intent_is_renewed_every_hour_with_the_same_bytes(store: MemoryStore) -> None:
    clock = SteppedClock()
    old = MemoryStore(clock)
    with begin_intent(old, clock, [], None, intended()) as intent:
        key = names.base_key(intent.backup_id, names.BASE_INTENT)
        first = old.get(key)
        clock.until_waiting(1)
        for hours in range(1, 31):
            clock.advance(RENEW_SECONDS)
            assert (old.head(key).modified_at - START).total_seconds() == hours * HOUR
            intent.check()
        assert old.get(key) == first


def test_run_wakes_after_prune_took_it_for_dead(store: MemoryStore, clock: VirtualClock) -> None:
    with made(store, clock) as run:
        clock.advance(12 * HOUR + 1)
        for _ in range(2):
            with pytest.raises(IntegrityError, match="was not renewed for 12 h"):
                run.intent.renew()
        with pytest.raises(ClipperError):
            run.commit()
        assert committed(store) == []


def test_a_run_whose_intent_is_gone_does_not_commit(store: MemoryStore, clock: VirtualClock) -> None:
    with made(store, clock) as run:
        store.delete([names.base_key(run.intent.backup_id, names.BASE_INTENT)])
        with pytest.raises(IntegrityError, match="is gone: a prune took this run for dead"):
            run.commit()
        assert committed(store) == []


def test_a_renewal_that_was_answered_late_ends_the_run(store: MemoryStore, clock: VirtualClock) -> None:
    class Sleepy(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            if not create:
                clock.advance(12 * HOUR + 1)
            self._inner.put(key, data, create=create)

    intent = LiveIntent(Sleepy(store), _Slept(clock), intended()(BackupId.make(clock.now())))
    with intent:
        with pytest.raises(IntegrityError, match="took 12 h"):
            intent.renew()
        with pytest.raises(IntegrityError, match="took 12 h"):
            intent.check()


class _Slept(SteppedClock):
    """While the machine slept, nobody who waits on this one noticed."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def since_boot(self) -> float:
        return self._clock.since_boot()


# -- objects


def test_what_was_written_is_read_back(store: MemoryStore, clock: VirtualClock) -> None:
    with made(store, clock) as run:
        broken = BaseRun(FaultyStore(store, "get_stream:1:flip", clock), run.intent, run.run._lease, None)
        with pytest.raises(StoreError, match="other bytes"):
            broken.keep(names.LABEL, [b"label"])


def test_started_says_where_the_server_began(store: MemoryStore, clock: VirtualClock) -> None:
    with made(store, clock) as run:
        started = Started(
            id=str(run.intent.backup_id), system_id="7", timeline=1, start_lsn="0/28", started_at=store.now()
        )  # fmt: skip
        run.run.start(started)
        assert decode(store.get(names.base_key(run.intent.backup_id, names.STARTED)), Started, "x") == started


# -- the commit


def test_a_commit_makes_it_exist(store: MemoryStore, clock: VirtualClock) -> None:
    with made(store, clock, sealed=True) as run:
        run.commit()
        assert read_base_summary(store, run.intent.backup_id) == run.summary


def lose_pack(store: Store, run: Made) -> None:
    store.delete([names.pack_key(run.intent.backup_id, 1)])


def cut_pack(store: Store, run: Made) -> None:
    store.put(names.pack_key(run.intent.backup_id, 1), b"x")


def doom_pack(store: Store, run: Made) -> None:
    doom(store, packs={str(run.intent.backup_id): [(1, 7)]}, keys=[])


def doom_key(store: Store, run: Made) -> None:
    doom(store, packs={}, keys=[str(run.intent.backup_id)])


def doom(store: Store, *, packs: dict[str, list[tuple[int, int]]], keys: Sequence[str]) -> None:
    record = PruneRecord(id=str(BackupId.make(store.now())), doomed_at=store.now(), packs=packs, keys=list(keys))
    store.put(names.prune_key(BackupId.parse(record.id)), encode(record))


def unreadable_record(store: Store, run: Made) -> None:
    store.put(names.prune_key(BackupId.make(store.now())), b"{")


def lose_key(store: Store, run: Made) -> None:
    store.delete([names.data_key_key(run.intent.backup_id)])


def lose_claim_of_history(store: Store, run: Made) -> None:
    store.delete([run.history(names.CLAIM)])


def lose_history(store: Store, run: Made) -> None:
    store.delete([run.history(names.STORED)])


def lose_object(store: Store, run: Made) -> None:
    store.delete([names.base_key(run.intent.backup_id, names.MANIFEST)])


def lose_repository(store: Store, run: Made) -> None:
    store.delete(["repository.json"])


def lose_intent(store: Store, run: Made) -> None:
    store.delete([names.base_key(run.intent.backup_id, names.BASE_INTENT)])


HARMS: dict[str, tuple[Callable[[Store, Made], None], str]] = {
    "a pack is gone": (lose_pack, "00000001 is not there"),
    "a pack was cut": (cut_pack, "00000001 is not there with its 6 bytes"),
    "a pack is doomed": (doom_pack, "00000001 is doomed"),
    "its key is doomed": (doom_key, "the key of .* is doomed"),
    "a record cannot be read": (unreadable_record, "prune/.* is damaged"),
    "its key is gone": (lose_key, r"\.age is not there"),
    "nobody claimed its history": (lose_claim_of_history, r"00000002[.]history[.]claim is not there"),
    "its history is gone": (lose_history, r"00000002[.]history[.]zst is not there"),
    "an object is gone": (lose_object, "manifest.zst is missing"),
    "its intent is gone": (lose_intent, "is gone"),
    "its repository is gone": (lose_repository, "is no longer the repository that it was: repository.json is gone"),
}


@pytest.mark.rule(99)
@pytest.mark.parametrize("harm", HARMS)
def test_pack_lost_before_commit(store: MemoryStore, clock: VirtualClock, harm: str) -> None:
    done, says = HARMS[harm]
    with made(store, clock, sealed=True) as run:
        done(store, run)
        with pytest.raises(IntegrityError, match=says):
            run.commit()
        assert committed(store) == []


@pytest.mark.parametrize("harm", HARMS)
def test_what_went_while_it_committed_takes_it_back(store: MemoryStore, clock: VirtualClock, harm: str) -> None:
    done, says = HARMS[harm]
    with made(store, clock, sealed=True) as run:

        class Harmed(WrapperStore):
            def put(self, key: str, data: bytes, *, create: bool = False) -> None:
                self._inner.put(key, data, create=create)
                if key.endswith("backup.json"):
                    done(store, run)

        run.run._store = Harmed(store)
        with pytest.raises(IntegrityError, match=says):
            run.commit()
        assert committed(store) == []


@pytest.mark.rule(88)
def test_a_commit_needs_no_right_to_delete_and_says_when_it_cannot_be_taken_back(store: MemoryStore, clock: VirtualClock) -> None:
    class NoDelete(WrapperStore):
        def delete(self, keys: Sequence[str]) -> None:  # noqa: ARG002  nobody may
            raise AccessError("may not delete")

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            self._inner.put(key, data, create=create)
            if key.endswith("backup.json") and harmed:
                lose_pack(store, run)

    harmed = False
    with made(store, clock) as run:
        run.run._store = NoDelete(store)
        run.commit()
        assert committed(store) == [run.intent.backup_id]
    harmed = True
    with made(store, clock) as run:
        run.run._store = NoDelete(store)
        with pytest.raises(IntegrityError, match="could not be taken back: may not delete"):
            run.commit()


def test_a_summary_whose_put_was_given_up_is_left_alone(store: MemoryStore, clock: VirtualClock) -> None:
    class GivenUp(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            if key.endswith("backup.json"):
                raise StoreUnavailableError("no answer")
            self._inner.put(key, data, create=create)

    with made(store, clock) as run:
        run.run._store = GivenUp(store)
        with pytest.raises(StoreUnavailableError, match=r"whether .* was committed"):
            run.commit()
        run.run.abandon()
        store.head(names.base_key(run.intent.backup_id, names.BASE_INTENT))  # what it names stays


def test_a_run_that_failed_takes_its_intent_back(store: MemoryStore, clock: VirtualClock) -> None:
    with made(store, clock) as run:
        run.run.abandon()
        with pytest.raises(ObjectMissingError):
            store.head(names.base_key(run.intent.backup_id, names.BASE_INTENT))


def test_a_lease_that_was_lost_commits_nothing(store: MemoryStore, clock: VirtualClock) -> None:
    with made(store, clock) as run:
        store.put("locks/base/0000000009/holder", b"{}", create=True)
        with pytest.raises(LeaseLostError):
            run.commit()
        assert committed(store) == []


def test_a_signature_lies_beside_it_before_it_is_committed(store: MemoryStore, clock: VirtualClock) -> None:
    with made(store, clock) as run:
        run.run.commit(run.summary, run.packs, lambda document: b"signed " + document[:5])
        key = names.base_key(run.intent.backup_id, names.BASE_SIGNATURE)
        assert store.get(key) == b"signed " + store.get(names.base_key(run.intent.backup_id, names.BASE_SUMMARY))[:5]
