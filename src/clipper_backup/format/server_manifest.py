"""A `backup_manifest` as PostgreSQL's own programs read it ("Backup Manifest Format" in its manual).

It names each file with its size; a checksum stands there only where it costs nothing to know. What was stored is shown by our
own manifest, with a digest for every byte.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from clipper_backup.values import Lsn, Timeline

_SYSTEM_SINCE = 17
"""Programs of older versions read manifests of version 1 only, which have no system identifier."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file as the manifest names it: its path from PGDATA on, seconds since 1970, and its *content* where that is at hand."""

    path: bytes
    size_bytes: int
    modified_at: int
    content: bytes | None = None


def write_server_manifest(
    files: Iterable[ManifestFile], *, major: int, system_id: str, timeline: Timeline, start: Lsn, stop: Lsn
) -> Iterator[bytes]:
    """The manifest in pieces; the last line is the checksum of all before it."""
    digest = hashlib.sha256()
    for piece in _lines(files, major, system_id, timeline, start, stop):
        data = piece.encode()
        digest.update(data)
        yield data
    yield f'"Manifest-Checksum": "{digest.hexdigest()}"}}\n'.encode()


def _lines(
    files: Iterable[ManifestFile], major: int, system_id: str, timeline: Timeline, start: Lsn, stop: Lsn
) -> Iterator[str]:  # fmt: skip
    if major >= _SYSTEM_SINCE:
        yield f'{{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": {system_id},\n"Files": ['
    else:
        yield '{ "PostgreSQL-Backup-Manifest-Version": 1,\n"Files": ['
    separator = "\n"
    for file in files:
        yield separator + _file(file)
        separator = ",\n"
    walled = f'{{ "Timeline": {int(timeline)}, "Start-LSN": "{start}", "End-LSN": "{stop}" }}'
    yield f'\n],\n"WAL-Ranges": [\n{walled}\n],\n'


def _file(file: ManifestFile) -> str:
    try:
        path = f'"Path": {json.dumps(file.path.decode(), ensure_ascii=False)}'
    except UnicodeDecodeError:
        path = f'"Encoded-Path": "{file.path.hex()}"'
    modified = datetime.fromtimestamp(file.modified_at, UTC).strftime("%Y-%m-%d %H:%M:%S GMT")
    said = f'{{ {path}, "Size": {file.size_bytes}, "Last-Modified": "{modified}"'
    if file.content is not None:
        said += f', "Checksum-Algorithm": "SHA256", "Checksum": "{hashlib.sha256(file.content).hexdigest()}"'
    return said + " }"
