"""What is wrong before a dump begins: the exit code, the words, and nothing touched; put right, the next run succeeds."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import PROGRAM, Outcome
from fixtures.dump import Site, check_told, connection_settings
from fixtures.postgres import server_binaries
from fixtures.stores import S3Server

pytestmark = pytest.mark.soak(share=0.25)

# -- PostgreSQL


def check_nothing_begun(site: Site, outcome: Outcome, code: int, *words: str, hint: str = "") -> None:
    """It was refused before anything was written: the next run finds all as it was."""
    site.check_refused(outcome, code, *words, hint=hint)
    assert site.objects == site.before
    assert "begun:" not in outcome.stderr


def test_a_wrong_password_is_a_refused_login(site: Site) -> None:
    outcome = site.run("dump", "create", PGPASSWORD="hunter2")

    check_nothing_begun(site, outcome, 12, "127.0.0.1", "refused the login", hint="PGPASSWORD")
    assert "hunter2" not in outcome.stderr


def test_a_role_that_does_not_exist_is_a_refused_login(site: Site) -> None:
    outcome = site.run("dump", "create", PGUSER="nobody_of_that_name")

    check_nothing_begun(site, outcome, 12, "127.0.0.1", "nobody_of_that_name", hint="PGUSER")


def test_a_server_that_is_down_is_named_with_its_port(site: Site, deaf_port: str) -> None:
    outcome = site.run("dump", "create", PGPORT=deaf_port)

    check_nothing_begun(site, outcome, 1, f"127.0.0.1:{deaf_port}", "onnection refused", hint="pg_isready")


def test_a_host_that_has_no_address_is_named(site: Site) -> None:
    outcome = site.run("dump", "create", PGHOST="no-such-host.invalid")

    check_nothing_begun(site, outcome, 1, "no-such-host.invalid", hint="PGHOST")


def test_an_unknown_database_is_named_beside_those_that_exist(site: Site) -> None:
    outcome = site.run("dump", "create", BACKUP_DATABASES=f"{site.database},clipper_prod")

    check_nothing_begun(site, outcome, 15, "database clipper_prod does not exist", hint=site.database)


def test_a_mistyped_path_makes_another_repository_and_that_is_told(site: Site) -> None:
    mistyped = f"{site.settings['BACKUP_URL']}-"
    told = [
        f"warning: a new repository was made at {mistyped}",
        "HINT: if there should be one already: check BACKUP_URL (or CLOUD_PROVIDER and BACKUP_BUCKET), letter by letter",
    ]
    first, second = (site.run("dump", "create", "--quiet", BACKUP_URL=mistyped) for _ in range(2))
    assert (first.code, first.stderr.splitlines()) == (0, told)
    assert (second.code, second.stderr) == (0, "")


def test_client_programs_older_than_the_server_are_refused(site: Site, postgres18: PrivateServer) -> None:
    old = str(server_binaries(15).bindir)
    outcome = site.run("dump", "create", **connection_settings(postgres18), BACKUP_DATABASES="", PG_BINDIR=old)

    check_nothing_begun(site, outcome, 1, "15.", "older than 18", old, hint="PG_BINDIR")


def test_a_folder_without_client_programs_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = site.run("dump", "create", PG_BINDIR=str(tmp_path / "empty"))

    check_nothing_begun(site, outcome, 1, "no pg_dump", str(tmp_path / "empty"), hint="PG_BINDIR")


@pytest.mark.parametrize(
    ("name", "value"),
    [("DUMP_FINGERPRINT", "sums"), ("DUMP_JOBS", "0"), ("LEASE_SECONDS", "soon"), ("BACKUP_URL", "ftp://127.0.0.1/backups")],
)
def test_a_bad_setting_fails_before_any_work(site: Site, name: str, value: str) -> None:
    outcome = site.run("dump", "create", **{name: value})

    check_nothing_begun(site, outcome, 2, name if name != "BACKUP_URL" else value)


def test_a_scratch_folder_that_is_not_there_is_named(site: Site, tmp_path: Path) -> None:
    outcome = site.run("dump", "create", DUMP_JOBS="2", SCRATCH_DIR=f"{tmp_path}/nowhere")

    site.check_refused(outcome, 1, f"{tmp_path}/nowhere", hint="SCRATCH_DIR")
    site.check_recovers()


# -- the repository


@pytest.mark.parametrize(
    "words",
    [
        ("dump", "list"),
        ("dump", "verify", "latest"),
        ("dump", "restore", "latest", "--into", "elsewhere"),
        ("dump", "delete", "latest", "--yes"),
        ("prune", "--yes"),
        ("hold", "latest"),
    ],
    ids=" ".join,
)
def test_a_command_that_needs_a_repository_says_that_there_is_none(site: Site, tmp_path: Path, words: Sequence[str]) -> None:
    outcome = site.run(*words, BACKUP_URL=f"file://{tmp_path}/nothing")

    site.check_refused(outcome, 10, f"{tmp_path}/nothing", hint="BACKUP_URL")
    assert not (tmp_path / "nothing").exists()


def test_a_file_where_the_repository_should_be_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    outcome = site.run("dump", "create", BACKUP_URL=f"file://{tmp_path}/file")

    site.check_refused(outcome, 1, f"{tmp_path}/file", hint="a file stands where a folder is needed")
    assert (tmp_path / "file").read_text() == "a file"
    site.check_recovers()


def test_a_folder_that_may_not_be_written_is_named(site: Site) -> None:
    site.folder.chmod(0o555)
    for folder in site.folder.iterdir():
        if folder.is_dir():
            folder.chmod(0o555)
    outcome = site.run("dump", "create", program=bound_by_permissions())
    site.check_refused(outcome, 12, str(site.folder), "permission denied", hint="must be able to read and write there")

    site.folder.chmod(0o700)
    for folder in site.folder.iterdir():
        if folder.is_dir():
            folder.chmod(0o700)
    site.check_recovers()


def bound_by_permissions() -> Sequence[str]:
    """The program as somebody whom permission bits stop, which they do not with root's capabilities."""
    if os.geteuid() != 0:
        return PROGRAM
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search", *PROGRAM)


def test_a_folder_that_cannot_be_made_is_named(site: Site) -> None:
    outcome = site.run("dump", "create", BACKUP_URL="file:///proc/clipper-backup/repository")

    site.check_refused(outcome, 1, "/proc/clipper-backup", hint="file system")
    site.check_recovers()


# -- a bucket


def bucket(server: S3Server, prefix: str, **changed: str) -> dict[str, str]:
    return {
        "BACKUP_URL": f"s3://{server.bucket}/{prefix}",
        "BACKUP_ENDPOINT": server.endpoint,
        "STORE_RETRY_SECONDS": "0",
        **server.environment,
        **changed,
    }


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, ("dump", "create")), ({"AWS_ACCESS_KEY_ID": "nobody"}, ("dump", "list"))],
    ids=["secret", "key"],
)
def test_wrong_keys_of_a_bucket_are_a_refused_login(
    site: Site, s3_server: S3Server, s3_prefix: str, wrong: dict[str, str], words: Sequence[str]
) -> None:
    outcome = site.run(*words, **bucket(s3_server, s3_prefix, **wrong))

    site.check_refused(outcome, 12, s3_server.bucket, hint="AWS_SECRET_ACCESS_KEY")
    check_told(outcome, 12, secrets=[s3_server.secret_key, "not-the-secret"])


def test_a_bucket_that_may_only_be_read_is_a_refused_login(site: Site, s3_server: S3Server, s3_prefix: str) -> None:
    reader = {"AWS_ACCESS_KEY_ID": s3_server.reader_access_key, "AWS_SECRET_ACCESS_KEY": s3_server.reader_secret_key}
    outcome = site.run("dump", "create", **bucket(s3_server, s3_prefix, **reader))

    site.check_refused(outcome, 12, s3_server.bucket, hint="what they may do in this bucket")
    assert site.run("dump", "create", **bucket(s3_server, s3_prefix)).code == 0


def test_a_bucket_that_does_not_exist_is_named(site: Site, s3_server: S3Server) -> None:
    outcome = site.run("dump", "create", **bucket(s3_server, "x", BACKUP_URL="s3://no-such-bucket/x"))

    site.check_refused(outcome, 15, "no-such-bucket", s3_server.endpoint, hint="create the bucket")


@pytest.mark.parametrize("patience", ["0", "1"])
def test_a_store_that_does_not_answer_is_named_and_how_long_it_was_tried(
    site: Site, s3_server: S3Server, deaf_port: str, patience: str
) -> None:
    endpoint = f"http://127.0.0.1:{deaf_port}"
    outcome = site.run("dump", "create", **bucket(s3_server, "x", BACKUP_ENDPOINT=endpoint, STORE_RETRY_SECONDS=patience))

    site.check_refused(outcome, 1, endpoint, "connection refused", hint=f"is {endpoint} up")
    assert ("tried " in outcome.stderr) == (patience == "1")
