"""`restore` of what `base create` and `wal push` stored: each target gives what the server held there, by the test's own SQL."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from clipper_backup.cli.show_restore import plan_text, restored_document
from clipper_backup.errors import AccessError, IntegrityError, MissingError, UsageError, WalGapError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.physical_names import data_key_key, pack_key
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.events import Event, StepDone, Warned
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.recovery import AUTO_CONF
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.push import push
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.base_backups import read_base_summary
from clipper_backup.repository.lines import Line
from clipper_backup.repository.stops import Stop, StopAt, find_stop
from clipper_backup.repository.wal_range import GAP_HINTS
from clipper_backup.repository.wal_reader import WalReader
from clipper_backup.store.local import LocalStore
from clipper_backup.values import BackupId, Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.base import Cluster, archived_cluster, backed_up, work_for
from fixtures.cli import RunCli, StartCli
from fixtures.dump import FAULTS, ended, halted
from fixtures.keys import Key, opening, sealed_to
from fixtures.newer import cut_anew
from fixtures.oracle import content_now, content_of
from fixtures.postgres import server_binaries, sql
from fixtures.restore import (
    Moment,
    World,
    end_left_running,
    pg_verifybackup,
    planned,
    recovered,
    restored,
    restoring,
    session_in,
    switch,
)
from fixtures.server_program import server_environment, server_program
from fixtures.sweeps import chosen

pytestmark = pytest.mark.soak(share=0.25)


@pytest.fixture
def world(restore_world: World, place: Path) -> World:
    return restore_world.copied_to(place)


def at(world: World, number: int) -> Moment:
    return world.moments[number]


TARGETS: dict[str, tuple[Callable[[World], Target], int, int]] = {
    "time": (lambda world: Target("time", time=at(world, 0).at), 0, 0),
    "time, exclusive": (lambda world: Target("time", time=at(world, 2).at, exclusive=True), 2, 1),
    "lsn": (lambda world: Target("lsn", lsn=at(world, 1).lsn), 1, 0),
    "lsn, exclusive": (lambda world: Target("lsn", lsn=at(world, 2).lsn, exclusive=True), 2, 1),
    "xid": (lambda world: Target("xid", xid=at(world, 2).xid), 2, 1),
    "xid, exclusive": (lambda world: Target("xid", xid=at(world, 2).xid, exclusive=True), 1, 1),
    "name": (lambda _: Target("name", name="moment 1"), 1, 0),
    "immediate": (lambda _: Target("immediate"), 1, 1),
}
"""How a target is named, which moment it is, and which backup ended last before it."""


def aligned(lsn: Lsn) -> Lsn:
    """Where the next record begins."""
    return Lsn(-(-lsn // 8) * 8)


@pytest.mark.rule(59)
@pytest.mark.rule(63)
def test_a_target_gives_what_the_server_held_there(world: World, place: Path) -> None:
    for name in chosen(list(TARGETS), 2):
        make, number, backup = TARGETS[name]
        folder = place / name.replace(", ", "-")
        folder.mkdir()
        server_account().own(folder)
        with recovered(world, folder, make(world), timeline=Timeline(1)) as (result, started, content):
            assert content == at(world, number).content, name
            assert result.plan.summary.id == world.backups[backup]
            if result.plan.stop is not None:
                record = result.plan.stop.record
                assert started.stopped_at in {record.start, aligned(record.end)}
                assert started.stopping is not None


def test_what_was_cut_into_other_stretches(world: World, place: Path) -> None:
    """M2."""
    summary = cut_anew(world.work, BackupId.parse(world.backups[1]), 1 << 20)
    with recovered(world, place, Target("latest")) as (result, _, content):
        assert (result.plan.summary.id, content) == (summary.id, at(world, 3).content)


@pytest.mark.rule(65)
@pytest.mark.rule(69)
@pytest.mark.rule(98)
def test_latest_twice_never_uses_a_timeline_again(world: World, place: Path) -> None:
    """The second one finds the first one's timeline taken, and passes it over, whatever the target: nothing is on it."""
    for timeline in (2, 3):
        folder = place / str(timeline)
        folder.mkdir()
        server_account().own(folder)
        with recovered(world, folder, Target("latest")) as (result, started, content):
            assert content == at(world, 3).content
            assert started.timeline == timeline
            assert result.archived
            assert result.plan.line.timeline == 1
            assert result.plan.passed_over == [Timeline(number) for number in range(2, timeline)]
            assert world.work.store.get(keys.history_key(result.plan.summary.system_id, Timeline(timeline), keys.STORED))
            with session_in(started) as connection:
                settings: dict[str, str] = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
            assert (settings["listen_addresses"], settings["archive_mode"]) == ("", "off")
            ours = (result.data / "postgresql.auto.conf").read_text().splitlines()
            assert [line for line in ours if line.startswith(("recovery_", "restore_", "max_", "archive_"))] == [
                "archive_mode = 'off'"
            ]
            assert started.socket_folder.stat().st_mode & 0o777 == 0o700
    for target in (Target("xid", xid=at(world, 3).xid), Target("name", name="moment 3"), Target("immediate")):
        _, plan = planned(world, place, target)
        assert (plan.line.timeline, plan.summary.id) == (1, world.backups[1])
    with pytest.raises(WalGapError, match="nothing of timeline 3 is archived") as caught:
        planned(world, place, Target("latest"), timeline=Timeline(3))
    assert caught.value.hints[0].endswith(": --timeline 1")


@pytest.mark.rule(62)
def test_a_line_goes_through_a_promotion_and_stops_before_it_too(world: World, place: Path) -> None:
    folders = [place / "first", place / "second"]
    for folder in folders:
        folder.mkdir()
        server_account().own(folder)
    with recovered(world, folders[0], Target("latest")) as (result, started, _):
        with session_in(started) as connection:
            connection.execute("INSERT INTO public.ledger VALUES (-1, 'on timeline 2')")
            held = content_of(connection)
            ((last,),) = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchall()
        for path in sorted((result.data / "pg_wal").glob("00000002" + "?" * 16)):
            if path.name <= last:
                push(world.work, path)
    with recovered(world, folders[1], Target("latest")) as (result, started, content):
        assert content == held
        assert (result.plan.line.timeline, started.timeline) == (2, 3)
        assert {segment.timeline for segment in result.plan.wal.segments} == {1, 2}
    _, before = planned(world, place, Target("xid", xid=at(world, 2).xid))
    assert before.line.timeline == 1
    _, along = planned(world, place, Target("latest"), timeline=Timeline(1))
    assert {segment.timeline for segment in along.wal.segments} == {1}


@pytest.mark.rule(28)
@pytest.mark.rule(35)
@pytest.mark.rule(37)
def test_the_folder_passes_pg_verifybackup_and_recovers_by_itself(world: World, place: Path) -> None:
    """Started by hand: what stands in its files is enough."""
    for path in (world.repository, *world.repository.rglob("*")):
        server_account().own(path)
    result = restored(world, place, Target("name", name="moment 2"))
    assert "backup successfully verified" in pg_verifybackup(world, result.data)
    assert (result.data / "backup_label").read_text().startswith("START WAL LOCATION: ")
    assert result.outside is not None
    assert (result.outside / str(world.outside).lstrip("/")).read_text() == "# a map of our own\n"
    assert (result.data / f"pg_tblspc/{world.space}").readlink() == place / "space"
    secret = [path for path in result.folder.iterdir() if path.is_file() and path.stat().st_mode & 0o077]
    assert result.folder.stat().st_mode & 0o777 == 0o700
    assert not secret
    with PrivateServer(
        place / "by hand", server_binaries(world.major), environment=server_environment(), data=result.data
    ) as server:
        server.start()  # it serves reads while it recovers
        while sql(server, "postgres", "SELECT pg_is_in_recovery() AND pg_sleep(0.02) IS NOT NULL") == [(True,)]:
            continue
        with content_now(server, "postgres") as content:
            assert content == at(world, 2).content
        assert sql(server, "postgres", "SHOW max_prepared_transactions") == [("3",)]


@pytest.mark.rule(54)
def test_a_dead_primary_is_replaced_when_asked_and_its_wal_is_saved(world: World, place: Path) -> None:
    target = Target("immediate")
    first = restored(world, place, target)
    lost = "00000001000000000000007F"
    (first.data / "pg_wal" / lost).write_bytes(b"the newest commits")
    (first.data / "of the former server").touch()
    with pytest.raises(UsageError, match="holds a data folder of this cluster"):
        planned(world, place, target)
    volume = place / "volume"
    (first.data / "pg_wal").rename(volume)
    (first.data / "pg_wal").symlink_to(volume)
    request, plan = planned(world, place, target, replace=True)
    assert f"a link to {volume}: becomes a plain folder" in plan_text(request, plan)
    told: list[Event] = []
    again = restore(replace(world.reading(), emit=told.append), request, plan)
    assert sum(f"is a link to {volume}: it becomes" in event.text for event in told if isinstance(event, Warned)) == 1
    assert not (again.data / "pg_wal").is_symlink()
    assert (volume / lost).exists()
    assert again.saved == (lost,)
    assert again.saved_in is not None
    assert (again.saved_in / lost).read_bytes() == b"the newest commits"
    assert not (again.data / "of the former server").exists()
    pg_verifybackup(world, again.data)


def lose(world: World, segment: Segment) -> None:
    system = next(entry for entry in world.repository.joinpath("wal").iterdir()).name
    for suffix in (keys.STORED, keys.CLAIM):
        world.work.store.delete([keys.archive_key(system, segment.name, suffix)])


@pytest.mark.rule(96)
def test_a_gap_is_refused_before_anything_is_written(world: World, place: Path) -> None:
    _, whole = planned(world, place, Target("latest"))
    segments = whole.wal.segments
    gone = Segment.holding(Timeline(1), at(world, 2).lsn, segments[0].size_bytes)
    assert segments[0] < gone < segments[-1]
    lose(world, gone)
    beside = Segment(Timeline(2), gone.number, gone.size_bytes)
    world.work.store.put(keys.archive_key(whole.summary.system_id, beside.name, keys.STORED), b"of another line")
    for target in (
        Target("latest"),
        Target("xid", xid=at(world, 3).xid),
        Target("time", time=at(world, 3).at - timedelta(milliseconds=1)),
    ):
        with pytest.raises(WalGapError, match=gone.name) as caught:
            planned(world, place, target, timeline=Timeline(1))
        # The same for what the plan finds, and for what the search for the stop meets.
        assert {f"timeline 2 has WAL of its own up to {beside}: --timeline 2", *GAP_HINTS} <= {*caught.value.hints}
    _, plan = planned(world, place, Target("latest"), timeline=Timeline(1), accept_gap=True)
    assert plan.last == gone.previous()
    assert plan.wal.gap is not None
    planned(world, place, Target("xid", xid=at(world, 1).xid), timeline=Timeline(1))  # before it
    assert not (place / "data").exists()


@pytest.mark.rule(62)
def test_a_timeline_whose_history_is_gone_is_not_passed_over(world: World, place: Path) -> None:
    """What lies on it may be all that was written for weeks."""
    _, plan = planned(world, place, Target("latest"))
    of_the_next = replace(plan.wal.segments[-1], timeline=Timeline(2)).name
    world.work.store.put(keys.archive_key(plan.summary.system_id, of_the_next, keys.STORED), b"of a timeline without a history")
    for target in (Target("latest"), Target("immediate"), Target("lsn", lsn=at(world, 2).lsn)):
        with pytest.raises(WalGapError, match="timeline 2 has WAL or a base backup here") as refused:
            planned(world, place, target)
        assert any("wal push pg_wal/00000002.history" in hint for hint in refused.value.hints)
        assert any("--timeline 1" in hint for hint in refused.value.hints)
        assert planned(world, place, target, timeline=Timeline(1))[1].line == plan.line


@pytest.mark.rule(56)
def test_wal_that_is_damaged_ends_the_recovery_with_what_is_wrong(world: World, place: Path) -> None:
    """The plan sees that it is there; only who reads it sees what it is."""
    _, plan = planned(world, place, Target("latest"))
    middle = plan.wal.segments[len(plan.wal.segments) // 2].name
    damaged = keys.archive_key(plan.summary.system_id, middle, keys.STORED)
    stored = bytearray(world.work.store.get(damaged))
    stored[len(stored) // 2] ^= 1
    world.work.store.put(damaged, bytes(stored))
    with (
        pytest.raises(IntegrityError, match=rf"recovery was ended: .*{middle}"),
        recovered(world, place, Target("latest")),
    ):
        pass
    assert not (place / "data/pg_wal/00000002.history").exists()
    assert not (place / "data/postmaster.pid").exists()


def xid_within_the_first_backup(world: World) -> int:
    """Of a transaction that was committed while it was taken: recovery may not stop before a backup's end."""
    summary = read_base_summary(world.work.store, BackupId.parse(world.backups[0]))
    size = summary.sizes.segment_bytes
    reader = WalReader(
        world.work.store,
        repository_id=summary.repository_id,
        system_id=summary.system_id,
        segment_bytes=size,
        opener=lambda chunks, _: iter(chunks),
    )
    begin, end = Lsn.parse(summary.start_lsn), Lsn.parse(summary.stop_lsn)
    found = find_stop(reader, Line.of(Timeline(1), []), StopAt(time=summary.begun_at), begin)
    assert isinstance(found, Stop)
    assert begin <= found.record.start < end
    return found.record.xid


@pytest.mark.rule(59)
@pytest.mark.rule(60)
def test_targets_that_cannot_be_reached_are_refused(world: World, place: Path) -> None:
    """Each names what can be."""
    first, last = at(world, 0), at(world, 3)
    refused = (
        (Target("time", time=first.at - timedelta(hours=1)), "before the end of the oldest base backup", "the earliest instant"),
        (Target("lsn", lsn=Lsn(0x100)), "before the end of the oldest base backup", "the earliest instant"),
        (
            Target("time", time=last.at + timedelta(hours=1)),
            "no transaction ended behind it",
            "the newest instant that can be named",
        ),
        (Target("lsn", lsn=Lsn(1 << 40)), "it is not there", "name no target"),
        (Target("lsn", lsn=Lsn(1 << 40)), "it is not there", "the last LSN that can be named"),
        (Target("xid", xid=last.xid + 1000), "it is not there", "name no target"),
        (Target("xid", xid=last.xid + 1000), "it is not there", "of a subtransaction"),
        (Target("name", name="moment 9"), "it is not there", "name no target"),
    )
    for target, words, hint in refused:
        with pytest.raises(MissingError, match=words) as caught:
            planned(world, place, target)
        assert any(hint in said for said in caught.value.hints), caught.value.hints
        for said in caught.value.hints:
            if said.startswith("the last LSN"):
                nearest = Lsn.parse(said.split()[8].rstrip(","))
                planned(world, place, Target("lsn", lsn=nearest))
                with pytest.raises(MissingError):
                    planned(world, place, Target("lsn", lsn=Lsn(nearest + 1)))
    with pytest.raises(MissingError, match="it is not there"):
        planned(world, place, Target("xid", xid=xid_within_the_first_backup(world)))
    second = BackupId.parse(world.backups[1])
    with pytest.raises(UsageError, match="ended at"):
        planned(world, place, Target("lsn", lsn=first.lsn), backup=second)
    with pytest.raises(MissingError, match="there is no base backup"):
        planned(world, place, Target("latest"), backup=BackupId.parse("20200101-000000-00000000"))
    with pytest.raises(UsageError, match="has no tablespace 7"):
        planned(world, place, Target("latest"), tablespaces={7: place / "x"})
    _, plan = planned(world, place, Target("latest"), backup=BackupId.parse(world.backups[0]))
    assert plan.summary.id == world.backups[0]


def test_what_is_sealed_and_signed_needs_its_keys(archived18: Cluster, place: Path, keys: dict[str, Key]) -> None:
    url = {"BACKUP_URL": f"file://{place}/repository", "ARCHIVE_WAIT_SECONDS": "1"}
    signing = {"SIGNING_KEY_FILE": str(keys["signer"].path)}
    store = LocalStore(place / "repository")
    request = Request(place / "data", Target("immediate"), server_account(), program=server_program())

    def work(**settings: str) -> Work:
        return work_for(archived18, store, None, **url, **settings)

    writing = work(**sealed_to(keys), **opening(keys["operator"]), **signing)
    backed_up(archived18, writing)
    for wrong in (sealed_to(keys), {**sealed_to(keys), **opening(keys["stranger"])}):
        with pytest.raises(AccessError):
            make_plan(work(**wrong), request)
    with pytest.raises(MissingError) as caught:
        make_plan(work(**opening(keys["operator"]), SIGNATURE_KEYS=keys["forger"].public), request)
    assert any("signed by no key that is trusted" in hint for hint in caught.value.hints), caught.value.hints
    result = restore(writing, request, make_plan(writing, request), start=True)
    assert result.started is not None
    try:
        assert result.archived
        with session_in(result.started) as connection:
            assert connection.execute("SELECT count(*) FROM public.rows").fetchone() == (50000,)
        kept = (request.folder / "plan.json").read_text()
        assert str(keys["operator"].path) in kept
        assert keys["signer"].public in kept
        assert "SECRET" not in kept
        assert str(keys["signer"].path) not in kept
    finally:
        os.kill(result.started.pid, signal.SIGQUIT)
        os.waitpid(result.started.pid, 0)


@pytest.mark.rule(54)
def test_a_cluster_is_replaced_by_nothing_but_what_can_be_read(archived18: Cluster, place: Path, keys: dict[str, Key]) -> None:
    """Refused by the plan, so before anything is removed; beside it a restore goes as far as it can."""
    store = LocalStore(place / "repository")
    work = work_for(
        archived18, store, None, BACKUP_URL=f"file://{place}/repository", **sealed_to(keys), **opening(keys["operator"])
    )
    backup = BackupId.parse(backed_up(archived18, work).summary.id)
    request = Request(place / "data", Target("immediate"), server_account(), program=server_program())
    restore(work, request, make_plan(work, request))
    (request.data / "of the former server").touch()
    key, pack = data_key_key(backup), pack_key(backup, 0)
    for name, stored in ((key, None), (pack, None), (pack, b""), (key, store.get(key)[:-1] + b"?")):
        kept = store.get(name)
        store.delete([name])
        if stored is not None:
            store.put(name, stored)
        with pytest.raises(IntegrityError, match=name):
            make_plan(work, replace(request, replace=True))
        beside = replace(request, target_dir=place / "beside")
        if name == pack:
            assert pack in str(make_plan(work, beside).problem)
        else:
            with pytest.raises(IntegrityError, match=name):
                make_plan(work, beside)
        store.put(name, kept)
    assert (request.data / "of the former server").exists()
    assert make_plan(work, replace(request, replace=True)).problem is None


def test_where_a_tablespace_was_is_taken_unless_told_otherwise(world: World, place: Path) -> None:
    """The source still has it."""
    with pytest.raises(UsageError, match="which is not empty") as caught:
        planned(world, place, Target("latest"), tablespaces={})
    assert caught.value.hints == (f"choose another folder: --tablespace {world.space}=DIR",)


def within_the_load(work: Work, request: Request) -> Target:
    """A target for which the segments before it are read: none can be passed over, for nobody wrote time maps."""
    end = make_plan(work, request).last_commit_at
    assert end is not None
    return Target("time", time=end - timedelta(microseconds=1))


@pytest.mark.rule(70)
def test_a_tablespace_made_after_the_backup_is_the_living_servers(place: Path) -> None:
    """Restored beside that server, recovery ends before it links to its folder; where the folder is empty it goes on.

    Where the plan reads the WAL that makes it, nothing begins at all.
    """
    space = place / "space"
    space.mkdir()
    server_account().own(space)
    with archived_cluster(15) as cluster:
        work = work_for(cluster, LocalStore(place / "repository"), BACKUP_URL=f"file://{place}/repository")
        with cluster.archiving(work):
            create_base(work)
            sql(cluster.server, "postgres", f"CREATE TABLESPACE later LOCATION '{space}'")
            sql(cluster.server, "postgres", "CREATE TABLE accounts TABLESPACE later AS SELECT generate_series(1, 999) AS n")
            switch(cluster)
            request = Request(place / "data", Target("latest"), server_account(), program=server_program())
            with pytest.raises(UsageError, match=f"was created in {space}, .* is not empty here"):
                make_plan(work, request)
            sql(cluster.server, "postgres", "CREATE TABLE behind ()")
            switch(cluster)
        sql(cluster.server, "postgres", "CHECKPOINT")
        held = {path: path.read_bytes() for path in space.rglob("*") if path.is_file()}
        with pytest.raises(IntegrityError, match=f"was created in {space}, .* is not empty here"):
            restore(work, request, make_plan(work, request), start=True)
        assert list((place / "data/pg_tblspc").iterdir()) == []
        assert {path: path.read_bytes() for path in space.rglob("*") if path.is_file()} == held
    shutil.rmtree(space)
    space.mkdir()
    server_account().own(space)
    request = replace(request, replace=True)
    named = make_plan(work, replace(request, target=within_the_load(work, request)))
    assert list(named.later_tablespaces.values()) == [space]
    assert f"in {space}, made by the WAL" in plan_text(request, named)
    result = restore(work, request, make_plan(work, request), start=True)
    assert result.started is not None
    try:
        with session_in(result.started) as connection:
            assert connection.execute("SELECT count(*) FROM public.accounts").fetchall() == [(999,)]
    finally:
        os.kill(result.started.pid, signal.SIGQUIT)
        os.waitpid(result.started.pid, 0)


@pytest.mark.rule(53)
@pytest.mark.rule(72)
def test_the_command(world: World, place: Path, run_cli: RunCli) -> None:
    dry = run_cli(*restoring(world, place, "--to-name", "moment 2", "--dry-run"), env=world.settings, check=True)
    assert f"backup:      {world.backups[1]}" in dry.stdout
    assert "Nothing was written." in dry.stdout
    assert not (place / "data").exists()
    done = run_cli(*restoring(world, place, "--to-name", "moment 2", "--start", "--json"), env=world.settings, check=True)
    started = done.document["restored"]["started"]
    try:
        assert done.document["stop_lsn"] is not None
        assert started["timeline"] == 2
        restored_seconds = done.document["restored"]
        assert 0 < started["consistent_seconds"] <= started["recovery_seconds"]
        assert restored_seconds["files_seconds"] + started["recovery_seconds"] <= restored_seconds["duration_seconds"]
        assert done.document["restored"]["history_archived"] is True
        refused = run_cli(*restoring(world, place, "--replace", "--yes"), env=world.settings)
        assert refused.code == 2
        assert f"a PostgreSQL server runs in {place / 'data'}, as process {started['pid']}" in refused.stderr
    finally:
        end_left_running(done.document)
    root = run_cli("restore", "--target-dir", str(place / "other"), "--owner", "0", env=world.settings)
    assert (root.code, "root restores nothing" in root.stderr) == (2, True)


def test_settings_that_could_not_be_taken_away_are_told_and_the_server_runs(world: World, place: Path) -> None:
    """It has recovered by then: an error would say that it has not."""
    request, plan = planned(world, place, Target("name", name="moment 2"))
    said: list[str] = []

    def taken(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == "recover":
            (request.data / AUTO_CONF).unlink()
        if isinstance(event, Warned):
            said.extend((event.text, *event.hints))

    result = restore(replace(world.reading(), emit=taken), request, plan, start=True)
    started = result.started
    assert started is not None
    try:
        assert "restore_command" in restored_document(result)["recovery_settings"]  # type: ignore[operator] # a list
        with session_in(started) as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        assert f"the settings of this recovery are still in {request.data / AUTO_CONF}: No such file or directory" in said
        assert any("ALTER SYSTEM RESET each of" in text and "recovery_target_name" in text for text in said)
    finally:
        os.kill(started.pid, signal.SIGQUIT)
        os.waitpid(started.pid, 0)


KILLS = 1


@pytest.mark.soak
def test_killed_at_any_call_to_the_store_it_can_be_repeated(
    world: World, place: Path, run_cli: RunCli, start_cli: StartCli
) -> None:
    words = restoring(world, place, "--immediate")
    counting = start_cli(*words, env={**world.settings, FAULTS: "*:1+:stop"})
    calls = 0
    while halted(counting):
        calls += 1
        counting.send_signal(signal.SIGCONT)
    assert ended(counting).code == 0
    for number in chosen(range(1, calls + 1), KILLS):
        for left in ("data", "space"):
            shutil.rmtree(place / left, ignore_errors=True)
        died = run_cli(*words, env={**world.settings, FAULTS: f"*:{number}:kill"})
        assert died.code in {-signal.SIGKILL, 0}, died  # with other ranges under way it may call less often
        if died.code != 0:
            run_cli(*words, env=world.settings, check=True)
        pg_verifybackup(world, place / "data")


def test_the_restore_folder_lies_beside_the_data_folder_unless_named(place: Path) -> None:
    request = Request(place / "data", Target("latest"), server_account())
    assert request.folder == place / "data.clipper-restore"
    assert replace(request, work_dir=place / "w").folder == place / "w"
