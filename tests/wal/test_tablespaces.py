"""WAL that creates a tablespace in a folder that is not this restore's is not handed out (repository-wal.md, Tablespaces)."""

from pathlib import Path

import pytest

from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.tablespace_records import Created, search
from clipper_backup.wal_names import Segment
from fixtures.wal_archive import MIB
from fixtures.wal_bytes import WalWriter
from fixtures.wal_restore import TABLESPACE_OID as OID
from fixtures.wal_restore import Restoring, archive_tablespace


def created_in(segments: dict[Segment, bytes], page_bytes: int = 8192) -> list[Created]:
    """What is found, each once: a block that goes on shows what was found in the one before."""
    chunks = [data[at : at + 4 * page_bytes] for data in segments.values() for at in range(0, MIB, 4 * page_bytes)]
    return list(dict.fromkeys(search(chunks, page_bytes)))


@pytest.mark.rule(70)
@pytest.mark.parametrize("page_bytes", [1024, 8192])
def test_a_record_is_found_wherever_borders_of_pages_cut_it(page_bytes: int) -> None:
    writer, created = WalWriter(3, page_bytes=page_bytes), []
    for number in range(400):
        writer.other(number * 7 % 97)
        created.append(Created(OID + number, b"/" + b"x" * (number * 13 % 400)))
        writer.tablespace(created[-1].oid, created[-1].path)
    cuts = {-record.start % page_bytes for record in writer.records if record.start // page_bytes < record.end // page_bytes}
    assert cuts >= {8, 16, 24, 32} or page_bytes > 1024
    assert created_in(writer.segments(), page_bytes) == created


def test_what_only_looks_like_one_is_passed_over() -> None:
    writer = WalWriter(3)
    writer.tablespace(OID, b"/of another manager", manager=10)
    writer.tablespace(OID, b"/DROP TABLESPACE", info=0x10)
    real = writer.tablespace(OID, b"/real")
    writer.tablespace(OID, b"/with another CRC")
    segments = writer.segments()
    data = bytearray(segments[writer.first])
    data[writer.records[-1].start - writer.first.start + 40] ^= 1
    assert created_in({writer.first: bytes(data)}) == [Created(OID, b"/real")]
    assert real.start < writer.records[-1].start


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """The living server's tablespace."""
    (tmp_path / "space/PG_15_202209061").mkdir(parents=True)
    return tmp_path / "space"


@pytest.mark.rule(70)
def test_a_folder_that_is_taken_ends_recovery_before_the_segment_is_given(restoring: Restoring, others: Path) -> None:
    archive_tablespace(restoring, others)
    with pytest.raises(IntegrityError, match=f"tablespace {OID} was created in {others}, .* not empty here"):
        restoring.ask((1, 3))
    assert (restoring.target.exists(), restoring.links) == (False, [])
    with pytest.raises(IntegrityError, match="not empty here"):
        restoring.ask_as_standby((1, 3))
    assert not restoring.target.exists()


@pytest.mark.rule(70)
@pytest.mark.parametrize("behind", [8, 16, 24, 40, 64])
@pytest.mark.parametrize("kept", ["in pg_wal", "recycled", "removed"])
def test_a_record_over_the_border_of_segments_is_found_in_the_second(
    restoring: Restoring, others: Path, behind: int, kept: str
) -> None:
    archive_tablespace(restoring, others, behind=behind)
    before = restoring.ask((1, 3))
    assert before is not None
    name = restoring.links[0]
    if kept != "removed":
        (restoring.pg_wal / name).write_bytes(before if kept == "in pg_wal" else bytes(MIB))
    with pytest.raises(IntegrityError, match="not empty here"):
        restoring.ask((1, 4))
    assert (restoring.target.exists(), restoring.links) == (False, [name])


def test_what_began_before_the_first_segment_is_not_replayed(restoring: Restoring, others: Path) -> None:
    archive_tablespace(restoring, others, behind=40, first=4)
    assert restoring.ask((1, 4)) is not None


@pytest.mark.rule(70)
def test_an_empty_folder_or_one_that_this_server_fills_is_ours(restoring: Restoring, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    archive_tablespace(restoring, mine)
    with pytest.raises(IntegrityError, match="cannot be used here: no such file or directory"):
        restoring.ask((1, 3))
    mine.mkdir()
    assert restoring.ask((1, 3)) is not None
    (mine / "PG_15_202209061").mkdir()  # PostgreSQL replayed it
    (tmp_path / "pg_tblspc").mkdir()
    (tmp_path / f"pg_tblspc/{OID}").symlink_to(mine)
    assert restoring.ask((1, 3)) is not None, "it was started again"


@pytest.mark.rule(70)
def test_a_tablespace_that_was_moved_is_not_moved_back(restoring: Restoring, others: Path, tmp_path: Path) -> None:
    """It was created while the backup was taken: replay would lead its link to the place in the record."""
    archive_tablespace(restoring, others)
    (tmp_path / "moved").mkdir()
    (tmp_path / "pg_tblspc").mkdir()
    (tmp_path / f"pg_tblspc/{OID}").symlink_to(tmp_path / "moved")
    with pytest.raises(IntegrityError, match="not empty here"):
        restoring.ask((1, 3))
