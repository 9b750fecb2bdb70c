"""Base backups, restores and WAL, against what people use today: one run, one server, alternating, medians, ratios.

    python benchmarks/physical.py [--scale 11] [--rounds 5] [--json FILE] [--only full,restore]

Everybody reads the same PostgreSQL 15 and writes below one folder, compressed by zstd 1, sealed (but pg_basebackup and
barman-cloud, which cannot), synced: how often each asks for that is counted by strace in a run of its own. Before each run the
disk is settled and what the run reads is read once. CPU is that of all who work: the program, the server's backends, its
archive_command (measuring.py says how); `own` is the program's. Peak memory is the largest single process. A base backup ends
when its WAL is archived, with everybody. Goals: DESIGN, 10; those against pgBackRest were set with 2.59, and blocks.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import physical_table
from clipper_backup.postgres.binaries import find_binaries
from clipper_backup.postgres.server import PrivateServer
from measuring import Command, Machine, Measured, family_cpu_seconds, peak_bytes_below, size_of
from physical_cluster import DROP, HOLD, KEEP, Cluster
from physical_tools import (
    FULL,
    INCREMENTAL,
    PROGRAM,
    Barman,
    Ours,
    OursInBucket,
    PgBackRest,
    PgBaseBackup,
    archiving,
    own_all,
    sources,
)

PARTS = ("full", "incremental", "restore", "push", "backlog", "replay", "bucket")
SHARES = {"incremental, 0.1 % of the rows": 0.001, "incremental, 1 % of the rows": 0.01}
_PUSHES = 5
"""A round: each takes a tenth of a second."""
_REDO = re.compile(r"redo done at .* elapsed: ([0-9.]+) s")
_Any = TypeVar("_Any")
_Tool: TypeAlias = Ours | PgBackRest | PgBaseBackup


class Bench:
    """What has been measured so far, by part and contestant, and how to go on."""

    def __init__(self, cluster: Cluster, machine: Machine, options: argparse.Namespace) -> None:
        self.cluster, self.machine, self.options = cluster, machine, options
        self.results: dict[str, dict[str, Measured]] = {}
        self.syncs: dict[str, dict[str, dict[str, int]]] = {}
        self.ours = [Ours(cluster, machine, source) for source in sources(cluster.server.data)]
        self.pgbackrest = PgBackRest(cluster, machine, options.pgbackrest)
        self.pg_basebackup = PgBaseBackup(cluster)
        self._segments: list[str] = []
        self._round = 0

    def wants(self, part: str) -> bool:
        """Whether that was asked for."""
        return part in self.options.only

    def order(self, contestants: Sequence[_Any]) -> list[_Any]:
        """In which order they come in this round."""
        return list(contestants) if self._round % 2 == 0 else list(reversed(contestants))

    def into(self, part: str, name: str) -> Measured:
        """Where a contestant's numbers of a part are gathered."""
        return self.results.setdefault(part, {}).setdefault(name, Measured())

    def measure(self, part: str, name: str, command: Command) -> Measured:
        """One run of one contestant."""
        measured = self.into(part, name)
        self.machine.measure(command, measured)
        self.told(part, name, measured)
        return measured

    def told(self, part: str, name: str, measured: Measured) -> None:
        """Show the last run."""
        cpu = f"{measured.cpu_seconds[-1]:7.2f} s CPU" if measured.cpu_seconds else ""
        print(f"  {part:32} {name:24} {measured.seconds[-1]:8.3f} s {cpu}", flush=True)

    # -- base backups and restores

    def base_round(self) -> None:
        """Everybody a full backup, then after updates an incremental one, then a restore."""
        tools: list[_Tool] = [*self.ours, self.pgbackrest, self.pg_basebackup]
        for tool in self.order(tools):
            tool.fresh()
            self._backup("full", tool, FULL)
        incremental: list[Ours | PgBackRest] = [*self.ours, self.pgbackrest]
        for part, share in SHARES.items():
            if self.wants("incremental"):
                self.cluster.mode(DROP)
                self.cluster.update(share)
                for tool in self.order(incremental):
                    self._backup(part, tool, INCREMENTAL)
        if self.wants("restore"):
            for tool in self.order(incremental):
                self._restore(tool)
        self._round += 1

    def _backup(self, part: str, tool: _Tool, kind: str) -> None:
        with archiving(tool):
            self.cluster.settle(self.cluster.server.data / "base")
            before = size_of(tool.repository)
            measured = self.measure(part, tool.name, tool.backup(kind))
            measured.stored_bytes.append(size_of(tool.repository) - before)
        self.cluster.mode(DROP)

    def _restore(self, tool: Ours | PgBackRest) -> None:
        target = self.cluster.make(self.cluster.folder / "restored")
        self.cluster.settle(tool.repository)
        self.measure("restore", tool.name, tool.restore(target))
        self.cluster.remove(target)

    def count_syncs(self) -> None:
        """One run more of each, under strace."""
        tools: list[_Tool] = [*self.ours, self.pgbackrest, self.pg_basebackup]
        for tool in tools:
            found = self.syncs.setdefault(tool.name, {})
            tool.fresh()
            with archiving(tool):
                found["full"] = self.machine.syncs(tool.backup(FULL))
            self.cluster.mode(DROP)
            if not isinstance(tool, PgBaseBackup):
                target = self.cluster.make(self.cluster.folder / "restored")
                found["restore"] = self.machine.syncs(tool.restore(target))
                self.cluster.remove(target)
        (segment,) = self.segments(1)
        for pusher in (self.ours[0], self.pgbackrest):
            self.syncs[pusher.name]["push"] = self.machine.syncs(pusher.push(self.cluster.wal / segment))

    # -- WAL

    def segments(self, count: int) -> list[str]:
        """Finished segments that were archived nowhere."""
        if len(self._segments) < count:
            self.cluster.mode(DROP)
            self._segments += self.cluster.write_segments(count - len(self._segments))
            self.cluster.until(lambda: not self.cluster.waiting(), "the archive to catch up")
        taken, self._segments = self._segments[:count], self._segments[count:]
        return taken

    def push_round(self) -> None:
        """One segment, some times."""
        tools: list[Ours | PgBackRest] = [self.ours[0], self.pgbackrest]
        for segment in self.segments(_PUSHES):
            for tool in self.order(tools):
                self.machine.measure(tool.push(self.cluster.wal / segment), self.into("push of one segment", tool.name))
        for tool in tools:
            self.told("push of one segment", tool.name, self.into("push of one segment", tool.name))
        self._round += 1

    def backlog_round(self, segments: Sequence[str]) -> None:
        """PostgreSQL has so many segments ready, and its archive_command begins to work; the sidecar ran, and was stopped."""
        contestants: list[tuple[str, Ours | PgBackRest]] = [
            ("ours, sidecar", self.ours[0]),
            (f"{self.pgbackrest.name}, async", self.pgbackrest),
        ]
        for name, tool in self.order(contestants):
            tool.fresh()
            if isinstance(tool, Ours):
                tool.begin()
                tool.pause()
            else:
                self.cluster.archive_to(DROP)
            self.cluster.mode(HOLD)
            self.cluster.again(segments)
            self.cluster.settle()
            for segment in segments:
                (self.cluster.wal / segment).read_bytes()
            measured = self.into(self._backlog, name)
            self._drain(tool, measured, set(segments))
            self.told(self._backlog, name, measured)
        self._round += 1

    @property
    def _backlog(self) -> str:
        return f"backlog of {self.options.segments} segments"

    def _drain(self, tool: Ours | PgBackRest, measured: Measured, segments: set[str]) -> None:
        cpu_before = family_cpu_seconds()
        began = time.monotonic()
        if isinstance(tool, Ours):
            tool.go_on()
            self.cluster.mode(tool.mode)
        else:
            self.cluster.mode(f"{tool.mode}-async")
        self.cluster.until(lambda: segments.isdisjoint(self.cluster.waiting()), "the backlog")
        measured.seconds.append(time.monotonic() - began)
        root = tool.pid if isinstance(tool, Ours) and tool.pid is not None else os.getpid()
        peak = 0 if root == os.getpid() else peak_bytes_below(root)
        self.cluster.mode(DROP)
        peak = max(peak, tool.stop())
        measured.cpu_seconds.append(family_cpu_seconds() - cpu_before)
        if peak:
            measured.peak_bytes.append(peak)
        measured.stored_bytes.append(size_of(tool.repository))

    def replay_rounds(self) -> None:
        """A base backup, WAL behind it in our archive and in a folder; then recovery from each."""
        ours, count = self.ours[0], self.options.replay
        ours.fresh()
        ours.begin()
        copy = self.cluster.archive / f"archive-{KEEP}"
        both = f"set -e\n( {copy.read_text().strip()} )\n{(self.cluster.archive / f'archive-{ours.mode}').read_text()}"
        self.cluster.command("both", both)
        self.cluster.archive_to("both")
        self.machine.run(ours.backup(FULL))
        self.cluster.write_segments(count)
        self.cluster.until(lambda: not self.cluster.waiting(), "the archive to catch up")
        ours.stop()
        self.cluster.mode(DROP)
        copied = {"restore_command": f"cp {self.cluster.archive}/wal/%f %p"}
        contestants = [("ours, restore --start", self._replay_started), ("cp", lambda: self._replay(copied))]
        if self.machine.can_run(PROGRAM, self.cluster.account):
            contestants.append(("ours, wal fetch", self._replay_fetched))
        else:
            print(f"left out: wal fetch; {self.cluster.account.name} cannot run {PROGRAM}", flush=True)
        for number in range(self.options.rounds):
            print(f"replay, round {number + 1} of {self.options.rounds}", flush=True)
            for name, replay in self.order(contestants):
                measured = self.into(f"replay of {count} segments", name)
                measured.seconds.append(replay())
                self.told(f"replay of {count} segments", name, measured)
            self._round += 1

    def _restored(self, *more: str) -> Path:
        target = self.cluster.make(self.cluster.folder / "restored")
        self.cluster.remove(target.with_name("restore-work"))
        command = self.ours[0].restore(target)
        self.cluster.settle()
        arguments = [each for each in command.arguments if each != "--immediate"]
        self.machine.run(Command([*arguments, *more], command.environment))
        return target

    def _replay_started(self) -> float:
        data = self._restored("--start")
        pid = int((data / "postmaster.pid").read_text().split()[0])
        seconds = _redo_seconds(data.with_name("restore-work") / "server.log")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 3)  # SIGQUIT: it is thrown away
        self.cluster.until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), "the restored server's end")
        self.cluster.remove(data)
        return seconds

    def _replay_fetched(self) -> float:
        for read in (self.ours[0].repository, self.ours[0].keys):  # `wal fetch` runs as the server does
            own_all(self.cluster.account, read)
        return self._replay({})

    def _replay(self, settings: dict[str, str]) -> float:
        data = self._restored()
        self.cluster.settle()
        private = {"hot_standby": "off", "archive_mode": "off", **settings}
        folder = self.cluster.make(self.cluster.folder / "replayed")
        with PrivateServer(folder, self.cluster.binaries, environment=os.environ, data=data, settings=private) as server:
            server.start(timeout_seconds=600)
            seconds = _redo_seconds(server.log)
            server.stop("immediate")
        self.cluster.remove(data)
        return seconds

    # -- a bucket

    def bucket_rounds(self) -> None:
        """barman-cloud and ours with one S3 server."""
        import sys  # noqa: PLC0415

        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from fixtures.stores import seaweed  # noqa: PLC0415  needs the packages of the tests

        with seaweed(lambda: Path(tempfile.mkdtemp(dir=self.cluster.folder))) as s3:
            bucket = (s3.bucket, s3.endpoint, s3.environment)
            ours = OursInBucket(self.cluster, self.machine, sources(self.cluster.server.data)[0], *bucket)
            venv = Path(__file__).parents[1] / ".work" / "barman"
            barman = Barman(self.cluster, venv, *bucket)
            tools: list[OursInBucket | Barman] = [ours, barman]
            for number in range(self.options.rounds):
                print(f"bucket, round {number + 1} of {self.options.rounds}", flush=True)
                for tool in self.order(tools):
                    self.cluster.settle(self.cluster.server.data / "base")
                    tool.fresh()
                    with archiving(tool):
                        self.measure("full, into a bucket", tool.name, tool.backup(FULL))
                    self.cluster.mode(DROP)
                for segment in self.segments(_PUSHES):
                    for tool in self.order(tools):
                        command = tool.push(self.cluster.wal / segment)
                        self.machine.measure(command, self.into("push into a bucket", tool.name))
                self._round += 1


def _redo_seconds(log: Path) -> float:
    found = _REDO.findall(log.read_text(errors="replace"))
    if not found:
        raise SystemExit(f"{log} does not say how long redo took")
    return float(found[-1])


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@contextlib.contextmanager
def prepared(options: argparse.Namespace) -> Iterator[tuple[Bench, dict[str, object]]]:
    """The server, filled; and what is told of the run."""
    binaries = find_binaries(tools=("postgres", "initdb", "pg_basebackup"), exactly=15, environment=os.environ)
    folder = Path(tempfile.mkdtemp(prefix="clipper-bench-", dir=options.folder))
    folder.chmod(0o755)
    kept = options.segments + options.replay + (2 * _PUSHES + 6) * options.rounds + 100
    try:
        with Cluster(folder, binaries, options.scale, kept) as cluster:
            for name in ("store", "scratch", "home"):
                cluster.make(folder / name)
            environment = {
                "PATH": os.environ["PATH"],
                "LC_ALL": "C.UTF-8",
                "HOME": str(folder / "home"),
                "TMPDIR": str(folder / "scratch"),
            }
            began = time.monotonic()
            size = cluster.fill()
            print(f"prepared: {size / 1e9:.2f} GB ({time.monotonic() - began:.0f} s)", flush=True)
            bench = Bench(cluster, Machine(environment, folder), options)
            about = {
                "commit": subprocess.run(
                    ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
                ).stdout.strip(),
                "postgresql": binaries.version,
                "pgbackrest": bench.pgbackrest.version,
                "database_bytes": size,
                "scale": options.scale,
                "rounds": options.rounds,
                "cores": os.cpu_count(),
                "platform": platform.platform(),
            }
            yield bench, about
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(bench: Bench) -> None:
    """All rounds of all parts that are wanted."""
    rounds = bench.options.rounds

    def repeat(what: str, once: Callable[[], None]) -> None:
        for number in range(rounds):
            print(f"{what}, round {number + 1} of {rounds}", flush=True)
            once()

    if bench.wants("full") or bench.wants("incremental") or bench.wants("restore"):
        repeat("base", bench.base_round)
        if bench.options.syncs:
            bench.count_syncs()
    if bench.wants("push"):
        for tool in (bench.ours[0], bench.pgbackrest):
            tool.fresh()
        repeat("push", bench.push_round)
    if bench.wants("backlog"):
        segments = bench.segments(bench.options.segments)
        repeat("backlog", lambda: bench.backlog_round(segments))
    if bench.wants("replay"):
        bench.replay_rounds()
    if bench.wants("bucket"):
        bench.bucket_rounds()


def main() -> None:
    """Prepare, run the rounds, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=11.0, help="11 is about 2.5 GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--segments", type=int, default=120, help="of the backlog")
    parser.add_argument("--replay", type=int, default=100, help="segments to replay")
    parser.add_argument("--pgbackrest", type=Path, default=Path("/usr/bin/pgbackrest"), help="another build of it")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--no-syncs", dest="syncs", action="store_false", help="do not count syncs")
    parser.add_argument("--folder", type=Path, help="where to work; else the system's temporary folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"no part is named {', '.join(sorted(unknown))}")
    with prepared(options) as (bench, about):
        try:
            run(bench)
        finally:  # what was measured before a part failed took a quarter of an hour
            told = {part: {name: each for name, each in found.items() if each.seconds} for part, found in bench.results.items()}
            print("\n" + physical_table.text(about, told, bench.syncs))
            if options.json:
                options.json.write_text(json.dumps(physical_table.document(about, told, bench.syncs), indent=2) + "\n")


if __name__ == "__main__":
    main()
