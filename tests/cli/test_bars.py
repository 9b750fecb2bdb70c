"""Bars, drawn on a console whose every character is kept; time is a clock that the test moves."""

import io
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from clipper_backup.cli.bars import Bars
from clipper_backup.clock import VirtualClock
from clipper_backup.ops.events import Progress, StepBegun, StepDone, Warned


class Drawn:
    def __init__(self, columns: int = 100) -> None:
        self.clock = VirtualClock(datetime(2026, 11, 22, 2, tzinfo=UTC))
        self._page = io.StringIO()
        self.bars = Bars(Console(file=self._page, force_terminal=True, width=columns, color_system=None), self.clock)

    def now(self) -> list[str]:
        """The lines that stand on the terminal after one more refresh."""
        self._page.seek(0)
        self._page.truncate()
        self.bars._bars.refresh()
        drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._page.getvalue())
        return [re.sub("[━╸╺ ]*[━╸╺] *", " ━ ", line).strip() for line in drawn.splitlines() if line.strip()]


@pytest.fixture
def drawn() -> Drawn:
    return Drawn()


def test_a_step_is_timed_until_it_can_be_measured(drawn: Drawn) -> None:
    drawn.bars.emit(StepBegun("dump", "dumping clipper"))
    drawn.clock.advance(12)
    assert drawn.now() == ["dumping clipper ━ 12 s"]
    drawn.bars.emit(Progress("dump", 600, 1000, "rows"))
    assert drawn.now() == ["dumping clipper ━ 60 % of 1 000 rows, 50 rows/s, about 8.0 s left"]
    drawn.bars.close()


def test_a_step_that_begins_again_and_one_nobody_announced(drawn: Drawn) -> None:
    drawn.bars.emit(StepBegun("dump", "dumping a"))
    drawn.bars.emit(StepBegun("dump", "dumping b"))
    drawn.bars.emit(Progress("verify", 5, None, "objects"))
    assert drawn.now() == ["dumping b ━ 0.0 s", "verify ━ 5 objects"]
    drawn.bars.emit(StepDone("dump", "done", 1))
    drawn.bars.emit(StepDone("never begun", "done", 1))
    assert drawn.now() == ["verify ━ 5 objects"]
    drawn.bars.close()
    assert drawn.now() == []


def test_where_there_is_little_room_the_description_gives_way() -> None:
    drawn = Drawn(columns=70)
    drawn.bars.emit(StepBegun("dump", "dumping a database with quite a long name"))
    drawn.clock.advance(1)
    drawn.bars.emit(Progress("dump", 250_000_000, 1_000_000_000))
    (line,) = drawn.now()
    assert re.fullmatch(r"dump.*… ━ 25 % of 1\.0 GB, 250\.0 MB/s, about 3\.0 s left", line)
    drawn.bars.close()


def test_a_terminal_that_has_gone_away_does_not_stop_the_work() -> None:
    clock = VirtualClock(datetime(2026, 11, 22, 2, tzinfo=UTC))
    gone = Path("/dev/full").open("w", buffering=1, encoding="utf-8")  # noqa: SIM115 - closing it is the test
    bars = Bars(Console(file=gone, force_terminal=True, width=80), clock)
    bars.emit(Warned("nobody reads this"))
    bars.emit(StepBegun("dump", "dumping"))
    bars.close()
    with pytest.raises(OSError, match="No space left"):
        gone.close()  # what could not be written is still there
