"""Logins that fail in every way there is, and sessions that nothing ends."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql as compose

from clipper_backup.errors import AccessError, ClipperError, MissingError, ServerError, exit_code_of
from clipper_backup.postgres.connection import Connection, Login, connect, dbname_argument, query_error, rows, translated
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import Secret
from fixtures.postgres import FAST, PASSWORD, fresh_database, fresh_role, login_to, private_folder, server_binaries, sql

WRONG = "hunter2 'secret' pass=word"
NO_PASSFILE = {"passfile": "/dev/null"}


def over_tcp(server: PrivateServer, password: str | None, **changed: str) -> Login:
    keywords = {keyword: value for keyword, value in server.tcp_connection().items() if keyword != "dbname"}
    return Login(keywords | NO_PASSFILE | changed, None if password is None else Secret(password))


def refused(login: Login, database: str | None = "postgres") -> ClipperError:
    """The error of a login that must fail; it says where, and shows no password."""
    with pytest.raises(ClipperError) as raised:
        connect(login, database)
    shown = f"{raised.value} {raised.value.hints} {raised.value!r} {login!r}"
    assert WRONG not in shown
    assert PASSWORD not in shown
    assert login.keywords["host"] in str(raised.value)
    assert raised.value.hints
    assert "\n" not in str(raised.value)
    return raised.value


def check(error: ClipperError, kind: type[ClipperError], exit_code: int, words: str) -> None:
    assert type(error) is kind
    assert exit_code_of(error) == exit_code
    assert words in str(error)


# -- the login


def test_the_right_password_opens_it(postgres: PrivateServer) -> None:
    with closing(connect(over_tcp(postgres, PASSWORD), "postgres")) as connection:
        assert rows(connection, "SELECT host(inet_server_addr())") == [("127.0.0.1",)]


def test_a_wrong_password(postgres: PrivateServer) -> None:
    check(refused(over_tcp(postgres, WRONG)), AccessError, 12, "password authentication failed for user")


def test_no_password(postgres18: PrivateServer) -> None:
    error = refused(over_tcp(postgres18, None))
    check(error, AccessError, 12, "refused the login: it asks for a password and none was supplied")
    assert "PGPASSFILE" in error.hints[0]


def test_an_unknown_role(postgres: PrivateServer) -> None:
    check(refused(login_to(postgres, user="no such")), AccessError, 12, 'role "no such" does not exist')


def test_a_role_that_may_not_log_in(postgres: PrivateServer) -> None:
    with fresh_role(postgres, "NOLOGIN") as role:
        check(refused(login_to(postgres, user=role)), AccessError, 12, f'role "{role}" is not permitted to log in')


def test_a_database_that_the_role_may_not_enter(postgres: PrivateServer) -> None:
    with fresh_role(postgres) as role, fresh_database(postgres) as name:
        sql(postgres, "postgres", f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
        error = refused(login_to(postgres, user=role), name)
    check(error, AccessError, 12, f'permission denied for database "{name}"')


def test_a_password_that_looks_like_a_connection_string_is_only_a_password(postgres18: PrivateServer) -> None:
    with fresh_role(postgres18, "LOGIN PASSWORD 'x'' host=elsewhere \\ =\"'") as role:
        login = over_tcp(postgres18, "x' host=elsewhere \\ =\"", user=role)
        with closing(connect(login, "postgres")) as connection:
            assert rows(connection, "SELECT current_user::text") == [(role,)]


@pytest.fixture(scope="module")
def closed_server() -> Iterator[PrivateServer]:
    """A server of whose databases postgres is missing, and that lets nobody in over TCP."""
    with (
        private_folder() as folder,
        PrivateServer(folder / "server", server_binaries(18), environment=os.environ, port=0, settings=FAST) as server,
    ):
        server.initdb(sync=False)
        server.start()
        sql(server, "template1", "DROP DATABASE postgres")
        yield server


def test_a_server_that_rejects_by_its_rules(closed_server: PrivateServer) -> None:
    check(refused(over_tcp(closed_server, WRONG), "template1"), AccessError, 12, "pg_hba.conf rejects connection")


# -- the host


def test_nobody_listens_there() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        login = Login({"host": "127.0.0.1", "port": str(reserved.getsockname()[1])} | NO_PASSFILE, Secret(WRONG))
        error = refused(login)
    check(error, ServerError, 1, "cannot connect to PostgreSQL on 127.0.0.1:")
    assert "pg_isready" in error.hints[0]


def test_a_socket_folder_that_does_not_exist() -> None:
    check(refused(Login({"host": "/no/such/folder"})), ServerError, 1, "No such file or directory")


def test_something_else_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            visitor, _ = listener.accept()
            with visitor:
                visitor.recv(100)
                visitor.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        listening = threading.Thread(target=hang_up)
        listening.start()
        port = str(listener.getsockname()[1])
        check(refused(Login({"host": "127.0.0.1", "port": port, "sslmode": "disable"})), ServerError, 1, f"127.0.0.1:{port}")
        listening.join()


def test_encryption_that_the_server_does_not_have(postgres: PrivateServer) -> None:
    error = refused(over_tcp(postgres, WRONG, sslmode="require"))
    check(error, ServerError, 1, "SSL")
    assert "PGSSLMODE" in error.hints[0]
    assert "pg_isready" not in error.hints[0], "it runs"


@pytest.mark.parametrize(("name", "value", "words"), [
    ("PGSERVICE", "nope", "definition of service"),
    ("PGSERVICEFILE", "/no/such/file", "service file"),
    ("PGCHANNELBINDING", "nope", "invalid channel_binding value"),
])  # fmt: skip
def test_a_variable_that_libpq_does_not_take_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv("PGSERVICE", "any")
    if name == "PGCHANNELBINDING":
        monkeypatch.delenv("PGSERVICE")
    monkeypatch.setenv(name, value)
    error = refused(Login({"host": "127.0.0.1"} | NO_PASSFILE))
    check(error, ServerError, 1, words)
    assert ("PGSERVICE" if "SERVICE" in name else "env | grep ^PG") in error.hints[0]
    assert "pg_isready" not in error.hints[0], "nothing was asked"


def test_the_setting_that_named_a_database_which_is_not_there_is_named(postgres18: PrivateServer) -> None:
    where = over_tcp(postgres18, PASSWORD)
    first = refused(Login(where.keywords, where.password, "no such"), None)
    check(first, MissingError, 15, "database 'no such' does not exist")
    assert "PGDATABASE" in first.hints[0]
    assert "BACKUP_DATABASES" in refused(where, "no such").hints[0]


def test_a_full_server_is_no_refused_login(postgres: PrivateServer) -> None:
    with fresh_role(postgres, "LOGIN CONNECTION LIMIT 0") as role:
        check(refused(login_to(postgres, user=role)), ServerError, 1, "too many connections for role")


# -- the database

NAMES = [
    "a=b",
    "dbname=postgres host=elsewhere",
    "postgresql://elsewhere/x",
    "quo'te\"d",
    "two  spaces",
    "new\nline",
    "back\\slash",
    "Größe 🦊",
    "-U",
    "100% ./..",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_called_what_it_is_called(postgres18: PrivateServer, name: str) -> None:
    login = login_to(postgres18)
    missing = refused(login, name)
    check(missing, MissingError, 15, f"database {name!r} does not exist")
    sql(postgres18, "postgres", compose.SQL("CREATE DATABASE {}").format(compose.Identifier(name)))
    try:
        for by_dbname in (login, Login(login.keywords, dbname=name)):
            with closing(connect(by_dbname, None if by_dbname.dbname else name)) as connection:
                assert rows(connection, "SELECT current_database()::text") == [(name,)]
        for options, environment in (
            ([dbname_argument(name)], login.environment()),
            ([], login.environment(name)),
        ):
            command: list[str | Path] = [server_binaries(18).program("psql"), "-XAtc", "SELECT current_database()", *options]
            done = subprocess.run(command, env=environment, capture_output=True, check=True)
            assert done.stdout.decode() == f"{name}\n"
    finally:
        sql(postgres18, "postgres", compose.SQL("DROP DATABASE {}").format(compose.Identifier(name)))


def test_a_database_that_accepts_nobody(postgres: PrivateServer, database: str) -> None:
    sql(postgres, "postgres", f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    check(refused(login_to(postgres), database), ServerError, 1, "is not currently accepting connections")


def test_any_database_will_do(postgres18: PrivateServer, closed_server: PrivateServer) -> None:
    for server, name in ((postgres18, "postgres"), (closed_server, "template1")):
        with closing(connect(login_to(server))) as connection:
            assert rows(connection, "SELECT current_database()::text") == [(name,)]


def test_the_named_one_is_meant_when_any_will_do(postgres18: PrivateServer) -> None:
    login = Login(login_to(postgres18).keywords, dbname="no such")
    check(refused(login, None), MissingError, 15, "database 'no such' does not exist")


def test_a_refused_login_is_not_tried_on_other_databases(postgres18: PrivateServer) -> None:
    login = over_tcp(postgres18, WRONG)
    check(refused(login, None), AccessError, 12, "password authentication failed")


# -- the session


def test_it_shows_who_it_is_and_commits_by_itself(postgres: PrivateServer) -> None:
    with closing(connect(login_to(postgres), "postgres")) as connection:
        assert connection.autocommit
        assert rows(connection, "SHOW application_name") == [("clipper-backup",)]
        assert connection.info.get_parameters()["keepalives_idle"] == "30"
        assert connection.info.get_parameters()["connect_timeout"] == "20"


def test_who_knows_how_long_a_login_takes_says_so(postgres: PrivateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    with closing(connect(login_to(postgres), "postgres")) as connection:
        assert connection.info.get_parameters()["connect_timeout"] == "7"
    assert Login({}).environment()["PGCONNECT_TIMEOUT"] == "7"


def test_nobody_s_functions_stand_in_for_those_of_postgresql(postgres18: PrivateServer) -> None:
    with fresh_database(postgres18) as name:
        sql(postgres18, name, "CREATE FUNCTION public.version() RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$")
        sql(postgres18, name, "CREATE TABLE public.pg_settings AS SELECT 'statement_timeout'::text AS name")
        sql(postgres18, "postgres", f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
        with closing(connect(login_to(postgres18), name)) as connection:
            assert rows(connection, "SHOW search_path") == [("",)]
            assert rows(connection, "SELECT version() LIKE 'PostgreSQL 18%', count(*) > 1 FROM pg_settings") == [(True, True)]


def test_no_time_out_of_role_or_database_ends_it(postgres18: PrivateServer) -> None:
    longer = "SELECT pg_sleep(0.6)"
    with fresh_role(postgres18) as role, fresh_database(postgres18) as name:
        for target, setting in (
            (f"ROLE {role}", "statement_timeout"),
            (f"ROLE {role}", "transaction_timeout"),
            (f"ROLE {role}", "idle_in_transaction_session_timeout"),
            (f"DATABASE {name}", "idle_session_timeout"),
            (f"ROLE {role} IN DATABASE {name}", "lock_timeout"),
        ):
            sql(postgres18, "postgres", f"ALTER {target} SET {setting} = '500ms'")
        with closing(connect(login_to(postgres18, user=role), name)) as connection:
            connection.execute("BEGIN")
            connection.execute(longer)
            sql(postgres18, "postgres", longer)  # it is idle meanwhile, in its transaction
            connection.execute("COMMIT")
            sql(postgres18, "postgres", longer)  # and outside of it
            assert rows(connection, "SELECT current_user::text, current_setting('lock_timeout')") == [(role, "0")]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_text_is_text_whatever_the_database_s_encoding(postgres: PrivateServer, encoding: str) -> None:
    name = f"encoded_{encoding.lower()}"
    sql(postgres, "postgres", f"CREATE DATABASE {name} TEMPLATE template0 ENCODING {encoding} LOCALE 'C'")
    letters = {"LATIN1": "é", "SQL_ASCII": "e", "EUC_JP": "日本"}[encoding]
    try:
        with closing(connect(login_to(postgres), name)) as connection:
            connection.execute(compose.SQL("CREATE TABLE {} ()").format(compose.Identifier("public", letters)))
            assert rows(connection, "SELECT relname, relname::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384") == [
                (letters, letters)
            ]
    finally:
        sql(postgres, "postgres", f"DROP DATABASE {name}")


# -- the environment of client programs


def test_secrets_are_in_the_environment_only() -> None:
    login = Login(
        {"host": "h", "port": "1", "user": "u", "sslmode": "require", "passfile": "p", "sslrootcert": "c"}, Secret(WRONG)
    )
    environment = login.environment("a=b")
    given = {name: value for name, value in environment.items() if name.startswith("PG")}
    assert given["PGPASSWORD"] == WRONG
    assert {given[name] for name in ("PGHOST", "PGPORT", "PGUSER", "PGSSLMODE", "PGPASSFILE", "PGSSLROOTCERT")} == set(
        login.keywords.values()
    )
    assert given["PGDATABASE"] == "a=b"
    assert environment["LC_ALL"] == "C"
    assert environment["PATH"] == os.environ["PATH"]
    assert WRONG not in repr(login)


def test_what_is_not_said_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "from the environment")
    monkeypatch.setenv("PGPASSWORD", "theirs")
    assert Login({"port": "7"}).environment()["PGHOST"] == "from the environment"
    assert Login({}).environment()["PGPASSWORD"] == "theirs"
    assert Login({}).where == "from the environment:5432"
    assert Login({"host": "h", "port": "7"}).where == "h:7"


# -- errors of statements


def error_of(connection: Connection, statement: LiteralString) -> ClipperError:
    with pytest.raises(ClipperError) as raised, translated("doing it"):
        connection.execute(statement)
    assert str(raised.value).startswith("doing it: ")
    return raised.value


def test_errors_of_statements_are_ours(postgres: PrivateServer) -> None:
    with fresh_role(postgres) as role, closing(connect(login_to(postgres, user=role), "postgres")) as connection:
        check(error_of(connection, "SELECT * FROM pg_authid"), AccessError, 12, "permission denied for table pg_authid")
        check(error_of(connection, "SELECT 1/0"), ServerError, 1, "division by zero")
        assert "\n" not in str(error_of(connection, "SELECT * FROM nothing"))


def test_a_session_that_was_ended_says_so(postgres: PrivateServer) -> None:
    with closing(connect(login_to(postgres), "postgres")) as connection:
        sql(postgres, "postgres", f"SELECT pg_terminate_backend({connection.info.backend_pid}, 5000)")
        error = error_of(connection, "SELECT 1")
    check(error, ServerError, 1, "terminating connection")


def test_a_connection_that_broke_without_a_word_says_so() -> None:
    error = query_error("doing it", psycopg.OperationalError("server closed the connection unexpectedly"))
    check(error, ServerError, 1, "doing it: the connection to PostgreSQL was lost: server closed the connection")
    assert error.hints


def test_too_many_locks_name_the_setting() -> None:
    words = "out of shared memory\nHINT:  You might need to increase max_locks_per_transaction."
    error = query_error("locking", psycopg.errors.OutOfMemory(words))
    check(error, ServerError, 1, "locking: the server ran out of lock space")
    assert "max_locks_per_transaction" in error.hints[0]


def test_psycopg_says_nothing_of_its_own_to_the_terminal() -> None:
    script = "import logging, clipper_backup.postgres.connection; logging.getLogger('psycopg.transaction').warning('ignored')"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (said.stdout, said.stderr) == (b"", b"")
