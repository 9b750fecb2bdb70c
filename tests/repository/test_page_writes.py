"""A model of page maps: whatever is written to a file between runs, each run gives back the file as it was, for ever."""

import random
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from fixtures.runs import Run, Runs

SIZE = 300_000
"""Of 1 kB pages more than fill two frames, of 32 kB ones a few."""


@dataclass(frozen=True)
class Write:
    """Bytes at a place; behind the end there are zeros up to it. `seed` 0 writes zeros."""

    start: int
    length: int
    seed: int

    def on(self, content: bytearray) -> None:
        content.extend(bytes(max(0, self.start - len(content))))
        new = random.Random(self.seed).randbytes(self.length) if self.seed else bytes(self.length)
        content[self.start : self.start + self.length] = new


@dataclass(frozen=True)
class Cut:
    """What lies behind goes."""

    length: int

    def on(self, content: bytearray) -> None:
        del content[self.length :]


@dataclass(frozen=True)
class Copy:
    """The same bytes at another place: equal pages, which lie where they lie."""

    start: int
    to: int
    length: int

    def on(self, content: bytearray) -> None:
        piece = content[self.start : self.start + self.length]
        content[self.to : self.to + len(piece)] = piece


places, lengths = st.integers(0, SIZE), st.integers(0, 5_000) | st.sampled_from([1024, 8192, 32_768, 150_000])
edits = st.builds(Write, places, lengths, st.integers(0, 5)) | st.builds(Cut, places) | st.builds(Copy, places, places, lengths)
steps = st.lists(st.tuples(st.lists(edits, max_size=5), st.integers(0, 7)), min_size=1, max_size=8)


@given(st.sampled_from([1024, 8192, 32_768]), st.booleans(), st.sampled_from([4_000, 50_000, 1 << 20]), steps)
def test_each_run_gives_back_what_was_written_until_then(
    page_bytes: int, sealed: bool, pack_bytes: int, steps: list[tuple[list[Write | Cut | Copy], int]]
) -> None:
    runs, content = Runs(page_bytes=page_bytes, pack_bytes=pack_bytes), bytearray()
    done: list[tuple[Run, bytes]] = []
    for changes, parent in steps:
        for change in changes:
            change.on(content)
        before = done[parent % len(done)][0] if done else None  # not always the last one: that may be damaged, or deleted
        done.append((runs.backup({"file": bytes(content)}, before, sealed=sealed), bytes(content)))
        runs.clock.advance(60)
    for run, then in done:
        assert runs.restore(run) == {"file": then}
