"""The server's own WAL, streamed from a slot that holds it."""

import os
from collections.abc import Iterator

import pytest

from clipper_backup.errors import ServerError
from clipper_backup.postgres.replication import Replication, identify
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.postgres.wal_stream import HeldWal
from clipper_backup.values import Secret, Timeline
from clipper_backup.wal_names import Segment
from fixtures.postgres import FAST, PASSWORD, login_to, private_folder, server_binaries, sql

SEGMENT_BYTES = 1 << 20


@pytest.fixture(scope="module", params=[15, 18])
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    with (
        private_folder() as folder,
        PrivateServer(folder / "server", server_binaries(request.param), environment=os.environ, port=0,
                      settings=FAST | {"autovacuum": "off", "min_wal_size": "2MB"}) as server,
    ):  # fmt: skip
        server.initdb(password=Secret(PASSWORD), sync=False, wal_segment_mib=1)
        server.start()
        yield server


def switch(server: PrivateServer) -> None:
    """Write something, and begin the next segment."""
    sql(server, "postgres", "SELECT txid_current()")
    sql(server, "postgres", "SELECT pg_switch_wal()")


def current(server: PrivateServer) -> Segment:
    with Replication(login_to(server)) as replication:
        _, timeline, lsn = identify(replication)
    return Segment.holding(timeline, lsn, SEGMENT_BYTES)


def test_segments_are_those_in_pg_wal_and_stay_as_long_as_they_are_held(server: PrivateServer) -> None:
    with HeldWal(login_to(server)) as held:
        first = current(server)
        for _ in range(4):
            switch(server)
        last = current(server).previous()
        expected = {each: (server.data / "pg_wal" / each.name).read_bytes() for each in (first, last)}
        sql(server, "postgres", "CHECKPOINT")  # takes what nobody holds
        assert last.number >= first.number + 3
        for segment in (first, last, first):
            assert b"".join(held.read(segment)) == expected[segment]
    sql(server, "postgres", "CHECKPOINT")
    with HeldWal(login_to(server)) as held, pytest.raises(ServerError, match="already been removed"):
        next(held.read(first))


def test_another_timeline_is_refused(server: PrivateServer) -> None:
    segment = current(server)
    with HeldWal(login_to(server)) as held, pytest.raises(ServerError, match="timeline 9"):
        next(held.read(Segment(Timeline(9), segment.number, SEGMENT_BYTES)))
