"""What stands in archive_command where `wal archive` answers: a POSIX-sh script, in a container without Python too."""

from pathlib import Path

ARCHIVE_SHIM = "archive.sh"


def archive_shim() -> str:
    """The script; `sh archive.sh HANDSHAKE %p` is the setting."""
    return Path(__file__).with_name(ARCHIVE_SHIM).read_text(encoding="utf-8")
