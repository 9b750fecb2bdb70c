"""`base verify`: damage of any object that a base backup needs is found and written down, and the backup is not good."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime

import pytest

from clipper_backup.errors import AccessError, IncompleteError, IntegrityError, MissingError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary, VerifyMark
from clipper_backup.format.documents import decode
from clipper_backup.format.physical_names import PackKey
from clipper_backup.ops.base.delete import delete_base
from clipper_backup.ops.base.read import base_catalog, find_base
from clipper_backup.ops.base.verify import refuse_unopened, verify_base
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import needed_packs, read_base_summary, read_packs
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster, backed_up, work_for
from fixtures.keys import Key, make_keys, opening, sealed_to

pytestmark = pytest.mark.soak(share=0.25)


@pytest.fixture(scope="module")
def taken(archived15: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, BaseSummary, dict[str, Key]]:
    """A sealed base backup, and what a person works with who can open it."""
    keys = make_keys(tmp_path_factory.mktemp("keys"))
    work = work_for(archived15, **sealed_to(keys), **opening(keys["operator"]))
    return work, backed_up(archived15, work).summary, keys


def copied(work: Work) -> Work:
    """The same with a store of its own."""
    store = MemoryStore(work.clock)
    for info in work.store.list(""):
        store.put(info.key, work.store.get(info.key))
    return Work(work.settings, store, work.clock, work.emit)


def flip(store: Store, key: str) -> None:
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


def test_lost_wal_of_its_own_is_found_and_written_down(taken: tuple[Work, BaseSummary, dict[str, Key]]) -> None:
    """What else may be wrong with it: `test_damage`."""
    for suffix, emptied in ((f"{names.STORED}.age", False), (f"{names.STORED}.age", True), (names.CLAIM, False)):
        work, summary = copied(taken[0]), taken[1]
        key = names.archive_key(summary.system_id, summary.first_segment, suffix)
        work.store.put(key, b"")
        if not emptied:
            work.store.delete([key])
        with pytest.raises(IntegrityError, match="is damaged") as found:
            verify_base(work, BackupId.parse(summary.id), share=1)
        assert summary.first_segment in " ".join([str(found.value), *found.value.hints])
        (shown,) = base_catalog(work)
        assert not shown.entry.good
        mark = decode(work.store.get(names.base_key(BackupId.parse(summary.id), names.VERIFY)), VerifyMark, "x")
        assert mark.damage


def test_damage_of_a_shared_pack_is_damage_of_each_that_needs_it(archived15: Cluster) -> None:
    work = work_for(archived15)
    first, second = (BackupId.parse(backed_up(archived15, work).summary.id) for _ in range(2))
    pack = next(
        pack for pack, _ in needed_packs(read_packs(work.store, read_base_summary(work.store, second))) if pack.run == first
    )
    whole = work.store.get(str(pack))
    flip(work.store, str(pack))
    with pytest.raises(IntegrityError, match="is damaged"):
        verify_base(work, first, share=1)
    assert work.emit.warnings[-1].endswith(f"which are not good either: {second}")  # type: ignore[attr-defined]  # a Kept
    assert good(work) == {first: False, second: False}
    third = backed_up(archived15, work).summary
    assert (third.parent, good(work)[BackupId.parse(third.id)]) == (None, True)
    with pytest.raises(IntegrityError, match=str(pack)):
        verify_base(work, second, share=0)  # what is known to be bad is read again
    work.store.put(str(pack), whole)
    with pytest.raises(IntegrityError, match=str(pack)):
        verify_base(work, second, share=0)  # something else in it may be wrong
    verify_base(work, second, share=1)
    assert good(work) == {first: False, second: True, BackupId.parse(third.id): True}


def test_who_was_committed_meanwhile_is_not_good_either(archived15: Cluster) -> None:
    """A run had taken over the pack, and was not there yet when the verify looked for others."""
    work = work_for(archived15)
    first, second = (BackupId.parse(backed_up(archived15, work).summary.id) for _ in range(2))
    pack = next(
        pack for pack, _ in needed_packs(read_packs(work.store, read_base_summary(work.store, second))) if pack.run == first
    )
    flip(work.store, str(pack))
    with pytest.raises(IntegrityError):
        verify_base(work, first, share=1)
    work.store.delete([names.base_key(second, names.VERIFY)])
    assert good(work) == {first: False, second: False}
    assert next(shown.entry for shown in base_catalog(work) if shown.entry.listed.backup_id == second).problem == (
        f"the verify of another base backup found damage in {pack}"
    )


class Meanwhile(WrapperStore):
    """Does something else before the first listing of a folder, or before an object of that name is written."""

    def __init__(self, inner: Store, where: str, something: Callable[[], object]) -> None:
        super().__init__(inner)
        self._where, self._something = where, [something]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        while prefix.startswith(self._where) and self._something:
            self._something.pop()()
        return super().list(prefix)

    def put_stream(self, key: str, chunks: Iterable[bytes], *, expected_bytes: int | None = None) -> int:
        while key.endswith(f"/{self._where}") and self._something:
            self._something.pop()()
        return super().put_stream(key, chunks, expected_bytes=expected_bytes)


@pytest.mark.parametrize(
    ("share", "before"), [pytest.param(0.0, names.PACKS_FOLDER, id="a sample"), pytest.param(1.0, names.WAL_FOLDER, id="all")]
)
def test_what_another_verify_finds_meanwhile_is_not_overwritten(archived15: Cluster, share: float, before: str) -> None:
    """A sample does not read the pack, and who read it whole did so before it was damaged."""
    work = work_for(archived15)
    first, second = (BackupId.parse(backed_up(archived15, work).summary.id) for _ in range(2))
    pack = str(shared_pack(work, first, second))

    found_at = []

    def find() -> None:
        flip(work.store, pack)
        found_at.append(work.store.now())
        with pytest.raises(IntegrityError, match=pack):
            verify_base(work, first, share=1)

    slow = replace(work, store=Meanwhile(work.store, before, find))
    with pytest.raises(IntegrityError, match=pack):
        verify_base(slow, second, share=share)
    assert good(work) == {first: False, second: False}
    mark = decode(work.store.get(names.base_key(second, names.VERIFY)), VerifyMark, "x")
    assert isinstance(mark.begun_at, datetime)
    assert mark.begun_at <= found_at[0], "when it began to look, not when it wrote"
    delete_base(work, first, last=True)
    assert good(work) == {second: False}


def test_a_backup_that_is_made_while_a_verify_finds_damage_is_not_good(archived15: Cluster) -> None:
    """It had taken over the pack, and was not committed yet."""
    work = work_for(archived15)
    first = BackupId.parse(backed_up(archived15, work).summary.id)
    pack = max((info for info in work.store.list(names.PACKS_FOLDER)), key=lambda info: info.size_bytes).key

    def find() -> None:
        flip(work.store, pack)
        with pytest.raises(IntegrityError, match=pack):
            verify_base(work, first, share=1)

    slow = replace(work, store=Meanwhile(work.store, names.PACKS, find))
    with pytest.raises(IntegrityError, match=f"cannot be committed: {pack}"):
        backed_up(archived15, slow)
    assert good(work)[first] is False
    third = BackupId.parse(backed_up(archived15, work).summary.id)
    assert good(work)[third] is True


def shared_pack(work: Work, first: BackupId, second: BackupId) -> PackKey:
    needed = read_packs(work.store, read_base_summary(work.store, second))
    return next(pack for pack, _ in needed_packs(needed) if pack.run == first)


def good(work: Work) -> dict[BackupId, bool]:
    return {shown.entry.listed.backup_id: shown.entry.good for shown in base_catalog(work)}


def test_a_whole_one_is_good_and_a_sample_says_how_much_was_read(taken: tuple[Work, BaseSummary, dict[str, Key]]) -> None:
    work, summary = copied(taken[0]), taken[1]
    backup_id = BackupId.parse(summary.id)
    assert find_base(work, "latest") == backup_id
    assert verify_base(work, backup_id, share=0).share == 0
    sampled = verify_base(work, backup_id, share=0.01)
    assert 0 < sampled.share <= 1
    assert sampled.files == 0
    whole = verify_base(work, backup_id, share=1)
    assert (whole.share, whole.files, whole.opened) == (1, summary.files, True)
    (shown,) = base_catalog(work)
    assert shown.entry.verified is not None
    assert (shown.entry.good, shown.entry.verified.share, shown.entry.verified.damage) == (True, 1, [])
    # Without an identity the bytes are compared, and that nobody looked inside is said.
    without = replace(work, settings=replace(work.settings, encryption_identity_file=None))
    blind = verify_base(without, backup_id, share=1)
    assert (blind.opened, blind.files, blind.share) == (False, 0, 1)
    with pytest.raises(IncompleteError, match="was not opened"):
        refuse_unopened(blind)


@pytest.mark.rule(88)
def test_who_may_only_read_verifies_and_is_told_that_nothing_is_written_down(
    taken: tuple[Work, BaseSummary, dict[str, Key]],
) -> None:
    class ReadOnly(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:  # noqa: ARG002  nothing is
            raise AccessError(f"may not write {key}")

    work, summary = copied(taken[0]), taken[1]
    verify_base(Work(work.settings, ReadOnly(work.store), work.clock, work.emit), BackupId.parse(summary.id), share=0)
    assert "not written down" in work.emit.warnings[-1]  # type: ignore[attr-defined]  # a Kept
    with pytest.raises(MissingError, match="there is no base backup"):
        verify_base(work, BackupId.parse("20200101-000000-00000000"), share=0)
