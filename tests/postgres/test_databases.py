"""A database made from what was recorded of another one is like it in everything that pg_restore leaves out."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql as compose

from clipper_backup.errors import MissingError, ServerError
from clipper_backup.postgres.connection import Connection, connect
from clipper_backup.postgres.databases import (
    apply_properties,
    create_database,
    database_exists,
    drop_database,
    is_empty,
    rename_databases,
)
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.postgres.server_facts import Properties, connectable_databases, database_properties
from clipper_backup.values import WORKING_PREFIX
from fixtures.postgres import connect as connect_to
from fixtures.postgres import fresh_database, fresh_role, login_to, major_of, sql

COPY = 'copy "of" it; --'


def properties_of(server: PrivateServer, database: str) -> Properties:
    with closing(connect(login_to(server), database)) as connection:
        return database_properties(connection, major_of(server))


@contextlib.contextmanager
def dropped_at_last(server: PrivateServer, *names: str) -> Iterator[None]:
    try:
        yield
    finally:
        for name in names:
            sql(server, "postgres", compose.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(compose.Identifier(name)))


def copied(server: PrivateServer, properties: Properties) -> Properties:
    """The properties of a new database that was made from *properties*; it is gone again."""
    with dropped_at_last(server, COPY), closing(connect(login_to(server))) as connection:
        create_database(connection, COPY, properties, properties.owner)
        apply_properties(connection, COPY, properties)
        return properties_of(server, COPY)


def change(server: PrivateServer, database: str, *statements: str) -> None:
    """Run statements with {} for the database's name."""
    for statement in statements:
        sql(server, "postgres", statement.replace("{}", compose.Identifier(database).as_string()))


# -- properties


def test_a_plain_database_has_nothing_of_its_own(postgres: PrivateServer, database: str) -> None:
    before = properties_of(postgres, database)
    assert (before.owner, before.encoding, before.grants, before.settings) == ("postgres", "UTF8", None, ())
    assert (before.comment, before.connection_limit, before.locale_provider) == (None, -1, "c")
    assert copied(postgres, before) == before


def test_everything_at_once(postgres: PrivateServer) -> None:
    with fresh_role(postgres) as owner, fresh_role(postgres) as reader, fresh_database(postgres) as database:
        change(
            postgres,
            database,
            f"ALTER DATABASE {{}} OWNER TO {owner}",
            "COMMENT ON DATABASE {} IS E'it''s \\\\ \"the\\nfirst\" 100%s {{ }} é'",
            "ALTER DATABASE {} CONNECTION LIMIT 7",
            "REVOKE ALL ON DATABASE {} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {} TO PUBLIC",
            f"GRANT TEMPORARY, CREATE ON DATABASE {{}} TO {reader} WITH GRANT OPTION",
            "ALTER DATABASE {} SET work_mem = '9MB'",
            f"ALTER ROLE {reader} IN DATABASE {{}} SET statement_timeout = '5min'",
        )
        before = properties_of(postgres, database)
        assert before.owner == owner
        assert before.settings == ((None, "work_mem=9MB"), (reader, "statement_timeout=5min"))
        assert before.grants is not None
        assert len(before.grants) == 6
        assert copied(postgres, before) == before


SETTINGS = [
    "search_path = ''",
    "search_path = public",
    'search_path = "$user", public, "a ""b", "c, d", \'\', pg_catalog',
    "search_path = 'a, b'",
    "search_path = 'it''s'",
    "DateStyle = 'ISO, YMD'",
    "TimeZone = 'Asia/Kathmandu'",
    "\"my.app\" = E'it''s; -- \\\\ \"x\" =\\n1'",
    "my.other.name = ''",
    "temp_tablespaces = ''",
    "temp_tablespaces = pg_default",
    "default_text_search_config = 'pg_catalog.simple'",
    "role = pg_read_all_data",
    "application_name = 'a=b'",
    "statement_timeout = 0",
    "log_statement = 'ddl'",
]


@pytest.fixture(scope="module")
def two_databases(postgres: PrivateServer) -> Iterator[tuple[str, str]]:
    with fresh_database(postgres) as one, fresh_database(postgres) as other:
        yield one, other


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_mean_the_same(postgres: PrivateServer, two_databases: tuple[str, str], setting: str) -> None:
    one, other = two_databases
    try:
        change(postgres, one, f"ALTER DATABASE {{}} SET {setting}", f"ALTER ROLE postgres IN DATABASE {{}} SET {setting}")
        before = properties_of(postgres, one)
        assert len(before.settings) == 2
        with closing(connect(login_to(postgres))) as connection:
            apply_properties(connection, other, before)
        assert properties_of(postgres, other) == before
    finally:
        for name in two_databases:
            change(postgres, name, "ALTER DATABASE {} RESET ALL", "ALTER ROLE postgres IN DATABASE {} RESET ALL")


@pytest.mark.parametrize(
    "grants",
    [
        ["REVOKE ALL ON DATABASE {} FROM PUBLIC", "REVOKE ALL ON DATABASE {} FROM {owner}"],
        ["REVOKE TEMPORARY ON DATABASE {} FROM {owner}", "GRANT CREATE ON DATABASE {} TO PUBLIC"],
        ["GRANT CONNECT ON DATABASE {} TO {reader} WITH GRANT OPTION", "REVOKE CONNECT ON DATABASE {} FROM PUBLIC"],
    ],
)
def test_privileges_are_the_same(postgres18: PrivateServer, grants: list[str]) -> None:
    with fresh_role(postgres18) as owner, fresh_role(postgres18) as reader, fresh_database(postgres18) as database:
        statements = [statement.replace("{owner}", owner).replace("{reader}", reader) for statement in grants]
        change(postgres18, database, f"ALTER DATABASE {{}} OWNER TO {owner}", *statements)
        before = properties_of(postgres18, database)
        assert copied(postgres18, before) == before


def test_what_a_grantee_granted_on_comes_from_the_owner(postgres18: PrivateServer) -> None:
    with fresh_role(postgres18) as giver, fresh_role(postgres18) as reader, fresh_database(postgres18) as database:
        change(postgres18, database, f"GRANT CREATE ON DATABASE {{}} TO {giver} WITH GRANT OPTION")
        with connect_to(postgres18, options=f"-c role={giver}") as connection:
            connection.execute(f"GRANT CREATE ON DATABASE {database} TO {reader}".encode())
        before = properties_of(postgres18, database)
        after = copied(postgres18, before)
    assert before.grants is not None
    assert after.grants is not None
    assert (reader, giver, "CREATE", False) in before.grants
    assert (reader, "postgres", "CREATE", False) in after.grants
    assert {(to, what, on) for to, _, what, on in after.grants} == {(to, what, on) for to, _, what, on in before.grants}


LOCALES = {
    "C": "LOCALE 'C'",
    "latin": "ENCODING LATIN1 LOCALE 'C'",
    "ascii": "ENCODING SQL_ASCII LOCALE 'C'",
    "mixed": "LC_COLLATE 'C' LC_CTYPE 'C.UTF-8'",
}
LOCALES_OF_15 = {
    "icu": "LOCALE_PROVIDER icu ICU_LOCALE 'de-AT'",
    "icu and C": "LOCALE_PROVIDER icu ICU_LOCALE 'und-u-ks-level2' LOCALE 'C'",
}
"""The servers of the wheel are built without ICU."""
LOCALES_OF_18 = {
    "builtin C": "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C'",
    "builtin unicode": "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'",
}


def like(server: PrivateServer, options: str) -> None:
    name = "of_that_locale"
    sql(server, "postgres", f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy {options}")
    try:
        before = properties_of(server, name)
        assert copied(server, before) == before
    finally:
        sql(server, "postgres", f"DROP DATABASE {name}")


@pytest.mark.parametrize("options", LOCALES.values(), ids=LOCALES)
def test_encoding_and_locale_are_the_same(postgres18: PrivateServer, options: str) -> None:
    like(postgres18, options)


@pytest.mark.parametrize("options", LOCALES_OF_15.values(), ids=LOCALES_OF_15)
def test_locales_of_icu_are_the_same(postgres15: PrivateServer, options: str) -> None:
    like(postgres15, options)


@pytest.mark.parametrize("options", LOCALES_OF_18.values(), ids=LOCALES_OF_18)
def test_built_in_locales_are_the_same(postgres18: PrivateServer, options: str) -> None:
    like(postgres18, options)


def test_a_cluster_with_another_default_makes_no_difference(postgres18: PrivateServer) -> None:
    with fresh_database(postgres18) as database:
        before = properties_of(postgres18, database)
    assert before.locale_provider == "c"
    provider = "UPDATE pg_database SET datlocprovider = {}, datlocale = {} WHERE datname = 'template0'"
    sql(postgres18, "postgres", compose.SQL(provider).format("b", "C.UTF-8"))  # as `initdb --locale-provider=builtin` leaves it
    try:
        assert copied(postgres18, before) == before
    finally:
        sql(postgres18, "postgres", compose.SQL(provider).format("c", None))


def test_without_an_owner_it_belongs_to_who_makes_it(postgres18: PrivateServer) -> None:
    with fresh_role(postgres18, "LOGIN CREATEDB") as maker, dropped_at_last(postgres18, COPY):
        with closing(connect(login_to(postgres18, user=maker), "postgres")) as connection:
            create_database(connection, COPY, properties_of(postgres18, "postgres"), None)
        assert properties_of(postgres18, COPY).owner == maker


def test_a_locale_that_the_server_does_not_have_is_said(postgres: PrivateServer) -> None:
    strange = replace(properties_of(postgres, "postgres"), collate="tlh_QO.UTF-8", ctype="tlh_QO.UTF-8")
    with closing(connect(login_to(postgres))) as connection, pytest.raises(ServerError, match=r"creating the database .*tlh_QO"):
        create_database(connection, COPY, strange, None)
    assert COPY not in names(postgres)


# -- names


def names(server: PrivateServer) -> set[str]:
    with closing(connect(login_to(server))) as connection:
        return set(connectable_databases(connection))


def test_a_restore_under_way_is_no_database_to_dump(postgres: PrivateServer, database: str) -> None:
    working = f"{WORKING_PREFIX}0123456789abcdef"
    replaced = f"{database}_replaced_20261122031500"
    with dropped_at_last(postgres, working, replaced), closing(connect(login_to(postgres))) as connection:
        for made in (working, replaced):
            create_database(connection, made, properties_of(postgres, database), None)
        assert names(postgres) >= {database, replaced}
        assert working not in names(postgres)


def test_it_is_there_until_it_is_dropped(postgres: PrivateServer, database: str) -> None:
    with dropped_at_last(postgres, COPY), closing(connect(login_to(postgres))) as connection:
        assert not database_exists(connection, COPY)
        create_database(connection, COPY, properties_of(postgres, database), None)
        assert database_exists(connection, COPY)
        assert COPY in names(postgres)
        assert not database_exists(connection, COPY.upper())
        with connect_to(postgres, COPY) as visitor:
            drop_database(connection, COPY)
            assert not database_exists(connection, COPY)
            with pytest.raises(psycopg.OperationalError):
                visitor.execute("SELECT 1")
        drop_database(connection, COPY)  # once more is no error


def test_renaming_ends_the_sessions_in_it(postgres: PrivateServer, database: str) -> None:
    with (
        dropped_at_last(postgres, COPY),
        closing(connect(login_to(postgres))) as connection,
        connect_to(postgres, database) as idle,
        connect_to(postgres, database, autocommit=False) as busy,
    ):
        busy.execute("CREATE TABLE unfinished ()")
        rename_databases(connection, login_to(postgres), [(database, COPY)])
        assert names(postgres) & {database, COPY} == {COPY}
        for session in (idle, busy):
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        rename_databases(connection, login_to(postgres), [(COPY, database)])
    assert sql(postgres, database, "SELECT count(*) FROM pg_class WHERE relname = 'unfinished'") == [(0,)]


def test_two_databases_swap_their_names_or_neither_does(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "CREATE TABLE of_the_first ()")
    tables = "SELECT relname FROM pg_class WHERE relname ~ '^of_the'"
    with dropped_at_last(postgres, COPY, f"{database}_old"), closing(connect(login_to(postgres))) as connection:
        create_database(connection, COPY, properties_of(postgres, database), None)
        sql(postgres, COPY, "CREATE TABLE of_the_second ()")
        with pytest.raises(ServerError, match=r"renaming the database .*postgres"):
            rename_databases(connection, login_to(postgres), [(database, f"{database}_old"), (COPY, "postgres")])
        assert names(postgres) & {database, COPY, f"{database}_old"} == {database, COPY}
        rename_databases(
            connection, login_to(postgres), [(database, f"{database}_old"), (COPY, database), (f"{database}_old", COPY)]
        )
        assert (sql(postgres, database, tables), sql(postgres, COPY, tables)) == ([("of_the_second",)], [("of_the_first",)])


def test_sessions_that_come_back_all_the_time_do_not_keep_a_name(postgres18: PrivateServer) -> None:
    stop = threading.Event()
    came = threading.Event()

    def come_back() -> None:
        while not stop.is_set():
            with contextlib.suppress(psycopg.Error), connect_to(postgres18, busy) as session:
                came.set()
                session.execute("SELECT pg_sleep(60)")

    with (
        fresh_database(postgres18) as busy,
        dropped_at_last(postgres18, COPY),
        closing(connect(login_to(postgres18))) as connection,
    ):
        visitors = [threading.Thread(target=come_back) for _ in range(3)]
        for visitor in visitors:
            visitor.start()
        try:
            assert came.wait(30)
            rename_databases(connection, login_to(postgres18), [(busy, COPY)])
        finally:
            stop.set()
            for name in (busy, COPY):
                sql(postgres18, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            for visitor in visitors:
                visitor.join(30)
        assert not any(visitor.is_alive() for visitor in visitors)
        assert COPY in names(postgres18)


def test_renaming_what_is_not_there(postgres: PrivateServer) -> None:
    with closing(connect(login_to(postgres))) as connection, pytest.raises(ServerError, match='"no such" does not exist'):
        rename_databases(connection, login_to(postgres), [("no such", COPY)])
    with pytest.raises(MissingError):
        connect(login_to(postgres), COPY)


# -- whether anything is in it

CONTENTS = {
    "table": "CREATE TABLE a ()",
    "table elsewhere": "CREATE SCHEMA s; CREATE TABLE s.a ()",
    "schema": "CREATE SCHEMA s",
    "view": "CREATE VIEW a AS SELECT 1",
    "sequence": "CREATE SEQUENCE a",
    "function": "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "enum": "CREATE TYPE mood AS ENUM ('sad')",
    "domain": "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
    "shell type": "CREATE TYPE unfinished",
    "large object": "SELECT lo_from_bytea(0, 'x')",
    "extension": "CREATE EXTENSION hstore",
    "collation": "CREATE COLLATION c (LOCALE = 'C')",
    "operator": "CREATE OPERATOR === (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int)",
    "text search configuration": "CREATE TEXT SEARCH CONFIGURATION c (PARSER = default)",
    "cast": "CREATE CAST (point AS int) WITH INOUT",
    "publication": "CREATE PUBLICATION p FOR ALL TABLES",
    "foreign data wrapper": "CREATE FOREIGN DATA WRAPPER w",
    "default privileges": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO pg_monitor",
    "language": "CREATE LANGUAGE mine HANDLER plpgsql_call_handler",
}


@pytest.fixture(scope="module")
def session(two_databases: tuple[str, str], postgres: PrivateServer) -> Iterator[Connection]:
    """A session in a database with nothing in it."""
    with closing(connect(login_to(postgres), two_databases[0])) as connection:
        yield connection


@pytest.mark.parametrize("statement", CONTENTS.values(), ids=CONTENTS)
def test_a_database_with_anything_in_it_is_not_empty(session: Connection, statement: str) -> None:
    assert is_empty(session)
    with session.transaction(force_rollback=True):
        session.execute("SET LOCAL search_path = public")  # the product's sessions search nothing
        session.execute(statement.encode())
        assert not is_empty(session)
    assert is_empty(session)


@pytest.mark.parametrize("template", ["template0", "template1"])
def test_a_new_database_is_empty(postgres: PrivateServer, template: str) -> None:
    with dropped_at_last(postgres, COPY):
        create = compose.SQL("CREATE DATABASE {} TEMPLATE {}")
        sql(postgres, "postgres", create.format(compose.Identifier(COPY), compose.Identifier(template)))
        with closing(connect(login_to(postgres), COPY)) as connection:
            assert is_empty(connection)


def test_what_goes_with_its_session_or_belongs_to_every_database_is_nothing(postgres: PrivateServer, database: str) -> None:
    change(postgres, database, "COMMENT ON DATABASE {} IS 'prepared'", "ALTER DATABASE {} SET work_mem = '9MB'")
    sql(postgres, database, "CREATE TABLE a (id serial); DROP TABLE a; DROP SCHEMA public; CREATE SCHEMA public")
    with connect_to(postgres, database) as other, closing(connect(login_to(postgres), database)) as connection:
        other.execute("CREATE TEMPORARY TABLE of_the_session (id serial, t text)")
        other.execute("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        assert is_empty(connection)
