"""The contestants of benchmarks/physical.py: how each of them is told to do the same thing."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.clock import SystemClock
from clipper_backup.config import DECLARED
from clipper_backup.postgres.account import Account
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.store.local import LocalStore
from clipper_backup.store.opening import Options, open_store
from measuring import Command, Machine
from physical_cluster import DROP, Cluster

SHIM = Path(__file__).parents[1] / "src/clipper_backup/ops/wal/archive.sh"
PROGRAM = Path(sys.executable).with_name("clipper-backup")
FULL, INCREMENTAL = "full", "incr"
_STANZA = "bench"
_BLOCK_SINCE = (2, 46)
_BARMAN, _BARMAN_NEEDS = "barman==3.19.1", ("boto3", "psycopg2-binary", "python-dateutil", "lz4", "zstandard")
"""barman asks for psycopg2, which has no wheels: the same comes as psycopg2-binary."""


def own_all(account: Account, folder: Path) -> None:
    """Give a folder and all in it to the server's account."""
    for each in (folder, *folder.rglob("*")):
        account.own(each)


@dataclass(frozen=True)
class Source:
    """One of the ways in which `base create` reads a server, and the settings that ask for it."""

    name: str
    settings: Mapping[str, str]


def sources(pgdata: Path) -> list[Source]:
    """Those that this version has."""
    known = {declared.name for declared in DECLARED}
    every = [Source("protocol", {}), Source("files", {"BASE_SOURCE": "files", "PGDATA": str(pgdata)})]
    return [source for source in every if source.settings.keys() <= known]


class Ours:
    """clipper-backup with one source. Its WAL goes through the sidecar and the shim."""

    def __init__(self, cluster: Cluster, machine: Machine, source: Source) -> None:
        self.name = f"ours, {source.name}"
        self.mode = f"ours-{source.name}"
        self._cluster, self._machine = cluster, machine
        self.repository = cluster.folder / "store" / self.mode
        self._handshake = cluster.folder / f"handshake-{source.name}"
        self._sidecar: subprocess.Popen[bytes] | None = None
        self.keys = cluster.make(cluster.folder / f"keys-{source.name}")
        machine.run(Command([PROGRAM, "key", "generate", "--output", self.keys / "identity"]))
        recipient = re.search(r"age1[0-9a-z]+", (self.keys / "identity").read_text())
        where = cluster.server.connection()
        self.environment = {
            "BACKUP_URL": f"file://{self.repository}",
            "ENCRYPTION_RECIPIENTS": recipient[0] if recipient else "",
            "ENCRYPTION_IDENTITY_FILE": str(self.keys / "identity"),
            "PGHOST": where["host"],
            "PGPORT": where["port"],
            "PGUSER": where["user"],
            "SCRATCH_DIR": str(cluster.folder / "scratch"),
            "PATH": f"{cluster.binaries.bindir}:{os.environ['PATH']}",
            **source.settings,
        }
        cluster.command(self.mode, f'exec sh {SHIM} {self._handshake} "$1"\n')

    def fresh(self) -> None:
        """An empty repository."""
        self.stop()
        self._cluster.remove(self.repository)
        open_or_create_repository(LocalStore(self.repository), SystemClock(), "benchmarks/physical.py")

    def start(self) -> None:
        """Start what archives."""
        self._cluster.make(self._handshake)
        data = self._cluster.server.data
        sidecar: list[str | Path] = [PROGRAM, "wal", "archive", "--pgdata", data, "--handshake", self._handshake]
        log = self._cluster.folder / f"{self.mode}.log"
        self._sidecar = self._machine.begin(Command(sidecar, self.environment), log)

    def begin(self) -> None:
        """Have it archive from now on."""
        self.start()
        self._cluster.until((self._handshake / "alive").exists, "`clipper-backup wal archive`")
        self._cluster.archive_to(self.mode)

    def pause(self) -> None:
        """Stop what archives where it is: it must not work ahead."""
        if self._sidecar is not None:
            self._sidecar.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        if self._sidecar is not None:
            self._sidecar.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """End what archives; the peak of its memory in bytes."""
        process, self._sidecar = self._sidecar, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_maxrss * 1024

    @property
    def pid(self) -> int | None:
        """Of what archives."""
        return None if self._sidecar is None else self._sidecar.pid

    def backup(self, _kind: str) -> Command:
        """Every backup is a full one that costs what changed."""
        return Command([PROGRAM, "base", "create", "--quiet"], self.environment)

    def restore(self, target: Path) -> Command:
        """The newest backup, without its WAL."""
        command: list[str | Path] = [PROGRAM, "restore", "--target-dir", target, "--immediate", "--yes", "--quiet"]
        command += [] if self._cluster.account.is_ours else ["--owner", self._cluster.account.name]
        return Command([*command, "--work-dir", target.with_name("restore-work")], self.environment)

    def push(self, segment: Path) -> Command:
        """One segment, in a process of its own."""
        return Command([PROGRAM, "wal", "push", segment], self.environment)


class OursInBucket(Ours):
    """The same with an S3 server, in a new prefix each time."""

    def __init__(
        self, cluster: Cluster, machine: Machine, source: Source, bucket: str, endpoint: str, keys: Mapping[str, str]
    ) -> None:
        super().__init__(cluster, machine, source)
        self._bucket, self._endpoint, self._keys, self._number = bucket, endpoint, dict(keys), 0

    def fresh(self) -> None:
        """An empty repository."""
        self.stop()
        self._number += 1
        url = f"s3://{self._bucket}/ours/{self._number}"
        self.environment |= {"BACKUP_URL": url, "BACKUP_ENDPOINT": self._endpoint, **self._keys}
        clock = SystemClock()
        store = open_store(
            url, endpoint=self._endpoint, timeout_seconds=60, retry_seconds=60, clock=clock, environment=self._keys,
            options=Options(),
        )  # fmt: skip
        open_or_create_repository(store, clock, "benchmarks/physical.py")


class PgBackRest:
    """pgBackRest as it is fastest: bundles, and blocks where this version has them."""

    mode = "pgbackrest"

    def __init__(self, cluster: Cluster, machine: Machine, program: Path) -> None:
        printed = machine.run(Command([program, "version"]))
        found = re.search(r"([0-9]+)\.([0-9]+)", printed)
        self.version = printed.strip()
        self.name = f"pgBackRest {found[0]}" if found else self.version
        self._cluster, self._machine, self._program = cluster, machine, program
        self._folder = cluster.make(cluster.folder / "pgbackrest")
        self.repository = cluster.folder / "store" / "pgbackrest"
        self._config = self._folder / "pgbackrest.conf"
        where = cluster.server.connection()
        block = bool(found) and (int(found[1]), int(found[2])) >= _BLOCK_SINCE  # type: ignore[index]  # looked at
        lines = [
            "[global]", f"repo1-path={self.repository}", "repo1-cipher-type=aes-256-cbc", "repo1-cipher-pass=a passphrase",
            "repo1-bundle=y", *(["repo1-block=y"] if block else []), "repo1-retention-full=9999999", "compress-type=zst",
            "compress-level=1", "process-max=2", "start-fast=y", "log-level-console=warn", "log-level-file=off",
            f"log-path={self._folder}", f"lock-path={self._folder}/lock", f"spool-path={self._folder}/spool",
            f"[{_STANZA}]", f"pg1-path={cluster.server.data}", f"pg1-socket-path={where['host']}", f"pg1-port={where['port']}",
            f"pg1-user={where['user']}",
        ]  # fmt: skip
        self._config.write_text("\n".join(lines) + "\n")
        own_all(cluster.account, self._folder)
        for mode, option in ((self.mode, "--no-archive-async"), (f"{self.mode}-async", "--archive-async")):
            cluster.command(mode, f'exec {program} --config={self._config} --stanza={_STANZA} {option} archive-push "$1"\n')

    def _command(self, *arguments: str | Path) -> Command:
        # As the server's account, which its archive_command has too: the repository is of one owner.
        account = None if self._cluster.account.is_ours else self._cluster.account
        return Command([self._program, f"--config={self._config}", f"--stanza={_STANZA}", *arguments], account=account)

    def fresh(self) -> None:
        """An empty repository."""
        self._cluster.make(self.repository)
        self._cluster.make(self._folder / "spool")
        self._machine.run(self._command("stanza-create"))

    def begin(self) -> None:
        """Have it archive from now on."""
        self._cluster.archive_to(self.mode)

    def stop(self) -> int:
        """Nothing runs."""
        return 0

    def backup(self, kind: str) -> Command:
        """Full, or incremental to the last one."""
        return self._command("backup", f"--type={kind}")

    def restore(self, target: Path) -> Command:
        """The newest backup, without its WAL."""
        return self._command("restore", f"--pg1-path={target}", "--type=immediate")

    def push(self, segment: Path) -> Command:
        """One segment, in a process of its own."""
        return self._command("archive-push", segment)


class PgBaseBackup:
    """PostgreSQL's own: an archive compressed by the server, synced, not sealed; no incremental ones before 17."""

    name = "pg_basebackup"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.repository = cluster.folder / "store" / "pg_basebackup"

    def fresh(self) -> None:
        """No folder: it makes its own."""
        self._cluster.remove(self.repository)

    def begin(self) -> None:
        """It archives nothing."""
        self._cluster.archive_to(DROP)

    def stop(self) -> int:
        """Nothing runs."""
        return 0

    def backup(self, _kind: str) -> Command:
        """A full one."""
        where = self._cluster.server.connection()
        return Command(
            [
                self._cluster.binaries.program("pg_basebackup"), "-h", where["host"], "-p", where["port"], "-U", where["user"],
                "-D", self.repository, "--format=tar", "--compress=server-zstd:level=1", "--checkpoint=fast", "--wal-method=none",
            ]
        )  # fmt: skip


@contextmanager
def archiving(tool: "Ours | PgBackRest | PgBaseBackup | Barman") -> Iterator[None]:
    """Have the server's WAL go to this one for a while."""
    tool.begin()
    try:
        yield
    finally:
        tool.stop()


class Barman:
    """barman-cloud, which knows buckets only: it is compared with ours on the same S3 server. It seals nothing itself."""

    name = "barman-cloud"

    def __init__(self, cluster: Cluster, venv: Path, bucket: str, endpoint: str, keys: Mapping[str, str]) -> None:
        if not (venv / "bin/barman-cloud-backup").exists():
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            pip: list[str | Path] = [
                venv / "bin/pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--only-binary",
                ":all:",
            ]
            subprocess.run([*pip, *_BARMAN_NEEDS], check=True)
            subprocess.run([*pip, "--no-deps", _BARMAN], check=True)
        self._cluster, self._venv = cluster, venv
        self._options = ["--endpoint-url", endpoint]
        self._bucket = f"s3://{bucket}/barman"
        self._environment = {
            "AWS_ACCESS_KEY_ID": keys["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": keys["AWS_SECRET_ACCESS_KEY"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "HOME": str(cluster.folder),
            "PATH": f"{venv}/bin:{cluster.binaries.bindir}:{os.environ['PATH']}",
        }

    def fresh(self) -> None:
        """Each backup has a name of its own."""

    def begin(self) -> None:
        """It archives nothing."""
        self._cluster.archive_to(DROP)

    def stop(self) -> int:
        """Nothing runs."""
        return 0

    def backup(self, _kind: str) -> Command:
        """A full one; of its compressions lz4 is the fastest, and zstd is none of them."""
        where = self._cluster.server.connection()
        options = [
            *self._options,
            "-h",
            where["host"],
            "-p",
            where["port"],
            "-U",
            where["user"],
            "-J",
            "2",
            "--immediate-checkpoint",
        ]
        return Command([self._venv / "bin/barman-cloud-backup", *options, "--lz4", self._bucket, "bench"], self._environment)

    def push(self, segment: Path) -> Command:
        """One segment, in a process of its own."""
        program = self._venv / "bin/barman-cloud-wal-archive"
        return Command(
            [program, *self._options, "--zstd", "--compression-level", "1", self._bucket, "bench", segment], self._environment
        )
