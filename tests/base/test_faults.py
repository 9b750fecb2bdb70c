"""A base backup that is killed, or whose store fails, at any of its calls: what is committed is whole, and the next one works."""

import signal
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import ClipperError
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.work import Work, open_work
from clipper_backup.store.faulty import FaultyStore
from fixtures.base import Cluster, backed_up, work_for
from fixtures.cli import RunCli
from fixtures.dump import FAULTS, let_time_pass
from fixtures.sweeps import chosen

EFFECTS = ("broken", "unavailable", "lost", "denied")


def calls_of(cluster: Cluster, work: Work) -> int:
    """How many calls to the store a second backup makes, about: it waits for its WAL, and takes pages from the first."""
    counting = FaultyStore(work.store, "get:1000000:broken", SystemClock())
    with cluster.archiving(work):
        create_base(Work(work.settings, counting, work.clock, work.emit))
    return counting.calls


def check_all_whole(work: Work) -> int:
    """Each committed backup is good, and new ones can be read to their last byte; how many there are."""
    committed = [shown.entry for shown in base_catalog(work) if shown.entry.listed.committed]
    for entry in committed:
        assert entry.good, entry.problem
        if entry.verified is None:
            verify_base(work, entry.listed.backup_id, share=1)
    return len(committed)


@pytest.mark.soak
def test_kill_at_every_store_call_of_backup(archived15: Cluster, tmp_path: Path, run_cli: RunCli) -> None:
    folder = tmp_path / "repository"
    work = work_for(archived15, BACKUP_URL=f"file://{folder}", LEASE_SECONDS="2")
    work = open_work(work.settings, work.clock, work.emit, read_only=False)
    backed_up(archived15, work)
    calls = calls_of(archived15, work)
    environment = archived15.settings(BACKUP_URL=f"file://{folder}", LEASE_SECONDS="2")
    for number, effect in chosen([(n, e) for n in range(1, calls + 1) for e in ("kill", "killed")], 2):
        with archived15.archiving(work):
            before = check_all_whole(work)
            died = run_cli("base", "create", env=environment | {FAULTS: f"*:{number}:{effect}"})
            assert died.code in {-signal.SIGKILL, 0}, died  # it waits for WAL for more calls, or for fewer
            assert check_all_whole(work) - before in {0, 1}
            let_time_pass(folder, hours=1, below="locks")
            again = run_cli("base", "create", env=environment)
            assert again.code == 0, again
        assert check_all_whole(work) > before


@pytest.mark.soak
def test_the_store_fails_at_any_call_of_backup(archived15: Cluster) -> None:
    work = work_for(archived15)
    backed_up(archived15, work)
    calls = calls_of(archived15, work)
    for number, effect in chosen([(n, e) for n in range(1, calls + 1) for e in EFFECTS], 3):
        failing = FaultyStore(work.store, f"*:{number}:{effect}", SystemClock())
        before = check_all_whole(work)
        with archived15.archiving(work):
            try:
                create_base(Work(work.settings, failing, work.clock, work.emit))
            except ClipperError:
                done = 0
            else:
                done = 1
        # Of a summary whose answer was lost nobody knows; the run said so.
        assert check_all_whole(work) - before in {done, 1}
    backed_up(archived15, work)
