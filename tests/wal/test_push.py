"""`wal push`: what is acknowledged is there, and nothing else (W1, W2, W6, W11, R2)."""

import json
import re
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import load
from clipper_backup.errors import (
    ClipperError,
    IntegrityError,
    MissingError,
    NoRepositoryError,
    StoreUnavailableError,
    UsageError,
    exit_code_of,
)
from clipper_backup.format.wal_objects import NO_LINK, ObjectKind, decode_object, link_of, signed_by
from clipper_backup.ops.wal.push import push
from clipper_backup.postgres.control_file import State
from clipper_backup.postgres.data_folder import DataFolder, WalFile
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.repository.systems import add_system, list_systems
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.metering import MeteringStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from fixtures.clocks import START
from fixtures.keys import Key, opening, sealed_to
from fixtures.wal import MIB, SYSTEM, MadeServer, Pushing, segment_bytes


@pytest.fixture
def pushing() -> Pushing:
    clock = VirtualClock(START)
    return Pushing(MemoryStore(clock), clock)


@pytest.fixture
def server(tmp_path: Path) -> MadeServer:
    return MadeServer(tmp_path / "data")


def key_of(name: str, suffix: str) -> str:
    folder = "histories" if name.endswith(".history") else f"{name[:8]}/{name[:16]}"
    return f"wal/{SYSTEM}/{folder}/{name}{suffix}"


def claim_of(pushing: Pushing, name: str) -> dict[str, Any]:
    claim: dict[str, Any] = json.loads(pushing.store.get(key_of(name, ".claim")))
    return claim


def stored(pushing: Pushing, name: str, suffix: str = ".zst") -> bytes:
    return b"".join(decode_object([pushing.store.get(key_of(name, suffix))], name)[1])


FIRST, SECOND, THIRD = (f"00000001000000000000000{number}" for number in (1, 2, 3))


@pytest.mark.rule(1)
@pytest.mark.rule(9)
@pytest.mark.parametrize("size_bytes", [MIB, 16 * MIB, 64 * MIB])
def test_a_segment_is_there_when_it_is_acknowledged(pushing: Pushing, tmp_path: Path, size_bytes: int) -> None:
    server = MadeServer(tmp_path / "data", size_bytes=size_bytes)
    pushed = pushing(server.write(255 if size_bytes == 16 * MIB else 1))
    assert (pushed.state, pushed.healed) == ("archived", None)
    assert stored(pushing, pushed.name) == (server.wal / pushed.name).read_bytes()
    claim = claim_of(pushing, pushed.name)
    assert (claim["system_id"], claim["plain_bytes"], claim["previous"]) == (str(SYSTEM), size_bytes, "0" * 32)
    assert 300 < len(pushing.store.get(key_of(pushed.name, ".claim"))) < 500
    (system,) = list_systems(pushing.store)
    assert (system.system_id, system.segment_bytes, system.server_major) == (str(SYSTEM), size_bytes, 15)


@pytest.mark.rule(3)
@pytest.mark.rule(11)
def test_the_same_once_more_is_success(pushing: Pushing, server: MadeServer) -> None:
    path = server.write(1)
    pushing(path)
    before = {info.key: info.version for info in pushing.store.list("")}
    assert pushing(path).state == "was archived"
    assert {info.key: info.version for info in pushing.store.list("")} == before


@pytest.mark.rule(13)
def test_the_empty_end_of_a_forced_switch_costs_nothing(pushing: Pushing, tmp_path: Path) -> None:
    pushing(MadeServer(tmp_path / "data", size_bytes=64 * MIB).write(1, written_pages=1))
    assert pushing.store.head(key_of(f"{1:08X}{1:016X}", ".zst")).size_bytes < 16_384


def test_segments_form_a_chain(pushing: Pushing, server: MadeServer) -> None:
    for number in (1, 2, 3):
        pushing(server.write(number))
    for name, behind in ((FIRST, SECOND), (SECOND, THIRD)):
        claim = claim_of(pushing, name)
        link = link_of(bytes.fromhex(claim["salt"]), bytes.fromhex(claim["digest"])).hex()
        assert claim_of(pushing, behind)["previous"] == link
        assert decode_object([pushing.store.get(key_of(behind, ".zst"))], "it")[0].previous.hex() == link


@pytest.mark.rule(1)
@pytest.mark.rule(3)
def test_claim_alone_is_no_success(pushing: Pushing, server: MadeServer) -> None:
    path = server.write(1)
    broken = Pushing(FaultyStore(pushing.store, "put:3:unavailable", pushing.clock), pushing.clock)
    with pytest.raises(StoreUnavailableError):
        broken(path)
    assert pushing.names() == [f"{FIRST}.claim"], "system and claim came before the put that failed"
    assert pushing(path).state == "archived", "who has the same plaintext goes on"
    assert pushing.names() == [f"{FIRST}.claim", f"{FIRST}.zst"]


def test_an_object_that_went_is_put_again(pushing: Pushing, server: MadeServer) -> None:
    path = server.write(1)
    pushing(path)
    pushing.store.delete([key_of(FIRST, ".zst")])
    assert pushing(path).state == "archived"
    assert stored(pushing, FIRST) == path.read_bytes()


@pytest.mark.rule(2)
@pytest.mark.rule(10)
def test_two_primaries_one_loses(pushing: Pushing, tmp_path: Path) -> None:
    one, other = MadeServer(tmp_path / "one", seed="one"), MadeServer(tmp_path / "other", seed="other")
    pushing(one.write(1))
    before = pushing.store.get(key_of(FIRST, ".zst"))
    with pytest.raises(IntegrityError, match=f"{FIRST} is in the archive with other bytes") as raised:
        pushing(other.write(1))
    assert exit_code_of(raised.value) == 13
    assert pushing.store.get(key_of(FIRST, ".zst")) == before


def race(store: MemoryStore, paths: list[Path]) -> list[str]:
    """Push all of *paths* at once: how each ended."""
    ended: list[str] = []
    barrier = threading.Barrier(len(paths))

    def run(path: Path) -> None:
        barrier.wait(30)
        try:
            ended.append(push(replace(Pushing(store).work(), clock=SystemClock()), path).state)
        except IntegrityError as error:
            ended.append(error.message)

    threads = [threading.Thread(target=run, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_two_primaries_at_the_same_moment(tmp_path: Path) -> None:
    for attempt in range(5):
        store = MemoryStore(SystemClock())
        open_or_create_repository(store, SystemClock(), "a test")
        servers = [MadeServer(tmp_path / f"{attempt}-{seed}", seed=seed) for seed in ("one", "other")]
        ended = race(store, [server.write(1) for server in servers])
        assert "archived" in ended
        assert any("is in the archive with other bytes" in text for text in ended), ended


# -- what is no WAL of this server


def damage(path: Path, at: int, data: bytes) -> Path:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


@pytest.mark.rule(8)
@pytest.mark.rule(101)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda server: damage(server.write(1), 0, b"\0\0"), "magic number 0000, not D110"),
        (lambda server: damage(server.write(1), 8, b"\1"), "lies at 0/100001"),
        (lambda server: damage(server.write(1), 4, b"\2"), "is of timeline 2"),
        (lambda server: damage(server.write(1), 2, b"\0"), "no long header"),
        (lambda server: damage(server.write(1), 24, b"\0"), "is of the system"),
        (lambda server: damage(server.write(1), 32, b"\1"), "segments of 1048577"),
        (lambda server: damage(server.write(1), 36, b"\1"), "pages of 8193"),
        (lambda server: damage(server.write(1), 8192 * 7 + 8, b"\1"), "0/10E000 says that it lies at 0/10E001"),
        (lambda server: damage(server.write(1), 8192 * 9, b"\1"), "0/112000 is written, and one before it is not"),
        (lambda server: damage(server.write(1), 8192 * 127 + 5000, b"\1"), "0/1FE000 is written, and one before it is not"),
        (lambda server: server.put(FIRST, bytes(MIB)), "0/100000 is all zeros"),
        (
            lambda server: server.put(FIRST, server.write(1).read_bytes()[:-1]),
            "1048575 bytes, a segment of this server has 1048576",
        ),
        (lambda server: server.write(1).rename(server.wal / SECOND), "0/200000 says that it lies at 0/100000"),
    ],
    ids=range(13),
)
def test_what_is_no_wal_of_that_name_is_refused(
    pushing: Pushing, server: MadeServer, spoil: Callable[[MadeServer], Path], said: str
) -> None:
    with pytest.raises(IntegrityError, match=re.escape(said)):
        pushing(spoil(server))
    assert pushing.names() == []


@pytest.mark.rule(8)
def test_a_recycled_segment_with_its_old_pages_is_refused(pushing: Pushing, server: MadeServer) -> None:
    old, new = server.write(1, written_pages=None).read_bytes(), server.write(9, written_pages=40)
    new.write_bytes(new.read_bytes()[: 40 * 8192] + old[40 * 8192 :])
    with pytest.raises(IntegrityError, match="the page at 0/950000 says that it lies at 0/150000"):
        pushing(new)


def test_pages_of_an_ancestor_end_where_it_was_left(pushing: Pushing, server: MadeServer) -> None:
    pushing(server.promote(0x204000, 2))
    path = server.write(2)
    pushing(path)
    assert stored(pushing, path.name) == path.read_bytes()
    late = segment_bytes(server.segment(2), older=[(1, 0x206000)], written_pages=8)
    path.write_bytes(late)
    with pytest.raises(IntegrityError, match="the page at 0/204000 is of timeline 1"):
        pushing(path)
    path.write_bytes(damage(path, 4, b"\2").read_bytes())
    with pytest.raises(IntegrityError, match="the page at 0/202000 is of timeline 1, one before it of 2"):
        pushing(path)


@pytest.mark.rule(101)
def test_a_file_that_changes_while_it_is_read_is_not_taken(pushing: Pushing, server: MadeServer) -> None:
    path = server.write(1)

    found = WalFile.find(path, DataFolder(server.path, pushing.clock).layout())
    pieces = found.read()
    next(pieces)
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").rename(path)
    with pytest.raises(ClipperError, match="changed while it was read"):
        list(pieces)
    with pytest.raises(ClipperError, match="changed while it was read"):
        list(found.read())


@pytest.mark.rule(5)
@pytest.mark.parametrize("name", ["archive_status", f"{FIRST}.gz", f"{FIRST}.ready", "00000000.history", "x" * 64])
def test_other_names_are_refused(pushing: Pushing, server: MadeServer, name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a file"):
        pushing(server.wal / name)


def test_a_file_that_is_not_there_and_a_folder_that_is_none(pushing: Pushing, server: MadeServer, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=f"there is no file .*{FIRST}"):
        pushing(server.wal / FIRST)
    with pytest.raises(MissingError, match="is no data folder"):
        pushing(tmp_path / "pg_wal" / FIRST)
    with pytest.raises(UsageError, match="does not lie in a pg_wal"):
        pushing(tmp_path / FIRST)


# -- repository and systems


@pytest.mark.rule(1)
def test_no_repository_is_made_and_none_of_another_id_will_do(pushing: Pushing, server: MadeServer) -> None:
    """What PostgreSQL may forget lies in the repository that was there before, and is there still."""
    path = server.write(1)

    class Leaving(WrapperStore):
        """The volume goes while the file is on its way."""

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            self._inner.put(key, data, create=create)
            if key.endswith(".zst"):
                self._inner.delete(["repository.json"])

    with pytest.raises(IntegrityError, match="is no longer the repository that it was"):
        Pushing(Leaving(pushing.store), pushing.clock)(path)
    empty = MemoryStore(pushing.clock)
    with pytest.raises(NoRepositoryError) as refused:
        push(replace(pushing.work(), store=empty), path)
    assert "`clipper-backup base create`" in refused.value.hints[1]
    assert list(empty.list("")) == []


@pytest.mark.rule(10)
@pytest.mark.rule(44)
def test_first_write_by_two_systems_has_one_winner(tmp_path: Path) -> None:
    for attempt in range(5):
        store = MemoryStore(SystemClock())
        open_or_create_repository(store, SystemClock(), "a test")
        servers = [MadeServer(tmp_path / f"{attempt}-{system}", system=system) for system in (SYSTEM, SYSTEM + 1)]
        ended = race(store, [server.write(1) for server in servers])
        assert "archived" in ended
        assert any("is the repository of another cluster" in text for text in ended), ended
        (entry,) = list_systems(store)
        assert {info.key.split("/")[1] for info in store.list("wal/")} == {entry.system_id}


def test_another_size_of_segments_is_refused(pushing: Pushing, tmp_path: Path) -> None:
    pushing(MadeServer(tmp_path / "one").write(1))
    with pytest.raises(IntegrityError, match=r"holds segments of 1048576 bytes .* this server has 2097152"):
        pushing(MadeServer(tmp_path / "other", size_bytes=2 * MIB).write(1))


def test_a_new_system_is_accepted_when_a_person_has_added_it(pushing: Pushing, tmp_path: Path) -> None:
    pushing(MadeServer(tmp_path / "old").write(1))
    new = MadeServer(tmp_path / "new", system=SYSTEM + 1)
    with pytest.raises(IntegrityError, match="another cluster"):
        pushing(new.write(1))
    (old,) = list_systems(pushing.store)
    added = add_system(
        pushing.store,
        type(old)(**{field: getattr(old, field) for field in old.__struct_fields__} | {"system_id": str(SYSTEM + 1)}),
    )
    assert added.number == 2
    assert pushing(new.write(1)).state == "archived"
    assert pushing(MadeServer(tmp_path / "old again").write(2)).state == "archived", "WAL of the old one may still come"


# -- histories, .backup, .partial


@pytest.mark.rule(6)
@pytest.mark.rule(97)
def test_segment_before_its_history_refused(pushing: Pushing, server: MadeServer) -> None:
    pushing(server.write(1))
    history = server.promote(0x204000, 2)
    path = server.write(2)
    saved = history.read_bytes()
    history.unlink()
    with pytest.raises(IntegrityError, match=r"there is no 00000002[.]history"):
        pushing(path)
    assert not any(key.startswith("00000002") for key in pushing.names())
    history.write_bytes(saved)
    pushing(path)
    assert stored(pushing, "00000002.history") == saved, "it went first, .ready or not"
    assert claim_of(pushing, "00000002.history")["ancestors"] == [[1, "0/204000"]]
    history.unlink()
    assert pushing(server.write(3)).state == "archived", "the archive has its history"
    pushing.store.delete([key_of("00000002.history", suffix) for suffix in (".claim", ".zst")])
    with pytest.raises(IntegrityError, match=r"there is no 00000002[.]history"):
        pushing(server.write(4))
    history.write_bytes(saved)
    pushing(server.write(4))
    assert stored(pushing, "00000002.history") == saved, "the store was set back meanwhile"


@pytest.mark.rule(10)
def test_a_timeline_belongs_to_who_claimed_its_history(pushing: Pushing, tmp_path: Path) -> None:
    one, other = MadeServer(tmp_path / "one"), MadeServer(tmp_path / "other")
    pushing(one.promote(0x204000, 2, "one"))
    pushing(one.write(2))
    history = other.promote(0x204000, 2, "other")
    with pytest.raises(IntegrityError, match=r"00000002[.]history is in the archive with other bytes"):
        pushing(history)
    with pytest.raises(IntegrityError, match="timeline 2 is another server's"):
        pushing(other.write(3))
    assert not any(key.startswith(f"{2:08X}{3:016X}") for key in pushing.names())


def test_a_history_that_a_restore_made_is_not_stored(pushing: Pushing, server: MadeServer) -> None:
    path = server.put("00000005.history", b"# clipper-backup: the history of timeline 5 cannot be read; its number stays taken\n")
    assert pushing(path).state == "made"
    assert pushing.names() == []


def test_a_history_that_makes_no_sense_is_refused(pushing: Pushing, server: MadeServer) -> None:
    with pytest.raises(IntegrityError, match=r"00000002[.]history, line 1"):
        pushing(server.put("00000002.history", b"2\t0/1000000\tself\n"))
    assert pushing.names() == []


def test_a_backup_history_file_is_kept_as_it_is(pushing: Pushing, server: MadeServer) -> None:
    path = server.put(f"{FIRST}.00000028.backup", b"START WAL LOCATION: 0/100028\nLABEL: \xff\n")
    assert pushing(path).state == "archived"
    header, plain = decode_object([pushing.store.get(key_of(path.name, ".zst"))], "it")
    assert (header.kind, header.lsn, b"".join(plain)) == (ObjectKind.BACKUP, 0x100028, path.read_bytes())


@pytest.mark.rule(7)
def test_two_partials_of_one_name(pushing: Pushing, tmp_path: Path) -> None:
    servers = [MadeServer(tmp_path / seed, seed=seed) for seed in ("one", "other")]
    paths = [server.put(f"{FIRST}.partial", server.write(1, written_pages=None).read_bytes()) for server in servers]
    for path in paths:
        assert pushing(path).state == "archived"
        assert pushing(path).state == "was archived"
    found = pushing.names()
    assert len(found) == 2
    assert all(re.fullmatch(rf"{FIRST}\.partial-[0-9a-f]{{16}}\.zst", key) for key in found), "no claim, no segment"
    assert pushing(servers[0].wal / FIRST).state == "archived", "the segment of that name is another thing"


def test_a_partial_needs_no_history(pushing: Pushing, server: MadeServer) -> None:
    server.promote(0x204000, 2).unlink()
    path = server.put(f"{server.segment(2).name}.partial", server.write(2).read_bytes())
    assert pushing(path).state == "archived"
    newer = server.put(f"{server.segment(3).name}.partial", damage(server.write(3), 4, b"\3").read_bytes())
    with pytest.raises(IntegrityError, match="is of timeline 3"):
        pushing(newer)


def test_a_partial_may_end_in_old_pages_but_not_begin_with_them(pushing: Pushing, server: MadeServer) -> None:
    whole = server.write(1, written_pages=None).read_bytes()
    other = segment_bytes(server.segment(9), "other")
    assert pushing(server.put(f"{FIRST}.partial", whole[: 9 * 8192] + other[9 * 8192 :])).state == "archived"
    with pytest.raises(IntegrityError, match="lies at 0/900000"):
        pushing(server.put(f"{FIRST}.partial", other))


# -- what is there already


def test_damage_that_is_found_is_told_and_stays(pushing: Pushing, server: MadeServer) -> None:
    path = server.write(1)
    pushing(path)
    key = key_of(FIRST, ".zst")
    whole = pushing.store.get(key)
    for damaged in (whole[:-1], whole[:2000] + b"\0" + whole[2001:], b"rubbish", whole[:100] + b"\0\0" + whole[102:]):
        pushing.store.put(key, damaged)
        with pytest.raises(IntegrityError, match=key):
            pushing(path)
        assert pushing.store.get(key) == damaged


def test_another_whole_object_under_its_name_is_told(pushing: Pushing, server: MadeServer) -> None:
    first, second = server.write(1), server.write(2)
    pushing(first)
    pushing(second)
    pushing.store.put(key_of(FIRST, ".zst"), pushing.store.get(key_of(SECOND, ".zst")))
    with pytest.raises(IntegrityError, match=f"{FIRST}.zst does not hold what its claim says"):
        pushing(first)


@pytest.mark.parametrize("claim", [b"", b"rubbish", b"{}", b'{"schema":1,"name":"x"}'])
def test_a_claim_that_cannot_be_read_is_a_refusal(pushing: Pushing, server: MadeServer, claim: bytes) -> None:
    pushing(server.write(1))
    pushing.store.put(key_of(THIRD, ".claim"), claim)
    with pytest.raises(IntegrityError, match=f"{THIRD}.claim is damaged"):
        pushing(server.write(3))
    assert pushing.names(".zst") == [f"{FIRST}.zst"]


def test_a_claim_of_another_file_is_a_refusal(pushing: Pushing, server: MadeServer) -> None:
    pushing(server.write(1))
    pushing.store.put(key_of(SECOND, ".claim"), pushing.store.get(key_of(FIRST, ".claim")))
    with pytest.raises(IntegrityError, match=f"{SECOND}.claim is damaged: it is the claim of {FIRST}"):
        pushing(server.write(2))


# -- large objects


def test_a_large_one_goes_up_in_parts_and_only_while_its_claim_stands(pushing: Pushing, tmp_path: Path) -> None:
    server = MadeServer(tmp_path / "data", size_bytes=16 * MIB)
    path = server.write(1, written_pages=None)

    class Watching(WrapperStore):
        """Counts streams; prunes the claim while one is under way."""

        streams = 0
        prune = True

        def put_stream(self, key: str, chunks: object, *, expected_bytes: int | None = None) -> int:
            self.streams += 1
            if self.prune:
                self._inner.delete([key.removesuffix(".zst") + ".claim"])
            return self._inner.put_stream(key, chunks, expected_bytes=expected_bytes)  # type: ignore[arg-type]

    store = Watching(pushing.store)
    watched = Pushing(store, pushing.clock)
    with pytest.raises(StoreUnavailableError, match=f"the claim of {path.name} is gone"):
        watched(path)
    assert pushing.names() == [], "nothing appears"
    store.prune = False
    assert watched(path).state == "archived"
    assert stored(pushing, path.name) == path.read_bytes()
    assert watched(path).state == "was archived"
    assert store.streams == 2


@pytest.mark.parametrize(("mib", "read_again"), [(16, False), (32, True)])
def test_of_those_only_one_beyond_16_mib_is_read_again(pushing: Pushing, tmp_path: Path, mib: int, read_again: bool) -> None:
    path = MadeServer(tmp_path / "data", size_bytes=mib * MIB).write(1, written_pages=None)
    plain = path.read_bytes()

    class Recycling(WrapperStore):
        """PostgreSQL removes the segment while it goes up."""

        def put_stream(self, key: str, chunks: object, *, expected_bytes: int | None = None) -> int:
            path.unlink()
            return self._inner.put_stream(key, chunks, expected_bytes=expected_bytes)  # type: ignore[arg-type]

    recycled = Pushing(Recycling(pushing.store), pushing.clock)
    if read_again:
        with pytest.raises(MissingError, match="there is no file"):
            recycled(path)
        assert pushing.names(".zst") == []
    else:
        assert recycled(path).state == "archived"
        assert stored(pushing, path.name) == plain


def test_an_answer_after_an_hour_is_no_answer(pushing: Pushing, server: MadeServer) -> None:
    path = server.write(1)

    class Sleeping(WrapperStore):
        """The machine sleeps for two hours while the object is put, and meanwhile a prune takes everything."""

        slept = False

        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            self._inner.put(key, data, create=create)
            if key.endswith(".zst") and not self.slept:
                self.slept = True
                pushing.clock.advance(7200)
                self._inner.delete([info.key for info in self._inner.list("wal/")])

    assert Pushing(Sleeping(pushing.store), pushing.clock)(path).state == "archived"
    assert pushing.names() == [f"{FIRST}.claim", f"{FIRST}.zst"]


# -- a segment that comes late


def test_late_segment_heals_the_chain(pushing: Pushing, server: MadeServer) -> None:
    first, second = server.write(1), server.write(2)
    pushing(second)
    assert pushing(first).healed == SECOND
    link = pushing.store.get(key_of(SECOND, ".link"))
    header, plain = decode_object([link], "it")
    claims = claim_of(pushing, FIRST), claim_of(pushing, SECOND)
    expected = link_of(bytes.fromhex(claims[0]["salt"]), bytes.fromhex(claims[0]["digest"]))
    assert (header.kind, header.lsn, header.previous, list(plain)) == (ObjectKind.LINK, 0x200000, expected, [])
    assert (header.salt.hex(), header.digest.hex()) == (claims[1]["salt"], claims[1]["digest"])
    assert pushing(first).healed == SECOND
    assert pushing.store.get(key_of(SECOND, ".link")) == link
    assert pushing(server.write(3)).healed is None


def test_what_pg_resetwal_began_is_linked_to_nothing(pushing: Pushing, server: MadeServer) -> None:
    """Its first record leads back to no other: replay ends before it, though the names go on."""
    paths = [server.write(number) for number in (1, 2, 3)]
    data = bytearray(paths[1].read_bytes())
    struct.pack_into("<IIQBB", data, 40, 114, 0, 0, 0, 0)
    paths[1].write_bytes(data)
    for path in (paths[0], paths[1], paths[2]):
        assert pushing(path).healed is None
    previous = [bytes.fromhex(claim_of(pushing, path.name)["previous"]) for path in paths]
    assert previous[:2] == [NO_LINK, NO_LINK]
    assert previous[2] != NO_LINK


def test_what_pg_resetwal_began_is_not_healed(pushing: Pushing, server: MadeServer) -> None:
    first, second = server.write(1), server.write(2)
    data = bytearray(second.read_bytes())
    struct.pack_into("<IIQBB", data, 40, 114, 0, 0, 0, 0)
    second.write_bytes(data)
    pushing(second)
    assert pushing(first).healed is None
    assert pushing.names(".link") == []


@pytest.mark.parametrize("unproved", ["recovering", "gone", "recycled", "other"])
def test_what_is_not_proved_stays_a_gap(pushing: Pushing, server: MadeServer, unproved: str) -> None:
    first, second = server.write(1), server.write(2)
    pushing(second)
    if unproved == "recovering":
        server.control(State.IN_ARCHIVE_RECOVERY)
    elif unproved == "gone":
        second.unlink()
    elif unproved == "recycled":
        second.write_bytes(first.read_bytes())
    else:
        second.write_bytes(segment_bytes(server.segment(2), "other", written_pages=8))
    pushed = pushing(first)
    assert (pushed.state, pushed.healed) == ("archived", None)
    assert pushing.names(".link") == []


def test_a_link_to_something_else_is_told(pushing: Pushing, server: MadeServer) -> None:
    first, second = server.write(1), server.write(2)
    pushing(second)
    pushing(first)
    link = bytearray(pushing.store.get(key_of(SECOND, ".link")))
    link[130] ^= 1
    pushing.store.put(key_of(SECOND, ".link"), bytes(link))
    with pytest.raises(IntegrityError, match=f"links {SECOND} to another segment"):
        pushing(first)


# -- sealed and signed


def with_settings(pushing: Pushing, **texts: str) -> Pushing:
    return replace(pushing, settings=load(texts, {}).settings)


@pytest.mark.rule(16)
@pytest.mark.rule(86)
def test_a_sealed_segment_opens_with_stock_tools(
    pushing: Pushing, server: MadeServer, keys: dict[str, Key], tmp_path: Path
) -> None:
    path = server.write(1)
    sealing = with_settings(pushing, **sealed_to(keys))
    assert sealing(path).state == "archived"
    assert pushing.names() == [f"{FIRST}.claim", f"{FIRST}.zst.age"]
    (tmp_path / "it").write_bytes(pushing.store.get(key_of(FIRST, ".zst.age")))
    opened = subprocess.run(["age", "-d", "-i", keys["operator"].path, tmp_path / "it"], capture_output=True, check=True).stdout
    assert subprocess.run(["zstd", "-dc"], input=opened, capture_output=True, check=True).stdout == path.read_bytes()
    assert sealing(path).state == "was archived", "without an identity: seen from outside"
    assert with_settings(sealing, **sealed_to(keys), **opening(keys["recovery"]))(path).state == "was archived"
    assert with_settings(sealing, **sealed_to(keys), **opening(keys["stranger"]))(path).state == "was archived"
    plain = with_settings(pushing, ENCRYPTION_RECIPIENTS="none")
    assert plain(path).state == "was archived", "sealing was switched off: the sealed one will do"
    pushing.store.put(key_of(FIRST, ".zst.age"), b"rubbish")
    with pytest.raises(IntegrityError, match="no sealed object"):
        sealing(path)


def test_with_an_identity_but_nobody_to_seal_to_nothing_is_written(
    pushing: Pushing, server: MadeServer, keys: dict[str, Key]
) -> None:
    with pytest.raises(UsageError, match="nothing is dumped plain"):
        with_settings(pushing, **opening(keys["operator"]))(server.write(1))
    assert pushing.names() == []


@pytest.mark.rule(86)
@pytest.mark.parametrize("number", [2, 9], ids=["the next one", "behind a gap"])
def test_what_was_sealed_until_now_is_not_archived_plain(
    pushing: Pushing, server: MadeServer, keys: dict[str, Key], number: int
) -> None:
    with_settings(pushing, **sealed_to(keys))(server.write(1))
    before = pushing.names()
    with pytest.raises(UsageError, match=rf"the newest WAL segment, {FIRST}, is sealed, and there are no ENCRYPTION_RECIPIENTS"):
        pushing(server.write(number))
    history = server.promote(2 * MIB, 2)
    with pytest.raises(UsageError, match="is sealed"):
        pushing(history)
    assert pushing.names() == before, "a history names timelines, and a label is a person's text"
    with pytest.raises(UsageError, match="is sealed"):
        pushing(server.write(2))
    assert pushing.names() == before
    assert with_settings(pushing, ENCRYPTION_RECIPIENTS="none")(history).state == "archived"


def test_what_was_signed_until_now_is_not_archived_unsigned(pushing: Pushing, server: MadeServer, keys: dict[str, Key]) -> None:
    with_settings(pushing, SIGNING_KEY_FILE=str(keys["signer"].path))(server.write(1))
    for number in (2, 9):
        with pytest.raises(UsageError, match=rf"the newest WAL segment, {FIRST}, is signed, and there is no SIGNING_KEY_FILE"):
            pushing(server.write(number))
    assert with_settings(pushing, SIGNING_KEY_FILE="none")(server.write(2)).state == "archived"
    assert pushing(server.write(3)).state == "archived", "unsigned until now"


def test_a_damaged_segment_before_it_is_no_reason_not_to_archive(pushing: Pushing, server: MadeServer) -> None:
    pushing(server.write(1))
    pushing.store.put(key_of(FIRST, ".zst"), b"rotten")
    assert pushing(server.write(2)).state == "archived"


def test_the_question_costs_one_request_and_none_where_the_settings_answer_it(
    pushing: Pushing, server: MadeServer, keys: dict[str, Key]
) -> None:
    def requests(number: int, **settings: str) -> int:
        metered = MeteringStore(pushing.store)
        with_settings(Pushing(metered, pushing.clock), **settings)(server.write(number))
        return metered.total().calls

    with_settings(pushing, ENCRYPTION_RECIPIENTS="none")(server.write(1))
    meant = requests(2, ENCRYPTION_RECIPIENTS="none")
    assert requests(3) == meant + 1
    assert requests(4, **sealed_to(keys)) == meant


def test_signing_switched_on_between_put_and_answer(pushing: Pushing, server: MadeServer, keys: dict[str, Key]) -> None:
    first, second = server.write(1), server.write(2)
    for path in (second, first):
        pushing(path)
    signing = with_settings(pushing, SIGNING_KEY_FILE=str(keys["signer"].path))
    assert signing(first).state == "archived", "put again, signed"
    for name, suffix in ((FIRST, ".zst"), (SECOND, ".link")):
        header, plain = decode_object([pushing.store.get(key_of(name, suffix))], "it")
        assert signed_by(header, [keys["signer"].public]) == keys["signer"].public
        list(plain)
    assert signing(first).state == "was archived"
    forged = with_settings(pushing, SIGNING_KEY_FILE=str(keys["forger"].path), SIGNATURE_KEYS=keys["forger"].public)
    assert forged(first).state == "archived", "the other's signature is none of its trusted keys'"
    both = f"{keys['forger'].public},{keys['signer'].public}"
    assert with_settings(pushing, SIGNING_KEY_FILE=str(keys["signer"].path), SIGNATURE_KEYS=both)(first).state == "was archived"


def test_a_sealed_object_that_cannot_be_seen_to_be_signed_is_put_again(
    pushing: Pushing, server: MadeServer, keys: dict[str, Key]
) -> None:
    path = server.write(1)
    with_settings(pushing, **sealed_to(keys))(path)
    signing = {"SIGNING_KEY_FILE": str(keys["signer"].path)}
    assert with_settings(pushing, **sealed_to(keys), **signing)(path).state == "archived"
    assert with_settings(pushing, **sealed_to(keys), **signing)(path).state == "archived", "it cannot see its own either"
    assert with_settings(pushing, **sealed_to(keys), **signing, **opening(keys["operator"]))(path).state == "was archived"
    assert pushing.names() == [f"{FIRST}.claim", f"{FIRST}.zst.age"]
    plain = {"ENCRYPTION_RECIPIENTS": "none"}
    assert with_settings(pushing, **plain, **signing)(path).state == "archived", "who cannot seal puts a signed one beside"
    assert pushing.names(".zst") == [f"{FIRST}.zst"]


# -- every kind of store


def test_every_store_takes_them(store: Store, tmp_path: Path) -> None:
    server = MadeServer(tmp_path / "data", size_bytes=16 * MIB)
    small, large = server.write(1), server.write(2, written_pages=None)
    work = replace(Pushing(store).work(), clock=SystemClock())
    for path in (small, large):
        assert push(work, path).state == "archived"
        assert push(work, path).state == "was archived"
        header, plain = decode_object(store.get_stream(key_of(path.name, ".zst")), path.name)
        assert b"".join(plain) == path.read_bytes()
    assert header.previous == claim_link(store, small.name)


def claim_link(store: Store, name: str) -> bytes:
    claim = json.loads(store.get(key_of(name, ".claim")))
    return link_of(bytes.fromhex(claim["salt"]), bytes.fromhex(claim["digest"]))
