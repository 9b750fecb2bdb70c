"""Runs in a store that fails, and packs that were damaged: an error ends all threads, no damage is handed out."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.errors import (
    ClipperError,
    IntegrityError,
    ServerError,
    StoppedError,
    StoreError,
    StoreUnavailableError,
)
from clipper_backup.format.frames import FrameKind, Reference
from clipper_backup.format.packs import END_BYTES, PackRow, read_trailer, trailer_bytes
from clipper_backup.format.physical_names import PACKS_FOLDER, PackKey, parse_pack_key
from clipper_backup.repository.data_keys import begin_frames
from clipper_backup.repository.pack_reader import coalesced, verify_pack
from clipper_backup.repository.pack_writer import RunWriter
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.retrying import RetryingStore
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures.clocks import START
from fixtures.runs import PAGE, REPOSITORY, Run, Runs, chunks_of

FILES = {f"file {n}": random.Random(n).randbytes(n * 700) for n in range(30)} | {"zeros": bytes(9 * PAGE)}


def threads_of_a_run() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("pages", "upload"))]


class Recording(WrapperStore):
    """Keeps every sequence of bytes that anybody tried to put at a key, whether or not it was answered."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.tried: dict[str, set[bytes]] = defaultdict(set)
        self.tries = 0
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        with self._lock:
            self.tried[key].add(sha256(data).digest())
            self.tries += 1
        super().put(key, data, create=create)


def flaky(clock: VirtualClock, script: str) -> tuple[RetryingStore, Recording]:
    """A store that retries over one that fails as *script* says; what reaches the server is recorded."""
    recording = Recording(MemoryStore(clock))
    return RetryingStore(FaultyStore(recording, script, clock), retry_seconds=60, clock=clock, rng=random.Random(1)), recording


def rows_of(data: bytes, pack: PackKey) -> list[PackRow]:
    return read_trailer(data[:64], data[-trailer_bytes(data[-END_BYTES:], pack) :], pack, len(data))[0]


@pytest.mark.rule(85)
@pytest.mark.rule(100)
def test_nonces_never_repeat() -> None:
    clock = VirtualClock(START)
    store, recording = flaky(clock, "put:2-3:lost, put:5:unavailable, put:9:lost, get_ranges:2:unavailable")
    runs = Runs(clock=clock, store=store, small_bytes=3000)
    run = runs.backup(FILES, sealed=True)
    again = runs.backup(FILES | {"file 9": b"other"}, run, sealed=True)
    numbers: dict[BackupId, list[int]] = defaultdict(list)
    for info in store.list(PACKS_FOLDER):
        pack = parse_pack_key(info.key)
        assert pack is not None
        numbers[pack.run] += [row.number for row in rows_of(store.get(info.key), pack)]
    assert numbers.keys() == {run.run, again.run}
    for used in numbers.values():
        assert sorted(used) == list(range(len(used)))
    assert recording.tries > len(recording.tried), "nothing was tried again"
    assert runs.restore(again)["file 9"] == b"other"


@pytest.mark.rule(100)
def test_pack_retry_same_bytes_or_new_number() -> None:
    clock = VirtualClock(START)
    store, recording = flaky(clock, "put:1:lost, put:3:unavailable, put:4-6:lost, put:9:unavailable")
    runs = Runs(clock=clock, store=store)
    run = runs.backup(FILES)
    assert {len(bodies) for bodies in recording.tried.values()} == {1}, "two sequences of bytes under one number"
    assert recording.tries > len(recording.tried)
    assert sorted(pack.number for pack in run.facts()) == list(range(len(run.facts())))
    assert runs.restore(run) == FILES


# -- errors end all


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize("effect", ["unavailable", "denied", "broken", "lost"])
def test_a_put_that_fails_for_good_ends_the_run(number: int, effect: str) -> None:
    clock = VirtualClock(START)
    runs = Runs(clock=clock, store=FaultyStore(MemoryStore(clock), f"put:{number}:{effect}", clock), pack_bytes=10_000)
    with pytest.raises(ClipperError, match=f"scripted fault put:{number}:{effect}"):
        runs.backup(FILES)
    assert threads_of_a_run() == []
    assert runs.restore(runs.backup(FILES)) == FILES, "and a rerun succeeds"


def test_a_store_that_cannot_be_read_is_no_damage() -> None:
    clock = VirtualClock(START)
    inner = MemoryStore(clock)
    run = Runs(clock=clock, store=inner).backup(FILES)
    runs = Runs(clock=clock, store=FaultyStore(inner, "get_ranges:7:unavailable", clock))
    with pytest.raises(StoreUnavailableError):
        runs.backup(FILES, run)
    assert threads_of_a_run() == []


@pytest.mark.parametrize("error", [ServerError("the connection broke"), StoppedError(15)])
@pytest.mark.parametrize("taken", [0, 100_000, 70 << 20])
def test_what_the_chunks_raise_ends_the_run(error: BaseException, taken: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield from chunks_of(bytes(taken), 1 << 20)
        raise error

    store = MemoryStore(VirtualClock(START))
    frames = begin_frames(store, REPOSITORY, BackupId.make(START), None)
    with RunWriter(store, frames, 8192) as writer:
        writer.file("before", 5, [b"12345"])
        with pytest.raises(type(error)):
            writer.file("broken", 100 << 20, chunks())
    assert threads_of_a_run() == []


@pytest.mark.parametrize("signal_number", [signal.SIGUSR1])
def test_a_signal_ends_the_run_while_all_wait_for_the_store(signal_number: signal.Signals) -> None:
    class Stuck(WrapperStore):
        """A store whose server does not answer until it is let go."""

        begun, go = threading.Event(), threading.Event()

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            self.begun.set()
            assert self.go.wait(30)
            super().put(key, data, create=create)

    def stop(number: int, frame: object) -> None:
        store.go.set()
        raise StoppedError(number)

    def send() -> None:
        assert store.begun.wait(30)
        os.kill(os.getpid(), signal_number)

    store = Stuck(MemoryStore(VirtualClock(START)))
    frames = begin_frames(store, REPOSITORY, BackupId.make(START), None)
    before = signal.signal(signal_number, stop)
    sending = threading.Thread(target=send)
    sending.start()

    def write() -> None:
        with RunWriter(store, frames, PAGE, pack_bytes=100, small_bytes=0) as writer:
            for number in range(1000):
                writer.file("one", 2000, chunks_of(random.Random(number).randbytes(2000)))
            writer.finish()

    try:
        with pytest.raises(StoppedError):
            write()
    finally:
        signal.signal(signal_number, before)
        sending.join()
    assert threads_of_a_run() == []


@pytest.mark.parametrize("told", [2 << 20, (2 << 20) - 1, 100, 99, 0])
@pytest.mark.parametrize("came", [2 << 20, (2 << 20) + 1, 100, 101, 1])
def test_a_file_that_is_not_as_long_as_it_was_said(told: int, came: int) -> None:
    store = MemoryStore(VirtualClock(START))
    frames = begin_frames(store, REPOSITORY, BackupId.make(START), None)
    with RunWriter(store, frames, PAGE) as writer:
        if told == came:
            writer.file("one", told, chunks_of(bytes(came)))
            return
        with pytest.raises(IntegrityError, match=f"one {'ended before' if came < told else 'goes on behind'} its {told} bytes"):
            writer.file("one", told, chunks_of(bytes(came)))


# -- damage


def small_run(sealed: bool) -> tuple[Runs, Run]:
    runs = Runs(small_bytes=100, threads=1)  # so there are two packs, one of maps
    return runs, runs.backup({"one": b"\1" * PAGE + b"\2" * 100, "small": b"15\n"}, sealed=sealed)


@pytest.mark.rule(85)
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_flipped_bytes_in_pack(sealed: bool) -> None:
    runs, run = small_run(sealed)
    whole = runs.restore(run)
    for pack, facts in run.facts().items():
        data = runs.store.get(str(pack))
        frames = range(64, len(data) - trailer_bytes(data[-END_BYTES:], pack))
        for position in range(len(data)):
            runs.store.put(str(pack), data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
            with pytest.raises(IntegrityError):
                verify_pack(runs.store, pack, facts, REPOSITORY)
            if position in frames:
                with pytest.raises(IntegrityError, match="BLAKE3 differs"):
                    runs.restore(run)
            else:  # header and trailer are not needed to restore
                assert runs.restore(run) == whole
        runs.store.put(str(pack), data)
        verify_pack(runs.store, pack, facts, REPOSITORY)
    assert runs.restore(run) == whole


def test_packs_that_were_cut_swapped_or_lost() -> None:
    runs, run = small_run(sealed=False)
    (first, facts), (second, others) = run.facts().items()
    data, other = runs.store.get(str(first)), runs.store.get(str(second))
    for length in (0, 1, 50, 64, 70, len(data) - 1):
        runs.store.put(str(first), data[:length])
        with pytest.raises(IntegrityError):
            verify_pack(runs.store, first, facts, REPOSITORY)
        if length < 80:
            with pytest.raises(IntegrityError):
                runs.restore(run)
    runs.store.put(str(first), other)
    runs.store.put(str(second), data)
    for pack, told in ((first, facts), (second, others)):
        with pytest.raises(IntegrityError):
            verify_pack(runs.store, pack, told, REPOSITORY)
    with pytest.raises(IntegrityError):
        runs.restore(run)
    runs.store.put(str(second), other)
    runs.store.delete([str(first)])
    with pytest.raises(IntegrityError, match="is missing from the store"):
        runs.restore(run)
    with pytest.raises(IntegrityError, match="is missing from the store"):
        verify_pack(runs.store, first, facts, REPOSITORY)


def test_a_whole_pack_of_another_run_is_not_the_one_that_was_recorded() -> None:
    runs, run = small_run(sealed=False)
    other = runs.backup({"one": b"\1" * PAGE + b"\3" * 100, "small": b"15\n"})
    (pack, facts), (theirs, their_facts) = (next(iter(each.facts().items())) for each in (run, other))
    assert facts.size_bytes == their_facts.size_bytes
    with pytest.raises(IntegrityError, match="not the pack that the backup names"):
        verify_pack(runs.store, pack, their_facts, REPOSITORY)
    runs.store.put(str(pack), runs.store.get(str(theirs)))
    with pytest.raises(IntegrityError, match="does not begin as this pack"):
        verify_pack(runs.store, pack, their_facts, REPOSITORY)
    with pytest.raises(IntegrityError, match="does not begin as this pack"):
        verify_pack(runs.store, theirs, their_facts, "0" * 32)


def test_a_map_is_not_opened_as_pages() -> None:
    runs, run = small_run(sealed=True)
    reference = run.parts["one"].maps[0]
    reader = runs.reader(sealed=True)
    with pytest.raises(IntegrityError, match="cannot be decrypted"):
        reader._frame(reference, FrameKind.PAGES)
    with pytest.raises(IntegrityError):
        reader.map_of(reference, PAGE)


def test_a_store_that_fails_is_not_taken_for_damage() -> None:
    runs, run = small_run(sealed=False)
    clock = runs.clock
    failing = Runs(clock=clock, store=FaultyStore(runs.store, "get_ranges:1:broken", clock))
    with pytest.raises(StoreError, match="scripted fault") as caught:
        failing.restore(run)
    assert not isinstance(caught.value, IntegrityError)


def test_ranges_that_lie_close_are_read_together() -> None:
    near, far = 128 << 10, (128 << 10) + 1
    assert coalesced([]) == []
    assert coalesced([(64, 10), (74, 10)]) == [(64, 20)]
    assert coalesced([(64, 10), (74 + near, 10)]) == [(64, near + 20)]
    assert coalesced([(64, 10), (74 + far, 10)]) == [(64, 10), (74 + far, 10)]


def test_a_small_frame_is_read_once_for_all_its_files() -> None:
    clock = VirtualClock(START)
    runs = Runs(clock=clock, small_bytes=1000)
    files = {f"file {n}": bytes([n]) * (n + 1) for n in range(100)}
    run = runs.backup(files)
    counting = FaultyStore(runs.store, "", clock)
    assert Runs(clock=clock, store=counting).restore(run) == files
    assert counting.calls == 1


def test_references_show_where_they_lead() -> None:
    reference = Reference(PackKey(BackupId.parse("20261122-020000-7f3a9c2e"), 3), 64, 1, 1, 9, bytes(16))
    assert str(reference) == "packs/20261122-020000-7f3a9c2e/00000003, frame 9 at offset 64"


# -- memory

_PROGRAM = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from clipper_backup.clock import SystemClock
from clipper_backup.format.sealing import Identity
from clipper_backup.ops.keys import Sealer
from clipper_backup.repository.data_keys import begin_frames
from clipper_backup.repository.pack_writer import RunWriter
from clipper_backup.store.local import LocalStore
from clipper_backup.values import BackupId
store = LocalStore(Path(sys.argv[1]))
own = Identity.make()
frames = begin_frames(store, "0" * 32, BackupId.make(datetime.now(UTC)), Sealer((own.recipient,), own))
block = os.urandom(1 << 20)
with RunWriter(store, frames, 8192) as writer:
    writer.file("one", 448 << 20, (block for _ in range(448)))
    writer.finish()
# Not ru_maxrss: over fork and exec that keeps what the parent had.
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")))
"""


def test_memory_is_bounded_however_little_compresses(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-c", _PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 512 << 10, "kilobytes"
