"""The POSIX-sh scripts that PostgreSQL runs where `wal archive` and `wal serve` answer, in a container without Python too.

The manifests have copies of them (infrastructure/k8s/components), since kustomize reads nothing outside its folder.
"""

from pathlib import Path

ARCHIVE_SHIM, RESTORE_SHIM = (Path(__file__).with_name(name) for name in ("archive.sh", "restore.sh"))
