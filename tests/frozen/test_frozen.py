"""What format 1 wrote when it was frozen is read, restored and written on by this version (tests/data/README.md)."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clipper_backup.errors import MissingError, WalGapError
from clipper_backup.format.base_documents import BaseSummary, PruneRecord
from clipper_backup.format.documents import encode
from clipper_backup.format.manifest import File
from clipper_backup.format.page_maps import ZEROS
from clipper_backup.format.physical_names import prune_key
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.base_hold import hold_base, release_base
from clipper_backup.ops.dump.create import create_dump
from clipper_backup.ops.dump.prune import execute_prune, plan_prune
from clipper_backup.ops.dump.read import catalog, details_of
from clipper_backup.ops.dump.restore import Request as DumpRequest
from clipper_backup.ops.dump.restore import restore_dump
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.physical_prune import prune_physical
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import Restored, restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.verify import verify_wal
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.base_backups import list_base_backups, read_base_summary, read_entries
from clipper_backup.repository.data_keys import DataKeys
from clipper_backup.repository.pack_reader import PackReader
from clipper_backup.repository.wal_range import own_links
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, DumpId, Lsn, Timeline
from fixtures.base import Cluster, handing_over
from fixtures.docs import ROOT
from fixtures.frozen import (
    DATA,
    NAMES,
    UPGRADED,
    Frozen,
    MovedClock,
    digest_of,
    documents,
    lacking,
    reading_settings,
    sealing_alone,
    stored,
    work_over,
    writing_settings,
)  # fmt: skip
from fixtures.oracle import content_now, content_of
from fixtures.postgres import FAST, server_binaries, sql
from fixtures.restore import session_in, switch
from fixtures.server_program import server_program
from fixtures.sweeps import chosen

DIGEST = "14d7530917f8dfa265235e9bc40c32b886591331835d2eb09589d18348c55cf6"
"""Of every file of format-1. It is never changed: neither is what it is of."""
WITHOUT_US = ROOT / "docs/guides"

ID = "[0-9]{8}-[0-9]{6}-[0-9a-f]{8}"
DUMP = r"database/postgres-backup-[0-9]{8}-[0-9]{6}\."
SEGMENT = "wal/[0-9]+/0000000{}/[0-9A-F]{{16}}/[0-9A-F]{{24}}"
PLAIN = [
    "repository.json", "retention.json", r"systems/0001\.json", f"holds/{ID}", "holds/postgres-backup-[0-9-]*",
    f"prune/{ID}.json", f"packs/{ID}/00000000", "locks/[a-z]*/[0-9]{10}/holder", "locks/[a-z]*/[0-9]{10}/released",
    *(DUMP + end for end in ("intent", "backup.json", "globals.sql.zst", "details.zst")),
    *(DUMP + end for end in ("postgres.dump.zst", "postgres.dump.tar.zst", "[a-z0-9%A-Z-]*%[a-zA-Z0-9%-]*.dump.zst")),
    *(f"base/{ID}/{part}.json" for part in ("intent", "started", "verify", "backup")),
    *(f"base/{ID}/{part}.zst" for part in ("backup_label", "tablespace_map", "backup_manifest")),
    *(f"base/{ID}/{part}.zst" for part in ("manifest", "details", "packs.json")),
    *("wal/[0-9]+/histories/0000000[23].history" + end for end in (".claim", ".zst")),
    *(SEGMENT.format(timeline) + end for timeline in (1, 2) for end in (".claim", ".zst")),
    *(SEGMENT.format(1) + end for end in (".link", ".partial-[0-9a-f]{16}.zst")),
    *(SEGMENT.format(1) + rf"\.[0-9A-F]{{8}}\.backup{end}" for end in (".claim", ".zst")),
    "wal/[0-9]+/00000001/times/000000010000000000000100-0000000100000000000001FF-[0-9A-F]{16}.zst",
    "wal/[0-9]+/0000000[12]/times/0000000[12][0-9A-F]{16}-[0-9A-F]{24}-[0-9A-F]{16}.zst",
]  # fmt: skip
"""Of each kind of object one is there at least."""
SEALED = [
    f"keys/{ID}.age", "key-checks/age1[a-z0-9]*", f"base/{ID}/backup.json.sig", DUMP + "backup.json.sig",
]  # fmt: skip

UPGRADED_ONES = [
    r"systems/000[12]\.json", f"base/{ID}/backup.json.sig", DUMP + "backup.json.sig", f"keys/{ID}.age",
    *(DUMP + "postgres.dump" + end for end in (".zst", ".zst.age")), *(f"base/{ID}/manifest.zst" + end for end in ("", ".age")),
    *(SEGMENT.format(1) + ".zst" + end for end in ("", ".age")),
]  # fmt: skip
"""Of the one that was upgraded."""

each = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("name", [name for name in NAMES if name != UPGRADED])


def test_nothing_of_it_was_ever_changed() -> None:
    assert digest_of(DATA) == DIGEST


@each
def test_it_has_every_kind_of_object(name: str) -> None:
    frozen = Frozen(name)
    assert list(frozen.expected["objects"]) != []
    assert {*frozen.expected["objects"]} == {*stored(frozen.folder)}
    kinds = UPGRADED_ONES if name == UPGRADED else PLAIN
    if frozen.is_sealed:  # what is not sealed there keeps its name
        kinds = [kind + r"(\.age)?" if kind.endswith(".zst") else kind for kind in PLAIN] + SEALED
    assert [kind for kind in kinds if not any(re.fullmatch(kind, key) for key in stored(frozen.folder))] == []


@each
def test_every_reading_command_says_what_it_said(name: str) -> None:
    """All that is listed is read whole, put together and compared, by a clock that stands where it was frozen.

    The sizes that prune counts have a verify.json in them which the verify before it wrote anew, and may have made longer.
    """
    frozen = Frozen(name)
    said = lacking(frozen.expected["documents"], documents(frozen.in_memory()))
    assert [each for each in said if not re.match(r"/prune/items/[0-9]+/stored_bytes: ", each)] == []


@each
def test_it_has_what_seldom_comes(name: str) -> None:
    """What the layout can say and a small calm cluster does not: looked for in what is stored, by our readers."""
    work = Frozen(name).in_memory()
    bases = [shown.entry for shown in base_catalog(work)]
    summaries = [entry.summary for entry in bases if entry.summary is not None]
    assert all(own_links(summary) for summary in summaries)
    if name == UPGRADED:
        assert [(each.system_number, each.from_standby, each.sealed, each.signed_by is not None) for each in summaries] == [
            (1, False, False, True), (1, True, False, True), (2, False, True, False),
        ]  # fmt: skip
        assert {each.sizes.segment_bytes for each in summaries} == {16 << 20}
        (segment,) = {key.removesuffix(".age") for key in stored(DATA / name) if key.removesuffix(".age") in stored(DATA / name)
                      and key.endswith(".age")}  # fmt: skip
        assert summaries[-1].first_segment in segment
        return
    assert [entry.problem is None for entry in bases if entry.summary is not None].count(False) == 1
    assert [summary.pages.damaged for summary in summaries if summary.pages.damaged] == ([1] if name == "sealed" else [])
    assert any(entry.verified is not None and entry.verified.damage for entry in bases)
    assert max(summary.pages.compacted for summary in summaries) > 0
    assert len([key for key in stored(DATA / name) if ".partial-" in key]) == 2
    found = set[str]()
    for summary in summaries:
        opener = opener_of(work.settings, summary.recipients)
        manifest = read_entries(work.store, summary, opener)
        keys = DataKeys(work.store, summary.repository_id, opener) if summary.sealed else None
        reader = PackReader(work.store, keys, 8192, manifest.head.stretch_bytes)
        for entry in manifest:
            found |= {"a path that is not UTF-8"} if entry.path_base64 else set()
            found |= {type(entry).__name__}
            if isinstance(entry, File):
                found |= {"damaged pages"} if entry.damaged_pages else set()
                for reference, size_bytes in reader.stretches_of(entry.part):
                    pages = reader.map_of(reference, size_bytes)
                    found |= {"a map without digest"} if pages.digest is None else {"a map with one"}
                    found |= {"zeros"} if (pages.frames == ZEROS).any() else set()
                    found |= {"a short page"} if pages.last_bytes < 8192 and len(entry.maps) > 1 else set()
    wanted = {"a path that is not UTF-8", "a map without digest", "a map with one", "zeros", "a short page", "Outside"}
    wanted |= {"damaged pages"} if name == "sealed" else set()
    assert wanted <= found
    details = [details_of(work, entry.summary) for entry in catalog(work) if entry.summary is not None and entry.problem is None]
    queries = [query for each in details for database in each.databases for query in database.queries]
    assert {query.name: len(query.answer) for query in queries} == {"rows": 2, "none": 0}
    assert {entry.summary.fingerprint for entry in catalog(work) if entry.summary is not None} == {"counts", "hash"}


def test_a_signature_counts_where_it_is_asked_for() -> None:
    """What was signed and not sealed is trusted, what was sealed and not signed is not."""
    frozen = Frozen(UPGRADED)
    work = frozen.in_memory()
    work = work_over(work.store, work.clock, frozen.settings() | reading_settings(DATA / "keys", sealed=True))
    entries = sorted((shown.entry for shown in base_catalog(work)), key=lambda entry: entry.listed.backup_id)
    assert [entry.untrusted for entry in entries] == [False, False, True]
    assert [entry.untrusted for entry in catalog(work)] == [False, True]
    twice = read_base_summary(work.store, entries[-1].listed.backup_id).first_segment
    damage = verify_wal(work, read_data=True).damage
    assert any(f"{twice}.zst.age is not signed" in each for each in damage)
    assert not any(f"{twice}.zst is not signed" in each for each in damage)


def test_what_is_lacking_would_be_found() -> None:
    assert lacking({"a": [{"b": 1}]}, {"a": [{"b": 1, "new": 2}], "new": 3}) == []
    assert lacking({"a": [{"b": 1}]}, {"a": [{"b": 2}]}) == ["/a/0/b: 1 was 2"]
    assert lacking({"a": {"b": None}}, {"a": {}}) == ["/a/b is gone"]
    assert lacking([1], [1, 2]) == [": [1] was [1, 2]"]


def restored(
    frozen: Frozen, work: Work, place: Path, target: Target, timeline: int | None, backup: str | None = None
) -> Restored:
    """Into a folder of *place*, with a server that is left running."""
    request = Request(
        place / "data",
        target,
        server_account(),
        timeline=None if timeline is None else Timeline(timeline),
        backup=None if backup is None else BackupId.parse(backup),
        tablespaces={frozen.expected["tablespace"]: place / "space"} if frozen.expected["tablespace"] else {},
        program=server_program(),
    )
    return restore(work, request, make_plan(work, request), start=True)


def end(result: Restored) -> None:
    assert result.started is not None
    os.kill(result.started.pid, signal.SIGINT)
    os.waitpid(result.started.pid, 0)


def as_json(content: Any) -> dict[str, list[Any]]:
    return {table: list(row) for table, row in content.items()}


TARGETS: Mapping[str, Callable[[Any], Target]] = {
    "lsn": lambda moment: Target("lsn", lsn=Lsn.parse(moment["lsn"])),
    "time": lambda moment: Target("time", time=datetime.fromisoformat(moment["at"])),
    "xid": lambda moment: Target("xid", xid=moment["xid"]),
    "name": lambda moment: Target("name", name=moment["name"]),
}


UNREACHABLE = {0: "is missing from the archive, which goes on", 3: "no transaction ended behind it"}
"""Moments whose commit is the last one that is held or archived: PostgreSQL stops at a time only before a later one."""


@both
def test_an_instant_without_a_later_commit_is_refused(name: str, tmp_path: Path) -> None:
    frozen = Frozen(name)
    for number, why in UNREACHABLE.items():
        request = Request(tmp_path / "data", TARGETS["time"](frozen.expected["moments"][number]), server_account())
        with pytest.raises((MissingError, WalGapError), match=why):
            make_plan(frozen.in_memory(), request)


@pytest.mark.soak(over=["name"], share=0.5)
@both
def test_each_moment_is_restored(name: str, place: Path) -> None:
    """Of the held backup too, whose WAL goes no further, and of both timelines."""
    frozen = Frozen(name)
    work = frozen.copied_to(place)
    before = {key: path.read_bytes() for key, path in stored(place / name).items()}
    moments = frozen.expected["moments"]
    times = set(range(len(moments))) - UNREACHABLE.keys()
    points = [(number, kind) for number in range(len(moments)) for kind in TARGETS if kind != "time" or number in times]
    for number, kind in chosen(points, 1):
        moment, folder = moments[number], place / f"{number}-{kind}"
        folder.mkdir()
        server_account().own(folder)
        result = restored(frozen, work, folder, TARGETS[kind](moment), None if kind == "time" else moment["timeline"])
        assert result.started is not None
        try:
            assert result.started.timeline > 3  # whose number is taken, by a history alone
            with session_in(result.started) as connection:
                assert as_json(content_of(connection)) == moment["content"]
            if number > 0:  # they were written anew between the first backup and the others
                found = {path: hashlib.sha256((result.data / path).read_bytes()).hexdigest() for path in frozen.expected["files"]}
                assert found == frozen.expected["files"]
        finally:
            end(result)
    after = {key: path.read_bytes() for key, path in stored(place / name).items()}
    assert {key: after.get(key) for key in before} == before


@pytest.mark.soak(over=["number"], share=0.5)
@pytest.mark.parametrize("number", [0, 1])
def test_each_side_of_an_upgrade_is_restored(number: int, place: Path) -> None:
    """With the server of that side; of the one before, the backup must be named."""
    frozen = Frozen(UPGRADED)
    moment = frozen.expected["moments"][number]
    (kind,) = chosen(["lsn", "xid", "name"], 1)[:1]
    result = restored(frozen, frozen.copied_to(place), place, TARGETS[kind](moment), None, moment["backup"])
    assert result.started is not None
    try:
        with session_in(result.started) as connection:
            assert connection.info.server_version // 10000 == moment["major"]
            assert as_json(content_of(connection)) == moment["content"]
    finally:
        end(result)


@pytest.mark.soak(over=["name"], share=0.5)
@each
def test_each_dump_is_restored(name: str, request: pytest.FixtureRequest) -> None:
    frozen = Frozen(name)
    server: PrivateServer = request.getfixturevalue(f"postgres{frozen.major}")
    work = frozen.in_memory()
    where = server.connection()
    login = {"PGHOST": where["host"], "PGPORT": where["port"], "PGUSER": where["user"]}
    work = work_over(work.store, work.clock, frozen.settings() | login)
    for number, (dump_id, content) in enumerate(frozen.expected["dumps"].items()):
        into = f"frozen_{name}_{number}"
        restore_dump(work, DumpRequest(DumpId.parse(dump_id), into, database="postgres"))
        try:
            with content_now(server, into) as found:
                assert as_json(found) == content
        finally:
            sql(server, "postgres", f"DROP DATABASE {into}")


@pytest.mark.soak(over=["name"], share=0.5)
@each
def test_it_is_restored_without_us(name: str, place: Path) -> None:
    """The newest backup and all WAL behind it, by the programs that were written from the page alone."""
    frozen = Frozen(name)
    frozen.copied_to(place)
    identity = [str(place / "keys/operator.key")] if name != "plain" else []
    backup = max(path.parent.name for path in frozen.folder.glob("base/*/backup.json"))
    words: list[str | Path] = [
        sys.executable,
        "-I",
        WITHOUT_US / "read_base_backup.py",
        place / name,
        backup,
        place / "data",
        *identity,
    ]
    subprocess.run(words, check=True, capture_output=True)
    system = place / name / "wal" / json.loads((frozen.folder / f"base/{backup}/backup.json").read_bytes())["system_id"]
    (place / "data/recovery.signal").touch()
    for path in [place, *place.rglob("*")]:
        if not path.is_symlink():
            server_account().own(path)
    shutil.copy(WITHOUT_US / "fetch_wal.sh", place)
    fetch = " ".join(["sh", f"{place}/fetch_wal.sh", str(system), "%f", "%p", *identity])
    settings = FAST | {"restore_command": fetch, "archive_mode": "off", "ident_file": ""}
    settings |= {"recovery_target_timeline": str(frozen.expected["moments"][-1]["timeline"])}
    data = place / "data"
    with PrivateServer(
        place / "server", server_binaries(frozen.major), environment=os.environ, data=data, settings=settings
    ) as server:
        server.start()
        until_promoted(server)
        with content_now(server, "postgres") as content:
            assert as_json(content) == frozen.expected["moments"][-1]["content"]


def held_by(store: Store) -> dict[str, bytes]:
    """Every object but those of leases, which come and go."""
    return {info.key: store.get(info.key) for info in store.list("") if not info.key.startswith("locks/")}


@contextmanager
def running_again(frozen: Frozen, place: Path) -> Iterator[Cluster]:
    """The server in `place/data`, which archives from now on."""
    released = place / "released"
    released.mkdir()
    settings = FAST | handing_over(released)
    binaries = server_binaries(frozen.major)
    with PrivateServer(place, binaries, environment=os.environ, port=0, settings=settings) as server:
        server.start()
        try:
            yield Cluster(server, released)
        finally:
            (released / "ended").touch()


def until_promoted(server: PrivateServer) -> None:
    deadline = time.monotonic() + 60
    while sql(server, "postgres", "SELECT pg_is_in_recovery()") == [(True,)]:
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.05)


def aged_and_healed(work: Work) -> BaseSummary:
    """Another base backup, for which the oldest packs are too old, while a prune has announced those of a younger run."""
    frozen = [listed.backup_id for listed in list_base_backups(work.store) if listed.committed][-2]
    doomed = PruneRecord(
        id=str(BackupId.make(work.store.now())), doomed_at=work.store.now(), packs={str(frozen): [(0, 99)]}, keys=[]
    )
    key = prune_key(BackupId.parse(doomed.id))
    work.store.put(key, encode(doomed))
    summary = create_base(replace(work, settings=replace(work.settings, max_pack_age_days=20))).summary
    work.store.delete([key])
    return summary


def test_what_was_upgraded_is_written_on(place: Path) -> None:
    """The restored server of the newer system archives into a copy and is backed up there, by who seals and does not sign."""
    frozen = Frozen(UPGRADED)
    end(restored(frozen, frozen.copied_to(place), place, Target("latest"), None))
    work = frozen.in_memory()
    assert isinstance(work.clock, MovedClock)
    work.clock.run(frozen.at + timedelta(days=2))
    before = held_by(work.store)
    with running_again(frozen, place) as cluster:
        work = work_over(work.store, work.clock, cluster.settings(**sealing_alone(DATA / "keys"), MAX_PACK_AGE_DAYS="90"))
        with cluster.archiving(work):
            sql(cluster.server, "postgres", "UPDATE accounts SET name = 'written by a later version' WHERE id = 1")
            switch(cluster)
            base = create_base(work).summary
    assert (base.system_number, base.parent is None, base.pages.adopted > 0) == (2, False, True)
    assert {key for key, data in before.items() if held_by(work.store).get(key) != data} == set()
    assert verify_base(work, BackupId.parse(base.id), share=1).files == base.files


@pytest.mark.soak(over=["name"], share=0.5)
@both
def test_it_is_written_on(name: str, place: Path) -> None:
    """The restored server archives into a copy, is dumped and backed up there, adopting pages; then old things are pruned."""
    frozen = Frozen(name)
    end(restored(frozen, frozen.copied_to(place), place, Target("latest"), None))
    work = frozen.in_memory()
    store, clock = work.store, work.clock
    assert isinstance(clock, MovedClock)
    clock.run(frozen.at + timedelta(days=2))  # who was killed is dead by then
    before = held_by(store)
    with running_again(frozen, place) as cluster:
        work = work_over(store, clock, cluster.settings(**writing_settings(DATA / "keys", sealed=frozen.is_sealed)))
        with cluster.archiving(work):
            sql(cluster.server, "postgres", "INSERT INTO moved (note) VALUES ('written by a later version')")
            switch(cluster)  # which archives the history: without it no page is adopted
            dump = create_dump(work).summary
            base = create_base(work).summary
            renewed = aged_and_healed(work)
        oldest = BackupId.parse(min(frozen.expected["documents"]["base list"], key=lambda each: each["id"])["id"])
        release_base(work, oldest)
        hold_base(work, BackupId.parse(base.id), "of a later version", None)
        assert {key for key, data in before.items() if data != held_by(store).get(key)} == {f"holds/{oldest}"}
        with take_lease(work, DUMP_LEASE, "prune") as lease:
            execute_prune(work, plan_prune(work), lease)
        pruned = prune_physical(work)
    pruned.raise_problems()
    assert oldest in {going.backup_id for going in pruned.going}
    assert pruned.freed.packs > 0
    assert base.parent is not None
    assert base.pages.adopted > 0
    assert base.timeline > 3
    assert (renewed.parent, renewed.pages.aged > 0, renewed.pages.healed > 0) == (base.id, True, True)
    assert [key for key, data in held_by(store).items() if before.get(key, data) != data] == ["retention.json"]
    kept = documents(work)
    assert {f"base verify {base.id}", f"base verify {renewed.id}", f"dump verify {dump.id}"} <= kept.keys()
    assert kept["wal verify"]["damage"] == []
