"""How a few lines of shell in the database's container ask a process beside it: files in a folder that both see.

    alive               seconds since 1970, written anew every few seconds: whoever answers is there
    requests/<id>       what is asked: words, one a line, and `end`; the id is unique, so an answer is to this request alone
    answers/<id>        `ok` or `no` and the first word asked about; then lines for the log. It appears whole, by rename

Whoever asked reads the answer at once, and starts no process to remove it: we do, after ANSWERED_SECONDS. They may go away, too:
what else is left behind is removed after LEFT_SECONDS, but what is being answered.
"""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError

BEAT_SECONDS = 5.0
DEAD_SECONDS = 30
"""The shims take whoever has not beaten for so long for dead."""
ANSWERED_SECONDS = 60.0
LEFT_SECONDS = 600.0
_BUSY_SECONDS, _BUSY_LOOK_SECONDS, _IDLE_LOOK_SECONDS = 1.0, 0.002, 0.02

_ID = re.compile("[0-9A-Za-z-]{8,64}")
_END = "end"
_FOLDER_MODE = 0o700
_FILE_MODE = 0o644
"""Whatever our umask is: whoever asks may be another user than root, and nobody else enters the folder."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question: its unique id, and the words of it."""

    id: str
    words: tuple[str, ...]


class Handshake:
    """The answering side. Its folder may be emptied at any time; it makes anew what it needs."""

    def __init__(self, folder: Path, clock: Clock, *, asked_by: Path) -> None:
        """What it makes belongs to whoever owns *asked_by* (PGDATA), should we be root: it is they who ask."""
        self._asked_by = asked_by
        self._alive, self._requests, self._answers = folder / "alive", folder / "requests", folder / "answers"
        self._clock = clock
        self._beaten_at = -BEAT_SECONDS
        self._swept_at = -LEFT_SECONDS
        self._asked_at = -_BUSY_SECONDS
        self._seen: frozenset[str] = frozenset()
        self._held: set[str] = set()
        self._answered: deque[tuple[float, str]] = deque()

    @property
    def look_seconds(self) -> float:
        """After how long to look for requests again: soon, where somebody asked just now and may ask again at once."""
        return _BUSY_LOOK_SECONDS if self._clock.monotonic() - self._asked_at < _BUSY_SECONDS else _IDLE_LOOK_SECONDS

    def beat(self) -> None:
        """Say that we are there, and make the folders, when it is time again. ClipperError when neither can be written."""
        now = self._clock.monotonic()
        self._remove_answered(now - ANSWERED_SECONDS)
        if now - self._beaten_at < BEAT_SECONDS and self._requests.is_dir() and self._alive.exists():
            return
        try:
            for folder in (self._requests, self._answers):
                if not folder.is_dir():
                    folder.mkdir(_FOLDER_MODE, parents=True)
                    if os.geteuid() == 0:
                        owner = self._asked_by.stat()
                        os.chown(folder, owner.st_uid, owner.st_gid)
            _write_whole(self._alive, f"{int(self._clock.now().timestamp())}\n")
        except OSError as error:
            raise _unusable(self._alive.parent, error) from error
        self._beaten_at = now
        if now - self._swept_at >= LEFT_SECONDS:
            self._swept_at = now
            self._sweep()

    def rest(self) -> None:
        """Say that we are gone: whoever asks now is told at once."""
        with suppress(OSError):
            self._alive.unlink(missing_ok=True)

    def requests(self) -> list[Request]:
        """What is asked and not answered yet, in no order; one that is still being written is left for the next look."""
        try:
            with os.scandir(self._requests) as entries:
                names = [entry.name for entry in entries]
        except OSError:
            return []  # the folder was removed: the next beat makes it anew
        if not self._seen.issuperset(names):
            self._asked_at = self._clock.monotonic()
        self._seen = frozenset(names)
        found = []
        for name in names:
            if _ID.fullmatch(name):
                with suppress(OSError, UnicodeDecodeError):
                    words = (self._requests / name).read_text(encoding="ascii").splitlines()
                    if len(words) > 1 and words[-1] == _END:
                        found.append(Request(name, tuple(words[:-1])))
        return found

    @contextmanager
    def held(self, request: Request) -> Iterator[None]:
        """While it is being answered, however long that takes, *request* stays: who asks takes its going for the end."""
        self._held.add(request.id)
        try:
            yield
        finally:
            self._held.discard(request.id)

    def answer(self, request: Request, *, ok: bool, lines: Sequence[str] = ()) -> None:
        """Answer *request*, once; it is gone when this returns. Who can no longer be answered asks again."""
        said = "\n".join([f"{'ok' if ok else 'no'} {request.words[0]}", *(" ".join(line.split()) for line in lines)])
        with suppress(OSError):
            _write_whole(self._answers / request.id, f"{said}\n")
            self._answered.append((self._clock.monotonic(), request.id))
            (self._requests / request.id).unlink(missing_ok=True)

    def _remove_answered(self, before: float) -> None:
        while self._answered and self._answered[0][0] <= before:
            with suppress(OSError):
                (self._answers / self._answered.popleft()[1]).unlink(missing_ok=True)

    def _sweep(self) -> None:
        oldest = self._clock.now().timestamp() - LEFT_SECONDS
        for folder in (self._requests, self._answers):
            with suppress(OSError):
                for path in folder.iterdir():
                    with suppress(OSError):
                        if path.stat().st_mtime < oldest and path.name not in self._held:
                            path.unlink()


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(_FILE_MODE)
    draft.rename(path)


def _unusable(folder: Path, error: OSError) -> ClipperError:
    return ClipperError(
        f"cannot use the handshake folder {folder}: {(error.strerror or str(error)).lower()}",
        hints=["it is a volume that this process and the database's container share, and both run as the same user"],
    )
