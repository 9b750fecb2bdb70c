"""`doctor --for-pitr`: what the restart with the manifest's settings would bring to light, looked at before it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import load
from clipper_backup.ops.doctor import of_pitr
from clipper_backup.ops.doctor.examine import Line, examine
from clipper_backup.ops.wal.shims import HBA_FILE
from clipper_backup.postgres.pitr_facts import HbaRule, missing_rules, parse_hba, read_hba_rules
from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import RunCli, environment
from fixtures.doctor import GREEN, RED, YELLOW
from fixtures.postgres import FAST, connect, fresh_role, private_folder, server_binaries, sql

IMAGES_OWN = "".join(f"{rule.line}\n" for rule in parse_hba(HBA_FILE.read_text())[:7])
"""The pg_hba.conf that the image makes."""


@pytest.fixture(scope="module", params=[15, 18])
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    """As the image starts it, without our manifest."""
    with (
        private_folder() as folder,
        PrivateServer(folder / "server", server_binaries(request.param), environment=os.environ, port=0, settings=FAST) as made,
    ):
        made.initdb(sync=False)
        made.start()
        yield made


@pytest.fixture(autouse=True)
def as_the_image_has_it(server: PrivateServer) -> None:
    let_in(server, IMAGES_OWN)


def let_in(server: PrivateServer, text: str) -> None:
    (server.data / "pg_hba.conf").write_text(text)
    sql(server, "postgres", "SELECT pg_reload_conf()")


def settings_for(server: PrivateServer, folder: Path, **more: str) -> dict[str, str]:
    where = server.connection()
    login = {"PGHOST": where["host"], "PGPORT": where["port"], "PGUSER": where["user"], "PGDATABASE": "postgres"}
    return login | {"BACKUP_URL": f"file://{folder}/repository"} | more


def look(server: PrivateServer, folder: Path, **more: str) -> dict[str, Line]:
    variables = environment(settings_for(server, folder, **more))
    (folder / "repository").mkdir(exist_ok=True)
    lines = examine(lambda: load({}, variables).settings, SystemClock(), variables, checks=of_pitr.CHECKS)
    found = {line.check.name: line for line in lines}
    assert [*found] == [check.name for check in of_pitr.CHECKS]
    assert not any("internal error" in line.finding.text for line in found.values())
    return found


def test_a_server_as_the_image_starts_it_has_nothing_in_the_way(server: PrivateServer, tmp_path: Path) -> None:
    found = look(server, tmp_path)
    # A folder of the test's is not where the image has it, and Debian's server is not Alpine's.
    folder = found.pop("image")
    assert (folder.finding.colour, str(server.data) in folder.finding.text) == (RED, True)
    assert {name for name, line in found.items() if line.finding.colour is not GREEN} <= {"room for WAL"}
    assert found["another archive"].finding.text == "archive_mode is off"
    assert found["pg_hba.conf"].finding.text == "it lets in all whom the server's own lets in"


def test_red_is_exit_code_1_and_the_lines_say_what_to_do(server: PrivateServer, tmp_path: Path, run_cli: RunCli) -> None:
    let_in(server, f"{IMAGES_OWN}host all app 192.168.7.0/24 trust\n")
    (tmp_path / "repository").mkdir()
    done = run_cli("doctor", "--for-pitr", "--json", env=settings_for(server, tmp_path))
    assert done.code == 1
    items = {item["id"]: item for item in done.document["items"]}
    assert [*items] == [check.name for check in of_pitr.CHECKS]
    assert items["pg_hba.conf"]["colour"] == "red"
    assert "host  all  app  192.168.7.0/24  trust" in items["pg_hba.conf"]["todo"]
    assert "ConfigMap postgres-pitr-config" in items["pg_hba.conf"]["todo"][-1]


def test_postgresql_reads_our_pg_hba_conf_as_we_do(server: PrivateServer) -> None:
    let_in(server, HBA_FILE.read_text())
    with connect(server) as connection:
        assert read_hba_rules(connection) == parse_hba(HBA_FILE.read_text())
        assert connection.execute("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL").fetchone() == (0,)
    let_in(server, IMAGES_OWN)


OURS = parse_hba(HBA_FILE.read_text())


@pytest.mark.parametrize(
    ("line", "covered"),
    [
        ("host all all 0.0.0.0/0 md5", True),
        ("host app clipper 10.1.2.0/24 scram-sha-256", True),
        ("hostssl all all all scram-sha-256", True),
        ("host replication repl 10.1.0.0/16 md5", True),
        ("host replication repl 172.16.0.0/11 md5", False),
        ("host replication repl 8.8.8.0/24 scram-sha-256", False),
        ("host replication repl samenet scram-sha-256", False),
        ("host app,replication clipper 10.1.2.0/24 scram-sha-256", False),
        ("host all all all trust", False),
        ("host all mallory all reject", False),
        ("local all all peer", False),
        ("host all all ::1/128 trust", True),
        ("host all all all ldap", False),
    ],
)
def test_which_lines_the_configmaps_file_stands_for(line: str, covered: bool) -> None:
    assert (missing_rules(parse_hba(line), OURS) == []) is covered


def test_options_are_never_covered() -> None:
    rule = HbaRule("host", ("all",), ("all",), "all", "scram-sha-256", ("map=them",))
    assert missing_rules([rule], OURS) == [rule]
    assert rule.line == "host  all  all  all  scram-sha-256  map=them"


def test_a_role_that_may_not_look_is_told_and_one_that_may_not_replicate_is_red(server: PrivateServer, tmp_path: Path) -> None:
    with fresh_role(server, "LOGIN") as role:
        found = look(server, tmp_path, PGUSER=role)
    assert {found[name].finding.colour for name in ("pg_hba.conf", "stored passwords", "image", "room for WAL")} == {YELLOW}
    assert found["replication"].finding.text == f"{role} has it not"
    assert found["replication"].finding.colour is RED
    assert all(line.todo for line in found.values() if line.finding.colour is not GREEN)


def test_a_password_that_scram_does_not_take_is_named(server: PrivateServer, tmp_path: Path) -> None:
    with fresh_role(server, "LOGIN") as role:
        sql(server, "postgres", f"SET password_encryption = 'md5'; ALTER ROLE {role} PASSWORD 'x'")
        found = look(server, tmp_path)["stored passwords"]
        assert (found.finding.colour, role in found.finding.text) == (RED, True)


def started_with(server: PrivateServer, **settings: str) -> None:
    before, server.settings = server.settings, FAST | settings
    try:
        server.restart("immediate")
    finally:
        server.settings = before


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        ({"wal_level": "minimal", "max_wal_senders": "0"}, "max_wal_senders", "max_wal_senders is 0, wal_level minimal"),
        (
            {"archive_mode": "on", "archive_command": "wal-g wal-push %p"},
            "another archive",
            "archive_command is wal-g wal-push %p",
        ),
        ({"archive_mode": "on", "archive_library": "basic_archive"}, "another archive", "archive_library is basic_archive"),
    ],
    ids=["senders", "command", "library"],
)
def test_settings_that_would_be_in_the_way(
    server: PrivateServer, tmp_path: Path, settings: dict[str, str], name: str, said: str
) -> None:
    if "archive_library" in settings and not _has_basic_archive(server):
        pytest.skip("this PostgreSQL has no basic_archive")
    started_with(server, **settings)
    try:
        line = look(server, tmp_path)[name]
        assert (line.finding.colour, said in line.finding.text) == (RED, True), line
        assert line.todo
    finally:
        started_with(server)


def _has_basic_archive(server: PrivateServer) -> bool:
    ((folder,),) = sql(server, "postgres", "SELECT setting FROM pg_config() WHERE name = 'PKGLIBDIR'")
    return (Path(folder) / "basic_archive.so").exists()


def test_our_own_archive_command_is_none_of_another(server: PrivateServer, tmp_path: Path) -> None:
    command = "sh /clipper-backup/pitr/archive.sh /clipper-backup/handshake %p"
    started_with(server, archive_mode="on", archive_command=command)
    try:
        assert look(server, tmp_path)["another archive"].finding.colour is GREEN
    finally:
        started_with(server)


def test_a_standby_is_red(server: PrivateServer, tmp_path: Path) -> None:
    server.stop()
    copy = server.directory.parent / "standby"
    shutil.copytree(server.directory, copy, symlinks=True, copy_function=shutil.copy2)
    for path in (copy, *copy.rglob("*")):
        shutil.chown(path, server.data.stat().st_uid, server.data.stat().st_gid)
    (copy / "data/standby.signal").touch()
    server.start()
    with PrivateServer(copy, server_binaries(_major(server)), environment=os.environ, settings=FAST) as standby:
        standby.start()
        assert look(standby, tmp_path)["primary"].finding.colour is RED


def _major(server: PrivateServer) -> int:
    return int((server.data / "PG_VERSION").read_text())
