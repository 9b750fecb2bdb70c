"""What `verify` says is true: nothing that it found is hidden by what it could not do, and nothing is called good unread."""

import builtins
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from clipper_backup.cli.show_base import verified_text as base_text
from clipper_backup.cli.show_verify import report_text, verified_document, verified_text
from clipper_backup.errors import (
    ClipperError,
    IncompleteError,
    IntegrityError,
    StoreError,
    StoreUnavailableError,
    WalGapError,
)
from clipper_backup.format import names as dump_names
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.documents import encode
from clipper_backup.format.sealing import seal
from clipper_backup.format.time_maps import MapName
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.dump.create import create_dump
from clipper_backup.ops.lost_instants import told_cost
from clipper_backup.ops.verify.run import VerifiedAll, verify_all
from clipper_backup.ops.verify.units import Mode
from clipper_backup.ops.work import noting
from clipper_backup.repository.base_backups import listed_base, read_verify_mark
from clipper_backup.repository.dumps import list_dumps
from clipper_backup.repository.verify_report import never_in_turn, overdue
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import BackupId, Timeline
from clipper_backup.wal_names import Segment
from fixtures.base import Cluster, backed_up, work_for
from fixtures.keys import make_keys, opening
from fixtures.verified import DAY, LaterClock, Taken, flip, report_of, taken_by

pytestmark = pytest.mark.soak(share=0.3)


@pytest.fixture(scope="module")
def seed(archived15: Cluster) -> Taken:
    work = work_for(archived15, BACKUP_DATABASES="postgres")
    create_dump(work)
    return taken_by(archived15, work)


@pytest.fixture
def taken(seed: Taken) -> Taken:
    return seed.copied()


class Failing(WrapperStore):
    """A call of a key that *which* names fails with *error*."""

    def __init__(self, inner: Store, error: ClipperError, which: Callable[[str, str], bool]) -> None:
        super().__init__(inner)
        self._error, self._which = error, which

    def _check(self, call: str, key: str) -> None:
        if self._which(call, key):
            raise self._error

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        self._check("put", key)
        super().put(key, data, create=create)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> builtins.list[bytes]:
        self._check("get_ranges", key)
        return super().get_ranges(key, ranges)

    def get_stream(self, key: str, *, start: int = 0, same_as: ObjectInfo | None = None) -> Iterator[bytes]:
        self._check("get_stream", key)
        return super().get_stream(key, start=start, same_as=same_as)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._check("list", prefix)
        return super().list(prefix)

    def folders(self, prefix: str) -> Sequence[str]:
        self._check("folders", prefix)
        return super().folders(prefix)


def failing(taken: Taken, error: ClipperError, which: Callable[[str, str], bool]) -> Taken:
    return replace(taken, work=taken.with_store(Failing(taken.work.store, error, which)))


def look(taken: Taken, mode: Mode = Mode.ROTATION) -> VerifiedAll:
    return verify_all(noting(taken.work), mode)


def told(found: VerifiedAll) -> str:
    return verified_text(found, "file:///x")


def first_line(found: VerifiedAll) -> str:
    return told(found).splitlines()[0]


def id_of(summary: BaseSummary) -> BackupId:
    return BackupId.parse(summary.id)


# -- what it could not do hides nothing


def test_damage_is_told_though_the_files_could_not_be_put_together(taken: Taken) -> None:
    """And written down: the next base backup takes nothing from what is damaged."""
    manifest = names.base_key(id_of(taken.first), names.LABEL)
    flip(taken.work.store, manifest)
    read: set[str] = set()

    def again(call: str, key: str) -> bool:
        """The ranges of a pack's trailer may be read, once; those of its frames no more."""
        if call != "get_ranges" or not key.startswith(names.PACKS_FOLDER):
            return False
        known = key in read
        read.add(key)
        return known

    away = failing(taken, StoreUnavailableError("come back later"), again)
    found = look(away, Mode.ALL)
    assert found.base.damaged.keys() == {id_of(taken.first)}
    assert [each.key for each in report_of(taken.work).damage] == [names.base_key(id_of(taken.first), names.BASE_SUMMARY)]
    assert [str(error) for error in found.unlooked] == ["come back later"]
    with pytest.raises(IntegrityError, match=taken.first.id):
        found.raise_worst()
    before = report_of(taken.work).packs.rotation
    assert before is None, "not all was read"


def test_base_verify_tells_its_damage_though_its_packs_could_not_be_read(taken: Taken) -> None:
    flip(taken.work.store, names.base_key(id_of(taken.first), names.LABEL))
    away = failing(
        taken, StoreUnavailableError("come back later"), lambda call, key: call == "get_stream" and key.startswith("packs/")
    )
    with pytest.raises(IntegrityError, match=names.LABEL):
        verify_base(noting(away.work), id_of(taken.first), share=1)
    assert away.work.emit.warnings == ["not all was looked at: come back later"]  # type: ignore[attr-defined]  # a Kept
    mark = read_verify_mark(taken.work.store, listed_base(taken.work.store, id_of(taken.first)))
    assert mark is not None
    assert (mark.share, len(mark.damage)) == (0, 1)
    with pytest.raises(StoreUnavailableError):
        verify_base(noting(away.work), id_of(taken.second), share=1)


def test_damage_is_told_though_the_mark_of_a_good_one_could_not_be_written(taken: Taken) -> None:
    flip(taken.work.store, names.base_key(id_of(taken.second), names.LABEL))
    mark = names.base_key(id_of(taken.first), names.VERIFY)
    found = look(failing(taken, StoreError("no room"), lambda call, key: (call, key) == ("put", mark)), Mode.ALL)
    assert found.base.damaged.keys() == {id_of(taken.second)}
    assert [str(error) for error in found.unlooked] == ["no room"]
    with pytest.raises(IntegrityError, match=taken.second.id):
        found.raise_worst()


def test_a_gap_is_told_though_the_files_could_not_be_read(taken: Taken) -> None:
    taken.work.store.delete([taken.segments[1]])
    away = failing(
        taken, StoreUnavailableError("come back later"), lambda call, key: call == "get_stream" and key.startswith("wal/")
    )
    found = look(away, Mode.ALL)
    with pytest.raises(WalGapError):
        found.raise_worst()
    assert verified_document(found, "x")["gaps"]
    assert "not looked at:  come back later" in told(found)


def test_a_dump_that_cannot_be_read_keeps_no_other_from_being_read(taken: Taken) -> None:
    """Not for a time but for good, as one of a newer version: the others would never be read."""
    first, second = (each.dump_id for each in list_dumps(taken.work.store))
    archive = next(
        info.key for info in taken.work.store.list(dump_names.DATABASE_FOLDER) if f"{second}.postgres.dump" in info.key
    )
    flip(taken.work.store, archive)
    broken = failing(taken, StoreError("it is refused"), lambda call, key: call == "get_stream" and str(first) in key)
    found = look(broken, Mode.ALL)
    assert (found.dumps.units, found.dumps.read_units, len(found.dumps.damaged)) == (2, 1, 1)
    assert [str(error) for error in found.unlooked] == ["it is refused"]
    assert report_of(taken.work).dumps.rotation is None
    with pytest.raises(IntegrityError, match=str(second)):
        found.raise_worst()


def test_an_older_base_backup_that_stays_closed_keeps_none_of_the_newest_from_being_put_together(
    archived15: Cluster, tmp_path: Path
) -> None:
    keys = make_keys(tmp_path)
    old = work_for(archived15, ENCRYPTION_RECIPIENTS=keys["recovery"].public)
    backed_up(archived15, old)
    work = work_for(archived15, ENCRYPTION_RECIPIENTS=keys["operator"].public, **opening(keys["operator"]))
    work = replace(work, store=old.store)
    newest = backed_up(archived15, work).summary
    found = verify_all(noting(work), Mode.ALL)
    assert found.base.files == newest.files > 0
    with pytest.raises(IncompleteError, match="not all was looked into"):
        found.raise_worst()


# -- nothing is called good, or lost, or read, that nobody knows to be


def test_what_a_base_backup_led_to_that_says_no_more_where_it_ends_is_not_called_restorable(taken: Taken) -> None:
    """Its summary is gone bad: it stands on no line, and what was between it and the next one is gone with it."""
    taken.work.store.put(names.base_key(id_of(taken.first), names.BASE_SUMMARY), b"{")
    found = look(taken)
    assert found.cost is not None
    (perhaps,) = found.cost.perhaps
    assert (perhaps.what, perhaps.until) == (f"the base backup {taken.first.id}", taken.second.stopped_at)
    assert perhaps.since is not None
    assert perhaps.since <= taken.first.stopped_at
    assert first_line(found) == "DAMAGED: 1 damaged base backup; instants of the window may be lost, see below"
    assert f"lost:          perhaps instants behind {perhaps.since:%Y-%m-%d %H:%M:%S}Z before " in told(found)
    (document,) = verified_document(found, "x")["perhaps_lost"]
    assert document["of"] == perhaps.what
    costs = told_cost(taken.work, bad_backups=[id_of(taken.second)])
    assert any(cost.startswith("perhaps instants behind") for cost in costs)


def test_where_no_base_backup_says_where_it_ends_nothing_is_called_whole(taken: Taken) -> None:
    for each in (taken.first, taken.second):
        taken.work.store.put(names.base_key(id_of(each), names.BASE_SUMMARY), b"{")
    found = look(taken)
    assert first_line(found) == "DAMAGED: 2 damaged base backups; instants of the window may be lost, see below"
    assert "still there:   no instant" in told(found)


def test_the_end_of_the_wal_is_damaged_whosever_turn_it_is(taken: Taken) -> None:
    """A restore would not take it: that is known from the look at links, and no attention among others."""
    last = max(
        info.key
        for info in taken.work.store.list(names.WAL_FOLDER)
        if info.key.endswith(names.STORED) and "/00000001/" in info.key
    )
    look(taken)
    flip(taken.work.store, last)
    found = look(taken)
    assert found.files.damaged == {last}
    assert first_line(found).startswith("DAMAGED: 1 damaged file of the WAL; instants of the window are lost")
    assert verified_document(found, "x")["intact"] is False


def test_a_timeline_that_nobody_can_follow_is_not_intact(taken: Taken) -> None:
    """Its history is not there: no file is damaged, and what lies on it cannot be restored."""
    store, system_id = taken.work.store, taken.first.system_id
    last = max(key for key in taken.segments)
    name = Path(last).name.partition(".")[0]
    store.put(names.archive_key(system_id, f"00000002{name[8:]}", names.STORED), store.get(last))
    found = look(taken)
    assert names.history_key(system_id, Timeline(2), names.STORED) in [each.key for each in found.damage]
    assert first_line(found).endswith("; instants of the window may be lost, see below")
    assert verified_document(found, "x")["intact"] is False
    assert any("wal push pg_wal/HISTORY" in step for step in found.next_steps)


def test_a_damaged_time_map_costs_nothing_and_no_base_backup_is_asked_for(taken: Taken) -> None:
    first = Segment.parse(taken.first.first_segment, taken.first.sizes.segment_bytes)
    taken.work.store.put(MapName(first, first, 0).key(taken.first.system_id), b"no map")
    found = look(taken)
    assert first_line(found) == "DAMAGED: 1 object; no instant of the window is lost"
    assert not any("base create" in each or "wal push" in each for each in found.next_steps)


def test_a_damaged_file_that_no_replay_needs_costs_nothing(taken: Taken) -> None:
    label = next(info.key for info in taken.work.store.list(names.WAL_FOLDER) if ".backup" in info.key)
    flip(taken.work.store, label)
    found = look(taken, Mode.ALL)
    assert first_line(found) == "DAMAGED: 1 damaged file of the WAL; no instant of the window is lost"


def test_damage_of_a_pack_that_two_ways_of_reading_find_is_told_once(taken: Taken) -> None:
    flip(taken.work.store, taken.shared)
    found = look(taken, Mode.ALL)
    assert [each.key for each in found.damage] == [taken.shared]
    assert any("stores damaged pages anew" in step for step in found.next_steps)


def test_no_base_backup_is_asked_for_that_is_there_already(taken: Taken) -> None:
    flip(taken.work.store, names.base_key(id_of(taken.first), names.LABEL))
    found = look(taken, Mode.ALL)
    assert (list(found.base.damaged), found.newest_good is not None) == ([id_of(taken.first)], True)
    assert not any("stores damaged pages anew" in step for step in found.next_steps)
    flip(taken.work.store, names.base_key(id_of(taken.second), names.LABEL))
    assert any("stores damaged pages anew" in step for step in look(taken, Mode.ALL).next_steps)


def test_a_base_backup_whose_own_wal_is_damaged_heals_nothing(taken: Taken) -> None:
    store = taken.work.store
    flip(store, names.base_key(id_of(taken.first), names.LABEL))
    assert look(taken, Mode.ALL).newest_good is not None
    flip(store, names.archive_key(taken.second.system_id, taken.second.last_segment, names.STORED))
    found = look(taken, Mode.ALL)
    assert found.newest_good is None
    assert "healed:" not in told(found)


def test_pages_that_were_damaged_on_the_server_are_for_somebody_to_look_at(taken: Taken) -> None:
    """All of it is as it was committed, and it is no good base backup."""
    key = names.base_key(id_of(taken.second), names.BASE_SUMMARY)
    pages = msgspec.structs.replace(taken.second.pages, damaged=3)
    taken.work.store.put(key, encode(msgspec.structs.replace(taken.second, pages=pages)))
    found = look(taken, Mode.ALL)
    said = f"the base backup {taken.second.id}: 3 pages had wrong checksums when it was taken"
    assert first_line(found).endswith(f"; but somebody should look: {said}")
    assert verified_document(found, "x")["problems"] == [said]
    with pytest.raises(IncompleteError, match="3 pages had wrong checksums"):
        found.raise_worst()


def test_a_kind_that_was_never_looked_at_is_not_covered(taken: Taken) -> None:
    """However often it was tried: `status` and `doctor` know the report alone."""
    away = failing(taken, StoreError("it is refused"), lambda call, key: call == "folders" and key.startswith("wal/"))
    for _ in range(2):
        found = look(away, Mode.ALL)
        assert (found.files.units, found.cut) == (0, True)
        assert "100% of the bytes that were looked at within 7 days (VERIFY_CYCLE_DAYS)" in told(found)
        assert "all was read now" not in told(found)
        assert any(line.split() == ["WAL:", "not", "looked", "at"] for line in told(found).splitlines())
    report = report_of(taken.work)
    assert never_in_turn(report) == ["wal"]
    assert "; wal never read in turn; no damage known" in report_text(report, report.ended_at)
    look(taken)
    assert never_in_turn(report_of(taken.work)) == []
    assert never_in_turn(msgspec.structs.replace(report, mode="sample")) == []


def test_a_look_that_was_cut_short_does_not_shrink_what_is_there(seed: Taken) -> None:
    """Half of the WAL that was counted, all of it covered, is not all of the WAL covered."""
    clock = LaterClock()
    taken = seed.copied(clock)
    look(taken, Mode.ALL)
    before = report_of(taken.work)
    clock.days = 5.0
    away = failing(taken, StoreUnavailableError("later"), lambda call, key: (call, key) == ("get_stream", taken.segments[1]))
    found = look(away, Mode.ALL)
    assert found.cut
    assert "; NOT all looked at" in told(found)
    assert 0 < found.files.units < before.wal.units
    after = report_of(taken.work)
    assert after.wal == before.wal
    assert overdue(after, clock.now() + 3 * DAY) is not None


def test_the_damaged_one_of_two_copies_is_read_again(taken: Taken, tmp_path: Path) -> None:
    """A file that lies there plain and sealed: what is known is which of the two is damaged."""
    key = make_keys(tmp_path)["operator"]
    store, plain = taken.work.store, taken.segments[1]
    sealed = f"{plain}.age"
    data = bytearray(b"".join(seal([store.get(plain)], [key.public])))
    data[-1] ^= 1
    store.put(sealed, bytes(data))
    both = replace(taken, work=replace(taken.work, settings=replace(taken.work.settings, encryption_identity_file=key.path)))
    assert look(both, Mode.ALL).files.damaged == {sealed}
    assert look(both).files.damaged == {sealed}, "known, so read again"


def test_nothing_is_called_there_where_the_wal_could_not_be_looked_at(taken: Taken) -> None:
    flip(taken.work.store, names.base_key(id_of(taken.first), names.LABEL))
    away = failing(taken, StoreError("it is refused"), lambda call, key: call == "folders" and key.startswith("wal/"))
    found = look(away)
    assert first_line(found) == "DAMAGED: 1 damaged base backup; which instants are lost was not found out"
    assert "still there" not in told(found)
    assert verified_document(found, "x")["restorable"] == []


def test_of_dumps_alone_no_window_is_told(taken: Taken) -> None:
    store = taken.work.store
    store.delete([info.key for info in store.list("") if not info.key.startswith((dump_names.DATABASE_FOLDER, "repository"))])
    flip(store, taken.dump)
    assert first_line(look(taken, Mode.ALL)) == "DAMAGED: 1 damaged dump"


def test_a_base_verify_rounds_no_share_up_to_all(taken: Taken) -> None:
    verified = replace(verify_base(noting(taken.work), id_of(taken.first), share=1), share=0.9999, files=0)
    assert "99% of its packs' bytes were read" in base_text(verified)
