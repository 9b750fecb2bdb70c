"""A real PostgreSQL in the Pod of postgres-pitr-config.yaml: the manifest's own commands, args, settings and mounts.

The entry point stands in for the image's; server and archiver run as one user, under dash and under busybox's sh.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import load
from clipper_backup.ops.events import ignore
from clipper_backup.ops.wal.status import wal_status
from clipper_backup.ops.work import open_work
from clipper_backup.postgres.account import Account
from clipper_backup.postgres.control_file import ControlFile
from clipper_backup.wal_names import Segment
from fixtures.cli import DEADLINE_SECONDS, RunCli
from fixtures.pod import Pod, can_run_our_program, pod_in
from fixtures.sweeps import SOAK

MIB = 1 << 20
pytestmark = [
    pytest.mark.skipif(not can_run_our_program(), reason="the server's user may not read our Python"),
    pytest.mark.soak(share=0.2),
]


@pytest.fixture(params=[(15, "dash"), (18, "busybox")], ids=["15-dash", "18-busybox"])
def pod(request: pytest.FixtureRequest, server_folder: Path) -> Iterator[Pod]:
    """New, on a volume with ext4's lost+found; nothing runs yet."""
    major, shell = request.param
    with pod_in(server_folder, major, shell) as made:
        (server_folder / "volume/lost+found").mkdir()
        yield made


def base_backup(pod: Pod, run_cli: RunCli) -> None:
    """As the CronJob's Pod takes it: over the network, by password, through the hba_file of the ConfigMap."""
    run_cli("base", "create", env=pod.login(BASE_SOURCE="protocol"), check=True)


def until_stored(pod: Pod, name: str) -> None:
    pod.until(lambda: name in pod.stored())


def test_a_new_volume_becomes_a_database_that_archives_and_lets_base_backups_in(pod: Pod, run_cli: RunCli) -> None:
    pod.start_sidecar()
    pod.start_server()
    assert pod.pgdata == pod.folder / "volume/pgdata"
    mounts = pod.folder / "mounts"
    command = f"sh {mounts}/pitr/archive.sh {mounts}/handshake %p"
    assert f"init process: archive_command is {command}" in pod.log.read_text()
    shown = {name: pod.show(name) for name in ("wal_level", "archive_mode", "archive_command", "archive_timeout", "hba_file")}
    expected = {"wal_level": "replica", "archive_mode": "on", "archive_command": command, "archive_timeout": "5min"}
    assert shown == expected | {"hba_file": f"{mounts}/pitr/pg_hba.conf"}
    assert pod.sql("SELECT count(*) FROM pg_settings WHERE name = 'summarize_wal' AND setting = 'on'") == [(pod.major >= 17,)]
    refused = run_cli("base", "create", env=pod.login(PGPASSWORD="another"))
    assert (refused.code, "password authentication failed" in refused.stderr) == (12, True), refused
    base_backup(pod, run_cli)
    last = pod.commit(mib=2)
    pod.sql("SELECT pg_switch_wal()")
    until_stored(pod, last)
    done = run_cli("wal", "verify", env=pod.login(), check=True)
    assert done.code == 0
    assert pod.sql("SELECT failed_count >= 0 FROM pg_stat_archiver WHERE archived_count > 0") == [(True,)]


@pytest.mark.parametrize("order", ["plain", "native"])
def test_the_last_segment_is_archived_when_the_pod_ends(pod: Pod, run_cli: RunCli, order: str) -> None:
    """Plain: the kubelet tells all containers at once. Native: the sidecar after the server has ended."""
    pod.start_sidecar()
    pod.start_server()
    base_backup(pod, run_cli)
    last = pod.commit(mib=5)
    assert last not in pod.stored()
    assert pod.sidecar is not None
    if order == "plain":
        pod.sidecar.send_signal(signal.SIGTERM)
    assert pod.stop_server() == 0
    if order == "native":
        pod.sidecar.send_signal(signal.SIGTERM)
    assert pod.sidecar.wait(DEADLINE_SECONDS) == 0, pod.told()
    control = ControlFile.parse((pod.pgdata / "global/pg_control").read_bytes())
    checkpoint = Segment(control.timeline, int(control.redo) // MIB, MIB)  # of the shutdown
    # PostgreSQL closes the segment that the last commit is in, and writes the checkpoint into the next.
    assert {last, checkpoint.previous().name} <= pod.stored()
    assert (checkpoint.name in pod.stored(), pod.ready() - pod.stored()) == (False, set())


def test_a_sidecar_that_is_killed_goes_on_where_it_was(pod: Pod, run_cli: RunCli) -> None:
    pod.start_sidecar()
    pod.start_server()
    base_backup(pod, run_cli)
    assert pod.sidecar is not None
    pod.sidecar.kill()
    pod.sidecar.wait()
    last = pod.commit(mib=5)
    pod.sql("SELECT pg_switch_wal()")
    pod.start_sidecar()
    until_stored(pod, last)
    pod.until(lambda: not pod.ready())
    done = run_cli("wal", "verify", env=pod.login())
    assert done.code == 0, done


def test_without_config_the_database_runs_and_the_sidecar_waits_for_it(pod: Pod) -> None:
    (pod.folder / "config/BACKUP_URL").unlink()
    pod.start_server()
    pod.start_sidecar()
    pod.until(lambda: "no repository is configured" in pod.told())
    last = pod.commit(mib=2)
    pod.sql("SELECT pg_switch_wal()")
    pod.until(lambda: "no `clipper-backup wal archive` answers" in pod.log.read_text())
    assert pod.sidecar is not None
    assert pod.sidecar.poll() is None
    pod.configure(BACKUP_URL=pod.store.url)
    until_stored(pod, last)
    assert pod.sidecar.poll() is None
    assert pod.show("archive_mode") == "on"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs two users' programs")
def test_a_sidecar_of_another_image_family_says_which_numbers_do_not_fit(pod: Pod) -> None:
    pod.start_server()
    other = Account("other", 999_999, 999_999)
    pod.start_sidecar(other)
    pod.until(lambda: f"belongs to user {pod.account.uid}, and this process runs as user {other.uid}" in pod.told())
    assert "debian-image" in pod.told()
    assert pod.sidecar is not None
    assert pod.sidecar.poll() is None
    assert not (pod.folder / "mounts/handshake/alive").exists()


def test_what_a_restore_and_a_user_left_in_the_files(pod: Pod) -> None:
    """A restore leaves archive_mode off in postgresql.auto.conf; logical replication was switched on by ALTER SYSTEM."""
    pod.start_server()
    for setting in ("archive_mode = off", "wal_level = logical", "archive_command = 'false'", "hba_file = '/nowhere'"):
        pod.sql(f"ALTER SYSTEM SET {setting}")
    assert pod.stop_server() == 0
    pod.start_server()
    assert (pod.show("archive_mode"), pod.show("wal_level")) == ("on", "logical")
    pod.sql("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')")
    assert pod.stop_server() == 0
    pod.start_server()
    assert pod.show("wal_level") == "logical", "with replica it would not start: it has a logical slot"


def test_a_trickle_of_writes_is_never_far_from_the_archive(server_folder: Path, run_cli: RunCli) -> None:
    """The loss that `wal status` reports stays below 900 s; but in `make soak`, all times are a hundredth of that."""
    scale, seconds = (1, 700) if SOAK else (100, 20)
    with pod_in(server_folder, 15, "dash") as pod:
        script = server_folder / "mounts/pitr/start.sh"
        text = script.read_text()
        assert text.count("archive_timeout=300") == 1
        script.write_text(text.replace("archive_timeout=300", f"archive_timeout={300 // scale}"))
        pod.start_sidecar()
        pod.start_server()
        base_backup(pod, run_cli)
        pod.sql("CREATE TABLE trickle (at timestamptz DEFAULT clock_timestamp())")
        settings = load({}, pod.login()).settings
        work = open_work(settings, SystemClock(), ignore, read_only=True)
        begun, losses = pod.clock(), []
        while pod.clock() - begun < seconds:
            pod.sql("INSERT INTO trickle DEFAULT VALUES")
            status = wal_status(work, ask_server=True)
            assert status.server is not None
            assert status.loss is not None
            assert status.seen.window is not None
            since = status.loss.since or status.seen.window.backup.stopped_at  # nothing committed since it is archived
            losses.append((status.server.now - since).total_seconds())
        assert max(losses) < 900 / scale, losses
        assert max(losses) > 100 / scale, "it is measured"
