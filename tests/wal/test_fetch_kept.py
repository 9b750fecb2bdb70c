"""`wal fetch` of what a dead primary left behind the archive's end: the archive's own word comes first."""

from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from clipper_backup.errors import ClipperError, IntegrityError, WalGapError
from clipper_backup.format import physical_names as keys
from clipper_backup.repository.restore_plan import KeptSegment, RestorePlan
from clipper_backup.wal_names import Segment
from fixtures.wal_archive import MIB, plain_of, segment_name
from fixtures.wal_restore import Restoring, make_plan

KEPT_IN = "saved-pg_wal-20261122-030000"
USED = 300_001


def plain(number: int) -> bytes:
    return plain_of(Segment.parse(segment_name(1, number), MIB))


def kept_plan(restoring: Restoring, *numbers: int, last: int | None = None) -> RestorePlan:
    """A plan that keeps these; of the last one only a part counts, and behind it lie old bytes."""
    folder = restoring.restore_folder / KEPT_IN
    folder.mkdir(parents=True)
    kept = []
    for number in numbers:
        used = USED if number == numbers[-1] else MIB
        (folder / segment_name(1, number)).write_bytes(plain(number))
        kept.append(KeptSegment(name=segment_name(1, number), used_bytes=used, digest=blake3(plain(number)[:used]).hexdigest()))
    plan = make_plan(last=None if last is None else (1, last), seen=(1, numbers[0] - 1) if last is None else None)
    return msgspec.structs.replace(plan, kept=kept, kept_in=KEPT_IN)


@pytest.mark.rule(54)
@pytest.mark.rule(102)
@pytest.mark.parametrize("last", [None, 6], ids=["to the end", "up to a target in it"])
def test_it_follows_on_the_archive_and_ends_in_zeros(restoring: Restoring, last: int | None) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.planned(kept_plan(restoring, 5, 6, last=last))
    assert [restoring.ask((1, number)) for number in (3, 4, 5)] == [plain(number) for number in (3, 4, 5)]
    assert restoring.ask((1, 6)) == plain(6)[:USED] + bytes(MIB - USED)
    assert restoring.ask((1, 6)) is not None
    assert restoring.ask((1, 7)) is None


@pytest.mark.rule(96)
def test_what_is_missing_before_it_is_a_gap(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.planned(kept_plan(restoring, 5))
    restoring.archive.lose(segment_name(1, 4), keys.STORED, keys.CLAIM)
    with pytest.raises(WalGapError, match="when the restore was planned, all was there up to 000000010000000000000004"):
        restoring.ask((1, 4))


@pytest.mark.rule(2)
def test_the_archives_own_segment_comes_first(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.planned(kept_plan(restoring, 5))
    restoring.archive.segment(1, 5, writer="the server itself")
    assert restoring.ask((1, 5)) != plain(5)[:USED] + bytes(MIB - USED)


@pytest.mark.rule(96)
def test_where_the_archive_goes_on_it_is_another_history(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.planned(kept_plan(restoring, 5))
    restoring.archive.segment(1, 6, writer="another server")
    with pytest.raises(WalGapError, match="is another history"):
        restoring.ask((1, 5))


@pytest.mark.rule(56)
def test_a_kept_file_that_is_not_what_it_was_ends_the_recovery(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 4)
    restoring.planned(kept_plan(restoring, 5))
    path = Path(restoring.restore_folder / KEPT_IN / segment_name(1, 5))
    path.write_bytes(bytes(MIB))
    with pytest.raises(IntegrityError, match="is not what it was"):
        restoring.ask((1, 5))
    path.unlink()
    with pytest.raises(ClipperError, match="cannot read"):
        restoring.ask((1, 5))
