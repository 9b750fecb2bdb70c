"""Half a year of daily jobs: what is stored stays small, each backup restores by itself, and a bucket's own rule takes none."""

import random
from datetime import timedelta

import pytest

from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.repository.base_prune import remove_backup
from clipper_backup.repository.refresh import tolerated_outage_days
from fixtures.base_repository import days
from fixtures.long_run import Cluster, LongRun
from fixtures.sweeps import SOAK

pytestmark = pytest.mark.no_cover  # measuring doubles its time, and others pass its lines

AMPLIFICATION_MAX = 2.5


@pytest.mark.soak
def test_half_a_year_of_skewed_updates(capsys: pytest.CaptureFixture[str]) -> None:
    """3 % of the pages change each day, 90 % of the updates in a tenth of them; a window of 7 days, a backup and prune a day."""
    files, number = (64, 180) if SOAK else (32, 18)
    world = LongRun(Cluster(files, 32, seed=1))
    world.day()
    one = world.stored_bytes()
    highest = 0.0
    for day in range(1, number):
        world.day()
        highest = max(highest, world.stored_bytes() / one)
        assert highest <= AMPLIFICATION_MAX, f"day {day}"
    with capsys.disabled():
        print(f"{number} days: at most {highest:.2f} times one backup")  # noqa: T201  what a person wants to know of it
    assert len(world.there) == 9
    delete_one_after_the_other(world)


def delete_one_after_the_other(world: LongRun) -> None:
    """Whichever goes, whenever its packs are deleted: each of the others restores, page by page."""
    order = random.Random(1).sample(world.there, len(world.there))
    assert all(world.restores(each) for each in order)
    while len(order) > 1:
        assert remove_backup(world.store, order.pop(), lambda: None)
        for _ in range(2):
            prune_physical(world.work)
            days(world.clock, 1.01)
        order = [each for each in order if each in world.there]
        assert order
        assert all(world.restores(each) for each in order)


TOLERATED_DAYS = tolerated_outage_days(max_pack_age_days=14, window_days=7)
"""As `doctor` says: 28 less MAX_PACK_AGE_DAYS less PITR_WINDOW_DAYS."""


def live_with_an_outage(world: LongRun, before: int, outage: int, after: int) -> list[str]:
    """What could not be restored, day by day; no job runs for *outage* days in between."""
    lost = []
    for day in range(before + outage + after):
        world.day(job=not before <= day < before + outage)
        good = [each for each in world.there if world.restores(each)]
        assert good == world.there, "what is listed as good is what restores"
        gone = world.lost_instants(good) if day >= 1 else []
        lost += [f"day {day + 1}: {at:%Y-%m-%d %H:%M}" for at in gone]
        lost += [] if world.last_dump_is_good else [f"day {day + 1}: the last dump"]
    return lost


DAYS = 120 if SOAK else 33
BEGINS = (17, 40, 63, 86) if SOAK else (15, 16, 17, 18)
"""Days on which the outage begins: its packs are of any age then, and a window behind it the rule takes what it may."""


@pytest.mark.soak(over=["begins"])
@pytest.mark.rule(104)
@pytest.mark.parametrize("begins", BEGINS)
def test_rule_104_a_bucket_that_deletes_at_30_days_and_an_outage_as_long_as_is_tolerated(begins: int) -> None:
    """On each of the days every instant of the window can be restored, and the last good dump."""
    world = LongRun(Cluster(8, 16, seed=2), sealed=True, expiring=True)
    assert live_with_an_outage(world, begins, TOLERATED_DAYS, DAYS - begins - TOLERATED_DAYS) == []


@pytest.mark.soak
@pytest.mark.rule(104)
def test_what_a_longer_outage_costs(capsys: pytest.CaptureFixture[str]) -> None:
    """The instants between the last backup before it and the first one behind it, once the packs of the former are gone."""
    outage = 20
    world = LongRun(Cluster(8, 16, seed=2), sealed=True, expiring=True)
    lost = live_with_an_outage(world, 22, outage, 9)
    with capsys.disabled():
        print(f"{outage} days without a base backup cost {len(lost)} ends of days: {lost[:3]} …")  # noqa: T201
    assert lost
    first_behind = min(taken.at for taken in world.taken.values() if taken.at > world.clock.now() - timedelta(days=9.5))
    assert all(line.partition(": ")[2] <= f"{first_behind:%Y-%m-%d %H:%M}" for line in lost), "and none behind it"
    assert world.lost_instants(world.there) == [], "a window later all of it is there again"
