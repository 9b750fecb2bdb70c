"""Figures that are equal exactly when the rows are: whatever their order, the session's settings or the server's version."""

import contextlib
import math
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from clipper_backup.errors import AccessError, ServerError
from clipper_backup.postgres.connection import Connection, connect
from clipper_backup.postgres.fingerprint import (
    Figures,
    answer,
    fix_text_form,
    is_table,
    measure_large_objects,
    measure_table,
    missing_relations,
    own_search_path,
    read_sequence,
)
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.postgres.server_facts import database_properties, used_collations
from fixtures.postgres import client_environment, fresh_database, fresh_role, login_to, server_binaries, sql


@contextlib.contextmanager
def measuring(server: PrivateServer, database: str, *, user: str = "postgres") -> Iterator[Connection]:
    """A session of the product's, as it measures with."""
    with closing(connect(login_to(server, user=user), database)) as connection:
        fix_text_form(connection)
        yield connection


def figures_of(connection: Connection, name: str, *, schema: str = "public", condition: str | None = None) -> Figures:
    figures = measure_table(connection, schema, name, condition, hashed=True)
    assert figures.rows == measure_table(connection, schema, name, condition, hashed=False).rows
    return figures


EVERY_TYPE = """
CREATE TYPE mood AS ENUM ('sad', 'it''s, "ok"');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE SCHEMA aside;
CREATE TABLE aside.thing ();
CREATE FUNCTION aside.work() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE everything (id int PRIMARY KEY, generated numeric GENERATED ALWAYS AS (id * 1.50) STORED);
"""
VALUES = {
    "bool": "true",
    "smallint": "-32768",
    "bigint": "9223372036854775807",
    "numeric": "'NaN'",
    "real": "'Infinity'",
    "double precision": "0.1::float8 + 0.2",
    "double precision[]": "'{NaN,-Infinity,1e-300,-0}'",
    "money": "12.34",
    "text": """E'tab\\t\\n "quoted" \\\\ é'""",
    "varchar(9)": "''",
    "char(9)": "'padded'",
    '"char"': "'q'",
    "name": "'a name'",
    "bytea": r"'\x00ff5c'",
    "date": "'2026-02-03'",
    "time": "'04:05:06.789'",
    "timetz": "'04:05:06+07'",
    "timestamp": "'2026-02-03 04:05:06.789'",
    "timestamptz": "'2026-02-03 04:05:06.789+05:30'",
    "interval": "'1 year -2 days 03:04:05.6'",
    "uuid": "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
    "json": """'{"b" : 1, "a": [ null ]}'""",
    "jsonb": """'{"b": 1.50, "a": [null, "x"]}'""",
    "inet": "'10.0.0.1/8'",
    "cidr": "'10.0.0.0/8'",
    "macaddr": "'08:00:2b:01:02:03'",
    "bit(3)": "B'101'",
    "varbit": "B'1'",
    "point": "'(1.5,-2)'",
    "box": "'((1,2),(3,4))'",
    "circle": "'<(1,2),3>'",
    "polygon": "'((0,0),(1,1),(1,0))'",
    "int4range": "'[1,5)'",
    "tstzrange": "'[2026-01-01 00:00+02,)'",
    "int4multirange": "'{[1,3),[5,7)}'",
    "tsvector": "'a fat cat:3A'",
    "tsquery": "'fat & !rat'",
    "int[]": "'{1,NULL,3}'",
    "text[]": r"""'{"",NULL,"NULL","a,b","\"q\""}'""",
    "mood": """'it''s, "ok"'""",
    "mood[]": "'{sad}'",
    "pair": r"""'(1,"x ""y"", \\")'""",
    "pair[]": """'{"(1,x)",NULL}'""",
    "positive": "5",
    "oid": "4294967295",
    "regclass": "'aside.thing'",
    "regprocedure": "'aside.work()'",
    "regtype": "'aside.thing'",
    "pg_lsn": "'16/B374D848'",
}
"""A value of each type, as SQL. There is no xml: the servers of the wheel are built without it."""


def make_everything(server: PrivateServer, database: str) -> None:
    """A table `everything`: a column `c<number>` for each type, a row with its value, and one with nothing."""
    added = ", ".join(f"ADD c{number} {kind}" for number, kind in enumerate(VALUES))
    values = ", ".join(VALUES.values())
    columns = ", ".join(f"c{number}" for number in range(len(VALUES)))
    sql(server, database, EVERY_TYPE + f"ALTER TABLE everything {added}")
    sql(server, database, f"INSERT INTO everything (id, {columns}) VALUES (1, {values}); INSERT INTO everything VALUES (2)")


# -- what must make no difference


def test_the_order_of_rows_makes_no_difference(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "CREATE TABLE up AS SELECT n, md5(n::text) AS text FROM generate_series(1, 500) n")
    sql(postgres, database, "CREATE TABLE down AS SELECT * FROM up ORDER BY text")
    sql(
        postgres,
        database,
        "CREATE TABLE moved AS TABLE up; UPDATE moved SET text = text WHERE n % 3 = 0; DELETE FROM moved WHERE n = 7",
    )
    sql(postgres, database, "INSERT INTO moved SELECT * FROM up WHERE n = 7")
    with measuring(postgres, database) as connection:
        assert figures_of(connection, "up") == figures_of(connection, "down") == figures_of(connection, "moved")


def test_the_order_of_columns_makes_no_difference(postgres: PrivateServer, database: str) -> None:
    # pg_dump may give an inheriting table another one than it had.
    sql(
        postgres,
        database,
        """
        CREATE TABLE parent (a int, b text);
        CREATE TABLE attached (c date, b text, a int); ALTER TABLE attached INHERIT parent;
        CREATE TABLE made (c date) INHERITS (parent);
        CREATE TABLE without_dropped (z int, c date, a int, b text); ALTER TABLE without_dropped DROP COLUMN z;
        """,
    )
    for table in ("attached", "made", "without_dropped"):
        sql(postgres, database, f"INSERT INTO {table} (a, b, c) VALUES (1, 'x', '2026-01-01'), (2, NULL, NULL)")
    orders = sql(
        postgres,
        database,
        "SELECT DISTINCT array_agg(attname ORDER BY attnum) FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped"
        " AND attrelid IN ('attached'::regclass, 'made'::regclass) GROUP BY attrelid",
    )
    assert len(orders) == 2, "the columns are in the same order: nothing is shown here"
    with measuring(postgres, database) as connection:
        assert figures_of(connection, "attached") == figures_of(connection, "made") == figures_of(connection, "without_dropped")


LOUD = {
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "'sql_standard'",
    "TimeZone": "'Asia/Kathmandu'",
    "bytea_output": "'escape'",
    "extra_float_digits": "-15",
    "xmlbinary": "'hex'",
    "search_path": "aside, public",
    "quote_all_identifiers": "on",
    "client_encoding": "'LATIN1'",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "backslash_quote": "on",
}


@pytest.mark.parametrize("target", ["ROLE {role}", "DATABASE {database}"])
def test_settings_of_role_and_database_make_no_difference(postgres: PrivateServer, target: str) -> None:
    with fresh_role(postgres, "LOGIN SUPERUSER") as role, fresh_database(postgres) as database:
        make_everything(postgres, database)
        with measuring(postgres, database) as connection:
            quiet = figures_of(connection, "everything")
        for name, value in LOUD.items():
            sql(postgres, "postgres", f"ALTER {target.format(role=role, database=database)} SET {name} = {value}")
        with measuring(postgres, database, user=role) as connection:
            assert connection.execute("SHOW array_nulls").fetchall() == [("off",)]
            assert figures_of(connection, "everything") == quiet


@pytest.fixture(scope="module")
def everything_on_both(postgres15: PrivateServer, postgres18: PrivateServer) -> Iterator[tuple[str, str]]:
    """The database of every type on 15, and what pg_dump and pg_restore made of it on 18."""
    with fresh_database(postgres15) as old, fresh_database(postgres18) as new:
        make_everything(postgres15, old)
        binaries = server_binaries(18)
        dump: list[str | Path] = [binaries.program("pg_dump"), "--format=custom"]
        archive = subprocess.run(dump, env=client_environment(postgres15, PGDATABASE=old), capture_output=True, check=True).stdout
        restore: list[str | Path] = [binaries.program("pg_restore"), "--exit-on-error", f"--dbname={new}"]
        subprocess.run(restore, input=archive, env=client_environment(postgres18), check=True)
        yield old, new


def test_the_server_s_version_makes_no_difference(
    postgres15: PrivateServer, postgres18: PrivateServer, everything_on_both: tuple[str, str]
) -> None:
    old, new = everything_on_both
    with measuring(postgres15, old) as there, measuring(postgres18, new) as here:
        assert figures_of(there, "everything") == figures_of(here, "everything")


def test_every_type_is_in_the_hash(postgres18: PrivateServer, everything_on_both: tuple[str, str]) -> None:
    _, new = everything_on_both
    with measuring(postgres18, new) as connection:
        whole = figures_of(connection, "everything")
        for number, kind in enumerate(VALUES):
            with connection.transaction(force_rollback=True):
                connection.execute(f"UPDATE public.everything SET c{number} = NULL WHERE id = 1".encode())
                changed = figures_of(connection, "everything")
            assert changed.rows == whole.rows
            assert changed.hash != whole.hash, kind


# -- what must make a difference

anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=5,
)
awkward = st.sampled_from([None, "", "NULL", "null", "()", ",", '"', '""', "\\", "\\N", " ", "(,)", "a,b", "{}"])
COLUMNS: dict[str, st.SearchStrategy[object]] = {
    "text": awkward | anything,
    "bigint": st.none() | st.integers(-(2**63), 2**63 - 1),
    "double precision": st.none() | st.floats(),
    "numeric": st.none() | st.decimals(allow_nan=False, allow_infinity=False, places=3),
    "bytea": st.none() | st.binary(max_size=6),
    "jsonb": st.none() | json_values.map(Jsonb),
    "text[]": st.none() | st.lists(awkward | anything, max_size=3),
    "boolean": st.none() | st.booleans(),
    "date": st.none() | st.dates(),
}
rows_of_values = st.lists(st.tuples(*COLUMNS.values()), max_size=4)


@pytest.fixture(scope="module")
def scratch_table(postgres18: PrivateServer) -> Iterator[Connection]:
    """A session in a database whose table `measured` has every column of COLUMNS and no rows."""
    with fresh_database(postgres18) as database:
        columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(COLUMNS))
        sql(postgres18, database, f"CREATE TABLE measured ({columns}); CREATE TABLE others (LIKE measured)")
        with measuring(postgres18, database) as connection:
            connection.execute("SET search_path = public")  # the product's sessions search nothing
            yield connection


def inserted(connection: Connection, table: str, rows: Sequence[Sequence[object]]) -> Figures:
    """The figures of *rows* in an otherwise empty table, which is empty again afterwards."""
    with connection.transaction(force_rollback=True):
        with connection.cursor() as cursor:
            values = ", ".join(["%s"] * len(COLUMNS))
            cursor.executemany(f"INSERT INTO {table} VALUES ({values})".encode(), rows)
        return figures_of(connection, table)


def texts_of(connection: Connection, rows: Sequence[Sequence[object]]) -> list[str]:
    """Each row as the server writes it, sorted: rows are the same exactly when these are."""
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        values = ", ".join(["%s"] * len(COLUMNS))
        cursor.executemany(f"INSERT INTO others VALUES ({values})".encode(), rows)
        cursor.execute("SELECT to_jsonb(others)::text || ' ' || others::text FROM others")
        return sorted(str(text) for (text,) in cursor.fetchall())


@settings(max_examples=60)
@given(rows_of_values, rows_of_values)
@example([tuple([None] * 9)], [("", *[None] * 8)])
@example([("NULL", *[None] * 8)], [(None, *[None] * 8)])
@example([(None, None, math.nan, *[None] * 6)], [(None, None, None, *[None] * 6)])
@example([(None, None, 0.0, *[None] * 6)], [(None, None, -0.0, *[None] * 6)])
def test_other_rows_have_another_hash(
    scratch_table: Connection, one: list[tuple[object, ...]], other: list[tuple[object, ...]]
) -> None:
    same = texts_of(scratch_table, one) == texts_of(scratch_table, other)
    assert (inserted(scratch_table, "measured", one) == inserted(scratch_table, "measured", other)) == same


@settings(max_examples=60)
@given(rows_of_values.filter(bool), st.data())
def test_one_other_value_makes_another_hash(
    scratch_table: Connection, rows: list[tuple[object, ...]], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, len(COLUMNS) - 1))
    value = data.draw(list(COLUMNS.values())[column])
    changed = [list(row) for row in rows]
    changed[place][column] = value
    assume(texts_of(scratch_table, changed) != texts_of(scratch_table, rows))
    before, after = inserted(scratch_table, "measured", rows), inserted(scratch_table, "measured", changed)
    assert before.rows == after.rows
    assert before.hash != after.hash


@settings(max_examples=30)
@given(rows_of_values, st.randoms(use_true_random=False))
def test_the_same_rows_in_another_order_have_the_same_hash(
    scratch_table: Connection, rows: list[tuple[object, ...]], random: object
) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    assert inserted(scratch_table, "measured", rows) == inserted(scratch_table, "measured", shuffled)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("('a', 'b'), ('c', 'd')", "('a', 'd'), ('c', 'b')"),
        ("('a', 'b')", "('b', 'a')"),
        ("('a,b', NULL)", "('a', 'b')"),
        ("('a', NULL)", "(NULL, 'a')"),
        ("('', NULL)", "(NULL, '')"),
        ("('a', 'a'), ('a', 'a')", "('b', 'b'), ('b', 'b')"),
        ("('a', 'a'), ('a', 'a'), ('b', 'b')", "('a', 'a'), ('b', 'b'), ('b', 'b')"),
        ("('a', 'é')", "('a', 'e\u0301')"),
        ("('a', 'b ')", "('a', 'b')"),
    ],
)
def test_rows_that_are_easily_confused(postgres18: PrivateServer, one: str, other: str) -> None:
    with fresh_database(postgres18) as database:
        sql(postgres18, database, f"CREATE TABLE a (x text, y text); INSERT INTO a VALUES {one}")
        sql(postgres18, database, f"CREATE TABLE b (x text, y text); INSERT INTO b VALUES {other}")
        with measuring(postgres18, database) as connection:
            first, second = figures_of(connection, "a"), figures_of(connection, "b")
    assert first.rows == second.rows
    assert first.hash != second.hash


# -- which rows


def test_only_the_table_s_own_rows_that_the_condition_lets_through(postgres: PrivateServer, database: str) -> None:
    sql(
        postgres,
        database,
        'CREATE TABLE "p ""%s""" ("id %" int, t text); CREATE TABLE child () INHERITS ("p ""%s""");'
        ' INSERT INTO "p ""%s""" SELECT n, NULL FROM generate_series(1, 10) n; INSERT INTO child VALUES (99)',
    )
    with measuring(postgres, database) as connection:
        assert figures_of(connection, 'p "%s"').rows == 10
        few = figures_of(connection, 'p "%s"', condition='WHERE "p ""%s"""."id %" % 5 = 0')
        assert few.rows == 2
        assert few.hash != figures_of(connection, 'p "%s"').hash


def test_tables_without_columns_and_without_rows(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "CREATE TABLE nothing (); CREATE TABLE zero (); CREATE TABLE empty (a int)")
    sql(postgres, database, "INSERT INTO zero DEFAULT VALUES")
    with measuring(postgres, database) as connection:
        assert figures_of(connection, "nothing") == figures_of(connection, "empty") == Figures(0, "0")
        assert figures_of(connection, "zero").rows == 1


def test_as_many_columns_as_a_table_can_have(postgres18: PrivateServer) -> None:
    with fresh_database(postgres18) as database:
        columns = ", ".join(f'"c {number}" bool' for number in range(1600))
        sql(postgres18, database, f"CREATE TABLE wide ({columns}); INSERT INTO wide VALUES (true), (false)")
        with measuring(postgres18, database) as connection:
            assert figures_of(connection, "wide").rows == 2


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_text_of_another_encoding(postgres: PrivateServer, encoding: str) -> None:
    name = f"hashed_{encoding.lower()}"
    sql(postgres, "postgres", f"CREATE DATABASE {name} TEMPLATE template0 ENCODING {encoding} LOCALE 'C'")
    try:
        sql(postgres, name, "CREATE TABLE a (t text); CREATE TABLE b (t text)")
        sql(postgres, name, "SET client_encoding = 'LATIN1'; INSERT INTO a VALUES (convert_from('\\xe9', getdatabaseencoding()))")
        sql(postgres, name, "SET client_encoding = 'LATIN1'; INSERT INTO b VALUES (convert_from('\\xe8', getdatabaseencoding()))")
        with measuring(postgres, name) as connection:
            assert figures_of(connection, "a").hash != figures_of(connection, "b").hash
    finally:
        sql(postgres, "postgres", f"DROP DATABASE {name}")


@pytest.mark.rule(83)
def test_hidden_rows_are_an_error(postgres: PrivateServer) -> None:
    with fresh_role(postgres) as role, fresh_database(postgres) as database:
        sql(postgres, database, f"CREATE TABLE a (); ALTER TABLE a ENABLE ROW LEVEL SECURITY; GRANT SELECT ON a TO {role}")
        with measuring(postgres, database, user=role) as connection, pytest.raises(AccessError, match="row-level security"):
            measure_table(connection, "public", "a", None, hashed=False)


def test_a_table_that_is_gone_is_named(postgres: PrivateServer, database: str) -> None:
    with measuring(postgres, database) as connection:
        for hashed in (False, True):
            with pytest.raises(ServerError, match=r"counting the rows of public\.gone: .*does not exist"):
                measure_table(connection, "public", "gone", None, hashed=hashed)


# -- the other figures


def test_large_objects_are_counted(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "SELECT lo_from_bytea(0, 'x') FROM generate_series(1, 3)")
    with measuring(postgres, database) as connection:
        assert measure_large_objects(connection, hashed=False) == Figures(3)


def test_large_objects_are_hashed_by_content(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "SELECT lo_from_bytea(4711, 'precious')")
    with measuring(postgres, database) as connection:
        before = measure_large_objects(connection, hashed=True)
        connection.execute("SELECT lo_put(4711, 0, 'PRECIOUS')")
        changed = measure_large_objects(connection, hashed=True)
        connection.execute("SELECT lo_put(4711, 0, 'precious')")
        assert measure_large_objects(connection, hashed=True) == before
    assert before.hash is not None
    assert (changed.rows, changed.hash != before.hash) == (before.rows, True)


def test_sequences_are_read(postgres: PrivateServer, database: str) -> None:
    sql(
        postgres,
        database,
        "CREATE SEQUENCE \"a \"\"%s\"; CREATE SEQUENCE down INCREMENT -1; SELECT nextval('down'), nextval('down')",
    )
    with measuring(postgres, database) as connection:
        assert read_sequence(connection, "public", 'a "%s') == (1, False)
        assert read_sequence(connection, "public", "down") == (-2, True)
        with pytest.raises(ServerError, match=r"reading the sequence public\.gone"):
            read_sequence(connection, "public", "gone")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "SELECT 1, NULL, 'é', 1.50, true, '{}'::int[], '2026-01-01'::date",
            ["1", None, "é", "1.50", "True", "[]", "2026-01-01"],
        ),
        ("SELECT n FROM generate_series(5, 9) n", ["5"]),
        ("SELECT 1 WHERE false", []),
        ("SELECT '100%', '%s %(a)s'", ["100%", "%s %(a)s"]),
        ("SELECT count(*) FROM gone", None),
        ("SELECT gone FROM there", None),
        ("SELECT gone()", None),
        ("SELECT 1 FROM aside.there", None),
        ("SELECT 'x'::gone", None),
    ],
)
def test_validation_queries_are_answered(
    postgres: PrivateServer, database: str, statement: str, expected: list[str | None] | None
) -> None:
    sql(postgres, database, "CREATE TABLE there ()")
    with measuring(postgres, database) as connection:
        assert answer(connection, "the query", statement, "public") == expected
        with connection.transaction():
            assert answer(connection, "the query", statement, "public") == expected
            assert answer(connection, "another", "SELECT 2", "") == ["2"], "a failed query ended the snapshot's transaction"


def test_a_validation_query_sees_the_schemas_that_the_role_searches(postgres: PrivateServer, database: str) -> None:
    sql(
        postgres, database, f"CREATE SCHEMA aside; CREATE TABLE aside.clips (); ALTER DATABASE {database} SET search_path = aside"
    )
    with measuring(postgres, database) as connection:
        figures_of(connection, "clips", schema="aside")
        assert own_search_path(connection) == "aside"
        assert answer(connection, "clips", "SELECT count(*) FROM clips", "aside") == ["0"]
        assert answer(connection, "clips", "SELECT count(*) FROM clips", "public") is None
        assert sql_of(connection, "SHOW search_path") == "", "the session searches a schema after the query"


def sql_of(connection: Connection, statement: LiteralString) -> object:
    ((value,),) = connection.execute(statement).fetchall()
    return value


def test_a_query_with_a_million_rows_costs_one(postgres: PrivateServer, database: str) -> None:
    """Its first row is all that is read, by a cursor of the server."""
    with measuring(postgres, database) as connection:
        assert answer(connection, "many", "SELECT n FROM generate_series(1, 1000000) n", "") == ["1"]
        assert sql_of(connection, "SELECT count(*) FROM pg_cursors") == 0


def test_only_a_table_is_one(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "CREATE TABLE a (); CREATE VIEW v AS SELECT 1; CREATE TABLE p (n int) PARTITION BY LIST (n)")
    with measuring(postgres, database) as connection:
        assert [is_table(connection, "public", name) for name in ("a", "v", "p", "gone")] == [True, False, True, False]


def test_the_functions_of_a_databases_owner_do_not_run_in_our_sessions(postgres: PrivateServer, database: str) -> None:
    """Whoever owns a database may name his functions like PostgreSQL's, and have them searched first."""
    sql(
        postgres,
        database,
        "CREATE TABLE caught (by text); CREATE TABLE t AS SELECT 1 AS n;"
        "CREATE FUNCTION public.trap(what text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'the trap was run as %: %', current_user, what; END $$;"
        "CREATE FUNCTION public.shobj_description(oid, text) RETURNS text LANGUAGE sql AS $$ SELECT public.trap('comment') $$;"
        "CREATE FUNCTION public.format(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT public.trap('format') $$;"
        "CREATE FUNCTION public.current_database() RETURNS name LANGUAGE sql AS $$ SELECT public.trap('name')::name $$;"
        "CREATE VIEW public.pg_class AS SELECT public.trap('catalog');"
        f"ALTER DATABASE {database} SET search_path = public, pg_catalog",
    )
    with measuring(postgres, database) as connection:
        major = connection.info.server_version // 10000
        assert database_properties(connection, major).comment is None
        assert used_collations(connection) is not None
        assert figures_of(connection, "t").rows == 1
        assert is_table(connection, "public", "t")


def test_a_validation_query_that_fails_is_named(postgres: PrivateServer, database: str) -> None:
    with measuring(postgres, database) as connection:
        with connection.transaction(), pytest.raises(ServerError, match="validation query 'ratio': division by zero"):
            answer(connection, "ratio", "SELECT 1 / 0", "")
        with fresh_role(postgres) as role:
            sql(postgres, database, "CREATE TABLE closed ()")
            with (
                measuring(postgres, database, user=role) as theirs,
                pytest.raises(AccessError, match="validation query 'closed'"),
            ):
                answer(theirs, "closed", "SELECT count(*) FROM closed", "public")


def test_what_is_missing_is_found(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, 'CREATE TABLE a (); CREATE SCHEMA "b.c"; CREATE SEQUENCE "b.c"."d""e"; CREATE VIEW v AS SELECT 1')
    wanted = [("public", "a"), ("b.c", 'd"e'), ("public", "v"), ("public", "A"), ("b.c", "a"), ("b", "c.d")]
    with measuring(postgres, database) as connection:
        assert missing_relations(connection, wanted) == {("public", "A"), ("b.c", "a"), ("b", "c.d")}
        assert missing_relations(connection, []) == set()


def test_the_session_refuses_to_measure_when_it_was_ended(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "CREATE TABLE a ()")
    with measuring(postgres, database) as connection:
        sql(postgres, "postgres", f"SELECT pg_terminate_backend({connection.info.backend_pid}, 5000)")
        with pytest.raises(ServerError, match=r"counting the rows of public\.a"):
            measure_table(connection, "public", "a", None, hashed=True)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
