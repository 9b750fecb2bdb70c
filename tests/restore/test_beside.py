"""An instant for which two timelines have something to say: the newest one is taken, the other one is named."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from clipper_backup.cli.show_restore import plan_document, plan_text
from clipper_backup.errors import UsageError
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.push import push
from clipper_backup.postgres.account import server_account
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Timeline
from fixtures.base import Kept
from fixtures.restore import World, planned, recovered, session_in
from fixtures.wal_archive import MadeArchive


def commit(connection: "psycopg.Connection[tuple[object, ...]]", n: int) -> datetime:
    """And when it was over."""
    connection.execute("INSERT INTO public.ledger VALUES (%s, 'on timeline 2')", [n])
    ((at,),) = connection.execute("SELECT clock_timestamp() FROM pg_sleep(0.005)").fetchall()
    assert isinstance(at, datetime)
    return at


@pytest.mark.rule(59)
@pytest.mark.rule(62)
def test_a_time_on_a_branch_that_was_left_is_told(restore_world: World, place: Path) -> None:
    world = restore_world.copied_to(place)
    first, then = place / "first", place / "then"
    for folder in (first, then):
        folder.mkdir()
        server_account().own(folder)
    left, lost = world.moments[1], world.moments[2]
    with recovered(world, first, Target("time", time=left.at), timeline=Timeline(1)) as (result, started, _):
        with session_in(started) as connection:
            held = commit(connection, -1)
            commit(connection, -2)
            ((last,),) = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchall()
        for path in sorted((result.data / "pg_wal").glob("00000002" + "?" * 16)):
            if path.name <= last:
                push(world.work, path)
    request, plan = planned(world, then, Target("time", time=lost.at))
    assert plan.way.timeline == 2
    assert [end.timeline for end in plan.beside] == [1]
    assert plan_document(request, plan)["timelines_beside"] == [1]
    assert "may have been the one in use at that time: --timeline 1\n" in plan_text(request, plan)
    said = Kept()
    restore(replace(world.work, emit=said), request, plan)
    assert any("timeline 1, with WAL of its own" in text for text in said.warnings), said.warnings

    for target, timeline in (
        (Target("time", time=lost.at), Timeline(1)),
        (Target("time", time=world.moments[0].at), None),
        (Target("time", time=held), None),
    ):
        _, plan = planned(world, place, target, timeline=timeline)
        assert plan.beside == ()

    # To the latest all are named; and where another one was archived later, nobody but a person knows which was in use.
    request, plan = planned(world, place, Target("latest"))
    assert [end.timeline for end in plan.beside] == [1]
    assert "is not gone along: --timeline 1\n" in plan_text(request, plan)
    summary = plan.summary
    catalog = WalCatalog(world.work.store, summary.system_id, summary.sizes.segment_bytes)
    archive = MadeArchive(world.work.store, summary.system_id, plan.repository_id, made_at=world.work.clock.now())
    end = catalog.newest(Timeline(1))
    assert end is not None
    claim = catalog.claim(end)
    assert claim is not None
    archive.segment(1, end.number + 1, previous=catalog.link_of(claim))
    with pytest.raises(
        UsageError, match=f"timeline 2 is the newest, and timeline 1 has .* later, up to {end.next()}: "
    ) as caught:
        planned(world, place, Target("latest"))
    assert [hint.rpartition(": ")[2] for hint in caught.value.hints] == ["--timeline 1", "--timeline 2"]
    for number in (1, 2):
        assert planned(world, place, Target("latest"), timeline=Timeline(number))[1].way.timeline == number
    assert planned(world, place, Target("latest"), standby=True)[1].way.timeline == 2
