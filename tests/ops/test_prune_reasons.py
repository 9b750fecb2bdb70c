"""One plan for dumps, base backups, packs and WAL: a reason for each object and range, as a person agreed to it once."""

import dataclasses
import re
from pathlib import Path

import pytest

from clipper_backup.cli import show_prune
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import SnapshotRecord
from clipper_backup.format.documents import encode
from clipper_backup.ops.dump.prune import plan_prune
from clipper_backup.ops.events import ignore
from clipper_backup.ops.physical_plan import plan_physical_prune
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.work import Work
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import BackupId
from fixtures.base_repository import (
    SECOND_SYSTEM,
    SIZE,
    SYSTEM,
    days,
    make_repository,
    put_backup,
    put_history,
    put_hold,
    put_intent,
    put_packs,
    put_segments,
    put_started,
    put_system,
    settings_of_a_week,
)
from fixtures.catalog import make_dump
from fixtures.clocks import SteppedClock
from fixtures.golden import Golden

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


def day_of(store: MemoryStore, clock: SteppedClock, start: int, parent: BackupId | None, **where: int) -> BackupId:
    """A base backup that adopts from *parent*, and a day of WAL behind it."""
    made = put_backup(store, start=start, own=(0, 1), adopted={parent: (0,)} if parent else {}, wal=True, **where)
    system_id = SYSTEM if where.get("system", 1) == 1 else SECOND_SYSTEM
    put_segments(store, start + 1, start + 3, timeline=where.get("timeline", 1), system_id=system_id)
    days(clock, 1)
    return made


def plain(text: str) -> str:
    """Without what chance drew: the random digits of ids become their number, in the order in which they appear."""
    drawn: dict[str, str] = {}
    ids = re.compile("([0-9]{8}-[0-9]{6})-([0-9a-f]{8})")
    return ids.sub(lambda found: f"{found[1]}-{drawn.setdefault(found[2], f'{len(drawn) + 1:08d}')}", text)


def reasons(work: Work) -> str:
    plan = plan_prune(work)
    physical = plan_physical_prune(work, [each.dump_id for each in plan.going])
    assert physical.proof.problems == ()
    return plain(show_prune.text(plan, physical, dry_run=True))


def work_on(store: MemoryStore, clock: SteppedClock) -> Work:
    return Work(dataclasses.replace(settings_of_a_week(), retention_days=10, retention_min_dumps=2), store, clock, ignore)


def test_a_fortnight(golden: Golden, clock: SteppedClock) -> None:
    store, parent = make_repository(clock), None
    for day in range(14):
        make_dump(store, ["clipper"])
        parent = day_of(store, clock, 1 + 4 * day, parent)
    golden(GOLDEN / "prune-a-fortnight.txt", reasons(work_on(store, clock)))
    prune_physical(work_on(store, clock))
    days(clock, 1.01)
    golden(GOLDEN / "prune-a-day-later.txt", reasons(work_on(store, clock)))


def test_everything_that_keeps_something(golden: Golden, clock: SteppedClock) -> None:
    """A hold with WAL, a point-in-time recovery, a volume snapshot, a run that lives and one that does not, an upgrade."""
    store, parent = make_repository(clock), None
    made = [parent := day_of(store, clock, 1 + 4 * day, parent) for day in range(12)]
    put_hold(store, made[1], ("00000001", "0/A80000"))
    record = SnapshotRecord(system_id=SYSTEM, timeline=1, start_lsn="0/D00000", stop_lsn="0/E80000", taken_at=clock.now())
    store.put(f"{names.SNAPSHOTS_FOLDER}nightly.json", encode(record))
    put_history(store, 2, [(1, 40 * SIZE + 7)])
    put_segments(store, 40, 40, timeline=2)
    days(clock, 0.1)
    killed = BackupId.make(clock.now())
    put_intent(store, killed, [made[-1]])
    put_packs(store, killed, [0, 1, 2], key=True)
    days(clock, 0.1)
    for day in range(6):
        parent = day_of(store, clock, 41 + 4 * day, parent, timeline=2)
    put_system(store, 2, SECOND_SYSTEM)
    day_of(store, clock, 1, None, system=2)
    days(clock, 0.1)
    run = BackupId.make(clock.now())
    put_intent(store, run, [parent] if parent else [])
    put_packs(store, run, [0])
    put_started(store, run, 5, system_id=SECOND_SYSTEM)
    golden(GOLDEN / "prune-all-kinds.txt", reasons(work_on(store, clock)))
