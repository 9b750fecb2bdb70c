"""The server of benchmarks/physical.py: its rows, random updates of them, and an archive_command that does what it is told."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg

from clipper_backup.postgres.account import Account, server_account
from clipper_backup.postgres.binaries import Binaries
from clipper_backup.postgres.server import PrivateServer
from measuring import read_through

DATABASE = "clipper"
_CLIPS, _USERS = 260_000, 20_000
"""At scale 1, with the indexes about 230 MB."""
_SEGMENT_NAME = re.compile("[0-9A-F]{24}")
_WAIT_SECONDS = 600
_POLL_SECONDS = 0.01
HOLD, DROP, KEEP = "hold", "drop", "keep"
"""What becomes of a segment: it waits, it counts as archived, it is copied to a folder."""

_DISPATCH = """#!/bin/sh
# archive_command = 'sh pgbackrest-or-another.sh %p': wait, or what the file `mode` names.
while read -r mode <{folder}/mode; [ "$mode" = hold ]; do sleep 0.02; done
exec sh {folder}/archive-$mode "$1"
"""
_SCRIPT = "pgbackrest-or-another.sh"
"""pgBackRest takes no backup of a server whose archive_command does not name it."""
_COPY = """cp "$1" {folder}/wal/new && sync {folder}/wal/new && mv {folder}/wal/new {folder}/wal/"${{1##*/}}"
"""


class Cluster:
    """A running PostgreSQL with the database, in *folder*, which its account may enter."""

    def __init__(self, folder: Path, binaries: Binaries, scale: float, kept_segments: int) -> None:
        self.folder, self.binaries = folder, binaries
        self.account: Account = server_account()
        self._rows = round(_CLIPS * scale)
        self._users = max(1, round(_USERS * scale))
        self._seed = 0
        self.archive = folder / "archive"
        for each in (self.archive, self.archive / "wal"):
            each.mkdir()
            self.account.own(each)
        (self.archive / _SCRIPT).write_text(_DISPATCH.format(folder=self.archive))
        self.command(DROP, "exit 0\n")
        self.command(KEEP, _COPY.format(folder=self.archive))
        self.mode(DROP)
        settings = {
            "shared_buffers": "512MB",
            "max_wal_size": "8GB",
            "checkpoint_timeout": "1h",
            "autovacuum": "off",
            "synchronous_commit": "off",
            "archive_mode": "on",
            "archive_command": f"sh {self.archive}/{_SCRIPT} %p",
            "wal_keep_size": f"{16 * kept_segments}MB",
            "max_wal_senders": "10",
        }
        self.server = PrivateServer(folder / "server", binaries, environment=os.environ, settings=settings)

    def __enter__(self) -> Self:
        self.server.initdb(sync=False)
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mode(DROP)  # else its archiver would keep it from ending
        self.server.close()

    # -- its rows

    @contextmanager
    def connected(self, database: str = "postgres") -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
        """As superuser."""
        with psycopg.connect(**self.server.connection(database), autocommit=True) as connection:  # type: ignore[arg-type]
            yield connection

    def fill(self) -> int:
        """Make the database; its size in bytes."""
        with self.connected() as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        text = Path(__file__).with_name("clips.sql").read_text(encoding="utf-8")
        for name, count in (("clips", self._rows), ("users", self._users)):
            text = text.replace(f":{name})", f"{count})")
        with self.connected(DATABASE) as connection:
            connection.execute(text.encode())
            connection.execute("VACUUM (FREEZE, ANALYZE)")
            connection.execute("CHECKPOINT")
            ((size,),) = connection.execute("SELECT pg_database_size(current_database())").fetchall()
        return int(str(size))

    def update(self, share: float) -> None:
        """Update that share of the clips, drawn at random, columns with and without an index."""
        self._seed += 1
        with self.connected(DATABASE) as connection:
            connection.execute(f"SELECT setseed({1 / (1 + self._seed)})")
            connection.execute(
                "UPDATE clips SET view_count = view_count + 1 + id % 7, updated_at = updated_at + interval '1 minute' WHERE id IN"
                f" (SELECT 1 + floor(random() * {self._rows})::bigint FROM generate_series(1, {round(self._rows * share)}))"
            )

    def settle(self, *read: Path) -> None:
        """Write what is dirty, and have in memory what the next run reads: some machines forget what was not used for a while."""
        with self.connected() as connection:
            connection.execute("CHECKPOINT")
        os.sync()
        for path in read:
            read_through(path)

    # -- its WAL

    @property
    def wal(self) -> Path:
        """Where its segments are."""
        return self.server.data / "pg_wal"

    def command(self, mode: str, script: str) -> None:
        """What `archive_command` does in a mode."""
        (self.archive / f"archive-{mode}").write_text(script)

    def mode(self, mode: str) -> None:
        """From now on archive so."""
        new = self.archive / "mode.new"
        new.write_text(mode + "\n")
        new.replace(self.archive / "mode")

    def switch(self) -> None:
        """End the current segment."""
        with self.connected() as connection:
            connection.execute("SELECT pg_logical_emit_message(false, 'bench', 'x')")
            connection.execute("SELECT pg_switch_wal()")

    def archive_to(self, mode: str) -> None:
        """Have all that waits archived as before, and what follows in this way."""
        self.switch()
        self.until(lambda: not self.waiting(), "the archive to catch up")
        self.mode(mode)

    def waiting(self) -> list[str]:
        """The segments that wait for archive_command."""
        return sorted(path.name.removesuffix(".ready") for path in (self.wal / "archive_status").glob("*.ready"))

    def write_segments(self, count: int) -> list[str]:
        """Updates until there are so many more finished segments; their names."""
        before = self._finished()
        while True:
            self.settle()  # so that whole pages are in the WAL again, as behind each checkpoint
            self.update(0.005)
            if len(found := sorted(self._finished() - before)) >= count:
                return found

    def _finished(self) -> set[str]:
        status = self.wal / "archive_status"
        names = {path.name.rpartition(".")[0] for path in status.iterdir()}
        return {name for name in names if _SEGMENT_NAME.fullmatch(name)}

    def again(self, segments: Sequence[str]) -> None:
        """Have these segments wait for archive_command as if they had just been finished; in mode HOLD."""
        status = self.wal / "archive_status"
        for name in segments:
            (status / f"{name}.done").rename(status / f"{name}.ready")
        self.switch()  # wakes the archiver

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Return when it is so."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {_WAIT_SECONDS} s for {what}; the server says:\n{self.server.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def remove(self, path: Path) -> None:
        """Remove a folder, and have it gone from the disk too: what others removed is not to be paid by the next run.

        A `wal fetch` that reads ahead ends a moment after its server, and takes its own folder along.
        """
        if path.exists():
            self.until(lambda: _is_removed(path), f"{path} to be removed")
            os.sync()

    def make(self, path: Path) -> Path:
        """An empty folder of the server's account."""
        self.remove(path)
        path.mkdir(mode=0o700)
        self.account.own(path)
        return path


def _is_removed(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # of what somebody else removes at the same time
        shutil.rmtree(path)
    return not path.exists()
