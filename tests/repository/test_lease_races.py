"""Leases under contention, on real time: never two holders."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import LockedError
from clipper_backup.repository.leases import Lease, acquire_lease
from clipper_backup.store.local import LocalStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store

SECONDS = 60


def take(store: Store, holder: str) -> Lease:
    """The lease of one who does not wait."""
    return acquire_lease(
        store, SystemClock(), "dump", lease_seconds=SECONDS, wait_seconds=0, holder=holder, run_id="r", purpose="race"
    )


def race(stores: Sequence[Store], rounds: int) -> int:
    """Let a thread for each of *stores* try to take the lease at the same moment, *rounds* times; how often it was taken."""
    barrier = threading.Barrier(len(stores))
    holders, taken, together = 0, 0, 0
    counting = threading.Lock()
    errors: list[BaseException] = []

    def contend(store: Store) -> None:
        nonlocal holders, taken, together
        try:
            for number in range(rounds):
                barrier.wait(30)
                try:
                    lease = take(store, f"round {number}")
                except LockedError:
                    continue
                with lease:
                    with counting:
                        holders, taken = holders + 1, taken + 1
                        together = max(together, holders)
                    lease.check()
                    with counting:
                        holders -= 1
        except BaseException as error:  # noqa: BLE001  a thread's error is the test's
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=contend, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert together == 1, "two held it at once"
    return taken


@pytest.mark.parametrize("racers", [2, 5])
def test_racing_there_is_never_a_second_holder(racers: int) -> None:
    store = MemoryStore(SystemClock())
    assert 50 <= race([store] * racers, 50) <= 50 * racers


def test_racing_in_a_folder_there_is_never_a_second_holder(tmp_path: Path) -> None:
    assert 50 <= race([LocalStore(tmp_path), LocalStore(tmp_path)], 50) <= 100
