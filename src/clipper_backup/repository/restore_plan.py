"""What a restore decided before it began, kept for `wal fetch`: docs/design/repository-wal.md, "What a restore reads".

The *restore folder* lies outside of PGDATA and only its owner may enter it. It holds `plan.json`, which is written once,
`links`, to which each segment that is handed out adds a line, and `turn`, which says whose request is the last one.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from clipper_backup.errors import ClipperError, IntegrityError, UsageError, WalGapError
from clipper_backup.format.base_documents import Count, Hex128, Hex256, LsnText, RunText, SystemNumber
from clipper_backup.format.documents import SCHEMA, Document, Time, decode, encode, register
from clipper_backup.format.wal_objects import NO_LINK
from clipper_backup.postgres.history import Ancestor
from clipper_backup.repository.lines import Line
from clipper_backup.values import Lsn, Timeline
from clipper_backup.wal_names import Segment

PLAN = "plan.json"
LINKS = "links"
TURN = "turn"
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class KeptSegment(Document, kw_only=True, frozen=True):
    """A segment that a dead primary left: the first `used_bytes` of its file count, with that BLAKE3; the rest is zeros."""

    name: str
    used_bytes: Count
    digest: Hex256


class RestorePlan(Document, kw_only=True, frozen=True):
    """`plan.json`: which WAL this restore takes, and where from.

    `timeline` is the target; with its `ancestors` (timeline and LSN, as its history has them) it gives the line. `first` is the
    segment of the backup's start LSN; `last` the one with the last byte of the record at which recovery stops, None for "to the
    end": then `seen` is the last one that was there when the plan was made, and recovery does not end before it. `settings` are
    what `wal fetch` needs besides the defaults, by name, as text; secrets are not among them, but the names of their files may
    be; `environment` is the same of variables that are no settings of ours. `kept` are segments that no archive has, in the
    folder `kept_in` of the restore folder; they follow on the archive's end. `line_recorded`: the base backup itself says
    that this is its line, so that recovery can do without that history's object. `own_links` are those of the backup's first
    and last segment, by name, as far as it has them.
    """

    schema: int = SCHEMA
    kind: Literal["restore-plan"] = "restore-plan"
    id: RunText
    made_at: Time
    software: str
    repository_id: Hex128
    backup_id: RunText
    system_id: SystemNumber
    segment_bytes: Count
    timeline: Annotated[int, msgspec.Meta(ge=1)]
    ancestors: list[tuple[Annotated[int, msgspec.Meta(ge=1)], LsnText]]
    first: str
    last: str | None
    seen: str | None = None
    own_links: dict[str, Hex128] = msgspec.field(default_factory=dict)
    kept: list[KeptSegment] = msgspec.field(default_factory=list)
    kept_in: str = ""
    line_recorded: bool = False
    unsigned: bool = False
    settings: dict[str, str]
    environment: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def target(self) -> Timeline:
        """The timeline that recovery_target_timeline names."""
        return Timeline(self.timeline)

    @property
    def line(self) -> Line:
        """The target's line."""
        return Line.of(self.target, self.left)

    @property
    def left(self) -> list[Ancestor]:
        """The timelines before the target, and where each was left."""
        return [Ancestor(Timeline(number), Lsn.parse(left_at)) for number, left_at in self.ancestors]

    @property
    def first_segment(self) -> Segment:
        """The first segment that recovery needs."""
        return Segment.parse(self.first, self.segment_bytes)

    @property
    def last_segment(self) -> Segment | None:
        """The last one; None to the end of what is there."""
        return None if self.last is None else Segment.parse(self.last, self.segment_bytes)

    @property
    def seen_segment(self) -> Segment | None:
        """The last one that was there when this was planned; None when `last` says where it ends."""
        return None if self.seen is None else Segment.parse(self.seen, self.segment_bytes)

    def kept_segment(self, segment: Segment) -> KeptSegment | None:
        """Of a segment that a dead primary left, what counts; None for any other."""
        return next((each for each in self.kept if each.name == segment.name), None)


register(RestorePlan, KeptSegment)


def keep_plan(folder: Path, plan: RestorePlan) -> None:
    """Make the restore folder and write the plan into it, durably. ClipperError where that cannot be.

    UsageError when there is one already: a restore does not continue another one's links.
    """
    try:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        folder.chmod(_FOLDER_MODE)
        for name, data in ((LINKS, b""), (TURN, b""), (PLAN, encode(plan))):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
            with open(descriptor, "wb") as file:  # noqa: PTH123  an open descriptor
                file.write(data)
                file.flush()
                os.fsync(descriptor)
        _sync_folder(folder)
    except FileExistsError as error:
        raise UsageError(f"{folder} holds a restore already", hints=["name an empty folder, or remove it"]) from error
    except OSError as error:
        raise ClipperError(f"cannot keep the restore's plan in {folder}: {error.strerror}") from error


def read_plan(folder: Path) -> RestorePlan:
    """The plan in *folder*. ClipperError when it cannot be read: that is never "no such segment"."""
    path = folder / PLAN
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClipperError(f"cannot read the restore's plan {path}: {error.strerror}", hints=[_FOLDER_HINT]) from error
    return decode(data, RestorePlan, str(path))


_FOLDER_HINT = "the folder was made by `clipper-backup restore`, and PostgreSQL's account must be able to read it"


@dataclass(frozen=True, slots=True)
class Linked:
    """A segment that was handed out: its own link, and that of the segment before it as it was known then."""

    segment: Segment
    link: bytes
    previous: bytes


_LINE = re.compile(rb"\n([0-9A-F]{24}) ([0-9a-f]{32}) ([0-9a-f]{32})\n")


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ClipperError(f"cannot open {path}: {error.strerror}", hints=[_FOLDER_HINT]) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


class Turn:
    """One request. PostgreSQL asks for one file at a time, but one of its earlier life may still be at work.

    That one must not put its file over the one that is being read now: PostgreSQL would take it for the end of the WAL.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TURN
        self._token = os.urandom(16)
        with _locked(self._path) as descriptor:
            os.pwrite(descriptor, self._token, 0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """For handing over: ClipperError when another request came since, and none comes meanwhile."""
        with _locked(self._path) as descriptor:
            if os.pread(descriptor, len(self._token), 0) != self._token:
                raise ClipperError("PostgreSQL has asked for another file since: this request is of an earlier life of it")
            yield


@contextmanager
def links_of(folder: Path, plan: RestorePlan) -> Iterator["Links"]:
    """The links that were handed out so far, for who holds the turn. ClipperError when they cannot be read or kept."""
    path = folder / LINKS
    with _locked(path) as descriptor:
        yield Links(path, descriptor, plan)


class Links:
    """The file of links: a line of 91 bytes for each segment that was handed out."""

    def __init__(self, path: Path, descriptor: int, plan: RestorePlan) -> None:
        self._path, self._descriptor, self._first, self._own = path, descriptor, plan.first_segment, plan.own_links
        try:
            data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        except OSError as error:
            raise ClipperError(f"cannot read {path}: {error.strerror}") from error
        # What follows the last line feed was written by a process that was killed then: nothing was handed out for it.
        self._lines = b"\n" + data[: data.rfind(b"\n") + 1]

    def add(self, linked: Linked) -> None:
        """Note a segment that is about to be handed out. WalGapError when a neighbour does not fit.

        IntegrityError for the backup's own first or last that is another one than it was taken with. One that is noted already
        must be the same; nothing is written then.
        """
        segment = linked.segment
        if self._own.get(segment.name, linked.link.hex()) != linked.link.hex():
            raise IntegrityError(
                f"{segment} is not the one that was there when the base backup was taken",
                hints=["it is of another history, or was archived anew: begin with another base backup"],
            )
        before = self._find(segment.previous()) if segment.number > 0 else None
        behind, known = self._find(segment.next()), self._find(segment)
        if before is not None and segment.number != self._first.number:
            must_fit(segment, before.link, linked.previous)
        if behind is not None and segment.number + 1 != self._first.number:
            must_fit(behind.segment, linked.link, behind.previous)
        if known is None:
            self._append(f"{segment.name} {linked.link.hex()} {linked.previous.hex()}\n".encode())
        elif known != linked:
            raise WalGapError(f"{segment} is not the one that this restore took before")

    def _find(self, segment: Segment) -> Linked | None:
        at = self._lines.find(f"\n{segment.name} ".encode())
        if at < 0:
            return None
        match = _LINE.match(self._lines, at)
        if match is None:
            raise IntegrityError(f"{self._path} is damaged: the line of {segment}", hints=["begin the restore again"])
        return Linked(segment, bytes.fromhex(match[2].decode()), bytes.fromhex(match[3].decode()))

    def _append(self, line: bytes) -> None:
        end = len(self._lines) - 1
        try:
            os.ftruncate(self._descriptor, end)
            if os.pwrite(self._descriptor, line, end) != len(line):
                raise ClipperError(f"cannot write {self._path}: its file system is full")
        except OSError as error:
            raise ClipperError(f"cannot write {self._path}: {error.strerror}") from error
        self._lines += line


def must_fit(segment: Segment, link: bytes, previous: bytes) -> None:
    """WalGapError unless *previous*, which *segment* has, is the *link* of the segment before it."""
    if previous != link or previous == NO_LINK:
        raise WalGapError(
            f"{segment} does not follow the segment before it in the archive: they come from different histories",
            hints=["`clipper-backup wal verify` says where the archive can be restored to"],
        )


def _sync_folder(folder: Path) -> None:
    for path in (folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
