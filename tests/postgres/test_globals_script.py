"""Scripts that pg_dumpall really wrote, of roles that nobody should have named so."""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql as compose

from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.connection import connect
from clipper_backup.postgres.globals_script import Globals, parse, sort_statements, statements
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.postgres.server_facts import run_statements
from fixtures.postgres import client_environment, login_to, major_of, server_binaries, sql

ADMIN, APP, LABEL = "gs admin", "gs app", "gs IN DATABASE postgres"
NAMES = [
    *(ADMIN, APP, LABEL),
    'gs "quoted"; -- x',
    "gs it's; DROP TABLE x; --",
    "gs Größe 🦊",
    "gs back\\slash",
    "gs new\nline",
    "gs new\n\\restrict abc",
    "gs new\n-- PostgreSQL database cluster dump complete",
    "GS",
    "gs_" + "é" * 30,
    "gs select",
    "gs_plain",
]
COMMENTS = [
    "one; two",
    "line 1\n-- line 2\n\\restrict abc\n\\unrestrict abc\n;",
    "\n-- PostgreSQL database cluster dump complete\n--\n\n",
    "'quoted' \"too\" \\ $$ E'x",
    "\\",
]


def quoted(name: str) -> str:
    return compose.Identifier(name).as_string()


def literal(text: str) -> str:
    return compose.Literal(text).as_string()


def drop_everything(server: PrivateServer) -> None:
    names = [name for (name,) in sql(server, "postgres", "SELECT rolname FROM pg_roles WHERE rolname ~* '^gs'")]
    for name in names:
        sql(server, "postgres", f"DROP OWNED BY {quoted(name)} CASCADE")
    for name in names:
        sql(server, "postgres", f"DROP ROLE {quoted(name)}")
    sql(server, "postgres", 'DROP TABLESPACE IF EXISTS "gs slow; disk"')


@contextlib.contextmanager
def nasty_globals(server: PrivateServer, major: int) -> Iterator[None]:
    """Roles with everything that a role can have; all are gone at the end."""
    run = [f"CREATE ROLE {quoted(name)}" for name in NAMES]
    run += [f"COMMENT ON ROLE {quoted(name)} IS {literal(text)}" for name, text in zip(NAMES, COMMENTS, strict=False)]
    run += [
        f"ALTER ROLE {quoted(APP)} LOGIN PASSWORD 'semi;colon '' -- quote' CONNECTION LIMIT 3 VALID UNTIL '2030-01-02 03:04+05'",
        f"ALTER ROLE {quoted(ADMIN)} SUPERUSER CREATEROLE CREATEDB REPLICATION BYPASSRLS NOINHERIT",
        f"ALTER ROLE {quoted(LABEL)} LOGIN",
        f"ALTER ROLE {quoted(LABEL)} SET search_path TO 'a b', \"$user\", public",
        f"ALTER ROLE {quoted(APP)} SET \"gs.setting\" TO 'a; b -- ''c''\n\\restrict d'",
        f"ALTER ROLE {quoted(APP)} SET statement_timeout TO '5min'",
        f"ALTER ROLE {quoted(APP)} IN DATABASE postgres SET work_mem TO '9MB'",
        f"GRANT {quoted(LABEL)} TO {quoted('gs Größe 🦊')} WITH ADMIN OPTION",
        f'GRANT {quoted(APP)} TO {quoted(LABEL)}, "GS"',
        f"SET ROLE {quoted('gs Größe 🦊')}",
        f"GRANT {quoted(LABEL)} TO {quoted('gs new' + chr(10) + 'line')}",
        "RESET ROLE",
        f"GRANT SET, ALTER SYSTEM ON PARAMETER log_statement TO {quoted(LABEL)} WITH GRANT OPTION",
        f"GRANT SET ON PARAMETER log_duration TO {quoted(APP)}",
        "SET allow_in_place_tablespaces = on",
        "CREATE TABLESPACE \"gs slow; disk\" LOCATION ''",
    ]
    if major >= 16:
        run.append(f"GRANT {quoted(ADMIN)} TO {quoted(APP)} WITH INHERIT FALSE, SET FALSE, ADMIN TRUE")
    try:
        with contextlib.closing(connect(login_to(server))) as connection:
            for statement in run:  # each by itself: a tablespace is not made inside a transaction
                connection.execute(statement.encode())
        yield
    finally:
        drop_everything(server)


def globals_of(server: PrivateServer, major: int) -> str:
    program = server_binaries(major).program("pg_dumpall")
    done = subprocess.run([program, "--globals-only"], env=client_environment(server), capture_output=True, check=True)
    return done.stdout.decode()


def state(server: PrivateServer, major: int) -> dict[str, list[Any]]:
    """Everything the roles have, by the server's own catalogs."""
    options = ", inherit_option, set_option" if major >= 16 else ""
    queries = {
        "roles": "SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,"
        " rolconnlimit, rolpassword, rolvaliduntil, shobj_description(oid, 'pg_authid') FROM pg_authid WHERE rolname ~* '^gs'",
        "memberships": f"SELECT roleid::regrole::text, member::regrole::text, admin_option {options} FROM pg_auth_members"
        " WHERE roleid::regrole::text ~* '^\"?gs'",
        "settings": "SELECT setrole::regrole::text, unnest(setconfig) FROM pg_db_role_setting"
        " WHERE setdatabase = 0 AND setrole <> 0",
        "parameters": "SELECT parname, a.grantee::regrole::text, a.privilege_type, a.is_grantable FROM pg_parameter_acl,"
        " aclexplode(paracl) a WHERE a.grantee::regrole::text ~* '^\"?gs'",
    }
    return {what: sorted(sql(server, "postgres", query), key=repr) for what, query in queries.items()}


def replay(server: PrivateServer, found: Globals) -> None:
    """What a restore into a cluster without these roles does."""
    with contextlib.closing(connect(login_to(server))) as connection:
        connection.execute("SET log_statement = 'all'")
        missing = [name for name in found.roles if name.lower().startswith("gs")]
        statements = [statement for name in missing for statement in found.roles[name]]
        statements += [s for granted, member, s in found.memberships if {granted, member} & set(missing)]
        assert run_statements(connection, statements) == []


# -- real scripts


def test_a_cluster_gets_back_exactly_the_roles_it_had(postgres: PrivateServer) -> None:
    major = major_of(postgres)
    with nasty_globals(postgres, major):
        before = state(postgres, major)
        script = globals_of(postgres, major)
        found = parse(script)
        assert {name for name in found.roles if name.lower().startswith("gs")} == set(NAMES)
        assert len(before["memberships"]) == (5 if major >= 16 else 4)
        assert len(before["settings"]) == 3
        assert "gs slow; disk" in found.tablespaces
        drop_everything(postgres)
        assert state(postgres, major)["roles"] == []
        replay(postgres, found)
        assert state(postgres, major) == before


def test_the_roles_of_an_older_server_fit_a_newer_one(postgres15: PrivateServer, postgres18: PrivateServer) -> None:
    with nasty_globals(postgres15, 15):
        before = state(postgres15, 15)
        found = parse(globals_of(postgres15, 15))
    try:
        replay(postgres18, found)
        assert state(postgres18, 15) == before
    finally:
        drop_everything(postgres18)


@pytest.mark.rule(84)
def test_psql_s_own_commands_never_reach_the_server(postgres: PrivateServer) -> None:
    major = major_of(postgres)
    with nasty_globals(postgres, major):
        script = globals_of(postgres, major)
        drop_everything(postgres)
        lines = script.split("\n")
        keys = [line.split(" ")[1] for line in lines if line.startswith(("\\restrict ", "\\unrestrict "))]
        assert len(set(keys) - {"abc", 'abc"', 'abc";'}) == 1, "this pg_dumpall writes no \\restrict: nothing is shown here"
        (key,) = set(keys) - {"abc", 'abc"', 'abc";'}
        logged = postgres.log.stat().st_size
        replay(postgres, parse(script))
    with postgres.log.open(errors="replace") as log:
        log.seek(logged)
        said = log.read()
    assert "CREATE ROLE gs_plain" in said
    assert key not in said


def test_a_script_that_was_cut_anywhere_is_refused(postgres18: PrivateServer) -> None:
    with nasty_globals(postgres18, 18):
        script = globals_of(postgres18, 18).rstrip()
    parse(script)
    for length in range(len(script)):
        with pytest.raises(IntegrityError, match="the globals end"):
            parse(script[:length])


# -- scripts of our own

words = st.sampled_from(["CREATE ROLE", "gs", "IS", "WITH", "(", ",", "=", "\n", "$$"])
strings = st.text("ab'\\;\n-\"é").map(lambda text: "'" + text.replace("'", "''") + "'")
escaped = st.text("ab'\\;\n-\"é").map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'")
identifiers = st.text("ab'\\;\n-\"é", min_size=1).map(lambda text: '"' + text.replace('"', '""') + '"')
statement_texts = st.lists(words | strings | escaped | identifiers, min_size=1).map(
    lambda parts: " ".join(["SELECT", *parts]).strip()
)
comments = st.text("ab'\\;-\"é $", max_size=20).map(lambda text: f"--{text}\n")
commands = st.sampled_from(["\\restrict abcDEF\n", "\\unrestrict abc;'\"\n", "\n", ""])


@given(st.lists(st.tuples(statement_texts, st.lists(comments | commands))))
@example([("SELECT '\n\\restrict x\n'", ["\\restrict x\n"])])
@example([("SELECT 'it''s; -- no comment'", ["-- it's\n", '--; "\n']), ('SELECT "a;""b"', [])])
@example([("SELECT E'\\\\' ", ["-- '\n"])])
def test_statements_are_told_apart_whatever_is_quoted_in_them(written: list[tuple[str, list[str]]]) -> None:
    script = "".join(f"{statement};\n{''.join(between)}" for statement, between in written)
    assert list(statements(script)) == [statement.strip() for statement, _ in written]


@pytest.mark.parametrize("rest", ["SELECT 1", "SELECT 'it;", 'SELECT "a;', "SELECT E'\\'; --"])
def test_an_unfinished_statement_is_no_end(rest: str) -> None:
    with pytest.raises(IntegrityError, match="the globals end in the middle of a statement"):
        list(statements(f"SELECT 1;\n{rest}"))


def test_statements_are_sorted_by_what_they_are_about() -> None:
    found = sort_statements(
        [
            "SET default_transaction_read_only = off",
            "SELECT pg_catalog.set_config('search_path', '', false)",
            "CREATE ROLE a",
            "ALTER ROLE a WITH LOGIN",
            'CREATE ROLE "B ""b"""',
            "COMMENT ON ROLE a IS 'x'",
            'SECURITY LABEL FOR selinux ON ROLE "B ""b""" IS \'y\'',
            "ALTER ROLE a SET work_mem TO '1MB'",
            "ALTER ROLE a IN DATABASE b SET work_mem TO '1MB'",
            "GRANT SET ON PARAMETER log_duration TO PUBLIC",
            'GRANT ALL ON PARAMETER "my.own" TO a WITH GRANT OPTION',
            'GRANT a TO "B ""b""" WITH ADMIN OPTION GRANTED BY a',
            "GRANT a TO c WITH ADMIN OPTION, INHERIT TRUE, SET FALSE GRANTED BY postgres",
            "GRANT a TO d",
            "CREATE TABLESPACE \"fast disk\" OWNER a LOCATION '/mnt; x'",
            "CREATE DATABASE b",
        ]
    )
    assert found == Globals(
        roles={
            "a": [
                "CREATE ROLE a",
                "ALTER ROLE a WITH LOGIN",
                "COMMENT ON ROLE a IS 'x'",
                "ALTER ROLE a SET work_mem TO '1MB'",
                'GRANT ALL ON PARAMETER "my.own" TO a WITH GRANT OPTION',
            ],
            'B "b"': ['CREATE ROLE "B ""b"""', 'SECURITY LABEL FOR selinux ON ROLE "B ""b""" IS \'y\''],
        },
        memberships=[
            ("a", 'B "b"', 'GRANT a TO "B ""b""" WITH ADMIN OPTION'),
            ("a", "c", "GRANT a TO c WITH ADMIN OPTION, INHERIT TRUE, SET FALSE"),
            ("a", "d", "GRANT a TO d"),
        ],
        tablespaces=["fast disk"],
    )


@pytest.mark.parametrize("script", ["", "\n", "CREATE ROLE a;\n", "--\n-- PostgreSQL database cluster dump\n--\n"])
def test_what_lacks_the_last_line_is_refused(script: str) -> None:
    with pytest.raises(IntegrityError, match="the globals end"):
        parse(script)
