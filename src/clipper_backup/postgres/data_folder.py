"""A server's data folder as its archiver finds it: which system it is, and the files in pg_wal, checked as they are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError, IntegrityError, MissingError, UsageError
from clipper_backup.postgres.control_file import ControlFile, State
from clipper_backup.postgres.history import Ancestor, is_made, parse_history
from clipper_backup.postgres.wal_files import FileIdentity, identify, read_unchanged
from clipper_backup.postgres.wal_pages import PageCheck, WalLayout, begins_anew
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Kind, Segment, classify, history_name

WAL_FOLDER = "pg_wal"
SAVED_FACTS = ("global/pg_control", "PG_VERSION")
"""What of a data folder tells whose WAL lies in it; beside WAL that a restore saved, both lie in one folder."""
NO_CONTROL_HINT = (
    "its pg_wal may be whole: restore the cluster into another folder, copy global/pg_control from there, and `clipper-backup wal"
    " push` and `restore --replace` take what was never archived; start no server on it"
)
"""When pg_control is damaged: who it is, and how large its segments are, any other copy of the cluster says as well."""
_READ_TRIES = 10
_AGAIN_SECONDS = 0.02
_SMALL_BYTES = 1 << 20
"""Histories and backup files have some hundred bytes."""


def is_saved_wal(folder: Path) -> bool:
    """Whether a restore saved a server's WAL in *folder*."""
    return all((folder / Path(name).name).is_file() for name in SAVED_FACTS)


class DataFolder:
    """PGDATA, only read. Its control file is read anew for each question, since the server writes it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.wal = path / WAL_FOLDER
        self.clock = clock
        self._control, self._version = (path / name for name in SAVED_FACTS)

    @classmethod
    def of_wal(cls, folder: Path, clock: Clock) -> "DataFolder":
        """The one whose WAL lies in *folder*: a pg_wal, or what a restore saved of one, with what tells whose it was."""
        if not is_saved_wal(folder):
            return cls(folder.parent, clock)
        found = cls(folder, clock)
        found.wal = folder
        found._control, found._version = (folder / Path(name).name for name in SAVED_FACTS)
        return found

    def control(self) -> ControlFile:
        """The control file; read again where the server was just writing it."""
        path = self._control
        for tries_left in reversed(range(_READ_TRIES)):
            try:
                return ControlFile.parse(_read_small(path), str(path))
            except IntegrityError:
                if not tries_left:
                    raise
            self.clock.sleep(_AGAIN_SECONDS)
        raise AssertionError("the last try returned or raised")

    def layout(self) -> WalLayout:
        """What its WAL must look like; MissingError when this is no data folder."""
        try:
            control = self.control()
            version = _read_small(self._version).decode("ascii", "replace").strip()
        except MissingError as error:
            raise MissingError(
                f"{self.path.absolute()} is no data folder of PostgreSQL: {error.message}",
                hints=["name the file by its full path, or as %p with PGDATA as the working directory, as PostgreSQL does"],
            ) from error
        except IntegrityError as error:
            raise IntegrityError(error.message, hints=[*error.hints, NO_CONTROL_HINT]) from error
        if not version.isdigit():
            raise IntegrityError(f"{self._version} names no major version: {version!r}")
        return WalLayout(int(version), int(control.system_id), control.segment_bytes, control.wal_page_bytes)

    def wrote_its_wal(self) -> bool:
        """Whether all in pg_wal is this server's own: it runs, or died, in production. A recovering one takes from archives."""
        return self.control().state is State.IN_PRODUCTION

    def history(self, timeline: Timeline) -> bytes | None:
        """The history file of *timeline* in pg_wal; None where there is none, or only one that a restore made."""
        try:
            data = _read_small(self.wal / history_name(timeline))
        except MissingError:
            return None
        return None if is_made(data) else data


@dataclass(frozen=True, slots=True)
class WalFile:
    """A file of pg_wal that goes into an archive, in the state in which it was first looked at."""

    path: Path
    identity: FileIdentity
    layout: WalLayout
    ancestors: tuple[Ancestor, ...] = ()
    _anew: list[bool] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def find(cls, path: Path, layout: WalLayout, ancestors: Sequence[Ancestor] = ()) -> "WalFile":
        """The file at *path*; *ancestors* are those of a segment's timeline. MissingError when there is none."""
        return cls(path, identify(path), layout, tuple(ancestors))

    @property
    def name(self) -> str:
        """What PostgreSQL calls it."""
        return self.path.name

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return self.identity.size_bytes

    @property
    def begins_anew(self) -> bool:
        """Whether no WAL leads to this segment, as far as it was read: pg_resetwal made its begin."""
        return any(self._anew)

    def read(self) -> Iterator[bytes]:
        """Its content, checked by what its name says it is.

        IntegrityError for a segment with a page of other WAL, or a history that makes no sense; ChangedError when it is not
        the same file in the same state at the end. What came before is worth nothing then.
        """
        kind = classify(self.name)
        pieces = read_unchanged(self.path, self.identity)
        if kind is Kind.SEGMENT:
            return self._read_pages(pieces)
        if kind is Kind.PARTIAL:
            return self._read_partial(pieces)
        if kind is Kind.HISTORY:
            return self._read_history(pieces)
        if kind is Kind.BACKUP:
            return iter(pieces)
        raise UsageError(f"not the name of a file that PostgreSQL archives: {self.name!r}")

    def _check(self, ancestors: Sequence[Ancestor] | None) -> PageCheck:
        segment = Segment.parse(self.name[:24], self.layout.segment_bytes)
        if self.size_bytes != self.layout.segment_bytes:
            raise IntegrityError(
                f"{self.path} has {self.size_bytes} bytes, a segment of this server has {self.layout.segment_bytes}"
            )
        return PageCheck(segment, self.layout, ancestors, str(self.path))

    def _read_pages(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        check = self._check(self.ancestors)
        for number, piece in enumerate(pieces):
            check.feed(piece)
            if number == 0:
                self._anew.append(begins_anew(piece))
            yield piece
        check.finish()

    def _read_partial(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        check: PageCheck | None = self._check(None)  # a history that is missing must not stop an archiver (W6)
        for piece in pieces:
            if check is not None:
                check.feed(piece[: self.layout.page_bytes])  # behind its end anything may lie
                check = None
            yield piece

    def _read_history(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        data = b"".join(pieces)
        parse_history(data, self.name)
        yield data


def _read_small(path: Path) -> bytes:
    identity = identify(path)
    if identity.size_bytes > _SMALL_BYTES:
        raise IntegrityError(f"{path} has {identity.size_bytes} bytes: it is not what its name says")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ClipperError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
