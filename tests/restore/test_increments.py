"""What happens between base backups that take pages from one another: each gives back what the server held behind it."""

import contextlib
import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.frames import STRETCH_BYTES
from clipper_backup.format.manifest import File
from clipper_backup.ops.events import Event, Progress, StepBegun
from clipper_backup.ops.keys import opener_of
from clipper_backup.postgres.account import server_account
from clipper_backup.repository.base_backups import list_base_backups, read_base_summary, read_entries
from fixtures.cli import RunCli
from fixtures.increments import Changing, Held, changing
from fixtures.oracle import Writer
from fixtures.postgres import connect, sql
from fixtures.sweeps import SEED, SOAK, chosen

pytestmark = [pytest.mark.soak(share=0.25), pytest.mark.timeout(900 if SOAK else 300)]

STEPS = 8 if SOAK else 2
PAGE_BYTES = 8192
GIB = 1 << 30


# -- what changes a server between two backups, drawn by seed


Change = Callable[[Changing, random.Random], None]


def rows(rng: random.Random, count: int, start: int = 1) -> str:
    """Some that nobody has seen yet, of about 130 bytes."""
    return f"SELECT n, repeat(md5((n + {rng.random()})::text), 3) FROM generate_series({start}, {start + count - 1}) n"


def some(server: Changing, rng: random.Random) -> str:
    return rng.choice(["one", "two", "three"])


def create(server: Changing, rng: random.Random, table: str, count: int | None = None) -> None:
    server.do(
        f"CREATE TABLE {table} (id int PRIMARY KEY, body text)",
        f"INSERT INTO {table} {rows(rng, count or rng.choice([10, 5_000, 20_000]))}",
        f"CREATE INDEX ON {table} (body)",
    )


def recreate(server: Changing, rng: random.Random, count: int | None = None) -> None:
    table = some(server, rng)
    server.do(f"DROP TABLE {table}")
    create(server, rng, table, count)


def truncate_and_fill(server: Changing, rng: random.Random, count: int | None = None) -> None:
    table, count = some(server, rng), rng.choice([0, 3_000, 15_000]) if count is None else count
    server.do(f"TRUNCATE {table}", f"INSERT INTO {table} {rows(rng, count)}")


def rewrite(server: Changing, rng: random.Random) -> None:
    table = some(server, rng)
    by_values = f"ALTER TABLE {table} ALTER body TYPE text USING body || '.'"
    server.do(
        rng.choice([f"VACUUM FULL {table}", f"CLUSTER {table} USING {table}_body_idx", f"REINDEX TABLE {table}", by_values])
    )


def shrink(server: Changing, rng: random.Random) -> None:
    """VACUUM cuts the file's end off."""
    table = some(server, rng)
    server.do(f"DELETE FROM {table} WHERE id > {rng.choice([0, 100, 4_000])}", f"VACUUM {table}")


def grow(server: Changing, rng: random.Random) -> None:
    table = some(server, rng)
    ((last,),) = sql(server.server, "postgres", f"SELECT coalesce(max(id), 0) FROM {table}")
    server.do(f"INSERT INTO {table} {rows(rng, rng.choice([1, 1_000, 10_000]), last + 1)}")


def shrink_and_grow(server: Changing, rng: random.Random) -> None:
    shrink(server, rng)
    grow(server, rng)


def scatter(server: Changing, rng: random.Random) -> None:
    every = rng.choice([2, 50, 1_000])
    server.do(f"UPDATE {some(server, rng)} SET body = body || 'x' WHERE id % {every} = {rng.randrange(every)}")


def unlogged(server: Changing, rng: random.Random) -> None:
    server.do("DROP TABLE IF EXISTS forgets")
    server.do(f"CREATE UNLOGGED TABLE forgets (id int PRIMARY KEY, body text) WITH (fillfactor = {rng.randrange(10, 100)})")
    server.do(f"INSERT INTO forgets {rows(rng, 10_000)}")


def database_again(server: Changing, rng: random.Random) -> None:
    server.do("DROP DATABASE IF EXISTS other")
    server.do(f"CREATE DATABASE other TEMPLATE mold STRATEGY {rng.choice(['file_copy', 'wal_log'])}")


def database_in_the_same_place(server: Changing, rng: random.Random) -> None:
    """Its files have the names of the former one's, and other rows."""
    server.do("DROP DATABASE IF EXISTS same")
    server.do(f"UPDATE cast_in SET body = md5(body || {rng.random()})", "VACUUM cast_in", dbname="mold")
    server.do(f"CREATE DATABASE same OID 70000 TEMPLATE mold STRATEGY {rng.choice(['file_copy', 'wal_log'])}")


def half_extended(server: Changing, rng: random.Random) -> None:
    path = server.path(some(server, rng))
    with server.stopped():
        append_part_of_a_page(path, rng)


def append_part_of_a_page(path: Path, rng: random.Random) -> None:
    """What a machine's crash leaves of an extension: zeros, or anything.

    In the place of what another one left: two parts would be a whole page, and a server does not read one that is none.
    """
    length = rng.choice([1, 100, 4096, PAGE_BYTES - 1])
    os.truncate(path, path.stat().st_size // PAGE_BYTES * PAGE_BYTES)
    with path.open("ab") as file:
        file.write(rng.choice([bytes(length), rng.randbytes(length)]))


def crash(server: Changing, rng: random.Random) -> None:
    """Files stay that nobody owns, and a table's is half extended."""
    table = some(server, rng)
    path = server.path(table)
    with contextlib.closing(connect(server.server, autocommit=False)) as connection:
        connection.execute(f"CREATE TABLE lost AS {rows(rng, 8_000)}".encode())
        connection.execute(f"INSERT INTO {table} {rows(rng, 2_000, 10**6)}".encode())
        server.server.kill9()
    append_part_of_a_page(path, rng)
    server.server.start()


def reuse_a_file(server: Changing, rng: random.Random) -> None:
    """Another relation gets the file of a dropped one: OIDs are given out anew."""
    reuse_file_of(server, rng, some(server, rng))


def reuse_file_of(server: Changing, rng: random.Random, table: str, count: int | None = None) -> None:
    path = server.path(table)
    server.do(f"DROP TABLE {table}", "VACUUM pg_class")  # the OID of a row that is still there is not given out
    with server.stopped():
        server.program("pg_resetwal", f"--next-oid={path.name}", server.server.data)
    create(server, rng, table, count)


UNDER_LOAD: tuple[Change, ...] = (
    recreate, truncate_and_fill, rewrite, shrink, grow, shrink_and_grow, scatter, unlogged, database_again,
)  # fmt: skip
CHANGES: tuple[Change, ...] = (
    *UNDER_LOAD, database_in_the_same_place, half_extended, crash, reuse_a_file,
)  # fmt: skip


def fill(server: Changing, rng: random.Random) -> None:
    for table in ("one", "two", "three"):
        create(server, rng, table)
    server.do("CREATE DATABASE mold")
    server.do(f"CREATE TABLE cast_in (id int PRIMARY KEY, body text); INSERT INTO cast_in {rows(rng, 10_000)}", dbname="mold")


class During:
    """An `emit` that has the server changed once, while its files are copied: behind so many of them.

    In another thread: whatever drops a database waits for all sessions, and so for us to read what the backup's own sends.
    """

    def __init__(self, after: int, change: Callable[[], Future[None]]) -> None:
        self._left, self._change = after, change
        self.changed: Future[None] | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.step == "copy":
            self._left -= 1
            if self._left == 0:
                self.changed = self._change()


def under_load(server: Changing, rng: random.Random) -> BaseSummary:
    """A backup while somebody writes rows, and something larger happens besides."""
    change = rng.choice(UNDER_LOAD)
    print(f"meanwhile {change.__name__}")  # noqa: T201
    with ThreadPoolExecutor(1) as beside, Writer(server.server, "postgres", rng.randrange(1000)):
        during = During(rng.randrange(1, 900), lambda: beside.submit(change, server, rng))
        backup = server.back_up(during)
        assert during.changed is not None
        during.changed.result()
    return backup


@pytest.mark.rule(41)
@pytest.mark.rule(42)
@pytest.mark.soak(over=["major", "source"])
@pytest.mark.parametrize("source", ["protocol", "files"])
@pytest.mark.parametrize("major", [15, 18])
def test_whatever_happens_between_them_each_restores(major: int, source: str) -> None:
    rng = random.Random(f"{SEED} increments {major} {source}")
    deck: list[Change] = []
    held: list[Held] = []
    with changing(major, source) as server:
        fill(server, rng)
        for _ in range(STEPS):
            if held:
                deck = deck if len(deck) >= 3 else rng.sample(CHANGES, len(CHANGES))
                drawn, deck = deck[:3], deck[3:]
                print([change.__name__ for change in drawn])  # noqa: T201
                for change in drawn:
                    change(server, rng)
            server.do("DROP TABLE IF EXISTS written")
            backup = under_load(server, rng)
            assert backup.parent == (held[-1].backup.id if held else None)
            assert backup.pages.damaged == backup.pages.healed == 0
            held.append(server.hold(backup))
        for number in chosen(range(1, STEPS), 1):
            server.check_restores(held[number])


# -- many in a row


def update_some(server: Changing, rng: random.Random, table: str, *, skewed: bool) -> None:
    """Of the rows 0.2 %; *skewed*: of ten updates nine are of the same tenth."""
    ((last,),) = sql(server.server, "postgres", f"SELECT coalesce(max(id), 0) FROM {table}")
    highest = [last // 10 if skewed and rng.random() < 0.9 else last for _ in range(last // 500)]
    ids = sorted({rng.randint(1, max(each, 1)) for each in highest})
    server.do(f"UPDATE {table} SET body = md5(body || {rng.random()}) WHERE id = ANY ('{{{','.join(map(str, ids))}}}')")


INCREMENTALS = 60 if SOAK else 8
LARGE = 20_000
"""Rows of a table that is no small file: those have no page maps."""


@pytest.mark.rule(41)
@pytest.mark.timeout(3600 if SOAK else 300)
@pytest.mark.soak(over=["source", "skewed"])
@pytest.mark.parametrize("skewed", [False, True], ids=["random", "skewed"])
@pytest.mark.parametrize("source", ["protocol", "files"])
def test_each_of_many_in_a_row_restores(source: str, *, skewed: bool) -> None:
    rng = random.Random(f"{SEED} in a row {source} {skewed}")
    tables = ("one", "two", "three")
    held: list[Held] = []
    with changing(rng.choice((15, 18)), source) as server:
        for table in tables:
            create(server, rng, table, LARGE)
        newest = server.back_up()
        for number in range(1, INCREMENTALS + 1):
            for table in tables:
                update_some(server, rng, table, skewed=skewed)
            if number % 3 == 0:
                rng.choice((rewrite, partial(recreate, count=LARGE), partial(truncate_and_fill, count=LARGE)))(server, rng)
            backup = server.back_up()
            assert (backup.parent, backup.pages.damaged, backup.pages.healed) == (newest.id, 0, 0)
            assert backup.pages.adopted > 0 < backup.pages.new
            held.append(server.hold(backup))
            newest = backup
        for each in chosen(range(INCREMENTALS), 1):
            server.check_restores(held[each], by_lsn=True)


# -- files that change while they are read

FILLED = (
    "CREATE TABLE moving (id, body) TABLESPACE space AS SELECT n, repeat(md5(n::text), 3) FROM generate_series(1, 60000) n",
    "CREATE INDEX ON moving (body) TABLESPACE pg_default",
)
OTHERS = "INSERT INTO moving SELECT n, md5(n::text) FROM generate_series(-30000, 0) n"
MEANWHILE = {
    "dropped": ["DROP TABLE moving"],
    "truncated, and filled with other rows": ["TRUNCATE moving", OTHERS],
    "cut off by VACUUM": ["DELETE FROM moving WHERE id > 100", "VACUUM moving"],
    "cut off, and grown again": ["DELETE FROM moving", "VACUUM moving", OTHERS],
    "grown": ["INSERT INTO moving SELECT -id, body FROM moving"],
    "written anew": ["VACUUM FULL moving"],
    "updated": ["UPDATE moving SET body = body || 'x'"],
}
"""All of it is WAL of the backup, so restores replay it on what was read half before and half after."""
UNTIL = """
DO $$ BEGIN
    FOR i IN 1..3000 LOOP
        EXIT WHEN EXISTS (SELECT FROM pg_stat_activity WHERE {condition});
        PERFORM pg_sleep(0.01);
        PERFORM pg_stat_clear_snapshot();
        ASSERT i < 3000;
    END LOOP;
END $$
"""
UNTIL_BLOCKED = UNTIL.format(condition="backend_type = 'walsender' AND wait_event = 'ClientWrite'")
"""The server sends, and waits, for nobody reads."""


class WhileItIsRead:
    """An `emit` that does something amid the first file that the server sends."""

    def __init__(self, server: Changing, do: Callable[[], object]) -> None:
        self._server, self._do = server, do

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepBegun) and event.step == "copy":
            self._server.do(UNTIL_BLOCKED)
            self._do()


@contextlib.contextmanager
def amid_reading(path: Path, do: Callable[[], object]) -> Iterator[None]:
    """Do something once, when this process has read the beginning of a file, and not yet the rest of it."""
    read, done, number = os.preadv, threading.Event(), path.stat().st_ino

    def reading(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        got = read(descriptor, buffers, offset, flags)
        if offset == 0 and not done.is_set() and os.fstat(descriptor).st_ino == number:
            done.set()
            do()
        return got

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "preadv", reading)
        yield
    assert done.is_set()


def size_in(server: Changing, backup: BaseSummary, path: Path) -> int | None:
    """How many bytes of a file a backup has; None when it has not that file."""
    name = os.fsencode(path.relative_to(server.server.data))
    entries = read_entries(server.work.store, backup, opener_of(server.work.settings, backup.recipients))
    return next((entry.size_bytes for entry in entries if isinstance(entry, File) and entry.named == name), None)


@pytest.mark.rule(29)
@pytest.mark.soak(over=["major"])
@pytest.mark.parametrize("source", ["protocol", "files"])
@pytest.mark.parametrize("major", [15, 18])
def test_what_happens_to_a_file_while_it_is_read(major: int, source: str) -> None:
    with changing(major, source) as server:
        space = server.server.directory / "space"
        space.mkdir()
        server_account().own(space)
        server.do(f"CREATE TABLESPACE space LOCATION '{space}'")  # its files are sent first
        for name in chosen(sorted(MEANWHILE), 1):
            server.do("DROP TABLE IF EXISTS moving", *FILLED)
            path = server.path("moving")
            before = path.stat().st_size
            change = partial(server.do, *MEANWHILE[name], "CHECKPOINT")  # it unlinks files
            if source == "protocol":
                backup = server.back_up(WhileItIsRead(server, change))
            else:
                with amid_reading(path, change):
                    backup = server.back_up()
            after = path.stat().st_size if path.exists() else None
            assert (size_in(server, backup, path), after != before) == (before, True), name
            assert backup.pages.damaged == 0
            server.check_restores(server.hold(backup))


@pytest.mark.soak(over=["major"])
@pytest.mark.parametrize("major", [15, 18])
def test_who_drops_a_database_waits_for_us_to_read(major: int) -> None:
    """What limits.md says: a store that stalls holds him up, and no longer than that."""

    def drop() -> None:
        dropped.append(beside.submit(server.do, "DROP DATABASE other"))
        server.do(UNTIL.format(condition="query = 'DROP DATABASE other' AND wait_event = 'ProcSignalBarrier'"))
        assert not dropped[0].done()

    dropped: list[Future[None]] = []
    with changing(major) as server, ThreadPoolExecutor(1) as beside:
        server.do("CREATE DATABASE other")
        server.back_up(WhileItIsRead(server, drop))
        dropped[0].result()


# -- a file that becomes another relation's


@pytest.mark.soak(over=["major", "source"])
@pytest.mark.parametrize("source", ["protocol", "files"])
@pytest.mark.parametrize("major", [15, 18])
def test_a_relation_gets_the_file_of_one_that_was_dropped(major: int, source: str) -> None:
    rng = random.Random(f"{SEED} reused {major}")
    with changing(major, source) as server:
        for table in ("other", "one"):
            create(server, rng, table, 20_000)
        path = server.path("one")
        server.back_up()
        reuse_file_of(server, rng, "one", 15_000)
        assert server.path("one") == path
        server.check_restores(server.hold(server.back_up()))


# -- many relations

RELATIONS = 10_000 if SOAK else 1_000
EACH = "DO $$ BEGIN FOR i IN {first}..{last} LOOP {what}; IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$"
MEASURING = """
import sys
from pathlib import Path
from clipper_backup.cli.main import main
try:
    main()
finally:
    print(Path("/proc/self/status").read_text(), file=sys.stderr)
"""
"""The program, which says at its end how much memory it had at most: not ru_maxrss, which keeps what its parent had."""


def test_thousands_of_relations_between_two_backups(run_cli: RunCli) -> None:
    def each(first: int, last: int, *statements: str) -> str:
        return EACH.format(first=first, last=last, what="; ".join(f"EXECUTE format('{each}', i)" for each in statements))

    def measured(*words: str) -> int:
        environment = server.cluster.settings(BACKUP_URL=server.work.store.url)
        said = run_cli(*words, env=environment, program=(sys.executable, "-c", MEASURING), check=True)
        found = re.search(r"^VmHWM:\s+([0-9]+) kB", said.stderr, re.MULTILINE)
        assert found is not None
        return int(found[1])

    def backed_up() -> BaseSummary:
        peaks.append(measured("base", "create"))
        return read_base_summary(server.work.store, list_base_backups(server.work.store)[-1].backup_id)

    tables = RELATIONS // 2
    peaks: list[int] = []
    with changing(random.Random(f"{SEED} relations").choice((15, 18))) as server:
        none = server.back_up()
        server.do(each(1, tables, "CREATE TABLE relation_%s (n int PRIMARY KEY)", "INSERT INTO relation_%s VALUES (1), (2)"))
        all_of_them = backed_up()
        server.do(
            each(1, tables // 2, "DROP TABLE relation_%s"),
            each(tables // 2 + 1, tables // 2 + 100, "ALTER TABLE relation_%s ALTER n TYPE bigint"),
            each(tables - 100, tables, "UPDATE relation_%s SET n = n + 10"),
        )
        half = backed_up()
        assert RELATIONS <= all_of_them.files - none.files < RELATIONS + 20  # a catalog may grow a file
        assert -20 < half.files + RELATIONS // 2 - all_of_them.files < 20
        assert half.plain_bytes < all_of_them.plain_bytes
        assert max(peaks) < 256 << 10, "kilobytes"
        server.check_restores(server.hold(half))


# -- relations of more than one file


def test_a_relation_grows_over_the_border_of_a_file_and_shrinks_again() -> None:
    """Of a file of 1 GiB; in `make test` of a stretch."""
    border = GIB if SOAK else STRETCH_BYTES

    def grow_over(body: str) -> None:
        server.do("CHECKPOINT")
        with server.stopped():
            os.truncate(path, border - 2 * PAGE_BYTES)
        server.do(f"INSERT INTO large SELECT n, repeat('{body}', 100) FROM generate_series(1, 9999) n")
        ((size,),) = sql(server.server, "postgres", "SELECT pg_relation_size('large')")
        assert size > border
        assert path.with_name(f"{path.name}.1").exists() == (border == GIB)

    with changing(random.Random(f"{SEED} border").choice((15, 18))) as server:
        server.do("CREATE TABLE large AS SELECT 0 AS n, 'first' AS body")
        path = server.path("large")
        grow_over("a")
        server.back_up()
        server.do("DELETE FROM large WHERE n > 0", "VACUUM large")
        assert path.stat().st_size == PAGE_BYTES
        held = [server.hold(server.back_up())]
        grow_over("b")
        held.append(server.hold(server.back_up()))
        for number in chosen(range(2), 1):
            server.check_restores(held[number])
