"""`base create` against real servers: what it stores is what the server had, and what it says of it is true."""

import hashlib
import json
from collections.abc import Iterator

import pytest

from clipper_backup.format.compression import decompress_bytes
from clipper_backup.format.manifest import File
from fixtures.base import Cluster, archived_cluster, backed_up, contents_of, work_for
from fixtures.postgres import sql


@pytest.fixture(scope="module", params=[15, 18])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with archived_cluster(request.param) as cluster:
        yield cluster


def test_what_is_stored_is_what_the_server_said_it_sent(cluster: Cluster) -> None:
    sql(cluster.server, "postgres", "CREATE TABLE IF NOT EXISTS t AS SELECT n, md5(n::text) FROM generate_series(1, 100000) n")
    work = work_for(cluster)
    summary = backed_up(cluster, work).summary
    contents = contents_of(work, summary)
    key = next(stored.key for stored in summary.objects if stored.role == "server_manifest")
    listed = {entry["Path"].encode(): entry for entry in json.loads(decompress_bytes(work.store.get(key), key))["Files"]}
    own = {b"backup_label", b"tablespace_map"}
    assert {name for name, (entry, _) in contents.items() if isinstance(entry, File)} == listed.keys() - own
    for name in listed.keys() - own:
        assert hashlib.sha256(contents[name][1]).hexdigest() == listed[name]["Checksum"], name
    print(summary)
