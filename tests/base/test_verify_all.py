"""`verify`: damage of every kind is found, told with what it costs, and hides nothing else; what was read in turn is noted."""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from clipper_backup.cli.show_verify import verified_document, verified_text
from clipper_backup.clock import SystemClock
from clipper_backup.errors import (
    AccessError,
    ClipperError,
    IncompleteError,
    IntegrityError,
    StoppedError,
    StoreUnavailableError,
    UsageError,
    WalGapError,
)
from clipper_backup.format import names as dump_names
from clipper_backup.format import physical_names as names
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.events import Warned
from clipper_backup.ops.verify.run import VerifiedAll, verify_all
from clipper_backup.ops.verify.units import Kind, Mode, Unit
from clipper_backup.ops.work import noting
from clipper_backup.repository.dumps import list_dumps
from clipper_backup.repository.rotation import next_arc
from clipper_backup.repository.verify_report import read_report
from clipper_backup.store.local import _translated
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster, backed_up, work_for
from fixtures.base_repository import copy_into
from fixtures.cli import RunCli
from fixtures.keys import make_keys, opening, sealed_to
from fixtures.verified import DAY, LaterClock, Taken, flip, report_of, taken_by

pytestmark = pytest.mark.soak(share=0.3)


@pytest.fixture(scope="module")
def seed(archived15: Cluster) -> Taken:
    return taken_by(archived15, work_for(archived15, BACKUP_DATABASES="postgres"))


@pytest.fixture
def taken(seed: Taken) -> Taken:
    return seed.copied()


def told(found: VerifiedAll) -> str:
    return verified_text(found, "file:///x")


def first_line(found: VerifiedAll) -> str:
    return told(found).splitlines()[0]


def texts(found: VerifiedAll) -> str:
    return "\n".join(each.text for each in found.damage)


def test_what_is_whole_is_intact_and_all_of_it_was_read(taken: Taken) -> None:
    found = verify_all(noting(taken.work), Mode.ALL)
    found.raise_worst()
    assert (found.damage, found.unlooked, found.unopened, found.cost) == ([], [], [], None)
    assert all(kind.units == kind.read_units > 0 and kind.read_bytes == kind.size_bytes for kind in found.kinds)
    assert (found.base.backups, found.base.files, found.covered_share) == (2, taken.second.files, 1.0)
    assert first_line(found).startswith("INTACT as far as it was read: ")
    report = report_of(taken.work)
    assert (report.mode, report.damaged, report.dumps.units) == ("all", 0, 1)
    assert report.packs.rotation is not None
    assert report.packs.rotation.covered_until == report.begun_at == report.packs.rotation.all_read_at
    (_, second) = base_catalog(taken.work)
    assert second.entry.verified is not None
    assert second.entry.verified.share == 1


def test_a_pack_is_read_once(taken: Taken) -> None:
    """However many base backups need it: what is read of packs is their size, and a trailer of each."""
    packs = {info.key: info.size_bytes for info in taken.work.store.list(names.PACKS_FOLDER)}
    streamed: list[str] = []

    class Counting(WrapperStore):
        def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
            streamed.append(key)
            return super().get_stream(key, start=start, same_as=same_as)

    work = taken.with_store(Counting(taken.work.store))
    verify_all(work, Mode.SAMPLE, share=1.0).raise_worst()
    assert sorted(key for key in streamed if key in packs) == sorted(packs)


def test_damage_of_each_kind_is_found_and_hides_no_other(taken: Taken) -> None:
    store = taken.work.store
    dump, pack, segment = taken.dump, taken.shared, taken.segments[0]
    manifest = names.base_key(BackupId.parse(taken.first.id), names.MANIFEST)
    for key in (dump, pack, segment, manifest):
        flip(store, key)
    found = verify_all(noting(taken.work), Mode.ALL)
    for key in (dump, pack, segment, manifest):
        assert key in texts(found), key
    assert (len(found.dumps.damaged), found.packs.damaged, len(found.files.damaged)) == (1, {pack}, 1)
    assert all(kind.read_units == kind.units for kind in found.kinds), "damaged or not"
    assert found.base.damaged.keys() == {BackupId.parse(taken.first.id), BackupId.parse(taken.second.id)}
    with pytest.raises(IntegrityError) as raised:
        found.raise_worst()
    assert any("`clipper-backup base create`" in hint for hint in raised.value.hints)
    assert first_line(found).startswith("DAMAGED: 1 damaged dump, 2 damaged base backups, 1 damaged file of the WAL; ")
    (lost,) = found.cost.lost if found.cost is not None else ()
    assert (lost.since, lost.until, found.cost and found.cost.restorable) == (taken.first.stopped_at, None, ())
    assert "still there:   no instant" in told(found)
    assert not any(shown.entry.good for shown in base_catalog(taken.work))
    noted = {each.key: each.text for each in report_of(taken.work).damage}
    assert len(noted) == report_of(taken.work).damaged == 4
    assert verified_document(found, "x")["intact"] is False


@pytest.mark.parametrize("what", ["a pack", "an object", "a segment", "its WAL", "a claim", "a key"])
def test_one_thing_alone_is_found_by_the_run_whose_turn_it_is(taken: Taken, what: str) -> None:
    """Cheap things by any run, the others when they are read."""
    store, first = taken.work.store, BackupId.parse(taken.first.id)
    segment = taken.segments[0]
    match what:
        case "a pack":
            store.delete([taken.shared])
        case "an object":
            store.delete([names.base_key(first, names.LABEL)])
        case "a segment":
            store.put(segment, store.get(segment)[:-1])
        case "its WAL":
            store.delete([names.archive_key(taken.first.system_id, taken.first.last_segment, names.STORED)])
        case "a claim":
            store.put(segment.removesuffix(names.STORED) + names.CLAIM, b"{")
        case _:
            flip(store, dump_names.dump_key(list_dumps(store)[0].dump_id, dump_names.SUMMARY))
    found = verify_all(noting(taken.work), Mode.ALL if what == "a segment" else Mode.ROTATION)
    assert found.damage or (what == "its WAL" and found.wal is not None and found.wal.gaps)
    with pytest.raises((IntegrityError, WalGapError)):
        found.raise_worst()


def test_what_is_lost_is_told_to_the_instant(taken: Taken) -> None:
    """A segment between two base backups: from the last commit before it to the stop of the second."""
    flip(taken.work.store, taken.segments[1])
    found = verify_all(noting(taken.work), Mode.ALL)
    assert found.cost is not None
    (lost,) = found.cost.lost
    assert lost.until == taken.second.stopped_at
    assert lost.since is not None
    assert taken.first.stopped_at < lost.since < taken.second.stopped_at
    assert lost.why == (Path(taken.segments[1]).name.removesuffix(names.STORED),)
    before, after = found.cost.restorable
    assert (before.backup_id, before.until, before.to_end) == (taken.first.id, lost.since, False)
    assert (after.backup_id, after.since, after.to_end) == (taken.second.id, taken.second.stopped_at, True)
    assert "lost:" in told(found)


def test_base_verify_says_which_instants_its_damage_costs(taken: Taken) -> None:
    first, second = BackupId.parse(taken.first.id), BackupId.parse(taken.second.id)
    flip(taken.work.store, names.base_key(second, names.LABEL))
    with pytest.raises(IntegrityError) as none:
        verify_base(noting(taken.work), second, share=0)
    assert any(hint.startswith("it costs no instant of the window") for hint in none.value.hints)
    flip(taken.work.store, names.base_key(second, names.LABEL))
    verify_base(noting(taken.work), second, share=1)
    flip(taken.work.store, names.base_key(first, names.LABEL))
    with pytest.raises(IntegrityError) as some:
        verify_base(noting(taken.work), first, share=0)
    (lost,) = (hint for hint in some.value.hints if hint.startswith("no instant between"))
    assert f"because of the base backup {first}" in lost
    assert f"{taken.first.stopped_at:%H:%M:%S}" in lost
    assert f"{taken.second.stopped_at:%H:%M:%S}" in lost


def test_the_next_base_backup_heals_and_verify_says_so(archived15: Cluster) -> None:
    work = work_for(archived15, BACKUP_DATABASES="postgres")
    taken = taken_by(archived15, work)
    flip(work.store, taken.shared)
    broken = verify_all(noting(work), Mode.ALL)
    assert broken.newest_good is None
    third = backed_up(archived15, work).summary
    found = verify_all(noting(work), Mode.ALL)
    assert found.base.damaged.keys() == {BackupId.parse(taken.first.id), BackupId.parse(taken.second.id)}
    assert found.newest_good is not None
    assert found.newest_good.listed.backup_id == BackupId.parse(third.id)
    assert f"healed:        the newest base backup, {third.id}, needs nothing of what is damaged" in told(found)
    assert found.cost is not None
    (lost,) = found.cost.lost
    assert (lost.since, lost.until) == (taken.first.stopped_at, third.stopped_at)
    assert [each.backup_id for each in found.cost.restorable] == [third.id]
    with pytest.raises(IntegrityError):
        found.raise_worst()


def test_each_run_reads_its_share_and_a_cycle_reads_all(seed: Taken) -> None:
    clock = LaterClock()
    taken = seed.copied(clock)
    read: dict[str, int] = {}

    class Reading(WrapperStore):
        def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
            read[key] = read.get(key, 0) + 1
            return super().get_stream(key, start=start, same_as=same_as)

    wanted = {taken.dump, *(info.key for info in taken.work.store.list(names.PACKS_FOLDER)), *taken.segments}
    work = taken.with_store(Reading(taken.work.store))
    first = last = verify_all(noting(work))
    assert first.covered_share < 1
    assert "the rest is newer and waits for its turn" in first_line(first)
    assert not wanted <= read.keys()
    for _ in range(7):
        clock.days += 1
        last = verify_all(noting(work))
    assert wanted <= read.keys()
    assert (last.covered_share, sum(kind.owed_bytes for kind in last.kinds)) == (1.0, 0)
    before = dict(read)
    verify_all(noting(work))
    packs = {key: count for key, count in read.items() if key.startswith(names.PACKS_FOLDER)}
    assert packs != {key: count + 1 for key, count in before.items() if key in packs}, "not all of them again"


def test_known_damage_is_read_again(seed: Taken) -> None:
    """Until it is read and is not damaged any more, whosever turn it is."""
    clock = LaterClock()
    taken = seed.copied(clock)
    keys = (taken.dump, taken.segments[0])
    for key in keys:
        flip(taken.work.store, key)
    verify_all(noting(taken.work), Mode.ALL)
    for mode in (Mode.ROTATION, Mode.SAMPLE, Mode.ROTATION):
        clock.days += 0.01
        found = verify_all(noting(taken.work), mode, share=0.001)
        assert len(found.dumps.damaged) == len(found.files.damaged) == 1
        assert report_of(taken.work).damaged == 2
    for key in keys:
        flip(taken.work.store, key)
    assert verify_all(noting(taken.work)).damage == []
    assert report_of(taken.work).damage == []


def test_a_run_that_was_ended_moves_nothing(taken: Taken) -> None:
    class Ending(WrapperStore):
        def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
            if key.startswith(names.WAL_FOLDER):
                raise StoppedError(15)
            return super().get_stream(key, start=start, same_as=same_as)

    verify_all(noting(taken.work))
    before = taken.work.store.get(names.VERIFY_REPORT)
    with pytest.raises(StoppedError):
        verify_all(noting(taken.with_store(Ending(taken.work.store))), Mode.ALL)
    assert taken.work.store.get(names.VERIFY_REPORT) == before


@pytest.mark.parametrize("kind", ["dumps", "packs", "wal"])
def test_what_the_store_keeps_back_for_a_time_moves_nothing(taken: Taken, kind: str) -> None:
    """Of that kind: the others were looked at. What else was found is told."""
    folder = {"dumps": dump_names.DATABASE_FOLDER, "packs": names.PACKS_FOLDER, "wal": names.WAL_FOLDER}[kind]

    class Away(WrapperStore):
        def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
            if key.startswith(folder):
                raise StoreUnavailableError(f"{key}: come back later")
            return super().get_stream(key, start=start, same_as=same_as)

    verify_all(noting(taken.work)).raise_worst()
    before = report_of(taken.work)
    found = verify_all(noting(taken.with_store(Away(taken.work.store))), Mode.ALL)
    with pytest.raises(StoreUnavailableError):
        found.raise_worst()
    assert first_line(found).startswith("NOT ALL LOOKED AT: ")
    after = report_of(taken.work)
    moved = {name: getattr(after, name).rotation != getattr(before, name).rotation for name in ("dumps", "packs", "wal")}
    assert moved == {name: name != kind for name in moved}


def test_a_sample_moves_no_rotation(taken: Taken) -> None:
    verify_all(noting(taken.work))
    before = report_of(taken.work)
    found = verify_all(noting(taken.work), Mode.SAMPLE, share=0.05)
    assert all(kind.read_units > 0 for kind in found.kinds)
    after = report_of(taken.work)
    assert [(kind.rotation) for kind in (after.dumps, after.packs, after.wal)] == [
        kind.rotation for kind in (before.dumps, before.packs, before.wal)
    ]


def test_a_sample_has_about_its_share_of_the_bytes_and_one_unit_at_least() -> None:
    now = SystemClock().now()
    kind = Kind("packs", Mode.SAMPLE, next_arc(None, 7 * DAY, now, 7 * DAY), None, 0.05, {"known", "gone"})
    units = [Unit(str(number), 100, now) for number in range(1000)]
    drawn = kind.choose([*units, Unit("known", 0, now)])
    assert len(drawn) in {50, 51}
    assert "known" in drawn
    assert kind.choose(units) != drawn
    assert kind.choose([Unit("one", 10, now)]) == {"one"}
    assert kind.choose([]) == set()


class ReadOnly(WrapperStore):
    """What a store does to who may only read: it refuses to tell its time too, which is written for that."""

    def __init__(self, inner: Store, error: ClipperError) -> None:
        super().__init__(inner)
        self._error = error

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:  # noqa: ARG002  nothing is
        raise self._error

    def delete(self, keys: Sequence[str]) -> None:  # noqa: ARG002  the same
        raise self._error

    def now(self) -> datetime:
        raise self._error


@pytest.mark.rule(88)
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(AccessError("may not write"), id="a bucket"),
        pytest.param(_translated(OSError(errno.EROFS, "read-only file system"), Path("/store")), id="a mount"),
    ],
)
def test_who_may_only_read_verifies_everything(taken: Taken, error: ClipperError) -> None:
    work = noting(taken.with_store(ReadOnly(taken.work.store, error)))
    found = verify_all(work, Mode.ALL)
    found.raise_worst()
    assert (found.noted, found.covered_share) == (False, 1.0)
    assert any("not written down" in warning for warning in work.emit.warnings)  # type: ignore[attr-defined]  # a Kept
    assert read_report(taken.work.store) is None
    verify_base(work, BackupId.parse(taken.first.id), share=1)
    flip(taken.work.store, taken.shared)
    again = verify_all(work, Mode.ALL)
    assert again.packs.damaged == {taken.shared}
    assert again.cost is not None
    assert again.cost.lost


@pytest.mark.rule(88)
def test_nothing_else_can_be_written(taken: Taken) -> None:
    """By construction: a verify holds no store that would take anything but its notes."""
    before = {info.key: info.version for info in taken.work.store.list("")}
    store = noting(taken.work).store
    for key in ("repository.json", taken.shared, names.base_key(BackupId.parse(taken.first.id), names.BASE_SUMMARY)):
        with pytest.raises(UsageError, match="only reads"):
            store.put(key, b"x")
        with pytest.raises(UsageError, match="only reads"):
            store.put_stream(key, [b"x"])
        with pytest.raises(UsageError, match="only reads"):
            store.delete([key])
    verify_all(noting(taken.work), Mode.ALL)
    after = {info.key: info.version for info in taken.work.store.list("")}
    assert {key for key in after if after[key] != before.get(key)} == {
        names.VERIFY_REPORT,
        *(names.base_key(BackupId.parse(each.id), names.VERIFY) for each in (taken.first, taken.second)),
    }


def test_what_is_sealed_is_compared_and_that_nobody_looked_inside_is_said(archived15: Cluster, tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    work = work_for(archived15, BACKUP_DATABASES="postgres", **sealed_to(keys), **opening(keys["operator"]))
    taken = taken_by(archived15, work)
    verify_all(noting(work), Mode.ALL).raise_worst()
    without = replace(work, settings=replace(work.settings, encryption_identity_file=None))
    rotation = report_of(work).wal.rotation
    blind = verify_all(noting(without), Mode.ALL)
    assert (blind.damage, blind.files.read_units, blind.dumps.read_units, blind.packs.read_units) == (
        [],
        0,
        1,
        blind.packs.units,
    )
    with pytest.raises(IncompleteError, match="not all was looked into"):
        blind.raise_worst()
    assert report_of(work).wal.rotation == rotation, "its WAL was not read"
    for key in (taken.dump, taken.shared):
        flip(work.store, key)
    again = verify_all(noting(without), Mode.ALL)
    assert (len(again.dumps.damaged), again.packs.damaged) == (1, {taken.shared})
    table = [each.text for each in report_of(work).damage if each.key.startswith("database/")]
    assert table
    assert not any("rows" in text or "public" in text for text in table)


@pytest.mark.parametrize(("change", "stays"), [({"schema": 2}, True), ({"cycle_days": 0}, False)])
def test_a_report_that_cannot_be_read(taken: Taken, change: dict[str, int], stays: bool) -> None:
    """One of a newer version is left as it is; a damaged one makes way."""
    verify_all(noting(taken.work))
    document = msgspec.json.decode(taken.work.store.get(names.VERIFY_REPORT)) | change
    taken.work.store.put(names.VERIFY_REPORT, msgspec.json.encode(document))
    found = verify_all(noting(taken.work))
    found.raise_worst()
    assert found.noted is not stays
    assert (taken.work.store.get(names.VERIFY_REPORT) == msgspec.json.encode(document)) is stays
    assert any(isinstance(event, Warned) for event in taken.work.emit.events)  # type: ignore[attr-defined]  # a Kept


def test_what_is_older_than_a_cycle_and_was_not_read_is_told(seed: Taken) -> None:
    clock = LaterClock()
    taken = seed.copied(clock)
    clock.days = 30
    found = verify_all(noting(taken.work))
    assert all(kind.owed_bytes == kind.size_bytes - kind.read_bytes for kind in found.kinds)
    assert "older than that were not read yet" in first_line(found)


def copy_out(store: Store, folder: Path) -> None:
    assert isinstance(store, MemoryStore)
    copy_into(store, folder)


def exits(run_cli: RunCli, taken: Taken, folder: Path, *words: str) -> tuple[int, str]:
    copy_out(taken.work.store, folder)
    outcome = run_cli("verify", *words, env={"BACKUP_URL": f"file://{folder}"})
    return outcome.code, outcome.stdout.splitlines()[0] if outcome.stdout else outcome.stderr


def test_exit_codes(run_cli: RunCli, taken: Taken, tmp_path: Path) -> None:
    code, said = exits(run_cli, taken, tmp_path / "whole", "--read-data")
    assert (code, said.partition(":")[0]) == (0, "INTACT as far as it was read")
    code, said = exits(run_cli, taken, tmp_path / "sampled", "--sample", "5%")
    assert code == 0
    assert exits(run_cli, taken, tmp_path / "both", "--sample", "5%", "--read-data")[0] == 2
    flip(taken.work.store, taken.dump)
    code, said = exits(run_cli, taken, tmp_path / "damaged", "--read-data")
    assert (code, said) == (13, "DAMAGED: 1 damaged dump; no instant of the window is lost")
    taken.work.store.delete([taken.segments[0]])
    code, said = exits(run_cli, taken, tmp_path / "gap", "--read-data")
    assert (code, said) == (14, "DAMAGED: 1 damaged dump, 1 gap in the WAL; instants of the window are lost, see below")
    assert run_cli("verify", env={"BACKUP_URL": f"file://{tmp_path / 'nothing'}"}).code == 10


def test_status_and_doctor_know_what_verify_found(run_cli: RunCli, taken: Taken, tmp_path: Path) -> None:
    folder, environment = tmp_path / "repository", {"BACKUP_URL": f"file://{tmp_path}/repository"}
    flip(taken.work.store, taken.dump)
    copy_out(taken.work.store, folder)
    before = run_cli("status", "--no-server", env=environment)
    assert (before.code, "verified:      never: `clipper-backup verify`" in before.stdout) == (0, True), before
    assert run_cli("verify", "--read-data", env=environment).code == 13
    after = run_cli("status", "--no-server", env=environment)
    assert after.code == 3, after
    assert "100% of all bytes read within 7 days; 1 thing is damaged" in after.stdout
    assert "the last verify found damage: " in after.stderr
    doctor = run_cli("doctor", env=environment)
    (line,) = (line for line in doctor.stdout.splitlines() if line.lower().startswith("red") and " verify " in line)
    assert "1 thing is damaged" in line


def test_prune_leaves_the_report_and_a_store_with_it_alone_is_no_new_repository(
    run_cli: RunCli, taken: Taken, tmp_path: Path
) -> None:
    folder, environment = tmp_path / "repository", {"BACKUP_URL": f"file://{tmp_path}/repository"}
    copy_out(taken.work.store, folder)
    assert run_cli("verify", env=environment).code == 0
    before = (folder / names.VERIFY_REPORT).read_bytes()
    pruned = run_cli("prune", "--yes", "--json", env=environment)
    assert (pruned.code, pruned.document["proof"]["problems"]) == (0, []), pruned
    assert (folder / names.VERIFY_REPORT).read_bytes() == before
    lost = MemoryStore(taken.work.clock)
    lost.put(names.VERIFY_REPORT, before)
    with pytest.raises(IntegrityError, match="holds objects below verify/, and its"):
        verify_all(noting(taken.with_store(lost)))
