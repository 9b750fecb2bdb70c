"""What a role without privileges is told, by real servers' own words."""

import uuid
from collections.abc import Iterator

import pytest

from clipper_backup.errors import AccessError
from clipper_backup.postgres.connection import Login, connect, translated
from clipper_backup.postgres.privileges import privilege_hints
from clipper_backup.postgres.server import PrivateServer
from fixtures.postgres import sql


@pytest.fixture
def nobody(postgres: PrivateServer, database: str) -> Iterator[Login]:
    """The login of a role that may log in and nothing else, beside a table, a large object and a table with row security."""
    role = f"nobody_{uuid.uuid4().hex[:8]}"
    for statement in (
        f"CREATE ROLE {role} LOGIN",
        "CREATE TABLE closed ()",
        "SELECT lo_from_bytea(7, 'x')",
        "CREATE TABLE rows_hidden (n int)",
        "ALTER TABLE rows_hidden ENABLE ROW LEVEL SECURITY",
        f"GRANT SELECT ON rows_hidden TO {role}",
    ):
        sql(postgres, database, statement)
    where = postgres.connection(database)
    yield Login({"host": where["host"], "port": where["port"], "user": role}, dbname=database)
    sql(postgres, database, f"DROP OWNED BY {role}")
    sql(postgres, database, f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("statement", "remedy"),
    [
        ("SELECT FROM public.closed", "pg_read_all_data"),
        ("SELECT lo_get(7)", "lo_compat_privileges"),
        ("SET row_security = off; SELECT n FROM public.rows_hidden", "BYPASSRLS"),
        ("CREATE DATABASE mine", "CREATEDB"),
        ("CREATE ROLE somebody", "--no-roles"),
        ("CREATE TABLE public.mine (); ALTER TABLE public.mine OWNER TO postgres", "--no-roles"),
    ],
)
@pytest.mark.rule(83)
def test_the_hint_names_what_would_help(nobody: Login, postgres: PrivateServer, statement: str, remedy: str) -> None:
    sql(postgres, str(nobody.dbname), "GRANT CREATE ON SCHEMA public TO PUBLIC")
    with connect(nobody, nobody.dbname) as connection, pytest.raises(AccessError) as refused, translated("trying"):
        connection.execute(statement.encode())
    (hint,) = refused.value.hints
    assert remedy in hint


def test_an_unknown_refusal_gets_no_made_up_advice() -> None:
    assert privilege_hints("permission to stand here was not granted") == []
