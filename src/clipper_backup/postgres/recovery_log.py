"""What a recovering server says of itself, read from its log in English (xlogrecovery.c, xlogarchive.c, xlog.c of 15 to 18)."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from clipper_backup.values import Lsn, Timeline

_LSN = r"(?P<lsn>[0-9A-F]{1,8}/[0-9A-F]{1,8})"
_REPLAYED = re.compile(rf"LOG:  redo (?:starts at|in progress, elapsed time: \S+ s, current LSN:|done at) {_LSN}")
_CONSISTENT = re.compile(rf"LOG:  consistent recovery state reached at {_LSN}")
_STOPPING = re.compile(r"LOG:  (?P<reason>recovery stopping (?:before|after|at) .*)")
_LAST_COMMIT = re.compile(
    r"LOG:  last completed transaction was at log time "
    r"(?P<time>\d{4,}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)(?P<zone>[+-]\d\d(?::\d\d)?)"
)
_TIMELINE = re.compile(r"LOG:  selected new timeline ID: (?P<timeline>\d+)")
_FETCH = re.compile(
    r'FATAL:  could not restore file "(?P<file>[^"]*)" from archive: '
    r"child process (?:exited with exit code (?P<code>\d+)|was terminated by signal (?P<signal>\d+))"
)
_FATAL = re.compile(r"(?:FATAL|PANIC):  (?P<words>.*)")


@dataclass(frozen=True, slots=True)
class FailedFetch:
    """A restore_command that ended recovery: which file it was to fetch, and its exit code (128 + n for signal n)."""

    file: str
    exit_code: int


class RecoveryLog:
    """The lines read so far, one after the other; what was not said yet is None.

    `replayed` is the latest LSN that was named, at the start of a record; while nothing but WAL is read it follows once a second.
    `last_commit_at` is by the source's clock.
    """

    def __init__(self) -> None:
        self.replayed: Lsn | None = None
        self.consistent_at: Lsn | None = None
        self.stopping: str | None = None
        self.last_commit_at: datetime | None = None
        self.new_timeline: Timeline | None = None
        self.failed_fetch: FailedFetch | None = None
        self.fatal: str | None = None

    def read(self, line: str) -> None:
        """Take note of a line, with whatever stands before its level."""
        if match := _REPLAYED.search(line):
            self.replayed = Lsn.parse(match["lsn"])
        elif match := _CONSISTENT.search(line):
            self.consistent_at = Lsn.parse(match["lsn"])
        elif match := _STOPPING.search(line):
            self.stopping = match["reason"]
        elif match := _LAST_COMMIT.search(line):
            self.last_commit_at = datetime.fromisoformat(match["time"] + match["zone"]).astimezone(UTC)
        elif match := _TIMELINE.search(line):
            self.new_timeline = Timeline(int(match["timeline"]))
        elif match := _FETCH.search(line):
            code = int(match["code"]) if match["code"] else 128 + int(match["signal"])
            self.failed_fetch = FailedFetch(match["file"], code)
        elif self.fatal is None and (match := _FATAL.search(line)):
            self.fatal = match["words"]
