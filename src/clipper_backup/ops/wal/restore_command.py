"""What stands in restore_command: `wal fetch` or its shim, and what turns its codes into those that PostgreSQL knows."""

import shlex
from collections.abc import Sequence
from pathlib import Path

_PLANNED = "case $? in 0) ;; 44) exit 1 ;; *) exit 255 ;; esac"
"""44 is "missing behind the end". A Python or a shell that never started ends with 1, 2 or 127: that is no "missing"."""
_STANDBY = "[ $? -eq 0 ] || exit 1"
"""A standby is ended by more than 125, and should ask again instead."""


def restore_command(fetch: Sequence[str | Path], *, standby: bool = False) -> str:
    """The setting's value (not quoted for a file) that runs the words of *fetch* with %f and %p behind them.

    Those are `clipper-backup wal fetch --restore-folder DIR`, or `sh DIR/restore.sh HANDSHAKE` (`wal serve`).
    """
    words = " ".join(shlex.quote(str(word)).replace("%", "%%") for word in fetch)
    return f'{words} "%f" "%p"; {_STANDBY if standby else _PLANNED}'
