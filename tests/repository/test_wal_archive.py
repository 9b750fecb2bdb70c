"""The archive's own memory; what it writes is shown in tests/wal."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clipper_backup.clock import SystemClock
from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.wal_objects import digest_of
from clipper_backup.repository.wal_archive import ArchiveKeys, WalArchive
from clipper_backup.store.memory import MemoryStore


@dataclass
class Given:
    """A file of pg_wal that is only bytes."""

    name: str
    content: bytes
    begins_anew: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read(self) -> Iterator[bytes]:
        step = 64 << 10
        yield from (self.content[at : at + step] for at in range(0, len(self.content), step))


def test_files_that_are_read_at_once_stay_apart() -> None:
    """They share memory, which is used again; never two of them at a time."""
    size_bytes = 4 << 20
    archive = WalArchive(
        MemoryStore(SystemClock()), SystemClock(), repository_id=bytes(16), system_id="7", segment_bytes=size_bytes, writer="",
        keys=ArchiveKeys(),
    )  # fmt: skip
    given = [
        Given(f"00000001{0:08X}{number:08X}", number.to_bytes(2) * (size_bytes >> number % 3) + bytes(7))
        for number in range(1, 33)
    ]
    with ThreadPoolExecutor(4) as threads:
        prepared = list(threads.map(archive.prepare, given))
    for one, source in zip(prepared, given, strict=True):
        assert one.digest == digest_of([source.content], one.salt)
        assert decompress_bytes(b"".join(one.body or ()), source.name) == source.content
