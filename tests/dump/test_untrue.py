"""A store or a program that says all is well when it is not: what was written is checked before it is called a dump."""

import signal
from pathlib import Path

import pytest

from clipper_backup.format import names
from clipper_backup.format.sealing import Identity
from fixtures.dump import FAULTS, Site, begun_dumps, check_told, committed_dumps, ended
from fixtures.postgres import server_binaries, sql
from fixtures.wal_server import until

pytestmark = pytest.mark.soak(share=0.15)


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("fault", ["get_stream:1:flip", "get_stream:1:after=700:flip"])
def test_a_store_that_gives_back_another_archive(site: Site, fault: str, jobs: str) -> None:
    outcome = site.run("dump", "create", DUMP_JOBS=jobs, **{FAULTS: fault})

    site.check_refused(outcome, 1, names.CUSTOM if jobs == "1" else names.DIRECTORY, "gave back other bytes", hint=None)
    assert begun_dumps(site.objects) == begun_dumps(site.before)
    site.check_recovers()


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_a_store_that_gives_nothing_back_is_not_called_a_liar(site: Site, sealed: bool) -> None:
    settings = {"ENCRYPTION_RECIPIENTS": Identity.make().recipient} if sealed else {}
    outcome = site.run("dump", "create", **settings, **{FAULTS: "get_stream:1:denied"})

    site.check_refused(outcome, 12, "scripted fault", hint=None)
    assert begun_dumps(site.objects) == begun_dumps(site.before)
    site.check_recovers()


def test_a_store_that_gives_back_other_globals_or_details(site: Site) -> None:
    lied = 0
    for number in range(1, 16):
        before = site.dumps
        outcome = site.run("dump", "create", **{FAULTS: f"get:{number}:flip"})
        if "gave back other bytes" in outcome.stderr:
            lied += 1
            check_told(outcome, 1, "gave back other bytes", hint=None)
            assert site.dumps == before
    assert lied == 3  # the summary, too; what the lease was misread for is read again


@pytest.fixture
def lying(site: Site, tmp_path: Path) -> "Lying":
    return Lying(site, tmp_path / "bin")


class Lying:
    """Client programs of which pg_dump does something else, and ends with 0."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.real = server_binaries(15).bindir
        folder.mkdir()
        for program in ("pg_dumpall", "pg_restore", "psql"):
            (folder / program).symlink_to(self.real / program)

    def pg_dump(self, body: str) -> dict[str, str]:
        """The settings to dump with a pg_dump that runs *body* ($real is the real one)."""
        path = self.folder / "pg_dump"
        path.write_text(f'#!/bin/sh\nreal={self.real}/pg_dump\ncase "$*" in *--version*) exec $real --version;; esac\n{body}\n')
        path.chmod(0o755)
        return {"PG_BINDIR": str(self.folder)}


@pytest.mark.parametrize("body", [
    "true",
    "echo 'all well'",
    '"$real" "$@" | head -c 300',
    '"$real" "$@" | tail -c +2',
], ids=["nothing", "words", "half its table of contents", "a byte less"])  # fmt: skip
def test_what_pg_restore_does_not_accept_is_no_dump(lying: Lying, body: str) -> None:
    outcome = lying.site.run("dump", "create", **lying.pg_dump(body))

    lying.site.check_refused(outcome, 1, "cannot be read again", "pg_restore", hint=None)
    lying.site.check_recovers()


def test_an_archive_without_a_table_is_no_dump(lying: Lying) -> None:
    outcome = lying.site.run("dump", "create", **lying.pg_dump('exec "$real" "$@" --exclude-table-data=users'))

    lying.site.check_refused(outcome, 1, "left out 1 table", "users", hint=None)


def test_a_folder_that_is_no_archive_is_no_dump(lying: Lying) -> None:
    body = 'for word; do case $word in --file=*) mkdir "${word#--file=}"; echo no > "${word#--file=}/toc.dat";; esac; done'
    outcome = lying.site.run("dump", "create", DUMP_JOBS="2", **lying.pg_dump(body))

    lying.site.check_refused(outcome, 1, "cannot be read again", hint=None)


def test_a_table_whose_data_went_out_of_scratch_is_missed(lying: Lying) -> None:
    body = '"$real" "$@"; for word; do case $word in --file=*) ls "${word#--file=}"/*.dat | head -n 1 | xargs rm;; esac; done'
    outcome = lying.site.run("dump", "create", DUMP_JOBS="2", **lying.pg_dump(body))

    lying.site.check_refused(outcome, 1, "cannot be read again", "data of 1 table is gone from", hint=None)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_pg_restore_that_hangs_keeps_nobody_from_stopping_us(lying: Lying, jobs: str) -> None:
    settings = lying.pg_dump('exec "$real" "$@"')
    pg_restore = lying.folder / "pg_restore"
    pg_restore.unlink()
    pg_restore.write_text(f'#!/bin/sh\ncase "$*" in *--version*) exec {lying.real}/pg_restore --version;; esac\nexec sleep 600\n')
    pg_restore.chmod(0o755)
    process = lying.site.start("dump", "create", DUMP_JOBS=jobs, **settings)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("begun:") and "read back" in line:
            break
    # A server's process ends a moment after its client; who holds them while pg_restore runs holds them for ten minutes.
    until(lambda: not holders_of_locks(lying.site), lambda: f"they wait for pg_restore: {holders_of_locks(lying.site)}")
    process.send_signal(signal.SIGTERM)

    assert ended(process).code == 143
    assert lying.site.dumps == committed_dumps(lying.site.before)
    lying.site.check_untouched()


def holders_of_locks(site: Site) -> list[tuple[object, ...]]:
    """The sessions, other than this one, that hold locks on tables of the site's database."""
    return sql(
        site.server,
        site.database,
        "SELECT DISTINCT pid FROM pg_locks WHERE relation = 'clips'::regclass AND pid <> pg_backend_pid()",
    )
