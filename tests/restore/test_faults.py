"""The store fails while a restore reads it: the error names what failed, nothing is left that starts, and it can be repeated.

A real SIGKILL at each call is `test_killed_at_any_call_to_the_store_it_can_be_repeated`.
"""

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import AccessError, ClipperError, StoreError
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import Restored, restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.protocol import Store
from fixtures.base import Kept
from fixtures.dump import FAULTS
from fixtures.oracle import content_of
from fixtures.restore import MAJORS, Content, World, outcome, pg_verifybackup, session_in
from fixtures.server_program import server_program
from fixtures.sweeps import SOAK, chosen

pytestmark = pytest.mark.soak(share=0.25)

EFFECTS: dict[str, type[ClipperError]] = {"broken": StoreError, "unavailable": StoreError, "denied": AccessError}
"""What the store does, and how the restore ends. (It only reads: an answer that was lost is one that never came.)"""
_TRIED_BEFORE_IT_IS_REPEATED = 4
_CALLS_OF_RECOVERY = 24
Point = tuple[int, str]


@pytest.fixture
def world(restore_world: World, place: Path) -> World:
    return restore_world.copied_to(place)


def faulty(world: World, script: str) -> FaultyStore:
    """The store by which a restore plans and restores, which fails by *script* and counts how often it was asked."""
    return FaultyStore(world.work.store, script, SystemClock())


def attempt(world: World, place: Path, store: Store, *, start: bool = False) -> Restored:
    """The whole command, in this process."""
    work = Work(replace(world.work.settings, store_retry_seconds=0), store, world.work.clock, Kept())
    request = Request(
        place / "data",
        Target("latest"),
        server_account(),
        tablespaces={world.space: place / "space"},
        program=server_program(),
        replace=start,  # of one that could not recover all files are there
    )
    return restore(work, request, make_plan(work, request), start=start)


def folder_in(place: Path, name: str) -> Path:
    folder = place / name
    folder.mkdir()
    server_account().own(folder)
    return folder


def of_this_server(world: World, points: Sequence[Point], share: int) -> list[Point]:
    """In `make soak` one half of them is of the one server, the other half of the other."""
    return chosen(points[MAJORS.index(world.major) :: len(MAJORS)], share)


@pytest.mark.rule(71)
@pytest.mark.soak(over=["effect"])
@pytest.mark.parametrize("effect", EFFECTS)
def test_the_store_fails_at_any_call_of_a_restore(world: World, place: Path, effect: str) -> None:
    """Also of one that finds what the one before it left; then the same command, with the store well, succeeds.

    A backup whose summary cannot be read is passed over: that restore begins with another one, and is whole.
    """
    whole = faulty(world, "*:5:slow=0.01")
    attempt(world, folder_in(place, "slow"), whole)
    left = 0
    folder = folder_in(place, "0")
    for number, _ in of_this_server(world, [(number, effect) for number in range(1, whole.calls + 1)], 3):
        fault = f"*:{number}:{effect}"
        store = faulty(world, fault)
        refused = outcome(partial(attempt, world, folder, store))
        if refused is not None:
            assert isinstance(refused, EFFECTS[effect])
            assert f"scripted fault {fault}" in refused.message
            assert not (folder / "data/global/pg_control").exists(), number
            left += 1
        else:
            # Two threads that need one frame ask once or twice: what the last call is differs.
            assert effect != "unavailable" or store.calls < number, f"call {number} may succeed when it is made again"
            left = _TRIED_BEFORE_IT_IS_REPEATED
        if left >= _TRIED_BEFORE_IT_IS_REPEATED:
            if not (folder / "data/global/pg_control").exists():
                attempt(world, folder, world.work.store)
            assert "backup successfully verified" in pg_verifybackup(world, folder / "data")
            shutil.rmtree(folder)
            folder, left = folder_in(place, str(number)), 0


@pytest.mark.rule(56)
@pytest.mark.rule(96)
def test_the_store_is_lost_at_any_call_of_a_recovery(world: World, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are there, and whoever fetches WAL loses the store: what it lacks by then ends PostgreSQL, which never opens."""
    content, refused = world.moments[-1].content, 0
    points = list(zip(range(1, _CALLS_OF_RECOVERY + 1), cycle(EFFECTS), strict=False))
    for number, effect in of_this_server(world, points, 1):
        monkeypatch.setenv(FAULTS, f"*:{number}+:{effect}")
        error = outcome(lambda: must_hold(attempt(world, place, world.work.store, start=True), content))
        if error is not None:
            refused += 1
            assert isinstance(error, EFFECTS[effect])
            assert error.message.startswith("recovery was ended: scripted fault"), error
            assert (place / "data/recovery.signal").exists()
            assert not (place / "data/postmaster.pid").exists()
            assert "selected new timeline" not in (place / "data.clipper-restore/server.log").read_text()
    assert refused or not SOAK
    monkeypatch.delenv(FAULTS)
    must_hold(attempt(world, place, world.work.store, start=True), content)


def must_hold(result: Restored, content: Content) -> None:
    """What the server holds that was left running, which is ended."""
    assert result.started is not None
    try:
        with session_in(result.started) as connection:
            assert content_of(connection) == content
    finally:
        os.kill(result.started.pid, signal.SIGQUIT)
        os.waitpid(result.started.pid, 0)
