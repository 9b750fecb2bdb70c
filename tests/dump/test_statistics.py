"""A restored database is analyzed as a plain ANALYZE would, and what cannot be is no reason to have no database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import RunCli
from fixtures.postgres import client_environment, sql

pytestmark = pytest.mark.soak(share=0.25)

_ANALYZED = "SELECT schemaname::text, tablename::text, attname::text, inherited FROM pg_stats ORDER BY 1, 2, 3, 4"


@pytest.fixture
def into(postgres: PrivateServer) -> Iterator[str]:
    yield "analyzed"
    sql(postgres, "postgres", "DROP DATABASE IF EXISTS analyzed WITH (FORCE)")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_everything_has_statistics_that_a_plain_analyze_would_give_them(
    postgres: PrivateServer, clipper: str, run_cli: RunCli, tmp_path: Path, into: str, jobs: str
) -> None:
    sql(postgres, clipper, "CREATE TABLE parent AS SELECT 1 AS a")
    sql(postgres, clipper, "CREATE TABLE other_parent AS SELECT 1 AS b")
    sql(postgres, clipper, "CREATE TABLE child (c int) INHERITS (parent, other_parent)")
    sql(postgres, clipper, "INSERT INTO child VALUES (1, 2, 3)")
    env = client_environment(postgres, BACKUP_URL=f"file://{tmp_path}/store", BACKUP_DATABASES=clipper)
    run_cli("dump", "create", env=env, check=True)
    run_cli("dump", "restore", "latest", "--into", into, "--jobs", jobs, env=env, check=True)
    found = sql(postgres, into, _ANALYZED)
    sql(postgres, into, "ANALYZE")

    assert ("public", "other_parent", "b", True) in found
    assert found == sql(postgres, into, _ANALYZED)


def test_a_table_that_cannot_be_analyzed_is_told_and_the_restore_goes_on(
    postgres: PrivateServer, clipper: str, run_cli: RunCli, tmp_path: Path, into: str
) -> None:
    sql(
        postgres,
        clipper,
        "CREATE FUNCTION picky(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$BEGIN"
        " IF current_query() LIKE 'ANALYZE%' THEN RAISE 'not for you'; END IF; RETURN $1; END$$",
    )
    sql(postgres, clipper, "CREATE TABLE measured AS SELECT 1 AS a")
    sql(postgres, clipper, "CREATE INDEX ON measured (picky(a))")
    env = client_environment(postgres, BACKUP_URL=f"file://{tmp_path}/store", BACKUP_DATABASES=clipper)
    run_cli("dump", "create", env=env, check=True)

    outcome = run_cli("dump", "restore", "latest", "--into", into, env=env, check=True)

    assert "ANALYZE of public.measured: not for you" in outcome.stderr
    assert "run ANALYZE yourself" in outcome.stderr
    assert "1 table without" in outcome.stderr
    assert sql(postgres, into, "SELECT count(*) FROM measured") == [(1,)]
    assert ("public", "clips", "id", False) in sql(postgres, into, _ANALYZED)
