"""Partitions by hash of an enum: pg_dump loads them through their root, and rows come back in other partitions."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from clipper_backup.format.compression import compress_bytes, decompress_bytes
from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import RunCli
from fixtures.dump import WORKING_PREFIX, drop_databases, recommit
from fixtures.postgres import client_environment, fresh_database, sql

pytestmark = pytest.mark.soak(share=0.25)

COLOURS = 12
TREE = f"""
CREATE TYPE colour AS ENUM ({", ".join(f"'c{n}'" for n in range(COLOURS))});
CREATE TABLE paint (made date NOT NULL, colour colour NOT NULL, litres int NOT NULL) PARTITION BY RANGE (made);
CREATE TABLE paint_new PARTITION OF paint FOR VALUES FROM ('2026-01-01') TO (MAXVALUE) PARTITION BY HASH (colour);
CREATE TABLE paint_new_0 PARTITION OF paint_new FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE paint_new_1 PARTITION OF paint_new FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE paint_new_2 (litres int NOT NULL, gone int, colour colour NOT NULL, made date NOT NULL);
ALTER TABLE paint_new_2 DROP COLUMN gone;
ALTER TABLE paint_new ATTACH PARTITION paint_new_2 FOR VALUES WITH (MODULUS 3, REMAINDER 2);
CREATE TABLE paint_old PARTITION OF paint FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
INSERT INTO paint SELECT date '2025-12-01' + n % 60, ('c' || n % {COLOURS})::colour, n FROM generate_series(1, 600) n;
CREATE TABLE plain (n int);
INSERT INTO plain SELECT generate_series(1, 10);
"""
PLACES = "SELECT tableoid::regclass::text, colour::text, count(*) FROM paint GROUP BY 1, 2 ORDER BY 1, 2"


@pytest.fixture
def painted(postgres: PrivateServer) -> Iterator[str]:
    with fresh_database(postgres) as name:
        sql(postgres, name, TREE)
        yield name


@pytest.fixture
def into(postgres: PrivateServer) -> Iterator[str]:
    yield "repainted"
    drop_databases(postgres, "repainted", WORKING_PREFIX)


def change(store: Path, dump_id: str, database: str, changes: Mapping[str, Mapping[str, object]]) -> None:
    """Make the details of a dump record something else of some tables."""
    path = store / "database" / f"{dump_id}.details.zst"
    details = json.loads(decompress_bytes(path.read_bytes(), path.name))
    (record,) = (each for each in details["databases"] if each["name"] == database)
    for table in record["tables"]:
        table.update(changes.get(table["name"], {}))
    path.write_bytes(compress_bytes(json.dumps(details).encode()))
    recommit(store, dump_id)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_rows_that_came_back_in_other_partitions_are_not_lost(
    postgres: PrivateServer, painted: str, into: str, run_cli: RunCli, tmp_path: Path, jobs: str
) -> None:
    # An enum's hash is that of its labels' object ids: with the same labels in another order rows change places.
    env = client_environment(
        postgres, BACKUP_URL=f"file://{tmp_path}/store", BACKUP_DATABASES=painted, DUMP_FINGERPRINT="hash", DUMP_JOBS=jobs
    )
    dumped = run_cli("dump", "create", "--json", env=env, check=True).document
    verified = run_cli("dump", "verify", "latest", "--json", env=env, check=True).document
    assert dumped["rows"] == verified["rows"] == 610
    run_cli("dump", "restore", "latest", "--into", into, env=env, check=True)

    assert sql(postgres, into, PLACES) != sql(postgres, painted, PLACES)
    assert sql(postgres, into, "SELECT sum(litres) FROM paint") == sql(postgres, painted, "SELECT sum(litres) FROM paint")


@pytest.mark.parametrize("fingerprint", ["counts", "hash"])
def test_a_row_that_is_lost_is_missing_from_the_whole_tree(
    postgres: PrivateServer, painted: str, into: str, run_cli: RunCli, tmp_path: Path, fingerprint: str
) -> None:
    store = tmp_path / "store"
    env = client_environment(postgres, BACKUP_URL=f"file://{store}", BACKUP_DATABASES=painted, DUMP_FINGERPRINT=fingerprint)
    dump_id = run_cli("dump", "create", "--json", env=env, check=True).document["id"]
    ((one, all_of_them),) = sql(postgres, painted, "SELECT (SELECT count(*) FROM paint_new_1), (SELECT count(*) FROM paint_new)")
    change(store, dump_id, painted, {"paint_new_1": {"rows": one + 1} if fingerprint == "counts" else {"hash": "1"}})

    restored = run_cli("dump", "restore", "latest", "--into", into, env=env)
    assert restored.code == 13
    assert "table public.paint_new, partitions by hash: " in restored.stderr
    told = f"{all_of_them + 1} rows recorded, {all_of_them} rows found" if fingerprint == "counts" else f"same {all_of_them} rows"
    assert told in restored.stderr
    assert restored.stderr.count(" recorded, ") == 1
    verified = run_cli("dump", "verify", "latest", env=env)
    if fingerprint == "counts":
        assert verified.code == 13
        assert f"partitions by hash, has {all_of_them} rows in the archive, {all_of_them + 1} were counted" in verified.stderr
    else:
        assert verified.code == 0  # which counts only


def test_rows_that_cannot_move_are_compared_by_partition(
    postgres: PrivateServer, into: str, run_cli: RunCli, tmp_path: Path
) -> None:
    with fresh_database(postgres) as name:
        tree = "CREATE TABLE y (d int, m int) PARTITION BY RANGE (d);"
        for half in (0, 1):
            tree += f"CREATE TABLE y{half} PARTITION OF y FOR VALUES FROM ({half}) TO ({half + 1}) PARTITION BY HASH (m);"
            tree += f"CREATE TABLE y{half}_0 PARTITION OF y{half} FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
        sql(postgres, name, tree + "INSERT INTO y SELECT n % 2, n FROM generate_series(0, 99) n")
        env = client_environment(postgres, BACKUP_URL=f"file://{tmp_path}/store", BACKUP_DATABASES=name)
        dump_id = run_cli("dump", "create", "--json", env=env, check=True).document["id"]
        change(tmp_path / "store", dump_id, name, {"y0_0": {"rows": 60}, "y1_0": {"rows": 40}})

        restored = run_cli("dump", "restore", "latest", "--into", into, env=env)
        assert restored.code == 13
        assert "table public.y0_0: 60 rows recorded, 50 rows found; table public.y1_0: 40 rows recorded" in restored.stderr
        assert run_cli("dump", "verify", "latest", env=env).code == 13


def test_rows_may_move_below_their_own_parent_only(
    postgres: PrivateServer, painted: str, into: str, run_cli: RunCli, tmp_path: Path
) -> None:
    sql(
        postgres,
        painted,
        "ALTER TABLE paint DETACH PARTITION paint_old; CREATE TABLE paint_older PARTITION OF paint"
        " FOR VALUES FROM (MINVALUE) TO ('2026-01-01') PARTITION BY HASH (colour);"
        " CREATE TABLE paint_older_0 PARTITION OF paint_older FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
        " INSERT INTO paint SELECT * FROM paint_old",
    )
    env = client_environment(postgres, BACKUP_URL=f"file://{tmp_path}/store", BACKUP_DATABASES=painted)
    dump_id = run_cli("dump", "create", "--json", env=env, check=True).document["id"]
    run_cli("dump", "verify", "latest", env=env, check=True)
    ((new, older),) = sql(postgres, painted, "SELECT (SELECT count(*) FROM paint_new_0), (SELECT count(*) FROM paint_older)")
    change(tmp_path / "store", dump_id, painted, {"paint_new_0": {"rows": new + 1}, "paint_older_0": {"rows": older - 1}})

    restored = run_cli("dump", "restore", "latest", "--into", into, env=env)
    assert restored.code == 13
    assert "table public.paint_new, partitions by hash: " in restored.stderr
    assert "table public.paint_older, partitions by hash: " in restored.stderr
