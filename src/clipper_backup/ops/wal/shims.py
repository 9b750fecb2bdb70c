"""What runs, and what is read, in a PostgreSQL container without Python: POSIX-sh scripts, and its pg_hba.conf.

The manifests have copies of them (infrastructure/k8s), since kubectl and kustomize read nothing outside their folder.
"""

from pathlib import Path

ARCHIVE_SHIM, RESTORE_SHIM = (Path(__file__).with_name(name) for name in ("archive.sh", "restore.sh"))
"""What PostgreSQL runs where `wal archive` and `wal serve` answer."""
START_SHIM = Path(__file__).with_name("start.sh")
"""Starts the image's own entry point with archiving; HBA_FILE is the pg_hba.conf that it names."""
HBA_FILE = Path(__file__).with_name("pg_hba.conf")
