"""The record that we say recovery stops at is the one at which a real server stops."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.format.physical_names import STORED, archive_key
from clipper_backup.postgres.control_file import ControlFile
from clipper_backup.postgres.history import parse_history
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.postgres.wal_records import Kind, Record, RecordReader
from clipper_backup.repository.line_records import LineRecords
from clipper_backup.repository.lines import Line
from clipper_backup.repository.stops import Stop, StopAt, StopSearch
from clipper_backup.repository.times import TimeMaps, TimesWriter
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment
from fixtures.postgres import FAST, connect, private_folder, server_binaries
from fixtures.sweeps import chosen

MIB = 1 << 20
SETTINGS = FAST | {"max_prepared_transactions": "4", "autovacuum": "off"}
TARGETS = [
    ("time", False),
    ("time", True),
    ("lsn", False),
    ("lsn", True),
    ("xid", False),
    ("xid", True),
    ("prepared", False),
    ("name", False),
]
LOAD = (
    "CREATE TABLE many (n int, filling text)",
    "DO $$ BEGIN FOR n IN 1..40 LOOP INSERT INTO many VALUES (n, repeat('x', 30000)); COMMIT; END LOOP; END $$",
    "BEGIN", "INSERT INTO many VALUES (41)", "PREPARE TRANSACTION 'both'",
    "SELECT pg_create_restore_point('in the middle')",
    "SELECT pg_logical_emit_message(false, '', repeat('a record over two segments', 60000))",
    "COMMIT PREPARED 'both'",
    "DO $$ BEGIN FOR n IN 42..80 LOOP INSERT INTO many VALUES (n, repeat('x', 30000)); COMMIT; END LOOP; END $$",
)  # fmt: skip


@dataclass
class Origin:
    """A server that is stopped: `cold` is a copy of it from before the load, `archive` holds its segments, plain."""

    folder: Path
    cold: Path
    archive: Path
    major: int

    @property
    def start(self) -> Lsn:
        """Where recovery of the copy begins."""
        return ControlFile.parse((self.cold / "global" / "pg_control").read_bytes()).redo

    def segments(self) -> list[Segment]:
        return sorted(Segment.parse(path.name, MIB) for path in self.archive.iterdir() if len(path.name) == 24)

    def read(self, segment: Segment) -> list[bytes] | None:
        path = self.archive / segment.name
        return [path.read_bytes()] if path.exists() else None

    def ends(self) -> list[Record]:
        reader = RecordReader()
        records = [record for segment in self.segments() for record in reader.read(segment, self.read(segment) or [])]
        return [record for record in records if record.start >= self.start]


@pytest.fixture(scope="module", params=[15, 18])
def origin(request: pytest.FixtureRequest) -> Iterator[Origin]:
    with private_folder() as folder:
        archive = folder / "archive"
        archive.mkdir()
        archive.chmod(0o777)
        archiving = {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"}
        with PrivateServer(
            folder / "server", server_binaries(request.param), environment=os.environ, settings=SETTINGS | archiving
        ) as server:
            server.initdb(wal_segment_mib=1, sync=False)
            found = Origin(folder, folder / "cold", archive, request.param)
            _copy(server.data, found.cold)
            server.start()
            with connect(server) as connection:
                for statement in LOAD:
                    connection.execute(statement.encode())
            server.stop()  # and archives the rest
        yield found


def _copy(source: Path, target: Path) -> None:
    """A copy of a data folder that is nobody's: everything with its owner."""
    shutil.copytree(source, target)
    for path in (source, *source.rglob("*")):
        there = target / path.relative_to(source)
        info = path.stat()
        os.chown(there, info.st_uid, info.st_gid)
        there.chmod(stat.S_IMODE(info.st_mode))


def _recovered_to(origin: Origin, wanted: dict[str, str], name: str) -> Lsn:
    """Where a server that recovers to that target leaves timeline 1."""
    folder = origin.folder / name
    data = folder / "data"
    folder.mkdir()
    os.chown(folder, origin.cold.stat().st_uid, -1)
    _copy(origin.cold, data)
    (data / "recovery.signal").touch()
    os.chown(data / "recovery.signal", origin.cold.stat().st_uid, -1)
    settings = SETTINGS | wanted
    settings |= {"restore_command": f"cp {origin.archive}/%f %p", "recovery_target_action": "promote", "hot_standby": "off"}
    with PrivateServer(folder, server_binaries(origin.major), environment=os.environ, data=data, settings=settings) as server:
        server.start()
        history = (data / "pg_wal" / "00000002.history").read_bytes()
    (ancestor,) = parse_history(history, "00000002.history")
    return ancestor.left_at


def _target(kind: str, exclusive: bool, ends: list[Record]) -> tuple[StopAt, dict[str, str]]:
    """A target in the middle of the load, as we are asked for it and as PostgreSQL is."""
    commits = [record for record in ends if record.kind is Kind.COMMIT]
    (point,) = (record for record in ends if record.kind is Kind.RESTORE_POINT)
    middle = commits[len(commits) // 3]
    prepared = next(record for record in commits if record.start > point.start)
    inclusive = {"recovery_target_inclusive": "off" if exclusive else "on"}
    match kind:
        case "time":
            assert middle.at is not None
            moment = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=middle.at)
            return StopAt(time=moment, exclusive=exclusive), inclusive | {
                "recovery_target_time": f"{moment:%Y-%m-%d %H:%M:%S.%f}+00"
            }
        case "lsn":
            lsn = Lsn(middle.start + 1)
            return StopAt(lsn=lsn, exclusive=exclusive), inclusive | {"recovery_target_lsn": str(lsn)}
        case "name":
            return StopAt(name="in the middle"), {"recovery_target_name": "in the middle"}
        case _:
            xid = (middle if kind == "xid" else prepared).xid
            return StopAt(xid=xid, exclusive=exclusive), inclusive | {"recovery_target_xid": str(xid)}


def _next_position(lsn: int) -> int:
    """Where the server goes on behind a record that ends there: aligned; the header of a page is not counted."""
    aligned = (lsn + 7) & ~7
    header = 40 if aligned // MIB * MIB == aligned // 8192 * 8192 else 24
    return aligned - header if aligned % 8192 == header else aligned


@pytest.mark.rule(59)
@pytest.mark.rule(60)
def test_recovery_stops_where_we_say(origin: Origin) -> None:
    store = MemoryStore(VirtualClock(datetime(2026, 11, 22, tzinfo=UTC)))
    for segment in origin.segments():
        store.put(archive_key("1", segment.name, STORED), b"stands for it")
    maps = TimeMaps(store, "1", MIB)
    writer = TimesWriter(maps, LineRecords(Line.of(Timeline(1), []), origin.read))
    for segment in origin.segments():
        assert writer.add(segment, linked=True)
    writer.flush()
    ends = origin.ends()
    for kind, exclusive in chosen(TARGETS, 2):
        wanted, settings = _target(kind, exclusive, ends)
        search = StopSearch(WalCatalog(store, "1", MIB), LineRecords(Line.of(Timeline(1), []), origin.read), maps)
        found = search.find(wanted, origin.start)
        assert isinstance(found, Stop)
        left_at = _recovered_to(origin, settings, f"{kind}-{exclusive}")
        expected = found.record.end if wanted.is_applied() else found.record.start
        assert _next_position(left_at) == _next_position(expected), (kind, exclusive, found)
