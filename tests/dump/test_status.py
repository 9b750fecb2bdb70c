"""`status`, the real program, beside a real repository: with everything else that it could ask taken away."""

import json

from fixtures.cli import RunCli
from fixtures.dump import Site, check_told
from fixtures.stores import StorePlace


def nothing_else(port: str) -> dict[str, str]:
    """Settings with which no server, no Pushgateway and no client program can be reached."""
    return {
        "PGHOST": "127.0.0.1",
        "PGPORT": port,
        "PROMETHEUS_PUSHGATEWAY": f"http://127.0.0.1:{port}",
        "PATH": "/nonexistent",
    }


def test_it_needs_the_repository_alone_and_changes_nothing(site: Site, deaf_port: str) -> None:
    outcome = site.run("status", **nothing_else(deaf_port))
    assert outcome.code == 0, outcome
    first, *rest = outcome.stdout.splitlines()
    assert first.startswith("RECOVERABLE to the moments of 2 dumps: from ")
    assert first.endswith("ago; proven: never")
    assert any(line.startswith(site.database) and site.recent in line for line in rest)
    assert outcome.stderr == ""
    assert site.objects == site.before


def test_its_exit_code_says_how_it_stands(site: Site, deaf_port: str) -> None:
    settings = nothing_else(deaf_port)
    (site.folder / f"database/{site.recent}.globals.sql.zst").unlink()
    damaged = site.run("status", **settings)
    check_told(damaged, 3, "40 d 0 h old, more than DUMP_MAX_AGE_HOURS (25)", "and 1 more", hint="dump list")
    assert damaged.stdout.startswith("RECOVERABLE to the moment of 1 dump: ")
    assert f"{site.recent} is damaged: " in damaged.stdout

    (site.folder / f"database/{site.old}.globals.sql.zst").unlink()
    lost = site.run("status", **settings)
    check_told(lost, 13, f"no good dump holds {site.database}", "2 are damaged", hint="dump create")
    assert lost.stdout.startswith("NOT RECOVERABLE: no good dump holds ")


def test_a_database_that_was_never_dumped_is_named(site: Site) -> None:
    outcome = site.run("status", "--json", BACKUP_DATABASES=f"{site.database},shop")
    assert outcome.code == 15
    assert outcome.document["missing"] == ["shop"]
    assert json.loads(outcome.stderr)["message"] == "no good dump holds shop"


def test_of_no_repository_it_says_so(run_cli: RunCli, local_place: StorePlace) -> None:
    check_told(run_cli("status", env=local_place.environment), 10, "no repository at", hint="BACKUP_URL")


def test_folders_and_buckets_are_asked_the_same_way(run_cli: RunCli, site: Site, store_place: StorePlace) -> None:
    dumped = site.run("dump", "create", **store_place.environment)
    assert dumped.code == 0, dumped
    outcome = run_cli("status", "--json", env=store_place.environment, check=True)
    assert outcome.document["recoverable"] is True
    assert outcome.document["items"][0]["id"] == site.database
