"""What a newer version may write into a repository of today: what this one answers, and that it neither loses nor condemns it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatch
from functools import partial

import pytest

from clipper_backup.errors import ClipperError
from clipper_backup.format.compression import compress_bytes, decompress_bytes
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.dump.prune import execute_prune, plan_prune
from clipper_backup.ops.dump.read import catalog
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.wal.status import wal_status
from clipper_backup.ops.wal.verify import verify_wal
from clipper_backup.ops.work import Work
from clipper_backup.repository.base_backups import read_base_summary
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId
from fixtures.frozen import Frozen, MovedClock
from fixtures.newer import change_manifest, change_summary, object_of, with_link


def newest(store: Store, pattern: str) -> str:
    return max(info.key for info in store.list("") if fnmatch(info.key, pattern))


def newer_schema(pattern: str) -> Callable[[Store], None]:
    """The newest document of a kind becomes one of schema 2."""

    def change(store: Store) -> None:
        key = newest(store, pattern)
        data = store.get(key)
        plain = decompress_bytes(data, key) if key.endswith(".zst") else data
        newer = json.dumps({**json.loads(plain), "schema": 2, "later": {}}).encode()
        store.put(key, compress_bytes(newer) if key.endswith(".zst") else newer)

    return change


def fields(key: str, **more: object) -> Callable[[Store], None]:
    return lambda store: store.put(key, json.dumps({**json.loads(store.get(key)), **more}).encode())


def newest_backup(store: Store) -> BackupId:
    return BackupId.parse(newest(store, "base/*/backup.json").split("/")[1])


def put_more(store: Store) -> None:
    """A part of a role that is not known, and what lies where nothing of today lies."""
    backup = newest_backup(store)
    store.put(f"base/{backup}/validation.json", b"answers")
    change_summary(store, backup, more_objects=[object_of(backup, "validation.json")])
    timeline = newest(store, "wal/*/00000002/*/*.zst").rsplit("/", 2)[0]
    segment = newest(store, "wal/*/00000002/*/????????????????????????.zst").rsplit("/", 1)[1].removesuffix(".zst")
    for key in (f"{timeline}/tail/{segment}/00000000-00001000.zst", "later/object", "base/later", "snapshots/later/more.bin"):
        store.put(key, b"of a later version")


def other_kind(store: Store) -> None:
    change_manifest(store, read_base_summary(store, newest_backup(store)), with_link)


GOES_ON, WAL_STAYS, STOPS = "goes on", "keeps all WAL", "removes nothing"
"""What prune of base backups and WAL does."""


@dataclass(frozen=True)
class Future:
    """A change; what prune does then; the newest base backup: good, unreadable, or as it is where no more is said."""

    change: Callable[[Store], None]
    prune: str = GOES_ON
    newest: str = "good"
    refused: str = ""


FUTURES: Mapping[str, Future] = {
    "schema of systems": Future(newer_schema("systems/*.json"), STOPS),
    "schema of backup.json": Future(newer_schema("base/*/backup.json"), STOPS, "unreadable"),
    "schema of packs.json": Future(newer_schema("base/*/packs.json.zst"), STOPS),
    "schema of verify.json": Future(newer_schema("base/*/verify.json"), newest="unreadable"),
    "schema of a prune record": Future(newer_schema("prune/*.json"), STOPS),
    "schema of a hold": Future(newer_schema("holds/2*"), WAL_STAYS),
    "schema of a claim": Future(newer_schema("wal/*/00000002/*/*.claim")),
    "schema of a history's claim": Future(newer_schema("wal/*/histories/*.claim"), STOPS),
    "source": Future(lambda store: change_summary(store, newest_backup(store), source="snapshot"), GOES_ON, "unreadable"),
    "kind of a line": Future(other_kind),
    "objects": Future(put_more),
    "an optional field": Future(fields("repository.json", optional_features=["later"])),
    "a required feature": Future(fields("repository.json", required_features=["later"]), STOPS, refused="reads"),
    "a newer reader": Future(fields("repository.json", min_reader_version=2), STOPS, refused="reads"),
    "a newer writer": Future(fields("repository.json", min_writer_version=2), STOPS),
}


def told(run: Callable[[], object]) -> str:
    """What it is refused with; nothing when it is not."""
    try:
        run()
    except ClipperError as error:
        return " ".join([error.message, *error.hints])
    return ""


def looked_at(work: Work) -> list[str]:
    """What every reading command says is wrong."""
    said: list[str] = []
    for entry in [shown.entry for shown in base_catalog(work)]:
        if entry.good:
            said.append(told(partial(verify_base, work, entry.listed.backup_id, share=1)))
        elif entry.unreadable:
            said.append(str(entry.problem))
    said.append(told(lambda: said.extend(wal_status(work, ask_server=False).seen.problems)))
    said.append(told(lambda: said.extend(verify_wal(work, read_data=False).damage)))
    return [text for text in said if text]


def damage_of_wal(work: Work) -> list[str]:
    """What `wal verify` calls damage; nothing where it is refused as a whole."""
    found: list[str] = []
    told(lambda: found.extend(verify_wal(work, read_data=False).damage))
    return found


def everything(store: Store) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list("") if not info.key.startswith("locks/")}


@pytest.mark.soak(share=0.25)
@pytest.mark.parametrize("what", FUTURES)
def test_nothing_of_the_future_is_called_damage(what: str) -> None:
    """P9. What prune removes is what it removes from the repository of today, or less."""
    future, frozen = FUTURES[what], Frozen("plain")
    work, today = frozen.in_memory(), frozen.in_memory()
    known, backup = looked_at(work), newest_backup(work.store)
    future.change(work.store)
    before = everything(work.store)
    if future.refused == "reads":
        assert "install the version of clipper-backup" in told(lambda: base_catalog(work))
    else:
        assert [text for text in looked_at(work) if text not in known and "written by a newer version" not in text] == []
        assert damage_of_wal(work) in ([], damage_of_wal(today))
        entry = next(shown.entry for shown in base_catalog(work) if shown.entry.listed.backup_id == backup)
        assert (entry.good, entry.unreadable) == {"good": (True, False), "unreadable": (False, True)}[future.newest]
        unmarked = {key for key, data in everything(work.store).items() if data != before.get(key) and "verify.json" not in key}
        assert unmarked == set()
        marks = [json.loads(data) for key, data in everything(work.store).items() if key.endswith("/verify.json")]
        assert sum(bool(mark["damage"]) for mark in marks) == 1  # as it was frozen
        work.store.put(f"base/{backup}/verify.json", before[f"base/{backup}/verify.json"])
    removed, said = pruned(work)
    by_today, _ = pruned(today)
    assert {"": GOES_ON, "no WAL was rem": WAL_STAYS}.get(said[:14], STOPS) == future.prune, said
    assert removed <= by_today
    assert future.prune != STOPS or not any(key.startswith(("packs/", "wal/")) for key in removed)
    if future.prune == WAL_STAYS:
        assert not any(key.startswith("wal/") for key in removed)
    if future.prune == GOES_ON:
        assert removed
    if future.newest == "unreadable":
        assert not any(key.startswith(f"base/{backup}/") for key in removed)
    if what == "objects":
        later = {key for key, data in everything(work.store).items() if data == b"of a later version"}
        assert len(later) == 4


def pruned(work: Work) -> tuple[set[str], str]:
    """What a prune of base backups and WAL takes away nine days later, and what it says of the rest."""
    assert isinstance(work.clock, MovedClock)
    work.clock.run(work.clock.now() + timedelta(days=9))
    before = everything(work.store)
    said = told(lambda: prune_physical(work).raise_problems())
    return before.keys() - everything(work.store).keys(), said


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        ("retention.json", "was written by a newer version"),
        ("holds/postgres-backup-*", ""),
        ("database/*.backup.json", ""),
        ("database/*.intent", ""),
    ],
)
def test_documents_of_dumps_are_not_lost_either(pattern: str, answer: str) -> None:
    """A dump that a newer version wrote is not removed, nor one that is held by a mark of it; and it is not called damaged."""
    work = Frozen("plain").in_memory()
    newer_schema(pattern)(work.store)
    key = newest(work.store, pattern)
    assert not any(entry.problem and not entry.unreadable for entry in catalog(work))
    assert isinstance(work.clock, MovedClock)
    work.clock.run(work.clock.now() + timedelta(days=90))
    with take_lease(work, DUMP_LEASE, "prune") as lease:
        said = told(lambda: execute_prune(work, plan_prune(work), lease))
    assert (answer in said) if answer else said == ""
    assert key in everything(work.store) or key.endswith(".intent")
