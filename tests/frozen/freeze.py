"""Makes a frozen repository: real servers, real processes, and a month between the first and the last backup.

    python freeze.py FOLDER        run by scripts/freeze; tests/data/README.md says what lies in FOLDER then

The servers' own clock is today's, so commits are of one day; the store's clock is moved a month back and then forward.

    -30 days   a dump of two databases; 230 segments, with time maps, of which a long one is made; backup 1, moment 0; held with
               its WAL
    -20 days   backup 2, which a prune removes at the end
    -10 days   backup 3, whose maps have no digests; a segment that came late; moment 1
     -3 days   backup 4, which leaves packs of which little lives; moment 2; a backup in which a verify finds damage, and where
               pages have checksums a damaged page; then the server dies within a segment, and is promoted: timeline 2
     -1 day    two partial segments of one name; backup 5, which empties those packs; moment 3; a dump in the other form, with
               hashes and questions; both kinds of prune
    today      verified; a restore leaves timeline 3; a backup, a dump and a push are killed half-way

In PGDATA lies a file of two stretches, mostly zeros, and one whose name is not UTF-8; one tablespace lies in place. `upgrade.py`
makes the third repository.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from clipper_backup.clock import SystemClock
from clipper_backup.errors import IntegrityError
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.base_hold import hold_base
from clipper_backup.ops.dump.prune import execute_prune, hold, plan_prune
from clipper_backup.ops.key_check import check_key
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.push import push
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.store.local import LocalStore
from clipper_backup.values import BackupId, Lsn, Timeline
from fixtures.base import archived_cluster
from fixtures.cli import PROGRAM, environment
from fixtures.dump import FAULTS
from fixtures.freezing import Story, no_digests, remember, write_out
from fixtures.frozen import KEYS, NAMES, UPGRADED, work_over, writing_settings
from fixtures.keys import make_keys
from fixtures.postgres import private_folder
from fixtures.server_program import server_program
from fixtures.upgraded import freeze_upgraded

FIRST_SEGMENT = "000000010000000000000100"
"""A number from which a full range of time maps is near."""
IDLE = 230
LARGE, NOT_UTF8 = b"large", b"caf\xe9"
"""Files in PGDATA that are no relations: servers send them like their own."""
TWO_STRETCHES = (64 << 20) + 100
ODD_DATABASE = "a/b %41 \u00fc"
"""Its name needs `%` in keys."""
QUERIES = "rows: SELECT count(*), max(id) FROM accounts\npostgres/none: SELECT note FROM moved WHERE id < 0"
TABLES = """
CREATE TABLE accounts (id int PRIMARY KEY, name text NOT NULL, note jsonb);
CREATE INDEX ON accounts (lower(name));
CREATE TABLE moved (id serial PRIMARY KEY, note text) TABLESPACE space;
CREATE UNLOGGED TABLE unlogged (n int);
CREATE TABLE wide (n int, filling text);
ALTER TABLE wide ALTER filling SET STORAGE EXTERNAL;
INSERT INTO accounts SELECT n, 'name ' || n, jsonb_build_object('n', n) FROM generate_series(1, 500) n;
INSERT INTO moved (note) SELECT md5(n::text) FROM generate_series(1, 300) n;
INSERT INTO wide SELECT n, repeat('wide ', 2000) FROM generate_series(1, 5) n;
CREATE TABLE calm AS SELECT n, repeat('a file of more than 1 MiB ', 25) AS filling FROM generate_series(1, 4000) n;
SELECT lo_from_bytea(4711, 'a large object')
"""
IN_PLACE = """
CREATE TABLESPACE in_place LOCATION '';
CREATE TABLE placed (n int) TABLESPACE in_place;
INSERT INTO placed VALUES (1)
"""
IN_PLACE_FROM = 16
"""Before, BASE_BACKUP sends nothing of such a tablespace."""


def freeze(name: str, target: Path) -> None:
    """Make the repository *name* in the folder *target*, with its expectations beside it."""
    with private_folder() as folder:
        outside = folder / "ident.conf"
        outside.write_text("# configuration outside the data folder\n")
        settings = {
            "ident_file": str(outside),
            "wal_keep_size": "400MB",
            "max_wal_size": "1GB",
        }
        with archived_cluster(NAMES[name], settings, locale="C", data_checksums=name == "sealed") as cluster:
            story = Story(cluster, writing_settings(target / "keys", sealed=name == "sealed"), folder / "space", name)
            begin(story)
            month(story)
            write_out(story.store, target / name)
            today(story, target / name, folder)
            remember(story, target, name)


def begin(story: Story) -> None:
    """A small cluster: one database, one tablespace, and WAL that begins where a long time map is near."""
    with story.from_segment(FIRST_SEGMENT), (story.cluster.server.data / "postgresql.conf").open("a") as file:
        file.write("allow_in_place_tablespaces = on\n")  # not on the command line: a restore runs with what the file says
    story.sql(f'CREATE DATABASE "{ODD_DATABASE}" TEMPLATE template0 STRATEGY file_copy')
    story.sql("UPDATE pg_database SET datistemplate = false")
    for database in ("template0", "template1"):
        story.sql(f"DROP DATABASE {database}")
    story.space.mkdir()
    server_account().own(story.space)
    story.sql(f"CREATE TABLESPACE space LOCATION '{story.space}'")
    ((story.tablespace,),) = story.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'space'")
    tables = TABLES if NAMES[story.name] < IN_PLACE_FROM else f"{TABLES};{IN_PLACE}"
    for statement in filter(None, map(str.strip, tables.split(";"))):
        story.sql(statement)
    story.write_file(LARGE, TWO_STRETCHES, 3, 8190, 8192)
    story.write_file(NOT_UTF8, 20, 0)


def month(story: Story) -> None:
    with story.day(-30) as work:
        dump = story.dump()
        story.sql(f'DROP DATABASE "{ODD_DATABASE}"')
        for number in range(1, IDLE + 1):
            story.sql(f"SELECT pg_logical_emit_message(true, 'idle', '{number}'), pg_switch_wal()")
            if number % 100 == 0:
                story.switch()
                story.map_times()
        first = create_base(work).summary
        end = story.moment(1)
        hold(work, dump, "the first dump")
        hold_base(work, BackupId.parse(first.id), "the first backup and what followed", (Timeline(1), end))
    with story.day(-20) as work:
        story.sql("CREATE TABLE short_lived AS SELECT n, repeat('gone soon ', 75) AS t FROM generate_series(1, 4000) n")
        story.sql("SELECT pg_switch_wal()")
        removed = create_base(work).summary
        story.sql("DROP TABLE short_lived")
        story.sql("TRUNCATE unlogged")
    with story.day(-10) as work:
        story.write_file(LARGE, TWO_STRETCHES, 3, 4, 8190, 8192)
        story.rewrite_calm(4000)
        with no_digests():
            third = create_base(work).summary
        story.switch()
    assert push_late(story)
    with story.day(-10):
        story.moment(1)
        for _ in range(16):
            story.sql("SELECT pg_logical_emit_message(true, 'idle', ''), pg_switch_wal()")
        story.switch()
        story.map_times()
    with story.day(-3) as work:
        story.rewrite_calm(3600)
        fourth = create_base(work).summary
        story.moment(1)
        story.map_times()
        bad = damaged(story, work)
    promote(story)
    with story.day(-1) as work:
        another_partial(story)
        fifth = create_base(work).summary
        story.moment(2)
        story.map_times()
        story.dump(DUMP_JOBS="2", DUMP_FINGERPRINT="hash", VALIDATION_QUERIES=QUERIES)
        with take_lease(work, DUMP_LEASE, "prune") as lease:
            execute_prune(work, plan_prune(work), lease)
        pruned = prune_physical(work)
        pruned.raise_problems()
        assert [str(each.backup_id) for each in pruned.going] == [removed.id]
        assert pruned.doomed
        assert pruned.wal.segments > 100
    parents = [(third.parent, removed.id), (fourth.parent, third.id), (fifth.parent, fourth.id)]
    assert all(parent == before for parent, before in parents)
    assert min(each.pages.adopted for each in (third, fourth, fifth)) > 0, (third, fourth, fifth)
    assert first.pages.zero > 8000, first
    assert fifth.pages.compacted > 0, fifth
    assert bad.pages.damaged == bad.checksums, bad


def damaged(story: Story, work: Work) -> BaseSummary:
    """A base backup that is not good: of a page that was damaged on the server, where that can be seen; and what it wrote is."""
    story.sql("CHECKPOINT")
    ((relation,),) = story.sql("SELECT pg_relation_filepath('calm')")
    path = story.cluster.server.data / relation
    with flipped(path, 8192 * 5 + 4000):
        summary = create_base(work).summary
    (label,) = (part.key for part in summary.objects if part.role == "label")
    whole = story.store.get(label)
    story.store.put(label, whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        verify_base(work, BackupId.parse(summary.id), share=1)
    except IntegrityError:
        pass
    else:
        raise AssertionError("no damage was found")
    story.store.put(label, whole)
    return summary


@contextlib.contextmanager
def flipped(path: Path, offset: int) -> Iterator[None]:
    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0xFF]))

    flip()
    try:
        yield
    finally:
        flip()


def another_partial(story: Story) -> None:
    """As of another standby that was promoted: what it had behind the end is something else."""
    (path,) = (story.cluster.server.data / "pg_wal").glob("*.partial")
    push(story.work(), path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    push(story.work(), path)
    assert len([info for info in story.store.list("wal/") if f"/{path.name}-" in info.key]) == 2


def push_late(story: Story) -> bool:
    """Archive a segment before the one before it, which heals its link; whether it did."""
    work, wal = story.work(), story.cluster.server.data / "pg_wal"
    segments = []
    for note in ("late", "early"):
        story.sql(f"INSERT INTO moved (note) VALUES ('{note}')")
        ((segment,),) = story.sql("SELECT pg_walfile_name(pg_switch_wal())")
        segments.append(segment)
    push(work, wal / segments[1])
    return bool(push(work, wal / segments[0]).healed == segments[1])


def promote(story: Story) -> None:
    """The server dies and goes on as a standby would that was promoted; what it had not archived is a `.partial` now."""
    server = story.cluster.server
    story.sql("INSERT INTO moved (note) VALUES ('in the partial segment')")
    server.kill9()
    (server.data / "standby.signal").touch()
    server_account().own(server.data / "standby.signal")
    server.start()
    assert story.sql("SELECT pg_promote()") == [(True,)]
    assert list((server.data / "pg_wal").glob("*.partial"))


def today(story: Story, repository: Path, folder: Path) -> None:
    url = {"BACKUP_URL": f"file://{repository}"}
    now = work_over(LocalStore(repository), SystemClock(), story.settings | url)
    for path in (repository, *repository.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    backups = sorted(path.parent.name for path in repository.glob("base/*/backup.json"))
    good = {shown.entry.listed.backup_id for shown in base_catalog(now) if shown.entry.good}
    assert len(good) == len(backups) - 1
    for backup in sorted(good)[1:]:
        verify_base(now, backup, share=1.0)
    if "ENCRYPTION_IDENTITY_FILE" in story.settings:
        assert check_key(now, Path(story.settings["ENCRYPTION_IDENTITY_FILE"])).recorded
    place = folder / "restored"
    place.mkdir()
    server_account().own(place)
    moment = story.moments[2]
    request = Request(
        place / "data",
        Target("lsn", lsn=Lsn.parse(moment["lsn"])),
        server_account(),
        timeline=Timeline(1),
        tablespaces={story.tablespace: place / "space"},
        program=server_program(),
    )
    result = restore(now, request, make_plan(now, request), start=True)
    assert result.started is not None
    assert result.archived
    os.kill(result.started.pid, signal.SIGQUIT)
    os.waitpid(result.started.pid, 0)
    server = story.cluster.settings(**story.settings) | url
    story.sql("INSERT INTO moved (note) VALUES ('claimed, and never stored')")
    ((late,),) = story.sql("SELECT pg_walfile_name(pg_switch_wal())")
    killed(server, "put:2:kill", "wal", "push", f"pg_wal/{late}", folder=story.cluster.server.data)
    killed(server, "put_stream:1:kill", "dump", "create")
    behind_the_packs = 7 if "ENCRYPTION_IDENTITY_FILE" in story.settings else 6  # the first puts are of lease, intent, key, start
    killed(server, f"put:{behind_the_packs}:kill", "base", "create")
    assert len(list(repository.glob(f"wal/*/*/*/{late}*"))) == 1
    (unfinished,) = {path.parent.name for path in repository.glob("base/*/started.json")} - {*backups}
    assert list(repository.glob(f"packs/{unfinished}/*"))
    story.cluster.server.kill9()


def killed(settings: dict[str, str], faults: str, *words: str, folder: Path | None = None) -> None:
    done = subprocess.run(
        [*PROGRAM, *words], env=environment({**settings, FAULTS: faults}), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done


def main(target: Path) -> None:
    (target / "keys").mkdir(parents=True)
    made = make_keys(target / "keys")
    for name, key in made.items():
        if name not in KEYS:
            key.path.unlink()
    (target / "keys/signer.public").write_text(f"{made['signer'].public}\n")
    for name in NAMES:
        if name == UPGRADED:
            freeze_upgraded(target)
        else:
            freeze(name, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
