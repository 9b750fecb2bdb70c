"""Connections to PostgreSQL: how to log in, and every libpq error turned into ours in one place."""

import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import conninfo, sql
from psycopg.rows import TupleRow

from clipper_backup.errors import AccessError, ClipperError, MissingError, ServerError, UsageError
from clipper_backup.postgres.privileges import privilege_hints
from clipper_backup.values import Secret

CONNECT_TIMEOUT_SECONDS = 20
"""How long a server may take to answer a login, unless PGCONNECT_TIMEOUT says otherwise."""
MAINTENANCE_DATABASES = ("postgres", "template1")
REPLICATION = "replication"
"""What a line of pg_hba.conf says that lets replication connections in; `all` does not."""
_REPLICATION_HINT = f"a base backup needs a role with REPLICATION, and a line of pg_hba.conf with the database `{REPLICATION}`"

# Each that could end a session which works or waits for hours. transaction_timeout came with 17: the server says which it knows.
_TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)

# What it warns of on standard error is raised too, or found by whoever asks the session next.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True)
class Login:
    """Where PostgreSQL is and who we are, in libpq's own words (`host`, `port`, `user`, `sslmode` …).

    What is not said here comes from the environment's PG* variables, as for every libpq program. `dbname` is the
    database to try first when any one will do.
    """

    keywords: Mapping[str, str] = field(default_factory=dict)
    password: Secret | None = None
    dbname: str | None = None

    def environment(self, database: str | None = None) -> dict[str, str]:
        """The environment of a client program: secrets stay off its command line, its messages stay English."""
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "passfile": "PGPASSFILE", "sslmode": "PGSSLMODE",
                 "sslrootcert": "PGSSLROOTCERT"}  # fmt: skip
        environment = dict(os.environ)
        environment.update({names[keyword]: value for keyword, value in self.keywords.items()})
        if self.password is not None:
            environment["PGPASSWORD"] = self.password.reveal()
        if database is not None:
            environment["PGDATABASE"] = database
        environment.update({"PGCONNECT_TIMEOUT": _connect_timeout(), "PGAPPNAME": "clipper-backup", "LC_ALL": "C"})
        return environment

    @property
    def where(self) -> str:
        """The server, for messages."""
        host = self.keywords.get("host") or os.environ.get("PGHOST") or "the local socket"
        port = self.keywords.get("port") or os.environ.get("PGPORT") or "5432"
        return f"{host}:{port}"


def login_of_conninfo(name: str, text: Secret) -> Login:
    """The login that libpq's connection string *text* describes; UsageError, which calls it *name* and does not show it."""
    try:
        keywords = conninfo.conninfo_to_dict(text.reveal())
    except psycopg.Error:
        raise UsageError(
            f"{name} is no connection string of libpq",
            hints=["like `host=primary port=5432 user=backup`, or a postgresql:// URL"],
        ) from None
    password, dbname = keywords.pop("password", None), keywords.pop("dbname", None)
    kept = {keyword: str(value) for keyword, value in keywords.items() if value is not None}
    return Login(kept, None if password is None else Secret(str(password)), None if dbname is None else str(dbname))


def _connect_timeout() -> str:
    return os.environ.get("PGCONNECT_TIMEOUT") or str(CONNECT_TIMEOUT_SECONDS)


def dbname_argument(database: str) -> str:
    """`--dbname` for a client program: a connection string, since a bare name with `=` in it would be taken for one."""
    return "--dbname=" + conninfo.make_conninfo(dbname=database)


def connect(login: Login, database: str | None = None) -> Connection:
    """Open an autocommit connection; without *database* to the first of dbname, postgres and template1 that exists.

    No time-out that was set for the role, the database or the server ends the session, its text is UTF-8, and no schema but
    pg_catalog is searched.
    AccessError when the login is refused, MissingError when the database does not exist, ServerError otherwise.
    """
    if database is not None:
        return _connect(login, database)
    candidates = ([login.dbname] if login.dbname else []) + [n for n in MAINTENANCE_DATABASES if n != login.dbname]
    for candidate in candidates[:-1]:
        try:
            return _connect(login, candidate)
        except MissingError:
            if candidate == login.dbname:
                raise
    return _connect(login, candidates[-1])


def connect_replication(login: Login) -> Connection:
    """Open a connection for replication commands: no SQL, `psycopg.pq` alone.

    AccessError when the login is refused, ServerError otherwise.
    """
    settings = " ".join(f"-c {name}=0" for name in ("statement_timeout", "idle_session_timeout"))
    return _open(login, REPLICATION, replication="yes", options=settings)


def _connect(login: Login, database: str) -> Connection:
    connection = _open(login, database)
    try:
        with translated(f"preparing a session in database {database}"):
            connection.execute("SET statement_timeout = 0")  # first: the next statement would be under it
            # Whoever owns the database may have set its path to schemas with functions of his own, named like PostgreSQL's:
            # they would run as us, who may be a superuser (CVE-2018-1058). pg_dump does the same.
            connection.execute("SELECT pg_catalog.set_config('search_path', '', false)")
            connection.execute("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = ANY(%s)", [list(_TIMEOUTS)])
    except BaseException:
        connection.close()
        raise
    return connection


def _open(login: Login, database: str, **more: str) -> Connection:
    keywords: dict[str, Any] = {**login.keywords, **more, "dbname": database, "connect_timeout": _connect_timeout()}
    keywords["application_name"] = "clipper-backup"
    # Whatever the database's own encoding: names are the same on every side, and SQL_ASCII ones are no bytes.
    keywords["client_encoding"] = "UTF8"
    # A snapshot's session is silent for as long as pg_dump runs; load balancers forget such connections within minutes.
    keywords.update({"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 6})
    if login.password is not None:
        keywords["password"] = login.password.reveal()
    try:
        return psycopg.connect(**keywords, autocommit=True)
    except psycopg.Error as error:
        raise _connect_error(login, database, error) from error
    except BaseException as error:
        # A half-made connection lives on in psycopg's frames for as long as the signal's exception does. Its session, which
        # waits for our password, would hold up the DROP DATABASE of whoever cleans up until authentication_timeout.
        traceback.clear_frames(error.__traceback__)
        raise


_REFUSED_LOGIN = (
    "authentication failed",
    "no pg_hba.conf entry",
    "pg_hba.conf rejects",
    "is not permitted to log in",
    "walsender",
    "WAL sender",
)

# Words of libpq, and the variables that they are about. It says `connection is bad` of what it does not even try.
_WRONG_SETTINGS = (
    (r"definition of service|service file", "PGSERVICE, and PGSERVICEFILE with the file that says what it means"),
    (r"support SSL|certificate|SSL error|sslmode|sslrootcert|sslnegotiation", "PGSSLMODE, PGSSLROOTCERT and PGSSLCERT"),
    (r"connection is bad: (?!connection to server)", "the variables that begin with PG: `env | grep ^PG` shows those set here"),
)


def _connect_error(login: Login, database: str, error: psycopg.Error) -> ClipperError:
    # libpq gives no SQLSTATE for a refused connection, so its words have to do; an unknown wording is a ServerError.
    words = " ".join(str(error).split())
    if f'database "{database}" does not exist' in str(error):
        return MissingError(
            f"database {database!r} does not exist on {login.where}",
            hints=[f"`psql -l` lists the databases; check {'PGDATABASE' if database == login.dbname else 'BACKUP_DATABASES'}"],
        )
    if "no password supplied" in words:
        return AccessError(
            f"PostgreSQL on {login.where} refused the login: it asks for a password and none was supplied",
            hints=["set PGPASSWORD, or PGPASSFILE to a file with a line for this host, port, database and user"],
        )
    if (
        "permission denied for database" in words
        or any(part in words for part in _REFUSED_LOGIN)
        or ("role " in words and "does not exist" in words)
    ):
        return AccessError(
            f"PostgreSQL on {login.where} refused the login: {_last_part(words)}",
            hints=[
                "check PGUSER and PGPASSWORD (or PGPASSFILE), and the server's pg_hba.conf",
                *([_REPLICATION_HINT] if database == REPLICATION else []),
            ],
        )
    wrong = next((variables for pattern, variables in _WRONG_SETTINGS if re.search(pattern, words)), None)
    usual = "check PGHOST and PGPORT, and that the server is running: `pg_isready` asks it"
    return ServerError(
        f"cannot connect to PostgreSQL on {login.where}: {_last_part(words)}",
        hints=[usual if wrong is None else f"check {wrong}"],
    )


def _last_part(words: str) -> str:
    _, _, fatal = words.rpartition("FATAL: ")
    return fatal.strip() or words


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn psycopg's errors into ours; *doing* says what was going on (`counting the rows of …`)."""
    try:
        yield
    except psycopg.Error as error:
        raise query_error(doing, error) from error


def query_error(doing: str, error: psycopg.Error) -> ClipperError:
    """Our error for a failed statement."""
    words = " ".join(str(error).split()) or "the connection was lost"
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return AccessError(f"{doing}: {words}", hints=privilege_hints(words))
    if isinstance(error, psycopg.errors.OutOfMemory) and "max_locks_per_transaction" in str(error):
        return ServerError(
            f"{doing}: the server ran out of lock space", hints=["raise max_locks_per_transaction (needs a restart)"]
        )
    if isinstance(error, psycopg.OperationalError) and (error.sqlstate is None or error.sqlstate.startswith("57P")):
        hints = ["the server's log says who or what ended the session"]
        return ServerError(f"{doing}: the connection to PostgreSQL was lost: {words}", hints=hints)
    return ServerError(f"{doing}: {words}")


def cancel_query(connection: Connection) -> None:
    """End the query that *connection* is running, from another thread."""
    with suppress(Exception):  # the connection may be the very thing that broke; it is closed next
        connection.cancel_safe(timeout=5)


def roll_back(connection: Connection) -> None:
    """End the transaction. A connection whose query a signal broke off takes no command any more: closing it does the same."""
    if not connection.closed:
        with suppress(psycopg.Error):
            connection.execute("ROLLBACK")


def rows(
    connection: Connection, statement: LiteralString | sql.Composed, parameters: Sequence[object] | None = None
) -> list[TupleRow]:
    """All rows of one query; errors are psycopg's (callers wrap them in `translated`)."""
    return connection.execute(statement, parameters).fetchall()
