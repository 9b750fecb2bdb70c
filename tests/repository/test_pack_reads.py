"""Files that a run reads itself: stored as a stream of them is, read only where they must be, and closed once."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from clipper_backup.errors import ServerError
from clipper_backup.format.frames import FilePart
from clipper_backup.format.physical_names import PackKey
from clipper_backup.repository.data_keys import begin_frames
from clipper_backup.repository.pack_writer import RunWriter, WrittenPacks
from clipper_backup.values import BackupId
from fixtures.runs import PAGE, REPOSITORY, Run, Runs


@dataclass(eq=False)
class Held:
    """A file whose content is at hand; `mends` is what a look at it finds when it reads again."""

    content: bytes
    mends: bytes | None = None
    fails: bool = False
    read_bytes: int = 0
    closed: int = 0
    same: dict[int, list[bool]] = field(default_factory=dict)

    def read(self, target: memoryview, start: int) -> None:
        assert not self.closed
        if self.fails:
            raise ServerError("the disk is gone")
        self.read_bytes += len(target)
        target[:] = self.content[start : start + len(target)]

    def check(self, content: memoryview, start: int, same: NDArray[np.bool_]) -> bool:
        assert not self.closed
        self.same[start] = same.tolist()
        if self.mends is None or content == self.mends[start : start + len(content)]:
            return False
        content[:] = self.mends[start : start + len(content)]
        return True

    def close(self) -> None:
        self.closed += 1


def run_over(
    runs: Runs,
    files: Mapping[str, Held],
    parent: Run | None = None,
    *,
    unchanged: bool = False,
    doomed: set[PackKey] | None = None,
) -> Run:
    """A run that reads *files* itself."""
    run = BackupId.make(runs.store.now())
    adoption = runs.adoption(parent, sealed=False, doomed=lambda pack: pack in (doomed or set()))
    reader = runs.reader()
    seed = reader.seed(parent.parts.values()) if parent else None
    frames = begin_frames(runs.store, REPOSITORY, run, None)
    with RunWriter(
        runs.store,
        frames,
        PAGE,
        reader=reader,
        adoption=adoption,
        seed=seed,
        pack_bytes=runs.pack_bytes,
        small_bytes=runs.small_bytes,
    ) as writer:
        before: Mapping[str, FilePart] = parent.parts if parent else {}
        pending = {
            name: writer.read(file, len(file.content), before.get(name), unchanged=unchanged) for name, file in files.items()
        }
        writer.wait_until_read()
        assert all(file.closed == 1 for file in files.values())
        written: WrittenPacks = writer.finish()
    parts = {name: each.part for name, each in pending.items() if each.part is not None}
    assert parts.keys() == files.keys()
    return Run(run, parts, written, sealed=False)


def some_files(seed: int = 3) -> dict[str, bytes]:
    drawn = random.Random(seed)
    sizes = [0, 1, 99, PAGE, 5 * PAGE, 40 * PAGE + 17, 200 * PAGE, *([300] * 70)]
    return {f"file {number}": drawn.randbytes(size) for number, size in enumerate(sizes)}


@pytest.mark.parametrize("small_bytes", [0, 8 * PAGE])
def test_reads_store_what_streams_store(small_bytes: int) -> None:
    files = some_files()
    runs = Runs(small_bytes=small_bytes)
    streamed = runs.backup(files)
    read = run_over(runs, {name: Held(content) for name, content in files.items()})
    assert runs.restore(read) == runs.restore(streamed) == files
    assert read.written.pages == streamed.written.pages
    held = {name: Held(content) for name, content in files.items()}
    again = run_over(runs, held, read)
    assert again.written.pages.new == 0
    assert again.parts == read.parts
    assert sum(file.read_bytes for file in held.values()) == sum(map(len, files.values()))
    assert all(all(same) for file in held.values() for same in file.same.values())


@pytest.mark.rule(42)
@pytest.mark.parametrize("small_bytes", [0, 8 * PAGE])
def test_unchanged_files_are_read_only_where_a_pack_may_not_be_adopted(small_bytes: int) -> None:
    files = some_files() | {"zeros": bytes(30 * PAGE)}
    runs = Runs(small_bytes=small_bytes)
    parent = run_over(runs, {name: Held(content) for name, content in files.items()})
    wrong = {name: Held(bytes(len(content))) for name, content in files.items()}  # not looked at, so not found
    child = run_over(runs, wrong, parent, unchanged=True)
    assert sum(file.read_bytes for file in wrong.values()) == 0
    assert runs.restore(child) == files
    assert child.parts == parent.parts
    pages = parent.written.pages
    assert (child.written.pages.adopted, child.written.pages.zero, child.written.pages.new) == (pages.new, pages.zero, 0)
    assert child.live_bytes() == parent.live_bytes()  # P7

    read = []
    for lost in sorted(parent.facts()):
        held = {name: Held(content) for name, content in files.items()}
        healed = run_over(runs, held, parent, unchanged=True, doomed={lost})
        assert runs.restore(healed) == files
        assert lost not in healed.live_bytes()
        read.append(sum(file.read_bytes for file in held.values()))
    assert 0 < min(read) < max(read) <= sum(map(len, files.values()))  # who loses the maps reads everything


@pytest.mark.rule(43)
@pytest.mark.parametrize("small_bytes", [0, 80 * PAGE])
def test_what_a_look_reads_again_is_what_is_stored(small_bytes: int) -> None:
    drawn = random.Random(4)
    torn, whole = (drawn.randbytes(50 * PAGE) for _ in range(2))
    runs = Runs(small_bytes=small_bytes)
    parent = run_over(runs, {"page": Held(whole)})
    half = whole[: 20 * PAGE] + torn[20 * PAGE : 21 * PAGE] + whole[21 * PAGE :]
    file = Held(half, mends=whole)
    child = run_over(runs, {"page": file}, parent)
    assert runs.restore(child) == {"page": whole}
    assert child.parts == parent.parts
    if not small_bytes:
        assert [number for number, same in enumerate(file.same[0]) if not same] == [20]


def test_every_file_is_closed_once_when_a_read_fails() -> None:
    files = {f"file {number}": Held(bytes(40 * PAGE), fails=number == 5) for number in range(40)}
    with pytest.raises(ServerError, match="the disk is gone"):
        run_over(Runs(), files)
    assert {file.closed for file in files.values() if file.closed} == {1}
    small = {f"file {number}": Held(bytes(40), fails=number == 5) for number in range(40)}
    with pytest.raises(ServerError, match="the disk is gone"):
        run_over(Runs(small_bytes=PAGE), small)
    assert {file.closed for file in small.values()} == {1}
