"""Only what the archive was read to hold is removed: the file in a dead server's pg_wal may be the only good one (rule 54)."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.errors import ClipperError, IntegrityError, UsageError, WalGapError
from clipper_backup.format.physical_names import archive_key
from clipper_backup.ops.restore.left_wal import held_of, make_plan
from clipper_backup.ops.restore.plan import Plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.saved_wal import save_wal
from clipper_backup.ops.restore.target_dir import MARKER
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.push import push
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.values import Timeline
from fixtures.base import Cluster, Kept
from fixtures.dead_primary import backed_up_cluster, buried, replacing, started
from fixtures.moments import just_before
from fixtures.postgres import sql
from fixtures.restore import switch

pytestmark = pytest.mark.soak(share=0.3)


@contextmanager
def dead_with_archived_wal(place: Path) -> Iterator[tuple[Cluster, Work, list[str]]]:
    """A server that died with the last segments it had archived still in pg_wal; their names, and row 5 in the next."""
    with backed_up_cluster(place, 15) as (cluster, work):
        sql(cluster.server, "postgres", "ALTER SYSTEM SET wal_keep_size = '20MB'")
        sql(cluster.server, "postgres", "SELECT pg_reload_conf()")
        with cluster.archiving(work):
            for n in range(4):
                sql(cluster.server, "postgres", f"INSERT INTO rows VALUES (0, {n}, '')")
                switch(cluster)
        sql(cluster.server, "postgres", "INSERT INTO rows VALUES (0, 5, '')")
        buried(cluster)
        done = (cluster.server.data / "pg_wal/archive_status").glob(f"{'?' * 24}.done")
        yield cluster, work, sorted(path.name.removesuffix(".done") for path in done)[-4:]


def lived_unnoted(cluster: Cluster, work: Work, place: Path) -> tuple[Request, Plan, list[Path]]:
    """It lived once more: rows 6 and 7 behind whole segments, of which no `.ready` tells. Its replacement, and these segments."""
    cluster.server.start()
    for n in (6, 7):
        sql(cluster.server, "postgres", "SELECT pg_switch_wal()")
        sql(cluster.server, "postgres", f"INSERT INTO rows VALUES (0, {n}, '')")
    buried(cluster)
    for path in (cluster.server.data / "pg_wal/archive_status").glob("*.ready"):
        path.unlink()
    request = replacing(cluster, place, Target("latest"))
    plan = make_plan(work, request)
    assert plan.kept is not None
    return request, plan, list(plan.kept.whole)


def damage(work: Work, system: str, name: str, how: str) -> str:
    """Damage the object of a segment; its key."""
    key = archive_key(system, name, ".zst")
    data = b"".join(work.store.get_stream(key))
    changed = {"empty": b"", "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]}[how]
    work.store.put(key, changed)
    return key


def saved_beside(request: Request) -> Path:
    """Where a restore before this one saved something."""
    if not request.folder.exists():
        request.folder.mkdir(mode=0o700)
        (request.folder / ".clipper-restore").touch()
        for path in (request.folder, request.folder / ".clipper-restore"):
            server_account().own(path)
    return request.folder / "saved-pg_wal-20261122-020000"


@pytest.mark.rule(54)
def test_a_damaged_object_is_found_before_anything_is_removed_and_put_right_by_the_file_there(place: Path) -> None:
    with dead_with_archived_wal(place) as (cluster, work, names):
        data = cluster.server.data
        request = replacing(cluster, place, Target("latest"))
        plan = make_plan(work, request)
        assert held_of(work, data, plan) >= set(names)
        key = damage(work, plan.summary.system_id, names[1], "flipped")
        path = data / "pg_wal" / names[1]

        # Where the restore needs it, nothing is removed.
        with pytest.raises(IntegrityError, match="nothing was removed: ") as caught:
            restore(work, request, plan)
        assert names[1] in caught.value.message
        assert f"wal push {path}`" in caught.value.hints[-1]
        assert (data / "global/pg_control").exists()
        assert not (data / MARKER).exists()

        # Where it does not, what is there is saved.
        said = Kept()
        early = replace(request, target=Target("immediate"))
        assert names[1] not in held_of(replace(work, emit=said), data, make_plan(work, early))
        assert any(names[1] in text for text in said.warnings)

        work.store.delete([key])
        push(work, path)
        plan = make_plan(work, request)
        assert held_of(work, data, plan) >= set(names)
        with started(work, request, plan) as (result, connection):
            found = connection.execute("SELECT n FROM public.rows ORDER BY n").fetchall()
            assert found == [(0,), (1,), (2,), (3,), (5,)]
            assert not set(names) & set(result.saved)


@pytest.mark.rule(54)
def test_a_file_that_is_not_the_archived_one_is_saved(place: Path) -> None:
    """Its archiver noted it, and a listing shows the name."""
    with dead_with_archived_wal(place) as (cluster, work, names):
        data = cluster.server.data
        plan = make_plan(work, replacing(cluster, place, Target("immediate")))
        (data / "pg_wal" / names[0]).write_bytes(b"another server's")
        work.store.delete([archive_key(plan.summary.system_id, names[3], ".claim")])
        assert set(names) - held_of(work, data, plan) == {names[0], names[3]}


@pytest.mark.rule(54)
def test_a_copy_that_does_not_fit_ends_it_with_nothing_removed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the filesystem of a server that died of a full pg_wal: the plan counts it, and whoever writes there meanwhile is met."""
    with dead_with_archived_wal(place) as (cluster, work, _):
        data = cluster.server.data
        request = replacing(cluster, place, Target("latest"))
        plan = make_plan(work, request)
        usage = shutil.disk_usage(place)
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 10))
            with pytest.raises(ClipperError, match=r"the restore needs .* has 1\.0 kB"):
                make_plan(work, request)

        # It stays beside what is restored: room for either is not enough.
        (needed, gained), copied = plan.space, 16 << 20
        (data / "pg_wal/00000001000000FF00000001").write_bytes(bytes(copied))
        enough = sum(needed.values()) - sum(gained.values()) + (1 << 20)
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=max(enough, copied + (4 << 20))))
            with pytest.raises(ClipperError, match="the restore needs"):
                make_plan(work, request)
        (data / "pg_wal/00000001000000FF00000001").unlink()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "copyfileobj", full)
            with pytest.raises(ClipperError, match=r"nothing was removed: .* no space left on device") as caught:
                restore(work, request, plan)
        assert "--work-dir" in caught.value.hints[0]
        assert not list(request.folder.glob("saved-*"))
        assert (data / "global/pg_control").exists()

        # Nor is anything lost where the marker cannot be written.
        (data / f"{MARKER}.new").mkdir()
        with pytest.raises(ClipperError, match=f"cannot make or empty .*{MARKER}.new: is a directory"):
            restore(work, request, plan)
        assert (data / "global/pg_control").exists()


@pytest.mark.rule(54)
@pytest.mark.parametrize("how", ["another restore folder", "the half folder emptied"])
def test_what_was_saved_is_found_however_the_next_try_looks(place: Path, how: str) -> None:
    with dead_with_archived_wal(place) as (cluster, work, _):
        data = cluster.server.data
        request = replacing(cluster, place, Target("latest"))
        request = request if how.startswith("another") else replace(request, work_dir=None)
        plan = make_plan(work, request)
        packs = {info.key: work.store.get(info.key) for info in work.store.list("packs/")}
        for key, pack in packs.items():
            work.store.put(key, bytes(len(pack)))
        with pytest.raises(IntegrityError) as caught:
            restore(work, request, plan)
        assert any("what the former server had not archived lies in" in hint for hint in caught.value.hints)
        assert (data / MARKER).exists()
        for key, pack in packs.items():
            work.store.put(key, pack)
        again = replace(request, work_dir=place / "other")
        if not how.startswith("another"):
            shutil.rmtree(data)
            again = request
        plan = make_plan(work, again)
        assert plan.kept is not None
        assert plan.kept.folder.name.startswith("saved-pg_wal-")
        said = Kept()
        with started(replace(work, emit=said), again, plan) as (_, connection):
            assert connection.execute("SELECT max(n) FROM public.rows").fetchone() == (5,)
        if how.startswith("another"):
            (told,) = (text for text in said.warnings if "saved by a try before this one" in text)
            assert str(request.folder / "saved-pg_wal-") in told
            assert str(request.folder / "saved-settings-") in told


@pytest.mark.rule(54)
def test_its_own_wal_comes_before_what_was_saved_of_another_one(place: Path) -> None:
    """A snapshot of the volume was put back after a restore that failed: what was saved then is longer, and other."""
    with dead_with_archived_wal(place) as (cluster, work, _):
        data, request = cluster.server.data, replacing(cluster, place, Target("latest"))
        snapshot = place / "snapshot"
        subprocess.run(["cp", "-a", data, snapshot], check=True)
        saved = saved_beside(request)
        cluster.server.start()
        sql(cluster.server, "postgres", "INSERT INTO rows SELECT 1, n, '' FROM generate_series(1, 100) n")
        buried(cluster)
        subprocess.run(["cp", "-a", data / "pg_wal", saved], check=True)
        shutil.rmtree(data)
        subprocess.run(["cp", "-a", snapshot, data], check=True)
        plan = make_plan(work, request)
        assert plan.kept is not None
        assert plan.kept.folder == data / "pg_wal"
        assert [note for note in plan.notes if str(saved) in note and "not replayed" in note] == list(plan.notes)


@pytest.mark.rule(54)
def test_a_file_there_that_is_not_replayed_is_saved_beside_one_of_its_name_that_is(place: Path) -> None:
    """A restore before saved the segment in another restore folder; what has its name in pg_wal by now is of another history."""
    with dead_with_archived_wal(place) as (cluster, work, _):
        data, request = cluster.server.data, replace(replacing(cluster, place, Target("latest")), work_dir=None)
        kept = make_plan(work, request).kept
        assert kept is not None
        name = kept.segments[-1].name
        shutil.copytree(data / "pg_wal", saved_beside(request))
        other = b"another history's".ljust(kept.segment_bytes, b"\0")
        (data / "pg_wal" / name).write_bytes(other)
        request = replace(request, work_dir=place / "other")
        plan = make_plan(work, request)
        assert plan.kept is not None
        assert plan.kept.folder.parent not in {data, request.folder}
        with started(work, request, plan) as (result, connection):
            assert connection.execute("SELECT max(n) FROM public.rows").fetchone() == (5,)
        assert name in result.saved
        assert result.saved_in is not None
        assert (result.saved_in / name).read_bytes() == other


@pytest.mark.rule(54)
def test_a_damaged_end_of_the_archive_is_no_end_of_all_restores(place: Path) -> None:
    """What follows on it cannot be told; what needs none of it goes on, and the file there puts it right."""
    with dead_with_archived_wal(place) as (cluster, work, names):
        data = cluster.server.data
        request = replacing(cluster, place, Target("latest"))
        system = make_plan(work, request).summary.system_id
        key = damage(work, system, names[3], "flipped")
        path = data / "pg_wal" / names[3]
        with pytest.raises(IntegrityError, match=names[3]) as caught:
            make_plan(work, request)
        assert f"`clipper-backup wal push {path}`" in caught.value.hints[-2]
        assert caught.value.hints[-1].endswith("--accept-gap")
        with pytest.raises(IntegrityError) as elsewhere:
            make_plan(work, replace(request, target_dir=place / "new", replace=False))
        assert elsewhere.value.hints[-1].endswith("--accept-gap")

        early = make_plan(work, replace(request, target=Target("immediate")))
        assert any("cannot be told" in note for note in early.notes)
        cut = make_plan(work, replace(request, accept_gap=True))
        assert cut.last is not None
        assert (cut.last.name, cut.kept) == (names[2], None)
        assert cut.wal.gap is not None
        assert cut.wal.gap.segment.name == names[3]
        assert "it is damaged" in cut.wal.gap.why

        # Cut short, or gone: the listing shows it, and what lies there closes it.
        damage(work, system, names[1], "empty")
        with pytest.raises(WalGapError, match="has 0 bytes, less than a header") as short:
            make_plan(work, replace(request, target=Target("latest"), target_dir=place / "new", replace=False))
        assert names[1] in short.value.message
        work.store.delete([key, archive_key(system, names[1], ".zst")])
        with pytest.raises(WalGapError, match=f"gap at {names[1]}") as gap:
            make_plan(work, request)
        assert gap.value.hints[0].endswith(f"`clipper-backup wal push {data / 'pg_wal' / names[1]}`")


@pytest.mark.rule(54)
def test_whole_segments_that_no_archiver_noted_are_archived_and_saved_ones_can_be(place: Path) -> None:
    """So what leads to the new timeline is in the archive, and a second death loses nothing."""
    with dead_with_archived_wal(place) as (cluster, work, names):
        data = cluster.server.data
        request, plan, whole = lived_unnoted(cluster, work, place)
        (first, second) = (path.name for path in whole)
        catalog = WalCatalog(work.store, plan.summary.system_id, plan.summary.sizes.segment_bytes)

        # What a restore saved, that could not archive.
        saved = save_wal(data, saved_beside(request), server_account(), set(names))
        assert {first, second} <= set(saved)
        pushed = push(work, saved_beside(request) / first)
        assert (pushed.name, pushed.state) == (first, "archived")
        with pytest.raises(UsageError, match="does not lie in a pg_wal"):
            push(work, request.folder / first)

        with started(work, request, make_plan(work, request)) as (_, connection):
            assert connection.execute("SELECT max(n) FROM public.rows").fetchone() == (7,)
            connection.execute("INSERT INTO public.rows VALUES (0, 8, '')")
            newest = catalog.newest(Timeline(1))
            assert newest is not None
            assert newest.name == second
        # It dies, and had archived nothing of its own.
        shutil.rmtree(request.folder)
        plan = make_plan(work, request)
        assert plan.way.timeline == 2
        with started(work, request, plan) as (_, connection):
            assert connection.execute("SELECT max(n) FROM public.rows").fetchone() == (8,)


@pytest.mark.rule(54)
def test_wal_of_two_deaths_is_put_together(place: Path) -> None:
    """The first restore could not archive: what leads to the second server's timeline lies in what was saved."""
    with dead_with_archived_wal(place) as (cluster, work, _):
        data = cluster.server.data
        request, plan, whole = lived_unnoted(cluster, work, place)
        lost = [archive_key(plan.summary.system_id, path.name, suffix) for path in whole for suffix in (".zst", ".claim")]
        save_wal(data, saved_beside(request), server_account(), ())
        with started(work, request, plan) as (_, connection):
            connection.execute("INSERT INTO public.rows VALUES (0, 8, '')")
        work.store.delete(lost)
        hidden = request.folder.rename(place / "hidden")
        with pytest.raises(WalGapError, match="was on timeline 2, of which nothing is archived") as caught:
            make_plan(work, request)
        assert "--timeline 1" in caught.value.hints[1]
        hidden.rename(request.folder)
        plan = make_plan(work, request)
        assert plan.way.timeline == 2
        assert plan.kept is not None
        assert len(set(plan.kept.folders)) == 2
        with started(work, request, plan) as (_, connection):
            assert connection.execute("SELECT max(n) FROM public.rows").fetchone() == (8,)
        assert {work.store.head(key).key for key in lost} == set(lost)


@pytest.mark.rule(54)
def test_what_lies_there_and_cannot_be_read_is_told_as_that(place: Path) -> None:
    """As on a disk that fails: neither is it a bug, nor does more room for the copy help."""
    with dead_with_archived_wal(place) as (cluster, work, names):
        data = cluster.server.data
        request = replacing(cluster, place, Target("latest"))
        plan = make_plan(work, request)
        rotten = data / "pg_wal" / names[0]
        whole = rotten.read_bytes()
        for name in (names[0], "0000000100000000000000FF"):  # one that the archive has, and one that is copied
            path = data / "pg_wal" / name
            path.unlink(missing_ok=True)
            path.symlink_to("/proc/self/mem")  # whoever reads its first page gets EIO
            with pytest.raises(ClipperError, match=f"nothing was removed: cannot read {path}: input/output error") as caught:
                restore(work, request, plan)
            assert [("--work-dir" in hint, "--target-dir" in hint) for hint in caught.value.hints] == [
                (False, True),
                (False, False),
            ]
            assert not list(request.folder.glob("saved-*"))
            path.unlink()
            rotten.write_bytes(whole)

        def rot(_: object) -> None:
            raise OSError(errno.EIO, "Input/output error", str(data))

        with (
            pytest.raises(ClipperError, match=f"nothing was removed: cannot read {data}: input/output error"),
            just_before(os.walk, rot),
        ):
            make_plan(work, request)
