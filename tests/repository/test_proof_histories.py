"""The proof against random histories of a cluster: it never refuses a right plan, and always one that loses an instant (G4)."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import msgspec
import pytest
from hypothesis import Phase, find, given, settings

from clipper_backup.clock import VirtualClock
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.repository.physical_retention import BackupSeen, PhysicalPlan, Seen, TimelineOf
from clipper_backup.repository.proof.archive import Archived, ArchiveFacts, At
from clipper_backup.repository.proof.base import Base, BaseFacts
from clipper_backup.repository.proof.check_wal import check_wal, windows_of
from clipper_backup.repository.proof.documents import Unread
from clipper_backup.repository.proof.numbers import Ranges
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import BackupId, Lsn, Timeline
from fixtures.base_repository import summary_of
from fixtures.clocks import START
from fixtures.histories import MUTANTS, SIZE, WINDOW, Chapter, World, by_age, by_names, chapters, product
from fixtures.sweeps import SOAK

pytestmark = pytest.mark.no_cover  # measuring doubles its time, and others pass its lines

EXAMPLES = 300 if SOAK else 30
EMPTY = MemoryStore(VirtualClock(START))
TEMPLATE = summary_of(EMPTY, BackupId.make(START), [])


def base_of(backup: BackupSeen) -> Base:
    summary: BaseSummary = msgspec.structs.replace(
        TEMPLATE,
        id=str(backup.backup_id),
        system_number=backup.system,
        timeline=int(backup.timeline),
        start_lsn=str(Lsn(backup.start)),
        stop_lsn=str(Lsn(backup.stop)),
        finished_at=backup.finished_at,
        stopped_at=backup.finished_at,
    )
    return Base(backup.backup_id, summary=summary, good=backup.good, trusted=True)


def facts_of(backups: list[BackupSeen]) -> BaseFacts:
    return BaseFacts({backup.backup_id: base_of(backup) for backup in backups}, {}, frozenset(), {})


@dataclass
class ProvenWorld(World):
    """A cluster whose plans are proven before they are carried out; `refused`: what the first proof said that found anything."""

    refused: list[str] = field(default_factory=list)

    def prune(self) -> None:
        plan = self.plan(self.seen(), self.now)
        kept = {decision.backup_id for decision in plan.backups if decision.keep}
        staying = [backup for backup in self.backups if backup.backup_id in kept]
        archive, edge = self.archive_facts(plan), self.now - WINDOW
        before, after = facts_of(self.backups), facts_of(staying)
        found = list(check_wal(EMPTY, archive, before, after, edge, Unread()))
        for each in windows_of(archive, before, after, edge):
            assert each.before is not None
            if each.before.until is None or each.before.until >= edge:  # else all of it is older than the window, and may go
                assert found or (each.after is not None and each.after.to_lsn == each.before.to_lsn)
        if found and not self.refused:
            self.refused = found
        super().prune()

    def archive_facts(self, plan: PhysicalPlan) -> ArchiveFacts:
        found: dict[At, Archived] = {}
        edge = self.now - WINDOW
        for (system, number), server in self.servers.items():
            timeline = Timeline(number)
            own = {n: at for (s, t, n), at in self.wal.items() if (s, t) == (system, number)}
            gone = Ranges.of(n for n, at in own.items() if not plan.keeps(TimelineOf(system, timeline), n, at))
            found[system, timeline] = Archived(
                system,
                str(system),
                timeline,
                SIZE,
                [(Timeline(of), at) for of, at in server.ancestors],
                server.claimed_at,
                stored=Ranges.of(own),
                removed=gone,
                old=Ranges.of(n for n, at in own.items() if at < edge),
                young=Ranges.of(n for n, at in own.items() if at >= edge),
                touched=gone,
                ends=max(own.items(), default=None),
            )
        return ArchiveFacts(found, {str(system): system for system, _ in self.servers}, [])


@pytest.mark.rule(73)
@pytest.mark.rule(78)
@settings(max_examples=EXAMPLES)
@given(chapters)
def test_a_right_plan_is_never_refused(history: list[Chapter]) -> None:
    world = ProvenWorld(product)
    world.live_through(history)
    assert world.refused == []


def loses(plan: Callable[[Seen, datetime], PhysicalPlan], history: list[Chapter]) -> bool:
    """Whether an instant is lost by *plan*; the proof must have said so before it was carried out."""
    world = ProvenWorld(plan)
    lost = world.live_through(history)
    assert lost is None or world.refused, f"lost, and nobody said so: {lost}"
    return lost is not None


def must_be_refused(plan: Callable[[Seen, datetime], PhysicalPlan]) -> None:
    """Some histories lose instants by *plan*, and in each of these the proof said so before it was carried out.

    `make test` looks for one, which is always the same; `make soak` goes on with others.
    """
    found = find(
        chapters,
        partial(loses, plan),
        settings=settings(max_examples=3000, phases=[Phase.generate], database=None, derandomize=True),
        random=random.Random(1),
    )
    world = ProvenWorld(plan)
    world.live_through(found)
    told = " ".join(world.refused)
    assert "could not be restored any more" in told or "needs" in told

    @settings(max_examples=EXAMPLES)
    @given(chapters)
    def none_is_lost_unsaid(history: list[Chapter]) -> None:
        loses(plan, history)

    if SOAK:
        none_is_lost_unsaid()


@pytest.mark.soak
@pytest.mark.rule(78)
@pytest.mark.parametrize("plan", [by_names, by_age])
def test_a_plan_by_names_or_age_is_refused(plan: Callable[[Seen, datetime], PhysicalPlan]) -> None:
    must_be_refused(plan)


@pytest.mark.soak
@pytest.mark.rule(73)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_of_the_plan_is_refused(mutant: str) -> None:
    must_be_refused(MUTANTS[mutant])
