"""Where recovery stops: what a person typed, made unmistakable, and PostgreSQL's settings for it."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal

from clipper_backup.errors import UsageError
from clipper_backup.values import Lsn

Kind = Literal["latest", "time", "lsn", "xid", "name", "immediate"]

_NAME_BYTES = 63
"""The longest name of a restore point (MAXFNAMELEN - 1)."""
_FIRST_XID = 3
"""Those below are PostgreSQL's own and never end (FirstNormalTransactionId)."""

_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.(?P<fraction>\d{1,6}))?)?"
_ZONE = r"(?P<zone>Z|z|UTC|[+-]\d{2}(?::?\d{2})?)?"
_MOMENT = re.compile(rf"(?:(?P<date>\d{{4}}-\d{{2}}-\d{{2}})(?:[ T]+))?{_CLOCK}\s*{_ZONE}")
_AGO = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]+)\s+ago")
_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
_TIME_HINTS = (
    "with its zone: `2026-11-22 14:05+01`, `2026-11-22T13:05:00Z`; `14:05Z` is the last time it was that late; or `10 min ago`",
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where recovery stops. Of `time`, `lsn`, `xid` and `name` the one of its kind is set.

    `exclusive` stops before what is named instead of behind it.
    """

    kind: Kind
    time: datetime | None = None
    lsn: Lsn | None = None
    xid: int | None = None
    name: str | None = None
    exclusive: bool = False

    def describe(self) -> str:
        """For people: `2026-11-22 13:05:00Z`, `LSN 0/D00140, exclusive`."""
        what = {
            "latest": "the end of the archived WAL",
            "immediate": "the end of the base backup",
            "time": "" if self.time is None else show_moment(self.time),
            "lsn": f"LSN {self.lsn}",
            "xid": f"transaction {self.xid}",
            "name": f"restore point {self.name!r}",
        }[self.kind]
        return f"{what}, exclusive" if self.exclusive else what

    def settings(self) -> dict[str, str]:
        """PostgreSQL's recovery_target settings; none for the latest."""
        if self.kind == "latest":
            return {}
        if self.kind == "immediate":
            return {"recovery_target": "immediate"}
        if self.time is not None:
            value = self.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
        else:
            value = str(self.lsn if self.lsn is not None else self.xid if self.xid is not None else self.name)
        settings = {f"recovery_target_{self.kind}": value}
        # A restore point has no before and behind.
        return settings if self.kind == "name" else settings | {"recovery_target_inclusive": "off" if self.exclusive else "on"}


def choose_target(
    now: datetime,
    *,
    time: str | None = None,
    lsn: str | None = None,
    xid: str | None = None,
    name: str | None = None,
    immediate: bool = False,
    exclusive: bool = False,
) -> Target:
    """The target that a command line asks for; *now* is what `10 min ago` counts from. UsageError when it makes no sense."""
    given = [
        flag
        for flag, value in (("--to-time", time), ("--to-lsn", lsn), ("--to-xid", xid), ("--to-name", name))
        if value is not None
    ]
    given += ["--immediate"] if immediate else []
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other", hints=["recovery stops at one of them: say which"])
    if exclusive and given not in (["--to-time"], ["--to-lsn"], ["--to-xid"]):
        raise UsageError(
            "--exclusive needs --to-time, --to-lsn or --to-xid", hints=["it stops before that, instead of behind it"]
        )
    if time is not None:
        return Target("time", time=parse_time(time, now), exclusive=exclusive)
    if lsn is not None:
        return Target("lsn", lsn=Lsn.parse(lsn), exclusive=exclusive)
    if xid is not None:
        return Target("xid", xid=_parse_xid(xid), exclusive=exclusive)
    if name is not None:
        if not 0 < len(name.encode()) <= _NAME_BYTES or any(ord(letter) < 0x20 for letter in name):
            raise UsageError(f"not the name of a restore point: {name!r}", hints=[f"it has 1 to {_NAME_BYTES} bytes on one line"])
        return Target("name", name=name)
    return Target("immediate") if immediate else Target("latest")


def parse_time(text: str, now: datetime) -> datetime:
    """An instant in UTC. A clock time without a date is the last one that has passed.

    UsageError for a time without a zone (whose would it be?), one in the future, and whatever is no time.
    """
    words = text.strip()
    moment = _ago(words, now) or _moment(words, now)
    if moment > now:
        raise UsageError(
            f"{show_moment(moment)} is in the future: it is {show_moment(now)}",
            hints=["to the end of what is archived: name no time"],
        )
    return moment


def _ago(words: str, now: datetime) -> datetime | None:
    match = _AGO.fullmatch(words.lower())
    if match is None or match["unit"] not in _UNITS:
        return None
    try:
        return (now - timedelta(seconds=float(match["count"]) * _UNITS[match["unit"]])).astimezone(UTC)
    except OverflowError:
        raise _no_time(words) from None


def _moment(words: str, now: datetime) -> datetime:
    match = _MOMENT.fullmatch(words)
    if match is None:
        raise _no_time(words)
    if match["zone"] is None:
        raise UsageError(f"{words!r} has no time zone: nobody knows which instant that is", hints=_TIME_HINTS)
    try:
        zone = _zone(match["zone"])
        day = datetime.fromisoformat(match["date"]).date() if match["date"] else now.astimezone(zone).date()
        moment = datetime(
            day.year,
            day.month,
            day.day,
            int(match["hour"]),
            int(match["minute"]),
            int(match["second"] or 0),
            int((match["fraction"] or "").ljust(6, "0")),
            tzinfo=zone,
        ).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _no_time(words) from None
    return moment - timedelta(days=1) if not match["date"] and moment > now else moment


def _zone(text: str) -> timezone:
    if text in {"Z", "z", "UTC"}:
        return UTC
    hours, minutes = int(text[1:3]), int(text[3:].lstrip(":") or 0)
    if hours > 14 or minutes > 59:  # no place is further from Greenwich
        raise ValueError(text)
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)


def _no_time(words: str) -> UsageError:
    return UsageError(f"not a time: {words!r}", hints=_TIME_HINTS)


def _parse_xid(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) % 2**32 < _FIRST_XID or int(text) >= 2**64:
        raise UsageError(f"not a transaction id: {text!r}", hints=["a number from 3 on, as pg_current_xact_id() shows it"])
    return int(text)


def show_moment(moment: datetime) -> str:
    """An instant in UTC, with its microseconds if any, and on this machine's clock: `… 13:05:00Z (14:05:00+01:00 here)`."""
    utc, local = moment.astimezone(UTC), moment.astimezone()
    spec = "microseconds" if moment.microsecond else "seconds"
    shown = f"{utc.replace(tzinfo=None).isoformat(' ', spec)}Z"
    if local.utcoffset() == timedelta():
        return shown
    day = f"{local:%Y-%m-%d} " if local.date() != utc.date() else ""
    return f"{shown} ({day}{local.timetz().isoformat(spec)} here)"
