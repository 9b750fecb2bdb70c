"""Prune as a process that is killed, or halted while a base backup runs, at any of its calls to the store: nothing dangles (G1).

The same with a base backup that is halted. `tests/repository/test_prune_and_backup.py` has it without processes, call by call.
"""

import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from clipper_backup.clock import SystemClock
from clipper_backup.errors import StoreError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.documents import encode
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import list_base_backups, needed_packs, read_base_summary, read_packs
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.local import LocalStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster, backed_up, contents_of, work_for
from fixtures.base_repository import copy_into
from fixtures.cli import RunCli, StartCli
from fixtures.clocks import LaterClock
from fixtures.dump import FAULTS, ended, halted, let_time_pass
from fixtures.postgres import sql
from fixtures.restore import switch
from fixtures.sweeps import SOAK, Part, chosen, in_parts

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600 if SOAK else 300)]
PRUNE, CREATE = ("prune", "--yes"), ("base", "create")
DAYS = (-40, -25, -9, -8, -3)
"""The first three take nothing from one another: no page gets so old (MAX_PACK_AGE_DAYS)."""
KEPT = (-8, -3)
"""What a prune of now keeps with a window of a week."""
A_GRACE_HOURS = 24.5
PARTS = 6
"""Of each sweep in `make soak`: with one of them a worker may go on alone when the others are done."""


# -- forty days of a cluster


@dataclass(frozen=True)
class Aged:
    """A repository in which a prune of now has all to do that a prune can do; `files`: what the newest backup of it holds."""

    cluster: Cluster
    folder: Path
    newest: BackupId
    files: Mapping[bytes, bytes]

    def copied_to(self, folder: Path) -> "Site":
        shutil.copytree(self.folder, folder)
        return Site(self.cluster, folder, self.newest, self.files)


@pytest.fixture(scope="module")
def aged(archived15: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Aged:
    """Each backup takes from the one before what is young; a run of the ninth day from now never ended.

    Packs that are doomed already are to be deleted, others to be doomed, two backups and WAL to be removed, some to be refreshed.
    """
    clock = LaterClock()
    store = MemoryStore(clock)
    work = work_for(archived15, store, clock)
    sql(
        archived15.server, "postgres", "CREATE TABLE aging AS SELECT n, repeat(md5(n::text), 9) t FROM generate_series(1, 9000) n"
    )
    for clock.days in DAYS:
        sql(archived15.server, "postgres", f"UPDATE aging SET t = t || 'x' WHERE n % 30 = {-clock.days % 30}")
        summary = backed_up(archived15, work).summary
        # The server's clock is not ahead of itself.
        stopped = replace(summary, stopped_at=summary.stopped_at + timedelta(days=clock.days))
        store.put(names.base_key(BackupId.parse(summary.id), names.BASE_SUMMARY), encode(stopped))
        with archived15.archiving(work):
            switch(archived15)
        if clock.days == -9:
            assert prune_physical(work).doomed > 0
            failing = Work(work.settings, FaultyStore(store, "put_stream:4:broken", clock), clock, work.emit)
            with archived15.archiving(work), pytest.raises(StoreError, match="scripted fault"):
                create_base(failing)
    folder = tmp_path_factory.mktemp("aged") / "repository"
    copy_into(store, folder)
    let_time_pass(folder, hours=240, below="systems")  # so that they are to be refreshed
    return Aged(archived15, folder, BackupId.parse(summary.id), files_of(work, summary))


@dataclass(frozen=True)
class Site:
    """A copy of it that is worked on."""

    cluster: Cluster
    folder: Path
    newest: BackupId
    files: Mapping[bytes, bytes]

    @property
    def settings(self) -> dict[str, str]:
        """Of a process."""
        return self.cluster.settings(BACKUP_URL=f"file://{self.folder}", STORE_RETRY_SECONDS="0")

    @property
    def work(self) -> Work:
        return work_for(self.cluster, LocalStore(self.folder), BACKUP_URL=f"file://{self.folder}")

    @property
    def keys(self) -> set[str]:
        return {info.key for info in LocalStore(self.folder).list("")}

    def check_whole(self, *, share: float = 0) -> list[BackupId]:
        """Every committed backup has all that it refers to, packs and WAL; which these are. With *share* 1 all of it is read.

        Looked at in a copy: what a verify writes down is none of prune's.
        """
        copy = MemoryStore(SystemClock())
        for key in self.keys:
            copy.put(key, (self.folder / key).read_bytes())
        work = work_for(self.cluster, copy)
        committed = [shown.entry for shown in base_catalog(work) if shown.entry.listed.committed]
        for entry in committed:
            assert entry.good, entry.problem
            verify_base(work, entry.listed.backup_id, share=share)
        return [entry.listed.backup_id for entry in committed]

    def check_done(self) -> list[BackupId]:
        """The next prunes finish; what they leave is whole, and the newest of before holds what it held, if it is there."""
        self.prune_until_nothing_is_left_to_do()
        committed = self.check_whole(share=1)
        if self.newest in committed:
            assert files_of(self.work, read_base_summary(self.work.store, self.newest)) == self.files
        return committed

    def prune_until_nothing_is_left_to_do(self) -> None:
        """Now, and when the grace of what was doomed is over; then packs, keys and records are what backups need."""
        prune_physical(self.work).raise_problems()
        let_time_pass(self.folder, hours=A_GRACE_HOURS, below="prune")
        prune_physical(self.work).raise_problems()
        store = LocalStore(self.folder)
        left = [listed for listed in list_base_backups(store) if listed.objects]
        summaries = [read_base_summary(store, listed.backup_id) for listed in left]  # what is not committed has none
        needed = {str(pack) for summary in summaries for pack, _ in needed_packs(read_packs(store, summary))}
        assert {key for key in self.keys if key.startswith(("packs/", "prune/"))} == needed


def files_of(work: Work, summary: BaseSummary) -> dict[bytes, bytes]:
    return {path: content for path, (_, content) in contents_of(work, summary).items()}


def shown(keys: set[str]) -> set[str]:
    """Without what differs from run to run: leases, and the names of records of prunes."""
    return {re.sub(r"^prune/.*", "prune/", key) for key in keys if not key.startswith("locks/")}


@dataclass(frozen=True)
class Pruned:
    """How many calls a prune makes, which of them change anything, and what it leaves."""

    calls: int
    writes: Sequence[tuple[str, int]]
    keys: set[str]


@pytest.fixture(scope="module")
def pruned(aged: Aged, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    site = aged.copied_to(tmp_path_factory.mktemp("pruned") / "repository")
    before = site.keys
    counting = FaultyStore(LocalStore(site.folder), "get:1000000:broken", SystemClock())
    done = prune_physical(work_for(site.cluster, counting))
    assert sorted(item.kind for item in done.going) == ["base backup", "base backup", "unfinished"]
    assert done.freed.packs > 0 < done.doomed
    assert done.wal.segments > 0 < done.refreshed.objects
    assert site.keys != before
    writes = [(method, number) for method in ("put", "delete") for number in range(1, counting._counts[method] + 1)]
    return Pruned(counting.calls, writes, shown(site.keys))


# -- killed


@in_parts(PARTS)
def test_kill_at_every_store_call_of_prune(aged: Aged, pruned: Pruned, part: Part, tmp_path: Path, run_cli: RunCli) -> None:
    """After each that changes anything: who dies between two of these has died after the first."""
    for method, number in chosen(pruned.writes, 1, part):
        site = aged.copied_to(tmp_path / f"{method} {number}")
        died = run_cli(*PRUNE, env=site.settings | {FAULTS: f"{method}:{number}:killed"})
        assert died.code == -signal.SIGKILL, died
        assert len(site.check_whole()) >= len(KEPT)
        let_time_pass(site.folder, hours=1, below="locks")
        run_cli(*PRUNE, env=site.settings, check=True)
        assert shown(site.keys) == pruned.keys, (method, number)
        assert site.newest in site.check_done()
        shutil.rmtree(site.folder)


# -- halted, while the other runs


@in_parts(PARTS)
def test_a_base_backup_while_prune_is_halted_at_any_call(
    aged: Aged, pruned: Pruned, part: Part, tmp_path: Path, run_cli: RunCli, start_cli: StartCli
) -> None:
    for number in chosen(range(1, pruned.calls + 1), 1, part):
        site = aged.copied_to(tmp_path / str(number))
        with site.cluster.archiving(site.work):
            sleeper = start_cli(*PRUNE, env=site.settings | {FAULTS: f"*:{number}:stop"})
            assert halted(sleeper)
            run_cli(*CREATE, env=site.settings, check=True)
        sleeper.send_signal(signal.SIGCONT)
        outcome = ended(sleeper)
        # What it saw has changed: it may refuse, and the next one does it.
        assert outcome.code in {0, 13}, outcome
        made = site.check_whole()[-1]
        assert made > site.newest
        assert {site.newest, made} <= {*site.check_done()}
        shutil.rmtree(site.folder)


def prune_now(site: Site, run_cli: RunCli) -> None:
    run_cli(*PRUNE, env=site.settings, check=True)


def delete_what_it_takes_pages_from(site: Site, run_cli: RunCli) -> None:
    """And prune."""
    run_cli("base", "delete", str(site.newest), "--last", "--yes", env=site.settings, check=True)
    prune_now(site, run_cli)


def delete_and_let_days_pass(site: Site, run_cli: RunCli) -> None:
    """It is taken for dead, and the packs that it counted on are deleted."""
    delete_what_it_takes_pages_from(site, run_cli)
    for _ in range(2):
        let_time_pass(site.folder, hours=A_GRACE_HOURS)
        prune_now(site, run_cli)


MEANWHILE: Mapping[str, Callable[[Site, RunCli], None]] = {
    "prune": prune_now,
    "deletion": delete_what_it_takes_pages_from,
    "days": delete_and_let_days_pass,
}


@pytest.mark.rule(76)
@pytest.mark.rule(99)
@in_parts(PARTS)
def test_prune_while_a_base_backup_is_halted_at_any_call(
    aged: Aged, part: Part, tmp_path: Path, run_cli: RunCli, start_cli: StartCli
) -> None:
    counted = aged.copied_to(tmp_path / "counted")
    counting = FaultyStore(LocalStore(counted.folder), "get:1000000:broken", SystemClock())
    backed_up(aged.cluster, work_for(aged.cluster, counting, BACKUP_URL=counted.work.store.url))
    for number, meanwhile in chosen([(n, each) for n in range(1, counting.calls + 1) for each in MEANWHILE], 1, part):
        site = aged.copied_to(tmp_path / f"{number} {meanwhile}")
        with site.cluster.archiving(site.work):
            sleeper = start_cli(*CREATE, env=site.settings | {FAULTS: f"*:{number}:stop"})
            if halted(sleeper):  # it waits for WAL for more calls, or for fewer
                MEANWHILE[meanwhile](site, run_cli)
                sleeper.send_signal(signal.SIGCONT)
            outcome = ended(sleeper)
        committed = site.check_whole()
        if outcome.code == 0:
            assert committed[-1] > site.newest, "what it said is true"
        else:
            assert meanwhile != "prune", outcome
            assert outcome.code in {1, 11, 13, 15}, outcome
        let_time_pass(site.folder, hours=1, below="locks")
        let_time_pass(site.folder, hours=A_GRACE_HOURS, below="base")  # a run that gave up leaves a folder
        assert committed[-1:] == site.check_done()[-1:], "the newest stays"
        shutil.rmtree(site.folder)
