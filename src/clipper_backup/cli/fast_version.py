"""`--version`, without importing anything."""

from collections.abc import Sequence

from clipper_backup import __version__
from clipper_backup.cli import output
from clipper_backup.errors import UsageError


def run(words: Sequence[str]) -> int:
    """Print one line; *words* is what follows `--version`, which should be nothing."""
    if words:
        raise UsageError(f"--version stands alone, without {words[0]}", hints=["`clipper-backup version --json` says it as JSON"])
    output.answer(f"clipper-backup {__version__}\n")
    return 0
