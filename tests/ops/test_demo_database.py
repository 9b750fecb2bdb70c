import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from clipper_backup.errors import UsageError
from clipper_backup.format.compression import compress_bytes
from clipper_backup.ops.demo.database import create_clipper_database
from clipper_backup.ops.events import Event, Progress, StepBegun, StepDone, ignore
from clipper_backup.postgres.server import PrivateServer
from fixtures.clipper import Database, clipper_database, fill, table_hashes
from fixtures.postgres import client_environment, connect, fresh_database, server_binaries, sql

pytestmark = pytest.mark.soak(share=0.25)


@pytest.fixture(scope="module")
def clipper(postgres: PrivateServer) -> Iterator[Database]:
    with clipper_database(postgres) as database:
        yield database


_, *NAMES_AND_QUERIES = re.split(
    r"^-- feature: (.+)$", Path(__file__).with_name("demo_features.sql").read_text(), flags=re.MULTILINE
)
FEATURES = dict(zip(NAMES_AND_QUERIES[::2], NAMES_AND_QUERIES[1::2], strict=True))


@pytest.mark.parametrize("feature", FEATURES)
def test_it_has(clipper: Database, feature: str) -> None:
    assert sql(*clipper, FEATURES[feature]) == [(True,)]


def test_new_rows_get_new_numbers(clipper: Database) -> None:
    with connect(*clipper, autocommit=False) as connection:
        for table, values in {
            "users (public_id, handle, email, joined_at)": "gen_random_uuid(), 'new_user', 'new@clipper.example', now()",
            "clips (public_id, user_id, title, duration_seconds, width, height)": "gen_random_uuid(), 1, 'new', 1, 1, 1",
            "comments (clip_id, user_id, body, created_at)": "1, 1, 'new', now()",
            "tags (name)": "'a new tag'",
        }.items():
            inserted = connection.execute(f"INSERT INTO {table} VALUES ({values})".encode())
            assert inserted.rowcount == 1, "a key that is taken would be an error"
        connection.rollback()


def test_the_policies_hold_for_the_role(clipper: Database) -> None:
    options = "-c role=clipper_app -c clipper.user_id=7"
    with connect(*clipper, options=options) as connection:
        owners = connection.execute("SELECT DISTINCT owner_id FROM private_notes").fetchall()
        assert owners == [(7,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT email FROM users")


def test_the_same_scale_gives_the_same_rows_on_every_run_and_version(
    postgres15: PrivateServer, postgres18: PrivateServer
) -> None:
    hashes = []
    for server in (postgres15, postgres18, postgres15):
        with clipper_database(server) as database:
            hashes.append(table_hashes(database))
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(hashes[0]) > 25
    assert hashes[0]["public.clips"][0] == 400
    assert hashes[0]["large objects"][0] == 48


def test_it_is_restored_whole_from_a_dump(clipper: Database) -> None:
    server, dbname = clipper
    binaries = server_binaries(int(sql(server, dbname, "SHOW server_version_num")[0][0]) // 10000)
    environment = client_environment(server)
    with fresh_database(server) as copy:
        dump = subprocess.run(
            [binaries.program("pg_dump"), "-Fc", dbname], env=environment, capture_output=True, check=True
        ).stdout
        restore: list[str | Path] = [binaries.program("pg_restore"), "--exit-on-error", "--dbname", copy]
        restored = subprocess.run(restore, input=dump, env=environment, capture_output=True, check=False)
        assert restored.stderr == b""
        assert table_hashes((server, copy)) == table_hashes(clipper)


def test_it_grows_with_its_scale_and_compresses_like_text(postgres18: PrivateServer) -> None:
    with clipper_database(postgres18, 0.01) as small, clipper_database(postgres18, 0.11) as larger:
        sizes = [sql(server, dbname, "SELECT pg_database_size(current_database())")[0][0] for server, dbname in (small, larger)]
        assert sizes[0] + (sizes[1] - sizes[0]) * 9.9 > 220e6, "at scale 1"
        server, dbname = larger
        dump = subprocess.run(
            [server_binaries(18).program("pg_dump"), "-Fc", "-Z0", dbname],
            env=client_environment(server),
            capture_output=True,
            check=True,
        ).stdout
    assert 2.5 < len(dump) / len(compress_bytes(dump, level=1)) < 4.5


def test_it_tells_how_far_it_is(database: str, postgres: PrivateServer) -> None:
    told: list[Event] = []
    fill((postgres, database), 0.001, told.append)
    begun, *between, done = told
    assert begun == StepBegun("generate", "generating a Clipper-like database, scale 0.001")
    total = len(between)
    assert between == [Progress("generate", n, total, unit="objects") for n in range(1, total + 1)]
    assert isinstance(done, StepDone)
    assert (done.step, done.text) == ("generate", "200 users, 200 clips, 200 comments, 380 clip views")
    assert done.seconds > 0


@pytest.mark.parametrize("scale", [0, -1, 101, float("nan")])
def test_a_scale_that_is_none_is_refused_before_any_work(scale: float) -> None:
    def execute(statements: str) -> None:
        raise AssertionError(statements)

    with pytest.raises(UsageError, match="not a scale"):
        create_clipper_database(execute, scale=scale, emit=ignore)


def test_an_error_of_the_server_passes_through(database: str, postgres: PrivateServer) -> None:
    fill((postgres, database), 0.001)
    with pytest.raises(psycopg.errors.DuplicateObject, match="citext"):
        fill((postgres, database), 0.001)
