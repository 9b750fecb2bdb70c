"""Databases of every shape, with the real program, on each server; the file store and, where it matters, S3."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg import sql as compose

from clipper_backup.errors import LockedError, ServerError
from clipper_backup.ops.dump.create import create_dump
from clipper_backup.ops.dump.restore import Request, restore_dump
from clipper_backup.ops.events import Event, StepDone
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import DumpId
from fixtures.cli import RunCli
from fixtures.dump import check_told
from fixtures.oracle import content_now, settings_for, work_for
from fixtures.postgres import client_environment, fresh_database, running_server, server_binaries, sql
from fixtures.stores import StorePlace

pytestmark = pytest.mark.soak(share=0.15)

NASTY_NAMES = (
    "with space",
    'quo"te',
    "apo'strophe",
    "slash/and.dot",
    "Ünïcödé ☃ 日本",
    "dbname=postgres host=nowhere",
    "postgresql://x@y/z",
    "%41",
    "-leading",
    "x" * 63,
    'comma, "quoted"',
)


@pytest.fixture
def into(postgres: PrivateServer) -> Iterator[str]:
    name = "restored_here"
    yield name
    sql(postgres, "postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _environment(server: PrivateServer, url: str, *databases: str, **others: str) -> dict[str, str]:
    names = ['"' + name.replace('"', '""') + '"' if "," in name else name for name in databases]
    return client_environment(server, BACKUP_URL=url, BACKUP_DATABASES=",".join(names), **others)


def test_database_names_of_every_kind_are_dumped_verified_and_restored(
    postgres15: PrivateServer, run_cli: RunCli, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        for name in NASTY_NAMES:
            identifier = compose.Identifier(name)
            sql(postgres15, "postgres", compose.SQL("CREATE DATABASE {} TEMPLATE template0").format(identifier))
            stack.callback(sql, postgres15, "postgres", compose.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))
            sql(postgres15, name, compose.SQL("CREATE TABLE own AS SELECT {}::text AS name").format(compose.Literal(name)))
        env = _environment(postgres15, f"file://{tmp_path}/store", *NASTY_NAMES)
        dumped = run_cli("dump", "create", "--json", env=env, check=True).document
        assert set(dumped["databases"]) == set(NASTY_NAMES)
        run_cli("dump", "verify", "latest", env=env, check=True)
        assert not [path for path in (tmp_path / "store").rglob("*") if not path.name.isascii()]
        # A restore each takes a while; these are the ones that a connection string or a shell could misread.
        for number, name in enumerate(name for name in NASTY_NAMES if set(name) & set("'=:-%")):
            restored = f"copy {number} of “{name}”"[:20]
            run_cli("dump", "restore", "latest", f"--database={name}", "--into", restored, env=env, check=True)
            stack.callback(sql, postgres15, "postgres", compose.SQL("DROP DATABASE {}").format(compose.Identifier(restored)))
            assert sql(postgres15, restored, "SELECT name FROM own") == [(name,)]


@pytest.mark.soak(over=["postgres"])
def test_an_empty_database_and_several_databases(
    postgres: PrivateServer, run_cli: RunCli, store_place: StorePlace, into: str
) -> None:
    with fresh_database(postgres) as empty, fresh_database(postgres) as other:
        sql(postgres, other, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        env = _environment(postgres, store_place.url, empty, other) | dict(store_place.environment)
        dumped = run_cli("dump", "create", "--json", env=env, check=True).document
        assert (dumped["databases"], dumped["rows"]) == ([empty, other], 1000)
        verified = run_cli("dump", "verify", dumped["id"], "--json", env=env, check=True).document
        assert (verified["tables"], verified["rows"]) == (1, 1000)
        unnamed = run_cli("dump", "restore", "latest", "--into", into, env=env)
        assert unnamed.code == 2
        assert f"holds several databases: {empty}, {other}" in unnamed.stderr
        run_cli("dump", "restore", "latest", "--database", empty, "--into", into, env=env, check=True)
        with content_now(postgres, into) as content:
            assert content == {}
        # An empty database that exists is filled in place.
        run_cli("dump", "restore", "latest", "--database", other, "--into", into, env=env, check=True)
        assert sql(postgres, into, "SELECT count(*) FROM t") == [(1000,)]


def test_two_thousand_tables(postgres: PrivateServer, run_cli: RunCli, tmp_path: Path, into: str) -> None:
    with fresh_database(postgres) as name:
        sql(
            postgres,
            name,
            "DO $$ BEGIN FOR n IN 1..2000 LOOP EXECUTE format('CREATE TABLE t%s AS SELECT %s AS n', n, n); END LOOP; END $$",
        )
        env = _environment(postgres, f"file://{tmp_path}/store", name)
        dumped = run_cli("dump", "create", "--json", env=env, check=True).document
        assert dumped["rows"] == 2000
        verified = run_cli("dump", "verify", "latest", "--json", env=env, check=True).document
        assert (verified["tables"], verified["rows"]) == (2000, 2000)


@pytest.mark.rule(80)
def test_rule_80_stock_tools_restore_the_same_database(
    postgres: PrivateServer, clipper: str, run_cli: RunCli, tmp_path: Path, into: str
) -> None:
    """`zstd -d | pg_restore`, and a plain listing that shows a size and a time for each dump."""
    store = tmp_path / "store"
    env = _environment(postgres, f"file://{store}", clipper)
    dump_id = run_cli("dump", "create", "--json", env=env, check=True).document["id"]
    bindir = server_binaries(_major(postgres)).bindir
    sql(postgres, "postgres", f"CREATE DATABASE {into} TEMPLATE template0")
    archive = store / "database" / f"{dump_id}.{clipper}.dump.zst"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"zstd -dc {archive} | {bindir}/pg_restore --exit-on-error -d {into}"],
        env=env,
        check=True,
        capture_output=True,
    )
    with content_now(postgres, into) as restored, content_now(postgres, clipper) as source:
        assert restored == source
    listing = subprocess.run(["ls", "-l", "--time-style=full-iso", archive.parent], capture_output=True, text=True, check=True)
    assert any(archive.name in line and str(archive.stat().st_size) in line for line in listing.stdout.splitlines())
    script = subprocess.run(["zstd", "-dc", archive.parent / f"{dump_id}.globals.sql.zst"], capture_output=True, check=True)
    assert b"CREATE ROLE clipper_app" in script.stdout
    assert json.loads((archive.parent / f"{dump_id}.backup.json").read_text())["id"] == dump_id


@pytest.mark.rule(81)
def test_rule_81_roles_come_first_from_template0_with_properties_and_statistics(
    clipper: str, postgres: PrivateServer, run_cli: RunCli, tmp_path: Path
) -> None:
    """A second, empty cluster of the same version gets everything, in an order that works."""
    number = _major(postgres)
    sql(postgres, "postgres", f"COMMENT ON DATABASE {clipper} IS 'it''s ours'")
    sql(postgres, "postgres", f"GRANT CONNECT ON DATABASE {clipper} TO clipper_app WITH GRANT OPTION")
    sql(postgres, "postgres", f"ALTER DATABASE {clipper} SET search_path = public, \"$user\", 'odd name'")
    env = _environment(postgres, f"file://{tmp_path}/store", clipper)
    run_cli("dump", "create", env=env, check=True)
    with running_server(number) as other:
        # Whatever stands in template1 must not get into the restored database.
        sql(other, "template1", "CREATE TABLE from_template1 ()")
        there = _environment(other, f"file://{tmp_path}/store")
        restored = run_cli("dump", "restore", "latest", "--into", clipper, "--json", env=there, check=True).document
        assert "clipper_app" in restored["roles_created"]
        with content_now(other, clipper) as copy, content_now(postgres, clipper) as source:
            assert copy == source
        here = "FROM (SELECT * FROM pg_database WHERE datname = current_database()) d"
        settings = f"{here} JOIN pg_db_role_setting ON d.oid = setdatabase"
        grants = f"{here}, aclexplode(datacl) a WHERE grantee <> 0"
        for question in (
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()",
            f"SELECT a.grantee::regrole::text, privilege_type, is_grantable {grants} ORDER BY 1, 2",
            f"SELECT setrole::regrole::text, unnest(setconfig) {settings} ORDER BY 1, 2",
            "SELECT rolname, rolcanlogin, rolconnlimit FROM pg_roles WHERE rolname = 'clipper_app'",
        ):
            assert sql(other, clipper, question) == sql(postgres, clipper, question), question
        analyzed = sql(other, clipper, "SELECT count(*) FROM pg_stats WHERE schemaname = 'public' AND tablename = 'clips'")
        assert analyzed[0][0] > 3


@pytest.mark.rule(81)
def test_rule_81_a_failing_restore_leaves_no_database(
    postgres: PrivateServer, clipper: str, run_cli: RunCli, tmp_path: Path, into: str
) -> None:
    """pg_restore must stop at the first error, and a half database must not keep a name."""
    sql(postgres, clipper, "CREATE EXTENSION pageinspect")  # which only a superuser may create
    env = _environment(postgres, f"file://{tmp_path}/store", clipper)
    run_cli("dump", "create", env=env, check=True)
    sql(postgres, "postgres", "CREATE ROLE builder LOGIN CREATEDB")
    try:
        failed = run_cli("dump", "restore", "latest", "--into", into, "--no-roles", env=env | {"PGUSER": "builder"})
    finally:
        sql(postgres, "postgres", "DROP ROLE builder")
    assert failed.code in {1, 12}
    assert "pageinspect" in failed.stderr
    question = "SELECT datname FROM pg_database WHERE datname = %s OR starts_with(datname, 'clipper_backup_')"
    assert sql(postgres, "postgres", question, [into]) == []


def test_replace_takes_the_place_of_a_database_in_use_and_keeps_it(
    postgres: PrivateServer, clipper: str, run_cli: RunCli, tmp_path: Path
) -> None:
    """An application that comes back at once, all the time, must neither prevent it nor end up in between."""
    env = _environment(postgres, f"file://{tmp_path}/store", clipper)
    run_cli("dump", "create", env=env, check=True)
    sql(postgres, clipper, "CREATE TABLE made_after_the_dump AS SELECT 42 AS n")
    refused = run_cli("dump", "restore", "latest", "--into", clipper, env=env)
    assert (refused.code, "is not empty" in refused.stderr) == (2, True)
    unasked = run_cli("dump", "restore", "latest", "--into", clipper, "--replace", env=env)
    assert (unasked.code, "--yes" in unasked.stderr) == (2, True)

    stop, sessions = threading.Event(), []

    def come_back() -> None:
        while not stop.is_set():
            with contextlib.suppress(psycopg.Error), psycopg.connect(**postgres.connection(clipper)) as session:  # type: ignore[arg-type] # keywords of libpq
                sessions.append(session.info.backend_pid)
                session.execute("SELECT pg_sleep(60)")

    application = threading.Thread(target=come_back)
    application.start()
    try:
        words = ("dump", "restore", "latest", "--into", clipper, "--replace", "--yes", "--json")
        replaced = run_cli(*words, env=env, check=True).document["replaced"]
    finally:
        stop.set()
        sleeping = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
        sql(postgres, "postgres", sleeping)
        application.join(30)
    assert sessions
    assert sql(postgres, replaced, "SELECT n FROM made_after_the_dump") == [(42,)]
    assert sql(postgres, clipper, "SELECT to_regclass('made_after_the_dump')") == [(None,)]
    sql(postgres, "postgres", compose.SQL("DROP DATABASE {}").format(compose.Identifier(replaced)))


def test_what_the_target_does_not_know_is_left_out_and_said(
    postgres15: PrivateServer, postgres18: PrivateServer, run_cli: RunCli, tmp_path: Path
) -> None:
    """Settings come and go with versions: `force_parallel_mode` was one until 15. Roles are made whole, or not at all."""
    with fresh_database(postgres15) as name:
        sql(postgres15, name, "CREATE TABLE t AS SELECT 1 AS n")
        roles = ("dumped_group", "dumped_member")
        for statement in (
            f"ALTER DATABASE {name} SET force_parallel_mode = off",
            f"ALTER DATABASE {name} SET work_mem = '9MB'",
            "CREATE ROLE dumped_group",
            "CREATE ROLE dumped_member LOGIN CONNECTION LIMIT 7 IN ROLE dumped_group",
            "ALTER ROLE dumped_member SET force_parallel_mode = off",
            "ALTER ROLE dumped_member SET work_mem = '8MB'",
        ):
            sql(postgres15, "postgres", statement)
        try:
            run_cli("dump", "create", env=_environment(postgres15, f"file://{tmp_path}/store", name), check=True)
        finally:
            sql(postgres15, "postgres", "DROP ROLE dumped_member; DROP ROLE dumped_group")
    env = _environment(postgres18, f"file://{tmp_path}/store")
    try:
        restored = run_cli("dump", "restore", "latest", "--into", name, env=env, check=True)
        assert restored.stderr.count("left out `ALTER") == 2
        assert sql(postgres18, name, "SHOW work_mem") == [("9MB",)]
        member = "SELECT rolconnlimit, rolconfig FROM pg_roles WHERE rolname = 'dumped_member'"
        assert sql(postgres18, name, member) == [(7, ["work_mem=8MB"])]
        assert sql(postgres18, name, "SELECT pg_has_role('dumped_member', 'dumped_group', 'member')") == [(True,)]
    finally:
        sql(postgres18, "postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        for role in reversed(roles):
            sql(postgres18, "postgres", f"DROP ROLE IF EXISTS {role}")


def test_two_restores_into_one_name_do_not_meet(postgres: PrivateServer, clipper: str, tmp_path: Path, into: str) -> None:
    """The second would empty the first one's copy, which the first would then give the name."""
    settings = settings_for(postgres, tmp_path / "store", clipper)
    dump_id = DumpId.parse(create_dump(work_for(settings)).summary.id)
    refused: list[str] = []

    def meet(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == "compare":
            with pytest.raises(LockedError) as caught:
                restore_dump(work_for(settings), Request(dump_id, into))
            refused.append(str(caught.value))

    restore_dump(work_for(settings, meet), Request(dump_id, into))
    assert refused == [f"somebody restores into {into!r} already"]
    with content_now(postgres, into) as copy, content_now(postgres, clipper) as source:
        assert copy == source


def test_a_copy_that_somebody_replaced_gets_no_name(postgres: PrivateServer, clipper: str, tmp_path: Path, into: str) -> None:
    settings = settings_for(postgres, tmp_path / "store", clipper)
    dump_id = DumpId.parse(create_dump(work_for(settings)).summary.id)
    working = "SELECT datname FROM pg_database WHERE starts_with(datname, 'clipper_backup_restoring_')"
    replaced: list[str] = []

    def replace(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == "compare":
            ((name,),) = sql(postgres, "postgres", working)
            sql(postgres, "postgres", f"DROP DATABASE {name} WITH (FORCE)")
            sql(postgres, "postgres", f"CREATE DATABASE {name}")
            replaced.append(str(name))

    with pytest.raises(ServerError, match="is gone: somebody dropped it"):
        restore_dump(work_for(settings, replace), Request(dump_id, into))
    assert sql(postgres, "postgres", "SELECT 1 FROM pg_database WHERE datname = %s", [into]) == []
    assert sql(postgres, "postgres", working) == [(name,) for name in replaced], "it dropped somebody else's database"
    sql(postgres, "postgres", f"DROP DATABASE {replaced[0]}")


def test_the_maintenance_database_itself_can_be_replaced(postgres15: PrivateServer, run_cli: RunCli, tmp_path: Path) -> None:
    sql(postgres15, "postgres", "CREATE TABLE IF NOT EXISTS ours AS SELECT 1 AS n")
    env = _environment(postgres15, f"file://{tmp_path}/store", "postgres")
    run_cli("dump", "create", env=env, check=True)
    for template in ("template0", "template1"):
        refused = run_cli("dump", "restore", "latest", "--into", template, "--replace", "--yes", env=env)
        check_told(refused, 2, template, "is a template", hint="--into another name")
    done = run_cli("dump", "restore", "latest", "--into", "postgres", "--replace", "--yes", "--json", env=env, check=True)
    replaced = done.document["replaced"]
    assert sql(postgres15, "postgres", "SELECT n FROM ours") == [(1,)]
    sql(postgres15, "template1", compose.SQL("DROP DATABASE {}").format(compose.Identifier(replaced)))
    sql(postgres15, "postgres", "DROP TABLE ours")


def _major(server: PrivateServer) -> int:
    return int(str(sql(server, "postgres", "SHOW server_version_num")[0][0])) // 10000


@pytest.mark.rule(82)
def test_rule_82_databases_are_dumped_on_snapshots_of_their_own(
    postgres15: PrivateServer, run_cli: RunCli, tmp_path: Path
) -> None:
    """They are not consistent with each other, and the dump says at which position each one is."""
    with fresh_database(postgres15) as one, fresh_database(postgres15) as two:
        env = _environment(postgres15, f"file://{tmp_path}/store", one, two)
        run_cli("dump", "create", env=env, check=True)
        details = run_cli("dump", "show", "latest", "--json", env=env, check=True).document["details"]
    assert [database["id"] for database in details] == [one, two]
    assert all(database["snapshot"] and database["lsn_before"] for database in details)


@pytest.mark.rule(83)
def test_rule_83_a_role_that_would_not_see_every_row_is_refused_and_bypassrls_mends_it(
    postgres: PrivateServer, clipper: str, run_cli: RunCli, tmp_path: Path
) -> None:
    sql(postgres, "postgres", "CREATE ROLE reader LOGIN")
    try:
        sql(postgres, "postgres", "GRANT pg_read_all_data TO reader")
        sql(postgres, clipper, "DO $$ DECLARE l oid; BEGIN FOR l IN SELECT oid FROM pg_largeobject_metadata LOOP"
            " EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO reader', l); END LOOP; END $$")  # fmt: skip
        env = _environment(postgres, f"file://{tmp_path}/store", clipper, PGUSER="reader")
        refused = run_cli("dump", "create", env=env)
        assert refused.code == 12
        assert "row-level security" in refused.stderr
        assert "BYPASSRLS" in refused.stderr
        assert not list((tmp_path / "store").rglob("*.backup.json"))
        sql(postgres, "postgres", "ALTER ROLE reader BYPASSRLS")
        dumped = run_cli("dump", "create", "--json", env=env, check=True).document
        with content_now(postgres, clipper) as source:
            assert dumped["rows"] == sum(count for count, _ in source.values())
    finally:
        sql(postgres, clipper, "DROP OWNED BY reader")
        sql(postgres, "postgres", "DROP ROLE reader")


def test_a_role_that_may_not_read_passwords_dumps_without_them_and_says_so(
    postgres: PrivateServer, run_cli: RunCli, tmp_path: Path
) -> None:
    with fresh_database(postgres) as name:
        sql(postgres, name, "CREATE TABLE t AS SELECT 1 AS n")
        sql(postgres, "postgres", "CREATE ROLE plain LOGIN PASSWORD 'open sesame'")
        try:
            sql(postgres, name, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain")
            env = _environment(postgres, f"file://{tmp_path}/store", name, PGUSER="plain")
            dumped = run_cli("dump", "create", "--json", env=env, check=True).document
            assert dumped["warnings"] == ["the globals hold no passwords: this role may not read pg_authid"]
            run_cli("dump", "fetch", "latest", "--to", "fetched", env=env, check=True)
            script = (tmp_path / "fetched" / f"{dumped['id']}.globals.sql").read_text()
            assert "CREATE ROLE plain" in script
            assert "PASSWORD" not in script
        finally:
            sql(postgres, name, "DROP OWNED BY plain")
            sql(postgres, "postgres", "DROP ROLE plain")


@pytest.mark.rule(103)
def test_rule_103_a_truncate_elsewhere_waits_and_is_not_half_in_the_dump(
    postgres: PrivateServer, clipper: str, run_cli: RunCli, tmp_path: Path
) -> None:
    """Somebody who wants to truncate queues behind our lock; pg_dump would queue behind him: nobody may wait for ever."""
    ((views,),) = sql(postgres, clipper, "SELECT count(*) FROM private_notes")
    truncating = psycopg.connect(**postgres.connection(clipper), autocommit=True)  # type: ignore[arg-type] # keywords of libpq
    sent: list[Event] = []

    def truncate_once(event: Event) -> None:
        if isinstance(event, StepDone) and event.step.startswith("lock ") and not sent:
            sent.append(event)
            truncating.pgconn.send_query(b"TRUNCATE private_notes")
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
            while sql(postgres, clipper, waiting) == [(0,)]:
                pass

    with truncating:
        dump = create_dump(work_for(settings_for(postgres, tmp_path / "store", clipper), truncate_once))
        while (result := truncating.pgconn.get_result()) is not None:
            assert result.error_message == b""
    recorded = next(t.rows for t in dump.details.databases[0].tables if t.name == "private_notes")
    assert recorded in {views, 0}
    assert sql(postgres, clipper, "SELECT count(*) FROM private_notes") == [(0,)]
    env = _environment(postgres, f"file://{tmp_path}/store", clipper)
    run_cli("dump", "verify", "latest", env=env, check=True)
