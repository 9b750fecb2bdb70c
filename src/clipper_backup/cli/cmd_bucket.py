"""`bucket …`: the store itself."""

import os
from typing import Annotated, Any
from urllib.parse import urlsplit

from cyclopts import Parameter

from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.cli.show_findings import finding_items, findings_text, raise_if_red
from clipper_backup.config import repository_url
from clipper_backup.errors import UsageError
from clipper_backup.ops import bucket_check as checking
from clipper_backup.ops.findings import judge_skew
from clipper_backup.ops.work import hasty, open_work, skew
from clipper_backup.values import parse_bytes

app = group("bucket", "The store itself.")

_STORE_SECONDS = 20
"""How long a request may take and is tried again: more than a part of 8 MiB takes where 64 MiB are worth writing."""
_SMALLEST_BYTES, _LARGEST_BYTES = 1 << 20, 10 << 30


@app.command
def check(
    *,
    size: Annotated[str, Parameter(help="how much to write and read to see how fast it is, 1MiB to 10GiB")] = "64MiB",
    objects: Annotated[int, Parameter(help="how many objects to make and list: more than a page of the listing")] = 1100,
    context: Context,
) -> None:
    """Try the store under a throw-away prefix, and read what its provider does with it; exit 1 when something is red."""
    size_bytes = _size(size)
    work = open_work(hasty(context.settings, _STORE_SECONDS), context.clock, context.emit, read_only=False, unsigned=True)
    ahead = skew(work.store, work.clock)
    unswept, swept = checking.sweep_leftovers(work.store)
    lines = [checking.Looked("clock", judge_skew(ahead)), *unswept, *checking.check_behaviour(work, many_objects=objects)]
    measured, speed = checking.measure_speed(work, size_bytes)
    facts = checking.read_facts(work, os.environ)
    folder = urlsplit(repository_url(work.settings)).path.strip("/")
    lines += [measured, *checking.judge_facts(facts, f"{folder}/" if folder else "", work.settings.retention_days)]
    rows = [(line.name, line.finding, line.finding.todo) for line in lines]
    document: dict[str, Any] = {
        "schema": 1,
        "url": work.store.url,
        "clock_ahead_seconds": round(ahead.total_seconds(), 3),
        "size_bytes": size_bytes,
        "write_bytes_per_second": None if speed is None else round(speed.write_bytes_per_second),
        "read_bytes_per_second": None if speed is None else round(speed.read_bytes_per_second),
        "leftovers_removed": swept,
        **finding_items(rows),
    }
    context.answer(document, findings_text(rows))
    raise_if_red(rows)


def _size(text: str) -> int:
    try:
        size_bytes = parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"bad value for --size: {error}") from None
    if not _SMALLEST_BYTES <= size_bytes <= _LARGEST_BYTES:
        raise UsageError(f"--size is outside 1MiB … 10GiB: {text}")
    return size_bytes
