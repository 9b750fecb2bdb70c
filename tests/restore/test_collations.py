"""Text that is sorted by another version than where its indexes were built."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import load
from clipper_backup.ops.restore.collations import tell_collations
from clipper_backup.ops.work import Work
from clipper_backup.postgres.collations import Drift, compare_collations
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.store.memory import MemoryStore
from fixtures.base import Kept
from fixtures.postgres import fresh_database, fresh_role, login_to, sql

ICU = "en-x-icu"


@pytest.fixture
def database(postgres15: PrivateServer) -> Iterator[str]:
    """Debian's server has ICU, whose collations have versions on any machine."""
    with fresh_database(postgres15) as name:
        sql(postgres15, "postgres", f"DROP DATABASE {name}")
        sql(postgres15, "postgres", f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'")
        yield name


def told(server: PrivateServer, **settings: str) -> list[str]:
    where, clock, kept = server.connection(), SystemClock(), Kept()
    work = Work(load({}, settings).settings, MemoryStore(clock), clock, kept)
    tell_collations(work, Path(where["host"]), int(where["port"]))
    return kept.warnings


@pytest.mark.rule(67)
def test_what_is_sorted_otherwise_is_told(postgres15: PrivateServer, database: str) -> None:
    sql(postgres15, database, f'CREATE TABLE sorted (t text COLLATE "{ICU}"); CREATE TABLE "not" (t text COLLATE "C")')
    of_ours = [drift for drift in compare_collations(login_to(postgres15)).drifts if drift.database == database]
    assert of_ours == []
    sql(postgres15, database, "UPDATE pg_collation SET collversion = '1.2' WHERE collprovider = 'i'")  # thousands: one is used
    sql(postgres15, "postgres", f"UPDATE pg_database SET datcollversion = '2.1' WHERE datname = '{database}'")
    ((actual,),) = sql(postgres15, database, f"SELECT pg_collation_actual_version('\"{ICU}\"'::regcollation)")
    compared = compare_collations(login_to(postgres15))
    assert [drift for drift in compared.drifts if drift.database == database] == [
        Drift(database, None, "2.1", actual),
        Drift(database, f'"{ICU}"', "1.2", actual),
    ]
    assert compared.left_out == []
    (warning,) = told(postgres15)
    assert f"database {database} was made with version 2.1, here it is {actual}" in warning
    assert f'collation "{ICU}" in {database} was made with version 1.2, here it is {actual}' in warning


def test_who_cannot_ask_says_so(postgres15: PrivateServer, database: str) -> None:
    (warning,) = told(postgres15, PGUSER="nobody-of-this-name")
    assert "were not compared" in warning
    sql(postgres15, "postgres", f'REVOKE CONNECT ON DATABASE "{database}" FROM PUBLIC')
    with fresh_role(postgres15, "LOGIN") as role:
        (warning,) = told(postgres15, PGUSER=role)
    assert warning.startswith(f"versions of collations were not compared in {database}: ")
