"""`verify/report.json`: what the last `verify` found, and which turns were read."""

from datetime import datetime, timedelta

from clipper_backup.errors import IntegrityError, ObjectMissingError
from clipper_backup.format import names as dump_names
from clipper_backup.format import physical_names as names
from clipper_backup.format.documents import NewerError, VerifiedKind, VerifyReport, decode, encode
from clipper_backup.repository.rotation import share_at
from clipper_backup.store.protocol import Store
from clipper_backup.values import DumpId

DAMAGE_MAX = 1000
"""Of what is written down; what lies behind is found again."""


def is_note(key: str) -> bool:
    """Whether it is one of the objects that a verify writes."""
    parsed = names.parse_base_key(key)
    return key == names.VERIFY_REPORT or (parsed is not None and parsed.part == names.VERIFY)


def read_report(store: Store) -> VerifyReport | None:
    """The last report; None before the first. IntegrityError when it is damaged, NewerError when a newer version wrote it."""
    try:
        data = store.get(names.VERIFY_REPORT)
    except ObjectMissingError:
        return None
    return decode(data, VerifyReport, names.VERIFY_REPORT)


def damaged_dumps(store: Store) -> set[DumpId]:
    """The dumps in which the last verify found damage. Nothing is known where its report is damaged, or a newer version's."""
    try:
        report = read_report(store)
    except (IntegrityError, NewerError):
        return set()
    keys = (dump_names.parse_dump_key(each.key) for each in (report.damage if report is not None else ()))
    return {key.dump_id for key in keys if key is not None}


def write_report(store: Store, report: VerifyReport) -> None:
    """Put it in the place of the last one."""
    store.put(names.VERIFY_REPORT, encode(report))


def kinds_of(report: VerifyReport) -> dict[str, VerifiedKind]:
    """What it says of each kind of unit."""
    return {"dumps": report.dumps, "packs": report.packs, "wal": report.wal}


def covered_share(report: VerifyReport, at: datetime) -> float:
    """Of all bytes that there were, about the share that was read within the report's cycle before *at*."""
    kinds, cycle = kinds_of(report).values(), timedelta(days=report.cycle_days)
    total = sum(kind.size_bytes for kind in kinds)
    if not total:
        return 1.0 if at - report.ended_at <= cycle else 0.0
    shares = ((kind, kind.covered_bytes / kind.size_bytes) for kind in kinds if kind.size_bytes and kind.rotation is not None)
    return (
        sum(kind.size_bytes * share_at(kind.rotation, share, at, cycle) for kind, share in shares if kind.rotation is not None)
        / total
    )


def never_in_turn(report: VerifyReport) -> list[str]:
    """The kinds of which no turn was ever read to its end: nobody could look at them, or no key at hand opens them.

    Behind a sample alone that is all there is.
    """
    kinds = kinds_of(report).items()
    return [name for name, kind in kinds if kind.rotation is None and (kind.units or report.mode != "sample")]


def overdue(report: VerifyReport, at: datetime) -> timedelta | None:
    """How long ago the kind that was covered the longest ago was, where that is more than a cycle; None where it is not."""
    behind = [
        at - (report.begun_at if kind.rotation is None else kind.rotation.covered_until)
        for kind in kinds_of(report).values()
        if kind.units
    ]
    longest = max(behind, default=at - report.ended_at)
    return longest if longest > timedelta(days=report.cycle_days) else None
