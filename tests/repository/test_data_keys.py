"""Data keys: in the store and opened before anything is sealed with them, each frame number once, never shown."""

import json
import os
import threading
import warnings

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import load
from clipper_backup.errors import AccessError, IntegrityError, ObjectExistsError, StoreError, StoreUnavailableError, UsageError
from clipper_backup.format.base_documents import DataKey
from clipper_backup.format.documents import encode
from clipper_backup.format.frames import FrameKind
from clipper_backup.format.physical_names import KEYS_FOLDER, PackKey, data_key_key
from clipper_backup.format.sealing import Identity, seal, unseal
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.events import ignore
from clipper_backup.ops.keys import Sealer
from clipper_backup.ops.work import Work
from clipper_backup.repository.data_keys import DataKeys, begin_frames
from clipper_backup.repository.pack_writer import RunWriter
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import BackupId
from fixtures.clocks import START
from fixtures.runs import IDENTITY, REPOSITORY, Runs, chunks_of, opened_with

RUN = BackupId.parse("20261122-020000-7f3a9c2e")


def sealer() -> Sealer:
    return Sealer((IDENTITY.recipient,), Identity.make())


def memory() -> MemoryStore:
    return MemoryStore(VirtualClock(START))


def test_a_forked_process_makes_no_frames() -> None:
    """It would go on with the same numbers, and two plaintexts would be sealed with one nonce."""
    frames = begin_frames(memory(), REPOSITORY, RUN, sealer())
    frames.make(b"ours", FrameKind.PAGES)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on: a process with threads is forked
        child = os.fork()
    if child == 0:
        try:
            frames.make(b"another's", FrameKind.PAGES)
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as told:
        assert b"by the process that began it" in told.read()
    assert frames.make(b"ours", FrameKind.PAGES)[1] == 1


def test_the_key_opens_for_the_recipients_alone() -> None:
    store = memory()
    frames = begin_frames(store, REPOSITORY, RUN, sealer())
    stored, number = frames.make(b"packed", FrameKind.PAGES)
    assert DataKeys(store, REPOSITORY, opened_with(IDENTITY)).cipher(RUN).open(stored, FrameKind.PAGES, number) == b"packed"
    with pytest.raises(AccessError, match=r"keys/20261122-020000-7f3a9c2e\.age is sealed to other keys"):
        DataKeys(store, REPOSITORY, opened_with(Identity.make())).cipher(RUN)


@pytest.mark.rule(85)
def test_the_key_object_is_as_the_page_says_and_shows_no_key() -> None:
    store = memory()
    begin_frames(store, REPOSITORY, RUN, sealer())
    plain = b"".join(unseal([store.get(data_key_key(RUN))], [IDENTITY], "it"))
    document = json.loads(plain)
    assert {name: document[name] for name in document if name != "key"} == {
        "schema": 1, "repository_id": REPOSITORY, "run": str(RUN), "algorithm": "aes-256-gcm",
    }  # fmt: skip
    assert len(bytes.fromhex(document["key"])) == 32
    assert document["key"] not in repr(DataKey(repository_id=REPOSITORY, run=str(RUN), key=document["key"]))


@pytest.mark.rule(86)
@pytest.mark.rule(100)
@pytest.mark.parametrize(("script", "error"), [
    ("put:1:unavailable", StoreUnavailableError),
    ("put:1:denied", AccessError),
    ("get:1:unavailable", StoreUnavailableError),
    ("get:1:flip", StoreError),
])  # fmt: skip
def test_key_is_there_before_packs(script: str, error: type[Exception]) -> None:
    inner = memory()
    with pytest.raises(error):
        begin_frames(FaultyStore(inner, script, SystemClock()), REPOSITORY, RUN, sealer())
    # Whoever seals has got his frames from begin_frames: without a key that was read back, nobody can begin a pack.
    assert [info.key for info in inner.list("") if not info.key.startswith(KEYS_FOLDER)] == []


@pytest.mark.rule(100)
def test_a_run_begins_once() -> None:
    store = memory()
    begin_frames(store, REPOSITORY, RUN, sealer())
    with pytest.raises(ObjectExistsError):
        begin_frames(store, REPOSITORY, RUN, sealer())


def test_two_runs_have_two_keys() -> None:
    store = memory()
    stored, number = begin_frames(store, REPOSITORY, RUN, sealer()).make(b"packed", FrameKind.PAGES)
    other, same = begin_frames(store, REPOSITORY, BackupId.parse("20261123-020000-7f3a9c2e"), sealer()).make(
        b"packed", FrameKind.PAGES
    )
    assert number == same
    assert stored != other


@pytest.mark.rule(85)
def test_each_call_takes_the_next_number_whichever_thread_calls() -> None:
    store = memory()
    frames = begin_frames(store, REPOSITORY, RUN, sealer())
    made: list[tuple[bytes, int]] = []
    threads = [
        threading.Thread(target=lambda: made.extend([frames.make(b"the same", FrameKind.PAGES) for _ in range(500)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for _, number in made) == list(range(2000))
    assert len({stored for stored, _ in made}) == 2000, "the same plaintext is never sealed to the same bytes"


@pytest.mark.parametrize(("document", "told"), [
    (DataKey(repository_id="0" * 32, run=str(RUN), key="0" * 64), "of the repository 0000"),
    (DataKey(repository_id=REPOSITORY, run="20261123-020000-7f3a9c2e", key="0" * 64), "of the run 20261123"),
])  # fmt: skip
def test_a_key_is_taken_only_at_its_own_name(document: DataKey, told: str) -> None:
    store = memory()
    store.put(data_key_key(RUN), b"".join(seal([encode(document)], [IDENTITY.recipient])))
    with pytest.raises(IntegrityError, match=told):
        DataKeys(store, REPOSITORY, opened_with(IDENTITY)).cipher(RUN)


def test_a_key_that_is_lost_or_damaged() -> None:
    store = memory()
    keys = DataKeys(store, REPOSITORY, opened_with(IDENTITY))
    with pytest.raises(IntegrityError, match="is missing from the store"):
        keys.cipher(RUN)
    begin_frames(store, REPOSITORY, RUN, sealer())
    whole = store.get(data_key_key(RUN))
    store.put(data_key_key(RUN), whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="is damaged"):
        keys.cipher(RUN)
    store.put(data_key_key(RUN), whole)
    assert keys.cipher(RUN) is keys.cipher(RUN), "opened once"


@pytest.mark.rule(86)
def test_no_plaintext_when_sealing_is_on() -> None:
    runs = Runs(small_bytes=2000)
    secret = b"a row that nobody may read " * 100
    files = {"large": secret * 3, "small": secret[:1500]}
    run = runs.backup(files, sealed=True)
    again = runs.backup(files | {"large": secret * 4}, run, sealed=True)
    for info in runs.store.list(""):
        data = runs.store.get(info.key)
        assert b"nobody may read" not in data
        if info.key.startswith("packs/"):
            assert data[17] == 1
            assert b"\x28\xb5\x2f\xfd" not in data, "a zstd frame that is not sealed"
    assert runs.restore(again)["small"] == secret[:1500]
    with pytest.raises(AccessError):
        Runs(clock=runs.clock, store=runs.store, identities=[Identity.make()]).restore(run)


@pytest.mark.rule(86)
@pytest.mark.parametrize("given", [{"ENCRYPTION_IDENTITY_FILE": "/secret"}, {"ENCRYPTION_RECIPIENTS": "age1nobody"}], ids=str)
def test_nothing_is_written_when_there_is_nobody_to_seal_to(given: dict[str, str]) -> None:
    store = memory()
    settings = load({}, {"BACKUP_URL": "file:///unused", "PGHOST": "/nowhere", **given}).settings
    with pytest.raises(UsageError, match="ENCRYPTION_RECIPIENTS"):
        create_base(Work(settings, store, SystemClock(), ignore))
    assert list(store.list("")) == []


def test_a_pack_tells_that_it_is_sealed_and_nobody_opens_it_as_if_it_were_not() -> None:
    runs = Runs()
    sealed, plain = runs.backup({"one": b"1" * 2000}, sealed=True), runs.backup({"one": b"1" * 2000})
    for run in (sealed, plain):
        run.sealed = not run.sealed
        with pytest.raises(IntegrityError):
            runs.restore(run)


def test_frames_of_a_run_without_recipients_are_numbered_too() -> None:
    frames = begin_frames(memory(), REPOSITORY, RUN, None)
    assert [frames.make(b"packed", FrameKind.MAP) for _ in range(2)] == [(b"packed", 0), (b"packed", 1)]
    with RunWriter(memory(), frames, 1024, small_bytes=0) as writer:
        writer.file("one", 2000, chunks_of(bytes(1000) + b"1" * 1000))
        (of_run,) = writer.finish().runs
    assert (of_run.run, of_run.sealed) == (str(PackKey(RUN, 0).run), False)
