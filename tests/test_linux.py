"""What the kernel and the C library are asked for: that it does what it says, or says that it did not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipper_backup.linux import begin_write_back, sync_filesystem

TAKE_AND_FREE = """
import resource
from clipper_backup.linux import keep_freed_memory
{prepare}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * (40 << 20)
before = faults()
for _ in range(10):
    b"x" * (40 << 20)
print(faults() - before)
"""


def faults_of(prepare: str) -> int:
    """Page faults of a program that takes and frees 40 MiB ten times."""
    code = TAKE_AND_FREE.format(prepare=prepare)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    pages = 10 * (40 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults_of("keep_freed_memory()") < pages / 20


def test_what_begins_to_be_written_is_the_same_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w+b") as file:
        file.write(b"content" * 1000)
        file.flush()
        begin_write_back(file.fileno(), 0, 7000)
    assert path.read_bytes() == b"content" * 1000


def test_a_filesystem_is_synced_or_the_error_says_why(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        sync_filesystem(descriptor)
    finally:
        os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_filesystem(descriptor)
