"""Dump and restore, against what people use today: one run, alternating, medians, ratios.

    python benchmarks/dump.py [--scale 12] [--rounds 4] [--json FILE]

Everybody reads the same server and writes to the same disk; every result is synced. Before each run the disk is settled and
what the run reads is read once: some machines drop from memory what was not used for a minute. Peers are pipes of
PostgreSQL's own programs. Peak memory is the largest single process below the measured one (ru_maxrss), seconds are wall-clock.
Goals: dump <= 1/4 of `pg_dump | gzip`, <= 1.15 of `pg_dump -Fc -Z0 | zstd -1` (fingerprint off); restore <= 1.1 of
`pg_restore -j2`.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from clipper_backup.ops.demo.database import create_clipper_database
from clipper_backup.ops.events import Event, StepDone
from clipper_backup.postgres.binaries import Binaries, find_binaries
from clipper_backup.postgres.server import PrivateServer

DATABASE = "clipper"
OURS, OURS_COUNTS, GZIP, ZSTD = "ours, fingerprint off", "ours, counts", "pg_dump | gzip", "pg_dump -Fc -Z0 | zstd -1"
RESTORE_OURS, RESTORE_PEER = "ours, restore --jobs 2", "pg_restore -j2"

Order = Callable[[Sequence[tuple[str, ...]]], list[tuple[str, ...]]]
"""In which order a round takes its contestants."""


@dataclass
class Measured:
    """One contestant's rounds."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    stored_bytes: int = 0


def timed(into: Measured, command: str, environment: dict[str, str]) -> None:
    """Run a shell line with `set -e -o pipefail`; its rusage is that of the whole tree it waited for."""
    began = time.monotonic()
    process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", command], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    into.seconds.append(time.monotonic() - began)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"failed ({process.returncode}): {command}")
    into.cpu_seconds.append(usage.ru_utime + usage.ru_stime)
    into.peak_bytes.append(usage.ru_maxrss * 1024)


def show(event: Event) -> None:
    """Progress of the preparation."""
    if isinstance(event, StepDone):
        print(f"prepared: {event.text} ({event.seconds:.0f} s)", flush=True)


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def read_through(path: Path) -> None:
    """Bring a file, or all files of a folder, into the kernel's memory."""
    for each in [path] if path.is_file() else path.rglob("*"):
        if each.is_file():
            with each.open("rb") as file:
                while file.read(1 << 20):
                    pass


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


class Bench:
    """One server, one folder, and the commands to compare."""

    def __init__(self, server: PrivateServer, binaries: Binaries, folder: Path) -> None:
        where = server.connection(DATABASE)
        self.folder, self.server = folder, server
        with psycopg.connect(**where, autocommit=True) as connection:  # type: ignore[arg-type]
            (found,) = connection.execute("SELECT current_setting('data_directory') || '/base/' || oid FROM pg_database"
                                          " WHERE datname = current_database()").fetchone() or ("",)  # fmt: skip
        self.source = Path(found)
        self.results: dict[str, Measured] = {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}:{binaries.bindir}:{os.environ['PATH']}",
            "PGHOST": where["host"],
            "PGPORT": where["port"],
            "PGUSER": where["user"],
            "PG_BINDIR": str(binaries.bindir),
            "BACKUP_DATABASES": DATABASE,
            "SCRATCH_DIR": str(folder),
        }

    def run(self, name: str, command: str, reads: Path, produced: Path | None, **environment: str) -> None:
        """One round of one contestant, which *reads* a file or folder, and the size of what it *produced*."""
        with psycopg.connect(**self.server.connection("postgres"), autocommit=True) as connection:  # type: ignore[arg-type]
            connection.execute("CHECKPOINT")
        os.sync()
        read_through(reads)
        measured = self.results.setdefault(name, Measured())
        timed(measured, command, self.environment | environment)
        measured.stored_bytes = 0 if produced is None else size_of(produced)
        print(f"  {name:28} {measured.seconds[-1]:7.1f} s  {measured.cpu_seconds[-1]:7.1f} s CPU", flush=True)

    def dumps(self, order: Order) -> None:
        """Each way to dump, once."""
        for name, command, place in order([
            (OURS, "DUMP_FINGERPRINT=off clipper-backup dump create --quiet", "off"),
            (GZIP, "pg_dump {database} | gzip > {path}; sync {path}", "peer"),
            (ZSTD, "pg_dump -Fc -Z0 {database} | zstd -q -1 -f -o {path}; sync {path}", "peer"),
            (OURS_COUNTS, "DUMP_FINGERPRINT=counts clipper-backup dump create --quiet", "counts"),
        ]):  # fmt: skip
            path = self.folder / place
            remove(path)
            self.run(name, command.format(database=DATABASE, path=path), self.source, path, BACKUP_URL=f"file://{path}")

    def warm_up(self) -> None:
        """What a round costs only the first time, nobody pays: reading the database, making files of WAL."""
        subprocess.run(["pg_dump", "-Fc", "-Z0", "-f", self.folder / "archive", DATABASE], env=self.environment, check=True)
        restored = f"createdb -T template0 copy; pg_restore -j2 -e -d copy {self.folder}/archive"
        subprocess.run(["bash", "-euc", restored], env=self.environment, check=True)
        print("warmed up: one restore", flush=True)

    def restores(self, order: Order) -> None:
        """Each way to restore, once; the peer restores an uncompressed archive that lies ready, and analyzes as we do."""
        archive = self.folder / "archive"
        for name, command, reads in order([
            (RESTORE_OURS, "clipper-backup dump restore latest --into copy --jobs 2 --quiet", "counts"),
            (RESTORE_PEER, f"createdb -T template0 copy; pg_restore -j2 -e -d copy {archive}; psql -qc ANALYZE copy", "archive"),
        ]):  # fmt: skip
            with psycopg.connect(**self.server.connection("postgres"), autocommit=True) as connection:  # type: ignore[arg-type]
                connection.execute("DROP DATABASE IF EXISTS copy WITH (FORCE)")
            self.run(name, command, self.folder / reads, None, BACKUP_URL=f"file://{self.folder}/counts")


def table(results: dict[str, Measured]) -> str:
    """Medians and ratios."""
    lines = [f"{'':28} {'median s':>9} {'min':>7} {'max':>7} {'CPU s':>7} {'peak MiB':>9} {'stored MB':>10}"]
    for name, m in results.items():
        lines.append(
            f"{name:28} {statistics.median(m.seconds):9.1f} {min(m.seconds):7.1f} {max(m.seconds):7.1f}"
            f" {statistics.median(m.cpu_seconds):7.1f} {max(m.peak_bytes) / 2**20:9.0f} {m.stored_bytes / 1e6:10.1f}"
        )
    for ours, peer, goal in (
        (OURS, GZIP, 0.25),
        (OURS, ZSTD, 1.15),
        (OURS_COUNTS, ZSTD, None),
        (RESTORE_OURS, RESTORE_PEER, 1.1),
    ):
        if ours in results and peer in results:
            ratios = [a / b for a, b in zip(results[ours].seconds, results[peer].seconds, strict=True)]
            wanted = "" if goal is None else f" (goal <= {goal})"
            lines.append(f"{ours} / {peer}: {statistics.median(ratios):.2f}{wanted}")
    return "\n".join(lines)


def main() -> None:
    """Prepare, run the rounds, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=12.0, help="12 is about 2.7 GB")
    parser.add_argument("--rounds", type=int, default=4, help="an even number: each contestant comes first as often as last")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tools = ("postgres", "initdb", "pg_dump", "pg_dumpall", "pg_restore", "psql", "createdb")
    binaries = find_binaries(tools=tools, exactly=15, environment=os.environ)
    folder = Path(tempfile.mkdtemp(prefix="clipper-bench-"))
    folder.chmod(0o755)
    # Files of WAL are kept and used again, so that making them is no part of what is measured.
    wal = {"min_wal_size": "8GB", "max_wal_size": "8GB"}
    settings = wal | {"shared_buffers": "1GB", "maintenance_work_mem": "256MB", "synchronous_commit": "off"}
    try:
        with PrivateServer(folder / "server", binaries, environment=os.environ, settings=settings) as server:
            server.initdb(sync=False)
            server.start()
            with psycopg.connect(**server.connection("postgres"), autocommit=True) as connection:  # type: ignore[arg-type]
                connection.execute(f"CREATE DATABASE {DATABASE}")
            with psycopg.connect(**server.connection(DATABASE), autocommit=True) as connection:  # type: ignore[arg-type]

                def execute(statement: str) -> None:
                    connection.execute(statement.encode())

                create_clipper_database(execute, scale=options.scale, emit=show)
                connection.execute("VACUUM ANALYZE")
                ((size,),) = connection.execute("SELECT pg_database_size(current_database())").fetchall()
            bench = Bench(server, binaries, folder)
            bench.warm_up()
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", flush=True)
                order: Order = list if number % 2 == 0 else lambda contestants: list(reversed(contestants))
                bench.dumps(order)
                bench.restores(order)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    revision = "unknown"
    with contextlib.suppress(OSError):
        revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"\ncommit {revision}; PostgreSQL {binaries.version}; {os.cpu_count()} cores, {platform.platform()};")
    print(f"database {size / 1e9:.2f} GB, scale {options.scale:g}, {options.rounds} rounds, alternating, medians\n")
    print(table(bench.results))
    if options.json:
        options.json.write_text(json.dumps({name: vars(m) for name, m in bench.results.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
