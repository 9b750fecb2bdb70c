"""`global/pg_control`, read as PostgreSQL 15 to 18 write it (catalog/pg_control.h). Its offsets: repository-format.md."""

import struct
from dataclasses import dataclass
from enum import IntEnum

from clipper_backup.errors import IntegrityError
from clipper_backup.values import Lsn, Timeline

_CRC_AT = {1300: 288, 1700: 288, 1800: 292}
"""Control version -> where the checksum lies: 1300 is PostgreSQL 13 to 16, 1700 and 1800 are 17 and 18."""
_HEAD = struct.Struct("<QIII")
_SETTINGS = struct.Struct("<iB3xiiiii?")
_SIZES = struct.Struct("<IIII")


class State(IntEnum):
    """What a server was doing when it last wrote the file (DBState)."""

    STARTING = 0
    SHUT_DOWN = 1
    SHUT_DOWN_IN_RECOVERY = 2
    SHUTTING_DOWN = 3
    IN_CRASH_RECOVERY = 4
    IN_ARCHIVE_RECOVERY = 5
    IN_PRODUCTION = 6


@dataclass(frozen=True, slots=True)
class ControlFile:
    """What we need of it. Sizes in bytes, but `relation_segment_pages`. `checkpoint` is where the latest one's record begins.

    `redo` and `timeline` are that checkpoint's. The five settings are those that a standby must have at least (rule 64).
    """

    system_id: str
    version: int
    catalog: int
    state: State
    checkpoint: Lsn
    redo: Lsn
    timeline: Timeline
    minimum_recovery_end: Lsn
    wal_level: int
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    page_bytes: int
    relation_segment_pages: int
    wal_page_bytes: int
    segment_bytes: int
    checksums: bool

    @classmethod
    def parse(cls, data: bytes, name: str = "global/pg_control") -> "ControlFile":
        """Read the file's bytes (8 kB, mostly zeros). IntegrityError when it is damaged or of an unknown version."""
        if len(data) < max(_CRC_AT.values()) + 4:
            raise IntegrityError(f"{name} has {len(data)} bytes: it is cut short")
        system_id, version, catalog, state = _HEAD.unpack_from(data)
        crc_at = _CRC_AT.get(version)
        if crc_at is None:
            raise IntegrityError(
                f"{name} has the version {version}, which is none of PostgreSQL 15 to 18",
                hints=["install the version of clipper-backup that knows this PostgreSQL"],
            )
        if crc32c(data[:crc_at]) != struct.unpack_from("<I", data, crc_at)[0]:
            raise IntegrityError(
                f"{name} is damaged: its checksum does not fit", hints=["when it was copied from a running server: read it again"]
            )
        level, _, *settings = _SETTINGS.unpack_from(data, 172)
        page, relation_segment, wal_page, segment = _SIZES.unpack_from(data, 216)
        checkpoint, redo, timeline = struct.unpack_from("<QQI", data, 32)
        return cls(
            system_id=str(system_id),
            version=version,
            catalog=catalog,
            state=State(state),
            checkpoint=Lsn(checkpoint),
            redo=Lsn(redo),
            timeline=Timeline(timeline),
            minimum_recovery_end=Lsn(struct.unpack_from("<Q", data, 136)[0]),
            wal_level=level,
            max_connections=settings[0],
            max_worker_processes=settings[1],
            max_wal_senders=settings[2],
            max_prepared_transactions=settings[3],
            max_locks_per_transaction=settings[4],
            page_bytes=page,
            relation_segment_pages=relation_segment,
            wal_page_bytes=wal_page,
            segment_bytes=segment,
            checksums=struct.unpack_from("<I", data, 252)[0] != 0,
        )


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit: 292 bytes are not worth the 5 ms that importing a library costs each `wal push`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
