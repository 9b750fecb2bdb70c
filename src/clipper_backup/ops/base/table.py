"""The table of files on its way: what the server sends in its order becomes the manifest's, at any number of files.

Lines wait in memory up to a limit, then as sorted runs on scratch. The parent's lie on scratch too, found by a sparse index.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from clipper_backup.format.manifest import Entry, File, Outside, decode_entry, encode_entry

_RUN_BYTES = 32 << 20
_ENTRY_BYTES = 300
"""What a line costs in memory beside its own bytes, about."""
_INDEX_EVERY = 16
"""Lines between two that are remembered: a million files take 62,500 places."""

Order = tuple[bool, bytes]


class EntrySorter:
    """Takes entries in any order, gives them back in the manifest's. *folder* is scratch."""

    def __init__(self, folder: Path, run_bytes: int = _RUN_BYTES) -> None:
        self._folder, self._run_bytes = folder, run_bytes
        self._held: list[tuple[Order, bytes]] = []
        self._held_bytes = 0
        self._runs: list[Path] = []
        self.files = self.size_bytes = 0

    def add(self, entry: Entry) -> None:
        """Take one."""
        line = encode_entry(entry)
        self._held.append((entry.order, line))
        self._held_bytes += len(line) + _ENTRY_BYTES
        if isinstance(entry, File):
            self.files += 1
            self.size_bytes += entry.size_bytes
        if self._held_bytes >= self._run_bytes:
            self._spill()

    def entries(self) -> Iterator[Entry]:
        """All of them in order, as often as they are asked for."""
        self._held.sort()
        held = (decode_entry(line, "a line of ours") for _, line in self._held)
        yield from heapq.merge(*map(_read, self._runs), held, key=lambda entry: entry.order)

    def _spill(self) -> None:
        self._held.sort()
        run = self._folder / f"run-{len(self._runs)}"
        with run.open("wb") as file:
            file.writelines(line for _, line in self._held)
        self._runs.append(run)
        self._held, self._held_bytes = [], 0


def _read(run: Path) -> Iterator[Entry]:
    with run.open("rb") as file:
        for line in file:
            yield decode_entry(line, str(run))


class KnownFiles:
    """The files of a parent's manifest, each found by its path."""

    def __init__(self, folder: Path, entries: Iterable[Entry]) -> None:
        """Write them to scratch. What *entries* raises passes through: nothing of such a manifest may be used."""
        path = folder / "parent"
        self._places: list[Order] = []
        self._offsets: list[int] = []
        with path.open("wb") as file:
            count = 0
            for entry in entries:
                if isinstance(entry, File):
                    if count % _INDEX_EVERY == 0:
                        self._places.append(entry.order)
                        self._offsets.append(file.tell())
                    file.write(encode_entry(entry))
                    count += 1
        self._file: IO[bytes] = path.open("rb")

    def find(self, path: bytes, *, outside: bool = False) -> File | None:
        """The file with this path; None when there is none."""
        wanted: Order = (outside, path)
        place = bisect_right(self._places, wanted) - 1
        if place < 0:
            return None
        self._file.seek(self._offsets[place])
        for _ in range(_INDEX_EVERY):
            line = self._file.readline()
            if not line:
                break
            entry = decode_entry(line, "the parent's manifest")
            if entry.order == wanted and isinstance(entry, File):
                return entry
            if entry.order > wanted:
                break
        return None

    def __iter__(self) -> Iterator[File]:
        """All of them, in order."""
        self._file.seek(0)
        for line in iter(self._file.readline, b""):
            entry = decode_entry(line, "the parent's manifest")
            if isinstance(entry, File) and not isinstance(entry, Outside):
                yield entry

    def close(self) -> None:
        """Let go of the scratch file."""
        self._file.close()
