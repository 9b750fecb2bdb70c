"""What a role could not dump, as the catalogs of both majors say it."""

from contextlib import closing

from clipper_backup.postgres import preflight
from clipper_backup.postgres.connection import Connection, connect
from clipper_backup.postgres.server import PrivateServer
from fixtures.postgres import fresh_database, fresh_role, login_to, sql


def as_role(server: PrivateServer, name: str, database: str) -> "closing[Connection]":
    return closing(connect(login_to(server, user=name), database))


def test_tables_partitions_and_sequences_that_a_role_may_not_read(postgres: PrivateServer) -> None:
    with fresh_role(postgres) as role, fresh_database(postgres) as database:
        sql(postgres, database, """
            CREATE TABLE mine (id bigserial); CREATE TABLE "Other Table" (id int); CREATE UNLOGGED TABLE passing (id int);
            CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts DEFAULT;
            CREATE SCHEMA closed; CREATE TABLE closed.inside (id int); CREATE VIEW seen AS SELECT * FROM mine;
            CREATE EXTENSION pg_stat_statements""")  # fmt: skip
        sql(postgres, database, f"GRANT SELECT ON mine, part, closed.inside TO {role}")
        with as_role(postgres, role, database) as connection:
            assert preflight.unreadable_tables(connection) == [
                "closed.inside", "public.Other Table", "public.mine_id_seq", "public.parts", "public.passing",
            ]  # fmt: skip
        sql(postgres, database, f"GRANT pg_read_all_data TO {role}")
        with as_role(postgres, role, database) as connection:
            assert preflight.unreadable_tables(connection) == []


def test_row_security_hides_rows_from_others_than_the_owner(postgres: PrivateServer) -> None:
    with fresh_role(postgres) as role, fresh_database(postgres) as database:
        sql(postgres, database, "CREATE TABLE open (id int); CREATE TABLE guarded (id int); CREATE TABLE own (id int)")
        sql(postgres, database, "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; ALTER TABLE own ENABLE ROW LEVEL SECURITY")
        sql(postgres, database, f"ALTER TABLE own OWNER TO {role}")
        with as_role(postgres, role, database) as connection:
            assert preflight.filtered_tables(connection) == ["public.guarded"]
        sql(postgres, database, f"ALTER TABLE own FORCE ROW LEVEL SECURITY; ALTER ROLE {role} BYPASSRLS")
        with as_role(postgres, role, database) as connection:
            assert preflight.filtered_tables(connection) == []


def test_large_objects_are_read_by_their_owner_by_grant_or_compatibly(postgres: PrivateServer) -> None:
    with fresh_role(postgres) as role, fresh_database(postgres) as database:
        sql(postgres, database, "SELECT lo_create(1), lo_create(2), lo_create(3)")
        sql(postgres, database, f"GRANT SELECT ON LARGE OBJECT 1 TO {role}; ALTER LARGE OBJECT 2 OWNER TO {role}")
        with as_role(postgres, role, database) as connection:
            assert preflight.unreadable_large_objects(connection) == 1
        sql(postgres, "postgres", f"ALTER ROLE {role} SET lo_compat_privileges = on")
        with as_role(postgres, role, database) as connection:
            assert preflight.unreadable_large_objects(connection) == 0
        with closing(connect(login_to(postgres), database)) as superuser:
            assert preflight.unreadable_large_objects(superuser) == 0


def test_sessions_of_the_server_itself_are_kept_apart(postgres: PrivateServer) -> None:
    with closing(connect(login_to(postgres))) as first, closing(connect(login_to(postgres))) as second:
        assert not preflight.shares_sessions(first, second)
        assert preflight.shares_sessions(first, first), "what one session sets it sees itself"
