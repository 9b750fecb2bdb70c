"""`key check` over the frozen sealed repository: the newest dump, base backup and segment, each with one key alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clipper_backup.errors import AccessError, ClipperError, IntegrityError, UsageError
from clipper_backup.format.documents import KeyCheck, decode
from clipper_backup.format.names import KEY_CHECKS_FOLDER
from clipper_backup.format.sealing import Identity, seal, unseal
from clipper_backup.ops.events import Warned
from clipper_backup.ops.key_check import check_key, key_checks
from clipper_backup.ops.keys import read_identities
from clipper_backup.ops.wal.verify import verify_wal
from clipper_backup.ops.work import Work
from clipper_backup.store.protocol import Store
from fixtures.frozen import DATA, Frozen

OPERATOR = DATA / "keys/operator.key"
STRANGER = Identity.make()


@pytest.fixture
def work() -> Work:
    return Frozen("sealed").in_memory()


def marks(store: Store) -> dict[str, KeyCheck]:
    found = [info.key for info in store.list(KEY_CHECKS_FOLDER)]
    return {key.removeprefix(KEY_CHECKS_FOLDER): decode(store.get(key), KeyCheck, key) for key in found}


def without(store: Store, *folders: str) -> None:
    """Nothing of it is there, as in a copy of what one kind of backup needs."""
    store.delete([info.key for folder in folders for info in store.list(folder)])


def test_the_newest_of_each_kind_is_opened_and_recorded(work: Work) -> None:
    without(work.store, KEY_CHECKS_FOLDER)
    checked = check_key(work, OPERATOR)
    assert [each.newest.kind for each in checked.tried] == ["dump", "base_backup", "wal"]
    assert [each.problem for each in checked.tried] == [None] * 3
    (recipient,) = checked.recipients
    assert all(each.recipients == (recipient,) for each in checked.tried)
    assert checked.recorded
    mark = marks(work.store)[recipient]
    assert [mark.dump_id, mark.base_backup, mark.segment] == [each.newest.name for each in checked.tried]
    times = {each.newest.kind: each.newest.at for each in checked.tried}
    stored = [info for info in work.store.list("wal/") if f"/{mark.segment}.zst" in info.key]
    assert times["wal"] in {info.modified_at for info in stored}
    assert mark.base_backup in {info.key.split("/")[1] for info in work.store.list("base/") if info.key.endswith("/backup.json")}


def sealed_to_stranger(store: Store, key: str) -> None:
    store.put(key, b"".join(seal([b"of somebody else"], [STRANGER.recipient])))


def flipped(store: Store, key: str) -> None:
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))


def newest_key(work: Work, kind: str) -> str:
    names = {each.newest.kind: each.newest.name for each in check_key(work, OPERATOR).tried}
    if kind == "data key":
        return f"keys/{names['base_backup']}.age"
    return next(info.key for info in work.store.list("wal/") if info.key.endswith(f"/{names['wal']}.zst.age"))


@pytest.mark.parametrize("kind", ["data key", "wal"])
@pytest.mark.parametrize(("harm", "error"), [(sealed_to_stranger, AccessError), (flipped, IntegrityError)])
def test_one_that_does_not_open_is_named_and_nothing_is_recorded(
    work: Work, kind: str, harm: Callable[[Store, str], None], error: type[ClipperError]
) -> None:
    key = newest_key(work, kind)
    without(work.store, KEY_CHECKS_FOLDER)
    if harm is flipped and kind == "wal":
        work.store.put(key, work.store.get(key)[:300])  # of a longer one only the head is read
    else:
        harm(work.store, key)
    checked = check_key(work, OPERATOR)
    problems = {each.newest.kind: each.problem for each in checked.tried if each.problem is not None}
    assert {name: type(problem) for name, problem in problems.items()} == {"wal" if kind == "wal" else "base_backup": error}
    assert (checked.recipients, checked.recorded, marks(work.store)) == ((), False, {})
    with pytest.raises(error):
        checked.raise_problem()


def test_where_there_is_no_dump_the_others_are_opened_and_an_older_version_reads_the_mark(work: Work) -> None:
    without(work.store, "database/", KEY_CHECKS_FOLDER)
    checked = check_key(work, OPERATOR)
    assert [each.newest.kind for each in checked.tried] == ["base_backup", "wal"]
    ((recipient, mark),) = marks(work.store).items()
    assert mark.dump_id == ""
    document = json.loads(work.store.get(KEY_CHECKS_FOLDER + recipient))
    older = {"schema", "recipient", "dump_id", "checked_at", "checked_by"}
    assert older <= document.keys()
    assert all(isinstance(document[name], str) for name in older - {"schema"})
    assert key_checks(work)[0][recipient].checked_at == mark.checked_at


def test_a_key_that_opens_nothing_is_refused(work: Work, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.write_text(STRANGER.reveal())
    other.chmod(0o600)
    with pytest.raises(AccessError, match="is sealed to other keys"):
        check_key(work, other)


def test_what_is_not_sealed_beside_what_is_told(work: Work) -> None:
    """An archiver that was never told the recipients: every row lies open there, whatever dumps are sealed to."""
    told: list[str] = []
    work = replace(work, emit=lambda event: told.append(event.text) if isinstance(event, Warned) else None)
    check_key(work, OPERATOR)
    assert not any("not sealed" in text for text in told)
    for info in list(work.store.list("wal/")):
        if info.key.endswith(".zst.age"):
            plain = unseal([work.store.get(info.key)], read_identities(OPERATOR), info.key)
            work.store.put(info.key.removesuffix(".age"), b"".join(plain))
            work.store.delete([info.key])
    checked = check_key(work, OPERATOR)
    assert [each.newest.kind for each in checked.tried] == ["dump", "base_backup"]
    (text,) = (text for text in told if "not sealed" in text)
    assert text.startswith("the newest segment of WAL, ")


def test_where_nothing_is_sealed_no_key_is_needed() -> None:
    with pytest.raises(UsageError, match=r"dump, .* base backup, .* segment of WAL, .* are not sealed"):
        check_key(Frozen("plain").in_memory(), OPERATOR)


def test_what_the_new_key_does_not_open_is_named_and_histories_are_apart(work: Work) -> None:
    """What `key rotate` says of `wal verify --read-data`."""
    segment = newest_key(work, "wal")
    history = next(info.key for info in work.store.list("wal/") if info.key.endswith(".history.zst.age"))
    before = verify_wal(work, read_data=True)
    assert (before.unopened, before.unopened_histories) == ([], [])
    sealed_to_stranger(work.store, history)
    found = verify_wal(work, read_data=True)
    name = history.rpartition("/")[2].removesuffix(".zst.age")
    assert (found.unopened, found.unopened_histories, found.damage) == ([], [name], before.damage)
    sealed_to_stranger(work.store, segment)
    found = verify_wal(work, read_data=True)
    assert found.unopened == [segment.rpartition("/")[2].removesuffix(".zst.age")]
    assert found.damage == before.damage
    blind = replace(work, settings=replace(work.settings, encryption_identity_file=None))
    with pytest.raises(AccessError, match="there is no identity to open it"):
        verify_wal(blind, read_data=True)
