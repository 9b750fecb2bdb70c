"""Runs: what is written restores, what is unchanged is taken over, and what may not be taken over is stored anew."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import IntegrityError
from clipper_backup.format.base_documents import PageCounts, PruneRecord
from clipper_backup.format.frames import (
    FRAME_PAGES_MAX,
    PACK_HEADER_BYTES,
    SMALL_BYTES_MAX,
    STRETCH_BYTES,
    Compressor,
    FilePart,
    FrameKind,
)
from clipper_backup.format.packs import END_BYTES, PackBuilder, PackRow, read_trailer, trailer_bytes
from clipper_backup.format.page_maps import ZEROS, encode_map, page_hashes
from clipper_backup.format.physical_names import PACKS_FOLDER, PackKey, parse_pack_key
from clipper_backup.repository.adoption import doomed_by, longest_age, lowest_share
from clipper_backup.repository.pack_reader import readers_for, verify_pack
from clipper_backup.repository.stretch_writer import Stretch
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from fixtures.clocks import START
from fixtures.runs import DAY, PAGE, REPOSITORY, Run, Runs


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def pages_of(*seeds: int, last: int = PAGE) -> bytes:
    """A file of pages, each its own noise; 0 is a page of zeros."""
    content = b"".join(noise(PAGE, seed) if seed else bytes(PAGE) for seed in seeds)
    return content[: len(content) - PAGE + last]


def packs_in(store: Store) -> dict[PackKey, int]:
    return {pack: info.size_bytes for info in store.list(PACKS_FOLDER) if (pack := parse_pack_key(info.key)) is not None}


def trailer_of(store: Store, pack: PackKey) -> list[PackRow]:
    data = store.get(str(pack))
    length = trailer_bytes(data[-END_BYTES:], pack)
    return read_trailer(data[:PACK_HEADER_BYTES], data[-length:], pack, len(data))[0]


def named_by(runs: Runs, run: Run) -> Counter[PackKey]:
    """How many plain bytes of each pack the parts and their maps name: found by another way than the writer's."""
    named: Counter[PackKey] = Counter()
    for part in run.parts.values():
        for reference in part.maps:
            named[reference.pack] += reference.plain_bytes
        if part.small is not None:
            named[part.small.frame.pack] += part.size_bytes
    for pages in runs.maps(run):
        for frame, length in zip(pages.frames.tolist(), pages.lengths().tolist(), strict=True):
            if frame != ZEROS:
                named[pages.table.reference(frame).pack] += length
        assert set(range(len(pages.table))) == {frame for frame in pages.frames.tolist() if frame != ZEROS}
        assert set(pages.table.run_ids) == {pages.table.reference(row).pack.run for row in range(len(pages.table))}
    return named


# -- there and back


class Model:
    """Files that change as a database's do, from seeds of hypothesis."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.files: dict[str, bytes] = {}

    def step(self) -> None:
        for _ in range(self.rng.randrange(6)):
            change = self.rng.choice([self.create, self.write, self.write, self.write, self.extend, self.truncate, self.drop])
            change()

    def create(self) -> None:
        name = f"file {self.rng.randrange(6)}"
        self.files[name] = pages_of(*(self.rng.randrange(5) for _ in range(self.rng.randrange(300))))[
            self.rng.choice([0, 0, 700]) :
        ]

    def some(self) -> str | None:
        return self.rng.choice(sorted(self.files)) if self.files else None

    def write(self) -> None:
        if (name := self.some()) is not None and (content := bytearray(self.files[name])):
            for _ in range(self.rng.randrange(1, 4)):
                page = self.rng.randrange(-(-len(content) // PAGE)) * PAGE
                length = min(PAGE, len(content) - page)
                content[page : page + length] = (pages_of(self.rng.randrange(9)))[:length]
            self.files[name] = bytes(content)

    def extend(self) -> None:
        if (name := self.some()) is not None:
            self.files[name] += noise(self.rng.choice([1, PAGE, 5000]), self.rng.random().__hash__())

    def truncate(self) -> None:
        if (name := self.some()) is not None:
            self.files[name] = self.files[name][: self.rng.randrange(len(self.files[name]) + 1)]

    def drop(self) -> None:
        if (name := self.some()) is not None:
            del self.files[name]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    sealed=st.booleans(),
    small_bytes=st.sampled_from([0, 5000, SMALL_BYTES_MAX]),
    steps=st.lists(st.sampled_from(["", "loses a pack", "dooms a pack", "a week passes", "cuts a pack"]), min_size=1, max_size=5),
)
def test_packs_json_is_the_closure(seed: int, sealed: bool, small_bytes: int, steps: list[str]) -> None:
    rng = random.Random(seed)
    model, runs = Model(rng), Runs(small_bytes=small_bytes, pack_bytes=rng.choice([3_000, 20_000, 1 << 20]))
    runs.stretch_bytes = rng.choice([STRETCH_BYTES, 64 * PAGE])
    parent: Run | None = None
    for step in steps:
        model.step()
        gone: set[PackKey] = set()
        there = sorted(packs_in(runs.store))
        if there and step.endswith("a pack"):
            gone = {rng.choice(there)}
            (pack,) = gone
            if step.startswith("loses"):
                runs.store.delete([str(pack)])
            elif step.startswith("cuts"):
                runs.store.put(str(pack), runs.store.get(str(pack))[:-1])
        if step == "a week passes":
            runs.clock.advance(7 * DAY.total_seconds())
        run = runs.backup(model.files, parent, sealed=sealed, doomed=lambda pack, doomed=gone: pack in doomed)  # type: ignore[misc]
        assert runs.restore(run) == model.files
        assert named_by(runs, run) == run.live_bytes()
        assert {pack: size for pack, size in packs_in(runs.store).items() if pack in run.facts()} == {
            pack: facts.size_bytes for pack, facts in run.facts().items()
        }
        assert not gone & run.facts().keys(), "a pack that is doomed or not as recorded was adopted from"
        for pack, facts in run.facts().items():
            verify_pack(runs.store, pack, facts, REPOSITORY)
            assert facts.plain_bytes == sum(row.plain_bytes for row in trailer_of(runs.store, pack))
            assert run.live_bytes()[pack] <= facts.plain_bytes
        parent = run


def test_a_file_of_two_stretches_and_a_short_page() -> None:
    runs = Runs(page_bytes=8192, pack_bytes=4 << 20)
    content = bytearray(STRETCH_BYTES + 3 * 8192 + 100)
    for start in range(0, len(content), 1 << 20):
        content[start : start + 100] = noise(100, start)
    files = {"one": bytes(content)}
    first = runs.backup(files)
    assert len(first.parts["one"].maps) == 2
    assert runs.restore(first) == files
    content[-50:] = noise(50, 7)
    second = runs.backup({"one": bytes(content)}, first)
    assert second.parts["one"].maps[0] == first.parts["one"].maps[0], "the map of an unchanged stretch is shared"
    assert runs.restore(second) == {"one": bytes(content)}
    assert second.written.pages == PageCounts(adopted=65, new=1, zero=8192 - 64 + 2)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_pack_is_read_in_pieces_where_a_stretch_is_large(sealed: bool) -> None:
    """M2: what is held of what is stored does not grow with the stretch."""
    asked: list[int] = []

    class Asked(MemoryStore):
        def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            asked.append(sum(length for _, length in ranges))
            return super().get_ranges(key, ranges)

    clock = VirtualClock(START)
    runs = Runs(clock, Asked(clock), stretch_bytes=1 << 20, pack_bytes=1 << 30)
    content = noise((2 << 20) + 700, 1)
    run = runs.backup({"one": content}, sealed=sealed)
    frame = FRAME_PAGES_MAX * PAGE
    for limit, least in ((80 << 20, 1), (5 * frame, 2), (1, 8)):
        runs.batch_bytes = limit
        asked.clear()
        assert runs.restore(run) == {"one": content}
        of_pages = [each for each in asked if each > frame // 2]
        assert len(of_pages) == 2 * least
        assert max(of_pages) <= max(limit, frame + 100)


def test_fewer_put_together_what_is_larger() -> None:
    """M2: 192 MiB of three threads of 64, whatever a stretch has; and one thread at least."""
    assert [readers_for(stretch_bytes << 20, 3) for stretch_bytes in (1, 64, 128, 256, 1024)] == [3, 3, 1, 1, 1]
    assert [readers_for(stretch_bytes << 20, 4) for stretch_bytes in (32, 64, 128, 256, 1024)] == [4, 4, 2, 1, 1]


def test_a_stretch_is_the_same_in_room_that_was_used_before() -> None:
    runs = Runs()
    files = {"one": pages_of(0, 1, 0, 0, 2, 0, last=77)}
    run = runs.backup(files)
    room = memoryview(bytearray(b"\xff" * 7 * PAGE))
    (reference,) = run.parts["one"].maps
    found = runs.reader().stretch(reference, len(files["one"]), room)
    assert bytes(found) == files["one"] == bytes(room[: len(found)])
    assert bytes(room[len(found) :]) == b"\xff" * (len(room) - len(found))


# -- what is taken over, and what is not


def test_unchanged_pages_are_taken_over_and_maps_shared() -> None:
    runs = Runs()
    files = {"one": pages_of(1, 2, 0, 3, 4, last=77), "two": pages_of(5, 6)}
    first = runs.backup(files)
    assert first.written.pages == PageCounts(new=6, zero=1)
    second = runs.backup(files, first)
    assert second.written.pages == PageCounts(adopted=6, zero=1)
    assert second.parts == first.parts
    assert second.written.stored_bytes == 0
    changed = files | {"one": pages_of(1, 7, 0, 3, 4, last=77)}
    third = runs.backup(changed, second)
    assert third.written.pages == PageCounts(adopted=5, new=1, zero=1)
    assert third.parts["two"] == first.parts["two"]
    assert runs.restore(third) == changed
    assert runs.restore(first) == files


@pytest.mark.parametrize(("before", "after", "counts"), [
    (pages_of(1, 2), pages_of(1, 2, 3), PageCounts(adopted=2, new=1)),  # extended by a page
    (pages_of(1, 2, last=9), pages_of(1, 2), PageCounts(adopted=1, new=1)),  # a half-extended one is filled
    (pages_of(1, 2, 3), pages_of(1, 2), PageCounts(adopted=2)),
    (pages_of(1, 2, 3), pages_of(1, 2, last=5), PageCounts(adopted=1, new=1)),
    (pages_of(1, 0), pages_of(1, 2), PageCounts(adopted=1, new=1)),
    (pages_of(1, 2), pages_of(1, 0), PageCounts(adopted=1, zero=1)),
    (pages_of(0, 0, last=5), pages_of(0, 0), PageCounts(zero=2)),
    (pages_of(1, 2, 3), pages_of(3, 2, 1), PageCounts(adopted=1, new=2)),
])  # fmt: skip
def test_files_grow_and_shrink_by_pages(before: bytes, after: bytes, counts: PageCounts) -> None:
    runs = Runs()
    second = runs.backup({"one": after}, runs.backup({"one": before}))
    assert second.written.pages == counts
    assert runs.restore(second) == {"one": after}


@pytest.mark.rule(99)
@pytest.mark.parametrize("what", ["lost", "cut", "grown", "doomed", "no key", "sealed"])
def test_adoption_only_from_listed_packs(what: str) -> None:
    sealed = what in {"no key", "sealed"}
    runs = Runs(pack_bytes=3 * PAGE)
    files = {name: pages_of(n, n + 1, n + 2) for name, n in (("one", 1), ("two", 4))}
    first = runs.backup(files, sealed=sealed)
    pack = runs.maps(first)[0].table.reference(0).pack
    assert runs.maps(first)[1].table.reference(0).pack != pack
    doomed: Callable[[PackKey], bool] = lambda _: False  # noqa: E731
    healed = 3
    if what == "lost":
        runs.store.delete([str(pack)])
    elif what in {"cut", "grown"}:
        data = runs.store.get(str(pack))
        runs.store.put(str(pack), data[:-1] if what == "cut" else data + b"\0")
    elif what == "doomed":
        record = PruneRecord(id=str(first.run), doomed_at=START, packs={str(pack.run): [(pack.number, pack.number)]}, keys=[])
        doomed = doomed_by([record])
    elif what == "no key":
        runs.identities, healed = (), 6
    else:
        healed = 0
    second = runs.backup(files, first, sealed=sealed, doomed=doomed)
    assert second.written.pages == PageCounts(adopted=6 - healed, healed=healed)
    if what != "no key":
        assert runs.restore(second) == files


@pytest.mark.rule(99)
def test_a_map_that_cannot_be_read_is_written_anew_with_all_its_pages() -> None:
    runs = Runs()
    files = {"one": pages_of(1, 2, 3), "two": pages_of(4, 5)}
    first = runs.backup(files)
    reference = first.parts["one"].maps[0]
    data = bytearray(runs.store.get(str(reference.pack)))
    data[reference.offset + 10] ^= 1
    runs.store.put(str(reference.pack), bytes(data))
    second = runs.backup(files, first)
    assert second.written.pages == PageCounts(adopted=2, healed=3)
    assert runs.restore(second) == files


@pytest.mark.rule(99)
def test_a_map_is_not_shared_when_its_own_pack_goes() -> None:
    runs = Runs()
    files = {"one": pages_of(1, 2, 3)}
    first = runs.backup(files)
    doomed = first.parts["one"].maps[0].pack
    second = runs.backup(files, first, doomed=lambda pack: pack == doomed)
    assert second.written.pages == PageCounts(adopted=3)
    assert second.parts != first.parts
    assert doomed not in second.facts()
    runs.store.delete([str(doomed)])
    assert runs.restore(second) == files


@pytest.mark.parametrize("on", [True, False])
def test_sealing_switched_on_starts_anew(on: bool) -> None:
    runs = Runs(small_bytes=500)
    files = {"one": pages_of(1, 2, 3), "small": b"small"}
    first = runs.backup(files, sealed=not on)
    second = runs.backup(files, Run(first.run, {}, first.written, first.sealed), sealed=on)
    assert {pack.run for pack in second.facts()} == {second.run}
    assert {of_run.sealed for of_run in second.written.runs} == {on}
    assert runs.restore(second) == files


def test_a_parent_that_is_sealed_otherwise_gives_nothing() -> None:
    runs = Runs()
    first = runs.backup({"one": pages_of(1, 2, 3)})
    adoption = runs.adoption(first, sealed=True, doomed=lambda _: False)
    assert {adoption.fate(pack).name for pack in first.facts()} == {"HEALED"}


def test_pages_hashed_with_another_seed_are_new() -> None:
    runs = Runs()
    files = {"one": pages_of(1, 2, 3), "zeros": pages_of(0, 0)}
    first = runs.backup(files)
    elsewhere = runs.backup({"one": pages_of(9)})  # its seed is its own
    parts = {"first": elsewhere.parts["one"], **first.parts}
    second = runs.backup(files, Run(first.run, parts, first.written, sealed=False))
    assert second.written.pages == PageCounts(new=3, zero=2)
    assert {pages.seed for pages in runs.maps(second)} == {runs.maps(elsewhere)[0].seed}


def test_a_pack_of_which_little_lives_is_emptied() -> None:
    runs = Runs(pack_bytes=1 << 20)
    many = 100
    first = runs.backup({"one": pages_of(*range(1, many + 1))})
    (pack,) = {runs.maps(first)[0].table.reference(0).pack}
    kept = int(lowest_share(pack) * many) - 1
    less = {"one": pages_of(*range(1, kept + 1), *range(500, 500 + many - kept))}
    second = runs.backup(less, first)
    assert second.written.pages == PageCounts(adopted=kept, new=many - kept)
    third = runs.backup(less, second)
    assert third.written.pages == PageCounts(adopted=many - kept, compacted=kept)
    assert pack not in third.facts()
    assert runs.restore(third) == less
    fourth = runs.backup(less, third)
    assert fourth.written.pages == PageCounts(adopted=many)
    assert 0.4 <= lowest_share(pack) <= 0.6


def test_no_page_and_no_map_gets_old() -> None:
    runs = Runs(pack_bytes=3 * PAGE, small_bytes=300)
    files = {f"file {n}": pages_of(*range(n, n + 6)) for n in range(1, 100, 10)} | {"small": b"15\n"}
    run = runs.backup(files)
    aged = []
    for _ in range(30):
        runs.clock.advance(DAY.total_seconds())
        run = runs.backup(files, run)
        aged.append(run.written.pages.aged)
        assert run.written.pages.adopted + run.written.pages.aged == 60
        assert all(runs.store.now() - pack.run.at <= 14 * DAY for pack in run.facts())
        assert runs.restore(run) == files
    assert max(aged) < 60, "not all of them on one day"
    assert all(7 * DAY <= longest_age(pack, 14 * DAY) <= 14 * DAY for pack in run.facts())


def test_what_the_bucket_holds_for_old_is_old_whatever_its_id_says() -> None:
    runs = Runs()
    files = {"one": pages_of(1, 2, 3)}
    runs.clock.advance(100 * DAY.total_seconds())
    first = runs.backup(files)
    early = Runs()  # the same objects, by a clock that stands a hundred days before: that of their Last-Modified
    for info in runs.store.list(""):
        early.store.put(info.key, runs.store.get(info.key))
    early.clock.advance(15 * DAY.total_seconds())
    assert early.backup(files, first).written.pages == PageCounts(aged=3)


def test_a_pack_that_was_written_anew_for_a_hold_is_as_old_as_its_run() -> None:
    runs = Runs()
    files = {"one": pages_of(1, 2, 3)}
    first = runs.backup(files)
    runs.clock.advance(15 * DAY.total_seconds())
    for info in runs.store.list(""):
        runs.store.put(info.key, runs.store.get(info.key))
    assert runs.backup(files, first).written.pages == PageCounts(aged=3)


# -- small files


def test_small_files_share_frames() -> None:
    runs = Runs(small_bytes=SMALL_BYTES_MAX, pack_bytes=32 << 20)
    files = {f"file {n}": noise(n * 7, n) for n in range(2000)} | {
        "large": noise(SMALL_BYTES_MAX, 3),
        "larger": noise(SMALL_BYTES_MAX + 1, 4),
    }
    first = runs.backup(files)
    assert first.parts["file 0"] == FilePart(0)
    assert first.parts["large"].small is not None
    assert len(first.parts["larger"].maps) == 1
    frames = {part.small.frame for part in first.parts.values() if part.small is not None}
    assert len(frames) == 4
    assert all(frame.plain_bytes <= 4 << 20 for frame in frames)
    assert runs.restore(first) == files
    changed = files | {"file 5": b"other"}
    second = runs.backup(changed, first)
    assert second.parts["file 6"] == first.parts["file 6"]
    assert second.parts["file 5"] != first.parts["file 5"]
    assert runs.restore(second) == changed


# -- forged maps, and what shows them


def forged(runs: Runs, first: Run, **columns: Any) -> Run:
    """The same run with its only map replaced by one with other *columns*, as who may write into the bucket could."""
    pages = replace(runs.maps(first)[0], **columns)
    plain = encode_map(pages)
    pack = PackBuilder(PackKey(first.run, 77), bytes.fromhex(REPOSITORY), sealed=False)
    reference = pack.add(Compressor().compress(plain), FrameKind.MAP, 77, len(plain))
    data, facts = pack.close()
    runs.store.put(str(pack.key), data)
    row = (77, facts.size_bytes, facts.plain_bytes, len(plain), facts.digest.hex())
    (of_run,) = first.written.runs
    document = replace(first.written, runs=[type(of_run)(run=of_run.run, sealed=False, packs=[*of_run.packs, row])])
    return Run(first.run, {"one": FilePart(first.parts["one"].size_bytes, maps=(reference,))}, document, sealed=False)


def test_what_no_frame_can_be_is_not_even_read() -> None:
    runs = Runs(small_bytes=0, threads=1)
    first = runs.backup({"one": pages_of(1, 2, 3)})
    for column, value in (("stored_bytes", 1 << 29), ("plain_bytes", 1 << 29), ("offsets", 0)):
        table = runs.maps(first)[0].table
        column_of = getattr(table, column).copy()
        column_of[0] = value
        with pytest.raises(IntegrityError, match="no frame has"):
            runs.restore(forged(runs, first, table=replace(table, **{column: column_of})))


@pytest.mark.rule(36)
@pytest.mark.parametrize("another_page_changed", [True, False])
def test_forged_page_hash_is_found_by_restore(another_page_changed: bool) -> None:
    runs = Runs()
    first = runs.backup({"one": pages_of(1, 2, 3)})
    after = pages_of(1, 8, 9 if another_page_changed else 3)
    hashes = runs.maps(first)[0].hashes.copy()
    hashes[1] = page_hashes(after, PAGE, runs.maps(first)[0].seed)[1]  # the changed page looks unchanged
    second = runs.backup({"one": after}, forged(runs, first, hashes=hashes))
    if another_page_changed:
        assert second.written.pages == PageCounts(adopted=2, new=1)
        with pytest.raises(IntegrityError, match="not the stretch that was read"):
            runs.restore(second)
    else:  # then the writer itself sees it
        assert second.written.pages == PageCounts(new=3)
        assert runs.restore(second) == {"one": after}


def test_what_hashes_like_zeros_is_looked_at() -> None:
    content = pages_of(0, 1, 0, 0, last=5)
    read = Stretch.read(memoryview(content), PAGE, 7)
    assert read.zeros().tolist() == [True, False, True, True]
    lied = replace(read, hashes=read.hashes[[0, 0, 0, 3]])
    assert lied.zeros().tolist() == [True, False, True, True]


def test_a_page_that_takes_the_place_of_zeros_is_stored_whatever_the_map_says() -> None:
    runs = Runs()
    first = runs.backup({"one": pages_of(1, 0, 3)})
    after = pages_of(1, 8, 3)
    hashes = runs.maps(first)[0].hashes.copy()
    hashes[1] = page_hashes(after, PAGE, runs.maps(first)[0].seed)[1]
    second = runs.backup({"one": after}, forged(runs, first, hashes=hashes))
    assert runs.restore(second) == {"one": after}
