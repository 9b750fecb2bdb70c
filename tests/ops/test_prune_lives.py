"""Random lives of a repository, then losses: no plan of prune contradicts its proof, and every prune comes to its end.

The two look at a repository by code of their own. Where something was lost they must still agree, or no prune ever ends again.
"""

import random
from collections.abc import Iterator
from datetime import timedelta

import pytest

from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import VerifyMark
from clipper_backup.format.documents import encode
from clipper_backup.ops.physical_plan import plan_physical_prune
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import BackupId
from fixtures.base_repository import (
    SIZE,
    days,
    keys_below,
    make_repository,
    put_backup,
    put_history,
    put_hold,
    put_segments,
    work_on,
)
from fixtures.clocks import SteppedClock
from fixtures.newer import change_summary
from fixtures.sweeps import Part, chosen, in_parts

pytestmark = pytest.mark.no_cover  # measuring doubles its time, and others pass its lines

LIVES = range(600)
FOUND = (314,)
"""Lives that once ended in an error. Of 314: what was handed on to a backup before it could not be handed on by it."""
NEWER = b'{"schema": 99}'


class Life:
    """A cluster with backups, WAL and now and then a restore, that some *lives* long; `made` are its backups."""

    def __init__(self, seed: int) -> None:
        self.drawn = random.Random(seed)
        self.clock = SteppedClock()
        self.store: MemoryStore = make_repository(self.clock)
        self.made: list[BackupId] = []
        self._timeline, self._at = 1, 1
        self._ancestors: list[tuple[int, int]] = []

    def live(self) -> None:
        """Some days."""
        for _ in range(self.drawn.randint(5, 25)):
            for _ in range(self.drawn.randint(0, 2)):
                self._work()
            if self.drawn.random() < 0.08:
                self._be_restored()
            days(self.clock, self.drawn.choice([0.5, 1, 1, 3]))

    def _work(self) -> None:
        if self.drawn.random() < 0.8:
            adopted = dict.fromkeys(self.drawn.sample(self.made, min(len(self.made), 1)), (0,))
            damaged = int(self.drawn.random() < 0.1)
            self.made.append(
                put_backup(
                    self.store, start=self._at, own=(0, 1), adopted=adopted, wal=True, timeline=self._timeline, damaged=damaged
                )
            )
        self._at += 1
        if count := self.drawn.randint(0, 3):
            put_segments(self.store, self._at, self._at + count - 1, timeline=self._timeline)
            self._at += count
        self.clock.advance(3600)

    def _be_restored(self) -> None:
        left_at = max(1, self._at - self.drawn.randint(0, 3)) * SIZE + 7
        self._ancestors = [*self._ancestors, (self._timeline, left_at)]
        self._timeline += 1
        put_history(self.store, self._timeline, self._ancestors)
        self._at = left_at // SIZE
        put_segments(self.store, self._at, self._at, timeline=self._timeline)
        self._at += 1

    def lose(self) -> None:
        """Segments, objects of backups, and what verify wrote down; some of it written by a newer version, or held."""
        segments = [key for key in sorted(keys_below(self.store, "wal/")) if "/histories/" not in key]
        self.store.delete(self.drawn.sample(segments, min(len(segments), self.drawn.choice([0, 0, 1, 3, 8]))))
        for backup_id in self.made:
            self._mark(backup_id)
            harm = self.drawn.random()
            if harm < 0.30:
                self.store.delete([names.base_key(backup_id, names.LABEL)])
            elif harm < 0.34:
                change_summary(self.store, backup_id, source="snapshot")
            elif harm < 0.37:
                put_hold(self.store, backup_id)
            elif harm < 0.55:
                self.store.delete([names.base_key(backup_id, names.BASE_SUMMARY)])

    def _mark(self, backup_id: BackupId) -> None:
        key, kind = names.base_key(backup_id, names.VERIFY), self.drawn.random()
        if kind < 0.08:
            self.store.put(key, NEWER)
        elif kind < 0.25:
            of, now = self.drawn.choice(self.made), self.store.now()
            damage = [f"{names.pack_key(of, self.drawn.randint(0, 1))}: torn"] if self.drawn.random() < 0.5 else []
            begun_at = now - timedelta(hours=self.drawn.randint(100, 200))
            verified_at = now - timedelta(hours=self.drawn.randint(0, 100))
            mark = VerifyMark(id=str(backup_id), begun_at=begun_at, verified_at=verified_at, share=1, damage=damage)
            self.store.put(key, encode(mark))

    def pruned(self) -> Iterator[int]:
        """Three prunes, days apart; how many objects each leaves. The plan of each passes its proof."""
        for _ in range(3):
            plan = plan_physical_prune(work_on(self.store, self.clock))
            assert plan.proof.problems == ()
            prune_physical(work_on(self.store, self.clock)).raise_problems()
            yield len(keys_below(self.store, ""))
            days(self.clock, self.drawn.choice([1.1, 3, 20]))


@pytest.mark.rule(99)
@pytest.mark.soak
@in_parts(3)
def test_no_plan_contradicts_its_proof_whatever_was_lost(part: Part) -> None:
    shrunk = 0
    for seed in [*FOUND, *chosen(LIVES, 6, part)]:
        life = Life(seed)
        life.live()
        life.lose()
        before = len(keys_below(life.store, ""))
        try:
            left = list(life.pruned())
        except Exception as error:
            error.add_note(f"the life of seed {seed}")
            raise
        assert left == sorted(left, reverse=True), f"seed {seed}: a prune writes no more than it removes"
        shrunk += left[-1] < before
    assert shrunk > 0
