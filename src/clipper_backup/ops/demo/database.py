"""The generated Clipper database: what `demo`, benchmarks and tests back up.

It has every kind of object that a dump must bring back, and a few traps for whoever compares two databases. The SQL
is in the files beside this module.
"""

import re
from collections.abc import Callable, Mapping
from importlib import resources
from typing import TypeAlias

from clipper_backup.clock import Clock, SystemClock
from clipper_backup.errors import UsageError
from clipper_backup.ops.events import Emit, Progress, StepBegun, StepDone

Execute: TypeAlias = Callable[[str], None]
"""Runs SQL text of one or more statements in one session of a superuser, outside any transaction; rows are dropped."""

LARGEST_SCALE = 100.0
_STEP = "generate"
_FILES = ("schema.sql", "data.sql", "rules.sql")
_ROWS = {"users": 16_000, "clips": 40_000, "comments": 190_000, "clip_views": 380_000, "sentences": 80_000}
"""How many at scale 1; with the votes, tags and indexes that follow from them, 228 MB on disk (PostgreSQL 15 and 18)."""
_FEWEST_ROWS = 200
"""The statements name a few rows by number."""
_SECTION = re.compile(r"^(?=-- section: )", re.MULTILINE)


def create_clipper_database(execute: Execute, *, scale: float, emit: Emit, clock: Clock | None = None) -> None:
    """Fill the empty database that *execute* speaks to; about 228 MB and 15 seconds for each unit of *scale*.

    The same scale gives the same rows, on every run and server version. Also makes the role `clipper_app` where the
    server has none, and settings of that role and of the database, which new sessions obey. UsageError for a scale
    that is none; what *execute* raises passes through, and leaves the database half made.
    """
    if not 0 < scale <= LARGEST_SCALE:
        raise UsageError(f"not a scale: {scale:g}", hints=[f"a number above 0, up to {LARGEST_SCALE:g}; 1 makes about 230 MB"])
    clock = clock or SystemClock()
    begun = clock.monotonic()
    rows = {name: max(_FEWEST_ROWS, round(count * scale)) for name, count in _ROWS.items()}
    sections = [section for file in _FILES for section in _sections(file, rows)]
    emit(StepBegun(_STEP, f"generating a Clipper-like database, scale {scale:g}"))
    for done, section in enumerate(sections, 1):
        execute(section)
        emit(Progress(_STEP, done, len(sections), unit="objects"))
    made = ", ".join(f"{rows[name]:,} {name.replace('_', ' ')}" for name in ("users", "clips", "comments", "clip_views"))
    emit(StepDone(_STEP, made, clock.monotonic() - begun))


def _sections(file: str, rows: Mapping[str, int]) -> list[str]:
    """The SQL of each section of *file*, with each `:name` replaced by its number of rows."""
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    # Not after a colon or a word: `::casts`, array[slices:of] and times of day are not ours.
    text = re.sub(rf"(?<![:\w]):({'|'.join(rows)})\b", lambda name: str(rows[name[1]]), text)
    return _SECTION.split(text)[1:]
