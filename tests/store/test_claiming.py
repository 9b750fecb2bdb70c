"""Creating without the server's help: on a store that ignores the condition, and on one that refuses it."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.errors import ObjectExistsError, StoreError, StoreUnavailableError
from clipper_backup.repository.leases import acquire_lease
from clipper_backup.store.claiming import CLAIM_SECONDS, CLAIMS, ClaimingStore
from clipper_backup.store.conformance import CHECKS, Check, in_a_room, name_of
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.retrying import RetryingStore
from clipper_backup.store.wrapper import WrapperStore

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


class WithoutConditions(WrapperStore):
    """Refuses `create`. `before_put` is called before each write, with its key."""

    def __init__(self, inner: Store, before_put: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(inner)
        self.before_put = before_put

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        if create:
            raise StoreError("501 NotImplemented")
        self.before_put(key)
        super().put(key, data)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(NOW)


@pytest.fixture
def memory(clock: VirtualClock) -> MemoryStore:
    return MemoryStore(clock)


def claiming(
    memory: Store, clock: VirtualClock | SystemClock, before_put: Callable[[str], None] = lambda _: None
) -> ClaimingStore:
    return ClaimingStore(WithoutConditions(memory, before_put), clock, random.Random(5))


def keys(store: Store) -> list[str]:
    return [info.key for info in store.list("")]


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_it_is_a_store(check: Check) -> None:
    memory = MemoryStore(SystemClock())
    with in_a_room(claiming(memory, SystemClock()), SystemClock(), many_objects=50) as room:
        check(room)
    assert keys(memory) == []


def test_of_two_that_claim_at_once_one_gives_way(memory: MemoryStore, clock: VirtualClock) -> None:
    """Both have put their claims before either lists: neither may write before the other withdrew."""
    both = threading.Barrier(2)
    claimed: set[int] = set()

    def wait_once(key: str) -> None:
        if key.startswith(CLAIMS) and threading.get_ident() not in claimed:
            claimed.add(threading.get_ident())
            both.wait(timeout=30)

    store = claiming(memory, clock, wait_once)

    def create(data: bytes) -> bool:
        try:
            store.put("k", data, create=True)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(create, [b"one", b"two"]))
    assert sorted(won) == [False, True]
    assert memory.get("k") == [b"one", b"two"][won.index(True)]
    assert keys(memory) == ["k"]


def test_who_comes_between_the_look_and_the_write_of_another_waits(memory: MemoryStore, clock: VirtualClock) -> None:
    outcomes: list[str] = []
    # A real clock, so that the rival's waiting does not age the first one's claim.
    other = claiming(memory, SystemClock())
    threads: list[threading.Thread] = []

    def rival() -> None:
        try:
            other.put("k", b"second", create=True)
        except ObjectExistsError:
            outcomes.append("exists")

    def start_a_rival(key: str) -> None:
        if key == "k" and not threads:
            threads.append(threading.Thread(target=rival))
            threads[0].start()
            # It can do nothing but look again and again.
            threads[0].join(timeout=0.5)
            assert threads[0].is_alive()

    claiming(memory, clock, start_a_rival).put("k", b"first", create=True)
    threads[0].join(timeout=30)
    assert outcomes == ["exists"]
    assert memory.get("k") == b"first"


def test_who_saw_a_claim_beside_its_own_does_not_write(memory: MemoryStore, clock: VirtualClock) -> None:
    """The other one may have listed before, and be about to write."""
    written: list[str] = []

    def place_anothers(key: str) -> None:
        if key.startswith(CLAIMS) and not written:
            memory.put(key.rpartition("/")[0] + "/theirs", b"claimed\n")
        written.append(key)

    def finish(seconds: float) -> None:
        VirtualClock.sleep(clock, seconds)
        memory.put("k", b"theirs")
        memory.delete([key for key in keys(memory) if key.endswith("/theirs")])

    clock.sleep = finish  # type: ignore[method-assign] # the other one goes on while we wait
    with pytest.raises(ObjectExistsError):
        claiming(memory, clock, place_anothers).put("k", b"ours", create=True)
    assert "k" not in written
    assert memory.get("k") == b"theirs"
    assert keys(memory) == ["k"]


def test_who_sees_no_claim_any_more_looks_for_the_object_once_more(memory: MemoryStore, clock: VirtualClock) -> None:
    """The one before it puts its object first and takes its claim away last: perhaps just after our look for the object."""

    class EndsMeanwhile(WithoutConditions):
        lists = 0

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            self.lists += 1
            if self.lists == 2:
                memory.put("k", b"of the one before")
            return super().list(prefix)

    with pytest.raises(ObjectExistsError):
        ClaimingStore(EndsMeanwhile(memory), clock, random.Random(1)).put("k", b"ours", create=True)
    assert memory.get("k") == b"of the one before"
    assert keys(memory) == ["k"]


def test_a_claim_left_behind_by_the_dead_is_removed_after_its_time(memory: MemoryStore, clock: VirtualClock) -> None:
    def die(key: str) -> None:
        if key == "k":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claiming(memory, clock, die).put("k", b"dead", create=True)
    assert [key.startswith(CLAIMS) for key in keys(memory)] == [True]
    begun = clock.monotonic()
    claiming(memory, clock).put("k", b"alive", create=True)
    assert clock.monotonic() - begun >= CLAIM_SECONDS - 1
    assert keys(memory) == ["k"]
    assert memory.get("k") == b"alive"


@pytest.mark.parametrize("failing", ["k", CLAIMS])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_a_repeated_create_does_not_wait_for_its_own_claim(
    memory: MemoryStore, clock: VirtualClock, failing: str, stored: bool
) -> None:
    class FailsOnce(WithoutConditions):
        failures = 0

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            if key.startswith(failing) and not self.failures:
                self.failures += 1
                if stored:
                    super().put(key, data)
                raise StoreUnavailableError("lost")
            super().put(key, data, create=create)

    inner = ClaimingStore(FailsOnce(memory), clock, random.Random(1))
    store = RetryingStore(inner, retry_seconds=30, clock=clock, rng=random.Random(1))
    store.put("k", b"mine", create=True)
    assert clock.monotonic() < 1
    assert keys(memory) == ["k"]
    with pytest.raises(ObjectExistsError):
        store.put("k", b"another's", create=True)


def test_who_was_slow_begins_again_with_another_claim(memory: MemoryStore, clock: VirtualClock) -> None:
    """Else the rival that comes then would take it for left behind, and both would write."""
    placed: list[str] = []

    def note(key: str) -> None:
        if key.startswith(CLAIMS):
            placed.append(key)
            if len(placed) == 1:
                clock.advance(CLAIM_SECONDS / 2 + 1)

    claiming(memory, clock, note).put("k", b"x", create=True)
    assert len(set(placed)) == 2
    assert keys(memory) == ["k"]


def test_a_lease_has_one_holder_here_too() -> None:
    memory = MemoryStore(SystemClock())
    clock = SystemClock()

    def acquire(number: int) -> int | None:
        try:
            acquire_lease(
                claiming(memory, clock), clock, "backup", lease_seconds=60, wait_seconds=0, holder=f"host {number}",
                run_id=f"run {number}", purpose="a test",
            )  # fmt: skip
        except Exception:  # noqa: BLE001 # LockedError, counted below
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        holders = [number for number in pool.map(acquire, range(8)) if number is not None]
    assert len(holders) == 1
