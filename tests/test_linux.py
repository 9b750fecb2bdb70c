"""What the kernel and the C library are asked for: that it does what it says, or says that it did not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipper_backup.linux import begin_write_back, kind_in, sync_filesystem

TAKE_AND_FREE = """
import resource
from clipper_backup.linux import keep_freed_memory
{prepare}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * ({mib} << 20)
before = faults()
for _ in range(10):
    b"x" * ({mib} << 20)
print(faults() - before)
"""


def faults_of(prepare: str, mib: int) -> int:
    """Page faults of a program that takes and frees so many MiB ten times."""
    code = TAKE_AND_FREE.format(prepare=prepare, mib=mib)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    """But for packs: what is left between them fits none, and would be memory that a backup never gives back."""
    pages = 10 * (1 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults_of("keep_freed_memory()", 4) < 4 * pages / 20
    assert faults_of("keep_freed_memory()", 32) >= 32 * pages


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


def test_of_two_mounts_the_inner_one_counts_whatever_their_names_are() -> None:
    """Names are bytes: one that is no UTF-8, of a USB disk for one, says nothing of the others."""
    mounts = (
        b"21 1 0:20 / / rw - overlay overlay rw\n"
        b"22 21 8:1 / /mnt/a\\040disk rw shared:1 - ext4 /dev/sda1 rw\n"
        b"23 21 8:2 / /mnt/\xff\xa0disk rw - vfat /dev/sdb1 rw\n"
        b"24 21 8:3 / /srv/donn\xc3\xa9es rw - xfs /dev/sdc1 rw\n"
    )
    kinds = [
        kind_in(mounts, Path(place)) for place in ("/srv/données/pg", "/mnt/a disk", "/mnt/\udcff\udca0disk/x", "/srv/other")
    ]
    assert kinds == ["xfs", "ext4", "vfat", "overlay"]
    assert kind_in(b"", Path("/srv")) == "an unknown file system"
