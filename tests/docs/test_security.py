"""What SECURITY.md promises, on real servers."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import RunCli
from fixtures.clipper import clipper_database
from fixtures.postgres import PASSWORD, fresh_database, server_binaries, sql
from fixtures.stores import S3Server, StorePlace


def over_tcp(server: PrivateServer, database: str) -> dict[str, str]:
    """The login that asks for a password."""
    where = server.tcp_connection(database)
    return {
        "PGHOST": where["host"],
        "PGPORT": where["port"],
        "PGUSER": where["user"],
        "PGPASSWORD": PASSWORD,
        "BACKUP_DATABASES": database,
    }


@pytest.fixture
def watched_programs(tmp_path: Path) -> tuple[Path, Path]:
    """PostgreSQL's programs behind scripts that write down how they were called; the folder, and what was written down."""
    folder, calls = tmp_path / "watched", tmp_path / "calls"
    folder.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho "$0 $*" >> {calls}\nexec {server_binaries(15).program("pg_dump").parent}/{name} "$@"\n'
        )
        script.chmod(0o755)
    return folder, calls


@pytest.mark.rule(89)
def test_rule_89_the_password_is_on_no_command_line_in_no_output_and_in_no_object(
    run_cli: RunCli, postgres15: PrivateServer, local_place: StorePlace, watched_programs: tuple[Path, Path]
) -> None:
    folder, calls = watched_programs
    with clipper_database(postgres15) as (_, database):
        environment = {**local_place.environment, **over_tcp(postgres15, database), "PG_BINDIR": str(folder)}
        said = ""
        for words in (["dump", "create", "--debug", "--events"], ["settings"], ["settings", "--json"]):
            outcome = run_cli(*words, env=environment, check=True)
            said += outcome.stdout + outcome.stderr
        outcome = run_cli("dump", "create", "--debug", env=environment | {"PGPORT": "1"})
        assert outcome.code == 1
        said += outcome.stderr
    assert {Path(line.split()[0]).name for line in calls.read_text().splitlines()} == {"pg_dump", "pg_dumpall", "pg_restore"}
    store = local_place.open()
    stored = b"".join(store.get(info.key) for info in store.list(""))
    assert PASSWORD not in said + calls.read_text()
    assert PASSWORD.encode() not in stored


@pytest.mark.rule(89)
def test_rule_89_a_password_is_refused_as_a_flag_without_repeating_it(run_cli: RunCli) -> None:
    for words in (["--pgpassword", PASSWORD], [f"--pgpassword={PASSWORD}"]):
        outcome = run_cli("dump", "list", *words)
        assert outcome.code == 2
        assert PASSWORD not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_files_are_their_owners_whatever_the_umask(
    run_cli: RunCli, postgres15: PrivateServer, local_place: StorePlace, tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        with fresh_database(postgres15) as database:
            environment = {**local_place.environment, **over_tcp(postgres15, database)}
            run_cli("dump", "create", env=environment, check=True)
            run_cli("dump", "fetch", "latest", "--to", "fetched", env=environment, check=True)
    finally:
        os.umask(before)
    repository = Path(local_place.url.removeprefix("file://"))
    paths = [repository, *repository.rglob("*"), *(tmp_path / "fetched").iterdir()]
    assert len(paths) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}


def as_reader(server: S3Server) -> Mapping[str, str]:
    return {"AWS_ACCESS_KEY_ID": server.reader_access_key, "AWS_SECRET_ACCESS_KEY": server.reader_secret_key}


@pytest.mark.rule(88)
def test_rule_88_reading_commands_need_an_identity_that_may_only_read(
    run_cli: RunCli, postgres15: PrivateServer, s3_server: S3Server, s3_prefix: str
) -> None:
    with clipper_database(postgres15) as (_, database):
        place = {"BACKUP_URL": f"s3://{s3_server.bucket}/{s3_prefix}", "BACKUP_ENDPOINT": s3_server.endpoint}
        writer = {**over_tcp(postgres15, database), **place, **s3_server.environment, "STORE_RETRY_SECONDS": "0"}
        reader = {**writer, **as_reader(s3_server)}
        run_cli("dump", "create", env=writer, check=True)
        for command in (
            "list",
            "show latest",
            "verify latest",
            "fetch latest --to fetched",
            f"restore latest --into {database}_copy",
        ):
            run_cli("dump", *command.split(), env=reader, check=True)
        sql(postgres15, "postgres", f"DROP DATABASE {database}_copy")
        for command in ("dump create", "hold latest", "prune --yes"):
            assert run_cli(*command.split(), env=reader).code == 12
        assert len(run_cli("dump", "list", "--json", env=writer, check=True).document["items"]) == 1


def test_the_page_says_what_these_tests_show() -> None:
    page = " ".join((Path(__file__).parents[2] / "SECURITY.md").read_text().split())
    assert "files `0600`, folders `0700`; so are fetched files" in page
    assert re.search(r"an identity that may only list and read is enough", page)
    assert "`PGPASSWORD` is no flag" in page
