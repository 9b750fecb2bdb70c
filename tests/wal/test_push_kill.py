"""A real SIGKILL at each of the calls that `wal push` makes to the store: nothing false is left, and the next run succeeds."""

import signal
import subprocess
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.format.wal_objects import decode_object
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.local import LocalStore
from fixtures.cli import PROGRAM, RunCli, environment
from fixtures.sweeps import chosen
from fixtures.wal import MIB, MadeServer, Pushing


def kill_points(tmp_path: Path, files: list[Path]) -> list[tuple[int, str]]:
    """Each call that pushing the last of *files* makes, before and after it took place."""
    local = LocalStore(tmp_path / "counted")
    pushing = Pushing(local)
    for path in files[:-1]:
        pushing(path)
    counting = FaultyStore(local, "", SystemClock())
    Pushing(counting)(files[-1])
    return [(number, effect) for number in range(1, counting.calls + 1) for effect in ("kill", "killed")]


@pytest.mark.rule(1)
@pytest.mark.rule(3)
@pytest.mark.parametrize("kind", ["first", "large", "history"])
def test_kill_at_every_store_call_of_push(tmp_path: Path, run_cli: RunCli, kind: str) -> None:
    server = MadeServer(tmp_path / "data", size_bytes=16 * MIB if kind == "large" else MIB)
    files = [server.write(1, written_pages=None)]
    if kind == "history":
        server.promote(2 * MIB + 0x4000, 2)
        files.append(server.write(2))
    for number, effect in chosen(kill_points(tmp_path, files), 2):
        root = tmp_path / f"{number}-{effect}"
        pushing = Pushing(LocalStore(root))
        place = {"BACKUP_URL": f"file://{root}", "STORE_RETRY_SECONDS": "0"}
        for path in files[:-1]:
            run_cli("wal", "push", str(path), env=place, check=True)
        faults = environment({**place, "CLIPPER_BACKUP_FAULTS": f"*:{number}:{effect}"})
        died = subprocess.run([*PROGRAM, "wal", "push", files[-1]], env=faults, capture_output=True, check=False)
        # Threads ask too: the one that is struck may come after the answer to what matters, never before it.
        assert died.returncode == -signal.SIGKILL, (number, effect, died.stderr)
        claims = {name.removesuffix(".claim") for name in pushing.names(".claim")}
        assert {name.removesuffix(".zst") for name in pushing.names(".zst")} <= claims, "an object has its claim"
        run_cli("wal", "push", str(files[-1]), env=place, check=True)
        key = next(info.key for info in pushing.store.list("wal/") if info.key.endswith(f"{files[-1].name}.zst"))
        header, plain = decode_object(pushing.store.get_stream(key), key)
        assert b"".join(plain) == files[-1].read_bytes()
        assert header.plain_bytes == server.size_bytes
