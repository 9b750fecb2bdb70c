"""Client programs newer than the server, in PG_BINDIR or because no others are installed: what they dump comes back."""

from collections.abc import Iterator

import pytest

from clipper_backup.ops.dump.fill import without_transaction_timeout
from clipper_backup.postgres.server import PrivateServer
from fixtures.clipper import fill
from fixtures.dump import WORKING_PREFIX, Site, check_told, databases_of
from fixtures.oracle import SCALE, content_now
from fixtures.postgres import fresh_database, server_binaries, sql


@pytest.fixture
def clipper15(postgres15: PrivateServer) -> Iterator[str]:
    with fresh_database(postgres15) as name:
        fill((postgres15, name), SCALE)
        yield name


@pytest.fixture
def restored(postgres15: PrivateServer, clipper15: str) -> Iterator[str]:
    name = f"{clipper15}_restored"
    yield name
    sql(postgres15, "postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_dump_of_a_server_15_by_client_18_is_restored_into_it(site: Site, clipper15: str, restored: str, jobs: str) -> None:
    newer = {"PG_BINDIR": str(server_binaries(18).bindir), "BACKUP_DATABASES": clipper15, "DUMP_FINGERPRINT": "hash"}
    dumped = site.run("dump", "create", **newer, DUMP_JOBS=jobs)
    assert dumped.code == 0, dumped
    outcome = site.run("dump", "restore", "latest", "--into", restored, "--jobs", jobs, **newer)
    assert outcome.code == 0, outcome
    assert ("restoring one table at a time: pg_restore 18" in outcome.stderr) is (jobs == "2")
    with content_now(site.server, clipper15) as before, content_now(site.server, restored) as after:
        assert before == after
    assert len(before) > 10
    large = "SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid"
    assert sql(site.server, restored, large) == sql(site.server, clipper15, large) != []


def test_what_the_server_refuses_is_an_error_that_leaves_no_database(site: Site, clipper15: str, restored: str) -> None:
    newer = {"PG_BINDIR": str(server_binaries(18).bindir), "BACKUP_DATABASES": clipper15}
    function = "FUNCTION allowed(int) RETURNS bool LANGUAGE sql AS 'SELECT {}'"
    for statement in (
        f"CREATE {function.format('true')}",
        "CREATE TABLE checked (id int CHECK (public.allowed(id)))",
        "INSERT INTO checked VALUES (1)",
        f"CREATE OR REPLACE {function.format('false')}",
    ):
        sql(site.server, clipper15, statement)
    assert site.run("dump", "create", **newer).code == 0
    outcome = site.run("dump", "restore", "latest", "--into", restored, **newer)
    check_told(outcome, 1, "psql failed (exit 3)", 'new row for relation "checked" violates check constraint', hint=None)
    assert not [name for name in databases_of(site.server) if name.startswith((restored, WORKING_PREFIX))]


def test_of_a_script_only_the_setting_in_its_head_is_left_out() -> None:
    line = b"SET transaction_timeout = 0;\n"
    script = b"--\nSET lock_timeout = 0;\n" + line + b"COPY a (b) FROM stdin;\n" + line + b"x" * 100_000 + b"\n" + line
    expected = script.replace(line, b"", 1)
    for size in (1, 7, 8192, len(script)):
        pieces = (script[start : start + size] for start in range(0, len(script), size))
        assert b"".join(without_transaction_timeout(pieces)) == expected
