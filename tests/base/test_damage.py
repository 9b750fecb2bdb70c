"""Whatever is harmed in a repository, verify finds it, and a restore that needs it refuses; one that does not gives the same.

Each kind of object with each kind of harm, in a sealed and signed repository with two base backups and two timelines. "The same"
is every byte of the data folder and of the WAL that recovery is handed, compared with what the whole repository gives.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from clipper_backup.cli import cmd_base, cmd_wal_status
from clipper_backup.cli.arguments import split
from clipper_backup.cli.context import Context
from clipper_backup.clock import SystemClock
from clipper_backup.errors import ClipperError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary, Claim, VerifyMark
from clipper_backup.format.documents import decode
from clipper_backup.format.frames import Reference
from clipper_backup.format.manifest import File
from clipper_backup.format.time_maps import SegmentTimes
from clipper_backup.ops.base.create import create_base
from clipper_backup.ops.events import ignore
from clipper_backup.ops.keys import opener_of
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.open_restore import open_restore
from clipper_backup.ops.wal.push import push
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.repository.base_backups import read_entries
from clipper_backup.repository.times import TimeMaps
from clipper_backup.store.local import LocalStore
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, Timeline
from clipper_backup.wal_names import Segment, history_name
from fixtures.base import Cluster, work_for
from fixtures.keys import make_keys, opening, sealed_to
from fixtures.postgres import private_folder, sql
from fixtures.restore import outcome, proven, session_in, switch
from fixtures.server_program import server_program
from fixtures.sweeps import chosen

Harm = Callable[[bytes, bytes], bytes | None]
"""Of what is there and of its neighbour's bytes, what is there afterwards."""


def flipped(data: bytes, _: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


HARMS: dict[str, Harm] = {
    "a bit": flipped,
    "cut short": lambda data, _: data[: len(data) * 2 // 3],
    "zeros": lambda data, _: bytes(len(data)),
    "swapped": lambda _, other: other,
    "missing": lambda *_: None,
}
Content = dict[str, str]


def without_names(content: bytes, place: Path) -> bytes:
    """A file without what each restore calls otherwise: its folder, and the plan that its restore_command names."""
    return re.sub(rb"--plan [^ ']+", b"--plan X", content.replace(bytes(place), b"/place"))


@dataclass
class Ruin:
    """A repository of which something may be harmed: timeline 1 with two base backups, and timeline 2, to which is restored."""

    folder: Path
    work: Work
    summary: BaseSummary
    other: BaseSummary
    segments: tuple[str, ...]
    held: Content

    def copied_to(self, folder: Path) -> "Ruin":
        """The same, to be harmed: the store replaces objects, so the copy may share them."""
        shutil.copytree(self.folder / "repository", folder / "repository", copy_function=os.link)
        settings = replace(self.work.settings, backup_url=f"file://{folder}/repository")
        return replace(self, folder=folder, work=replace(self.work, settings=settings, store=LocalStore(folder / "repository")))

    @property
    def store(self) -> Store:
        return self.work.store

    def archived(self, name: str, suffix: str) -> str:
        return names.archive_key(self.summary.system_id, name, suffix)

    def frames(self) -> tuple[Reference, Reference]:
        """A page map of the backup that is restored, and a frame of small files."""
        opener = opener_of(self.work.settings, self.summary.recipients)
        parts = [entry.part for entry in read_entries(self.store, self.summary, opener) if isinstance(entry, File)]
        page_map = next(part.maps[0] for part in parts if part.maps)
        return page_map, next(part.small.frame for part in parts if part.small is not None)

    # -- what is asked of it

    def verify(self, *which: str) -> dict[str, ClipperError]:
        """What `base verify --read-data` of each backup and `wal verify --read-data` end with, as a person runs them."""
        settings = self.work.settings
        words = [
            "--quiet",
            f"--backup-url={settings.backup_url}",
            f"--encryption-identity-file={settings.encryption_identity_file}",
        ]
        words += [f"--signature-keys={','.join(self.work.trusted)}"]
        found: dict[str, ClipperError] = {}
        with Context(split(words), {}) as context:
            commands: dict[str, Callable[[], object]] = {
                "base": lambda: cmd_base.verify(self.summary.id, read_data=True, context=context),
                "other": lambda: cmd_base.verify(self.other.id, read_data=True, context=context),
                "wal": lambda: cmd_wal_status.verify(read_data=True, context=context),
            }
            for name in which or commands:
                error = outcome(commands[name])
                if error is not None:
                    found[name] = error
        return found

    def restore(self, place: Path, found: Content) -> None:
        """Restore the backup to the end of timeline 2, and fetch what recovery asks for, in its order; *found* is all of it."""
        request = Request(place / "data", Target("latest"), server_account(), backup=BackupId.parse(self.summary.id))
        plan = make_plan(self.work, request)
        restore(self.work, request, plan)
        found |= {
            str(path.relative_to(request.data)): hashlib.sha256(without_names(path.read_bytes(), place)).hexdigest()
            for path in request.data.rglob("*")
            if path.is_file()
        }
        opened = open_restore(request.folder, SystemClock(), ignore)
        fetch, target = opened.fetch(request.data / "pg_wal"), request.data / "pg_wal/RECOVERYXLOG"
        for name in (history_name(plan.line.timeline), *(segment.name for segment in plan.wal.segments)):
            assert fetch.answer(name, target), name
            found[name] = hashlib.sha256(target.read_bytes()).hexdigest()
        assert not fetch.answer(plan.wal.segments[-1].next().name, target)


@pytest.fixture(scope="module")
def whole(archived18: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ruin]:
    keys = make_keys(tmp_path_factory.mktemp("keys"))
    with private_folder() as folder:
        store = LocalStore(folder / "repository")
        url = {"BACKUP_URL": f"file://{folder}/repository", "ARCHIVE_WAIT_SECONDS": "1"}
        signing = {"SIGNING_KEY_FILE": str(keys["signer"].path)}
        work = work_for(archived18, store, None, **url, **sealed_to(keys), **opening(keys["operator"]), **signing)
        with archived18.archiving(work):
            other, summary = create_base(work).summary, create_base(work).summary
            for _ in range(3):
                sql(archived18.server, "postgres", "SELECT pg_create_restore_point('here')")
                switch(archived18)
        segments = promoted(work, folder)
        size = summary.sizes.segment_bytes
        for name in segments:  # as `wal archive` writes them
            maps = TimeMaps(store, summary.system_id, size)
            maps.write(Segment.parse(name, size), [SegmentTimes(linked=name != segments[0])])
        shutil.rmtree(folder / "first")
        made = Ruin(folder, work, summary, other, segments, {})
        made.restore(folder, made.held)
        yield made


def promoted(work: Work, folder: Path) -> tuple[str, ...]:
    """Restore to the end, write on timeline 2, archive that; the segments of the line from the last backup on."""
    place = folder / "first"
    place.mkdir()
    server_account().own(place)
    request = Request(place / "data", Target("latest"), server_account(), program=server_program())
    with proven(work, request, make_plan(work, request)) as (result, started):
        with session_in(started) as connection:
            connection.execute("CREATE TABLE public.later ()")
            ((last,),) = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchall()
        for path in sorted((result.data / "pg_wal").glob("00000002" + "?" * 16)):
            if path.name <= last:
                push(work, path)
    return tuple(segment.name for segment in make_plan(work, replace(request, target_dir=folder / "again")).wal.segments)


@dataclass(frozen=True)
class Spot:
    """An object, or with *part* some bytes of it (then gone means all of it); what lies beside it; by what it is told.

    `found_by` says which verify owns it. A restore that does not need it must give what the whole repository gives.
    """

    key: str
    beside: bytes
    found_by: str
    named: tuple[str, ...]
    needed: bool = True
    part: tuple[int, int] | None = None

    def harm(self, store: Store, harm: Harm) -> None:
        data = store.get(self.key)
        start, size = self.part or (0, len(data))
        changed = harm(data[start : start + size], self.beside)
        store.delete([self.key])
        if changed is not None:
            store.put(self.key, data[:start] + changed + (data[start + size :] if len(changed) == size else b""))


def spot_of(ruin: Ruin, kind: str) -> Spot:
    """One of that kind, in *ruin*; see KINDS."""
    store, system = ruin.store, ruin.summary.system_id
    ids = [BackupId.parse(each.id) for each in (ruin.summary, ruin.other)]
    middle, behind = ruin.segments[1:3]
    history, sealed = history_name(Timeline(2)), f"{names.STORED}.age"

    def beside(one: str, two: str, found_by: str, named: str = "", *, needed: bool = True) -> Spot:
        return Spot(one, store.get(two), found_by, (named or one,), needed)

    def value(key: str, one: str, two: str, found_by: str, *, needed: bool = True) -> Spot:
        """A value in a document: its other bytes may be meant for people."""
        return Spot(key, two.encode(), found_by, (key,), needed, (store.get(key).index(one.encode()), len(one)))

    match kind:
        case "pack":
            return beside(names.pack_key(ids[1], 0), names.pack_key(ids[0], 0), "base")
        case "page map":
            one, two = ruin.frames()
            data = store.get(str(two.pack))[two.offset : two.offset + two.stored_bytes]
            return Spot(str(one.pack), data, "base", (str(one.pack),), part=(one.offset, one.stored_bytes))
        case "data key":
            return beside(names.data_key_key(ids[0]), names.data_key_key(ids[1]), "base")
        case "segment":
            return beside(ruin.archived(middle, sealed), ruin.archived(behind, sealed), "wal", middle)
        case "history":
            return beside(ruin.archived(history, sealed), ruin.archived(middle, sealed), "wal", history)
        case "claim" | "claim of what a time map knows":
            known = kind != "claim"
            if not known:
                store.delete([info.key for info in store.list(f"wal/{system}/00000001/times/")])
            claims = [decode(store.get(ruin.archived(name, names.CLAIM)), Claim, name) for name in (middle, behind)]
            return replace(
                value(ruin.archived(middle, names.CLAIM), claims[0].digest, claims[1].digest, "wal", needed=not known),
                named=(middle, behind),
            )
        case "claim of the history":
            key = ruin.archived(history, names.CLAIM)
            ((_, left),) = decode(store.get(key), Claim, key).ancestors or []
            return replace(value(key, left, left[:-1] + "8", "wal"), named=(history,))
        case "time map":
            maps = [info.key for info in store.list(f"wal/{system}/00000001/times/")]
            return beside(maps[0], maps[1], "wal", needed=False)
        case "repository.json":
            identity = ruin.summary.repository_id
            return replace(value("repository.json", identity, identity[::-1], "base"), named=("repository",))
        case "system":
            number = system[:-1] + ("1" if system[-1] == "2" else "2")
            return replace(value(names.system_key(1), system, number, "wal", needed=False), named=("systems/",))
        case names.BASE_SUMMARY | names.BASE_SIGNATURE:
            return beside(names.base_key(ids[0], kind), names.base_key(ids[1], kind), "base", ruin.summary.id)
        case "manifest of another backup":
            key = names.base_key(ids[1], f"{names.MANIFEST}.age")
            return beside(key, names.base_key(ids[0], f"{names.MANIFEST}.age"), "other", needed=False)
        case _:
            part = f"{kind}.age" if kind in names.SEALABLE else kind
            return beside(names.base_key(ids[0], part), names.base_key(ids[1], part), "base", needed=kind != names.BASE_DETAILS)


KINDS = (
    "pack", "page map", "data key", "segment", "claim", "claim of what a time map knows", "history", "claim of the history",
    "time map", "repository.json", "system", "manifest of another backup",
    names.BASE_SUMMARY, names.BASE_SIGNATURE, names.PACKS, *names.SEALABLE,
)  # fmt: skip
GAP, ATTENTION, NOT_FOUND = {14}, {3}, {15}
CODES = {
    ("segment", "missing"): GAP,
    # Another digit may stand there, or what is none.
    **{(f"claim{known}", harm): GAP | {13} for known in ("", " of what a time map knows") for harm in ("a bit", "swapped")},
    ("history", "missing"): ATTENTION,  # no segment is missing, and older timelines can be restored
    ("system", "a bit"): ATTENTION,
    ("system", "swapped"): ATTENTION,
    ("system", "missing"): ATTENTION,
    (names.BASE_SUMMARY, "missing"): NOT_FOUND,
}
"""What verify ends with where that is not 13."""
NOTHING_TO_FIND = {("time map", "missing")}
"""A cache: one that is not there is made anew, or done without."""


@pytest.mark.rule(36)
@pytest.mark.rule(57)
@pytest.mark.rule(85)
@pytest.mark.soak(over=["harm"])
@pytest.mark.parametrize("harm", HARMS)
def test_harm_is_found_and_leads_to_no_other_database(whole: Ruin, harm: str) -> None:
    for kind in chosen(KINDS, 2):
        with private_folder() as place:
            server_account().own(place)
            ruin = whole.copied_to(place)
            spot = spot_of(ruin, kind)
            spot.harm(ruin.store, HARMS[harm])
            must_be_found(ruin, spot, kind, harm)
            got: Content = {}
            refused = outcome(partial(ruin.restore, place, got))
            assert (refused is not None) is spot.needed, (kind, refused)
            if refused is None:
                assert got == whole.held, kind
            else:
                assert refused.exit_code in {13, 14, 15}
                assert any(name in told(refused) for name in (*spot.named, ruin.summary.id)), (kind, told(refused))


def must_be_found(ruin: Ruin, spot: Spot, kind: str, harm: str) -> None:
    """By the verify that owns it; what is found of a base backup's objects is written down beside it, without paths."""
    found = ruin.verify(spot.found_by)
    if (kind, harm) in NOTHING_TO_FIND:
        assert not found
        return
    assert spot.found_by in found, (kind, found)
    error = found[spot.found_by]
    assert error.exit_code in CODES.get((kind, harm), {13}), (kind, error)
    assert any(name in told(error) for name in spot.named), (kind, told(error))
    if spot.found_by == "base" and "is damaged" in error.message and not spot.key.endswith(".json"):
        key = names.base_key(BackupId.parse(ruin.summary.id), names.VERIFY)
        mark = decode(ruin.store.get(key), VerifyMark, key)
        assert mark.damage, kind
        assert "base/5/" not in " ".join(mark.damage)


def told(error: ClipperError) -> str:
    return "\n".join((error.message, *error.hints))


def test_nothing_is_found_where_nothing_is_wrong(whole: Ruin) -> None:
    assert whole.verify() == {}
