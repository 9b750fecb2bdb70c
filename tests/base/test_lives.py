"""What holds of a repository over its life: no backup harms another by going (B2), and nothing is changed once written (R3)."""

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest

from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.ops.base.delete import delete_base
from clipper_backup.ops.base.read import pack_use
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.base_hold import hold_base
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.wal.push import push
from clipper_backup.ops.wal.times import TimesKeeper
from clipper_backup.ops.work import Work
from clipper_backup.postgres.data_folder import DataFolder
from clipper_backup.repository.base_backups import needed_packs, part_of, read_packs
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster, archived_cluster, backed_up, contents_of, work_for
from fixtures.frozen import MovedClock
from fixtures.keys import make_keys, opening, sealed_to
from fixtures.postgres import sql
from fixtures.restore import switch
from fixtures.sweeps import chosen

MADE = "CREATE TABLE IF NOT EXISTS lives AS SELECT n, repeat('x', 200) AS t FROM generate_series(1, 20000) n"


# -- B2


@dataclass(frozen=True)
class Chain:
    """Backups that each take pages from the one before; `contents` are their files, put together when all were there."""

    work: Work
    clock: MovedClock
    taken: tuple[BaseSummary, ...]
    contents: Mapping[str, Mapping[bytes, bytes]]

    def copied(self) -> Work:
        """A store of its own, as it was when the last was taken."""
        self.clock.run(self.taken[-1].finished_at)
        store = MemoryStore(self.clock)
        for info in self.work.store.list(""):
            store.put(info.key, self.work.store.get(info.key))
        return Work(self.work.settings, store, self.clock, self.work.emit)


def files_of(work: Work, summary: BaseSummary) -> dict[bytes, bytes]:
    return {path: content for path, (_, content) in contents_of(work, summary).items()}


@pytest.fixture(scope="module")
def chain(archived15: Cluster) -> Chain:
    clock = MovedClock(BackupId.parse("20261122-020000-7f3a9c2e").at)
    clock.run(clock.now())
    work = work_for(archived15, MemoryStore(clock), clock)
    sql(archived15.server, "postgres", MADE)
    taken = []
    for number in range(4):
        sql(archived15.server, "postgres", f"UPDATE lives SET t = t || '{number}' WHERE n % 4 = {number} AND n < 15000")
        taken.append(backed_up(archived15, work).summary)
    assert [summary.parent for summary in taken] == [None, *(summary.id for summary in taken[:-1])]
    assert all(summary.pages.adopted for summary in taken[1:])
    return Chain(work, clock, tuple(taken), {summary.id: files_of(work, summary) for summary in taken})


@pytest.mark.rule(75)
def test_delete_any_subset(chain: Chain) -> None:
    subsets = [going for count in (1, 2, 3) for going in combinations(range(4), count)]
    for going in chosen(subsets, 2):
        work = chain.copied()
        needed = [packs_of(work, summary) for summary in chain.taken]
        staying = [packs for number, packs in enumerate(needed) if number not in going]
        alone = set[str]().union(*(needed[number] for number in going)).difference(*staying)
        for number in going:
            delete_base(work, BackupId.parse(chain.taken[number].id), last=True)
        prune_physical(work)
        chain.clock.run(chain.taken[-1].finished_at.replace(day=24))
        freed = prune_physical(work).freed.packs
        assert freed == len(alone), going
        for number, summary in enumerate(chain.taken):
            if number not in going:
                verify_base(work, BackupId.parse(summary.id), share=1)
                assert files_of(work, summary) == chain.contents[summary.id], (going, number)


def test_how_much_of_its_packs_each_one_needs(chain: Chain) -> None:
    """The first needs all that it wrote; those behind it name packs of which pages were changed since."""
    work = chain.copied()
    first, *later = [pack_use(work, summary) for summary in chain.taken]
    assert first is not None
    assert (first.runs, first.live_share, first.amplification) == (1, 1.0, 1.0)
    for use, summary in zip(later, chain.taken[1:], strict=True):
        assert use is not None
        packs = packs_of(work, summary)
        assert (use.packs, use.runs) == (len(packs), len({pack.split("/")[1] for pack in packs}))
        assert use.stored_bytes == sum(len(work.store.get(pack)) for pack in packs)
    assert any(0 < use.live_share < 1 < use.amplification for use in later if use is not None)
    damaged = part_of(chain.taken[-1], "packs").key
    work.store.put(damaged, work.store.get(damaged)[:-1])
    assert pack_use(work, chain.taken[-1]) is None


def packs_of(work: Work, summary: BaseSummary) -> set[str]:
    return {str(pack) for pack, _ in needed_packs(read_packs(work.store, summary))}


# -- R3


@dataclass
class Written:
    """What was ever put at a key, `changed` where that was something else later, `again` where it was the same."""

    last: dict[str, bytes] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)

    def note(self, key: str, data: bytes) -> None:
        if key in self.last:
            (self.again if self.last[key] == data else self.changed).add(key)
        self.last[key] = data


class Comparing(WrapperStore):
    """Compares all that is written with what was written there before, whether or not it was removed since."""

    def __init__(self, inner: Store, written: Written) -> None:
        super().__init__(inner)
        self._written = written

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        super().put(key, data, create=create)
        self._written.note(key, data)

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        data = b"".join(chunks)
        stored = super().put_stream(key, [data], expected_bytes=expected_bytes)
        self._written.note(key, data)
        return stored


MAY_CHANGE = r"base/[^/]+/verify\.json|holds/[^/]+|retention\.json|clock|locks/.*|wal/[0-9]+/[0-9A-F]{8}/times/.*"


@pytest.mark.soak(over=["major"], share=0.5)
@pytest.mark.parametrize("major", [15, 18])
@pytest.mark.parametrize("sealed", [False, True])
def test_every_write_twice_is_the_same_bytes(major: int, sealed: bool, tmp_path: Path) -> None:
    """What a run, an archiver, a verify and a prune do, each done twice, and a fortnight later again."""
    clock, written = MovedClock(BackupId.parse("20261122-020000-7f3a9c2e").at), Written()
    clock.run(clock.now())
    keys = make_keys(tmp_path)
    settings = sealed_to(keys) | opening(keys["operator"]) if sealed else {}
    with archived_cluster(major) as cluster:
        work = work_for(cluster, Comparing(MemoryStore(clock), written), clock, **settings)
        wal = cluster.server.data / "pg_wal"
        times = TimesKeeper(work, DataFolder(cluster.server.data, clock), threading.Event())
        first = BackupId.parse(backed_up(cluster, work).summary.id)
        for round_of in range(2):
            latest = BackupId.parse(backed_up(cluster, work).summary.id)
            sql(cluster.server, "postgres", "SELECT pg_logical_emit_message(true, 'lives', '')")
            with cluster.archiving(work):
                switch(cluster)
            times.turn()
            for name in sorted(path.name for path in (wal / "archive_status").glob("*.done")):
                push(work, wal / name.removesuffix(".done"))
            hold_base(work, first, f"held for the {round_of}. time", None)
            for _ in range(2):
                verify_base(work, latest, share=1)
                prune_physical(work).raise_problems()
        clock.run(clock.now().replace(month=12, day=9))
        prune_physical(work).raise_problems()
    assert {key for key in written.changed if not re.fullmatch(MAY_CHANGE, key)} == set()
    refreshed = {"repository.json", "systems/0001.json", f"holds/{first}", f"base/{first}/backup.json"}
    assert refreshed | ({f"keys/{first}.age"} if sealed else set()) <= written.again
    assert any(key.startswith(f"packs/{first}/") for key in written.again)
