"""Value types: positions and names that must not be mixed up with plain strings and numbers."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from clipper_backup.errors import UsageError

DUMP_ID_PREFIX = "postgres-backup-"
WORKING_PREFIX = "clipper_backup_restoring_"
"""How the name of a database begins that a restore is filling."""
_DUMP_ID = re.compile(r"postgres-backup-([0-9]{8})-([0-9]{6})")
_PLAIN_NAME = re.compile(r'(?!["\s])[^,\n]*(?<!\s)')
_ID_TIME = "%Y%m%d-%H%M%S"
_BACKUP_ID = re.compile(r"([0-9]{8})-([0-9]{6})-[0-9a-f]{8}")
_TIMELINE = re.compile("[0-9A-F]{8}")


def _id_time(date: str, time: str) -> datetime:
    """The time that eight and six digits say, in UTC; ValueError where there is none.

    strptime takes twenty times as long, and a prune reads thousands of ids.
    """
    return datetime(
        int(date[:4]), int(date[4:6]), int(date[6:]), int(time[:2]), int(time[2:4]), int(time[4:]), tzinfo=UTC
    )  # fmt: skip


class Lsn(int):
    """A position in the WAL, in bytes; printed the way PostgreSQL prints it (`16/B374D848`)."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read PostgreSQL's `XXXXXXXX/XXXXXXXX`; UsageError for anything else."""
        match = re.fullmatch(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", text)
        if match is None:
            raise UsageError(f"not a WAL position: {text!r}", hints=["a WAL position looks like 16/B374D848"])
        return cls((int(match[1], 16) << 32) + int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"


class Timeline(int):
    """The number of a timeline, from 1; printed as the eight digits that names of WAL files begin with (`0000000A`)."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read eight upper-case hexadecimal digits; UsageError for anything else, and for 0, which no timeline has."""
        if _TIMELINE.fullmatch(text) is None or int(text, 16) == 0:
            raise UsageError(f"not a timeline: {text!r}", hints=["a timeline looks like 00000001 in the names of WAL files"])
        return cls(int(text, 16))

    def __str__(self) -> str:
        return f"{int(self):08X}"


@dataclass(frozen=True, slots=True, order=True)
class DumpId:
    """The id of a dump, which is also the beginning of its objects' names: `postgres-backup-20261122-020000` (UTC).

    Ordered by its time.
    """

    at: datetime

    def __post_init__(self) -> None:
        if self.at.tzinfo is None or self.at.microsecond:
            raise ValueError(f"a dump id needs a time with a zone and whole seconds, not {self.at!r}")
        object.__setattr__(self, "at", self.at.astimezone(UTC))

    @classmethod
    def at_time(cls, moment: datetime) -> Self:
        """The id of a dump begun at *moment*, cut to the second."""
        return cls(moment.replace(microsecond=0))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an id; UsageError when it is none."""
        match = _DUMP_ID.fullmatch(text)
        if match is not None:
            try:
                return cls(_id_time(match[1], match[2]))
            except ValueError:
                pass
        raise UsageError(
            f"not a dump id: {text!r}",
            hints=["a dump id looks like postgres-backup-20261122-020000; `clipper-backup dump list` shows them"],
        )

    def next(self) -> Self:
        """The id one second later: taken when this one is."""
        return type(self)(self.at + timedelta(seconds=1))

    def __str__(self) -> str:
        return f"{DUMP_ID_PREFIX}{self.at.strftime(_ID_TIME)}"


@dataclass(frozen=True, slots=True, order=True)
class BackupId:
    """The id of a base backup and of the run that makes it: `20261122-020000-7f3a9c2e`, a time (UTC) and eight random digits.

    Ordered by its text, so by its time first.
    """

    text: str

    def __post_init__(self) -> None:
        self.at  # noqa: B018  a text without a time is no id

    @classmethod
    def make(cls, moment: datetime) -> Self:
        """A new one for what begins at *moment*, cut to the second."""
        return cls(f"{moment.astimezone(UTC).strftime(_ID_TIME)}-{os.urandom(4).hex()}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an id; UsageError when it is none."""
        try:
            return cls(text)
        except ValueError:
            raise UsageError(
                f"not the id of a base backup: {text!r}",
                hints=["an id looks like 20261122-020000-7f3a9c2e; `clipper-backup base list` shows them"],
            ) from None

    @property
    def at(self) -> datetime:
        """When it was made, by the store's clock; UTC."""
        match = _BACKUP_ID.fullmatch(self.text)
        if match is None:
            raise ValueError(f"not the id of a base backup: {self.text!r}")
        return _id_time(match[1], match[2])

    def __str__(self) -> str:
        return self.text


class Secret:
    """A value that never shows itself: not in logs, errors, reprs or JSON. `reveal()` where it is used."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself; call it only where it is handed to its consumer."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


_BYTE_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "kib": 2**10, "m": 10**6, "mb": 10**6, "mib": 2**20,
               "g": 10**9, "gb": 10**9, "gib": 2**30, "t": 10**12, "tb": 10**12, "tib": 2**40}  # fmt: skip


def parse_bytes(text: str) -> int:
    """`64MiB`, `1.5 GB` or a plain number, as bytes; ValueError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _BYTE_UNITS:
        raise ValueError(f"{text!r} is not a size like 64MiB")
    return int(float(match[1]) * _BYTE_UNITS[match[2].lower()])


def show_bytes(count: float) -> str:
    """*count* bytes for people: `1.4 GB`, powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def show_share(share: float) -> str:
    """A share, 0 to 1, as per cent; 100% for all alone."""
    return "100%" if share >= 1 else f"{min(99, round(100 * share))}%"


def show_count(count: int, one: str, several: str = "", *, grouped: bool = False) -> str:
    """So many of something: `1 segment`, `2 segments`; *several* for words that do more than take an s.

    *grouped* puts a comma between thousands.
    """
    return f"{count:{',' if grouped else ''}} {one if count == 1 else several or f'{one}s'}"


def show_seconds(seconds: float) -> str:
    """A duration for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def show_first(texts: Sequence[str]) -> str:
    """The first of some texts, and how many more there are."""
    return texts[0] + (f" (and {len(texts) - 1} more)" if len(texts) > 1 else "")


def show_names(names: Sequence[str]) -> str:
    """Names of databases or roles, as BACKUP_DATABASES takes them: commas between, double quotes where a name needs them."""
    return ", ".join(name if _PLAIN_NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"' for name in names)


def show_time(moment: datetime) -> str:
    """A time in UTC, the way every command prints it: `2026-11-22 02:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def json_time(moment: datetime) -> str:
    """A time in UTC for programs, RFC 3339 to the microsecond's precision it has: `2026-11-22T02:00:00Z`."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
