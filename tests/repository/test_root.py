import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.errors import IntegrityError, NoRepositoryError, StoreError, StoreUnavailableError, exit_code_of
from clipper_backup.format import names
from clipper_backup.format.documents import FORMAT_VERSION, Repository
from clipper_backup.repository.root import open_or_create_repository, open_repository
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.local import LocalStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from fixtures.clocks import START


def change(store: Store, **fields: object) -> None:
    document = json.loads(store.get(names.REPOSITORY)) | fields
    store.put(names.REPOSITORY, json.dumps(document).encode())


def openings(store: Store, clock: VirtualClock) -> list[Callable[[], Repository]]:
    """How readers open it, and how writers do."""
    return [lambda: open_repository(store), lambda: open_or_create_repository(store, clock, "a test")]


def test_a_reader_finds_no_repository_and_makes_none(memory: MemoryStore) -> None:
    with pytest.raises(NoRepositoryError, match="no repository at memory:") as raised:
        open_repository(memory)
    assert exit_code_of(raised.value) == 10
    assert "BACKUP_URL" in raised.value.hints[0]
    assert list(memory.list("")) == []


def test_the_first_writer_makes_it_and_everybody_after_finds_it(memory: MemoryStore, clock: VirtualClock) -> None:
    made = open_or_create_repository(memory, clock, "clipper-backup 0.1.0")
    assert (made.created_at, made.created_by, made.format_version) == (START, "clipper-backup 0.1.0", FORMAT_VERSION)
    clock.advance(86_400)
    assert open_or_create_repository(memory, clock, "another version") == made == open_repository(memory)


def test_two_repositories_never_have_one_id(clock: VirtualClock) -> None:
    ids = {open_or_create_repository(MemoryStore(clock), clock, "a test").id for _ in range(20)}
    assert len(ids) == 20


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_many_creators_at_once_make_one(kind: str, tmp_path: Path) -> None:
    clock = SystemClock()
    for number in range(20):
        shared = MemoryStore(clock)
        stores: list[Store] = [shared if kind == "memory" else LocalStore(tmp_path / str(number)) for _ in range(3)]
        barrier = threading.Barrier(3)
        found: list[Repository] = []

        def create(store: Store, barrier: threading.Barrier = barrier, found: list[Repository] = found) -> None:
            barrier.wait(30)
            found.append(open_or_create_repository(store, clock, "a test"))

        threads = [threading.Thread(target=create, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3
        assert {each.id for each in found} == {open_repository(stores[0]).id}


def test_a_reader_of_too_old_a_version_is_refused(memory: MemoryStore, clock: VirtualClock) -> None:
    open_or_create_repository(memory, clock, "a test")
    change(
        memory, format_version=FORMAT_VERSION + 1, min_reader_version=FORMAT_VERSION + 1, min_writer_version=FORMAT_VERSION + 1
    )
    for opening in openings(memory, clock):
        with pytest.raises(StoreError, match=rf"at memory: has format {FORMAT_VERSION + 1}, this version knows {FORMAT_VERSION}"):
            opening()


def test_a_writer_of_too_old_a_version_may_still_read(memory: MemoryStore, clock: VirtualClock) -> None:
    made = open_or_create_repository(memory, clock, "a test")
    change(memory, format_version=FORMAT_VERSION + 1, min_writer_version=FORMAT_VERSION + 1)
    assert open_repository(memory).id == made.id
    with pytest.raises(StoreError, match="has format") as raised:
        open_or_create_repository(memory, clock, "a test")
    assert "install" in raised.value.hints[0]
    assert exit_code_of(raised.value) == 1


def test_a_newer_format_that_asks_nothing_of_us_is_read_and_written(memory: MemoryStore, clock: VirtualClock) -> None:
    made = open_or_create_repository(memory, clock, "a test")
    change(memory, format_version=FORMAT_VERSION + 1)
    assert open_or_create_repository(memory, clock, "a test").id == made.id


def test_features_that_this_version_does_not_know_are_named(memory: MemoryStore, clock: VirtualClock) -> None:
    open_or_create_repository(memory, clock, "a test")
    change(memory, required_features=["sealed", "packs"])
    for opening in openings(memory, clock):
        with pytest.raises(StoreError, match="the repository at memory: needs packs, sealed"):
            opening()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[]"])
def test_a_damaged_one_is_damage_and_is_not_made_anew(memory: MemoryStore, clock: VirtualClock, data: bytes) -> None:
    memory.put(names.REPOSITORY, data)
    for opening in openings(memory, clock):
        with pytest.raises(IntegrityError, match=r"repository\.json is damaged"):
            opening()
    assert memory.get(names.REPOSITORY) == data


def test_one_that_is_lost_is_not_made_anew_over_its_dumps(memory: MemoryStore, clock: VirtualClock) -> None:
    repository = open_or_create_repository(memory, clock, "a test")
    summary = "database/postgres-backup-20261122-020000.backup.json"
    lost = memory.get(names.REPOSITORY)
    memory.put(summary, b"{}")
    memory.delete([names.REPOSITORY])

    for opening in openings(memory, clock):
        with pytest.raises(IntegrityError, match=r"its repository\.json is gone") as caught:
            opening()
        assert any(summary in hint for hint in caught.value.hints)

    memory.put(names.REPOSITORY, lost)
    assert open_or_create_repository(memory, clock, "a test") == repository


@pytest.mark.parametrize("fault", ["get:1:unavailable", "put:1:unavailable", "get:2:unavailable"])
def test_a_store_that_does_not_answer_is_not_an_empty_one(memory: MemoryStore, clock: VirtualClock, fault: str) -> None:
    with pytest.raises(StoreUnavailableError):
        open_or_create_repository(FaultyStore(memory, fault, clock), clock, "a test")


def test_a_create_whose_answer_got_lost_made_it(memory: MemoryStore, clock: VirtualClock) -> None:
    with pytest.raises(StoreUnavailableError):
        open_or_create_repository(FaultyStore(memory, "put:1:lost", clock), clock, "a test")
    assert open_or_create_repository(memory, clock, "a test") == open_repository(memory)


@pytest.mark.parametrize("key", ["systems/0001.json", "wal/1/00000001.history", "keys/20261122-020000-7f3a9c2e.age"])
def test_one_that_is_lost_is_not_made_anew_over_anything_of_ours(memory: MemoryStore, clock: VirtualClock, key: str) -> None:
    memory.put(key, b"x")
    for opening in openings(memory, clock):
        with pytest.raises(IntegrityError, match=f"objects below {key.partition('/')[0]}/, and its repository.json is gone"):
            opening()
    assert [info.key for info in memory.list("")] == [key]


def test_whoever_comes_second_finds_what_the_first_has_gone_on_to_write(memory: MemoryStore, clock: VirtualClock) -> None:
    """Between the second's look for repository.json and for other objects, the first made both."""

    class Racing(WrapperStore):
        def folders(self, prefix: str) -> Sequence[str]:
            if not list(memory.list("systems/")):
                open_or_create_repository(memory, clock, "the first")
                memory.put("systems/0001.json", b"x")
            return self._inner.folders(prefix)

    assert open_or_create_repository(Racing(memory), clock, "the second").created_by == "the first"
