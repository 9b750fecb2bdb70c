"""Packs on their way into the store, and what a run records of all the packs that it names."""

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping

from clipper_backup.crew import Crew
from clipper_backup.format.base_documents import PacksOfRun
from clipper_backup.format.packs import PackBuilder, PackFacts
from clipper_backup.format.physical_names import PackKey
from clipper_backup.repository.data_keys import RunFrames
from clipper_backup.store.protocol import Store

UPLOADS = 2
"""Packs under way at once. Each is held in memory, twice for a moment."""


class PackUploads:
    """Begins packs, gives each its number, and puts them into the store by one request each.

    A put is repeated by the store alone, with the same bytes (P3); when it fails for good, so does the run.
    """

    def __init__(self, store: Store, frames: RunFrames) -> None:
        self._store, self._frames = store, frames
        self._crew = Crew("upload", UPLOADS, UPLOADS)
        self._lock = threading.Lock()
        self._next = 0
        self._facts: dict[PackKey, PackFacts] = {}

    def begin(self) -> PackBuilder:
        """An empty pack of the next number."""
        with self._lock:
            number = self._next
            self._next += 1
        return PackBuilder(PackKey(self._frames.run, number), self._frames.repository_id, sealed=self._frames.sealed)

    def send(self, pack: PackBuilder) -> None:
        """Have a pack stored; waits while UPLOADS are under way."""
        self._crew.submit(lambda: self._put(pack))

    def finish(self) -> dict[PackKey, PackFacts]:
        """Wait for all of them."""
        self._crew.finish()
        return self._facts

    def stop(self) -> None:
        """Take no more packs."""
        self._crew.stop()

    def end(self) -> None:
        """The same, and return when what is under way has ended."""
        self._crew.end()

    def _put(self, pack: PackBuilder) -> None:
        data, facts = pack.close()
        self._store.put(str(pack.key), data)
        with self._lock:
            self._facts[pack.key] = facts


class LiveBytes:
    """How many plain bytes of each pack a backup names. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: Counter[PackKey] = Counter()

    def add(self, named: Mapping[PackKey, int]) -> None:
        """Count what is named; a pack of which nothing is named but a content without bytes is named all the same."""
        with self._lock:
            for pack, plain_bytes in named.items():
                self._counted[pack] += plain_bytes

    def rows(self, facts: Mapping[PackKey, PackFacts], *, sealed: bool) -> list[PacksOfRun]:
        """What packs.json.zst says: exactly the packs that were counted (P7), with their *facts*."""
        by_run: dict[str, list[tuple[int, int, int, int, str]]] = defaultdict(list)
        for pack, live_bytes in sorted(self._counted.items()):
            known = facts[pack]
            by_run[str(pack.run)].append((pack.number, known.size_bytes, known.plain_bytes, live_bytes, known.digest.hex()))
        return [PacksOfRun(run=run, sealed=sealed, packs=packs) for run, packs in by_run.items()]
