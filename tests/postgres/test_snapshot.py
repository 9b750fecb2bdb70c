"""Lock, then snapshot: shown against sessions that truncate, drop, create and lock at the worst moment.

Whoever must wait is waited for in pg_locks, never for a time.
"""

import contextlib
import itertools
import random
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Self

import psycopg
import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import AccessError, ServerError
from clipper_backup.postgres.archive import CopyCounter, read_contents
from clipper_backup.postgres.connection import connect as product_connect
from clipper_backup.postgres.fingerprint import measure_table
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.postgres.snapshot import ATTEMPTS, Snapshot
from fixtures.postgres import (
    client_environment,
    connect,
    fresh_database,
    fresh_role,
    login_to,
    major_of,
    server_binaries,
    sql,
)

SEED = 20261122
DEADLINE_SECONDS = 60


def take(
    server: PrivateServer, database: str, *, user: str = "postgres", lock_timeout_seconds: int = DEADLINE_SECONDS
) -> Snapshot:
    return Snapshot.take(login_to(server, user=user), database, lock_timeout_seconds=lock_timeout_seconds)


def names_of(snapshot: Snapshot) -> set[str]:
    return {table.title for table in snapshot.tables}


def locked_by(server: PrivateServer, database: str, pid: int) -> set[str]:
    """The tables on which a session holds ACCESS SHARE."""
    statement = (
        "SELECT format('%%s.%%s', n.nspname, c.relname) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE l.pid = %s AND l.mode = 'AccessShareLock' AND l.granted AND c.relkind = 'r' AND n.nspname !~ '^pg_'"
    )
    return {name for (name,) in sql(server, database, statement, [pid])}


def counts_on(snapshot: Snapshot) -> dict[tuple[str, str], int]:
    return {
        (table.schema, table.name): measure_table(
            snapshot.connection, table.schema, table.name, table.condition, hashed=False
        ).rows
        for table in snapshot.tables
    }


def dumped_on(server: PrivateServer, database: str, snapshot: Snapshot) -> tuple[dict[tuple[str, str], int], set[int]]:
    """What pg_dump writes on the same snapshot: rows of each table, and the tables of its contents."""
    binaries = server_binaries(major_of(server))
    environment = client_environment(server, PGDATABASE=database)
    command: list[str | Path] = [binaries.program("pg_dump"), f"--snapshot={snapshot.exported}", "--format=custom"]
    archive = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    contents = read_contents(binaries.program("pg_restore"), environment, [archive], database)
    to_script: list[str | Path] = [binaries.program("pg_restore"), "--data-only", "--file=-"]
    counter = CopyCounter()
    counter.feed(subprocess.run(to_script, input=archive, env=environment, capture_output=True, check=True).stdout)
    return counter.rows, set(contents.data_tables)


def wait_until(reached: Callable[[], bool]) -> None:
    clock = SystemClock()
    deadline = clock.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert clock.monotonic() < deadline, "it never came so far"
        clock.sleep(0.005)


def waiters(server: PrivateServer, database: str, table: str) -> list[tuple[int, str]]:
    """Who waits for a lock on *table*: process id and mode, in no order."""
    statement = "SELECT pid, mode FROM pg_locks WHERE relation = %s::regclass AND NOT granted"
    return [(pid, mode) for pid, mode in sql(server, database, statement, [table])]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


# -- what is locked, and when


def test_every_table_is_locked_as_long_as_it_is_open(postgres: PrivateServer, database: str) -> None:
    sql(
        postgres,
        database,
        'CREATE TABLE a (); CREATE SCHEMA "s.%"; CREATE TABLE "s.%"."b%s""; --" (); CREATE UNLOGGED TABLE c ()',
    )
    with closing(take(postgres, database)) as snapshot:
        assert names_of(snapshot) == {"public.a", 's.%.b%s"; --', "public.c"}
        pid = snapshot.connection.info.backend_pid
        assert locked_by(postgres, database, pid) == names_of(snapshot)
        snapshot.check_alive(database)
    wait_until(lambda: not locked_by(postgres, database, pid))


def test_a_database_without_tables_has_a_snapshot_too(postgres: PrivateServer, database: str) -> None:
    with closing(take(postgres, database)) as snapshot:
        assert snapshot.tables == ()
        assert dumped_on(postgres, database, snapshot) == ({}, set())


def test_more_tables_than_one_statement_locks(postgres18: PrivateServer) -> None:
    with fresh_database(postgres18) as database:
        sql(postgres18, database, "DO $$ BEGIN FOR n IN 1..600 LOOP EXECUTE format('CREATE TABLE t%s ()', n); END LOOP; END $$")
        with closing(take(postgres18, database)) as snapshot:
            assert len(locked_by(postgres18, database, snapshot.connection.info.backend_pid)) == len(snapshot.tables) == 600


def test_the_session_can_write_nothing(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "CREATE TABLE a ()")
    with closing(take(postgres, database)) as snapshot, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        snapshot.connection.execute("INSERT INTO public.a DEFAULT VALUES")


EVERY_KIND = """
CREATE TABLE plain (id int); INSERT INTO plain SELECT generate_series(1, 7);
CREATE UNLOGGED TABLE unlogged (id int); INSERT INTO unlogged VALUES (1);
CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent);
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2), (3);
CREATE TABLE whole (id int) PARTITION BY RANGE (id);
CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
CREATE TABLE leaf PARTITION OF part DEFAULT; INSERT INTO whole VALUES (4), (5);
CREATE TABLE empty (); CREATE TABLE long (text text);
INSERT INTO long SELECT string_agg(md5(n::text), '') FROM generate_series(1, 900) n;
CREATE VIEW a_view AS TABLE plain; CREATE MATERIALIZED VIEW a_matview AS TABLE plain; CREATE SEQUENCE a_sequence;
CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE elsewhere (id int) SERVER nowhere; CREATE TYPE composite AS (id int); CREATE INDEX ON plain (id);
CREATE EXTENSION pg_trgm; CREATE TABLE of_extension (id int); ALTER EXTENSION pg_trgm ADD TABLE of_extension;
CREATE TABLE settings (id int, ours bool); INSERT INTO settings VALUES (1, true), (2, true), (3, false);
ALTER EXTENSION pg_trgm ADD TABLE settings;
CREATE TABLE all_settings (id int); INSERT INTO all_settings VALUES (1), (2); ALTER EXTENSION pg_trgm ADD TABLE all_settings;
UPDATE pg_extension SET extconfig = ARRAY['settings'::regclass, 'all_settings'::regclass]::oid[],
    extcondition = ARRAY['WHERE NOT settings.ours', ''] WHERE extname = 'pg_trgm';
"""
"""Each kind of relation. pg_extension is changed the way pg_extension_config_dump() does it, which only scripts may call."""


def test_what_is_locked_and_counted_is_what_pg_dump_writes(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, EVERY_KIND)
    with connect(postgres, database) as other:
        other.execute("CREATE TEMPORARY TABLE of_another_session (id int)")
        with closing(take(postgres, database)) as snapshot:
            rows, oids = dumped_on(postgres, database, snapshot)
            assert {table.oid for table in snapshot.tables} == oids
            counts = counts_on(snapshot)
    assert counts == rows
    assert counts["public", "settings"] == 1
    assert counts["public", "all_settings"] == 2
    assert {table.name: table.condition for table in snapshot.tables if table.condition} == {
        "settings": "WHERE NOT settings.ours"
    }
    assert {name for _, name in counts} == {
        *("plain", "unlogged", "parent", "child", "leaf", "empty", "long", "settings", "all_settings"),
    }


# -- sessions that change things meanwhile


@pytest.mark.rule(103)
def test_a_truncate_elsewhere_waits_until_we_let_go(postgres: PrivateServer, database: str, pool: ThreadPoolExecutor) -> None:
    sql(postgres, database, "CREATE TABLE a (id int); INSERT INTO a SELECT generate_series(1, 1000)")
    with closing(take(postgres, database)) as snapshot:
        truncating = pool.submit(sql, postgres, database, "TRUNCATE a")
        wait_until(lambda: [mode for _, mode in waiters(postgres, database, "a")] == ["AccessExclusiveLock"])
        assert counts_on(snapshot) == {("public", "a"): 1000}
        assert not truncating.done()
    truncating.result(DEADLINE_SECONDS)
    assert sql(postgres, database, "SELECT count(*) FROM a") == [(0,)]


@pytest.mark.rule(103)
def test_a_truncate_that_came_first_is_seen(postgres: PrivateServer, database: str, pool: ThreadPoolExecutor) -> None:
    # An older snapshot would see neither the old rows (they are gone) nor the new ones: zero rows that nobody ever had.
    sql(postgres, database, "CREATE TABLE a (id int); INSERT INTO a SELECT generate_series(1, 1000)")
    with connect(postgres, database, autocommit=False) as other:
        other.execute("TRUNCATE a")
        other.execute("INSERT INTO a SELECT generate_series(1, 7)")
        taking = pool.submit(take, postgres, database)
        wait_until(lambda: [mode for _, mode in waiters(postgres, database, "a")] == ["AccessShareLock"])
        other.commit()
        with closing(taking.result(DEADLINE_SECONDS)) as snapshot:
            assert counts_on(snapshot) == {("public", "a"): 7}
            assert dumped_on(postgres, database, snapshot)[0] == {("public", "a"): 7}


class Chaos:
    """A session that truncates, fills, drops, creates, renames and rewrites tables as fast as it can, until it is left."""

    def __init__(self, server: PrivateServer, database: str, seed: int) -> None:
        self._connection = connect(server, database)
        # It gives up soon, so that pg_dump, which queues behind it, can go on.
        self._connection.execute("SET lock_timeout = '20ms'")
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.done = self.refused = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            table = f"t{self._random.randrange(6)}"
            statement = self._random.choice(
                [
                    f"TRUNCATE {table}; INSERT INTO {table} SELECT generate_series(1, {self._random.randrange(500)})",
                    f"DELETE FROM {table} WHERE id % 3 = 0",
                    f"DROP TABLE {table}; CREATE TABLE {table} (id int); INSERT INTO {table} VALUES (1)",
                    f"ALTER TABLE {table} ADD column{number} int DEFAULT {number}",
                    f"ALTER TABLE {table} RENAME TO x; CREATE TABLE {table} (id int); DROP TABLE x",
                    f"CREATE TABLE extra{number} AS SELECT generate_series(1, 9) AS id",
                ]
            )
            try:
                self._connection.execute(statement.encode())
                self.done += 1
            except psycopg.errors.LockNotAvailable:
                self.refused += 1


@pytest.mark.rule(103)
def test_counts_are_those_of_the_dump_whatever_goes_on(postgres: PrivateServer, database: str) -> None:
    for number in range(6):
        sql(postgres, database, f"CREATE TABLE t{number} (id int); INSERT INTO t{number} SELECT generate_series(1, 100)")
    taken = 0
    with Chaos(postgres, database, SEED) as chaos:
        for _ in range(12):
            before = chaos.done
            wait_until(lambda before=before: chaos.done > before + 3)  # type: ignore[misc]  # a default binds it
            try:
                snapshot = take(postgres, database)
            except ServerError as error:
                assert f"changed {ATTEMPTS} times" in str(error)  # noqa: PT017  that many new tables are bad luck, not wrong
                continue
            with closing(snapshot):
                counts = counts_on(snapshot)
                rows, oids = dumped_on(postgres, database, snapshot)
                assert {table.oid for table in snapshot.tables} == oids
                assert counts == rows
                assert counts == counts_on(snapshot)
                taken += 1
    assert taken >= 6
    assert chaos.refused > 0


# -- tables that come and go between the listing and the locks


class Gate:
    """Holds `a_gate` exclusively, which every snapshot of the database locks first: whoever takes one waits here."""

    def __init__(self, server: PrivateServer, database: str, pool: ThreadPoolExecutor) -> None:
        self._server, self._database, self._pool = server, database, pool
        self._holder = connect(server, database, autocommit=False)
        self._next = connect(server, database, autocommit=False)
        self._holder.execute("LOCK TABLE a_gate IN ACCESS EXCLUSIVE MODE")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.close()
        self._next.close()

    def until_somebody_waits(self) -> None:
        wait_until(lambda: "AccessShareLock" in {mode for _, mode in waiters(self._server, self._database, "a_gate")})

    def open(self) -> None:
        self._holder.rollback()

    def open_and_close_behind(self) -> Future[object]:
        """Let pass who waits now; the gate is closed again as soon as he has let go of it."""
        self._holder, self._next = self._next, self._holder
        closing_again: Future[object] = self._pool.submit(self._holder.execute, "LOCK TABLE a_gate IN ACCESS EXCLUSIVE MODE")
        wait_until(lambda: "AccessExclusiveLock" in {mode for _, mode in waiters(self._server, self._database, "a_gate")})
        self._next.rollback()
        return closing_again


@pytest.fixture
def gated(postgres: PrivateServer, database: str) -> str:
    sql(
        postgres, database, "CREATE TABLE a_gate (id int); CREATE TABLE other (id int); CREATE SCHEMA s; CREATE TABLE s.inside ()"
    )
    return database


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("CREATE TABLE new (id int); INSERT INTO new VALUES (1)", {"public.other", "public.new", "s.inside"}),
        ("DROP TABLE other", {"s.inside"}),
        ("DROP SCHEMA s CASCADE", {"public.other"}),
        ("ALTER TABLE other RENAME TO renamed", {"public.renamed", "s.inside"}),
        ("ALTER TABLE other SET SCHEMA s", {"s.other", "s.inside"}),
        ("DROP TABLE other; CREATE TABLE other (id text)", {"public.other", "s.inside"}),
        ("DROP TABLE other; CREATE VIEW other AS SELECT 1 AS id", {"s.inside"}),
        ("TRUNCATE other", {"public.other", "s.inside"}),
        (
            "CREATE TABLE p (id int) PARTITION BY LIST (id); ALTER TABLE p ATTACH PARTITION other DEFAULT",
            {"public.other", "s.inside"},
        ),
    ],
)
def test_what_changes_before_the_lock_is_seen_and_locked(
    postgres: PrivateServer, gated: str, pool: ThreadPoolExecutor, change: str, expected: set[str]
) -> None:
    with Gate(postgres, gated, pool) as gate:
        taking = pool.submit(take, postgres, gated)
        gate.until_somebody_waits()
        sql(postgres, gated, change)
        gate.open()
        with closing(taking.result(DEADLINE_SECONDS)) as snapshot:
            assert names_of(snapshot) == expected | {"public.a_gate"}
            assert locked_by(postgres, gated, snapshot.connection.info.backend_pid) >= names_of(snapshot)
            rows, oids = dumped_on(postgres, gated, snapshot)
            assert {table.oid for table in snapshot.tables} == oids
            assert counts_on(snapshot) == rows


def test_tables_that_never_stop_changing_are_an_error_that_says_so(postgres18: PrivateServer, pool: ThreadPoolExecutor) -> None:
    with fresh_database(postgres18) as database:
        sql(postgres18, database, "CREATE TABLE a_gate (id int)")
        with Gate(postgres18, database, pool) as gate:
            taking = pool.submit(take, postgres18, database)
            for number in range(ATTEMPTS):
                gate.until_somebody_waits()
                sql(postgres18, database, f"CREATE TABLE new{number} ()")
                closed_again = gate.open_and_close_behind()
                closed_again.result(DEADLINE_SECONDS)
            with pytest.raises(ServerError, match=f"changed {ATTEMPTS} times while they were being locked"):
                taking.result(DEADLINE_SECONDS)
        assert_no_session_of_ours(postgres18, database)


def assert_no_session_of_ours(server: PrivateServer, database: str) -> None:
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'clipper-backup'"
    wait_until(lambda: sql(server, "postgres", statement, [database]) == [(0,)])


# -- locks that are not to be had


def time_out(server: PrivateServer, database: str) -> ServerError:
    with pytest.raises(ServerError) as raised:
        take(server, database, lock_timeout_seconds=1)
    assert "longer than DUMP_LOCK_TIMEOUT_SECONDS" in str(raised.value)
    assert "pg_terminate_backend" in raised.value.hints[0]
    assert_no_session_of_ours(server, database)
    return raised.value


def test_a_lock_that_is_not_to_be_had_names_table_session_and_statement(postgres: PrivateServer, gated: str) -> None:
    with connect(postgres, gated, autocommit=False) as other:
        other.execute("ALTER TABLE other\n   ADD extra int")
        error = time_out(postgres, gated)
        pid = other.info.backend_pid
    assert str(error).endswith(f"public.other, by the session with pid {pid} (ALTER TABLE other ADD extra int)")


def test_who_waits_for_a_lock_himself_is_named_too(postgres: PrivateServer, gated: str, pool: ThreadPoolExecutor) -> None:
    with connect(postgres, gated, autocommit=False) as writer, connect(postgres, gated) as waiter:
        writer.execute("INSERT INTO other VALUES (1)")  # we could share the table with him
        altering = pool.submit(waiter.execute, "ALTER TABLE other ADD extra int")  # but queue behind this one
        wait_until(lambda: waiters(postgres, gated, "other") != [])
        error = time_out(postgres, gated)
        pid = waiter.info.backend_pid
        writer.rollback()
        altering.result(DEADLINE_SECONDS)
    assert str(error).endswith(f"public.other, by the session with pid {pid} (ALTER TABLE other ADD extra int)")


def test_a_lock_in_a_copy_of_the_database_is_not_blamed(postgres: PrivateServer, gated: str) -> None:
    copy = f"{gated}_copy"
    sql(postgres, "postgres", f"CREATE DATABASE {copy} TEMPLATE {gated}")  # its tables have the same object ids
    try:
        with (
            connect(postgres, copy, autocommit=False) as elsewhere,
            connect(postgres, gated, autocommit=False) as guilty,
        ):
            for table in ("a_gate", "s.inside"):
                elsewhere.execute(f"LOCK TABLE {table}".encode())
            guilty.execute("LOCK TABLE other")
            error = time_out(postgres, gated)
            pid = guilty.info.backend_pid
    finally:
        sql(postgres, "postgres", f"DROP DATABASE {copy}")
    assert str(error).endswith(f"public.other, by the session with pid {pid} (LOCK TABLE other)")


# -- what the role may and must


@pytest.mark.rule(83)
@pytest.mark.parametrize("security", ["ENABLE", "FORCE"])
def test_hidden_rows_are_an_error_never_a_smaller_count(postgres: PrivateServer, security: str) -> None:
    with fresh_role(postgres) as role, fresh_database(postgres) as database:
        sql(postgres, database, "CREATE TABLE a (id int); INSERT INTO a VALUES (1), (2); CREATE POLICY few ON a USING (id = 1)")
        sql(postgres, database, "ALTER TABLE a ENABLE ROW LEVEL SECURITY")
        sql(postgres, database, f"GRANT SELECT ON a TO {role}")
        if security == "FORCE":
            sql(postgres, database, f"ALTER TABLE a FORCE ROW LEVEL SECURITY; ALTER TABLE a OWNER TO {role}")
        with connect(postgres, database, options=f"-c role={role}") as other:
            assert other.execute("SELECT count(*) FROM a").fetchall() == [(1,)]
        with closing(take(postgres, database, user=role)) as snapshot, pytest.raises(AccessError) as raised:
            counts_on(snapshot)
        assert "row-level security" in str(raised.value)
        assert "BYPASSRLS" in raised.value.hints[0]


def test_a_table_that_the_role_may_not_read_is_refused_before_anything_else(postgres: PrivateServer) -> None:
    with fresh_role(postgres) as role, fresh_database(postgres) as database:
        sql(postgres, database, "CREATE TABLE closed ()")
        with pytest.raises(AccessError, match="permission denied for table closed") as raised:
            take(postgres, database, user=role)
        assert "pg_read_all_data" in raised.value.hints[0]
        assert_no_session_of_ours(postgres, database)


def test_reading_everything_is_enough(postgres: PrivateServer) -> None:
    with fresh_role(postgres, "LOGIN IN ROLE pg_read_all_data") as role, fresh_database(postgres) as database:
        sql(postgres, database, "CREATE TABLE a (id int); INSERT INTO a VALUES (1)")
        with closing(take(postgres, database, user=role)) as snapshot:
            assert counts_on(snapshot) == {("public", "a"): 1}


def test_short_time_outs_of_the_role_do_not_end_it(postgres15: PrivateServer) -> None:
    with fresh_role(postgres15) as role, fresh_database(postgres15) as database:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout", "lock_timeout"):
            sql(postgres15, "postgres", f"ALTER ROLE {role} SET {setting} = '500ms'")
        with closing(take(postgres15, database, user=role)) as snapshot:
            sql(postgres15, "postgres", "SELECT pg_sleep(0.6)")
            snapshot.check_alive(database)


def test_a_session_that_was_ended_is_noticed(postgres: PrivateServer, database: str) -> None:
    with closing(take(postgres, database)) as snapshot:
        sql(postgres, "postgres", f"SELECT pg_terminate_backend({snapshot.connection.info.backend_pid}, 5000)")
        with pytest.raises(ServerError, match=f"holding the snapshot of database {database}: .*terminating connection"):
            snapshot.check_alive(database)


def test_many_sessions_can_use_it_until_it_is_closed(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "CREATE TABLE a (id int); INSERT INTO a VALUES (1)")

    def count_elsewhere(exported: str) -> Sequence[tuple[object, ...]]:
        with closing(product_connect(login_to(postgres), database)) as other:
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            other.execute(f"SET TRANSACTION SNAPSHOT '{exported}'".encode())
            return other.execute("SELECT count(*) FROM public.a").fetchall()

    with contextlib.ExitStack() as until_closed:
        snapshot = until_closed.enter_context(closing(take(postgres, database)))
        sql(postgres, database, "INSERT INTO a VALUES (2)")
        assert count_elsewhere(snapshot.exported) == [(1,)]
    with pytest.raises(psycopg.errors.Error, match="snapshot"):
        wait_until(lambda: not count_elsewhere(snapshot.exported))
