"""Base backups whose files are read where the server has them: what a restore of each gives back."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import ServerError, UsageError
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.manifest import File
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.events import Event, StepBegun
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.control_file import ControlFile
from clipper_backup.postgres.page_checksums import page_lsns
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import BackupId
from fixtures.base import Kept, contents_of, read_bytes, until_older
from fixtures.dead_primary import replacing, started
from fixtures.increments import Changing, changing
from fixtures.oracle import Writer, content_of
from fixtures.postgres import private_folder, sql
from fixtures.restore import proven, session_in, until
from fixtures.standby import Site, ended_segment, followed

pytestmark = pytest.mark.soak(share=0.25)
PAGE = 8192

FILLED = (
    "CREATE TABLE one (id int PRIMARY KEY, body text)",
    "INSERT INTO one SELECT n, repeat(md5(n::text), 3) FROM generate_series(1, 30000) n",
    "CREATE TABLE away TABLESPACE space AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n",
    "CREATE UNLOGGED TABLE forgets AS SELECT n FROM generate_series(1, 5000) n",
    "CREATE DATABASE other",
    "VACUUM FREEZE",
)


@pytest.mark.rule(26)
@pytest.mark.parametrize("major", [15, 18])
def test_restore_equals_what_the_server_held(major: int) -> None:
    with changing(major, "files", full_page_writes="on") as server:
        space = server.server.directory / "space"
        space.mkdir()
        server_account().own(space)
        server.do(f"CREATE TABLESPACE space LOCATION '{space}'", *FILLED)
        with Writer(server.server, "postgres", 3):
            first = server.back_up()
        server.do("DROP TABLE IF EXISTS written", "UPDATE one SET body = 'x' WHERE id % 1000 = 0", "CHECKPOINT")
        with Writer(server.server, "postgres", 4):
            second = server.back_up()
        assert (first.source, second.source, second.parent) == ("files", "files", first.id)
        assert second.pages.adopted > 300 < first.pages.new
        server.check_restores(server.hold(second))
        assert [entry for entry, _ in contents_of(server.work, second).values() if isinstance(entry, File) and entry.inode]


# -- torn pages


def page_at(path: Path, number: int) -> bytes:
    with path.open("rb") as file:
        file.seek(number * PAGE)
        return file.read(PAGE)


def put_page(path: Path, number: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(number * PAGE)
        file.write(content)


class Tearing(SystemClock):
    """An `emit` and a clock: as the copying begins all pages are written anew, some by half.

    Of page 3 the first half is new, of page 5 the second; the latter's write goes on when somebody waits a moment.
    """

    def __init__(self, server: Changing, path: Path) -> None:
        super().__init__()
        self._server, self._path = server, path
        self.written: dict[int, bytes] = {}
        self.waited = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepBegun) and event.step == "copy":
            old = {number: page_at(self._path, number) for number in (3, 5)}
            self._server.do("UPDATE torn SET body = repeat('n', 500)", "CHECKPOINT")
            self.written = {number: page_at(self._path, number) for number in old}
            assert all(self.written[number] != old[number] for number in old)
            put_page(self._path, 3, self.written[3][:4096] + old[3][4096:])
            put_page(self._path, 5, old[5][:4096] + self.written[5][4096:])

    def sleep(self, seconds: float) -> None:
        if self.written and not self.waited:
            self.waited = True
            put_page(self._path, 5, self.written[5])
        super().sleep(seconds)


@pytest.mark.rule(43)
@pytest.mark.parametrize("major", [15, 18])
def test_pages_that_were_read_half_written_are_mended_by_their_wal(major: int) -> None:
    with changing(major, "files", full_page_writes="off") as server:  # a backup switches them on
        server.do(
            "CREATE TABLE torn (id int, body text) WITH (fillfactor = 45)",
            "INSERT INTO torn SELECT n, repeat('o', 500) FROM generate_series(1, 4000) n",
            "VACUUM FREEZE torn",
            "CHECKPOINT",
        )
        path = server.path("torn")
        tearing = Tearing(server, path)
        backup = create_base(replace(server.work, emit=tearing, clock=tearing)).summary
        assert (backup.pages.damaged, tearing.waited) == (0, True)
        name = os.fsencode(path.relative_to(server.server.data))
        _, stored = contents_of(server.work, backup)[name]
        assert stored[3 * PAGE : 4 * PAGE] == page_at(path, 3) != tearing.written[3]  # torn in the backup, too
        assert stored[5 * PAGE : 6 * PAGE] == tearing.written[5]
        put_page(path, 3, tearing.written[3])
        server.check_restores(server.hold(backup))


# -- a standby


class Replaying(SystemClock):
    """A clock: whoever waits first, waits until the primary was written, and the standby has replayed that and written its pages.

    He waits because of a page that looked torn: it is mended before.
    """

    def __init__(self, primary: PrivateServer, standby: PrivateServer) -> None:
        super().__init__()
        self._primary, self._standby = primary, standby
        ((path,),) = sql(standby, "postgres", "SELECT pg_relation_filepath('ledger')")
        self._path = standby.data / str(path)
        self._page = page_at(self._path, 3)
        put_page(self._path, 3, self._page[:5000] + bytes([self._page[5000] ^ 1]) + self._page[5001:])
        self.waited = False

    def sleep(self, seconds: float) -> None:
        if not self.waited:
            self.waited = True
            put_page(self._path, 3, self._page)
            moved_on(self._primary, self._standby)
        super().sleep(seconds)


def moved_on(primary: PrivateServer, standby: PrivateServer) -> None:
    """Every page of a table is changed, and the standby has written that."""
    sql(primary, "postgres", "UPDATE ledger SET text = text || 'x' WHERE n % 7 = 0")
    sql(primary, "postgres", "CHECKPOINT")  # without a new one in its WAL a standby writes no pages
    lsn = ended_segment(primary)
    until(standby, f"pg_last_wal_replay_lsn() >= '{lsn}'")
    sql(standby, "postgres", "CHECKPOINT")


@pytest.mark.rule(29)
@pytest.mark.rule(31)
@pytest.mark.parametrize("major", [15, 18])
def test_a_standby_is_backed_up_and_its_primary_ends_the_segment(standby_site: Site) -> None:
    with standby_site.primary() as primary:
        sql(primary, "postgres", "INSERT INTO ledger SELECT n, md5(n::text) FROM generate_series(1, 50000) n")
        ended_segment(primary)
        until(primary, "(SELECT archived_count > 0 FROM pg_stat_archiver)")
        create_base(standby_site.work(primary))
        with standby_site.standby("first", standby_site.work(primary)) as standby:
            where = primary.connection()
            leads = f"host={where['host']} port={where['port']} user={where['user']}"
            work = standby_site.work(standby, BASE_SOURCE="files", PRIMARY_CONNINFO=leads)
            moved_on(primary, standby)
            clock = Replaying(primary, standby)
            backup = create_base(replace(work, clock=clock)).summary
            assert (backup.source, backup.from_standby, backup.pages.damaged, clock.waited) == ("files", True, 0, True)
            check_control_is_newest(work, backup)

            # What it streams lies in a segment that only its primary can end, and nobody writes any more.
            sql(standby, "postgres", f"ALTER SYSTEM SET primary_conninfo = '{leads}'")
            sql(standby, "postgres", "SELECT pg_reload_conf()")
            sql(primary, "postgres", "CREATE TABLE later AS SELECT generate_series(1, 1000) AS n")
            ((lsn,),) = sql(primary, "postgres", "SELECT pg_current_wal_flush_lsn()")
            until(standby, f"pg_last_wal_replay_lsn() >= '{lsn}'")
            idle = standby_site.work(standby, BASE_SOURCE="files", ARCHIVE_WAIT_SECONDS="1")
            with pytest.raises(ServerError, match="in which the base backup of the standby ends, did not reach") as refused:
                create_base(idle)
            assert refused.value.exit_code == 1
            assert any("SELECT pg_switch_wal();" in hint for hint in refused.value.hints)
            segment = re.search(r"the segment ([0-9A-F]{24})", refused.value.message)
            assert segment is not None
            assert [text for text in idle.emit.warnings if segment[1] in text and "only the primary ends" in text]  # type: ignore[attr-defined]  # a Kept

            streamed = create_base(work).summary
            assert streamed.last_segment == segment[1]
            held = followed(primary, standby)

            wrong = standby_site.work(standby, BASE_SOURCE="files", PRIMARY_CONNINFO=leads.replace(where["host"], "/nowhere"))
            with pytest.raises(ServerError, match="cannot connect to PostgreSQL on /nowhere"):
                create_base(wrong)
            itself = standby.connection()
            astray = f"host={itself['host']} port={itself['port']} user={itself['user']}"
            with pytest.raises(ServerError, match="to which PRIMARY_CONNINFO leads, is a standby itself"):
                create_base(standby_site.work(standby, PRIMARY_CONNINFO=astray))
            with pytest.raises(UsageError, match="PRIMARY_CONNINFO is no connection string"):
                create_base(standby_site.work(standby, PRIMARY_CONNINFO="postgresql://[secret"))
        request = replace(standby_site.request("restored", standby=False), backup=BackupId.parse(streamed.id))
        reading = Work(work.settings, work.store, work.clock, Kept())
        with proven(reading, request, make_plan(reading, request)) as (_, started), session_in(started) as connection:
            assert content_of(connection) == held


def check_control_is_newest(work: Work, backup: BaseSummary) -> None:
    """No page is newer than where recovery becomes consistent, by pg_control: it was read behind all of them."""
    contents = contents_of(work, backup)
    control = ControlFile.parse(contents[b"global/pg_control"][1])
    lsns = [
        page_lsns(content[: len(content) // PAGE * PAGE], PAGE).max()
        for name, (_, content) in contents.items()
        if re.fullmatch(rb"(base/[0-9]+|global)/[0-9]+(_(fsm|vm))?", name) and len(content) >= PAGE
    ]
    assert len(lsns) > 100
    assert max(lsns) <= int(control.minimum_recovery_end)


# -- behind a restore


STILL = (
    "CREATE TABLE still AS SELECT n, repeat('y', 900) t FROM generate_series(1, 20000) n",
    "VACUUM FREEZE still",
    "CHECKPOINT",
)


def read_for(server: Changing) -> tuple[BaseSummary, int]:
    """A base backup, and how many bytes of files were read for it."""
    before = read_bytes()
    summary = server.back_up()
    return summary, read_bytes() - before


@pytest.mark.rule(42)
@pytest.mark.soak(over=["major"])
@pytest.mark.parametrize("major", [15, 18])
def test_behind_a_restore_nothing_is_passed_over_that_has_its_former_time_and_size(major: int) -> None:
    """The server is put back where it was, in the same folder of the same host; then a page of a file of its is changed."""
    with changing(major, "files") as server:
        server.do(*STILL)
        path = server.path("still")
        until_older(server.cluster, path, 2.1)
        server.back_up()
        last, unread = read_for(server)
        assert unread < path.stat().st_size, "this one passes over what nobody wrote"
        former = path.stat()
        server.hold(last)
        server.cluster.stop()
        with private_folder() as place:
            request = replacing(server.cluster, place, Target("latest"))
            with started(server.work, request, make_plan(server.work, request)) as (_, connection):
                connection.execute("CHECKPOINT")
        server.server.start()
        content = page_at(path, 5)
        put_page(path, 5, content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
        os.utime(path, ns=(former.st_atime_ns, former.st_mtime_ns))  # as whoever copies it with its times
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (former.st_mtime_ns, former.st_size)
        first, read = read_for(server)
        assert (first.parent, first.timeline, first.source) == (last.id, 2, "files")
        assert read > first.plain_bytes * 0.95
        entry, stored = contents_of(server.work, first)[os.fsencode(path.relative_to(server.server.data))]
        assert stored == path.read_bytes()
        assert isinstance(entry, File)
        assert entry.damaged_pages == (5,), "its checksum was looked at"
