"""`restore --replace` where it would lose what nothing but the data folder there has, or end half-way: nothing is removed."""

import os
import shlex
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.errors import UsageError, WalGapError
from clipper_backup.ops.events import Event, StepBegun
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.account import server_account
from clipper_backup.values import Timeline
from fixtures.base import Cluster
from fixtures.dead_primary import backed_up_cluster, buried, replacing, rows_of, started
from fixtures.postgres import sql
from fixtures.restore import switch

pytestmark = pytest.mark.soak(share=0.25)


def add(cluster: Cluster, n: int) -> None:
    sql(cluster.server, "postgres", f"INSERT INTO rows VALUES (0, {n}, '')")


def archive_nowhere(cluster: Cluster, stop: threading.Event) -> None:
    """As with `archive_command = 'true'`: what is ready may be removed."""
    while not stop.wait(0.01):
        for path in (cluster.server.data / "pg_wal/archive_status").glob("*.ready"):
            (cluster.released / path.name.removesuffix(".ready")).touch()


@pytest.mark.rule(54)
@pytest.mark.parametrize("major", [15, 18])
def test_commits_that_no_wal_has_any_more_are_not_removed(place: Path, major: int) -> None:
    """Nothing was archived for a while, and the WAL of it is gone: the tables of the data folder alone have the rows 2 to 9."""
    with backed_up_cluster(place, major) as (cluster, work):
        with cluster.archiving(work):
            add(cluster, 1)
            switch(cluster)
        for setting in ("max_wal_size = '2MB'", "min_wal_size = '2MB'"):
            sql(cluster.server, "postgres", f"ALTER SYSTEM SET {setting}")
        sql(cluster.server, "postgres", "SELECT pg_reload_conf()")
        stop = threading.Event()
        releasing = threading.Thread(target=archive_nowhere, args=(cluster, stop))
        releasing.start()
        for n in range(2, 10):
            add(cluster, n)
            switch(cluster)
            sql(cluster.server, "postgres", "CHECKPOINT")
        stop.set()
        releasing.join()
        buried(cluster)

        request = replacing(cluster, place, Target("latest"))
        with pytest.raises(WalGapError, match=r"the server there was at LSN .* lies nowhere but in its tables") as caught:
            make_plan(work, request)
        assert [str(cluster.server.data) in caught.value.hints[0], "--timeline 1" in caught.value.hints[2]] == [True, True]

        # Whoever knows that it is not whole says how far, and is told.
        plan = make_plan(work, asked := replace(request, timeline=Timeline(1)))
        assert any("lies nowhere but in its tables" in note for note in plan.notes)
        with started(work, asked, plan) as (_, connection):
            assert {n for _, n in rows_of(connection)} == {1}


@pytest.mark.rule(53)
@pytest.mark.parametrize("major", [15, 18])
def test_a_server_whose_pid_file_was_removed_is_seen(place: Path, major: int) -> None:
    """At night, on the word of a hint: but it runs. So does what its postmaster left behind when that alone was killed."""
    with backed_up_cluster(place, major) as (cluster, work):
        pid_file = cluster.server.data / "postmaster.pid"
        written, postmaster = pid_file.read_text(), cluster.server.pid
        pid_file.unlink()
        request = replacing(cluster, place, Target("latest"))
        with pytest.raises(UsageError, match=f"PostgreSQL runs in .*, as process {postmaster}, though") as caught:
            make_plan(work, request)
        assert caught.value.hints[0].endswith(f"kill -INT {postmaster}")
        pid_file.write_text(written)
        server_account().own(pid_file)
        here = Path.cwd()
        buried(cluster)
        os.chdir(cluster.server.data)  # who stands in it is no server
        try:
            assert make_plan(work, request).found.state == "cluster"
        finally:
            os.chdir(here)


@pytest.mark.rule(54)
@pytest.mark.parametrize("when", ["while it is asked", "while what it left is archived", "while the archive is read"])
def test_a_server_that_ran_since_the_plan_is_not_removed(place: Path, when: str) -> None:
    """A service started it again: row 2 is behind what was planned, and nobody would replay it."""
    with backed_up_cluster(place, 15) as (cluster, work):
        add(cluster, 1)
        if when == "while what it left is archived":
            sql(cluster.server, "postgres", "SELECT pg_switch_wal()")
        buried(cluster)
        request = replacing(cluster, place, Target("latest"))
        plan = make_plan(work, request)
        step = {"while what it left is archived": "left", "while the archive is read": "compare"}.get(when)

        def run_again() -> None:
            cluster.server.start()
            add(cluster, 2)
            buried(cluster)

        def at_step(event: Event) -> None:
            if isinstance(event, StepBegun) and event.step == step:
                run_again()

        if step is None:
            run_again()
        watched = replace(work, emit=at_step)
        with pytest.raises(UsageError, match=r"the server in .* ran since the restore was planned"):
            restore(watched, request, plan)
        with started(work, request, make_plan(work, request)) as (_, connection):
            assert {n for _, n in rows_of(connection)} == {1, 2}


@pytest.mark.parametrize("major", [15, 18])
def test_a_tablespace_that_was_made_after_the_backup_ends_no_restore_half_way(place: Path, major: int) -> None:
    """The WAL makes it anew, into an empty folder only; what tells of it lies further back than a plan reads."""
    with backed_up_cluster(place, major) as (cluster, work):
        space = cluster.server.directory / "a space"
        space.mkdir()
        server_account().own(space)
        with cluster.archiving(work):
            sql(cluster.server, "postgres", f"CREATE TABLESPACE space LOCATION '{space}'")
            sql(cluster.server, "postgres", "CREATE TABLE moved TABLESPACE space AS SELECT 7 AS n")
            for n in range(1, 11):
                add(cluster, n)
                switch(cluster)
        buried(cluster)
        request = replacing(cluster, place, Target("latest"))
        with pytest.raises(UsageError, match=r"tablespace \d+ of the server there, .*, was made after the base backup") as caught:
            make_plan(work, request)
        version = next(space.iterdir())
        assert f"mv {shlex.quote(str(version))} " in caught.value.hints[0]

        # To an instant it may be in the way or not: that is told.
        ((oid,),) = [(link.name,) for link in (cluster.server.data / "pg_tblspc").iterdir()]
        told = make_plan(work, replace(request, target=Target("immediate"))).notes
        assert any(
            note.startswith(f"tablespace {oid} of the server there, in {space}, is not in the base backup") for note in told
        )

        version.rename(place / "aside")
        with started(work, request, make_plan(work, request)) as (_, connection):
            assert {n for _, n in rows_of(connection)} == set(range(1, 11))
            assert connection.execute("SELECT n FROM public.moved").fetchall() == [(7,)]
