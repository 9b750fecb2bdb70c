"""The backup_manifest of ours, as PostgreSQL's manual describes it."""

import hashlib
import json

import pytest

from clipper_backup.format.server_manifest import ManifestFile, write_server_manifest
from clipper_backup.values import Lsn, Timeline

FILES = (
    ManifestFile(b"backup_label", 5, 1_700_000_000, b"label"),
    ManifestFile('base/5/"q\\\u00fc'.encode(), 8192, 0),
    ManifestFile(b"base/5/\xff", 0, 1_700_000_000),
)


@pytest.mark.rule(36)
@pytest.mark.parametrize("major", [15, 16, 17, 18])
def test_it_names_all_files_and_ends_with_its_own_checksum(major: int) -> None:
    lsns = Lsn.parse("0/2000028"), Lsn.parse("1/A0")
    pieces = write_server_manifest(
        FILES, major=major, system_id="7711155930822877805", timeline=Timeline(3), start=lsns[0], stop=lsns[1]
    )  # fmt: skip
    data = b"".join(pieces)
    *_, last, nothing = data.split(b"\n")
    assert nothing == b""
    before = data[: -len(last) - 1]
    assert last == b'"Manifest-Checksum": "%s"}' % hashlib.sha256(before).hexdigest().encode()
    found = json.loads(data)
    assert found["PostgreSQL-Backup-Manifest-Version"] == (2 if major >= 17 else 1)
    assert found.get("System-Identifier") == (7711155930822877805 if major >= 17 else None)
    assert found["WAL-Ranges"] == [{"Timeline": 3, "Start-LSN": "0/2000028", "End-LSN": "1/A0"}]
    label, quoted, odd = found["Files"]
    assert label == {
        "Path": "backup_label",
        "Size": 5,
        "Last-Modified": "2023-11-14 22:13:20 GMT",
        "Checksum-Algorithm": "SHA256",
        "Checksum": hashlib.sha256(b"label").hexdigest(),
    }
    assert quoted == {"Path": 'base/5/"q\\\u00fc', "Size": 8192, "Last-Modified": "1970-01-01 00:00:00 GMT"}
    assert odd == {"Encoded-Path": "626173652f352fff", "Size": 0, "Last-Modified": "2023-11-14 22:13:20 GMT"}
