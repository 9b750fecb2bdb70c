"""What we read of pg_control is what PostgreSQL's own program says of it."""

import os
import subprocess

import pytest

from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.binaries import find_binaries
from clipper_backup.postgres.control_file import ControlFile, State
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import Lsn


def said(server: PrivateServer) -> dict[str, str]:
    major = int((server.data / "PG_VERSION").read_text())
    program = find_binaries(tools=["pg_controldata"], exactly=major, environment=os.environ).program("pg_controldata")
    environment = {**os.environ, "LC_ALL": "C"}
    out = subprocess.run([program, str(server.data)], check=True, capture_output=True, text=True, env=environment).stdout
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in out.splitlines())}


@pytest.mark.rule(9)
def test_it_is_what_pg_controldata_says(postgres: PrivateServer) -> None:
    control = ControlFile.parse((postgres.data / "global/pg_control").read_bytes())
    told = said(postgres)
    assert told == told | {
        "Database system identifier": control.system_id,
        "pg_control version number": str(control.version),
        "Catalog version number": str(control.catalog),
        "Latest checkpoint location": str(control.checkpoint),
        "Latest checkpoint's REDO location": str(control.redo),
        "Latest checkpoint's TimeLineID": str(int(control.timeline)),
        "Minimum recovery ending location": str(control.minimum_recovery_end),
        "max_connections setting": str(control.max_connections),
        "max_worker_processes setting": str(control.max_worker_processes),
        "max_wal_senders setting": str(control.max_wal_senders),
        "max_prepared_xacts setting": str(control.max_prepared_transactions),
        "max_locks_per_xact setting": str(control.max_locks_per_transaction),
        "Database block size": str(control.page_bytes),
        "Blocks per segment of large relation": str(control.relation_segment_pages),
        "WAL block size": str(control.wal_page_bytes),
        "Bytes per WAL segment": str(control.segment_bytes),
        "Data page checksum version": str(int(control.checksums)),
    }
    assert control.state is State.IN_PRODUCTION
    assert control.redo <= control.checkpoint
    assert control.checkpoint > Lsn(0)


def test_every_flipped_byte_of_what_is_checked_is_seen(postgres15: PrivateServer) -> None:
    data = (postgres15.data / "global/pg_control").read_bytes()
    for at in range(292):
        with pytest.raises(IntegrityError, match="pg_control"):
            ControlFile.parse(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(IntegrityError, match="cut short"):
        ControlFile.parse(data[:200])
