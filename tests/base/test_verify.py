"""`base verify`: damage of any object that a base backup needs is found and written down, and the backup is not good."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from clipper_backup.errors import AccessError, IncompleteError, IntegrityError, MissingError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary, VerifyMark
from clipper_backup.format.documents import decode
from clipper_backup.ops.base.read import base_catalog, find_base
from clipper_backup.ops.base.verify import refuse_unopened, verify_base
from clipper_backup.ops.work import Work
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster, backed_up, work_for
from fixtures.keys import Key, make_keys, opening, sealed_to

pytestmark = pytest.mark.soak(share=0.5)


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


def keys_of(summary: BaseSummary, store: Store) -> dict[str, str]:
    """One key of each kind of object."""
    found: dict[str, str] = {part.role: part.key for part in summary.objects}
    found["pack"] = next(info.key for info in store.list("packs/"))
    found["segment"] = next(info.key for info in store.list("wal/") if info.key.endswith(f"{summary.first_segment}.zst.age"))
    found["claim"] = next(info.key for info in store.list("wal/") if info.key.endswith(f"{summary.first_segment}.claim"))
    return found


def flip(store: Store, key: str) -> None:
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


def cut(store: Store, key: str) -> None:
    store.put(key, store.get(key)[:-1])


def lose(store: Store, key: str) -> None:
    store.delete([key])


KINDS = ("manifest", "details", "packs", "label", "server_manifest", "pack")


@pytest.mark.parametrize("harm", [flip, cut, lose])
def test_damage_of_any_object_is_found_and_written_down(
    taken: tuple[Work, BaseSummary, dict[str, Key]], harm: Callable[[Store, str], None]
) -> None:
    kinds = KINDS if harm is not lose else (*KINDS, "segment", "claim")
    for kind in kinds:
        work, summary = copied(taken[0]), taken[1]
        key = keys_of(summary, work.store)[kind]
        harm(work.store, key)
        with pytest.raises(IntegrityError, match="is damaged") as found:
            verify_base(work, BackupId.parse(summary.id), share=1)
        told = " ".join([str(found.value), *found.value.hints])
        assert key in told or summary.first_segment in told, kind
        (shown,) = base_catalog(work)
        assert not shown.entry.good
        mark = decode(work.store.get(names.base_key(BackupId.parse(summary.id), names.VERIFY)), VerifyMark, "x")
        assert mark.damage
        assert "base/5/" not in " ".join(mark.damage)


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
