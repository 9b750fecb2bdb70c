"""What a postmaster says of itself in postmaster.pid (pidfile.h of PostgreSQL 15 to 18)."""

import os
from pathlib import Path

_STATUS = 7
"""Its line, counted from 0: LOCK_FILE_LINE_PM_STATUS."""
_UP = frozenset({"ready", "standby"})
"""Recovery goes on, with clients or (hot_standby off) without; before that it says `starting`, at its end `stopping`."""


def is_up(data: Path) -> bool:
    """Whether the server of this data folder has started, as far as it says: its recovery, if any, knows its timeline."""
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return len(lines) > _STATUS and lines[_STATUS].strip() in _UP


def is_served(data: Path) -> bool:
    """Whether a server may run on this data folder; a killed one left its postmaster.pid. No error where we may not read."""
    return os.path.exists(data / "postmaster.pid")  # noqa: PTH110  Path.exists raises PermissionError
