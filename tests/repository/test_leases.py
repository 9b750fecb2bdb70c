"""Leases: never two holders, and a holder that lost it finds out before it commits.

Most tests run on a clock that they move themselves, so that half a minute passes at once and the same every time.
"""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from clipper_backup.clock import Clock, SystemClock
from clipper_backup.config import load
from clipper_backup.errors import (
    AccessError,
    ClipperError,
    LeaseLostError,
    LockedError,
    StoppedError,
    StoreError,
    StoreUnavailableError,
    UsageError,
    exit_code_of,
)
from clipper_backup.repository.leases import MAX_LEASE_SECONDS, Lease, acquire_lease
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.local import LocalStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore
from fixtures.clocks import SteppedClock

SECONDS = 60
THIRD = SECONDS / 3


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def keeper() -> Iterator[ExitStack]:
    """Releases at the end what a test did not."""
    with ExitStack() as stack:
        yield stack


def take(
    store: Store,
    clock: Clock,
    *,
    wait_seconds: float = 0,
    holder: str = "backup-29 pid 7",
    lease_seconds: float = SECONDS,
) -> Lease:
    return acquire_lease(
        store,
        clock,
        "dump",
        lease_seconds=lease_seconds,
        wait_seconds=wait_seconds,
        holder=holder,
        run_id=f"run of {holder}",
        purpose="job postgres-backup",
    )


def hold(keeper: ExitStack, store: Store, clock: SteppedClock, *, holder: str = "backup-29 pid 7") -> Lease:
    """Take the lease; its renewing thread waits on the clock when this returns."""
    lease = keeper.enter_context(take(store, clock, holder=holder))
    clock.until_waiting(1)
    return lease


def keys(store: Store) -> list[str]:
    return [info.key for info in store.list("locks/")]


# -- one holder


def test_a_free_lease_is_taken_and_let_go(memory: MemoryStore, clock: SteppedClock) -> None:
    with take(memory, clock) as lease:
        lease.check()
        assert keys(memory) == ["locks/dump/0000000001/holder"]
    assert keys(memory) == ["locks/dump/0000000001/holder", "locks/dump/0000000001/released"]
    with take(memory, clock) as lease:
        lease.check()
        assert keys(memory) == ["locks/dump/0000000002/holder"]


def test_a_held_one_is_refused_with_who_since_when_and_until_when(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack
) -> None:
    hold(keeper, memory, clock)
    clock.advance(THIRD + 5)  # renewed five seconds ago
    with pytest.raises(LockedError) as raised:
        take(memory, clock, holder="laptop pid 1")
    assert str(raised.value) == "the lease dump is held by backup-29 pid 7 (job postgres-backup), last seen 5.0 s ago"
    assert raised.value.hints == ("wait for it to end; if it is dead, the lease frees itself in 55 s",)
    assert exit_code_of(raised.value) == 11
    assert not isinstance(raised.value, LeaseLostError)


@pytest.mark.parametrize("damage", [b"", b"\xff{", b'{"schema": 2}'])
def test_a_holder_that_cannot_be_read_still_holds(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack, damage: bytes
) -> None:
    hold(keeper, memory, clock)
    memory.put("locks/dump/0000000001/holder", damage)
    with pytest.raises(LockedError, match="the lease dump is held by somebody, last seen"):
        take(memory, clock)


def test_leases_of_other_names_do_not_meet(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    hold(keeper, memory, clock)
    memory.put("locks/dumping/0000000009/holder", b"")
    memory.put("locks/other", b"")
    with acquire_lease(
        memory, clock, "restore-test", lease_seconds=SECONDS, wait_seconds=0, holder="h", run_id="r", purpose="p"
    ) as other:
        other.check()


def test_what_others_put_beside_it_is_no_holder(memory: MemoryStore, clock: SteppedClock) -> None:
    foreign = ["locks/dump/README", "locks/dump/0000000009/notes", "locks/dump/9/holder", "locks/dump/99999999999/holder"]
    for key in foreign:
        memory.put(key, b"")
    with take(memory, clock) as lease:
        lease.check()


def test_waiting_ends_when_the_holder_lets_go(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    first = hold(keeper, memory, clock)

    class LettingGo(WrapperStore):
        """The holder releases while the other one looks for the tenth time."""

        looks = 0

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            self.looks += 1
            if self.looks == 10:
                first.release()
            return super().list(prefix)

    before = clock.monotonic()
    with take(LettingGo(memory), clock, wait_seconds=SECONDS) as second:
        second.check()
    assert 5 < clock.monotonic() - before < 15


def test_waiting_ends_with_its_time(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    hold(keeper, memory, clock)
    before = clock.monotonic()
    with pytest.raises(LockedError):
        take(memory, clock, wait_seconds=3 * SECONDS)
    assert 3 * SECONDS <= clock.monotonic() - before < 3 * SECONDS + 2


# -- a holder that died


def test_the_lease_of_a_dead_holder_frees_itself(memory: MemoryStore, clock: SteppedClock) -> None:
    memory.put("locks/dump/0000000001/holder", b"")
    clock.advance(SECONDS)
    with pytest.raises(LockedError, match="held by somebody"):
        take(memory, clock)
    clock.advance(0.1)
    with take(memory, clock) as lease:
        lease.check()


def test_waiting_a_little_longer_than_the_lease_is_enough(memory: MemoryStore, clock: SteppedClock) -> None:
    memory.put("locks/dump/0000000041/holder", b"")
    memory.put("locks/dump/0000000041/renewal-7", b"")
    with take(memory, clock, wait_seconds=SECONDS + 5):
        assert keys(memory) == ["locks/dump/0000000042/holder"]
    assert SECONDS < clock.monotonic() < SECONDS + 5


def test_a_store_clock_that_jumps_back_frees_nothing(clock: SteppedClock) -> None:
    class BehindStore(MemoryStore):
        def now(self) -> datetime:
            return super().now() - timedelta(hours=1)

    store = BehindStore(clock)
    store.put("locks/dump/0000000001/holder", b"")
    with pytest.raises(LockedError, match=r"last seen 0\.0 s ago"):
        take(store, clock)


def test_a_sign_of_life_while_the_store_is_asked_its_time_keeps_it(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack
) -> None:
    class SlowClock(WrapperStore):
        def now(self) -> datetime:
            clock.sleep(SECONDS + 5)  # the holder renews three times
            return super().now()

    first = hold(keeper, memory, clock)
    with pytest.raises(LockedError):
        take(SlowClock(memory), clock, holder="second")
    first.check()


def test_a_holder_with_longer_lease_seconds_keeps_it_for_so_long(memory: MemoryStore, clock: SteppedClock) -> None:
    first = take(memory, clock, lease_seconds=5 * SECONDS, holder="patient")
    clock.until_waiting(1)
    clock.advance(SECONDS + 1)
    with pytest.raises(LockedError, match=r"held by patient .*, last seen 1 min 1 s ago") as raised:
        take(memory, clock)
    assert raised.value.hints == ("wait for it to end; if it is dead, the lease frees itself in 3 min 59 s",)
    left = memory.get("locks/dump/0000000001/holder")
    first.release()
    memory.put("locks/dump/0000000002/holder", left)  # and one who died so
    clock.advance(5 * SECONDS)
    with pytest.raises(LockedError):
        take(memory, clock)
    clock.advance(0.1)
    take(memory, clock).release()


def test_a_forged_record_blocks_nobody_for_longer_than_any_holder_could(memory: MemoryStore, clock: SteppedClock) -> None:
    longest = {"LEASE_SECONDS": str(MAX_LEASE_SECONDS)}
    assert load(longest, {}).settings.lease_seconds == MAX_LEASE_SECONDS
    with pytest.raises(UsageError):
        load({"LEASE_SECONDS": str(MAX_LEASE_SECONDS + 1)}, {})
    forged = b'{"schema": 1, "run_id": "1c", "holder": "mallory", "purpose": "prune", "lease_seconds": 1e300}'
    memory.put("locks/dump/0000000001/holder", forged)
    clock.advance(MAX_LEASE_SECONDS)
    with pytest.raises(LockedError, match="held by mallory") as raised:
        take(memory, clock)
    assert raised.value.hints == ("wait for it to end; if it is dead, the lease frees itself in 0.0 s",)
    clock.advance(0.1)
    take(memory, clock).release()


def test_a_record_of_before_leases_named_their_seconds_goes_stale_by_ours(memory: MemoryStore, clock: SteppedClock) -> None:
    memory.put("locks/dump/0000000001/holder", b'{"schema": 1, "run_id": "1c", "holder": "old", "purpose": "prune"}')
    clock.advance(SECONDS)
    with pytest.raises(LockedError, match="held by old"):
        take(memory, clock)
    clock.advance(0.1)
    take(memory, clock).release()


@pytest.mark.parametrize("effect", ["unavailable", "denied", "broken"])
def test_of_a_holder_whose_record_does_not_come_nothing_is_assumed(memory: MemoryStore, clock: SteppedClock, effect: str) -> None:
    memory.put("locks/dump/0000000001/holder", b"")
    clock.advance(SECONDS + 1)
    before = keys(memory)
    with pytest.raises((StoreError, AccessError)):
        take(FaultyStore(memory, f"get:1:{effect}", clock), clock)
    assert keys(memory) == before


def test_what_is_left_of_an_epoch_without_its_record_goes_stale(memory: MemoryStore, clock: SteppedClock) -> None:
    memory.put("locks/dump/0000000001/renewal-3", b"")
    with pytest.raises(LockedError):
        take(memory, clock)
    clock.advance(SECONDS + 1)
    take(memory, clock).release()
    assert keys(memory) == ["locks/dump/0000000002/holder", "locks/dump/0000000002/released"]


# -- renewing


def test_a_living_holder_keeps_it_as_long_as_it_wants(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    lease = hold(keeper, memory, clock)
    for _ in range(20):
        clock.advance(THIRD)
        lease.check()
        with pytest.raises(LockedError):
            take(memory, clock)
    lease.release()
    assert keys(memory) == ["locks/dump/0000000001/holder", "locks/dump/0000000001/released"]


def test_a_short_fault_of_the_store_loses_nothing(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    lease = hold(keeper, FaultyStore(memory, "put:2-3:unavailable", clock), clock)
    clock.advance(2 * THIRD + 1)
    lease.check()
    clock.advance(2 * THIRD)
    lease.check()
    with pytest.raises(LockedError):
        take(memory, clock)


@pytest.mark.parametrize("effect", ["unavailable", "denied", "broken"])
def test_a_holder_that_cannot_renew_loses_it_although_nobody_took_it(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack, effect: str
) -> None:
    lease = hold(keeper, FaultyStore(memory, f"put:2+:{effect}", clock), clock)
    clock.advance(SECONDS)
    lease.check()
    clock.advance(1)
    with pytest.raises(LeaseLostError, match=r"the lease dump was lost: it could not be renewed for 1 min 0 s") as raised:
        lease.check()
    assert "nothing was committed" in raised.value.hints[0]
    assert exit_code_of(raised.value) == 11


def test_lost_is_lost_even_when_the_store_comes_back(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    lease = hold(keeper, FaultyStore(memory, "put:2-5:unavailable", clock), clock)
    clock.advance(SECONDS + 1)
    with pytest.raises(LeaseLostError):
        lease.check()
    clock.advance(SECONDS)
    with pytest.raises(LeaseLostError):
        lease.check()


def test_a_renewal_that_waits_for_the_store_is_waited_for(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    """A minute's outage: the dump goes on a moment before the renewal does, which has the longer pause."""

    class Away(WrapperStore):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            if threading.current_thread().name == "lease-dump" and clock.monotonic() < SECONDS:
                clock.sleep(SECONDS - THIRD + 5)  # as a retrying store does
            return super().list(prefix)

    lease = hold(keeper, Away(memory), clock)
    clock.advance(SECONDS + 1)
    try:
        lease.check()
        assert "locks/dump/0000000001/renewal-1" in keys(memory)
    finally:
        clock.advance(SECONDS)  # releasing it waits for the thread


def test_one_renewal_whose_answer_took_all_the_time_is_made_again(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack
) -> None:
    class HeldBack(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            if key.endswith("renewal-1"):
                clock.sleep(SECONDS + 1)  # unanswered, then repeated
            super().put(key, data, create=create)

    lease = hold(keeper, HeldBack(memory), clock)
    clock.advance(THIRD + SECONDS + 1)  # now it is answered
    lease.check()
    assert "locks/dump/0000000001/renewal-2" in keys(memory)
    clock.advance(SECONDS)
    lease.check()


def test_who_takes_it_while_a_renewal_is_waited_for_has_it(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    class Overtaken(WrapperStore):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            if threading.current_thread().name == "lease-dump":
                if clock.monotonic() > SECONDS:
                    raise StoreUnavailableError("no route to host")
                clock.sleep(SECONDS - THIRD + 5)
            return super().list(prefix)

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            super().put(key, data, create=create)
            if "renewal" in key:
                memory.put("locks/dump/0000000002/holder", b"")  # by somebody who had found it stale

    lease = hold(keeper, Overtaken(memory), clock)
    clock.advance(SECONDS + 1)
    with pytest.raises(LeaseLostError, match="somebody else took it"):
        lease.check()


def test_who_takes_it_between_a_look_and_the_renewal_that_it_needed_has_it(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack
) -> None:
    class Overtaken(FaultyStore):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            seen = list(super().list(prefix))
            if clock.monotonic() == SECONDS - 1:
                clock.sleep(2)  # in which the third renewal succeeds
            return iter(seen)

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            super().put(key, data, create=create)
            if "renewal" in key:
                memory.put("locks/dump/0000000002/holder", b"")

    lease = hold(keeper, Overtaken(memory, "put:2-3:unavailable", clock), clock)
    clock.advance(SECONDS - 1)
    with pytest.raises(LeaseLostError, match="somebody else took it"):
        lease.check()


def test_a_check_of_a_lease_that_is_not_overdue_asks_twice(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    asked = "list:5+:broken, get:3+:broken, put:2+:broken, now:1+:broken"  # three listings, a get and a put took it
    lease = hold(keeper, FaultyStore(memory, asked, clock), clock)
    lease.check()
    with pytest.raises(StoreError):
        lease.check()


def test_a_store_that_does_not_answer_when_asked_is_no_yes(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    class Unreachable(WrapperStore):
        down = False

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            if self.down:
                raise StoreUnavailableError("no route to host")
            return super().list(prefix)

    store = Unreachable(memory)
    lease = hold(keeper, store, clock)
    store.down = True
    with pytest.raises(StoreUnavailableError):
        lease.check()
    store.down = False
    lease.check()


def test_a_renewal_counts_from_when_it_was_written_not_from_when_the_answer_came(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack
) -> None:
    class SlowAnswer(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            if clock.monotonic() > 82 and threading.current_thread().name == "lease-dump":
                raise StoreUnavailableError("no route to host")
            super().put(key, data, create=create)
            if "renewal" in key:
                clock.sleep(SECONDS + 1)

    lease = hold(keeper, SlowAnswer(memory), clock)
    clock.advance(THIRD + SECONDS + 2)  # written 62 s ago, answered a second ago; the one that `check` makes is no faster
    with pytest.raises(LeaseLostError, match="could not be renewed"):
        lease.check()


# -- losing it to somebody else


def test_the_loser_finds_out_at_its_next_check(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    cut_off = FaultyStore(memory, "put:2+:unavailable", clock)
    loser = hold(keeper, cut_off, clock, holder="loser")
    clock.advance(SECONDS + 0.5)
    winner = keeper.enter_context(take(memory, clock, holder="winner"))
    with pytest.raises(LeaseLostError, match="somebody else took it after it went stale"):
        loser.check()
    winner.check()


def test_who_slept_through_its_lease_finds_out_without_having_renewed(memory: MemoryStore, clock: SteppedClock) -> None:
    loser = take(memory, clock, holder="suspended")
    memory.put("locks/dump/0000000002/holder", b"")
    with pytest.raises(LeaseLostError, match="somebody else took it"):
        loser.check()
    loser.release()


def test_a_loser_that_goes_away_frees_nothing_and_removes_nothing_of_the_winner(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack
) -> None:
    loser = hold(keeper, FaultyStore(memory, "put:2+:unavailable", clock), clock, holder="loser")
    clock.advance(SECONDS + 0.5)
    winner = keeper.enter_context(take(memory, clock, holder="winner"))
    loser.release()
    winner.check()
    with pytest.raises(LockedError, match="held by winner"):
        take(memory, clock)


def test_an_old_listing_makes_no_second_holder(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    take(memory, clock, holder="first").release()

    class Overtaken(WrapperStore):
        """Between its listing and its put, one other comes and goes, and a third takes the lease and sweeps."""

        overtaken = False

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            if not self.overtaken:
                self.overtaken = True
                take(memory, clock, holder="second").release()
                keeper.enter_context(take(memory, clock, holder="third"))
            super().put(key, data, create=create)

    with pytest.raises(LockedError, match="held by third"):
        take(Overtaken(memory), clock, holder="fourth")


class NotExclusive(WrapperStore):
    """Writes over what is there although it is asked to create; the first listing was made before anything was."""

    listed = False

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        del create
        super().put(key, data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if not self.listed:
            self.listed = True
            return iter(())
        return super().list(prefix)


def test_of_two_holders_of_one_epoch_the_first_finds_out(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    first = hold(keeper, memory, clock, holder="first")
    second = keeper.enter_context(take(NotExclusive(memory), clock, holder="second"))
    clock.until_waiting(2)
    with pytest.raises(LeaseLostError, match="somebody else took the same epoch: the store did not create exclusively"):
        first.check()
    second.check()
    clock.advance(THIRD + 1)
    first.release()
    second.check()
    assert keys(memory) == ["locks/dump/0000000001/holder", "locks/dump/0000000001/renewal-1"]
    with pytest.raises(LockedError, match="held by second"):
        take(memory, clock)


def test_who_was_written_over_while_taking_it_did_not_take_it(
    memory: MemoryStore, clock: SteppedClock, keeper: ExitStack
) -> None:
    class Overwritten(WrapperStore):
        overwritten = False

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            super().put(key, data, create=create)
            if not self.overwritten:
                self.overwritten = True
                keeper.enter_context(take(NotExclusive(memory), clock, holder="second"))

    with pytest.raises(LockedError, match="held by second"):
        take(Overwritten(memory), clock, holder="first")


def test_a_holder_whose_record_is_gone_has_lost_it(memory: MemoryStore, clock: SteppedClock, keeper: ExitStack) -> None:
    lease = hold(keeper, memory, clock)
    clock.advance(THIRD + 1)
    memory.delete(["locks/dump/0000000001/holder"])
    with pytest.raises(LeaseLostError):
        lease.check()


@pytest.mark.parametrize("number", [1, 2])
def test_a_record_that_was_misread_once_is_read_again(memory: MemoryStore, clock: SteppedClock, number: int) -> None:
    faulty = FaultyStore(memory, f"get:{number}:flip", clock)
    with take(faulty, clock) as lease:
        lease.check()
        assert keys(memory) == ["locks/dump/0000000001/holder"]


@pytest.mark.parametrize("fault", ["get:1:unavailable", "list:2:unavailable", "list:3:denied", "now:1:unavailable"])
def test_who_fails_while_taking_it_holds_nothing(memory: MemoryStore, clock: SteppedClock, fault: str) -> None:
    take(memory, clock).release()
    with contextlib.suppress(ClipperError):
        take(FaultyStore(memory, fault, clock), clock).release()
    with take(memory, clock) as lease:
        lease.check()


# -- letting go


def test_release_frees_it_at_once_and_twice_is_once(memory: MemoryStore, clock: SteppedClock) -> None:
    lease = take(memory, clock)
    lease.release()
    lease.release()
    with take(memory, clock, holder="next"):
        lease.release()
        assert keys(memory) == ["locks/dump/0000000002/holder"]


@pytest.mark.parametrize("at", ["released", "renewal-1"])
def test_who_is_told_to_stop_while_it_lets_go_has_let_go(memory: MemoryStore, clock: SteppedClock, at: str) -> None:
    told: list[str] = []

    class Told(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            self.stop(key)
            super().put(key, data, create=create)

        def delete(self, keys: Sequence[str]) -> None:
            for key in keys:
                self.stop(key)
            super().delete(keys)

        def stop(self, key: str) -> None:
            if key.endswith(at) and lease_taken and not told:
                told.append(key)
                raise StoppedError(signal.SIGTERM)

    lease_taken = False
    lease = take(Told(memory), clock)
    if at.startswith("renewal"):
        clock.until_waiting(1)
        clock.advance(SECONDS / 2)
    lease_taken = True
    with pytest.raises(StoppedError):
        lease.release()
    assert told
    assert keys(memory) == ["locks/dump/0000000001/holder", "locks/dump/0000000001/released"]
    take(memory, clock).release()


def test_an_error_inside_lets_it_go(memory: MemoryStore, clock: SteppedClock) -> None:
    with pytest.raises(ValueError, match="the dump failed"), take(memory, clock):
        raise ValueError("the dump failed")
    take(memory, clock).release()


def test_a_store_that_fails_at_release_leaves_it_to_go_stale(memory: MemoryStore, clock: SteppedClock) -> None:
    take(FaultyStore(memory, "put:2+:unavailable, delete:1+:unavailable", clock), clock).release()
    with pytest.raises(LockedError):
        take(memory, clock)
    clock.advance(SECONDS + 0.1)
    take(memory, clock).release()


def test_a_writer_that_may_not_delete_can_still_lock(memory: MemoryStore, clock: SteppedClock) -> None:
    for _ in range(3):
        with take(FaultyStore(memory, "delete:1+:denied", clock), clock) as lease:
            lease.check()
    assert "locks/dump/0000000003/released" in keys(memory)


def test_old_epochs_are_swept(memory: MemoryStore, clock: SteppedClock) -> None:
    for _ in range(12):
        lease = take(memory, clock)
        clock.until_waiting(1)
        clock.advance(SECONDS)
        lease.release()
    assert keys(memory) == ["locks/dump/0000000012/holder", "locks/dump/0000000012/released"]


# -- on a real folder


def test_in_a_folder_the_file_system_s_clock_decides(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    clock = SystemClock()
    lease = take(store, clock, holder="frozen")
    with pytest.raises(LockedError, match="held by frozen"):
        take(store, clock)
    holder = tmp_path / "locks/dump/0000000001/holder"
    old = holder.stat().st_mtime - SECONDS - 1
    os.utime(holder, (old, old))
    with take(store, clock, holder="next") as after:
        after.check()
        with pytest.raises(LeaseLostError):
            lease.check()
        lease.release()
        assert re.fullmatch(r"locks/dump/0+2/holder", " ".join(keys(store)))
